//! An export of a tenant's data: its index, and the stream in which its files travel between the daemon and a folder.
//!
//! Invariants: a stream without its end is no export; a file's name is a plain name, never a path.
//! `docs/formats/export.md` describes the files.

use crate::{DataKind, Secret};
use cloudpal_model::{Kind, Name, Problem};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the index calls itself, and its version.
pub const EXPORT_FORMAT: &str = "cloudpal data export";
pub const EXPORT_VERSION: u32 = 1;
/// The file with the index, and the file with the index's hash.
pub const EXPORT_INDEX: &str = "export.json";
pub const EXPORT_SUM: &str = "export.sum";

/// What an export holds. It has the keys to write and to read all of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportIndex {
    pub format: String,
    pub version: u32,
    pub tenant: Name,
    pub made_wall_ms: u64,
    pub data: Vec<ExportedData>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedData {
    pub name: Name,
    pub kind: DataKind,
    /// 64 hexadecimal digits.
    pub key: String,
    /// The secret of its writer's key pair; `null`: somebody else writes it.
    pub writer: Option<Secret>,
    pub encryption_key: Option<Secret>,
    /// `HOST:PORT` of the peers that are called.
    pub peers: Vec<String>,
    /// One, or two of a drive: the list of files, then the contents.
    pub cores: Vec<ExportedCore>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedCore {
    pub file: String,
    /// 64 hexadecimal digits.
    pub key: String,
    /// Hexadecimal; `null`: there is none, or it is not known here.
    pub manifest: Option<String>,
    pub fork: u64,
    pub length: u64,
    /// As the blocks are in the tree.
    pub byte_length: u64,
}

impl ExportIndex {
    pub fn byte_length(&self) -> u64 {
        self.data.iter().flat_map(|data| &data.cores).map(|core| core.byte_length).sum()
    }
}

/// What an import has brought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DataImported {
    /// How many cores, bees, drives and tries.
    pub data: u64,
    /// Each was compared with its signed tree.
    pub blocks: u64,
    pub bytes: u64,
}

/// A part of the stream: a byte for its kind, its length in 4 bytes, little-endian, and its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExportFrame {
    /// A file begins, of this name.
    File(String),
    /// What comes next of the file.
    Piece(Vec<u8>),
    /// All files are complete.
    End,
    /// It ends here, and why: a problem as the API tells it elsewhere, in JSON.
    Failed(Vec<u8>),
}

const MAX_FRAME_BYTES: usize = 16 << 20;

impl ExportFrame {
    pub fn encode(&self) -> Vec<u8> {
        let (kind, bytes): (u8, &[u8]) = match self {
            ExportFrame::File(name) => (1, name.as_bytes()),
            ExportFrame::Piece(bytes) => (2, bytes),
            ExportFrame::End => (3, &[]),
            ExportFrame::Failed(bytes) => (4, bytes),
        };
        [&[kind][..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
    }
}

/// Takes a stream apart, however it is cut into pieces.
#[derive(Debug, Default)]
pub struct ExportFrames {
    unfinished: Vec<u8>,
}

impl ExportFrames {
    pub fn push(&mut self, bytes: &[u8]) {
        self.unfinished.extend_from_slice(bytes);
    }

    /// The next whole frame.
    pub fn next_frame(&mut self) -> Result<Option<ExportFrame>, Problem> {
        let Some((&[kind, a, b, c, d], rest)) = self.unfinished.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(not_an_export("a part of it is longer than any can be"));
        }
        let Some(bytes) = rest.get(..length).map(<[u8]>::to_vec) else { return Ok(None) };
        self.unfinished.drain(..5 + length);
        match kind {
            1 => file_name(bytes).map(ExportFrame::File).map(Some),
            2 => Ok(Some(ExportFrame::Piece(bytes))),
            3 if bytes.is_empty() => Ok(Some(ExportFrame::End)),
            4 => Ok(Some(ExportFrame::Failed(bytes))),
            _ => Err(not_an_export("a part of it is of no known kind")),
        }
    }
}

/// The names of an export's files: they never lead elsewhere.
fn file_name(bytes: Vec<u8>) -> Result<String, Problem> {
    let fine = |name: &String| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        (1..=100).contains(&name.len()) && name.chars().all(plain) && !name.starts_with('.')
    };
    let name = String::from_utf8(bytes).ok().filter(fine);
    name.ok_or_else(|| not_an_export("it names a file as no export does"))
}

fn not_an_export(why: &str) -> Problem {
    Problem::new(Kind::Refused, format!("this is no export of a tenant's data: {why}"), "export it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut() {
        let frames = [
            ExportFrame::File("photos.core".into()),
            ExportFrame::Piece(vec![7; 1000]),
            ExportFrame::Piece(Vec::new()),
            ExportFrame::Failed(b"{}".to_vec()),
            ExportFrame::End,
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(ExportFrame::encode).collect();
        for size in [1, 3, 5, 64, 5000] {
            let (mut reader, mut found) = (ExportFrames::default(), Vec::new());
            for piece in bytes.chunks(size) {
                reader.push(piece);
                while let Some(frame) = reader.next_frame().unwrap() {
                    found.push(frame);
                }
            }
            assert_eq!(found, frames);
        }
    }

    #[test]
    fn a_stream_that_is_no_export_is_refused() {
        for name in ["", ".", "..", "../x", "/etc/passwd", "A", "a b", "ä", &"a".repeat(101)] {
            let mut reader = ExportFrames::default();
            reader.push(&ExportFrame::File(name.to_owned()).encode());
            assert!(reader.next_frame().is_err(), "{name:?}");
        }
        for bytes in [&[9, 0, 0, 0, 0][..], &[2, 0, 0, 0, 255], &[3, 1, 0, 0, 0, 0]] {
            let mut reader = ExportFrames::default();
            reader.push(bytes);
            assert!(reader.next_frame().is_err(), "{bytes:?}");
        }
    }
}

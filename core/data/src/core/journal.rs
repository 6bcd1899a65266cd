//! What a core writes to its storage: records, one after the other, version 1.
//!
//! ```text
//! record   "CPR1" | u32 length of the body | u32 CRC-32C of the record before | u32 CRC-32C of all this | body
//! body     1 create:   version 1, key, the manifest if it is no compat core
//!          2 append:   fork, length before, sizes of the blocks, the blocks
//!          3 truncate: new fork, new length
//!          4 signed:   offset of this record, fork, length, tree hash, signature
//! ```
//! Numbers in a body are compact-encoded, those of the head little-endian. Each record names the CRC of the one
//! before, so that what a cut left behind on the disk cannot be taken for a part of a later history. A
//! `signed` record is written only after everything before it was synced: where one follows damaged bytes,
//! those bytes were lost after they were safe.

use crate::crypto::Hash;
use crate::encoding::{Reader, Writer};
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::storage::Storage;

const MAGIC: [u8; 4] = *b"CPR1";
pub const HEAD: usize = 16;
/// No record is larger; a damaged length therefore costs no more memory than this.
pub const MAX_BODY: usize = 64 << 20;
/// Blocks of one append, at most.
pub const MAX_BATCH: usize = 1 << 20;
/// A `signed` record of a core with one signer is far smaller.
const MAX_SIGNED: usize = 512;
const VERSION: u64 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    Create {
        key: Hash,
        manifest: Option<Manifest>,
    },
    /// The blocks are in the body from `blocks_at` on.
    Append {
        fork: u64,
        length: u64,
        sizes: Vec<u64>,
        blocks_at: usize,
    },
    Truncate {
        fork: u64,
        length: u64,
    },
    Signed(Signed),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    pub offset: u64,
    pub fork: u64,
    pub length: u64,
    pub tree_hash: Hash,
    pub signature: Vec<u8>,
}

pub fn create(key: &Hash, manifest: Option<&Manifest>) -> Vec<u8> {
    let mut to = Writer::default();
    to.uint(1);
    to.uint(VERSION);
    to.raw(key);
    if let Some(manifest) = manifest {
        manifest.write(&mut to);
    }
    to.bytes
}

/// The body, and where in it the blocks begin.
pub fn append(fork: u64, length: u64, blocks: &[&[u8]]) -> (Vec<u8>, usize) {
    let mut to = Writer::default();
    to.uint(2);
    to.uint(fork);
    to.uint(length);
    to.array(blocks, |to, block| to.uint(block.len() as u64));
    let at = to.bytes.len();
    blocks.iter().for_each(|block| to.raw(block));
    (to.bytes, at)
}

pub fn truncate(fork: u64, length: u64) -> Vec<u8> {
    let mut to = Writer::default();
    to.uint(3);
    to.uint(fork);
    to.uint(length);
    to.bytes
}

pub fn signed(signed: &Signed) -> Vec<u8> {
    let mut to = Writer::default();
    to.uint(4);
    to.uint(signed.offset);
    to.uint(signed.fork);
    to.uint(signed.length);
    to.raw(&signed.tree_hash);
    to.buffer(&signed.signature);
    to.bytes
}

pub fn decode(body: &[u8]) -> Result<Record, DataError> {
    let mut from = Reader::new(body);
    let record = match from.uint()? {
        1 => {
            if from.uint()? != VERSION {
                return Err(DataError::Malformed("a format of another version"));
            }
            let key = from.fixed()?;
            let manifest = (!from.is_empty()).then(|| Manifest::read(&mut from)).transpose()?;
            Record::Create { key, manifest }
        }
        2 => {
            let (fork, length) = (from.uint()?, from.uint()?);
            let sizes = from.array(MAX_BATCH, Reader::uint)?;
            let rest = from.rest();
            let total = sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(*size));
            if total != Some(rest as u64) {
                return Err(DataError::Malformed("sizes that do not add up"));
            }
            return Ok(Record::Append { fork, length, sizes, blocks_at: body.len() - rest });
        }
        3 => Record::Truncate { fork: from.uint()?, length: from.uint()? },
        4 => Record::Signed(Signed {
            offset: from.uint()?,
            fork: from.uint()?,
            length: from.uint()?,
            tree_hash: from.fixed()?,
            signature: from.buffer()?.to_vec(),
        }),
        _ => return Err(DataError::Malformed("a record of an unknown kind")),
    };
    from.end()?;
    Ok(record)
}

/// The whole record, and its CRC.
pub fn frame(body: &[u8], before: u32) -> (Vec<u8>, u32) {
    let mut record = Vec::with_capacity(HEAD + body.len());
    record.extend_from_slice(&MAGIC);
    record.extend_from_slice(&(body.len() as u32).to_le_bytes());
    record.extend_from_slice(&before.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&record), body);
    record.extend_from_slice(&crc.to_le_bytes());
    record.extend_from_slice(body);
    (record, crc)
}

struct Frame {
    body: Vec<u8>,
    before: u32,
    crc: u32,
}

/// The record at `offset` if it is whole; `end` is the storage's length.
fn read_frame(
    storage: &impl Storage,
    offset: u64,
    end: u64,
    most: usize,
) -> Result<Option<Frame>, DataError> {
    if end.saturating_sub(offset) < HEAD as u64 {
        return Ok(None);
    }
    let mut head = [0; HEAD];
    storage.read(offset, &mut head)?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (length, before, crc) = (word(4) as usize, word(8), word(12));
    if head[..4] != MAGIC || length > most || (length as u64) > end - offset - HEAD as u64 {
        return Ok(None);
    }
    let mut body = vec![0; length];
    storage.read(offset + HEAD as u64, &mut body)?;
    let whole = crc32c::crc32c_append(crc32c::crc32c(&head[..12]), &body) == crc;
    Ok(whole.then_some(Frame { body, before, crc }))
}

/// The record at `offset` that follows one with the CRC `before`: its body and its CRC.
pub fn read(
    storage: &impl Storage,
    offset: u64,
    end: u64,
    before: u32,
) -> Result<Option<(Vec<u8>, u32)>, DataError> {
    let frame = read_frame(storage, offset, end, MAX_BODY)?;
    Ok(frame.filter(|frame| frame.before == before).map(|frame| (frame.body, frame.crc)))
}

/// All `signed` records from `offset` on, wherever they begin. Reads the rest of the storage once.
pub fn signed_after(storage: &impl Storage, offset: u64, end: u64) -> Result<Vec<Signed>, DataError> {
    const CHUNK: usize = 1 << 20;
    let (mut found, mut at) = (Vec::new(), offset);
    let mut chunk = Vec::new();
    while at + (HEAD as u64) <= end {
        chunk.resize(CHUNK.min((end - at) as usize), 0);
        storage.read(at, &mut chunk)?;
        for (within, _) in chunk.windows(4).enumerate().filter(|(_, bytes)| *bytes == MAGIC) {
            let offset = at + within as u64;
            let Some(frame) = read_frame(storage, offset, end, MAX_SIGNED)? else { continue };
            if let Ok(Record::Signed(signed)) = decode(&frame.body)
                && signed.offset == offset
            {
                found.push(signed);
            }
        }
        // The next chunk begins within this one, so that no magic is cut in two.
        at += (chunk.len() - 3) as u64;
    }
    Ok(found)
}

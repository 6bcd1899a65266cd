//! What a woken machine used of its memory until it slept again: the file `working-set`, by which whoever wakes it next
//! has those pages brought in beforehand.
//!
//! Invariant: it is advice. Nothing depends on it but time, and a wake without one is as good.

use super::diff::Extent;
use crate::Error;
use std::{fs::File, os::unix::fs::FileExt};

const MAGIC: [u8; 8] = *b"CLDPLWS1";
/// Extents with less between them are one: reading that costs less than asking twice.
const GAP: u64 = 64 * 1024;
/// So many extents at most; what would be beyond is left out.
const EXTENTS_MAX: usize = 32 * 1024;

pub(super) fn write(file: &File, used: &[Extent]) -> Result<(), Error> {
    let mut extents: Vec<Extent> = Vec::new();
    for (offset, len) in used {
        let full = extents.len() == EXTENTS_MAX;
        match extents.last_mut() {
            Some((at, before)) if offset - (*at + *before) < GAP => *before = offset + len - *at,
            _ if full => break,
            _ => extents.push((*offset, *len)),
        }
    }
    let table: Vec<u8> =
        extents.iter().flat_map(|(offset, len)| [*offset, *len]).flat_map(u64::to_le_bytes).collect();
    let header = [extents.len() as u32, crc32c::crc32c(&table)].map(u32::to_le_bytes).concat();
    let bytes = [&MAGIC[..], &header, &table].concat();
    let written = file.set_len(bytes.len() as u64).and_then(|()| file.write_all_at(&bytes, 0));
    written.map_err(Error::file("the snapshot's working set"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_close_together_is_one_extent_and_their_number_is_bounded() {
        let written = |used: &[Extent]| {
            let file = tempfile::tempfile().expect("a file");
            write(&file, used).expect("writes");
            let mut bytes = vec![0; file.metadata().expect("a length").len() as usize];
            file.read_exact_at(&mut bytes, 0).expect("reads");
            bytes
        };
        let bytes = written(&[(4096, 4096), (8192 + GAP - 4096, 4096), (1 << 20, 8192)]);
        assert_eq!(bytes[..8], MAGIC);
        assert_eq!(bytes[8..12], 2_u32.to_le_bytes());
        let words: Vec<u64> =
            bytes[16..].as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        assert_eq!(words, [4096, GAP + 4096, 1 << 20, 8192]);
        assert_eq!(bytes[12..16], crc32c::crc32c(&bytes[16..]).to_le_bytes());
        assert_eq!(written(&[]).len(), 16);
        let many: Vec<Extent> = (0..100_000).map(|n| (n * 4 * GAP, 4096)).collect();
        assert_eq!(written(&many).len(), 16 + EXTENTS_MAX * 16);
    }
}

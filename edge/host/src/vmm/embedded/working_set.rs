//! Brings in from the disk what a machine will probably use of its memory: what it used when it was last awake.
//!
//! Invariant: it is advice, from a VMM that is not trusted. Whatever the file says, pages of the snapshot's own memory
//! file are read, or none; nothing is waited for, and nothing fails.

use rustix::fs::{Advice, fadvise};
use std::{fs::File, num::NonZeroU64, os::unix::fs::FileExt};

const MAGIC: [u8; 8] = *b"CLDPLWS1";
const HEADER: usize = 16;
const EXTENT: usize = 16;
/// The VMM writes no more.
const EXTENTS_MAX: usize = 32 * 1024;

/// It waits for the disk where the host has much to read already.
pub fn bring_in(used: &File, memory: &File) {
    let bytes = memory.metadata().map_or(0, |data| data.len());
    for (offset, len) in extents(used).into_iter().filter(|(offset, _)| *offset < bytes) {
        let len = NonZeroU64::new(len.min(bytes - offset));
        // A file system that takes no advice reads when it is asked.
        if len.is_some() && fadvise(memory, offset, len, Advice::WillNeed).is_err() {
            return;
        }
    }
}

/// None when it is no working set, or a damaged one.
fn extents(file: &File) -> Vec<(u64, u64)> {
    let mut header = [0; HEADER];
    if file.read_exact_at(&mut header, 0).is_err() || header[..8] != MAGIC {
        return Vec::new();
    }
    let (words, _) = header[8..].as_chunks::<4>();
    let word = |at: usize| words.get(at).map_or(0, |word| u32::from_le_bytes(*word));
    let count = word(0) as usize;
    let mut table = vec![0; count.min(EXTENTS_MAX) * EXTENT];
    let whole = count <= EXTENTS_MAX && file.read_exact_at(&mut table, HEADER as u64).is_ok();
    if !whole || crc32c::crc32c(&table) != word(1) {
        return Vec::new();
    }
    let (words, _) = table.as_chunks::<8>();
    words
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[at, len]| (u64::from_le_bytes(*at), u64::from_le_bytes(*len)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{ReadWriteFlags, preadv2};
    use std::{io::IoSliceMut, time::Duration};

    fn working_set(extents: &[(u64, u64)]) -> File {
        let table: Vec<u8> =
            extents.iter().flat_map(|(at, len)| [*at, *len]).flat_map(u64::to_le_bytes).collect();
        let header = [extents.len() as u32, crc32c::crc32c(&table)].map(u32::to_le_bytes).concat();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[&MAGIC[..], &header, &table].concat(), 0).unwrap();
        file
    }

    fn is_in_memory(file: &File, offset: u64) -> bool {
        let mut byte = [0];
        preadv2(file, &mut [IoSliceMut::new(&mut byte)], offset, ReadWriteFlags::NOWAIT).is_ok()
    }

    #[test]
    fn what_was_used_is_brought_in_and_nothing_else() {
        // Not in a file system that lies in memory itself.
        let memory = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        memory.write_all_at(&vec![7; 16 << 20], 0).unwrap();
        memory.sync_all().unwrap();
        fadvise(&memory, 0, None, Advice::DontNeed).unwrap();
        if is_in_memory(&memory, 8 << 20) {
            eprintln!("SKIPPED: this file system does not let its pages go");
            return;
        }
        bring_in(&working_set(&[(8 << 20, 8192), (u64::MAX - 1, 9), (12 << 20, u64::MAX)]), &memory);
        let start = std::time::Instant::now();
        while !is_in_memory(&memory, (8 << 20) + 4096) || !is_in_memory(&memory, (16 << 20) - 1) {
            assert!(start.elapsed() < Duration::from_secs(20), "it was not brought in");
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(!is_in_memory(&memory, 1 << 20));
    }

    #[test]
    fn what_is_no_working_set_is_no_advice() {
        assert_eq!(extents(&working_set(&[(4096, 8192), (1 << 20, 4096)])), [(4096, 8192), (1 << 20, 4096)]);
        let empty = tempfile::tempfile().unwrap();
        let damaged = working_set(&[(4096, 8192)]);
        damaged.write_all_at(&[1], 20).unwrap();
        let short = working_set(&[(4096, 8192)]);
        short.set_len(24).unwrap();
        let huge = working_set(&[]);
        huge.write_all_at(&u32::MAX.to_le_bytes(), 8).unwrap();
        for file in [empty, damaged, short, huge] {
            assert!(extents(&file).is_empty());
        }
    }
}

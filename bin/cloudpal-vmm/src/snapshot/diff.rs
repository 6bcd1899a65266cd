//! What a machine changed in the memory that it woke from: the file `diff`, beside the `memory` that it belongs to.
//!
//! ```text
//!  header, 64 bytes │ extents: offset and length, 8 bytes each │ to the next 4096 │ the extents' bytes
//! ```
//! Invariants:
//! - A page is changed when this process has a copy of its own of it. The kernel knows (Linux:
//!   Documentation/admin-guide/mm/pagemap.rst): such a page is present or swapped out, and not the file's.
//! - A diff is always against the file that the first machine of the line woke from: a wake needs two files, never
//!   more.
//! - Nothing of a foreign file is put into memory before all its numbers were found true.

use super::{PIECE, Refusal, Save};
use crate::{Error, memory::Memory};
use std::{fs::File, os::unix::fs::FileExt};

const MAGIC: [u8; 8] = *b"CLDPLMDF";
const VERSION: u32 = 1;
const HEADER: usize = 64;
const PAGE: u64 = 4096;
const EXTENT: usize = 16;

/// Offset in the memory file, and length; both in whole pages.
pub(crate) type Extent = (u64, u64);

pub(super) struct Header {
    pub base: [u8; 16],
    pub pairing: [u8; 16],
    count: u64,
    checksum: u32,
}

fn told(error: std::io::Error) -> Error {
    Error::file("the snapshot's diff")(error)
}

/// Writes these pages, and returns how many bytes the file has.
pub(super) fn write(
    file: &File,
    save: &Save<'_>,
    memory: &Memory,
    extents: &[Extent],
    (base, pairing): ([u8; 16], [u8; 16]),
) -> Result<u64, Error> {
    let table: Vec<u8> =
        extents.iter().flat_map(|(offset, len)| [*offset, *len]).flat_map(u64::to_le_bytes).collect();
    let mut at = data_start(extents.len() as u64);
    let mut checksum = crc32c::crc32c(&table);
    let mut piece = vec![0; PIECE];
    for (offset, len) in extents {
        memory.each_chunk_of(*offset, *len, &mut piece, |bytes| {
            save.go_on()?;
            checksum = crc32c::crc32c_append(checksum, bytes);
            file.write_all_at(bytes, at).map_err(told)?;
            at += bytes.len() as u64;
            Ok::<_, Error>(())
        })?;
    }
    file.write_all_at(&table, HEADER as u64).map_err(told)?;
    let mut header = MAGIC.to_vec();
    header.extend([VERSION, extents.len() as u32].into_iter().flat_map(u32::to_le_bytes));
    header.extend([base, pairing].concat());
    header.extend(checksum.to_le_bytes());
    header.resize(HEADER, 0);
    file.write_all_at(&header, 0).map_err(told)?;
    // The data may have no byte at all; the table's last page has its length all the same.
    file.set_len(at).map_err(told)?;
    Ok(at)
}

fn data_start(count: u64) -> u64 {
    (HEADER as u64 + count * EXTENT as u64).next_multiple_of(PAGE)
}

pub(super) fn header(file: &File) -> Result<Header, Error> {
    let mut bytes = [0; HEADER];
    file.read_exact_at(&mut bytes, 0).map_err(told)?;
    let word = |at: usize| crate::elf::u32_at(&bytes, at);
    if bytes[..8] != MAGIC || bytes[52..].iter().any(|byte| *byte != 0) {
        return Err(Refusal::Diff("it is no diff of a memory").into());
    }
    if word(8) != VERSION {
        return Err(Refusal::Diff("it is of another version").into());
    }
    let id = |at: usize| {
        let mut id = [0; 16];
        id.copy_from_slice(&bytes[at..at + 16]);
        id
    };
    Ok(Header { base: id(16), pairing: id(32), count: u64::from(word(12)), checksum: word(48) })
}

/// Puts the pages over the memory that they belong to.
pub fn apply(file: &File, memory: &Memory) -> Result<(), Error> {
    let header = header(file)?;
    if header.count > memory.bytes() / PAGE {
        return Err(Refusal::Diff("it has more extents than the memory has pages").into());
    }
    let mut table = vec![0; header.count as usize * EXTENT];
    file.read_exact_at(&mut table, HEADER as u64).map_err(told)?;
    let word = |at: usize| crate::elf::u64_at(&table, at);
    let extents: Vec<Extent> =
        (0..header.count as usize).map(|index| (word(index * EXTENT), word(index * EXTENT + 8))).collect();
    let mut end = 0;
    for (offset, len) in &extents {
        let whole = offset % PAGE == 0 && len % PAGE == 0 && *len > 0;
        let after = offset.checked_add(*len).filter(|after| *after <= memory.bytes());
        match after {
            Some(after) if whole && *offset >= end => end = after,
            _ => return Err(Refusal::Diff("an extent of it lies outside of memory, or over another").into()),
        }
    }
    let mut at = data_start(header.count);
    let data: u64 = extents.iter().map(|(_, len)| len).sum();
    if file.metadata().map_err(told)?.len() != at + data {
        return Err(Refusal::Diff("it is cut short, or too long").into());
    }
    let mut checksum = crc32c::crc32c(&table);
    let mut piece = vec![0; PIECE];
    for (offset, len) in &extents {
        memory.fill_pages(*offset, *len, file, at)?;
        at += len;
        memory.each_chunk_of(*offset, *len, &mut piece, |bytes| {
            checksum = crc32c::crc32c_append(checksum, bytes);
            Ok::<_, Error>(())
        })?;
    }
    if checksum == header.checksum {
        Ok(())
    } else {
        Err(Refusal::MemoryChecksum { found: checksum, wanted: header.checksum }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: u64 = 4 << 20;

    fn memory() -> Memory {
        Memory::reserve(4).expect("memory")
    }

    /// A diff of two pages of sevens.
    fn diff() -> Vec<u8> {
        let (memory, file) = (memory(), tempfile::tempfile().expect("a file"));
        memory.write(3 * PAGE, &[7; 2 * PAGE as usize]).expect("in memory");
        let extents = [(3 * PAGE, PAGE), (4 * PAGE, PAGE)];
        let save = Save { state: &file, memory: &file, diff: None, working_set: None, given_up: &|| false };
        let bytes = write(&file, &save, &memory, &extents, ([1; 16], [2; 16])).expect("writes");
        let given_up = Save { given_up: &|| true, ..save };
        let given_up = write(&file, &given_up, &memory, &extents, ([1; 16], [2; 16]));
        assert!(matches!(given_up, Err(Error::GivenUp)), "{given_up:?}");
        let mut all = vec![0; bytes as usize];
        file.read_exact_at(&mut all, 0).expect("reads");
        all
    }

    fn applied(bytes: &[u8]) -> Result<Memory, Error> {
        let (memory, file) = (memory(), tempfile::tempfile().expect("a file"));
        file.write_all_at(bytes, 0).expect("writes");
        apply(&file, &memory).map(|()| memory)
    }

    #[test]
    fn pages_come_back_where_they_were() {
        let memory = applied(&diff()).expect("applies");
        let word = |at| memory.read_u32(at).expect("in memory");
        assert_eq!(
            (word(3 * PAGE - 4), word(3 * PAGE), word(5 * PAGE - 4), word(5 * PAGE)),
            (0, 0x0707_0707, 0x0707_0707, 0)
        );
    }

    #[test]
    fn what_is_damaged_is_refused_with_its_reason() {
        let refused = |bytes: &[u8]| match applied(bytes) {
            Err(Error::Snapshot(refusal)) => refusal,
            other => panic!("{:?}", other.map(|_| ())),
        };
        let with = |at: usize, value: u64| {
            let mut bytes = diff();
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            refused(&bytes)
        };
        assert!(matches!(with(0, 0), Refusal::Diff(_)));
        assert!(matches!(with(HEADER, BYTES), Refusal::Diff(_)), "outside of memory");
        assert!(matches!(with(HEADER + 8, u64::MAX - PAGE + 1), Refusal::Diff(_)), "around the end");
        assert!(matches!(with(HEADER + 16, 3 * PAGE), Refusal::Diff(_)), "over another");
        assert!(matches!(with(4096, 0), Refusal::MemoryChecksum { .. }));
        let short = diff();
        assert!(matches!(refused(&short[..short.len() - 1]), Refusal::Diff(_)));
        assert!(matches!(applied(&short[..10]), Err(Error::File { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(at in 0_usize..120, byte: u8, cut in 0_usize..12_300) {
            let mut bytes = diff();
            bytes[at] = byte;
            bytes.truncate(cut);
            let _ = applied(&bytes);
        }
    }
}

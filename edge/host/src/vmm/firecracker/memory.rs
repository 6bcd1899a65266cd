//! The memory file of a snapshot, as Firecracker writes it: every page of the guest, also those that are zero.
//!
//! Invariants: blocks that are all zero become holes, so a snapshot takes the disk space of what it holds; each other
//! block has a checksum; and a file with anything else in it is refused before the guest runs.

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use serde::{Deserialize, Serialize};
use std::{fs::File, io, os::unix::fs::FileExt};

const BLOCK_BYTES: usize = 256 << 10;

/// Where a block that is not all zero begins, and its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block(u64, u32);

/// What is surveyed at a time: the caller may change its mind in between.
pub const STEP_BYTES: u64 = 32 << 20;

/// From that byte on, makes holes of what is zero and sums up the rest, for one step.
pub fn survey(file: &File, from: u64) -> io::Result<Vec<Block>> {
    let length = file.metadata()?.len();
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut blocks = Vec::new();
    for at in (from..length.min(from + STEP_BYTES)).step_by(BLOCK_BYTES) {
        let block = read_block(file, at, length, &mut buffer)?;
        if block.iter().all(|&byte| byte == 0) {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // A file system without holes keeps the zeros.
            if fallocate(file, hole, at, block.len() as u64).is_ok() {
                continue;
            }
        }
        blocks.push(Block(at, crc32c::crc32c(block)));
    }
    Ok(blocks)
}

/// `Ok(Err(why))`: it is not what was surveyed.
pub fn verify(file: &File, blocks: &[Block]) -> io::Result<Result<(), String>> {
    let length = file.metadata()?.len();
    let mut buffer = vec![0; BLOCK_BYTES];
    let mut seen = 0;
    for &Block(at, sum) in blocks {
        if at < seen || at >= length {
            return Ok(Err("its list of memory blocks is out of order".into()));
        }
        if holds_data(file, seen, at)? {
            return Ok(Err(format!("its memory holds something behind byte {seen} where nothing was")));
        }
        let block = read_block(file, at, length, &mut buffer)?;
        if crc32c::crc32c(block) != sum {
            return Ok(Err(format!("its memory is damaged at byte {at}")));
        }
        seen = at + block.len() as u64;
    }
    if holds_data(file, seen, length)? {
        return Ok(Err(format!("its memory holds something behind byte {seen} where nothing was")));
    }
    Ok(Ok(()))
}

fn read_block<'a>(file: &File, at: u64, length: u64, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let size = BLOCK_BYTES.min(usize::try_from(length - at).unwrap_or(BLOCK_BYTES));
    file.read_exact_at(&mut buffer[..size], at)?;
    Ok(&buffer[..size])
}

fn holds_data(file: &File, from: u64, to: u64) -> io::Result<bool> {
    if from >= to {
        return Ok(false);
    }
    match seek(file, SeekFrom::Data(from)) {
        Ok(data) => Ok(data < to),
        Err(rustix::io::Errno::NXIO) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_become_holes_and_damage_anywhere_is_noticed() {
        let file = tempfile::tempfile().unwrap();
        let length = 6 * BLOCK_BYTES as u64 + 4096;
        file.write_all_at(&vec![0; usize::try_from(length).unwrap()], 0).unwrap();
        file.write_all_at(b"first", 17).unwrap();
        file.write_all_at(b"last", length - 4).unwrap();
        let blocks = survey(&file, 0).unwrap();
        assert_eq!(blocks.len(), 2);
        assert!(file.metadata().unwrap().blocks() * 512 <= 2 * BLOCK_BYTES as u64);
        assert_eq!(verify(&file, &blocks).unwrap(), Ok(()));
        for (at, byte) in [(18, b"i"), (3 * BLOCK_BYTES as u64 + 9, b"\0"), (length - 1, b"t")] {
            file.write_all_at(b"X", at).unwrap();
            assert!(verify(&file, &blocks).unwrap().is_err(), "{at}");
            file.write_all_at(byte, at).unwrap();
        }
        file.set_len(length - 4096).unwrap();
        assert!(verify(&file, &blocks).unwrap().is_err());
    }
}

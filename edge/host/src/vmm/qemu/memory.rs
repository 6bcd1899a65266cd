//! A guest's memory, outside the VMM: a memfd that both the daemon and the VMM hold.
//!
//! The VMM maps it shared, so its device-state stream need not carry it; the daemon copies it to and from the snapshot.
//! Invariant: only blocks that hold something are copied, each with a checksum that is verified before the guest runs.

use rustix::fs::{MemfdFlags, SeekFrom, memfd_create, seek};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

const BLOCK_BYTES: usize = 256 << 10;
const PAGE_BYTES: usize = 4096;
const ZERO_PAGE: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

/// One block that is not all zeroes. Its length is [`BLOCK_BYTES`], or what remains of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block(pub u64, pub u32);

pub fn create(name: &str, bytes: u64) -> io::Result<File> {
    let file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
    file.set_len(bytes)?;
    Ok(file)
}

/// Copies the memory to a file a few blocks at a time, so that the caller can change its mind in between.
pub struct Save {
    memory: File,
    to: File,
    length: u64,
    at: u64,
    buffer: Vec<u8>,
    pub blocks: Vec<Block>,
}

impl Save {
    pub fn new(memory: OwnedFd, to: File) -> io::Result<Save> {
        let memory = File::from(memory);
        let length = memory.metadata()?.len();
        to.set_len(length)?;
        Ok(Save { memory, to, length, at: 0, buffer: vec![0; BLOCK_BYTES], blocks: Vec::new() })
    }

    /// Copies up to that many blocks; `false` when everything is copied.
    pub fn step(&mut self, blocks: usize) -> io::Result<bool> {
        for _ in 0..blocks {
            let Some(at) = self.next_block()? else {
                return Ok(false);
            };
            let size = BLOCK_BYTES.min(usize::try_from(self.length - at).unwrap_or(BLOCK_BYTES));
            let buffer = &mut self.buffer[..size];
            self.memory.read_exact_at(buffer, at)?;
            if write_pages(&self.to, buffer, at)? {
                self.blocks.push(Block(at, crc32c::crc32c(buffer)));
            }
            self.at = at + size as u64;
        }
        Ok(true)
    }

    /// Skips what was never touched.
    fn next_block(&self) -> io::Result<Option<u64>> {
        if self.at >= self.length {
            return Ok(None);
        }
        match seek(&self.memory, SeekFrom::Data(self.at)) {
            Ok(data) => Ok(Some(data - data % BLOCK_BYTES as u64).map(|block| block.max(self.at))),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Fills the memory from the snapshot's file. `Ok(Err(why))`: the file is not what was written.
pub fn load(from: &File, blocks: &[Block], memory: &File) -> io::Result<Result<(), String>> {
    let length = memory.metadata()?.len();
    if from.metadata()?.len() != length {
        return Ok(Err(format!("its memory file is {} bytes long, not {length}", from.metadata()?.len())));
    }
    let mut buffer = vec![0; BLOCK_BYTES];
    for &Block(at, checksum) in blocks {
        if at >= length {
            return Ok(Err("it names memory that the machine does not have".into()));
        }
        let size = BLOCK_BYTES.min(usize::try_from(length - at).unwrap_or(BLOCK_BYTES));
        let buffer = &mut buffer[..size];
        from.read_exact_at(buffer, at)?;
        if crc32c::crc32c(buffer) != checksum {
            return Ok(Err(format!("its memory is damaged at byte {at}")));
        }
        write_pages(memory, buffer, at)?;
    }
    Ok(Ok(()))
}

/// Writes the runs of pages that are not all zeroes; tells whether there was one.
fn write_pages(to: &File, block: &[u8], at: u64) -> io::Result<bool> {
    let is_zero = |page: &[u8]| page == &ZERO_PAGE[..page.len()];
    let mut wrote = false;
    let mut start = 0;
    while start < block.len() {
        let end = (start + PAGE_BYTES).min(block.len());
        if is_zero(&block[start..end]) {
            start = end;
            continue;
        }
        let pages = block[start..].chunks(PAGE_BYTES).take_while(|page| !is_zero(page));
        let run = start + pages.map(<[u8]>::len).sum::<usize>();
        to.write_all_at(&block[start..run], at + start as u64)?;
        wrote = true;
        start = run;
    }
    Ok(wrote)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn round(memory: &File, file: &File) -> Vec<Block> {
        let mut save = Save::new(memory.try_clone().unwrap().into(), file.try_clone().unwrap()).unwrap();
        while save.step(3).unwrap() {}
        save.blocks
    }

    #[test]
    fn memory_comes_back_and_holes_stay_holes() {
        let length = 16 * BLOCK_BYTES as u64 + 12_288;
        let memory = create("test", length).unwrap();
        memory.write_all_at(b"first", 0).unwrap();
        memory.write_all_at(b"middle", 5 * BLOCK_BYTES as u64 + 9000).unwrap();
        memory.write_all_at(b"last", length - 4).unwrap();
        // Touched, but zero.
        memory.write_all_at(&[0; 5000], 9 * BLOCK_BYTES as u64).unwrap();
        let file = tempfile::tempfile().unwrap();
        let blocks = round(&memory, &file);
        assert_eq!(blocks.len(), 3);
        let back = create("test", length).unwrap();
        load(&file, &blocks, &back).unwrap().unwrap();
        let read = |file: &File| {
            let mut bytes = vec![0; usize::try_from(length).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        assert!(read(&memory) == read(&back));
        assert!(back.metadata().unwrap().blocks() * 512 <= 4 * PAGE_BYTES as u64);
    }

    #[test]
    fn damage_is_noticed() {
        let memory = create("test", 1 << 20).unwrap();
        memory.write_all_at(b"data", 300_000).unwrap();
        let file = tempfile::tempfile().unwrap();
        let blocks = round(&memory, &file);
        file.write_all_at(b"D", 300_000).unwrap();
        let back = create("test", 1 << 20).unwrap();
        assert!(load(&file, &blocks, &back).unwrap().unwrap_err().contains("damaged"));
        file.set_len(1000).unwrap();
        assert!(load(&file, &blocks, &back).unwrap().unwrap_err().contains("1000 bytes"));
    }
}

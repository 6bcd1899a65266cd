//! A feed in memory, the numbers of the golden scripts, and what the tests of bee, drive and trie share.

#![allow(dead_code)] // each test file uses its own part

use cloudpal_data::DataError;
use cloudpal_data::blobs::{ByteFeed, ClearFeed};
use cloudpal_data::crypto;
use cloudpal_data::feed::{Feed, FeedMut};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::ops::Range;

/// Blocks in memory. Some may be missing, and appending may fail.
#[derive(Clone, Debug, Default)]
pub struct MemoryFeed {
    pub blocks: Vec<Vec<u8>>,
    pub missing: RefCell<BTreeSet<u64>>,
    pub fork: u64,
    pub broken: bool,
    pub reads: Cell<u64>,
}

impl MemoryFeed {
    pub fn of(blocks: Vec<Vec<u8>>) -> Self {
        MemoryFeed { blocks, ..MemoryFeed::default() }
    }

    /// The same blocks, of which none is here yet.
    pub fn sparse(&self) -> Self {
        let missing = RefCell::new((0..self.blocks.len() as u64).collect());
        MemoryFeed { missing, ..self.clone() }
    }

    pub fn download(&self, index: u64) {
        assert!(self.missing.borrow_mut().remove(&index), "block {index} was here already");
    }
}

impl Feed for MemoryFeed {
    fn length(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn fork(&self) -> u64 {
        self.fork
    }

    fn get(&self, index: u64) -> Result<Vec<u8>, DataError> {
        self.reads.set(self.reads.get() + 1);
        if self.missing.borrow().contains(&index) {
            return Err(DataError::NotHere { index });
        }
        let length = self.length();
        self.blocks.get(index as usize).cloned().ok_or(DataError::OutOfBounds { index, length })
    }
}

impl FeedMut for MemoryFeed {
    fn append(&mut self, blocks: &[&[u8]]) -> Result<u64, DataError> {
        if self.broken {
            return Err(DataError::Poisoned);
        }
        self.blocks.extend(blocks.iter().map(|block| block.to_vec()));
        Ok(self.length())
    }
}

/// The generator of the golden scripts (xorshift of 32 bits).
pub struct Random(pub u32);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        u64::from(self.0) % end
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

pub fn unhex_list(value: &Value) -> Vec<Vec<u8>> {
    value.as_array().unwrap().iter().map(|block| unhex(block.as_str().unwrap())).collect()
}

pub fn hex_list(blocks: &[Vec<u8>]) -> Value {
    blocks.iter().map(|block| Value::from(hex(block))).collect()
}

/// The first block that differs is named; the digest is that of the golden scripts.
pub fn assert_digest(name: &str, blocks: &[Vec<u8>], digest: &str) {
    for (at, block) in blocks.iter().enumerate() {
        let wanted = digest.get(8 * at..8 * at + 8);
        assert_eq!(Some(hex(&crypto::hash(&[block])[..4]).as_str()), wanted, "{name}: block {at} is another");
    }
    assert_eq!(8 * blocks.len(), digest.len(), "{name}: another number of blocks");
}

impl ByteFeed for MemoryFeed {
    fn byte_length(&self) -> u64 {
        self.blocks.iter().map(|block| block.len() as u64).sum()
    }

    fn seek(&self, byte: u64) -> Result<(u64, u64), DataError> {
        let mut rest = byte;
        for (index, block) in self.blocks.iter().enumerate() {
            if rest < block.len() as u64 {
                return Ok((index as u64, rest));
            }
            rest -= block.len() as u64;
        }
        Err(DataError::BadRequest("a byte beyond the end"))
    }
}

impl ClearFeed for MemoryFeed {
    fn clear(&mut self, blocks: Range<u64>) -> Result<(), DataError> {
        self.missing.borrow_mut().extend(blocks);
        Ok(())
    }
}

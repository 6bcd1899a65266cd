//! Blocks of a feed, decoded once and kept while memory for them lasts.
//!
//! Two generations: what was not asked for while a generation filled up goes with it. So a look-up costs one
//! or two hashes, and the memory stays below the limit. Blocks of an earlier fork are forgotten.

use super::block::{Block, Node};
use crate::error::DataError;
use crate::feed::Feed;
use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// The decoded blocks that a bee keeps at most, in bytes.
pub(crate) const CACHE_BYTES: usize = 32 << 20;

/// Numbers of blocks are spread by one multiplication (Fibonacci hashing). Nobody gains by collisions: how
/// many blocks the table holds is limited.
#[derive(Default)]
pub(crate) struct SeqHasher(u64);

impl Hasher for SeqHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

pub(crate) type BySeq<T> = HashMap<u64, T, BuildHasherDefault<SeqHasher>>;

/// Something decoded that can be kept.
pub(crate) trait Weigh {
    fn weight(&self) -> usize;
}

impl Weigh for Block {
    fn weight(&self) -> usize {
        Block::weight(self)
    }
}

#[derive(Debug)]
pub(crate) struct Cache<T> {
    young: BySeq<Arc<T>>,
    old: BySeq<Arc<T>>,
    young_bytes: usize,
    limit_bytes: usize,
    fork: u64,
}

impl<T: Weigh> Cache<T> {
    pub fn new(limit_bytes: usize) -> Self {
        Cache { young: BySeq::default(), old: BySeq::default(), young_bytes: 0, limit_bytes, fork: 0 }
    }

    /// Forgets what an earlier fork held.
    pub fn of_fork(&mut self, fork: u64) -> &mut Self {
        if self.fork != fork {
            *self = Cache { fork, ..Cache::new(self.limit_bytes) };
        }
        self
    }

    pub fn get(&mut self, seq: u64) -> Option<Arc<T>> {
        if let Some(found) = self.young.get(&seq) {
            return Some(found.clone());
        }
        let found = self.old.remove(&seq)?;
        self.put(seq, found.clone());
        Some(found)
    }

    pub fn put(&mut self, seq: u64, value: Arc<T>) {
        if self.young_bytes > self.limit_bytes / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += value.weight();
        self.young.insert(seq, value);
    }
}

/// A feed and its decoded blocks.
#[derive(Debug)]
pub(crate) struct Blocks<F> {
    pub feed: F,
    cache: RefCell<Cache<Block>>,
}

impl<F: Feed> Blocks<F> {
    pub fn new(feed: F, limit_bytes: usize) -> Self {
        Blocks { feed, cache: RefCell::new(Cache::new(limit_bytes)) }
    }

    pub fn get(&self, seq: u64) -> Result<Arc<Block>, DataError> {
        let fork = self.feed.fork();
        if let Some(found) = self.cache.borrow_mut().of_fork(fork).get(seq) {
            return Ok(found);
        }
        let block = Arc::new(Block::decode(seq, self.feed.get(seq)?)?);
        self.cache.borrow_mut().put(seq, block.clone());
        Ok(block)
    }

    /// Keeps a block that was just appended.
    pub fn keep(&self, seq: u64, raw: Vec<u8>) -> Result<(), DataError> {
        let block = Arc::new(Block::decode(seq, raw)?);
        self.cache.borrow_mut().of_fork(self.feed.fork()).put(seq, block);
        Ok(())
    }

    pub fn node(&self, seq: u64, offset: u64) -> Result<Node, DataError> {
        self.get(seq)?.node(offset)
    }
}

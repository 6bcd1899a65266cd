//! The index of a store in pages: tree nodes, places of blocks, and which blocks are here.
//!
//! Invariants: changed pages stay in memory until a checkpoint has written them; of the others, as many as the
//! limit allows (two generations: what was not used while one filled up goes with it). A page is as long as
//! its last entry needs, so that a small core costs little.

use super::log::Log;
use super::record::{self, At, Place, Record};
use crate::crypto::Hash;
use crate::error::DataError;
use crate::tree::Node;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

pub(crate) const NODES: u8 = 0;
pub(crate) const PLACES: u8 = 1;
pub(crate) const BITS: u8 = 2;

/// Entries of a page, and the bytes of each.
pub(crate) const NODES_IN_PAGE: u64 = 128;
pub(crate) const NODE_BYTES: usize = 40;
pub(crate) const PLACES_IN_PAGE: u64 = 128;
pub(crate) const PLACE_BYTES: usize = 16;
pub(crate) const BITS_IN_PAGE: u64 = 8192;

/// The fixed costs of a page in memory.
const PAGE_COST: usize = 96;

/// Where a core's pages were written.
pub(crate) type Table = BTreeMap<(u8, u64), Place>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PageKey {
    pub core: u32,
    pub kind: u8,
    pub number: u64,
}

/// Spreads keys by multiplication. Nobody gains by collisions: the table is bounded.
#[derive(Default)]
pub(crate) struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

type Map = HashMap<PageKey, Vec<u8>, BuildHasherDefault<PageHasher>>;

#[derive(Debug, Default)]
pub(crate) struct Pages {
    dirty: Map,
    dirty_bytes: usize,
    young: Map,
    young_bytes: usize,
    old: Map,
    limit: usize,
}

impl Pages {
    pub fn new(limit: usize) -> Self {
        Pages { limit, ..Pages::default() }
    }

    pub fn dirty_bytes(&self) -> usize {
        self.dirty_bytes
    }

    /// Clean pages become one generation older when they fill half of the limit.
    fn keep(&mut self, key: PageKey, page: Vec<u8>) {
        if self.young_bytes > self.limit / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += page.len() + PAGE_COST;
        self.young.insert(key, page);
    }

    /// Brings a clean page into the young generation, if it is anywhere.
    fn fetch(&mut self, log: &mut Log, table: &Table, key: PageKey) -> Result<bool, DataError> {
        if self.young.contains_key(&key) {
            return Ok(true);
        }
        let page = match self.old.remove(&key) {
            Some(page) => page,
            None => match table.get(&(key.kind, key.number)) {
                Some(place) => load(log, key, *place)?,
                None => return Ok(false),
            },
        };
        self.keep(key, page);
        Ok(true)
    }

    pub fn get(&mut self, log: &mut Log, table: &Table, key: PageKey) -> Result<Option<&[u8]>, DataError> {
        if self.dirty.contains_key(&key) {
            return Ok(self.dirty.get(&key).map(Vec::as_slice));
        }
        self.fetch(log, table, key)?;
        Ok(self.young.get(&key).map(Vec::as_slice))
    }

    /// A page to be changed, of at least `least` bytes.
    pub fn change(
        &mut self,
        log: &mut Log,
        table: &Table,
        key: PageKey,
        least: usize,
    ) -> Result<&mut Vec<u8>, DataError> {
        if !self.dirty.contains_key(&key) {
            self.fetch(log, table, key)?;
            let page = self.young.remove(&key).unwrap_or_default();
            self.young_bytes = self.young_bytes.saturating_sub(page.len() + PAGE_COST);
            self.dirty_bytes += page.capacity() + PAGE_COST;
            self.dirty.insert(key, page);
        }
        let page = self.dirty.entry(key).or_default();
        if page.len() < least {
            let before = page.capacity();
            page.resize(least, 0);
            self.dirty_bytes += page.capacity() - before;
        }
        Ok(page)
    }

    /// The page is gone.
    pub fn forget(&mut self, key: PageKey) {
        if let Some(page) = self.dirty.remove(&key) {
            self.dirty_bytes = self.dirty_bytes.saturating_sub(page.capacity() + PAGE_COST);
        }
        if let Some(page) = self.young.remove(&key) {
            self.young_bytes = self.young_bytes.saturating_sub(page.len() + PAGE_COST);
        }
        self.old.remove(&key);
    }

    /// The changed pages of a core in a range, which may be in no table yet.
    pub fn dirty_of(&self, core: u32) -> Vec<PageKey> {
        self.dirty.keys().filter(|key| key.core == core).copied().collect()
    }

    /// All changed pages, those of a core together.
    pub fn dirty(&self) -> Vec<PageKey> {
        let mut keys: Vec<PageKey> = self.dirty.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    pub fn dirty_page(&self, key: PageKey) -> Option<&[u8]> {
        self.dirty.get(&key).map(Vec::as_slice)
    }

    /// A changed page was written.
    pub fn written(&mut self, key: PageKey) {
        if let Some(mut page) = self.dirty.remove(&key) {
            self.dirty_bytes = self.dirty_bytes.saturating_sub(page.capacity() + PAGE_COST);
            page.shrink_to_fit();
            self.keep(key, page);
        }
    }
}

fn load(log: &mut Log, key: PageKey, place: Place) -> Result<Vec<u8>, DataError> {
    let mut body = log.read(place.at, place.size)?;
    match record::decode(&body)? {
        Record::Page { core, kind, number, bytes_at } if (PageKey { core, kind, number }) == key => {
            body.drain(..bytes_at);
            Ok(body)
        }
        _ => {
            Err(super::log::damaged(place.at.segment, place.at.offset, "it is not the page that was sought"))
        }
    }
}

/// Where a block's bytes are: the record, how far into its body, and how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BlockPlace {
    pub at: At,
    pub skip: u32,
    pub size: u32,
}

impl BlockPlace {
    pub fn decode(page: &[u8], entry: usize) -> Option<BlockPlace> {
        let bytes = page.get(entry * PLACE_BYTES..(entry + 1) * PLACE_BYTES)?;
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|n| bytes[at * 4 + n]));
        let at = At { segment: word(0), offset: word(1) };
        (at.segment != 0).then_some(BlockPlace { at, skip: word(2), size: word(3) })
    }

    pub fn encode(&self, page: &mut [u8], entry: usize) {
        let words = [self.at.segment, self.at.offset, self.skip, self.size];
        for (to, word) in page[entry * PLACE_BYTES..].chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }

    /// What a block counts for in its segment: with what a record needs to name it.
    pub fn live_bytes(&self) -> u64 {
        u64::from(self.size) + 3
    }
}

pub(crate) fn decode_node(page: &[u8], index: u64) -> Option<Node> {
    let from = (index % NODES_IN_PAGE) as usize * NODE_BYTES;
    let bytes = page.get(from..from + NODE_BYTES)?;
    let hash: Hash = bytes[8..].try_into().ok()?;
    let size = u64::from_le_bytes(std::array::from_fn(|n| bytes[n]));
    (hash != [0; 32]).then_some(Node { index, size, hash })
}

pub(crate) fn encode_node(page: &mut [u8], node: &Node) {
    let from = (node.index % NODES_IN_PAGE) as usize * NODE_BYTES;
    page[from..from + 8].copy_from_slice(&node.size.to_le_bytes());
    page[from + 8..from + NODE_BYTES].copy_from_slice(&node.hash);
}

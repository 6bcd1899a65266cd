//! One core of a store, as far as it is in memory: its head, who may sign it, and where its pages are.
//!
//! Invariant: what is here, the pages, and the log after the last checkpoint say the same.

use super::floor::Floor;
use super::pages::{
    self, BITS, BITS_IN_PAGE, BlockPlace, NODE_BYTES, NODES, NODES_IN_PAGE, PLACE_BYTES, PLACES,
    PLACES_IN_PAGE, PageKey, Table,
};
use super::record::At;
use crate::crypto::Hash;
use crate::error::DataError;
use crate::signature::Verifier;
use crate::tree::{Head, Node, Nodes};
use flat_tree::Iterator as Walk;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The tree that peers may see, and the signature that proves it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedHead {
    pub head: Head,
    pub signature: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct CoreState {
    pub id: u32,
    pub key: Hash,
    /// Who may sign; not known before the first upgrade of a core that others write.
    pub verifier: Option<Verifier>,
    pub head: Head,
    pub signed: Option<SignedHead>,
    /// All blocks before it are here.
    pub contiguous: u64,
    pub stored_blocks: u64,
    pub stored_bytes: u64,
    pub user_data: BTreeMap<Vec<u8>, Vec<u8>>,
    pub table: Table,
}

/// The nodes of a core, for those who calculate proofs. A failure of the disk is kept aside.
pub(crate) struct CoreNodes<'a> {
    state: &'a CoreState,
    floor: RefCell<&'a mut Floor>,
    failed: RefCell<Option<DataError>>,
}

impl Nodes for CoreNodes<'_> {
    fn node(&self, index: u64) -> Option<Node> {
        match self.state.node(&mut self.floor.borrow_mut(), index) {
            Ok(node) => node,
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                None
            }
        }
    }
}

impl CoreState {
    pub fn new(id: u32, key: Hash, verifier: Option<Verifier>) -> Self {
        CoreState {
            id,
            key,
            verifier,
            head: Head::default(),
            signed: None,
            contiguous: 0,
            stored_blocks: 0,
            stored_bytes: 0,
            user_data: BTreeMap::new(),
            table: Table::new(),
        }
    }

    pub fn key_of(&self, kind: u8, number: u64) -> PageKey {
        PageKey { core: self.id, kind, number }
    }

    pub fn page<'a>(
        &self,
        floor: &'a mut Floor,
        kind: u8,
        number: u64,
    ) -> Result<Option<&'a [u8]>, DataError> {
        floor.pages.get(&mut floor.log, &self.table, self.key_of(kind, number))
    }

    fn change<'a>(
        &self,
        floor: &'a mut Floor,
        kind: u8,
        number: u64,
        least: usize,
    ) -> Result<&'a mut Vec<u8>, DataError> {
        floor.pages.change(&mut floor.log, &self.table, self.key_of(kind, number), least)
    }

    pub fn with_nodes<T>(
        &self,
        floor: &mut Floor,
        work: impl FnOnce(&CoreNodes<'_>) -> Result<T, DataError>,
    ) -> Result<T, DataError> {
        let view = CoreNodes { state: self, floor: RefCell::new(floor), failed: RefCell::new(None) };
        let done = work(&view);
        match view.failed.into_inner() {
            Some(error) => Err(error),
            None => done,
        }
    }

    /// A node that is known to be true.
    pub fn node(&self, floor: &mut Floor, index: u64) -> Result<Option<Node>, DataError> {
        if let Some(root) = self.head.roots.iter().find(|root| root.index == index) {
            return Ok(Some(root.clone()));
        }
        let page = self.page(floor, NODES, index / NODES_IN_PAGE)?;
        Ok(page.and_then(|page| pages::decode_node(page, index)))
    }

    pub fn put_nodes(&mut self, floor: &mut Floor, nodes: &[Node]) -> Result<(), DataError> {
        for node in nodes {
            let least = ((node.index % NODES_IN_PAGE) as usize + 1) * NODE_BYTES;
            pages::encode_node(self.change(floor, NODES, node.index / NODES_IN_PAGE, least)?, node);
        }
        Ok(())
    }

    pub fn place(&self, floor: &mut Floor, index: u64) -> Result<Option<BlockPlace>, DataError> {
        let page = self.page(floor, PLACES, index / PLACES_IN_PAGE)?;
        Ok(page.and_then(|page| BlockPlace::decode(page, (index % PLACES_IN_PAGE) as usize)))
    }

    pub fn set_place(&mut self, floor: &mut Floor, index: u64, place: BlockPlace) -> Result<(), DataError> {
        let entry = (index % PLACES_IN_PAGE) as usize;
        let page = self.change(floor, PLACES, index / PLACES_IN_PAGE, (entry + 1) * PLACE_BYTES)?;
        let before = BlockPlace::decode(page, entry);
        place.encode(page, entry);
        if let Some(before) = before {
            floor.dead(before.at.segment, before.live_bytes());
            self.stored_bytes = self.stored_bytes.saturating_sub(u64::from(before.size));
        } else {
            self.stored_blocks += 1;
        }
        self.stored_bytes += u64::from(place.size);
        floor.alive(place.at.segment, place.live_bytes());
        Ok(())
    }

    pub fn has(&self, floor: &mut Floor, index: u64) -> Result<bool, DataError> {
        if index < self.contiguous {
            return Ok(true);
        }
        let (byte, bit) = (index % BITS_IN_PAGE / 8, index % 8);
        let page = self.page(floor, BITS, index / BITS_IN_PAGE)?;
        Ok(page.and_then(|page| page.get(byte as usize)).is_some_and(|byte| byte >> bit & 1 == 1))
    }

    /// Sets or clears the bits of a range.
    fn set_bits(&mut self, floor: &mut Floor, range: Range<u64>, here: bool) -> Result<(), DataError> {
        let mut at = range.start;
        while at < range.end {
            let number = at / BITS_IN_PAGE;
            let end = range.end.min((number + 1) * BITS_IN_PAGE);
            if here || self.page(floor, BITS, number)?.is_some() {
                let least = ((end - 1) % BITS_IN_PAGE / 8 + 1) as usize;
                let page = self.change(floor, BITS, number, least)?;
                for index in at..end {
                    let byte = &mut page[(index % BITS_IN_PAGE / 8) as usize];
                    let bit = 1 << (index % 8);
                    *byte = if here { *byte | bit } else { *byte & !bit };
                }
            }
            at = end;
        }
        Ok(())
    }

    /// The bits of 32 blocks from `start` on, which is a multiple of 32.
    pub fn word(&self, floor: &mut Floor, start: u64) -> Result<u32, DataError> {
        if start + 32 <= self.contiguous {
            return Ok(u32::MAX);
        }
        let Some(page) = self.page(floor, BITS, start / BITS_IN_PAGE)? else { return Ok(0) };
        let from = (start % BITS_IN_PAGE / 8) as usize;
        Ok(u32::from_le_bytes(std::array::from_fn(|n| page.get(from + n).copied().unwrap_or(0))))
    }

    /// The first block of a range that is not here.
    pub fn first_missing(&self, floor: &mut Floor, from: u64, to: u64) -> Result<Option<u64>, DataError> {
        let mut at = from.max(self.contiguous);
        while at < to {
            let word = self.word(floor, at / 32 * 32)? >> (at % 32);
            let here = u64::from(word.trailing_ones());
            if here < 32 - at % 32 {
                return Ok((at + here < to).then_some(at + here));
            }
            at += here;
        }
        Ok(None)
    }

    /// Blocks that now have a place are here.
    pub fn arrived(&mut self, floor: &mut Floor, range: Range<u64>) -> Result<(), DataError> {
        self.set_bits(floor, range.clone(), true)?;
        if (range.start..=range.end).contains(&self.contiguous) {
            self.contiguous = range.end;
            let next = self.first_missing(floor, range.end, u64::MAX / 4)?;
            self.contiguous = next.unwrap_or(range.end);
        }
        Ok(())
    }

    /// Blocks that one record carries, one after the other, from block `first` on.
    pub fn appended(
        &mut self,
        floor: &mut Floor,
        at: At,
        skip: usize,
        sizes: impl Iterator<Item = usize>,
        first: u64,
    ) -> Result<(), DataError> {
        let (mut index, mut skip) = (first, skip as u32);
        for size in sizes {
            self.set_place(floor, index, BlockPlace { at, skip, size: size as u32 })?;
            index += 1;
            skip += size as u32;
        }
        self.arrived(floor, first..index)
    }

    /// The numbers of the pages of a kind that there are, from one on.
    fn pages_from(&self, floor: &Floor, kind: u8, from: u64) -> BTreeSet<u64> {
        let mut found: BTreeSet<u64> =
            self.table.range((kind, from)..=(kind, u64::MAX)).map(|((_, number), _)| *number).collect();
        let dirty = floor.pages.dirty_of(self.id);
        found.extend(dirty.iter().filter(|key| key.kind == kind && key.number >= from).map(|key| key.number));
        found
    }

    pub fn drop_page(&mut self, floor: &mut Floor, kind: u8, number: u64) {
        floor.pages.forget(self.key_of(kind, number));
        if let Some(place) = self.table.remove(&(kind, number)) {
            floor.place_dead(place);
        }
    }

    /// The blocks of a range are no longer here.
    pub fn clear(&mut self, floor: &mut Floor, range: Range<u64>) -> Result<(), DataError> {
        if range.is_empty() {
            return Ok(());
        }
        for number in self.pages_from(floor, PLACES, range.start / PLACES_IN_PAGE) {
            let first = number * PLACES_IN_PAGE;
            if first >= range.end {
                break;
            }
            let within = range.start.max(first)..range.end.min(first + PLACES_IN_PAGE);
            self.clear_places(floor, number, within)?;
        }
        for number in self.pages_from(floor, BITS, range.start / BITS_IN_PAGE) {
            let first = number * BITS_IN_PAGE;
            if first < range.end {
                let within = range.start.max(first)..range.end.min(first + BITS_IN_PAGE);
                self.set_bits(floor, within, false)?;
            }
        }
        self.contiguous = self.contiguous.min(range.start);
        Ok(())
    }

    fn clear_places(&mut self, floor: &mut Floor, number: u64, range: Range<u64>) -> Result<(), DataError> {
        let (mut gone, mut left) = (Vec::new(), false);
        let page = self.change(floor, PLACES, number, 0)?;
        for entry in 0..page.len() / PLACE_BYTES {
            let Some(place) = BlockPlace::decode(page, entry) else { continue };
            if range.contains(&(number * PLACES_IN_PAGE + entry as u64)) {
                BlockPlace::default().encode(page, entry);
                gone.push(place);
            } else {
                left = true;
            }
        }
        for place in gone {
            floor.dead(place.at.segment, place.live_bytes());
            self.stored_blocks = self.stored_blocks.saturating_sub(1);
            self.stored_bytes = self.stored_bytes.saturating_sub(u64::from(place.size));
        }
        if !left {
            self.drop_page(floor, PLACES, number);
        }
        Ok(())
    }

    /// Forgets all that is not of the first `length` blocks. The head is not changed.
    pub fn cut(&mut self, floor: &mut Floor, length: u64) -> Result<(), DataError> {
        self.clear(floor, length..u64::MAX / 4)?;
        for number in self.pages_from(floor, BITS, length.div_ceil(BITS_IN_PAGE)) {
            self.drop_page(floor, BITS, number);
        }
        let end = length * 2;
        for number in self.pages_from(floor, NODES, end.div_ceil(NODES_IN_PAGE)) {
            self.drop_page(floor, NODES, number);
        }
        if !end.is_multiple_of(NODES_IN_PAGE) && self.page(floor, NODES, end / NODES_IN_PAGE)?.is_some() {
            let kept = (end % NODES_IN_PAGE) as usize * NODE_BYTES;
            self.change(floor, NODES, end / NODES_IN_PAGE, 0)?.truncate(kept);
        }
        if length == 0 {
            return Ok(());
        }
        // The parents left of the end that span blocks beyond it.
        let mut walk = Walk::new(end - 2);
        loop {
            let index = walk.index();
            if walk.contains(end) && index < end && self.node_in_page(floor, index)? {
                let none = Node { index, size: 0, hash: [0; 32] };
                pages::encode_node(self.change(floor, NODES, index / NODES_IN_PAGE, 0)?, &none);
            }
            if walk.offset() == 0 && walk.contains(end) {
                return Ok(());
            }
            walk.parent();
        }
    }

    fn node_in_page(&self, floor: &mut Floor, index: u64) -> Result<bool, DataError> {
        let page = self.page(floor, NODES, index / NODES_IN_PAGE)?;
        Ok(page.is_some_and(|page| pages::decode_node(page, index).is_some()))
    }

    /// Nothing of the core is left.
    pub fn remove_all(&mut self, floor: &mut Floor) -> Result<(), DataError> {
        self.clear(floor, 0..u64::MAX / 4)?;
        for kind in [NODES, PLACES, BITS] {
            for number in self.pages_from(floor, kind, 0) {
                self.drop_page(floor, kind, number);
            }
        }
        Ok(())
    }

    pub fn is_sole_writer(&self, pair: &crate::crypto::KeyPair) -> bool {
        self.verifier.as_ref().is_some_and(|verifier| verifier.is_sole_signer(pair))
    }
}

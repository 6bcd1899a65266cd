//! What a writer does: append, truncate, clear.

use super::frozen::{self, MARK};
use super::{Core, Durability, MAX_BLOCK};
use crate::error::DataError;
use crate::store::Inner;
use crate::store::record::{self, Blocks, Change, MAX_BATCH};
use crate::tree::Head;

impl Core {
    /// Appends the blocks, all or none. Answers the new length.
    pub fn append(&self, blocks: &[&[u8]], durability: Durability) -> Result<u64, DataError> {
        if blocks.len() > MAX_BATCH {
            return Err(DataError::TooLarge("a batch of more than 2^20 blocks"));
        }
        if blocks.iter().any(|block| block.len() > MAX_BLOCK) {
            return Err(DataError::TooLarge("a block of more than 15 MiB"));
        }
        let mut inner = self.store.lock();
        self.writable(&mut inner)?;
        if !blocks.is_empty() {
            inner.relieve()?;
            let head = &inner.parts(self.id)?.0.head;
            match &self.cipher {
                None => self.append_raw(&mut inner, blocks)?,
                Some(cipher) => {
                    let (from, fork) = (head.length, head.fork);
                    let numbered = (from..).zip(blocks);
                    let sealed: Vec<Vec<u8>> =
                        numbered.map(|(index, block)| cipher.encrypt(index, fork, block)).collect();
                    let blocks: Vec<&[u8]> = sealed.iter().map(Vec::as_slice).collect();
                    self.append_raw(&mut inner, &blocks)?;
                }
            }
        }
        let length = inner.parts(self.id)?.0.head.length;
        if durability == Durability::Synced {
            self.finish(inner)?;
        }
        Ok(length)
    }

    fn append_raw(&self, inner: &mut Inner, blocks: &[&[u8]]) -> Result<(), DataError> {
        let (state, _) = inner.parts(self.id)?;
        let (mut head, mut made) = (state.head.clone(), Vec::with_capacity(blocks.len() * 2));
        head.append_all(blocks, &mut made)?;
        let (body, skip) = record::append(self.id, head.fork, state.head.length, blocks);
        let at = inner.write(body)?;
        let blocks = Blocks { sizes: blocks.iter().map(|block| block.len() as u64).collect(), at: skip };
        let (state, floor) = inner.parts(self.id)?;
        let applied = state.apply_append(floor, at, &blocks, head, &made);
        self.grew(inner);
        inner.fail(applied)
    }

    fn grew(&self, inner: &mut Inner) {
        inner.dirty.insert(self.id);
        inner.touched.insert(self.id, inner.floor.log.end);
    }

    /// Cuts to the first `length` blocks. That makes a new fork, which is on the disk and signed when this
    /// answers.
    pub fn truncate(&self, length: u64, fork: u64) -> Result<(), DataError> {
        let mut inner = self.store.lock();
        self.writable(&mut inner)?;
        inner.relieve()?;
        let (state, floor) = inner.parts(self.id)?;
        if fork <= state.head.fork {
            return Err(DataError::BadRequest("a fork that is not above the present one"));
        }
        let head: Head = state.with_nodes(floor, |nodes| state.head.truncated(length, fork, nodes))?;
        inner.write(record::small(self.id, &Change::Truncate { fork, length }))?;
        let (state, floor) = inner.parts(self.id)?;
        let applied = state.apply_truncate(floor, head);
        inner.note_cut(self.id, fork, length);
        self.grew(&mut inner);
        inner.fail(applied)?;
        self.finish(inner)
    }

    /// Gives back the space of the blocks from `start` to before `end`. Their hashes stay, so that they can be
    /// downloaded again.
    pub fn clear(&self, start: u64, end: u64) -> Result<(), DataError> {
        let mut inner = self.store.lock();
        inner.relieve()?;
        let end = end.min(inner.parts(self.id)?.0.head.length);
        if start >= end {
            return Ok(());
        }
        inner.write(record::small(self.id, &Change::Clear { start, end }))?;
        let (state, floor) = inner.parts(self.id)?;
        let applied = state.clear(floor, start..end);
        inner.dirty.insert(self.id);
        inner.fail(applied)
    }

    /// Keeps a small value beside the core. It is not part of it, and no peer sees it.
    pub fn set_user_data(
        &self,
        key: &[u8],
        value: Option<&[u8]>,
        durability: Durability,
    ) -> Result<(), DataError> {
        if key == MARK {
            return Err(DataError::BadRequest("a name that the engine uses itself"));
        }
        let mut inner = self.store.lock();
        inner.relieve()?;
        inner.load(self.id)?;
        let change = Change::UserData { key: key.to_vec(), value: value.map(<[u8]>::to_vec) };
        inner.write(record::small(self.id, &change))?;
        inner.parts(self.id)?.0.apply_user_data(key.to_vec(), value.map(<[u8]>::to_vec));
        inner.dirty.insert(self.id);
        let end = inner.floor.log.end;
        match durability {
            Durability::Buffered => Ok(()),
            Durability::Synced => self.store.sync_to(inner, end).map(drop),
        }
    }

    pub(super) fn writable(&self, inner: &mut Inner) -> Result<(), DataError> {
        match self.pair {
            _ if inner.poisoned => Err(DataError::Poisoned),
            Some(_) => frozen::refuse_frozen(inner.parts(self.id)?.0),
            None => Err(DataError::NotWritable),
        }
    }
}

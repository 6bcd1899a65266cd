//! Operations on a bee that become visible together.

use super::block::Block;
use super::snapshot::Entry;
use super::tree::{ChildId, Outcome, Tree};
use super::{Bee, Header};
use crate::error::DataError;
use crate::feed::FeedMut;
use std::sync::Arc;

/// Above so many nodes and children in memory (some 20 MB), the tree is read anew from the root on.
const MAX_TREE: usize = 200_000;

struct Pending {
    seq: u64,
    key: Arc<[u8]>,
    value: Option<Vec<u8>>,
    index: Vec<ChildId>,
}

/// What is not flushed when this is dropped is forgotten. After an error nothing of it can be flushed: begin
/// it again.
pub struct Batch<'a, F: FeedMut> {
    bee: &'a mut Bee<F>,
    pending: Vec<Pending>,
    header: bool,
    touched: bool,
    broken: bool,
}

impl<'a, F: FeedMut> Batch<'a, F> {
    pub(super) fn new(bee: &'a mut Bee<F>) -> Self {
        Batch { bee, pending: Vec::new(), header: false, touched: false, broken: false }
    }

    fn begin(&mut self) -> Result<(), DataError> {
        if self.broken {
            return Err(DataError::BadRequest(
                "an earlier operation of this batch failed, so begin it again",
            ));
        }
        if self.touched {
            return Ok(());
        }
        let Bee { blocks, tree, .. } = &mut *self.bee;
        let (length, fork) = (blocks.feed.length(), blocks.feed.fork());
        let mirrors = |tree: &Tree| tree.length == length && tree.fork == fork && tree.size() < MAX_TREE;
        if !tree.as_ref().is_some_and(mirrors) {
            *tree = Some(Tree::open(blocks)?);
        }
        self.header = length == 0;
        self.touched = true;
        Ok(())
    }

    fn next_seq(&self) -> u64 {
        self.bee.blocks.feed.length() + u64::from(self.header) + self.pending.len() as u64
    }

    fn entry(bee: &Bee<F>, pending: &[Pending], seq: u64) -> Result<Entry, DataError> {
        let first = pending.first().map_or(u64::MAX, |first| first.seq);
        let found = seq.checked_sub(first).and_then(|at| pending.get(at as usize));
        let block = match found {
            Some(one) => Arc::new(Block::decode(seq, Block::encode(&[], &one.key, one.value.as_deref()))?),
            None => bee.blocks.get(seq)?,
        };
        Ok(Entry { block })
    }

    /// The entry as the batch has left it so far.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Entry>, DataError> {
        self.begin()?;
        let Bee { blocks, tree, .. } = &mut *self.bee;
        let Some(tree) = tree else { return Ok(None) };
        let found = tree.find(blocks, key)?;
        found.map(|seq| Self::entry(self.bee, &self.pending, seq)).transpose()
    }

    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<u64, DataError> {
        let seq = self.put_if(key, Some(value), |_| true)?;
        Ok(seq.unwrap_or_else(|| self.next_seq()))
    }

    /// See [`Bee::put_if`].
    pub fn put_if(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        mut condition: impl FnMut(Option<&Entry>) -> bool,
    ) -> Result<Option<u64>, DataError> {
        let always = self.bee.options.always_duplicate;
        self.apply(key, value, |tree, bee, pending, seq, key| {
            tree.put(&bee.blocks, seq, key, &mut |found| {
                let found = found.map(|seq| Self::entry(bee, pending, seq)).transpose()?;
                let same = !always && found.as_ref().is_some_and(|found| found.value() == value);
                Ok(condition(found.as_ref()) && !same)
            })
        })
    }

    /// Answers whether the key was there.
    pub fn del(&mut self, key: &[u8]) -> Result<bool, DataError> {
        Ok(self.del_if(key, |_| true)?.is_some())
    }

    /// See [`Bee::del_if`].
    pub fn del_if(
        &mut self,
        key: &[u8],
        mut condition: impl FnMut(&Entry) -> bool,
    ) -> Result<Option<u64>, DataError> {
        self.apply(key, None, |tree, bee, pending, seq, key| {
            tree.del(&bee.blocks, seq, key, &mut |found| {
                let found = found.map(|seq| Self::entry(bee, pending, seq)).transpose()?;
                Ok(found.is_some_and(|found| condition(&found)))
            })
        })
    }

    fn apply(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        operation: impl FnOnce(&mut Tree, &Bee<F>, &[Pending], u64, &Arc<[u8]>) -> Result<Outcome, DataError>,
    ) -> Result<Option<u64>, DataError> {
        self.begin()?;
        let (seq, key) = (self.next_seq(), Arc::from(key));
        // It is out of its place while it changes, so that no failure leaves half a change there.
        let Some(mut tree) = self.bee.tree.take() else { return Ok(None) };
        match operation(&mut tree, self.bee, &self.pending, seq, &key) {
            Ok(outcome) => {
                self.bee.tree = Some(tree);
                let Outcome::Changed(index) = outcome else { return Ok(None) };
                self.pending.push(Pending { seq, key, value: value.map(<[u8]>::to_vec), index });
                Ok(Some(seq))
            }
            Err(error) => {
                self.broken = true;
                self.pending.clear();
                Err(error)
            }
        }
    }

    /// How many blocks it will append.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Appends everything. Answers the version of the bee that results.
    pub fn flush(mut self) -> Result<u64, DataError> {
        self.begin()?;
        let mut pending = std::mem::take(&mut self.pending);
        let Some(mut tree) = self.bee.tree.take() else { return Ok(self.bee.version()) };
        tree.settle();
        let header = self.header.then(|| Header::new(self.bee.options.metadata.clone()).encode());
        let mut raw: Vec<Vec<u8>> = header.into_iter().collect();
        let first = raw.len();
        let last = pending.len().saturating_sub(1);
        for (at, one) in pending.iter_mut().enumerate() {
            if at < last {
                tree.compact(one.seq, &mut one.index);
            }
            raw.push(Block::encode(&tree.encode(&one.index), &one.key, one.value.as_deref()));
        }
        if !raw.is_empty() {
            let blocks: Vec<&[u8]> = raw.iter().map(Vec::as_slice).collect();
            self.bee.blocks.feed.append(&blocks)?;
        }
        for (one, raw) in pending.iter().zip(raw.drain(first..)) {
            self.bee.blocks.keep(one.seq, raw)?;
        }
        tree.length = self.bee.blocks.feed.length();
        self.bee.tree = Some(tree);
        Ok(self.bee.version())
    }
}

impl<F: FeedMut> Drop for Batch<'_, F> {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.bee.tree = None;
        } else if let Some(tree) = &mut self.bee.tree {
            tree.settle();
        }
    }
}

//! A bee as it was at a version: reading, and going through it in order.
//!
//! Invariants, whatever the blocks hold:
//! - a descent ends after [`MAX_DEPTH`] nodes;
//! - going through the tree, each key is above the one before it, so no more keys come out than the feed has
//!   blocks; as no node is without a key, a step costs at most one descent;
//! - what fails for want of a block has changed nothing: get the block, and ask again.

use super::block::{Block, Node};
use super::cache::Blocks;
use super::diff::Diff;
use super::history::History;
use super::{Header, KeyRange};
use crate::error::DataError;
use crate::feed::Feed;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

/// Deeper than any tree of 2^53 keys that splits as it must.
pub(crate) const MAX_DEPTH: usize = 64;

const TOO_DEEP: DataError = DataError::Malformed("a bee's tree that is deeper than its keys allow");
const UNORDERED: DataError = DataError::Malformed("a bee's tree whose keys are out of order");

/// A key and its value. Both stay in the block that they came in.
#[derive(Clone, Debug)]
pub struct Entry {
    pub(crate) block: Arc<Block>,
}

impl Entry {
    /// The block that holds it.
    pub fn seq(&self) -> u64 {
        self.block.seq
    }

    pub fn key(&self) -> &[u8] {
        self.block.key()
    }

    /// `None` where JavaScript put `null`.
    pub fn value(&self) -> Option<&[u8]> {
        self.block.value()
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.seq(), self.key(), self.value()) == (other.seq(), other.key(), other.value())
    }
}

/// A bee at one version. What is appended meanwhile it does not see.
#[derive(Debug)]
pub struct Snapshot<'a, F> {
    pub(crate) blocks: &'a Blocks<F>,
    version: u64,
}

impl<F> Clone for Snapshot<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for Snapshot<'_, F> {}

/// Where a key is among the keys of a node: at a place, or before one.
pub(crate) type Place = Result<usize, usize>;

impl<'a, F: Feed> Snapshot<'a, F> {
    pub(crate) fn new(blocks: &'a Blocks<F>, version: u64) -> Self {
        Snapshot { blocks, version }
    }

    /// The number of blocks of which this is the tree; an empty bee is at version 1.
    pub fn version(&self) -> u64 {
        self.version.max(1)
    }

    pub fn header(&self) -> Result<Header, DataError> {
        Header::decode(&self.blocks.feed.get(0)?)
    }

    pub(crate) fn root(&self) -> Result<Option<Node>, DataError> {
        if self.version < 2 {
            return Ok(None);
        }
        self.blocks.node(self.version - 1, 0).map(Some)
    }

    pub(crate) fn place(&self, node: &Node, key: &[u8]) -> Result<Place, DataError> {
        let (mut start, mut end) = (0, node.keys());
        while start < end {
            let middle = (start + end) / 2;
            match key.cmp(self.blocks.get(node.key(middle)?)?.key()) {
                Ordering::Equal => return Ok(Ok(middle)),
                Ordering::Less => end = middle,
                Ordering::Greater => start = middle + 1,
            }
        }
        Ok(Err(start))
    }

    pub(crate) fn child(&self, node: &Node, at: usize) -> Result<Node, DataError> {
        let (seq, offset) = node.child(at)?;
        self.blocks.node(seq, offset)
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Entry>, DataError> {
        let Some(mut node) = self.root()? else { return Ok(None) };
        for _ in 0..MAX_DEPTH {
            match self.place(&node, key)? {
                Ok(at) => return self.blocks.get(node.key(at)?).map(|block| Some(Entry { block })),
                Err(_) if node.is_leaf() => return Ok(None),
                Err(at) => node = self.child(&node, at)?,
            }
        }
        Err(TOO_DEEP)
    }

    /// What the block `seq` wrote, deletions too.
    pub fn by_seq(&self, seq: u64) -> Result<Entry, DataError> {
        if seq == 0 || seq >= self.version {
            return Err(DataError::OutOfBounds { index: seq, length: self.version });
        }
        Ok(Entry { block: self.blocks.get(seq)? })
    }

    /// The entries of a range, in order.
    pub fn range(&self, range: KeyRange) -> Range<'a, F> {
        Range { snapshot: *self, range, stack: None, last: None }
    }

    /// The first entry of a range.
    pub fn peek(&self, range: KeyRange) -> Result<Option<Entry>, DataError> {
        self.range(range).next().transpose()
    }

    /// What was written, in the order of writing, from the block `from` on.
    pub fn history(&self, from: u64) -> History<'a, F> {
        History::new(*self, from)
    }

    /// Where this and another version of the same bee differ. What both share is passed over, so this costs
    /// what changed and not what there is.
    pub fn diff(&self, other: &Snapshot<'a, F>, range: KeyRange) -> Diff<'a, F> {
        Diff::new(*self, *other, range)
    }
}

/// The entries of a range. After an error, `next` tries the same step again.
pub struct Range<'a, F> {
    snapshot: Snapshot<'a, F>,
    range: KeyRange,
    stack: Option<Vec<Step>>,
    last: Option<Arc<Block>>,
}

/// A node, and what comes next in it: of the even numbers the child, of the odd ones the key. From the last
/// child on back below zero, where the range is gone through backwards.
struct Step {
    node: Node,
    next: i64,
}

impl Step {
    fn new(node: Node, reverse: bool) -> Step {
        let next = if reverse { 2 * node.keys() as i64 } else { 0 };
        Step { node, next }
    }
}

impl<F: Feed> Range<'_, F> {
    fn open(&self) -> Result<Vec<Step>, DataError> {
        let reverse = self.range.reverse;
        let mut stack = Vec::new();
        let Some(mut node) = self.snapshot.root()? else { return Ok(stack) };
        let from = if reverse { &self.range.end } else { &self.range.start };
        let (key, included) = match from {
            Bound::Unbounded => {
                stack.push(Step::new(node, reverse));
                return Ok(stack);
            }
            Bound::Included(key) => (key, true),
            Bound::Excluded(key) => (key, false),
        };
        for _ in 0..MAX_DEPTH {
            let at = match self.snapshot.place(&node, key)? {
                Ok(at) => {
                    let next = match (included, reverse) {
                        (true, _) => 2 * at + 1,
                        (false, true) => 2 * at,
                        (false, false) => 2 * at + 2,
                    };
                    stack.push(Step { node, next: next as i64 });
                    return Ok(stack);
                }
                Err(at) => at,
            };
            let child = if node.is_leaf() { None } else { Some(self.snapshot.child(&node, at)?) };
            stack.push(Step { node, next: 2 * at as i64 + if reverse { -1 } else { 1 } });
            match child {
                Some(child) => node = child,
                None => return Ok(stack),
            }
        }
        Err(TOO_DEEP)
    }

    /// Is the key still within the far end?
    fn within(&self, key: &[u8]) -> bool {
        let end = if self.range.reverse { &self.range.start } else { &self.range.end };
        let order = |end: &[u8]| if self.range.reverse { end.cmp(key) } else { key.cmp(end) };
        match end {
            Bound::Unbounded => true,
            Bound::Included(end) => order(end).is_le(),
            Bound::Excluded(end) => order(end).is_lt(),
        }
    }

    fn step(&mut self) -> Result<Option<Entry>, DataError> {
        if self.stack.is_none() {
            self.stack = Some(self.open()?);
        }
        let (reverse, snapshot) = (self.range.reverse, self.snapshot);
        let Some(stack) = &mut self.stack else { return Ok(None) };
        while let Some(top) = stack.last_mut() {
            if self.range.limit == Some(0) {
                break;
            }
            if top.next < 0 || top.next > 2 * top.node.keys() as i64 {
                stack.pop();
                continue;
            }
            let (at, by) = (top.next as usize / 2, if reverse { -1 } else { 1 });
            if top.next % 2 == 0 {
                let child = if top.node.is_leaf() { None } else { Some(snapshot.child(&top.node, at)?) };
                top.next += by;
                if let Some(child) = child {
                    if stack.len() == MAX_DEPTH {
                        return Err(TOO_DEEP);
                    }
                    stack.push(Step::new(child, reverse));
                }
                continue;
            }
            let block = snapshot.blocks.get(top.node.key(at)?)?;
            if let Some(last) = &self.last {
                let order = block.key().cmp(last.key());
                if order != if reverse { Ordering::Less } else { Ordering::Greater } {
                    return Err(UNORDERED);
                }
            }
            top.next += by;
            if !self.within(block.key()) {
                break;
            }
            self.last = Some(block.clone());
            self.range.limit = self.range.limit.map(|limit| limit - 1);
            return Ok(Some(Entry { block }));
        }
        self.stack = Some(Vec::new());
        Ok(None)
    }
}

impl<F: Feed> Iterator for Range<'_, F> {
    type Item = Result<Entry, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

impl<F: Feed> Snapshot<'_, F> {
    /// See [`super::Bee::unlinked`].
    pub(crate) fn unlinked(&self, until: u64) -> Result<Vec<std::ops::Range<u64>>, DataError> {
        let mut linked = std::collections::BTreeSet::new();
        let (mut stack, mut last) = (Vec::new(), None::<Arc<Block>>);
        stack.extend(self.root()?.map(|root| Step::new(root, false)));
        while let Some(top) = stack.last_mut() {
            linked.insert(top.node.seq());
            let at = top.next as usize / 2;
            if at > top.node.keys() || (top.next % 2 == 1 && at == top.node.keys()) {
                stack.pop();
                continue;
            }
            let is_key = top.next % 2 == 1;
            top.next += 1;
            if is_key {
                let block = self.blocks.get(top.node.key(at)?)?;
                if last.as_ref().is_some_and(|last| block.key() <= last.key()) {
                    return Err(UNORDERED);
                }
                linked.insert(block.seq);
                last = Some(block);
            } else if !top.node.is_leaf() {
                let child = self.child(&top.node, at)?;
                if stack.len() == MAX_DEPTH {
                    return Err(TOO_DEEP);
                }
                stack.push(Step::new(child, false));
            }
        }
        let (mut gaps, mut next) = (Vec::new(), 1);
        for seq in linked.into_iter().chain([u64::MAX]) {
            let end = seq.min(until).min(self.version);
            if next < end {
                gaps.push(next..end);
            }
            next = seq.saturating_add(1);
        }
        Ok(gaps)
    }
}

//! Where two versions of a bee differ.
//!
//! The trees are walked side by side; a subtree that both have is passed over unread (as in
//! `hyperbee/iterators/diff.js` 2.27.3). Every key that is passed is checked to be above the one before it,
//! which bounds the walk over hostile trees.

use super::KeyRange;
use super::block::{Block, Node};
use super::snapshot::{Entry, MAX_DEPTH, Snapshot};
use crate::error::DataError;
use crate::feed::Feed;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

/// A key that differs: what either version holds for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub left: Option<Entry>,
    pub right: Option<Entry>,
}

/// The changes, in the order of their keys. After an error, `next` tries the same step again.
pub struct Diff<'a, F> {
    left: Side<'a, F>,
    right: Side<'a, F>,
    range: KeyRange,
    opened: bool,
}

/// A walk through one version.
struct Side<'a, F> {
    snapshot: Snapshot<'a, F>,
    stack: Vec<Part>,
    /// The start of the range, until the walk has reached it.
    seek: Option<(Vec<u8>, bool)>,
    last: Option<Arc<Block>>,
}

/// What is left of a node: of the even numbers the child comes next, of the odd ones the key.
#[derive(Clone)]
struct Part {
    node: Node,
    next: usize,
    /// The block of the key that ends this subtree.
    upper: Option<u64>,
    depth: usize,
}

/// Where a walk stands.
#[derive(PartialEq)]
enum At {
    Key(u64),
    Child(u64, u64),
}

impl Part {
    fn new(node: Node, upper: Option<u64>, depth: usize) -> Part {
        let next = usize::from(node.is_leaf());
        Part { node, next, upper, depth }
    }

    fn is_key(&self) -> bool {
        self.next % 2 == 1
    }

    fn over(&self) -> bool {
        self.next > 2 * self.node.keys() || (self.node.is_leaf() && self.next >= 2 * self.node.keys())
    }

    fn advance(&mut self) {
        self.next += if self.node.is_leaf() { 2 } else { 1 };
    }

    /// The block of the key at which this is, or which ends the child at which this is.
    fn key(&self) -> Result<Option<u64>, DataError> {
        let at = self.next / 2;
        if at < self.node.keys() { self.node.key(at).map(Some) } else { Ok(self.upper) }
    }

    fn at(&self) -> Result<At, DataError> {
        let at = self.next / 2;
        if self.is_key() {
            self.node.key(at).map(At::Key)
        } else {
            self.node.child(at).map(|(seq, offset)| At::Child(seq, offset))
        }
    }
}

impl<'a, F: Feed> Side<'a, F> {
    fn new(snapshot: Snapshot<'a, F>, start: &Bound<Vec<u8>>) -> Self {
        let seek = match start {
            Bound::Unbounded => None,
            Bound::Included(key) => Some((key.clone(), true)),
            Bound::Excluded(key) => Some((key.clone(), false)),
        };
        Side { snapshot, stack: Vec::new(), seek, last: None }
    }

    fn open(&mut self) -> Result<(), DataError> {
        self.stack.clear();
        if let Some(root) = self.snapshot.root()?
            && root.keys() > 0
        {
            let part = Part::new(root, None, 0);
            self.enter(part)?;
        }
        Ok(())
    }

    /// Goes into a node: where the start of the range is still ahead, to where it is in there.
    fn enter(&mut self, mut part: Part) -> Result<(), DataError> {
        if let Some((key, included)) = &self.seek {
            let leaf = part.node.is_leaf();
            let found = match self.snapshot.place(&part.node, key)? {
                Ok(at) if *included => (2 * at + 1, true),
                Ok(at) => (2 * at + if leaf { 3 } else { 2 }, true),
                Err(at) => (2 * at + usize::from(leaf), leaf),
            };
            part.next = found.0;
            // After a key that is left out comes all of the subtree behind it.
            if found.1 || part.over() {
                self.seek = None;
            }
        }
        if !part.over() {
            self.stack.push(part);
        }
        Ok(())
    }

    fn peek(&self) -> Option<&Part> {
        self.stack.last()
    }

    fn advance(&mut self) {
        if let Some(top) = self.stack.last_mut() {
            top.advance();
            if top.over() {
                self.stack.pop();
            }
        }
    }

    /// Replaces the child at which this is by what is in it.
    fn expand(&mut self) -> Result<(), DataError> {
        let Some(top) = self.stack.last() else { return Ok(()) };
        if top.depth == MAX_DEPTH {
            return Err(DataError::Malformed("a bee's tree that is deeper than its keys allow"));
        }
        let (upper, depth, length) = (top.key()?, top.depth + 1, self.stack.len());
        let child = self.snapshot.child(&top.node, top.next / 2)?;
        self.enter(Part::new(child, upper, depth))?;
        // The child stands above what is left of its parent.
        let entered = if self.stack.len() > length { self.stack.pop() } else { None };
        self.advance();
        self.stack.extend(entered);
        Ok(())
    }

    /// Is this key above the last one that was passed?
    fn check(&self, block: &Arc<Block>) -> Result<(), DataError> {
        match &self.last {
            Some(last) if block.key() <= last.key() => {
                Err(DataError::Malformed("a bee's tree whose keys are out of order"))
            }
            _ => Ok(()),
        }
    }

    fn pass(&mut self, block: Arc<Block>) -> Entry {
        self.advance();
        self.seek = None;
        self.last = Some(block.clone());
        Entry { block }
    }

    fn next_key(&mut self) -> Result<Option<Entry>, DataError> {
        while let Some(top) = self.peek() {
            if let At::Key(seq) = top.at()? {
                let block = self.snapshot.blocks.get(seq)?;
                self.check(&block)?;
                return Ok(Some(self.pass(block)));
            }
            self.expand()?;
        }
        Ok(None)
    }
}

impl<'a, F: Feed> Diff<'a, F> {
    pub(crate) fn new(left: Snapshot<'a, F>, right: Snapshot<'a, F>, range: KeyRange) -> Self {
        let (left, right) = (Side::new(left, &range.start), Side::new(right, &range.start));
        Diff { left, right, range, opened: false }
    }

    /// No key, where the subtree has no end, is above all keys.
    fn compare(&self, left: Option<u64>, right: Option<u64>) -> Result<Ordering, DataError> {
        let blocks = self.left.snapshot.blocks;
        Ok(match (left, right) {
            (Some(left), Some(right)) if left == right => Ordering::Equal,
            (Some(left), Some(right)) => blocks.get(left)?.key().cmp(blocks.get(right)?.key()),
            (left, right) => left.is_none().cmp(&right.is_none()),
        })
    }

    fn step(&mut self) -> Result<Option<Change>, DataError> {
        if !self.opened {
            self.left.open()?;
            self.right.open()?;
            self.opened = true;
        }
        loop {
            let (left, right) = match (self.left.peek(), self.right.peek()) {
                (None, None) => return Ok(None),
                (None, Some(_)) => return Ok(self.right.next_key()?.map(|right| change(None, Some(right)))),
                (Some(_), None) => return Ok(self.left.next_key()?.map(|left| change(Some(left), None))),
                (Some(left), Some(right)) => (left, right),
            };
            let at = (left.at()?, right.at()?);
            if at.0 == at.1 {
                self.skip(at.0)?;
                continue;
            }
            let (left_key, right_key) = (left.key()?, right.key()?);
            match at {
                (At::Key(_), At::Child(..)) => self.right.expand()?,
                (At::Child(..), At::Key(_)) => self.left.expand()?,
                (At::Key(left), At::Key(right)) => return self.both_keys(left, right).map(Some),
                (At::Child(..), At::Child(..)) => match self.compare(left_key, right_key)? {
                    Ordering::Equal => {
                        // Twice the same step, so that want of a block changes nothing for good: expanding the
                        // left side alone is a step towards the same end.
                        self.left.expand()?;
                    }
                    Ordering::Less => self.right.expand()?,
                    Ordering::Greater => self.left.expand()?,
                },
            }
        }
    }

    /// Both are at the same subtree, or at the same key.
    fn skip(&mut self, at: At) -> Result<(), DataError> {
        if let At::Key(seq) = at {
            let block = self.left.snapshot.blocks.get(seq)?;
            self.left.check(&block)?;
            self.right.check(&block)?;
            self.left.pass(block.clone());
            self.right.pass(block);
        } else {
            self.left.advance();
            self.right.advance();
        }
        Ok(())
    }

    fn both_keys(&mut self, left: u64, right: u64) -> Result<Change, DataError> {
        let blocks = self.left.snapshot.blocks;
        let (left, right) = (blocks.get(left)?, blocks.get(right)?);
        self.left.check(&left)?;
        self.right.check(&right)?;
        Ok(match left.key().cmp(right.key()) {
            Ordering::Equal => change(Some(self.left.pass(left)), Some(self.right.pass(right))),
            Ordering::Less => change(Some(self.left.pass(left)), None),
            Ordering::Greater => change(None, Some(self.right.pass(right))),
        })
    }

    fn within(&self, change: &Change) -> bool {
        let Some(entry) = change.left.as_ref().or(change.right.as_ref()) else { return false };
        match &self.range.end {
            Bound::Unbounded => true,
            Bound::Included(end) => entry.key() <= end.as_slice(),
            Bound::Excluded(end) => entry.key() < end.as_slice(),
        }
    }
}

fn change(left: Option<Entry>, right: Option<Entry>) -> Change {
    Change { left, right }
}

impl<F: Feed> Iterator for Diff<'_, F> {
    type Item = Result<Change, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.range.limit == Some(0) {
            return None;
        }
        match self.step() {
            Ok(Some(change)) if self.within(&change) => {
                self.range.limit = self.range.limit.map(|limit| limit - 1);
                Some(Ok(change))
            }
            Ok(_) => {
                self.range.limit = Some(0);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }
}

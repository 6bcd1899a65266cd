//! Where two versions of a trie differ. What lies below a block that both have at the same place is passed over
//! (as in `hypertrie/lib/diff.js` 5.1.3).

use super::node::{Node, ends_part};
use super::{Entry, Snapshot};
use crate::error::DataError;
use crate::feed::Feed;
use std::sync::Arc;

/// A key that differs: what either version holds for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub left: Option<Entry>,
    pub right: Option<Entry>,
}

type Side = Option<Arc<Node>>;

/// The same place of the path in both versions.
#[derive(Clone)]
struct Pair {
    at: usize,
    left: Side,
    right: Side,
}

/// The changes. After an error, `next` tries the same step again.
pub struct Diff<'a, F> {
    left: Snapshot<'a, F>,
    right: Snapshot<'a, F>,
    prefix: Node,
    stack: Option<Vec<Pair>>,
}

fn done(side: &Side, at: usize) -> bool {
    side.as_ref().is_some_and(|node| at >= node.length())
}

fn seq(side: &Side) -> u64 {
    side.as_ref().map_or(0, |node| node.seq)
}

/// The block of the side itself, where its path goes on with the digit.
fn own(side: &Side, at: usize, digit: u8) -> u64 {
    side.as_ref().filter(|node| node.path(at) == digit).map_or(0, |node| node.seq)
}

fn in_bucket(side: &Side, at: usize, digit: u8, seq: u64) -> bool {
    let bucket = side.as_ref().map_or(&[][..], |node| node.bucket(at));
    bucket.iter().skip(digit.into()).step_by(5).any(|known| *known == seq)
}

impl<'a, F: Feed> Diff<'a, F> {
    pub(super) fn new(left: Snapshot<'a, F>, right: Snapshot<'a, F>, prefix: &str) -> Self {
        Diff { left, right, prefix: Node::new(prefix, None, false, 0), stack: None }
    }

    /// What one side has to a digit that the other does not have as well.
    fn of_side(&self, side: &Side, other: &Side, at: usize, digit: u8) -> Result<Vec<Arc<Node>>, DataError> {
        let Some(node) = side.as_ref().filter(|node| at < node.length()) else { return Ok(Vec::new()) };
        let theirs = own(other, at, digit);
        let shared = |seq: u64| seq == theirs || in_bucket(other, at, digit, seq);
        let mut found = Vec::new();
        if node.path(at) == digit && !shared(node.seq) {
            found.push(node.clone());
        }
        let rest = self.left.nodes.follow_all(node, at, digit.into())?;
        found.extend(rest.into_iter().filter(|node| !shared(node.seq)));
        Ok(found)
    }

    fn children(&self, pair: &Pair) -> Result<Vec<Pair>, DataError> {
        let at = pair.at;
        let mut children = Vec::new();
        for digit in 0..5 {
            let mut left = self.of_side(&pair.left, &pair.right, at, digit)?.into_iter();
            let mut right = self.of_side(&pair.right, &pair.left, at, digit)?;
            loop {
                let one = left.next();
                let match_of = |one: &Arc<Node>| {
                    right.iter().position(|other| !ends_part(at) || !other.collides(one, at))
                };
                let other = match &one {
                    Some(one) => match_of(one).map(|found| right.remove(found)),
                    None => right.pop(),
                };
                if one.is_none() && other.is_none() {
                    break;
                }
                children.push(Pair { at: at + 1, left: one, right: other });
            }
        }
        Ok(children)
    }

    fn step(&mut self) -> Result<Option<Change>, DataError> {
        let start = self.prefix.length() - 1;
        if self.stack.is_none() {
            let (left, right) = (self.left.find(&self.prefix, start)?, self.right.find(&self.prefix, start)?);
            self.stack = Some(vec![Pair { at: start, left, right }]);
        }
        while let Some(pair) = self.stack.as_ref().and_then(|stack| stack.last().cloned()) {
            let ended = (done(&pair.left, pair.at), done(&pair.right, pair.at));
            let same = seq(&pair.left) == seq(&pair.right);
            let children = if same || ended == (true, true) { Vec::new() } else { self.children(&pair)? };
            if let Some(stack) = &mut self.stack {
                stack.pop();
                stack.extend(children);
            }
            if !same && (ended.0 || ended.1) {
                let left = pair.left.filter(|_| ended.0).map(Entry);
                return Ok(Some(Change { left, right: pair.right.filter(|_| ended.1).map(Entry) }));
            }
        }
        Ok(None)
    }
}

impl<F: Feed> Iterator for Diff<'_, F> {
    type Item = Result<Change, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

//! The keys below a prefix, in the order of their paths.

use super::node::{END, Node, ends_part};
use super::{Entry, Snapshot};
use crate::error::DataError;
use crate::feed::Feed;
use std::sync::Arc;

/// Which keys, and in which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListOptions {
    pub reverse: bool,
    /// Of what lies deeper than one part below the prefix, one key for each such part.
    pub shallow: bool,
    /// Not the key that is the prefix itself.
    pub below_only: bool,
    pub hidden: bool,
}

/// The keys below a prefix. After an error, `next` tries the same step again.
pub struct List<'a, F> {
    snapshot: Snapshot<'a, F>,
    prefix: Node,
    options: ListOptions,
    stack: Option<Vec<(usize, Arc<Node>)>>,
}

impl<'a, F: Feed> List<'a, F> {
    pub(super) fn new(snapshot: Snapshot<'a, F>, prefix: &str, options: ListOptions) -> Self {
        List { snapshot, prefix: Node::new(prefix, None, options.hidden, 0), options, stack: None }
    }

    fn step(&mut self) -> Result<Option<Entry>, DataError> {
        let start = self.prefix.length() - 1;
        if self.stack.is_none() {
            let found = self.snapshot.find(&self.prefix, start)?;
            self.stack = Some(found.into_iter().map(|node| (start, node)).collect());
        }
        let Some(stack) = &mut self.stack else { return Ok(None) };
        let end = if self.options.shallow { start + 32 } else { usize::MAX };
        while let Some((at, node)) = stack.last().cloned() {
            if at >= node.length().min(end) {
                stack.pop();
                return Ok(Some(Entry(node)));
            }
            let mut found = Vec::new();
            // What is pushed last comes first: the end of a key before what is below it.
            let order = if self.options.reverse { [END, 0, 1, 2, 3] } else { [3, 2, 1, 0, END] };
            for digit in order {
                if digit == END && self.options.below_only && at == start {
                    continue;
                }
                let first = found.len();
                if node.path(at) == digit {
                    found.push((at + 1, node.clone()));
                }
                let others = self.snapshot.nodes.follow_all(&node, at, digit.into())?;
                found.extend(others.into_iter().map(|other| (at + 1, other)));
                if ends_part(at) {
                    found[first..].sort_by(|one, other| one.1.key.cmp(&other.1.key));
                }
            }
            stack.pop();
            stack.append(&mut found);
        }
        Ok(None)
    }
}

impl<F: Feed> Iterator for List<'_, F> {
    type Item = Result<Entry, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step().transpose()
    }
}

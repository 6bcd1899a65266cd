//! What was written into a bee, in the order of writing.

use super::snapshot::{Entry, Snapshot};
use crate::error::DataError;
use crate::feed::Feed;

#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    Put(Entry),
    Del(Entry),
}

/// After an error, `next` tries the same block again.
pub struct History<'a, F> {
    snapshot: Snapshot<'a, F>,
    next: u64,
    end: u64,
}

impl<'a, F: Feed> History<'a, F> {
    pub(crate) fn new(snapshot: Snapshot<'a, F>, from: u64) -> Self {
        History { snapshot, next: from.max(1), end: snapshot.version() }
    }

    fn at(&self, seq: u64) -> Result<Change, DataError> {
        let entry = self.snapshot.by_seq(seq)?;
        Ok(if entry.block.is_deletion()? { Change::Del(entry) } else { Change::Put(entry) })
    }
}

impl<F: Feed> Iterator for History<'_, F> {
    type Item = Result<Change, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let seq = (self.next < self.end).then_some(self.next)?;
        let change = self.at(seq);
        self.next += u64::from(change.is_ok());
        Some(change)
    }
}

impl<F: Feed> DoubleEndedIterator for History<'_, F> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let seq = (self.next < self.end).then(|| self.end - 1)?;
        let change = self.at(seq);
        self.end -= u64::from(change.is_ok());
        Some(change)
    }
}

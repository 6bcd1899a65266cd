//! Waiting for changes of a bee, by asking again: nothing here calls back.

use super::{Bee, Entry, KeyRange};
use crate::error::DataError;
use crate::feed::Feed;

/// Tells when anything in a range changed.
#[derive(Clone, Debug)]
pub struct Watch {
    range: KeyRange,
    fork: u64,
    version: u64,
}

impl Watch {
    /// From the present version on.
    pub fn new<F: Feed>(bee: &Bee<F>, range: KeyRange) -> Watch {
        Watch { range: range.limit(1), fork: bee.feed().fork(), version: bee.version() }
    }

    /// The version that was seen last, if something changed since then. Call it when the feed has grown or was
    /// cut. After a cut everything may have changed.
    pub fn poll<F: Feed>(&mut self, bee: &Bee<F>) -> Result<Option<u64>, DataError> {
        let (fork, version, seen) = (bee.feed().fork(), bee.version(), self.version);
        let changed = fork != self.fork
            || (version != seen && bee.diff(seen, self.range.clone())?.next().transpose()?.is_some());
        (self.fork, self.version) = (fork, version);
        Ok(changed.then_some(seen))
    }
}

/// Tells when one entry changed.
#[derive(Clone, Debug)]
pub struct KeyWatch {
    key: Vec<u8>,
    fork: u64,
    seq: Option<u64>,
}

impl KeyWatch {
    /// The entry as it is, and the watch over it.
    pub fn new<F: Feed>(bee: &Bee<F>, key: &[u8]) -> Result<(Option<Entry>, KeyWatch), DataError> {
        let entry = bee.get(key)?;
        let seq = entry.as_ref().map(Entry::seq);
        Ok((entry, KeyWatch { key: key.to_vec(), fork: bee.feed().fork(), seq }))
    }

    /// The entry as it is now, if it is another than before.
    #[allow(clippy::option_option)] // whether it changed, and whether it is there
    pub fn poll<F: Feed>(&mut self, bee: &Bee<F>) -> Result<Option<Option<Entry>>, DataError> {
        let entry = bee.get(&self.key)?;
        let now = (bee.feed().fork(), entry.as_ref().map(Entry::seq));
        let changed = now != (self.fork, self.seq);
        (self.fork, self.seq) = now;
        Ok(changed.then_some(entry))
    }
}

impl<F: Feed> Bee<F> {
    /// Tells of every change in a range, from now on.
    pub fn watch(&self, range: KeyRange) -> Watch {
        Watch::new(self, range)
    }

    /// An entry, and the watch that tells when it changes.
    pub fn get_and_watch(&self, key: &[u8]) -> Result<(Option<Entry>, KeyWatch), DataError> {
        KeyWatch::new(self, key)
    }
}

//! A core as the databases on it see it: what is missing is noted, so that it can be asked of peers.

use cloudpal_data::{
    DataError,
    blobs::{ByteFeed, ClearFeed},
    core::Core,
    feed::{Feed, FeedMut},
};
use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

/// The number of a core in replication, and of a block in it.
pub type Missing = Arc<Mutex<Option<(u64, u64)>>>;

#[derive(Clone, Debug)]
pub struct Tracked {
    pub core: Core,
    /// Its number in replication.
    pub number: u64,
    missing: Missing,
}

impl Tracked {
    pub fn new(core: Core, number: u64, missing: Missing) -> Self {
        Tracked { core, number, missing }
    }

    /// The same core in another session.
    pub fn with_core(&self, core: Core) -> Self {
        Tracked { core, number: self.number, missing: self.missing.clone() }
    }

    fn note<T>(&self, outcome: Result<T, DataError>) -> Result<T, DataError> {
        if let Err(DataError::NotHere { index }) = &outcome {
            *self.missing.lock().unwrap_or_else(PoisonError::into_inner) = Some((self.number, *index));
        }
        outcome
    }
}

impl Feed for Tracked {
    fn length(&self) -> u64 {
        self.core.length()
    }

    fn fork(&self) -> u64 {
        self.core.fork()
    }

    fn get(&self, index: u64) -> Result<Vec<u8>, DataError> {
        self.note(self.core.get(index))
    }
}

impl FeedMut for Tracked {
    fn append(&mut self, blocks: &[&[u8]]) -> Result<u64, DataError> {
        FeedMut::append(&mut self.core, blocks)
    }
}

impl ByteFeed for Tracked {
    fn byte_length(&self) -> u64 {
        self.core.info().map_or(0, |info| info.byte_length)
    }

    fn seek(&self, byte: u64) -> Result<(u64, u64), DataError> {
        self.note(self.core.seek(byte))
    }
}

impl ClearFeed for Tracked {
    fn clear(&mut self, blocks: Range<u64>) -> Result<(), DataError> {
        self.core.clear(blocks.start, blocks.end)
    }
}

//! A bee: a sorted key-value store on a feed, with its whole history. The format is that of Hyperbee 2.
//!
//! Each write appends a block with the key, the value, and the nodes of the B-tree that it changed; so every
//! length of the feed is a version of the bee, and its root is in the last block. The blocks are byte for byte
//! those that `hyperbee` 2.27.3 writes for the same operations.
//!
//! Invariants:
//! - Nothing here waits: where a block is not here, the call fails with [`DataError::NotHere`] and has changed
//!   nothing. Get the block and call again; what was read is still decoded.
//! - A batch is appended at once or not at all.
//! - Hostile blocks cost bounded work (see [`snapshot`]) and are refused.
//!
//! ```text
//! snapshot, range, diff, history ──► cache ──► feed
//!                   batch ──► tree ──► cache
//! ```

mod batch;
mod block;
pub(crate) mod cache;
mod diff;
mod header;
mod history;
mod keys;
pub mod snapshot;
mod tree;
mod watch;

pub use batch::Batch;
pub use diff::{Change, Diff};
pub use header::{Header, Metadata};
pub use history::{Change as Written, History};
pub use keys::{Binary, Encoding, Json, KeyRange, Sub, Utf8};
pub use snapshot::{Entry, Range, Snapshot};
pub use watch::{KeyWatch, Watch};

use crate::error::DataError;
use crate::feed::{Feed, FeedMut};
use cache::{Blocks, CACHE_BYTES};
use tree::Tree;

/// How a bee is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Goes into the first block, when that is written.
    pub metadata: Option<Metadata>,
    /// Putting the value that is there already writes a block nevertheless, as in JavaScript.
    pub always_duplicate: bool,
    /// Memory for decoded blocks.
    pub cache_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { metadata: None, always_duplicate: true, cache_bytes: CACHE_BYTES }
    }
}

#[derive(Debug)]
pub struct Bee<F> {
    blocks: Blocks<F>,
    options: Options,
    /// The tree in memory, for the writer.
    tree: Option<Tree>,
}

impl<F: Feed> Bee<F> {
    pub fn new(feed: F) -> Self {
        Bee::with(feed, Options::default())
    }

    pub fn with(feed: F, options: Options) -> Self {
        Bee { blocks: Blocks::new(feed, options.cache_bytes), options, tree: None }
    }

    pub fn feed(&self) -> &F {
        &self.blocks.feed
    }

    pub fn feed_mut(&mut self) -> &mut F {
        &mut self.blocks.feed
    }

    pub fn into_feed(self) -> F {
        self.blocks.feed
    }

    /// The number of blocks; that of an empty bee is 1.
    pub fn version(&self) -> u64 {
        self.blocks.feed.length().max(1)
    }

    /// The bee as it is now.
    pub fn head(&self) -> Snapshot<'_, F> {
        Snapshot::new(&self.blocks, self.blocks.feed.length())
    }

    /// The bee as it was at a version.
    pub fn checkout(&self, version: u64) -> Result<Snapshot<'_, F>, DataError> {
        let length = self.blocks.feed.length();
        if version > length.max(1) {
            return Err(DataError::OutOfBounds { index: version, length });
        }
        Ok(Snapshot::new(&self.blocks, version))
    }

    pub fn header(&self) -> Result<Header, DataError> {
        self.head().header()
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Entry>, DataError> {
        self.head().get(key)
    }

    pub fn range(&self, range: KeyRange) -> Range<'_, F> {
        self.head().range(range)
    }

    /// What changed since a version.
    pub fn diff(&self, since: u64, range: KeyRange) -> Result<Diff<'_, F>, DataError> {
        Ok(self.head().diff(&self.checkout(since)?, range))
    }

    /// The blocks below `until` that nothing of the present version needs: neither the tree nor a value. They
    /// can be cleared, and with them goes what is only in earlier versions.
    pub fn unlinked(&self, until: u64) -> Result<Vec<std::ops::Range<u64>>, DataError> {
        self.head().unlinked(until)
    }
}

impl<F: FeedMut> Bee<F> {
    /// Answers the block that holds the entry.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<u64, DataError> {
        let mut batch = self.batch();
        let seq = batch.put(key, value)?;
        batch.flush()?;
        Ok(seq)
    }

    /// Puts, if the condition holds for the entry that there is. `None` as the value is the `null` of
    /// JavaScript. Answers the block, if one was written.
    pub fn put_if(
        &mut self,
        key: &[u8],
        value: Option<&[u8]>,
        condition: impl FnMut(Option<&Entry>) -> bool,
    ) -> Result<Option<u64>, DataError> {
        let mut batch = self.batch();
        let seq = batch.put_if(key, value, condition)?;
        batch.flush()?;
        Ok(seq)
    }

    /// Deletes. Answers the block, if the key was there.
    pub fn del(&mut self, key: &[u8]) -> Result<Option<u64>, DataError> {
        self.del_if(key, |_| true)
    }

    /// Deletes, if the key is there and the condition holds for its entry.
    pub fn del_if(
        &mut self,
        key: &[u8],
        condition: impl FnMut(&Entry) -> bool,
    ) -> Result<Option<u64>, DataError> {
        let mut batch = self.batch();
        let seq = batch.del_if(key, condition)?;
        batch.flush()?;
        Ok(seq)
    }

    /// Several operations, of which all are appended at once, by [`Batch::flush`], or none.
    pub fn batch(&mut self) -> Batch<'_, F> {
        Batch::new(self)
    }
}

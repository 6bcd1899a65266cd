//! Giving back the space of contents that only old versions have.

use super::{Drive, Entry, files};
use crate::bee::{KeyRange, Written};
use crate::blobs::{BlobId, ByteFeed, ClearFeed};
use crate::error::DataError;
use crate::feed::Feed;
use std::collections::{BTreeMap, HashMap};

/// Which contents stay. Those of the present version always do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Of this version and of every later one.
    Since(u64),
    /// Of so many of the last versions of each file.
    PerFile(u64),
}

/// What was given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Purged {
    pub blocks: u64,
    pub ranges: u64,
}

/// The blocks that stay: from each first one to the end.
#[derive(Default)]
struct Kept(BTreeMap<u64, u64>);

impl Kept {
    fn add(&mut self, start: u64, end: u64) {
        let known = self.0.entry(start).or_default();
        *known = end.max(*known);
    }
}

impl<D: Feed, B: ByteFeed> Drive<D, B> {
    fn keep(&self, kept: &mut Kept, blob: Option<BlobId>) -> Result<(), DataError> {
        let Some(blob) = blob else { return Ok(()) };
        for blocks in self.blobs.blocks(&blob)? {
            kept.add(blocks.start, blocks.end);
        }
        Ok(())
    }

    fn kept(&self, keep: Keep) -> Result<Kept, DataError> {
        let mut kept = Kept::default();
        let all = || files().range(KeyRange::all());
        for entry in self.db.range(all()) {
            self.keep(&mut kept, Entry::decode(&entry?)?.file.blob)?;
        }
        let since = match keep {
            Keep::Since(version) => {
                for entry in self.db.checkout(version)?.range(all()) {
                    self.keep(&mut kept, Entry::decode(&entry?)?.file.blob)?;
                }
                version
            }
            Keep::PerFile(_) => 1,
        };
        let mut counts: HashMap<Vec<u8>, u64> = HashMap::new();
        for change in self.db.head().history(since).rev() {
            let Written::Put(entry) = change? else { continue };
            if files().strip(entry.key()).is_none() {
                continue;
            }
            if let Keep::PerFile(versions) = keep {
                let count = counts.entry(entry.key().to_vec()).or_default();
                *count += 1;
                if *count > versions {
                    continue;
                }
            }
            self.keep(&mut kept, Entry::decode(&entry)?.file.blob)?;
        }
        Ok(kept)
    }

    /// The blocks of the core of contents that no version needs that is kept.
    pub fn purgeable(&self, keep: Keep) -> Result<Vec<std::ops::Range<u64>>, DataError> {
        let kept = self.kept(keep)?;
        let length = self.blobs.feed().length();
        let (mut gaps, mut next) = (Vec::new(), 0);
        for (start, end) in kept.0.into_iter().chain([(length, length)]) {
            let start = start.min(length);
            if next < start {
                gaps.push(next..start);
            }
            next = next.max(end);
        }
        Ok(gaps)
    }
}

impl<D: Feed, B: ByteFeed + ClearFeed> Drive<D, B> {
    /// Gives back the space of what is not kept. Names and history stay; contents that are gone can still be
    /// had from a peer that has them.
    pub fn purge(&mut self, keep: Keep) -> Result<Purged, DataError> {
        let mut purged = Purged::default();
        for blocks in self.purgeable(keep)? {
            purged.blocks += blocks.end - blocks.start;
            purged.ranges += 1;
            self.blobs.feed_mut().clear(blocks)?;
        }
        Ok(purged)
    }
}

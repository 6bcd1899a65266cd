//! Blobs: contents of any size on a feed, in blocks of 64 KiB, named by where they are.
//!
//! The format is that of `hyperblobs` 2.12.1. Its block maps, with which it writes what is there already only
//! once, are read but not written.
//!
//! Invariants: a name comes from outside, so nothing is reserved for what it claims, and what it names must be
//! as long as it says; a read that lacks a block goes on where it was once the block is there.

mod reader;

pub use reader::Reader;

use crate::core::Core;
use crate::error::DataError;
use crate::feed::{Feed, FeedMut};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The size of every block of a blob but its last one.
pub const BLOCK_BYTES: usize = 64 << 10;
/// Blocks that are appended at once, as in `hyperblobs`.
const APPEND_BLOCKS: usize = 16;

/// What blobs need of a feed beyond its blocks: where bytes are.
pub trait ByteFeed: Feed {
    fn byte_length(&self) -> u64;

    /// The block that holds a byte, and the offset within it.
    fn seek(&self, byte: u64) -> Result<(u64, u64), DataError>;
}

/// A feed that gives the space of blocks back.
pub trait ClearFeed {
    fn clear(&mut self, blocks: Range<u64>) -> Result<(), DataError>;
}

impl<F: ByteFeed + ?Sized> ByteFeed for &F {
    fn byte_length(&self) -> u64 {
        (**self).byte_length()
    }

    fn seek(&self, byte: u64) -> Result<(u64, u64), DataError> {
        (**self).seek(byte)
    }
}

impl ByteFeed for Core {
    fn byte_length(&self) -> u64 {
        self.info().map_or(0, |info| info.byte_length)
    }

    fn seek(&self, byte: u64) -> Result<(u64, u64), DataError> {
        Core::seek(self, byte)
    }
}

impl ClearFeed for Core {
    fn clear(&mut self, blocks: Range<u64>) -> Result<(), DataError> {
        Core::clear(self, blocks.start, blocks.end)
    }
}

/// The name of a blob. The order of the fields is that in which `hyperblobs` writes them as JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlobId {
    pub block_offset: u64,
    pub byte_offset: u64,
    pub block_length: u64,
    pub byte_length: u64,
    /// The blocks hold a list of the blocks that hold the contents.
    #[serde(default, skip_serializing_if = "is_false")]
    pub block_map: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde calls it so
fn is_false(value: &bool) -> bool {
    !value
}

impl BlobId {
    /// Its blocks: with a map, those of the map.
    pub fn blocks(&self) -> Result<Range<u64>, DataError> {
        let end = self.block_offset.checked_add(self.block_length);
        Ok(self.block_offset..end.ok_or(DataError::Malformed("a blob beyond all blocks"))?)
    }
}

#[derive(Debug)]
pub struct Blobs<F> {
    feed: F,
}

impl<F> Blobs<F> {
    pub fn new(feed: F) -> Self {
        Blobs { feed }
    }

    pub fn feed(&self) -> &F {
        &self.feed
    }

    pub fn feed_mut(&mut self) -> &mut F {
        &mut self.feed
    }

    pub fn into_feed(self) -> F {
        self.feed
    }
}

impl<F: ByteFeed> Blobs<F> {
    /// All of a blob. For large ones there is [`Blobs::reader`].
    pub fn get(&self, id: &BlobId) -> Result<Vec<u8>, DataError> {
        self.read(id, 0..u64::MAX)
    }

    /// A part of a blob; what is beyond its end is left out.
    pub fn read(&self, id: &BlobId, bytes: Range<u64>) -> Result<Vec<u8>, DataError> {
        let mut reader = self.reader(id, bytes);
        let Some(mut all) = reader.next_chunk()? else { return Ok(Vec::new()) };
        while let Some(chunk) = reader.next_chunk()? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// Reads a part of a blob block by block.
    pub fn reader(&self, id: &BlobId, bytes: Range<u64>) -> Reader<'_, F> {
        Reader::new(&self.feed, *id, bytes)
    }

    /// The length of the contents, which with a map is not that in the name.
    pub fn byte_length(&self, id: &BlobId) -> Result<u64, DataError> {
        if !id.block_map {
            return Ok(id.byte_length);
        }
        let map = reader::block_map(&self.feed, id)?;
        Ok(map.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(*bytes)))
    }

    /// The blocks that a blob needs.
    pub fn blocks(&self, id: &BlobId) -> Result<Vec<Range<u64>>, DataError> {
        let mut all = vec![id.blocks()?];
        if id.block_map {
            all.extend(reader::block_map(&self.feed, id)?.iter().map(|(block, _)| *block..block + 1));
        }
        Ok(all)
    }
}

impl<F: ByteFeed + FeedMut> Blobs<F> {
    pub fn put(&mut self, bytes: &[u8]) -> Result<BlobId, DataError> {
        let mut writer = self.writer();
        writer.write(bytes)?;
        writer.finish()
    }

    /// Writes a blob piece by piece.
    pub fn writer(&mut self) -> Writer<'_, F> {
        let (block_offset, byte_offset) = (self.feed.length(), self.feed.byte_length());
        let id = BlobId { block_offset, byte_offset, block_length: 0, byte_length: 0, block_map: false };
        Writer { blobs: self, id, kept: Vec::new() }
    }
}

/// A blob that is being written. Without [`Writer::finish`] it stays in the feed without a name.
pub struct Writer<'a, F> {
    blobs: &'a mut Blobs<F>,
    id: BlobId,
    kept: Vec<u8>,
}

impl<F: FeedMut> Writer<'_, F> {
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), DataError> {
        const FULL: usize = APPEND_BLOCKS * BLOCK_BYTES;
        while !bytes.is_empty() {
            if self.kept.is_empty() && bytes.len() >= FULL {
                let (now, later) = bytes.split_at(FULL);
                self.append(now)?;
                bytes = later;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(FULL - self.kept.len()));
            self.kept.extend_from_slice(now);
            bytes = later;
            if self.kept.len() == FULL {
                self.append_kept()?;
            }
        }
        Ok(())
    }

    fn append_kept(&mut self) -> Result<(), DataError> {
        let kept = std::mem::take(&mut self.kept);
        self.append(&kept)?;
        self.kept = kept;
        self.kept.clear();
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        let blocks: Vec<&[u8]> = bytes.chunks(BLOCK_BYTES).collect();
        self.blobs.feed.append(&blocks)?;
        self.id.block_length += blocks.len() as u64;
        self.id.byte_length += bytes.len() as u64;
        Ok(())
    }

    /// The name of what was written.
    pub fn finish(mut self) -> Result<BlobId, DataError> {
        if !self.kept.is_empty() {
            self.append_kept()?;
        }
        Ok(self.id)
    }
}

impl<F: ByteFeed + ClearFeed> Blobs<F> {
    /// Gives the space of a blob back. The blocks to which a map leads stay, as others may need them.
    pub fn clear(&mut self, id: &BlobId) -> Result<(), DataError> {
        let blocks = id.blocks()?;
        self.feed.clear(blocks)
    }
}

//! Reads a blob, or a part of it, block by block.

use super::{BlobId, ByteFeed};
use crate::encoding::Reader as Compact;
use crate::error::DataError;
use crate::feed::Feed;
use std::ops::Range;

/// The largest map, as in `hyperblobs`.
const MAX_MAP_BLOCKS: u64 = 64;
const MAP_ENTRIES: usize = 8192;

const OTHER_LENGTH: DataError = DataError::Malformed("a blob that is not as long as its name says");

/// The blocks of a blob with a map, and how many bytes each holds.
pub(super) fn block_map(feed: &impl Feed, id: &BlobId) -> Result<Vec<(u64, u64)>, DataError> {
    if id.block_length > MAX_MAP_BLOCKS {
        return Err(DataError::Malformed("a map of blocks that is too large"));
    }
    let mut all = Vec::new();
    for index in id.blocks()? {
        let block = feed.get(index)?;
        let mut from = Compact::new(&block);
        if from.uint()? != 0 {
            return Err(DataError::Malformed("a map of blocks of an unknown version"));
        }
        all.extend(from.array(MAP_ENTRIES, |from| Ok((from.uint()?, from.uint()?)))?);
    }
    Ok(all)
}

/// After an error, [`Reader::next_chunk`] tries the same block again.
pub struct Reader<'a, F> {
    feed: &'a F,
    id: BlobId,
    wanted: Range<u64>,
    map: Option<Vec<(u64, u64)>>,
    /// The block that comes next (with a map, its place there), and how much of it is left out.
    next: Option<(u64, u64)>,
}

impl<'a, F: ByteFeed> Reader<'a, F> {
    pub(super) fn new(feed: &'a F, id: BlobId, wanted: Range<u64>) -> Self {
        Reader { feed, id, wanted, map: None, next: None }
    }

    /// The bytes of the part that are not read yet.
    pub fn remaining(&self) -> u64 {
        self.wanted.end.min(self.id.byte_length).saturating_sub(self.wanted.start)
    }

    fn open(&mut self) -> Result<(u64, u64), DataError> {
        if self.id.block_map {
            return self.open_map();
        }
        let blocks = self.id.blocks()?;
        let end = self.wanted.end.min(self.id.byte_length);
        self.wanted.end = end;
        if self.wanted.start == 0 || self.wanted.start >= end {
            return Ok((blocks.start, 0));
        }
        let byte = self.id.byte_offset.checked_add(self.wanted.start).ok_or(OTHER_LENGTH)?;
        let (block, offset) = self.feed.seek(byte)?;
        if blocks.contains(&block) { Ok((block, offset)) } else { Err(OTHER_LENGTH) }
    }

    fn open_map(&mut self) -> Result<(u64, u64), DataError> {
        let map = block_map(self.feed, &self.id)?;
        let length =
            map.iter().try_fold(0u64, |sum, (_, bytes)| sum.checked_add(*bytes)).ok_or(OTHER_LENGTH)?;
        (self.id.byte_length, self.wanted.end) = (length, self.wanted.end.min(length));
        let (mut at, mut skip) = (0, self.wanted.start);
        while let Some((_, bytes)) = map.get(at as usize)
            && skip >= *bytes
        {
            skip -= bytes;
            at += 1;
        }
        self.map = Some(map);
        Ok((at, skip))
    }

    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, DataError> {
        let (at, skip) = match self.next {
            Some(next) => next,
            None => {
                let next = self.open()?;
                self.next = Some(next);
                next
            }
        };
        let left = self.wanted.end.saturating_sub(self.wanted.start);
        if left == 0 {
            return Ok(None);
        }
        let block = match &self.map {
            None if self.id.blocks()?.contains(&at) => self.feed.get(at)?,
            None => return Err(OTHER_LENGTH),
            Some(map) => {
                let (block, bytes) = map.get(at as usize).copied().ok_or(OTHER_LENGTH)?;
                let block = self.feed.get(block)?;
                if block.len() as u64 == bytes { block } else { return Err(OTHER_LENGTH) }
            }
        };
        self.next = Some((at + 1, 0));
        let skip = usize::try_from(skip).ok().filter(|skip| *skip <= block.len()).ok_or(OTHER_LENGTH)?;
        let end = (block.len() as u64).min((skip as u64).saturating_add(left)) as usize;
        self.wanted.start += (end - skip) as u64;
        if (skip, end) == (0, block.len()) {
            return Ok(Some(block));
        }
        Ok(Some(block[skip..end].to_vec()))
    }
}

impl<F: ByteFeed> Iterator for Reader<'_, F> {
    type Item = Result<Vec<u8>, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_chunk().transpose()
    }
}

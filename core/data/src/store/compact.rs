//! Compaction: what is still used of a segment is copied to the end of the log, and the segment goes.
//!
//! Invariant: the copies are on the disk, and a checkpoint knows of them, before the segment is removed.

use super::log::{SEGMENT_HEAD, Scan};
use super::pages::BlockPlace;
use super::record::{self, At, Blocks, Change, Record};
use super::{Inner, Store};
use crate::error::{DataError, StorageError};
use std::collections::BTreeMap;

/// Blocks are copied in records of about this size.
const COPIED: usize = 256 << 10;

/// A segment that has not come so far is not ended before its time.
const ENDED_BYTES: u32 = 256 << 10;

/// Blocks of one core on their way.
#[derive(Default)]
struct Copies {
    blocks: Vec<(u64, Vec<u8>)>,
    bytes: usize,
}

impl Store {
    /// Gives disk space back: rewrites the segments of which less than half is used. Answers by how many bytes
    /// the store has become smaller.
    pub fn compact(&self) -> Result<u64, DataError> {
        let before = self.usage()?.disk_bytes;
        let mut inner = self.lock();
        inner.end_wasteful_segment()?;
        inner.checkpoint()?;
        for segment in inner.wasteful()? {
            inner.rewrite(segment)?;
        }
        inner.checkpoint()?;
        drop(inner);
        Ok(before.saturating_sub(self.usage()?.disk_bytes))
    }
}

impl Inner {
    /// The newest segment is never rewritten; if it is mostly dead, another one becomes the newest.
    fn end_wasteful_segment(&mut self) -> Result<(), DataError> {
        let end = self.floor.log.end;
        let live = self.floor.live.get(&end.segment).copied().unwrap_or(0);
        if end.offset > ENDED_BYTES && live * 2 < u64::from(end.offset) {
            self.floor.log.roll()?;
        }
        Ok(())
    }

    /// Segments that are mostly dead, and before the part of the log that may be replayed.
    fn wasteful(&self) -> Result<Vec<u32>, DataError> {
        let replay = self.floor.log.first.replay.segment;
        let mut found = Vec::new();
        for (segment, live) in self.floor.live.range(..replay) {
            let size = self.floor.log.disk.len(u64::from(*segment))?;
            if live * 2 < size {
                found.push(*segment);
            }
        }
        Ok(found)
    }

    fn rewrite(&mut self, segment: u32) -> Result<(), DataError> {
        // By now it may be dead, or gone: the next checkpoint removes what is dead.
        if self.floor.live.get(&segment).is_none_or(|live| *live == 0) {
            return Ok(());
        }
        let from = At { segment, offset: SEGMENT_HEAD as u32 };
        let mut scan = Scan::new(&mut self.floor.log, from, None)?;
        let mut copies: BTreeMap<u32, Copies> = BTreeMap::new();
        // What is damaged ends the scan: then something stays alive, and so does the segment.
        loop {
            let found = match scan.next() {
                Ok(Some(found)) => found,
                // All of it was dead by now, and a checkpoint has removed it.
                Ok(None) | Err(DataError::Storage(StorageError::Missing)) => break,
                Err(error) => return Err(error),
            };
            match record::decode(&found.body)? {
                Record::Change { core, change } if self.cores.contains_key(&core) => {
                    self.copy_blocks(&mut copies, core, &change, found.at, &found.body)?;
                }
                Record::Page { core, kind, number, .. } if self.cores.contains_key(&core) => {
                    let (state, floor) = self.parts(core)?;
                    if state.table.get(&(kind, number)).is_some_and(|place| place.at == found.at) {
                        let key = state.key_of(kind, number);
                        floor.pages.change(&mut floor.log, &state.table, key, 0)?;
                        self.dirty.insert(core);
                    }
                }
                Record::Root { core, .. }
                    if self
                        .cores
                        .get(&core)
                        .is_some_and(|e| e.root.is_some_and(|root| root.at == found.at)) =>
                {
                    self.load(core)?;
                    self.dirty.insert(core);
                }
                _ => {}
            }
            self.relieve()?;
        }
        let cores: Vec<u32> = copies.keys().copied().collect();
        cores.into_iter().try_for_each(|core| self.flush_copies(&mut copies, core))
    }

    fn copy_blocks(
        &mut self,
        copies: &mut BTreeMap<u32, Copies>,
        core: u32,
        change: &Change,
        at: At,
        body: &[u8],
    ) -> Result<(), DataError> {
        let (indexes, blocks) = match change {
            Change::Append { length, blocks, .. } => {
                ((*length..).take(blocks.sizes.len()).collect::<Vec<_>>(), blocks.clone())
            }
            Change::Moved { indexes, blocks } => (indexes.clone(), blocks.clone()),
            Change::Put(put) => match put.block {
                Some((index, skip, size)) => (vec![index], Blocks { sizes: vec![size as u64], at: skip }),
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        let mut skip = blocks.at;
        for (index, size) in indexes.into_iter().zip(blocks.sizes) {
            let here = BlockPlace { at, skip: skip as u32, size: size as u32 };
            let (state, floor) = self.parts(core)?;
            if state.place(floor, index)? == Some(here) {
                let copy = copies.entry(core).or_default();
                copy.blocks.push((index, body[skip..skip + size as usize].to_vec()));
                copy.bytes += size as usize + 8;
                if copy.bytes > COPIED {
                    self.flush_copies(copies, core)?;
                }
            }
            skip += size as usize;
        }
        Ok(())
    }

    fn flush_copies(&mut self, copies: &mut BTreeMap<u32, Copies>, core: u32) -> Result<(), DataError> {
        let Some(copy) = copies.remove(&core).filter(|copy| !copy.blocks.is_empty()) else { return Ok(()) };
        let body = record::moved(core, &copy.blocks);
        let Record::Change { change: Change::Moved { indexes, blocks }, .. } = record::decode(&body)? else {
            return Ok(());
        };
        let at = self.write(body)?;
        let (state, floor) = self.parts(core)?;
        let applied = state.apply_moved(floor, at, &indexes, &blocks);
        self.dirty.insert(core);
        self.fail(applied)
    }
}

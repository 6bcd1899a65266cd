//! Checkpoints: the changed pages, the roots of the changed cores, and the list of all cores are written to the
//! log like anything else; then the first file names the new list, and from where on the log counts.
//!
//! Invariant: a segment is removed only after a checkpoint is on the disk that needs nothing of it.

use super::Inner;
use super::first::First;
use super::record::{self, At, Place};
use super::root::{self, Checkpoint};
use crate::error::DataError;
use crate::store::pages::PageKey;

/// So much is written at once.
const STAGED: usize = 1 << 20;

impl Inner {
    pub(crate) fn checkpoint(&mut self) -> Result<(), DataError> {
        if self.poisoned {
            return Err(DataError::Poisoned);
        }
        let replay = self.floor.log.prepare(0)?;
        self.write_pages()?;
        self.write_roots()?;
        self.retire(replay.segment);
        let checkpoint = Checkpoint {
            next_core: self.next_core,
            cores: self
                .cores
                .iter()
                .map(|(id, entry)| (*id, entry.key, entry.root.unwrap_or_default()))
                .collect(),
            live: self.floor.live.clone(),
            meta: self.meta.clone(),
        };
        let body = record::checkpoint(&checkpoint.encode());
        let checkpoint_size = body.len() as u32;
        let at = self.floor.log.append(body)?;
        let first = First { checkpoint: at, checkpoint_size, replay, ..self.floor.log.first };
        if let Err(error) = self.floor.log.sync() {
            self.poisoned = true;
            return Err(error);
        }
        // A first file that may or may not be on the disk is as good as either: both lead to the same state.
        self.floor.log.write_first(first)?;
        self.since_checkpoint = 0;
        self.remove_dead(replay.segment)?;
        if self.loaded.len() > self.options.loaded_cores / 16 {
            self.loaded.clear();
        }
        Ok(())
    }

    fn write_pages(&mut self) -> Result<(), DataError> {
        let mut staged: Vec<(PageKey, Place)> = Vec::new();
        for key in self.floor.pages.dirty() {
            // Its core is loaded, for it has changed.
            let Some(page) = self.floor.pages.dirty_page(key) else { continue };
            let body = record::page(key.core, key.kind, key.number, page);
            let size = body.len() as u32;
            if self.floor.log.staged_bytes() > STAGED {
                self.flush_pages(&mut staged)?;
            }
            let at = self.stage_after(body, |inner| inner.flush_pages(&mut staged))?;
            staged.push((key, Place { at, size }));
        }
        self.flush_pages(&mut staged)
    }

    /// A new segment is begun only when what was staged is written and noted.
    fn stage_after(
        &mut self,
        body: Vec<u8>,
        flush: impl FnOnce(&mut Self) -> Result<(), DataError>,
    ) -> Result<At, DataError> {
        if !self.floor.log.fits(body.len()) {
            flush(self)?;
        }
        self.floor.log.stage(body)
    }

    fn flush_pages(&mut self, staged: &mut Vec<(PageKey, Place)>) -> Result<(), DataError> {
        self.floor.log.flush()?;
        for (key, place) in staged.drain(..) {
            self.floor.pages.written(key);
            let Some(state) = self.loaded.get_mut(&key.core) else { continue };
            if let Some(before) = state.table.insert((key.kind, key.number), place) {
                self.floor.place_dead(before);
            }
            self.floor.place_alive(place);
            self.dirty.insert(key.core);
        }
        Ok(())
    }

    fn write_roots(&mut self) -> Result<(), DataError> {
        let mut staged: Vec<(u32, Place)> = Vec::new();
        for id in std::mem::take(&mut self.dirty) {
            // Until it is written, it stays what it was.
            self.dirty.insert(id);
            let Some(state) = self.loaded.get(&id) else { continue };
            let body = record::root(id, &root::encode(state));
            let size = body.len() as u32;
            if self.floor.log.staged_bytes() > STAGED {
                self.flush_roots(&mut staged)?;
            }
            let at = self.stage_after(body, |inner| inner.flush_roots(&mut staged))?;
            staged.push((id, Place { at, size }));
        }
        self.flush_roots(&mut staged)
    }

    fn flush_roots(&mut self, staged: &mut Vec<(u32, Place)>) -> Result<(), DataError> {
        self.floor.log.flush()?;
        for (id, place) in staged.drain(..) {
            self.dirty.remove(&id);
            let before = self.cores.get_mut(&id).and_then(|entry| entry.root.replace(place));
            if let Some(before) = before {
                self.floor.place_dead(before);
            }
            self.floor.place_alive(place);
        }
        Ok(())
    }

    /// Segments of which nothing is used need not be listed.
    fn retire(&mut self, replay: u32) {
        self.floor.live.retain(|segment, live| *segment >= replay || *live > 0);
    }

    /// Removes the files that nothing leads to any more.
    fn remove_dead(&mut self, replay: u32) -> Result<(), DataError> {
        for file in self.floor.log.disk.files()? {
            let Ok(segment) = u32::try_from(file) else { continue };
            let used = self.floor.live.get(&segment).is_some_and(|live| *live > 0);
            if segment != 0 && segment < replay && !used {
                self.floor.log.disk.remove(file)?;
                self.floor.log.forget(segment);
            }
        }
        Ok(())
    }
}

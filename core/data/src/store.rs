//! A store of cores: one for each tenant, thousands of cores in it, sealed with the tenant's root key.
//!
//! ```text
//! Core ──► Store ──► log: segments of sealed records ──► Disk
//!            │         ▲
//!            └► pages ─┘   (nodes, places, bits; written at checkpoints)
//! ```
//! Invariants:
//! - A record is one whole change of one core: after any crash it is there whole or not at all, and what was
//!   acknowledged as synced is there.
//! - What follows damaged bytes and was safe is never silently left out: the store is refused as damaged.
//! - Nothing is on the disk unsealed but the fact that it is a store, numbers of segments, and lengths of records.
//! - Memory is bounded by the limits in [`Options`] and some 200 bytes for each core.

mod checkpoint;
mod compact;
mod first;
mod floor;
mod log;
mod open;
pub(crate) mod pages;
pub(crate) mod record;
mod root;
mod seal;
pub(crate) mod state;

use crate::crypto::{self, Hash};
use crate::error::DataError;
use crate::tree::Head;
use floor::Floor;
pub(crate) use floor::Source;
use record::{At, Change, Place};
pub use seal::RootKey;
use state::CoreState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// No more than this waits to be written together with something else.
const MAX_LATER: usize = 64 << 10;

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A segment is ended at this size.
    pub segment_bytes: u32,
    /// Changed pages in memory, above which there is a checkpoint.
    pub dirty_bytes: usize,
    /// Log since the last checkpoint, above which there is one: it bounds how long opening takes.
    pub log_bytes: u64,
    /// Unchanged pages in memory.
    pub cache_bytes: usize,
    /// Cores of which the head is in memory.
    pub loaded_cores: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment_bytes: 64 << 20,
            dirty_bytes: 16 << 20,
            log_bytes: 128 << 20,
            cache_bytes: 32 << 20,
            loaded_cores: 16_384,
        }
    }
}

/// What a store holds and takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cores: usize,
    pub segments: usize,
    pub disk_bytes: u64,
    pub live_bytes: u64,
    /// Pages in memory that no checkpoint has written yet.
    pub dirty_bytes: usize,
    pub loaded_cores: usize,
}

/// An open store. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    /// A sync that was under way has ended.
    synced: Condvar,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub key: Hash,
    pub root: Option<Place>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub floor: Floor,
    pub options: Options,
    pub cores: BTreeMap<u32, Entry>,
    by_key: HashMap<Hash, u32>,
    by_discovery: HashMap<Hash, u32>,
    pub loaded: HashMap<u32, CoreState>,
    /// Loaded cores whose roots are to be written.
    pub dirty: BTreeSet<u32>,
    meta: BTreeMap<Vec<u8>, Vec<u8>>,
    next_core: u32,
    /// Cores that grew, and the end of their last record.
    pub touched: BTreeMap<u32, At>,
    /// Heads that are on the disk and may be signed.
    pub safe: HashMap<u32, Head>,
    /// Where cores were cut since the store was opened: fork and length.
    pub cuts: HashMap<u32, Vec<(u64, u64)>>,
    /// Cores that were opened by who may write them.
    pub written: BTreeSet<u32>,
    syncing: bool,
    pub poisoned: bool,
    since_checkpoint: u64,
}

impl Store {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers when all up to `target` is on the disk. One sync of the disk serves all who wait.
    pub(crate) fn sync_to<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner>,
        target: At,
    ) -> Result<MutexGuard<'a, Inner>, DataError> {
        loop {
            if inner.floor.log.synced >= target {
                return Ok(inner);
            }
            if inner.poisoned {
                return Err(DataError::Poisoned);
            }
            if inner.syncing {
                inner = self.shared.synced.wait(inner).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            inner.floor.log.ready_to_sync()?;
            inner.syncing = true;
            let (disk, end) = (inner.floor.log.disk.clone(), inner.floor.log.end);
            let heads = inner.touched_heads();
            drop(inner);
            let outcome = disk.sync(u64::from(end.segment));
            inner = self.lock();
            inner.syncing = false;
            self.shared.synced.notify_all();
            match outcome {
                Ok(()) => inner.is_synced(end, heads),
                Err(error) => {
                    // What a failed sync has left on the disk is unknown, also to a second sync.
                    inner.poisoned = true;
                    return Err(error.into());
                }
            }
        }
    }

    /// Everything that was written so far is on the disk when this answers.
    pub fn sync(&self) -> Result<(), DataError> {
        let inner = self.lock();
        let end = inner.floor.log.end;
        self.sync_to(inner, end).map(drop)
    }

    /// The keys of all cores.
    pub fn keys(&self) -> Vec<Hash> {
        self.lock().cores.values().map(|entry| entry.key).collect()
    }

    /// The key of the core of this discovery key.
    pub fn find(&self, discovery_key: &Hash) -> Option<Hash> {
        let inner = self.lock();
        let id = inner.by_discovery.get(discovery_key)?;
        inner.cores.get(id).map(|entry| entry.key)
    }

    pub fn meta(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.lock().meta.get(key).cloned()
    }

    /// All that is kept under keys that begin so.
    pub fn metas(&self, prefix: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let inner = self.lock();
        let found = inner.meta.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        found.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Keeps a small value for the store as a whole. On the disk when this answers.
    pub fn set_meta(&self, key: &[u8], value: Option<&[u8]>) -> Result<(), DataError> {
        let mut inner = self.lock();
        inner.write(record::meta(key, value))?;
        inner.apply_meta(key.to_vec(), value.map(<[u8]>::to_vec));
        let end = inner.floor.log.end;
        self.sync_to(inner, end).map(drop)
    }

    pub fn usage(&self) -> Result<Usage, DataError> {
        let inner = self.lock();
        let disk = &inner.floor.log.disk;
        let files = disk.files()?;
        let sizes: Vec<u64> = files.iter().map(|file| disk.len(*file)).collect::<Result<_, _>>()?;
        Ok(Usage {
            cores: inner.cores.len(),
            segments: files.iter().filter(|file| **file != 0).count(),
            disk_bytes: sizes.iter().sum(),
            live_bytes: inner.floor.live.values().sum(),
            dirty_bytes: inner.floor.pages.dirty_bytes(),
            loaded_cores: inner.loaded.len(),
        })
    }

    /// Writes the index, so that the next opening has little to replay.
    pub fn checkpoint(&self) -> Result<(), DataError> {
        self.lock().checkpoint()
    }

    /// Takes a core and all its blocks out of the store.
    pub fn remove(&self, key: &Hash) -> Result<(), DataError> {
        let mut inner = self.lock();
        let id = *inner.by_key.get(key).ok_or(DataError::NoSuchCore)?;
        inner.load(id)?;
        inner.write(record::small(id, &Change::Remove))?;
        inner.apply_remove(id)?;
        let end = inner.floor.log.end;
        self.sync_to(inner, end).map(drop)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What is lost here can be made again.
        if !self.poisoned {
            let _ = self.floor.log.flush();
        }
    }
}

impl Inner {
    pub(crate) fn id_of(&self, key: &Hash) -> Option<u32> {
        self.by_key.get(key).copied()
    }

    pub(crate) fn fail<T>(&mut self, outcome: Result<T, DataError>) -> Result<T, DataError> {
        // The record is written, but memory may not say the same: only opening anew mends that.
        self.poisoned |= outcome.is_err();
        outcome
    }

    /// Writes one record. Nothing of it is there after a failure.
    pub(crate) fn write(&mut self, body: Vec<u8>) -> Result<At, DataError> {
        if self.poisoned {
            return Err(DataError::Poisoned);
        }
        self.since_checkpoint += body.len() as u64;
        self.floor.log.append(body)
    }

    /// Writes one record with the next that is written, or synced: for what can be made again.
    pub(crate) fn write_later(&mut self, body: Vec<u8>) -> Result<(), DataError> {
        if self.poisoned {
            return Err(DataError::Poisoned);
        }
        self.since_checkpoint += body.len() as u64;
        self.floor.log.stage(body)?;
        if self.floor.log.staged_bytes() > MAX_LATER { self.floor.log.flush() } else { Ok(()) }
    }

    /// Makes room in memory before a change, if there is too much of what no checkpoint has written.
    pub(crate) fn relieve(&mut self) -> Result<(), DataError> {
        if self.poisoned {
            return Err(DataError::Poisoned);
        }
        let must_write = self.floor.pages.dirty_bytes() > self.options.dirty_bytes
            || self.since_checkpoint > self.options.log_bytes;
        if must_write || (self.loaded.len() > self.options.loaded_cores && !self.shed()) {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Forgets the heads of cores that are as they are on the disk. Answers whether that sufficed.
    fn shed(&mut self) -> bool {
        let dirty = &self.dirty;
        self.loaded.retain(|id, _| dirty.contains(id));
        self.loaded.len() <= self.options.loaded_cores / 2
    }

    fn touched_heads(&self) -> Vec<(u32, Head)> {
        let head = |id: &u32| self.loaded.get(id).map(|state| (*id, state.head.clone()));
        self.touched.keys().filter_map(head).collect()
    }

    fn is_synced(&mut self, end: At, heads: Vec<(u32, Head)>) {
        let log = &mut self.floor.log;
        log.synced = log.synced.max(end);
        for (id, head) in heads {
            let Some(state) = self.loaded.get(&id) else { continue };
            if state.head.fork == head.fork && head.length <= state.head.length {
                self.safe.insert(id, head);
            }
            if self.touched.get(&id).is_some_and(|at| *at <= end) {
                self.touched.remove(&id);
            }
        }
    }

    /// Brings a core's head into memory.
    pub(crate) fn load(&mut self, id: u32) -> Result<(), DataError> {
        if self.loaded.contains_key(&id) {
            return Ok(());
        }
        let entry = self.cores.get(&id).ok_or(DataError::NoSuchCore)?;
        let place = entry.root.ok_or(DataError::NoSuchCore)?;
        let body = self.floor.log.read(place.at, place.size)?;
        let state = match record::decode(&body)? {
            record::Record::Root { core, bytes_at } if core == id => root::decode(id, &body[bytes_at..])?,
            _ => {
                return Err(log::damaged(
                    place.at.segment,
                    place.at.offset,
                    "it is not the root that was sought",
                ));
            }
        };
        self.loaded.insert(id, state);
        Ok(())
    }

    /// A core's state and what it stands on.
    pub(crate) fn parts(&mut self, id: u32) -> Result<(&mut CoreState, &mut Floor), DataError> {
        self.load(id)?;
        let state = self.loaded.get_mut(&id).ok_or(DataError::NoSuchCore)?;
        Ok((state, &mut self.floor))
    }

    pub(crate) fn next_core(&self) -> u32 {
        self.next_core
    }

    pub(crate) fn apply_create(&mut self, id: u32, state: CoreState) {
        self.next_core = self.next_core.max(id + 1);
        self.enter(id, state.key, None);
        self.loaded.insert(id, state);
        self.dirty.insert(id);
    }

    fn enter(&mut self, id: u32, key: Hash, root: Option<Place>) {
        self.by_key.insert(key, id);
        self.by_discovery.insert(crypto::discovery_key(&key), id);
        self.cores.insert(id, Entry { key, root });
    }

    fn apply_remove(&mut self, id: u32) -> Result<(), DataError> {
        let (state, floor) = self.parts(id)?;
        state.remove_all(floor)?;
        self.loaded.remove(&id);
        self.dirty.remove(&id);
        self.touched.remove(&id);
        self.safe.remove(&id);
        self.written.remove(&id);
        if let Some(entry) = self.cores.remove(&id) {
            self.by_key.remove(&entry.key);
            self.by_discovery.remove(&crypto::discovery_key(&entry.key));
            if let Some(root) = entry.root {
                self.floor.place_dead(root);
            }
        }
        Ok(())
    }

    fn apply_meta(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => drop(self.meta.insert(key, value)),
            None => drop(self.meta.remove(&key)),
        }
    }

    /// The core was cut: signatures over what is gone may not be made, and old snapshots see less.
    pub(crate) fn note_cut(&mut self, id: u32, fork: u64, length: u64) {
        self.safe.remove(&id);
        self.cuts.entry(id).or_default().push((fork, length));
    }
}

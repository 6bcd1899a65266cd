//! Opening: the last checkpoint is read, and what the log says after it is done again.

use super::first::{self, First};
use super::floor::Floor;
use super::log::{Log, SEGMENT_HEAD, Scan, damaged};
use super::pages::Pages;
use super::record::{self, At, Blocks, Change, Put, Record, Reorg};
use super::root::Checkpoint;
use super::seal::RootKey;
use super::state::{CoreState, SignedHead};
use super::{Inner, Options, Shared, Store};
use crate::error::DataError;
use crate::signature::Verifier;
use crate::storage::Disk;
use crate::tree::{Head, full_roots};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex};

impl Store {
    /// Opens the store that is on the disk, or makes one if the disk is empty. `entropy` must never have been
    /// used before.
    pub fn open(
        disk: Arc<dyn Disk>,
        root: RootKey,
        entropy: [u8; 32],
        options: Options,
    ) -> Result<Store, DataError> {
        let first = match first::read(&*disk, &root)? {
            Some(first) => first,
            None if disk.files()?.iter().any(|file| *file != 0) => return Err(DataError::WrongKey),
            None => {
                disk.create(0)?;
                First::default()
            }
        };
        let is_new = first.sequence == 0;
        let log = Log::new(disk, root, entropy, first, options.segment_bytes);
        let floor = Floor { log, pages: Pages::new(options.cache_bytes), live: BTreeMap::new() };
        let mut inner = Inner::over(floor, options);
        if is_new {
            inner.floor.log.write_first(First { replay: start_of(1), ..first })?;
            inner.floor.log.disk.sync_names()?;
        } else {
            inner.read_checkpoint()?;
        }
        // What the log after the checkpoint has freed is still needed to replay that log again.
        let needed = inner.floor.live.clone();
        inner.replay()?;
        inner.remove_strays(&needed)?;
        inner.floor.log.roll()?;
        let First { replay, newest, .. } = inner.floor.log.first;
        if inner.since_checkpoint > options.log_bytes / 4 || newest - replay.segment > MANY_SEGMENTS {
            inner.checkpoint()?;
        }
        Ok(Store { shared: Arc::new(Shared { inner: Mutex::new(inner), synced: Condvar::new() }) })
    }
}

/// Each opening begins a segment; when so many are to be replayed, there is a checkpoint.
const MANY_SEGMENTS: u32 = 16;

fn start_of(segment: u32) -> At {
    At { segment, offset: SEGMENT_HEAD as u32 }
}

impl Inner {
    fn over(floor: Floor, options: Options) -> Inner {
        Inner {
            floor,
            options,
            cores: BTreeMap::new(),
            by_key: HashMap::new(),
            by_discovery: HashMap::new(),
            loaded: HashMap::new(),
            dirty: BTreeSet::new(),
            meta: BTreeMap::new(),
            next_core: 1,
            touched: BTreeMap::new(),
            safe: HashMap::new(),
            cuts: HashMap::new(),
            written: BTreeSet::new(),
            syncing: false,
            poisoned: false,
            since_checkpoint: 0,
        }
    }

    fn read_checkpoint(&mut self) -> Result<(), DataError> {
        let First { checkpoint: at, checkpoint_size, .. } = self.floor.log.first;
        if at.segment == 0 {
            return Ok(());
        }
        let body = self.floor.log.read(at, checkpoint_size)?;
        let Record::Checkpoint { bytes_at } = record::decode(&body)? else {
            return Err(damaged(at.segment, at.offset, "it is not the checkpoint that was sought"));
        };
        let checkpoint = Checkpoint::decode(&body[bytes_at..])?;
        self.next_core = checkpoint.next_core;
        self.meta = checkpoint.meta;
        self.floor.live = checkpoint.live;
        for (id, key, place) in checkpoint.cores {
            self.enter(id, key, Some(place));
        }
        let files: BTreeSet<u64> = self.floor.log.disk.files()?.into_iter().collect();
        let lost = self
            .floor
            .live
            .iter()
            .find(|(segment, live)| **live > 0 && !files.contains(&u64::from(**segment)));
        match lost {
            Some((segment, _)) => Err(damaged(*segment, 0, "a segment is gone")),
            None => Ok(()),
        }
    }

    fn replay(&mut self) -> Result<(), DataError> {
        let First { replay, newest, .. } = self.floor.log.first;
        for segment in replay.segment..=newest {
            let from = if segment == replay.segment { replay } else { start_of(segment) };
            let end = if segment == newest { None } else { Some(self.end_of(segment)?) };
            if self.floor.log.read_head(segment)?.is_none() {
                return Err(damaged(segment, 0, "it does not begin as a segment"));
            }
            let mut scan = Scan::new(&mut self.floor.log, from, end)?;
            while let Some(found) = scan.next()? {
                self.since_checkpoint += found.body.len() as u64;
                let done =
                    record::decode(&found.body).and_then(|record| self.again(record, found.at, &found.body));
                done.map_err(|error| match error {
                    DataError::Storage(_) | DataError::Damaged { .. } => error,
                    _ => damaged(segment, found.at.offset, "a record makes no sense"),
                })?;
            }
            if !scan.is_at_end() && (end.is_some() || scan.was_safe()?) {
                return Err(damaged(segment, scan.at.offset, "what was synced is no longer whole"));
            }
            self.floor.log.end = scan.at;
        }
        Ok(())
    }

    /// Where the segment ends, as the next one says.
    fn end_of(&mut self, segment: u32) -> Result<u32, DataError> {
        let next = self.floor.log.read_head(segment + 1)?;
        let before = next.map(|next| next.before).filter(|before| before.segment == segment);
        before.map(|before| before.offset).ok_or(damaged(segment + 1, 0, "it does not begin as a segment"))
    }

    /// Files of which no checkpoint knows anything: of a segment that was just begun, or already given up.
    fn remove_strays(&mut self, needed: &BTreeMap<u32, u64>) -> Result<(), DataError> {
        let First { replay, newest, .. } = self.floor.log.first;
        for file in self.floor.log.disk.files()? {
            let Ok(segment) = u32::try_from(file) else { continue };
            if segment > newest && self.floor.log.read_head(segment)?.is_some() {
                let mut scan = Scan::new(&mut self.floor.log, start_of(segment), None)?;
                if scan.next()?.is_some() || scan.was_safe()? {
                    return Err(damaged(0, 0, "the first file is older than the newest segment"));
                }
            }
            let dead = segment < replay.segment && needed.get(&segment).is_none_or(|live| *live == 0);
            if segment > newest || (dead && segment != 0) {
                self.floor.log.disk.remove(file)?;
                self.floor.log.forget(segment);
                self.floor.live.remove(&segment);
            }
        }
        Ok(())
    }

    fn again(&mut self, record: Record, at: At, body: &[u8]) -> Result<(), DataError> {
        match record {
            Record::Meta { key, value } => self.apply_meta(key, value),
            Record::Page { .. } | Record::Root { .. } | Record::Checkpoint { .. } => {}
            Record::Change { core, change: Change::Create { key, manifest } } => {
                let verifier = manifest.map(|manifest| Verifier::new(key, manifest)).transpose()?;
                self.apply_create(core, CoreState::new(core, key, verifier));
            }
            Record::Change { core, change: Change::Remove } => self.apply_remove(core)?,
            Record::Change { core, change } => {
                self.dirty.insert(core);
                let (state, floor) = self.parts(core)?;
                state.again(floor, change, at, body)?;
            }
        }
        Ok(())
    }
}

impl CoreState {
    fn again(&mut self, floor: &mut Floor, change: Change, at: At, body: &[u8]) -> Result<(), DataError> {
        match change {
            Change::Append { fork, length, blocks } => {
                if (fork, length) != (self.head.fork, self.head.length) {
                    return Err(DataError::Malformed("blocks that do not follow the last"));
                }
                let (mut head, mut made) = (self.head.clone(), Vec::new());
                let mut rest = &body[blocks.at..];
                let mut bytes = Vec::with_capacity(blocks.sizes.len());
                for size in &blocks.sizes {
                    let (block, after) = rest.split_at(*size as usize);
                    bytes.push(block);
                    rest = after;
                }
                head.append_all(&bytes, &mut made)?;
                self.apply_append(floor, at, &blocks, head, &made)
            }
            Change::Put(put) => self.apply_put(floor, put, at),
            Change::Truncate { fork, length } => {
                let head = self.with_nodes(floor, |nodes| self.head.truncated(length, fork, nodes))?;
                self.apply_truncate(floor, head)
            }
            Change::Reorg(reorg) => self.apply_reorg(floor, reorg),
            Change::Clear { start, end } => self.clear(floor, start..end),
            Change::Signed { fork, length, signature } => {
                if fork == self.head.fork {
                    let head = self.with_nodes(floor, |nodes| self.head.truncated(length, fork, nodes))?;
                    self.signed = Some(SignedHead { head, signature });
                }
                Ok(())
            }
            Change::UserData { key, value } => {
                self.apply_user_data(key, value);
                Ok(())
            }
            Change::Moved { indexes, blocks } => self.apply_moved(floor, at, &indexes, &blocks),
            Change::Drop { kind, number } => {
                self.drop_page(floor, kind, number);
                Ok(())
            }
            Change::Create { .. } | Change::Remove => Ok(()),
        }
    }

    pub fn apply_append(
        &mut self,
        floor: &mut Floor,
        at: At,
        blocks: &Blocks,
        head: Head,
        made: &[crate::tree::Node],
    ) -> Result<(), DataError> {
        self.put_nodes(floor, made)?;
        let first = self.head.length;
        self.head = head;
        self.appended(floor, at, blocks.at, blocks.sizes.iter().map(|size| *size as usize), first)
    }

    pub fn apply_put(&mut self, floor: &mut Floor, put: Put, at: At) -> Result<(), DataError> {
        if let Some(manifest) = put.manifest {
            self.verifier = Some(Verifier::new(self.key, manifest)?);
        }
        self.put_nodes(floor, &put.nodes)?;
        if let Some((length, signature)) = put.upgrade {
            if self.verifier.is_none() {
                self.verifier = Some(Verifier::compat(self.key));
            }
            let head = self.head_of(floor, self.head.fork, length)?;
            self.head = head.clone();
            self.signed = Some(SignedHead { head, signature });
        }
        match put.block {
            Some((index, skip, size)) => self.appended(floor, at, skip, [size].into_iter(), index),
            None => Ok(()),
        }
    }

    /// The tree of a length, all roots of which are known.
    fn head_of(&self, floor: &mut Floor, fork: u64, length: u64) -> Result<Head, DataError> {
        let mut roots = Vec::new();
        for index in full_roots(length) {
            roots.push(self.node(floor, index)?.ok_or(DataError::Malformed("a root is missing"))?);
        }
        let byte_length = roots.iter().map(|root| root.size).sum();
        Ok(Head { fork, length, byte_length, roots })
    }

    pub fn apply_truncate(&mut self, floor: &mut Floor, head: Head) -> Result<(), DataError> {
        self.cut(floor, head.length)?;
        self.head = head;
        // Its blocks may be gone, so it can be shown to nobody.
        self.signed = None;
        Ok(())
    }

    pub fn apply_reorg(&mut self, floor: &mut Floor, reorg: Reorg) -> Result<(), DataError> {
        let mut roots = Vec::new();
        for index in full_roots(reorg.ancestors) {
            roots.extend(self.node(floor, index)?);
        }
        self.cut(floor, reorg.ancestors)?;
        // The old roots are no longer to be found through the head.
        self.head = Head { fork: reorg.fork, ..Head::default() };
        self.put_nodes(floor, &roots)?;
        self.put_nodes(floor, &reorg.nodes)?;
        let head = self.head_of(floor, reorg.fork, reorg.length)?;
        self.head = head.clone();
        self.signed = Some(SignedHead { head, signature: reorg.signature });
        Ok(())
    }

    pub fn apply_user_data(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => drop(self.user_data.insert(key, value)),
            None => drop(self.user_data.remove(&key)),
        }
    }

    pub fn apply_moved(
        &mut self,
        floor: &mut Floor,
        at: At,
        indexes: &[u64],
        blocks: &Blocks,
    ) -> Result<(), DataError> {
        let mut skip = blocks.at;
        for (index, size) in indexes.iter().zip(&blocks.sizes) {
            let place = super::pages::BlockPlace { at, skip: skip as u32, size: *size as u32 };
            self.set_place(floor, *index, place)?;
            skip += *size as usize;
        }
        Ok(())
    }
}

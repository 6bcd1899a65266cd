//! A disk that remembers every operation, so that a test can ask what a crash may have left of them, and that
//! fails on command.

use super::{Disk, MemoryDisk, StorageError, memory};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Create(u64),
    Remove(u64),
    Write { file: u64, offset: u64, bytes: Vec<u8> },
    Cut { file: u64, length: u64 },
    Sync(u64),
    SyncNames,
}

type Files = BTreeMap<u64, Vec<u8>>;

/// A clone is the same disk.
#[derive(Clone, Debug, Default)]
pub struct RecordingDisk {
    disk: MemoryDisk,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    started_with: Files,
    operations: Vec<Operation>,
    room: Option<usize>,
    syncs_fail: bool,
}

impl RecordingDisk {
    pub fn on(disk: &MemoryDisk) -> Self {
        let state = State { started_with: disk.image(), ..State::default() };
        RecordingDisk { disk: MemoryDisk::of(disk.image()), state: Arc::new(Mutex::new(state)) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk takes this many bytes more. A larger write leaves a part.
    pub fn set_room(&self, room: Option<usize>) {
        self.lock().room = room;
    }

    pub fn fail_syncs(&self, fail: bool) {
        self.lock().syncs_fail = fail;
    }

    pub fn disk(&self) -> MemoryDisk {
        MemoryDisk::of(self.disk.image())
    }

    /// How many operations there were.
    pub fn count(&self) -> usize {
        self.lock().operations.len()
    }

    pub fn operations(&self) -> Vec<Operation> {
        self.lock().operations.clone()
    }

    /// What the disk may hold if the machine lost its power after the first `count` operations. What was synced
    /// by then is there. Of the rest: all, nothing, the last write torn at several places, each single write
    /// lost or half lost though later ones are there, and each file that was made or removed.
    pub fn after_crash(&self, count: usize) -> Vec<MemoryDisk> {
        let state = self.lock();
        let done = &state.operations[..count];
        let pending: Vec<bool> = (0..count).map(|at| is_pending(done, at)).collect();
        let image = |change: &dyn Fn(usize, &Operation) -> Option<Operation>| {
            let mut files = state.started_with.clone();
            for (at, operation) in done.iter().enumerate() {
                let kept = if pending[at] { change(at, operation) } else { Some(operation.clone()) };
                kept.iter().for_each(|operation| apply(&mut files, operation));
            }
            MemoryDisk::of(files)
        };
        let mut images = vec![
            image(&|_, operation| Some(operation.clone())),
            image(&|_, _| None),
            image(&|_, operation| is_of_names(operation).then(|| operation.clone())),
        ];
        for lost in (0..count).filter(|at| pending[*at]) {
            images.push(image(&|at, operation: &Operation| {
                if at == lost { None } else { Some(operation.clone()) }
            }));
            let Operation::Write { bytes, .. } = &done[lost] else { continue };
            let half = bytes.len() / 2;
            for part in [0..half, half..bytes.len()] {
                images.push(image(&|at, operation| {
                    Some(if at == lost { zeroed(operation, &part) } else { operation.clone() })
                }));
            }
            if lost + 1 < count {
                continue;
            }
            for cut in
                [1, 4, 8, 24, bytes.len().saturating_sub(1)].into_iter().filter(|cut| *cut < bytes.len())
            {
                images.push(image(&|at, operation| {
                    Some(if at == lost { cut_to(operation, cut) } else { operation.clone() })
                }));
            }
        }
        images
    }
}

fn is_of_names(operation: &Operation) -> bool {
    matches!(operation, Operation::Create(_) | Operation::Remove(_))
}

fn is_pending(done: &[Operation], at: usize) -> bool {
    let after = &done[at + 1..];
    match &done[at] {
        Operation::Write { file, .. } | Operation::Cut { file, .. } => {
            !after.contains(&Operation::Sync(*file))
        }
        Operation::Create(_) | Operation::Remove(_) => !after.contains(&Operation::SyncNames),
        Operation::Sync(_) | Operation::SyncNames => false,
    }
}

/// Sectors reach the disk in any order: this part has not.
fn zeroed(operation: &Operation, part: &std::ops::Range<usize>) -> Operation {
    let mut changed = operation.clone();
    if let Operation::Write { bytes, .. } = &mut changed {
        bytes[part.clone()].fill(0);
    }
    changed
}

fn cut_to(operation: &Operation, length: usize) -> Operation {
    let mut changed = operation.clone();
    if let Operation::Write { bytes, .. } = &mut changed {
        bytes.truncate(length);
    }
    changed
}

fn apply(files: &mut Files, operation: &Operation) {
    match operation {
        Operation::Create(file) => drop(files.insert(*file, Vec::new())),
        Operation::Remove(file) => drop(files.remove(file)),
        Operation::Write { file, offset, bytes } => {
            // Of a file whose name is lost, nothing is there.
            if let Some(to) = files.get_mut(file) {
                memory::write(to, *offset, bytes);
            }
        }
        Operation::Cut { file, length } => {
            if let Some(bytes) = files.get_mut(file) {
                bytes.truncate(*length as usize);
            }
        }
        Operation::Sync(_) | Operation::SyncNames => {}
    }
}

impl Disk for RecordingDisk {
    fn files(&self) -> Result<Vec<u64>, StorageError> {
        self.disk.files()
    }

    fn create(&self, file: u64) -> Result<(), StorageError> {
        let mut state = self.lock();
        if state.room == Some(0) {
            return Err(StorageError::Full);
        }
        state.operations.push(Operation::Create(file));
        self.disk.create(file)
    }

    fn remove(&self, file: u64) -> Result<(), StorageError> {
        self.lock().operations.push(Operation::Remove(file));
        self.disk.remove(file)
    }

    fn len(&self, file: u64) -> Result<u64, StorageError> {
        self.disk.len(file)
    }

    fn read(&self, file: u64, offset: u64, to: &mut [u8]) -> Result<(), StorageError> {
        self.disk.read(file, offset, to)
    }

    fn write(&self, file: u64, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let mut state = self.lock();
        let fits = state.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        state.room = state.room.map(|room| room - fits);
        let kept = &bytes[..fits];
        state.operations.push(Operation::Write { file, offset, bytes: kept.to_vec() });
        self.disk.write(file, offset, kept)?;
        if fits < bytes.len() { Err(StorageError::Full) } else { Ok(()) }
    }

    fn cut(&self, file: u64, length: u64) -> Result<(), StorageError> {
        self.lock().operations.push(Operation::Cut { file, length });
        self.disk.cut(file, length)
    }

    fn sync(&self, file: u64) -> Result<(), StorageError> {
        let mut state = self.lock();
        if state.syncs_fail {
            return Err(StorageError::Failed("no sync today".to_owned()));
        }
        state.operations.push(Operation::Sync(file));
        self.disk.sync(file)
    }

    fn sync_names(&self) -> Result<(), StorageError> {
        let mut state = self.lock();
        if state.syncs_fail {
            return Err(StorageError::Failed("no sync today".to_owned()));
        }
        state.operations.push(Operation::SyncNames);
        Ok(())
    }
}

//! A storage that remembers every operation, so that a test can ask what a crash may have left of them, and
//! that fails on command.

use super::{Memory, Storage, StorageError};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    Append(Vec<u8>),
    Truncate(u64),
    Sync,
}

#[derive(Clone, Debug, Default)]
pub struct Recording {
    disk: Memory,
    started_with: Vec<u8>,
    operations: Vec<Operation>,
    /// The disk takes this many bytes more. A larger append leaves a part.
    pub room: Option<usize>,
    pub syncs_fail: bool,
    pub truncations_fail: bool,
}

impl Recording {
    pub fn on(disk: Memory) -> Self {
        Recording { started_with: disk.bytes.clone(), disk, ..Recording::default() }
    }

    /// How many operations there were.
    pub fn count(&self) -> usize {
        self.operations.len()
    }

    /// What the disk may hold if the machine lost its power after the first `count` operations. What came
    /// before the last sync among them is there. Of the rest: all, nothing, the last one torn at several
    /// places or with zeros in its place, each single one lost though later ones are there.
    pub fn after_crash(&self, count: usize) -> Vec<Memory> {
        let done = &self.operations[..count];
        let synced = done.iter().rposition(|operation| *operation == Operation::Sync).map_or(0, |at| at + 1);
        let (durable, pending) = done.split_at(synced);
        let base = apply(Memory { bytes: self.started_with.clone() }, durable);
        let mut images = vec![base.clone(), apply(base.clone(), pending)];
        for (at, operation) in pending.iter().enumerate() {
            let Operation::Append(bytes) = operation else { continue };
            for put in [vec![0; bytes.len()], zeroed_from(bytes, bytes.len() / 2), zeroed_until(bytes)] {
                let mut changed = pending.to_vec();
                changed[at] = Operation::Append(put);
                images.push(apply(base.clone(), &changed));
            }
        }
        if let Some((Operation::Append(bytes), before)) = pending.split_last() {
            let cuts = [1, 4, 15, 16, 17, bytes.len() / 2, bytes.len().saturating_sub(1)];
            for cut in cuts.into_iter().filter(|cut| *cut < bytes.len()) {
                let torn = apply(base.clone(), before);
                images.push(apply(torn, &[Operation::Append(bytes[..cut].to_vec())]));
            }
        }
        images
    }
}

fn zeroed_from(bytes: &[u8], from: usize) -> Vec<u8> {
    let kept = bytes[..from].iter().copied();
    kept.chain(std::iter::repeat(0)).take(bytes.len()).collect()
}

/// The first half lost, the second there: sectors reach the disk in any order.
fn zeroed_until(bytes: &[u8]) -> Vec<u8> {
    let half = bytes.len() / 2;
    std::iter::repeat_n(0, half).chain(bytes[half..].iter().copied()).collect()
}

fn apply(mut disk: Memory, operations: &[Operation]) -> Memory {
    for operation in operations {
        match operation {
            Operation::Append(bytes) => disk.bytes.extend_from_slice(bytes),
            Operation::Truncate(length) => disk.bytes.truncate(*length as usize),
            Operation::Sync => {}
        }
    }
    disk
}

impl Storage for Recording {
    fn len(&self) -> Result<u64, StorageError> {
        self.disk.len()
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), StorageError> {
        self.disk.read(offset, to)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        let fits = self.room.map_or(bytes.len(), |room| room.min(bytes.len()));
        self.room = self.room.map(|room| room - fits);
        self.operations.push(Operation::Append(bytes[..fits].to_vec()));
        self.disk.append(&bytes[..fits])?;
        if fits < bytes.len() { Err(StorageError::Full) } else { Ok(()) }
    }

    fn truncate(&mut self, length: u64) -> Result<(), StorageError> {
        if self.truncations_fail {
            return Err(StorageError::Failed("no truncation today".to_owned()));
        }
        self.operations.push(Operation::Truncate(length));
        self.disk.truncate(length)
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        if self.syncs_fail {
            return Err(StorageError::Failed("no sync today".to_owned()));
        }
        self.operations.push(Operation::Sync);
        self.disk.sync()
    }
}

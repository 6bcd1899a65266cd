//! Files in memory.

use super::{Disk, StorageError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A clone is the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    files: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
}

impl MemoryDisk {
    pub fn of(files: BTreeMap<u64, Vec<u8>>) -> Self {
        MemoryDisk { files: Arc::new(Mutex::new(files)) }
    }

    /// All bytes as they are now.
    pub fn image(&self) -> BTreeMap<u64, Vec<u8>> {
        self.lock().clone()
    }

    /// Changes a byte behind the back of whoever uses the disk.
    pub fn rot(&self, file: u64, offset: u64, change: u8) {
        let mut files = self.lock();
        if let Some(byte) = files.get_mut(&file).and_then(|bytes| bytes.get_mut(offset as usize)) {
            *byte ^= change;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<u8>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes as a file system does: a gap before `offset` becomes zeros.
pub(super) fn write(to: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let from = offset as usize;
    if to.len() < from + bytes.len() {
        to.resize(from + bytes.len(), 0);
    }
    to[from..from + bytes.len()].copy_from_slice(bytes);
}

impl Disk for MemoryDisk {
    fn files(&self) -> Result<Vec<u64>, StorageError> {
        Ok(self.lock().keys().copied().collect())
    }

    fn create(&self, file: u64) -> Result<(), StorageError> {
        self.lock().insert(file, Vec::new());
        Ok(())
    }

    fn remove(&self, file: u64) -> Result<(), StorageError> {
        self.lock().remove(&file);
        Ok(())
    }

    fn len(&self, file: u64) -> Result<u64, StorageError> {
        self.lock().get(&file).map(|bytes| bytes.len() as u64).ok_or(StorageError::Missing)
    }

    fn read(&self, file: u64, offset: u64, to: &mut [u8]) -> Result<(), StorageError> {
        let files = self.lock();
        let bytes = files.get(&file).ok_or(StorageError::Missing)?;
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)?.get(..to.len()));
        to.copy_from_slice(from.ok_or(StorageError::Short)?);
        Ok(())
    }

    fn write(&self, file: u64, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        write(self.lock().get_mut(&file).ok_or(StorageError::Missing)?, offset, bytes);
        Ok(())
    }

    fn cut(&self, file: u64, length: u64) -> Result<(), StorageError> {
        self.lock().get_mut(&file).ok_or(StorageError::Missing)?.truncate(length as usize);
        Ok(())
    }

    fn sync(&self, file: u64) -> Result<(), StorageError> {
        self.len(file).map(drop)
    }

    fn sync_names(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

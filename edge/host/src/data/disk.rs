//! The disk under a store of cores: a directory of its own, one file for each number.
//!
//! Invariants: who has opened the directory has it alone, until it is dropped or the process ends; as few files are
//! open at once as the limit says, however many there are.

use cloudpal_data::storage::{Disk, StorageError};
use cloudpal_model::{Kind, Problem};
use rustix::fs::{FlockOperation, flock};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files that are open at once, unless something else is said.
pub const MAX_OPEN: usize = 32;

#[derive(Debug)]
pub struct DirectoryDisk {
    path: PathBuf,
    /// Locked as long as it is open.
    directory: File,
    open: Mutex<Open>,
}

#[derive(Debug)]
struct Open {
    files: HashMap<u64, (Arc<File>, u64)>,
    most: usize,
    time: u64,
}

impl DirectoryDisk {
    /// Opens the directory for this process alone, making it if need be.
    pub fn open(path: &Path, max_open: usize) -> Result<Self, Problem> {
        let said = |error: Error| {
            let what = format!("cannot open the store in {}: {error}", path.display());
            Problem::new(Kind::Internal, what, "see that the directory exists and may be written")
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(said)?;
        let directory = File::open(path).map_err(said)?;
        flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            let what = format!("the store in {} is open already", path.display());
            Problem::new(Kind::Taken, what, "close it there first; one store has one program at a time")
        })?;
        let open = Mutex::new(Open { files: HashMap::new(), most: max_open.max(1), time: 0 });
        Ok(DirectoryDisk { path: path.to_owned(), directory, open })
    }

    /// How many files are open now.
    pub fn open_files(&self) -> usize {
        self.lock().files.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, file: u64) -> PathBuf {
        self.path.join(format!("{file:08x}"))
    }

    fn file(&self, file: u64) -> Result<Arc<File>, StorageError> {
        let mut open = self.lock();
        open.time += 1;
        let time = open.time;
        if let Some((found, used)) = open.files.get_mut(&file) {
            *used = time;
            return Ok(found.clone());
        }
        let opened = OpenOptions::new().read(true).write(true).open(self.name(file)).map_err(failed)?;
        Ok(open.keep(file, opened))
    }
}

impl Open {
    fn keep(&mut self, file: u64, opened: File) -> Arc<File> {
        let opened = Arc::new(opened);
        self.time += 1;
        self.files.insert(file, (opened.clone(), self.time));
        if self.files.len() > self.most {
            let oldest = self.files.iter().min_by_key(|(_, (_, used))| *used).map(|(file, _)| *file);
            oldest.map(|oldest| self.files.remove(&oldest));
        }
        opened
    }
}

fn failed(error: Error) -> StorageError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => StorageError::Full,
        ErrorKind::UnexpectedEof => StorageError::Short,
        ErrorKind::NotFound => StorageError::Missing,
        _ => StorageError::Failed(error.to_string()),
    }
}

impl Disk for DirectoryDisk {
    fn files(&self) -> Result<Vec<u64>, StorageError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let number = name.to_str().and_then(|name| u64::from_str_radix(name, 16).ok());
            found.extend(number.filter(|number| name.to_str() == Some(format!("{number:08x}").as_str())));
        }
        Ok(found)
    }

    fn create(&self, file: u64) -> Result<(), StorageError> {
        let mut how = OpenOptions::new();
        how.read(true).write(true).create(true).truncate(true).mode(0o600);
        let made = how.open(self.name(file)).map_err(failed)?;
        self.lock().keep(file, made);
        Ok(())
    }

    fn remove(&self, file: u64) -> Result<(), StorageError> {
        self.lock().files.remove(&file);
        fs::remove_file(self.name(file)).map_err(failed)
    }

    fn len(&self, file: u64) -> Result<u64, StorageError> {
        Ok(self.file(file)?.metadata().map_err(failed)?.len())
    }

    fn read(&self, file: u64, offset: u64, to: &mut [u8]) -> Result<(), StorageError> {
        self.file(file)?.read_exact_at(to, offset).map_err(failed)
    }

    fn write(&self, file: u64, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        self.file(file)?.write_all_at(bytes, offset).map_err(failed)
    }

    fn cut(&self, file: u64, length: u64) -> Result<(), StorageError> {
        self.file(file)?.set_len(length).map_err(failed)
    }

    fn sync(&self, file: u64) -> Result<(), StorageError> {
        self.file(file)?.sync_data().map_err(failed)
    }

    fn sync_names(&self) -> Result<(), StorageError> {
        self.directory.sync_all().map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudpal_data::core::{Durability, Open as OpenCore};
    use cloudpal_data::crypto::KeyPair;
    use cloudpal_data::store::{Options, RootKey, Store};

    #[test]
    fn a_store_on_a_directory_that_nobody_else_can_open() {
        let dir = tempfile::tempdir().unwrap();
        let small = Options { segment_bytes: 10_000, ..Options::default() };
        let open = |entropy: u8| -> Result<(Store, Arc<DirectoryDisk>), Problem> {
            let disk = Arc::new(DirectoryDisk::open(&dir.path().join("store"), 3)?);
            Ok((Store::open(disk.clone(), RootKey([1; 32]), [entropy; 32], small)?, disk))
        };
        let (store, disk) = open(1).unwrap();
        assert_eq!(open(2).unwrap_err().kind, Kind::Taken);
        let core = store.core(&OpenCore::pair(KeyPair::from_seed(&[3; 32]))).unwrap();
        for n in 0..100u8 {
            core.append(&[&[n; 1000]], Durability::Buffered).unwrap();
        }
        core.sync().unwrap();
        assert!(store.usage().unwrap().segments > 9);
        for n in 0..100u8 {
            assert_eq!(core.get(u64::from(n)).unwrap(), [n; 1000]);
        }
        assert!(disk.open_files() <= 3);
        drop((core, store, disk));
        let (store, _disk) = open(2).unwrap();
        let core = store.core(&OpenCore::pair(KeyPair::from_seed(&[3; 32]))).unwrap();
        assert_eq!(core.get(99).unwrap(), [99; 1000]);
        core.clear(0, 99).unwrap();
        assert!(store.compact().unwrap() > 50_000);
    }
}

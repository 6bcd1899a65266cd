//! The one port to a disk: a directory of numbered files, which who holds it has for itself alone.
//!
//! What was written may be lost in a crash, wholly or in part and in any order, until `sync` of that file has
//! answered; that a file was made or removed, until `sync_names` has. After that it must be there.
//! [`MemoryDisk`] is for tests and for what may be lost; [`RecordingDisk`] is for tests of crashes and of full
//! disks.

mod memory;
mod recording;

pub use crate::error::StorageError;
pub use memory::MemoryDisk;
pub use recording::{Operation, RecordingDisk};
use std::fmt;

pub trait Disk: fmt::Debug + Send + Sync {
    /// The numbers of all files.
    fn files(&self) -> Result<Vec<u64>, StorageError>;

    /// Makes an empty file. One of that number, if there is one, is emptied.
    fn create(&self, file: u64) -> Result<(), StorageError>;

    fn remove(&self, file: u64) -> Result<(), StorageError>;

    fn len(&self, file: u64) -> Result<u64, StorageError>;

    /// Fills `to` with the bytes at `offset`.
    fn read(&self, file: u64, offset: u64, to: &mut [u8]) -> Result<(), StorageError>;

    /// Beyond the end the file grows. On failure any part of the bytes may have been written.
    fn write(&self, file: u64, offset: u64, bytes: &[u8]) -> Result<(), StorageError>;

    /// Cuts the file to its first `length` bytes. After a crash it may be as long as before, until the next sync.
    fn cut(&self, file: u64, length: u64) -> Result<(), StorageError>;

    /// Answers when all that was written to the file is on the disk. After a failure nothing is known of what
    /// was written since the last success.
    fn sync(&self, file: u64) -> Result<(), StorageError>;

    /// Answers when it is on the disk which files there are.
    fn sync_names(&self) -> Result<(), StorageError>;
}

//! The one port to a disk: a row of bytes that grows at its end.
//!
//! What was appended may be lost in a crash, wholly or in part and in any order, until `sync` has answered;
//! after that it must be there. One file per core fits it, and so does a part of a log that many cores share.
//! [`Memory`] is for tests and for cores that may be lost; [`Recording`] is for tests of crashes and full
//! disks.

mod recording;

pub use crate::error::StorageError;
pub use recording::{Operation, Recording};

pub trait Storage {
    fn len(&self) -> Result<u64, StorageError>;

    fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.len()? == 0)
    }

    /// Fills `to` with the bytes at `offset`.
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), StorageError>;

    /// On failure any part of the bytes may have been appended.
    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError>;

    /// Cuts to the first `length` bytes.
    fn truncate(&mut self, length: u64) -> Result<(), StorageError>;

    /// Answers when all that was done is on the disk. After a failure nothing is known of what was done since
    /// the last success.
    fn sync(&mut self) -> Result<(), StorageError>;
}

#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub bytes: Vec<u8>,
}

impl Storage for Memory {
    fn len(&self) -> Result<u64, StorageError> {
        Ok(self.bytes.len() as u64)
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), StorageError> {
        let from = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..)?.get(..to.len()));
        to.copy_from_slice(from.ok_or(StorageError::Short)?);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> Result<(), StorageError> {
        self.bytes.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StorageError> {
        Ok(())
    }
}

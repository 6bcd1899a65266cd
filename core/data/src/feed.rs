//! What a database needs of the core under it: a row of blocks that can be read, and one that also grows.
//!
//! A core that replicates may not have every block yet. Nothing waits here: the read fails with
//! [`DataError::NotHere`], whoever drives the database downloads that block and calls again.

use crate::error::DataError;

pub trait Feed {
    /// The number of blocks, also of those that are not here.
    fn length(&self) -> u64;

    /// Changes whenever blocks that were there are replaced by others.
    fn fork(&self) -> u64;

    /// A block, decrypted where the core is encrypted.
    fn get(&self, index: u64) -> Result<Vec<u8>, DataError>;
}

pub trait FeedMut: Feed {
    /// Appends all blocks or none. Answers the new length.
    fn append(&mut self, blocks: &[&[u8]]) -> Result<u64, DataError>;
}

impl<F: Feed + ?Sized> Feed for &F {
    fn length(&self) -> u64 {
        (**self).length()
    }

    fn fork(&self) -> u64 {
        (**self).fork()
    }

    fn get(&self, index: u64) -> Result<Vec<u8>, DataError> {
        (**self).get(index)
    }
}

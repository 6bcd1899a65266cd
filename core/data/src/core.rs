//! A core of a store: what its writer appends and cuts, or what is had of somebody else's core, whole or in
//! parts.
//!
//! Invariants:
//! - A signature is made only over what is already on the disk. So no crash can lose anything that was
//!   signed, and no second history is ever signed for a length of a fork: what is signed again is the same.
//! - What a synced call has answered is there after any crash. A batch is there whole or not at all.
//! - Of somebody else's core nothing is stored that was not proved.
//!
//! A [`Core`] is a session: clones share the core, and may be used from several threads.

mod accept;
mod archive;
mod frozen;
mod open;
mod read;
mod repair;
mod replica;
mod sign;
mod write;

pub use crate::store::state::SignedHead;
pub use archive::Pack;
pub use frozen::Frozen;
pub use open::Open;
pub use repair::Damage;

use crate::crypto::{Hash, KeyPair};
use crate::encryption::BlockCipher;
use crate::error::DataError;
use crate::feed::{Feed, FeedMut};
use crate::store::Store;
use std::sync::Arc;

/// The largest block, as in the JavaScript stack.
pub const MAX_BLOCK: usize = 15 << 20;

/// What must have happened before a write is acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The storage has taken it. A crash may lose it; it is not signed, and so not shown to peers, before the
    /// next sync.
    Buffered,
    /// It is on the disk and signed.
    Synced,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    pub key: Hash,
    pub discovery_key: Hash,
    pub fork: u64,
    pub length: u64,
    /// Of what was appended, without what encryption adds.
    pub byte_length: u64,
    /// Blocks that are on the disk and signed: what peers may be told of.
    pub synced_length: u64,
    /// All blocks before it are here.
    pub contiguous_length: u64,
    pub stored_blocks: u64,
    pub stored_bytes: u64,
    pub writable: bool,
}

/// What an accepted proof has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gained {
    /// The new length, if it grew.
    pub length: Option<u64>,
    /// The block that was not here before.
    pub block: Option<u64>,
}

/// How much of the core a snapshot sees.
#[derive(Clone, Copy, Debug)]
struct Seen {
    fork: u64,
    length: u64,
}

#[derive(Clone, Debug)]
pub struct Core {
    store: Store,
    id: u32,
    key: Hash,
    discovery_key: Hash,
    pair: Option<Arc<KeyPair>>,
    cipher: Option<Arc<BlockCipher>>,
    durability: Durability,
    seen: Option<Seen>,
}

impl Core {
    pub fn key(&self) -> &Hash {
        &self.key
    }

    pub fn discovery_key(&self) -> &Hash {
        &self.discovery_key
    }

    /// What [`FeedMut::append`] waits for; `Synced` where nothing else is said.
    #[must_use]
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The core as it is now: it neither grows nor can it be written. What is cut off later cannot be read.
    pub fn snapshot(&self) -> Result<Core, DataError> {
        let head = self.head()?;
        let length = self.seen.map_or(head.length, |seen| seen.length);
        let seen = Seen { fork: self.seen.map_or(head.fork, |seen| seen.fork), length };
        Ok(Core { seen: Some(seen), pair: None, ..self.clone() })
    }
}

impl Feed for Core {
    fn length(&self) -> u64 {
        self.seen.map_or_else(|| self.head().map_or(0, |head| head.length), |seen| seen.length)
    }

    fn fork(&self) -> u64 {
        self.seen.map_or_else(|| self.head().map_or(0, |head| head.fork), |seen| seen.fork)
    }

    fn get(&self, index: u64) -> Result<Vec<u8>, DataError> {
        Core::get(self, index)
    }
}

impl FeedMut for Core {
    fn append(&mut self, blocks: &[&[u8]]) -> Result<u64, DataError> {
        Core::append(self, blocks, self.durability)
    }
}

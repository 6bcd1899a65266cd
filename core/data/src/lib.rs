//! Hypercore: an append-only log that its writer signs and any peer can check, as today's JavaScript peers
//! speak it.
//!
//! Invariants: nothing here does IO but through [`storage::Disk`], reads a clock or draws randomness;
//! bytes from outside cost work in proportion to their number, and are refused with a [`DataError`]; nothing
//! counts as part of a core that was not proved.
//!
//! From the ground up: [`encoding`], [`crypto`], [`manifest`], [`signature`], [`tree`], [`proof`],
//! [`encryption`], [`storage`], [`core`]; beside them [`mux`] and
//! [`wire`], the messages of replication.
//! On a [`feed`]: [`bee`], [`blobs`], [`drive`], [`trie`]; and [`bus`].

pub mod bee;
pub mod blobs;
pub mod bus;
pub mod core;
pub mod corestore;
pub mod crypto;
pub mod drive;
pub mod encoding;
pub mod encryption;
mod error;
pub mod feed;
pub mod manifest;
pub mod mux;
pub mod proof;
mod protobuf;
pub mod replication;
pub mod signature;
pub mod storage;
pub mod store;
pub mod stream;
pub mod tree;
pub mod trie;
pub mod wire;

pub use error::{DataError, StorageError};

//! The data engine: blocks of a bee and of a trie, and the rows of an import.

use crate::{
    digest_kit::blocks,
    foreign_kit::{exercise_bee, exercise_trie},
    golden_kit::{block, pair},
    program::Bytes,
};
use cloudpal_data::{
    core::Open,
    feed::Feed,
    manifest::Manifest,
    storage::MemoryDisk,
    store::{Options, RootKey, Store},
};
use std::sync::Arc;

pub fn bee(bytes: &[u8]) {
    exercise_bee(blocks(bytes));
}

pub fn trie(bytes: &[u8]) {
    exercise_trie(blocks(bytes));
}

/// Messages with their lengths before them. The signer's key is none that a fuzzer has: what is taken is the truth.
pub fn unpack(bytes: &[u8]) {
    let disk = Arc::new(MemoryDisk::default());
    let store = Store::open(disk, RootKey([2; 32]), [2; 32], Options::default()).expect("a store");
    let core = store.core(&Open::manifest(Manifest::single(pair(1).public_key()))).expect("a core");
    let mut rows = Bytes(bytes);
    while !rows.is_empty() {
        let len = rows.u16();
        let _ = core.unpack(rows.take(len.into()));
    }
    assert!(core.verify().expect("it can be checked").is_empty());
    for index in 0..core.length().min(100) {
        if let Ok(found) = core.get(index) {
            assert_eq!(found, block(index, index * 37 % 101), "a block that was never signed");
        }
    }
}

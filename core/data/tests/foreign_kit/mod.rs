//! Does with foreign blocks of a bee or a trie all there is to do: it ends, takes bounded work, and never panics.

#![allow(dead_code)] // each test file uses its own part

use crate::feed_kit::MemoryFeed;
use cloudpal_data::bee::{Bee, KeyRange};
use cloudpal_data::trie::{ListOptions, Trie};

/// Does everything there is to do. Nothing may take more steps than the blocks allow.
pub fn exercise_bee(blocks: Vec<Vec<u8>>) {
    let length = blocks.len() as u64;
    let feed = MemoryFeed::of(blocks);
    let bee = Bee::new(feed.clone());
    let _ = bee.header();
    for range in [KeyRange::all(), KeyRange::all().gt(b"2").lte(b"5"), KeyRange::all().reverse()] {
        let entries = bee.range(range.clone()).take_while(Result::is_ok).count() as u64;
        assert!(entries <= length, "{entries} entries in {length} blocks");
        for since in [1, length / 2, length] {
            let Ok(diff) = bee.diff(since, range.clone()) else { continue };
            let changes = diff.take_while(Result::is_ok).count() as u64;
            assert!(changes <= 2 * length, "{changes} changes in {length} blocks");
        }
    }
    assert!(bee.head().history(0).take_while(Result::is_ok).count() as u64 <= length);
    let _ = bee.unlinked(length);
    assert!(bee.feed().reads.get() <= 2 * length + 50, "each block is read once, if it can be read");
    for key in ["", "1", "17", "42", "59", "6"] {
        let _ = bee.get(key.as_bytes());
        let mut bee = Bee::new(feed.clone());
        let _ = bee.del(key.as_bytes());
        let mut bee = Bee::new(feed.clone());
        let mut batch = bee.batch();
        if batch.put(key.as_bytes(), b"new").is_ok() && batch.del(b"33").is_ok() {
            let _ = batch.flush();
        }
    }
}

/// Does everything there is to do.
pub fn exercise_trie(blocks: Vec<Vec<u8>>) {
    let length = blocks.len() as u64;
    let feed = MemoryFeed::of(blocks);
    let trie = Trie::new(feed.clone());
    let _ = trie.header();
    for options in [
        ListOptions::default(),
        ListOptions { reverse: true, ..ListOptions::default() },
        ListOptions { shallow: true, ..ListOptions::default() },
    ] {
        let listed = trie.head().list("", options).unwrap().take_while(Result::is_ok).count() as u64;
        assert!(listed <= length, "{listed} entries in {length} blocks");
    }
    for since in [1, length / 2, length] {
        let Ok(diff) = trie.diff(since, "") else { continue };
        let changes = diff.take_while(Result::is_ok).count() as u64;
        assert!(changes <= 2 * length, "{changes} changes in {length} blocks");
    }
    let _ = trie.head().history(0).take_while(Result::is_ok).count();
    for key in ["", "a", "k1", "d1/k2", "d1", "/k3/"] {
        let _ = trie.get(key);
        let mut trie = Trie::new(feed.clone());
        let _ = trie.put(key, b"new");
        let mut trie = Trie::new(feed.clone());
        let _ = trie.del(key);
    }
}

//! A trie of ours and one of JavaScript: the same operations write the same blocks, and what either wrote the
//! other reads and goes on from. `golden/trie.js` made `golden/trie.json`.

mod feed_kit;
mod foreign_kit;
mod javascript_kit;

use cloudpal_data::DataError;
use cloudpal_data::trie::{Change, Entry, ListOptions, PutOptions, Trie};
use feed_kit::{MemoryFeed, Random, assert_digest, hex, hex_list, unhex_list};
use foreign_kit::exercise_trie as exercise;
use javascript_kit::Peer;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/trie.json")).unwrap()
}

enum Op {
    Put(String, Option<Vec<u8>>),
    Del(String),
}

fn operation(next: &mut Random, keys: u64) -> Op {
    let mut key = format!("k{}", next.below(keys));
    for _ in 0..next.below(3) {
        key = format!("d{}/{key}", next.below(4));
    }
    if next.below(10) == 0 {
        key = format!("/{key}");
    }
    if next.below(3) == 0 {
        return Op::Del(key);
    }
    let value = if next.below(20) == 0 { None } else { Some(format!("v{}", next.below(1000)).into_bytes()) };
    Op::Put(key, value)
}

fn run(trie: &mut Trie<MemoryFeed>, ops: &Value) {
    let number = |name: &str| ops[name].as_u64().unwrap();
    let (mut next, mut done) = (Random(number("seed") as u32), 0);
    while done < number("count") {
        let size = 1 + next.below(number("batch"));
        let mut batch = trie.batch().unwrap();
        for _ in 0..size {
            match operation(&mut next, number("keys")) {
                Op::Put(key, value) => {
                    batch.put_with(&key, value.as_deref(), PutOptions::default()).unwrap();
                }
                Op::Del(key) => _ = batch.del(&key).unwrap(),
            }
        }
        batch.flush().unwrap();
        done += size;
    }
}

fn rows(entries: impl Iterator<Item = Result<Entry, DataError>>) -> Value {
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            json!([entry.seq(), entry.key(), entry.value().map(hex), entry.flags()])
        })
        .collect()
}

fn differences(changes: impl Iterator<Item = Result<Change, DataError>>) -> Value {
    changes
        .map(|change| {
            let Change { left, right } = change.unwrap();
            let key = left.as_ref().or(right.as_ref()).unwrap().key().to_owned();
            json!([key, left.map(|left| left.seq()), right.map(|right| right.seq())])
        })
        .collect()
}

fn written(scenario: &Value) -> Trie<MemoryFeed> {
    let mut trie = Trie::new(MemoryFeed::default());
    run(&mut trie, &scenario["ops"]);
    trie
}

#[test]
fn the_same_operations_write_the_same_blocks() {
    for scenario in golden()["scenarios"].as_array().unwrap() {
        let name = scenario["name"].as_str().unwrap();
        let trie = written(scenario);
        if let Some(blocks) = scenario["blocks"].as_array() {
            for (at, (ours, theirs)) in trie.feed().blocks.iter().zip(blocks).enumerate() {
                assert_eq!(hex(ours), theirs.as_str().unwrap(), "{name}: block {at}");
            }
        }
        assert_digest(name, &trie.feed().blocks, scenario["digest"].as_str().unwrap());
    }
}

#[test]
fn what_is_read_is_what_javascript_reads() {
    for scenario in golden()["scenarios"].as_array().unwrap() {
        let trie = Trie::new(written(scenario).feed().clone());
        let head = trie.head();
        let list = |prefix: &str, options| rows(head.list(prefix, options).unwrap());
        let all = ListOptions::default();
        assert_eq!(list("", all), scenario["list"]);
        assert_eq!(list("d1", ListOptions { reverse: true, ..all }), scenario["reverse"]);
        assert_eq!(list("", ListOptions { shallow: true, ..all }), scenario["shallow"]);
        assert_eq!(list("d1/k1", ListOptions { below_only: true, ..all }), scenario["gt"]);
        let half = scenario["half"].as_u64().unwrap();
        let past = trie.checkout(half).unwrap();
        assert_eq!(rows(past.list("", all).unwrap()), scenario["past"]);
        assert_eq!(differences(trie.diff(half, "").unwrap()), scenario["diff"]);
        assert_eq!(differences(trie.diff(1, "d2").unwrap()), scenario["diff_prefix"]);
        assert_eq!(head.history(0).count() as u64, trie.version() - 1);
    }
}

#[test]
fn hidden_keys_flags_and_the_header_are_as_in_javascript() {
    let golden = &golden()["hidden"];
    let mut trie = Trie::with(MemoryFeed::default(), Some(b"mine".to_vec()), Some("sub".into()));
    let put = |trie: &mut Trie<MemoryFeed>, key: &str, value: &[u8], hidden, flags| {
        trie.put_with(key, Some(value), PutOptions { hidden, flags }).unwrap();
    };
    put(&mut trie, "a", b"seen", false, 0);
    put(&mut trie, "a", b"hidden", true, 3);
    assert_eq!(trie.head().get_hidden("a").unwrap().unwrap().value(), Some(&b"hidden"[..]));
    assert_eq!(trie.get("a").unwrap().unwrap().value(), Some(&b"seen"[..]));
    put(&mut trie, "b/c", b"more", false, 5);
    let mut batch = trie.batch().unwrap();
    assert!(batch.del_with("a", true).unwrap());
    batch.flush().unwrap();
    put(&mut trie, "x", b"again", true, 0);
    assert_eq!(hex_list(&trie.feed().blocks), golden["blocks"]);
    assert_eq!(rows(trie.list("").unwrap()), golden["list"]);
    let hidden = ListOptions { hidden: true, ..ListOptions::default() };
    assert_eq!(rows(trie.head().list("", hidden).unwrap()), golden["hidden"]);
    let header = trie.header().unwrap();
    assert_eq!((header.metadata, header.subtype), (Some(b"mine".to_vec()), Some("sub".to_owned())));
}

#[test]
fn javascript_goes_on_from_ours_and_we_from_theirs() {
    let Some(mut peer) = Peer::start("trie.js", &[]) else { return };
    let mut trie = Trie::new(MemoryFeed::default());
    for round in 0..4 {
        let ops = json!({ "seed": 90 + round, "count": 120, "keys": 15, "batch": 1 + round * 2 });
        let ours = rows(trie.list("").unwrap());
        let answer = peer.ask(&json!({ "blocks": hex_list(&trie.feed().blocks), "ops": ops }));
        assert_eq!(answer["before"], ours, "JavaScript reads what we wrote");
        run(&mut trie, &ops);
        assert_eq!(hex_list(&trie.feed().blocks), answer["blocks"]);
        trie = Trie::new(MemoryFeed::of(unhex_list(&answer["blocks"])));
        assert_eq!(rows(trie.list("").unwrap()), answer["list"]);
        run(&mut trie, &json!({ "seed": 900 + round, "count": 60, "keys": 30, "batch": 3 }));
    }
}

#[test]
fn every_version_is_as_a_map_says_and_watches_tell_of_changes() {
    let (mut next, mut model) = (Random(5), BTreeMap::new());
    let mut trie = Trie::new(MemoryFeed::default());
    let mut versions: Vec<(u64, BTreeMap<String, Vec<u8>>)> = Vec::new();
    let mut watch = trie.watch("d1");
    for _ in 0..800 {
        let below = |model: &BTreeMap<String, Vec<u8>>| -> Vec<(String, Vec<u8>)> {
            let below = model.iter().filter(|(key, _)| key.starts_with("d1/"));
            below.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        let before = below(&model);
        let key = format!("d{}/k{}", next.below(3), next.below(60));
        let value = format!("{}", next.below(1 << 30)).into_bytes();
        if next.below(3) > 0 {
            trie.put(&key, &value).unwrap();
            model.insert(key, value);
        } else {
            assert_eq!(trie.del(&key).unwrap(), model.remove(&key).is_some());
        }
        if before != below(&model) {
            assert!(watch.poll(&trie).unwrap().is_some());
        }
        // A deletion may write a neighbour again.
        let _ = watch.poll(&trie).unwrap();
        assert_eq!(watch.poll(&trie).unwrap(), None);
        if next.below(40) == 0 {
            versions.push((trie.version(), model.clone()));
        }
    }
    for (version, model) in versions {
        let snapshot = trie.checkout(version).unwrap();
        let entries = snapshot.list("", ListOptions::default()).unwrap().map(Result::unwrap);
        let listed: BTreeMap<_, _> =
            entries.map(|entry| (entry.key().to_owned(), entry.value().unwrap().to_vec())).collect();
        assert_eq!(listed, model);
        for (key, value) in &model {
            assert_eq!(snapshot.get(key).unwrap().unwrap().value().unwrap(), value);
        }
        assert_eq!(snapshot.get("d1").unwrap(), None);
    }
}

#[test]
fn a_sparse_reader_goes_on_where_it_was() {
    let golden = golden();
    let scenario = &golden["scenarios"][3];
    let sparse = Trie::new(written(scenario).feed().sparse());
    let mut list = loop {
        match sparse.list("") {
            Err(DataError::NotHere { index }) => sparse.feed().download(index),
            list => break list.unwrap(),
        }
    };
    let mut entries = Vec::new();
    loop {
        match list.next() {
            Some(Err(DataError::NotHere { index })) => sparse.feed().download(index),
            Some(entry) => entries.push(entry),
            None => break,
        }
    }
    assert_eq!(rows(entries.into_iter()), scenario["list"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_blocks(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..12)) {
        exercise(blocks);
    }

    #[test]
    fn changed_blocks(
        changes in prop::collection::vec((any::<Index>(), any::<Index>(), any::<u8>()), 1..30),
        swaps in prop::collection::vec((any::<Index>(), any::<Index>()), 0..4),
    ) {
        let mut trie = Trie::new(MemoryFeed::default());
        run(&mut trie, &json!({ "seed": 3, "count": 80, "keys": 8, "batch": 3 }));
        let mut blocks = trie.feed().blocks.clone();
        for (block, byte, value) in changes {
            let at = 1 + block.index(blocks.len() - 1);
            let byte = byte.index(blocks[at].len());
            blocks[at][byte] = value;
        }
        for (one, other) in swaps {
            let (one, other) = (one.index(blocks.len()), other.index(blocks.len()));
            blocks.swap(one, other);
        }
        exercise(blocks);
    }

    /// Every bucket of every block leads to any earlier block.
    #[test]
    fn buckets_that_lead_anywhere(
        keys in prop::collection::vec("[ab]{1,2}(/[ab]{1,2})?", 2..9),
        leads in prop::collection::vec((0..70u8, 0..32u8, 1..9u8), 0..60),
    ) {
        let mut trie = Trie::new(MemoryFeed::default());
        for key in &keys {
            trie.put(key, b"v").unwrap();
        }
        let mut blocks = trie.feed().blocks[..1].to_vec();
        for (at, key) in keys.iter().enumerate() {
            let seq = at as u8 + 1;
            let mut buckets = vec![70];
            for (place, digit, to) in leads.iter().filter(|lead| lead.2 < seq) {
                let bits = 1u32 << (digit % 28);
                buckets.push(*place);
                let mut rest = bits;
                while rest >= 0x80 {
                    buckets.push(rest as u8 | 0x80);
                    rest >>= 7;
                }
                buckets.extend([rest as u8, *to]);
            }
            let field = |number: u8, bytes: &[u8]| {
                let count = [(bytes.len() & 0x7f) as u8 | 0x80, (bytes.len() >> 7) as u8];
                [&[number << 3 | 2][..], &count, bytes].concat()
            };
            blocks.push([field(1, key.as_bytes()), field(3, &buckets)].concat());
        }
        exercise(blocks);
    }
}

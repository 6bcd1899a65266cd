//! A bee of ours and one of JavaScript: the same operations write the same blocks, and what either wrote the
//! other reads and goes on from. `golden/bee.js` made `golden/bee.json`.

mod feed_kit;
mod javascript_kit;

use cloudpal_data::DataError;
use cloudpal_data::bee::{
    Batch, Bee, Change, Encoding, Entry, Json, KeyRange, Metadata, Options, Snapshot, Sub, Utf8, Written,
};
use feed_kit::{MemoryFeed, Random, assert_digest, hex, hex_list, unhex, unhex_list};
use javascript_kit::Peer;
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn golden() -> Value {
    serde_json::from_str(include_str!("../golden/bee.json")).unwrap()
}

struct Ops {
    seed: u32,
    count: u64,
    keys: u64,
    batch: u64,
}

impl Ops {
    fn of(value: &Value) -> Ops {
        let number = |name: &str| value[name].as_u64().unwrap();
        Ops {
            seed: number("seed") as u32,
            count: number("count"),
            keys: number("keys"),
            batch: number("batch"),
        }
    }

    fn json(&self) -> Value {
        json!({ "seed": self.seed, "count": self.count, "keys": self.keys, "batch": self.batch })
    }
}

fn operate(batch: &mut Batch<'_, MemoryFeed>, next: &mut Random, keys: u64) {
    let key = format!("k{}", next.below(keys)).into_bytes();
    let kind = next.below(10);
    let value = if next.below(20) == 0 { None } else { Some(format!("v{}", next.below(1000)).into_bytes()) };
    if kind < 5 {
        batch.put_if(&key, value.as_deref(), |_| true).unwrap();
        return;
    }
    if kind < 8 {
        batch.del(&key).unwrap();
        return;
    }
    let even = next.below(2);
    if kind < 9 {
        batch.put_if(&key, value.as_deref(), |old| old.is_none_or(|old| old.seq() % 2 == even)).unwrap();
    } else {
        batch.del_if(&key, |old| old.seq() % 2 == even).unwrap();
    }
}

fn run(bee: &mut Bee<MemoryFeed>, ops: &Ops) {
    let (mut next, mut done) = (Random(ops.seed), 0);
    while done < ops.count {
        let size = 1 + next.below(ops.batch);
        let mut batch = bee.batch();
        (0..size).for_each(|_| operate(&mut batch, &mut next, ops.keys));
        batch.flush().unwrap();
        done += size;
    }
}

fn rows(entries: impl Iterator<Item = Result<Entry, DataError>>) -> Value {
    entries
        .map(|entry| {
            let entry = entry.unwrap();
            json!([entry.seq(), hex(entry.key()), entry.value().map(hex)])
        })
        .collect()
}

fn differences(changes: impl Iterator<Item = Result<Change, DataError>>) -> Value {
    changes
        .map(|change| {
            let Change { left, right } = change.unwrap();
            let key = hex(left.as_ref().or(right.as_ref()).unwrap().key());
            json!([left.map(|left| left.seq()), right.map(|right| right.seq()), key])
        })
        .collect()
}

fn written(scenario: &Value) -> Bee<MemoryFeed> {
    let options =
        Options { always_duplicate: scenario["always_duplicate"].as_bool().unwrap(), ..Options::default() };
    let mut bee = Bee::with(MemoryFeed::default(), options);
    run(&mut bee, &Ops::of(&scenario["ops"]));
    bee
}

#[test]
fn the_same_operations_write_the_same_blocks() {
    for scenario in golden()["scenarios"].as_array().unwrap() {
        let name = scenario["name"].as_str().unwrap();
        let bee = written(scenario);
        if let Some(blocks) = scenario["blocks"].as_array() {
            for (at, (ours, theirs)) in bee.feed().blocks.iter().zip(blocks).enumerate() {
                assert_eq!(hex(ours), theirs.as_str().unwrap(), "{name}: block {at}");
            }
        }
        assert_digest(name, &bee.feed().blocks, scenario["digest"].as_str().unwrap());
    }
}

#[test]
fn what_is_read_is_what_javascript_reads() {
    for scenario in golden()["scenarios"].as_array().unwrap() {
        let written = written(scenario);
        // Nothing of the writer's memory helps the reader.
        let bee = Bee::new(written.feed().clone());
        let half = scenario["half"].as_u64().unwrap();
        assert_eq!(rows(bee.range(KeyRange::all())), scenario["entries"]);
        let range = KeyRange::all().gt(b"k3").lte(b"k6").limit(7).reverse();
        assert_eq!(rows(bee.range(range)), scenario["reverse"]);
        assert_eq!(rows(bee.checkout(half).unwrap().range(KeyRange::all())), scenario["past"]);
        let since = scenario["since"].as_u64().unwrap();
        assert_eq!(differences(bee.diff(since, KeyRange::all()).unwrap()), scenario["diff"]);
        let range = KeyRange::all().gte(b"k2").lt(b"k7");
        assert_eq!(differences(bee.diff(half, range).unwrap()), scenario["diff_range"]);
        let deleted: Value = bee
            .head()
            .history(0)
            .filter_map(|change| match change.unwrap() {
                Written::Del(entry) => Some(json!(entry.seq())),
                Written::Put(_) => None,
            })
            .collect();
        assert_eq!(deleted, scenario["history"]);
        for entry in bee.range(KeyRange::all()) {
            let entry = entry.unwrap();
            assert_eq!(bee.get(entry.key()).unwrap(), Some(entry));
        }
        assert_eq!(bee.get(b"nobody").unwrap(), None);
    }
}

#[test]
fn subs_and_the_header_are_as_in_javascript() {
    let golden = golden();
    let metadata = Metadata { content_feed: Some(vec![7; 32]), user_data: Some(b"mine".to_vec()) };
    let options = Options { metadata: Some(metadata.clone()), ..Options::default() };
    let mut bee = Bee::with(MemoryFeed::default(), options);
    let users = Sub::new(b"users");
    let roles = users.sub(b"roles");
    let odd = Sub::separated(b"odd", b"!!");
    bee.put(&users.key(b"ada"), b"one").unwrap();
    bee.put(&roles.key(b"ada"), b"two").unwrap();
    bee.put(&odd.key(b"x"), b"three").unwrap();
    // JavaScript gives the subs of a sub the separator of the whole bee.
    bee.put(&[odd.prefix(), b"in\0y"].concat(), b"four").unwrap();
    bee.put(b"users", b"five").unwrap();
    let blocks: Vec<String> = bee.feed().blocks.iter().map(|block| hex(block)).collect();
    assert_eq!(json!(blocks), golden["subs"]["blocks"]);
    assert_eq!(bee.header().unwrap().metadata, Some(metadata));
    assert!(bee.header().unwrap().is_bee());
    let within = |sub: &Sub| -> Value {
        let rows = bee.range(sub.range(KeyRange::all())).map(|entry| {
            let entry = entry.unwrap();
            json!([entry.seq(), hex(sub.strip(entry.key()).unwrap()), entry.value().map(hex)])
        });
        rows.collect()
    };
    assert_eq!(within(&users), golden["subs"]["users"]);
    assert_eq!(within(&roles), golden["subs"]["roles"]);
}

#[test]
fn javascript_goes_on_from_ours_and_we_from_theirs() {
    let Some(mut peer) = Peer::start("bee.js", &[]) else { return };
    let mut bee = Bee::new(MemoryFeed::default());
    for round in 0..6 {
        let ops = Ops { seed: 70 + round, count: 150, keys: 60, batch: 1 + u64::from(round) * 3 };
        let ours = rows(bee.range(KeyRange::all()));
        let answer = peer.ask(&json!({ "blocks": hex_list(&bee.feed().blocks), "ops": ops.json() }));
        assert_eq!(answer["before"], ours, "JavaScript reads what we wrote");
        // We write the same, and are where they are.
        run(&mut bee, &ops);
        assert_eq!(hex_list(&bee.feed().blocks), answer["blocks"]);
        // And a fresh reader and writer of theirs goes on.
        bee = Bee::new(MemoryFeed::of(unhex_list(&answer["blocks"])));
        assert_eq!(rows(bee.range(KeyRange::all())), answer["entries"]);
        let ops = Ops { seed: 700 + round, count: 80, keys: 90, batch: 4 };
        run(&mut bee, &ops);
    }
}

/// Repeats what `ask` does, and gets the block that it lacks, until it has all it needs.
fn with_downloads<T>(bee: &Bee<MemoryFeed>, mut ask: impl FnMut() -> Result<T, DataError>) -> T {
    loop {
        match ask() {
            Ok(found) => return found,
            Err(DataError::NotHere { index }) => bee.feed().download(index),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_sparse_reader_needs_few_blocks_and_goes_on_where_it_was() {
    let golden = golden();
    let scenario = &golden["scenarios"][4];
    let whole = written(scenario);
    let sparse = Bee::new(whole.feed().sparse());
    let missing = |bee: &Bee<MemoryFeed>| bee.feed().missing.borrow().len();
    let all = missing(&sparse);
    let key = unhex(scenario["entries"][200][1].as_str().unwrap());
    let found = with_downloads(&sparse, || sparse.get(&key)).unwrap();
    assert_eq!(found.key(), key);
    assert!(all - missing(&sparse) < 40, "{} blocks for one entry", all - missing(&sparse));
    let since = whole.version() - 3;
    let mut diff = sparse.diff(since, KeyRange::all()).unwrap();
    let mut changes = Vec::new();
    while let Some(change) = with_downloads(&sparse, || diff.next().transpose()) {
        changes.push(Ok(change));
    }
    assert_eq!(differences(changes.into_iter()), differences(whole.diff(since, KeyRange::all()).unwrap()));
    let mut range = sparse.range(KeyRange::all());
    let mut entries = Vec::new();
    while let Some(entry) = with_downloads(&sparse, || range.next().transpose()) {
        entries.push(Ok(entry));
    }
    assert_eq!(rows(entries.into_iter()), scenario["entries"]);
}

#[test]
fn a_writer_that_lacks_a_block_or_whose_feed_fails_has_changed_nothing() {
    let whole = written(&golden()["scenarios"][3]);
    let mut bee = Bee::new(whole.feed().sparse());
    let mut wanted = 0;
    loop {
        match bee.put(b"k7", b"new") {
            Ok(_) => break,
            Err(DataError::NotHere { index }) => bee.feed().download(index),
            Err(error) => panic!("{error}"),
        }
        wanted += 1;
    }
    assert!(wanted > 1);
    let mut direct = whole;
    direct.put(b"k7", b"new").unwrap();
    assert_eq!(bee.feed().blocks, direct.feed().blocks);
    // A failed append, a dropped batch, and a batch that lacks a block leave no trace either.
    direct.feed_mut().broken = true;
    assert_eq!(direct.put(b"k1", b"lost"), Err(DataError::Poisoned));
    direct.feed_mut().broken = false;
    let mut batch = direct.batch();
    batch.put(b"k1", b"dropped").unwrap();
    batch.del(b"k2").unwrap();
    assert_eq!(batch.get(b"k1").unwrap().unwrap().value(), Some(&b"dropped"[..]));
    assert_eq!(batch.get(b"k2").unwrap(), None);
    drop(batch);
    direct.put(b"k3", b"kept").unwrap();
    let mut fresh = Bee::new(MemoryFeed::of(bee.feed().blocks.clone()));
    fresh.put(b"k3", b"kept").unwrap();
    assert_eq!(direct.feed().blocks, fresh.feed().blocks);
}

#[test]
fn watches_tell_of_changes_and_of_nothing_else() {
    let mut bee = Bee::new(MemoryFeed::default());
    bee.put(b"a", b"1").unwrap();
    let mut watch = bee.watch(KeyRange::prefix(b"a"));
    let (entry, mut key) = bee.get_and_watch(b"b").unwrap();
    assert_eq!((entry, watch.poll(&bee).unwrap(), key.poll(&bee).unwrap()), (None, None, None));
    bee.put(b"b", b"2").unwrap();
    assert_eq!(watch.poll(&bee).unwrap(), None);
    assert_eq!(key.poll(&bee).unwrap().unwrap().unwrap().value(), Some(&b"2"[..]));
    bee.put(b"ab", b"3").unwrap();
    assert_eq!((watch.poll(&bee).unwrap(), key.poll(&bee).unwrap()), (Some(3), None));
    bee.del(b"b").unwrap();
    assert_eq!((watch.poll(&bee).unwrap(), key.poll(&bee).unwrap()), (None, Some(None)));
    // After a cut the blocks of the other fork count no more.
    let feed = bee.feed_mut();
    feed.blocks.truncate(2);
    feed.fork += 1;
    assert_eq!(watch.poll(&bee).unwrap(), Some(5));
    bee.put(b"c", b"4").unwrap();
    let keys: Vec<Vec<u8>> = bee.range(KeyRange::all()).map(|entry| entry.unwrap().key().to_vec()).collect();
    assert_eq!(keys, [b"a", b"c"]);
}

#[test]
fn unlinked_blocks_are_not_missed() {
    for scenario in golden()["scenarios"].as_array().unwrap() {
        let bee = written(scenario);
        let gaps = bee.unlinked(bee.version()).unwrap();
        let cleared = MemoryFeed::of(bee.feed().blocks.clone());
        cleared.missing.borrow_mut().extend(gaps.iter().flat_map(Clone::clone));
        let kept = cleared.blocks.len() - cleared.missing.borrow().len();
        assert!(kept < 2 * scenario["entries"].as_array().unwrap().len() + 10);
        let mut bee = Bee::new(cleared);
        assert_eq!(rows(bee.range(KeyRange::all())), scenario["entries"]);
        run(&mut bee, &Ops { seed: 5, count: 100, keys: 50, batch: 3 });
    }
}

#[test]
fn encodings_are_those_of_javascript() {
    let value = json!({ "a": [1, "x\n"] });
    let bytes = Json::<Value>::encode(&value).unwrap();
    assert_eq!(bytes, br#"{"a":[1,"x\n"]}"#);
    assert_eq!(Json::<Value>::decode(&bytes).unwrap(), value);
    assert_eq!(Utf8::decode(b"a\xff").unwrap(), "a\u{fffd}");
}

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// A model: the standard library's sorted map, with every version.
#[test]
fn every_version_is_as_a_sorted_map_says() {
    let (mut next, mut model) = (Random(99), BTreeMap::new());
    let mut bee = Bee::new(MemoryFeed::default());
    let mut versions: Vec<(u64, Model)> = Vec::new();
    for _ in 0..1500 {
        let key = format!("{}", next.below(300)).into_bytes();
        let value = format!("{}", next.below(1 << 20)).into_bytes();
        if next.below(5) < 3 {
            bee.put(&key, &value).unwrap();
            model.insert(key, value);
        } else {
            assert_eq!(bee.del(&key).unwrap().is_some(), model.remove(&key).is_some());
        }
        if next.below(50) == 0 {
            versions.push((bee.version(), model.clone()));
        }
    }
    let listed = |snapshot: Snapshot<'_, MemoryFeed>, range: KeyRange| -> Vec<(Vec<u8>, Vec<u8>)> {
        let entries = snapshot.range(range).map(Result::unwrap);
        entries.map(|entry| (entry.key().to_vec(), entry.value().unwrap().to_vec())).collect()
    };
    for (version, model) in versions {
        let snapshot = bee.checkout(version).unwrap();
        let all: Vec<_> = model.clone().into_iter().collect();
        assert_eq!(listed(snapshot, KeyRange::all()), all);
        for _ in 0..20 {
            let (start, end) = (format!("{}", next.below(400)), format!("{}", next.below(400)));
            if start > end {
                continue;
            }
            let (start, end) = (start.into_bytes(), end.into_bytes());
            let range = KeyRange::all().gte(&start).lt(&end);
            let mut wanted: Vec<_> = model.range(start..end).map(|(k, v)| (k.clone(), v.clone())).collect();
            assert_eq!(listed(snapshot, range.clone()), wanted);
            wanted.reverse();
            assert_eq!(listed(snapshot, range.reverse()), wanted);
        }
    }
}

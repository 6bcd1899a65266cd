//! Bees, drives, tries and consumers on the cores of a store: what they wrote is there when it is opened
//! again, in plain and in encrypted cores, and what is purged is gone.

use cloudpal_data::DataError;
use cloudpal_data::bee::{Bee, KeyRange};
use cloudpal_data::bus::{Consumer, Cursor, Cursors, Polled, Start};
use cloudpal_data::core::{Core, Durability, Open};
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::drive::{Drive, Keep, contents_manifest};
use cloudpal_data::feed::Feed;
use cloudpal_data::manifest::Manifest;
use cloudpal_data::storage::MemoryDisk;
use cloudpal_data::store::{Options, RootKey, Store};
use cloudpal_data::trie::Trie;
use std::sync::Arc;

fn store(disk: &MemoryDisk, time: u8) -> Store {
    Store::open(Arc::new(disk.clone()), RootKey([7; 32]), [time; 32], Options::default()).unwrap()
}

fn pair(seed: u8) -> KeyPair {
    KeyPair::from_seed(&[seed; 32])
}

fn core(store: &Store, seed: u8) -> Core {
    store.core(&Open::pair(pair(seed))).unwrap().with_durability(Durability::Buffered)
}

/// The two cores of a drive; the second one follows from the first.
fn drive(store: &Store, encryption: Option<[u8; 32]>) -> Drive<Core, Core> {
    let manifest = Manifest::single(pair(9).public_key());
    let contents = contents_manifest(&manifest, &manifest.key()).unwrap();
    let open = |open: Open| {
        let open = encryption.map_or(open.clone(), |key| open.encrypted(key));
        store.core(&open).unwrap().with_durability(Durability::Buffered)
    };
    let db = open(Open::pair(pair(9)));
    let blobs = open(Open::manifest(contents).with_pair(pair(9)));
    Drive::new(db, blobs, None)
}

fn contents(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 + (at >> 8)) as u8).collect()
}

#[test]
fn a_drive_is_there_when_its_store_is_opened_again() {
    for encryption in [None, Some([5; 32])] {
        let disk = MemoryDisk::default();
        let large = contents(700_000);
        {
            let store = store(&disk, 1);
            let mut drive = drive(&store, encryption);
            drive.put("/a", &contents(10)).unwrap();
            drive.put("/dir/large", &large).unwrap();
            drive.put("/dir/large", &large[..500_000]).unwrap();
            drive.put("/last", b"").unwrap();
            store.sync().unwrap();
        }
        let store = store(&disk, 2);
        let mut drive = drive(&store, encryption);
        assert_eq!(drive.get("/a").unwrap().unwrap(), contents(10));
        assert_eq!(drive.get("/dir/large").unwrap().unwrap(), &large[..500_000]);
        let past = drive.checkout(3).unwrap();
        assert_eq!(past.get("/dir/large").unwrap().unwrap(), large);
        for part in [0..1, 65_535..65_537, 100_000..300_001, 699_999..800_000] {
            let read: Vec<u8> = past
                .reader("/dir/large", part.clone())
                .unwrap()
                .unwrap()
                .flat_map(|chunk| chunk.unwrap())
                .collect();
            assert_eq!(read, &large[part.start as usize..(part.end as usize).min(large.len())]);
        }
        let purged = drive.purge(Keep::Since(drive.version())).unwrap();
        assert_eq!(purged.blocks, 11);
        assert!(matches!(drive.checkout(3).unwrap().get("/dir/large"), Err(DataError::NotHere { .. })));
        assert_eq!(drive.get("/dir/large").unwrap().unwrap(), &large[..500_000]);
    }
}

#[test]
fn bees_and_tries_go_on_when_their_store_is_opened_again() {
    let disk = MemoryDisk::default();
    for time in 1..5u8 {
        let store = store(&disk, time);
        let (mut bee, mut trie) = (Bee::new(core(&store, 1)), Trie::new(core(&store, 2)));
        for at in 0..200u32 {
            let key = format!("{:04}", at * 7919 % 1009);
            bee.put(key.as_bytes(), &[time]).unwrap();
            trie.put(&format!("a/{key}"), &[time]).unwrap();
        }
        let mut batch = bee.batch();
        for at in 0..50 * u32::from(time) {
            batch.put(format!("batch{at}").as_bytes(), &[time]).unwrap();
        }
        batch.flush().unwrap();
        store.sync().unwrap();
        let entries: Vec<_> = bee.range(KeyRange::all()).map(Result::unwrap).collect();
        assert_eq!(entries.len(), 200 + 50 * usize::from(time));
        assert!(entries.iter().all(|entry| entry.value() == Some(&[time][..])));
        assert_eq!(trie.list("a").unwrap().map(Result::unwrap).count(), 200);
        assert!(bee.feed().verify().unwrap().is_empty());
    }
}

/// Cursors in the small values of a store.
struct InStore(Store);

impl Cursors for InStore {
    fn load(&mut self, consumer: &str) -> Result<Option<Cursor>, DataError> {
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let kept = self.0.meta(consumer.as_bytes());
        Ok(kept.map(|kept| Cursor { fork: number(&kept[..8]), next: number(&kept[8..]) }))
    }

    fn store(&mut self, consumer: &str, cursor: Cursor) -> Result<(), DataError> {
        let bytes = [cursor.fork.to_le_bytes(), cursor.next.to_le_bytes()].concat();
        self.0.set_meta(consumer.as_bytes(), Some(&bytes))
    }
}

#[test]
fn consumers_go_on_when_their_store_is_opened_again_and_are_told_of_cuts() {
    let disk = MemoryDisk::default();
    let mut seen = Vec::new();
    for time in 1..4u8 {
        let store = store(&disk, time);
        let log = core(&store, 3);
        log.append(&[&[time, 1], &[time, 2]], Durability::Synced).unwrap();
        let mut cursors = InStore(store.clone());
        let mut consumer = Consumer::open("audit", &log, Start::First, &mut cursors).unwrap();
        let Polled::Messages(messages) = consumer.poll(&log, 10, 1000).unwrap() else { panic!() };
        // The second is not committed the first time, and comes again.
        let until = if time == 1 { 1 } else { messages.len() };
        seen.extend(messages[..until].iter().map(|message| message.block.clone()));
        consumer.commit(messages[until - 1].index, &mut cursors).unwrap();
    }
    assert_eq!(seen, [[1, 1], [1, 2], [2, 1], [2, 2], [3, 1], [3, 2]]);
    let store = store(&disk, 4);
    let log = core(&store, 3);
    let mut cursors = InStore(store.clone());
    let mut consumer = Consumer::open("audit", &log, Start::First, &mut cursors).unwrap();
    log.truncate(2, log.fork() + 1).unwrap();
    assert_eq!(consumer.poll(&log, 10, 1000).unwrap(), Polled::Cut { next: 2 });
}

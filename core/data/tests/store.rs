//! A store and its cores: sealed, bounded, shared by sessions; whole cores and parts of other people's.

mod golden_kit;

use cloudpal_data::core::{Core, Durability, Open};
use cloudpal_data::corestore::Corestore;
use cloudpal_data::feed::Feed;
use cloudpal_data::manifest::Manifest;
use cloudpal_data::proof::{Request, UpgradeWanted, Wanted};
use cloudpal_data::replication::Replica;
use cloudpal_data::storage::{Disk, MemoryDisk};
use cloudpal_data::store::{Options, RootKey, Store};
use cloudpal_data::{DataError, StorageError};
use golden_kit::{block, pair};
use std::sync::Arc;

const SMALL: Options = Options {
    segment_bytes: 20_000,
    dirty_bytes: 30_000,
    log_bytes: 60_000,
    cache_bytes: 20_000,
    loaded_cores: 8,
};

fn open_at(disk: &MemoryDisk, time: u8, options: Options) -> Result<Store, DataError> {
    Store::open(Arc::new(disk.clone()), RootKey([7; 32]), [time; 32], options)
}

fn fill(core: &Core, from: u64, to: u64) {
    for index in from..to {
        let block = block(index, index * 37 % 101);
        assert_eq!(core.append(&[&block], Durability::Buffered).unwrap(), index + 1);
    }
}

fn is_filled(core: &Core, to: u64) {
    assert_eq!(core.length(), to);
    for index in 0..to {
        assert_eq!(core.get(index).unwrap(), block(index, index * 37 % 101), "block {index}");
    }
}

#[test]
fn what_is_appended_is_there_also_later() {
    let disk = MemoryDisk::default();
    for options in [SMALL, Options::default()] {
        let disk =
            if options.segment_bytes == SMALL.segment_bytes { disk.clone() } else { MemoryDisk::default() };
        let mut known = 0;
        for time in 0..6 {
            let store = open_at(&disk, time, options).unwrap();
            let core = store.core(&Open::pair(pair(1))).unwrap();
            is_filled(&core, known);
            fill(&core, known, known + 700);
            known += 700;
            core.sync().unwrap();
            is_filled(&core, known);
            assert!(core.verify().unwrap().is_empty());
            let info = core.info().unwrap();
            assert_eq!(
                (info.synced_length, info.contiguous_length, info.stored_blocks),
                (known, known, known)
            );
            if time % 2 == 0 {
                store.checkpoint().unwrap();
            }
        }
    }
}

#[test]
fn nothing_is_on_the_disk_in_the_clear() {
    let disk = MemoryDisk::default();
    let store = open_at(&disk, 1, SMALL).unwrap();
    let core = store.core(&Open::pair(pair(1))).unwrap();
    let secret = b"a rather secret sentence".repeat(3);
    for _ in 0..500 {
        core.append(&[&secret], Durability::Buffered).unwrap();
    }
    core.set_user_data(b"secret name", Some(b"secret value"), Durability::Synced).unwrap();
    store.set_meta(b"secret alias", Some(b"secret thing")).unwrap();
    store.checkpoint().unwrap();
    store.compact().unwrap();
    let manifest = Manifest::single(pair(1).public_key()).encode();
    let leaf = core.node(0).unwrap().unwrap().hash;
    let needles: [&[u8]; 9] = [
        b"secret",
        core.key(),
        core.discovery_key(),
        &manifest[8..],
        &pair(1).public_key(),
        &leaf,
        &[1; 32],
        &[7; 32],
        b"sentence",
    ];
    for (file, bytes) in disk.image() {
        assert!(file < 1 << 32);
        for needle in needles {
            assert!(!bytes.windows(needle.len()).any(|found| found == needle), "in file {file}");
        }
    }
    drop((core, store));
    assert_eq!(
        Store::open(Arc::new(disk.clone()), RootKey([8; 32]), [3; 32], SMALL).unwrap_err(),
        DataError::WrongKey
    );
    let core = open_at(&disk, 2, SMALL).unwrap().core(&Open::pair(pair(1))).unwrap();
    assert_eq!(core.user_data(b"secret name").unwrap().unwrap(), b"secret value");
}

/// All that a peer would ask for, one after the other.
fn copy(from: &Core, to: &Core, blocks: impl Iterator<Item = u64>) {
    let (ours, theirs) = (Replica::shown(to).length, Replica::shown(from).length);
    if theirs > ours {
        let upgrade = Some(UpgradeWanted { start: ours, length: theirs - ours });
        let proof = from.prove(&Request { upgrade, ..Request::default() }).unwrap();
        let gained = to.accept(&proof, Replica::manifest(from).as_ref()).unwrap();
        assert_eq!(gained.length, Some(theirs));
    }
    for index in blocks {
        let wanted = Wanted { index, nodes: to.missing_nodes(index * 2) };
        let proof = from.prove(&Request { block: Some(wanted), ..Request::default() }).unwrap();
        assert_eq!(to.accept(&proof, None).unwrap().block, Some(index));
    }
}

#[test]
fn a_sparse_copy_of_another_core() {
    let (source, disk) = (MemoryDisk::default(), MemoryDisk::default());
    let source = open_at(&source, 1, SMALL).unwrap();
    let writer = source.core(&Open::pair(pair(1))).unwrap();
    fill(&writer, 0, 900);
    writer.sync().unwrap();
    let store = open_at(&disk, 1, SMALL).unwrap();
    let reader = store.core(&Open::key(*writer.key())).unwrap();
    assert_eq!(reader.length(), 0);
    copy(&writer, &reader, (0..900).filter(|index| index % 7 == 3));
    fill(&writer, 900, 1000);
    writer.sync().unwrap();
    copy(&writer, &reader, 990..995);
    for time in 2..4 {
        assert_eq!(reader.length(), 1000);
        for index in 0..1000 {
            let here = if index < 900 { index % 7 == 3 } else { (990..995).contains(&index) };
            let expected =
                if here { Ok(block(index, index * 37 % 101)) } else { Err(DataError::NotHere { index }) };
            assert_eq!(reader.get(index), expected);
        }
        assert_eq!(reader.first_missing(990, 1000).unwrap(), Some(995));
        assert_eq!(reader.words(0, 2).unwrap()[0], (0..32).map(|n| u32::from(n % 7 == 3) << n).sum::<u32>());
        assert_eq!(reader.append(&[b"x"], Durability::Synced), Err(DataError::NotWritable));
        assert!(reader.verify().unwrap().is_empty());
        drop(store.clone());
        let store = open_at(&disk, time, SMALL).unwrap();
        let again = store.core(&Open::key(*writer.key()).existing()).unwrap();
        assert_eq!(again.info().unwrap(), reader.info().unwrap());
    }
    // The rest comes too, and then it serves a third.
    copy(&writer, &reader, (0..1000).filter(|index| !reader.has(*index).unwrap()));
    is_filled(&reader, 1000);
    assert_eq!(reader.info().unwrap().contiguous_length, 1000);
    let third = open_at(&MemoryDisk::default(), 1, SMALL).unwrap().core(&Open::key(*writer.key())).unwrap();
    copy(&reader, &third, 0..1000);
    is_filled(&third, 1000);
    // What is not proved is not stored.
    let wanted = Wanted { index: 5, nodes: 0 };
    let mut proof = reader.prove(&Request { block: Some(wanted), ..Request::default() }).unwrap();
    proof.block.as_mut().unwrap().value.push(1);
    third.clear(5, 6).unwrap();
    assert!(matches!(third.accept(&proof, None), Err(DataError::BadProof(_))));
    assert_eq!(third.get(5), Err(DataError::NotHere { index: 5 }));
}

#[test]
fn clearing_and_cutting_give_space_back() {
    let disk = MemoryDisk::default();
    let store = open_at(&disk, 1, SMALL).unwrap();
    let core = store.core(&Open::pair(pair(1))).unwrap();
    let other = store.core(&Open::pair(pair(2))).unwrap();
    for n in 0..100u8 {
        core.append(&[&[n; 2000], &[n]], Durability::Buffered).unwrap();
        other.append(&[&[n; 100]], Durability::Buffered).unwrap();
    }
    core.sync().unwrap();
    other.sync().unwrap();
    let full = store.usage().unwrap().disk_bytes;
    assert!(full > 200_000);
    core.clear(0, 180).unwrap();
    store.compact().unwrap();
    let cleared = store.usage().unwrap();
    assert!(cleared.disk_bytes * 2 < full, "{cleared:?} of {full}");
    let check = |core: &Core, other: &Core| {
        for n in 0..100u8 {
            assert_eq!(other.get(u64::from(n)).unwrap(), [n; 100]);
            let here = n >= 90;
            assert_eq!(core.get(u64::from(n) * 2).is_ok(), here);
            assert_eq!(core.has(u64::from(n) * 2 + 1).unwrap(), here);
        }
        assert_eq!(core.get(199).unwrap(), [99]);
        assert!(core.verify().unwrap().is_empty());
    };
    check(&core, &other);
    drop((core, other, store));
    let store = open_at(&disk, 2, SMALL).unwrap();
    let (core, other) =
        (store.core(&Open::pair(pair(1))).unwrap(), store.core(&Open::pair(pair(2))).unwrap());
    check(&core, &other);
    core.truncate(10, 1).unwrap();
    other.truncate(0, 1).unwrap();
    store.compact().unwrap();
    store.compact().unwrap();
    assert!(store.usage().unwrap().disk_bytes < 30_000, "{:?}", store.usage());
    store.remove(core.key()).unwrap();
    assert_eq!(core.get(0), Err(DataError::NoSuchCore));
    assert_eq!(store.keys().len(), 1);
    drop(store);
    assert_eq!(open_at(&disk, 3, SMALL).unwrap().keys(), vec![*other.key()]);
}

#[test]
fn snapshots_keep_their_length_and_say_what_they_lost() {
    let store = open_at(&MemoryDisk::default(), 1, SMALL).unwrap();
    let core = store.core(&Open::pair(pair(1))).unwrap();
    fill(&core, 0, 10);
    let snapshot = core.snapshot().unwrap();
    fill(&core, 10, 20);
    assert_eq!((snapshot.length(), core.length()), (10, 20));
    assert_eq!(snapshot.get(10), Err(DataError::OutOfBounds { index: 10, length: 10 }));
    core.truncate(5, 1).unwrap();
    core.append(&[&b"else"[..]; 10], Durability::Synced).unwrap();
    assert_eq!(snapshot.get(4).unwrap(), block(4, 4 * 37 % 101));
    assert_eq!(snapshot.get(5), Err(DataError::SnapshotLost { index: 5 }));
    assert_eq!((snapshot.length(), snapshot.fork(), core.fork()), (10, 0, 1));
}

#[test]
fn encrypted_blocks() {
    let disk = MemoryDisk::default();
    let store = open_at(&disk, 1, SMALL).unwrap();
    let core = store.core(&Open::pair(pair(1)).encrypted([9; 32])).unwrap();
    fill(&core, 0, 50);
    core.sync().unwrap();
    is_filled(&core, 50);
    let blind = store.core(&Open::key(*core.key())).unwrap();
    assert_eq!(blind.get(3).unwrap().len(), 3 * 37 + 8 - 101);
    let sizes: Vec<u64> = (0..50).map(|index| index * 37 % 101).collect();
    assert_eq!(core.info().unwrap().byte_length, sizes.iter().sum::<u64>());
    assert_eq!(core.seek(sizes[..7].iter().sum::<u64>() + 2).unwrap(), (7, 2));
}

#[test]
fn several_threads_share_one_sync() {
    let disk = MemoryDisk::default();
    let store = open_at(&disk, 1, Options::default()).unwrap();
    std::thread::scope(|scope| {
        for seed in 1..=8 {
            let core = store.core(&Open::pair(pair(seed))).unwrap();
            scope.spawn(move || {
                for index in 0..200 {
                    core.append(&[&block(index, index * 37 % 101)], Durability::Synced).unwrap();
                    assert_eq!(core.info().unwrap().synced_length, index + 1);
                }
            });
        }
    });
    drop(store);
    let store = open_at(&disk, 2, Options::default()).unwrap();
    for seed in 1..=8 {
        is_filled(&store.core(&Open::pair(pair(seed))).unwrap(), 200);
    }
}

#[test]
fn rot_is_found_and_healed_from_a_peer() {
    let (disk, options) = (MemoryDisk::default(), Options { cache_bytes: 0, ..SMALL });
    let source = open_at(&MemoryDisk::default(), 1, options).unwrap();
    let writer = source.core(&Open::pair(pair(1))).unwrap();
    fill(&writer, 0, 2000);
    writer.sync().unwrap();
    let store = open_at(&disk, 1, options).unwrap();
    let reader = store.core(&Open::key(*writer.key())).unwrap();
    copy(&writer, &reader, 0..2000);
    store.checkpoint().unwrap();
    let (mut hurt, mut healed) = (0, 0);
    let sizes: Vec<(u64, u64)> =
        disk.files().unwrap().into_iter().map(|file| (file, disk.len(file).unwrap())).collect();
    for (file, size) in sizes.into_iter().filter(|(file, _)| *file != 0) {
        for offset in (100..size).step_by(5_003) {
            disk.rot(file, offset, 4);
            let damage = reader.verify().unwrap();
            if damage.is_empty() {
                continue;
            }
            hurt += 1;
            reader.clear_damaged(&damage).unwrap();
            let lost: Vec<u64> =
                damage.blocks.iter().cloned().flatten().filter(|i| !reader.has(*i).unwrap()).collect();
            healed += lost.len();
            copy(&writer, &reader, lost.into_iter());
            assert!(reader.verify().unwrap().is_empty());
            is_filled(&reader, 2000);
        }
    }
    assert!(hurt > 5 && healed > hurt, "{hurt} times, {healed} blocks");
}

#[test]
fn a_full_disk_is_told_and_reads_go_on() {
    let disk = cloudpal_data::storage::RecordingDisk::default();
    let store = Store::open(Arc::new(disk.clone()), RootKey([7; 32]), [1; 32], SMALL).unwrap();
    let core = store.core(&Open::pair(pair(1))).unwrap();
    let mut kept = 0;
    for room in (0..20_000).step_by(997) {
        disk.set_room(Some(room));
        let error = loop {
            match core.append(&[&block(kept, kept * 37 % 101)], Durability::Synced) {
                Ok(length) => kept = length,
                Err(error) => break error,
            }
        };
        assert_eq!(error, DataError::Storage(StorageError::Full));
        is_filled(&core, kept);
        disk.set_room(None);
        fill(&core, kept, kept + 3);
        kept += 3;
    }
    core.sync().unwrap();
    drop((core, store));
    let store = Store::open(Arc::new(disk), RootKey([7; 32]), [2; 32], SMALL).unwrap();
    is_filled(&store.core(&Open::pair(pair(1))).unwrap(), kept);
}

#[test]
fn who_may_open_what() {
    let store = open_at(&MemoryDisk::default(), 1, SMALL).unwrap();
    let core = store.core(&Open::pair(pair(1))).unwrap();
    core.append(&[b"block"], Durability::Synced).unwrap();
    assert_eq!(core.truncate(0, 0), Err(DataError::BadRequest("a fork that is not above the present one")));
    assert_eq!(core.get(1), Err(DataError::OutOfBounds { index: 1, length: 1 }));
    let huge = vec![0; cloudpal_data::core::MAX_BLOCK + 1];
    assert!(matches!(core.append(&[&huge], Durability::Buffered), Err(DataError::TooLarge(_))));
    let manifest = Manifest::single(pair(1).public_key());
    let wrong = Open::manifest(manifest).with_pair(pair(2));
    assert!(matches!(store.core(&wrong), Err(DataError::NotWritable)));
    assert!(matches!(store.core(&Open::key([3; 32]).existing()), Err(DataError::NoSuchCore)));
    let reader = store.core(&Open::key(*core.key())).unwrap();
    assert_eq!(reader.get(0).unwrap(), b"block");
    assert_eq!(reader.append(&[b"x"], Durability::Synced), Err(DataError::NotWritable));
    let compat = store.core(&Open::compat(pair(1))).unwrap();
    assert_ne!(compat.key(), core.key());
    compat.append(&[b"block"], Durability::Synced).unwrap();
    assert!(compat.verify().unwrap().is_empty());
}

#[test]
fn named_cores_are_those_of_corestore() {
    let named = &golden_kit::golden()["named"];
    let disk = MemoryDisk::default();
    let corestore =
        Corestore::open(open_at(&disk, 1, SMALL).unwrap(), golden_kit::hash(&named["primary_key"])).unwrap();
    let rows = golden_kit::list(&named["cores"]);
    for row in &rows {
        let path = golden_kit::list(&row["path"]);
        let at =
            path.iter().fold(corestore.clone(), |at, part| at.namespace(part.as_str().unwrap().as_bytes()));
        let core = at.get(row["name"].as_str().unwrap().as_bytes()).unwrap();
        assert_eq!(*core.key(), golden_kit::hash(&row["key"]));
        assert_eq!(*core.discovery_key(), golden_kit::hash(&row["discovery_key"]));
        core.append(&[b"block"], Durability::Synced).unwrap();
    }
    drop(corestore);
    // The primary key of a store stays what it was.
    let corestore = Corestore::open(open_at(&disk, 2, SMALL).unwrap(), [99; 32]).unwrap();
    let names = corestore.names().unwrap();
    assert_eq!(names.len(), rows.len());
    for row in &rows {
        let key = golden_kit::hash(&row["key"]);
        let found = names.iter().find(|named| named.key == key).unwrap();
        assert_eq!(found.name, row["name"].as_str().unwrap().as_bytes());
        assert_eq!(found.namespace, golden_kit::hash(&row["namespace"]));
        assert_eq!(corestore.store().find(&golden_kit::hash(&row["discovery_key"])), Some(key));
    }
    assert_eq!(corestore.get(b"a").unwrap().get(0).unwrap(), b"block");
}

/// The workload of the golden store: every kind of record, some before a checkpoint and some after it.
fn write_golden(disk: &MemoryDisk) {
    let store = open_at(disk, 1, SMALL).unwrap();
    let core = store.core(&Open::pair(pair(1))).unwrap();
    fill(&core, 0, 40);
    core.sync().unwrap();
    core.set_user_data(b"cursor", Some(b"7"), Durability::Synced).unwrap();
    let compat = store.core(&Open::compat(pair(2)).encrypted([9; 32])).unwrap();
    fill(&compat, 0, 5);
    compat.truncate(3, 1).unwrap();
    store.set_meta(b"alias", Some(b"value")).unwrap();
    let gone = store.core(&Open::pair(pair(3))).unwrap();
    gone.append(&[b"gone"], Durability::Synced).unwrap();
    store.remove(gone.key()).unwrap();
    store.checkpoint().unwrap();
    core.clear(10, 20).unwrap();
    let reader = store.core(&Open::key(Open::pair(pair(4)).core_key())).unwrap();
    let source = open_at(&MemoryDisk::default(), 1, SMALL).unwrap();
    let writer = source.core(&Open::pair(pair(4))).unwrap();
    fill(&writer, 0, 9);
    writer.sync().unwrap();
    copy(&writer, &reader, [2, 8].into_iter());
    fill(&core, 40, 45);
    core.sync().unwrap();
}

fn check_golden(store: &Store) {
    let core = store.core(&Open::pair(pair(1)).existing()).unwrap();
    assert_eq!((core.length(), core.info().unwrap().synced_length), (45, 45));
    for index in 0..45 {
        let expected = match index {
            10..20 => Err(DataError::NotHere { index }),
            _ => Ok(block(index, index * 37 % 101)),
        };
        assert_eq!(core.get(index), expected);
    }
    assert_eq!(core.user_data(b"cursor").unwrap().unwrap(), b"7");
    let compat = store.core(&Open::compat(pair(2)).encrypted([9; 32]).existing()).unwrap();
    is_filled(&compat, 3);
    assert_eq!(compat.fork(), 1);
    assert_eq!(store.meta(b"alias").unwrap(), b"value");
    let reader = store.core(&Open::key(Open::pair(pair(4)).core_key()).existing()).unwrap();
    assert_eq!((reader.length(), reader.has(2).unwrap(), reader.has(3).unwrap()), (9, true, false));
    assert_eq!(reader.get(8).unwrap(), block(8, 8 * 37 % 101));
    assert_eq!(store.keys().len(), 3);
    for core in [core, compat, reader] {
        assert!(core.verify().unwrap().is_empty());
    }
}

/// A store as version 1 wrote it is read for ever. `WRITE_GOLDEN=1` makes the file anew: only for a new version.
#[test]
fn the_golden_store_of_version_1() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/store-1.json");
    if std::env::var_os("WRITE_GOLDEN").is_some() {
        let disk = MemoryDisk::default();
        write_golden(&disk);
        let hex = |bytes: &Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let files: serde_json::Map<String, serde_json::Value> =
            disk.image().iter().map(|(file, bytes)| (file.to_string(), hex(bytes).into())).collect();
        std::fs::write(&path, serde_json::to_string_pretty(&files).unwrap() + "\n").unwrap();
    }
    let files: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let files = files.as_object().unwrap().iter();
    let disk =
        MemoryDisk::of(files.map(|(file, hex)| (file.parse().unwrap(), golden_kit::bytes(hex))).collect());
    let store = open_at(&disk, 50, SMALL).unwrap();
    check_golden(&store);
    store.compact().unwrap();
    drop(store);
    check_golden(&open_at(&disk, 51, SMALL).unwrap());
}

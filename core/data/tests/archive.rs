//! A core packed into messages and unpacked into another store: the same core, or refused.

mod golden_kit;

use cloudpal_data::DataError;
use cloudpal_data::core::{Core, Durability, Open};
use cloudpal_data::feed::Feed;
use cloudpal_data::manifest::Manifest;
use cloudpal_data::storage::MemoryDisk;
use cloudpal_data::store::{Options, RootKey, Store};
use golden_kit::{block, pair};
use std::sync::Arc;

fn store(root: u8) -> Store {
    Store::open(Arc::new(MemoryDisk::default()), RootKey([root; 32]), [root; 32], Options::default()).unwrap()
}

fn write(core: &Core, to: u64) {
    for index in core.length()..to {
        core.append(&[&block(index, index * 37 % 101)], Durability::Buffered).unwrap();
    }
    core.sync().unwrap();
}

fn packed(core: &Core) -> Vec<Vec<u8>> {
    let mut pack = core.pack().unwrap();
    std::iter::from_fn(|| pack.message().unwrap()).collect()
}

/// Of somebody who knows no more than the manifest.
fn reader(store: &Store) -> Core {
    store.core(&Open::manifest(Manifest::single(pair(1).public_key()))).unwrap()
}

#[test]
fn any_length_is_the_same_afterwards_and_can_be_written_on() {
    for length in [0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 53, 200] {
        let (from, to) = (store(1), store(2));
        let core = from.core(&Open::pair(pair(1)).encrypted([9; 32])).unwrap();
        write(&core, length);
        let copy = reader(&to);
        let blocks: Vec<u64> =
            packed(&core).iter().filter_map(|message| copy.unpack(message).unwrap()).collect();
        assert_eq!(blocks, (0..length).collect::<Vec<_>>());
        to.sync().unwrap();
        let copy = to.core(&Open::pair(pair(1)).encrypted([9; 32])).unwrap();
        assert_eq!(copy.signed().unwrap(), core.signed().unwrap());
        assert!(copy.verify().unwrap().is_empty());
        write(&copy, length + 3);
        for index in 0..length + 3 {
            assert_eq!(copy.get(index).unwrap(), block(index, index * 37 % 101));
        }
    }
}

#[test]
fn a_core_with_gaps_a_fork_and_a_compat_core() {
    let (from, to) = (store(1), store(2));
    let core = from.core(&Open::pair(pair(1))).unwrap();
    write(&core, 100);
    core.truncate(60, 3).unwrap();
    write(&core, 90);
    for (start, end) in [(0, 1), (5, 17), (31, 33), (64, 70), (89, 90)] {
        core.clear(start, end).unwrap();
    }
    let copy = reader(&to);
    packed(&core).iter().for_each(|message| {
        copy.unpack(message).unwrap();
    });
    assert_eq!((copy.fork(), copy.length()), (3, 90));
    for index in 0..90 {
        assert_eq!(copy.has(index).unwrap(), core.has(index).unwrap(), "block {index}");
        assert_eq!(copy.get(index).ok(), core.get(index).ok(), "block {index}");
    }
    let old = from.core(&Open::compat(pair(2))).unwrap();
    write(&old, 5);
    let copy = to.core(&Open::key(pair(2).public_key())).unwrap();
    packed(&old).iter().for_each(|message| {
        copy.unpack(message).unwrap();
    });
    assert_eq!(copy.get(4).unwrap(), old.get(4).unwrap());
}

#[test]
fn what_is_written_meanwhile_is_not_packed_and_a_cut_is_told() {
    let (from, to) = (store(1), store(2));
    let core = from.core(&Open::pair(pair(1))).unwrap();
    write(&core, 13);
    let (copy, mut pack) = (reader(&to), core.pack().unwrap());
    for grown in 14.. {
        let Some(message) = pack.message().unwrap() else { break };
        copy.unpack(&message).unwrap();
        write(&core, grown);
    }
    assert_eq!((copy.length(), core.length()), (13, 27));
    assert!((0..13).all(|index| copy.get(index) == core.get(index)));
    let mut pack = core.pack().unwrap();
    core.truncate(20, 1).unwrap();
    assert!(matches!(pack.message(), Err(DataError::SnapshotLost { .. })));
}

#[test]
fn every_bit_counts() {
    let (from, to) = (store(1), store(2));
    let core = from.core(&Open::pair(pair(1))).unwrap();
    write(&core, 6);
    let copy = reader(&to);
    for message in packed(&core) {
        for at in 0..message.len() * 8 {
            let mut spoiled = message.clone();
            spoiled[at / 8] ^= 1 << (at % 8);
            assert!(copy.unpack(&spoiled).is_err(), "bit {at} of {} bytes", message.len());
        }
        assert!(copy.unpack(&message[..message.len() - 1]).is_err());
        copy.unpack(&message).unwrap();
    }
    assert_eq!(copy.get(5).unwrap(), core.get(5).unwrap());
}

/// What the owner brings is not what a peer claims: the writer that takes it in goes on writing.
#[test]
fn a_writer_that_unpacks_its_own_core_is_not_behind() {
    let (from, to) = (store(1), store(2));
    let core = from.core(&Open::pair(pair(1))).unwrap();
    write(&core, 20);
    let copy = to.core(&Open::pair(pair(1))).unwrap();
    packed(&core).iter().for_each(|message| {
        copy.unpack(message).unwrap();
    });
    assert_eq!(copy.frozen(), Ok(None));
    write(&copy, 25);
    assert_eq!(copy.get(24).unwrap(), block(24, 24 * 37 % 101));
}

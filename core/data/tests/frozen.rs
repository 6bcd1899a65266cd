//! Two histories of one key: a restored backup is found before it writes, and what is signed twice is frozen.

mod golden_kit;

use cloudpal_data::DataError;
use cloudpal_data::core::{Core, Durability, Frozen, Open};
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::replication::{Event, Options, Replication, StoredCores};
use cloudpal_data::storage::MemoryDisk;
use cloudpal_data::store::{self, RootKey, Store};
use cloudpal_data::stream::Entropy;
use golden_kit::block;
use std::sync::Arc;

struct House {
    replication: Replication,
    cores: StoredCores,
    number: u64,
    events: Vec<Event>,
    refused: usize,
}

fn open(disk: &MemoryDisk, time: u8) -> Store {
    Store::open(Arc::new(disk.clone()), RootKey([9; 32]), [time; 32], store::Options::default()).unwrap()
}

fn pair() -> KeyPair {
    KeyPair::from_seed(&[1; 32])
}

impl House {
    fn new(disk: &MemoryDisk, time: u8, open_core: &Open) -> Self {
        let mut cores = StoredCores::new(open(disk, time));
        let number = cores.open(open_core).unwrap();
        let mut replication = Replication::new(KeyPair::from_seed(&[time; 32]), Options::default());
        replication.share(number, cores.core(number).unwrap());
        replication.download(number, 0, None);
        House { replication, cores, number, events: Vec::new(), refused: 0 }
    }

    fn writer(disk: &MemoryDisk, time: u8) -> Self {
        House::new(disk, time, &Open::pair(pair()))
    }

    fn reader(time: u8) -> Self {
        let key = Open::pair(pair()).core_key();
        House::new(&MemoryDisk::default(), time, &Open::key(key))
    }

    fn core(&self) -> &Core {
        self.cores.core(self.number).unwrap()
    }

    fn append(
        &mut self,
        numbers: std::ops::Range<u64>,
        size: u64,
        durability: Durability,
    ) -> Result<u64, DataError> {
        let mut length = 0;
        for index in numbers {
            length = self.core().append(&[&block(index, size)], durability)?;
        }
        self.replication.changed(self.number);
        Ok(length)
    }

    fn frozen(&self) -> Option<Frozen> {
        self.core().frozen().unwrap()
    }

    fn was_told(&self) -> bool {
        self.events.iter().any(|event| matches!(event, Event::Frozen { .. }))
    }
}

/// Lets both talk over a new connection until they have nothing more to say, or one has refused the other.
fn meet(a: &mut House, b: &mut House, time: u8) {
    let entropy = |n: u8| Entropy::from_bytes(&std::array::from_fn(|at| at as u8 ^ time.wrapping_mul(7) ^ n));
    let ends = [a.replication.connect(true, entropy(1), 0), b.replication.connect(false, entropy(100), 0)];
    let mut open = true;
    while open {
        open = false;
        for turn in 0..2 {
            let (from, to, at) = if turn == 0 { (&mut *a, &mut *b, 0) } else { (&mut *b, &mut *a, 1) };
            let Ok(bytes) = from.replication.outgoing(ends[at], Vec::new(), 0, &mut from.cores) else {
                continue;
            };
            if bytes.is_empty() {
                continue;
            }
            open = true;
            if to.replication.receive(ends[1 - at], &bytes, 0, &mut to.cores).is_err() {
                to.refused += 1;
            }
        }
    }
    a.replication.disconnect(ends[0]);
    b.replication.disconnect(ends[1]);
    for house in [a, b] {
        house.events.extend(house.replication.take_events());
    }
}

/// A writer whose peer has ten blocks, and its disk as it was at four.
fn restored() -> (House, MemoryDisk) {
    let disk = MemoryDisk::default();
    let mut writer = House::writer(&disk, 1);
    let mut reader = House::reader(2);
    writer.append(0..4, 50, Durability::Synced).unwrap();
    let backup = MemoryDisk::of(disk.image());
    writer.append(4..10, 50, Durability::Synced).unwrap();
    meet(&mut writer, &mut reader, 1);
    assert_eq!(reader.core().info().unwrap().contiguous_length, 10);
    assert_eq!((writer.frozen(), reader.frozen()), (None, None));
    (reader, backup)
}

#[test]
fn a_restored_backup_catches_up_before_it_writes() {
    let (mut reader, backup) = restored();
    let mut writer = House::writer(&backup, 3);
    meet(&mut writer, &mut reader, 2);
    assert_eq!(writer.frozen(), Some(Frozen::Behind { fork: 0, length: 10 }));
    assert!(writer.was_told() && !reader.was_told());
    let refused = writer.append(10..11, 50, Durability::Synced);
    assert!(matches!(refused, Err(DataError::Behind { length: 10 })), "{refused:?}");
    assert!(matches!(writer.core().truncate(2, 1), Err(DataError::Behind { .. })));
    // Also when it is opened again.
    drop(writer);
    let mut writer = House::writer(&backup, 4);
    assert!(writer.append(10..11, 50, Durability::Buffered).is_err());
    meet(&mut writer, &mut reader, 3);
    assert_eq!(writer.core().catch_up(), Ok(true));
    assert_eq!(writer.append(10..12, 50, Durability::Synced), Ok(12));
    meet(&mut writer, &mut reader, 4);
    assert_eq!((writer.frozen(), reader.frozen()), (None, None));
    for index in 0..12 {
        assert_eq!(writer.core().get(index).unwrap(), block(index, 50));
        assert_eq!(reader.core().get(index).unwrap(), block(index, 50));
    }
    assert!(reader.core().verify().unwrap().is_empty());
}

#[test]
fn what_a_restored_backup_has_not_signed_it_drops() {
    let (mut reader, backup) = restored();
    let mut writer = House::writer(&backup, 3);
    writer.append(100..103, 70, Durability::Buffered).unwrap();
    meet(&mut writer, &mut reader, 2);
    assert_eq!(writer.frozen(), Some(Frozen::Behind { fork: 0, length: 10 }));
    assert!(matches!(writer.core().sync(), Err(DataError::Behind { .. })));
    assert_eq!(writer.core().signed().unwrap().unwrap().head.length, 4);
    assert_eq!(writer.core().catch_up(), Ok(false));
    drop(writer);
    let mut writer = House::writer(&backup, 4);
    assert_eq!(writer.core().info().unwrap().length, 4);
    assert!(writer.append(4..5, 70, Durability::Synced).is_err());
    meet(&mut writer, &mut reader, 3);
    assert_eq!(writer.core().catch_up(), Ok(true));
    assert_eq!(writer.append(10..11, 50, Durability::Synced), Ok(11));
    meet(&mut writer, &mut reader, 4);
    assert_eq!(reader.core().get(10).unwrap(), block(10, 50));
    assert_eq!((reader.frozen(), reader.refused), (None, 0));
}

#[test]
fn two_signed_histories_freeze_the_core() {
    for (ours, theirs) in [(6, 6), (6, 9), (9, 6)] {
        let (mut one, mut other) =
            (House::writer(&MemoryDisk::default(), 1), House::writer(&MemoryDisk::default(), 2));
        one.append(0..ours, 50, Durability::Synced).unwrap();
        other.append(100..100 + theirs, 50, Durability::Synced).unwrap();
        let mut reader = House::reader(3);
        meet(&mut one, &mut reader, 1);
        assert_eq!(reader.frozen(), None);
        // Whoever writes asks at once; a reader when something does not fit.
        meet(&mut reader, &mut other, 2);
        assert!(other.frozen().is_some(), "{ours} and {theirs}");
        meet(&mut reader, &mut other, 3);
        let conflict = matches!(reader.frozen(), Some(Frozen::Conflict { fork: 0, .. }));
        assert!(conflict && reader.was_told(), "{ours} and {theirs}: {:?}", reader.frozen());
        assert!(matches!(other.frozen(), Some(Frozen::Conflict { .. })), "{:?}", other.frozen());
        let refused = other.append(200..201, 50, Durability::Synced);
        assert!(matches!(refused, Err(DataError::Conflict { .. })), "{refused:?}");
        assert!(matches!(other.core().catch_up(), Err(DataError::Conflict { .. })));
        assert_eq!(other.core().get(0).unwrap(), block(100, 50));
        // Nothing more is taken of either history, and who has the first one is told as well.
        one.append(50..52, 50, Durability::Synced).unwrap();
        meet(&mut one, &mut reader, 4);
        assert_eq!(reader.core().info().unwrap().length, ours);
        assert_eq!(reader.core().get(0).unwrap(), block(0, 50));
        meet(&mut one, &mut other, 5);
        assert!(matches!(one.frozen(), Some(Frozen::Conflict { .. })));
    }
}

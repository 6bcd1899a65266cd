//! Power cut after every single operation on the disk, with the last writes torn, lost or out of order: what
//! was acknowledged as synced is there, nothing half-done is visible, and no length of a fork is ever signed
//! twice for different blocks.

mod golden_kit;

use cloudpal_data::core::{Core, Durability};
use cloudpal_data::manifest::Manifest;
use cloudpal_data::signature::Verifier;
use cloudpal_data::storage::{Memory, Recording, Storage};
use cloudpal_data::{DataError, StorageError};
use golden_kit::{block, pair};
use proptest::prelude::*;
use std::collections::HashMap;

fn verifier(compat: bool) -> Verifier {
    let manifest = Manifest::single(pair(1).public_key());
    if compat {
        Verifier::compat(pair(1).public_key())
    } else {
        Verifier::new(manifest.key(), manifest).unwrap()
    }
}

fn open<S: Storage>(storage: S) -> Result<Core<S>, DataError> {
    Core::open(storage, verifier(false), Some(pair(1)))
}

#[derive(Clone, Debug)]
enum Act {
    Append(Vec<Vec<u8>>, Durability),
    Sync,
    /// To this share of the length, in 256ths.
    Truncate(u8),
}

fn act<S: Storage>(core: &mut Core<S>, act: &Act) -> Result<(), DataError> {
    match act {
        Act::Append(blocks, durability) => {
            let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
            core.append(&blocks, *durability).map(drop)
        }
        Act::Sync => core.sync(),
        Act::Truncate(share) => {
            let head = core.head();
            let (length, fork) = (head.length * u64::from(*share) / 256, head.fork + 1);
            core.truncate(length, fork)
        }
    }
}

type State = (u64, Vec<Vec<u8>>);

fn state<S: Storage>(core: &Core<S>) -> State {
    let blocks = (0..core.head().length).map(|index| core.get(index).unwrap());
    (core.head().fork, blocks.collect())
}

/// What was signed, by fork and length: a second signature must be over the same tree.
#[derive(Clone, Default)]
struct Signatures(HashMap<(u64, u64), [u8; 32]>);

impl Signatures {
    fn note<S: Storage>(&mut self, core: &Core<S>) {
        let Some(signed) = core.signed() else { return };
        let head = &signed.head;
        let first = *self.0.entry((head.fork, head.length)).or_insert(head.hash());
        assert_eq!(first, head.hash(), "fork {} has two histories of length {}", head.fork, head.length);
    }
}

struct Moment {
    operations: usize,
    state: State,
    synced: bool,
    signatures: Signatures,
}

/// Runs the acts, then cuts the power after each operation. Answers how many disks were looked at.
fn every_crash(acts: &[Act]) -> usize {
    let mut core = open(Recording::default()).unwrap();
    let mut signatures = Signatures::default();
    let moment = |core: &Core<Recording>, signatures: &mut Signatures| {
        signatures.note(core);
        let synced = core.signed().map_or(core.head().length == 0, |signed| signed.head == *core.head());
        let (operations, state) = (core.storage().count(), state(core));
        Moment { operations, state, synced, signatures: signatures.clone() }
    };
    let mut moments = vec![moment(&core, &mut signatures)];
    for next in acts {
        act(&mut core, next).unwrap();
        moments.push(moment(&core, &mut signatures));
    }
    let recording = core.into_storage();
    let mut disks = 0;
    for count in 0..=recording.count() {
        let done = moments.iter().rposition(|moment| moment.operations <= count);
        let safe = moments.iter().rposition(|moment| moment.operations <= count && moment.synced);
        // What was done by then, and what was being done.
        let last = done.map_or(0, |done| (done + 1).min(moments.len() - 1));
        let possible = &moments[safe.unwrap_or(0)..=last];
        let known = done.map(|done| moments[done].signatures.clone()).unwrap_or_default();
        for disk in recording.after_crash(count) {
            disks += 1;
            recovers(disk, possible, known.clone(), count);
        }
    }
    disks
}

fn recovers(disk: Memory, possible: &[Moment], mut signatures: Signatures, count: usize) {
    let mut core = open(Recording::on(disk)).unwrap_or_else(|error| panic!("after {count}: {error}"));
    let found = state(&core);
    // An act may be two steps, appended and then synced; both states are the same.
    assert!(
        possible.iter().any(|moment| moment.state == found),
        "after {count}: {found:?} was never acknowledged"
    );
    core.verify().unwrap();
    signatures.note(&core);
    // The writer goes another way from here: if it could sign anew what was signed, it would be found now.
    for n in 0..3u8 {
        core.append(&[b"another", &[n]], Durability::Synced).unwrap();
        signatures.note(&core);
    }
    let (longer, recording) = (state(&core), core.into_storage());
    // And a second crash, while it recovers and goes on.
    for second in 0..=recording.count() {
        let last = recording.after_crash(second).pop().unwrap();
        let core = open(last).unwrap();
        let again = state(&core);
        assert!(again.0 == found.0 && again.1.starts_with(&found.1) && longer.1.starts_with(&again.1));
        signatures.note(&core);
    }
}

fn some_acts() -> Vec<Act> {
    let blocks =
        |from: u64, count: u64| (from..from + count).map(|n| block(n, (n * 37) % 101)).collect::<Vec<_>>();
    vec![
        Act::Append(blocks(0, 1), Durability::Synced),
        Act::Append(blocks(1, 1), Durability::Buffered),
        Act::Append(blocks(2, 5), Durability::Buffered),
        Act::Append(blocks(7, 3), Durability::Synced),
        Act::Append(Vec::new(), Durability::Synced),
        Act::Append(blocks(10, 4), Durability::Buffered),
        Act::Truncate(128),
        Act::Append(blocks(30, 2), Durability::Buffered),
        Act::Append(blocks(40, 2), Durability::Buffered),
        Act::Sync,
        Act::Truncate(0),
        Act::Append(vec![vec![9; 3000]], Durability::Buffered),
        Act::Append(blocks(50, 2), Durability::Synced),
    ]
}

#[test]
fn every_crash_of_a_workload() {
    let disks = every_crash(&some_acts());
    assert!(disks > 100, "only {disks} disks");
    eprintln!("{disks} disks after a crash, and each crashed again");
}

fn any_act() -> impl Strategy<Value = Act> {
    let blocks = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..5);
    let durability = prop_oneof![Just(Durability::Buffered), Just(Durability::Synced)];
    prop_oneof![
        6 => (blocks, durability).prop_map(|(blocks, durability)| Act::Append(blocks, durability)),
        1 => Just(Act::Sync),
        2 => any::<u8>().prop_map(Act::Truncate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_crash_of_any_workload(acts in proptest::collection::vec(any_act(), 1..10)) {
        every_crash(&acts);
    }
}

/// Whatever byte rots: either the same blocks are there, or the core says that it is damaged. It never goes
/// on without what it has signed.
#[test]
fn rot_is_found() {
    let mut core = open(Memory::default()).unwrap();
    for next in some_acts() {
        act(&mut core, &next).unwrap();
    }
    let whole = state(&core);
    let disk = core.into_storage();
    let mut refused = 0;
    for at in 0..disk.bytes.len() {
        let mut rotten = disk.clone();
        rotten.bytes[at] ^= 1 << (at % 8);
        match open(rotten) {
            Ok(core) => assert_eq!(state(&core), whole, "byte {at}"),
            Err(DataError::Damaged { .. } | DataError::WrongManifest) => refused += 1,
            Err(other) => panic!("byte {at}: {other}"),
        }
    }
    assert!(refused * 10 > disk.bytes.len() * 8, "only {refused} of {} are noticed", disk.bytes.len());
}

#[test]
fn rot_under_an_open_core_is_found() {
    let mut core = open(Memory::default()).unwrap();
    core.append(&[b"a block", b"another"], Durability::Synced).unwrap();
    let disk = core.storage().bytes.clone();
    let at = disk.windows(7).position(|bytes| bytes == b"another").unwrap();
    core.storage_mut().bytes[at] ^= 1;
    assert!(matches!(core.get(1), Err(DataError::Damaged { .. })));
    assert!(matches!(core.verify(), Err(DataError::Damaged { .. })));
    assert_eq!(core.get(0).unwrap(), b"a block");
}

#[test]
fn a_full_disk_is_told_and_reads_go_on() {
    for room in 0..400 {
        let mut core = open(Recording::default()).unwrap();
        core.append(&[b"before"], Durability::Synced).unwrap();
        core.storage_mut().room = Some(room);
        let mut kept: Vec<Vec<u8>> = vec![b"before".to_vec()];
        let error = loop {
            match core.append(&[&[7; 30]], Durability::Synced) {
                Ok(_) => kept.push(vec![7; 30]),
                Err(error) => break error,
            }
        };
        assert_eq!(error, DataError::Storage(StorageError::Full));
        assert_eq!(state(&core).1, kept);
        core.storage_mut().room = None;
        core.append(&[b"after"], Durability::Synced).unwrap();
        kept.push(b"after".to_vec());
        let disk = core.into_storage();
        assert_eq!(state(&open(disk).unwrap()).1, kept);
    }
}

#[test]
fn after_a_failed_sync_nothing_is_signed() {
    let mut core = open(Recording::default()).unwrap();
    core.append(&[b"one"], Durability::Synced).unwrap();
    core.storage_mut().syncs_fail = true;
    assert!(matches!(core.append(&[b"two"], Durability::Synced), Err(DataError::Storage(_))));
    core.storage_mut().syncs_fail = false;
    assert_eq!(core.append(&[b"three"], Durability::Synced), Err(DataError::Poisoned));
    assert_eq!(core.sync(), Err(DataError::Poisoned));
    assert_eq!(core.signed().unwrap().head.length, 1);
    assert_eq!(core.get(0).unwrap(), b"one");
    let mut core = open(core.into_storage()).unwrap();
    core.append(&[b"three"], Durability::Synced).unwrap();
    // What cannot be taken back makes the core refuse more, until it is opened anew.
    core.storage_mut().room = Some(5);
    core.storage_mut().truncations_fail = true;
    assert_eq!(core.append(&[b"four"], Durability::Buffered), Err(DataError::Storage(StorageError::Full)));
    assert_eq!(core.append(&[b"four"], Durability::Buffered), Err(DataError::Poisoned));
}

#[test]
fn who_may_open_what() {
    let mut core = open(Memory::default()).unwrap();
    core.append(&[b"block"], Durability::Synced).unwrap();
    assert_eq!(core.truncate(0, 0), Err(DataError::BadRequest("a fork that is not above the present one")));
    assert_eq!(core.get(1), Err(DataError::OutOfBounds { index: 1, length: 1 }));
    let huge = vec![0; cloudpal_data::core::MAX_BLOCK + 1];
    assert!(matches!(core.append(&[&huge], Durability::Buffered), Err(DataError::TooLarge(_))));
    let disk = core.into_storage();
    // Another key, another kind of core, another pair, no core at all, and no pair.
    assert!(Core::open(disk.clone(), verifier(true), Some(pair(1))).is_err());
    assert!(matches!(Core::open(disk.clone(), verifier(false), Some(pair(2))), Err(DataError::NotWritable)));
    let foreign = Memory { bytes: vec![b'x'; 5000] };
    assert!(matches!(open(foreign), Err(DataError::Damaged { .. })));
    let mut reader = Core::open(disk, verifier(false), None).unwrap();
    assert_eq!(reader.get(0).unwrap(), b"block");
    assert_eq!(reader.append(&[b"x"], Durability::Synced), Err(DataError::NotWritable));
    let mut compat = Core::open(Memory::default(), verifier(true), Some(pair(1))).unwrap();
    compat.append(&[b"block"], Durability::Synced).unwrap();
    let compat = Core::open(compat.into_storage(), verifier(true), Some(pair(1))).unwrap();
    compat.verify().unwrap();
}

//! Power cut after every single operation on the disk, with the last writes torn, lost or out of order, over
//! several cores in one store, with checkpoints and compaction: what was acknowledged as synced is there, nothing
//! half-done is visible, and no length of a fork is ever signed twice for different blocks.

mod golden_kit;

use cloudpal_data::core::{Core, Durability, Open};
use cloudpal_data::feed::Feed;
use cloudpal_data::manifest::Manifest;
use cloudpal_data::proof::{Proof, Request, UpgradeWanted, Wanted};
use cloudpal_data::replication::Replica;
use cloudpal_data::storage::{Disk, MemoryDisk, Operation, RecordingDisk};
use cloudpal_data::store::{Options, RootKey, Store};
use cloudpal_data::{DataError, StorageError};
use golden_kit::{block, pair};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

/// Everything happens all the time: new segments, checkpoints, cores that leave memory.
const TINY: Options =
    Options { segment_bytes: 1500, dirty_bytes: 3000, log_bytes: 2500, cache_bytes: 2000, loaded_cores: 2 };
const WRITERS: u8 = 3;
/// The writer of the core that is copied here.
const FOREIGN: u8 = 9;

thread_local!(static TIME: Cell<u64> = const { Cell::new(0) });

fn open(disk: Arc<dyn Disk>) -> Result<Store, DataError> {
    let mut entropy = [0; 32];
    entropy[..8].copy_from_slice(&TIME.replace(TIME.get() + 1).to_le_bytes());
    Store::open(disk, RootKey([7; 32]), entropy, TINY)
}

#[derive(Clone, Debug)]
enum Act {
    Append(u8, Vec<Vec<u8>>, Durability),
    Sync(u8),
    /// To this share of the length, in 256ths.
    Truncate(u8, u8),
    /// From this share of the length on, a quarter of it.
    Clear(u8, u8),
    UserData(u8, u8),
    /// The next proofs of the foreign core.
    Accept(usize),
    Checkpoint,
    Compact,
    SyncStore,
}

impl Act {
    /// All that was done before is on the disk when it answers.
    fn syncs(&self) -> bool {
        !matches!(
            self,
            Act::Append(_, _, Durability::Buffered) | Act::Clear(..) | Act::UserData(..) | Act::Accept(_)
        )
    }
}

/// What a peer sends that has another core: an upgrade, then blocks, in an order of its own.
fn foreign_proofs() -> (Manifest, Vec<Proof>) {
    let store = open(Arc::new(MemoryDisk::default())).unwrap();
    let (writer, reader) = (
        store.core(&Open::pair(pair(FOREIGN))).unwrap(),
        open(Arc::new(MemoryDisk::default()))
            .unwrap()
            .core(&Open::key(*store.keys().first().unwrap()))
            .unwrap(),
    );
    let manifest = Replica::manifest(&writer).unwrap();
    let mut proofs = Vec::new();
    for (length, wanted) in [(7u64, vec![3, 0, 6]), (20, vec![19, 1, 11, 2, 12, 13])] {
        let blocks: Vec<Vec<u8>> = (writer.length()..length).map(|n| block(n, n * 31 % 90)).collect();
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        writer.append(&blocks, Durability::Synced).unwrap();
        let start = reader.length();
        let upgrade = Some(UpgradeWanted { start, length: length - start });
        proofs.push(writer.prove(&Request { upgrade, ..Request::default() }).unwrap());
        reader.accept(proofs.last().unwrap(), Some(&manifest)).unwrap();
        for index in wanted {
            let block = Some(Wanted { index, nodes: reader.missing_nodes(index * 2) });
            proofs.push(writer.prove(&Request { block, ..Request::default() }).unwrap());
            reader.accept(proofs.last().unwrap(), None).unwrap();
        }
    }
    (manifest, proofs)
}

struct Session {
    store: Store,
    writers: Vec<Core>,
    reader: Core,
    accepted: usize,
    foreign: (Manifest, Vec<Proof>),
}

impl Session {
    fn open(disk: Arc<dyn Disk>, foreign: (Manifest, Vec<Proof>)) -> Result<Self, DataError> {
        let store = open(disk)?;
        let writers =
            (1..=WRITERS).map(|seed| store.core(&Open::pair(pair(seed)))).collect::<Result<Vec<_>, _>>()?;
        let reader = store.core(&Open::key(foreign.0.key()))?;
        Ok(Session { store, writers, reader, accepted: 0, foreign })
    }

    fn act(&mut self, act: &Act) -> Result<(), DataError> {
        match act {
            Act::Append(writer, blocks, durability) => {
                let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
                self.writers[*writer as usize].append(&blocks, *durability).map(drop)
            }
            Act::Sync(writer) => self.writers[*writer as usize].sync(),
            Act::Truncate(writer, share) => {
                let core = &self.writers[*writer as usize];
                core.truncate(core.length() * u64::from(*share) / 256, core.fork() + 1)
            }
            Act::Clear(writer, share) => {
                let core = &self.writers[*writer as usize];
                let start = core.length() * u64::from(*share) / 256;
                core.clear(start, start + core.length() / 4)
            }
            Act::UserData(writer, value) => {
                let value = (*value != 0).then_some([*value]);
                let value = value.as_ref().map(|value| &value[..]);
                self.writers[*writer as usize].set_user_data(b"key", value, Durability::Buffered)
            }
            Act::Accept(count) => {
                let end = (self.accepted + count).min(self.foreign.1.len());
                for proof in &self.foreign.1[self.accepted..end] {
                    self.reader.accept(proof, Some(&self.foreign.0))?;
                }
                self.accepted = end;
                Ok(())
            }
            Act::Checkpoint => self.store.checkpoint(),
            Act::Compact => self.store.compact().map(drop),
            Act::SyncStore => self.store.sync(),
        }
    }

    fn cores(&self) -> impl Iterator<Item = &Core> {
        self.writers.iter().chain([&self.reader])
    }
}

/// Of a core: its fork, its blocks, its user data.
type OfCore = (u64, Vec<Option<Vec<u8>>>, Option<Vec<u8>>);
type State = Vec<OfCore>;

fn state_of(core: &Core) -> OfCore {
    let block = |index| match core.get(index) {
        Ok(block) => Some(block),
        Err(DataError::NotHere { .. }) => None,
        Err(error) => panic!("block {index}: {error}"),
    };
    (core.fork(), (0..core.length()).map(block).collect(), core.user_data(b"key").unwrap())
}

fn state(session: &Session) -> State {
    session.cores().map(state_of).collect()
}

/// What was signed, by core, fork and length: a second signature must be over the same tree.
#[derive(Clone, Default)]
struct Signatures(HashMap<([u8; 32], u64, u64), [u8; 32]>);

impl Signatures {
    fn note(&mut self, session: &Session) {
        for core in session.cores() {
            let Some(signed) = core.signed().unwrap() else { continue };
            let head = &signed.head;
            let first = *self.0.entry((*core.key(), head.fork, head.length)).or_insert(head.hash());
            assert_eq!(first, head.hash(), "fork {} has two histories of length {}", head.fork, head.length);
        }
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
    let foreign = foreign_proofs();
    let recording = RecordingDisk::default();
    let mut session = Session::open(Arc::new(recording.clone()), foreign.clone()).unwrap();
    let mut signatures = Signatures::default();
    let empty = state(&session);
    let mut moments =
        vec![Moment { operations: 0, state: empty, synced: true, signatures: Signatures::default() }];
    for act in acts {
        // A proof is a change of its own.
        let single = match act {
            Act::Accept(count) => vec![Act::Accept(1); *count],
            other => vec![other.clone()],
        };
        for act in single {
            session.act(&act).unwrap_or_else(|error| panic!("{act:?}: {error}"));
            signatures.note(&session);
            let (operations, state) = (recording.count(), state(&session));
            let signatures = signatures.clone();
            moments.push(Moment { operations, state, synced: act.syncs(), signatures });
        }
    }
    drop(session);
    let mut disks = 0;
    for count in 0..=recording.count() {
        let done = moments.iter().rposition(|moment| moment.operations <= count).unwrap_or(0);
        let safe =
            moments.iter().rposition(|moment| moment.operations <= count && moment.synced).unwrap_or(0);
        // What was done by then, and what was being done.
        let last = (done + 1).min(moments.len() - 1);
        for disk in recording.after_crash(count) {
            disks += 1;
            recovers(disk, &moments[safe..=last], moments[done].signatures.clone(), &foreign, count);
        }
    }
    disks
}

fn recovers(
    disk: MemoryDisk,
    possible: &[Moment],
    mut signatures: Signatures,
    foreign: &(Manifest, Vec<Proof>),
    count: usize,
) {
    let recording = RecordingDisk::on(&disk);
    let session = Session::open(Arc::new(recording.clone()), foreign.clone());
    let session = session.unwrap_or_else(|error| panic!("after {count}: {error}"));
    let found = state(&session);
    assert!(
        possible.iter().any(|moment| moment.state == found),
        "after {count}: {found:?} was never acknowledged"
    );
    session.cores().for_each(|core| assert!(core.verify().unwrap().is_empty()));
    signatures.note(&session);
    // The writers go another way from here: if one could sign anew what was signed, it would be found now.
    for n in 0..2u8 {
        for core in &session.writers {
            core.append(&[b"another", &[n]], Durability::Synced).unwrap();
        }
        signatures.note(&session);
    }
    let longer = state(&session);
    drop(session);
    // And a second crash, while it recovers and goes on.
    let operations = recording.count();
    for second in [operations / 3, operations / 2, operations] {
        let last = recording.after_crash(second).pop().unwrap();
        let session = Session::open(Arc::new(last), foreign.clone()).unwrap();
        for ((again, found), longer) in state(&session).iter().zip(&found).zip(&longer) {
            assert!(again.0 == found.0 && again.1.starts_with(&found.1) && longer.1.starts_with(&again.1));
        }
        signatures.note(&session);
    }
}

fn blocks(from: u64, count: u64) -> Vec<Vec<u8>> {
    (from..from + count).map(|n| block(n, (n * 37) % 101)).collect()
}

fn some_acts() -> Vec<Act> {
    use Durability::{Buffered, Synced};
    vec![
        Act::Append(0, blocks(0, 1), Synced),
        Act::Append(1, blocks(1, 3), Buffered),
        Act::Append(0, blocks(2, 5), Buffered),
        Act::Accept(3),
        Act::UserData(1, 7),
        Act::Append(0, blocks(7, 3), Synced),
        Act::Append(2, vec![vec![9; 1000]], Buffered),
        Act::Checkpoint,
        Act::Append(2, blocks(20, 8), Buffered),
        Act::Truncate(0, 128),
        Act::Append(0, blocks(30, 2), Buffered),
        Act::Append(1, blocks(40, 2), Buffered),
        Act::Sync(1),
        Act::Accept(20),
        Act::Clear(2, 60),
        Act::SyncStore,
        Act::Compact,
        Act::Truncate(2, 0),
        Act::Append(2, vec![vec![3; 700]; 3], Buffered),
        Act::UserData(1, 0),
        Act::Append(0, blocks(50, 2), Synced),
        Act::Compact,
        Act::Append(1, blocks(60, 2), Buffered),
    ]
}

#[test]
fn every_crash_of_a_workload() {
    let disks = every_crash(&some_acts());
    assert!(disks > 1000, "only {disks} disks");
    eprintln!("{disks} disks after a crash, and each crashed again");
}

fn any_act() -> impl Strategy<Value = Act> {
    let blocks = proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5);
    let durability = prop_oneof![3 => Just(Durability::Buffered), 1 => Just(Durability::Synced)];
    let writer = || 0..WRITERS;
    prop_oneof![
        6 => (writer(), blocks, durability).prop_map(|(writer, blocks, how)| Act::Append(writer, blocks, how)),
        1 => writer().prop_map(Act::Sync),
        1 => (writer(), any::<u8>()).prop_map(|(writer, share)| Act::Truncate(writer, share)),
        2 => (writer(), any::<u8>()).prop_map(|(writer, share)| Act::Clear(writer, share)),
        1 => (writer(), any::<u8>()).prop_map(|(writer, value)| Act::UserData(writer, value)),
        2 => (1..6usize).prop_map(Act::Accept),
        1 => Just(Act::Checkpoint),
        1 => Just(Act::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_crash_of_any_workload(acts in proptest::collection::vec(any_act(), 1..14)) {
        every_crash(&acts);
    }
}

/// Whatever byte rots: either the same blocks are there, or the store or the core says that it is damaged. It
/// never goes on without what it has signed.
#[test]
fn rot_is_found() {
    let (disk, foreign) = (MemoryDisk::default(), foreign_proofs());
    let mut session = Session::open(Arc::new(disk.clone()), foreign.clone()).unwrap();
    for next in &some_acts()[..22] {
        session.act(next).unwrap();
    }
    let whole = state(&session);
    drop(session);
    let image = disk.image();
    let (mut refused, mut bytes) = (0, 0);
    for (file, at) in
        image.iter().flat_map(|(file, bytes)| (0..bytes.len()).step_by(7).map(move |at| (*file, at)))
    {
        let rotten = MemoryDisk::of(image.clone());
        rotten.rot(file, at as u64, 1 << (at % 8));
        bytes += 1;
        match Session::open(Arc::new(rotten), foreign.clone()) {
            Ok(session) => {
                for (core, whole) in session.cores().zip(&whole) {
                    assert_eq!(
                        (core.length(), core.fork()),
                        (whole.1.len() as u64, whole.0),
                        "byte {at} of {file}"
                    );
                    let damage = core.verify().unwrap();
                    for (index, block) in whole.1.iter().enumerate() {
                        match core.get(index as u64) {
                            Ok(found) => assert_eq!(Some(&found), block.as_ref()),
                            Err(DataError::NotHere { .. }) => assert_eq!(*block, None),
                            Err(DataError::Damaged { .. }) => assert!(!damage.is_empty()),
                            Err(other) => panic!("byte {at} of {file}: {other}"),
                        }
                    }
                }
            }
            Err(DataError::Damaged { .. } | DataError::WrongKey) => refused += 1,
            Err(other) => panic!("byte {at} of {file}: {other}"),
        }
    }
    assert!(refused * 10 > bytes, "only {refused} of {bytes} are noticed");
}

#[test]
fn after_a_failed_sync_nothing_is_signed() {
    let disk = RecordingDisk::default();
    let store = open(Arc::new(disk.clone())).unwrap();
    let core = store.core(&Open::pair(pair(1))).unwrap();
    core.append(&[b"one"], Durability::Synced).unwrap();
    disk.fail_syncs(true);
    assert!(matches!(core.append(&[b"two"], Durability::Synced), Err(DataError::Storage(_))));
    disk.fail_syncs(false);
    assert_eq!(core.append(&[b"three"], Durability::Synced), Err(DataError::Poisoned));
    assert_eq!(core.sync(), Err(DataError::Poisoned));
    assert_eq!(core.signed().unwrap().unwrap().head.length, 1);
    assert_eq!(core.get(0).unwrap(), b"one");
    drop((core, store));
    let core = open(Arc::new(disk)).unwrap().core(&Open::pair(pair(1))).unwrap();
    core.append(&[b"three"], Durability::Synced).unwrap();
    assert!(core.verify().unwrap().is_empty());
}

/// Nothing is ever written twice to one place of a segment, also after failures: no nonce is used twice.
#[test]
fn no_place_is_written_twice() {
    let disk = RecordingDisk::default();
    let foreign = foreign_proofs();
    for round in 0..4 {
        let mut session = Session::open(Arc::new(disk.clone()), foreign.clone()).unwrap();
        for act in some_acts() {
            disk.set_room(Some(300 * round));
            match session.act(&act) {
                // The proofs may be there already.
                Ok(()) | Err(DataError::Storage(StorageError::Full) | DataError::BadProof(_)) => {}
                Err(error) => panic!("{act:?}: {error}"),
            }
            disk.set_room(None);
        }
    }
    let mut ends: HashMap<u64, u64> = HashMap::new();
    for operation in disk.operations() {
        match operation {
            // The file is filled with zeros ahead.
            Operation::Write { file, bytes, .. } if file != 0 && bytes.iter().all(|byte| *byte == 0) => {}
            Operation::Write { file, offset, bytes } if file != 0 => {
                let end = ends.entry(file).or_default();
                assert_eq!(*end, offset, "file {file}");
                *end += bytes.len() as u64;
            }
            // Its salt, and so its key, is another one.
            Operation::Create(file) => drop(ends.insert(file, 0)),
            _ => {}
        }
    }
    assert!(ends.len() > 10);
}

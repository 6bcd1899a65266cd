//! A program that writes a store is killed at any moment: what it was told is on the disk is there, nothing
//! half-written is seen, and what its peers have of it goes on without a second history.

use cloudpal_data::core::{Core, Durability, Open};
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::proof::{Request, UpgradeWanted};
use cloudpal_data::storage::MemoryDisk;
use cloudpal_data::store::{Options, RootKey, Store};
use cloudpal_host::data::disk::DirectoryDisk;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

const DIR: &str = "CLOUDPAL_TEST_KILLED_DIR";
const ROUNDS: u8 = 12;
/// A record of each append but the last is larger than a segment can hold many of.
const SIZES: [usize; 5] = [0, 30, 700, 5_000, 60_000];

fn open(dir: &Path, time: u8) -> (Store, Core) {
    // Small, so that a kill falls into checkpoints and new segments, too.
    let options =
        Options { segment_bytes: 400_000, log_bytes: 900_000, dirty_bytes: 40_000, ..Options::default() };
    let disk = DirectoryDisk::open(dir, 4).unwrap();
    let entropy = std::array::from_fn(|at| time ^ (std::process::id() >> (8 * (at % 4))) as u8);
    let store = Store::open(Arc::new(disk), RootKey([3; 32]), entropy, options).unwrap();
    let core = store.core(&Open::pair(pair())).unwrap();
    (store, core)
}

fn pair() -> KeyPair {
    KeyPair::from_seed(&[8; 32])
}

fn block(index: u64) -> Vec<u8> {
    let size = SIZES[(index * 7 % 5) as usize] + (index % 13) as usize;
    (0..size as u64).map(|at| (index * 31 + at) as u8).collect()
}

/// What is killed.
fn write_for_ever(dir: &Path) -> ! {
    let (store, core) = open(dir, 1);
    let mut out = std::io::stdout().lock();
    loop {
        let length = core.info().unwrap().length;
        let many = 1 + length % 4;
        let blocks: Vec<Vec<u8>> = (length..length + many).map(block).collect();
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        // Some only buffered: those may be lost, with all that follows them and is not acknowledged.
        let durability = if length.is_multiple_of(3) { Durability::Buffered } else { Durability::Synced };
        core.append(&blocks, durability).unwrap();
        if durability == Durability::Synced {
            writeln!(out, "\nsynced {}", length + many).unwrap();
            out.flush().unwrap();
        }
        if length > 200 && length % 17 == 1 {
            core.clear(length - 150, length - 140).unwrap();
        }
        if length % 97 == 1 {
            store.compact().unwrap();
        }
    }
}

/// Lets it write for a while, kills it, and answers what it has acknowledged.
fn killed_after(dir: &Path, time: Duration) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed_at_any_moment_it_keeps_what_it_has_acknowledged", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || {
        let lengths =
            lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("synced ")?.parse().ok());
        lengths.last().unwrap_or(0)
    });
    std::thread::sleep(time);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}

/// The peer takes the tree as it is signed now, which it refuses if it is of another history.
fn shown_to(peer: &Core, core: &Core) {
    let (known, signed) = (peer.info().unwrap().length, core.info().unwrap().synced_length);
    assert!(signed >= known, "the peer knows of {known} blocks, and {signed} are signed");
    if signed > known {
        let upgrade = Some(UpgradeWanted { start: known, length: signed - known });
        let proof = core.prove(&Request { upgrade, ..Request::default() }).unwrap();
        peer.accept(&proof, Some(&core_manifest())).unwrap();
    }
}

fn core_manifest() -> cloudpal_data::manifest::Manifest {
    cloudpal_data::manifest::Manifest::single(pair().public_key())
}

#[test]
fn killed_at_any_moment_it_keeps_what_it_has_acknowledged() {
    // The test itself is the program that it runs and kills.
    if let Ok(dir) = std::env::var(DIR) {
        write_for_ever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let peers =
        Store::open(Arc::new(MemoryDisk::default()), RootKey([5; 32]), [6; 32], Options::default()).unwrap();
    let peer = peers.core(&Open::key(Open::pair(pair()).core_key())).unwrap();
    let mut before = 0;
    for round in 0..ROUNDS {
        let time = Duration::from_millis(60 + u64::from(round) * 37 % 250);
        let acknowledged = killed_after(dir.path(), time);
        let (_store, core) = open(dir.path(), 100 + round);
        let info = core.info().unwrap();
        assert!(
            info.length >= acknowledged.max(before),
            "{acknowledged} were acknowledged, {} are here",
            info.length
        );
        assert_eq!(info.synced_length, info.length, "all that is here is signed");
        for index in 0..info.length {
            if core.has(index).unwrap() {
                assert_eq!(core.get(index).unwrap(), block(index), "block {index}");
            }
        }
        assert!(core.verify().unwrap().is_empty());
        shown_to(&peer, &core);
        before = info.length;
    }
    assert!(before > 20, "only {before} blocks were written in all rounds");
}

//! The committed corpus: for each decoder of bytes from outside, inputs that were worth keeping. Each is taken as it
//! is, cut off everywhere, and with each of its bytes changed. None may panic, hang, or be more work than it has bytes.
//! (Proofs, manifests and signatures: `hostile.rs`.)

mod feed_kit;
mod foreign_kit;

use cloudpal_data::crypto::KeyPair;
use cloudpal_data::drive::Drive;
use cloudpal_data::mux;
use cloudpal_data::storage::{Disk, MemoryDisk};
use cloudpal_data::store::{Options, RootKey, Store};
use cloudpal_data::stream::{self, Entropy, SecretStream};
use cloudpal_data::wire::{Handshake, Message};
use feed_kit::MemoryFeed;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// More than enough for any input; a loop without end, or one that an input makes long, takes more.
const MAX_TIME: Duration = Duration::from_secs(5);

fn message(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    if let Ok(Some(message)) = Message::decode(u64::from(*kind), body) {
        assert_eq!(Message::decode(u64::from(*kind), &message.encode()), Ok(Some(message)));
    }
    let _ = Handshake::decode(bytes);
}

fn frame(bytes: &[u8]) {
    let Ok(frames) = mux::decode(bytes) else { return };
    for frame in &frames {
        if let mux::Frame::Message { kind, body, .. } = frame {
            let _ = Message::decode(*kind, body);
        }
    }
    if !frames.is_empty() {
        assert_eq!(mux::decode(&mux::encode_batch(&frames)).as_ref(), Ok(&frames));
    }
}

/// What a stranger says first; and what comes where the last message of a handshake should.
fn stream(bytes: &[u8]) {
    let pair = |seed: u8| KeyPair::from_seed(&[seed; 32]);
    let new = |initiator: bool, seed: u8| {
        SecretStream::new(
            initiator,
            pair(seed),
            Entropy::from_bytes(&[seed; 56]),
            stream::Options::default(),
            0,
        )
    };
    for initiator in [true, false] {
        let mut ours = new(initiator, 1);
        ours.receive(bytes, 0);
        assert!(!matches!(ours.next(), Ok(Some(_))), "a message before the handshake is over");
        assert!(ours.session().is_none());
    }
    let (mut ours, mut theirs) = (new(false, 1), new(true, 2));
    ours.receive(&theirs.take_outgoing(Vec::new()), 0);
    let _ = ours.next();
    theirs.receive(&ours.take_outgoing(Vec::new()), 0);
    let _ = theirs.next();
    ours.receive(bytes, 0);
    assert!(!matches!(ours.next(), Ok(Some(_))), "a message before the handshake is over");
}

/// Blocks with their lengths before them.
fn blocks(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut blocks = Vec::new();
    while let Some((size, rest)) = bytes.split_first() {
        let (block, after) = rest.split_at(rest.len().min(usize::from(*size)));
        blocks.push(block.to_vec());
        bytes = after;
    }
    blocks
}

/// The value of a drive's entry; after a zero byte, a block of its contents.
fn entry(bytes: &[u8]) {
    let (value, block) = match bytes.iter().position(|byte| *byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[][..]),
    };
    let mut drive = Drive::new(MemoryFeed::default(), MemoryFeed::default(), None);
    drive.put("/real", &[7; 70_000]).unwrap();
    drive.blobs_mut().feed_mut().blocks.push(block.to_vec());
    drive.db_mut().put(b"files\0/x", value).unwrap();
    let _ = drive.get("/x");
    let _ = drive.head().follow("/x");
    if let Ok(Some(reader)) = drive.head().reader("/x", 5..1000) {
        assert!(reader.map_while(Result::ok).map(|part| part.len()).sum::<usize>() <= 995);
    }
    let _ = drive.head().list("/").unwrap().count();
}

/// The first file of a store, and its first segment, by somebody who does not have its key.
fn store(bytes: &[u8]) {
    for file in [0, 1] {
        let disk = MemoryDisk::default();
        disk.create(file).unwrap();
        disk.write(file, 0, bytes).unwrap();
        // Half a first file, and nothing else, is what a crash leaves of a store that was never used.
        let opened = Store::open(Arc::new(disk), RootKey([1; 32]), [2; 32], Options::default());
        assert!(opened.is_err() || file == 0, "a segment without a first file");
    }
}

/// Every byte of the small inputs, a hundred of the large ones.
fn places(bytes: &[u8]) -> impl Iterator<Item = usize> + use<> {
    (0..bytes.len()).step_by(bytes.len().div_ceil(100).max(1))
}

fn replay(name: &str, least: usize, digest: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= least, "only {} inputs", files.len());
    for file in files {
        let (bytes, started) = (std::fs::read(&file).unwrap(), Instant::now());
        digest(&bytes);
        for at in places(&bytes) {
            digest(&bytes[..at]);
            for change in [1, 0x80, 0xff] {
                let mut changed = bytes.clone();
                changed[at] ^= change;
                digest(&changed);
            }
        }
        let each = started.elapsed() / (1 + 4 * places(&bytes).count() as u32);
        assert!(each < MAX_TIME, "{}: {each:?} for one input", file.display());
    }
}

#[test]
fn messages() {
    replay("message", 17, message);
}

#[test]
fn frames() {
    replay("frame", 15, frame);
}

#[test]
fn streams() {
    replay("stream", 6, stream);
}

#[test]
fn bees() {
    replay("bee", 7, |bytes| foreign_kit::exercise_bee(blocks(bytes)));
}

#[test]
fn tries() {
    replay("trie", 5, |bytes| foreign_kit::exercise_trie(blocks(bytes)));
}

#[test]
fn entries() {
    replay("entry", 10, entry);
}

#[test]
fn stores() {
    replay("store", 4, store);
}

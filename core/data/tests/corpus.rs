//! The committed corpus: for each decoder of bytes from outside, inputs that were worth keeping. Each is taken as it
//! is, cut off everywhere, and with each of its bytes changed. None may panic, hang, or be more work than it has bytes.
//! (Proofs, manifests and signatures: `hostile.rs`.)

mod digest_kit;
mod feed_kit;
mod foreign_kit;
mod golden_kit;

use digest_kit::{blocks, entry, frame, message, store, stream};
use std::path::Path;
use std::time::{Duration, Instant};

/// More than enough for any input; a loop without end, or one that an input makes long, takes more.
const MAX_TIME: Duration = Duration::from_secs(5);

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

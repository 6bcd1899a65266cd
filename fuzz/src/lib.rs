//! What the cores and the VMM make of foreign bytes, as functions that take any and are judged: bytes may be refused,
//! and that is all. A parser never panics, never goes on for ever, never takes memory by a number that it was told;
//! and what it understands means the same when it is written and read again.
//!
//! Invariants: a target is deterministic but for random numbers that the product draws itself, and keeps nothing from
//! one input to the next. The drivers and judges of the tests are used as they are.

pub mod data;
pub mod image;
pub mod lines;
pub mod list;
pub mod names;
mod program;
pub mod replication;
pub mod vmm;

#[path = "../../core/data/tests/digest_kit/mod.rs"]
mod digest_kit;
#[path = "../../bin/cloudpal-vmm/tests/driver/mod.rs"]
mod driver;
#[path = "../../core/data/tests/feed_kit/mod.rs"]
mod feed_kit;
#[path = "../../core/data/tests/foreign_kit/mod.rs"]
mod foreign_kit;
#[path = "../../core/data/tests/golden_kit/mod.rs"]
mod golden_kit;
#[path = "../../core/data/tests/replication_kit/mod.rs"]
mod replication_kit;

pub type Digest = fn(&[u8]);

/// The target of that name.
pub fn digest(name: &str) -> Option<Digest> {
    Some(match name {
        "net" => vmm::net::digest,
        "blk" => vmm::blk::digest,
        "console" => vmm::console::digest,
        "rng" => vmm::rng::digest,
        "balloon" => vmm::balloon::digest,
        "vsock" => vmm::vsock::digest,
        "kernel" => vmm::kernel::digest,
        "vmm-state" => vmm::snapshot::state,
        "vmm-diff" => vmm::snapshot::diff,
        "lines" => lines::digest,
        "message" => digest_kit::message,
        "frame" => digest_kit::frame,
        "proof" => digest_kit::proof,
        "stream" => digest_kit::stream,
        "replication" => replication::digest,
        "bee" => data::bee,
        "trie" => data::trie,
        "entry" => digest_kit::entry,
        "store" => digest_kit::store,
        "unpack" => data::unpack,
        "layer" => image::layer,
        "image" => image::documents,
        "dns" => names::dns,
        "text" => names::text,
        name if name == list::TRAP.name => trap,
        _ => return None,
    })
}

/// Not guessed in millions of inputs by chance; met after some ten thousand by who sees which branches they take.
fn trap(bytes: &[u8]) {
    let met = bytes.iter().zip(b"trap").take_while(|(byte, wanted)| byte == wanted).count();
    assert!(met < 4, "in the trap");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    /// What was worth keeping holds in an ordinary build, too, where libFuzzer is not needed.
    #[test]
    fn every_committed_input_is_digested() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for target in list::TARGETS {
            let digest = digest(target.name).unwrap_or_else(|| panic!("{} does nothing", target.name));
            let own = format!("fuzz/corpus/{}", target.name);
            let dirs = target.seeds.iter().copied().chain([own.as_str()]);
            let mut count = 0;
            for dir in dirs.map(|dir| root.join(dir)).filter(|dir| dir.exists()) {
                for entry in fs::read_dir(dir).expect("a directory") {
                    digest(&fs::read(entry.expect("an entry").path()).expect("an input"));
                    count += 1;
                }
            }
            assert!(count > 0, "{} has no input", target.name);
        }
    }
}

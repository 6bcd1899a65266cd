//! What we write, a JavaScript core accepts: the proofs of a core of ours go through `golden/accept.js`.
//! Needs node, and `npm ci` once in `golden/`; without them the test says that it was skipped.

mod golden_kit;

use cloudpal_data::core::{Durability, Open};
use cloudpal_data::crypto::PublicKey;
use cloudpal_data::manifest::{Manifest, Signer};
use cloudpal_data::proof::{Data, Request, UpgradeWanted, Wanted};
use cloudpal_data::signature::Verifier;
use cloudpal_data::storage::MemoryDisk;
use cloudpal_data::store::{Options, RootKey, Store};
use golden_kit::{block, bytes, list, number, pair};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

fn golden_dir() -> Option<PathBuf> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden");
    let node = Command::new("node").arg("--version").stdout(Stdio::null()).status();
    if !node.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: there is no node here, so that no JavaScript core can judge ours");
        return None;
    }
    if !dir.join("node_modules/hypercore").is_dir() {
        eprintln!("SKIPPED: the JavaScript stack is not installed; run `npm ci` in core/data/golden");
        return None;
    }
    Some(dir)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn judged(dir: &PathBuf, key: &PublicKey, messages: &[Vec<u8>]) -> Value {
    let messages: Vec<String> = messages.iter().map(|message| hex(message)).collect();
    let mut child = Command::new("node")
        .arg("accept.js")
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let input = json!({ "key": hex(key), "messages": messages }).to_string();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A core of `length` blocks that grows in two steps: the messages that a peer asks for who follows it.
fn messages_of(verifier: &Verifier, length: u64) -> Vec<Vec<u8>> {
    let disk = Arc::new(MemoryDisk::default());
    let store = Store::open(disk, RootKey([1; 32]), [2; 32], Options::default()).unwrap();
    let core = store.core(&Open::verifier(verifier).with_pair(pair(1))).unwrap();
    let (mut messages, mut known) = (Vec::new(), 0);
    for until in [length / 3, length] {
        let blocks: Vec<Vec<u8>> = (known..until).map(|n| block(n, (n * 37) % 101)).collect();
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        core.append(&blocks, Durability::Synced).unwrap();
        let upgrade = Some(UpgradeWanted { start: known, length: until - known });
        let mut prove = |request: Request, manifest: bool| {
            let proof = core.prove(&request).unwrap();
            let manifest = (manifest && !verifier.is_compat()).then(|| verifier.manifest().clone());
            messages.push(Data { request: 1, proof, manifest }.encode());
        };
        prove(Request { upgrade, ..Request::default() }, known == 0);
        for index in known..until {
            // As many parents as the longest path has: those that are known already do no harm.
            let nodes = (0..64).find(|nodes| spans(index, *nodes + 1) > until).unwrap_or(0);
            prove(
                Request { block: Some(Wanted { index, nodes: nodes.into() }), ..Request::default() },
                false,
            );
        }
        known = until;
    }
    messages
}

/// The end of the subtree that many parents above a block.
fn spans(index: u64, parents: u32) -> u64 {
    ((index >> parents) + 1) << parents
}

#[test]
fn javascript_accepts_what_we_write() {
    let Some(dir) = golden_dir() else { return };
    let public_key = pair(1).public_key();
    let mut own = Manifest::single(public_key);
    own.version = 3;
    own.user_data = Some(b"of ours".to_vec());
    own.signers = vec![Signer { namespace: [5; 32], public_key }];
    let manifest = Manifest::single(public_key);
    let verifiers = [
        Verifier::new(manifest.key(), manifest).unwrap(),
        Verifier::compat(public_key),
        Verifier::new(own.key(), own).unwrap(),
    ];
    for verifier in verifiers {
        let messages = messages_of(&verifier, 53);
        let answer = judged(&dir, verifier.key(), &messages);
        assert_eq!(number(&answer["refused"]), 0);
        assert_eq!(number(&answer["length"]), 53);
        for (index, found) in list(&answer["blocks"]).iter().enumerate() {
            let index = index as u64;
            assert_eq!(bytes(found), block(index, (index * 37) % 101), "block {index}");
        }
        // And it does judge: with one bit of a block turned, that block is refused.
        let mut lied = messages;
        let last = lied.len() - 1;
        lied[last][7] ^= 1;
        assert_eq!(number(&judged(&dir, verifier.key(), &lied)["refused"]), 1);
    }
}

//! What is done with foreign bytes, decoder by decoder, and what must hold whatever they are: what is understood
//! encodes to what means the same, and nothing is accepted that was not signed.

#![allow(dead_code)] // each test file uses its own part

use crate::feed_kit::MemoryFeed;
use crate::golden_kit::{block, grown, pair};
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::drive::Drive;
use cloudpal_data::manifest::Manifest;
use cloudpal_data::proof::{Data, Proof};
use cloudpal_data::signature::{MultiSignature, Verifier};
use cloudpal_data::storage::{Disk, MemoryDisk};
use cloudpal_data::store::{Options, RootKey, Store};
use cloudpal_data::stream::{self, Entropy, SecretStream};
use cloudpal_data::wire::{Handshake, Message};
use cloudpal_data::{encoding, mux};
use std::sync::Arc;

pub fn message(bytes: &[u8]) {
    let Some((kind, body)) = bytes.split_first() else { return };
    if let Ok(Some(message)) = Message::decode(u64::from(*kind), body) {
        assert_eq!(Message::decode(u64::from(*kind), &message.encode()), Ok(Some(message)));
    }
    let _ = Handshake::decode(bytes);
}

pub fn frame(bytes: &[u8]) {
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
pub fn stream(bytes: &[u8]) {
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
pub fn blocks(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut blocks = Vec::new();
    while let Some((size, rest)) = bytes.split_first() {
        let (block, after) = rest.split_at(rest.len().min(usize::from(*size)));
        blocks.push(block.to_vec());
        bytes = after;
    }
    blocks
}

/// The value of a drive's entry; after a zero byte, a block of its contents.
pub fn entry(bytes: &[u8]) {
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
pub fn store(bytes: &[u8]) {
    for file in [0, 1] {
        let disk = MemoryDisk::default();
        disk.create(file).unwrap();
        disk.write(file, 0, bytes).unwrap();
        // Half a first file, and nothing else, is what a crash leaves of a store that was never used.
        let opened = Store::open(Arc::new(disk), RootKey([1; 32]), [2; 32], Options::default());
        assert!(opened.is_err() || file == 0, "a segment without a first file");
    }
}

pub fn verifier() -> Verifier {
    let manifest = Manifest::single(pair(1).public_key());
    Verifier::new(manifest.key(), manifest).unwrap()
}

/// A proof is accepted only if all that it proves is true of the golden tree of 53 blocks.
fn judge(proof: &Proof) {
    let (whole, all) = grown(53);
    for start in [0, 1, 20, 31, 32, 53] {
        let (head, nodes) = grown(start);
        let Ok(checked) = cloudpal_data::proof::check(&head, &nodes, &verifier(), proof) else { continue };
        assert!(checked.head == head || checked.head == whole, "a tree that was never signed");
        for node in &checked.nodes {
            assert_eq!(whole.node(node.index, &all).as_ref(), Some(node), "a node that is not of the core");
        }
        if let Some(proved) = &proof.block {
            assert_eq!(proved.value, block(proved.index, (proved.index * 37) % 101));
        }
    }
}

/// Proofs, manifests and signatures.
pub fn proof(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::decode(bytes) {
        assert_eq!(Manifest::decode(&manifest.encode()).as_ref(), Ok(&manifest));
        let (head, _) = grown(3);
        let verifier = Verifier::new(manifest.key(), manifest).unwrap();
        assert!(!verifier.verify(&head, bytes));
    }
    if let Ok(data) = Data::decode(bytes) {
        assert_eq!(Data::decode(&data.encode()).as_ref(), Ok(&data));
        judge(&data.proof);
    }
    if let Ok(signature) = MultiSignature::decode(bytes) {
        assert_eq!(MultiSignature::decode(&signature.encode()).as_ref(), Ok(&signature));
    }
    let _ = MultiSignature::decode_version_0(bytes);
    let _ = encoding::Reader::new(bytes).buffer();
}

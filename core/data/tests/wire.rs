//! The messages of replication: encoded as JavaScript encodes them, and every frame of a real replication
//! between two JavaScript peers read, understood and written back the same. The proofs in those frames are
//! checked.

mod golden_kit;

use cloudpal_data::manifest::Manifest;
use cloudpal_data::mux::{self, Frame};
use cloudpal_data::proof::{self, Request, SeekWanted, UpgradeWanted, Wanted};
use cloudpal_data::signature::Verifier;
use cloudpal_data::tree::{Head, NodeTable};
use cloudpal_data::wire::{self, Handshake, Message, Span, Sync};
use golden_kit::{bytes, golden, hash, list, pair};
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeSet;

/// In the order of `wire` in `golden/make.js`.
fn messages() -> Vec<Message> {
    let span = |start, length, any| Span { start, length, any };
    let none = Request::default();
    let block = Request { block: Some(Wanted { index: 5, nodes: 2 }), ..none };
    let hash = Request {
        hash: Some(Wanted { index: 7, nodes: 0 }),
        seek: Some(SeekWanted { bytes: 1000, padding: 8 }),
        ..none
    };
    let upgrade = Request { upgrade: Some(UpgradeWanted { start: 4, length: 60 }), ..none };
    let request = |id, fork, wanted| Message::Request { id, fork, wanted, manifest: false, priority: 0 };
    vec![
        Message::Sync(Sync {
            fork: 3,
            length: 300,
            remote_length: 70_000,
            can_upgrade: true,
            downloading: true,
            has_manifest: true,
            ..Sync::default()
        }),
        Message::Sync(Sync { uploading: true, allow_push: true, ..Sync::default() }),
        request(1, 0, block),
        request(900, 2, hash),
        Message::Request { id: 2, fork: 1, wanted: upgrade, manifest: true, priority: 3 },
        Message::Cancel { request: 300 },
        Message::NoData { request: 4, reason: 0 },
        Message::NoData { request: 4, reason: 2 },
        Message::Want(span(0, 32768, false)),
        Message::Want(span(1 << 40, 1, true)),
        Message::Unwant(span(32768, 32768, false)),
        Message::Bitfield { start: 32768, words: vec![1, u32::MAX, 1 << 31] },
        Message::Range { drop: false, start: 9, length: 1 },
        Message::Range { drop: true, start: 0, length: 1000 },
        Message::Extension { name: "greeting".to_owned(), message: b"hello".to_vec() },
    ]
}

#[test]
fn messages_as_javascript_writes_them() {
    let given = &golden()["wire"];
    let rows = list(&given["messages"]);
    let ours = messages();
    assert_eq!(rows.len(), ours.len());
    for (row, message) in rows.iter().zip(ours) {
        let theirs = bytes(&row["bytes"]);
        assert_eq!(message.encode(), theirs, "{message:?}");
        assert_eq!(Message::decode(message.kind(), &theirs), Ok(Some(message)));
    }
    let handshake = Handshake { seeks: true, capability: [4; 32] };
    assert_eq!(handshake.encode(), bytes(&given["handshake"]));
    assert_eq!(Handshake::decode(&handshake.encode()), Ok(handshake));
    for (initiator, row) in [true, false].into_iter().zip(list(&given["capabilities"])) {
        assert_eq!(wire::capability(initiator, &[4; 32], &[3; 64]), hash(&row));
    }
}

#[test]
fn a_captured_replication() {
    let captured: Value = serde_json::from_str(include_str!("../golden/captured.json")).unwrap();
    let key = hash(&captured["key"]);
    let handshake_hash: [u8; 64] = bytes(&captured["handshake_hash"]).try_into().unwrap();
    let verifier = Verifier::new(key, Manifest::single(pair(1).public_key())).unwrap();
    let (mut head, mut nodes) = (Head::default(), NodeTable::default());
    let (mut kinds, mut opened, mut proved) = (BTreeSet::new(), 0, 0);
    for row in list(&captured["frames"]) {
        let initiator = row["from"] == "initiator";
        let raw = bytes(&row["frame"]);
        if raw.is_empty() {
            continue; // keeps the connection alive
        }
        let frames = mux::decode(&raw).unwrap();
        let again = if raw.starts_with(&[0, 0]) { mux::encode_batch(&frames) } else { frames[0].encode() };
        assert_eq!(again, raw);
        for frame in frames {
            match frame {
                Frame::Open { protocol: wire::PROTOCOL, id, rest, .. } => {
                    opened += 1;
                    assert_eq!(id, bytes(&captured["discovery_key"]));
                    let handshake = Handshake::decode(rest).unwrap();
                    assert_eq!(handshake.encode(), rest);
                    assert_eq!(handshake.capability, wire::capability(initiator, &key, &handshake_hash));
                }
                Frame::Message { kind, body, .. } => {
                    let message = Message::decode(kind, body).unwrap().unwrap();
                    assert_eq!(message.encode(), body, "{message:?}");
                    kinds.insert(kind);
                    let Message::Data(data) = message else { continue };
                    // What the reader got is checked with what was proved before; the fork has a tree of its
                    // own.
                    if data.proof.fork != head.fork {
                        continue;
                    }
                    let checked = proof::check(&head, &nodes, &verifier, &data.proof).unwrap();
                    checked.nodes.iter().for_each(|node| nodes.put(node));
                    head = checked.head;
                    proved += 1;
                    assert!(data.manifest.is_none_or(|manifest| manifest.key() == key));
                }
                other => panic!("an unexpected frame {other:?}"),
            }
        }
    }
    assert_eq!(opened, 2);
    assert!(proved >= 20, "only {proved} proofs");
    assert_eq!(head.length, 55);
    assert!(kinds.is_superset(&BTreeSet::from([0, 1, 3, 8, 9])), "only kinds {kinds:?}");
}

#[test]
fn bad_frames() {
    assert!(mux::decode(&[]).is_err());
    assert!(mux::decode(&[0, 0, 0, 3, 0, 0, 1]).is_err(), "a batch within a batch");
    assert!(mux::decode(&[0, 0, 1, 200, 0]).is_err(), "more than there is");
    assert!(mux::decode(&[0, 1, 1, 1, 0xff, 0]).is_err(), "a name that is no text");
    assert_eq!(mux::decode(&[0, 9, 1]), Ok(Vec::new()), "a kind of a later version");
    assert!(Message::decode(7, &[0, 0xff, 0, 0, 0, 0, 0, 0, 0x10, 0]).is_err(), "2^52 words");
    assert_eq!(Message::decode(10, &[]), Ok(None));
    let refusals = [Frame::Reject { channel: 3 }, Frame::Close { channel: 300 }];
    assert_eq!(mux::decode(&mux::encode_batch(&refusals)).unwrap(), refusals);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_frames(kind in 0u64..11, mut bytes in proptest::collection::vec(any::<u8>(), 0..200), batch: bool) {
        if let Ok(Some(message)) = Message::decode(kind, &bytes) {
            let again = message.encode();
            prop_assert_eq!(Message::decode(kind, &again), Ok(Some(message)));
        }
        let _ = Handshake::decode(&bytes);
        if batch {
            bytes.splice(0..0, [0, 0]);
        }
        if let Ok(frames) = mux::decode(&bytes)
            && !frames.is_empty()
        {
            let again = mux::encode_batch(&frames);
            prop_assert_eq!(mux::decode(&again), Ok(frames));
        }
    }
}

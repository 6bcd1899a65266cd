//! Whatever the bytes: an error or a value, never a panic, never work beyond their number. What is decoded
//! encodes to what means the same. The committed corpus holds inputs that were worth keeping; each is run
//! first.

mod digest_kit;
mod feed_kit;
mod golden_kit;

use cloudpal_data::crypto;
use cloudpal_data::manifest::Manifest;
use cloudpal_data::proof::{self, Data, Proof, Request, SeekWanted, UpgradeWanted, Wanted};
use cloudpal_data::signature::Verifier;
use cloudpal_data::tree::{Head, Node, NodeTable, Nodes};
use digest_kit::{proof as feed, verifier};
use golden_kit::{block, bytes, golden, grown, list, pair};
use proptest::prelude::*;
use std::path::Path;

#[test]
fn the_corpus_is_digested() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/proof");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        feed(&std::fs::read(entry.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count >= 8, "the corpus has only {count} files");
}

/// Every golden message, whole, and with each of its first and last bytes changed or cut off.
#[test]
fn golden_messages_changed_everywhere() {
    let golden = golden();
    let rows = list(&golden["proofs"]["proofs"]);
    for row in rows.iter().step_by(9) {
        let wire = bytes(&row["wire"]);
        feed(&wire);
        for at in (0..wire.len()).step_by(5) {
            let mut changed = wire.clone();
            changed[at] ^= 1 << (at % 8);
            feed(&changed);
            assert!(Data::decode(&wire[..at]).is_err(), "cut at {at}");
        }
    }
    for row in list(&golden["manifests"]) {
        let encoded = bytes(&row["encoded"]);
        for at in 0..encoded.len() {
            assert!(Manifest::decode(&encoded[..at]).is_err());
        }
    }
}

#[test]
fn lies_are_refused() {
    let (whole, all) = grown(53);
    let signature = verifier().sign(&whole, &pair(1)).unwrap();
    let request = Request { upgrade: Some(UpgradeWanted { start: 20, length: 33 }), ..Request::default() };
    let honest = proof::make(&whole, &all, None, &signature, &request).unwrap();
    let (head, nodes) = grown(20);
    let check = |change: &dyn Fn(&mut Proof)| {
        let mut proof = honest.clone();
        change(&mut proof);
        proof::check(&head, &nodes, &verifier(), &proof)
    };
    assert_eq!(check(&|_| {}).unwrap().head, whole);
    let upgraded =
        |change: fn(&mut proof::UpgradeProof)| check(&|proof| change(proof.upgrade.as_mut().unwrap()));
    assert!(check(&|proof| proof.fork = 1).is_err(), "another fork");
    assert!(upgraded(|upgrade| upgrade.length = 1 << 60).is_err(), "a core of 2^60 blocks");
    assert!(upgraded(|upgrade| upgrade.length = u64::MAX).is_err());
    assert!(upgraded(|upgrade| upgrade.start = u64::MAX).is_err());
    assert!(upgraded(|upgrade| upgrade.length = 0).is_err());
    assert!(upgraded(|upgrade| upgrade.nodes[0].size = u64::MAX).is_err());
    assert!(upgraded(|upgrade| upgrade.nodes.reverse()).is_err());
    assert!(upgraded(|upgrade| upgrade.nodes.truncate(1)).is_err());
    assert!(upgraded(|upgrade| upgrade.nodes.push(upgrade.nodes[0].clone())).is_err());
    assert!(upgraded(|upgrade| upgrade.additional.push(upgrade.nodes[0].clone())).is_err());
    assert!(upgraded(|upgrade| upgrade.signature.clear()).is_err());
    assert!(
        check(&|proof| {
            let nodes = vec![Node { index: u64::MAX, size: 1, hash: [0; 32] }];
            proof.hash = Some(proof::HashProof { index: u64::MAX, nodes });
        })
        .is_err()
    );
    // A history of the same length that another key has signed.
    let other = pair(2);
    let manifest = Manifest::single(other.public_key());
    let theirs = Verifier::new(manifest.key(), manifest).unwrap().sign(&whole, &other).unwrap();
    let forged = check(&|proof| proof.upgrade.as_mut().unwrap().signature = theirs.clone());
    assert_eq!(forged, Err(cloudpal_data::DataError::BadSignature));
}

#[test]
fn a_key_of_small_order_signs_nothing() {
    let mut key = [0; 32];
    key[0] = 1;
    let mut signature = [0; 64];
    signature[0] = 1;
    assert!(!crypto::verify(b"anything", &signature, &key));
}

fn any_wanted() -> impl Strategy<Value = Option<Wanted>> {
    let index = prop_oneof![8 => 0..120u64, 1 => any::<u64>()];
    let nodes = prop_oneof![8 => 0..8u64, 1 => any::<u64>()];
    proptest::option::of((index, nodes).prop_map(|(index, nodes)| Wanted { index, nodes }))
}

fn any_request() -> impl Strategy<Value = Request> {
    let seek =
        (prop_oneof![8 => 0..3000u64, 1 => any::<u64>()], prop_oneof![8 => 0..9u64, 1 => any::<u64>()])
            .prop_map(|(bytes, padding)| SeekWanted { bytes, padding });
    let upgrade =
        (prop_oneof![8 => 0..60u64, 1 => any::<u64>()], prop_oneof![8 => 0..60u64, 1 => any::<u64>()])
            .prop_map(|(start, length)| UpgradeWanted { start, length });
    (any_wanted(), any_wanted(), proptest::option::of(seek), proptest::option::of(upgrade))
        .prop_map(|(block, hash, seek, upgrade)| Request { block, hash, seek, upgrade })
}

/// Whether a reader of so many blocks can know the node that it says it knows, so many levels above the one at this
/// place of the tree: one that ends beyond its blocks is in no tree of its own.
fn can_know(node: u128, levels: u64, blocks: u64) -> bool {
    let (height, blocks) = (node.trailing_ones(), u128::from(blocks));
    let first = (node + 1 - (1 << height)) / 2;
    let Some(levels) = u32::try_from(levels).ok().filter(|levels| levels + height < 64) else { return false };
    let span = 1_u128 << (height + levels);
    first >= blocks || (first / span + 1) * span <= blocks
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        feed(&bytes);
    }

    /// Any request is refused or answered, and an answer is accepted by who has sent the request.
    #[test]
    fn any_request_is_answered_or_refused(request in any_request(), length in 0u64..70) {
        let (head, nodes) = grown(length);
        let signature = verifier().sign(&head, &pair(1)).unwrap();
        let Ok(mut proof) = proof::make(&head, &nodes, None, &signature, &request) else { return Ok(()) };
        if let Some(proved) = &mut proof.block {
            proved.value = block(proved.index, (proved.index * 37) % 101);
        }
        let start = request.upgrade.map_or(length, |upgrade| upgrade.start.min(length));
        let block = request.block.map(|block| (u128::from(block.index) * 2, block.nodes));
        let hash = request.hash.map(|hash| (hash.index.into(), hash.nodes));
        if [block, hash].into_iter().flatten().any(|(node, levels)| !can_know(node, levels, start)) {
            return Ok(());
        }
        let (known, below) = grown(start);
        let checked = proof::check(&known, &below, &verifier(), &proof);
        prop_assert_eq!(checked.map(|checked| checked.head), Ok(head));
    }

    /// Growing by batches of any size and cutting anywhere is as growing block by block.
    #[test]
    fn cutting_is_as_never_having_grown(length in 0u64..200, cut in 0u64..200, more in 0u64..40) {
        let cut = cut.min(length);
        let (head, mut nodes) = grown(length);
        let mut head = head.truncated(cut, 0, &nodes).unwrap();
        nodes.truncate(cut);
        let mut made = Vec::new();
        for index in cut..cut + more {
            head.append(&block(index, (index * 37) % 101), &mut made).unwrap();
        }
        made.iter().for_each(|node| nodes.put(node));
        let (straight, all) = grown(cut + more);
        prop_assert_eq!(&head, &straight);
        for index in 0..2 * (length + more) {
            prop_assert_eq!(Nodes::node(&nodes, index), Nodes::node(&all, index));
        }
    }

    #[test]
    fn any_byte_is_found(length in 1u64..150, at in any::<prop::sample::Index>()) {
        let (head, nodes): (Head, NodeTable) = grown(length);
        let at = at.index(head.byte_length.max(1) as usize) as u64;
        let (index, rest) = head.seek(at, &nodes).unwrap();
        prop_assert_eq!(head.byte_offset(2 * index, &nodes).unwrap() + rest, at);
    }
}

//! Hostile peers: what they send is refused with a reason, or ignored; nothing is kept that was not proved; memory and
//! time are bounded.

mod golden_kit;
mod replication_kit;

use cloudpal_data::DataError;
use cloudpal_data::crypto::{self, KeyPair};
use cloudpal_data::mux::{Frame, decode};
use cloudpal_data::proof::{BlockProof, Data, Proof, Request, UpgradeProof, UpgradeWanted, Wanted};
use cloudpal_data::replication::{Event, MemoryCore, Refusal, Replica};
use cloudpal_data::stream::{Entropy, Options, SecretStream, StreamError};
use cloudpal_data::tree::Node;
use cloudpal_data::wire::{Handshake, Message, PROTOCOL, Span, Sync, capability};
use proptest::prelude::*;
use replication_kit::{House, block, entropy, verifier};

/// A peer that is no program of ours, and can say anything.
struct Stranger {
    stream: SecretStream,
    house: House,
    connection: u64,
    heard: Vec<Message>,
}

const LENGTH: u64 = 100;

impl Stranger {
    /// Connected to a house that reads a core, or writes one.
    fn at(mut house: House) -> Self {
        house.share();
        let connection = house.replication.connect(false, entropy(1), 0);
        let entropy = Entropy::from_bytes(&[8; 56]);
        let stream = SecretStream::new(true, KeyPair::from_seed(&[6; 32]), entropy, Options::default(), 0);
        let mut stranger = Stranger { stream, house, connection, heard: Vec::new() };
        for _ in 0..4 {
            stranger.carry();
        }
        let key = stranger.house.core().key();
        let session = stranger.stream.session().unwrap();
        let capability = capability(true, &key, &session.handshake_hash);
        let rest = Handshake { seeks: true, capability }.encode();
        let id = crypto::discovery_key(&key);
        stranger.raw(&Frame::Open { channel: 1, protocol: PROTOCOL, id: &id, rest: &rest }.encode());
        stranger
    }

    fn at_reader() -> Self {
        let mut house = House::new(2, MemoryCore::reader(*verifier(false).0.key()));
        house.replication.download(1, 0, None);
        Stranger::at(house)
    }

    fn at_writer() -> Self {
        Stranger::at(House::new(2, written(LENGTH)))
    }

    fn carry(&mut self) {
        let bytes = self.stream.take_outgoing(Vec::new());
        if !bytes.is_empty() {
            self.house.receive(self.connection, &bytes);
        }
        let House { replication, cores, now_ms, events, .. } = &mut self.house;
        let answer = replication.outgoing(self.connection, Vec::new(), *now_ms, cores);
        events.extend(replication.take_events());
        self.stream.receive(&answer.unwrap_or_default(), 0);
        while let Some(message) = self.stream.next().unwrap() {
            for frame in decode(message).unwrap() {
                if let Frame::Message { kind, body, .. } = frame {
                    self.heard.extend(Message::decode(kind, body).unwrap());
                }
            }
        }
    }

    fn raw(&mut self, message: &[u8]) {
        if self.stream.send(message, 0).is_ok() {
            self.carry();
        }
    }

    fn say(&mut self, message: &Message) {
        let body = message.encode();
        self.raw(&Frame::Message { channel: 1, kind: message.kind(), body: &body }.encode());
    }

    fn sync(&mut self, fork: u64, length: u64) {
        let (can_upgrade, uploading, downloading) = (true, true, true);
        let (has_manifest, allow_push) = (true, false);
        let remote_length = self.house.core().shown().length;
        self.say(&Message::Sync(Sync {
            fork,
            length,
            remote_length,
            can_upgrade,
            uploading,
            downloading,
            has_manifest,
            allow_push,
        }));
    }

    /// Takes the requests that were heard.
    fn requests(&mut self) -> Vec<(u64, Request)> {
        self.heard
            .drain(..)
            .filter_map(|message| match message {
                Message::Request { id, wanted, .. } => Some((id, wanted)),
                _ => None,
            })
            .collect()
    }

    fn answer(&mut self, request: u64, proof: Proof) {
        let manifest = Some(verifier(false).0.manifest().clone());
        self.say(&Message::Data(Box::new(Data { request, proof, manifest })));
    }

    /// The house has the true tree, and has asked for blocks.
    fn upgraded() -> (Stranger, MemoryCore, Vec<(u64, Request)>) {
        let (mut stranger, truth) = (Stranger::at_reader(), written(LENGTH));
        stranger.sync(0, LENGTH);
        let (id, wanted) = stranger.requests().pop().unwrap();
        stranger.answer(id, truth.prove(&wanted).unwrap());
        stranger.say(&Message::Range { drop: false, start: 0, length: LENGTH });
        let requests = stranger.requests();
        assert_eq!(stranger.house.refused, []);
        assert_eq!(stranger.house.core().shown().length, LENGTH);
        assert!(!requests.is_empty());
        (stranger, truth, requests)
    }

    fn refusal(&self) -> Option<&Refusal> {
        self.house.refused.first()
    }
}

fn written(length: u64) -> MemoryCore {
    let (verifier, pair) = verifier(false);
    let mut core = MemoryCore::writer(verifier, pair);
    let blocks: Vec<Vec<u8>> = (0..length).map(block).collect();
    core.append(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    core
}

#[test]
fn a_wrong_block_or_node_is_refused() {
    for spoil in [
        (|proof| proof.block.as_mut().unwrap().value.push(1)) as fn(&mut Proof),
        |proof| proof.block.as_mut().unwrap().nodes[0].hash[5] ^= 1,
        |proof| proof.block.as_mut().unwrap().nodes[0].size += 1,
        |proof| proof.block.as_mut().unwrap().nodes.truncate(1),
        |proof| proof.block.as_mut().unwrap().index += 1,
    ] {
        let (mut stranger, truth, requests) = Stranger::upgraded();
        let (id, wanted) = requests[0];
        let mut proof = truth.prove(&wanted).unwrap();
        spoil(&mut proof);
        stranger.answer(id, proof);
        assert!(matches!(stranger.refusal(), Some(Refusal::Data(DataError::BadProof(_)))));
        assert!((0..LENGTH).all(|index| !stranger.house.core().has(index)));
        assert!(stranger.house.replication.peers(1).is_empty());
    }
}

#[test]
fn a_tree_that_is_not_signed_is_refused() {
    for spoil in [
        (|upgrade| upgrade.signature[10] ^= 1) as fn(&mut UpgradeProof),
        |upgrade| upgrade.signature.clear(),
        |upgrade| upgrade.nodes[0].hash[0] ^= 1,
        |upgrade| upgrade.length -= 1,
        |upgrade| upgrade.length = 1 << 50,
        |upgrade| upgrade.nodes.extend([Node { index: 1 << 51, size: 1 << 52, hash: [0; 32] }]),
    ] {
        let (mut stranger, truth) = (Stranger::at_reader(), written(LENGTH));
        stranger.sync(0, LENGTH);
        let (id, wanted) = stranger.requests()[0];
        let mut proof = truth.prove(&wanted).unwrap();
        spoil(proof.upgrade.as_mut().unwrap());
        stranger.answer(id, proof);
        assert!(matches!(stranger.refusal(), Some(Refusal::Data(_))), "{:?}", stranger.refusal());
        assert_eq!(stranger.house.core().shown().length, 0);
    }
}

#[test]
fn a_fork_that_is_not_signed_is_refused() {
    let (mut stranger, _, _) = Stranger::upgraded();
    let mut liar = written(30);
    liar.truncate(20, 7).unwrap();
    stranger.sync(7, 20);
    let (id, wanted) = stranger.requests().pop().unwrap();
    assert_eq!(wanted.upgrade, Some(UpgradeWanted { start: 0, length: 20 }));
    let mut proof = liar.prove(&wanted).unwrap();
    proof.upgrade.as_mut().unwrap().signature[30] ^= 1;
    stranger.answer(id, proof);
    assert_eq!(stranger.refusal(), Some(&Refusal::Data(DataError::BadSignature)));
    assert_eq!(stranger.house.core().shown().fork, 0);
}

#[test]
fn absurd_claims_are_only_claims() {
    let mut stranger = Stranger::at_reader();
    for at in 0..53 {
        stranger.sync(0, 1 << at);
        stranger.say(&Message::Range { drop: false, start: 0, length: (1 << 53) - 1 });
        stranger.say(&Message::Range { drop: at % 2 == 0, start: 1 << at, length: 1 << 40 });
        stranger.say(&Message::Bitfield { start: 1 << at, words: vec![0xaaaa_aaaa; 1024] });
        stranger.say(&Message::Want(Span { start: 0, length: (1 << 53) - 1, any: at % 2 == 0 }));
    }
    assert_eq!(stranger.house.refused, []);
    assert_eq!(stranger.house.core().shown().length, 0);
    stranger.say(&Message::Bitfield { start: 0, words: vec![1; (1 << 16) + 1] });
    assert!(matches!(stranger.refusal(), Some(Refusal::Flood(_))));
}

#[test]
fn what_was_not_asked_for_is_not_looked_at() {
    let (mut stranger, truth, requests) = Stranger::upgraded();
    let unasked = Request { block: Some(Wanted { index: 3, nodes: 6 }), ..Request::default() };
    let proof = truth.prove(&unasked).unwrap();
    for request in [0, 1 << 40] {
        stranger.answer(request, proof.clone());
    }
    assert_eq!(stranger.house.refused, []);
    assert!(!stranger.house.core().has(3));
    // The true answer to another request is refused.
    let (id, _) = requests.iter().find(|(_, wanted)| wanted.block.unwrap().index != 3).unwrap();
    stranger.answer(*id, proof);
    assert!(matches!(stranger.refusal(), Some(Refusal::Data(DataError::BadProof(_)))));
}

#[test]
fn floods_of_requests_end() {
    let request = |id, index| Message::Request {
        id,
        fork: 0,
        wanted: Request { block: Some(Wanted { index, nodes: 0 }), ..Request::default() },
        manifest: false,
        priority: 0,
    };
    // In one batch, so that none can be answered in between.
    let mut stranger = Stranger::at_writer();
    let bodies: Vec<Vec<u8>> = (0..5000).map(|id| request(id, 1).encode()).collect();
    let frames: Vec<Frame<'_>> =
        bodies.iter().map(|body| Frame::Message { channel: 1, kind: 1, body }).collect();
    stranger.raw(&cloudpal_data::mux::encode_batch(&frames));
    assert_eq!(stranger.refusal(), Some(&Refusal::Flood("over 4096 requests at once")));

    // Such as no tree could answer.
    let mut stranger = Stranger::at_writer();
    for id in 0..100 {
        let wanted =
            Request { upgrade: Some(UpgradeWanted { start: 1 << 40, length: 5 }), ..Request::default() };
        stranger.say(&Message::Request { id, fork: 0, wanted, manifest: false, priority: 0 });
    }
    let gone = |event: &Event| matches!(event, Event::Disconnected { reason: Some(Refusal::Flood(_)), .. });
    assert!(stranger.house.events.iter().any(gone));

    // Of blocks that are not here it is told so, and no more.
    let mut stranger = Stranger::at_writer();
    for id in 0..1000 {
        stranger.say(&request(id, 1 << 45));
    }
    let refused =
        stranger.heard.iter().filter(|message| matches!(message, Message::NoData { reason: 1, .. }));
    assert_eq!(refused.count(), 1000);
}

/// A peer that asks and does not read costs one buffer, not one for each request.
#[test]
fn who_does_not_read_costs_little() {
    let mut stranger = Stranger::at_writer();
    stranger.house.core_mut().append(&[&vec![5; 1 << 20]]).unwrap();
    for id in 0..1000 {
        let wanted = Request { block: Some(Wanted { index: LENGTH, nodes: 0 }), ..Request::default() };
        let body = Message::Request { id, fork: 0, wanted, manifest: false, priority: 0 }.encode();
        stranger.stream.send(&Frame::Message { channel: 1, kind: 1, body: &body }.encode(), 0).unwrap();
    }
    let bytes = stranger.stream.take_outgoing(Vec::new());
    stranger.house.receive(stranger.connection, &bytes);
    let House { replication, cores, .. } = &mut stranger.house;
    let first = replication.outgoing(stranger.connection, Vec::new(), 0, cores).unwrap();
    assert!(first.len() > 1 << 20 && first.len() < 3 << 20, "{}", first.len());
}

#[test]
fn malformed_frames_end_the_connection() {
    for message in [&[0, 0, 0, 3, 0, 0, 0][..], &[0, 1, 9], &[0, 1, 5, 1, 65, 0], &[255, 1], &[1, 3, 31]] {
        let mut stranger = Stranger::at_reader();
        stranger.raw(message);
        assert!(matches!(stranger.refusal(), Some(Refusal::Data(_))), "{message:?}");
    }
}

#[test]
fn half_frames_and_endless_handshakes() {
    let mut house = House::new(2, written(10));
    let connection = house.replication.connect(false, entropy(1), 0);
    for byte in [32, 0] {
        house.receive(connection, &[byte]);
    }
    house.pass_time(9_000);
    house.receive(connection, &[0]);
    assert!(house.replication.take_events().is_empty());
    house.pass_time(1_500);
    let reason = Some(Refusal::Stream(StreamError::TimedOut));
    assert_eq!(house.replication.take_events(), [Event::Disconnected { connection, reason }]);

    let connection = house.replication.connect(false, entropy(2), 0);
    house.receive(connection, &[255, 255, 255]);
    assert!(matches!(house.refused.first(), Some(Refusal::Stream(StreamError::Handshake(_)))));
}

fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..300u64, 1 => (0..53u32).prop_map(|bits| 1 << bits), 1 => 0..(1u64 << 53)]
}

fn any_wanted() -> impl Strategy<Value = Request> {
    let pair = || proptest::option::of((any_number(), any_number()));
    (pair(), pair(), pair()).prop_map(|(block, hash, upgrade)| Request {
        block: block.map(|(index, nodes)| Wanted { index, nodes }),
        hash: hash.map(|(index, nodes)| Wanted { index, nodes }),
        seek: None,
        upgrade: upgrade.map(|(start, length)| UpgradeWanted { start, length }),
    })
}

fn any_message() -> impl Strategy<Value = Message> {
    let n = any_number;
    prop_oneof![
        (n(), n(), n(), any::<bool>()).prop_map(|(fork, length, remote_length, can_upgrade)| {
            Message::Sync(Sync {
                fork: fork % 4,
                length,
                remote_length: remote_length % 3 * LENGTH,
                can_upgrade,
                uploading: true,
                downloading: true,
                has_manifest: true,
                allow_push: false,
            })
        }),
        (n(), 0..3u64, any_wanted(), any::<bool>()).prop_map(|(id, fork, wanted, manifest)| {
            Message::Request { id, fork, wanted, manifest, priority: 0 }
        }),
        n().prop_map(|request| Message::Cancel { request }),
        (1..40u64, any::<bool>()).prop_map(|(request, _)| Message::NoData { request, reason: 1 }),
        (n(), n(), any::<bool>()).prop_map(|(start, length, any)| Message::Want(Span { start, length, any })),
        (n(), n(), any::<bool>()).prop_map(|(start, length, any)| Message::Unwant(Span {
            start,
            length,
            any
        })),
        (n(), proptest::collection::vec(any::<u32>(), 0..5))
            .prop_map(|(start, words)| Message::Bitfield { start, words }),
        (any::<bool>(), n(), n()).prop_map(|(drop, start, length)| Message::Range { drop, start, length }),
        (1..40u64, n(), proptest::collection::vec(any::<u8>(), 0..50)).prop_map(|(request, index, value)| {
            let block = Some(BlockProof::new(index, value, Vec::new()));
            Message::Data(Box::new(Data {
                request,
                proof: Proof { block, ..Proof::default() },
                manifest: None,
            }))
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is said, in whatever order: nobody panics, and of the core there is nothing but the truth.
    #[test]
    fn anything_may_be_said(messages in proptest::collection::vec(any_message(), 1..40), to_writer: bool) {
        let mut stranger = if to_writer { Stranger::at_writer() } else { Stranger::upgraded().0 };
        for message in &messages {
            stranger.say(message);
        }
        stranger.house.pass_time(11_000);
        stranger.carry();
        prop_assert_eq!(stranger.house.core().shown().length, LENGTH);
        for index in 0..LENGTH {
            if let Some(found) = stranger.house.core().get(index) {
                prop_assert_eq!(found, &block(index)[..]);
            }
        }
    }

    #[test]
    fn any_bytes_may_be_said(
        messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..8),
    ) {
        let mut stranger = Stranger::at_writer();
        for message in &messages {
            stranger.raw(message);
        }
    }
}

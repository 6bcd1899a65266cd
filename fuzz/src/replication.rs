//! A peer that has come through the handshake and knows the core's key, and says what it likes. Nothing is kept that
//! the core's writer has not signed.

use crate::{
    program::Bytes,
    replication_kit::{House, block, entropy, verifier},
};
use cloudpal_data::{
    crypto::{self, KeyPair},
    mux::{Frame, decode},
    replication::{MemoryCore, Replica},
    stream::{Entropy, Options, SecretStream},
    wire::{Handshake, PROTOCOL, capability},
};

/// What the writer at whom half of the peers call has written.
const LENGTH: u64 = 20;
/// The longest core of that key that is signed anywhere in the golden data.
const SIGNED_MAX: u64 = 55;
/// Longer conversations find nothing that shorter ones do not.
const MESSAGES_MAX: usize = 64;

struct Stranger {
    stream: SecretStream,
    house: House,
    connection: u64,
}

impl Stranger {
    fn at(mut house: House) -> Self {
        house.share();
        let connection = house.replication.connect(false, entropy(1), 0);
        let entropy = Entropy::from_bytes(&[8; 56]);
        let stream = SecretStream::new(true, KeyPair::from_seed(&[6; 32]), entropy, Options::default(), 0);
        let mut stranger = Stranger { stream, house, connection };
        for _ in 0..4 {
            stranger.carry();
        }
        stranger
    }

    fn open(&mut self) {
        let key = self.house.core().key();
        let session = self.stream.session().expect("the handshake is over");
        let capability = capability(true, &key, &session.handshake_hash);
        let rest = Handshake { seeks: true, capability }.encode();
        let id = crypto::discovery_key(&key);
        self.say(&Frame::Open { channel: 1, protocol: PROTOCOL, id: &id, rest: &rest }.encode());
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
        while let Some(message) = self.stream.next().expect("what the house says is sound") {
            decode(message).expect("what the house says are frames");
        }
    }

    fn say(&mut self, message: &[u8]) {
        if self.stream.send(message, 0).is_ok() {
            self.carry();
        }
    }
}

fn house(writes: bool) -> House {
    let (verifier, pair) = verifier(false);
    if !writes {
        let mut house = House::new(2, MemoryCore::reader(*verifier.key()));
        house.replication.download(1, 0, None);
        return house;
    }
    let mut core = MemoryCore::writer(verifier, pair);
    let blocks: Vec<Vec<u8>> = (0..LENGTH).map(block).collect();
    core.append(&blocks.iter().map(Vec::as_slice).collect::<Vec<_>>()).expect("blocks");
    House::new(2, core)
}

/// A byte of flags, then messages: a kind, a length, a body. Kinds from 128 on are whole frames.
pub fn digest(bytes: &[u8]) {
    let mut said = Bytes(bytes);
    let flags = said.u8();
    let mut stranger = Stranger::at(house(flags & 1 != 0));
    if flags & 2 == 0 {
        stranger.open();
    }
    for _ in 0..MESSAGES_MAX {
        if said.is_empty() {
            break;
        }
        let (kind, len) = (said.u8(), said.u16());
        let body = said.take(usize::from(len));
        match kind {
            0..128 => stranger.say(&Frame::Message { channel: 1, kind: (kind % 11).into(), body }.encode()),
            _ => stranger.say(body),
        }
        if flags & 4 != 0 {
            stranger.house.pass_time(100);
            stranger.carry();
        }
    }
    let shown = stranger.house.core().shown();
    assert_eq!(shown.fork, 0, "a fork that was never signed");
    assert!(shown.length <= SIGNED_MAX, "a tree that was never signed");
}

//! Houses, each with its cores and its replication, and wires between them that carry bytes when told to.

#![allow(dead_code)] // each test uses its part

use cloudpal_data::crypto::KeyPair;
use cloudpal_data::manifest::Manifest;
use cloudpal_data::replication::{Event, MemoryCore, MemoryCores, Options, Refusal, Replication};
use cloudpal_data::signature::Verifier;
use cloudpal_data::stream::Entropy;

pub fn block(index: u64) -> Vec<u8> {
    crate::golden_kit::block(index, (index * 37) % 101)
}

pub fn verifier(compat: bool) -> (Verifier, KeyPair) {
    let pair = KeyPair::from_seed(&[1; 32]);
    let manifest = Manifest::single(pair.public_key());
    let verifier = match compat {
        true => Verifier::compat(pair.public_key()),
        false => Verifier::new(manifest.key(), manifest).unwrap(),
    };
    (verifier, pair)
}

pub fn entropy(from: u64) -> Entropy {
    let mut bytes = [7; 56];
    bytes[..8].copy_from_slice(&from.to_le_bytes());
    bytes[40..48].copy_from_slice(&from.to_le_bytes());
    Entropy::from_bytes(&bytes)
}

/// The other end of one of a house's connections.
#[derive(Clone, Copy, Debug)]
struct Wire {
    connection: u64,
    to: usize,
    their_connection: u64,
    cut: bool,
}

pub struct House {
    pub replication: Replication,
    pub cores: MemoryCores,
    pub events: Vec<Event>,
    pub refused: Vec<Refusal>,
    pub now_ms: u64,
    pub sent: usize,
    wires: Vec<Wire>,
}

impl House {
    pub fn new(seed: u8, core: MemoryCore) -> Self {
        House {
            replication: Replication::new(KeyPair::from_seed(&[seed; 32]), Options::default()),
            cores: MemoryCores::of(core),
            events: Vec::new(),
            refused: Vec::new(),
            now_ms: 0,
            sent: 0,
            wires: Vec::new(),
        }
    }

    /// A writer with some blocks and a reader with none, connected.
    pub fn pair(compat: bool, length: u64) -> Vec<House> {
        let (verifier, pair) = verifier(compat);
        let reader = MemoryCore::reader(*verifier.key());
        let mut houses = vec![House::new(1, MemoryCore::writer(verifier, pair)), House::new(2, reader)];
        let blocks: Vec<Vec<u8>> = (0..length).map(block).collect();
        let blocks: Vec<&[u8]> = blocks.iter().map(Vec::as_slice).collect();
        houses[0].core_mut().append(&blocks).unwrap();
        houses.iter_mut().for_each(House::share);
        House::connect(&mut houses, 0, 1);
        houses
    }

    pub fn core(&self) -> &MemoryCore {
        &self.cores.cores[&1]
    }

    pub fn core_mut(&mut self) -> &mut MemoryCore {
        self.cores.cores.get_mut(&1).unwrap()
    }

    pub fn share(&mut self) {
        self.replication.share(1, &self.cores.cores[&1]);
    }

    pub fn changed(&mut self) {
        self.replication.changed(1);
    }

    pub fn append(&mut self, blocks: &[&[u8]]) {
        self.core_mut().append(blocks).unwrap();
        self.changed();
    }

    pub fn pass_time(&mut self, ms: u64) {
        self.now_ms += ms;
        self.replication.tick(self.now_ms);
    }

    /// Answers the number of the connection at `b`.
    pub fn connect(houses: &mut [House], a: usize, b: usize) -> u64 {
        let number = houses.iter().map(|house| house.wires.len() as u64).sum::<u64>() * 100;
        let now_ms = houses[a].now_ms;
        let ours = houses[a].replication.connect(true, entropy(number + a as u64), now_ms);
        let now_ms = houses[b].now_ms;
        let theirs = houses[b].replication.connect(false, entropy(number + 50 + b as u64), now_ms);
        let wire = Wire { connection: ours, to: b, their_connection: theirs, cut: false };
        houses[a].wires.push(wire);
        houses[b].wires.push(Wire { connection: theirs, to: a, their_connection: ours, cut: false });
        theirs
    }

    /// Nothing more arrives over the last house's `connection`, in both directions; nobody is told.
    pub fn cut(houses: &mut [House], connection: u64, cut: bool) {
        let last = houses.len() - 1;
        for (at, house) in houses.iter_mut().enumerate() {
            for wire in &mut house.wires {
                let here = at == last && wire.connection == connection;
                if here || (wire.to == last && wire.their_connection == connection) {
                    wire.cut = cut;
                }
            }
        }
    }

    /// Carries bytes until there are no more.
    pub fn run(houses: &mut [House]) {
        while House::step(houses) > 0 {}
    }

    pub fn step(houses: &mut [House]) -> usize {
        let mut carried = 0;
        for from in 0..houses.len() {
            for wire in houses[from].wires.clone() {
                let now_ms = houses[from].now_ms;
                let House { replication, cores, sent, .. } = &mut houses[from];
                let Ok(bytes) = replication.outgoing(wire.connection, Vec::new(), now_ms, cores) else {
                    continue;
                };
                *sent += bytes.len();
                if bytes.is_empty() || wire.cut {
                    continue;
                }
                carried += bytes.len();
                houses[wire.to].receive(wire.their_connection, &bytes);
            }
        }
        for house in houses {
            house.events.extend(house.replication.take_events());
        }
        carried
    }

    pub fn receive(&mut self, connection: u64, bytes: &[u8]) {
        let House { replication, cores, now_ms, .. } = self;
        if let Err(refusal) = replication.receive(connection, bytes, *now_ms, cores) {
            self.refused.push(refusal);
        }
    }
}

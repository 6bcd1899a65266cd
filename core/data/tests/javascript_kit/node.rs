//! A peer of ours on TCP: a thread reads each socket, the test's thread does the rest.

#![allow(dead_code)] // each test uses its part

use crate::javascript_kit::Peer;
use crate::replication_kit::entropy;
use cloudpal_data::crypto::KeyPair;
use cloudpal_data::replication::{Event, MemoryCore, MemoryCores, Options, Refusal, Replication};
use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

type Came = (u64, Option<Vec<u8>>);

pub struct Node {
    pub replication: Replication,
    pub cores: MemoryCores,
    pub events: Vec<Event>,
    pub refused: Vec<(u64, Refusal)>,
    pub received: BTreeMap<u64, usize>,
    sockets: HashMap<u64, TcpStream>,
    came: Receiver<Came>,
    sender: Sender<Came>,
    started: Instant,
    seed: u64,
}

impl Node {
    pub fn new(seed: u8, core: MemoryCore) -> Self {
        let (sender, came) = channel();
        let replication = Replication::new(KeyPair::from_seed(&[seed; 32]), Options::default());
        let mut node = Node {
            replication,
            cores: MemoryCores::of(core),
            events: Vec::new(),
            refused: Vec::new(),
            received: BTreeMap::new(),
            sockets: HashMap::new(),
            came,
            sender,
            started: Instant::now(),
            seed: u64::from(seed) << 32,
        };
        node.replication.share(1, &node.cores.cores[&1]);
        node
    }

    pub fn core(&self) -> &MemoryCore {
        &self.cores.cores[&1]
    }

    pub fn append(&mut self, blocks: &[&[u8]]) {
        self.cores.cores.get_mut(&1).unwrap().append(blocks).unwrap();
        self.replication.changed(1);
    }

    pub fn truncate(&mut self, length: u64, fork: u64) {
        self.cores.cores.get_mut(&1).unwrap().truncate(length, fork).unwrap();
        self.replication.changed(1);
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Connects to a JavaScript peer that listens.
    pub fn dial(&mut self, peer: &mut Peer) -> u64 {
        let port = peer.ask(&serde_json::json!({"do": "listen"}))["port"].as_u64().unwrap() as u16;
        self.carry(true, TcpStream::connect(("127.0.0.1", port)).unwrap())
    }

    /// Lets a JavaScript peer connect to us.
    pub fn accept(&mut self, peer: &mut Peer) -> u64 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        peer.ask(&serde_json::json!({"do": "dial", "port": port}));
        self.carry(false, listener.accept().unwrap().0)
    }

    pub fn carry(&mut self, initiator: bool, socket: TcpStream) -> u64 {
        self.seed += 1;
        let connection = self.replication.connect(initiator, entropy(self.seed), self.now_ms());
        socket.set_nodelay(true).unwrap();
        let (mut reading, sender) = (socket.try_clone().unwrap(), self.sender.clone());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            loop {
                let count = reading.read(&mut buffer).unwrap_or(0);
                let came = (count > 0).then(|| buffer[..count].to_vec());
                if sender.send((connection, came)).is_err() || count == 0 {
                    return;
                }
            }
        });
        self.sockets.insert(connection, socket);
        connection
    }

    pub fn hang_up(&mut self, connection: u64) {
        self.replication.disconnect(connection);
        if let Some(socket) = self.sockets.remove(&connection) {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Carries bytes until `done` says so. Fails after two minutes.
    pub fn run_until(&mut self, what: &str, mut done: impl FnMut(&mut Node) -> bool) {
        let started = Instant::now();
        loop {
            self.write();
            self.events.extend(self.replication.take_events());
            if done(self) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "{what} takes over two minutes");
            let mut next = self.came.recv_timeout(Duration::from_millis(5)).ok();
            while let Some((connection, bytes)) = next {
                self.read(connection, bytes);
                next = self.came.try_recv().ok();
            }
            self.replication.tick(self.now_ms());
        }
    }

    pub fn run_for(&mut self, ms: u64) {
        let started = Instant::now();
        self.run_until("waiting", |_| started.elapsed() >= Duration::from_millis(ms));
    }

    /// Asks a JavaScript peer, and goes on meanwhile.
    pub fn ask(&mut self, peer: &mut Peer, command: serde_json::Value) -> serde_json::Value {
        peer.tell(&command);
        let mut answer = None;
        self.run_until(&command.to_string(), |_| {
            answer = peer.try_hear();
            answer.is_some()
        });
        let answer = answer.unwrap();
        assert_eq!(answer.get("error"), None, "{command}");
        answer
    }

    fn read(&mut self, connection: u64, bytes: Option<Vec<u8>>) {
        let now_ms = self.now_ms();
        match bytes {
            Some(bytes) => {
                *self.received.entry(connection).or_default() += bytes.len();
                let Node { replication, cores, .. } = self;
                match replication.receive(connection, &bytes, now_ms, cores) {
                    Ok(()) | Err(Refusal::NoConnection) => {}
                    Err(refusal) => {
                        self.refused.push((connection, refusal));
                        self.hang_up(connection);
                    }
                }
            }
            None => self.hang_up(connection),
        }
    }

    fn write(&mut self) {
        let mut spare = Vec::new();
        loop {
            let mut quiet = true;
            for connection in self.replication.take_ready() {
                let now_ms = self.now_ms();
                let Node { replication, cores, sockets, .. } = self;
                let Ok(bytes) = replication.outgoing(connection, spare, now_ms, cores) else {
                    spare = Vec::new();
                    continue;
                };
                if !bytes.is_empty() {
                    quiet = false;
                    // A closed socket is told of by its reader.
                    let _ = sockets.get(&connection).map(|mut socket| socket.write_all(&bytes));
                }
                spare = bytes;
            }
            if quiet {
                return;
            }
        }
    }
}

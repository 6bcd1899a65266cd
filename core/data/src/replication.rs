//! Replication: many cores over many connections, the blocks of each asked of whichever peer has them.
//!
//! ```text
//! connection: Handshake -> Open -> gone (closed, or refused with a reason)
//! core at a peer: asked or offered -> open -> synced -> asked for blocks and asking for them -> gone
//! block: missing -> under way at one peer -> here
//!                ^---- noData, silence, disconnection
//! ```
//! Nothing here does IO or knows the time: bytes come with [`Replication::receive`], and are fetched with
//! [`Replication::outgoing`] when the transport can take them. All that is sent is made then and not before, so a
//! slow peer costs no memory. The cores themselves are elsewhere, behind [`Replicas`].
//!
//! Invariants: a block is asked of one peer at a time; nothing is kept that was not proved; who sends what is not
//! genuine is dropped with a reason; what is held for a peer is bounded.

mod ask;
mod bits;
mod connection;
mod fork;
mod memory;
mod peer;
mod receive;
mod replica;
mod stored;
mod tell;

pub use memory::{MemoryCore, MemoryCores};
pub use replica::{NewFork, Replica, Replicas, Shown};
pub use stored::StoredCores;

use crate::crypto::{KeyPair, PublicKey};
use crate::error::DataError;
use crate::stream::{self, Entropy, SecretStream, StreamError};
use crate::wire::Message;
use connection::{Connection, Lines};
use peer::{CoreState, Download, Peer, Seek};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use thiserror::Error;

/// Why a connection was ended from our side.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("the peer does not know the key of the core that it names")]
    Capability,
    #[error("the peer asks for too much: {0}")]
    Flood(&'static str),
    #[error("there is no such connection")]
    NoConnection,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The handshake with the peer is over.
    Connected {
        connection: u64,
        remote: PublicKey,
    },
    /// A connection is gone, with the reason if we have ended it.
    Disconnected {
        connection: u64,
        reason: Option<Refusal>,
    },
    PeerAdded {
        core: u64,
        connection: u64,
    },
    PeerRemoved {
        core: u64,
        connection: u64,
    },
    /// The core has become longer.
    Grown {
        core: u64,
        fork: u64,
        length: u64,
    },
    /// Another history was adopted, of which the first `ancestors` blocks are the same.
    Reorganised {
        core: u64,
        fork: u64,
        ancestors: u64,
        length: u64,
    },
    /// A block that was waited for is here.
    Block {
        core: u64,
        index: u64,
    },
    /// All of a download is here.
    Downloaded {
        core: u64,
        download: u64,
    },
    Sought {
        core: u64,
        bytes: u64,
    },
    Extension {
        core: u64,
        connection: u64,
        name: String,
        message: Vec<u8>,
    },
    /// Nothing more is written to the core: [`DataError::Behind`], until it has caught up, or
    /// [`DataError::Conflict`]; then nothing is asked for either.
    Frozen {
        core: u64,
        error: DataError,
    },
    /// Our own storage failed: the core asks for nothing more until [`Replication::resume`].
    Failed {
        core: u64,
        error: DataError,
    },
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub stream: stream::Options,
    /// A peer that answers nothing for so long is asked no more for a while, and others instead.
    pub request_timeout_ms: u64,
    /// At most so many requests are under way at a peer for one core.
    pub window_blocks: usize,
    /// At most so many bytes are asked for, going by the blocks' average size.
    pub window_bytes: u64,
    /// No more is made to be sent while so many bytes wait.
    pub backlog_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            stream: stream::Options::default(),
            request_timeout_ms: 10_000,
            window_blocks: 512,
            window_bytes: 8 << 20,
            backlog_bytes: 512 << 10,
        }
    }
}

/// What is known of a core's peer, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerInfo {
    pub connection: u64,
    pub remote: Option<PublicKey>,
    pub length: u64,
    pub fork: u64,
    pub contiguous_length: u64,
    pub requests_under_way: usize,
}

pub struct Replication {
    own: KeyPair,
    options: Options,
    connections: HashMap<u64, Connection>,
    last_connection: u64,
    cores: BTreeMap<u64, CoreState>,
    last_download: u64,
    events: VecDeque<Event>,
    /// Cores about which their peers are to be told.
    touched: BTreeSet<u64>,
    /// Cores in which something that is waited for may be here.
    unsettled: BTreeSet<u64>,
    /// Connections that may have something to send.
    ready: BTreeSet<u64>,
}

impl Replication {
    pub fn new(own: KeyPair, options: Options) -> Self {
        Replication {
            own,
            options,
            connections: HashMap::new(),
            last_connection: 0,
            cores: BTreeMap::new(),
            last_download: 0,
            events: VecDeque::new(),
            touched: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            ready: BTreeSet::new(),
        }
    }

    /// A new connection, over whatever carries bytes. Answers its number.
    pub fn connect(&mut self, initiator: bool, entropy: Entropy, now_ms: u64) -> u64 {
        self.last_connection += 1;
        let id = self.last_connection;
        let stream = SecretStream::new(initiator, self.own.clone(), entropy, self.options.stream, now_ms);
        self.connections.insert(id, Connection { stream, lines: Lines::default() });
        self.ready.insert(id);
        id
    }

    /// The transport's connection is gone.
    pub fn disconnect(&mut self, connection: u64) {
        self.end(connection, None);
    }

    fn end(&mut self, connection: u64, reason: Option<Refusal>) {
        let Some(gone) = self.connections.remove(&connection) else { return };
        for core in gone.lines.cores.values() {
            if let Some(state) = self.cores.get_mut(core) {
                let was_open = state.peers.get(&connection).is_some_and(|peer| peer.open);
                state.remove_peer(connection);
                self.touched.insert(*core);
                if was_open {
                    self.events.push_back(Event::PeerRemoved { core: *core, connection });
                }
            }
        }
        self.events.push_back(Event::Disconnected { connection, reason });
        self.spread();
    }

    /// Bytes have come. A refusal ends the connection: the transport is to close it.
    pub fn receive<C: Replicas>(
        &mut self,
        connection: u64,
        bytes: &[u8],
        now_ms: u64,
        replicas: &mut C,
    ) -> Result<(), Refusal> {
        let Some(mut taken) = self.connections.remove(&connection) else {
            return Err(Refusal::NoConnection);
        };
        taken.stream.receive(bytes, now_ms);
        let outcome = self.read_all(connection, &mut taken, now_ms, replicas);
        self.connections.insert(connection, taken);
        self.ready.insert(connection);
        if let Err(refusal) = &outcome {
            self.end(connection, Some(refusal.clone()));
        }
        self.settle(replicas);
        self.spread();
        outcome
    }

    /// What is to be sent now. `spare` is a buffer that is no longer used.
    pub fn outgoing<C: Replicas>(
        &mut self,
        connection: u64,
        spare: Vec<u8>,
        now_ms: u64,
        replicas: &mut C,
    ) -> Result<Vec<u8>, Refusal> {
        let Some(mut taken) = self.connections.remove(&connection) else {
            return Err(Refusal::NoConnection);
        };
        self.ready.remove(&connection);
        let outcome = self.write_all(connection, &mut taken, now_ms, replicas);
        let bytes = taken.stream.take_outgoing(spare);
        if !bytes.is_empty() {
            self.ready.insert(connection);
        }
        self.connections.insert(connection, taken);
        if let Err(refusal) = outcome {
            self.end(connection, Some(refusal.clone()));
            return Err(refusal);
        }
        Ok(bytes)
    }

    /// The connections that may have something to send since this was last asked.
    pub fn take_ready(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.ready)
    }

    pub fn take_events(&mut self) -> VecDeque<Event> {
        std::mem::take(&mut self.events)
    }

    /// Replicates a core with all peers that know it.
    pub fn share<R: Replica>(&mut self, core: u64, replica: &R) {
        let (key, discovery_key) = (replica.key(), replica.discovery_key());
        let state = self.cores.entry(core).or_default();
        (state.key, state.discovery_key) = (key, discovery_key);
        for (id, connection) in &mut self.connections {
            if state.peers.contains_key(id) {
                continue;
            }
            if let Some(channel) = connection.lines.open(core, &key, &discovery_key, None) {
                state.peers.insert(*id, Peer { channel, ..Peer::default() });
                self.ready.insert(*id);
            }
        }
    }

    /// Ends the replication of a core.
    pub fn unshare(&mut self, core: u64) {
        let Some(state) = self.cores.remove(&core) else { return };
        for (id, peer) in &state.peers {
            if let Some(connection) = self.connections.get_mut(id) {
                connection.lines.close(peer.channel);
                self.ready.insert(*id);
            }
        }
    }

    /// The core was appended to, or cut, by its writer.
    pub fn changed(&mut self, core: u64) {
        self.touched.insert(core);
        self.unsettled.insert(core);
        if let Some(state) = self.cores.get_mut(&core) {
            state.peers.values_mut().for_each(|peer| peer.cursor = 0);
        }
        self.spread();
    }

    /// Blocks were cleared here.
    pub fn dropped(&mut self, core: u64, start: u64, length: u64) {
        if let Some(state) = self.cores.get_mut(&core) {
            for peer in state.peers.values_mut() {
                peer.look_again_from(start);
                peer.dropped.push((start, length));
            }
        }
        self.touched.insert(core);
        self.spread();
    }

    /// Wants the blocks from `start` up to `end`, or all that there are and will be. Answers its number.
    pub fn download(&mut self, core: u64, start: u64, end: Option<u64>) -> u64 {
        self.last_download += 1;
        let id = self.last_download;
        let state = self.cores.entry(core).or_default();
        state.downloads.push(Download { id, from: start, start, end });
        state.peers.values_mut().for_each(|peer| peer.look_again_from(start));
        self.wanted(core);
        id
    }

    /// What is under way still comes.
    pub fn cancel_download(&mut self, core: u64, download: u64) {
        if let Some(state) = self.cores.get_mut(&core) {
            state.downloads.retain(|each| each.id != download);
        }
    }

    /// Wants one block, before all downloads. [`Event::Block`] tells when it is here.
    pub fn want(&mut self, core: u64, index: u64) {
        self.cores.entry(core).or_default().gets.insert(index);
        self.wanted(core);
    }

    pub fn unwant(&mut self, core: u64, index: u64) {
        if let Some(state) = self.cores.get_mut(&core) {
            state.gets.remove(&index);
        }
    }

    /// Wants the nodes that lead to byte `bytes`. [`Event::Sought`] tells when they are here.
    pub fn want_seek(&mut self, core: u64, bytes: u64, padding: u64) {
        let state = self.cores.entry(core).or_default();
        state.seeks.push(Seek { bytes, padding, under_way: None });
        self.wanted(core);
    }

    fn wanted(&mut self, core: u64) {
        self.unsettled.insert(core);
        self.touched.insert(core);
        self.spread();
    }

    /// After [`Event::Failed`]: the storage is good again.
    pub fn resume(&mut self, core: u64) {
        if let Some(state) = self.cores.get_mut(&core) {
            state.paused = false;
        }
        self.changed(core);
    }

    pub fn send_extension(
        &mut self,
        connection: u64,
        core: u64,
        name: &str,
        message: &[u8],
        now_ms: u64,
    ) -> Result<(), Refusal> {
        let line = self.connections.get_mut(&connection);
        let peer = self.cores.get_mut(&core).and_then(|state| state.peers.get_mut(&connection));
        let (Some(line), Some(peer)) = (line, peer) else { return Err(Refusal::NoConnection) };
        // The same name again is sent as none.
        let again = peer.last_extension_sent == name;
        let told = if again { String::new() } else { name.to_owned() };
        line.send(peer.channel, &Message::Extension { name: told, message: message.to_vec() }, now_ms)?;
        peer.last_extension_sent = name.to_owned();
        self.ready.insert(connection);
        Ok(())
    }

    pub fn peers(&self, core: u64) -> Vec<PeerInfo> {
        let peers = self.cores.get(&core).into_iter().flat_map(|state| &state.peers);
        let open = peers.filter(|(_, peer)| peer.open);
        open.map(|(id, peer)| PeerInfo {
            connection: *id,
            remote: self.connections.get(id).and_then(|each| each.lines.remote().copied()),
            length: peer.remote.map_or(0, |remote| remote.length),
            fork: peer.remote.map_or(0, |remote| remote.fork),
            contiguous_length: peer.bits.contiguous(),
            requests_under_way: peer.asked.len(),
        })
        .collect()
    }

    /// When [`Self::tick`] wants to be called at the latest.
    pub fn deadline_ms(&self) -> Option<u64> {
        let streams = self.connections.values().filter_map(|connection| connection.stream.deadline_ms());
        let peers = self.cores.values().flat_map(|state| state.peers.values());
        let times = peers.flat_map(|peer| {
            let asked = !peer.asked.is_empty();
            let late = asked.then_some(peer.progress_ms + self.options.request_timeout_ms);
            late.into_iter().chain((peer.slow_until_ms > 0).then_some(peer.slow_until_ms))
        });
        streams.chain(times).min()
    }

    /// Lets time pass: keep-alives, handshakes and requests that take too long.
    pub fn tick(&mut self, now_ms: u64) {
        let mut silent = Vec::new();
        for (id, connection) in &mut self.connections {
            let before = connection.backlog();
            match connection.stream.tick(now_ms) {
                Err(error) => silent.push((*id, error)),
                Ok(()) if connection.backlog() > before => drop(self.ready.insert(*id)),
                Ok(()) => {}
            }
        }
        for (id, error) in silent {
            self.end(id, Some(error.into()));
        }
        self.time_out_requests(now_ms);
        self.spread();
    }

    fn time_out_requests(&mut self, now_ms: u64) {
        let timeout_ms = self.options.request_timeout_ms;
        for (core, state) in &mut self.cores {
            for peer in state.peers.values_mut() {
                if peer.slow_until_ms > 0 && now_ms >= peer.slow_until_ms {
                    peer.slow_until_ms = 0;
                    self.touched.insert(*core);
                }
            }
            if state.peers.len() > 1
                && state.under_way.values().any(|(_, since)| now_ms >= since + timeout_ms)
            {
                self.touched.insert(*core); // somebody else may be asked for them
            }
            let late = state
                .peers
                .iter()
                .filter(|(_, peer)| !peer.asked.is_empty() && now_ms >= peer.progress_ms + timeout_ms);
            let late: Vec<u64> = late.map(|(id, _)| *id).collect();
            for id in late {
                let requests = state.release_all(id);
                let Some(peer) = state.peers.get_mut(&id) else { continue };
                peer.slow_until_ms = now_ms + timeout_ms;
                peer.answered = 0;
                let Some(connection) = self.connections.get_mut(&id) else { continue };
                for request in requests {
                    // A stream that fails here fails again, and is ended, when it is next written.
                    let _ = connection.send(peer.channel, &Message::Cancel { request }, now_ms);
                }
                self.touched.insert(*core);
            }
        }
    }

    /// Lets the peers of all touched cores be told and asked.
    fn spread(&mut self) {
        for core in std::mem::take(&mut self.touched) {
            let Some(state) = self.cores.get(&core) else { continue };
            for id in state.peers.keys() {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.lines.attention.insert(core);
                    self.ready.insert(*id);
                }
            }
        }
    }
}

//! virtio-vsock (virtio 1.2, section 5.10): streams between the guest's ports and clients of one unix socket.
//!
//! The client's first line says what it wants, as with Firecracker: `CONNECT <guest's port>\n`, answered by
//! `OK <host's port>\n` once the guest has taken it. A jailed process opens no socket of its own, so for a connection
//! that the guest begins a client waits here beforehand: `ACCEPT <host's port>\n`, answered by `OK <guest's port>\n`
//! when the guest comes. Each waits for one connection; a guest that nobody waits for is refused.
//!
//! Invariants:
//! - There are `CONNECTIONS_MAX` clients at most; the others wait in the listener's queue. None costs more memory than
//!   `connection::BUFFER`.
//! - A packet of a connection that there is not is answered by a reset, and at most `RESETS_MAX` of those wait.
//! - No connection outlives a snapshot: after a wake the guest is told that all of them are gone.

mod connection;
mod packet;

pub use connection::BUFFER;
pub use packet::{HEADER, HOST_CID, Header, STREAM, op};

use super::{
    Broken, Device, GuestMemory, Mismatch, Source, Work,
    chain::{Chain, Pieces, wants_interrupt},
    copy_config,
};
use connection::{Connection, Due, Gone, Greeting, Phase};
use packet::{NO_RECEIVE, NO_SEND};
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    net::{SocketFlags, accept_with},
    time::Timespec,
};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsRawFd, OwnedFd},
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;
pub const EVENT: usize = 2;
pub const CONNECTIONS_MAX: usize = 64;
const RESETS_MAX: usize = 64;
const STATE_VERSION: u8 = 1;
/// Linux fills the whole receive queue with pages.
const SIZES: [u16; 3] = [64, 64, 4];
const LISTENER: u64 = 0;
/// Ports of the host that a guest sees: above those that anybody listens on.
const FIRST_PORT: u32 = 1 << 30;

pub struct Vsock {
    cid: u64,
    listener: OwnedFd,
    /// Has the listener and all clients in it, edge by edge.
    watch: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    next: u64,
    /// The connection that is served first: each begins in its turn.
    turn: u64,
    resets: VecDeque<(u32, u32)>,
    /// The guest is to be told that all its connections are gone.
    reset_due: bool,
}

impl Vsock {
    /// A guest's number is 3 or more; the socket listens.
    pub fn new(cid: u32, listener: OwnedFd) -> io::Result<Vsock> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&watch, &listener, EventData::new_u64(LISTENER), EventFlags::IN | EventFlags::ET)?;
        Ok(Vsock {
            cid: cid.into(),
            listener,
            watch,
            connections: BTreeMap::new(),
            next: 1,
            turn: 0,
            resets: VecDeque::new(),
            reset_due: false,
        })
    }

    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Sees what the clients have done.
    fn poll(&mut self) {
        self.accept();
        let mut events = [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 32];
        // Each has two edges at most that were not seen: there is an end to it.
        for _ in 0..CONNECTIONS_MAX {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let Ok(count @ 1..) = epoll::wait(&self.watch, &mut events, Some(&now)) else { break };
            for event in &events[..count] {
                if let Some(connection) = self.connections.get_mut(&event.data.u64()) {
                    let flags = event.flags;
                    connection.stirred(flags.contains(EventFlags::HUP));
                }
            }
        }
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            let attended = self.attend(id);
            self.end_if(id, attended);
        }
        self.accept();
    }

    fn accept(&mut self) {
        while self.connections.len() < CONNECTIONS_MAX {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let Ok(client) = accept_with(&self.listener, flags) else { return };
            let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            if epoll::add(&self.watch, &client, EventData::new_u64(self.next), edges).is_ok() {
                self.connections.insert(self.next, Connection::new(client));
                self.next += 1;
            }
        }
    }

    /// Takes a greeting in, and gives the client what waits for it.
    fn attend(&mut self, id: u64) -> Result<(), Gone> {
        let host_port = FIRST_PORT.wrapping_add(id as u32 & 0x3fff_ffff);
        let Some(connection) = self.connections.get_mut(&id) else { return Ok(()) };
        if connection.phase == Phase::Greeting {
            match connection.greeting()? {
                Some(Greeting::Connect(guest_port)) => {
                    (connection.host_port, connection.guest_port) = (host_port, guest_port);
                    (connection.phase, connection.due.request) = (Phase::Asking, true);
                }
                Some(Greeting::Accept(port)) => {
                    (connection.host_port, connection.phase) = (port, Phase::Parked);
                }
                None => return Ok(()),
            }
        }
        if connection.phase == Phase::Open { connection.flush() } else { connection.still_there() }
    }

    /// Drops a connection that cannot go on; the guest learns of it if it knew it.
    fn end_if(&mut self, id: u64, result: Result<(), Gone>) {
        if result.is_ok() {
            return;
        }
        if let Some(connection) = self.connections.remove(&id) {
            let known = match connection.phase {
                Phase::Open => true,
                Phase::Asking => !connection.due.request,
                Phase::Greeting | Phase::Parked => false,
            };
            if known {
                self.reset_later(connection.host_port, connection.guest_port);
            }
        }
    }

    fn reset_later(&mut self, host_port: u32, guest_port: u32) {
        if self.resets.len() < RESETS_MAX {
            self.resets.push_back((host_port, guest_port));
        }
    }

    /// Takes what the guest sends.
    fn hear(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        let (mut used, mut chain) = (false, Chain::default());
        for _ in 0..queue.size() {
            // A guest that does not take its resets is not heard: it would get more of them.
            if self.resets.len() >= RESETS_MAX || !chain.take(queue, memory)? {
                return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
            }
            let mut header = [0; HEADER];
            if !chain.malformed && chain.readable.read(&mut header).is_some() {
                self.take_packet(Header::read(&header), &mut chain.readable);
            }
            chain.answer(queue, memory, 0)?;
            used = true;
        }
        Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, more: true, ..Work::default() })
    }

    fn take_packet(&mut self, header: Header, payload: &mut Pieces<'_>) {
        let (host_port, guest_port) = (header.to_port, header.from_port);
        let addressed = header.from_cid == self.cid && header.to_cid == HOST_CID && header.kind == STREAM;
        let known = |connection: &Connection| {
            matches!(connection.phase, Phase::Open | Phase::Asking)
                && (connection.host_port, connection.guest_port) == (host_port, guest_port)
        };
        let id = self.connections.iter().find(|(_, connection)| addressed && known(connection));
        let id = id.map(|(id, _)| *id);
        let Some((id, connection)) = id.and_then(|id| Some((id, self.connections.get_mut(&id)?))) else {
            if addressed && header.op == op::REQUEST && self.take_request(&header) {
                return;
            }
            if header.op != op::RST {
                self.reset_later(host_port, guest_port);
            }
            return;
        };
        connection.note_credit(header.buf_alloc, header.fwd_cnt);
        let result = match (connection.phase, header.op) {
            (_, op::RST) => {
                self.connections.remove(&id);
                return;
            }
            (Phase::Asking, op::RESPONSE) if !connection.due.request => {
                let port = connection.host_port;
                connection.open(port)
            }
            (Phase::Open, op::RW) => {
                let len = header.len as usize;
                if len > payload.bytes() {
                    Err(Gone)
                } else {
                    payload.truncate(len);
                    connection.forward(payload)
                }
            }
            (Phase::Open, op::SHUTDOWN) => {
                let both = NO_RECEIVE | NO_SEND;
                connection.guest_ends(header.flags & NO_SEND != 0, header.flags & both == both);
                connection.flush()
            }
            (_, op::CREDIT_REQUEST) => {
                connection.due.credit = true;
                Ok(())
            }
            (_, op::CREDIT_UPDATE) => Ok(()),
            _ => Err(Gone),
        };
        self.end_if(id, result);
    }

    /// The guest wants a connection: the first client that waits for one to this port gets it.
    fn take_request(&mut self, header: &Header) -> bool {
        let waits = |connection: &Connection| {
            connection.phase == Phase::Parked && connection.host_port == header.to_port
        };
        let Some((&id, connection)) = self.connections.iter_mut().find(|(_, one)| waits(one)) else {
            return false;
        };
        connection.guest_port = header.from_port;
        connection.note_credit(header.buf_alloc, header.fwd_cnt);
        connection.due.response = true;
        let opened = connection.open(header.from_port);
        if opened.is_err() {
            // Its client is gone: this one is refused, as if nobody had waited.
            self.connections.remove(&id);
            return false;
        }
        true
    }

    /// Says to the guest what there is to say.
    fn say(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        let (mut used, mut chain) = (false, Chain::default());
        for _ in 0..queue.size() {
            if !self.has_something() || !chain.take(queue, memory)? {
                return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
            }
            if chain.malformed || chain.writable.bytes() <= HEADER {
                chain.answer(queue, memory, 0)?;
                used = true;
                continue;
            }
            let mut payload = Pieces::default();
            payload.extend(&chain.writable);
            let Some(header) = payload.skip(HEADER).and_then(|()| self.next_packet(&mut payload)) else {
                queue.go_to_previous_position();
                return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
            };
            chain.writable.put(0, &header.bytes()).ok_or(Broken)?;
            chain.answer(queue, memory, HEADER + header.len as usize)?;
            used = true;
        }
        Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, more: true, ..Work::default() })
    }

    fn has_something(&self) -> bool {
        let speaks = |connection: &Connection| {
            connection.due != Due::default()
                || connection.phase == Phase::Open && connection.readable && connection.credit() > 0
        };
        !self.resets.is_empty() || self.connections.values().any(speaks)
    }

    /// The next packet for the guest; its payload is in the pieces then.
    fn next_packet(&mut self, payload: &mut Pieces<'_>) -> Option<Header> {
        let cid = self.cid;
        if let Some((host_port, guest_port)) = self.resets.pop_front() {
            return Some(header(cid, host_port, guest_port, op::RST));
        }
        let from_turn = self.connections.range(self.turn..).map(|(id, _)| *id);
        let ids: Vec<u64> = from_turn.chain(self.connections.range(..self.turn).map(|(id, _)| *id)).collect();
        for id in ids {
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            match connection.next_packet(payload) {
                Ok(Some((op, flags, len))) => {
                    let ports = (connection.host_port, connection.guest_port);
                    let fwd_cnt = connection.tell_forwarded();
                    self.turn = id + 1;
                    return Some(Header { flags, len, fwd_cnt, ..header(cid, ports.0, ports.1, op) });
                }
                Ok(None) => {}
                Err(gone) => self.end_if(id, Err(gone)),
            }
        }
        // One that could not go on.
        self.resets.pop_front().map(|(host_port, guest_port)| header(cid, host_port, guest_port, op::RST))
    }

    fn tell_reset(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        let mut chain = Chain::default();
        if !self.reset_due || !chain.take(queue, memory)? {
            return Ok(Work::default());
        }
        // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET is 0.
        let told = !chain.malformed && chain.writable.write(&[0; 4]).is_some();
        self.reset_due = false;
        chain.answer(queue, memory, if told { 4 } else { 0 })?;
        Ok(Work { interrupt: wants_interrupt(true, queue, memory)?, ..Work::default() })
    }
}

/// Of a packet to the guest, without payload.
fn header(cid: u64, host_port: u32, guest_port: u32, op: u16) -> Header {
    Header {
        from_cid: HOST_CID,
        to_cid: cid,
        from_port: host_port,
        to_port: guest_port,
        kind: STREAM,
        buf_alloc: BUFFER,
        op,
        ..Header::default()
    }
}

impl Device for Vsock {
    fn kind(&self) -> u32 {
        19
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn activate(&mut self, _acked: u64) {}

    fn read_config(&self, offset: u64, to: &mut [u8]) {
        copy_config(&self.cid.to_le_bytes(), offset, to);
    }

    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        let [receive, transmit, event] = queues else { return Ok(Work::default()) };
        if queue == EVENT {
            return self.tell_reset(event, memory);
        }
        self.poll();
        let heard = self.hear(transmit, memory)?;
        let said = self.say(receive, memory)?;
        Ok(Work { interrupt: heard.interrupt | said.interrupt, more: heard.more | said.more, config: false })
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.watch.as_raw_fd(), queue: RECEIVE }]
    }

    fn reset(&mut self) {
        // Clients that wait for a guest wait on; connections are over.
        self.connections.retain(|_, one| matches!(one.phase, Phase::Greeting | Phase::Parked));
        self.resets.clear();
        self.reset_due = false;
    }

    fn save(&self) -> Vec<u8> {
        [&[STATE_VERSION][..], &self.cid.to_le_bytes()].concat()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        match bytes {
            [STATE_VERSION, cid @ ..] if *cid == self.cid.to_le_bytes() => {
                self.reset();
                self.reset_due = true;
                Ok(())
            }
            _ => Err(Mismatch("it is no state of a vsock with this number")),
        }
    }
}

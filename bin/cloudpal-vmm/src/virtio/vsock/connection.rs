//! One client of the host's socket, and its connection to the guest.
//!
//! ```text
//!  Greeting ──CONNECT port──► Asking ──RESPONSE──► Open ──RST, end of either side──► gone
//!     └───────ACCEPT port───► Parked ──REQUEST of the guest──┘
//! ```
//! Invariant: what the guest sent and the client has not taken is `BUFFER` bytes at most: what it was told it may send.

use super::packet::{NO_RECEIVE, NO_SEND, op};
use crate::virtio::chain::Pieces;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown},
};
use std::{io, os::fd::OwnedFd};

/// What a guest may send before the client has taken it.
pub const BUFFER: u32 = 64 << 10;
/// The longest greeting: "CONNECT 4294967295\n" and some.
const GREETING_MAX: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Greeting,
    Parked,
    Asking,
    Open,
}

pub struct Connection {
    pub client: OwnedFd,
    pub phase: Phase,
    pub host_port: u32,
    pub guest_port: u32,
    /// What is to be said to the guest, once.
    pub due: Due,
    /// There may be something to read.
    pub readable: bool,
    /// The client says nothing more; it takes nothing more, either.
    client_ended: bool,
    client_gone: bool,
    /// The guest sends nothing more; once the client has taken everything it is told.
    guest_ended: bool,
    /// The guest wants nothing more of this connection.
    pub over: bool,
    waiting: Vec<u8>,
    forwarded: u32,
    told_forwarded: u32,
    /// The guest's room, what it has passed on, and what it was sent.
    peer_alloc: u32,
    peer_forwarded: u32,
    sent: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Due {
    pub request: bool,
    pub response: bool,
    pub credit: bool,
    pub shutdown: bool,
}

/// The connection cannot go on.
#[derive(Debug)]
pub struct Gone;

pub enum Greeting {
    Connect(u32),
    Accept(u32),
}

impl Connection {
    pub fn new(client: OwnedFd) -> Connection {
        Connection {
            client,
            phase: Phase::Greeting,
            host_port: 0,
            guest_port: 0,
            due: Due::default(),
            readable: true,
            client_ended: false,
            client_gone: false,
            guest_ended: false,
            over: false,
            waiting: Vec::new(),
            forwarded: 0,
            told_forwarded: 0,
            peer_alloc: 0,
            peer_forwarded: 0,
            sent: 0,
        }
    }

    /// Something happened at the client's end.
    pub fn stirred(&mut self, gone: bool) {
        self.readable = !self.client_ended;
        if gone && !std::mem::replace(&mut self.client_gone, true) {
            // The guest hears of it behind what there is to read.
            self.due.shutdown |= self.client_ended;
        }
    }

    /// The client's first line; what stands behind it is left for the guest.
    pub fn greeting(&mut self) -> Result<Option<Greeting>, Gone> {
        let mut bytes = [0; GREETING_MAX];
        let peeked = match recv(&self.client, &mut bytes[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return Err(Gone),
            Ok((_, len)) => len.min(GREETING_MAX),
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(_) => return Err(Gone),
        };
        let Some(end) = bytes[..peeked].iter().position(|byte| *byte == b'\n') else {
            return if peeked == GREETING_MAX { Err(Gone) } else { Ok(None) };
        };
        let mut line = [0; GREETING_MAX];
        recv(&self.client, &mut line[..=end], RecvFlags::DONTWAIT).map_err(|_| Gone)?;
        let line = str::from_utf8(&line[..end]).map_err(|_| Gone)?;
        let (word, port) = line.split_once(' ').ok_or(Gone)?;
        let port = port.parse().map_err(|_| Gone)?;
        match word {
            "CONNECT" => Ok(Some(Greeting::Connect(port))),
            "ACCEPT" => Ok(Some(Greeting::Accept(port))),
            _ => Err(Gone),
        }
    }

    /// Both sides are there: the client is told the other's port.
    pub fn open(&mut self, port: u32) -> Result<(), Gone> {
        self.phase = Phase::Open;
        let line = format!("OK {port}\n");
        match send(&self.client, line.as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) if sent == line.len() => Ok(()),
            Ok(_) | Err(_) => Err(Gone),
        }
    }

    pub fn note_credit(&mut self, alloc: u32, forwarded: u32) {
        (self.peer_alloc, self.peer_forwarded) = (alloc, forwarded);
    }

    /// How much the guest has room for.
    pub fn credit(&self) -> usize {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded)) as usize
    }

    /// What the guest sent.
    pub fn forward(&mut self, pieces: &mut Pieces<'_>) -> Result<(), Gone> {
        while self.waiting.is_empty() && !pieces.is_empty() {
            match pieces.send_to(&self.client) {
                Ok(sent) => {
                    pieces.skip(sent).ok_or(Gone)?;
                    self.passed_on(sent);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(Gone),
            }
        }
        let before = self.waiting.len();
        if before + pieces.bytes() > BUFFER as usize {
            // More than it was told that it may.
            return Err(Gone);
        }
        self.waiting.resize(before + pieces.bytes(), 0);
        pieces.read(&mut self.waiting[before..]).ok_or(Gone)
    }

    /// Gives the client what waits for it, and the end once there is nothing more.
    pub fn flush(&mut self) -> Result<(), Gone> {
        while !self.waiting.is_empty() {
            match send(&self.client, &self.waiting, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => {
                    self.waiting.drain(..sent.min(self.waiting.len()));
                    self.passed_on(sent);
                }
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
        if self.over {
            return Err(Gone);
        }
        if std::mem::take(&mut self.guest_ended) {
            shutdown(&self.client, Shutdown::Write).map_err(|_| Gone)?;
        }
        Ok(())
    }

    fn passed_on(&mut self, bytes: usize) {
        self.forwarded = self.forwarded.wrapping_add(bytes as u32);
        self.due.credit |= self.forwarded.wrapping_sub(self.told_forwarded) > BUFFER / 2;
    }

    pub fn guest_ends(&mut self, sends_no_more: bool, over: bool) {
        self.guest_ended |= sends_no_more;
        self.over |= over;
    }

    /// A client that waits says nothing; one that says something is none of ours, or is gone.
    pub fn still_there(&self) -> Result<(), Gone> {
        let mut byte = [0_u8];
        match recv(&self.client, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 1..)) | Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(()),
            Ok(_) | Err(_) => Err(Gone),
        }
    }

    /// Operation, flags and length of the next packet for the guest.
    pub fn next_packet(&mut self, payload: &mut Pieces<'_>) -> Result<Option<(u16, u32, u32)>, Gone> {
        if std::mem::take(&mut self.due.request) {
            return Ok(Some((op::REQUEST, 0, 0)));
        }
        if std::mem::take(&mut self.due.response) {
            return Ok(Some((op::RESPONSE, 0, 0)));
        }
        if self.due.credit {
            return Ok(Some((op::CREDIT_UPDATE, 0, 0)));
        }
        let credit = self.credit();
        if self.phase == Phase::Open && self.readable && credit > 0 {
            payload.truncate(credit);
            if let Some(bytes) = self.read(payload)? {
                return Ok(Some((op::RW, 0, bytes as u32)));
            }
        }
        if std::mem::take(&mut self.due.shutdown) {
            let flags = if self.client_gone { NO_RECEIVE | NO_SEND } else { NO_SEND };
            return Ok(Some((op::SHUTDOWN, flags, 0)));
        }
        Ok(None)
    }

    /// From the client into the guest's buffer. `None`: nothing now, or its end, which is due then.
    fn read(&mut self, pieces: &Pieces<'_>) -> Result<Option<usize>, Gone> {
        match pieces.read_from(&self.client) {
            Ok(0) => {
                (self.readable, self.client_ended, self.due.shutdown) = (false, true, true);
                Ok(None)
            }
            Ok(bytes) => {
                self.sent = self.sent.wrapping_add(bytes as u32);
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(None)
            }
            Err(_) => Err(Gone),
        }
    }

    /// What the guest is told of this side's room with each packet.
    pub fn tell_forwarded(&mut self) -> u32 {
        (self.due.credit, self.told_forwarded) = (false, self.forwarded);
        self.forwarded
    }
}

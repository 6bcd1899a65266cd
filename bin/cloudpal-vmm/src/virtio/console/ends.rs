//! A port's end on the host: a socket that one client at a time connects to, or a log.
//!
//! Invariants:
//! - A client that is gone is replaced by the next one in the listener's queue, once all that it said is delivered.
//! - A piece that a client took half of, and then went, is given to the next client whole: it may be seen twice, and is
//!   never lost.
//! - A log never grows beyond its bound, and never holds a guest up: what does not fit is counted and dropped.

use super::super::chain::Pieces;
use rustix::{
    event::epoll::{self, EventData, EventFlags},
    net::{RecvFlags, SocketFlags, accept_with, recv},
};
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

pub enum End {
    Channel(Channel),
    Log(Log),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    All,
    /// The chain stays in the queue; the source says when there is room.
    Later,
}

pub enum Received {
    Bytes(usize),
    Nothing,
}

pub struct Channel {
    listener: OwnedFd,
    client: Option<OwnedFd>,
    /// Has the listener and the client in it, edge by edge, and is never asked itself: whoever watches it hears of
    /// each edge of theirs.
    watch: OwnedFd,
    /// So much of the queue's first chain went to this client.
    sent: usize,
}

pub struct Log {
    file: File,
    bytes_max: u64,
    /// Bytes that found no room.
    pub dropped: u64,
}

impl End {
    /// A listening stream socket.
    pub fn channel(listener: OwnedFd) -> io::Result<End> {
        rustix::io::ioctl_fionbio(&listener, true)?;
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&watch, &listener, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
        Ok(End::Channel(Channel { listener, client: None, watch, sent: 0 }))
    }

    /// A file that is open for appending. Somebody else may cut it.
    pub fn log(file: File, bytes_max: u64) -> End {
        End::Log(Log { file, bytes_max, dropped: 0 })
    }

    pub(super) fn source(&self) -> Option<RawFd> {
        match self {
            End::Channel(channel) => Some(channel.watch.as_raw_fd()),
            End::Log(_) => None,
        }
    }

    /// Can anything come from it?
    pub(super) fn sends(&self) -> bool {
        matches!(self, End::Channel(_))
    }

    pub(super) fn attend(&mut self) {
        if let End::Channel(channel) = self {
            channel.attend();
        }
    }

    /// The chain that was on its way is another one now, or goes to another client.
    pub(super) fn forget_half(&mut self) {
        if let End::Channel(channel) = self {
            channel.sent = 0;
        }
    }

    pub(super) fn send(&mut self, pieces: &mut Pieces<'_>) -> Sent {
        match self {
            End::Channel(channel) => channel.send(pieces),
            End::Log(log) => {
                log.write(pieces);
                Sent::All
            }
        }
    }

    /// Into pieces that are not empty.
    pub(super) fn receive(&mut self, pieces: &Pieces<'_>) -> Received {
        match self {
            End::Channel(channel) => channel.receive(pieces),
            End::Log(_) => Received::Nothing,
        }
    }
}

impl Channel {
    /// Sees whether the client is still there, and takes the next one if not.
    fn attend(&mut self) {
        loop {
            if let Some(client) = &self.client {
                let mut byte = [0_u8];
                match recv(client, &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                    Ok((_, 1..)) | Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => return,
                    Ok(_) | Err(_) => self.part(),
                }
            }
            let Ok(client) = accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) else {
                return;
            };
            let edges = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            if epoll::add(&self.watch, &client, EventData::new_u64(1), edges).is_ok() {
                self.client = Some(client);
            }
        }
    }

    fn part(&mut self) {
        (self.client, self.sent) = (None, 0);
    }

    fn send(&mut self, pieces: &mut Pieces<'_>) -> Sent {
        let Some(client) = &self.client else { return Sent::Later };
        if pieces.skip(self.sent).is_none() {
            // The guest changed the chain that it had given away: that is its own affair.
            self.sent = 0;
            return Sent::All;
        }
        while !pieces.is_empty() {
            match pieces.send_to(client) {
                Ok(sent) => {
                    self.sent += sent;
                    let _ = pieces.skip(sent);
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        // It hears nothing more. What it said before is still read, up to its end.
                        self.sent = 0;
                    }
                    return Sent::Later;
                }
            }
        }
        self.sent = 0;
        Sent::All
    }

    fn receive(&mut self, pieces: &Pieces<'_>) -> Received {
        while let Some(client) = &self.client {
            match pieces.read_from(client) {
                Ok(bytes @ 1..) => return Received::Bytes(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Received::Nothing,
                Ok(_) | Err(_) => {
                    self.part();
                    self.attend();
                }
            }
        }
        Received::Nothing
    }
}

impl Log {
    fn write(&mut self, pieces: &mut Pieces<'_>) {
        let length = rustix::fs::fstat(&self.file).map_or(u64::MAX, |stat| stat.st_size as u64);
        let room = usize::try_from(self.bytes_max.saturating_sub(length)).unwrap_or(usize::MAX);
        self.dropped += pieces.bytes().saturating_sub(room) as u64;
        pieces.truncate(room);
        while !pieces.is_empty() {
            match pieces.write_to(&self.file) {
                Ok(written @ 1..) => drop(pieces.skip(written)),
                // A full disk, or a pipe that nobody reads.
                Ok(_) | Err(_) => {
                    self.dropped += pieces.bytes() as u64;
                    return;
                }
            }
        }
    }
}

//! The channels of one connection: who opened what, what belongs to what.
//!
//! ```text
//! ours:   Asked --(the peer opens the same)--> Open --(close by either)--> gone
//! theirs: Offered --accept--> Open            Offered --reject--> gone
//! ```
//! Each side numbers the channels it opens; a message carries its sender's number. A channel is two openings with
//! the same protocol and id, one from each side. Invariant: what is kept is bounded by [`MAX_CHANNELS`], and for
//! each channel by the length of its name and id as they came.

use super::Frame;
use crate::error::DataError;
use std::collections::{HashMap, VecDeque};

/// More channels than this in one connection are refused.
pub const MAX_CHANNELS: usize = 1 << 16;
/// The longest id: that of a core has 32 bytes.
const MAX_ID: usize = 64;
const MAX_PROTOCOL: usize = 128;

/// Protocol and id.
type Name = (String, Vec<u8>);

#[derive(Debug)]
struct Local {
    name: Name,
    /// The peer's number of the channel, once it has opened it.
    remote: Option<u64>,
    /// Closed by us before the peer has answered.
    closed: bool,
}

/// What a frame of the peer means.
#[derive(Debug, PartialEq, Eq)]
pub enum Arrived<'a> {
    /// The peer opens what we have not opened: to be accepted or rejected at once.
    Offered {
        remote: u64,
        protocol: &'a str,
        id: &'a [u8],
        handshake: &'a [u8],
    },
    /// What we had asked for is open.
    Opened {
        local: u64,
        handshake: &'a [u8],
    },
    /// The peer has closed a channel, or does not want it.
    Closed {
        local: u64,
        rejected: bool,
    },
    Message {
        local: u64,
        kind: u64,
        body: &'a [u8],
    },
}

#[derive(Debug, Default)]
pub struct Channels {
    /// By our number less one.
    local: Vec<Option<Local>>,
    free: Vec<u64>,
    /// By the peer's number less one: our number.
    remote: Vec<Option<u64>>,
    /// What we have opened and the peer has not yet.
    asked: HashMap<Name, VecDeque<u64>>,
}

impl Channels {
    /// Our number for a new channel; the frame that opens it is to be sent.
    pub fn open(&mut self, protocol: &str, id: &[u8]) -> u64 {
        let name = (protocol.to_owned(), id.to_vec());
        let local = self.insert(Local { name: name.clone(), remote: None, closed: false });
        self.asked.entry(name).or_default().push_back(local);
        local
    }

    /// Our number for the channel that was offered; the frame that opens it is to be sent.
    pub fn accept(&mut self, remote: u64, protocol: &str, id: &[u8]) -> u64 {
        let name = (protocol.to_owned(), id.to_vec());
        let local = self.insert(Local { name, remote: Some(remote), closed: false });
        self.set_remote(remote, Some(local));
        local
    }

    /// Forgets a channel of ours; the frame that closes it is to be sent if this says so.
    pub fn close(&mut self, local: u64) -> bool {
        let Some(entry) = self.local.get_mut(position(local)).and_then(Option::as_mut) else { return false };
        match entry.remote {
            Some(remote) => {
                self.set_remote(remote, None);
                self.release(local);
                true
            }
            None => !std::mem::replace(&mut entry.closed, true),
        }
    }

    /// How many are asked for or open.
    pub fn len(&self) -> usize {
        self.local.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn arrived<'a>(&mut self, frame: Frame<'a>) -> Result<Option<Arrived<'a>>, DataError> {
        match frame {
            Frame::Message { channel, kind, body } => {
                let local = self.remote.get(position(channel)).copied().flatten();
                // To a closed channel: it was under way when we closed.
                Ok(local.map(|local| Arrived::Message { local, kind, body }))
            }
            Frame::Open { channel, protocol, id, rest } => self.opened(channel, protocol, id, rest),
            Frame::Reject { channel } => self.rejected(channel),
            Frame::Close { channel } => {
                let Some(local) = self.remote.get(position(channel)).copied().flatten() else {
                    return Ok(None);
                };
                self.set_remote(channel, None);
                self.release(local);
                Ok(Some(Arrived::Closed { local, rejected: false }))
            }
        }
    }

    fn opened<'a>(
        &mut self,
        remote: u64,
        protocol: &'a str,
        id: &'a [u8],
        handshake: &'a [u8],
    ) -> Result<Option<Arrived<'a>>, DataError> {
        if id.len() > MAX_ID || protocol.len() > MAX_PROTOCOL {
            return Err(DataError::Malformed("a channel with too long a name"));
        }
        let at = position(remote);
        if at == self.remote.len() && at < MAX_CHANNELS {
            self.remote.push(None);
        }
        if remote == 0 || !matches!(self.remote.get(at), Some(None)) {
            return Err(DataError::Malformed("a channel's number out of turn"));
        }
        let name = (protocol.to_owned(), id.to_vec());
        let Some(waiting) = self.asked.get_mut(&name) else {
            return Ok(Some(Arrived::Offered { remote, protocol, id, handshake }));
        };
        let local = waiting.pop_front();
        if waiting.is_empty() {
            self.asked.remove(&name);
        }
        let Some(local) = local else { return Ok(None) };
        match self.local.get_mut(position(local)).and_then(Option::as_mut) {
            Some(entry) if !entry.closed => {
                entry.remote = Some(remote);
                self.set_remote(remote, Some(local));
                Ok(Some(Arrived::Opened { local, handshake }))
            }
            _ => {
                self.release(local);
                Ok(None)
            }
        }
    }

    fn rejected<'a>(&mut self, local: u64) -> Result<Option<Arrived<'a>>, DataError> {
        let entry = self.local.get(position(local)).and_then(Option::as_ref);
        let entry = entry.filter(|entry| entry.remote.is_none());
        let entry = entry.ok_or(DataError::Malformed("the refusal of a channel that was not asked for"))?;
        let closed = entry.closed;
        if let Some(waiting) = self.asked.get_mut(&entry.name) {
            waiting.retain(|asked| *asked != local);
            if waiting.is_empty() {
                self.asked.remove(&entry.name);
            }
        }
        self.release(local);
        Ok((!closed).then_some(Arrived::Closed { local, rejected: true }))
    }

    fn insert(&mut self, entry: Local) -> u64 {
        if let Some(local) = self.free.pop() {
            self.local[position(local)] = Some(entry);
            return local;
        }
        self.local.push(Some(entry));
        self.local.len() as u64
    }

    fn release(&mut self, local: u64) {
        if let Some(entry) = self.local.get_mut(position(local))
            && entry.take().is_some()
        {
            self.free.push(local);
        }
    }

    fn set_remote(&mut self, remote: u64, local: Option<u64>) {
        if let Some(entry) = self.remote.get_mut(position(remote)) {
            *entry = local;
        }
    }
}

/// Numbers begin at one. That of channel 0 is beyond any list.
fn position(number: u64) -> usize {
    usize::try_from(number).ok().and_then(|number| number.checked_sub(1)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(channel: u64) -> Frame<'static> {
        Frame::Open { channel, protocol: "p", id: b"id", rest: b"hello" }
    }

    fn message(channel: u64) -> Frame<'static> {
        Frame::Message { channel, kind: 3, body: b"body" }
    }

    #[test]
    fn both_open_the_same() {
        let mut channels = Channels::default();
        let local = channels.open("p", b"id");
        assert_eq!(channels.arrived(message(1)), Ok(None), "not open yet");
        assert_eq!(channels.arrived(open(1)), Ok(Some(Arrived::Opened { local, handshake: b"hello" })));
        let arrived = channels.arrived(message(1));
        assert_eq!(arrived, Ok(Some(Arrived::Message { local, kind: 3, body: b"body" })));
        let arrived = channels.arrived(Frame::Close { channel: 1 });
        assert_eq!(arrived, Ok(Some(Arrived::Closed { local, rejected: false })));
        assert_eq!(channels.arrived(message(1)), Ok(None));
        assert!(channels.is_empty());
        assert_eq!(channels.open("p", b"other"), local, "its number is free again");
    }

    #[test]
    fn an_offer_is_accepted_or_rejected() {
        let mut channels = Channels::default();
        let offered = Arrived::Offered { remote: 1, protocol: "p", id: b"id", handshake: b"hello" };
        assert_eq!(channels.arrived(open(1)), Ok(Some(offered)));
        let local = channels.accept(1, "p", b"id");
        assert!(matches!(channels.arrived(message(1)), Ok(Some(Arrived::Message { .. }))));
        assert!(channels.close(local));
        assert!(!channels.close(local));
        let asked = channels.open("p", b"unknown");
        let arrived = channels.arrived(Frame::Reject { channel: asked });
        assert_eq!(arrived, Ok(Some(Arrived::Closed { local: asked, rejected: true })));
        assert!(channels.arrived(Frame::Reject { channel: asked }).is_err());
    }

    #[test]
    fn closed_before_the_peer_has_answered() {
        let mut channels = Channels::default();
        let local = channels.open("p", b"id");
        assert!(channels.close(local));
        assert_eq!(channels.arrived(open(1)), Ok(None));
        assert!(channels.is_empty());
    }

    #[test]
    fn numbers_must_come_in_turn() {
        for number in [0, 2, 1 << 40, u64::MAX] {
            assert!(Channels::default().arrived(open(number)).is_err(), "{number}");
        }
        let mut channels = Channels::default();
        channels.open("p", b"id");
        channels.arrived(open(1)).unwrap();
        assert!(channels.arrived(open(1)).is_err(), "it is open");
        assert_eq!(channels.arrived(Frame::Close { channel: 7 }), Ok(None));
    }
}

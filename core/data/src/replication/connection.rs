//! One connection: a secret stream with channels on it, and what waits to be sent.

use crate::crypto::{Hash, PublicKey};
use crate::encoding::Writer;
use crate::mux::{Channels, Frame};
use crate::stream::{SecretStream, Session, StreamError};
use crate::wire::{self, Handshake, Message, PROTOCOL};
use std::collections::{BTreeSet, HashMap};

/// Larger messages go out alone, smaller ones in batches.
const ALONE: usize = 8 << 10;
const BATCH: usize = 64 << 10;

/// Messages that go out together, of whatever channels.
#[derive(Default)]
pub(super) struct Outbox {
    batch: Writer,
    channel: u64,
    scratch: Writer,
}

impl Outbox {
    /// Adds what is in the scratch: all of a message but the number of its channel.
    fn put(&mut self, channel: u64) {
        if self.batch.bytes.is_empty() {
            self.batch.raw(&[0, 0]);
            self.batch.uint(channel);
        } else if self.channel != channel {
            self.batch.raw(&[0]);
            self.batch.uint(channel);
        }
        self.channel = channel;
        self.batch.buffer(&self.scratch.bytes);
    }

    pub fn control(&mut self, frame: &Frame<'_>) {
        self.scratch.bytes.clear();
        let (channel, inner) = frame.parts();
        self.scratch.raw(&inner);
        self.put(channel);
    }

    pub fn is_empty(&self) -> bool {
        self.batch.bytes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.batch.bytes.len()
    }
}

/// All of a connection but its stream.
#[derive(Default)]
pub(super) struct Lines {
    /// Once the stream's handshake is over.
    pub session: Option<Session>,
    pub channels: Channels,
    pub outbox: Outbox,
    /// Which core a channel of ours is for.
    pub cores: HashMap<u64, u64>,
    /// Cores about which there may be something to say.
    pub attention: BTreeSet<u64>,
    /// Cores with requests of the peer that are not answered.
    pub to_answer: BTreeSet<u64>,
}

impl Lines {
    pub fn remote(&self) -> Option<&PublicKey> {
        self.session.as_ref().map(|session| &session.remote)
    }

    /// Opens a channel for a core, or accepts the one that the peer has opened as its number `offered`. Nothing
    /// before the handshake of the stream is over.
    pub fn open(&mut self, core: u64, key: &Hash, discovery_key: &Hash, offered: Option<u64>) -> Option<u64> {
        let session = self.session.as_ref()?;
        let capability = wire::capability(session.initiator, key, &session.handshake_hash);
        let rest = Handshake { seeks: true, capability }.encode();
        let channel = match offered {
            Some(remote) => self.channels.accept(remote, PROTOCOL, discovery_key),
            None => self.channels.open(PROTOCOL, discovery_key),
        };
        self.outbox.control(&Frame::Open { channel, protocol: PROTOCOL, id: discovery_key, rest: &rest });
        self.cores.insert(channel, core);
        Some(channel)
    }

    /// The peer has shown that it knows the key.
    pub fn is_capable(&self, key: &Hash, handshake: &[u8]) -> bool {
        let (Some(session), Ok(handshake)) = (&self.session, Handshake::decode(handshake)) else {
            return false;
        };
        handshake.capability == wire::capability(!session.initiator, key, &session.handshake_hash)
    }

    pub fn close(&mut self, channel: u64) {
        self.cores.remove(&channel);
        if self.channels.close(channel) {
            self.outbox.control(&Frame::Close { channel });
        }
    }
}

pub(super) struct Connection {
    pub stream: SecretStream,
    pub lines: Lines,
}

impl Connection {
    pub fn send(&mut self, channel: u64, message: &Message, now_ms: u64) -> Result<(), StreamError> {
        if let Message::Data(data) = message
            && data.proof.block.as_ref().is_some_and(|block| block.value.len() > ALONE)
        {
            self.flush(now_ms)?;
            return self.stream.send_with(now_ms, |to| {
                let mut writer = Writer { bytes: std::mem::take(to) };
                writer.uint(channel);
                writer.uint(message.kind());
                data.write(&mut writer);
                *to = writer.bytes;
            });
        }
        let outbox = &mut self.lines.outbox;
        outbox.scratch.bytes.clear();
        outbox.scratch.uint(message.kind());
        message.write(&mut outbox.scratch);
        outbox.put(channel);
        if outbox.batch.bytes.len() > BATCH { self.flush(now_ms) } else { Ok(()) }
    }

    pub fn flush(&mut self, now_ms: u64) -> Result<(), StreamError> {
        if self.lines.outbox.is_empty() {
            return Ok(());
        }
        let batch = &mut self.lines.outbox.batch.bytes;
        self.stream.send_with(now_ms, |to| to.extend_from_slice(batch))?;
        batch.clear();
        Ok(())
    }

    /// Bytes that wait for the transport.
    pub fn backlog(&self) -> usize {
        self.stream.outgoing().len() + self.lines.outbox.batch.bytes.len()
    }
}

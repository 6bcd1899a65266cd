//! Secret streams: an encrypted, authenticated row of messages over any row of bytes, as
//! `@hyperswarm/secret-stream` 6.9.2 speaks it over a raw stream.
//!
//! ```text
//! Handshake --(three Noise messages)--> Header --(their stream's id and nonce)--> Open
//! ```
//! Any refused message ends the stream: nothing more is read or sent. Each frame has its length before it, three
//! bytes. Invariants: no more is buffered than has come; a handshake has a deadline; what is not genuine is never
//! handed on.

mod noise;
mod sealing;

use crate::crypto::{self, Hash, KeyPair, PublicKey};
use noise::Handshake;
use sealing::{HEADER, OVERHEAD, Sealing};
use thiserror::Error;

/// The longest message: its frame's length has three bytes.
pub const MAX_MESSAGE: usize = (1 << 24) - 1 - OVERHEAD;
const FRAME: usize = 3;
/// Before a message that is being written: the frame's length, and the byte for its kind.
const FRONT: usize = FRAME + 1;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StreamError {
    #[error("the handshake failed: {0}")]
    Handshake(&'static str),
    #[error("a message that is not genuine")]
    NotGenuine,
    #[error("a message of more than 16 MiB")]
    TooLarge,
    #[error("the peer was silent for too long")]
    TimedOut,
    #[error("the stream is not open")]
    NotOpen,
}

/// Random bytes that a stream needs, used once.
#[derive(Clone)]
pub struct Entropy {
    pub ephemeral_seed: [u8; 32],
    pub nonce: [u8; 24],
}

impl Entropy {
    /// `None` where too few bytes are given.
    pub fn from_bytes(bytes: &[u8; 56]) -> Self {
        let (mut ephemeral_seed, mut nonce) = ([0; 32], [0; 24]);
        ephemeral_seed.copy_from_slice(&bytes[..32]);
        nonce.copy_from_slice(&bytes[32..]);
        Entropy { ephemeral_seed, nonce }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The handshake must be done by then.
    pub handshake_timeout_ms: u64,
    /// After this time of sending nothing an empty message goes out; 0 never.
    pub keep_alive_ms: u64,
    /// After this time of receiving nothing the peer counts as gone; 0 never. Only for peers that keep alive.
    pub idle_timeout_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { handshake_timeout_ms: 10_000, keep_alive_ms: 5_000, idle_timeout_ms: 0 }
    }
}

/// What both ends know of each other after the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub initiator: bool,
    pub remote: PublicKey,
    pub handshake_hash: [u8; 64],
}

enum State {
    Handshake { handshake: Box<Handshake>, nonce: [u8; 24] },
    Header { receive_key: [u8; 32] },
    Open(Box<Sealing>),
    Failed(StreamError),
}

pub struct SecretStream {
    state: State,
    session: Option<Session>,
    sealing: Option<Sealing>,
    /// What has come, from `read` on not yet looked at.
    incoming: Vec<u8>,
    read: usize,
    outgoing: Vec<u8>,
    options: Options,
    initiator: bool,
    started_ms: u64,
    last_sent_ms: u64,
    last_received_ms: u64,
}

impl SecretStream {
    pub fn new(initiator: bool, own: KeyPair, entropy: Entropy, options: Options, now_ms: u64) -> Self {
        let ephemeral = KeyPair::from_seed(&entropy.ephemeral_seed);
        let handshake = Box::new(Handshake::new(initiator, own, ephemeral));
        let mut stream = SecretStream {
            state: State::Handshake { handshake, nonce: entropy.nonce },
            session: None,
            sealing: None,
            incoming: Vec::new(),
            read: 0,
            outgoing: Vec::new(),
            options,
            initiator,
            started_ms: now_ms,
            last_sent_ms: now_ms,
            last_received_ms: now_ms,
        };
        if let Err(error) = stream.continue_handshake() {
            stream.state = State::Failed(error);
        }
        stream
    }

    /// `None` until the handshake is done. From then on messages can be sent.
    pub fn session(&self) -> Option<&Session> {
        self.session.as_ref()
    }

    /// Takes bytes that have come. What they hold is asked for with [`Self::next`].
    pub fn receive(&mut self, bytes: &[u8], now_ms: u64) {
        if self.read == self.incoming.len() {
            self.incoming.clear();
            self.read = 0;
        } else if self.read >= self.incoming.len() / 2 {
            self.incoming.drain(..self.read);
            self.read = 0;
        }
        self.incoming.extend_from_slice(bytes);
        self.last_received_ms = now_ms;
    }

    /// Goes through the handshake as far as its messages have come. Afterwards [`Self::session`] may be known, and
    /// messages may already wait behind it.
    pub fn shake(&mut self) -> Result<(), StreamError> {
        while !matches!(self.state, State::Open(_)) {
            let Some((start, end)) = self.frame()? else { break };
            self.read = end;
            if let Err(error) = self.set_up(start, end) {
                return Err(self.fail(error));
            }
        }
        Ok(())
    }

    /// The next message that has come whole. Call it until it answers nothing. An error is final.
    #[allow(clippy::should_implement_trait)] // the message borrows the stream
    pub fn next(&mut self) -> Result<Option<&[u8]>, StreamError> {
        self.shake()?;
        while matches!(self.state, State::Open(_)) {
            let Some((start, end)) = self.frame()? else { break };
            self.read = end;
            if end - start == OVERHEAD {
                self.open(start, end)?; // a keep-alive
                continue;
            }
            return self.open(start, end).map(Some);
        }
        Ok(None)
    }

    fn open(&mut self, start: usize, end: usize) -> Result<&[u8], StreamError> {
        let State::Open(sealing) = &mut self.state else { return Err(StreamError::NotOpen) };
        if sealing.open(&mut self.incoming[start..end]).is_none() {
            return Err(self.fail(StreamError::NotGenuine));
        }
        Ok(&self.incoming[start + 1..end + 1 - OVERHEAD])
    }

    /// Where the next frame is, if it is there whole.
    fn frame(&mut self) -> Result<Option<(usize, usize)>, StreamError> {
        let expected = match &self.state {
            State::Failed(error) => return Err(error.clone()),
            State::Handshake { handshake, .. } => Some(handshake.next_length()),
            State::Header { .. } => Some(HEADER + 32),
            State::Open(_) => None,
        };
        let Some((length, _)) = self.incoming[self.read..].split_first_chunk::<FRAME>() else {
            return Ok(None);
        };
        let length = usize::from(length[0]) | usize::from(length[1]) << 8 | usize::from(length[2]) << 16;
        // Told at once, lest a stranger makes us wait for, and hold, 16 MiB.
        if expected.is_some_and(|expected| expected != length) {
            return Err(self.fail(StreamError::Handshake("a message of the wrong length")));
        }
        let start = self.read + FRAME;
        Ok((self.incoming.len() - start >= length).then_some((start, start + length)))
    }

    fn set_up(&mut self, start: usize, end: usize) -> Result<(), StreamError> {
        match &mut self.state {
            State::Handshake { handshake, .. } => {
                if handshake.sends_next() {
                    return Err(StreamError::Handshake("a message out of turn"));
                }
                handshake.receive(&self.incoming[start..end])?;
                self.continue_handshake()
            }
            State::Header { receive_key } => {
                let session = self.session.as_ref().ok_or(StreamError::NotOpen)?;
                let (id, header) = self.incoming[start..end].split_at(32);
                if id != stream_id(&session.handshake_hash, !self.initiator) {
                    return Err(StreamError::Handshake("the id of another stream"));
                }
                let header = header.try_into().map_err(|_| StreamError::Handshake("cut short"))?;
                self.state = State::Open(Box::new(Sealing::new(receive_key, header)));
                Ok(())
            }
            State::Open(_) | State::Failed(_) => Err(StreamError::NotOpen),
        }
    }

    fn continue_handshake(&mut self) -> Result<(), StreamError> {
        let State::Handshake { handshake, nonce } = &mut self.state else { return Ok(()) };
        if handshake.sends_next() {
            let message = handshake.send()?;
            put_frame(&mut self.outgoing, &[&message]);
        }
        if !handshake.is_done() {
            return Ok(());
        }
        let agreed = handshake.agreed();
        let id = stream_id(&agreed.handshake_hash, self.initiator);
        put_frame(&mut self.outgoing, &[&id, nonce]);
        self.sealing = Some(Sealing::new(&agreed.send_key, nonce));
        self.session = Some(Session {
            initiator: self.initiator,
            remote: agreed.remote,
            handshake_hash: agreed.handshake_hash,
        });
        self.state = State::Header { receive_key: agreed.receive_key };
        Ok(())
    }

    fn fail(&mut self, error: StreamError) -> StreamError {
        self.state = State::Failed(error.clone());
        self.sealing = None;
        error
    }

    /// Sends what `write` appends to the buffer, as one message.
    pub fn send_with(&mut self, now_ms: u64, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), StreamError> {
        let sealing = self.sealing.as_mut().ok_or(StreamError::NotOpen)?;
        let start = self.outgoing.len();
        self.outgoing.extend_from_slice(&[0; FRONT]);
        write(&mut self.outgoing);
        let message = self.outgoing.len() - start - FRONT;
        if message > MAX_MESSAGE {
            self.outgoing.truncate(start);
            return Err(StreamError::TooLarge);
        }
        self.outgoing.extend_from_slice(&[0; OVERHEAD - 1]);
        let length = (message + OVERHEAD) as u32;
        self.outgoing[start..start + FRAME].copy_from_slice(&length.to_le_bytes()[..FRAME]);
        sealing.seal(&mut self.outgoing[start + FRAME..]);
        self.last_sent_ms = now_ms;
        Ok(())
    }

    pub fn send(&mut self, message: &[u8], now_ms: u64) -> Result<(), StreamError> {
        self.send_with(now_ms, |to| to.extend_from_slice(message))
    }

    /// Bytes that must go out.
    pub fn outgoing(&self) -> &[u8] {
        &self.outgoing
    }

    /// All bytes that must go out; `spare` becomes the next buffer.
    pub fn take_outgoing(&mut self, spare: Vec<u8>) -> Vec<u8> {
        let mut spare = spare;
        spare.clear();
        std::mem::replace(&mut self.outgoing, spare)
    }

    /// When [`Self::tick`] wants to be called at the latest.
    pub fn deadline_ms(&self) -> Option<u64> {
        let keep_alive = Some(self.last_sent_ms + self.options.keep_alive_ms);
        let silent = Some(self.last_received_ms + self.options.idle_timeout_ms);
        match self.state {
            State::Failed(_) => None,
            State::Handshake { .. } | State::Header { .. } => {
                Some(self.started_ms + self.options.handshake_timeout_ms)
            }
            State::Open(_) => keep_alive
                .filter(|_| self.options.keep_alive_ms > 0)
                .into_iter()
                .chain(silent.filter(|_| self.options.idle_timeout_ms > 0))
                .min(),
        }
    }

    pub fn tick(&mut self, now_ms: u64) -> Result<(), StreamError> {
        match &self.state {
            State::Failed(error) => return Err(error.clone()),
            State::Handshake { .. } | State::Header { .. } => {
                if now_ms >= self.started_ms + self.options.handshake_timeout_ms {
                    return Err(self.fail(StreamError::TimedOut));
                }
            }
            State::Open(_) => {
                let Options { keep_alive_ms, idle_timeout_ms, .. } = self.options;
                if idle_timeout_ms > 0 && now_ms >= self.last_received_ms + idle_timeout_ms {
                    return Err(self.fail(StreamError::TimedOut));
                }
                if keep_alive_ms > 0 && now_ms >= self.last_sent_ms + keep_alive_ms {
                    self.send(&[], now_ms)?;
                }
            }
        }
        Ok(())
    }
}

fn put_frame(to: &mut Vec<u8>, parts: &[&[u8]]) {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    to.extend_from_slice(&(length as u32).to_le_bytes()[..FRAME]);
    parts.iter().for_each(|part| to.extend_from_slice(part));
}

fn stream_id(handshake_hash: &[u8; 64], initiator: bool) -> Hash {
    let namespace = crypto::namespace(b"hyperswarm/secret-stream", u8::from(!initiator));
    crypto::keyed_hash(handshake_hash, &[&namespace])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(initiator: bool) -> SecretStream {
        let seed = [u8::from(initiator) + 1; 32];
        let entropy = Entropy { ephemeral_seed: [u8::from(initiator) + 5; 32], nonce: [9; 24] };
        SecretStream::new(initiator, KeyPair::from_seed(&seed), entropy, Options::default(), 0)
    }

    fn carry(from: &mut SecretStream, to: &mut SecretStream) -> usize {
        let bytes = from.take_outgoing(Vec::new());
        to.receive(&bytes, 0);
        bytes.len()
    }

    fn open_pair() -> (SecretStream, SecretStream) {
        let (mut a, mut b) = (stream(true), stream(false));
        while carry(&mut a, &mut b) > 0 {
            assert_eq!(b.next(), Ok(None));
            carry(&mut b, &mut a);
            assert_eq!(a.next(), Ok(None));
        }
        (a, b)
    }

    #[test]
    fn both_know_each_other() {
        let (a, b) = open_pair();
        let (a, b) = (a.session().unwrap(), b.session().unwrap());
        assert_eq!(a.handshake_hash, b.handshake_hash);
        assert_eq!((a.initiator, b.initiator), (true, false));
        assert_eq!(a.remote, KeyPair::from_seed(&[1; 32]).public_key());
        assert_eq!(b.remote, KeyPair::from_seed(&[2; 32]).public_key());
    }

    #[test]
    fn messages_of_every_size_come_byte_by_byte_or_at_once() {
        let (mut a, mut b) = open_pair();
        for size in [1, 100, 65_535, 65_536, 1 << 20, MAX_MESSAGE] {
            let message = vec![7; size];
            a.send(&message, 0).unwrap();
            let bytes = a.take_outgoing(Vec::new());
            let step = if size > 200_000 { 50_000 } else { 1 + size / 50 };
            for part in bytes.chunks(step) {
                assert_eq!(b.next(), Ok(None));
                b.receive(part, 0);
            }
            assert_eq!(b.next().unwrap(), Some(&message[..]));
            assert_eq!(b.next(), Ok(None));
        }
        assert_eq!(a.send(&vec![0; MAX_MESSAGE + 1], 0), Err(StreamError::TooLarge));
        a.send(b"still open", 0).unwrap();
        carry(&mut a, &mut b);
        assert_eq!(b.next().unwrap(), Some(&b"still open"[..]));
    }

    #[test]
    fn a_wrong_length_is_refused_before_its_bytes_have_come() {
        let mut b = stream(false);
        b.receive(&[255, 255, 255], 0);
        assert_eq!(b.next(), Err(StreamError::Handshake("a message of the wrong length")));
        assert_eq!(b.next(), Err(StreamError::Handshake("a message of the wrong length")));
    }

    #[test]
    fn every_byte_of_the_handshake_counts() {
        let hello = stream(true).take_outgoing(Vec::new());
        for byte in 3..hello.len() {
            let (mut a, mut b) = (stream(true), stream(false));
            let mut hello = a.take_outgoing(Vec::new());
            hello[byte] ^= 4;
            b.receive(&hello, 0);
            let refused = b.next().is_err();
            carry(&mut b, &mut a);
            assert!(refused || a.next().is_err(), "byte {byte}");
        }
    }

    #[test]
    fn low_order_keys_are_refused() {
        let identity = [vec![32, 0, 0, 1], vec![0; 31]].concat();
        let mut b = stream(false);
        b.receive(&identity, 0);
        assert!(matches!(b.next(), Err(StreamError::Handshake(_))));
    }

    #[test]
    fn a_handshake_has_a_deadline_and_an_open_stream_keeps_alive() {
        let mut slow = stream(false);
        assert_eq!(slow.deadline_ms(), Some(10_000));
        assert_eq!(slow.tick(9_999), Ok(()));
        assert_eq!(slow.tick(10_000), Err(StreamError::TimedOut));
        let (mut a, mut b) = open_pair();
        assert_eq!(a.deadline_ms(), Some(5_000));
        a.tick(5_000).unwrap();
        assert_eq!(carry(&mut a, &mut b), FRAME + OVERHEAD);
        assert_eq!(b.next(), Ok(None));
        a.tick(5_001).unwrap();
        assert_eq!(carry(&mut a, &mut b), 0);
    }

    #[test]
    fn a_forged_message_ends_the_stream() {
        let (mut a, mut b) = open_pair();
        a.send(b"genuine", 0).unwrap();
        let mut bytes = a.take_outgoing(Vec::new());
        bytes[6] ^= 1;
        b.receive(&bytes, 0);
        assert_eq!(b.next(), Err(StreamError::NotGenuine));
        assert_eq!(b.send(b"late", 0), Err(StreamError::NotOpen));
    }
}

//! Noise XX as `noise-handshake` 4 and `noise-curve-ed` 2 do it: Ed25519 keys multiplied as Edwards points,
//! ChaCha20-Poly1305 and BLAKE2b. No Noise library knows this curve.
//!
//! Payloads are empty, so each of the three messages has exactly one length. Points of small order, and such as
//! have a part of small order, are refused as libsodium refuses them.

use super::StreamError;
use crate::crypto::{KeyPair, PublicKey};
use blake2b_simd::State;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{ChaCha20Poly1305, KeyInit};

const NAME: &[u8] = b"Noise_XX_Ed25519_ChaChaPoly_BLAKE2b";
/// The messages' lengths: a key; a key, a sealed key, a seal; a sealed key, a seal.
pub const LENGTHS: [usize; 3] = [32, 32 + 48 + 16, 48 + 16];

type Wide = [u8; 64];

/// What the handshake has agreed on.
pub struct Agreed {
    /// The same on both sides, and never again.
    pub handshake_hash: Wide,
    pub remote: PublicKey,
    pub send_key: [u8; 32],
    pub receive_key: [u8; 32],
}

pub struct Handshake {
    initiator: bool,
    own: KeyPair,
    ephemeral: KeyPair,
    their_ephemeral: PublicKey,
    remote: PublicKey,
    digest: Wide,
    chaining: Wide,
    key: Option<[u8; 32]>,
    count: u32,
    /// How many of the three messages are done.
    done: usize,
}

impl Handshake {
    /// `ephemeral` is drawn at random for this handshake alone.
    pub fn new(initiator: bool, own: KeyPair, ephemeral: KeyPair) -> Self {
        let mut digest = [0; 64];
        digest[..NAME.len()].copy_from_slice(NAME);
        let mut handshake = Handshake {
            initiator,
            own,
            ephemeral,
            their_ephemeral: [0; 32],
            remote: [0; 32],
            digest,
            chaining: digest,
            key: None,
            count: 0,
            done: 0,
        };
        handshake.mix_hash(&[]); // an empty prologue
        handshake
    }

    /// It is our turn.
    pub fn sends_next(&self) -> bool {
        self.done < LENGTHS.len() && (self.done.is_multiple_of(2)) == self.initiator
    }

    pub fn is_done(&self) -> bool {
        self.done == LENGTHS.len()
    }

    /// The length of the message that comes next.
    pub fn next_length(&self) -> usize {
        LENGTHS.get(self.done).copied().unwrap_or(0)
    }

    pub fn send(&mut self) -> Result<Vec<u8>, StreamError> {
        let (ephemeral, own) = (self.ephemeral.public_key(), self.own.public_key());
        let mut message = Vec::new();
        if self.done < 2 {
            self.mix_hash(&ephemeral);
            message.extend_from_slice(&ephemeral);
        }
        if self.done == 1 {
            self.mix_key(false, self.their_ephemeral)?;
        }
        if self.done > 0 {
            message.extend_from_slice(&self.seal(&own)?);
            self.mix_key(true, self.their_ephemeral)?;
        }
        message.extend_from_slice(&self.seal(&[])?);
        self.done += 1;
        Ok(message)
    }

    pub fn receive(&mut self, message: &[u8]) -> Result<(), StreamError> {
        if message.len() != self.next_length() {
            return Err(StreamError::Handshake("a message of the wrong length"));
        }
        let mut rest = message;
        if self.done < 2 {
            let (first, after) = rest.split_first_chunk().ok_or(StreamError::Handshake("cut short"))?;
            self.their_ephemeral = *first;
            self.mix_hash(first);
            rest = after;
        }
        if self.done == 1 {
            self.mix_key(false, self.their_ephemeral)?;
        }
        if self.done > 0 {
            let (first, after) = rest.split_at_checked(48).ok_or(StreamError::Handshake("cut short"))?;
            let remote = self.open(first)?;
            self.remote =
                remote.try_into().map_err(|_| StreamError::Handshake("a key of the wrong length"))?;
            self.mix_key(false, self.remote)?;
            rest = after;
        }
        self.open(rest)?;
        self.done += 1;
        Ok(())
    }

    /// Once all three messages are done.
    pub fn agreed(&self) -> Agreed {
        let (first, second) = derive(&self.chaining, &[]);
        let (mut ours, mut theirs) = ([0; 32], [0; 32]);
        ours.copy_from_slice(&first[..32]);
        theirs.copy_from_slice(&second[..32]);
        if !self.initiator {
            std::mem::swap(&mut ours, &mut theirs);
        }
        Agreed { handshake_hash: self.digest, remote: self.remote, send_key: ours, receive_key: theirs }
    }

    fn mix_hash(&mut self, bytes: &[u8]) {
        self.digest = wide_hash(&[&self.digest, bytes]);
    }

    fn mix_key(&mut self, with_own: bool, theirs: PublicKey) -> Result<(), StreamError> {
        let pair = if with_own { &self.own } else { &self.ephemeral };
        let shared = pair.shared(&theirs).ok_or(StreamError::Handshake("a key that is no good point"))?;
        let (chaining, key) = derive(&self.chaining, &shared);
        self.chaining = chaining;
        let mut half = [0; 32];
        half.copy_from_slice(&key[..32]);
        self.key = Some(half);
        self.count = 0;
        Ok(())
    }

    fn seal(&mut self, text: &[u8]) -> Result<Vec<u8>, StreamError> {
        let sealed = match self.key {
            Some(key) => {
                let payload = Payload { msg: text, aad: &self.digest };
                let sealed = ChaCha20Poly1305::new(&key.into()).encrypt(&self.nonce().into(), payload);
                self.count += 1;
                sealed.map_err(|_| StreamError::Handshake("a message that cannot be sealed"))?
            }
            None => text.to_vec(),
        };
        self.mix_hash(&sealed);
        Ok(sealed)
    }

    fn open(&mut self, sealed: &[u8]) -> Result<Vec<u8>, StreamError> {
        let text = match self.key {
            Some(key) => {
                let payload = Payload { msg: sealed, aad: &self.digest };
                let text = ChaCha20Poly1305::new(&key.into()).decrypt(&self.nonce().into(), payload);
                self.count += 1;
                text.map_err(|_| StreamError::Handshake("a message that is not genuine"))?
            }
            None => sealed.to_vec(),
        };
        self.mix_hash(sealed);
        Ok(text)
    }

    fn nonce(&self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..8].copy_from_slice(&self.count.to_le_bytes());
        nonce
    }
}

fn wide_hash(parts: &[&[u8]]) -> Wide {
    let mut state = State::new();
    for part in parts {
        state.update(part);
    }
    *state.finalize().as_array()
}

/// HMAC with BLAKE2b-512, whose blocks are of 128 bytes.
fn hmac(key: &Wide, parts: &[&[u8]]) -> Wide {
    let (mut inner, mut outer) = ([0x36; 128], [0x5c; 128]);
    for (at, byte) in key.iter().enumerate() {
        inner[at] ^= byte;
        outer[at] ^= byte;
    }
    let mut all: Vec<&[u8]> = vec![&inner];
    all.extend_from_slice(parts);
    let digest = wide_hash(&all);
    wide_hash(&[&outer, &digest])
}

/// HKDF (RFC 5869) with two outputs and no info.
fn derive(salt: &Wide, material: &[u8]) -> (Wide, Wide) {
    let key = hmac(salt, &[material]);
    let first = hmac(&key, &[&[1]]);
    let second = hmac(&key, &[&first, &[2]]);
    (first, second)
}

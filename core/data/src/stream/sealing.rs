//! libsodium's `crypto_secretstream_xchacha20poly1305`: messages in one direction, each encrypted and bound to
//! all before it, so that none can be left out, repeated or put elsewhere.
//!
//! Own code, because it works in place in the buffers of the connection. The layout is that of libsodium 1.0.20,
//! `crypto_secretstream/xchacha20poly1305`, down to its way of padding: a message is padded with as many zeros
//! as it has bytes over a multiple of 16.

use chacha20::cipher::{KeyIvInit, StreamCipher, consts::U10};
use chacha20::{ChaCha20, hchacha};
use poly1305::Poly1305;
use poly1305::universal_hash::{KeyInit, UniversalHash};

/// What a sealed message is longer: a byte for its kind in front, and the authenticator behind.
pub const OVERHEAD: usize = 17;
pub const HEADER: usize = 24;

const REKEY: u8 = 2;

/// The state of one direction. Both ends go through the same states.
pub struct Sealing {
    key: [u8; 32],
    /// The counter, four bytes, and then the part that each message changes.
    nonce: [u8; 12],
}

impl Sealing {
    pub fn new(key: &[u8; 32], header: &[u8; HEADER]) -> Self {
        let (first, last) = header.split_at(16);
        let key = hchacha::<U10>(key.into(), first.into()).into();
        let mut nonce = [0; 12];
        nonce[0] = 1;
        nonce[4..].copy_from_slice(last);
        Sealing { key, nonce }
    }

    /// `sealed` has [`OVERHEAD`] bytes of room: one before the message and sixteen after it.
    pub fn seal(&mut self, sealed: &mut [u8]) {
        let (kind, rest) = sealed.split_at_mut(1);
        let (message, mac) = rest.split_at_mut(rest.len() - 16);
        let (mut cipher, poly_key) = self.cipher();
        let mut block = [0; 64];
        cipher.apply_keystream(&mut block);
        cipher.apply_keystream(message);
        kind[0] = block[0];
        let tag = authenticator(&poly_key, &block, message);
        mac.copy_from_slice(&tag);
        self.advance(&tag, 0);
    }

    /// Decrypts in place and answers the message, or nothing if it is not genuine.
    pub fn open<'a>(&mut self, sealed: &'a mut [u8]) -> Option<&'a [u8]> {
        if sealed.len() < OVERHEAD {
            return None;
        }
        let (kind, rest) = sealed.split_at_mut(1);
        let (message, mac) = rest.split_at_mut(rest.len() - 16);
        let (mut cipher, poly_key) = self.cipher();
        let mut block = [0; 64];
        block[0] = kind[0];
        cipher.apply_keystream(&mut block);
        let kind_of = block[0];
        block[0] = kind[0];
        let tag = authenticator(&poly_key, &block, message);
        // Without a branch on the first byte that differs: what the sender may learn from time is one bit.
        if tag.iter().zip(mac.iter()).fold(0, |differs, (ours, theirs)| differs | (ours ^ theirs)) != 0 {
            return None;
        }
        cipher.apply_keystream(message);
        self.advance(&tag, kind_of);
        Some(message)
    }

    fn cipher(&self) -> (ChaCha20, [u8; 32]) {
        let mut cipher = ChaCha20::new(&self.key.into(), &self.nonce.into());
        let mut first = [0; 64];
        cipher.apply_keystream(&mut first);
        let mut key = [0; 32];
        key.copy_from_slice(&first[..32]);
        (cipher, key)
    }

    fn advance(&mut self, tag: &[u8; 16], kind: u8) {
        self.nonce[4..].iter_mut().zip(tag).for_each(|(byte, with)| *byte ^= with);
        let counter = [self.nonce[0], self.nonce[1], self.nonce[2], self.nonce[3]];
        let counter = u32::from_le_bytes(counter).wrapping_add(1);
        self.nonce[..4].copy_from_slice(&counter.to_le_bytes());
        if kind & REKEY != 0 || counter == 0 {
            self.rekey();
        }
    }

    fn rekey(&mut self) {
        let mut fresh = [0; 40];
        fresh[..32].copy_from_slice(&self.key);
        fresh[32..].copy_from_slice(&self.nonce[4..]);
        ChaCha20::new(&self.key.into(), &self.nonce.into()).apply_keystream(&mut fresh);
        self.key.copy_from_slice(&fresh[..32]);
        self.nonce = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        self.nonce[4..].copy_from_slice(&fresh[32..]);
    }
}

fn authenticator(key: &[u8; 32], block: &[u8; 64], message: &[u8]) -> [u8; 16] {
    let mut poly = Poly1305::new(key.into());
    poly.update_padded(block);
    let (whole, rest) = message.split_at(message.len() & !15);
    poly.update_padded(whole);
    // The rest, as many zeros, the length of the (absent) associated data and that of what was encrypted.
    let mut last = [0; 46];
    last[..rest.len()].copy_from_slice(rest);
    let at = rest.len() * 2 + 8;
    last[at..at + 8].copy_from_slice(&(64 + message.len() as u64).to_le_bytes());
    poly.compute_unpadded(&last[..at + 8]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(sealing: &mut Sealing, message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; message.len() + OVERHEAD];
        bytes[1..=message.len()].copy_from_slice(message);
        sealing.seal(&mut bytes);
        bytes
    }

    #[test]
    fn what_is_sealed_opens_in_order_only() {
        let (mut to, mut from) = (Sealing::new(&[1; 32], &[2; 24]), Sealing::new(&[1; 32], &[2; 24]));
        let messages: Vec<Vec<u8>> = (0..100).map(|size| vec![size as u8; size * 7]).collect();
        let mut all: Vec<Vec<u8>> = messages.iter().map(|message| sealed(&mut to, message)).collect();
        for (index, message) in messages.iter().enumerate() {
            if index == 50 {
                let mut later = all[51].clone();
                assert_eq!(from.open(&mut later), None, "one message was left out");
            }
            assert_eq!(from.open(&mut all[index]), Some(&message[..]));
        }
    }

    #[test]
    fn every_bit_counts() {
        let genuine = sealed(&mut Sealing::new(&[1; 32], &[2; 24]), b"some seventeen by");
        for bit in 0..genuine.len() * 8 {
            let mut forged = genuine.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Sealing::new(&[1; 32], &[2; 24]).open(&mut forged), None, "bit {bit}");
        }
        for length in 0..genuine.len() {
            assert_eq!(Sealing::new(&[1; 32], &[2; 24]).open(&mut genuine[..length].to_vec()), None);
        }
    }

    /// The counter wraps after 2^32 messages; then the key changes, on both sides alike.
    #[test]
    fn a_new_key_after_the_last_count() {
        let (mut to, mut from) = (Sealing::new(&[1; 32], &[2; 24]), Sealing::new(&[1; 32], &[2; 24]));
        to.nonce[..4].copy_from_slice(&[255; 4]);
        from.nonce[..4].copy_from_slice(&[255; 4]);
        let key = to.key;
        for _ in 0..3 {
            assert_eq!(from.open(&mut sealed(&mut to, b"hello")), Some(&b"hello"[..]));
        }
        assert_ne!(to.key, key);
    }
}

//! How a store hides and protects its bytes: AES-256-GCM, under keys derived from the tenant's root key.
//!
//! Each segment has a key of its own, by its random salt. The nonce of a record is its offset in the segment,
//! to which nothing is ever written twice: after each opening and after each failed write a new segment
//! begins. GCM is a stream (CTR, from counter 2), so one block can be read out of a large record; then the
//! tag cannot be checked, and the Merkle tree is what protects the block.

use crate::crypto::{self, Hash};
use aes::Aes256;
use aes::cipher::KeyInit;
use ctr::cipher::{InnerIvInit, StreamCipher, StreamCipherCoreWrapper, StreamCipherSeek};
use ctr::{CtrCore, flavors};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use std::fmt;

pub(crate) const TAG: usize = 16;
pub(crate) const SALT: usize = 16;

/// The one secret from which all keys of a store come. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct RootKey(pub [u8; 32]);

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(..)")
    }
}

impl RootKey {
    pub(crate) fn derive(&self, purpose: &[u8], salt: &[u8]) -> Hash {
        crypto::keyed_hash(&self.0, &[b"cloudpal store 1 ", purpose, salt])
    }
}

/// The key of one segment.
pub(crate) struct SealKey {
    /// There is one: a key of this length is always taken.
    gcm: Option<LessSafeKey>,
    raw: Aes256,
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealKey(..)")
    }
}

fn nonce(offset: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&offset.to_be_bytes());
    nonce
}

impl SealKey {
    pub fn new(raw: Hash) -> Self {
        let gcm = UnboundKey::new(&AES_256_GCM, &raw).ok().map(LessSafeKey::new);
        SealKey { gcm, raw: Aes256::new(&raw.into()) }
    }

    /// Encrypts `body` in place and answers its tag; `open` is protected, but not hidden.
    pub fn seal(&self, offset: u64, open: &[u8], body: &mut [u8]) -> Option<[u8; TAG]> {
        let nonce = Nonce::assume_unique_for_key(nonce(offset));
        let tag = self.gcm.as_ref()?.seal_in_place_separate_tag(nonce, Aad::from(open), body).ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Decrypts in place; false if it is not genuine.
    #[must_use]
    pub fn unseal(&self, offset: u64, open: &[u8], body: &mut [u8], tag: &[u8; TAG]) -> bool {
        let Some(gcm) = &self.gcm else { return false };
        let nonce = Nonce::assume_unique_for_key(nonce(offset));
        gcm.open_in_place_separate_tag(nonce, Aad::from(open), Tag::from(*tag), body, 0..).is_ok()
    }

    /// Decrypts a part of the record at `offset`, from the byte `skip` of its body on, with no tag to check.
    pub fn unseal_part(&self, offset: u64, skip: u64, part: &mut [u8]) {
        let mut counter = [0; 16];
        counter[..12].copy_from_slice(&nonce(offset));
        counter[15] = 2;
        let core = CtrCore::<Aes256, flavors::Ctr32BE>::inner_iv_init(self.raw.clone(), &counter.into());
        let mut stream = StreamCipherCoreWrapper::from_core(core);
        if stream.try_seek(skip).is_ok() {
            stream.apply_keystream(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_record_reads_as_the_whole() {
        let key = SealKey::new([7; 32]);
        let body: Vec<u8> = (0..1000u32).map(|n| n as u8).collect();
        let mut sealed = body.clone();
        let tag = key.seal(4096, b"head", &mut sealed).unwrap();
        assert_ne!(sealed, body);
        for (from, to) in [(0, 10), (1, 2), (15, 40), (333, 1000)] {
            let mut part = sealed[from..to].to_vec();
            key.unseal_part(4096, from as u64, &mut part);
            assert_eq!(part, body[from..to]);
        }
        let mut whole = sealed.clone();
        assert!(key.unseal(4096, b"head", &mut whole, &tag));
        assert_eq!(whole, body);
        sealed[500] ^= 1;
        assert!(!key.unseal(4096, b"head", &mut sealed, &tag));
    }
}

//! How the JavaScript stack encrypts the blocks of a core, so that who has no key can hold and serve them.
//!
//! As `hypercore/lib/default-encryption.js` 11.37.1: XSalsa20 with no tag, for the tree authenticates. Eight
//! bytes stand before the text: the fork, blinded. They and the block's number are the nonce, so a key never
//! meets a nonce twice in one history.

use crate::crypto::{self, Hash};
use crate::error::DataError;
use salsa20::XSalsa20;
use salsa20::cipher::{KeyIvInit, StreamCipher};
use std::fmt;

/// What an encrypted block is longer.
pub const PADDING: usize = 8;

/// The keys of one core's blocks. `Debug` shows nothing of them.
#[derive(Clone)]
pub struct BlockCipher {
    block: Hash,
    blinding: Hash,
}

impl BlockCipher {
    /// From the encryption key and the core's key. Compat cores derive otherwise.
    pub fn new(encryption_key: &[u8; 32], core: &Hash, compat: bool) -> Self {
        let block = if compat {
            crypto::keyed_hash(core, &[encryption_key])
        } else {
            crypto::hash(&[crypto::encryption_namespace(), core, encryption_key])
        };
        BlockCipher { block, blinding: crypto::hash(&[&block]) }
    }

    pub fn encrypt(&self, index: u64, fork: u64, text: &[u8]) -> Vec<u8> {
        let mut nonce = [0; 24];
        nonce[..8].copy_from_slice(&index.to_le_bytes());
        let mut block = fork.to_le_bytes().to_vec();
        XSalsa20::new(&self.blinding.into(), &nonce.into()).apply_keystream(&mut block);
        nonce[8..16].copy_from_slice(&block);
        block.extend_from_slice(text);
        XSalsa20::new(&self.block.into(), &nonce.into()).apply_keystream(&mut block[PADDING..]);
        block
    }

    pub fn decrypt(&self, index: u64, block: &[u8]) -> Result<Vec<u8>, DataError> {
        let (padding, text) = block
            .split_at_checked(PADDING)
            .ok_or(DataError::Malformed("an encrypted block of under 8 bytes"))?;
        let mut nonce = [0; 24];
        nonce[..8].copy_from_slice(&index.to_le_bytes());
        nonce[8..16].copy_from_slice(padding);
        let mut text = text.to_vec();
        XSalsa20::new(&self.block.into(), &nonce.into()).apply_keystream(&mut text);
        Ok(text)
    }
}

impl fmt::Debug for BlockCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlockCipher(..)")
    }
}

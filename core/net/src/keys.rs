//! WireGuard keys from random bytes that the caller drew.

use cloudpal_model::{PresharedKey, PrivateKey, PublicKey};

/// A private key and its public half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPair {
    pub private: PrivateKey,
    pub public: PublicKey,
}

impl KeyPair {
    /// From 32 bytes of a cryptographic random generator, clamped as `wg genkey` does (RFC 7748 §5).
    pub fn from_random(mut random: [u8; 32]) -> KeyPair {
        random[0] &= 0b1111_1000;
        random[31] = random[31] & 0b0111_1111 | 0b0100_0000;
        let private = PrivateKey(random);
        KeyPair { public: public_key(&private), private }
    }
}

/// The public half of a private key.
pub fn public_key(private: &PrivateKey) -> PublicKey {
    PublicKey(x25519_dalek::x25519(private.0, x25519_dalek::X25519_BASEPOINT_BYTES))
}

/// From 32 bytes of a cryptographic random generator: every 32 bytes are a good one.
pub fn preshared_key(random: [u8; 32]) -> PresharedKey {
    PresharedKey(random)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(text: &str) -> [u8; 32] {
        let byte = |i: usize| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap();
        std::array::from_fn(byte)
    }

    /// RFC 7748 §5.2: the scalar 9 times the point 9, once.
    #[test]
    fn the_vector_of_rfc_7748() {
        let mut nine = [0; 32];
        nine[0] = 9;
        let expected = hex("422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079");
        assert_eq!(public_key(&PrivateKey(nine)).0, expected);
    }

    #[test]
    fn clamping_changes_no_public_key_and_leaves_a_scalar_that_every_client_accepts() {
        let pair = KeyPair::from_random([0xff; 32]);
        assert_eq!((pair.private.0[0], pair.private.0[31]), (0xf8, 0x7f));
        assert_eq!(public_key(&PrivateKey([0xff; 32])), pair.public);
    }

    #[test]
    fn debug_shows_no_secret() {
        let pair = KeyPair::from_random([7; 32]);
        assert!(!format!("{pair:?}").contains(&pair.private.to_base64()));
    }
}

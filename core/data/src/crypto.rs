//! The hashes, key pairs and signed bytes of Hypercore.
//!
//! Sources: `hypercore-crypto` 3.7.0 and `hypercore/lib/caps.js` 11.37.1. Leaf, parent and root hashes begin
//! with a byte of their own, so that none can pass for another.

use blake2b_simd::{Params, State};
use curve25519_dalek::edwards::CompressedEdwardsY;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use std::{fmt, sync::LazyLock};

pub type Hash = [u8; 32];
pub type PublicKey = [u8; 32];

/// The namespaces of `hypercore`: their order is part of the format.
static NAMESPACES: LazyLock<[Hash; 6]> =
    LazyLock::new(|| std::array::from_fn(|id| namespace(b"hypercore", id as u8)));

pub fn tree_namespace() -> &'static Hash {
    &NAMESPACES[0]
}

/// Of the capability that a replicating peer shows: the initiator's, and the responder's.
pub fn replicate_namespaces() -> (&'static Hash, &'static Hash) {
    (&NAMESPACES[1], &NAMESPACES[2])
}

pub fn manifest_namespace() -> &'static Hash {
    &NAMESPACES[3]
}

pub fn default_namespace() -> &'static Hash {
    &NAMESPACES[4]
}

pub fn encryption_namespace() -> &'static Hash {
    &NAMESPACES[5]
}

/// The namespace number `id` of `name`.
pub fn namespace(name: &[u8], id: u8) -> Hash {
    hash(&[&hash(&[name]), &[id]])
}

/// BLAKE2b-256 of the parts, one after the other.
pub fn hash(parts: &[&[u8]]) -> Hash {
    finished(Params::new().hash_length(32), parts)
}

/// BLAKE2b-256 keyed with 32 or 64 bytes.
pub fn keyed_hash<const N: usize>(key: &[u8; N], parts: &[&[u8]]) -> Hash {
    const { assert!(N > 0 && N <= 64) };
    finished(Params::new().hash_length(32).key(key), parts)
}

fn finished(params: &Params, parts: &[&[u8]]) -> Hash {
    let mut state = params.to_state();
    for part in parts {
        state.update(part);
    }
    finalized(&state)
}

pub fn leaf_hash(block: &[u8]) -> Hash {
    hash(&[&[0], &(block.len() as u64).to_le_bytes(), block])
}

/// The same of several blocks at once, which is several times as fast where they are large.
pub fn leaf_hashes(blocks: &[&[u8]]) -> Vec<Hash> {
    let begun = |block: &&[u8]| {
        let mut state = Params::new().hash_length(32).to_state();
        state.update(&[0]).update(&(block.len() as u64).to_le_bytes());
        state
    };
    let mut states: Vec<State> = blocks.iter().map(begun).collect();
    blake2b_simd::many::update_many(states.iter_mut().zip(blocks));
    states.iter().map(finalized).collect()
}

fn finalized(state: &State) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(&state.finalize().as_bytes()[..32]);
    hash
}

/// `size` is the sum of both sizes.
pub fn parent_hash(size: u64, left: &Hash, right: &Hash) -> Hash {
    hash(&[&[1], &size.to_le_bytes(), left, right])
}

/// Where peers meet who know a core's key, without telling it to those who do not.
pub fn discovery_key(key: &PublicKey) -> Hash {
    keyed_hash(key, &[b"hypercore"])
}

/// An Ed25519 key pair. `Debug` shows the public half only.
#[derive(Clone)]
pub struct KeyPair {
    key: SigningKey,
}

impl KeyPair {
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        KeyPair { key: SigningKey::from_bytes(seed) }
    }

    /// The secret half, for what is to sign elsewhere.
    pub fn seed(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    pub fn public_key(&self) -> PublicKey {
        self.key.verifying_key().to_bytes()
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }

    /// The secret that only the holders of the two key pairs can compute: an Edwards point, as libsodium's
    /// `crypto_scalarmult_ed25519` computes it. `None` where that one fails: `theirs` is no point of the prime
    /// subgroup.
    pub fn shared(&self, theirs: &PublicKey) -> Option<[u8; 32]> {
        let point = CompressedEdwardsY(*theirs).decompress()?;
        if point.is_small_order() || !point.is_torsion_free() || point.compress().0 != *theirs {
            return None;
        }
        Some((point * self.key.to_scalar()).compress().0)
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public_key", &self.public_key()).finish_non_exhaustive()
    }
}

/// Strict as libsodium is: keys of small order sign nothing.
pub fn verify(message: &[u8], signature: &[u8; 64], public_key: &PublicKey) -> bool {
    VerifyingKey::from_bytes(public_key)
        .is_ok_and(|key| key.verify_strict(message, &Signature::from_bytes(signature)).is_ok())
}

/// What a signer signs: the tree at a length of a fork, in the context of a manifest (or of a namespace,
/// version 0).
pub fn signable(context: &Hash, tree_hash: &Hash, length: u64, fork: u64) -> Vec<u8> {
    [tree_namespace(), context, tree_hash, &length.to_le_bytes()[..], &fork.to_le_bytes()].concat()
}

/// The same for cores whose key is the signer's public key: they have no manifest.
pub fn signable_compat(tree_hash: &Hash, length: u64, fork: u64) -> Vec<u8> {
    [tree_namespace(), tree_hash, &length.to_le_bytes()[..], &fork.to_le_bytes()].concat()
}

/// The key pair of a named core, as `corestore` 7.12.5 derives it from its primary key.
pub fn named_key_pair(primary_key: &[u8; 32], namespace: &Hash, name: &[u8]) -> KeyPair {
    let label = self::namespace(b"corestore", 0);
    KeyPair::from_seed(&keyed_hash(primary_key, &[&label, namespace, name]))
}

/// The namespace `name` within a namespace of `corestore`; the outermost is 32 zero bytes.
pub fn named_namespace(within: &Hash, name: &[u8]) -> Hash {
    hash(&[within, name])
}

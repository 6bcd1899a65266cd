//! Opening a core of a store, by its key, its manifest or its writer's key pair.

use super::{Core, Durability};
use crate::crypto::{self, Hash, KeyPair};
use crate::encryption::BlockCipher;
use crate::error::DataError;
use crate::manifest::Manifest;
use crate::signature::Verifier;
use crate::store::Store;
use crate::store::record::{self, Change};
use crate::store::state::CoreState;
use std::sync::Arc;

/// Which core, and what is known of it.
#[derive(Clone, Debug)]
pub struct Open {
    key: Hash,
    manifest: Option<Manifest>,
    pair: Option<KeyPair>,
    encryption_key: Option<[u8; 32]>,
    create: bool,
}

impl Open {
    /// Somebody else's core. Who may sign it is learned from peers.
    pub fn key(key: Hash) -> Self {
        Open { key, manifest: None, pair: None, encryption_key: None, create: true }
    }

    pub fn manifest(manifest: Manifest) -> Self {
        Open { manifest: Some(manifest.clone()), ..Open::key(manifest.key()) }
    }

    /// The default core of a key pair.
    pub fn pair(pair: KeyPair) -> Self {
        Open::manifest(Manifest::single(pair.public_key())).with_pair(pair)
    }

    /// The core of a key pair as it was before manifests.
    pub fn compat(pair: KeyPair) -> Self {
        let public_key = pair.public_key();
        let manifest = Some(Manifest::single(public_key));
        Open { manifest, ..Open::key(public_key).with_pair(pair) }
    }

    /// A core whose signers are known, whatever it is.
    pub fn verifier(verifier: &Verifier) -> Self {
        Open { manifest: Some(verifier.manifest().clone()), ..Open::key(*verifier.key()) }
    }

    /// The key of the core that is meant.
    pub fn core_key(&self) -> Hash {
        self.key
    }

    #[must_use]
    pub fn with_pair(mut self, pair: KeyPair) -> Self {
        self.pair = Some(pair);
        self
    }

    #[must_use]
    pub fn encrypted(mut self, encryption_key: [u8; 32]) -> Self {
        self.encryption_key = Some(encryption_key);
        self
    }

    /// Only a core that the store has already.
    #[must_use]
    pub fn existing(mut self) -> Self {
        self.create = false;
        self
    }
}

impl Store {
    /// Opens a core, making it if it is not there. A writer's core is signed as far as it is on the disk.
    pub fn core(&self, open: &Open) -> Result<Core, DataError> {
        let given = open.manifest.clone().map(|manifest| Verifier::new(open.key, manifest)).transpose()?;
        let mut inner = self.lock();
        if !inner.poisoned {
            inner.relieve()?;
        }
        let id = match inner.id_of(&open.key) {
            Some(id) => id,
            None if !open.create => return Err(DataError::NoSuchCore),
            None => {
                let id = inner.next_core();
                let change = Change::Create { key: open.key, manifest: open.manifest.clone() };
                inner.write(record::small(id, &change))?;
                inner.apply_create(id, CoreState::new(id, open.key, given.clone()));
                id
            }
        };
        let (state, _) = inner.parts(id)?;
        match (&state.verifier, given) {
            (Some(known), Some(given)) if known.manifest() != given.manifest() => {
                return Err(DataError::WrongManifest);
            }
            (None, Some(given)) => {
                inner.write(record::put(id, Some(given.manifest()), None, &[], None).0)?;
                let (state, _) = inner.parts(id)?;
                state.verifier = Some(given);
                inner.dirty.insert(id);
            }
            _ => {}
        }
        let (state, _) = inner.parts(id)?;
        let verifier = state.verifier.as_ref();
        if let Some(pair) = &open.pair {
            let public_key = pair.public_key();
            let may =
                |verifier: &Verifier| verifier.manifest().signers.iter().any(|s| s.public_key == public_key);
            if !verifier.is_some_and(may) {
                return Err(DataError::NotWritable);
            }
        }
        let is_writer = open.pair.as_ref().is_some_and(|pair| state.is_sole_writer(pair));
        let compat = verifier.is_some_and(Verifier::is_compat);
        let cipher = open.encryption_key.map(|key| Arc::new(BlockCipher::new(&key, &open.key, compat)));
        let discovery_key = crypto::discovery_key(&open.key);
        let unsigned = state.signed.as_ref().map(|signed| &signed.head) != Some(&state.head);
        let core = Core {
            store: self.clone(),
            id,
            key: open.key,
            discovery_key,
            pair: open.pair.clone().map(Arc::new),
            cipher,
            durability: Durability::Synced,
            seen: None,
        };
        let recover = core.pair.is_some() && unsigned && state.head.length > 0 && !inner.poisoned;
        if is_writer {
            inner.written.insert(id);
        }
        drop(inner);
        if recover {
            core.recover()?;
        }
        Ok(core)
    }
}

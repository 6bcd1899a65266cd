//! Named cores from one primary key, as `corestore` 7.12.5 derives them.
//!
//! The primary key and the names are kept in the store, sealed like the rest; so a store that was opened once with a
//! primary key knows its names, and no other primary key is taken for it.

use crate::core::{Core, Open};
use crate::crypto::{self, Hash};
use crate::encoding::{Reader, Writer};
use crate::error::DataError;
use crate::store::Store;

const PRIMARY_KEY: &[u8] = b"primary key";
const NAME: &[u8] = b"name ";

/// A name that was opened, within a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    pub namespace: Hash,
    pub name: Vec<u8>,
    pub key: Hash,
}

/// A store with a primary key, seen from one of its namespaces.
#[derive(Clone, Debug)]
pub struct Corestore {
    store: Store,
    namespace: Hash,
}

impl Corestore {
    /// `fresh` becomes the primary key of a store that has none yet; it must be random, or a backup.
    pub fn open(store: Store, fresh: [u8; 32]) -> Result<Self, DataError> {
        if store.meta(PRIMARY_KEY).is_none() {
            store.set_meta(PRIMARY_KEY, Some(&fresh))?;
        }
        Ok(Corestore { store, namespace: [0; 32] })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Who has it can write every named core: for a backup.
    pub fn primary_key(&self) -> Result<[u8; 32], DataError> {
        let key = self.store.meta(PRIMARY_KEY).and_then(|key| key.try_into().ok());
        key.ok_or(DataError::Malformed("a primary key that is none"))
    }

    #[must_use]
    pub fn namespace(&self, name: &[u8]) -> Self {
        Corestore { namespace: crypto::named_namespace(&self.namespace, name), ..self.clone() }
    }

    /// Which core a name leads to, and how it is written.
    pub fn named(&self, name: &[u8]) -> Result<Open, DataError> {
        Ok(Open::pair(crypto::named_key_pair(&self.primary_key()?, &self.namespace, name)))
    }

    /// The core of a name, made when it is first opened.
    pub fn get(&self, name: &[u8]) -> Result<Core, DataError> {
        let core = self.store.core(&self.named(name)?)?;
        let mut to = Writer::default();
        to.raw(NAME);
        to.raw(&self.namespace);
        to.raw(name);
        if self.store.meta(&to.bytes).is_none() {
            self.store.set_meta(&to.bytes, Some(core.key()))?;
        }
        Ok(core)
    }

    /// All names that were opened, in all namespaces.
    pub fn names(&self) -> Result<Vec<Named>, DataError> {
        let read = |(key, value): (Vec<u8>, Vec<u8>)| {
            let mut from = Reader::new(&key[NAME.len()..]);
            let namespace = from.fixed()?;
            Ok(Named { namespace, name: from.take(from.rest())?.to_vec(), key: Reader::new(&value).fixed()? })
        };
        self.store.metas(NAME).into_iter().map(read).collect()
    }
}

//! The cores of a store, for replication.
//!
//! Whoever knows a core's key may have it: the key is the capability, as everywhere with Hypercore. A core that a
//! peer names is opened then and not before.

use super::Replicas;
use crate::core::{Core, Open};
use crate::crypto::{Hash, PublicKey};
use crate::error::DataError;
use crate::store::Store;
use std::collections::{BTreeMap, HashMap};

#[derive(Clone, Debug)]
pub struct StoredCores {
    store: Store,
    cores: BTreeMap<u64, Core>,
    by_key: HashMap<Hash, u64>,
    last: u64,
}

impl StoredCores {
    pub fn new(store: Store) -> Self {
        StoredCores { store, cores: BTreeMap::new(), by_key: HashMap::new(), last: 0 }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Opens a core, or finds it open. Answers the number by which replication knows it.
    pub fn open(&mut self, open: &Open) -> Result<u64, DataError> {
        let core = self.store.core(open)?;
        Ok(self.keep(core))
    }

    /// The number of a core of the store that was opened elsewhere.
    pub fn keep(&mut self, core: Core) -> u64 {
        let key = *core.key();
        let number = *self.by_key.entry(key).or_insert_with(|| {
            self.last += 1;
            self.last
        });
        self.cores.insert(number, core);
        number
    }

    pub fn core(&self, number: u64) -> Option<&Core> {
        self.cores.get(&number)
    }

    /// Forgets the session; the core stays in the store.
    pub fn close(&mut self, number: u64) {
        if let Some(core) = self.cores.remove(&number) {
            self.by_key.remove(core.key());
        }
    }
}

impl Replicas for StoredCores {
    type Replica = Core;

    fn find(&mut self, discovery_key: &Hash, _remote: &PublicKey) -> Option<u64> {
        let key = self.store.find(discovery_key)?;
        match self.by_key.get(&key) {
            Some(number) => Some(*number),
            None => self.open(&Open::key(key).existing()).ok(),
        }
    }

    fn replica(&mut self, core: u64) -> Option<&mut Core> {
        self.cores.get_mut(&core)
    }
}

//! A store that outlives the engine, as a disk does, and that can refuse.

use cloudpal_model::{
    Kind, Problem,
    store::{Change, Store},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Default)]
pub struct Disk {
    pub records: BTreeMap<String, Vec<u8>>,
    /// How many of the next commits fail.
    pub failing: u32,
    pub commits: u64,
}

/// A handle; all handles are the same disk.
#[derive(Clone, Default)]
pub struct FakeStore(Arc<Mutex<Disk>>);

impl FakeStore {
    pub fn disk(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for FakeStore {
    fn load(&self) -> Result<Vec<(String, Vec<u8>)>, Problem> {
        Ok(self.disk().records.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&mut self, batch: &[Change]) -> Result<(), Problem> {
        let mut disk = self.disk();
        if disk.failing > 0 {
            disk.failing -= 1;
            return Err(Problem::new(Kind::DiskFull, "the fake disk is full", "free some space"));
        }
        disk.commits += 1;
        for change in batch {
            match change {
                Change::Put { key, value } => disk.records.insert(key.clone(), value.clone()),
                Change::Delete { key } => disk.records.remove(key),
            };
        }
        Ok(())
    }
}

/// A store that forgets at once: for measuring memory without a disk in it.
pub struct NullStore;

impl Store for NullStore {
    fn load(&self) -> Result<Vec<(String, Vec<u8>)>, Problem> {
        Ok(Vec::new())
    }

    fn commit(&mut self, _batch: &[Change]) -> Result<(), Problem> {
        Ok(())
    }
}

//! What the cores of one store stand on: the log, the pages of the index, and how much of each segment is in use.

use super::log::RECORD_HEAD;
use super::log::{Log, OVERHEAD};
use super::pages::BlockPlace;
use super::pages::Pages;
use super::record::Place;
use super::seal::SealKey;
use crate::error::{DataError, StorageError};
use crate::storage::Disk;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Debug)]
pub(crate) struct Floor {
    pub log: Log,
    pub pages: Pages,
    /// The bytes of each segment that something refers to.
    pub live: BTreeMap<u32, u64>,
}

impl Floor {
    pub fn alive(&mut self, segment: u32, bytes: u64) {
        *self.live.entry(segment).or_default() += bytes;
    }

    pub fn dead(&mut self, segment: u32, bytes: u64) {
        if let Some(live) = self.live.get_mut(&segment) {
            *live = live.saturating_sub(bytes);
        }
    }

    pub fn place_alive(&mut self, place: Place) {
        self.alive(place.at.segment, u64::from(place.size) + OVERHEAD as u64);
    }

    pub fn place_dead(&mut self, place: Place) {
        self.dead(place.at.segment, u64::from(place.size) + OVERHEAD as u64);
    }
}

/// From where a block can be read when the store is no longer held.
#[derive(Debug)]
pub(crate) struct Source {
    disk: Arc<dyn Disk>,
    key: Arc<SealKey>,
}

impl Floor {
    pub fn source(&mut self, segment: u32) -> Result<Source, DataError> {
        Ok(Source { disk: self.log.disk.clone(), key: self.log.key(segment)? })
    }
}

impl Source {
    /// The block decrypted, but not checked.
    pub fn read(&self, place: &BlockPlace) -> Result<Vec<u8>, StorageError> {
        let mut block = vec![0; place.size as usize];
        let (record, skip) = (u64::from(place.at.offset), u64::from(place.skip));
        self.disk.read(u64::from(place.at.segment), record + RECORD_HEAD as u64 + skip, &mut block)?;
        self.key.unseal_part(record, skip, &mut block);
        Ok(block)
    }
}

//! One core, bee, drive or trie, open.
//!
//! Invariant: one write at a time (`writing`); reads wait only while something is looked up, never for an upload.

use super::{
    catalog::Record,
    feeds::{Missing, Tracked},
};
use cloudpal_api::{Data, DataFrozen, DataKind};
use cloudpal_data::{
    DataError,
    bee::Bee,
    core::{Core, Frozen, Info},
    drive::{self, Drive},
    replication::Replica,
    trie::Trie,
};
use cloudpal_model::Name;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub struct Item {
    pub name: Name,
    pub kind: DataKind,
    pub record: Mutex<Record>,
    pub main: Tracked,
    pub missing: Missing,
    pub writing: tokio::sync::Mutex<()>,
    open: Mutex<Opened>,
}

pub enum Opened {
    Core,
    Bee(Bee<Tracked>),
    Trie(Trie<Tracked>),
    Drive(Drive<Tracked, Tracked>),
    /// Somebody else's, of which it is not known yet where the contents are.
    DriveWithoutContents(Bee<Tracked>),
}

impl Item {
    pub fn new(name: Name, record: Record, main: Tracked, missing: Missing, opened: Opened) -> Item {
        let (kind, open) = (record.kind, Mutex::new(opened));
        Item { name, kind, record: Mutex::new(record), main, missing, writing: Default::default(), open }
    }

    pub fn lock(&self) -> MutexGuard<'_, Opened> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The core with a drive's contents, once it is known.
    pub fn contents(&self) -> Option<Tracked> {
        match &*self.lock() {
            Opened::Drive(drive) => Some(drive.blobs().feed().clone()),
            _ => None,
        }
    }

    pub fn cores(&self) -> Vec<Tracked> {
        [self.main.clone()].into_iter().chain(self.contents()).collect()
    }

    /// The key of the contents of somebody else's drive, if what says it is here.
    pub fn contents_key(&self) -> Result<Option<[u8; 32]>, DataError> {
        match &*self.lock() {
            Opened::DriveWithoutContents(bee) if self.main.core.info()?.length > 0 => {
                let header = bee.header()?;
                let manifest = self.main.core.manifest();
                drive::contents_key(&header, manifest.as_ref(), self.main.core.key()).map(Some)
            }
            _ => Ok(None),
        }
    }

    pub fn show(&self, peers: u32) -> Result<Data, DataError> {
        let record = self.record();
        let info = self.main.core.info()?;
        let contents = self.contents().map(|contents| contents.core.info()).transpose()?;
        Ok(Data {
            name: self.name.clone(),
            kind: self.kind,
            discovery_key: super::keys::hex(&info.discovery_key),
            writable: record.writable(),
            key: record.key,
            encrypted: record.encryption_key.is_some(),
            length: info.length,
            fork: info.fork,
            byte_length: info.byte_length + contents.as_ref().map_or(0, |contents| contents.byte_length),
            blocks_here: blocks_here(&info, contents.as_ref()),
            peers,
            frozen: self.frozen()?,
        })
    }

    fn frozen(&self) -> Result<Option<DataFrozen>, DataError> {
        for tracked in self.cores() {
            match tracked.core.frozen()? {
                Some(Frozen::Behind { fork, length }) => {
                    return Ok(Some(DataFrozen::Behind { fork, length }));
                }
                Some(Frozen::Conflict { fork, length }) => {
                    return Ok(Some(DataFrozen::Conflict { fork, length }));
                }
                None => {}
            }
        }
        Ok(None)
    }
}

/// Of a drive whose contents are here in part, as many blocks of its list as stand for that part.
fn blocks_here(info: &Info, contents: Option<&Info>) -> u64 {
    match contents {
        Some(contents) if contents.length > contents.stored_blocks => {
            let part = u128::from(info.stored_blocks) * u128::from(contents.stored_blocks);
            (part / u128::from(contents.length.max(1))) as u64
        }
        _ => info.stored_blocks,
    }
}

/// What a drive, bee or trie is made of, on its cores.
pub fn opened(kind: DataKind, main: &Tracked, contents: Option<(&Core, u64)>, missing: &Missing) -> Opened {
    match (kind, contents) {
        (DataKind::Core, _) => Opened::Core,
        (DataKind::Bee, _) => Opened::Bee(Bee::new(main.clone())),
        (DataKind::Trie, _) => Opened::Trie(Trie::new(main.clone())),
        (DataKind::Drive, Some((core, number))) => {
            let contents = Tracked::new(core.clone(), number, missing.clone());
            Opened::Drive(Drive::new(main.clone(), contents, None))
        }
        (DataKind::Drive, None) => Opened::DriveWithoutContents(Bee::new(main.clone())),
    }
}

/// For the items of a tenant.
pub type Shared = Arc<Item>;

//! What a tenant has, by name: kept in the tenant's own store, sealed like all else in it.

use super::keys;
use cloudpal_api::{DataKind, Secret};
use cloudpal_data::{DataError, crypto::Hash, store::Store};
use cloudpal_model::{Name, Problem};
use serde::{Deserialize, Serialize};

const PREFIX: &[u8] = b"data/";
const QUOTA: &[u8] = b"quota_bytes";

/// One core, bee, drive or trie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub kind: DataKind,
    /// Hexadecimal.
    pub key: String,
    /// From what the writer's key pair is derived; never the same twice, also when a name is used again: one key must
    /// not sign two histories. `None`: somebody else writes it.
    pub seed: Option<String>,
    /// The writer's key pair where it was not made here but imported: its secret, hexadecimal.
    #[serde(default)]
    pub pair: Option<Secret>,
    /// Hexadecimal.
    pub encryption_key: Option<String>,
    /// `HOST:PORT` of those whom we call.
    #[serde(default)]
    pub peers: Vec<String>,
}

impl Record {
    /// Whether this host has the writer's key.
    pub fn writable(&self) -> bool {
        self.seed.is_some() || self.pair.is_some()
    }

    pub fn encryption_key(&self) -> Result<Option<Hash>, Problem> {
        self.encryption_key.as_deref().map(keys::parse).transpose()
    }
}

pub fn all(store: &Store) -> Vec<(Name, Record)> {
    let read = |(key, value): (Vec<u8>, Vec<u8>)| {
        let name = std::str::from_utf8(key.strip_prefix(PREFIX)?).ok()?.parse().ok()?;
        match serde_json::from_slice(&value) {
            Ok(record) => Some((name, record)),
            Err(error) => {
                tracing::error!(%name, %error, "what the store says of this name is not understood");
                None
            }
        }
    };
    store.metas(PREFIX).into_iter().filter_map(read).collect()
}

pub fn put(store: &Store, name: &Name, record: Option<&Record>) -> Result<(), DataError> {
    let value = record.map(serde_json::to_vec).transpose();
    let value = value.map_err(|_| DataError::BadRequest("a record that cannot be written"))?;
    store.set_meta(&[PREFIX, name.as_str().as_bytes()].concat(), value.as_deref())
}

pub fn quota_bytes(store: &Store) -> Option<u64> {
    let value = store.meta(QUOTA)?;
    std::str::from_utf8(&value).ok()?.parse().ok()
}

pub fn set_quota_bytes(store: &Store, quota_bytes: Option<u64>) -> Result<(), DataError> {
    let value = quota_bytes.map(|bytes| bytes.to_string());
    store.set_meta(QUOTA, value.as_deref().map(str::as_bytes))
}

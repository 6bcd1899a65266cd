//! What can be done with the keys of a bee or a trie.

use crate::http::entry_key;

use super::{TenantData, feeds::Tracked, item::Opened};
use axum::body::Bytes;
use base64::{Engine, engine::general_purpose::STANDARD};
use cloudpal_api::{DataKind, DataVersion, Entry, EntryList, EntryQuery, HistoryQuery};
use cloudpal_data::{
    DataError,
    bee::{self, KeyRange, Written},
    trie::{self, ListOptions},
};
use cloudpal_model::{Name, Problem};
use std::sync::Arc;

const KEYED: &[DataKind] = &[DataKind::Bee, DataKind::Trie];
const DEFAULT_LIMIT: u32 = 1000;
const WRONG: DataError = DataError::BadRequest("it has no keys");

fn shown(key: &[u8], value: Option<&[u8]>, seq: u64) -> Entry {
    Entry {
        key: String::from_utf8_lossy(key).into_owned(),
        key_base64: STANDARD.encode(key),
        value_base64: value.map(|value| STANDARD.encode(value)),
        // The entry is in the block; with that block the version is one more.
        version: seq + 1,
    }
}

fn shown_bee(entry: &bee::Entry) -> Entry {
    shown(entry.key(), Some(entry.value().unwrap_or_default()), entry.seq())
}

fn shown_trie(entry: &trie::Entry) -> Entry {
    shown(entry.key().as_bytes(), Some(entry.value().unwrap_or_default()), entry.seq())
}

/// A trie's keys are text.
fn text(key: &[u8]) -> Result<&str, DataError> {
    std::str::from_utf8(key).map_err(|_| DataError::BadRequest("a trie's keys are UTF-8"))
}

/// Takes up to the limit, and says whether there is more.
fn gather(
    entries: impl Iterator<Item = Result<Entry, DataError>>,
    limit: u32,
) -> Result<EntryList, DataError> {
    let mut list = EntryList { entries: Vec::new(), more: false };
    for entry in entries {
        let entry = entry?;
        if list.entries.len() as u64 >= u64::from(limit) {
            list.more = true;
            break;
        }
        list.entries.push(entry);
    }
    Ok(list)
}

fn range(query: &EntryQuery) -> Result<KeyRange, Problem> {
    let bytes = |key: &Option<String>| key.as_ref().map(|key| entry_key(key, query.hex)).transpose();
    let mut range = bytes(&query.prefix)?.map_or(KeyRange::all(), |prefix| KeyRange::prefix(&prefix));
    for (bound, apply) in [
        (&query.gt, KeyRange::gt as fn(KeyRange, &[u8]) -> KeyRange),
        (&query.gte, KeyRange::gte),
        (&query.lt, KeyRange::lt),
        (&query.lte, KeyRange::lte),
    ] {
        if let Some(bound) = bytes(bound)? {
            range = apply(range, &bound);
        }
    }
    Ok(if query.reverse { range.reverse() } else { range })
}

impl TenantData {
    pub async fn entries(&self, name: &Name, query: EntryQuery) -> Result<EntryList, Problem> {
        let item = self.item_of(name, KEYED)?;
        let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
        let range = range(&query)?;
        let prefix = entry_key(query.prefix.as_deref().unwrap_or_default(), query.hex)?;
        self.with(&item, move |opened| match opened {
            Opened::Bee(bee) => {
                let snapshot = query.version.map_or(Ok(bee.head()), |version| bee.checkout(version))?;
                let entries = snapshot.range(range.clone());
                gather(entries.map(|entry| entry.map(|entry| shown_bee(&entry))), limit)
            }
            Opened::Trie(trie) => {
                let snapshot = query.version.map_or(Ok(trie.head()), |version| trie.checkout(version))?;
                let options = ListOptions { reverse: query.reverse, ..ListOptions::default() };
                let entries = snapshot.list(text(&prefix)?, options)?;
                gather(entries.map(|entry| entry.map(|entry| shown_trie(&entry))), limit)
            }
            _ => Err(WRONG),
        })
        .await
    }

    pub async fn entry(
        &self,
        name: &Name,
        key: &[u8],
        version: Option<u64>,
    ) -> Result<Option<Bytes>, Problem> {
        let item = self.item_of(name, KEYED)?;
        let key = key.to_vec();
        self.with(&item, move |opened| match opened {
            Opened::Bee(bee) => {
                let snapshot = version.map_or(Ok(bee.head()), |version| bee.checkout(version))?;
                let entry = snapshot.get(&key)?;
                Ok(entry.map(|entry| Bytes::copy_from_slice(entry.value().unwrap_or_default())))
            }
            Opened::Trie(trie) => {
                let snapshot = version.map_or(Ok(trie.head()), |version| trie.checkout(version))?;
                let entry = snapshot.get(text(&key)?)?;
                Ok(entry.map(|entry| Bytes::copy_from_slice(entry.value().unwrap_or_default())))
            }
            _ => Err(WRONG),
        })
        .await
    }

    pub async fn entry_write(
        self: &Arc<Self>,
        name: &Name,
        key: &[u8],
        value: Option<Bytes>,
    ) -> Result<DataVersion, Problem> {
        let item = self.item_of(name, KEYED)?;
        self.writable(&item)?;
        let _writing = item.writing.lock().await;
        self.within_quota(value.as_ref().map_or(0, |value| value.len() as u64))?;
        let key = key.to_vec();
        let written = self.with(&item, move |opened| match (opened, &value) {
            (Opened::Bee(bee), Some(value)) => bee.put(&key, value).map(|_| bee.version()),
            (Opened::Bee(bee), None) => bee.del(&key).map(|_| bee.version()),
            (Opened::Trie(trie), Some(value)) => trie.put(text(&key)?, value).map(|_| trie.version()),
            (Opened::Trie(trie), None) => trie.del(text(&key)?).map(|_| trie.version()),
            _ => Err(WRONG),
        });
        let version = written.await?;
        self.wrote(std::slice::from_ref(&item.main));
        Ok(DataVersion { version })
    }

    pub async fn entry_history(&self, name: &Name, query: HistoryQuery) -> Result<EntryList, Problem> {
        let item = self.item_of(name, KEYED)?;
        let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
        self.with(&item, move |opened| match opened {
            Opened::Bee(bee) => {
                let now = query.until.map_or(Ok(bee.head()), |version| bee.checkout(version))?;
                match query.since {
                    Some(since) => {
                        let changes = now.diff(&bee.checkout(since)?, KeyRange::all());
                        gather(changes.filter_map(|change| changed(change).transpose()), limit)
                    }
                    None => gather(now.history(1).rev().map(written), limit),
                }
            }
            Opened::Trie(trie) => {
                let now = query.until.map_or(Ok(trie.head()), |version| trie.checkout(version))?;
                match query.since {
                    Some(since) => {
                        let changes = now.diff(&trie.checkout(since)?, "")?;
                        let side = |change: trie::Change| match (change.left, change.right) {
                            (Some(now), _) => Some(shown_trie(&now)),
                            (None, Some(then)) => Some(shown(then.key().as_bytes(), None, then.seq())),
                            (None, None) => None,
                        };
                        gather(changes.filter_map(|change| change.map(side).transpose()), limit)
                    }
                    None => newest(&now, limit),
                }
            }
            _ => Err(WRONG),
        })
        .await
    }
}

fn changed(change: Result<bee::Change, DataError>) -> Result<Option<Entry>, DataError> {
    Ok(match change? {
        bee::Change { left: Some(now), .. } => Some(shown_bee(&now)),
        bee::Change { right: Some(then), .. } => Some(shown(then.key(), None, then.seq())),
        bee::Change { .. } => None,
    })
}

fn written(change: Result<Written, DataError>) -> Result<Entry, DataError> {
    Ok(match change? {
        Written::Put(entry) => shown_bee(&entry),
        Written::Del(entry) => shown(entry.key(), None, entry.seq()),
    })
}

/// The last writes of a trie. One that deletes writes a neighbour again, so it looks like a write of that.
fn newest(now: &trie::Snapshot<'_, Tracked>, limit: u32) -> Result<EntryList, DataError> {
    let from = now.version().saturating_sub(u64::from(limit)).max(1);
    let mut entries: Vec<Entry> =
        now.history(from).map(|entry| entry.map(|entry| shown_trie(&entry))).collect::<Result<_, _>>()?;
    entries.reverse();
    Ok(EntryList { entries, more: from > 1 })
}

//! What can be done with a core as a log.

use super::{
    TenantData, blocking,
    item::{Opened, Shared},
};
use crate::http::Pieces;
use axum::body::Bytes;
use cloudpal_api::{BlockCut, BlockQuery, DataKind, DataVersion};
use cloudpal_data::DataError;
use cloudpal_model::{Kind, Name, Problem};
use futures_util::stream;
use std::sync::Arc;

const CORE: &[DataKind] = &[DataKind::Core];

impl TenantData {
    /// Only where this host has the writer's key.
    pub fn writable(&self, item: &Shared) -> Result<(), Problem> {
        if item.record().writable() {
            return Ok(());
        }
        let what = format!("{} is written by somebody else, and only kept and served here", item.name);
        Err(Problem::new(Kind::Refused, what, "write it where it was made"))
    }

    pub async fn append(self: &Arc<Self>, name: &Name, blocks: Vec<Bytes>) -> Result<DataVersion, Problem> {
        let item = self.item_of(name, CORE)?;
        self.writable(&item)?;
        let _writing = item.writing.lock().await;
        let (data, subject) = (self.clone(), item.clone());
        blocking(move || {
            let blocks: Vec<&[u8]> = blocks.iter().map(AsRef::as_ref).collect();
            data.within_quota(blocks.iter().map(|block| block.len() as u64).sum())?;
            let version = subject.main.core.append(&blocks, cloudpal_data::core::Durability::Synced)?;
            data.wrote(std::slice::from_ref(&subject.main));
            Ok(DataVersion { version })
        })
        .await
    }

    pub async fn block(&self, name: &Name, index: u64) -> Result<Bytes, Problem> {
        let item = self.item_of(name, CORE)?;
        let length = item.main.core.info()?.length;
        if index >= length {
            let what = format!("{name} has {length} blocks, and none numbered {index}");
            return Err(Problem::new(Kind::NotFound, what, "blocks are numbered from 0"));
        }
        self.block_of(&item, index).await
    }

    async fn block_of(&self, item: &Shared, index: u64) -> Result<Bytes, Problem> {
        let main = item.main.clone();
        let read = move |_: &mut Opened| cloudpal_data::feed::Feed::get(&main, index).map(Bytes::from);
        self.with(item, read).await
    }

    /// Blocks in order; with `follow` for ever.
    pub fn blocks(self: &Arc<Self>, name: &Name, query: BlockQuery) -> Result<Pieces, Problem> {
        let item = self.item_of(name, CORE)?;
        let (data, start) = (self.clone(), query.start.unwrap_or(0));
        Ok(Box::pin(stream::unfold(Some((data, item, start)), move |state| async move {
            let (data, item, index) = state?;
            loop {
                let mut news = data.news.subscribe();
                let length = match item.main.core.info() {
                    Ok(info) => info.length,
                    Err(error) => return Some((Err(error.into()), None)),
                };
                if query.end.is_some_and(|end| index >= end) {
                    return None;
                }
                if index < length {
                    return match data.block_of(&item, index).await {
                        Ok(block) => Some((Ok(block), Some((data, item, index + 1)))),
                        Err(problem) => Some((Err(problem), None)),
                    };
                }
                // The sender lives as long as the data does.
                if !query.follow || news.changed().await.is_err() {
                    return None;
                }
            }
        })))
    }

    pub async fn cut(self: &Arc<Self>, name: &Name, cut: BlockCut) -> Result<DataVersion, Problem> {
        let item = self.item_of(name, CORE)?;
        let _writing = item.writing.lock().await;
        if matches!(cut, BlockCut::Truncate { .. }) {
            self.writable(&item)?;
        }
        let (data, subject) = (self.clone(), item.clone());
        blocking(move || {
            let core = &subject.main.core;
            let info = core.info()?;
            match cut {
                BlockCut::Truncate { length } if length > info.length => {
                    return Err(DataError::OutOfBounds { index: length, length: info.length }.into());
                }
                BlockCut::Truncate { length } => core.truncate(length, info.fork + 1)?,
                BlockCut::Clear { start, end } => {
                    core.clear(start, end)?;
                    data.store.sync()?;
                    let end = end.min(info.length);
                    data.hub.with(|replication, _| {
                        replication.dropped(subject.main.number, start, end.saturating_sub(start));
                    });
                }
            }
            data.wrote(std::slice::from_ref(&subject.main));
            Ok(DataVersion { version: core.info()?.length })
        })
        .await
    }
}

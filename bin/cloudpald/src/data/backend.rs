//! What the API asks of the tenants' data.

use super::{
    audit::not_audit,
    blocking, catalog, keys,
    noted::{Noted, noted},
    peers::{self, call},
    tenant::{TenantData, word},
};
use crate::{
    daemon::Daemon,
    http::{Content, DataBackend, Part, Pieces},
};
use async_trait::async_trait;
use axum::body::Bytes;
use cloudpal_api as api;
use cloudpal_api::Secret;
use cloudpal_model::{Name, Problem};
use cloudpal_net::ruleset::DATA_PORT;
use futures_util::StreamExt;
use std::sync::{Arc, PoisonError};

impl Daemon {
    async fn tenant_data(&self, tenant: &Name) -> Result<Arc<TenantData>, Problem> {
        self.data.tenant(tenant).await
    }
}

#[async_trait]
impl DataBackend for Daemon {
    async fn data_list(&self, tenant: &Name) -> Result<api::DataList, Problem> {
        let data = self.tenant_data(tenant).await?;
        blocking(move || {
            let items = data.items();
            let shown = items.iter().map(|item| item.show(data.peers_of(&item.main)));
            Ok(api::DataList {
                data: shown.collect::<Result<_, _>>()?,
                disk_bytes: data.store.usage()?.disk_bytes,
                quota_bytes: catalog::quota_bytes(&data.store),
            })
        })
        .await
    }

    async fn data_add(&self, actor: &str, tenant: &Name, add: api::DataAdd) -> Result<api::Data, Problem> {
        let data = self.tenant_data(tenant).await?;
        not_audit(&add.name)?;
        let verb = if add.key.is_some() { "seed" } else { "create" };
        let (kind, name) = (word(add.kind), add.name.clone());
        let work = blocking(move || {
            let item = data.add(add)?;
            data.settle_drives();
            Ok(item.show(0)?)
        });
        let (what, undo) =
            (format!("{kind} {verb} {tenant}/{name}"), format!("{kind} remove {tenant}/{name}"));
        noted((&self.brain, actor, tenant), what, undo, work).await
    }

    async fn data_show(&self, tenant: &Name, name: &Name) -> Result<api::Data, Problem> {
        let data = self.tenant_data(tenant).await?;
        let item = data.item(name)?;
        blocking(move || Ok(item.show(data.peers_of(&item.main))?)).await
    }

    async fn data_remove(&self, actor: &str, tenant: &Name, name: &Name) -> Result<(), Problem> {
        let data = self.tenant_data(tenant).await?;
        let item = data.item(name)?;
        not_audit(name)?;
        let _writing = item.writing.lock().await;
        let gone = name.clone();
        let what = format!("{} remove {tenant}/{name}", word(item.kind));
        let work = blocking(move || data.remove(&gone));
        noted((&self.brain, actor, tenant), what, String::new(), work).await
    }

    async fn data_quota(&self, actor: &str, tenant: &Name, quota: api::DataQuota) -> Result<(), Problem> {
        let data = self.tenant_data(tenant).await?;
        let quota_bytes = quota.quota_bytes;
        let words = |bytes: Option<u64>| {
            let size = bytes.map_or("none".to_owned(), |bytes| format!("{bytes} B"));
            format!("data quota {tenant} {size}")
        };
        let (what, undo) = (words(quota_bytes), words(catalog::quota_bytes(&data.store)));
        let work = blocking(move || Ok(catalog::set_quota_bytes(&data.store, quota_bytes)?));
        noted((&self.brain, actor, tenant), what, undo, work).await
    }

    async fn data_compact(&self, actor: &str, tenant: &Name) -> Result<api::DataCompacted, Problem> {
        let data = self.tenant_data(tenant).await?;
        let work = blocking(move || Ok(api::DataCompacted { freed_bytes: data.store.compact()? }));
        let what = format!("data compact {tenant}");
        noted((&self.brain, actor, tenant), what, String::new(), work).await
    }

    async fn data_share(&self, actor: &str, tenant: &Name, name: &Name) -> Result<api::DataShare, Problem> {
        let data = self.tenant_data(tenant).await?;
        let record = data.item(name)?.record();
        // Whoever is told the keys can read it for ever.
        let what = format!("{} share {tenant}/{name}", word(record.kind));
        Noted::begin(&self.brain, actor, tenant, what, String::new()).await?.end(None);
        let (v4, v6) = data.subnets.server();
        Ok(api::DataShare {
            key: record.key,
            encryption_key: record.encryption_key.map(Secret::new),
            addresses: vec![
                format!("{}:{DATA_PORT}", data.domain),
                format!("{v4}:{DATA_PORT}"),
                format!("[{v6}]:{DATA_PORT}"),
            ],
            server_public_key: keys::hex(&data.server_key),
        })
    }

    async fn data_export(&self, actor: &str, tenant: &Name) -> Result<Pieces, Problem> {
        let data = self.tenant_data(tenant).await?;
        let what = format!("data export {tenant}");
        let noted = Noted::begin(&self.brain, actor, tenant, what, String::new()).await?;
        Ok(data.export(tenant, Box::new(|problem| noted.end(problem))))
    }

    async fn data_import(
        &self,
        actor: &str,
        tenant: &Name,
        mut content: Pieces,
    ) -> Result<api::DataImported, Problem> {
        let data = self.tenant_data(tenant).await?;
        let (pieces, receiver) = tokio::sync::mpsc::channel(4);
        let importing = blocking(move || data.import(receiver));
        let feeding = async move {
            while let Some(piece) = content.next().await {
                // The import has failed: it says why.
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
        };
        let work = async { tokio::join!(importing, feeding).0 };
        noted((&self.brain, actor, tenant), format!("data import {tenant}"), String::new(), work).await
    }

    async fn data_catch_up(&self, actor: &str, tenant: &Name, name: &Name) -> Result<api::Data, Problem> {
        let data = self.tenant_data(tenant).await?;
        let item = data.item(name)?;
        let what = format!("{} catch-up {tenant}/{name}", word(item.kind));
        let work = blocking(move || data.catch_up(&item));
        noted((&self.brain, actor, tenant), what, String::new(), work).await?;
        self.data_show(tenant, name).await
    }

    async fn data_verify(&self, tenant: &Name, name: &Name) -> Result<api::DataVerified, Problem> {
        let data = self.tenant_data(tenant).await?;
        let item = data.item(name)?;
        blocking(move || {
            let (mut blocks, mut damaged) = (0, Vec::new());
            for tracked in item.cores() {
                let damage = tracked.core.verify()?;
                blocks += tracked.core.info()?.stored_blocks;
                tracked.core.clear_damaged(&damage)?;
                data.hub.with(|replication, _| {
                    for range in &damage.blocks {
                        replication.dropped(tracked.number, range.start, range.end - range.start);
                        replication.download(tracked.number, range.start, Some(range.end));
                    }
                });
                damaged.extend(damage.blocks.iter().map(|range| (range.start, range.end - range.start)));
            }
            Ok(api::DataVerified { blocks, damaged })
        })
        .await
    }

    async fn data_peers(&self, tenant: &Name, name: &Name) -> Result<api::DataPeerList, Problem> {
        let data = self.tenant_data(tenant).await?;
        let item = data.item(name)?;
        let connected = data.hub.with(|replication, _| replication.peers(item.main.number));
        let shown = |peer: cloudpal_data::replication::PeerInfo| api::DataPeer {
            address: format!("connection {}", peer.connection),
            public_key: peer.remote.map(|key| keys::hex(&key)).unwrap_or_default(),
            length: peer.length,
        };
        Ok(api::DataPeerList { peers: connected.into_iter().map(shown).collect() })
    }

    async fn data_peer_add(
        &self,
        actor: &str,
        tenant: &Name,
        name: &Name,
        peer: api::DataPeerAdd,
    ) -> Result<(), Problem> {
        let data = self.tenant_data(tenant).await?;
        let item = data.item(name)?;
        peers::resolve(&data, &peer.address).await?;
        let mut record = item.record();
        if record.peers.contains(&peer.address) {
            return Ok(());
        }
        record.peers.push(peer.address.clone());
        let (store, kept, item_name) = (data.store.clone(), record.clone(), name.clone());
        let what = format!("{} replicate {tenant}/{name} with {}", word(item.kind), peer.address);
        let work = blocking(move || Ok(catalog::put(&store, &item_name, Some(&kept))?));
        noted((&self.brain, actor, tenant), what, String::new(), work).await?;
        *item.record.lock().unwrap_or_else(PoisonError::into_inner) = record;
        let calling = call(data.clone(), peer.address);
        data.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(calling);
        Ok(())
    }

    async fn core_append(
        &self,
        tenant: &Name,
        name: &Name,
        blocks: Vec<Bytes>,
    ) -> Result<api::DataVersion, Problem> {
        not_audit(name)?;
        self.tenant_data(tenant).await?.append(name, blocks).await
    }

    async fn core_block(&self, tenant: &Name, name: &Name, index: u64) -> Result<Bytes, Problem> {
        self.tenant_data(tenant).await?.block(name, index).await
    }

    async fn core_blocks(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::BlockQuery,
    ) -> Result<Pieces, Problem> {
        self.tenant_data(tenant).await?.blocks(name, query)
    }

    async fn core_cut(
        &self,
        actor: &str,
        tenant: &Name,
        name: &Name,
        cut: api::BlockCut,
    ) -> Result<api::DataVersion, Problem> {
        let data = self.tenant_data(tenant).await?;
        not_audit(name)?;
        let what = match cut {
            api::BlockCut::Truncate { length } => format!("core truncate {tenant}/{name} to {length} blocks"),
            api::BlockCut::Clear { start, end } => {
                format!("core clear {tenant}/{name} blocks {start} to {end}")
            }
        };
        noted((&self.brain, actor, tenant), what, String::new(), data.cut(name, cut)).await
    }

    async fn cursor(&self, tenant: &Name, name: &Name, consumer: &Name) -> Result<api::DataCursor, Problem> {
        self.tenant_data(tenant).await?.cursor(name, consumer).await
    }

    async fn cursor_move(
        &self,
        tenant: &Name,
        name: &Name,
        consumer: &Name,
        to: api::DataCursorMove,
    ) -> Result<api::DataCursor, Problem> {
        self.tenant_data(tenant).await?.cursor_move(name, consumer, to).await
    }

    async fn entries(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::EntryQuery,
    ) -> Result<api::EntryList, Problem> {
        self.tenant_data(tenant).await?.entries(name, query).await
    }

    async fn entry(
        &self,
        tenant: &Name,
        name: &Name,
        key: &[u8],
        version: Option<u64>,
    ) -> Result<Option<Bytes>, Problem> {
        self.tenant_data(tenant).await?.entry(name, key, version).await
    }

    async fn entry_put(
        &self,
        tenant: &Name,
        name: &Name,
        key: &[u8],
        value: Bytes,
    ) -> Result<api::DataVersion, Problem> {
        self.tenant_data(tenant).await?.entry_write(name, key, Some(value)).await
    }

    async fn entry_delete(
        &self,
        tenant: &Name,
        name: &Name,
        key: &[u8],
    ) -> Result<api::DataVersion, Problem> {
        self.tenant_data(tenant).await?.entry_write(name, key, None).await
    }

    async fn entry_history(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::HistoryQuery,
    ) -> Result<api::EntryList, Problem> {
        self.tenant_data(tenant).await?.entry_history(name, query).await
    }

    async fn files(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::FileListQuery,
    ) -> Result<api::FileList, Problem> {
        self.tenant_data(tenant).await?.files(name, query).await
    }

    async fn file(
        &self,
        tenant: &Name,
        name: &Name,
        path: &str,
        version: Option<u64>,
        part: Option<Part>,
    ) -> Result<Option<Content>, Problem> {
        self.tenant_data(tenant).await?.file(name, path, version, part).await
    }

    async fn file_put(
        &self,
        tenant: &Name,
        name: &Name,
        path: &str,
        query: api::FileQuery,
        content: Pieces,
    ) -> Result<api::DataVersion, Problem> {
        self.tenant_data(tenant).await?.file_put(name, path, query, content).await
    }

    async fn file_delete(&self, tenant: &Name, name: &Name, path: &str) -> Result<api::DataVersion, Problem> {
        self.tenant_data(tenant).await?.file_delete(name, path).await
    }

    async fn file_history(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::HistoryQuery,
    ) -> Result<api::FileList, Problem> {
        self.tenant_data(tenant).await?.file_history(name, query).await
    }

    async fn file_purge(
        &self,
        actor: &str,
        tenant: &Name,
        name: &Name,
        purge: api::FilePurge,
    ) -> Result<api::DataCompacted, Problem> {
        let data = self.tenant_data(tenant).await?;
        let what = format!("drive purge {tenant}/{name} before version {}", purge.keep_from);
        let work = data.file_purge(name, purge);
        noted((&self.brain, actor, tenant), what, String::new(), work).await
    }
}

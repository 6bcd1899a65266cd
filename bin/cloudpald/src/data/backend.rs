//! What the API asks of the tenants' data.

use super::{
    blocking, catalog, keys,
    peers::{self, call},
    tenant::TenantData,
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
        let (name, kind) = (add.name.clone(), add.kind);
        let shown = blocking(move || {
            let item = data.add(add)?;
            data.settle_drives();
            Ok(item.show(0)?)
        });
        let shown = shown.await?;
        tracing::info!(%actor, %tenant, %name, ?kind, "data added");
        Ok(shown)
    }

    async fn data_show(&self, tenant: &Name, name: &Name) -> Result<api::Data, Problem> {
        let data = self.tenant_data(tenant).await?;
        let item = data.item(name)?;
        blocking(move || Ok(item.show(data.peers_of(&item.main))?)).await
    }

    async fn data_remove(&self, actor: &str, tenant: &Name, name: &Name) -> Result<(), Problem> {
        let data = self.tenant_data(tenant).await?;
        let item = data.item(name)?;
        let _writing = item.writing.lock().await;
        let gone = name.clone();
        blocking(move || data.remove(&gone)).await?;
        tracing::info!(%actor, %tenant, %name, "data removed");
        Ok(())
    }

    async fn data_quota(&self, actor: &str, tenant: &Name, quota: api::DataQuota) -> Result<(), Problem> {
        let data = self.tenant_data(tenant).await?;
        let quota_bytes = quota.quota_bytes;
        blocking(move || Ok(catalog::set_quota_bytes(&data.store, quota_bytes)?)).await?;
        tracing::info!(%actor, %tenant, ?quota_bytes, "the data's quota");
        Ok(())
    }

    async fn data_compact(&self, tenant: &Name) -> Result<api::DataCompacted, Problem> {
        let data = self.tenant_data(tenant).await?;
        blocking(move || Ok(api::DataCompacted { freed_bytes: data.store.compact()? })).await
    }

    async fn data_share(&self, tenant: &Name, name: &Name) -> Result<api::DataShare, Problem> {
        let data = self.tenant_data(tenant).await?;
        let record = data.item(name)?.record();
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
        blocking(move || Ok(catalog::put(&store, &item_name, Some(&kept))?)).await?;
        *item.record.lock().unwrap_or_else(PoisonError::into_inner) = record;
        tracing::info!(%actor, %tenant, %name, peer = peer.address, "a peer of the data");
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
        tenant: &Name,
        name: &Name,
        cut: api::BlockCut,
    ) -> Result<api::DataVersion, Problem> {
        self.tenant_data(tenant).await?.cut(name, cut).await
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
        tenant: &Name,
        name: &Name,
        purge: api::FilePurge,
    ) -> Result<api::DataCompacted, Problem> {
        self.tenant_data(tenant).await?.file_purge(name, purge).await
    }
}

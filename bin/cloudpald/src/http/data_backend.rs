//! What the API's routes ask of a tenant's data.
//!
//! Invariant: bytes of a file or block pass through in pieces; nothing here holds a whole file in memory.

use async_trait::async_trait;
use axum::body::Bytes;
use cloudpal_api as api;
use cloudpal_model::{Name, Problem};
use futures_util::stream::BoxStream;

/// Content, piece by piece.
pub type Pieces = BoxStream<'static, Result<Bytes, Problem>>;

/// A file's content, or a part of it.
pub struct Content {
    pub total_bytes: u64,
    pub pieces: Pieces,
}

/// The bytes of a file that are asked for: from the first on, and up to but without the second.
pub type Part = (u64, Option<u64>);

#[async_trait]
pub trait DataBackend: Send + Sync {
    async fn data_list(&self, tenant: &Name) -> Result<api::DataList, Problem>;
    async fn data_add(&self, actor: &str, tenant: &Name, add: api::DataAdd) -> Result<api::Data, Problem>;
    async fn data_show(&self, tenant: &Name, name: &Name) -> Result<api::Data, Problem>;
    /// With all that only it needs: its space is given back.
    async fn data_remove(&self, actor: &str, tenant: &Name, name: &Name) -> Result<(), Problem>;
    async fn data_quota(&self, actor: &str, tenant: &Name, quota: api::DataQuota) -> Result<(), Problem>;
    async fn data_compact(&self, actor: &str, tenant: &Name) -> Result<api::DataCompacted, Problem>;
    async fn data_share(&self, actor: &str, tenant: &Name, name: &Name) -> Result<api::DataShare, Problem>;
    /// Everything, with the keys to go on with it elsewhere, as `api::ExportFrame`s.
    async fn data_export(&self, actor: &str, tenant: &Name) -> Result<Pieces, Problem>;
    /// All of an export, or nothing.
    async fn data_import(
        &self,
        actor: &str,
        tenant: &Name,
        content: Pieces,
    ) -> Result<api::DataImported, Problem>;
    async fn data_catch_up(&self, actor: &str, tenant: &Name, name: &Name) -> Result<api::Data, Problem>;
    async fn data_verify(&self, tenant: &Name, name: &Name) -> Result<api::DataVerified, Problem>;
    async fn data_peers(&self, tenant: &Name, name: &Name) -> Result<api::DataPeerList, Problem>;
    /// Connects, and stays connected, also after a restart.
    async fn data_peer_add(
        &self,
        actor: &str,
        tenant: &Name,
        name: &Name,
        peer: api::DataPeerAdd,
    ) -> Result<(), Problem>;

    /// Appends one block, or each line of the body as one.
    async fn core_append(
        &self,
        tenant: &Name,
        name: &Name,
        blocks: Vec<Bytes>,
    ) -> Result<api::DataVersion, Problem>;
    async fn core_block(&self, tenant: &Name, name: &Name, index: u64) -> Result<Bytes, Problem>;
    /// Blocks in order; with `follow` also those to come.
    async fn core_blocks(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::BlockQuery,
    ) -> Result<Pieces, Problem>;
    async fn core_cut(
        &self,
        actor: &str,
        tenant: &Name,
        name: &Name,
        cut: api::BlockCut,
    ) -> Result<api::DataVersion, Problem>;

    /// Of a core.
    async fn cursor(&self, tenant: &Name, name: &Name, consumer: &Name) -> Result<api::DataCursor, Problem>;
    async fn cursor_move(
        &self,
        tenant: &Name,
        name: &Name,
        consumer: &Name,
        to: api::DataCursorMove,
    ) -> Result<api::DataCursor, Problem>;

    /// Of a bee or a trie.
    async fn entries(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::EntryQuery,
    ) -> Result<api::EntryList, Problem>;
    async fn entry(
        &self,
        tenant: &Name,
        name: &Name,
        key: &[u8],
        version: Option<u64>,
    ) -> Result<Option<Bytes>, Problem>;
    async fn entry_put(
        &self,
        tenant: &Name,
        name: &Name,
        key: &[u8],
        value: Bytes,
    ) -> Result<api::DataVersion, Problem>;
    async fn entry_delete(&self, tenant: &Name, name: &Name, key: &[u8])
    -> Result<api::DataVersion, Problem>;
    async fn entry_history(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::HistoryQuery,
    ) -> Result<api::EntryList, Problem>;

    async fn files(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::FileListQuery,
    ) -> Result<api::FileList, Problem>;
    async fn file(
        &self,
        tenant: &Name,
        name: &Name,
        path: &str,
        version: Option<u64>,
        part: Option<Part>,
    ) -> Result<Option<Content>, Problem>;
    async fn file_put(
        &self,
        tenant: &Name,
        name: &Name,
        path: &str,
        query: api::FileQuery,
        content: Pieces,
    ) -> Result<api::DataVersion, Problem>;
    async fn file_delete(&self, tenant: &Name, name: &Name, path: &str) -> Result<api::DataVersion, Problem>;
    async fn file_history(
        &self,
        tenant: &Name,
        name: &Name,
        query: api::HistoryQuery,
    ) -> Result<api::FileList, Problem>;
    async fn file_purge(
        &self,
        actor: &str,
        tenant: &Name,
        name: &Name,
        purge: api::FilePurge,
    ) -> Result<api::DataCompacted, Problem>;
}

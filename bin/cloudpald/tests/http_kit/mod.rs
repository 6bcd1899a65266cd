//! A tenant's data, as the fake daemon of these tests has it: none.

use crate::Fake;
use async_trait::async_trait;
use cloudpal_api as api;
use cloudpal_model::{Kind, Name, Problem};
use cloudpald::http::{self, DataBackend};

/// Not "not found": that is the answer of a path without a route, which a test looks for.
fn locked() -> Problem {
    Problem::new(Kind::Refused, "the tenant's data is locked", "unlock the tenant")
}

/// Data is tested with the real daemon, in `data.rs`: this one has none.
#[async_trait]
impl DataBackend for Fake {
    async fn data_list(&self, _: &Name) -> Result<api::DataList, Problem> {
        Err(locked())
    }
    async fn data_add(&self, _: &str, _: &Name, _: api::DataAdd) -> Result<api::Data, Problem> {
        Err(locked())
    }
    async fn data_show(&self, _: &Name, _: &Name) -> Result<api::Data, Problem> {
        Err(locked())
    }
    async fn data_remove(&self, _: &str, _: &Name, _: &Name) -> Result<(), Problem> {
        Err(locked())
    }
    async fn data_quota(&self, _: &str, _: &Name, _: api::DataQuota) -> Result<(), Problem> {
        Err(locked())
    }
    async fn data_compact(&self, _: &str, _: &Name) -> Result<api::DataCompacted, Problem> {
        Err(locked())
    }
    async fn data_share(&self, _: &str, _: &Name, _: &Name) -> Result<api::DataShare, Problem> {
        Err(locked())
    }
    async fn data_export(&self, _: &str, _: &Name) -> Result<http::Pieces, Problem> {
        Err(locked())
    }
    async fn data_import(&self, _: &str, _: &Name, _: http::Pieces) -> Result<api::DataImported, Problem> {
        Err(locked())
    }
    async fn data_catch_up(&self, _: &str, _: &Name, _: &Name) -> Result<api::Data, Problem> {
        Err(locked())
    }
    async fn data_verify(&self, _: &Name, _: &Name) -> Result<api::DataVerified, Problem> {
        Err(locked())
    }
    async fn data_peers(&self, _: &Name, _: &Name) -> Result<api::DataPeerList, Problem> {
        Err(locked())
    }
    async fn data_peer_add(&self, _: &str, _: &Name, _: &Name, _: api::DataPeerAdd) -> Result<(), Problem> {
        Err(locked())
    }
    async fn core_append(
        &self,
        _: &Name,
        _: &Name,
        _: Vec<axum::body::Bytes>,
    ) -> Result<api::DataVersion, Problem> {
        Err(locked())
    }
    async fn core_block(&self, _: &Name, _: &Name, _: u64) -> Result<axum::body::Bytes, Problem> {
        Err(locked())
    }
    async fn core_blocks(&self, _: &Name, _: &Name, _: api::BlockQuery) -> Result<http::Pieces, Problem> {
        Err(locked())
    }
    async fn core_cut(
        &self,
        _: &str,
        _: &Name,
        _: &Name,
        _: api::BlockCut,
    ) -> Result<api::DataVersion, Problem> {
        Err(locked())
    }
    async fn cursor(&self, _: &Name, _: &Name, _: &Name) -> Result<api::DataCursor, Problem> {
        Err(locked())
    }
    async fn cursor_move(
        &self,
        _: &Name,
        _: &Name,
        _: &Name,
        _: api::DataCursorMove,
    ) -> Result<api::DataCursor, Problem> {
        Err(locked())
    }
    async fn entries(&self, _: &Name, _: &Name, _: api::EntryQuery) -> Result<api::EntryList, Problem> {
        Err(locked())
    }
    async fn entry(
        &self,
        _: &Name,
        _: &Name,
        _: &[u8],
        _: Option<u64>,
    ) -> Result<Option<axum::body::Bytes>, Problem> {
        Err(locked())
    }
    async fn entry_put(
        &self,
        _: &Name,
        _: &Name,
        _: &[u8],
        _: axum::body::Bytes,
    ) -> Result<api::DataVersion, Problem> {
        Err(locked())
    }
    async fn entry_delete(&self, _: &Name, _: &Name, _: &[u8]) -> Result<api::DataVersion, Problem> {
        Err(locked())
    }

    async fn entry_history(
        &self,
        _: &Name,
        _: &Name,
        _: api::HistoryQuery,
    ) -> Result<api::EntryList, Problem> {
        Err(locked())
    }

    async fn files(&self, _: &Name, _: &Name, _: api::FileListQuery) -> Result<api::FileList, Problem> {
        Err(locked())
    }
    async fn file(
        &self,
        _: &Name,
        _: &Name,
        _: &str,
        _: Option<u64>,
        _: Option<http::Part>,
    ) -> Result<Option<http::Content>, Problem> {
        Err(locked())
    }
    async fn file_put(
        &self,
        _: &Name,
        _: &Name,
        _: &str,
        _: api::FileQuery,
        _: http::Pieces,
    ) -> Result<api::DataVersion, Problem> {
        Err(locked())
    }
    async fn file_delete(&self, _: &Name, _: &Name, _: &str) -> Result<api::DataVersion, Problem> {
        Err(locked())
    }
    async fn file_history(&self, _: &Name, _: &Name, _: api::HistoryQuery) -> Result<api::FileList, Problem> {
        Err(locked())
    }
    async fn file_purge(
        &self,
        _: &str,
        _: &Name,
        _: &Name,
        _: api::FilePurge,
    ) -> Result<api::DataCompacted, Problem> {
        Err(locked())
    }
}

//! The tenants' data: a store of cores for each, opened when it is needed, and replicated with the tenant's devices at
//! the tenant's own server address on the overlay.
//!
//! ```text
//! API ─► DataHost ─► TenantData ─► Item (core, bee, drive, trie) ─► Core ─► Store ─► disk
//!                        └────► Hub: peers on the overlay ───────────┘
//! ```
//! Invariants: a tenant's store is opened once, and only here; what needs the disk runs on threads that may wait; a
//! write that was answered is on the disk.

mod audit;
mod backend;
mod catalog;
mod catch_up;
mod content;
mod cursors;
mod entries;
mod export;
mod feeds;
mod files;
mod import;
mod item;
mod keys;
mod noted;
mod peers;
mod tenant;

pub use audit::run as write_audit;
pub use keys::unhex;
pub use tenant::TenantData;

use crate::brain::Brain;
use cloudpal_control::view::TenantView;
use cloudpal_host::net::NetHost;
use cloudpal_model::{Kind, Name, Problem, TenantId};
use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};
use tokio::sync::Mutex;

pub struct DataHost {
    state_dir: PathBuf,
    net: Arc<NetHost>,
    brain: Brain,
    open: Mutex<HashMap<TenantId, Arc<TenantData>>>,
    /// An id is never used again, and nothing of these must come to be once more.
    gone: std::sync::Mutex<HashSet<TenantId>>,
}

impl DataHost {
    pub fn new(state_dir: &Path, net: Arc<NetHost>, brain: Brain) -> Self {
        DataHost {
            state_dir: state_dir.to_owned(),
            net,
            brain,
            open: Mutex::default(),
            gone: Default::default(),
        }
    }

    /// Opens the stores that are there, so that their peers find them.
    pub async fn open_all(&self) {
        let Ok(view) = self.brain.view().await else { return };
        for tenant in view.tenants.iter().filter(|tenant| self.dir(tenant.id).is_dir()) {
            if let Err(problem) = self.open(tenant).await {
                tracing::error!(tenant = %tenant.name, %problem, "the tenant's data cannot be opened");
            }
        }
    }

    pub async fn tenant(&self, name: &Name) -> Result<Arc<TenantData>, Problem> {
        let view = self.brain.view().await?;
        let tenant = view.tenants.iter().find(|tenant| tenant.name == *name).ok_or_else(|| {
            let mend = "`cloudpal tenant list` shows those that exist";
            Problem::new(Kind::NotFound, format!("there is no tenant {name}"), mend)
        })?;
        self.open(tenant).await
    }

    pub async fn open(&self, tenant: &TenantView) -> Result<Arc<TenantData>, Problem> {
        let mut open = self.open.lock().await;
        if let Some(known) = open.get(&tenant.id) {
            return Ok(known.clone());
        }
        if self.gone.lock().unwrap_or_else(PoisonError::into_inner).contains(&tenant.id) {
            let what = format!("tenant {} was just removed", tenant.name);
            return Err(Problem::new(Kind::NotFound, what, "`cloudpal tenant list` shows those that exist"));
        }
        let (dir, key) = (self.dir(tenant.id), self.key_file(tenant.id));
        let opened = TenantData::open(tenant, dir, key, self.net.clone(), self.brain.clone()).await?;
        open.insert(tenant.id, opened.clone());
        Ok(opened)
    }

    /// The tenant is gone, and what it stored with it. Its key goes first: without it the rest cannot be read.
    pub async fn remove(&self, tenant: TenantId) {
        self.gone.lock().unwrap_or_else(PoisonError::into_inner).insert(tenant);
        if let Some(known) = self.open.lock().await.remove(&tenant) {
            known.close().await;
        }
        let gone = |result: std::io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::error!(%tenant, path = %path.display(), %error, "a removed tenant's data is still there");
            }
            _ => {}
        };
        let (dir, key) = (self.dir(tenant), self.key_file(tenant));
        gone(tokio::fs::remove_file(&key).await, &key);
        gone(tokio::fs::remove_dir_all(&dir).await, &dir);
    }

    /// Writes what the next opening would have to do again.
    pub async fn close(&self) {
        for (_, tenant) in self.open.lock().await.drain() {
            tenant.close().await;
        }
    }

    fn dir(&self, tenant: TenantId) -> PathBuf {
        self.state_dir.join("data").join(tenant.to_string())
    }

    /// Beside the data, not in it: whoever copies the one does not have the other.
    fn key_file(&self, tenant: TenantId) -> PathBuf {
        self.state_dir.join("keys").join(tenant.to_string())
    }
}

/// Does what waits for a disk on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => {
            Err(Problem::new(Kind::Internal, format!("the data's thread: {error}"), "see the daemon's log"))
        }
    }
}

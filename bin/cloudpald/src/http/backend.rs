//! What the API's routes ask of the daemon. The daemon's parts implement it; tests implement it with a fake.

use async_trait::async_trait;
use cloudpal_api::Check;
use cloudpal_compute::driver::{ExecOutput, Usage};
use cloudpal_control::{
    request::{Accepted, AppManifest, Request},
    view::{OperationView, View},
};
use cloudpal_host::image::Credentials;
use cloudpal_model::{Name, OperationId, Problem, TenantId};
use cloudpal_net::plan::PeerStatus;
use std::path::PathBuf;

#[async_trait]
pub trait Backend: super::DataBackend + Send + Sync {
    /// Every change but [`Backend::app_install`]. `actor` goes into the operation log.
    async fn request(&self, actor: &str, request: Request) -> Result<Accepted, Problem>;

    /// Like `Request::AppInstall`, with what must not go into the operation log.
    async fn app_install(
        &self,
        actor: &str,
        tenant: Name,
        name: Name,
        app: AppManifest,
        credentials: Option<Credentials>,
    ) -> Result<Accepted, Problem>;

    async fn view(&self) -> Result<View, Problem>;

    async fn operation(&self, id: OperationId) -> Result<Option<OperationView>, Problem>;

    /// Newest first.
    async fn operations(&self, limit: usize) -> Result<Vec<OperationView>, Problem>;

    async fn peers(&self, tenant: TenantId) -> Vec<PeerStatus>;

    async fn exec(&self, tenant: &Name, app: &Name, argv: Vec<String>) -> Result<ExecOutput, Problem>;

    /// The VMM's process id and what it uses; `None`: no VMM runs.
    async fn usage(&self, tenant: &Name, app: &Name) -> Result<Option<(u32, Usage)>, Problem>;

    /// The file that the app's output is appended to; it may not exist yet.
    async fn log_file(&self, tenant: &Name, app: &Name) -> Result<PathBuf, Problem>;

    async fn doctor(&self) -> Vec<Check>;
}

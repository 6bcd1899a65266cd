//! What the API's routes ask for, answered by the daemon's parts.

use crate::{daemon::Daemon, doctor, http};
use async_trait::async_trait;
use cloudpal_compute::driver::{ExecOutput, Usage, Vm};
use cloudpal_control::{
    effect::AppKey,
    request::{Accepted, AppManifest, Request},
    view::{AppView, OperationView, View},
};
use cloudpal_host::image::Credentials;
use cloudpal_model::{Kind, Name, OperationId, Problem, TenantId};
use cloudpal_net::plan::PeerStatus;
use std::{path::PathBuf, sync::Arc};

/// A command that has not ended by then is given up on.
const EXEC_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

#[async_trait]
impl http::Backend for Daemon {
    async fn request(&self, actor: &str, request: Request) -> Result<Accepted, Problem> {
        let revoked = matches!(request, Request::DeviceRevoke { .. });
        let tenant = match &request {
            Request::DeviceAdd { tenant, .. } | Request::DeviceRevoke { tenant, .. } => Some(tenant.clone()),
            Request::TenantAdd { name, .. } => Some(name.clone()),
            _ => None,
        };
        let accepted = self.brain.request(actor, request).await?;
        // Whoever asked may act on it at once: bring the new device up, or trust that the lost one is shut out.
        if let Some(tenant) = tenant {
            let settled = self.network_settled(&tenant).await;
            // A tenant or device that was added is there whatever its network says, and the profile must reach its
            // owner; `tenant show` and `doctor` tell of the trouble. That a lost device may still get in is an error.
            if revoked {
                settled?;
            }
        }
        Ok(accepted)
    }

    async fn app_install(
        &self,
        actor: &str,
        tenant: Name,
        name: Name,
        app: AppManifest,
        credentials: Option<Credentials>,
    ) -> Result<Accepted, Problem> {
        let key = AppKey { tenant: tenant.clone(), name: name.clone() };
        let _lent = credentials.map(|given| self.imports.lend_credentials(key, given)).transpose()?;
        // When this is answered, the import has begun and taken them.
        self.brain.request(actor, Request::AppInstall { tenant, name, app }).await
    }

    async fn view(&self) -> Result<View, Problem> {
        self.brain.view().await
    }

    async fn operation(&self, id: OperationId) -> Result<Option<OperationView>, Problem> {
        self.brain.operation(id).await
    }

    async fn operations(&self, limit: usize) -> Result<Vec<OperationView>, Problem> {
        self.brain.operations(limit).await
    }

    async fn peers(&self, tenant: TenantId) -> Vec<PeerStatus> {
        self.networks.peers(tenant).await
    }

    async fn exec(&self, tenant: &Name, app: &Name, argv: Vec<String>) -> Result<ExecOutput, Problem> {
        let vm = self.running(tenant, app).await?;
        match tokio::time::timeout(EXEC_TIMEOUT, vm.exec(argv)).await {
            Ok(result) => result,
            Err(_elapsed) => {
                let what = format!("the command did not end within {} s", EXEC_TIMEOUT.as_secs());
                Err(Problem::new(Kind::Refused, what, "run long work inside the app, or in the background"))
            }
        }
    }

    async fn usage(&self, tenant: &Name, app: &Name) -> Result<Option<(u32, Usage)>, Problem> {
        let app = self.app(tenant, app).await?;
        Ok(self.machines.vm(app.machine).map(|vm| (vm.pid(), vm.usage())))
    }

    async fn log_file(&self, tenant: &Name, app: &Name) -> Result<PathBuf, Problem> {
        let app = self.app(tenant, app).await?;
        Ok(self.places.machine_dir(app.machine).join("log"))
    }

    async fn doctor(&self) -> Vec<http::Check> {
        doctor::checks(self).await
    }
}

impl Daemon {
    /// Resolves when the network is as it was last wanted to be: a revoked device is shut out, a new one can connect.
    /// A plan that was under way when the change was asked for does not count.
    async fn network_settled(&self, tenant: &Name) -> Result<(), Problem> {
        loop {
            let view = self.brain.view().await?;
            let Some(view) = view.tenants.iter().find(|view| view.name == *tenant && view.network_pending)
            else {
                return Ok(());
            };
            let number = self.networks.newest(view.id);
            let outcome = self.networks.tried(view.id).await;
            // How it went was told to the engine first, so this view knows of it, and so does the next plan.
            let still = self.brain.view().await?;
            let pending = still.tenants.iter().any(|still| still.id == view.id && still.network_pending);
            match outcome {
                Err(problem) if pending && self.networks.newest(view.id) == number => return Err(problem),
                _ if !pending => return Ok(()),
                _ => {}
            }
        }
    }

    async fn app(&self, tenant: &Name, app: &Name) -> Result<AppView, Problem> {
        let view = self.brain.view().await?;
        let missing = |what: String, mend: &str| Problem::new(Kind::NotFound, what, mend);
        let tenant_view = view.tenants.into_iter().find(|t| t.name == *tenant).ok_or_else(|| {
            missing(format!("there is no tenant {tenant}"), "`cloudpal tenant list` shows those that exist")
        })?;
        tenant_view.apps.into_iter().find(|a| a.name == *app).ok_or_else(|| {
            let what = format!("tenant {tenant} has no app {app}");
            missing(what, &format!("`cloudpal app list {tenant}` shows those that exist"))
        })
    }

    async fn running(&self, tenant: &Name, app: &Name) -> Result<Arc<dyn Vm>, Problem> {
        let view = self.app(tenant, app).await?;
        self.machines.vm(view.machine).ok_or_else(|| {
            let what = format!("the machine of {app} is {}, not awake", view.state);
            Problem::new(Kind::Refused, what, format!("`cloudpal machine start {tenant} {app}` wakes it"))
        })
    }
}

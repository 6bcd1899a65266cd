//! One task per tenant's network: applies the newest plan, skipping plans that a newer one replaced meanwhile.

use crate::brain::Brain;
use cloudpal_control::event::Event;
use cloudpal_host::net::NetHost;
use cloudpal_model::TenantId;
use cloudpal_net::plan::{NetPlan, PeerStatus};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// What a tenant's network should be: a plan, or nothing.
type Wanted = Option<Arc<NetPlan>>;

pub struct Networks {
    net: Arc<NetHost>,
    brain: Brain,
    wanted: Mutex<HashMap<TenantId, watch::Sender<Wanted>>>,
}

impl Networks {
    pub fn new(net: Arc<NetHost>, brain: Brain) -> Self {
        Networks { net, brain, wanted: Mutex::default() }
    }

    pub fn apply(&self, plan: NetPlan) {
        let tenant = plan.tenant;
        self.want(tenant, Some(Arc::new(plan)));
    }

    pub fn remove(&self, tenant: TenantId) {
        self.want(tenant, None);
    }

    pub fn tenants(&self) -> Vec<TenantId> {
        self.lock().keys().copied().collect()
    }

    pub async fn peers(&self, tenant: TenantId) -> Vec<PeerStatus> {
        self.net.peers(tenant).await
    }

    fn want(&self, tenant: TenantId, wanted: Wanted) {
        let removed = wanted.is_none();
        let mut all = self.lock();
        let sender = all.entry(tenant).or_insert_with(|| {
            let (sender, receiver) = watch::channel(None);
            tokio::spawn(keep(tenant, self.net.clone(), self.brain.clone(), receiver));
            sender
        });
        // `keep` ends only when the sender is dropped. `send_replace` marks the value new even when it is equal: an equal
        // plan is the engine's way to say "again".
        sender.send_replace(wanted);
        if removed {
            all.remove(&tenant);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TenantId, watch::Sender<Wanted>>> {
        self.wanted.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Ends once the tenant was removed. A last value that was sent just before the sender went away is still seen.
async fn keep(tenant: TenantId, net: Arc<NetHost>, brain: Brain, mut wanted: watch::Receiver<Wanted>) {
    while wanted.changed().await.is_ok() {
        let newest = wanted.borrow_and_update().clone();
        let Some(plan) = newest else {
            if let Err(problem) = net.remove(tenant).await {
                // It is tried again when the daemon starts next.
                tracing::warn!(%tenant, %problem, "the tenant's network could not be removed whole");
                return;
            }
            brain.event(Event::NetRemoved { tenant });
            return;
        };
        let event = match net.apply(&plan).await {
            Ok(()) => Event::NetApplied { tenant },
            Err(problem) => {
                tracing::warn!(%tenant, %problem, "the tenant's network is not as wanted");
                Event::NetFailed { tenant, problem }
            }
        };
        brain.event(event);
    }
}

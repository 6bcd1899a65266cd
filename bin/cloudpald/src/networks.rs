//! One task per tenant's network: applies the newest plan, skipping plans that a newer one replaced meanwhile.

use crate::brain::Brain;
use cloudpal_control::event::Event;
use cloudpal_host::net::NetHost;
use cloudpal_model::{Kind, Problem, TenantId};
use cloudpal_net::plan::{NetPlan, PeerStatus};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;

/// Applying a plan takes tens of milliseconds; one that takes longer than this is in trouble.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a tenant's network should be: a plan, or nothing. Counted, since an equal plan means "again".
#[derive(Clone, Default)]
struct Wanted {
    number: u64,
    plan: Option<Arc<NetPlan>>,
}

/// The newest plan that was tried, and how it went.
#[derive(Clone)]
struct Tried {
    number: u64,
    outcome: Result<(), Problem>,
}

struct Task {
    wanted: watch::Sender<Wanted>,
    tried: watch::Receiver<Tried>,
}

pub struct Networks {
    net: Arc<NetHost>,
    brain: Brain,
    tasks: Mutex<HashMap<TenantId, Task>>,
}

impl Networks {
    pub fn new(net: Arc<NetHost>, brain: Brain) -> Self {
        Networks { net, brain, tasks: Mutex::default() }
    }

    pub fn apply(&self, plan: NetPlan) {
        self.want(plan.tenant, Some(Arc::new(plan)));
    }

    pub fn remove(&self, tenant: TenantId) {
        self.want(tenant, None);
        self.lock().remove(&tenant);
    }

    pub fn tenants(&self) -> Vec<TenantId> {
        self.lock().keys().copied().collect()
    }

    pub async fn peers(&self, tenant: TenantId) -> Vec<PeerStatus> {
        self.net.peers(tenant).await
    }

    /// How many plans this tenant was given so far.
    pub fn newest(&self, tenant: TenantId) -> u64 {
        self.lock().get(&tenant).map_or(0, |task| task.wanted.borrow().number)
    }

    /// Resolves when the newest plan was tried. It need not hold the newest change: the engine hands out one plan at
    /// a time.
    pub async fn tried(&self, tenant: TenantId) -> Result<(), Problem> {
        let Some((number, mut tried)) =
            self.lock().get(&tenant).map(|task| (task.wanted.borrow().number, task.tried.clone()))
        else {
            return Ok(());
        };
        let mend =
            "the change is recorded and is tried again by itself; `cloudpal doctor` shows when it is done";
        let reached =
            tokio::time::timeout(SETTLE_TIMEOUT, tried.wait_for(|tried| tried.number >= number)).await;
        match reached {
            Ok(Ok(tried)) => {
                tried.outcome.clone().map_err(|problem| Problem { mend: mend.to_owned(), ..problem })
            }
            // The tenant was removed meanwhile.
            Ok(Err(_)) => Ok(()),
            Err(_elapsed) => {
                let what = format!("the network was not changed within {} s", SETTLE_TIMEOUT.as_secs());
                Err(Problem::new(Kind::Internal, what, mend))
            }
        }
    }

    fn want(&self, tenant: TenantId, plan: Option<Arc<NetPlan>>) {
        let mut tasks = self.lock();
        let task = tasks.entry(tenant).or_insert_with(|| {
            let (wanted, newest) = watch::channel(Wanted::default());
            let (outcome, tried) = watch::channel(Tried { number: 0, outcome: Ok(()) });
            tokio::spawn(keep(tenant, self.net.clone(), self.brain.clone(), newest, outcome));
            Task { wanted, tried }
        });
        task.wanted.send_modify(|wanted| *wanted = Wanted { number: wanted.number + 1, plan });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TenantId, Task>> {
        self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Ends once the tenant was removed. A last value that was sent just before the sender went away is still seen.
async fn keep(
    tenant: TenantId,
    net: Arc<NetHost>,
    brain: Brain,
    mut wanted: watch::Receiver<Wanted>,
    tried: watch::Sender<Tried>,
) {
    while wanted.changed().await.is_ok() {
        let Wanted { number, plan } = wanted.borrow_and_update().clone();
        let Some(plan) = plan else {
            match net.remove(tenant).await {
                Ok(()) => brain.event(Event::NetRemoved { tenant }),
                // It is tried again when the daemon starts next.
                Err(problem) => {
                    tracing::warn!(%tenant, %problem, "the tenant's network could not be removed whole")
                }
            }
            return;
        };
        let outcome = net.apply(&plan).await;
        let event = match &outcome {
            Ok(()) => Event::NetApplied { tenant },
            Err(problem) => {
                tracing::warn!(%tenant, %problem, "the tenant's network is not as wanted");
                Event::NetFailed { tenant, problem: problem.clone() }
            }
        };
        brain.event(event);
        tried.send_replace(Tried { number, outcome });
    }
}

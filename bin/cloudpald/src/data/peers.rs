//! A tenant's peers: those who call at the server's address on the overlay, and those whom we call.
//!
//! Invariant: listeners and calls are inside the tenant's own network namespace, so a peer is one of the tenant's
//! devices, whatever it knows.

use super::TenantData;
use cloudpal_data::{
    core::Core,
    crypto::{Hash, PublicKey},
    replication::Replicas,
    store::Store,
};
use cloudpal_model::{Kind, Problem};
use cloudpal_net::ruleset::DATA_PORT;
use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError},
    time::Duration,
};

/// The network of a tenant that was just added is not there yet.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
const FIRST_CALL_PAUSE: Duration = Duration::from_secs(1);
const MAX_CALL_PAUSE: Duration = Duration::from_secs(60);

/// The cores that peers may ask for: those of the tenant's items, and no others that the store may have.
pub struct Cores {
    store: Store,
    open: HashMap<u64, Core>,
    by_discovery: HashMap<Hash, u64>,
    last: u64,
}

impl Cores {
    pub fn new(store: Store) -> Self {
        Cores { store, open: HashMap::new(), by_discovery: HashMap::new(), last: 0 }
    }

    /// Answers its number.
    pub fn enter(&mut self, core: Core) -> u64 {
        self.last += 1;
        self.by_discovery.insert(*core.discovery_key(), self.last);
        self.open.insert(self.last, core);
        self.last
    }

    pub fn forget(&mut self, number: u64) {
        if let Some(core) = self.open.remove(&number) {
            self.by_discovery.remove(core.discovery_key());
        }
    }

    pub fn store(&self) -> &Store {
        &self.store
    }
}

impl Replicas for Cores {
    type Replica = Core;

    fn find(&mut self, discovery_key: &Hash, _remote: &PublicKey) -> Option<u64> {
        self.by_discovery.get(discovery_key).copied()
    }

    fn replica(&mut self, core: u64) -> Option<&mut Core> {
        self.open.get_mut(&core)
    }
}

pub fn start(data: &Arc<TenantData>) {
    let mut tasks = data.tasks.lock().unwrap_or_else(PoisonError::into_inner);
    let hub = data.hub.clone();
    tasks.spawn(async move { hub.keep_time().await });
    let weak = Arc::downgrade(data);
    let hub = data.hub.clone();
    tasks.spawn(async move {
        loop {
            hub.events().await;
            let Some(data) = weak.upgrade() else { return };
            data.news.send_modify(|count| *count += 1);
            // It reads blocks: not on this thread.
            let settled = tokio::task::spawn_blocking(move || data.settle_drives()).await;
            if settled.is_err() {
                tracing::error!("looking for the contents of drives has failed");
            }
        }
    });
    let (hub, net, id, subnets) = (data.hub.clone(), data.net.clone(), data.id, data.subnets);
    tasks.spawn(async move {
        loop {
            match net.listen(id, &subnets, DATA_PORT).await {
                Ok(Some([v4, v6])) => {
                    tokio::join!(hub.listen(v4), hub.listen(v6));
                }
                Ok(None) => tracing::debug!(tenant = %id, "the network is not there yet"),
                Err(problem) => tracing::debug!(tenant = %id, %problem, "no peer can call yet"),
            }
            tokio::time::sleep(LISTEN_PAUSE).await;
        }
    });
    for item in data.items() {
        for peer in item.record().peers {
            tasks.spawn(call(data.clone(), peer));
        }
    }
}

/// Calls a peer, again and again, until the task is ended.
pub async fn call(data: Arc<TenantData>, peer: String) {
    let mut pause = FIRST_CALL_PAUSE;
    let (hub, net, id) = (data.hub.clone(), data.net.clone(), data.id);
    loop {
        let connected = match resolve(&data, &peer).await {
            Ok(address) => net.connect(id, address).await,
            Err(problem) => Err(problem),
        };
        match connected {
            Ok(stream) => {
                pause = FIRST_CALL_PAUSE;
                let ended = hub.carry(stream, true).await;
                tracing::debug!(tenant = %id, peer, %ended, "a peer of the data is gone");
            }
            Err(problem) => tracing::debug!(tenant = %id, peer, %problem, "the peer does not answer"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(MAX_CALL_PAUSE);
    }
}

/// `10.77.0.2:49737`, or a device of the tenant's by its name.
pub async fn resolve(data: &TenantData, peer: &str) -> Result<SocketAddr, Problem> {
    let invalid = |what: String| {
        let mend = "write it as DEVICE:PORT or ADDRESS:PORT, on the tenant's overlay";
        Problem::new(Kind::Invalid, what, mend)
    };
    let address = match peer.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => {
            let (host, port) =
                peer.rsplit_once(':').ok_or_else(|| invalid(format!("{peer:?} has no port")))?;
            let port = port.parse().map_err(|_| invalid(format!("{port:?} is no port")))?;
            let name = host.strip_suffix(&format!(".{}", data.domain)).unwrap_or(host);
            let view = data.brain.view().await?;
            let devices = view.tenants.iter().filter(|tenant| tenant.id == data.id).flat_map(|t| &t.devices);
            let device = devices.into_iter().find(|device| device.name.as_str() == name);
            let device = device.ok_or_else(|| invalid(format!("the tenant has no device {name:?}")))?;
            SocketAddr::new(device.v4.into(), port)
        }
    };
    let ours = match address.ip() {
        IpAddr::V4(v4) => v4.octets()[..2] == data.subnets.v4.octets()[..2],
        IpAddr::V6(v6) => v6.segments()[..4] == data.subnets.v6.segments()[..4],
    };
    if ours { Ok(address) } else { Err(invalid(format!("{address} is not on the tenant's overlay"))) }
}

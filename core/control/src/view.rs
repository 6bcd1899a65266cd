//! What people may see of the state: plain data without any secret. The API, the CLI and the console show it.

use cloudpal_model::{DeviceId, MachineId, Name, OperationId, PublicKey, TenantId};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// A consistent picture of everything, by name order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub tenants: Vec<TenantView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TenantView {
    pub id: TenantId,
    pub name: Name,
    pub domain: String,
    pub subnet_v4: Ipv4Addr,
    pub prefix_v6: Ipv6Addr,
    pub dns_v4: Ipv4Addr,
    pub public_key: PublicKey,
    pub listen_port: u16,
    /// What is wrong with its network just now; empty: nothing.
    pub network_trouble: String,
    /// Something was changed that its network does not show yet.
    pub network_pending: bool,
    pub devices: Vec<DeviceView>,
    pub apps: Vec<AppView>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceView {
    pub id: DeviceId,
    pub name: Name,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub public_key: PublicKey,
    pub exit: bool,
    pub last_endpoint: Option<SocketAddr>,
    pub added_wall_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppView {
    pub name: Name,
    pub machine: MachineId,
    pub image: String,
    /// Empty until the image was imported.
    pub digest: String,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub ports: Vec<u16>,
    pub memory_mib: u32,
    pub idle_timeout_ms: u64,
    /// `installing`, or a state of `compute::life`: `created`, `booting`, `awake`, `falling_asleep`, `asleep`,
    /// `waking`, `stopping`, `stopped`, `killed`.
    pub state: String,
    /// Why it is in this state, for people: a snapshot that was refused, a crash, a reason for a kill.
    pub note: String,
    pub state_since_wall_ms: u64,
    pub boots: u64,
    pub wakes: u64,
    pub sleeps: u64,
    /// From the packet that woke it to the guest running again; `None` until the first wake.
    pub last_wake_us: Option<u64>,
}

/// One entry of the operation log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationView {
    pub id: OperationId,
    /// Who asked: `cli:uid=0`, `daemon`, later a token's name.
    pub actor: String,
    /// What, in one line, without secrets: `device add ada/phone`.
    pub what: String,
    /// The operation that would undo it, in words; empty: it cannot be undone.
    pub undo: String,
    pub at_wall_ms: u64,
    /// Whose cloud it is about; `None`: of an operation from before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    pub state: OperationState,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum OperationState {
    Running { stage: String, done_bytes: u64, total_bytes: u64 },
    Done,
    Failed { problem: cloudpal_model::Problem },
}

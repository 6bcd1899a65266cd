//! What is kept in the store: one JSON record per key. [`FORMAT`] names their version.
//!
//! Invariants: ids are never reused (the counters only grow); no device's private key is ever in a record.

use crate::{event::Image, request::AppManifest};
use cloudpal_compute::life::Wanted;
use cloudpal_model::{
    DeviceId, Kind, MachineId, Name, OperationId, PresharedKey, PrivateKey, Problem, PublicKey, TenantId,
    store::Change,
};
use cloudpal_net::plan::Subnets;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::net::SocketAddr;

/// The version of all records. A newer one is refused rather than misread.
pub const FORMAT: u32 = 1;

pub const META: &str = "meta";
pub const TENANT: &str = "tenant/";
pub const DEVICE: &str = "device/";
pub const APP: &str = "app/";
pub const INSTALL: &str = "install/";
pub const OPERATION: &str = "operation/";
pub const GONE_TENANT: &str = "gone-tenant/";

/// Counters of ids: the next of each kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub format: u32,
    pub next_tenant: u32,
    pub next_device: u32,
    pub next_machine: u32,
    pub next_operation: u32,
}

impl Default for Meta {
    fn default() -> Self {
        Meta { format: FORMAT, next_tenant: 1, next_device: 1, next_machine: 1, next_operation: 1 }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    pub id: TenantId,
    pub name: Name,
    pub domain: String,
    pub subnets: Subnets,
    /// The tenant's own WireGuard key, of this host's end.
    pub private_key: PrivateKey,
    pub listen_port: u16,
    pub added_wall_ms: u64,
    /// Removed, for everybody but the machines of its apps that have not ended yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaving: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    pub id: DeviceId,
    pub tenant: TenantId,
    pub name: Name,
    pub slot: u16,
    pub public_key: PublicKey,
    pub preshared_key: PresharedKey,
    pub exit: bool,
    pub last_endpoint: Option<SocketAddr>,
    pub added_wall_ms: u64,
}

/// What the owner wants of a machine, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wanted", rename_all = "snake_case")]
pub enum WantedRecord {
    OnDemand,
    Stopped,
    Killed {
        reason: String,
    },
    /// The app is no longer there for people; its machine must still go.
    Removed,
}

impl From<&Wanted> for WantedRecord {
    fn from(wanted: &Wanted) -> Self {
        match wanted {
            Wanted::OnDemand => WantedRecord::OnDemand,
            Wanted::Stopped => WantedRecord::Stopped,
            Wanted::Killed { reason } => WantedRecord::Killed { reason: reason.clone() },
            Wanted::Removed => WantedRecord::Removed,
        }
    }
}

impl From<&WantedRecord> for Wanted {
    fn from(wanted: &WantedRecord) -> Self {
        match wanted {
            WantedRecord::OnDemand => Wanted::OnDemand,
            WantedRecord::Stopped => Wanted::Stopped,
            WantedRecord::Killed { reason } => Wanted::Killed { reason: reason.clone() },
            WantedRecord::Removed => Wanted::Removed,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppRecord {
    pub machine: MachineId,
    pub tenant: TenantId,
    pub name: Name,
    pub slot: u16,
    pub manifest: AppManifest,
    pub image: Image,
    pub wanted: WantedRecord,
    pub boots: u64,
    pub wakes: u64,
    pub sleeps: u64,
}

/// An app whose image is still being imported.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstallRecord {
    pub operation: OperationId,
    pub machine: MachineId,
    pub tenant: TenantId,
    pub name: Name,
    pub slot: u16,
    pub manifest: AppManifest,
}

/// The key of a record. Numbers are padded, so that key order is id order.
pub fn key(prefix: &str, id: u32) -> String {
    format!("{prefix}{id:010}")
}

pub fn put(key: String, record: &impl Serialize) -> Result<Change, Problem> {
    match serde_json::to_vec(record) {
        Ok(value) => Ok(Change::Put { key, value }),
        Err(error) => Err(Problem::new(
            Kind::Internal,
            format!("the record {key} cannot be written: {error}"),
            "report it",
        )),
    }
}

pub fn read<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(value).map_err(|error| damaged(key, &error.to_string()))
}

pub fn damaged(key: &str, why: &str) -> Problem {
    let what = format!("the state store has a damaged record, {key}: {why}");
    Problem::new(Kind::Internal, what, "restore the state store from a backup; nothing was changed")
}

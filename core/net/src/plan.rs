//! What a tenant's network must be: plain data, complete, and the same after every restart.
//!
//! Invariant: applying a plan twice is the same as applying it once; whatever the plan does not name does not exist.

use cloudpal_model::{DeviceId, MachineId, Name, PresharedKey, PrivateKey, PublicKey, TenantId};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// The addresses of one overlay. Two tenants may use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnets {
    /// The network address of a /16 in private space (RFC 1918).
    pub v4: Ipv4Addr,
    /// The prefix of a /64 in unique local space (RFC 4193).
    pub v6: Ipv6Addr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetPlan {
    pub tenant: TenantId,
    /// The tenant's domain, for example `ada.pal`: names are `<app>.ada.pal` and `<device>.ada.pal`.
    pub domain: String,
    pub subnets: Subnets,
    pub private_key: PrivateKey,
    /// The UDP port of the tenant's WireGuard interface, in the host's own namespace.
    pub listen_port: u16,
    pub devices: Vec<DevicePlan>,
    pub machines: Vec<MachinePlan>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DevicePlan {
    pub id: DeviceId,
    pub name: Name,
    pub public_key: PublicKey,
    pub preshared_key: PresharedKey,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// May reach the internet through this host.
    pub exit: bool,
    /// Where the device was last seen: after a restart the host calls it there, so that it need not be touched.
    pub last_endpoint: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachinePlan {
    pub id: MachineId,
    pub name: Name,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    pub mac: [u8; 6],
}

/// What WireGuard knows of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    pub public_key: PublicKey,
    pub endpoint: Option<SocketAddr>,
    /// Since the Unix epoch; `None`: no handshake yet.
    pub last_handshake_wall_ms: Option<u64>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

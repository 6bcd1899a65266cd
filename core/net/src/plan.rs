//! What a tenant's network must be: plain data, complete, and the same after every restart.
//!
//! Invariant: applying a plan twice is the same as applying it once; whatever the plan does not name does not exist.

use cloudpal_model::{DeviceId, MachineId, Name, PresharedKey, PrivateKey, PublicKey, TenantId};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// WireGuard's customary port, and the first that a tenant's interface may listen on. Every port from here upward is
/// out of the reach of exits ([`crate::ruleset::EXIT_PORTS`]).
pub const FIRST_LISTEN_PORT: u16 = 51_820;

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

#[cfg(test)]
pub(crate) mod examples {
    //! Households that the tests of this crate share.

    use super::*;
    use crate::address::{Range, machine_mac};
    use crate::keys::{KeyPair, preshared_key};

    pub fn keys_of_device(number: u8) -> KeyPair {
        KeyPair::from_random([100 + number; 32])
    }

    /// Tenant `t<number>` with a phone (with exit) and a laptop (without), and two apps.
    pub fn household(number: u8) -> NetPlan {
        let subnets = Subnets::choose(None, None, [number; 5]).unwrap();
        let device = |(slot, name): (u8, &str)| {
            let (v4, v6) = subnets.address(Range::Devices, slot.into()).unwrap();
            DevicePlan {
                id: DeviceId(u32::from(number) * 10 + u32::from(slot)),
                name: name.parse().unwrap(),
                public_key: keys_of_device(slot).public,
                preshared_key: preshared_key([200 + slot; 32]),
                v4,
                v6,
                exit: slot == 0,
                last_endpoint: None,
            }
        };
        let machine = |(slot, name): (u8, &str)| {
            let (v4, v6) = subnets.address(Range::Apps, slot.into()).unwrap();
            let id = MachineId(u32::from(number) * 10 + u32::from(slot));
            MachinePlan { id, name: name.parse().unwrap(), v4, v6, mac: machine_mac(id) }
        };
        NetPlan {
            tenant: TenantId(number.into()),
            domain: format!("t{number}.pal"),
            subnets,
            private_key: KeyPair::from_random([number; 32]).private,
            listen_port: FIRST_LISTEN_PORT + u16::from(number),
            devices: [(0, "phone"), (1, "laptop")].map(device).into(),
            machines: [(0, "calendar"), (1, "notes")].map(machine).into(),
        }
    }
}

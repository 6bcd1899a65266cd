//! The short links between each tenant's namespace and the host's: one veth pair, one /31, one /127.
//!
//! IPv4 comes from 198.18.0.0/15 (RFC 2544, benchmarks): never on the internet, never in a home or a data center's
//! LAN, never an overlay's (those are RFC 1918), so an exit can still reach every LAN; and unlike 169.254/16 it is
//! neither link-local nor home of the clouds' metadata services. IPv6 comes from a /64 in unique local space whose
//! global id was drawn once, at random, for this purpose.
//!
//! Invariant: no two tenants of one host share an address of their links.

use crate::names::Instance;
use cloudpal_model::{Kind, Problem, TenantId};
use std::net::{Ipv4Addr, Ipv6Addr};

/// The range of all links, network address and prefix length.
pub const LINKS_V4: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);
/// The range of all links, prefix and its length.
pub const LINKS_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0xfd4e, 0x91c7, 0x2ab6, 0, 0, 0, 0, 0), 64);

/// Whether the address is one of a link.
pub fn is_link(address: Ipv4Addr) -> bool {
    let (range, prefix_len) = LINKS_V4;
    (address.to_bits() ^ range.to_bits()) >> (32 - prefix_len) == 0
}

/// A /15 has so many /31.
const MAX_TENANTS: u32 = 1 << 16;

/// The veth pair of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantLink {
    /// The interface in the host's namespace; the tenant's end is [`crate::names::EXIT`].
    pub host_interface: String,
    pub host_v4: Ipv4Addr,
    pub tenant_v4: Ipv4Addr,
    pub host_v6: Ipv6Addr,
    pub tenant_v6: Ipv6Addr,
}

/// The host has no link left for this tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tenant} is beyond the {MAX_TENANTS} tenants that one host can number")]
pub struct TooManyTenants {
    pub tenant: TenantId,
}

impl From<TooManyTenants> for Problem {
    fn from(error: TooManyTenants) -> Problem {
        Problem::new(Kind::Refused, error.to_string(), "add the tenant on another host")
    }
}

impl TenantLink {
    pub const V4_PREFIX_LEN: u8 = 31;
    pub const V6_PREFIX_LEN: u8 = 127;

    pub fn new(instance: &Instance, tenant: TenantId) -> Result<TenantLink, TooManyTenants> {
        if tenant.0 >= MAX_TENANTS {
            return Err(TooManyTenants { tenant });
        }
        let v4 = LINKS_V4.0.to_bits() + 2 * tenant.0;
        let v6 = LINKS_V6.0.to_bits() + 2 * u128::from(tenant.0);
        Ok(TenantLink {
            host_interface: instance.host_veth(tenant),
            host_v4: v4.into(),
            tenant_v4: (v4 + 1).into(),
            host_v6: v6.into(),
            tenant_v6: (v6 + 1).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_tenant_has_addresses_of_its_own_and_the_range_is_not_left() {
        let instance: Instance = "cloudpal".parse().unwrap();
        let mut seen4 = HashSet::new();
        let mut seen6 = HashSet::new();
        for id in 0..MAX_TENANTS {
            let link = TenantLink::new(&instance, TenantId(id)).unwrap();
            assert!(seen4.insert(link.host_v4) && seen4.insert(link.tenant_v4));
            assert!(seen6.insert(link.host_v6) && seen6.insert(link.tenant_v6));
            assert!(is_link(link.tenant_v4) && is_link(link.host_v4));
            assert_eq!(link.tenant_v6.to_bits() >> 64, LINKS_V6.0.to_bits() >> 64);
        }
        assert!(!is_link(Ipv4Addr::new(198, 17, 255, 255)) && !is_link(Ipv4Addr::new(198, 20, 0, 0)));
        let beyond = TenantLink::new(&instance, TenantId(MAX_TENANTS));
        assert_eq!(beyond, Err(TooManyTenants { tenant: TenantId(MAX_TENANTS) }));
    }
}

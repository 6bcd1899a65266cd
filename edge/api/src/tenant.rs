//! A tenant: one person's cloud on this host.

use crate::{App, Device};
use cloudpal_model::{Name, PublicKey, TenantId};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantAdd {
    #[schema(schema_with = crate::schema::name)]
    pub name: Name,
    /// The network address of a /16 in private space; chosen by the daemon when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "10.77.0.0")]
    pub subnet_v4: Option<Ipv4Addr>,
    /// The prefix of a /64 in unique local space; drawn at random by the daemon when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "fd12:3456:789a:1::")]
    pub prefix_v6: Option<Ipv6Addr>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tenant {
    #[schema(value_type = u32)]
    pub id: TenantId,
    #[schema(schema_with = crate::schema::name)]
    pub name: Name,
    /// Names are `<app>.<domain>` and `<device>.<domain>`.
    #[schema(example = "ada.pal")]
    pub domain: String,
    /// The network address of a /16.
    #[schema(value_type = String, example = "10.77.0.0")]
    pub subnet_v4: Ipv4Addr,
    /// The prefix of a /64.
    #[schema(value_type = String, example = "fd12:3456:789a:1::")]
    pub prefix_v6: Ipv6Addr,
    /// Where the tenant's DNS server answers, inside the tunnel.
    #[schema(value_type = String)]
    pub dns_v4: Ipv4Addr,
    /// The tenant's WireGuard public key, base64.
    #[schema(value_type = String)]
    pub public_key: PublicKey,
    /// The UDP port of the tenant's WireGuard interface.
    pub listen_port: u16,
    /// What is wrong with its network just now; empty: nothing.
    pub network_trouble: String,
    pub devices: Vec<Device>,
    pub apps: Vec<App>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    pub tenants: Vec<Tenant>,
}

//! A device: an ordinary WireGuard client that belongs to a tenant.

use crate::Secret;
use cloudpal_model::{DeviceId, Name, OperationId, PublicKey};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use utoipa::ToSchema;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceAdd {
    #[schema(schema_with = crate::schema::name)]
    pub name: Name,
    /// The device reaches the internet through this host too (the default); false: only its own overlay.
    #[serde(default = "yes")]
    #[schema(default = true)]
    pub exit: bool,
}

fn yes() -> bool {
    true
}

/// The only time that the device's private key is seen: the server does not keep it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceAdded {
    #[schema(value_type = u32)]
    pub operation: OperationId,
    /// The whole text of an ordinary WireGuard `.conf`, private key included.
    #[schema(value_type = String)]
    pub conf: Secret,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Device {
    #[schema(value_type = u32)]
    pub id: DeviceId,
    #[schema(schema_with = crate::schema::name)]
    pub name: Name,
    #[schema(value_type = String)]
    pub v4: Ipv4Addr,
    #[schema(value_type = String)]
    pub v6: Ipv6Addr,
    #[schema(value_type = String)]
    pub public_key: PublicKey,
    /// Whether it reaches the internet through this host.
    pub exit: bool,
    pub added_wall_ms: u64,
    /// Where it was last seen.
    #[schema(value_type = Option<String>, example = "203.0.113.7:41641")]
    pub endpoint: Option<SocketAddr>,
    /// `null`: no handshake since the daemon started.
    pub last_handshake_wall_ms: Option<u64>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeviceList {
    pub devices: Vec<Device>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_is_not_ignored_and_the_key_is_not_shown() {
        let error = serde_json::from_str::<DeviceAdd>(r#"{"name":"phone","exits":false}"#).unwrap_err();
        assert!(error.to_string().contains("exits"), "{error}");
        let add: DeviceAdd = serde_json::from_str(r#"{"name":"phone"}"#).unwrap();
        assert!(add.exit);
        let added = DeviceAdded { operation: OperationId(1), conf: Secret::new("PrivateKey = abc") };
        assert!(!format!("{added:?}").contains("abc"));
    }
}

//! An app: an OCI image with a manifest, and what became of it.

use crate::Secret;
use cloudpal_model::{MachineId, Name};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use utoipa::{IntoParams, ToSchema};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AppInstall {
    #[schema(schema_with = crate::schema::name)]
    pub name: Name,
    pub manifest: Manifest,
    /// For a `docker://` image whose registry asks who we are. Used for this one pull, never stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry_username: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Password)]
    pub registry_password: Option<Secret>,
}

/// What the image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AppKind {
    /// Programs, run under the host's guest kernel: the default.
    Container,
    /// A library OS and its app in one (OSv, Unikraft): the image's own kernel, at `/unikraft/bin/kernel` or
    /// `/kernel`, is booted.
    Unikernel,
}

/// What an app is. Whatever is absent gets the daemon's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `oci:DIR[:TAG]`, `oci-archive:FILE`, `docker-archive:FILE` or `docker://HOST[:PORT]/NAME[:TAG|@DIGEST]`.
    /// Paths are of the host's, and absolute.
    pub image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<AppKind>,
    /// Memory of the machine, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Size of the writable disk, MiB. It is sparse: only what is written takes space.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u32>,
    /// No packet for this long: the machine falls asleep. 0: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// Takes the place of the image's entrypoint and command when not empty. Of a unikernel it is the kernel's
    /// command line, in which `{ipv4}`, `{ipv6}`, `{gateway_ipv4}`, `{gateway_ipv6}`, `{dns}`, `{mac}`, `{hostname}`
    /// and `{mtu}` are filled in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub argv: Vec<String>,
    /// `KEY=value`, added to the image's environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// TCP ports of which one must listen before packets are let in; empty: the image's exposed TCP ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ready_tcp_ports: Vec<u16>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct App {
    #[schema(schema_with = crate::schema::name)]
    pub name: Name,
    /// `<app>.<domain of the tenant>`
    #[schema(example = "radicale.ada.pal")]
    pub host_name: String,
    #[schema(value_type = u32)]
    pub machine: MachineId,
    pub image: String,
    /// Digest of the image's manifest; empty until the image was imported.
    pub digest: String,
    #[schema(value_type = String)]
    pub v4: Ipv4Addr,
    #[schema(value_type = String)]
    pub v6: Ipv6Addr,
    pub ports: Vec<u16>,
    pub memory_mib: u32,
    /// 0: never falls asleep by itself.
    pub idle_timeout_ms: u64,
    /// `installing`, `adopting`, `created`, `booting`, `awake`, `falling_asleep`, `asleep`, `waking`, `stopping`,
    /// `stopped` or `killed`.
    #[schema(example = "asleep")]
    pub state: String,
    /// Why it is in this state, for people; often empty.
    pub note: String,
    pub state_since_wall_ms: u64,
    pub boots: u64,
    pub wakes: u64,
    pub sleeps: u64,
    /// Microseconds from the packet that woke it to the guest running again; `null` until the first wake.
    pub last_wake_us: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AppList {
    pub apps: Vec<App>,
}

/// Which part of an app's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogQuery {
    /// How much of the end of the log, bytes; absent: 65536.
    #[serde(default)]
    pub tail_bytes: Option<u64>,
    /// Keep the answer open and send what the app writes from now on.
    #[serde(default)]
    pub follow: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_travels_but_is_not_shown() {
        let install = AppInstall {
            name: "web".parse().unwrap(),
            manifest: Manifest { image: "docker://host/web".into(), ..Manifest::default() },
            registry_username: Some("ada".into()),
            registry_password: Some(Secret::new("hunter2")),
        };
        assert!(!format!("{install:?}").contains("hunter2"));
        let json = serde_json::to_string(&install).unwrap();
        assert!(json.contains("hunter2"));
        assert_eq!(serde_json::from_str::<AppInstall>(&json).unwrap(), install);
    }
}

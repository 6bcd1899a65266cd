//! What an owner or operator can ask for. Every way in (CLI, API, console) becomes one of these.

use cloudpal_model::{MachineId, Name, OperationId, PrivateKey};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    TenantAdd {
        name: Name,
        subnet_v4: Option<Ipv4Addr>,
        prefix_v6: Option<Ipv6Addr>,
    },
    TenantRemove {
        name: Name,
    },
    DeviceAdd {
        tenant: Name,
        name: Name,
        exit: bool,
    },
    /// The device's next packet gets no answer.
    DeviceRevoke {
        tenant: Name,
        name: Name,
    },
    AppInstall {
        tenant: Name,
        name: Name,
        app: AppManifest,
    },
    AppRemove {
        tenant: Name,
        name: Name,
    },
    /// Wake or boot it now; clears `stopped` and `killed`.
    MachineStart {
        tenant: Name,
        name: Name,
    },
    /// Fall asleep now, without waiting for the idle time.
    MachineSleep {
        tenant: Name,
        name: Name,
    },
    /// Stop it; packets do not start it again until `MachineStart`.
    MachineStop {
        tenant: Name,
        name: Name,
    },
}

/// What an image holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppKind {
    /// Programs, run under the host's guest kernel.
    #[default]
    Container,
    /// A library OS and its app in one: the image's own kernel is booted. Its command line is the command, in which
    /// `{ipv4}`, `{ipv6}`, `{gateway_ipv4}`, `{gateway_ipv6}`, `{dns}`, `{mac}`, `{hostname}` and `{mtu}` are filled
    /// in.
    Unikernel,
}

impl AppKind {
    fn is_container(&self) -> bool {
        *self == AppKind::Container
    }
}

/// What an app is: the short manifest that its developer ships, with the defaults filled in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppManifest {
    /// Where the image comes from: `oci:DIR[:TAG]`, `oci-archive:FILE`, `docker-archive:FILE` or
    /// `docker://HOST[:PORT]/NAME[:TAG|@DIGEST]`.
    pub image: String,
    #[serde(default, skip_serializing_if = "AppKind::is_container")]
    pub kind: AppKind,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub disk_mib: u32,
    /// No packet for this long: fall asleep. 0: never.
    pub idle_timeout_ms: u64,
    /// Overrides the image's entrypoint and command when not empty; of a unikernel, the command line's words.
    pub argv: Vec<String>,
    /// Added to the image's environment.
    pub env: Vec<String>,
    /// TCP ports of which one must listen before packets are let in; empty: the image's exposed TCP ports.
    pub ready_tcp_ports: Vec<u16>,
}

impl AppManifest {
    pub fn new(image: impl Into<String>) -> Self {
        AppManifest {
            image: image.into(),
            kind: AppKind::Container,
            memory_mib: 256,
            vcpus: 1,
            disk_mib: 8192,
            idle_timeout_ms: 30_000,
            argv: Vec::new(),
            env: Vec::new(),
            ready_tcp_ports: Vec::new(),
        }
    }
}

/// The answer to a request that was accepted.
#[derive(Clone, Debug, PartialEq)]
pub enum Accepted {
    /// Done, and durable.
    Done { operation: OperationId },
    /// The device's private key exists only here and in the profile made from it: it is not stored.
    DeviceAdded { operation: OperationId, profile: DeviceProfile },
    /// Under way: watch the operation.
    Started { operation: OperationId, machine: MachineId },
}

/// What the new device's WireGuard client needs; `net` renders it as a `.conf`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceProfile {
    pub private_key: PrivateKey,
    /// The whole text of the ordinary WireGuard `.conf`.
    pub conf: String,
}

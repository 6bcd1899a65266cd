//! What the host tells the engine. Every effect that can take time is answered by one of these.

use cloudpal_model::{MachineId, OperationId, Problem, PublicKey, TenantId};
use std::net::SocketAddr;

#[derive(Clone, Debug)]
pub enum Event {
    NetApplied {
        tenant: TenantId,
    },
    /// The engine tries again later, with growing pauses.
    NetFailed {
        tenant: TenantId,
        problem: Problem,
    },
    /// The answer to `RemoveNet`; until it came, the removal is asked for again after a restart.
    NetRemoved {
        tenant: TenantId,
    },
    ImageProgress {
        operation: OperationId,
        done_bytes: u64,
        total_bytes: u64,
        stage: String,
    },
    ImageReady {
        operation: OperationId,
        image: Image,
    },
    ImageFailed {
        operation: OperationId,
        problem: Problem,
    },
    /// How something has ended that the daemon began with `Engine::begin_operation`.
    OperationEnded {
        operation: OperationId,
        outcome: Result<(), Problem>,
    },
    /// The TAP of a machine that is watched (see `Effect::WatchTap`) became readable.
    PacketWaiting {
        machine: MachineId,
    },
    /// Seen at each sampling of a machine that is awake.
    Activity {
        machine: MachineId,
        delivered_packets: u64,
        cpu_us: u64,
    },
    Machine {
        machine: MachineId,
        event: cloudpal_compute::life::Event,
    },
    /// The answer to `RemoveMachine`; until it came, the removal is asked for again after a restart.
    MachineRemoved {
        machine: MachineId,
    },
    /// Where a device was last seen; kept so that it can be called after a restart.
    DeviceSeen {
        tenant: TenantId,
        public_key: PublicKey,
        endpoint: SocketAddr,
    },
}

/// An imported image, as the control loop remembers it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// Digest of the image's manifest: `sha256:…`. It names the image's directory.
    pub digest: String,
    pub config: cloudpal_compute::image::ImageConfig,
    pub rootfs_bytes: u64,
    /// It brings a kernel of its own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_kernel: bool,
}

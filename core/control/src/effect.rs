//! What the engine wants done. The daemon does it with the host's ports; `sim` does it with fakes.

use cloudpal_model::{MachineId, Name, OperationId, TenantId};
use cloudpal_net::plan::NetPlan;

/// An app by the names that people know it by: unique at any moment, also while it is being installed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AppKey {
    pub tenant: Name,
    pub name: Name,
}

#[derive(Clone, Debug)]
pub enum Effect {
    /// Make the tenant's network so; answered by `NetApplied` or `NetFailed`.
    ApplyNet { plan: Box<NetPlan> },
    /// Answered by `NetRemoved`.
    RemoveNet { tenant: TenantId },
    /// Answered by `ImageProgress`*, then `ImageReady` or `ImageFailed`.
    /// `argv_given`: the manifest says what to run, so an image without an entrypoint will do.
    ImportImage { operation: OperationId, app: AppKey, source: String, argv_given: bool },
    /// A command for the task that owns the machine; answered by `Event::Machine`.
    Machine { machine: MachineId, command: cloudpal_compute::life::Command },
    /// Tell `PacketWaiting` once, when a packet waits in the machine's TAP.
    WatchTap { machine: MachineId },
    /// The app was removed: its disk, snapshot and log may go. Answered by `MachineRemoved`.
    RemoveMachine { machine: MachineId },
}

//! What the engine wants done. The daemon does it with the host's ports; `sim` does it with fakes.

use cloudpal_model::{MachineId, OperationId, TenantId};
use cloudpal_net::plan::NetPlan;

#[derive(Clone, Debug)]
pub enum Effect {
    /// Make the tenant's network so; answered by `NetApplied` or `NetFailed`.
    ApplyNet { plan: Box<NetPlan> },
    /// Answered by `NetRemoved`.
    RemoveNet { tenant: TenantId },
    /// Answered by `ImageProgress`*, then `ImageReady` or `ImageFailed`.
    /// `argv_given`: the manifest says what to run, so an image without an entrypoint will do.
    ImportImage { operation: OperationId, source: String, argv_given: bool },
    /// A command for the task that owns the machine; answered by `Event::Machine`.
    Machine { machine: MachineId, command: cloudpal_compute::life::Command },
    /// Tell `PacketWaiting` once, when a packet waits in the machine's TAP.
    WatchTap { machine: MachineId },
    /// The app was removed: its disk, snapshot and log may go. Answered by `MachineRemoved`.
    RemoveMachine { machine: MachineId },
}

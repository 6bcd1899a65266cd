//! The drivers of the port [`cloudpal_compute::driver`], and what they share.
//!
//! ```text
//!   qemu/, firecracker/                  drivers: from a specification to their VMM's commands
//!   start, running                       what every driver's start and every running machine have in common
//!   process, control, snapshot           a VMM's process; the channel to the guest's init; a sleeping machine's files
//!   cgroup                               what a VMM may use of the host
//!   disk, logs, accelerator              the writable disk; what a guest writes; what KVM is worth here
//! ```
//!
//! Invariants, beside those of the port:
//! - The lock, the process, the snapshot's directory and the control channel are handled here, once for all drivers.
//! - No driver hands a VMM a path of something that a person chose: it opens it, and the VMM gets the descriptor.

pub mod accelerator;
mod cgroup;
mod control;
mod disk;
pub mod embedded;
mod firecracker;
pub mod logs;
mod process;
mod qemu;
mod running;
mod snapshot;
mod start;

pub use accelerator::Accelerator;
pub use firecracker::{FirecrackerDriver, FirecrackerSettings};
pub use qemu::{QemuDriver, QemuSettings};

/// Which accelerator to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where a measurement shows it to be real, else software emulation.
    #[default]
    Auto,
    Tcg,
    Kvm,
}

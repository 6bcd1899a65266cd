//! The embedded VMM: one process, one microVM, on KVM and the rust-vmm crates.
//!
//! ```text
//!  Host ──make──► Spare ──boot(kernel, devices)──► Machine ──launch──► Live: Paused ◄─pause, resume─► Running
//!  (/dev/kvm)     VM, memory, wires, vCPUs:          │ run: one vCPU,    │ save                          │
//!                 no state yet                       │ this thread       ▼                               ▼
//!                   ▲                                └──save──► state + memory, or state + diff        Ended
//!                   │ pool                                        │
//!                   └──wake(state, memory, diff, devices)─────────┘ never changed again
//! ```
//!
//! Invariants:
//! - A `Spare` becomes a `Machine` or is dropped; no machine's state is ever put into a VM that has run.
//! - A snapshot's memory file is mapped privately: any number of machines wake from it, and it never changes.
//! - Nothing that a guest does, and nothing that stands in a file, makes this crate panic.

mod acpi;
mod boot;
mod bus;
mod com1;
pub mod cpu;
pub mod crew;
mod elf;
pub mod error;
pub mod events;
pub mod host;
pub mod kernel;
pub mod kick;
pub mod layout;
pub mod live;
pub mod machine;
pub mod memory;
pub mod pool;
mod random;
pub mod snapshot;
pub mod state;
pub mod tiny_guest;
mod vcpu;
mod vcpu_state;
pub mod virtio;

pub use crew::{Crew, Threads};
pub use error::Error;
pub use host::Host;
pub use kernel::Image;
pub use kick::Kick;
pub use live::{End, Live};
pub use machine::{Boot, Ended, Machine, NoPorts, Ports, Shape, Spare, Wake};
pub use pool::Pool;
pub use snapshot::{Save, Saved, Snapshot};

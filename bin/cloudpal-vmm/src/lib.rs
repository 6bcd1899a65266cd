//! The embedded VMM: one process, one microVM, on KVM and the rust-vmm crates.
//!
//! ```text
//!  Host ──reserve──► Spare ──boot(ELF)──────────► Machine ◄──┐
//!  (/dev/kvm)        VM, irqchip, vCPU,             │ run    │ run ended: Break, Kick
//!                    memory slot: no state yet      └────────┘
//!                      ▲                              │ save
//!                      │ pool                         ▼
//!                      └──wake(Snapshot)──────── state + memory files, never changed again
//! ```
//!
//! Invariants:
//! - A `Spare` becomes a `Machine` or is dropped; no machine's state is ever put into a VM that has run.
//! - A snapshot's memory file is mapped privately: any number of machines wake from it, and it never changes.
//! - Nothing that a guest does, and nothing that stands in a file, makes this crate panic.
//!
//! Today's guest is the tiny one in `guest/`: `virtio` has a network device, but no machine has it on its bus yet, and
//! a snapshot knows nothing of it.

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

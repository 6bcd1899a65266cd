//! Virtio devices for a guest that is hostile. They stand by themselves: no machine has them on its bus yet.
//!
//! Invariants, held by property tests:
//! - No order of register accesses and no content of guest memory panics, allocates by the guest's numbers, or loops:
//!   one call does at most one queue's length of work, and says whether there is more.
//! - Queues are looked at only between DRIVER_OK and the next reset, and only when all of them lie in guest memory.

pub mod mmio;
pub mod net;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

pub type GuestMemory = GuestMemoryMmap<()>;

/// What a device did in one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// The guest wants to hear of it.
    pub interrupt: bool,
    /// There is more to do: call again, after others had their turn.
    pub more: bool,
}

/// The driver broke the rules of its queue; only a reset helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

pub trait Device {
    /// The device's number in the virtio specification, section 5.
    const KIND: u32;
    const QUEUES: usize;
    /// What it offers beyond VERSION_1.
    fn features(&self) -> u64;
    fn config(&self) -> &[u8];
    /// Does what there is to do on that queue.
    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken>;
}

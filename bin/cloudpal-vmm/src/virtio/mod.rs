//! Virtio devices for a guest that is hostile, and the contract between a device and the machine that carries it.
//!
//! Who calls: all devices of a machine live on one thread. `work` is called for a queue when the guest notified of it,
//! when one of the device's sources for it became ready, when the last call said that there is more, and once for
//! every queue after DRIVER_OK and after a wake. vCPU threads call the configuration and `reset` at any time, but never
//! together with anything else of the same device.
//!
//! Invariants, held by property tests:
//! - No order of register accesses and no content of guest memory panics, allocates by the guest's numbers, or loops:
//!   one call does at most one queue's length of work, and says whether there is more.
//! - Queues are looked at only between DRIVER_OK and the next reset, and only when all of them lie in guest memory.
//! - Nothing is under way between two calls: what `save` returns, the queues and guest memory are the whole state, and
//!   nothing is read from or written to the outside until the next call. So a machine is paused by not calling.
//! - Sources are watched edge by edge. A call therefore goes on until its source would block, until the guest has
//!   no buffer left (its next notification is the next call), or until it says `more`.

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod console;
pub mod hold;
pub mod mmio;
pub mod net;
pub mod rate;
pub mod rng;
pub mod vsock;

use std::os::fd::RawFd;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

pub type GuestMemory = GuestMemoryMmap<()>;

/// What a device did in one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Buffers were used, and the guest wants to hear of it.
    pub interrupt: bool,
    /// The configuration is another one now: the guest is told, and its generation counts up.
    pub config: bool,
    /// There is more to do: call again, after others had their turn.
    pub more: bool,
}

/// The driver broke the rules of its queue; only a reset helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Saved bytes that are not this device's, or not of this version; what is wrong with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mismatch(pub &'static str);

/// A descriptor that the machine waits for, edge by edge: when it becomes readable there is work on that queue. A TAP,
/// a socket, a timer of a rate limit, an event of the outside. It stays open, and the same, as long as the device
/// lives; a device whose descriptors come and go puts them into an epoll of its own and gives that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    pub fd: RawFd,
    pub queue: usize,
}

pub trait Device: Send {
    /// The device's number in the virtio specification, section 5.
    fn kind(&self) -> u32;
    /// The largest size of each queue: powers of two, 256 at most.
    fn queue_sizes(&self) -> &[u16];
    /// What it offers beyond VERSION_1. Never changes. With `mmio::FEATURE_EVENT_INDEX` among what the driver took, the
    /// transport has switched the queues to event indices before `activate`.
    fn features(&self) -> u64;
    /// DRIVER_OK, or a wake in that state: the driver took these features.
    fn activate(&mut self, acked: u64);
    /// What lies behind the end of the configuration stays as it is: zero.
    fn read_config(&self, offset: u64, to: &mut [u8]);
    /// Foreign bytes at a foreign offset. Most devices have nothing that the driver may write.
    fn write_config(&mut self, offset: u64, from: &[u8]) {
        let _ = (offset, from);
    }
    /// Does what there is to do on that queue.
    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken>;
    /// Asked once, before the first call of `work`.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
    /// The driver starts over. What came from it is forgotten; what came from the outside stays.
    fn reset(&mut self);
    /// What a wake needs beyond the queues, guest memory and the negotiated features; its first byte is a version.
    fn save(&self) -> Vec<u8>;
    /// Called at a wake, on a device that is new, before `activate`. Foreign bytes.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), Mismatch>;
}

/// The part of a configuration that a guest reads.
pub fn copy_config(config: &[u8], offset: u64, to: &mut [u8]) {
    let from = usize::try_from(offset).ok().and_then(|at| config.get(at..)).unwrap_or_default();
    let len = from.len().min(to.len());
    to[..len].copy_from_slice(&from[..len]);
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn kind(&self) -> u32 {
        (**self).kind()
    }
    fn queue_sizes(&self) -> &[u16] {
        (**self).queue_sizes()
    }
    fn features(&self) -> u64 {
        (**self).features()
    }
    fn activate(&mut self, acked: u64) {
        (**self).activate(acked);
    }
    fn read_config(&self, offset: u64, to: &mut [u8]) {
        (**self).read_config(offset, to);
    }
    fn write_config(&mut self, offset: u64, from: &[u8]) {
        (**self).write_config(offset, from);
    }
    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        (**self).work(queue, queues, memory)
    }
    fn sources(&self) -> Vec<Source> {
        (**self).sources()
    }
    fn reset(&mut self) {
        (**self).reset();
    }
    fn save(&self) -> Vec<u8> {
        (**self).save()
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        (**self).restore(bytes)
    }
}

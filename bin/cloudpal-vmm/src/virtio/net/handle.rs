//! What the rest of the process knows of a network device, and the one thing that it says to it.

use rustix::event::{EventfdFlags, eventfd};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    held: AtomicBool,
    released: OwnedFd,
    counts: Counters,
}

#[derive(Default)]
struct Counters {
    received_frames: AtomicU64,
    received_bytes: AtomicU64,
    sent_frames: AtomicU64,
    sent_bytes: AtomicU64,
    dropped_frames: AtomicU64,
}

/// Since the device was made; received and sent as the guest sees it, without headers of virtio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub received_frames: u64,
    pub received_bytes: u64,
    pub sent_frames: u64,
    pub sent_bytes: u64,
    /// Both ways: the guest's buffer or the TAP had no room for it, or it was no frame.
    pub dropped_frames: u64,
}

impl Handle {
    pub(super) fn new(held: bool) -> io::Result<Handle> {
        let released = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Handle(Arc::new(Shared { held: held.into(), released, counts: Counters::default() })))
    }

    /// Lets in what waits in the TAP, and whatever comes: the guest is ready for it.
    pub fn release(&self) {
        self.0.held.store(false, std::sync::atomic::Ordering::Release);
        // It cannot be full: it counts up to 2^64.
        let _ = rustix::io::write(&self.0.released, &1_u64.to_ne_bytes());
    }

    pub fn is_held(&self) -> bool {
        self.0.held.load(std::sync::atomic::Ordering::Acquire)
    }

    pub fn counts(&self) -> Counts {
        let counts = &self.0.counts;
        Counts {
            received_frames: counts.received_frames.load(Relaxed),
            received_bytes: counts.received_bytes.load(Relaxed),
            sent_frames: counts.sent_frames.load(Relaxed),
            sent_bytes: counts.sent_bytes.load(Relaxed),
            dropped_frames: counts.dropped_frames.load(Relaxed),
        }
    }

    pub(super) fn source(&self) -> RawFd {
        self.0.released.as_raw_fd()
    }

    pub(super) fn received(&self, bytes: usize) {
        self.0.counts.received_frames.fetch_add(1, Relaxed);
        self.0.counts.received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.0.counts.sent_frames.fetch_add(1, Relaxed);
        self.0.counts.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.0.counts.dropped_frames.fetch_add(1, Relaxed);
    }
}

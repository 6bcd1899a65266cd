//! What the rest of the process knows of a network device, and the one thing that it says to it.

use crate::virtio::hold::Hold;
use std::{
    io,
    os::fd::RawFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

#[derive(Clone)]
pub struct Handle {
    hold: Hold,
    counts: Arc<Counters>,
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
        Ok(Handle { hold: Hold::new(held)?, counts: Arc::default() })
    }

    /// Lets in what waits in the TAP, and whatever comes: the guest is ready for it.
    pub fn release(&self) {
        self.hold.release();
    }

    pub fn is_held(&self) -> bool {
        self.hold.is_held()
    }

    pub fn counts(&self) -> Counts {
        let counts = &self.counts;
        Counts {
            received_frames: counts.received_frames.load(Relaxed),
            received_bytes: counts.received_bytes.load(Relaxed),
            sent_frames: counts.sent_frames.load(Relaxed),
            sent_bytes: counts.sent_bytes.load(Relaxed),
            dropped_frames: counts.dropped_frames.load(Relaxed),
        }
    }

    pub(super) fn source(&self) -> RawFd {
        self.hold.source()
    }

    pub(super) fn received(&self, bytes: usize) {
        self.counts.received_frames.fetch_add(1, Relaxed);
        self.counts.received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.counts.sent_frames.fetch_add(1, Relaxed);
        self.counts.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn dropped(&self) {
        self.counts.dropped_frames.fetch_add(1, Relaxed);
    }
}

//! What the rest of the process asks of a balloon, and learns from it.

use rustix::event::{EventfdFlags, eventfd};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
};

/// Numbers that the specification names (section 5.5.6.4).
pub const TAGS: usize = 10;

#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    asked: OwnedFd,
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    stats_wanted: AtomicBool,
    stats: [AtomicU64; TAGS],
    stats_seen: AtomicU64,
    released_bytes: AtomicU64,
}

/// What the guest says of its memory: bytes, and it may lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub free_bytes: Option<u64>,
    pub total_bytes: Option<u64>,
    pub available_bytes: Option<u64>,
    pub caches_bytes: Option<u64>,
    /// How often it has said something: a larger number is a fresher answer.
    pub answers: u64,
    /// In the balloon, as the driver says, and given back to the host since the device was made.
    pub balloon_bytes: u64,
    pub released_bytes: u64,
}

const UNKNOWN: u64 = u64::MAX;

impl Handle {
    pub(super) fn new() -> io::Result<Handle> {
        Ok(Handle(Arc::new(Shared {
            asked: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            target_pages: AtomicU32::new(0),
            actual_pages: AtomicU32::new(0),
            stats_wanted: AtomicBool::new(false),
            stats: [const { AtomicU64::new(UNKNOWN) }; TAGS],
            stats_seen: AtomicU64::new(0),
            released_bytes: AtomicU64::new(0),
        })))
    }

    /// So much memory the guest is to give back; it does as it can.
    pub fn set_target_mib(&self, mib: u32) {
        self.0.target_pages.store(mib.saturating_mul(256), SeqCst);
        self.wake();
    }

    /// The guest answers when it can: `answers` of the figures counts up.
    pub fn ask_stats(&self) {
        self.0.stats_wanted.store(true, SeqCst);
        self.wake();
    }

    pub fn stats(&self) -> Stats {
        let known = |tag: usize| Some(self.0.stats[tag].load(SeqCst)).filter(|value| *value != UNKNOWN);
        Stats {
            free_bytes: known(4),
            total_bytes: known(5),
            available_bytes: known(6),
            caches_bytes: known(7),
            answers: self.0.stats_seen.load(SeqCst),
            balloon_bytes: u64::from(self.actual_pages()) * 4096,
            released_bytes: self.0.released_bytes.load(SeqCst),
        }
    }

    fn wake(&self) {
        // It cannot be full: it counts up to 2^64.
        let _ = rustix::io::write(&self.0.asked, &1_u64.to_ne_bytes());
    }

    pub(super) fn source(&self) -> RawFd {
        self.0.asked.as_raw_fd()
    }

    pub(super) fn target_pages(&self) -> u32 {
        self.0.target_pages.load(SeqCst)
    }

    pub(super) fn actual_pages(&self) -> u32 {
        self.0.actual_pages.load(SeqCst)
    }

    pub(super) fn restore(&self, target: u32, actual: u32) {
        self.0.target_pages.store(target, SeqCst);
        self.set_actual(actual);
    }

    pub(super) fn set_actual(&self, pages: u32) {
        self.0.actual_pages.store(pages, SeqCst);
    }

    pub(super) fn set_released(&self, bytes: u64) {
        self.0.released_bytes.store(bytes, SeqCst);
    }

    /// Are fresh figures wanted? They are asked for once.
    pub(super) fn take_wanted(&self) -> bool {
        self.0.stats_wanted.swap(false, SeqCst)
    }

    pub(super) fn note(&self, tag: u16, value: u64) {
        if let Some(place) = self.0.stats.get(usize::from(tag)) {
            place.store(value, SeqCst);
        }
    }

    pub(super) fn noted(&self) {
        self.0.stats_seen.fetch_add(1, SeqCst);
    }
}

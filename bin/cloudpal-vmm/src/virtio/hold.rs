//! What keeps a device from touching the outside until the rest of the process lets it.
//!
//! Invariant: after `release` the device's queue is looked at once more, whatever it did before: the release is one of
//! its sources.

use rustix::event::{EventfdFlags, eventfd};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

#[derive(Clone)]
pub struct Hold(Arc<Shared>);

struct Shared {
    held: AtomicBool,
    released: OwnedFd,
}

impl Hold {
    pub fn new(held: bool) -> io::Result<Hold> {
        let released = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Hold(Arc::new(Shared { held: held.into(), released })))
    }

    pub fn release(&self) {
        self.0.held.store(false, Ordering::Release);
        // It cannot be full: it counts up to 2^64.
        let _ = rustix::io::write(&self.0.released, &1_u64.to_ne_bytes());
    }

    pub fn is_held(&self) -> bool {
        self.0.held.load(Ordering::Acquire)
    }

    pub(super) fn source(&self) -> RawFd {
        self.0.released.as_raw_fd()
    }
}

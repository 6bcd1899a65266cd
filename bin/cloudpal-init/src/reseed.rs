//! Makes the kernel's random generator draw a new key from what was mixed in.
//!
//! Otherwise it would do so a minute later only, and a snapshot that was copied and woken twice would say the
//! same twice.
//! Invariant: this is the only `unsafe` of init, since no library wraps this ioctl safely.
#![allow(unsafe_code)]

use crate::Fault;
use std::{fs::File, os::fd::AsRawFd};

nix::ioctl_none!(
    /// RNDRESEEDCRNG of linux/random.h.
    rnd_reseed_crng,
    b'R',
    7
);

pub fn renew_key(random: &File) -> Result<(), Fault> {
    // SAFETY: RNDRESEEDCRNG takes no argument and touches no memory of this process; the descriptor is open.
    unsafe { rnd_reseed_crng(random.as_raw_fd()) }?;
    Ok(())
}

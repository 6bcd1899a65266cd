//! The guest's clock and random generator, both made fresh by the host at boot and after every wake.

use crate::{Fault, reseed};
use base64::{Engine, prelude::BASE64_STANDARD};
use nix::{sys::time::TimeSpec, time::ClockId};
use std::{fs::File, io::Write};

pub fn set(wall_us: u64) -> Result<(), Fault> {
    let seconds = i64::try_from(wall_us / 1_000_000)?;
    let nanoseconds = i64::try_from(wall_us % 1_000_000 * 1_000)?;
    nix::time::clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::new(seconds, nanoseconds))?;
    Ok(())
}

/// Mixes the host's entropy in and makes the kernel draw a new key at once.
pub fn reseed(entropy_base64: &str) -> Result<(), Fault> {
    let entropy = BASE64_STANDARD.decode(entropy_base64)?;
    let mut random = File::options().write(true).open("/dev/urandom")?;
    random.write_all(&entropy)?;
    reseed::renew_key(&random)
}

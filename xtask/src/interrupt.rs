//! Ctrl-C asks; whoever waits looks here, and everything is cleaned up on the way out.

use anyhow::{Context, Result, bail};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C and SIGTERM only ask. Said twice, it is said once.
pub fn hold() -> Result<()> {
    static HELD: AtomicBool = AtomicBool::new(false);
    if HELD.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    ctrlc::set_handler(|| ASKED.store(true, Ordering::SeqCst)).context("cannot catch Ctrl-C")
}

pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Looks until there is something, and says how long that took.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<(T, Duration)> {
    let started = Instant::now();
    loop {
        if asked() {
            bail!("interrupted");
        }
        if let Some(found) = look()? {
            return Ok((found, started.elapsed()));
        }
        if started.elapsed() > patience {
            bail!("after {:.0} s still waiting: {what}", patience.as_secs_f64());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

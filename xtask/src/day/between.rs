//! A packet that arrives while the machine is falling asleep is answered, whenever that is.

use super::{APP, Day, TENANT, number};
use anyhow::{Context, Result, ensure};
use std::{
    thread,
    time::{Duration, Instant},
};

/// Spread over the time that falling asleep takes, and a little beyond.
const TIMES: u32 = 10;

pub fn play(day: &mut Day) -> Result<()> {
    let address = day.address("v4")?;
    day.ask_at(address)?;
    let falling = fall_asleep(day)?;
    day.timeline.held("falling asleep when told to", falling, "");

    let boots_before = number(&day.app()?, "boots")?;
    let mut longest = Duration::ZERO;
    for time in 0..TIMES {
        day.ask_at(address)?;
        let offset = falling * 12 / 10 * time / (TIMES - 1);
        let cli = day.cli();
        let reply = thread::scope(|scope| {
            // Refused when the machine is already on its way, which is what is wanted here.
            let sleeper = scope.spawn(move || cli.json(&["machine", "sleep", TENANT, APP]).is_ok());
            thread::sleep(offset);
            let reply = day.ask_at(address);
            sleeper.join().map(|_| reply).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let reply =
            reply.with_context(|| format!("a packet {} ms into falling asleep", offset.as_millis()))?;
        longest = longest.max(reply.first_byte);
    }
    let boots = number(&day.app()?, "boots")?;
    ensure!(boots == boots_before, "the machine booted {} times instead of waking", boots - boots_before);
    let what = format!("{TIMES} packets from its first to after its last moment: longest");
    day.timeline.held(&what, longest, "all answered");
    Ok(())
}

fn fall_asleep(day: &Day) -> Result<Duration> {
    let started = Instant::now();
    day.cli().json(&["machine", "sleep", TENANT, APP])?;
    day.wait_asleep()?;
    Ok(started.elapsed())
}

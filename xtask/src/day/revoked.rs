//! The phone is lost and its device revoked: its next packet gets no answer.

use super::{Day, TENANT};
use crate::world::Attempt;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub fn play(day: &mut Day) -> Result<()> {
    let address = day.address("v4")?;
    day.ask_at(address)?;
    let cli = day.cli();
    day.timeline.time("`device revoke ada phone`", || cli.json(&["device", "revoke", TENANT, "phone"]))?;
    let started = Instant::now();
    let attempt = day.world.phones[0].attempt(address, Duration::from_secs(3))?;
    ensure!(attempt == Attempt::Unanswered, "the revoked phone's packet was answered: {attempt:?}");
    day.timeline.held("its next packet gets no answer", started.elapsed(), "waited 3 s");
    Ok(())
}

//! The daemon is killed without warning: asleep and awake, the phone is answered, and nobody touches it.

use super::{Day, number};
use anyhow::{Result, ensure};
use std::time::Instant;

pub fn play(day: &mut Day) -> Result<()> {
    let address = day.address("v4")?;
    day.wait_asleep()?;
    day.daemon.kill()?;
    let started = Instant::now();
    let ready = day.daemon.launch()?;
    day.timeline.held("asleep: the daemon is killed and started again", ready, "");
    let reply = day.ask_at(address)?;
    day.timeline.held("the phone is answered, counted from the start", started.elapsed(), "the event");
    ensure!(reply.status == 200);
    everything_is_there(day)?;

    let awake = day.daemon.vmm_pids();
    ensure!(awake.len() == 1, "one machine is awake, and there are {} VMM processes", awake.len());
    let boots = number(&day.app()?, "boots")?;
    day.daemon.kill()?;
    let started = Instant::now();
    let ready = day.daemon.launch()?;
    day.timeline.held("awake: the daemon is killed and started again", ready, "");
    day.ask_at(address)?;
    day.timeline.held("the phone is answered, counted from the start", started.elapsed(), "the event");
    let adopted = day.daemon.vmm_pids();
    ensure!(adopted == awake, "the VMM was {awake:?} and is {adopted:?}: it was not taken over");
    ensure!(number(&day.app()?, "boots")? == boots, "the machine was booted again");
    everything_is_there(day)?;
    day.wait_asleep()?;
    Ok(())
}

fn everything_is_there(day: &Day) -> Result<()> {
    let status = day.cli().json(&["status"])?;
    let tenant = &status["tenants"][0];
    let names = [&tenant["name"], &tenant["devices"][0]["name"], &tenant["apps"][0]["name"]];
    ensure!(names == ["ada", "phone", "calendar"], "after the restart the daemon knows of {names:?}");
    Ok(())
}

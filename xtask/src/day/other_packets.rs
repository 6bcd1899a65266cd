//! Whatever the packet is, it wakes the machine and is answered.

use super::{Day, number};
use crate::world::send_udp_to_closed_port;
use anyhow::{Result, ensure};
use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// Nobody listens here; the machine itself refuses.
const CLOSED_PORT: u16 = 5353;

pub fn play(day: &mut Day) -> Result<()> {
    let (v4, v6) = (day.address("v4")?, day.address("v6")?);
    let patience = Duration::from_secs(30);
    wakes(day, "a UDP datagram wakes it, and is answered", "port unreachable", |day| {
        let to = SocketAddr::new(v4.ip(), CLOSED_PORT);
        day.world.phones[0].inside(|| send_udp_to_closed_port(to, patience))?
    })?;
    wakes(day, "a ping wakes it; five pings, none lost", "0% loss", |day| {
        day.world.phones[0].ping(v4.ip(), 5)
    })?;
    wakes(day, "a ping over IPv6 wakes it", "0% loss", |day| day.world.phones[0].ping(v6.ip(), 1))?;
    wakes(day, "a TCP connection over IPv6 wakes it", "the event", |day| day.ask_at(v6).map(drop))
}

fn wakes(day: &mut Day, what: &str, found: &str, send: impl FnOnce(&Day) -> Result<()>) -> Result<()> {
    day.wait_asleep()?;
    let before = number(&day.app()?, "wakes")?;
    let started = Instant::now();
    send(day)?;
    let took = started.elapsed();
    let wakes = number(&day.app()?, "wakes")? - before;
    ensure!(wakes == 1, "{what}: the machine woke {wakes} times");
    day.timeline.held(what, took, found);
    Ok(())
}

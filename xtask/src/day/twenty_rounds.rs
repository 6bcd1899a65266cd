//! Asleep, one call, and the event is there: twenty times, unless fewer are asked for.

use super::{Day, number, percentile, text};
use anyhow::{Result, ensure};
use std::time::Duration;

pub fn play(day: &mut Day) -> Result<()> {
    let rounds = u64::from(day.rounds);
    let address = day.address("v4")?;
    let before = day.app()?;
    let repeated_before = day.world.phones[0].retransmits()?;
    let (mut connected, mut first_byte) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        day.wait_asleep()?;
        let reply = day.ask_at(address)?;
        if round == 1 {
            day.timeline.held(
                "the phone asks again: its first packet wakes the machine",
                reply.first_byte,
                "the event",
            );
        }
        connected.push(reply.connected);
        first_byte.push(reply.first_byte);
    }
    let after = day.app()?;
    ensure!(number(&after, "boots")? == number(&before, "boots")?, "it booted: {}", text(&after, "note")?);
    let wakes = number(&after, "wakes")? - number(&before, "wakes")?;
    ensure!(wakes == rounds, "{rounds} rounds woke the machine {wakes} times");

    let repeated = day.world.phones[0].retransmits()?.0 - repeated_before.0;
    let explained: u64 = connected.iter().map(|took| repeats_of_one_connect(*took)).sum();
    ensure!(
        repeated <= explained,
        "the kernel sent {repeated} segments again, {explained} of them for slow wakes"
    );
    let found = format!("one connect() each; TCP segments sent again: {repeated}");
    day.timeline.held(
        &format!("{rounds} rounds: packet to first byte, p50"),
        percentile(&first_byte, 50),
        found,
    );
    day.timeline.held(
        &format!("{rounds} rounds: packet to first byte, p99"),
        percentile(&first_byte, 99),
        "",
    );
    day.timeline.held(&format!("{rounds} rounds: packet to connection, p50"), percentile(&connected, 50), "");
    let last_us = number(&after, "last_wake_us")?;
    let ours = Duration::from_micros(last_us);
    day.timeline.held("the last round as the daemon saw it: packet to running", ours, "");
    Ok(())
}

/// How often Linux sends the first segment again while a connection takes that long: after 1, 3, 7, ... seconds.
/// Anything
/// beyond that was a lost packet.
fn repeats_of_one_connect(took: Duration) -> u64 {
    (1..=6).filter(|n| took >= Duration::from_secs((1 << n) - 1)).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slow_connections_explain_repeated_segments() {
        let repeats = |ms| repeats_of_one_connect(Duration::from_millis(ms));
        assert_eq!(
            [repeats(999), repeats(1000), repeats(2999), repeats(3000), repeats(7000)],
            [0, 1, 1, 2, 3]
        );
    }
}

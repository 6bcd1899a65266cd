//! The phone finds the app by its name, opens it, and stores an event.

use super::{APP, BOOT_PATIENCE, Day, EVENT, SUMMARY, TENANT, number};
use crate::{interrupt, world::Request};
use anyhow::{Result, ensure};
use std::time::Instant;

/// An iCalendar event (RFC 5545).
fn event() -> String {
    let lines = [
        "BEGIN:VCALENDAR",
        "VERSION:2.0",
        "PRODID:-//CloudPal//a day//EN",
        "BEGIN:VEVENT",
        "UID:dinner@ada.pal",
        "DTSTAMP:20261122T080000Z",
        "DTSTART:20261224T180000Z",
        SUMMARY,
        "END:VEVENT",
        "END:VCALENDAR",
    ];
    lines.join("\r\n") + "\r\n"
}

pub fn play(day: &mut Day) -> Result<()> {
    let (v4, v6) = (day.address("v4")?, day.address("v6")?);
    let name = format!("{APP}.{TENANT}.pal");
    // The very first datagram also carries the WireGuard handshake.
    let started = Instant::now();
    let phone = &day.world.phones[0];
    let (found, _) =
        interrupt::wait_for("the name server answers", BOOT_PATIENCE, || Ok(phone.resolve(&name).ok()))?;
    ensure!(found == (Some(v4.ip()), Some(v6.ip())), "{name} is {found:?}, not {} and {}", v4.ip(), v6.ip());
    day.timeline.held(
        &format!("the phone resolves {name}"),
        started.elapsed(),
        format!("{} {}", v4.ip(), v6.ip()),
    );

    let opened = phone.request(v4, &Request::get("/.web/"))?;
    ensure!(opened.status == 200, "opening the app was answered {}: {}", opened.status, opened.body);
    let boots = number(&day.app()?, "boots")?;
    ensure!(boots == 1, "the machine booted {boots} times for one request");
    day.timeline.held("it opens the app: the machine boots and answers", opened.first_byte, "HTTP 200");

    let phone = &day.world.phones[0];
    let calendar = Request { method: "MKCALENDAR", path: "/ada/calendar/", content_type: "", body: "" };
    let made = phone.request(v4, &calendar)?;
    ensure!(made.status == 201, "MKCALENDAR was answered {}: {}", made.status, made.body);
    let body = event();
    let put =
        Request { method: "PUT", path: EVENT, content_type: "text/calendar; charset=utf-8", body: &body };
    let stored = phone.request(v4, &put)?;
    ensure!(stored.status == 201, "PUT was answered {}: {}", stored.status, stored.body);
    day.timeline.held(
        "it stores an event (MKCALENDAR, PUT)",
        made.first_byte + stored.first_byte,
        "HTTP 201",
    );

    let read = day.ask()?;
    day.timeline.held("it reads the event back", read.first_byte, "HTTP 200");
    Ok(())
}

//! A second tenant with the same addresses runs beside the first, and can reach nothing of it.

use super::{APP, Day, EVENT, PORT, TENANT, number, text};
use crate::world::{Attempt, Phone, Request};
use anyhow::{Result, ensure};
use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

const NEIGHBOUR: &str = "bob";

pub fn play(day: &mut Day) -> Result<()> {
    let cli = day.cli();
    let ada = cli.json(&["tenant", "show", TENANT])?;
    let (subnet, prefix) = (text(&ada, "subnet_v4")?, text(&ada, "prefix_v6")?);
    let conf = day.world.phones[1].conf().to_string_lossy().into_owned();
    day.timeline.time("`tenant add bob` with the same addresses, and his phone", || {
        cli.json(&["tenant", "add", NEIGHBOUR, "--subnet", &subnet, "--prefix", &prefix])?;
        cli.json(&["device", "add", NEIGHBOUR, "phone", "--conf", &conf])?;
        day.world.phones[1].connect()
    })?;

    let (v4, v6) = (day.address("v4")?, day.address("v6")?);
    day.wait_asleep()?;
    let before = number(&day.app()?, "wakes")?;
    let started = Instant::now();
    nobody_answers(&day.world.phones[1], v4)?;
    nobody_answers(&day.world.phones[1], v6)?;
    let foreign = day.world.phones[1].resolve(&format!("{APP}.{TENANT}.pal"));
    ensure!(!foreign.is_ok_and(|found| found.0.is_some()), "bob's name server knows ada's app");
    let wakes = number(&day.app()?, "wakes")? - before;
    ensure!(wakes == 0, "bob's packets woke ada's machine");
    day.timeline.held("his phone calls ada's app: no answer, and it sleeps on", started.elapsed(), "");

    let image = format!("oci:{}", day.image.display());
    let install = ["app", "install", NEIGHBOUR, APP, &image, "--idle", &day.idle, "--memory", "256MiB"];
    day.timeline.time("`app install bob calendar`: the image is there already", || cli.json(&install))?;
    let his = day.app_of(NEIGHBOUR)?;
    ensure!(text(&his, "v4")?.parse::<IpAddr>()? == v4.ip(), "bob's app has another address than ada's");
    let opened = day.world.phones[1].request(SocketAddr::new(v4.ip(), PORT), &Request::get("/.web/"))?;
    ensure!(opened.status == 200, "bob's own app answered {}", opened.status);
    let missing = day.world.phones[1].request(v4, &Request::get(EVENT))?;
    ensure!(missing.status == 404, "bob asked for ada's event and was answered {}", missing.status);
    ensure!(number(&day.app()?, "wakes")? == before, "bob's packets woke ada's machine");
    day.timeline.held("his own app boots at the same address: ada's event is 404", opened.first_byte, "");

    let reply = day.ask_at(v4)?;
    ensure!(number(&day.app()?, "wakes")? == before + 1, "ada's packet did not wake ada's machine");
    day.timeline.held("ada's phone reaches only hers", reply.first_byte, "the event");
    Ok(())
}

/// A refusal by the host's own network is no answer of the app, but a connection is.
fn nobody_answers(phone: &Phone, to: SocketAddr) -> Result<()> {
    let attempt = phone.attempt(to, Duration::from_secs(2))?;
    ensure!(attempt != Attempt::Connected, "bob's phone reached {to}");
    Ok(())
}

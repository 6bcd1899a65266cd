//! A photo goes from the tenant's drive to the phone, and one comes back: the phone runs the JavaScript Hyperdrive, and
//! all of it goes through the tunnel.

use super::{Day, TENANT, number, text};
use crate::{interrupt, shell};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    time::{Duration, Instant},
};

const PHOTO_BYTES: u32 = 3_000_017;
/// For the phone's drive, of which nothing is known here but its key.
const PATIENCE: Duration = Duration::from_secs(60);

/// Longer than a block and a piece of anything, and the same nowhere twice.
fn photo(salt: u32) -> Vec<u8> {
    (0..PHOTO_BYTES.div_ceil(4))
        .flat_map(|at| (at ^ salt).wrapping_mul(2_654_435_761).to_le_bytes())
        .take(PHOTO_BYTES as usize)
        .collect()
}

pub fn play(day: &mut Day) -> Result<()> {
    let Some(golden) = day.javascript.clone() else {
        println!(
            "  SKIPPED: the JavaScript Hyperdrive is not installed here, so no phone of that kind calls"
        );
        return Ok(());
    };
    let cli = day.cli();
    day.wait_asleep()?;
    let wakes = number(&day.app()?, "wakes")?;
    let path = |name: &str| day.world.files.path(name).to_string_lossy().into_owned();
    let (cat, got, dog, kept) = (path("cat.jpg"), path("got.jpg"), path("dog.jpg"), path("kept.jpg"));
    let log = day.world.files.path("drive-peer.log");
    fs::write(&cat, photo(0))?;
    fs::write(&dog, photo(1))?;

    day.timeline.time("`drive create ada photos`, `drive put ada photos cat.jpg`", || {
        cli.json(&["drive", "create", TENANT, "photos"])?;
        cli.json(&["drive", "put", TENANT, "photos", &cat, "/cat.jpg"]).map(drop)
    })?;
    let share = cli.json(&["drive", "share", TENANT, "photos"])?;
    // By its name: the phone asks the tenant's name server.
    let (host, port) = share["addresses"][0]
        .as_str()
        .and_then(|address| address.rsplit_once(':'))
        .with_context(|| format!("`drive share` names no address: {share}"))?;

    let started = Instant::now();
    let mut peer = day.world.phones[0].drive_peer(&golden, &[host, port, &text(&share, "key")?], log)?;
    peer.ask(&format!("get /cat.jpg {got}"))?;
    ensure!(fs::read(&got)? == photo(0), "the phone's copy of cat.jpg is not the photo that was put");
    let found = format!("{PHOTO_BYTES} bytes, the same");
    day.timeline.held(
        &format!("the phone's Hyperdrive gets it from {host}:{port}"),
        started.elapsed(),
        &found,
    );

    peer.ask(&format!("put {dog} /dog.jpg"))?;
    let key = text(&peer.ask("own")?, "key")?;
    let started = Instant::now();
    cli.json(&["drive", "seed", TENANT, "phone-photos", &key])?;
    let (said, _) = interrupt::wait_for("`drive get` finds the phone's photo", PATIENCE, || {
        Ok(cli.try_text(&["drive", "get", TENANT, "phone-photos", "/dog.jpg", &kept]))
    })
    .with_context(|| format!("the phone's drive is {key}"))?;
    ensure!(said.is_empty(), "`drive get` to a file printed {said:?}");
    ensure!(fs::read(&kept)? == photo(1), "what `drive get` wrote is not the photo that the phone put");
    day.timeline.held("one comes back: `drive seed`, then `drive get`", started.elapsed(), &found);
    drop(peer);

    let now = number(&day.app()?, "wakes")?;
    ensure!(now == wakes, "photos are none of the app's business, and woke it {} times", now - wakes);
    let verified = shell::output(&mut cli.command(&["--json", "drive", "verify", TENANT, "phone-photos"]))
        .context("the phone's drive, as it is kept here, does not verify")?;
    ensure!(verified.contains("\"damaged\": []"), "`drive verify` found damage: {verified}");
    Ok(())
}

//! `cargo xtask up --check`: the owner's day in a world of its own, from nothing, and nothing is left of it.

use crate::{
    daemon::{Daemon, Settings},
    day::{Day, Timeline},
    guest, interrupt,
    programs::{self, Profile},
    radicale, setup,
    world::{DATA_CENTER, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{fs, path::Path};

/// Everything built and a day that can begin: the daemon runs and knows nothing yet.
pub fn dawn(profile: Profile, idle: &'static str) -> Result<Day> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this makes network namespaces and needs root: run it with sudo"
    );
    setup::run(setup::For::Test)?;
    let programs = programs::build(profile)?;
    let guest = guest::build(&guest::default_dir())?;
    println!("guest: Linux {} from Debian, {}", guest.kernel_version, guest.dir.display());
    let image = radicale::build()?;
    let world = World::build().context("cannot make the world of network namespaces")?;
    let settings = Settings {
        state_dir: world.files.path("state"),
        run_dir: world.files.path("run"),
        guest_dir: guest.dir,
        endpoint: DATA_CENTER.to_owned(),
        instance: format!("cd{}", std::process::id()),
        log: world.files.path("cloudpald.log"),
        more: Vec::new(),
        network: Some(world.dc.file()),
    };
    let timeline = Timeline::start();
    let daemon = Daemon::start(settings, programs)?;
    Ok(Day { daemon, world, image, idle, timeline })
}

/// Plays the day. `json`: where to keep the timeline. `keep`: leave the files for a look.
pub fn run(profile: Profile, json: Option<&Path>, keep: bool) -> Result<()> {
    interrupt::hold()?;
    let mut day = dawn(profile, "1s")?;
    day.world.files.keep = keep;
    println!("\nThe owner's day");
    let played = day.play();
    if played.is_err() {
        eprintln!("\nthe last lines of the daemon's log:\n{}", day.daemon.log_tail(40));
    }
    let timeline = json!({"held": played.is_ok(), "timeline": day.timeline.lines});
    night(day);
    if let Some(file) = json {
        fs::write(file, serde_json::to_string_pretty(&timeline)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    played?;
    println!("\nEvery step held.");
    Ok(())
}

/// Ends the daemon and its world, and removes what the daemon leaves for its successor.
pub fn night(mut day: Day) {
    if let Err(error) = day.daemon.stop() {
        eprintln!("{error:#}");
    }
    day.daemon.remove_traces();
}

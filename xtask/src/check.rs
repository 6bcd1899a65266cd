//! `cargo xtask up --check`: the owner's day in a world of its own, from nothing, and nothing is left of it.

use crate::{
    daemon::{Daemon, Settings},
    day::{Day, Timeline},
    guest, interrupt, peers,
    programs::{self, Profile, Programs},
    radicale, setup,
    world::{DATA_CENTER, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Where everything is that a day needs.
pub struct Parts {
    programs: Programs,
    guest_dir: PathBuf,
    image: PathBuf,
    /// Where the JavaScript Hypercore stack is installed, if it is.
    javascript: Option<PathBuf>,
}

/// How the day is played.
pub struct Play<'a> {
    /// More arguments of the daemon.
    pub more: &'a [String],
    /// How often the app is woken in a row.
    pub rounds: u32,
    /// After how long without packets the app falls asleep.
    pub idle: &'a str,
    /// Where to keep the timeline.
    pub json: Option<&'a Path>,
    /// Leave the files for a look.
    pub keep: bool,
}

impl Default for Play<'_> {
    fn default() -> Self {
        Play { more: &[], rounds: 20, idle: "1s", json: None, keep: false }
    }
}

impl Parts {
    /// Installs, builds and makes what is not there yet.
    pub fn build(profile: Profile) -> Result<Parts> {
        setup::run(setup::For::Test)?;
        let programs = programs::build(profile)?;
        let guest = guest::build(&guest::default_dir())?;
        println!("guest: Linux {} from Debian, {}", guest.kernel_version, guest.dir.display());
        peers::install()?;
        let (image, javascript) = (radicale::build()?, peers::installed_in(&peers::dir()));
        Ok(Parts { programs, guest_dir: guest.dir, image, javascript })
    }

    /// What was built elsewhere: the programs, `guest/`, `radicale/` and, if it is there, `golden/`.
    pub fn built(dir: &Path) -> Parts {
        let (guest_dir, image) = (dir.join("guest"), dir.join("radicale"));
        let javascript = peers::installed_in(&dir.join("golden"));
        Parts { programs: programs::in_dir(dir), guest_dir, image, javascript }
    }
}

/// A day that can begin: the daemon, with these arguments more, runs and knows nothing yet.
pub fn dawn(parts: Parts, idle: &str, more: &[String]) -> Result<Day> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this makes network namespaces and needs root: run it with sudo"
    );
    let Parts { programs, guest_dir, image, javascript } = parts;
    let world = World::build().context("cannot make the world of network namespaces")?;
    let settings = Settings {
        state_dir: world.files.path("state"),
        run_dir: world.files.path("run"),
        guest_dir,
        endpoint: DATA_CENTER.to_owned(),
        instance: format!("cd{}", std::process::id()),
        log: world.files.path("cloudpald.log"),
        more: more.to_vec(),
        network: Some(world.dc.file()),
    };
    let timeline = Timeline::start();
    let daemon = Daemon::start(settings, programs)?;
    Ok(Day { daemon, world, image, javascript, idle: idle.to_owned(), rounds: 20, timeline })
}

/// Plays the day.
pub fn run(parts: Parts, play: &Play) -> Result<()> {
    interrupt::hold()?;
    let mut day = dawn(parts, play.idle, play.more)?;
    (day.world.files.keep, day.rounds) = (play.keep, play.rounds);
    println!("\nThe owner's day");
    let played = day.play();
    if played.is_err() {
        eprintln!("\nthe last lines of the daemon's log:\n{}", day.daemon.log_tail(40));
    }
    let timeline = json!({"held": played.is_ok(), "timeline": day.timeline.lines});
    night(day);
    if let Some(file) = play.json {
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

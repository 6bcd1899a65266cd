//! `cargo xtask bench wake`: how long the owner waits, and whose time it is. `cargo xtask bench vmm`: see `vmm.rs`.
//!
//! Absolute times mean little under software emulation, so each is printed beside a peer measured on the same
//! machine in the same run, and the accelerator is named.

mod data;
mod data_databases;
mod data_replication;
mod plain_vmm;
pub mod table;
mod vmm;

use crate::{
    check,
    day::{APP, Day, TENANT, number, percentile},
    guest, interrupt,
    programs::Profile,
    world::Request,
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};
use table::Row;

#[derive(clap::Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// From the phone's packet to the app's first byte.
    Wake(Wake),
    /// Bees and drives, ours and those of the JavaScript stack.
    Databases(data_databases::Options),
    /// The cores of a store, ours and those of the JavaScript stack.
    Data(data::Options),
    /// Whole cores over TCP, between ours and the JavaScript stack.
    Replication(data_replication::Options),
    /// The embedded VMM alone, with its tiny guest: wakes, clones and memory.
    Vmm(vmm::Options),
}

#[derive(clap::Args)]
struct Wake {
    /// How often the app is put to sleep and woken.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(3..))]
    rounds: u32,
    /// Keep the figures in this file, too.
    #[arg(long, value_name = "FILE", default_value = "target/bench-wake.json")]
    json: PathBuf,
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
}

pub fn run(options: &Options) -> Result<()> {
    match &options.what {
        What::Wake(options) => wake(options),
        What::Databases(options) => data_databases::run(options),
        What::Data(options) => data::run(options),
        What::Replication(options) => data_replication::run(options),
        What::Vmm(options) => vmm::run(options),
    }
}

fn wake(wake: &Wake) -> Result<()> {
    interrupt::hold()?;
    // It is put to sleep by command, and must not fall asleep in between.
    let mut day = check::dawn(check::Parts::build(wake.profile)?, "never", &[])?;
    println!("\nGetting ready");
    let measured = measure(&mut day, wake.rounds);
    if measured.is_err() {
        eprintln!("\nthe last lines of the daemon's log:\n{}", day.daemon.log_tail(40));
    }
    check::night(day);
    let (accelerator, rows) = measured?;
    println!("\n{} rounds; {accelerator}\n", wake.rounds);
    table::print(&rows);
    let kept = json!({"bench": "wake", "rounds": wake.rounds, "accelerator": accelerator, "rows": rows});
    fs::write(&wake.json, serde_json::to_string_pretty(&kept)? + "\n")
        .with_context(|| format!("cannot write {}", wake.json.display()))?;
    println!("\nkept in {}", wake.json.display());
    Ok(())
}

fn measure(day: &mut Day, rounds: u32) -> Result<(String, Vec<Row>)> {
    day.set_up()?;
    let accelerator = accelerator(day)?;
    let wakes = wakes(day, rounds)?;
    let boots = boots(day)?;
    day.cli().json(&["machine", "sleep", TENANT, APP])?;
    day.wait_asleep()?;
    println!("  measuring the peer: the same VMM's restore alone");
    let socket_dir = day.world.files.path("peer");
    let peer = plain_vmm::restores(&guest::default_dir(), &socket_dir, rounds.min(10))?;
    let mut rows = rows(&wakes, &boots, &peer);
    rows.push(sleeping_memory()?);
    Ok((accelerator, rows))
}

/// What the control loop keeps of each of a thousand sleeping apps, in the simulated data center.
fn sleeping_memory() -> Result<Row> {
    const APPS: u32 = 1000;
    let resident_kib = || -> Result<f64> {
        let status = fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    let before = resident_kib()?;
    let household = sim::household(APPS as usize)?;
    let grown = resident_kib()? - before;
    ensure!(household.apps_and_sleeping() == (1000, 1000), "not all simulated apps are asleep");
    Ok(Row::new("memory per sleeping app, of 1,000 in sim", grown / f64::from(APPS), "KiB").at_most(16.0))
}

#[derive(Default)]
struct Wakes {
    awake: Vec<Duration>,
    falling: Vec<Duration>,
    connected: Vec<Duration>,
    first_byte: Vec<Duration>,
    /// As the daemon saw it: from the packet to the guest running.
    running: Vec<Duration>,
}

fn wakes(day: &Day, rounds: u32) -> Result<Wakes> {
    let address = day.address("v4")?;
    let mut wakes = Wakes::default();
    for round in 1..=rounds {
        let started = Instant::now();
        day.cli().json(&["machine", "sleep", TENANT, APP])?;
        day.wait_asleep()?;
        wakes.falling.push(started.elapsed());
        let reply = day.ask_at(address)?;
        wakes.connected.push(reply.connected);
        wakes.first_byte.push(reply.first_byte);
        wakes.running.push(Duration::from_micros(number(&day.app()?, "last_wake_us")?));
        wakes.awake.push(day.ask_at(address)?.first_byte);
        if round % 10 == 0 {
            println!("  {round} of {rounds} rounds");
        }
    }
    Ok(wakes)
}

/// The packet is there before the machine is: it waits for the boot.
fn boots(day: &Day) -> Result<Vec<Duration>> {
    let (address, cli) = (day.address("v4")?, day.cli());
    let mut boots = Vec::new();
    for _ in 0..3 {
        cli.json(&["machine", "stop", TENANT, APP])?;
        let stopped = || Ok((day.app()?["state"] == "stopped").then_some(()));
        interrupt::wait_for("the machine stops", Duration::from_secs(30), stopped)?;
        let cli = cli.clone();
        let started = Instant::now();
        let reply = thread::scope(|scope| {
            let starter = scope.spawn(move || cli.json(&["machine", "start", TENANT, APP]).is_ok());
            let reply = day.world.phones[0].request(address, &Request::get("/.web/"));
            starter.join().map(|_| reply).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        ensure!(reply.status == 200, "the booted app answered {}", reply.status);
        boots.push(started.elapsed());
    }
    Ok(boots)
}

fn accelerator(day: &Day) -> Result<String> {
    let doctor = day.cli().json(&["doctor"])?;
    let checks = doctor["checks"].as_array().cloned().unwrap_or_default();
    let about = checks.iter().find(|check| {
        let found = check["found"].as_str().unwrap_or_default().to_lowercase();
        ["tcg", "kvm"].iter().any(|accelerator| found.contains(accelerator))
    });
    let found = about.and_then(|check| check["found"].as_str()).context("doctor names no accelerator")?;
    Ok(found.to_owned())
}

fn rows(wakes: &Wakes, boots: &[Duration], peer: &[Duration]) -> Vec<Row> {
    let restore = percentile(peer, 50);
    let (first_byte, running) = (&wakes.first_byte, &wakes.running);
    let against = "plain qemu: restore alone, p50";
    let awake = percentile(&wakes.awake, 50);
    let ours = percentile(running, 50).saturating_sub(restore);
    let guests = percentile(first_byte, 50).saturating_sub(percentile(running, 50));
    vec![
        Row::ms("packet to first byte, asleep, p50", percentile(first_byte, 50))
            .peer(against, restore)
            .target_ms(1000),
        Row::ms("packet to first byte, asleep, p99", percentile(first_byte, 99))
            .peer(against, restore)
            .target_ms(3000),
        Row::ms("packet to connection, asleep, p50", percentile(&wakes.connected, 50)).peer(against, restore),
        Row::ms("packet to guest running, p50", percentile(running, 50)).peer(against, restore),
        Row::ms("  of it ours (running, less the peer's restore)", ours)
            .peer(against, restore)
            .target_ms(100),
        Row::ms("  guest running to first byte, p50", guests).peer("the same request, awake, p50", awake),
        Row::ms("request to first byte, awake, p50", awake),
        Row::ms("boot to first byte, p50", percentile(boots, 50)).target_ms(30_000),
        Row::ms("time to fall asleep, p50", percentile(&wakes.falling, 50)).target_ms(5000),
        Row::ms("time to fall asleep, p99", percentile(&wakes.falling, 99)),
    ]
}

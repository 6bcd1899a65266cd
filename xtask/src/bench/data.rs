//! `cargo xtask bench data`: the cores of a store beside those of the JavaScript stack, the same work on the same disk,
//! interleaved, medians over the rounds; then what ten thousand cores cost, and how cost grows with the blocks.
//!
//! A JavaScript append is signed at once and not synced. Ours is buffered in the same way where it is not called
//! synced, and is signed at the next sync, for what is not on the disk is not signed.

use super::table::{self, Row};
use crate::{paths, peers, shell};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

#[derive(clap::Args)]
pub struct Options {
    /// How often each side works.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The largest core whose growth is measured, as a power of ten.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(4..=8))]
    grow: u32,
    /// Keep the figures in this file, too.
    #[arg(long, value_name = "FILE", default_value = "target/bench-data.json")]
    json: PathBuf,
}

/// What we measure, what of the JavaScript stack stands beside it, and the ratio that is wanted.
const WORKS: [(&str, &str, f64); 7] = [
    ("append single", "append single", 5.0),
    ("append synced", "append single", 1.0),
    ("append synced, 8 writers", "append single", 1.0),
    ("append batch 100", "append batch 100", 5.0),
    ("append batch 1000", "append batch 1000", 5.0),
    ("get serial", "get serial", 5.0),
    ("get 64", "get 64", 5.0),
];
const CORES: &str = "10000";
const MAX_KIB: f64 = 4.0;
const MAX_DESCRIPTORS: f64 = 40.0;

pub fn run(options: &Options) -> Result<()> {
    peers::install()?;
    println!("building our side");
    shell::run(&mut shell::cargo(&["build", "--release", "-p", "cloudpal-host", "--example", "data_bench"]))?;
    let ours = paths::target().join("release/examples/data_bench");
    let ours = ours.to_str().context("the path of the working tree is no text")?;
    let work = paths::target().join("bench-data");
    let (mut of_ours, mut of_theirs) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        of_theirs.push(measured("node", &["bench.js"], &work, &[])?);
        of_ours.push(measured(ours, &[], &work, &["1"])?);
        println!("  {round} of {} rounds", options.rounds);
    }
    let mut rows = beside(&of_ours, &of_theirs)?;
    rows.extend(ten_thousand(ours, &work)?);
    rows.extend(growth(ours, &work, options.grow)?);
    println!("\n{} rounds, medians, interleaved\n", options.rounds);
    table::print(&rows);
    let kept = json!({"bench": "data", "rounds": options.rounds, "rows": rows});
    fs::write(&options.json, serde_json::to_string_pretty(&kept)? + "\n")
        .with_context(|| format!("cannot write {}", options.json.display()))?;
    println!("\nkept in {}", options.json.display());
    Ok(())
}

fn fresh(work: &Path) -> Result<()> {
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    fs::create_dir_all(work).with_context(|| format!("cannot make {}", work.display()))
}

/// Runs a program on a fresh directory, and reads the line that it prints.
fn measured(program: &str, before: &[&str], work: &Path, after: &[&str]) -> Result<Value> {
    fresh(work)?;
    let told = told(program, before, work, after);
    fs::remove_dir_all(work)?;
    told
}

fn told(program: &str, before: &[&str], work: &Path, after: &[&str]) -> Result<Value> {
    let mut command = shell::command(program, before);
    command.arg(work).args(after).current_dir(paths::root().join("core/data/golden"));
    let line = shell::output(&mut command)?;
    serde_json::from_str(&line).with_context(|| format!("{program} tells no figures"))
}

fn figure(told: &Value, name: &str) -> Result<f64> {
    told[name].as_f64().with_context(|| format!("no figure for {name}"))
}

fn median(of: &[Value], name: &str) -> Result<f64> {
    let mut all = of.iter().map(|round| figure(round, name)).collect::<Result<Vec<_>>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all.get(all.len() / 2).copied().unwrap_or(0.0))
}

fn beside(of_ours: &[Value], of_theirs: &[Value]) -> Result<Vec<Row>> {
    let row = |(name, peer, target): (&str, &str, f64)| {
        let (ours, theirs) = (median(of_ours, name)?, median(of_theirs, peer)?);
        let mut row = Row::new(&format!("{name}, 100 B"), ours, "/s");
        let ratio = (ours / theirs * 100.0).round() / 100.0;
        row.peer = Some(format!("JavaScript, {peer}; target is the ratio, {target}"));
        row.peer_value = Some((theirs * 100.0).round() / 100.0);
        (row.ratio, row.target, row.met) = (Some(ratio), Some(target), Some(ratio >= target));
        Ok(row)
    };
    WORKS.into_iter().map(row).collect()
}

fn ten_thousand(ours: &str, work: &Path) -> Result<Vec<Row>> {
    println!("  ten thousand cores");
    fresh(work)?;
    let made = told(ours, &[], work, &["cores", CORES])?;
    let idle = told(ours, &[], work, &["idle", CORES])?;
    fs::remove_dir_all(work)?;
    let open_kib = figure(&idle, "KiB per open core")?;
    Ok(vec![
        Row::new("10,000 cores: appends spread over them", figure(&made, "spread appends")?, "/s"),
        Row::new("10,000 cores: open the store", figure(&idle, "open ms")?, "ms"),
        Row::new("10,000 cores: open each to write", figure(&idle, "open all ms")?, "ms"),
        Row::new("memory per closed core", figure(&idle, "KiB per closed core")?, "KiB").at_most(1.0),
        Row::new("memory per open core", open_kib, "KiB").at_most(MAX_KIB),
        Row::new("descriptors", figure(&made, "descriptors")?, "").at_most(MAX_DESCRIPTORS),
    ])
}

fn growth(ours: &str, work: &Path, most: u32) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for power in 4..=most {
        println!("  a core of 10^{power} blocks");
        let grown = measured(ours, &[], work, &["grow", &10u64.pow(power).to_string()])?;
        let of = |what: &str| format!("10^{power} blocks: {what}");
        rows.push(Row::new(&of("append, batches of 1,000"), figure(&grown, "appends")?, "/s"));
        rows.push(Row::new(&of("get, scattered"), figure(&grown, "gets")?, "/s"));
        rows.push(Row::new(&of("reopen and get"), figure(&grown, "reopen ms")?, "ms"));
        rows.push(Row::new(&of("bytes on disk per byte"), figure(&grown, "disk bytes per byte")?, ""));
        rows.push(Row::new(&of("resident"), figure(&grown, "resident KiB")? / 1024.0, "MiB"));
    }
    Ok(rows)
}

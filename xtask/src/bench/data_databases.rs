//! `cargo xtask bench databases`: bees and drives on a store of ours beside those of the JavaScript stack on its own,
//! and LevelDB beside the bees: the same work on the same disk, interleaved, medians over the rounds. Neither syncs.

use super::table::{self, Row};
use crate::{paths, peers, shell};
use anyhow::{Context, Result, bail};
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
    /// Keep the figures in this file, too.
    #[arg(long, value_name = "FILE", default_value = "target/bench-databases.json")]
    json: PathBuf,
}

/// What both measure, the ratio that is wanted, and which figure of LevelDB stands beside it.
const WORKS: [(&str, f64, Option<&str>); 8] = [
    ("bee put", 10.0, Some("level put")),
    ("bee batch of 1,000", 10.0, Some("level batch of 1,000")),
    ("bee get", 10.0, Some("level get")),
    ("bee iterate", 10.0, Some("level iterate")),
    ("drive write, MB/s", 1.5, None),
    ("drive read, MB/s", 1.5, None),
    ("4 KiB files put", 5.0, None),
    ("4 KiB files get", 5.0, None),
];

pub fn run(options: &Options) -> Result<()> {
    peers::install()?;
    println!("building our side");
    shell::run(&mut shell::cargo(&[
        "build",
        "--release",
        "-p",
        "cloudpal-host",
        "--example",
        "data_databases",
    ]))?;
    let ours = paths::target().join("release/examples/data_databases");
    let ours = ours.to_str().context("the path of the working tree is no text")?;
    let golden = paths::root().join("core/data/golden");
    let work = paths::target().join("bench-databases");
    let (mut of_ours, mut of_theirs) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        of_theirs.push(measured("node", &["bench-databases.js"], &golden, &work)?);
        of_ours.push(measured(ours, &[], &golden, &work)?);
        println!("  {round} of {} rounds", options.rounds);
    }
    let rows = rows(&of_ours, &of_theirs)?;
    println!("\n{} rounds, medians, interleaved\n", options.rounds);
    table::print(&rows);
    let kept = json!({"bench": "databases", "rounds": options.rounds, "rows": rows});
    fs::write(&options.json, serde_json::to_string_pretty(&kept)? + "\n")
        .with_context(|| format!("cannot write {}", options.json.display()))?;
    println!("\nkept in {}", options.json.display());
    Ok(())
}

/// Runs a program in a fresh directory, and reads the line that it prints.
fn measured(program: &str, arguments: &[&str], dir: &Path, work: &Path) -> Result<Value> {
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| format!("cannot remove {}", work.display()))?;
    }
    fs::create_dir_all(work).with_context(|| format!("cannot make {}", work.display()))?;
    let mut command = shell::command(program, arguments);
    let output =
        command.arg(work).current_dir(dir).output().with_context(|| format!("cannot start {program}"))?;
    fs::remove_dir_all(work)?;
    if !output.status.success() {
        let (told, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{program} has failed: {told}{errors}");
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{program} tells no figures"))
}

fn median(of: &[Value], name: &str) -> Result<f64> {
    let figure = |round: &Value| round[name].as_f64().with_context(|| format!("no figure for {name}"));
    let mut all = of.iter().map(figure).collect::<Result<Vec<_>>>()?;
    all.sort_by(f64::total_cmp);
    Ok(all.get(all.len() / 2).copied().unwrap_or(0.0))
}

fn rows(of_ours: &[Value], of_theirs: &[Value]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (name, target, level) in WORKS {
        let (ours, theirs) = (median(of_ours, name)?, median(of_theirs, name)?);
        let mut peer = format!("JavaScript; target is the ratio, {target}");
        if let Some(level) = level {
            peer += &format!("; LevelDB {:.0}", median(of_theirs, level)?);
        }
        let mut row = Row::new(name, ours, "/s");
        let ratio = (ours / theirs * 100.0).round() / 100.0;
        row.peer = Some(peer);
        row.peer_value = Some((theirs * 100.0).round() / 100.0);
        (row.ratio, row.target, row.met) = (Some(ratio), Some(target), Some(ratio >= target));
        rows.push(row);
    }
    Ok(rows)
}

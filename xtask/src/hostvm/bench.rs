//! `cargo xtask hostvm bench`: the VMMs beside each other, on the host VM's KVM.
//!
//! The samples come from the test program `vmm_bench`, which lets the VMMs take turns: `figure VMM WHAT MICROSECONDS`.
//! Absolute times say little, since the host's own instructions are emulated; ratios within one run do.

use super::{
    Brought, image,
    job::{Job, Suite},
    machine,
};
use crate::{
    bench::table::{self, Row},
    day::percentile,
    interrupt,
    programs::{self, Profile},
    setup,
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

pub const SUITE: Suite = Suite { package: "cloudpal-host", name: "vmm_bench" };

const PATIENCE: Duration = Duration::from_secs(3600);
const END: &str = "hostvm: the measurement ended with ";

#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    brought: Brought,
    /// Boots of each VMM; each is put to sleep and woken three times.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Keep the figures in this file, too.
    #[arg(long, value_name = "FILE", default_value = "target/bench-hostvm.json")]
    json: PathBuf,
}

type Samples = BTreeMap<(String, String), Vec<Duration>>;

pub fn run(options: &Options) -> Result<()> {
    interrupt::hold()?;
    setup::run(setup::For::Test)?;
    let host = image::build()?;
    let mut job = Job::begin()?;
    job.add_build()?;
    // As it is for production: Firecracker's is, too.
    job.add_vmm(&programs::static_vmm()?)?;
    job.add_tests(&[SUITE], Profile::Release)?;
    job.add_brought(&options.brought)?;
    if options.brought.firecracker.is_none() {
        println!("skipped: no --firecracker; QEMU alone is the peer");
    }
    let rounds = options.rounds;
    let script = format!(
        "CLOUDPAL_BENCH_ROUNDS={rounds} /job/tests/{} --nocapture --test-threads=1 2>&1\necho \"{END}$?\"\n",
        SUITE.name
    );
    let disk = job.finish(&script)?;
    let (mut samples, mut about, mut end) = (Samples::new(), Vec::new(), None);
    machine::Command::new(&host, &disk)?.listen(PATIENCE, |line| {
        println!("  hostvm| {line}");
        hear(line, &mut samples);
        about.extend(line.strip_prefix("contender ").map(str::to_owned));
        end = end.take().or_else(|| line.strip_prefix(END).map(str::to_owned));
    })?;
    ensure!(end.as_deref() == Some("0"), "the measurement did not end well; what it said is above");
    let rows = rows(&samples)?;
    println!("\n{rounds} rounds; {}\n", about.join("; "));
    table::print(&rows);
    let micros = |list: &Vec<Duration>| list.iter().map(Duration::as_micros).collect::<Vec<_>>();
    let raw: BTreeMap<String, Vec<u128>> =
        samples.iter().map(|((vmm, what), list)| (format!("{vmm} {what}"), micros(list))).collect();
    let kept =
        json!({"bench": "hostvm", "rounds": rounds, "contenders": about, "rows": rows, "samples_us": raw});
    fs::write(&options.json, serde_json::to_string_pretty(&kept)? + "\n")
        .with_context(|| format!("cannot write {}", options.json.display()))?;
    println!("\nkept in {}", options.json.display());
    Ok(())
}

fn hear(line: &str, samples: &mut Samples) {
    // The test's name stands before what it says first.
    let Some((_, figure)) = line.split_once("figure ") else { return };
    let mut words = figure.split(' ');
    if let (Some(vmm), Some(what), Some(Ok(us))) = (words.next(), words.next(), words.next().map(str::parse))
    {
        samples.entry((vmm.into(), what.into())).or_default().push(Duration::from_micros(us));
    }
}

/// Ours without spare VMMs: its wake may take so much of Firecracker's.
const WITHOUT_POOL: (&str, f64) = ("embedded-without-pool", 0.7);

/// What is measured, its name, and the most that ours may take of Firecracker's.
const FIGURES: [(&str, &str, Option<f64>); 9] = [
    ("boot", "boot: request to the app listening", Some(0.8)),
    ("guest", "of it: the guest's own work, its uptime when it is up", None),
    ("sleep", "asleep: request to a durable snapshot", Some(0.7)),
    ("wake", "wake: request to the guest's first words", Some(0.35)),
    ("again", "a later wake: request to the guest's first words", Some(0.35)),
    ("packet", "packet to the whole HTTP answer, from asleep", None),
    ("cold", "packet to the whole HTTP answer, with the snapshot on the disk only", None),
    ("disk", "32 MiB written to the disk", Some(1.0)),
    ("network", "32 MiB sent over the network", Some(1.0)),
];

fn rows(samples: &Samples) -> Result<Vec<Row>> {
    let of = |vmm: &str, what: &str| samples.get(&(vmm.to_owned(), what.to_owned()));
    let mut rows = Vec::new();
    for (what, name, target) in FIGURES {
        for vmm in ["embedded", WITHOUT_POOL.0, "firecracker", "qemu"] {
            let Some(list) = of(vmm, what) else { continue };
            for (shown, percent) in [("p50", 50), ("p99", 99)] {
                let mut row = Row::ms(&format!("{name}, {vmm}, {shown}"), percentile(list, percent));
                let peer = of("firecracker", what).filter(|_| vmm != "firecracker");
                if let Some(peer) = peer {
                    row = row.peer(&format!("firecracker, {shown}"), percentile(peer, percent));
                }
                let target = match (vmm, what) {
                    ("embedded", _) => target,
                    (vmm, "wake" | "again") if vmm == WITHOUT_POOL.0 => Some(WITHOUT_POOL.1),
                    _ => None,
                };
                if let (Some(target), 50) = (target, percent) {
                    row = row.at_most_of_peer(target);
                }
                rows.push(row);
            }
        }
    }
    if let (Some(advised), Some(unadvised)) = (of("embedded", "cold"), of("embedded", "cold-unadvised")) {
        let name = "the same with what it used the last time read ahead, embedded, p50";
        let peer = percentile(unadvised, 50);
        rows.push(Row::ms(name, percentile(advised, 50)).peer("embedded, nothing read ahead, p50", peer));
    }
    ensure!(!rows.is_empty(), "nothing was measured");
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_become_rows_beside_firecrackers() {
        let mut samples = Samples::new();
        for line in ["figure firecracker wake 400000", "test measure ... figure embedded wake 100000", "x"] {
            hear(line, &mut samples);
        }
        let rows = rows(&samples).expect("rows");
        let ours = rows.iter().find(|row| row.name.contains("embedded, p50")).expect("ours");
        assert_eq!(
            (ours.value, ours.ratio, ours.target, ours.met),
            (100.0, Some(0.25), Some(0.35), Some(true))
        );
        assert!(super::rows(&Samples::new()).is_err());
    }
}

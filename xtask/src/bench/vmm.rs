//! `cargo xtask bench vmm`: the embedded VMM with its tiny guest, on this host's /dev/kvm.
//!
//! A wake goes the daemon's way: from the ask over the channel of a jailed process that waits, to the first word of
//! its guest on the console. Beside it stands the same wake without process and jail, and where its time goes. The
//! peer is the boot of the same guest in the same rounds. The samples come from `cloudpal-vmm measure`, in which the
//! kinds take turns.

use super::table::{self, Row};
use crate::{day::percentile, interrupt, paths, programs, shell};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

#[derive(clap::Args)]
pub struct Options {
    /// How often each kind of wake is measured, at each size.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(3..))]
    rounds: u32,
    /// How many machines are woken from one snapshot.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clones: u32,
    /// Keep the figures in this file, too.
    #[arg(long, value_name = "FILE", default_value = "target/bench-vmm.json")]
    json: PathBuf,
}

const SIZES: &str = "128,1024";

pub fn run(options: &Options) -> Result<()> {
    interrupt::hold()?;
    if !Path::new("/dev/kvm").exists() {
        println!("SKIPPED: there is no /dev/kvm here, and the embedded VMM runs on nothing else");
        return Ok(());
    }
    println!("build: cloudpal-vmm (Release)");
    let program = programs::static_vmm()?.to_string_lossy().into_owned();
    let dir = paths::target().join(format!("bench-vmm-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    // A file system in memory, as the daemon's run directory is on any host with systemd.
    let sockets_dir = Path::new("/dev/shm").join(format!("cloudpal-bench-{}", std::process::id()));
    fs::create_dir_all(&sockets_dir)?;
    let measured = measure(options, &program, &dir, &sockets_dir);
    fs::remove_dir_all(&sockets_dir).with_context(|| format!("cannot remove {}", sockets_dir.display()))?;
    fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    let measured = measured?;
    let kvm = kvm_module();
    let sizes = measured["sizes"].as_array().context("`cloudpal-vmm measure` told no sizes")?;
    let rows = sizes.iter().map(rows).collect::<Result<Vec<_>>>()?.concat();
    println!("\n{} rounds; KVM by {kvm}\n", options.rounds);
    table::print(&rows);
    let kept =
        json!({"bench": "vmm", "rounds": options.rounds, "kvm": kvm, "rows": rows, "samples": measured});
    fs::write(&options.json, serde_json::to_string_pretty(&kept)? + "\n")
        .with_context(|| format!("cannot write {}", options.json.display()))?;
    println!("\nkept in {}", options.json.display());
    Ok(())
}

fn measure(options: &Options, program: &str, dir: &Path, sockets_dir: &Path) -> Result<Value> {
    let (rounds, clones) = (options.rounds.to_string(), options.clones.to_string());
    let (dir, sockets_dir) = (dir.to_string_lossy(), sockets_dir.to_string_lossy());
    let mut arguments = vec!["measure", "--memory-mib", SIZES, "--rounds", &rounds, "--clones", &clones];
    arguments.extend(["--dir", &dir, "--sockets-dir", &sockets_dir]);
    let told = shell::output(&mut shell::command(program, &arguments))?;
    serde_json::from_str(&told).context("`cloudpal-vmm measure` told no JSON")
}

/// Hardware's KVM runs guests natively; the others emulate, which is said beside the figures.
fn kvm_module() -> String {
    let loaded = ["kvm_intel", "kvm_amd", "kvm_pvm"].into_iter();
    let mut loaded = loaded.filter(|module| Path::new("/sys/module").join(module).exists());
    loaded.next().unwrap_or("a module without a known name").to_owned()
}

fn rows(size: &Value) -> Result<Vec<Row>> {
    let mib = size["memory_mib"].as_u64().context("a size without its memory")?;
    let us = |us: f64| Duration::from_secs_f64(us / 1e6);
    let list = |samples: &Value| -> Result<Vec<Duration>> {
        let samples = samples.as_array().filter(|samples| !samples.is_empty());
        let samples = samples.context("`cloudpal-vmm measure` left samples out")?.iter();
        samples.map(|sample| sample.as_f64().map(us).context("a sample is no number")).collect()
    };
    let figure = |value: &Value| value.as_f64().context("`cloudpal-vmm measure` left a figure out");
    let (pool, alone) = (list(&size["from_pool_us"])?, list(&size["without_pool_us"])?);
    let boot = percentile(&list(&size["boot_us"])?, 50);
    let peer = "boot of the same guest, p50";
    let named = |what: &str| format!("{what}, {mib} MiB");
    let wake = |what: &str, value: Duration| Row::ms(&named(what), value).peer(peer, boot);
    let mut rows = vec![
        wake("wake from the pool, p50", percentile(&pool, 50)).at_most(0.7),
        wake("wake from the pool, p99", percentile(&pool, 99)).at_most(2.0),
    ];
    let inside = list(&size["inside_us"])?;
    rows.push(wake("  without process and jail, p50", percentile(&inside, 50)));
    for (phase, what) in [
        ("open", "  of that: snapshot read and checked"),
        ("place", "  of that: memory and state in place"),
        ("run", "  of that: run to the first exit"),
    ] {
        rows.push(Row::ms(&named(what), percentile(&list(&size["phases_us"][phase])?, 50)));
    }
    rows.push(wake("wake without the pool, p50", percentile(&alone, 50)).at_most(8.0));
    rows.push(wake("wake without the pool, p99", percentile(&alone, 99)));
    let (clones, footprint) = (&size["clones"], &size["footprint"]);
    let count = clones["count"].as_u64().context("no count of the clones")?;
    let many = us(figure(&clones["wake_us"])?);
    rows.push(Row::ms(&named(&format!("{count} clones from the pool")), many).at_most(200.0));
    let filled = us(figure(&clones["fill_us"])?);
    rows.push(Row::ms(&named(&format!("  filling the pool for {count}, beforehand")), filled));
    rows.push(Row::ms(&named("snapshot taken and durable"), us(figure(&size["save_us"])?)));
    let private = figure(&clones["private_kib_each"])?;
    rows.push(Row::new(&named("guest pages of its own, idle clone"), private, "KiB").at_most(512.0));
    let resident = figure(&footprint["resident_kib"])?;
    rows.push(Row::new(&named("the VMM, resident without the guest"), resident, "KiB").at_most(3072.0));
    rows.push(Row::new(&named("  of it shared with nobody"), figure(&footprint["private_kib"])?, "KiB"));
    let spare = figure(&footprint["spare_private_kib"])?;
    rows.push(Row::new(&named("a waiting VMM, shared with nobody"), spare, "KiB"));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Value {
        let samples = json!([400.0, 500.0, 3000.0]);
        json!({
            "memory_mib": 128, "save_us": 1000.0, "from_pool_us": samples, "without_pool_us": samples,
            "inside_us": samples, "boot_us": [1000.0], "phases_us": {"open": samples, "place": samples, "run": samples},
            "clones": {"count": 100, "wake_us": 250_000.0, "fill_us": 1.0, "private_kib_each": 4.0},
            "footprint": {"resident_kib": 2900, "private_kib": 300, "spare_private_kib": 200},
        })
    }

    #[test]
    fn samples_become_rows_with_their_verdicts() {
        let rows = rows(&told()).expect("rows");
        let row = |name: &str| rows.iter().find(|row| row.name.starts_with(name)).expect("the row");
        let (p50, p99) = (row("wake from the pool, p50"), row("wake from the pool, p99"));
        assert_eq!((p50.value, p50.ratio, p50.met), (0.5, Some(0.5), Some(true)));
        assert_eq!((p99.value, p99.met), (3.0, Some(false)));
        assert_eq!(row("100 clones").met, Some(false));
        assert_eq!(row("the VMM, resident").met, Some(true));
    }

    #[test]
    fn what_was_left_out_is_an_error() {
        let mut told = told();
        told["without_pool_us"] = json!([]);
        assert!(rows(&told).is_err());
    }
}

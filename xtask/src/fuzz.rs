//! Runs the parsers of foreign bytes under libFuzzer, which follows the branches that an input takes and keeps what
//! takes new ones.
//!
//! Invariants: the stable compiler does it: instrumentation is LLVM's own, and nothing of it is in any other build. The
//! committed corpora are read and never written; what is learnt, and what is found, lies under `target/fuzz`.

use crate::{paths, setup, shell};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

#[path = "../../fuzz/src/list.rs"]
mod list;

use list::{TARGETS, TRAP, Target};

/// As many seconds has each target among all other tests.
const SECONDS_AMONG_TESTS: u32 = 3;
/// The trap is met after a second or two.
const SECONDS_FOR_TRAP: u32 = 20;
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
const PASSES: &str = "-Cpasses=sancov-module";
/// Counts at every edge, and the operands of comparisons: with them it finds magic numbers.
const INSTRUMENTS: [&str; 4] = [
    "-sanitizer-coverage-level=4",
    "-sanitizer-coverage-inline-8bit-counters",
    "-sanitizer-coverage-pc-table",
    "-sanitizer-coverage-trace-compares",
];
/// One input that takes longer hangs.
const INPUT_SECONDS_MAX: u32 = 10;
/// More resident memory than any target needs; and so much that may be asked for at all, be it used or not.
const RESIDENT_MIB_MAX: u32 = 512;
const ADDRESS_SPACE_BYTES_MAX: u64 = 1 << 30;

#[derive(clap::Args)]
pub struct Options {
    /// Only these; without any, all.
    targets: Vec<String>,
    /// How long each runs.
    #[arg(long, default_value_t = 20, value_name = "N")]
    seconds: u32,
    /// Say which targets there are, and nothing else.
    #[arg(long)]
    list: bool,
    /// Run one input through one target, and show what it does.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    let targets = chosen(&options.targets)?;
    if options.list {
        targets.iter().for_each(|target| println!("{:12} {}", target.name, target.what));
        return Ok(());
    }
    setup::run(setup::For::Test)?;
    if let Some(file) = &options.replay {
        let [target] = targets[..] else {
            bail!("name the one target that is to be run on {}", file.display())
        };
        let file = file.canonicalize().with_context(|| format!("cannot read {}", file.display()))?;
        return shell::run(limited(&build()?, target).arg(file));
    }
    fuzz(&targets, options.seconds)
}

/// Every target for a short time.
pub fn test() -> Result<()> {
    fuzz(&TARGETS.iter().collect::<Vec<_>>(), SECONDS_AMONG_TESTS)
}

fn chosen(names: &[String]) -> Result<Vec<&'static Target>> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    let find = |name: &String| {
        let found = TARGETS.iter().find(|target| target.name == name);
        found.with_context(|| format!("no target is named `{name}`; `cargo xtask fuzz --list` names them"))
    };
    names.iter().map(find).collect()
}

fn dir() -> PathBuf {
    paths::target().join("fuzz")
}

/// One program for all targets. For a named target, so that build scripts and macros are built without instruments.
fn build() -> Result<PathBuf> {
    let dir = dir().join("build");
    let flags = INSTRUMENTS.map(|argument| format!("-Cllvm-args={argument}")).join(" ");
    println!("build: the parsers of foreign bytes, with instruments");
    let arguments =
        ["build", "--locked", "--package", "cloudpal-fuzz", "--features", "libfuzzer", "--target", TRIPLE];
    let mut cargo = shell::cargo(&arguments);
    cargo.env("RUSTFLAGS", format!("{PASSES} {flags}")).env("CARGO_TARGET_DIR", &dir);
    shell::run(&mut cargo)?;
    Ok(dir.join(TRIPLE).join("debug/cloudpal-fuzz"))
}

/// The program with its limits, about to run a target.
fn limited(program: &Path, target: &Target) -> Command {
    let mut command = shell::command("prlimit", &[]);
    command.arg(format!("--as={ADDRESS_SPACE_BYTES_MAX}")).arg("--core=0").arg(program);
    command.arg(format!("-timeout={INPUT_SECONDS_MAX}")).arg(format!("-rss_limit_mb={RESIDENT_MIB_MAX}"));
    command.env(list::CHOICE, target.name).current_dir(paths::root());
    command
}

/// What came of a target's time.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    runs: u64,
    /// Edges that were reached.
    edges: u64,
    /// Inputs that each reach something that the others do not.
    inputs: u64,
    found: Option<String>,
}

/// libFuzzer must find the four bytes of the trap, or it sees nothing of what any target does.
fn sees(program: &Path) -> Result<()> {
    for part in ["corpus", "found"] {
        let dir = dir().join(part).join(TRAP.name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
    }
    if one(program, &TRAP, SECONDS_FOR_TRAP)?.found.is_none() {
        bail!("libFuzzer does not follow branches: see {}", log(&TRAP).display());
    }
    Ok(())
}

fn fuzz(targets: &[&'static Target], seconds: u32) -> Result<()> {
    let program = build()?;
    sees(&program)?;
    let (next, outcomes) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let started = Instant::now();
    println!("{:12} {:>10} {:>7} {:>7}  found", "target", "runs", "edges", "inputs");
    let work = || {
        while let Some(target) = targets.get(next.fetch_add(1, Relaxed)).copied() {
            let outcome = one(&program, target, seconds);
            if let Ok(Outcome { runs, edges, inputs, found }) = &outcome {
                let found = found.as_deref().unwrap_or("-");
                println!("{:12} {runs:>10} {edges:>7} {inputs:>7}  {found}", target.name);
            }
            outcomes.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((target, outcome));
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(targets.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    println!("{} targets in {:.0} s", targets.len(), started.elapsed().as_secs_f64());
    told(outcomes.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// Fails when anything was found, and says how to see it again.
fn told(outcomes: Vec<(&'static Target, Result<Outcome>)>) -> Result<()> {
    let mut bad = Vec::new();
    for (target, outcome) in outcomes {
        let log = log(target);
        match outcome {
            Ok(Outcome { found: Some(file), .. }) => {
                eprintln!(
                    "{}: see {}, and again: cargo xtask fuzz {0} --replay {file}",
                    target.name,
                    log.display()
                );
            }
            Ok(_) => continue,
            Err(error) => eprintln!("{}: {error:#}; see {}", target.name, log.display()),
        }
        bad.push(target.name);
    }
    if !bad.is_empty() {
        bail!("found something: {}", bad.join(", "));
    }
    Ok(())
}

fn log(target: &Target) -> PathBuf {
    dir().join("log").join(target.name)
}

fn one(program: &Path, target: &Target, seconds: u32) -> Result<Outcome> {
    let [corpus, found] = ["corpus", "found"].map(|part| dir().join(part).join(target.name));
    let log = log(target);
    for dir in [corpus.as_path(), &found, log.parent().unwrap_or(&log)] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let own = format!("fuzz/corpus/{}", target.name);
    let seeds = target.seeds.iter().copied().chain([own.as_str()]);
    let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = limited(program, target);
    command.arg(format!("-max_total_time={seconds}")).arg(format!("-max_len={}", target.bytes_max));
    command.arg("-print_final_stats=1").arg(format!("-artifact_prefix={}/", found.display()));
    command.arg(&corpus).args(seeds.map(|dir| paths::root().join(dir)).filter(|dir| dir.exists()));
    command.stdout(Stdio::null()).stderr(file);
    let status = command.status().with_context(|| format!("cannot start `{}`", shell::line(&command)))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let outcome = read(&said);
    if !status.success() && outcome.found.is_none() {
        bail!("libFuzzer itself failed: {status}");
    }
    if status.success() && outcome.edges == 0 {
        bail!("no edge was reached: the program has no instruments");
    }
    Ok(outcome)
}

/// What libFuzzer says: of each new input the edges and inputs so far, and figures at the end.
fn read(said: &str) -> Outcome {
    let mut outcome = Outcome::default();
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let after = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at + 1)?.split('/').next()?.parse::<u64>().ok()
        };
        if line.starts_with('#') {
            outcome.edges = after("cov:").unwrap_or(outcome.edges);
            outcome.inputs = after("corp:").unwrap_or(outcome.inputs);
        }
        outcome.runs = after("stat::number_of_executed_units:").unwrap_or(outcome.runs);
        if let Some((_, file)) = line.split_once("Test unit written to ") {
            outcome.found = Some(file.to_owned());
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libfuzzer_says_is_read() {
        let said = "#2\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 30Mb\n\
            #99\tNEW    cov: 71 ft: 80 corp: 12/64b lim: 4 exec/s: 0 rss: 30Mb L: 3/4 MS: 1 ChangeByte-\n";
        assert_eq!(read(said), Outcome { edges: 71, inputs: 12, ..Outcome::default() });
        let ended = format!("{said}Done 500 runs in 3 second(s)\nstat::number_of_executed_units: 500\n");
        assert_eq!(read(&ended), Outcome { runs: 500, edges: 71, inputs: 12, found: None });
        let broken = format!("{said}artifact_prefix='x/'; Test unit written to x/crash-1\nBase64: AA==\n");
        assert_eq!(read(&broken).found.as_deref(), Some("x/crash-1"));
    }

    #[test]
    fn names_are_known_or_refused() {
        assert_eq!(chosen(&[]).expect("all").len(), TARGETS.len());
        assert_eq!(chosen(&["dns".to_owned()]).expect("one")[0].name, "dns");
        assert!(chosen(&["nothing".to_owned()]).is_err());
    }
}

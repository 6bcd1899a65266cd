//! Everything that must hold before a change is taken, quickest first. One failure does not hide the next: every part
//! runs, and the recap at the end says which held. The tests' own summary and what the fuzzing found come last before
//! it.

use crate::{check, fuzz, guest, hostvm, peers, programs::Profile, radicale, setup, shell, tidy};
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct Options {
    /// Only the tests whose names contain one of these, and nothing else.
    filter: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    let mut parts = Parts::default();
    // Without these nothing else can run.
    parts.run("set-up", || setup::run(setup::For::Test))?;
    if options.filter.is_empty() {
        parts.try_run("format", || cargo(&["fmt", "--all", "--check"]).context("run `cargo fmt --all`"));
        parts.try_run("tidy", tidy::run);
        let lints = ["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"];
        parts.try_run("lints", || cargo(&lints));
    }
    parts.run("guest and image", || {
        guest::build(&guest::default_dir())?;
        radicale::build().map(drop)
    })?;
    if options.filter.is_empty() {
        parts.try_run("the owner's day", || {
            check::run(check::Parts::build(Profile::Tests)?, &check::Play::default())
        });
        parts.try_run("the embedded VMM and the kernel's WireGuard, in a host VM", hostvm::test);
    }
    parts.try_run("the JavaScript peers", peers::install);
    parts.try_run("tests", || nextest(&options.filter));
    if options.filter.is_empty() {
        parts.try_run("the parsers of foreign bytes, under libFuzzer", fuzz::test);
    }
    parts.recap()
}

fn nextest(filter: &[String]) -> Result<()> {
    let mut arguments = vec!["nextest", "run", "--locked", "--workspace"];
    arguments.extend(filter.iter().map(String::as_str));
    cargo(&arguments)
}

fn cargo(arguments: &[&str]) -> Result<()> {
    shell::run(&mut shell::cargo(arguments))
}

#[derive(Default)]
struct Parts {
    done: Vec<(&'static str, Duration, Option<String>)>,
}

impl Parts {
    /// An essential part: its failure ends the run.
    fn run(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.try_run(name, work) { Ok(()) } else { self.recap() }
    }

    fn try_run(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> bool {
        println!("── {name}");
        let started = Instant::now();
        let failure = work().err().map(|error| format!("{error:#}"));
        if let Some(why) = &failure {
            eprintln!("── {name} FAILED: {why}");
        }
        let held = failure.is_none();
        self.done.push((name, started.elapsed(), failure));
        held
    }

    fn recap(&self) -> Result<()> {
        println!("── recap");
        for (name, took, failure) in &self.done {
            let verdict = if failure.is_none() { "ok" } else { "FAILED" };
            println!("  {verdict:6} {:>7.1} s  {name}", took.as_secs_f64());
        }
        let failed: Vec<&str> = self.done.iter().filter(|part| part.2.is_some()).map(|part| part.0).collect();
        if !failed.is_empty() {
            bail!("did not hold: {}", failed.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_does_not_hide_the_next_but_fails_the_run() {
        let mut parts = Parts::default();
        assert!(!parts.try_run("a", || bail!("no")));
        assert!(parts.try_run("b", || Ok(())));
        assert_eq!(parts.recap().unwrap_err().to_string(), "did not hold: a");
        assert!(parts.run("c", || bail!("no")).is_err());
    }
}

//! Everything that must hold before a change is taken, in the order in which it fails fastest.

use crate::{check, guest, paths, programs::Profile, radicale, setup, shell, tidy};
use anyhow::{Context, Result};
use std::time::Instant;

#[derive(clap::Args)]
pub struct Options {
    /// Only tests whose names contain one of these; the owner's day is then left out.
    filter: Vec<String>,
}

pub fn run(options: &Options) -> Result<()> {
    section("set-up", || setup::run(setup::For::Test))?;
    section("format", || cargo(&["fmt", "--all", "--check"]).context("run `cargo fmt --all`"))?;
    section("tidy", tidy::run)?;
    let lints = ["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    section("lints", || cargo(&lints))?;
    section("guest and images", || {
        guest::build(&guest::default_dir())?;
        radicale::build().map(drop)
    })?;
    section("tests", || tests(&options.filter))?;
    if options.filter.is_empty() {
        section("the owner's day", || check::run(Profile::Dev, None, false))?;
    }
    Ok(())
}

fn tests(filter: &[String]) -> Result<()> {
    let mut arguments = vec!["nextest", "run", "--locked", "--workspace"];
    arguments.extend(filter.iter().map(String::as_str));
    cargo(&arguments)
}

fn cargo(arguments: &[&str]) -> Result<()> {
    shell::run(shell::command("cargo", arguments).current_dir(paths::root()))
}

fn section(name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("── {name}");
    let started = Instant::now();
    let outcome = work();
    let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
    println!("── {name}: {verdict} in {:.1} s", started.elapsed().as_secs_f64());
    outcome.with_context(|| format!("{name} failed"))
}

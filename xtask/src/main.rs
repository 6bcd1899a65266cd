//! Set-up, images, checks, benchmarks, tidy: everything that is done to the project rather than by it.
//!
//! Invariant: a second run of anything builds, installs and downloads nothing that the first one left in place.

mod bench;
mod check;
mod daemon;
mod day;
mod fuzz;
mod guest;
mod hostvm;
mod interrupt;
mod paths;
mod peers;
mod programs;
mod radicale;
mod setup;
mod shell;
mod test;
mod tidy;
mod up;
mod world;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Set-up, images, checks, benchmarks, tidy.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing from Debian, saying what and why before doing it. A second run installs nothing.
    Setup,
    /// Build the guests' kernel and initramfs from Debian's cloud kernel, into target/guest.
    Guest,
    /// A whole Debian host of its own, with a real KVM and the kernel's WireGuard, under software emulation.
    Hostvm(hostvm::Options),
    /// Build the example app's OCI image: Radicale, a calendar and contacts server, from Debian's package.
    Radicale,
    /// Run CloudPal here with an app in it, until Ctrl-C. Sets up and builds whatever is missing.
    Up(up::Options),
    /// Measure.
    Bench(bench::Options),
    /// Drive the parsers of foreign bytes with inputs that libFuzzer makes up. Fails when one of them breaks.
    Fuzz(fuzz::Options),
    /// Check the walls between the crates, and the form of the sources.
    Tidy,
    /// Everything that must hold before a change is taken: format, lints, tidy, tests, and the owner's day.
    Test(test::Options),
}

fn main() -> ExitCode {
    let outcome = run(Cli::parse().command);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Setup => setup::run(setup::For::Test),
        Command::Guest => {
            let guest = guest::build(&guest::default_dir())?;
            let state = if guest.changed { "built" } else { "up to date" };
            println!("guest: {} in {}, {state}", guest.kernel_version, guest.dir.display());
            Ok(())
        }
        Command::Hostvm(options) => hostvm::run(&options),
        Command::Radicale => {
            setup::run(setup::For::Up)?;
            println!("{}", radicale::build()?.display());
            Ok(())
        }
        Command::Up(options) => up::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Tidy => tidy::run(),
        Command::Test(options) => test::run(&options),
    }
}

//! `cloudpal-vmm`: runs one microVM for the daemon, jailed; and tries and measures the embedded VMM on this host.

mod jail;
mod measure;
mod process;

use clap::{Parser, Subcommand};
use cloudpal_model::Problem;
use cloudpal_vmm::{
    Boot, Error, Host, Image, Machine, Shape, Snapshot, Spare,
    tiny_guest::{self, Operator, ask, protocol},
};
use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

/// The embedded VMM: one process, one microVM.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Boot the tiny guest, put it to sleep in this directory, wake it, and say whether it went on.
    Check {
        #[arg(value_name = "DIR")]
        dir: PathBuf,
    },
    /// Measure wakes and clones; JSON on the standard output.
    Measure(measure::Options),
    /// Write the tiny guest's kernel to the standard output, for whoever tests a driver with it.
    #[command(hide = true)]
    TinyGuest,
    /// Try one thing that a hostile VMM would; without a name, list them all. For the jail's tests.
    #[command(hide = true)]
    Attempt(Attempt),
}

#[derive(clap::Args)]
struct Attempt {
    #[arg(long, value_enum)]
    jail: Jail,
    #[arg(long)]
    first_uid: u32,
    #[command(flatten)]
    targets: jail::attempts::Targets,
    name: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Jail {
    /// A mount namespace only, so that the attempts leave nothing behind.
    None,
    Closed,
    Filtered,
}

fn main() -> ExitCode {
    // What the daemon starts comes before the parser for people, which costs a tenth of the process' memory.
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("run") {
        return process::run(arguments);
    }
    let outcome = match Cli::parse().command {
        Command::Check { dir } => check(&dir.join("asleep")),
        Command::Measure(options) => measure::run(&options),
        Command::TinyGuest => io::stdout().write_all(tiny_guest::ELF).map_err(|e| Error::Host(e.to_string())),
        Command::Attempt(options) => attempt(&options).map_err(|error| Error::Host(error.to_string())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", Problem::from(error));
            ExitCode::FAILURE
        }
    }
}

fn check(dir: &std::path::Path) -> Result<(), Error> {
    const MIB: u32 = 16;
    let host = Host::open()?;
    let mut machine = booted(&host, MIB)?;
    println!("boots");
    let before = ask(&mut machine, protocol::COUNT, 0)?;
    Snapshot::take(&mut machine, dir)?;
    drop(machine);
    println!("sleeps, in {}", dir.display());
    let snapshot = Snapshot::open(&host, dir)?;
    snapshot.verify_memory()?;
    let mut machine = snapshot.wake(&host, Spare::make(&host, Shape::plain(MIB))?)?;
    match ask(&mut machine, protocol::COUNT, 0)? {
        count if count == before + 1 => println!("wakes, and goes on where it was"),
        count => {
            return Err(Error::Vcpu(format!(
                "it counted {before} before it slept and {count} after it woke"
            )));
        }
    }
    Ok(())
}

/// The tiny guest, waiting for its first command.
fn booted(host: &Host, memory_mib: u32) -> Result<Machine, Error> {
    let mut machine = Spare::make(host, Shape::plain(memory_mib))?
        .boot(host, Boot::plain(Image::Bytes(tiny_guest::ELF), ""))?;
    machine.run(&mut Operator::default())?;
    Ok(machine)
}

fn attempt(options: &Attempt) -> Result<(), Box<dyn std::error::Error>> {
    let Some(name) = &options.name else {
        jail::attempts::ALL.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    };
    let filters = jail::filter::Filters::compile()?;
    if options.jail == Jail::None {
        jail::mounts_of_its_own()?;
    } else {
        jail::close_from(3)?;
        jail::enter(jail::user(options.first_uid, jail::outer_pid()?), 1)?;
    }
    if options.jail == Jail::Filtered {
        filters.apply_to_process()?;
    }
    let outcome = jail::attempts::make(&options.targets, name);
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

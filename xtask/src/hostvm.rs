//! The host VM: a whole Debian host with the distribution's cloud kernel, in QEMU under software emulation.
//!
//! It has what the machine that runs the tests may lack: a real KVM (AMD's virtualization is emulated, too) and the
//! kernel's own WireGuard. Our build runs in it as it would on a server: tests, the owner's day, and measurements.
//!
//! Invariants: the host is made from packages alone, read-only, and cached; what a run writes is gone with it; the
//! run's outcome is the guest's word on each part, and no word is a failure.

mod bench;
mod image;
mod job;
mod machine;
mod test;

use crate::{guest, programs::Profile, setup};
use anyhow::{Result, ensure};
use std::{io::IsTerminal, path::PathBuf};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// A root shell on the host VM's serial console, with our build in /job; `exit` ends the VM.
    #[arg(long)]
    shell: bool,
    #[command(flatten)]
    brought: Brought,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// The network tests, the VMM drivers' tests and the owner's day, with a real KVM and the kernel's WireGuard.
    Test(test::Options),
    /// The VMMs beside each other on a real KVM: the same kernel, root, app and rounds.
    Bench(bench::Options),
}

/// What the operator may bring along.
#[derive(clap::Args, Clone, Default)]
pub struct Brought {
    /// Firecracker's program, static, with its jailer beside it; without it everything about Firecracker is skipped,
    /// and says so.
    #[arg(long, value_name = "PATH")]
    pub firecracker: Option<PathBuf>,
    /// A library OS' kernel, an ELF file: OSv's loader with all in one file, or Unikraft's; without it, library OSes
    /// are skipped.
    #[arg(long, value_name = "PATH")]
    pub unikernel: Option<PathBuf>,
    /// Its command line, in which addresses are filled in as `cloudpal app install --help` says.
    #[arg(long, value_name = "TEXT", requires = "unikernel", allow_hyphen_values = true)]
    pub unikernel_arguments: Option<String>,
    /// What it writes to the serial port over and over while it is well: it boots and wakes without any device.
    #[arg(long, value_name = "TEXT", requires = "unikernel")]
    pub unikernel_says: Option<String>,
    /// The TCP port at which it answers HTTP: it is installed as an app, and woken by packets.
    #[arg(long, value_name = "PORT", requires = "unikernel")]
    pub unikernel_serves: Option<u16>,
    /// What of the CPU is kept from it: "xsave".
    #[arg(long, value_name = "FEATURE", requires = "unikernel")]
    pub unikernel_without: Option<String>,
}

pub fn run(options: &Options) -> Result<()> {
    match &options.what {
        _ if options.shell => shell(&options.brought),
        Some(What::Test(options)) => test::run(options),
        Some(What::Bench(options)) => bench::run(options),
        None => test(),
    }
}

/// What is run with all other tests: the network, and the embedded VMM's suite and the owner's day on it.
pub fn test() -> Result<()> {
    test::run(&test::Options::usual())
}

fn shell(brought: &Brought) -> Result<()> {
    setup::run(setup::For::Test)?;
    let host = image::build()?;
    let mut job = job::Job::begin()?;
    job.add_build()?;
    job.add_tests(&test::SUITES, Profile::Tests)?;
    job.add_tests(&[bench::SUITE], Profile::Tests)?;
    job.add_brought(brought)?;
    let script = "cd /root\nsetsid --ctty --wait bash </dev/ttyS0 >/dev/ttyS0 2>&1\n";
    let disk = job.finish(script)?;
    if std::io::stdin().is_terminal() {
        println!("hostvm: a shell comes in about half a minute; `exit` ends the VM");
    }
    let ended = machine::Command::new(&host, &disk)?.on_our_terminal()?;
    ensure!(ended.success(), "QEMU ended with {ended}");
    Ok(())
}

/// Where the guest's kernel package was unpacked.
fn kernel_package() -> Result<guest::Package> {
    guest::package(&guest::default_dir().join("cache"))
}

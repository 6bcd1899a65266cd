//! The host VM: a whole Debian host with the distribution's cloud kernel, in QEMU under software emulation.
//!
//! It has what the machine that runs the tests may lack: the kernel's own WireGuard. The same network tests run in it
//! that run outside, and there the daemon chooses the kernel's WireGuard by itself.
//!
//! Invariants: the host is made from packages alone, read-only, and cached; what a run writes is gone with it; the
//! run's outcome is the guest's word, and no word is a failure.

mod image;

use crate::{guest, paths, setup, shell};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Tests that must hold with either WireGuard.
const TESTS: [&str; 2] = ["net_tunnel", "net_machines"];

/// A host VM that has not ended by then is stuck.
const TIMEOUT: Duration = Duration::from_secs(900);

/// A CPU with AMD's virtualization, so that this host can have a KVM of its own; less what QEMU cannot emulate.
const CPU: &str = "EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,\
                   -xsavec";

/// What the guest says last.
const VERDICT: &str = "hostvm: failed tests: ";

pub fn test() -> Result<()> {
    setup::run(setup::For::Test)?;
    let host = image::build()?;
    let work = work_image(&test_programs()?)?;
    let started = Instant::now();
    let failed = run(&host, &work)?;
    println!(
        "hostvm: {} test files in {:.0} s, {failed} failed",
        TESTS.len(),
        started.elapsed().as_secs_f64()
    );
    if failed != 0 {
        bail!("{failed} of the test files failed in the host VM; their output is above");
    }
    Ok(())
}

/// Builds the tests and returns their programs.
fn test_programs() -> Result<Vec<PathBuf>> {
    let mut arguments = vec!["test", "--no-run", "--locked", "--quiet", "-p", "cloudpal-host"];
    for test in TESTS {
        arguments.extend(["--test", test]);
    }
    // Errors go to the terminal as usual; only the list of what was built comes to us.
    arguments.push("--message-format=json-render-diagnostics");
    let mut cargo = shell::command("cargo", &arguments);
    let built =
        cargo.current_dir(paths::root()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !built.status.success() {
        bail!("the tests for the host VM do not build");
    }
    let programs: Vec<PathBuf> = String::from_utf8_lossy(&built.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from))
        .collect();
    if programs.len() != TESTS.len() {
        bail!("cargo built {} test programs, not {}", programs.len(), TESTS.len());
    }
    Ok(programs)
}

/// A second disk: the programs, and the script that runs them.
fn work_image(programs: &[PathBuf]) -> Result<PathBuf> {
    let dir = paths::target().join("hostvm/work");
    drop(fs::remove_dir_all(&dir));
    fs::create_dir_all(&dir)?;
    let mut script = String::from(image::PREAMBLE);
    for (program, name) in programs.iter().zip(TESTS) {
        fs::copy(program, dir.join(name)).with_context(|| format!("cannot copy {}", program.display()))?;
        script += &format!("/job/{name} --test-threads=1 || failed=$((failed + 1))\n");
    }
    script += &format!("echo \"{VERDICT}$failed\"\nbusybox poweroff -f\n");
    let run = dir.join("run");
    fs::write(&run, script)?;
    shell::output(&mut shell::command("chmod", &["+x", &run.to_string_lossy()]))?;
    let disk = paths::target().join("hostvm/work.erofs");
    image::erofs(&dir, &disk)?;
    Ok(disk)
}

/// Boots the host with the work disk, shows what it says, and returns how many test files failed.
fn run(host: &image::Host, work: &Path) -> Result<u32> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Software emulation of a CPU with AMD's virtualization, so that this host can have a KVM of its own.
    qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", "2048"]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    qemu.arg("-kernel").arg(&host.kernel).arg("-initrd").arg(&host.initramfs);
    qemu.args(["-append", "console=ttyS0 quiet panic=-1 tsc_early_khz=1000000"]);
    for disk in [&host.rootfs, work] {
        qemu.arg("-drive").arg(format!("if=virtio,format=raw,readonly=on,file={}", disk.display()));
    }
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qemu-system-x86_64; `cargo xtask setup` installs it")?;
    let output = child.stdout.take().context("QEMU has no output")?;
    let (lines, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            // The receiver goes away when the run is given up.
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + TIMEOUT;
    let mut verdict = None;
    while let Ok(line) = said.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        println!("  hostvm| {line}");
        if let Some(count) = line.strip_prefix(VERDICT) {
            verdict = count.trim().parse().ok();
        }
    }
    child.kill().ok();
    child.wait()?;
    verdict
        .with_context(|| format!("the host VM ended, or hung for {} s, without a verdict", TIMEOUT.as_secs()))
}

/// Where the guest's kernel package was unpacked.
fn kernel_package() -> Result<guest::Package> {
    guest::package(&guest::default_dir().join("cache"))
}

//! The host VM's QEMU, and what is heard of it on the serial console.
//!
//! Invariant: it ends with this process or before it, and its scratch disk with it.

use super::image::Host;
use crate::{interrupt, paths, shell};
use anyhow::{Context, Result, bail};
use std::{
    fs::File,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

/// A CPU with AMD's virtualization, so that this host can have a KVM of its own; less what QEMU cannot emulate.
const CPU: &str = "EPYC,+svm,+npt,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,\
                   -xsavec";
const MEMORY_MIB: &str = "4096";
/// Sparse; large enough for images and snapshots.
const SCRATCH_BYTES: u64 = 12 << 30;

pub struct Command {
    qemu: std::process::Command,
    _scratch: Scratch,
}

impl Command {
    pub fn new(host: &Host, job: &Path) -> Result<Command> {
        let scratch = Scratch::make()?;
        let mut qemu = std::process::Command::new("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU, "-smp", "2", "-m", MEMORY_MIB]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        // Ctrl-C in a shell is for the shell; otherwise nobody types.
        qemu.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        qemu.arg("-kernel").arg(&host.kernel).arg("-initrd").arg(&host.initramfs);
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 tsc_early_khz=1000000 mitigations=off"]);
        for disk in [&host.rootfs, job] {
            qemu.arg("-drive").arg(format!("if=virtio,format=raw,readonly=on,file={}", disk.display()));
        }
        let lasting = "if=virtio,format=raw,cache=unsafe,discard=unmap,file=";
        qemu.arg("-drive").arg(format!("{lasting}{}", scratch.0.display()));
        Ok(Command { qemu, _scratch: scratch })
    }

    pub fn on_our_terminal(mut self) -> Result<ExitStatus> {
        let mut child = self.qemu.spawn().context(MISSING)?;
        child.wait().context("waiting for QEMU")
    }

    /// Runs it to its end. Every line of its console goes to `hear`.
    pub fn listen(mut self, patience: Duration, mut hear: impl FnMut(&str)) -> Result<()> {
        self.qemu.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut running = Running(self.qemu.spawn().context(MISSING)?);
        let lines = lines(running.0.stdout.take().context("QEMU has no output")?);
        let deadline = Instant::now() + patience;
        loop {
            match lines.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => hear(&line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if Instant::now() > deadline => {
                    bail!("the host VM was ended: it had not finished within {} s", patience.as_secs())
                }
                Err(RecvTimeoutError::Timeout) if interrupt::asked() => bail!("interrupted"),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let status = running.0.wait()?;
        if !status.success() {
            bail!("QEMU ended with {status}");
        }
        Ok(())
    }
}

const MISSING: &str = "cannot start qemu-system-x86_64; `cargo xtask setup` installs it";

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (lines, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            // The receiver goes away when the run is given up.
            if lines.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
    said
}

/// A file system of the run's own, made here: emulated, that takes much longer.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Scratch> {
        let scratch = Scratch(paths::target().join(format!("hostvm/scratch-{}.img", std::process::id())));
        let made = File::create(&scratch.0).and_then(|disk| disk.set_len(SCRATCH_BYTES));
        made.with_context(|| format!("cannot make {}", scratch.0.display()))?;
        let path = scratch.0.to_string_lossy();
        shell::output(&mut shell::command("mkfs.ext4", &["-q", "-F", "-O", "^has_journal", &path]))?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            eprintln!("cannot remove {}: {error}", self.0.display());
        }
    }
}

//! The peer: QEMU alone. The same guest kernel and memory, saved and restored by its monitor, without CloudPal.
//!
//! Its guest has no app and fewer devices than ours, so the comparison favours the peer.

use crate::shell;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// From the start of the process to a running guest, so often.
pub fn restores(guest: &Path, work: &Path, times: u32) -> Result<Vec<Duration>> {
    fs::create_dir_all(work)?;
    let saved = work.join("saved");
    let mut vm = Vm::start(guest, work, None)?;
    // Long enough for the kernel to have reached its init, under emulation too.
    thread::sleep(Duration::from_secs(6));
    vm.ask(json!({"execute": "stop"}))?;
    let uri = format!("exec:cat > {}", saved.display());
    vm.ask(json!({"execute": "migrate", "arguments": {"uri": uri}}))?;
    vm.wait_until("query-migrate", "completed")?;
    drop(vm);
    let uri = format!("exec:cat {}", saved.display());
    (0..times)
        .map(|_| {
            let started = Instant::now();
            let mut vm = Vm::start(guest, work, Some(&uri))?;
            vm.wait_until("query-status", "paused")?;
            vm.ask(json!({"execute": "cont"}))?;
            vm.wait_until("query-status", "running")?;
            Ok(started.elapsed())
        })
        .collect()
}

struct Vm {
    process: Child,
    stream: BufReader<UnixStream>,
}

impl Vm {
    fn start(guest: &Path, work: &Path, incoming: Option<&str>) -> Result<Vm> {
        let socket = work.join("qmp.sock");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-S",
            "-accel",
            "tcg",
            "-cpu",
            "max",
        ]);
        command.args(["-M", "microvm,acpi=off,pit=on,pic=on,rtc=on,isa-serial=on", "-m", "256", "-smp", "1"]);
        command.arg("-kernel").arg(guest.join("vmlinuz")).arg("-initrd").arg(guest.join("initramfs.img"));
        command.args(["-append", "console=ttyS0 panic=-1 tsc_early_khz=2000000"]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        if let Some(uri) = incoming {
            command.args(["-incoming", uri]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process =
            command.spawn().with_context(|| format!("cannot start `{}`", shell::line(&command)))?;
        let stream = match connect(&socket) {
            Ok(stream) => stream,
            Err(error) => {
                process.kill()?;
                process.wait()?;
                return Err(error);
            }
        };
        let mut vm = Vm { process, stream: BufReader::new(stream) };
        vm.line()?;
        vm.ask(json!({"execute": "qmp_capabilities"}))?;
        if incoming.is_none() {
            vm.ask(json!({"execute": "cont"}))?;
        }
        Ok(vm)
    }

    fn ask(&mut self, question: Value) -> Result<Value> {
        self.stream.get_mut().write_all(format!("{question}\n").as_bytes())?;
        loop {
            let line = self.line()?;
            if !line["error"].is_null() {
                bail!("qemu refused {question}: {}", line["error"]);
            }
            if !line["return"].is_null() {
                return Ok(line["return"].clone());
            }
        }
    }

    fn wait_until(&mut self, question: &str, status: &str) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < PATIENCE {
            if self.ask(json!({"execute": question}))?["status"] == status {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(1));
        }
        bail!("plain qemu is not {status} after {} s", PATIENCE.as_secs())
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        serde_json::from_str(&line).context("qemu's monitor ended")
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let started = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if started.elapsed() > PATIENCE => return Err(error).context("qemu's monitor"),
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait()) {
            eprintln!("plain qemu did not end: {error}");
        }
    }
}

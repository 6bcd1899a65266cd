//! Running `cloudpald` as a child, and asking it through `cloudpal`, as its owner does.
//!
//! Invariant: Ctrl-C in the terminal reaches us and not the daemon; the daemon is always ended by us.

use crate::{interrupt, programs::Programs, shell};
use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

pub struct Settings {
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    pub guest_dir: PathBuf,
    pub endpoint: String,
    pub instance: String,
    pub log: PathBuf,
    /// More arguments, as they are.
    pub more: Vec<String>,
    /// The file of the network namespace in which it runs; `None`: ours.
    pub network: Option<String>,
}

pub struct Daemon {
    child: Option<Child>,
    settings: Settings,
    programs: Programs,
}

impl Daemon {
    /// Returns when its API answers.
    pub fn start(settings: Settings, programs: Programs) -> Result<Daemon> {
        let mut daemon = Daemon { child: None, settings, programs };
        daemon.launch()?;
        Ok(daemon)
    }

    /// Starts it (again), and says how long it took until its API answered.
    pub fn launch(&mut self) -> Result<Duration> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.settings.log)?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.child =
            Some(command.spawn().with_context(|| format!("cannot start `{}`", shell::line(&command)))?);
        let cli = self.cli();
        let ready = interrupt::wait_for("the daemon's API answers", Duration::from_secs(60), || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().transpose()) {
                self.child = None;
                bail!("cloudpald ended ({}):\n{}", status?, self.log_tail(15));
            }
            Ok(cli.json(&["status"]).ok())
        });
        ready.map(|(_, took)| took)
    }

    fn command(&self) -> Command {
        let Settings { state_dir, run_dir, guest_dir, endpoint, instance, network, .. } = &self.settings;
        let mut command = match network {
            Some(file) => {
                let mut enter = Command::new("nsenter");
                enter.arg(format!("--net={file}")).arg(&self.programs.cloudpald);
                enter
            }
            None => Command::new(&self.programs.cloudpald),
        };
        command.arg("--state-dir").arg(state_dir).arg("--run-dir").arg(run_dir);
        command.arg("--guest-dir").arg(guest_dir);
        command.arg("--endpoint").arg(endpoint).arg("--instance").arg(instance);
        command.args(&self.settings.more);
        command
    }

    pub fn cli(&self) -> Cli {
        Cli { program: self.programs.cloudpal.clone(), socket: self.settings.run_dir.join("api.sock") }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub fn running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// As a crash does it: at once, without a word.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Asks it to end: machines go to sleep first.
    pub fn stop(&mut self) -> Result<Duration> {
        let Some(mut child) = self.child.take() else { return Ok(Duration::ZERO) };
        let started = std::time::Instant::now();
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
        while started.elapsed() < Duration::from_secs(90) {
            if let Some(status) = child.try_wait()? {
                if !status.success() {
                    bail!("cloudpald ended with {status}:\n{}", self.log_tail(15));
                }
                return Ok(started.elapsed());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill()?;
        child.wait()?;
        bail!("cloudpald did not end within 90 s and was killed:\n{}", self.log_tail(15))
    }

    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(&self.settings.log).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The processes that run this daemon's machines, as the kernel lists them.
    pub fn vmm_pids(&self) -> Vec<i32> {
        vmm_pids(&self.settings.run_dir)
    }

    /// Ends everything that this daemon leaves behind on purpose, so that its successor starts quickly.
    pub fn remove_traces(&self) {
        for pid in self.vmm_pids() {
            // It may have ended by itself in the meantime.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for name in self.tenant_namespaces() {
            if let Err(error) = shell::output(&mut shell::command("ip", &["netns", "delete", &name])) {
                eprintln!("cannot remove the network namespace {name}: {error:#}");
            }
        }
    }

    pub fn tenant_namespaces(&self) -> Vec<String> {
        let prefix = format!("{}-t", self.settings.instance);
        let entries = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(&prefix)).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
    }
}

fn vmm_pids(run_dir: &Path) -> Vec<i32> {
    let machines = run_dir.join("machines");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = processes.filter_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let command = fs::read(process.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command);
        if !["qemu-system", "cloudpal-vmm", "firecracker"].iter().any(|vmm| command.contains(vmm)) {
            return None;
        }
        // Its command line names no file; it holds its machine's lock.
        let open = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        let mut links = open.filter_map(|fd| fs::read_link(fd.path()).ok());
        links.any(|file| file.starts_with(&machines)).then_some(pid)
    });
    ours.collect()
}

/// `cloudpal`, as a person or a script calls it.
#[derive(Clone)]
pub struct Cli {
    program: PathBuf,
    socket: PathBuf,
}

impl Cli {
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--socket").arg(&self.socket).args(arguments).stdin(Stdio::null());
        command
    }

    /// Its answer as data.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let said = shell::output(&mut self.command(&all))?;
        serde_json::from_str(&said)
            .with_context(|| format!("`cloudpal {}` did not print JSON", all.join(" ")))
    }

    /// What it printed, if it ended well: for what may not be there yet.
    pub fn try_text(&self, arguments: &[&str]) -> Option<String> {
        shell::output(&mut self.command(arguments)).ok()
    }

    /// With its output going where ours goes: progress, and the QR code.
    pub fn show(&self, arguments: &[&str]) -> Result<()> {
        shell::run(&mut self.command(arguments))
    }

    /// How a person reaches this daemon.
    pub fn line(&self, arguments: &[&str]) -> String {
        shell::line(&self.command(arguments))
    }
}

//! One network namespace with a name, made and removed by us.

use crate::shell;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use std::{fs, process::Command, thread};

pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn create(name: &str) -> Result<Namespace> {
        shell::output(&mut shell::command("ip", &["netns", "add", name]))
            .context("cannot make a network namespace; this needs root")?;
        let namespace = Namespace { name: name.to_owned() };
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn file(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    pub fn ip(&self, arguments: &[&str]) -> Result<()> {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments);
        shell::output(&mut shell::command("ip", &all)).map(drop)
    }

    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        self.inside(|| fs::write(&path, value))?.with_context(|| format!("cannot set {key}"))
    }

    /// A command that runs in this network, with `/etc/netns/NAME/*` over `/etc/*`.
    pub fn exec(&self, program: &str, arguments: &[&str]) -> Command {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(arguments);
        shell::command("ip", &all)
    }

    /// Runs `work` on a thread of its own that is in this network.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let place = fs::File::open(self.file()).with_context(|| format!("cannot open {}", self.file()))?;
        thread::scope(|scope| {
            let worker = scope.spawn(move || {
                setns(place, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
                Ok(work())
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn pids(&self) -> Vec<i32> {
        let listed = shell::output(&mut shell::command("ip", &["netns", "pids", &self.name]));
        listed.unwrap_or_default().lines().filter_map(|line| line.trim().parse().ok()).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for pid in self.pids() {
            // It may have ended by itself in the meantime.
            let _gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        if let Err(error) = shell::output(&mut shell::command("ip", &["netns", "delete", &self.name])) {
            eprintln!("cannot remove the network namespace {}: {error:#}", self.name);
        }
    }
}

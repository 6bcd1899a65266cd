//! A jailed VMM process that waits for its machine: VM, vCPUs and memory are made, nothing is in them yet.
//!
//! Invariants:
//! - It has nothing of any machine, and no way to anything of the host, before its first message.
//! - Until it has a machine it ends with whoever holds the [`Spare`], also when the daemon is killed: its channel ends.
//! - It is the first process of a pid namespace of its own, and its user is nobody else's among the living.

use super::{
    super::{
        cgroup::{Cgroups, Group, Limits},
        process::{Guard, Process},
        running::LastWords,
    },
    channel::Channel,
};
use cloudpal_model::{Kind, Problem};
use nix::sched::CloneFlags;
use rustix::fs::MemfdFlags;
use std::{
    fs::File,
    os::unix::{fs::FileExt, net::UnixStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

/// Much more than it takes: a host may be busy.
const START_PATIENCE: Duration = Duration::from_secs(20);
const OVERHEAD_MIB: u32 = 256;
/// Beside the vCPUs'.
const THREADS: u32 = 8;

/// What must be known of a machine before its VM is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class {
    pub memory_mib: u32,
    pub vcpus: u32,
}

impl Class {
    /// Beside the guest's memory there is the VMM's own, page tables, the kernel's part of KVM, and the pages of the
    /// files that it writes, which may lie in memory: a sleep writes all of the guest's memory once more.
    fn limits(self) -> Limits {
        let Class { memory_mib, vcpus } = self;
        Limits { memory_mib, overhead_mib: memory_mib.saturating_add(OVERHEAD_MIB), vcpus, threads: THREADS }
    }
}

/// How a VMM process is started.
#[derive(Clone, Debug)]
pub struct Launcher {
    pub program: PathBuf,
    pub first_uid: u32,
    pub cgroups: Cgroups,
    pub without_xsave: bool,
}

pub struct Spare {
    pub guard: Guard,
    pub channel: Channel,
    pub last_words: LastWords,
    pub group: Option<Group>,
}

impl Launcher {
    pub async fn launch(&self, class: Class) -> Result<Spare, Problem> {
        let broken = |error: std::io::Error| Problem::io("starting a VMM", &error);
        let (ours, theirs) = UnixStream::pair().map_err(broken)?;
        let errors = rustix::fs::memfd_create("cloudpal-vmm-errors", MemfdFlags::CLOEXEC);
        let errors = File::from(errors.map_err(|errno| broken(errno.into()))?);
        let mut command = Command::new(&self.program);
        command.arg("run").args(["--memory-mib", &class.memory_mib.to_string()]);
        command.args(["--vcpus", &class.vcpus.to_string(), "--first-uid", &self.first_uid.to_string()]);
        if self.without_xsave {
            command.arg("--without-xsave");
        }
        command.env_clear().stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).stdout(Stdio::null());
        command.stderr(errors.try_clone().map_err(broken)?);
        let start = move || {
            // Of this thread alone: its next child is the first process of a new namespace.
            nix::sched::unshare(CloneFlags::CLONE_NEWPID).map_err(std::io::Error::from)?;
            command.spawn()
        };
        let started = tokio::task::spawn_blocking(|| std::thread::spawn(start).join()).await;
        let child = match started {
            Ok(Ok(child)) => child.map_err(|error| self.cannot_start(&error))?,
            _ => return Err(fault("its start was interrupted")),
        };
        let guard = Guard::new(Process::of(child)?);
        let group = self.cgroups.hold(guard.process().pid(), class.limits());
        let group = group.map_err(|error| Problem::io("the VMM's cgroup", &error))?;
        let last_words = LastWords::default();
        let channel = Channel::new(ours, last_words.clone()).map_err(broken)?;
        let told = channel.wait_for(START_PATIENCE, |told| told.ready.is_some()).await;
        if told.is_some_and(|told| told.ready.is_some()) {
            return Ok(Spare { guard, channel, last_words, group });
        }
        drop(channel);
        let why = match tokio::time::timeout(Duration::from_secs(1), guard.process().ended()).await {
            Ok(end) => end.to_string(),
            Err(_) => format!("it was not ready after {} s", START_PATIENCE.as_secs()),
        };
        Err(fault(&format!("{why}: {}", said(&errors))))
    }

    fn cannot_start(&self, error: &std::io::Error) -> Problem {
        let what = format!("{} cannot be started: {error}", self.program.display());
        Problem::new(Kind::HostLacks, what, "install it beside the daemon, or name it with --vmm")
    }
}

impl Spare {
    /// Still there, and nobody's.
    pub fn is_good(&self) -> bool {
        self.channel.is_open()
    }
}

/// The process' last words, bounded and without what a terminal would obey.
fn said(errors: &File) -> String {
    const MAX_BYTES: u64 = 2000;
    let mut bytes = Vec::new();
    let len = errors.metadata().map_or(0, |data| data.len());
    let mut at = len.saturating_sub(MAX_BYTES);
    let mut chunk = [0; 512];
    while let Ok(count @ 1..) = errors.read_at(&mut chunk, at) {
        bytes.extend_from_slice(&chunk[..count]);
        at += count as u64;
        if bytes.len() as u64 >= MAX_BYTES {
            break;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.chars().filter(|&char| char == '\n' || !char.is_control()).collect::<String>().trim().to_owned()
}

fn fault(what: &str) -> Problem {
    Problem::new(Kind::Internal, format!("a VMM could not be made: {what}"), "see the daemon's log")
}

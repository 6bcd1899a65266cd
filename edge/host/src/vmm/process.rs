//! A VMM as a process: its lock, its start, its end, and how a new daemon finds it again.
//!
//! Invariants:
//! - `vmm.lock` is locked through an open file that the VMM inherits; the daemon closes its own copy once the VMM has
//!   started. So the lock is held exactly as long as a VMM of the machine lives, whatever becomes of the daemon.
//! - The VMM outlives the daemon: it is in a session of its own, and nothing ties its life to ours.
//! - A pid is never trusted by itself: it counts only when that process has the lock file open; signals go by pidfd.
#![allow(unsafe_code)]

use cloudpal_model::{Kind, Problem};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitId, WaitIdOptions},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Written before the VMM starts: where its inherited descriptors are, for whoever adopts it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Descriptors {
    pub lock_fd: RawFd,
    pub tap_fd: RawFd,
    pub memory_fd: RawFd,
}

/// The machine's lock, not yet handed to a VMM.
pub struct Lock(File);

impl Lock {
    /// `None`: a VMM of this machine lives.
    pub fn take(run_dir: &Path) -> Result<Option<Lock>, Problem> {
        let path = run_dir.join("vmm.lock");
        let place = format!("the lock file {}", path.display());
        let open = File::options().create(true).truncate(false).write(true).read(true).open(&path);
        let file = open.map_err(|error| Problem::io(&place, &error))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(Problem::io(&place, &error.into())),
        }
    }
}

impl AsRawFd for Lock {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

pub struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    /// Starts the VMM with just these descriptors besides the three standard ones.
    pub fn start(
        mut command: Command,
        errors: &Path,
        user: Option<(u32, u32)>,
        inherited: &[RawFd],
    ) -> Result<Process, Problem> {
        let program = command.get_program().to_string_lossy().into_owned();
        let stderr = File::create(errors).map_err(|error| Problem::io(errors.display(), &error))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        if let Some((uid, gid)) = user {
            command.uid(uid).gid(gid);
        }
        let inherited = inherited.to_vec();
        // SAFETY: between fork and exec only async-signal-safe system calls are made and nothing is allocated; the
        // descriptors are open in the parent for the whole call, so they are in the child.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                for &fd in &inherited {
                    rustix::io::fcntl_setfd(BorrowedFd::borrow_raw(fd), rustix::io::FdFlags::empty())?;
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Problem::new(
                Kind::HostLacks,
                format!("{program} is not installed"),
                "apt-get install qemu-system-x86, or name the program in the daemon's settings",
            ),
            _ => Problem::io(format!("starting {program}"), &error),
        })?;
        Process::open(Pid::from_child(&child))
    }

    /// Writes down where to look first for it. Should that not come to pass, [`Process::find`] looks everywhere.
    pub fn note(&self, run_dir: &Path) -> Result<(), Problem> {
        let path = run_dir.join("vmm.pid");
        fs::write(&path, format!("{}\n", self.pid())).map_err(|error| Problem::io(path.display(), &error))
    }

    /// The running VMM that holds this machine's lock, if it can be found.
    pub fn find(run_dir: &Path, lock_fd: RawFd) -> Option<Process> {
        let lock = fs::canonicalize(run_dir.join("vmm.lock")).ok()?;
        let holds =
            |pid: i32| fs::read_link(format!("/proc/{pid}/fd/{lock_fd}")).is_ok_and(|open| open == lock);
        let noted =
            fs::read_to_string(run_dir.join("vmm.pid")).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let own = i32::try_from(std::process::id()).ok()?;
        let all = || {
            let names = fs::read_dir("/proc").into_iter().flatten().flatten();
            names.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        };
        let pid = noted.into_iter().chain(all()).find(|&pid| pid != own && holds(pid))?;
        let process = Process::open(Pid::from_raw(pid)?).ok()?;
        // The pidfd is opened now; a process that still holds the lock is the one we meant.
        holds(pid).then_some(process)
    }

    fn open(pid: Pid) -> Result<Process, Problem> {
        let place = "watching the VMM's process";
        let fd = rustix::process::pidfd_open(pid, PidfdFlags::empty());
        let fd = fd.map_err(|error| Problem::io(place, &error.into()))?;
        // SAFETY: the descriptor is owned by the AsyncFd, which closes it after deregistering it.
        let pidfd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        let pidfd = pidfd.map_err(|error| Problem::io(place, &error.into()))?;
        Ok(Process { pid, pidfd })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub fn signal(&self, signal: Signal) {
        // The process may be gone already; its end is told by `ended`.
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    /// Whether it is stopped by SIGSTOP.
    pub fn is_frozen(&self) -> bool {
        self.stat().is_some_and(|fields| fields.first().is_some_and(|state| state == "T"))
    }

    /// A duplicate of one of its descriptors.
    pub fn descriptor(&self, fd: RawFd) -> Result<OwnedFd, Problem> {
        rustix::process::pidfd_getfd(self.pidfd.get_ref(), fd, PidfdGetfdFlags::empty())
            .map_err(|error| Problem::io("taking a descriptor back from the VMM", &error.into()))
    }

    /// Resolves when it has ended; tells how, where that is known (only a parent is told).
    pub async fn ended(&self) -> String {
        drop(self.pidfd.readable().await);
        let waited = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        match waited {
            Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("the VMM ended with code {code}"),
                (_, Some(signal)) => format!("the VMM was killed by signal {signal}"),
                _ => "the VMM ended".into(),
            },
            _ => "the VMM ended".into(),
        }
    }

    /// The fields of /proc/<pid>/stat from the state on: the name before it may contain anything.
    pub fn stat(&self) -> Option<Vec<String>> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        let (_, fields) = text.rsplit_once(')')?;
        Some(fields.split_ascii_whitespace().map(str::to_owned).collect())
    }
}

pub fn note_descriptors(run_dir: &Path, descriptors: &Descriptors) -> Result<(), Problem> {
    let path = descriptors_path(run_dir);
    let text = serde_json::to_vec(descriptors).map_err(|error| Problem::io(path.display(), &error.into()))?;
    fs::write(&path, text).map_err(|error| Problem::io(path.display(), &error))
}

pub fn noted_descriptors(run_dir: &Path) -> Option<Descriptors> {
    serde_json::from_slice(&fs::read(descriptors_path(run_dir)).ok()?).ok()
}

fn descriptors_path(run_dir: &Path) -> PathBuf {
    run_dir.join("vmm.json")
}

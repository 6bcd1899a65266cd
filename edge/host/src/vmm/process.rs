//! A VMM as a process: its lock, its start, its end, and how a new daemon finds it again.
//!
//! Invariants:
//! - `vmm.lock` is locked through an open file that the VMM inherits; the daemon closes its own copy once the VMM has
//!   started. So the lock is held exactly as long as a VMM of the machine lives, whatever becomes of the daemon.
//! - The VMM outlives the daemon: it is in a session of its own, and nothing ties its life to ours.
//! - A VMM has an empty network namespace of its own; the TAP comes to it as a descriptor.
//! - A pid is never trusted by itself: it counts only when that process has the lock file open; signals go by pidfd.
#![allow(unsafe_code)]

use super::snapshot::Identity;
use cloudpal_model::{Kind, Problem};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitId, WaitIdOptions},
};
use serde::{Deserialize, Serialize};
use std::{
    fmt,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
};
use tokio::io::{Interest, unix::AsyncFd};

/// Written before the VMM takes the machine: what whoever adopts it must know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Note {
    /// The VMM's numbers of its descriptors.
    pub lock_fd: RawFd,
    pub tap_fd: RawFd,
    /// Where the guest's memory is a file that the daemon works with.
    pub memory_fd: Option<RawFd>,
    /// As the VMM was started: the daemon that adopts it may be another version, with another VMM.
    pub identity: Identity,
}

impl Note {
    pub fn write(&self, run_dir: &Path) -> Result<(), Problem> {
        let (path, fresh) = (note_path(run_dir), run_dir.join("vmm.json.new"));
        let text = serde_json::to_vec(self).map_err(|error| Problem::io(path.display(), &error.into()))?;
        let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path));
        written.map_err(|error| Problem::io(path.display(), &error))
    }

    pub fn read(run_dir: &Path) -> Option<Note> {
        serde_json::from_slice(&fs::read(note_path(run_dir)).ok()?).ok()
    }

    /// `Err`: the VMM is another driver's, which alone can talk to it.
    pub fn is_of(&self, driver: &str) -> Result<(), Problem> {
        let own = self.identity.driver();
        if own == driver {
            return Ok(());
        }
        let what = format!("the machine runs in a VMM of the driver {own}, not of {driver}");
        let mend = format!("start the daemon with --driver {own} and stop the app, then change the driver");
        Err(Problem::new(Kind::Refused, what, mend))
    }
}

fn note_path(run_dir: &Path) -> PathBuf {
    run_dir.join("vmm.json")
}

/// The machine's lock, not yet handed to a VMM.
pub struct Lock(File);

impl Lock {
    /// `None`: a VMM of this machine lives.
    pub fn take(run_dir: &Path) -> Result<Option<Lock>, Problem> {
        let path = run_dir.join("vmm.lock");
        let place = format!("the lock file {}", path.display());
        // For reading only: a VMM may have it as its standard output, which must not fill a file that nobody bounds.
        let open = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                File::options().create(true).append(true).open(&path).and_then(|_| File::open(&path))
            }
            opened => opened,
        };
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

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A program to start as a VMM.
pub struct Launch<'a> {
    pub command: Command,
    /// Takes its standard error; begun anew.
    pub errors: &'a Path,
    /// Its standard input and output; `None`: nothing.
    pub standard: [Option<OwnedFd>; 2],
    /// User and group; `None`: as the daemon.
    pub user: Option<(u32, u32)>,
    /// The descriptors that it gets besides the three standard ones, under the same numbers.
    pub inherited: &'a [RawFd],
}

impl Launch<'_> {
    pub fn start(self) -> Result<Process, Problem> {
        let Launch { mut command, errors, standard: [input, output], user, inherited } = self;
        let program = command.get_program().to_string_lossy().into_owned();
        drop(fs::remove_file(errors));
        let stderr = File::options().append(true).create_new(true).open(errors);
        let stderr = stderr.map_err(|error| Problem::io(errors.display(), &error))?;
        let given = |descriptor: Option<OwnedFd>| descriptor.map_or_else(Stdio::null, Stdio::from);
        command.stdin(given(input)).stdout(given(output)).stderr(stderr);
        let inherited = inherited.to_vec();
        // SAFETY: between fork and exec only async-signal-safe system calls are made and nothing is allocated; the
        // descriptors are open in the parent for the whole call, so they are in the child.
        unsafe { command.pre_exec(move || confine(user, &inherited)) };
        let child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Problem::new(
                Kind::HostLacks,
                format!("{program} is not installed"),
                "install it, or name the program in the daemon's settings",
            ),
            _ => Problem::io(format!("starting {program}"), &error),
        })?;
        Process::of(child)
    }
}

/// In the child: what needs privilege first, then it is given up.
fn confine(user: Option<(u32, u32)>, inherited: &[RawFd]) -> io::Result<()> {
    rustix::process::setsid()?;
    for &fd in inherited {
        // SAFETY: the parent holds it open until the start is over, so the child has it.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    // SAFETY: a plain system call on numbers.
    checked(unsafe { libc::unshare(libc::CLONE_NEWNET) }.into())?;
    if let Some((uid, gid)) = user {
        // SAFETY: plain system calls on numbers and an empty list. Raw ones: this thread is the process's only one.
        unsafe {
            checked(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()))?;
            checked(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            checked(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
    }
    Ok(())
}

fn checked(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// How a VMM ended, as far as it is known: only a parent is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
    Unknown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::Code(code) => write!(f, "the VMM ended with code {code}"),
            End::Signal(signal) => write!(f, "the VMM was killed by signal {signal}"),
            End::Unknown => f.write_str("the VMM ended"),
        }
    }
}

pub struct Process {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
    end: OnceLock<End>,
}

impl Process {
    /// A child of ours.
    pub fn of(mut child: Child) -> Result<Process, Problem> {
        Process::open(Pid::from_child(&child)).inspect_err(|_| {
            // Nobody could watch it: it must not live.
            drop(child.kill());
            drop(child.wait());
        })
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
        Ok(Process { pid, pidfd, end: OnceLock::new() })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    pub fn signal(&self, signal: Signal) {
        // The process may be gone already; its end is told by `ended`.
        let _ = rustix::process::pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    /// Whether it is stopped by SIGSTOP: every thread of it, since each stops by itself.
    pub fn is_frozen(&self) -> bool {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", self.pid())) else { return false };
        let stopped = |stat: PathBuf| {
            let fields = stat_fields(&fs::read_to_string(stat).ok()?)?;
            Some(fields.first()? == "T")
        };
        let mut all = threads.flatten().map(|thread| stopped(thread.path().join("stat")));
        all.all(|stopped| stopped == Some(true))
    }

    /// A duplicate of one of its descriptors.
    pub fn descriptor(&self, fd: RawFd) -> Result<OwnedFd, Problem> {
        rustix::process::pidfd_getfd(self.pidfd.get_ref(), fd, PidfdGetfdFlags::empty())
            .map_err(|error| Problem::io("taking a descriptor back from the VMM", &error.into()))
    }

    /// Resolves when it has ended.
    pub async fn ended(&self) -> End {
        drop(self.pidfd.readable().await);
        // The kernel tells it once.
        *self.end.get_or_init(|| {
            let waited = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
            let Ok(Some(status)) = waited else { return End::Unknown };
            match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => End::Code(code),
                (_, Some(signal)) => End::Signal(signal),
                _ => End::Unknown,
            }
        })
    }

    /// CPU time so far, in ticks of the clock; and whether its main thread waits for a disk.
    pub fn work_done(&self) -> (u64, bool) {
        let fields = self.stat().unwrap_or_default();
        // proc(5): utime and stime are fields 14 and 15; ours start at field 3.
        let ticks = |at: usize| fields.get(at - 3).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        (ticks(14) + ticks(15), fields.first().is_some_and(|state| state == "D"))
    }

    /// The fields of /proc/<pid>/stat from the state on.
    fn stat(&self) -> Option<Vec<String>> {
        stat_fields(&fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?)
    }
}

/// The name before the state may contain anything, also a parenthesis.
fn stat_fields(text: &str) -> Option<Vec<String>> {
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_ascii_whitespace().map(str::to_owned).collect())
}

/// Ends the VMM if the start does not get to its end, also when its future is dropped.
pub struct Guard {
    process: Arc<Process>,
    armed: bool,
}

impl Guard {
    pub fn new(process: Process) -> Guard {
        Guard { process: Arc::new(process), armed: true }
    }

    pub fn process(&self) -> &Arc<Process> {
        &self.process
    }

    /// The start got to its end.
    pub fn release(mut self) -> Arc<Process> {
        self.armed = false;
        self.process.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            self.process.signal(Signal::KILL);
            // Somebody must wait for it, or it stays as a zombie.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                let process = self.process.clone();
                runtime.spawn(async move { process.ended().await });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::start::patiently;

    fn start(dir: &Path, script: &str) -> Option<Guard> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root starts a VMM in a network namespace of its own");
            return None;
        }
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let errors = dir.join("vmm.log");
        let user = Some((1_900_000_000, 1_900_000_000));
        Some(Guard::new(
            Launch { command, errors: &errors, standard: [None, None], user, inherited: &[] }
                .start()
                .unwrap(),
        ))
    }

    #[tokio::test]
    async fn an_end_is_told_to_everybody_who_asks() {
        let dir = tempfile::tempdir().unwrap();
        let Some(guard) = start(dir.path(), "id -u >&2; exit 3") else { return };
        let process = guard.process();
        assert_eq!(tokio::join!(process.ended(), process.ended()), (End::Code(3), End::Code(3)));
        assert_eq!(process.ended().await.to_string(), "the VMM ended with code 3");
        assert!(fs::read_to_string(dir.path().join("vmm.log")).unwrap().starts_with("1900000000\n"));
    }

    #[tokio::test]
    async fn who_waits_for_a_vmm_that_ends_waits_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let Some(guard) = start(dir.path(), "sleep 0.2; kill -9 $$") else { return };
        let never = std::future::pending::<Result<(), Problem>>();
        let problem = patiently(guard.process(), never).await.unwrap_err();
        assert_eq!(problem.what, "the VMM was killed by signal 9");
    }
}

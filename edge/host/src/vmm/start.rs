//! Boot, wake and adopt: from a specification to a running machine.

use super::{
    QemuDriver,
    accelerator::Accelerator,
    command::{Files, HOLD, Plan, stream},
    control::Control,
    disk,
    machine::{Machine, STARTED},
    memory,
    process::{Descriptors, Lock, Process, note_descriptors, noted_descriptors},
    qmp::Qmp,
    snapshot, tail,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use cloudpal_compute::driver::{MachineSpec, WakeError};
use cloudpal_model::{Kind, Problem, guest::Ask};
use rustix::process::Signal;
use serde_json::json;
use std::{
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// For what takes a tenth of a second or a few on an idle host, and much longer on a busy one under emulation.
const GUEST_PATIENCE: Duration = Duration::from_secs(90);
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);
/// In the machine's run directory, which is root's.
const SOCKETS: &str = "vmm";
/// The kernel's limit of a unix socket's path, less its final zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

pub(super) struct Start<'a> {
    pub driver: &'a QemuDriver,
    pub spec: &'a MachineSpec,
}

/// Ends the VMM if the start does not get to its end, also when its future is dropped.
struct Guard(Arc<Process>, bool);

impl Guard {
    fn new(process: Process) -> Guard {
        Guard(Arc::new(process), true)
    }

    /// The start got to its end.
    fn release(mut self) -> Arc<Process> {
        self.1 = false;
        self.0.clone()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.1 {
            self.0.signal(Signal::KILL);
            // Somebody must wait for it, or it stays as a zombie.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                let process = self.0.clone();
                runtime.spawn(async move { process.ended().await });
            }
        }
    }
}

struct Started {
    guard: Guard,
    qmp: Qmp,
    control: Control,
}

impl Start<'_> {
    pub async fn boot(&self, tap: OwnedFd) -> Result<Arc<Machine>, Problem> {
        self.prepare()?;
        let lock = self.lock()?;
        let booted = self.boot_locked(lock, tap).await;
        self.settle(booted).await
    }

    pub async fn wake(&self, tap: OwnedFd) -> Result<Arc<Machine>, WakeError> {
        self.prepare().map_err(WakeError::Failed)?;
        let lock = self.lock().map_err(WakeError::Failed)?;
        let woken = self.wake_locked(lock, tap).await;
        self.settle(woken).await
    }

    /// After a failure the VMM was killed: waits until it is gone, so that the caller can start another at once.
    async fn settle<T, E>(&self, result: Result<T, E>) -> Result<T, E> {
        let start = Instant::now();
        while result.is_err() && start.elapsed() < ANSWER_PATIENCE {
            match Lock::take(&self.spec.run_dir) {
                Ok(None) => tokio::time::sleep(Duration::from_millis(2)).await,
                Ok(Some(_)) | Err(_) => break,
            }
        }
        result
    }

    async fn boot_locked(&self, lock: Lock, tap: OwnedFd) -> Result<Arc<Machine>, Problem> {
        let spec = self.spec;
        snapshot::discard(&spec.dir)?;
        disk::ensure(&spec.dir, spec.disk_mib)?;
        let memory = self.memory()?;
        let process = self.spawn(lock, tap, &memory, None).await?;
        let started = self.reach(process).await?;
        let booted = self.bring_up(&started).await;
        if let Err(problem) = booted {
            return Err(self.explain_death(&started, problem).await);
        }
        self.finish(started, memory.into()).await
    }

    async fn bring_up(&self, started: &Started) -> Result<(), Problem> {
        let control = &started.control;
        let told = control.wait_for(GUEST_PATIENCE, |told| told.hello).await;
        if !told.is_some_and(|told| told.hello) {
            return Err(fault("the guest did not start"));
        }
        let mut config = self.spec.guest.clone();
        (config.wall_us, config.entropy_base64) = fresh()?;
        let patience = Duration::from_millis(config.ready_timeout_ms) + GUEST_PATIENCE;
        control.ask(Ask::Boot { config: Box::new(config) }, ANSWER_PATIENCE).await?;
        let told = control.wait_for(patience, |told| told.ready || told.app_exited.is_some()).await;
        match told {
            Some(told) if told.app_exited.is_some() => Err(fault("the app ended before it was ready")),
            Some(told) if told.ready => Ok(()),
            _ => Err(fault("the guest was not ready in time")),
        }
    }

    async fn wake_locked(&self, lock: Lock, tap: OwnedFd) -> Result<Arc<Machine>, WakeError> {
        let spec = self.spec;
        let refused = |why| WakeError::SnapshotRefused { why };
        let (description, state_bytes) =
            snapshot::open(spec, &self.driver.identity(spec)).map_err(refused)?;
        let memory = self.memory().map_err(WakeError::Failed)?;
        let state = write_state(&state_bytes).map_err(WakeError::Failed)?;

        let (dir, into) = (spec.dir.clone(), memory.try_clone().map_err(|error| failed_io(&error))?);
        let load =
            tokio::task::spawn_blocking(move || snapshot::load_memory(&dir, &description.blocks, &into));
        let process = self.spawn(lock, tap, &memory, Some(&state)).await.map_err(WakeError::Failed)?;
        // Until it is reached the VMM takes no packet: what a refused snapshot does not answer is still in the TAP.
        load.await.map_err(|error| WakeError::Failed(fault(&error.to_string())))?.map_err(refused)?;
        let started = self.reach(process).await.map_err(WakeError::Failed)?;
        if let Err(problem) = restore(&started.qmp, &state).await {
            let problem = self.explain_death(&started, problem).await;
            return Err(refused(problem.what));
        }
        snapshot::take(&spec.dir).map_err(|error| failed_io(&error))?;
        self.resume(&started.qmp, &started.control).await.map_err(WakeError::Failed)?;
        let machine = self.finish(started, memory.into()).await.map_err(WakeError::Failed)?;
        let dir = spec.dir.clone();
        tokio::task::spawn_blocking(move || snapshot::remove_consumed(&dir));
        Ok(machine)
    }

    /// Lets it run and makes clock and random generator fresh.
    async fn resume(&self, qmp: &Qmp, control: &Control) -> Result<(), Problem> {
        let (wall_us, entropy_base64) = fresh()?;
        qmp.ask("cont", json!({})).await?;
        control.ask(Ask::Resumed { wall_us, entropy_base64 }, ANSWER_PATIENCE).await.map(drop)
    }

    /// Lifts the hold: from here on the machine is whole.
    async fn finish(&self, started: Started, memory: OwnedFd) -> Result<Arc<Machine>, Problem> {
        let marker = self.spec.run_dir.join(STARTED);
        fs::write(&marker, "").map_err(|error| Problem::io(marker.display(), &error))?;
        started.qmp.ask("object-del", json!({ "id": HOLD })).await?;
        let identity = self.driver.identity(self.spec);
        let Started { guard, qmp, control } = started;
        let process = guard.release();
        Ok(Machine::new(self.spec.clone(), identity, process, qmp, control, memory))
    }

    pub async fn adopt(&self) -> Result<Option<(Arc<Machine>, OwnedFd)>, Problem> {
        let spec = self.spec;
        if !spec.run_dir.is_dir() || Lock::take(&spec.run_dir)?.is_some() {
            return Ok(None);
        }
        let mend = "end the QEMU process of this machine by hand, then restart the daemon";
        let lost = || {
            let what = format!("a VMM holds {}/vmm.lock, but it is not found", spec.run_dir.display());
            Problem::new(Kind::Internal, what, mend)
        };
        let descriptors = noted_descriptors(&spec.run_dir).ok_or_else(lost)?;
        let Some(process) = Process::find(&spec.run_dir, descriptors.lock_fd) else {
            // It may have ended at this very moment.
            return if Lock::take(&spec.run_dir)?.is_some() { Ok(None) } else { Err(lost()) };
        };
        let guard = Guard::new(process);
        let process = guard.0.clone();
        if !spec.run_dir.join(STARTED).exists() {
            // It was in the middle of a boot or a wake; what it was told is not known. It starts anew.
            drop(guard);
            process.ended().await;
            return Ok(None);
        }
        let tap = process.descriptor(descriptors.tap_fd)?;
        let memory = process.descriptor(descriptors.memory_fd)?;
        // It runs on: a snapshot that it was writing, or had just written, must never be woken.
        snapshot::discard(&spec.dir)?;
        process.signal(Signal::CONT);
        let qmp = self.connect(&process, "qmp.sock", Qmp::connect).await?;
        let control = self.connect(&process, "control.sock", Control::connect).await?;
        if qmp.ask("query-status", json!({})).await?["running"] != true {
            qmp.ask("cont", json!({})).await?;
        }
        // A no-op, unless the daemon died between the marker and lifting the hold.
        drop(qmp.ask("object-del", json!({ "id": HOLD })).await);
        guard.release();
        let machine = Machine::new(spec.clone(), self.driver.identity(spec), process, qmp, control, memory);
        Ok(Some((machine, tap)))
    }

    fn prepare(&self) -> Result<(), Problem> {
        for dir in [&self.spec.dir, &self.spec.run_dir] {
            fs::create_dir_all(dir).map_err(|error| Problem::io(dir.display(), &error))?;
        }
        let longest = self.sockets_dir().join("control.sock");
        if longest.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            let what = format!("{} is longer than a unix socket's path may be", longest.display());
            return Err(Problem::new(Kind::Invalid, what, "choose a shorter --run-dir"));
        }
        Ok(())
    }

    fn lock(&self) -> Result<Lock, Problem> {
        let busy = || {
            Problem::new(Kind::Refused, format!("a VMM of {} runs already", self.spec.id), "stop it first")
        };
        Lock::take(&self.spec.run_dir)?.ok_or_else(busy)
    }

    fn memory(&self) -> Result<File, Problem> {
        memory::create(&format!("cloudpal-{}", self.spec.id), u64::from(self.spec.memory_mib) << 20)
            .map_err(|error| Problem::io("the guest's memory", &error))
    }

    /// The user of this machine's VMM alone, and its group: a group of its own too, or the one that may use KVM.
    fn user(&self) -> Result<Option<(u32, u32)>, Problem> {
        let Some(first) = self.driver.settings.first_uid else { return Ok(None) };
        let uid = first.saturating_add(self.spec.id.0);
        let gid = match self.driver.accelerator {
            Accelerator::Tcg => uid,
            Accelerator::Kvm => {
                fs::metadata("/dev/kvm").map_err(|error| Problem::io("/dev/kvm", &error))?.gid()
            }
        };
        Ok(Some((uid, gid)))
    }

    /// Where the VMM makes its sockets. It is the VMM's own, so nothing in it is opened by us but as a socket:
    /// a hostile VMM could have put a link there.
    fn sockets_dir(&self) -> PathBuf {
        self.spec.run_dir.join(SOCKETS)
    }

    /// Makes the sockets' directory anew and gives it to the VMM; files reach the VMM as descriptors.
    fn own_sockets_dir(&self, user: Option<(u32, u32)>) -> Result<(), Problem> {
        let dir = self.sockets_dir();
        let uid = user.map(|(uid, _)| uid);
        let made = match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => fs::DirBuilder::new().mode(0o700).create(&dir),
        };
        let owned = made.and_then(|()| std::os::unix::fs::lchown(&dir, uid, uid));
        owned.map_err(|error| Problem::io(dir.display(), &error))
    }

    /// Starts the VMM. It waits at its monitor until it is reached.
    async fn spawn(
        &self,
        lock: Lock,
        tap: OwnedFd,
        memory: &File,
        state: Option<&File>,
    ) -> Result<Guard, Problem> {
        let (driver, spec) = (self.driver, self.spec);
        let descriptors =
            Descriptors { lock_fd: lock.as_raw_fd(), tap_fd: tap.as_raw_fd(), memory_fd: memory.as_raw_fd() };
        for name in [STARTED, "vmm.pid", "vmm.log", "console.log"] {
            drop(fs::remove_file(spec.run_dir.join(name)));
        }
        note_descriptors(&spec.run_dir, &descriptors)?;
        let user = self.user()?;
        self.own_sockets_dir(user)?;
        let files = Files::open(&driver.settings.guest_dir, spec, &self.sockets_dir())?;
        let plan = Plan {
            program: &driver.settings.qemu_binary,
            accelerator: driver.accelerator,
            counter_khz: driver.counter.khz().await,
            spec,
            descriptors: &descriptors,
            files: &files,
            incoming: state.is_some(),
        };
        let mut inherited = vec![descriptors.lock_fd, descriptors.tap_fd, descriptors.memory_fd];
        inherited.extend(files.descriptors());
        inherited.extend(state.map(|state| state.as_raw_fd()));
        let errors = spec.run_dir.join("vmm.log");
        let process = Process::start(plan.command(), &errors, user, &inherited)?;
        process.note(&spec.run_dir)?;
        // From here on the VMM alone holds the lock.
        drop(lock);
        Ok(Guard::new(process))
    }

    async fn reach(&self, guard: Guard) -> Result<Started, Problem> {
        let qmp = self.connect(&guard.0, "qmp.sock", Qmp::connect).await?;
        let control = self.connect(&guard.0, "control.sock", Control::connect).await?;
        Ok(Started { guard, qmp, control })
    }

    /// Connects to one of the VMM's sockets as soon as it listens.
    async fn connect<T, F: Future<Output = Result<T, Problem>>>(
        &self,
        process: &Process,
        socket: &str,
        connect: impl Fn(PathBuf) -> F,
    ) -> Result<T, Problem> {
        let path = self.sockets_dir().join(socket);
        let start = Instant::now();
        loop {
            let problem = match connect(path.clone()).await {
                Ok(connection) => return Ok(connection),
                Err(problem) => problem,
            };
            if start.elapsed() > ANSWER_PATIENCE {
                return Err(problem);
            }
            let pause = Duration::from_millis(2);
            if let Ok(end) = tokio::time::timeout(pause, process.ended()).await {
                let said = tail(&self.spec.run_dir.join("vmm.log"));
                return Err(fault(&format!("{end} at its start: {said}")));
            }
        }
    }

    /// If the VMM has ended, that is the cause, and its last words say more.
    async fn explain_death(&self, started: &Started, problem: Problem) -> Problem {
        let dead = tokio::time::timeout(Duration::from_millis(500), started.guard.0.ended()).await;
        let mut what = format!("{}: {}", self.spec.id, problem.what);
        if let Ok(end) = dead {
            what += &format!("; {end}");
        }
        for (name, path) in [
            ("the VMM said", self.spec.run_dir.join("vmm.log")),
            ("the guest's console said", self.spec.run_dir.join("console.log")),
            ("the app's log ends with", self.spec.dir.join("log")),
        ] {
            let said = tail(&path);
            if !said.is_empty() {
                what += &format!("\n  {name}: {said}");
            }
        }
        Problem::new(problem.kind, what, "see the machine's log")
    }
}

async fn restore(qmp: &Qmp, state: &File) -> Result<(), Problem> {
    set_migration(qmp).await?;
    qmp.ask("migrate-incoming", json!({ "uri": stream(state.as_raw_fd()) })).await?;
    migrated(qmp).await
}

/// The stream carries devices only, and nothing is announced: the host's neighbour entries are permanent.
pub(super) async fn set_migration(qmp: &Qmp) -> Result<(), Problem> {
    let capabilities = json!([{ "capability": "x-ignore-shared", "state": true }]);
    qmp.ask("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
    qmp.ask("migrate-set-parameters", json!({ "announce-rounds": 0 })).await.map(drop)
}

pub(super) async fn migrated(qmp: &Qmp) -> Result<(), Problem> {
    let start = Instant::now();
    loop {
        let info = qmp.ask("query-migrate", json!({})).await?;
        match info["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let why = info["error-desc"].as_str().unwrap_or("no reason given");
                return Err(fault(&format!("the device state could not be moved: {why}")));
            }
            _ if start.elapsed() > ANSWER_PATIENCE => {
                return Err(fault("moving the device state takes too long"));
            }
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

fn write_state(bytes: &[u8]) -> Result<File, Problem> {
    let write = || {
        let mut file = memory::create("cloudpal-state", 0)?;
        file.write_all(bytes)?;
        std::io::Seek::rewind(&mut file)?;
        Ok(file)
    };
    write().map_err(|error: std::io::Error| Problem::io("the device state", &error))
}

/// The time, and entropy for the guest.
fn fresh() -> Result<(u64, String), Problem> {
    let mut entropy = [0; 64];
    getrandom::fill(&mut entropy).map_err(|error| fault(&format!("the host's random generator: {error}")))?;
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok((u64::try_from(wall.as_micros()).unwrap_or(0), BASE64_STANDARD.encode(entropy)))
}

fn failed_io(error: &std::io::Error) -> WakeError {
    WakeError::Failed(Problem::io("waking", error))
}

fn fault(what: &str) -> Problem {
    Problem::new(Kind::Internal, what, "see the machine's log")
}

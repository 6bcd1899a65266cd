//! Boot, wake and adopt: from a specification to a running machine.
//!
//! Invariants:
//! - Only what is wrong with a snapshot refuses it. What is wrong with the host leaves it as it is.
//! - A VMM that is whole is never ended because it could not be adopted now.

use super::{
    super::{
        accelerator::Accelerator,
        cgroup::{Cgroups, Group, Limits},
        control::Control,
        disk,
        logs::cleaned,
        process::{End, Guard, Launch, Lock, Note, Process},
        snapshot::{self, Identity},
        start::{
            self, ADOPTION_PAUSE, ADOPTION_TRIES, ANSWER_PATIENCE, LONGEST_PATIENCE, blocking, blocking_io,
            fault, sockets_dir,
        },
    },
    QemuDriver, QemuSettings, STARTED,
    command::{Files, HOLD, Plan, stream},
    machine::Machine,
    memory::{self, Block},
    qmp::Qmp,
};
use cloudpal_compute::driver::{MachineSpec, WakeError};
use cloudpal_model::{Kind, Problem};
use rustix::process::Signal;
use serde_json::json;
use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};

const REJECTED: &str = "the device state could not be moved";
/// QEMU's own memory and threads; the translated code comes on top.
const OVERHEAD_MIB: u32 = 256;
const TRANSLATED_MIB: u32 = 128;
const THREADS: u32 = 96;

pub struct Start<'a> {
    pub driver: &'a QemuDriver,
    pub spec: &'a MachineSpec,
}

struct Started {
    guard: Guard,
    group: Option<Group>,
    qmp: Qmp,
    control: Control,
}

impl Start<'_> {
    pub async fn boot(&self, tap: OwnedFd) -> Result<Arc<Machine>, Problem> {
        self.fits()?;
        start::prepare(self.spec)?;
        let lock = start::lock(self.spec).await?;
        let booted = self.boot_locked(lock, tap).await;
        self.settle(booted).await
    }

    pub async fn wake(&self, tap: OwnedFd) -> Result<Arc<Machine>, WakeError> {
        self.fits().and_then(|()| start::prepare(self.spec)).map_err(WakeError::Failed)?;
        let lock = start::lock(self.spec).await.map_err(WakeError::Failed)?;
        let woken = self.wake_locked(lock, tap).await;
        self.settle(woken).await
    }

    async fn settle<T, E>(&self, result: Result<T, E>) -> Result<T, E> {
        let settled = start::settle(self.spec, result).await;
        if settled.is_err() {
            // Its group could not go before it had ended.
            self.driver.cgroups.sweep();
        }
        settled
    }

    fn fits(&self) -> Result<(), Problem> {
        if self.spec.unikernel.is_none() {
            return Ok(());
        }
        let what = "a unikernel does not find its devices on QEMU's microvm";
        Err(Problem::new(
            Kind::HostLacks,
            what,
            "run it on a host with KVM, where the embedded driver serves",
        ))
    }

    async fn boot_locked(&self, lock: Lock, tap: OwnedFd) -> Result<Arc<Machine>, Problem> {
        let (dir, disk_mib) = (self.spec.dir.clone(), self.spec.disk_mib);
        blocking_io("removing the old snapshot", move || snapshot::discard(&dir)).await?;
        let dir = self.spec.dir.clone();
        blocking(move || disk::ensure(&dir, disk_mib)).await??;
        let memory = self.memory()?;
        let spawned = self.spawn(lock, tap, &memory, None).await?;
        let started = self.reach(spawned).await?;
        let booted = start::bring_up(self.spec, &started.control).await;
        if let Err(problem) = booted {
            return Err(start::explain_death(self.spec, started.guard.process(), problem).await);
        }
        self.finish(started, memory.into()).await
    }

    async fn wake_locked(&self, lock: Lock, tap: OwnedFd) -> Result<Arc<Machine>, WakeError> {
        let spec = self.spec;
        let memory = self.memory().map_err(WakeError::Failed)?;
        let (owned, identity) = (spec.clone(), self.driver.identity(spec));
        let opened =
            blocking(move || snapshot::open(&owned, &identity)).await.map_err(WakeError::Failed)??;
        let blocks: Vec<Block> = opened.detail()?;
        let from = opened.file("memory")?;
        let mut state = opened.file("state")?;
        let state = blocking(move || into_memory(&mut state)).await.map_err(WakeError::Failed)?;
        let state = state.map_err(|error| snapshot::unreadable("state", &error))?;

        let into = memory.try_clone().map_err(|error| failed_io(&error))?;
        let load = tokio::task::spawn_blocking(move || memory::load(&from, &blocks, &into));
        // The VMM's number of it.
        let state_fd = state.as_raw_fd();
        let spawned = self.spawn(lock, tap, &memory, Some(state)).await.map_err(WakeError::Failed)?;
        // Until it is reached the VMM takes no packet: what a refused snapshot does not answer is still in the TAP.
        load.await
            .map_err(|error| WakeError::Failed(fault(&error.to_string())))?
            .map_err(|error| snapshot::unreadable("memory", &error))?
            .map_err(|why| WakeError::SnapshotRefused { why })?;
        let started = self.reach(spawned).await.map_err(WakeError::Failed)?;
        let process = started.guard.process();
        if let Err(problem) = start::patiently(process, restore(&started.qmp, state_fd)).await {
            return Err(self.judge(&started, problem).await);
        }
        let dir = spec.dir.clone();
        let taken = blocking_io("waking", move || snapshot::take(&dir)).await;
        taken.map_err(WakeError::Failed)?;
        let resumed = start::patiently(process, self.resume(&started.qmp, &started.control)).await;
        if let Err(problem) = resumed {
            return Err(WakeError::Failed(start::explain_death(spec, process, problem).await));
        }
        let machine = self.finish(started, memory.into()).await.map_err(WakeError::Failed)?;
        let dir = spec.dir.clone();
        tokio::task::spawn_blocking(move || snapshot::remove_consumed(&dir));
        Ok(machine)
    }

    /// Lets it run and makes clock and random generator fresh.
    async fn resume(&self, qmp: &Qmp, control: &Control) -> Result<(), Problem> {
        qmp.ask("cont", json!({})).await?;
        start::refresh(control, LONGEST_PATIENCE).await
    }

    /// Whose fault a failed restore is. QEMU says what it does not like in a stream and ends by itself; what was
    /// killed, or only took too long, says nothing of the snapshot.
    async fn judge(&self, started: &Started, problem: Problem) -> WakeError {
        let process = started.guard.process();
        let rejected = problem.what.contains(REJECTED);
        let end = tokio::time::timeout(Duration::from_millis(500), process.ended()).await;
        let problem = start::explain_death(self.spec, process, problem).await;
        match end {
            Ok(End::Code(_)) => WakeError::SnapshotRefused { why: problem.what },
            Err(_) if rejected => WakeError::SnapshotRefused { why: problem.what },
            _ => WakeError::Failed(problem),
        }
    }

    /// Lifts the hold: from here on the machine is whole.
    async fn finish(&self, started: Started, memory: OwnedFd) -> Result<Arc<Machine>, Problem> {
        let marker = self.spec.run_dir.join(STARTED);
        fs::write(&marker, "").map_err(|error| Problem::io(marker.display(), &error))?;
        started.qmp.ask("object-del", json!({ "id": HOLD })).await?;
        let identity = self.driver.identity(self.spec);
        let Started { guard, group, qmp, control } = started;
        let process = guard.release();
        Ok(Machine::new(self.spec.clone(), identity, process, qmp, control, memory, group))
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
        let note = Note::read(&spec.run_dir).ok_or_else(lost)?;
        note.is_of("qemu")?;
        let Some(process) = Process::find(&spec.run_dir, note.lock_fd) else {
            // It may have ended at this very moment.
            return if Lock::take(&spec.run_dir)?.is_some() { Ok(None) } else { Err(lost()) };
        };
        if !spec.run_dir.join(STARTED).exists() {
            // It was in the middle of a boot or a wake; what it was told is not known. It starts anew.
            process.signal(Signal::KILL);
            process.ended().await;
            return Ok(None);
        }
        let process = Arc::new(process);
        let mut tried = 1;
        loop {
            // It is whole: whatever goes wrong with us, it is not ended.
            match self.take_over(&process, &note).await {
                Ok(adopted) => return Ok(Some(adopted)),
                Err(problem) if tried == ADOPTION_TRIES => return Err(problem),
                Err(problem) => tracing::warn!(machine = %spec.id, %problem, "not adopted yet"),
            }
            tried += 1;
            tokio::time::sleep(ADOPTION_PAUSE).await;
            if Lock::take(&spec.run_dir)?.is_some() {
                return Ok(None);
            }
        }
    }

    async fn take_over(
        &self,
        process: &Arc<Process>,
        note: &Note,
    ) -> Result<(Arc<Machine>, OwnedFd), Problem> {
        let spec = self.spec;
        let tap = process.descriptor(note.tap_fd)?;
        let memory = process.descriptor(note.memory_fd.unwrap_or(-1))?;
        // It runs on: a snapshot that it was writing, or had just written, must never be woken.
        let dir = spec.dir.clone();
        blocking_io("removing the old snapshot", move || snapshot::discard(&dir)).await?;
        process.signal(Signal::CONT);
        let qmp = start::connect(spec, process, "qmp.sock", ANSWER_PATIENCE, Qmp::connect).await?;
        let control =
            start::connect(spec, process, "control.sock", ANSWER_PATIENCE, Control::connect).await?;
        if qmp.ask("query-status", json!({})).await?["running"] != true {
            qmp.ask("cont", json!({})).await?;
        }
        // A no-op, unless the daemon died between the marker and lifting the hold.
        drop(qmp.ask("object-del", json!({ "id": HOLD })).await);
        let identity = note.identity.clone();
        let group = self.driver.cgroups.group_of(process.pid());
        let process = process.clone();
        Ok((Machine::new(spec.clone(), identity, process, qmp, control, memory, group), tap))
    }

    fn memory(&self) -> Result<File, Problem> {
        memory::create(&format!("cloudpal-{}", self.spec.id), u64::from(self.spec.memory_mib) << 20)
            .map_err(|error| Problem::io("the guest's memory", &error))
    }

    /// Starts the VMM. It waits at its monitor until it is reached.
    async fn spawn(
        &self,
        lock: Lock,
        tap: OwnedFd,
        memory: &File,
        state: Option<File>,
    ) -> Result<(Guard, Option<Group>), Problem> {
        let driver = self.driver;
        let memory = memory.try_clone().map_err(|error| Problem::io("the guest's memory", &error))?;
        let spawn = Spawn {
            settings: driver.settings.clone(),
            accelerator: driver.accelerator,
            counter_khz: driver.counter.khz().await,
            identity: driver.identity(self.spec),
            spec: self.spec.clone(),
            cgroups: driver.cgroups.clone(),
            lock,
            tap,
            memory,
            state,
        };
        blocking(move || spawn.run()).await?
    }

    async fn reach(&self, (guard, group): (Guard, Option<Group>)) -> Result<Started, Problem> {
        let (spec, process) = (self.spec, guard.process());
        let qmp = start::connect(spec, process, "qmp.sock", ANSWER_PATIENCE, Qmp::connect).await?;
        let control =
            start::connect(spec, process, "control.sock", ANSWER_PATIENCE, Control::connect).await?;
        Ok(Started { guard, group, qmp, control })
    }
}

/// Everything that a start of the VMM needs, for a thread that may wait for the disk.
struct Spawn {
    settings: QemuSettings,
    accelerator: Accelerator,
    counter_khz: u64,
    identity: Identity,
    spec: MachineSpec,
    cgroups: Cgroups,
    lock: Lock,
    tap: OwnedFd,
    memory: File,
    state: Option<File>,
}

impl Spawn {
    fn run(self) -> Result<(Guard, Option<Group>), Problem> {
        let spec = &self.spec;
        for name in [STARTED, "vmm.pid", "console.log"] {
            drop(fs::remove_file(spec.run_dir.join(name)));
        }
        let note = Note {
            lock_fd: self.lock.as_raw_fd(),
            tap_fd: self.tap.as_raw_fd(),
            memory_fd: Some(self.memory.as_raw_fd()),
            identity: self.identity,
        };
        note.write(&spec.run_dir)?;
        let user = start::user(self.settings.first_uid, spec, self.accelerator)?;
        start::own_sockets_dir(spec, user)?;
        let files = Files::open(&self.settings.guest_dir, spec, &sockets_dir(spec))?;
        let plan = Plan {
            program: &self.settings.qemu_binary,
            accelerator: self.accelerator,
            counter_khz: self.counter_khz,
            spec,
            tap_fd: note.tap_fd,
            memory_fd: self.memory.as_raw_fd(),
            files: &files,
            incoming: self.state.is_some(),
        };
        let mut inherited = vec![note.lock_fd, note.tap_fd, self.memory.as_raw_fd()];
        inherited.extend(files.descriptors());
        inherited.extend(self.state.as_ref().map(AsRawFd::as_raw_fd));
        let errors = spec.run_dir.join("vmm.log");
        let launch = Launch {
            command: plan.command(),
            errors: &errors,
            standard: [None, None],
            user,
            inherited: &inherited,
        };
        let guard = Guard::new(launch.start()?);
        guard.process().note(&spec.run_dir)?;
        let translated_mib = if self.accelerator == Accelerator::Tcg { TRANSLATED_MIB } else { 0 };
        let limits = Limits {
            memory_mib: spec.memory_mib,
            overhead_mib: OVERHEAD_MIB + translated_mib,
            vcpus: spec.vcpus,
            threads: THREADS,
        };
        let group = self.cgroups.hold(guard.process().pid(), limits);
        let group = group.map_err(|error| Problem::io("the VMM's cgroup", &error))?;
        // From here on the VMM alone holds the lock.
        Ok((guard, group))
    }
}

async fn restore(qmp: &Qmp, state_fd: RawFd) -> Result<(), Problem> {
    set_migration(qmp).await?;
    qmp.ask("migrate-incoming", json!({ "uri": stream(state_fd) })).await?;
    migrated(qmp).await
}

/// The stream carries devices only, and nothing is announced: the host's neighbour entries are permanent.
pub async fn set_migration(qmp: &Qmp) -> Result<(), Problem> {
    let capabilities = json!([{ "capability": "x-ignore-shared", "state": true }]);
    qmp.ask("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
    qmp.ask("migrate-set-parameters", json!({ "announce-rounds": 0 })).await.map(drop)
}

/// Returns when it is over: how long that may take is the caller's to say.
pub async fn migrated(qmp: &Qmp) -> Result<(), Problem> {
    loop {
        let info = qmp.ask("query-migrate", json!({})).await?;
        match info["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => {
                let why = info["error-desc"].as_str().unwrap_or("no reason given");
                return Err(fault(&format!("{REJECTED}: {}", cleaned(why, 400))));
            }
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

/// The VMM reads it from where it begins.
fn into_memory(state: &mut File) -> io::Result<File> {
    let mut copy = memory::create("cloudpal-state", 0)?;
    io::copy(state, &mut copy)?;
    io::Seek::rewind(&mut copy)?;
    Ok(copy)
}

fn failed_io(error: &io::Error) -> WakeError {
    WakeError::Failed(Problem::io("waking", error))
}

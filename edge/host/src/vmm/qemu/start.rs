//! Boot, wake and adopt: from a specification to a running machine.
//!
//! Invariants:
//! - Only what is wrong with a snapshot refuses it. What is wrong with the host leaves it as it is.
//! - A VMM that is whole is never ended because it could not be adopted now.

use super::{
    super::{
        control::Control,
        disk,
        process::{Guard, Launch, Lock, Note, Process},
        snapshot,
        start::{self, ANSWER_PATIENCE, blocking, blocking_io, fault, sockets_dir},
    },
    QemuDriver, STARTED,
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
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

pub struct Start<'a> {
    pub driver: &'a QemuDriver,
    pub spec: &'a MachineSpec,
}

struct Started {
    guard: Guard,
    qmp: Qmp,
    control: Control,
}

impl Start<'_> {
    pub async fn boot(&self, tap: OwnedFd) -> Result<Arc<Machine>, Problem> {
        self.fits()?;
        start::prepare(self.spec)?;
        let lock = start::lock(self.spec).await?;
        let booted = self.boot_locked(lock, tap).await;
        start::settle(self.spec, booted).await
    }

    pub async fn wake(&self, tap: OwnedFd) -> Result<Arc<Machine>, WakeError> {
        self.fits().and_then(|()| start::prepare(self.spec)).map_err(WakeError::Failed)?;
        let lock = start::lock(self.spec).await.map_err(WakeError::Failed)?;
        let woken = self.wake_locked(lock, tap).await;
        start::settle(self.spec, woken).await
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
        let process = self.spawn(lock, tap, &memory, None).await?;
        let started = self.reach(process).await?;
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
        let process = self.spawn(lock, tap, &memory, Some(&state)).await.map_err(WakeError::Failed)?;
        // Until it is reached the VMM takes no packet: what a refused snapshot does not answer is still in the TAP.
        load.await
            .map_err(|error| WakeError::Failed(fault(&error.to_string())))?
            .map_err(|error| snapshot::unreadable("memory", &error))?
            .map_err(|why| WakeError::SnapshotRefused { why })?;
        let started = self.reach(process).await.map_err(WakeError::Failed)?;
        if let Err(problem) = restore(&started.qmp, &state).await {
            let problem = start::explain_death(spec, started.guard.process(), problem).await;
            return Err(WakeError::SnapshotRefused { why: problem.what });
        }
        let dir = spec.dir.clone();
        let taken = blocking_io("waking", move || snapshot::take(&dir)).await;
        taken.map_err(WakeError::Failed)?;
        self.resume(&started.qmp, &started.control).await.map_err(WakeError::Failed)?;
        let machine = self.finish(started, memory.into()).await.map_err(WakeError::Failed)?;
        let dir = spec.dir.clone();
        tokio::task::spawn_blocking(move || snapshot::remove_consumed(&dir));
        Ok(machine)
    }

    /// Lets it run and makes clock and random generator fresh.
    async fn resume(&self, qmp: &Qmp, control: &Control) -> Result<(), Problem> {
        qmp.ask("cont", json!({})).await?;
        start::refresh(control, ANSWER_PATIENCE).await
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
        let note = Note::read(&spec.run_dir).ok_or_else(lost)?;
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
        let tap = process.descriptor(note.tap_fd)?;
        let memory = process.descriptor(note.memory_fd.ok_or_else(lost)?)?;
        // It runs on: a snapshot that it was writing, or had just written, must never be woken.
        let dir = spec.dir.clone();
        blocking_io("removing the old snapshot", move || snapshot::discard(&dir)).await?;
        process.signal(Signal::CONT);
        let qmp = start::connect(spec, &process, "qmp.sock", ANSWER_PATIENCE, Qmp::connect).await?;
        let control =
            start::connect(spec, &process, "control.sock", ANSWER_PATIENCE, Control::connect).await?;
        if qmp.ask("query-status", json!({})).await?["running"] != true {
            qmp.ask("cont", json!({})).await?;
        }
        // A no-op, unless the daemon died between the marker and lifting the hold.
        drop(qmp.ask("object-del", json!({ "id": HOLD })).await);
        let machine = Machine::new(spec.clone(), note.identity, Arc::new(process), qmp, control, memory);
        Ok(Some((machine, tap)))
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
        state: Option<&File>,
    ) -> Result<Guard, Problem> {
        let (driver, spec) = (self.driver, self.spec);
        let note = Note {
            lock_fd: lock.as_raw_fd(),
            tap_fd: tap.as_raw_fd(),
            memory_fd: Some(memory.as_raw_fd()),
            identity: driver.identity(spec),
        };
        for name in [STARTED, "vmm.pid", "console.log"] {
            drop(fs::remove_file(spec.run_dir.join(name)));
        }
        note.write(&spec.run_dir)?;
        let user = start::user(driver.settings.first_uid, spec, driver.accelerator)?;
        start::own_sockets_dir(spec, user)?;
        let files = Files::open(&driver.settings.guest_dir, spec, &sockets_dir(spec))?;
        let plan = Plan {
            program: &driver.settings.qemu_binary,
            accelerator: driver.accelerator,
            counter_khz: driver.counter.khz().await,
            spec,
            tap_fd: note.tap_fd,
            memory_fd: memory.as_raw_fd(),
            files: &files,
            incoming: state.is_some(),
        };
        let mut inherited = vec![note.lock_fd, note.tap_fd, memory.as_raw_fd()];
        inherited.extend(files.descriptors());
        inherited.extend(state.map(|state| state.as_raw_fd()));
        let errors = spec.run_dir.join("vmm.log");
        let launch = Launch { command: plan.command(), errors: &errors, user, inherited: &inherited };
        let guard = Guard::new(launch.start()?);
        guard.process().note(&spec.run_dir)?;
        // From here on the VMM alone holds the lock.
        drop(lock);
        Ok(guard)
    }

    async fn reach(&self, guard: Guard) -> Result<Started, Problem> {
        let (spec, process) = (self.spec, guard.process());
        let qmp = start::connect(spec, process, "qmp.sock", ANSWER_PATIENCE, Qmp::connect).await?;
        let control =
            start::connect(spec, process, "control.sock", ANSWER_PATIENCE, Control::connect).await?;
        Ok(Started { guard, qmp, control })
    }
}

async fn restore(qmp: &Qmp, state: &File) -> Result<(), Problem> {
    set_migration(qmp).await?;
    qmp.ask("migrate-incoming", json!({ "uri": stream(state.as_raw_fd()) })).await?;
    migrated(qmp).await
}

/// The stream carries devices only, and nothing is announced: the host's neighbour entries are permanent.
pub async fn set_migration(qmp: &Qmp) -> Result<(), Problem> {
    let capabilities = json!([{ "capability": "x-ignore-shared", "state": true }]);
    qmp.ask("migrate-set-capabilities", json!({ "capabilities": capabilities })).await?;
    qmp.ask("migrate-set-parameters", json!({ "announce-rounds": 0 })).await.map(drop)
}

pub async fn migrated(qmp: &Qmp) -> Result<(), Problem> {
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

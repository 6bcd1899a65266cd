//! Boot, wake and adopt: from a specification to a running machine.
//!
//! Invariants:
//! - Only what is wrong with a snapshot refuses it. What is wrong with the host leaves it as it is.
//! - The files of the next snapshot are the daemon's, made before the VMM starts: it can fill them and nothing else.

use super::{
    super::{
        accelerator::Accelerator,
        cgroup::{Group, Limits},
        control::Control,
        disk,
        process::{Guard, Launch, Lock, Note, Process},
        snapshot,
        start::{self, ANSWER_PATIENCE, GUEST_PATIENCE, blocking, blocking_io, fault, sockets_dir},
    },
    FirecrackerDriver, STARTED,
    api::Api,
    jail::{self, JailFile, SOCKETS},
    log::{self, Log},
    machine::Machine,
    memory::{self, Block},
    rates,
    relay::{DEVICE, Relay},
};
use cloudpal_compute::driver::{MachineSpec, WakeError};
use cloudpal_model::{Problem, Rates};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::fs::{PermissionsExt, fchown},
    },
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// Firecracker's own memory, page tables, and the kernel's part of KVM.
const OVERHEAD_MIB: u32 = 64;
const THREADS: u32 = 16;
/// A guest that lost a connection does not say so; it is asked again on another.
const TRY_PATIENCE: Duration = Duration::from_secs(5);
const FORK_PATIENCE: Duration = Duration::from_secs(2);
const API: &str = "api.sock";
pub const VSOCK: &str = "v.sock";
/// The VMM's numbers of what the daemon that adopts it looks for.
const TAP_KEEPER_FD: RawFd = 0;
const LOCK_FD: RawFd = 1;
/// Where the VMM finds what it is to fill at the next sleep, in its jail and in the machine's directory.
pub const NEXT: [&str; 2] = ["next.memory", "next.state"];

/// What a snapshot says beside its files.
#[derive(Serialize, Deserialize)]
pub struct Detail {
    pub blocks: Vec<Block>,
    /// They are in Firecracker's state, too.
    pub rates: Rates,
}

const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=k random.trust_cpu=on audit=0 lsm= \
    8250.nr_uarts=1 i8042.noaux i8042.nokbd cryptomgr.notests";

pub struct Start<'a> {
    pub driver: &'a FirecrackerDriver,
    pub spec: &'a MachineSpec,
}

/// A VMM that runs and has a way for packets.
struct Started {
    guard: Guard,
    api: Api,
    relay: Relay,
    log: Log,
    group: Option<Group>,
}

impl Start<'_> {
    pub async fn boot(&self, tap: OwnedFd) -> Result<Arc<Machine>, Problem> {
        start::prepare(self.spec)?;
        let lock = start::lock(self.spec).await?;
        let booted = self.boot_locked(lock, tap).await;
        start::settle(self.spec, booted).await
    }

    pub async fn wake(&self, tap: OwnedFd) -> Result<Arc<Machine>, WakeError> {
        start::prepare(self.spec).map_err(WakeError::Failed)?;
        let lock = start::lock(self.spec).await.map_err(WakeError::Failed)?;
        let woken = self.wake_locked(lock, tap).await;
        start::settle(self.spec, woken).await
    }

    async fn boot_locked(&self, lock: Lock, tap: OwnedFd) -> Result<Arc<Machine>, Problem> {
        let (dir, disk_mib) = (self.spec.dir.clone(), self.spec.disk_mib);
        blocking_io("removing the old snapshot", move || snapshot::discard(&dir)).await?;
        let dir = self.spec.dir.clone();
        blocking(move || disk::ensure(&dir, disk_mib)).await??;
        let started = self.spawn(lock, tap, None).await?;
        let control = match self.bring_up(&started).await {
            Ok(control) => control,
            Err(problem) => {
                return Err(start::explain_death(self.spec, started.guard.process(), problem).await);
            }
        };
        self.finish(started, control)
    }

    async fn bring_up(&self, started: &Started) -> Result<Option<Control>, Problem> {
        for (path, body) in self.configuration() {
            started.api.put(&path, &body, ANSWER_PATIENCE).await?;
        }
        let go = json!({ "action_type": "InstanceStart" });
        started.api.put("/actions", &go, ANSWER_PATIENCE).await?;
        if self.spec.unikernel.is_some() {
            return Ok(None);
        }
        let process = started.guard.process();
        let control =
            start::connect(self.spec, process, VSOCK, GUEST_PATIENCE, Control::connect_vsock).await?;
        start::bring_up(self.spec, &control).await?;
        Ok(Some(control))
    }

    fn configuration(&self) -> Vec<(String, Value)> {
        let spec = self.spec;
        let mut source = json!({ "kernel_image_path": "kernel", "boot_args": KERNEL_PARAMETERS });
        let (mut has_initrd, mut has_root) = (true, true);
        if let Some(own) = &spec.unikernel {
            source["boot_args"] = json!(own.command_line);
            (has_initrd, has_root) = (own.initrd.is_some(), own.disk.is_some());
        }
        if has_initrd {
            source["initrd_path"] = json!("initrd");
        }
        let drive = |name: &str, read_only: bool| {
            let body = json!({ "drive_id": name, "path_on_host": name, "is_root_device": false,
                "is_read_only": read_only, "cache_type": if read_only { "Unsafe" } else { "Writeback" },
                "rate_limiter": rates::limiter(spec.rates.disk_bytes_per_s) });
            (format!("/drives/{name}"), body)
        };
        let machine = json!({ "vcpu_count": spec.vcpus, "mem_size_mib": spec.memory_mib });
        let mac = spec.mac.map(|byte| format!("{byte:02x}")).join(":");
        let each_way = rates::limiter(spec.rates.network_bytes_per_s);
        let network = json!({ "iface_id": "eth0", "guest_mac": mac, "host_dev_name": DEVICE,
            "rx_rate_limiter": each_way, "tx_rate_limiter": each_way });
        let mut all = vec![
            ("/machine-config".to_owned(), machine),
            ("/boot-source".into(), source),
            ("/serial".into(), json!({ "serial_out_path": "console" })),
        ];
        if has_root {
            all.push(drive("root", true));
        }
        all.push(drive("disk", false));
        all.push(("/network-interfaces/eth0".into(), network));
        // OSv crashes when it finds a random generator on this bus.
        if spec.unikernel.is_none() {
            all.push(("/vsock".into(), json!({ "guest_cid": 3, "uds_path": format!("{SOCKETS}/{VSOCK}") })));
            all.push(("/entropy".into(), json!({})));
        }
        all
    }

    async fn wake_locked(&self, lock: Lock, tap: OwnedFd) -> Result<Arc<Machine>, WakeError> {
        let spec = self.spec;
        let (owned, identity) = (spec.clone(), self.driver.identity(spec));
        let opened =
            blocking(move || snapshot::open(&owned, &identity)).await.map_err(WakeError::Failed)??;
        let files = [opened.file("memory")?, opened.file("state")?];
        let Detail { blocks, rates: had } = opened.detail()?;
        let memory = files[0].try_clone().map_err(|error| snapshot::unreadable("memory", &error))?;
        let verifies = self.driver.verifies_memory;
        let verified = tokio::task::spawn_blocking(move || match verifies {
            true => memory::verify(&memory, &blocks),
            false => Ok(Ok(())),
        });
        let started = self.spawn(lock, tap, Some(&files)).await.map_err(WakeError::Failed)?;
        let load = json!({
            "snapshot_path": "state",
            "mem_backend": { "backend_type": "File", "backend_path": "memory" },
            "network_overrides": [{ "iface_id": "eth0", "host_dev_name": DEVICE }],
            "resume_vm": false,
        });
        if let Err(problem) = started.api.put("/snapshot/load", &load, ANSWER_PATIENCE).await {
            let problem = start::explain_death(spec, started.guard.process(), problem).await;
            return Err(WakeError::SnapshotRefused { why: problem.what });
        }
        let verified = verified.await.map_err(|error| WakeError::Failed(fault(&error.to_string())))?;
        verified
            .map_err(|error| snapshot::unreadable("memory", &error))?
            .map_err(|why| WakeError::SnapshotRefused { why })?;
        let dir = spec.dir.clone();
        let taken = blocking_io("waking", move || snapshot::take(&dir)).await;
        taken.map_err(WakeError::Failed)?;
        let control = self.resume(&started, had).await.map_err(WakeError::Failed)?;
        let machine = self.finish(started, control).map_err(WakeError::Failed)?;
        let dir = spec.dir.clone();
        tokio::task::spawn_blocking(move || snapshot::remove_consumed(&dir));
        Ok(machine)
    }

    /// Lets it run and makes clock and random generator fresh. `had`: its rates when it fell asleep.
    async fn resume(&self, started: &Started, had: Rates) -> Result<Option<Control>, Problem> {
        if had != self.spec.rates {
            rates::change(&started.api, self.spec).await?;
        }
        started.api.patch("/vm", &json!({ "state": "Resumed" }), ANSWER_PATIENCE).await?;
        if self.spec.unikernel.is_some() {
            return Ok(None);
        }
        attach(self.spec, started.guard.process()).await.map(Some)
    }

    /// Lets the packets in: from here on the machine is whole.
    fn finish(&self, started: Started, control: Option<Control>) -> Result<Arc<Machine>, Problem> {
        let marker = self.spec.run_dir.join(STARTED);
        fs::write(&marker, "").map_err(|error| Problem::io(marker.display(), &error))?;
        started.relay.start();
        let Started { guard, api, relay, log, group } = started;
        let identity = self.driver.identity(self.spec);
        Ok(Machine::new(self.spec, identity, guard.release(), control, api, relay, (log, group)))
    }

    pub async fn adopt(&self) -> Result<Option<(Arc<Machine>, OwnedFd)>, Problem> {
        let spec = self.spec;
        if !spec.run_dir.is_dir() || Lock::take(&spec.run_dir)?.is_some() {
            return Ok(None);
        }
        let lost = || fault(&format!("a VMM holds {}/vmm.lock, but it is not found", spec.run_dir.display()));
        let note = Note::read(&spec.run_dir).ok_or_else(lost)?;
        note.is_of("firecracker")?;
        let begun = Instant::now();
        let process = loop {
            if let Some(process) = Process::find(&spec.run_dir, note.lock_fd) {
                break process;
            }
            // It may have ended at this very moment.
            if Lock::take(&spec.run_dir)?.is_some() {
                return Ok(None);
            }
            // Or have begun: a child that was just forked has the lock, but not yet under its number.
            if begun.elapsed() > FORK_PATIENCE {
                return Err(lost());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        if !spec.run_dir.join(STARTED).exists() {
            // It was in the middle of a boot or a wake; what it was told is not known. It starts anew.
            process.signal(Signal::KILL);
            process.ended().await;
            return Ok(None);
        }
        let tap = process.descriptor(note.tap_fd).and_then(|keeper| {
            jail::kept(&keeper).map_err(|error| Problem::io("taking the machine's TAP back", &error))
        })?;
        // It runs on: a snapshot that it was writing, or had just written, must never be woken.
        let dir = spec.dir.clone();
        blocking_io("removing a snapshot", move || snapshot::discard(&dir)).await?;
        let api = Api::at(&sockets_dir(spec).join(API));
        api.patch("/vm", &json!({ "state": "Resumed" }), ANSWER_PATIENCE).await?;
        rates::change(&api, spec).await?;
        let user = start::user(self.driver.settings.first_uid, spec, Accelerator::Kvm)?.map(|(uid, _)| uid);
        let to_relay = tap.try_clone().map_err(|error| Problem::io("the machine's TAP", &error))?;
        let relay = Relay::open(process.pid(), user, to_relay)?;
        let log = log::listen(spec, user)?;
        let control = match &spec.unikernel {
            Some(_) => None,
            None => Some(attach(spec, &process).await?),
        };
        relay.start();
        let group = self.driver.cgroups.group_of(process.pid());
        let machine = Machine::new(spec, note.identity, Arc::new(process), control, api, relay, (log, group));
        Ok(Some((machine, tap)))
    }

    /// Starts Firecracker, without a machine yet. `asleep`: the memory and the state that it is to load.
    async fn spawn(&self, lock: Lock, tap: OwnedFd, asleep: Option<&[File; 2]>) -> Result<Started, Problem> {
        let (driver, spec) = (self.driver, self.spec);
        for name in [STARTED, "vmm.pid", "console.log"] {
            drop(fs::remove_file(spec.run_dir.join(name)));
        }
        let user = start::user(driver.settings.first_uid, spec, Accelerator::Kvm)?;
        let uid = user.map(|(uid, _)| uid);
        start::own_sockets_dir(spec, user)?;
        let files = self.files(uid, asleep)?;
        let note = Note {
            lock_fd: LOCK_FD,
            tap_fd: TAP_KEEPER_FD,
            memory_fd: None,
            identity: driver.identity(spec),
        };
        note.write(&spec.run_dir)?;
        let log = log::listen(spec, uid)?;
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let arguments = ["--api-sock", &format!("{SOCKETS}/{API}")];
        let command = driver.programs.command(spec, user.unwrap_or(own), &files, &arguments)?;
        let kept = jail::keep(&tap).and_then(|tap| Ok((tap, lock.as_fd().try_clone_to_owned()?)));
        let (tap_keeper, held) = kept.map_err(|error| Problem::io("the VMM's descriptors", &error))?;
        let errors = spec.run_dir.join("vmm.log");
        let standard = [Some(tap_keeper), Some(held)];
        // The jailer needs privilege, and gives it up itself.
        let process = Launch { command, errors: &errors, standard, user: None, inherited: &[] }.start()?;
        let guard = Guard::new(process);
        guard.process().note(&spec.run_dir)?;
        let limits = Limits {
            memory_mib: spec.memory_mib,
            overhead_mib: OVERHEAD_MIB,
            vcpus: spec.vcpus,
            threads: THREADS,
        };
        let group = driver.cgroups.hold(guard.process().pid(), limits);
        let group = group.map_err(|error| Problem::io("the VMM's cgroup", &error))?;
        // From here on the VMM alone holds the lock.
        drop(lock);
        let relay = Relay::open(guard.process().pid(), uid, tap)?;
        let api = Api::at(&sockets_dir(spec).join(API));
        self.reach(&api, guard.process()).await?;
        Ok(Started { guard, api, relay, log, group })
    }

    async fn reach(&self, api: &Api, process: &Process) -> Result<(), Problem> {
        let start = Instant::now();
        while !api.answers().await {
            let pause = Duration::from_millis(1);
            if let Ok(end) = tokio::time::timeout(pause, process.ended()).await {
                let said = super::super::logs::tail(&self.spec.run_dir.join("vmm.log"));
                return Err(fault(&format!("{end} at its start: {said}")));
            }
            if start.elapsed() > ANSWER_PATIENCE {
                return Err(fault("Firecracker does not answer"));
            }
        }
        Ok(())
    }

    /// What the VMM works on: each file can be opened, and what it writes is its user's.
    fn files(&self, uid: Option<u32>, asleep: Option<&[File; 2]>) -> Result<Vec<JailFile>, Problem> {
        let (spec, guest_dir) = (self.spec, &self.driver.settings.guest_dir);
        let mut files = Vec::new();
        let mut add = |name: &'static str, path: &Path, options: &OpenOptions, read_only: bool| {
            let opened =
                options.open(path).and_then(|file| if read_only { Ok(()) } else { fchown(&file, uid, None) });
            opened.map_err(|error: io::Error| Problem::io(path.display(), &error))?;
            files.push(JailFile { name, path: path.to_path_buf(), read_only });
            Ok::<(), Problem>(())
        };
        let mut read = OpenOptions::new();
        read.read(true);
        match &spec.unikernel {
            Some(own) => {
                add("kernel", &own.kernel, &read, true)?;
                if let Some(initrd) = &own.initrd {
                    add("initrd", initrd, &read, true)?;
                }
                if let Some(disk) = &own.disk {
                    add("root", disk, &read, true)?;
                }
            }
            None => {
                add("kernel", &guest_dir.join("vmlinuz"), &read, true)?;
                add("initrd", &guest_dir.join("initramfs.img"), &read, true)?;
                add("root", &spec.rootfs, &read, true)?;
            }
        }
        let mut change = OpenOptions::new();
        change.read(true).write(true);
        add("disk", &spec.dir.join("disk.img"), &change, false)?;
        add("console", &spec.run_dir.join("console.log"), change.clone().create(true), false)?;
        for name in NEXT {
            drop(fs::remove_file(spec.dir.join(name)));
            add(name, &spec.dir.join(name), change.clone().create_new(true), false)?;
        }
        for (name, file) in ["memory", "state"].into_iter().zip(asleep.into_iter().flatten()) {
            // Whoever wrote it can no more: it is read only from now on.
            let closed = file.set_permissions(fs::Permissions::from_mode(0o444));
            closed.map_err(|error| Problem::io("the snapshot", &error))?;
            files.push(JailFile { name, path: snapshot::path(&spec.dir).join(name), read_only: true });
        }
        Ok(files)
    }
}

/// Connects to a guest that runs, and makes its clock and random generator fresh. A snapshot that is taken or loaded
/// makes the guest close every connection, perhaps also one that was just made: then another is made.
pub async fn attach(spec: &MachineSpec, process: &Process) -> Result<Control, Problem> {
    let begun = Instant::now();
    loop {
        let control = start::connect(spec, process, VSOCK, ANSWER_PATIENCE, Control::connect_vsock).await?;
        match start::refresh(&control, TRY_PATIENCE).await {
            Ok(()) => return Ok(control),
            Err(problem) if begun.elapsed() > GUEST_PATIENCE => return Err(problem),
            Err(_) => {}
        }
    }
}

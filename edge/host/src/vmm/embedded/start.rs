//! Boot, wake and adopt: from a specification to a running machine in a VMM of ours.
//!
//! Invariants:
//! - The VMM gets open files and listening sockets, never a path; nothing below the run directory is its to change.
//! - A frame is taken from the TAP only after `Release`: a start that fails before has lost none.
//! - The snapshot is consumed, durably, before `Release`. Until then a woken guest changes nothing that lasts, neither
//!   its disk nor the snapshot's memory: a wake cut off there can be done again. It keeps its name when the wake fails
//!   before for a reason of the host's.

use super::{
    super::{
        control::Control,
        disk,
        process::{Guard, Lock, Note, Process},
        running::LastWords,
        snapshot::{self, Identity},
        start::{
            self, ADOPTION_PAUSE, ADOPTION_TRIES, ANSWER_PATIENCE, GUEST_PATIENCE, blocking_io, sockets_dir,
        },
    },
    EmbeddedDriver,
    channel::{Channel, Denied},
    machine::{BASE, DIFF, Detail, MEMORY, Machine, Parts, STATE, WORKING_SET, boot_id},
    spare::{Class, Spare},
    working_set,
};
use cloudpal_compute::driver::{MachineSpec, WakeError};
use cloudpal_model::{
    Kind, Problem,
    vmm::{self, Ask, File as Handed, LOCK_FD, TAP_FD},
};
use rustix::process::Signal;
use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

/// The marker file of a machine that is whole: without it a machine is not adopted.
const STARTED: &str = "started";
/// In its notes and snapshots.
const NAME: &str = "embedded";
const CHANNEL_SOCKET: &str = "vmm.sock";
const CONTROL_SOCKET: &str = "control.sock";
/// Between two looks for whoever holds the machine's lock.
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Nothing of the keyboard controller's: the firmware tables say that there is none, and a kernel that is told not to
/// believe them asks its ports ten thousand times.
const KERNEL_PARAMETERS: &str = "\
    console=ttyS0 quiet loglevel=4 panic=-1 reboot=k pci=off random.trust_cpu=on audit=0 lsm= \
    8250.nr_uarts=1 cryptomgr.notests";

pub(super) struct Start<'a> {
    pub driver: &'a EmbeddedDriver,
    pub spec: &'a MachineSpec,
}

/// What every VMM is handed, whatever it does with it.
struct Files {
    lock: Lock,
    tap: OwnedFd,
    root: Option<File>,
    disk: File,
    log: File,
    console: File,
    errors: File,
    channel: UnixListener,
    control: UnixListener,
    /// Kernel and initramfs, or what a snapshot is made of.
    own: Vec<(Handed, File)>,
}

struct Started {
    guard: Guard,
    parts: Parts,
}

impl Start<'_> {
    pub async fn boot(&self, tap: OwnedFd) -> Result<Arc<Machine>, Problem> {
        start::prepare(self.spec)?;
        let lock = start::lock(self.spec).await?;
        let _refilled = self.driver.pool.refill_after();
        let booted = self.boot_locked(lock, tap).await;
        start::settle(self.spec, booted).await
    }

    pub async fn wake(&self, tap: OwnedFd) -> Result<Arc<Machine>, WakeError> {
        start::prepare(self.spec).map_err(WakeError::Failed)?;
        let lock = start::lock(self.spec).await.map_err(WakeError::Failed)?;
        let _refilled = self.driver.pool.refill_after();
        let woken = self.wake_locked(lock, tap).await;
        start::settle(self.spec, woken).await
    }

    async fn boot_locked(&self, lock: Lock, tap: OwnedFd) -> Result<Arc<Machine>, Problem> {
        let (dir, disk_mib) = (self.spec.dir.clone(), self.spec.disk_mib);
        blocking_io("removing the old snapshot", move || forget(&dir)).await?;
        let dir = self.spec.dir.clone();
        start::blocking(move || disk::ensure(&dir, disk_mib)).await??;
        let spare = self.driver.pool.take(self.class()).await?;
        let files = self.open_files(lock, tap, self.kernel()?)?;
        let command_line = self.spec.unikernel.as_ref().map_or(KERNEL_PARAMETERS, |own| &own.command_line);
        let ask = Ask::Boot { machine: self.machine(), command_line: command_line.to_owned() };
        let started = self.start(spare, ask, files).await?;
        let up = match &started.parts.control {
            Some(control) => start::bring_up(self.spec, control).await,
            None => Ok(()),
        };
        match up {
            Ok(()) => self.finish(started).await,
            Err(problem) => Err(start::explain_death(self.spec, &started.parts.process, problem).await),
        }
    }

    async fn wake_locked(&self, lock: Lock, tap: OwnedFd) -> Result<Arc<Machine>, WakeError> {
        let spec = self.spec;
        let opened = snapshot::open(spec, &self.identity())?;
        let detail: Detail = opened.detail()?;
        if let (Ok(used), Ok(memory)) = (opened.file(WORKING_SET), opened.file(MEMORY)) {
            // The first page that the guest needs is not waited for.
            tokio::task::spawn_blocking(move || working_set::bring_in(&used, &memory));
        }
        let mut own = vec![(Handed::State, opened.file(STATE)?), (Handed::Memory, opened.file(MEMORY)?)];
        if detail.has_diff {
            own.push((Handed::Diff, opened.file(DIFF)?));
        }
        let same_host = boot_id().is_ok_and(|now| now == detail.boot_id);
        let untouched = detail.memory.is_some_and(|then| opened.is_untouched(MEMORY, &then));
        let verify_memory = !(same_host && untouched);
        let spare = self.driver.pool.take(self.class()).await.map_err(WakeError::Failed)?;
        let files = self.open_files(lock, tap, own).map_err(WakeError::Failed)?;
        let ask = Ask::Wake { machine: self.machine(), verify_memory };
        let started = self.start(spare, ask, files).await.map_err(|denied| match denied {
            Denied::Refused(why) => WakeError::SnapshotRefused { why },
            Denied::Failed(problem) => WakeError::Failed(problem),
        })?;
        let dir = spec.dir.clone();
        // The guest does not wait for the host's disk; its own disk does.
        let consumed = blocking_io("waking", move || consume(&dir));
        let (consumed, fresh) = tokio::join!(consumed, self.refresh(&started.parts));
        consumed.map_err(WakeError::Failed)?;
        let machine = match fresh {
            Ok(()) => self.finish(started).await,
            Err(problem) => Err(start::explain_death(spec, &started.parts.process, problem).await),
        };
        let dir = spec.dir.clone();
        tokio::task::spawn_blocking(move || snapshot::remove_consumed(&dir));
        machine.map_err(WakeError::Failed)
    }

    /// Hands a spare its machine. On failure it is killed.
    async fn start(&self, spare: Spare, ask: Ask, files: Files) -> Result<Started, Denied> {
        let spec = self.spec;
        let Spare { guard, channel, last_words, group } = spare;
        guard.process().note(&spec.run_dir).map_err(Denied::Failed)?;
        let control = match spec.unikernel {
            // It waits in the socket's queue until the VMM takes it.
            None => {
                let socket = sockets_dir(spec).join(CONTROL_SOCKET);
                Some(Control::connect(socket).await.map_err(Denied::Failed)?)
            }
            Some(_) => None,
        };
        // The whole memory may have to come from the disk first.
        let patience = match ask {
            Ask::Wake { verify_memory: true, .. } => 4 * GUEST_PATIENCE,
            _ => ANSWER_PATIENCE,
        };
        let answer = channel.ask(ask, &files.handed(), patience).await;
        // From here on the VMM alone holds the lock, and listens.
        drop(files);
        match answer {
            Ok(_) => {}
            Err(Denied::Failed(problem)) => {
                return Err(Denied::Failed(start::explain_death(spec, guard.process(), problem).await));
            }
            Err(refused) => return Err(refused),
        }
        let process = guard.process().clone();
        let identity = self.identity();
        let parts = Parts { spec: spec.clone(), identity, process, channel, control, last_words, group };
        Ok(Started { guard, parts })
    }

    /// Makes clock and random generator fresh.
    async fn refresh(&self, parts: &Parts) -> Result<(), Problem> {
        match &parts.control {
            Some(control) => start::refresh(control, ANSWER_PATIENCE).await,
            None => Ok(()),
        }
    }

    /// Lets packets in: from here on the machine is whole.
    async fn finish(&self, started: Started) -> Result<Arc<Machine>, Problem> {
        let marker = self.spec.run_dir.join(STARTED);
        fs::write(&marker, "").map_err(|error| Problem::io(marker.display(), &error))?;
        started.parts.channel.ask(Ask::Release, &[], ANSWER_PATIENCE).await?;
        started.guard.release();
        Ok(Machine::new(started.parts))
    }

    pub async fn adopt(&self) -> Result<Option<(Arc<Machine>, OwnedFd)>, Problem> {
        let spec = self.spec;
        if !spec.run_dir.is_dir() {
            return Ok(None);
        }
        let Some((note, process)) = self.find_holder().await? else { return Ok(None) };
        note.is_of(NAME)?;
        let process = Arc::new(process);
        if !spec.run_dir.join(STARTED).exists() {
            // It was in the middle of a boot or a wake; what it was told is not known. It starts anew.
            process.signal(Signal::KILL);
            process.ended().await;
            return Ok(None);
        }
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

    /// The VMM that holds the machine's lock; `None` once nobody does.
    async fn find_holder(&self) -> Result<Option<(Note, Process)>, Problem> {
        let spec = self.spec;
        let begun = Instant::now();
        while Lock::take(&spec.run_dir)?.is_none() {
            let note = Note::read(&spec.run_dir);
            let found = note.and_then(|note| Some((Process::find(&spec.run_dir, note.lock_fd)?, note)));
            if let Some((process, note)) = found {
                return Ok(Some((note, process)));
            }
            // Sent by a daemon that was killed, the lock may still be on its way to a VMM, or going down with one.
            if begun.elapsed() > ANSWER_PATIENCE {
                let what = format!("a VMM holds {}/vmm.lock, but it is not found", spec.run_dir.display());
                let mend = "end the VMM process of this machine by hand, then restart the daemon";
                return Err(Problem::new(Kind::Internal, what, mend));
            }
            tokio::time::sleep(LOCK_PAUSE).await;
        }
        Ok(None)
    }

    async fn take_over(
        &self,
        process: &Arc<Process>,
        note: &Note,
    ) -> Result<(Arc<Machine>, OwnedFd), Problem> {
        let spec = self.spec;
        let tap = process.descriptor(note.tap_fd)?;
        // It runs on: a snapshot that it was writing, or had just written, must never be woken.
        let dir = spec.dir.clone();
        blocking_io("removing the old snapshot", move || snapshot::discard(&dir)).await?;
        // Whoever stopped it is gone, too.
        process.signal(Signal::CONT);
        let last_words = LastWords::default();
        let socket = sockets_dir(spec).join(CHANNEL_SOCKET);
        let channel = Channel::connect(&socket, last_words.clone()).await;
        let channel = channel.map_err(|error| Problem::io(socket.display(), &error))?;
        let control = match spec.unikernel {
            None => Some(Control::connect(sockets_dir(spec).join(CONTROL_SOCKET)).await?),
            Some(_) => None,
        };
        // One that was caught in the middle of falling asleep runs on; to one that runs, this is nothing new.
        channel.ask(Ask::Resume, &[], ANSWER_PATIENCE).await?;
        channel.ask(Ask::Release, &[], ANSWER_PATIENCE).await?;
        let group = self.driver.pool.launcher().cgroups.group_of(process.pid());
        let (identity, process) = (note.identity.clone(), process.clone());
        let parts = Parts { spec: spec.clone(), identity, process, channel, control, last_words, group };
        Ok((Machine::new(parts), tap))
    }

    /// A snapshot goes with any version of the VMM that reads its format: the VMM looks at that itself.
    fn identity(&self) -> Identity {
        Identity::new(NAME, self.spec)
    }

    fn class(&self) -> Class {
        Class { memory_mib: self.spec.memory_mib, vcpus: self.spec.vcpus }
    }

    fn machine(&self) -> vmm::Machine {
        let library_os = self.spec.unikernel.is_some();
        vmm::Machine { mac: self.spec.mac, rates: self.spec.rates, library_os }
    }

    /// Everything anew but the log and the disk.
    fn open_files(&self, lock: Lock, tap: OwnedFd, own: Vec<(Handed, File)>) -> Result<Files, Problem> {
        let spec = self.spec;
        let run = |name: &str| spec.run_dir.join(name);
        for name in [STARTED, "vmm.pid", "vmm.log", "console.log"] {
            drop(fs::remove_file(run(name)));
        }
        start::own_sockets_dir(spec, None)?;
        let note = Note { lock_fd: LOCK_FD, tap_fd: TAP_FD, memory_fd: None, identity: self.identity() };
        note.write(&spec.run_dir)?;
        let listen = |name: &str| {
            let path = sockets_dir(spec).join(name);
            UnixListener::bind(&path).map_err(|error| Problem::io(path.display(), &error))
        };
        let append = |path: PathBuf| open(File::options().append(true).create(true), &path);
        let root = match &spec.unikernel {
            None => Some(spec.rootfs.clone()),
            Some(own) => own.disk.clone(),
        };
        Ok(Files {
            lock,
            tap,
            root: root.map(|path| open(File::options().read(true), &path)).transpose()?,
            disk: open(File::options().read(true).write(true), &spec.dir.join("disk.img"))?,
            log: append(spec.dir.join("log"))?,
            console: append(run("console.log"))?,
            errors: append(run("vmm.log"))?,
            channel: listen(CHANNEL_SOCKET)?,
            control: listen(CONTROL_SOCKET)?,
            own,
        })
    }

    fn kernel(&self) -> Result<Vec<(Handed, File)>, Problem> {
        let guest_dir = &self.driver.guest_dir;
        let (kernel, initramfs) = match &self.spec.unikernel {
            None => (guest_dir.join("vmlinuz"), Some(guest_dir.join("initramfs.img"))),
            Some(own) => (own.kernel.clone(), own.initrd.clone()),
        };
        let read = |path: PathBuf| open(File::options().read(true), &path);
        let mut files = vec![(Handed::Kernel, read(kernel)?)];
        if let Some(initramfs) = initramfs {
            files.push((Handed::Initramfs, read(initramfs)?));
        }
        Ok(files)
    }
}

impl Files {
    fn handed(&self) -> Vec<(Handed, BorrowedFd<'_>)> {
        let mut handed = vec![
            (Handed::Lock, self.lock.as_fd()),
            (Handed::Tap, self.tap.as_fd()),
            (Handed::Disk, self.disk.as_fd()),
            (Handed::Log, self.log.as_fd()),
            (Handed::Console, self.console.as_fd()),
            (Handed::Errors, self.errors.as_fd()),
            (Handed::ChannelSocket, self.channel.as_fd()),
            (Handed::ControlSocket, self.control.as_fd()),
        ];
        handed.extend(self.root.iter().map(|root| (Handed::Root, root.as_fd())));
        handed.extend(self.own.iter().map(|(kind, file)| (*kind, file.as_fd())));
        handed
    }
}

/// The guest is about to run. The memory file that it runs on is kept: the next sleep may write what has changed alone.
fn consume(dir: &Path) -> io::Result<()> {
    snapshot::take(dir)?;
    remove_base(dir)?;
    fs::hard_link(snapshot::consumed_path(dir).join(MEMORY), dir.join(BASE))
}

/// The machine starts anew.
fn forget(dir: &Path) -> io::Result<()> {
    snapshot::discard(dir)?;
    remove_base(dir)
}

fn remove_base(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(BASE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn open(options: &OpenOptions, path: &Path) -> Result<File, Problem> {
    options.open(path).map_err(|error| Problem::io(path.display(), &error))
}

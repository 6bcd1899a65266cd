//! Wakes as the daemon does them: asks over the channel to jailed processes. The guest answers on its console, a pipe
//! here, with its first instructions.
#![allow(unsafe_code)]

use super::{Maps, us};
use cloudpal_model::{
    Rates,
    vmm::{Ask, File as Handed, FromVmm, Machine, Reply, ToVmm},
};
use cloudpal_vmm::{Error, tiny_guest};
use rustix::{
    fs::MemfdFlags,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    thread::UnshareFlags,
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// Nobody's numbers, and not those of a daemon's VMMs.
const FIRST_UID: u32 = 2_080_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

fn broken(what: &str) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Host(format!("{what}: {error}"))
}

/// A process, and the daemon's end of its channel.
struct Vmm {
    child: Child,
    channel: BufReader<UnixStream>,
    next_id: u64,
}

/// A machine that was asked to start; what its guest says comes out here.
struct Started {
    vmm: Vmm,
    console: File,
}

impl Vmm {
    fn start(memory_mib: u32) -> Result<Vmm, Error> {
        let (ours, theirs) = UnixStream::pair().map_err(broken("a channel"))?;
        ours.set_read_timeout(Some(PATIENCE)).map_err(broken("a channel"))?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["run", "--memory-mib", &memory_mib.to_string(), "--vcpus", "1"]);
        command.args(["--first-uid", &FIRST_UID.to_string()]).env_clear();
        command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
        let started = std::thread::spawn(move || {
            // SAFETY: changes no descriptors; only this thread's next child is in another namespace.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
            command.spawn()
        });
        let child = started.join().map_err(|_| Error::Host("a thread ended".into()))?;
        let child = child.map_err(broken("a VMM process"))?;
        let mut vmm = Vmm { child, channel: BufReader::new(ours), next_id: 1 };
        match vmm.hear()? {
            FromVmm::Ready { .. } => Ok(vmm),
            other => Err(Error::Host(format!("the VMM began with {other:?}"))),
        }
    }

    fn hear(&mut self) -> Result<FromVmm, Error> {
        let mut line = String::new();
        self.channel.read_line(&mut line).map_err(broken("the channel"))?;
        serde_json::from_str(&line).map_err(|error| Error::Host(format!("the VMM said {line:?}: {error}")))
    }

    fn send(&mut self, ask: Ask, files: &[(Handed, BorrowedFd<'_>)]) -> Result<(), Error> {
        let (names, fds): (Vec<Handed>, Vec<BorrowedFd<'_>>) = files.iter().copied().unzip();
        let message = ToVmm { id: self.next_id, files: names, ask };
        self.next_id += 1;
        let line = serde_json::to_string(&message).map_err(|error| Error::Host(error.to_string()))? + "\n";
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(Error::Host("too many descriptors".into()));
        }
        let slices = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg(self.channel.get_ref(), &slices, &mut ancillary, SendFlags::NOSIGNAL);
        sent.map(drop).map_err(|errno| broken("the channel")(errno.into()))
    }

    fn done(&mut self) -> Result<(), Error> {
        match self.hear()? {
            FromVmm::Reply { reply: Reply::Done, .. } => Ok(()),
            other => Err(Error::Host(format!("the VMM answered {other:?}"))),
        }
    }

    /// Sends the ask with what every machine is handed.
    fn give(mut self, ask: Ask, own: &[(Handed, BorrowedFd<'_>)], place: &Path) -> Result<Started, Error> {
        let (read, write) = io::pipe().map_err(broken("a pipe"))?;
        rustix::io::ioctl_fionbio(&write, true).map_err(|e| broken("a pipe")(e.into()))?;
        let null = File::options().read(true).write(true).open("/dev/null").map_err(broken("/dev/null"))?;
        let listen = |name: &str| {
            let path = place.join(format!("{}-{name}", self.child.id()));
            let listener = UnixListener::bind(&path).map_err(broken("a socket"))?;
            fs::remove_file(&path).map_err(broken("a socket"))?;
            Ok::<_, Error>(listener)
        };
        let errors = io::stderr();
        let (channel, control) = (listen("vmm")?, listen("control")?);
        let mut files = vec![
            (Handed::Lock, null.as_fd()),
            (Handed::Log, null.as_fd()),
            (Handed::Errors, errors.as_fd()),
            (Handed::Console, write.as_fd()),
            (Handed::ChannelSocket, channel.as_fd()),
            (Handed::ControlSocket, control.as_fd()),
        ];
        files.extend(own.iter().copied());
        self.send(ask, &files)?;
        Ok(Started { vmm: self, console: OwnedFd::from(read).into() })
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Started {
    /// Until the guest says something.
    fn heard(&mut self) -> Result<(), Error> {
        let mut byte = [0];
        match self.console.read(&mut byte).map_err(broken("the console"))? {
            1 => Ok(()),
            _ => Err(Error::Host("the guest ended without a word".into())),
        }
    }
}

fn machine() -> Machine {
    Machine { mac: [2, 0, 0, 0, 0, 1], rates: Rates::default(), library_os: false }
}

/// A snapshot to wake from.
pub struct Asleep {
    memory_mib: u32,
    dir: PathBuf,
    sockets_dir: PathBuf,
}

impl Asleep {
    /// Boots the tiny guest in a process, and saves it.
    pub fn make(dir: &Path, sockets_dir: &Path, memory_mib: u32) -> Result<Asleep, Error> {
        let kernel = rustix::fs::memfd_create("tiny-guest", MemfdFlags::CLOEXEC);
        let mut kernel = File::from(kernel.map_err(|e| broken("a file in memory")(e.into()))?);
        kernel.write_all(tiny_guest::ELF).map_err(broken("a file in memory"))?;
        let dir = dir.join(format!("process-{memory_mib}"));
        fs::create_dir(&dir).map_err(broken("the snapshot"))?;
        let create = |name: &str| {
            let options = File::options().read(true).write(true).create_new(true).clone();
            options.open(dir.join(name)).map_err(broken("the snapshot"))
        };
        let (state, memory) = (create("state")?, create("memory")?);
        let boot = Ask::Boot { machine: machine(), command_line: String::new() };
        let own = [(Handed::Kernel, kernel.as_fd())];
        let sockets_dir = sockets_dir.to_owned();
        let mut started = Vmm::start(memory_mib)?.give(boot, &own, &sockets_dir)?;
        started.vmm.done()?;
        started.heard()?;
        // The rest of its first words; it waits for its wake then.
        std::thread::sleep(Duration::from_millis(20));
        started.vmm.send(Ask::Pause, &[])?;
        started.vmm.done()?;
        let files = [(Handed::State, state.as_fd()), (Handed::Memory, memory.as_fd())];
        started.vmm.send(Ask::Save, &files)?;
        match started.vmm.hear()? {
            FromVmm::Reply { reply: Reply::Saved { diff: false }, .. } => {
                Ok(Asleep { memory_mib, dir, sockets_dir })
            }
            other => Err(Error::Host(format!("the VMM answered {other:?}"))),
        }
    }

    fn wake(&self, vmm: Vmm) -> Result<Started, Error> {
        let open = |name: &str| File::open(self.dir.join(name)).map_err(broken("the snapshot"));
        let (state, memory) = (open("state")?, open("memory")?);
        let own = [(Handed::State, state.as_fd()), (Handed::Memory, memory.as_fd())];
        vmm.give(Ask::Wake { machine: machine(), verify_memory: false }, &own, &self.sockets_dir)
    }

    fn whole_wake(&self, vmm: Vmm) -> Result<Started, Error> {
        let mut started = self.wake(vmm)?;
        started.heard()?;
        Ok(started)
    }

    /// From a process that waits, and with the start of one.
    pub fn one_round(&self) -> Result<(Duration, Duration), Error> {
        let vmm = Vmm::start(self.memory_mib)?;
        let begun = Instant::now();
        let mut woken = self.whole_wake(vmm)?;
        let from_pool = begun.elapsed();
        woken.vmm.done()?;
        drop(woken);
        let begun = Instant::now();
        let mut woken = self.whole_wake(Vmm::start(self.memory_mib)?)?;
        let alone = begun.elapsed();
        woken.vmm.done()?;
        Ok((from_pool, alone))
    }

    /// Many from one snapshot, all asked before the first has answered.
    pub fn many(&self, count: usize) -> Result<Value, Error> {
        let begun = Instant::now();
        let pool = (0..count).map(|_| Vmm::start(self.memory_mib)).collect::<Result<Vec<_>, _>>()?;
        let filled = begun.elapsed();
        let begun = Instant::now();
        let mut woken = pool.into_iter().map(|vmm| self.wake(vmm)).collect::<Result<Vec<_>, _>>()?;
        woken.iter_mut().try_for_each(Started::heard)?;
        let took = begun.elapsed();
        let each = woken.iter().map(|started| Ok::<_, Error>(self.maps(&started.vmm)?.private_kib(true)));
        let private = each.sum::<Result<u64, _>>()?;
        Ok(json!({
            "count": count,
            "fill_us": us(filled),
            "wake_us": us(took),
            "private_kib_each": private as f64 / count.max(1) as f64,
        }))
    }

    /// What a process holds beside its guest: while it waits, and woken.
    pub fn footprint(&self) -> Result<Value, Error> {
        let waiting = Vmm::start(self.memory_mib)?;
        let spare = self.maps(&waiting)?;
        let woken = self.whole_wake(waiting)?;
        let maps = self.maps(&woken.vmm)?;
        Ok(json!({
            "resident_kib": maps.resident_kib(false),
            "private_kib": maps.private_kib(false),
            "spare_resident_kib": spare.resident_kib(false),
            "spare_private_kib": spare.private_kib(false),
        }))
    }

    fn maps(&self, vmm: &Vmm) -> Result<Maps, Error> {
        Maps::of(vmm.child.id(), &self.dir.join("memory"))
    }
}

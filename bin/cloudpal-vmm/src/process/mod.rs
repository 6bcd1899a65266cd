//! One process, one microVM: shuts itself in, makes the VM, waits for its machine, and does what the daemon asks.
//!
//! ```text
//!  start ─► jailed ─► Spare ──Boot──► Running ◄──Resume── Paused ──Save──► Paused
//!                       └─────Wake──────┘ └───────Pause─────►┘
//!  the daemon's end closes: a Spare ends; a machine lives on and listens for the next daemon
//!  the guest ends: it is told, and the process ends
//! ```
//! Invariants:
//! - Everything that needs the host's file system or more than the filter's system calls happens before `Ready`.
//! - Before `Release` no frame is taken from the TAP, and a woken guest changes nothing on its disk; when `Pause` is
//!   answered, no frame is taken either.
//! - Whatever comes over the channel during a `Save`, or its end, ends the save: the guest is wanted back.
//! - Whatever comes over the channel out of turn is refused and changes nothing.
#![allow(unsafe_code)]

mod channel;
mod devices;

use crate::jail::{self, filter::Filters};
use channel::{Asked, Channel, Lost};
use cloudpal_model::vmm::{self, Ask, File as Handed, FromVmm, LOCK_FD, Reply, TAP_FD};
use cloudpal_vmm::{
    Boot, Crew, End, Error, Host, Image, Live, Save, Shape, Spare, Threads, Wake, snapshot, snapshot::Kind,
};
use devices::{Devices, Release};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// What is known before there is a machine.
struct Options {
    memory_mib: u32,
    vcpus: u8,
    /// It becomes the user of this number plus its own pid.
    first_uid: u32,
    /// XSAVE, and what needs it, is kept from the guest.
    without_xsave: bool,
}

impl Options {
    /// `--memory-mib N --vcpus N --first-uid N [--without-xsave]`, in this order: only the daemon writes it.
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, Fatal> {
        let mut value = |name: &str| -> Result<u32, Fatal> {
            match (arguments.next(), arguments.next()) {
                (Some(given), Some(value)) if given == name => Ok(value.parse()?),
                _ => Err(format!("{name} and a number are missing").into()),
            }
        };
        let (memory_mib, vcpus) = (value("--memory-mib")?, value("--vcpus")?);
        let first_uid = value("--first-uid")?;
        let without_xsave = match arguments.next().as_deref() {
            None => false,
            Some("--without-xsave") => true,
            Some(other) => return Err(format!("{other} is no option").into()),
        };
        Ok(Options { memory_mib, vcpus: vcpus.try_into()?, first_uid, without_xsave })
    }
}

/// Beside the vCPUs: this one, the devices', and one that KVM starts by itself in newer kernels.
const OTHER_THREADS: u64 = 3;

/// A fault that ends the process before it could tell anybody: it stands in its log.
type Fatal = Box<dyn std::error::Error>;

pub fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    match Options::parse(arguments).and_then(|options| serve(&options)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloudpal-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> Result<(), Fatal> {
    // SAFETY: sets a number. One arena for all threads: they allocate little, and each would cost memory and time.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let channel = take_channel()?;
    // It outlives the daemon, and has no terminal.
    rustix::process::setsid()?;
    end_on_panic();
    let host = Host::open()?;
    let host = if options.without_xsave { host.without_xsave() } else { host };
    let filters = Filters::compile()?;
    let uid = jail::user(options.first_uid, jail::outer_pid()?);
    let shape = Shape { memory_mib: options.memory_mib, vcpus: options.vcpus, slots: devices::SLOTS };
    // It opens this process' map of pages, which shows more to root than to its user.
    let mut spare = jail::as_user(uid, || Spare::make(&host, shape))??;
    jail::enter(uid, u64::from(options.vcpus) + OTHER_THREADS)?;
    let ended = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    filters.apply_to_process()?;
    let crew = Crew::start(options.vcpus, &threads(filters, &ended)?)?;
    channel::rehearse()?;
    if let Err(error) = spare.rehearse(&host) {
        // Whoever only boots does not need it, and a wake will say so itself.
        eprintln!("cloudpal-vmm: a wake would fail here: {error}");
    }
    let ready = FromVmm::Ready { version: env!("CARGO_PKG_VERSION").into() };
    if channel.tell(&ready).is_err() {
        return Ok(());
    }
    let phase = Phase::Spare(Box::new((spare, crew)));
    let mut process = Process { host, phase, channel: Some(channel), listener: None, ended, start_us: 0 };
    process.work()
}

/// What the machine's threads do: a vCPU's takes away from itself what it does not need.
fn threads(filters: Filters, ended: &EventFd) -> io::Result<Threads> {
    let ended = ended.try_clone()?;
    Ok(Threads {
        on_vcpu: Arc::new(move || filters.apply_to_vcpu().map_err(io::Error::other)),
        // The count of an event goes up to 2^64.
        on_end: Arc::new(move || drop(ended.write(1))),
        ..Threads::default()
    })
}

/// The channel is the standard input; here it moves out of the way, and everything else that was inherited goes.
fn take_channel() -> Result<Channel, Fatal> {
    jail::close_from(3)?;
    let channel = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    rustix::stdio::dup2_stdin(rustix::stdio::stdout())?;
    // Kept free for the machine's: nothing else may get these numbers meanwhile.
    for number in [LOCK_FD, TAP_FD] {
        keep_at(number, rustix::stdio::stdout())?;
    }
    Ok(Channel::new(channel)?)
}

/// A duplicate under a number of its own, for as long as the process lives.
fn keep_at(number: RawFd, fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the number is kept for this use alone from the start on, so that no owner of it exists.
    let mut place = unsafe { OwnedFd::from_raw_fd(number) };
    let done = rustix::io::dup3(fd, &mut place, rustix::io::DupFlags::CLOEXEC);
    // It stays open.
    let _ = place.into_raw_fd();
    Ok(done?)
}

/// Half a VMM is none.
fn end_on_panic() {
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        // SAFETY: ends the process, all threads at once.
        unsafe { libc::_exit(101) };
    }));
}

enum Phase {
    Spare(Box<(Spare, Crew)>),
    Machine(Box<Running>),
    /// Between two phases, and after a start that failed.
    None,
}

struct Running {
    live: Live,
    release: Release,
}

struct Process {
    host: Host,
    phase: Phase,
    channel: Option<Channel>,
    listener: Option<OwnedFd>,
    ended: EventFd,
    start_us: u64,
}

/// The descriptors of one message, each taken once.
struct Files(HashMap<Handed, OwnedFd>);

impl Files {
    fn take(&mut self, kind: Handed) -> Result<OwnedFd, Refusal> {
        self.0.remove(&kind).ok_or_else(|| Refusal::Failed(format!("no descriptor came for {kind:?}")))
    }

    fn file(&mut self, kind: Handed) -> Result<File, Refusal> {
        self.take(kind).map(File::from)
    }

    fn optional(&mut self, kind: Handed) -> Option<File> {
        self.0.remove(&kind).map(File::from)
    }
}

/// Why an ask is not answered with what it asked for.
enum Refusal {
    /// The kernel or the snapshot is at fault.
    Refused(String),
    Failed(String),
    DiskFull,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        let why = error.to_string();
        match error {
            Error::Kernel(_) | Error::Snapshot(_) | Error::Msr(_) | Error::CommandLine(_) => {
                Refusal::Refused(why)
            }
            Error::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => Refusal::DiskFull,
            Error::File { source, .. } if source.kind() == io::ErrorKind::UnexpectedEof => {
                Refusal::Refused(why)
            }
            _ => Refusal::Failed(why),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::Failed(error.to_string())
    }
}

fn out_of_turn(ask: &str) -> Refusal {
    Refusal::Failed(format!("{ask} is out of turn"))
}

impl Process {
    /// Until the guest or a spare's daemon ends.
    fn work(&mut self) -> Result<(), Fatal> {
        loop {
            let ready = self.wait()?;
            if ready.ended {
                self.end();
                return Ok(());
            }
            if ready.channel && self.hear().is_err() {
                self.channel = None;
            }
            if ready.listener {
                self.accept();
            }
            match self.phase {
                // A start that failed left nothing to go on with.
                Phase::None => return Ok(()),
                Phase::Spare(_) if self.channel.is_none() => return Ok(()),
                _ => {}
            }
        }
    }

    fn wait(&self) -> Result<Ready, Errno> {
        // SAFETY: the event is ours, and open for as long as we are.
        let ended = unsafe { BorrowedFd::borrow_raw(self.ended.as_raw_fd()) };
        let (channel, listener) = (self.channel.as_ref(), self.listener.as_ref());
        let [channel, listener] = [channel.map(AsFd::as_fd), listener.map(AsFd::as_fd)];
        let mut fds = [Some(ended), channel, listener].map(|fd| match fd {
            Some(fd) => PollFd::from_borrowed_fd(fd, PollFlags::IN),
            None => PollFd::from_borrowed_fd(ended, PollFlags::empty()),
        });
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        let is_ready = |at: usize| !fds[at].revents().is_empty();
        Ok(Ready {
            ended: is_ready(0),
            channel: is_ready(1) && self.channel.is_some(),
            listener: is_ready(2) && self.listener.is_some(),
        })
    }

    fn hear(&mut self) -> Result<(), Lost> {
        let arrived = self.channel.as_mut().ok_or(Lost)?.receive();
        while let Some(asked) = self.channel.as_mut().ok_or(Lost)?.next()? {
            let id = asked.message.id;
            let reply = self.answer(asked).unwrap_or_else(|refusal| match refusal {
                Refusal::Refused(why) => Reply::Refused { why },
                Refusal::Failed(why) => Reply::Failed { why },
                Refusal::DiskFull => Reply::DiskFull,
            });
            self.channel.as_ref().ok_or(Lost)?.tell(&FromVmm::Reply { id, reply })?;
        }
        arrived
    }

    /// A new daemon: the one before it is gone.
    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
        // Whoever connected may have gone again.
        if let Ok(socket) = rustix::net::accept_with(listener, flags) {
            self.channel = Channel::new(socket).ok();
        }
    }

    fn answer(&mut self, asked: Asked) -> Result<Reply, Refusal> {
        let Asked { message, files } = asked;
        let files = Files(message.files.into_iter().zip(files).collect());
        match message.ask {
            Ask::Boot { machine, command_line } => self.boot(machine, &command_line, files)?,
            Ask::Wake { machine, verify_memory } => self.wake(machine, verify_memory, files)?,
            Ask::Resume => self.machine("Resume")?.live.resume(),
            Ask::Release => self.machine("Release")?.release.release(),
            Ask::Pause => self.machine("Pause")?.live.pause(),
            Ask::Save => return self.save(files),
            Ask::Stats => {
                let start_us = self.start_us;
                let running = matches!(self.phase, Phase::Machine(_));
                return Ok(Reply::Stats(vmm::Stats { start_us, running }));
            }
        }
        Ok(Reply::Done)
    }

    fn machine(&mut self, ask: &str) -> Result<&mut Running, Refusal> {
        match &mut self.phase {
            Phase::Machine(running) => Ok(running),
            _ => Err(out_of_turn(ask)),
        }
    }

    fn spare(&mut self, ask: &str) -> Result<(Spare, Crew), Refusal> {
        match std::mem::replace(&mut self.phase, Phase::None) {
            Phase::Spare(spare) => Ok(*spare),
            other => {
                self.phase = other;
                Err(out_of_turn(ask))
            }
        }
    }

    fn boot(&mut self, machine: vmm::Machine, command_line: &str, mut files: Files) -> Result<(), Refusal> {
        let (spare, crew) = self.spare("Boot")?;
        self.settle(&mut files)?;
        let (kernel, initramfs) = (files.file(Handed::Kernel)?, files.optional(Handed::Initramfs));
        let boot = Boot {
            kernel: Image::file(&kernel)?,
            initramfs: initramfs.as_ref().map(Image::file).transpose()?,
            command_line,
            com1: files.optional(Handed::Console),
            devices: Vec::new(),
        };
        let Devices { devices, release } = devices::make(&machine, &mut files, false)?;
        let machine = spare.boot(&self.host, Boot { devices, ..boot })?;
        self.have(machine.run_on(crew)?, release);
        Ok(())
    }

    fn wake(&mut self, machine: vmm::Machine, verify_memory: bool, mut files: Files) -> Result<(), Refusal> {
        let started = Instant::now();
        let (spare, crew) = self.spare("Wake")?;
        self.settle(&mut files)?;
        let (state, memory) = (files.file(Handed::State)?, files.file(Handed::Memory)?);
        let diff = files.optional(Handed::Diff);
        let com1 = files.optional(Handed::Console);
        let Devices { devices, release } = devices::make(&machine, &mut files, true)?;
        let state = snapshot::read_state(&state)?;
        if verify_memory {
            snapshot::verify_memory(&state, &memory)?;
        }
        let wake = Wake { state: &state, memory: &memory, diff: diff.as_ref(), devices, com1 };
        let machine = spare.wake(&self.host, wake)?;
        self.have(machine.run_on(crew)?, release);
        self.start_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(())
    }

    /// What belongs to the process rather than to a device.
    fn settle(&mut self, files: &mut Files) -> Result<(), Refusal> {
        keep_at(LOCK_FD, files.take(Handed::Lock)?.as_fd())?;
        if let Some(tap) = files.0.get(&Handed::Tap) {
            keep_at(TAP_FD, tap.as_fd())?;
        }
        let errors = files.take(Handed::Errors)?;
        keep_at(2, errors.as_fd())?;
        let listener = files.take(Handed::ChannelSocket)?;
        rustix::io::ioctl_fionbio(&listener, true).map_err(io::Error::from)?;
        self.listener = Some(listener);
        Ok(())
    }

    fn have(&mut self, live: Live, release: Release) {
        self.phase = Phase::Machine(Box::new(Running { live, release }));
    }

    fn save(&mut self, mut files: Files) -> Result<Reply, Refusal> {
        let (state, memory) = (files.file(Handed::State)?, files.file(Handed::Memory)?);
        let (diff, working_set) = (files.optional(Handed::Diff), files.optional(Handed::WorkingSet));
        let Process { phase: Phase::Machine(running), channel, .. } = self else {
            return Err(out_of_turn("Save"));
        };
        let given_up = || channel.as_ref().is_none_or(Channel::has_more);
        let saved = running.live.save(Save {
            state: &state,
            memory: &memory,
            diff: diff.as_ref(),
            working_set: working_set.as_ref(),
            given_up: &given_up,
        })?;
        Ok(Reply::Saved { diff: saved.kind == Kind::Diff })
    }

    fn end(&mut self) {
        let Phase::Machine(running) = std::mem::replace(&mut self.phase, Phase::None) else { return };
        let end = match running.live.ended().try_recv() {
            Ok(End::Off) => vmm::End::PowerOff,
            Ok(End::Reset) => vmm::End::Reset,
            Ok(End::Shutdown) => vmm::End::Crash,
            Ok(End::Failed(what)) => vmm::End::Failed { what },
            Err(_) => vmm::End::Failed { what: "the machine ended without a reason".into() },
        };
        // What the guest still had to say is written before its end is told.
        drop(running);
        if let Some(channel) = &self.channel {
            // A daemon that is not there finds the process gone.
            let _ = channel.tell(&FromVmm::Ended { end });
        }
    }
}

struct Ready {
    ended: bool,
    channel: bool,
    listener: bool,
}

//! The app's processes: its start, its output, its end, and commands run beside it.

use crate::{
    Fault,
    children::{Children, End},
    control::{Control, find_port, lock},
    launch, mounts, vsock,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use cloudpal_model::guest::{FromGuest, GuestConfig, Reply};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::{self, File},
    io::{PipeWriter, Read, Write, pipe},
    os::fd::AsFd,
    process::{Command, Stdio},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    time::{Duration, Instant},
};

/// More output of a command than this is cut off. Base64 and JSON must still fit one line of the channel.
const MAX_OUTPUT_BYTES: usize = 700 * 1024;

pub struct App {
    pid: Pid,
    stop_signal: i32,
    children: Arc<Children>,
    ended: Mutex<Option<End>>,
    changed: Condvar,
    receiver: Mutex<Option<Receiver<End>>>,
    log: std::thread::JoinHandle<()>,
    /// Where the app writes what goes to its log; closed when it has ended, since the log's end is waited for then.
    output: Mutex<Option<PipeWriter>>,
    /// The end was asked for: then whoever asked powers off.
    stopping: AtomicBool,
}

impl App {
    pub fn start(config: &GuestConfig, by_vsock: bool) -> Result<Arc<App>, Fault> {
        fs::write(launch::PROCESS, serde_json::to_vec(&config.process)?)?;
        let (output, input) = pipe()?;
        let log: Box<dyn Write + Send> = if by_vsock {
            Box::new(vsock::Log::default())
        } else {
            Box::new(File::options().write(true).open(find_port("cloudpal.log")?)?)
        };
        let log = std::thread::spawn(move || copy_to_log(output, log));
        let children = Children::new();
        let mut command = Command::new("/proc/self/exe");
        command
            .args(["launch", "app"])
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input.try_clone()?);
        let (child, receiver) = children.start(&mut command)?;
        Ok(Arc::new(App {
            pid: Pid::from_raw(i32::try_from(child.id())?),
            stop_signal: config.process.stop_signal,
            children,
            ended: Mutex::new(None),
            changed: Condvar::new(),
            receiver: Mutex::new(Some(receiver)),
            log,
            output: Mutex::new(Some(input)),
            stopping: AtomicBool::new(false),
        }))
    }

    /// Waits for the app's end, tells the host, and powers off: whether to start it again is for the host to say.
    pub fn watch(self: Arc<Self>, control: Arc<Control>) {
        std::thread::spawn(move || {
            let Some(receiver) = lock(&self.receiver).take() else { return };
            let end = receiver.recv().unwrap_or(End { code: None, signal: None });
            *lock(&self.output) = None;
            *lock(&self.ended) = Some(end);
            self.changed.notify_all();
            // Without a host attached the telling waits, and an orphan may hold the log; the machine ends all the same.
            let told = std::thread::spawn(move || {
                drop(control.tell(&FromGuest::AppExited { code: end.code, signal: end.signal }));
            });
            let start = Instant::now();
            while !(told.is_finished() && self.log.is_finished()) && start.elapsed() < Duration::from_secs(1)
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            if !self.stopping.load(Ordering::Acquire) {
                mounts::power_off();
            }
        });
    }

    /// A line of our own, between those of the app.
    pub fn write_to_log(&self, line: &str) {
        if let Some(output) = lock(&self.output).as_mut() {
            let mut polled = [PollFd::new(output.as_fd(), PollFlags::POLLOUT)];
            // With nobody to read the log it is full: this line is not worth the wait, with the lock held.
            if poll(&mut polled, PollTimeout::ZERO) == Ok(1) {
                let _ = output.write_all(line.as_bytes());
            }
        }
    }

    pub fn stop(&self, control: &Control, id: u64, grace_ms: u64) {
        self.stopping.store(true, Ordering::Release);
        let signal = Signal::try_from(self.stop_signal).unwrap_or(Signal::SIGTERM);
        self.signal(signal);
        if !self.wait_for_end(Duration::from_millis(grace_ms)) {
            self.signal(Signal::SIGKILL);
            self.wait_for_end(Duration::from_secs(2));
        }
        drop(control.done(id));
        mounts::power_off();
    }

    fn signal(&self, signal: Signal) {
        let ended = lock(&self.ended);
        if ended.is_none() {
            // It may end at this very moment; then there is nobody left to tell.
            let _ = kill(self.pid, signal);
        }
    }

    fn wait_for_end(&self, patience: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(lock(&self.ended), patience, |ended| ended.is_none());
        waited.is_ok_and(|(ended, _)| ended.is_some())
    }

    pub fn exec(&self, control: &Control, id: u64, argv: &[String]) {
        let told = match self.run(argv) {
            Ok(reply) => control.reply(id, reply),
            Err(fault) => control.failed(id, &fault.to_string()),
        };
        if told.is_err() {
            println!("cloudpal: the control port is gone");
        }
    }

    fn run(&self, argv: &[String]) -> Result<Reply, Fault> {
        if argv.is_empty() {
            return Err("no command was given".into());
        }
        let (mut output, input) = pipe()?;
        let mut command = Command::new("/proc/self/exe");
        command.args(["launch", "exec", "--"]).args(argv).stdin(Stdio::null());
        command.stdout(input.try_clone()?).stderr(input);
        let (_, receiver) = self.children.start(&mut command)?;
        drop(command); // holds the pipe's other end open
        let mut kept = Vec::new();
        output.by_ref().take(MAX_OUTPUT_BYTES as u64).read_to_end(&mut kept)?;
        // Read on, so that a talkative command ends as if all had been kept.
        let truncated = std::io::copy(&mut output, &mut std::io::sink())? > 0;
        let end = receiver.recv()?;
        let code = end.code.or_else(|| end.signal.map(|signal| 128 + signal)).unwrap_or(-1);
        Ok(Reply::Exec { code, output_base64: BASE64_STANDARD.encode(kept), truncated })
    }
}

/// Through a pipe rather than the port itself: a port can be opened once only, and apps do open /dev/stdout.
fn copy_to_log(mut output: impl Read, mut log: impl Write) {
    let mut chunk = [0; 16384];
    loop {
        match output.read(&mut chunk) {
            Ok(0) => return,
            // A log that cannot be written must not stop the app from writing it.
            Ok(count) => drop(log.write_all(&chunk[..count])),
            Err(fault) if fault.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

pub fn stats() -> Result<Reply, Fault> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kib = |name: &str| -> Result<u64, Fault> {
        let line =
            memory.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line in /proc/meminfo")?;
        Ok(line.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?)
    };
    let first = |path: &str| -> Result<String, Fault> {
        Ok(fs::read_to_string(path)?.split_ascii_whitespace().next().unwrap_or_default().to_owned())
    };
    let uptime_s: f64 = first("/proc/uptime")?.parse()?;
    Ok(Reply::Stats {
        memory_total_kib: kib("MemTotal")?,
        memory_available_kib: kib("MemAvailable")?,
        load_1min: first("/proc/loadavg")?.parse()?,
        uptime_ms: (uptime_s * 1000.0) as u64,
    })
}

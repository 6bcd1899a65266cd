//! The guest's end of the control channel: JSON lines over the virtio-serial port `cloudpal.control`, or over vsock.
//!
//! Invariant: one line is written by one `write` under one lock, so answers of different threads never mix.
//! While no host is attached a write waits and a read says "nothing": both are ridden out here.

use crate::{Fault, vsock::Listener};
use cloudpal_model::guest::{FromGuest, MAX_LINE_BYTES, Reply, ToGuest};
use std::{
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

const PORTS: &str = "/sys/class/virtio-ports";

pub struct Control {
    reader: Mutex<Lines>,
    writer: Writer,
}

enum Writer {
    Port(Mutex<File>),
    Vsock { line: Mutex<()>, listener: Arc<Listener> },
}

struct Lines {
    source: Source,
    pending: Vec<u8>,
    /// The line is too long: throw away everything up to its end.
    skipping: bool,
}

enum Source {
    Port(File),
    Vsock { listener: Arc<Listener>, current: Option<Arc<File>> },
}

impl Control {
    /// By the virtio-serial port.
    pub fn open() -> Result<Self, Fault> {
        let path = find_port("cloudpal.control")?;
        let port = File::options().read(true).write(true).open(&path)?;
        let writer = Writer::Port(Mutex::new(port.try_clone()?));
        Ok(Control::new(Source::Port(port), writer))
    }

    /// By vsock.
    pub fn listen() -> Result<Self, Fault> {
        let listener = Arc::new(Listener::open()?);
        let writer = Writer::Vsock { line: Mutex::new(()), listener: listener.clone() };
        // The first word is the guest's, and it takes a host to hear it.
        let current = Some(listener.host()?);
        Ok(Control::new(Source::Vsock { listener, current }, writer))
    }

    fn new(source: Source, writer: Writer) -> Self {
        Control { reader: Mutex::new(Lines { source, pending: Vec::new(), skipping: false }), writer }
    }

    /// The host's next message. A line that is no message is skipped: the host may be newer than this init.
    pub fn next(&self) -> Result<ToGuest, Fault> {
        let mut lines = lock(&self.reader);
        loop {
            let line = lines.next()?;
            match serde_json::from_slice(&line) {
                Ok(message) => return Ok(message),
                Err(fault) => println!("cloudpal: a message from the host is not understood: {fault}"),
            }
        }
    }

    pub fn tell(&self, message: &FromGuest) -> Result<(), Fault> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        match &self.writer {
            Writer::Port(port) => lock(port).write_all(&line)?,
            Writer::Vsock { line: turn, listener } => {
                let _turn = lock(turn);
                listener.write(&line)?;
            }
        }
        Ok(())
    }

    pub fn reply(&self, id: u64, reply: Reply) -> Result<(), Fault> {
        self.tell(&FromGuest::Reply { id, reply })
    }

    pub fn done(&self, id: u64) -> Result<(), Fault> {
        self.reply(id, Reply::Done)
    }

    pub fn failed(&self, id: u64, why: &str) -> Result<(), Fault> {
        self.reply(id, Reply::Failed { why: why.into() })
    }
}

impl Lines {
    fn next(&mut self) -> Result<Vec<u8>, Fault> {
        let mut idle_ms = 10;
        loop {
            while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                if !std::mem::take(&mut self.skipping) && !line.is_empty() {
                    return Ok(line);
                }
            }
            if self.pending.len() > MAX_LINE_BYTES {
                self.pending.clear();
                self.skipping = true;
            }
            let mut chunk = [0; 16384];
            match self.source.read(&mut chunk) {
                // No host is attached: its daemon restarts. Look again soon, then ever more rarely.
                Ok(0) => {
                    sleep(Duration::from_millis(idle_ms));
                    idle_ms = (idle_ms * 2).min(200);
                }
                Ok(count) => {
                    self.pending.extend_from_slice(&chunk[..count]);
                    idle_ms = 10;
                }
                Err(fault) if fault.kind() == std::io::ErrorKind::Interrupted => {}
                Err(fault) => return Err(format!("reading the control port: {fault}").into()),
            }
        }
    }
}

impl Source {
    /// A vsock's host that goes is replaced by the next one, and its half line ended.
    fn read(&mut self, chunk: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Source::Port(port) => port.read(chunk),
            Source::Vsock { listener, current } => {
                let host = match current {
                    Some(host) => host.clone(),
                    None => {
                        let host =
                            listener.host().map_err(|fault| std::io::Error::other(fault.to_string()))?;
                        *current = Some(host.clone());
                        chunk[0] = b'\n';
                        return Ok(1);
                    }
                };
                match (&*host).read(chunk) {
                    Ok(count @ 1..) => Ok(count),
                    Err(fault) if fault.kind() == std::io::ErrorKind::Interrupted => Err(fault),
                    Ok(_) | Err(_) => {
                        listener.lost(&host);
                        *current = None;
                        Err(std::io::ErrorKind::Interrupted.into())
                    }
                }
            }
        }
    }
}

/// The device of a virtio-serial port, once the kernel has found it.
pub fn find_port(name: &str) -> Result<PathBuf, Fault> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        for entry in std::fs::read_dir(PORTS).into_iter().flatten().flatten() {
            let device = PathBuf::from("/dev").join(entry.file_name());
            let named =
                std::fs::read_to_string(entry.path().join("name")).is_ok_and(|text| text.trim() == name);
            if named && device.exists() {
                return Ok(device);
            }
        }
        sleep(Duration::from_millis(2));
    }
    Err(format!("the VMM offers no virtio-serial port named {name}").into())
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

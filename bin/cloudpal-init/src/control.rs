//! The guest's end of the control channel: JSON lines over the virtio-serial port `cloudpal.control`.
//!
//! Invariant: one line is written by one `write` under one lock, so answers of different threads never mix.
//! While no host is attached a write waits and a read says "nothing": both are ridden out here.

use crate::Fault;
use cloudpal_model::guest::{FromGuest, MAX_LINE_BYTES, Reply, ToGuest};
use std::{
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

const PORTS: &str = "/sys/class/virtio-ports";

pub struct Control {
    reader: Mutex<Lines>,
    writer: Mutex<File>,
}

struct Lines {
    port: File,
    pending: Vec<u8>,
    /// The line is too long: throw away everything up to its end.
    skipping: bool,
}

impl Control {
    pub fn open() -> Result<Self, Fault> {
        let path = find_port("cloudpal.control")?;
        let port = File::options().read(true).write(true).open(&path)?;
        let writer = Mutex::new(port.try_clone()?);
        Ok(Control { reader: Mutex::new(Lines { port, pending: Vec::new(), skipping: false }), writer })
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
        lock(&self.writer).write_all(&line)?;
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
            match self.port.read(&mut chunk) {
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

//! The channels over virtio-vsock, for a VMM that has no virtio-serial ports.
//!
//! The guest listens for the control channel, so that a new daemon can attach to a guest that runs; its log it brings
//! to the host itself. A connection does not outlive a snapshot: both ends make a new one after a wake.

use crate::{Fault, control::lock};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, listen, socket,
};
use rustix::{
    io::Errno,
    net::{SocketFlags, accept_with},
};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, Mutex},
    thread::sleep,
    time::{Duration, Instant},
};

/// Where init listens.
pub const CONTROL_PORT: u32 = 52;
/// Where the host listens for the app's log.
const LOG_PORT: u32 = 53;
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

const CONSOLE_DEVICE: &str = "0x0003";
const VSOCK_DEVICE: &str = "0x0013";

/// Whether this machine's channels are vsock's: it has such a device and no virtio console.
pub fn is_used() -> Result<bool, Fault> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        let mut found = Vec::new();
        for entry in fs::read_dir("/sys/bus/virtio/devices").into_iter().flatten().flatten() {
            found.push(fs::read_to_string(entry.path().join("device")).unwrap_or_default());
        }
        let has = |kind: &str| found.iter().any(|device| device.trim() == kind);
        if has(CONSOLE_DEVICE) || has(VSOCK_DEVICE) {
            return Ok(!has(CONSOLE_DEVICE));
        }
        sleep(Duration::from_millis(2));
    }
    Err("the VMM offers neither a virtio console nor a vsock".into())
}

/// The control channel: one host at a time. Whoever needs a host and finds none, reader or writer, accepts the next
/// one: a reader that answers must not wait for a host that only the reader could accept.
pub struct Listener {
    socket: OwnedFd,
    /// Locked while somebody accepts: without a host nobody has anything to do.
    current: Mutex<Option<Arc<File>>>,
}

impl Listener {
    pub fn open() -> Result<Listener, Fault> {
        let socket = stream()?;
        bind(socket.as_raw_fd(), &VsockAddr::new(ANY, CONTROL_PORT))?;
        listen(&socket, Backlog::new(8)?)?;
        Ok(Listener { socket, current: Mutex::new(None) })
    }

    /// The host that is attached; waits for one if there is none.
    pub fn host(&self) -> Result<Arc<File>, Fault> {
        let mut current = lock(&self.current);
        if let Some(host) = &*current {
            return Ok(host.clone());
        }
        loop {
            match accept_with(&self.socket, SocketFlags::CLOEXEC) {
                Ok(connection) => {
                    let host = Arc::new(File::from(connection));
                    *current = Some(host.clone());
                    return Ok(host);
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(fault) => return Err(format!("accepting the host's connection: {fault}").into()),
            }
        }
    }

    /// That host is gone.
    pub fn lost(&self, which: &Arc<File>) {
        let mut current = lock(&self.current);
        if current.as_ref().is_some_and(|host| Arc::ptr_eq(host, which)) {
            *current = None;
        }
    }

    /// Writes the line to whoever is attached, or is next. A host that goes in the middle of it is lost, and the next
    /// one gets the line whole.
    pub fn write(&self, line: &[u8]) -> Result<(), Fault> {
        loop {
            let host = self.host()?;
            if (&*host).write_all(line).is_ok() {
                return Ok(());
            }
            self.lost(&host);
        }
    }
}

/// The connection that carries the app's log, made anew whenever it breaks.
#[derive(Default)]
pub struct Log {
    connection: Option<File>,
    /// Nobody listened: not before then is the next try.
    next_try: Option<Instant>,
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for _ in 0..2 {
            if self.connection.is_none() {
                if self.next_try.is_some_and(|next| Instant::now() < next) {
                    break;
                }
                self.connection = connected().ok();
                self.next_try = Some(Instant::now() + Duration::from_millis(200));
            }
            let Some(connection) = &mut self.connection else { break };
            match connection.write_all(bytes) {
                Ok(()) => return Ok(bytes.len()),
                Err(_) => self.connection = None,
            }
        }
        Err(io::ErrorKind::NotConnected.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn connected() -> Result<File, Fault> {
    let socket = stream()?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST, LOG_PORT))?;
    Ok(socket.into())
}

fn stream() -> nix::Result<OwnedFd> {
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Read,
        os::unix::net::{UnixListener, UnixStream},
    };

    /// The host's daemon dies between its question and the answer, and the thread that reads is the one that answers.
    #[test]
    fn an_answer_whose_host_is_gone_goes_to_the_next() {
        let dir = std::env::temp_dir().join(format!("cloudpal-init-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("socket");
        let socket = UnixListener::bind(&path).unwrap().into();
        let listener = Listener { socket, current: Mutex::new(None) };
        let mut first = UnixStream::connect(&path).unwrap();
        first.write_all(b"?").unwrap();
        let host = listener.host().unwrap();
        assert_eq!((&*host).read(&mut [0; 8]).unwrap(), 1);
        drop(first);
        let mut second = UnixStream::connect(&path).unwrap();
        listener.write(b"!").unwrap();
        let mut heard = [0; 1];
        second.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"!");
        // The reader finds out only now, and takes nothing from the host that is there.
        listener.lost(&host);
        assert!(!Arc::ptr_eq(&listener.host().unwrap(), &host));
        fs::remove_dir_all(&dir).unwrap();
    }
}

//! A machine's TAP: the packets for a machine, awake or asleep.
//!
//! Invariants:
//! - the daemon holds a descriptor of the TAP for the machine's whole life; a VMM gets a duplicate, so packets that
//!   wait are never lost between two VMMs;
//! - the count of delivered packets changes exactly when somebody read a packet from the TAP;
//! - between two VMMs the TAP has no offloads and the default header, so what waits in it is plain.
#![allow(unsafe_code)]

use crate::net::namespace::Namespace;
use cloudpal_model::MachineId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::io::{Interest, unix::AsyncFd};

/// `struct virtio_net_hdr` without mergeable buffers, the kernel's default (linux/if_tun.h, TUNSETVNETHDRSZ).
const DEFAULT_VNET_HEADER_BYTES: libc::c_int = 10;

/// What `/proc/net/dev` of one tenant can take: a line is about 130 bytes, a tenant has at most some hundred machines.
const COUNTERS_MAX_BYTES: usize = 256 << 10;

/// The interface counters of one namespace: a descriptor that was opened inside and reads fresh numbers each time.
#[derive(Clone, Debug)]
pub struct Counters(Arc<File>);

impl Counters {
    /// Opened inside the namespace. It keeps the namespace alive until the last clone is dropped.
    pub fn open(namespace: &Namespace) -> io::Result<Self> {
        let file = namespace.run(|| File::open("/proc/thread-self/net/dev"))??;
        Ok(Counters(Arc::new(file)))
    }

    /// Packets that left the host through the interface. Of a TAP: that somebody read from its descriptor.
    pub fn tx_packets(&self, interface: &str) -> io::Result<u64> {
        let mut text = vec![0; 8 << 10];
        let mut filled = 0;
        loop {
            match self.0.read_at(&mut text[filled..], filled as u64)? {
                0 => break,
                read => filled += read,
            }
            if filled == text.len() {
                if filled >= COUNTERS_MAX_BYTES {
                    return Err(io::Error::other("the interface counters are longer than expected"));
                }
                text.resize(text.len() * 2, 0);
            }
        }
        let text = String::from_utf8_lossy(&text[..filled]);
        tx_packets_of(&text, interface)
            .ok_or_else(|| io::Error::other(format!("there are no counters of {interface}")))
    }
}

/// `  m1: rx_bytes packets errs drop fifo frame compressed multicast tx_bytes tx_packets …`
fn tx_packets_of(text: &str, interface: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().nth(9)?.parse().ok()
}

/// The TAP of one machine.
#[derive(Debug)]
pub struct Tap {
    name: String,
    fd: OwnedFd,
    counters: Counters,
    /// How often the counters could not be read.
    unreadable: AtomicU64,
}

impl Tap {
    /// Opens the persistent TAP `name` inside the namespace, or makes it. `ResourceBusy`: a VMM holds it.
    pub fn open(namespace: &Namespace, machine: MachineId, counters: Counters) -> io::Result<Self> {
        let name = machine.to_string();
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let fd = namespace.run(|| open_tun(&name, flags))??;
        set_persistent(&fd)?;
        let tap = Tap { name, fd, counters, unreadable: AtomicU64::new(0) };
        tap.restore_plain()?;
        Ok(tap)
    }

    /// A descriptor that a VMM of an earlier daemon held. Refused when it is not this machine's TAP.
    pub fn adopt(machine: MachineId, fd: OwnedFd, counters: Counters) -> io::Result<Self> {
        let (name, is_tap) = interface_of(&fd)?;
        if !is_tap || name != machine.to_string() {
            return Err(io::Error::other(format!(
                "the descriptor is of interface {name:?}, not of {machine}"
            )));
        }
        Ok(Tap { name, fd, counters, unreadable: AtomicU64::new(0) })
    }

    /// A duplicate for a VMM.
    pub fn dup(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// How many packets were read from the TAP since it was made. When the kernel does not say, the answer is a number
    /// that never comes twice: whoever compares two counts sees a change and lets the machine stay awake.
    pub fn delivered_packets(&self) -> u64 {
        match self.counters.tx_packets(&self.name) {
            Ok(packets) => packets,
            Err(error) => {
                tracing::warn!(tap = self.name, %error, "the TAP's counters cannot be read");
                u64::MAX - self.unreadable.fetch_add(1, Ordering::Relaxed)
            }
        }
    }

    /// A packet waits in the TAP.
    pub fn has_waiting(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::ZERO).unwrap_or(0);
        ready > 0 && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN))
    }

    /// Returns once a packet waits in the TAP.
    ///
    /// The open file is shared with a VMM, so an edge alone proves nothing: poll(2) has the last word. The descriptor
    /// is with the reactor only while somebody waits, so that an awake machine's packets do not wake the daemon.
    pub async fn wait_readable(&self) {
        while !self.has_waiting() {
            let watched = match self.dup().and_then(|fd| watch(fd, Interest::READABLE)) {
                Ok(watched) => watched,
                Err(error) => {
                    tracing::warn!(tap = self.name, %error, "the TAP cannot be watched; polling it");
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                    continue;
                }
            };
            loop {
                if self.has_waiting() {
                    return;
                }
                match watched.readable().await {
                    Ok(mut guard) if !self.has_waiting() => guard.clear_ready(),
                    Ok(_) => return,
                    Err(_) => break,
                }
            }
        }
    }

    /// Called when a VMM is gone: what is queued from now on is plain again.
    pub fn reset_offloads(&self) {
        if let Err(error) = self.restore_plain() {
            tracing::warn!(tap = self.name, %error, "the TAP keeps its last VMM's offloads");
        }
    }

    fn restore_plain(&self) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value; the descriptor is open.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, 0 as libc::c_ulong) })?;
        let size = DEFAULT_VNET_HEADER_BYTES;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which outlives the call.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })
    }
}

/// Opens /dev/net/tun and attaches it to the interface `name` of the calling thread's namespace, non-blocking.
pub(crate) fn open_tun(name: &str, flags: libc::c_int) -> io::Result<OwnedFd> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = interface_request();
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is too long for an interface"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which outlives the call; its name ends with a zero.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file.into())
}

/// Registers a descriptor with the runtime, until it is dropped.
pub(super) fn watch<T: Into<OwnedFd> + AsRawFd>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: the AsyncFd owns the descriptor (`Into<OwnedFd>`: so does `T`), which stays open and the same until then.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(|error| error.into_parts().1)
}

fn set_persistent(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value; the descriptor is open.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) })
}

/// The interface that a TUN descriptor is attached to, and whether it is a TAP.
pub(super) fn interface_of(fd: &impl AsRawFd) -> io::Result<(String, bool)> {
    let mut request = interface_request();
    let raw: RawFd = fd.as_raw_fd();
    // SAFETY: TUNGETIFF writes one ifreq, which outlives the call.
    check(unsafe { libc::ioctl(raw, libc::TUNGETIFF, &raw mut request) })?;
    let name = request.ifr_name.iter().take_while(|&&c| c != 0).map(|&c| char::from(c as u8)).collect();
    // SAFETY: the kernel filled in the flags' arm of the union.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok((name, flags & libc::IFF_TAP != 0))
}

fn interface_request() -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all zeros is a value.
    unsafe { std::mem::zeroed() }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::tx_packets_of;

    #[test]
    fn the_count_is_of_that_interface_alone() {
        let text = "Inter-|   Receive   |  Transmit\n face |bytes packets\n\
                    m11:  1 2 0 0 0 0 0 0 3 44 0 0 0 0 0 0\n    m1: 1 2 0 0 0 0 0 0 3 7 0 0 0 0 0 0\n";
        assert_eq!(tx_packets_of(text, "m1"), Some(7));
        assert_eq!(tx_packets_of(text, "m11"), Some(44));
        assert_eq!(tx_packets_of(text, "m"), None);
    }
}

//! The way of the packets between the machine's TAP, which the daemon holds, and the TAP that Firecracker opens.
//!
//! ```text
//!   tenant's namespace          the daemon                    the VMM's own namespace
//!   m1 ── descriptor ── relay: read, send ───── packet socket ── fc0 ── Firecracker
//!                              write  ◀──────── recv
//! ```
//!
//! Firecracker takes no descriptor: it opens a TAP by its name, and a TAP can be open once. So it has one of its own,
//! in a network namespace without any other interface, and the machine's TAP stays with the daemon, where packets wait
//! while nobody can take them.
//!
//! Invariants:
//! - Nothing is read from the machine's TAP before [`Relay::start`], nor between [`Relay::pause`] and the next start:
//!   what comes meanwhile waits there.
//! - When [`Relay::pause`] returns, every packet that Firecracker had sent was passed on, and [`Relay::waiting`] tells
//!   how many it was given and has not taken.
//! - It goes with the daemon. Packets wait in the TAP, which the VMM holds, until the next daemon adopts the machine.
#![allow(unsafe_code)]

use cloudpal_model::Problem;
use nix::sched::{CloneFlags, setns};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::{read, write},
};
use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// Firecracker's TAP. There is one in each VMM's namespace.
pub const DEVICE: &str = "fc0";
/// A frame of any size that segmentation offload makes, with the header before it.
const MAX_FRAME_BYTES: usize = (64 << 10) + 256;
/// `struct virtio_net_hdr`: what both the TAP and the packet socket put before a frame.
const HEADER_BYTES: usize = 10;
/// The longest frame a TAP takes.
const MTU: libc::c_int = 65_521;
const RECEIVE_BUFFER_BYTES: libc::c_int = 4 << 20;

pub struct Relay {
    shared: Arc<Shared>,
}

struct Shared {
    tap: OwnedFd,
    socket: OwnedFd,
    /// Of the VMM's namespace: `/proc/PID/net/dev`.
    counters: String,
    /// Packets given to Firecracker's TAP.
    given: AtomicU64,
    /// Wakes the thread.
    nudge: OwnedFd,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Paused,
    Pausing,
    Running,
    Ended,
}

impl Relay {
    /// Makes Firecracker's TAP in the namespace of the process, unless it is there, for that user. Paused.
    pub fn open(pid: u32, user: Option<u32>, tap: OwnedFd) -> Result<Relay, Problem> {
        let opened = (|| {
            let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
            let socket = inside(namespace, || {
                make_device(user)?;
                packet_socket()
            })?;
            let nudge = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let counters = format!("/proc/{pid}/net/dev");
            let given = AtomicU64::new(taken_of(&counters)?);
            let (state, changed) = (Mutex::new(State::Paused), Condvar::new());
            let shared = Arc::new(Shared { tap, socket, counters, given, nudge, state, changed });
            let works = shared.clone();
            thread::Builder::new().name("relay".into()).spawn(move || works.run())?;
            Ok(Relay { shared })
        })();
        opened.map_err(|error: io::Error| Problem::io("the way of the packets to Firecracker", &error))
    }

    pub fn start(&self) {
        self.shared.set(State::Running);
    }

    /// Returns when the relay has stopped. Call it where blocking is allowed; it takes a moment.
    pub fn pause(&self) {
        let mut state = self.shared.lock();
        if *state == State::Running {
            *state = State::Pausing;
            self.shared.nudge();
        }
        while *state == State::Pausing {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Passes on what Firecracker sent up to now. Only while paused.
    pub fn drain(&self) {
        let mut frame = vec![0; MAX_FRAME_BYTES];
        while self.shared.to_host(&mut frame) {}
    }

    /// Packets that Firecracker was given and has not taken yet. Only while paused.
    pub fn waiting(&self) -> io::Result<u64> {
        Ok(self.shared.given.load(Ordering::Acquire).saturating_sub(taken_of(&self.shared.counters)?))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.set(State::Ended);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, state: State) {
        *self.lock() = state;
        self.nudge();
        self.changed.notify_all();
    }

    fn nudge(&self) {
        // Full means that it is nudged already.
        let _full = write(&self.nudge, &1_u64.to_ne_bytes());
    }

    fn run(&self) {
        let mut frame = vec![0; MAX_FRAME_BYTES];
        loop {
            {
                let mut state = self.lock();
                if *state == State::Pausing {
                    *state = State::Paused;
                    self.changed.notify_all();
                }
                while *state == State::Paused {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if *state == State::Ended {
                    return;
                }
            }
            if self.pass(&mut frame).is_err() {
                // A namespace or a TAP that is gone; the machine's end is told elsewhere.
                thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Waits for packets, and passes on some of them.
    fn pass(&self, frame: &mut [u8]) -> io::Result<()> {
        let mut ready = [
            PollFd::new(&self.nudge, PollFlags::IN),
            PollFd::new(&self.tap, PollFlags::IN),
            PollFd::new(&self.socket, PollFlags::IN),
        ];
        poll(&mut ready, None)?;
        let [nudged, from_host, from_guest] = ready.map(|fd| fd.revents());
        if nudged.contains(PollFlags::IN) {
            let _empty = read(&self.nudge, &mut [0_u8; 8]);
            return Ok(());
        }
        if (from_host | from_guest).intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL)
            && !(from_host | from_guest).contains(PollFlags::IN)
        {
            return Err(io::ErrorKind::NotConnected.into());
        }
        for _ in 0..64 {
            let passed = self.to_guest(frame) | self.to_host(frame);
            if !passed {
                break;
            }
        }
        Ok(())
    }

    fn to_guest(&self, frame: &mut [u8]) -> bool {
        let Ok(length) = read(&self.tap, &mut *frame) else { return false };
        // A frame that the other side has no room for is lost, as on a wire.
        if let Ok(sent) = rustix::net::send(&self.socket, &frame[..length], rustix::net::SendFlags::empty())
            && sent == length
        {
            self.given.fetch_add(1, Ordering::AcqRel);
        }
        true
    }

    fn to_host(&self, frame: &mut [u8]) -> bool {
        let received = rustix::net::recv(&self.socket, &mut *frame, rustix::net::RecvFlags::DONTWAIT);
        let Ok((length, _)) = received else { return false };
        if length > HEADER_BYTES {
            let _lost = write(&self.tap, &frame[..length]);
        }
        true
    }
}

/// Runs the work on a thread of its own in that namespace.
fn inside<T: Send>(namespace: File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        worker.join().unwrap_or_else(|_| Err(io::Error::other("the work in the VMM's namespace failed")))
    })
}

fn make_device(user: Option<u32>) -> io::Result<()> {
    if fs::exists(format!("/proc/sys/net/ipv6/conf/{DEVICE}"))? {
        return Ok(());
    }
    // Nothing of this namespace's own may speak to the guest.
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
    let tun = crate::net::tap::open_tun(DEVICE, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
    if let Some(user) = user {
        // SAFETY: TUNSETOWNER takes its argument by value; the descriptor is open.
        check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(user)) })?;
    }
    // SAFETY: TUNSETPERSIST takes its argument by value; the descriptor is open.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) })?;
    // SAFETY: a plain system call on numbers.
    let control = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    check(control)?;
    // SAFETY: it was just made, and is nobody else's.
    let control = unsafe { OwnedFd::from_raw_fd(control) };
    let mut request = named_request();
    request.ifr_ifru.ifru_mtu = MTU;
    // SAFETY: SIOCSIFMTU reads one ifreq, which outlives the call; its name ends with a zero.
    check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFMTU, &raw const request) })?;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call; its name ends with a zero.
    check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

fn named_request() -> libc::ifreq {
    // SAFETY: ifreq is plain data for which all zeros is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Everything that arrives at Firecracker's TAP from the guest's side, with its offload header.
fn packet_socket() -> io::Result<OwnedFd> {
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    const PACKET_VNET_HDR: libc::c_int = 15;
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: a plain system call on numbers. Protocol 0: nothing is received before it is bound.
    let socket = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    check(socket)?;
    // SAFETY: it was just made, and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    option(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
    option(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)?;
    let index = nix::net::if_::if_nametoindex(DEVICE)?;
    // SAFETY: sockaddr_ll is plain data for which all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index as libc::c_int;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is a whole sockaddr_ll, which outlives the call.
    check(unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

fn option(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the value is one int, which outlives the call.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) })
}

/// Packets that Firecracker took from its TAP, or that the TAP had no room for.
fn taken_of(counters: &str) -> io::Result<u64> {
    taken(&fs::read_to_string(counters)?).ok_or_else(|| io::Error::other("there are no counters of its TAP"))
}

/// `  fc0: rx_bytes packets errs drop fifo frame compressed multicast tx_bytes tx_packets errs drop …`
fn taken(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(DEVICE)?.strip_prefix(':'))?;
    let mut fields = line.split_ascii_whitespace().map(|field| field.parse::<u64>().ok());
    Some(fields.nth(9)?? + fields.nth(1)??)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_taken_and_dropped_are_counted() {
        let text = " face |bytes\n   fc0:  1 2 0 0 0 0 0 0 3 44 0 5 0 0 0 0\n    lo: 1 2 0 0 0 0 0 0 3 7 0 0 0 0 0 0\n";
        assert_eq!(taken(text), Some(49));
        assert_eq!(taken("lo: 1"), None);
    }
}

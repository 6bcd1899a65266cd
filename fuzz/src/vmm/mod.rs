//! The embedded VMM: its devices, the kernels that it loads, the snapshots that it wakes from.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod kernel;
pub mod net;
pub mod rng;
pub mod snapshot;
pub mod vsock;

use std::{
    fs::File,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener, UnixStream},
    },
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// A file in memory.
fn file(len: u64) -> File {
    let file = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let file = File::from(file);
    file.set_len(len).expect("a length");
    file
}

/// A listening socket without a name on the disk.
struct Door {
    address: SocketAddr,
    listener: UnixListener,
}

impl Door {
    fn open() -> Door {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("cloudpal-fuzz-{}-{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        let address = SocketAddr::from_abstract_name(name).expect("a name");
        let listener = UnixListener::bind_addr(&address).expect("a socket");
        Door { address, listener }
    }

    /// `None`: as many wait already as may.
    fn connect(address: &SocketAddr) -> Option<UnixStream> {
        let client = UnixStream::connect_addr(address).ok()?;
        client.set_nonblocking(true).expect("not blocking");
        Some(client)
    }
}

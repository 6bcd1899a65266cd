//! What a VMM that a guest has taken over would try. Made from inside the jail, each attempt must be refused; made
//! without it, each must succeed, or it would prove nothing.
//!
//! Nothing here harms: victims are processes and files that the test made, and what is mounted or made is in a mount
//! namespace of its own.

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal},
};
use serde::Serialize;
use std::{io, mem::MaybeUninit, net::SocketAddr, path::PathBuf, process::Command};

/// What the attempts aim at.
#[derive(clap::Args, Clone)]
pub struct Targets {
    /// A file of the host that anybody may read.
    #[arg(long)]
    public_file: PathBuf,
    /// Another machine's file.
    #[arg(long)]
    other_file: PathBuf,
    /// Another machine's process.
    #[arg(long)]
    other_pid: i32,
    /// A descriptor number that is open in the other machine's process.
    #[arg(long)]
    other_fd: i32,
    /// A listening TCP socket on the host's loopback.
    #[arg(long)]
    loopback: SocketAddr,
    /// Listening unix sockets of the host: by name alone, and by path.
    #[arg(long)]
    abstract_socket: String,
    #[arg(long)]
    path_socket: PathBuf,
    /// An open directory of the host that was left in the process by mistake.
    #[arg(long)]
    leaked_fd: i32,
}

#[derive(Serialize)]
pub struct Outcome {
    pub name: &'static str,
    /// `None`: it succeeded.
    pub refused: Option<String>,
}

type Attempt = (&'static str, fn(&Targets) -> io::Result<()>);

/// In the order in which they are made.
pub const ALL: [Attempt; 22] = [
    ("read a file of the host", |t| std::fs::read(&t.public_file).map(drop)),
    ("read another machine's file", |t| std::fs::read(&t.other_file).map(drop)),
    ("climb out of the root", |t| std::fs::read(climbing(&t.public_file)).map(drop)),
    ("use a directory that was left open", |t| {
        // SAFETY: the number may be closed; then the kernel says so.
        let dir = unsafe { std::os::fd::BorrowedFd::borrow_raw(t.leaked_fd) };
        rustix::fs::openat(dir, ".", OFlags::RDONLY, Mode::empty()).map(drop).map_err(told)
    }),
    ("list processes", |_| std::fs::read_dir("/proc").map(drop)),
    ("write a file", |_| std::fs::write("/tmp/cloudpal-attempt", "x")),
    ("open KVM again", |_| std::fs::File::open("/dev/kvm").map(drop)),
    ("connect to the host's loopback", |t| std::net::TcpStream::connect(t.loopback).map(drop)),
    ("connect to an abstract socket", |t| {
        use std::os::{linux::net::SocketAddrExt, unix::net};
        let address = net::SocketAddr::from_abstract_name(&t.abstract_socket)?;
        net::UnixStream::connect_addr(&address).map(drop)
    }),
    ("connect to a socket of the host", |t| {
        std::os::unix::net::UnixStream::connect(&t.path_socket).map(drop)
    }),
    ("open a raw socket", |_| {
        use rustix::net::{AddressFamily, SocketType, ipproto, socket};
        socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP)).map(drop).map_err(told)
    }),
    ("signal another machine", |t| rustix::process::kill_process(pid(t)?, Signal::CONT).map_err(told)),
    ("open another machine's process", |t| {
        rustix::process::pidfd_open(pid(t)?, PidfdFlags::empty()).map(drop).map_err(told)
    }),
    ("take another machine's descriptor", |t| {
        let other = rustix::process::pidfd_open(pid(t)?, PidfdFlags::empty()).map_err(told)?;
        rustix::process::pidfd_getfd(&other, t.other_fd, PidfdGetfdFlags::empty()).map(drop).map_err(told)
    }),
    ("trace another machine", trace),
    ("read another machine's memory", read_memory),
    ("mount", |_| {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", "/", "tmpfs", flags, c"size=4k").map_err(told)
    }),
    ("make a device node", |_| {
        let kind = rustix::fs::FileType::CharacterDevice;
        let null = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, "/tmp/cloudpal-attempt-node", kind, Mode::RUSR, null).map_err(told)?;
        rustix::fs::unlinkat(CWD, "/tmp/cloudpal-attempt-node", AtFlags::empty()).map_err(told)
    }),
    ("become root", |_| {
        let root = rustix::process::Uid::ROOT;
        rustix::thread::set_thread_res_uid(root, root, root).map_err(told)
    }),
    ("take a capability", |_| {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        let mut sets = capabilities(None).map_err(told)?;
        sets.permitted |= CapabilitySet::SYS_ADMIN;
        sets.effective |= CapabilitySet::SYS_ADMIN;
        set_capabilities(None, sets).map_err(told)
    }),
    ("start a program", |_| Command::new("/bin/true").status().map(drop)),
    ("fork", |_| fork()),
];

/// `None`: there is no attempt of that name.
pub fn make(targets: &Targets, name: &str) -> Option<Outcome> {
    let (name, attempt) = ALL.iter().find(|(known, _)| *known == name)?;
    let refused = attempt(targets).err().map(|error| error.to_string());
    Some(Outcome { name, refused })
}

fn told(errno: Errno) -> io::Error {
    errno.into()
}

fn pid(targets: &Targets) -> io::Result<Pid> {
    Pid::from_raw(targets.other_pid).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn climbing(path: &std::path::Path) -> PathBuf {
    let up = "../".repeat(32);
    PathBuf::from(up).join(path.strip_prefix("/").unwrap_or(path))
}

fn trace(targets: &Targets) -> io::Result<()> {
    // SAFETY: takes numbers only; PTRACE_SEIZE does not stop the process.
    let done = unsafe { libc::ptrace(libc::PTRACE_SEIZE, targets.other_pid, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn read_memory(targets: &Targets) -> io::Result<()> {
    let mut byte = [MaybeUninit::<u8>::uninit(); 1];
    let local = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: 1 };
    // Where nothing is mapped: permission is looked at first, and told apart from a bad address.
    let remote = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 1 };
    // SAFETY: the local vector is ours; the remote address is only used in the other process.
    let read = unsafe { libc::process_vm_readv(targets.other_pid, &local, 1, &remote, 1, 0) };
    let error = io::Error::last_os_error();
    if read >= 0 || error.raw_os_error() == Some(libc::EFAULT) { Ok(()) } else { Err(error) }
}

fn fork() -> io::Result<()> {
    // SAFETY: the child only ends.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above.
        0 => unsafe { libc::_exit(0) },
        child => {
            let mut status = 0;
            // SAFETY: waits for the child that was just made.
            unsafe { libc::waitpid(child, &mut status, 0) };
            Ok(())
        }
    }
}

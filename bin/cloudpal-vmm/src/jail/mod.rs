//! Shuts this process in: what it has in its hands when the door closes is all that it will ever have.
//!
//! ```text
//!  root, the host's file system ──enter──► a user of its own, nothing ──filter──► a few system calls
//!    /dev/kvm is opened here                 VM, vCPUs, memory are made here        the guest runs here
//! ```
//! Invariants, each of which holds without the others:
//! - The process has namespaces of its own: no network, no mount but an empty read-only one, no other process (its
//!   starter gave it a pid namespace).
//! - Its user owns nothing, is nobody else's, and has no capability nor a way to get one.
//! - No system call beyond its lists (`filter`): any other one kills it.
#![allow(unsafe_code)]

pub mod attempts;
pub mod filter;

use rustix::{
    fs::CWD,
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags},
    process::{DumpableBehavior, Gid, Resource, Rlimit, Uid},
    thread::UnshareFlags,
};
use std::{ffi::CStr, fs};

/// What was refused to us while shutting ourselves in.
#[derive(Debug, thiserror::Error)]
#[error("the jail cannot be closed: {step}: {errno}")]
pub struct Failure {
    step: &'static str,
    errno: Errno,
}

trait Step<T> {
    fn step(self, step: &'static str) -> Result<T, Failure>;
}

impl<T> Step<T> for rustix::io::Result<T> {
    fn step(self, step: &'static str) -> Result<T, Failure> {
        self.map_err(|errno| Failure { step, errno })
    }
}

/// Descriptors, of which a machine needs about thirty.
const MAX_DESCRIPTORS: u64 = 128;

/// Which user a process becomes: the first of a range that no account uses, plus its own pid, which nobody else living
/// has. Both sides reckon alike.
pub fn user(first_uid: u32, pid: u32) -> u32 {
    first_uid.saturating_add(pid)
}

/// The number under which the processes outside know this one: /proc is still theirs.
pub fn outer_pid() -> Result<u32, Failure> {
    let link = fs::read_link("/proc/self").ok();
    let pid = link.and_then(|link| link.to_str()?.parse().ok());
    pid.ok_or(Failure { step: "reading /proc/self", errno: Errno::NOENT })
}

/// Closes every descriptor from this one on.
pub fn close_from(first: u32) -> Result<(), Failure> {
    // SAFETY: called before this process has opened anything itself; what it inherited has no owner in it.
    let done = unsafe { libc::close_range(first, u32::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(Errno::BADF).step("closing what was inherited") }
}

/// Does something with that user's rights, before the jail is closed.
pub fn as_user<T>(uid: u32, work: impl FnOnce() -> T) -> Result<T, Failure> {
    let change = |uid| rustix::thread::set_thread_res_uid(None, uid, None).step("changing the user");
    change(Uid::from_raw(uid))?;
    // A change of user makes the process' files in /proc root's, until this.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).step("opening its own files")?;
    let done = work();
    change(Uid::ROOT)?;
    Ok(done)
}

/// Everything but the filter. This process has one thread. `threads` is the most that it may have from then on.
pub fn enter(uid: u32, threads: u64) -> Result<(), Failure> {
    let apart = UnshareFlags::NEWNET
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWCGROUP;
    // SAFETY: without FILES, no thread's descriptors change; and there is but one thread.
    unsafe { rustix::thread::unshare_unsafe(apart) }.step("namespaces")?;
    empty_root()?;
    limits(threads)?;
    become_nobody(uid)
}

/// For attempts that are made without a jail.
pub fn mounts_of_its_own() -> Result<(), Failure> {
    // SAFETY: as in `enter`.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.step("namespaces")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).step("keeping mounts to itself")
}

/// A tmpfs without room is all that can be seen, and it is read-only.
fn empty_root() -> Result<(), Failure> {
    const OPTIONS: &CStr = c"size=4k,nr_inodes=1,mode=0555";
    // Any directory serves as the place; this one is on every Linux.
    const PLACE: &str = "/proc";
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).step("keeping mounts to itself")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("tmpfs", PLACE, "tmpfs", flags, OPTIONS).step("mounting an empty root")?;
    rustix::process::chdir(PLACE).step("entering the empty root")?;
    // pivot_root(2): with the same place twice the old root lies over the new one, and is unmounted.
    rustix::process::pivot_root(".", ".").step("changing the root")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step("leaving the old root")?;
    rustix::process::chdir("/").step("entering the empty root")?;
    let read_only = flags | MountFlags::RDONLY;
    rustix::mount::mount_remount("/", read_only, OPTIONS).step("making the empty root read-only")
}

fn limits(threads: u64) -> Result<(), Failure> {
    let most = |resource, most| {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        rustix::process::setrlimit(resource, limit).step("limits")
    };
    most(Resource::Nofile, MAX_DESCRIPTORS)?;
    most(Resource::Core, 0)?;
    // A process counts as a thread: so none can be forked off once all threads run.
    most(Resource::Nproc, threads)
}

fn become_nobody(uid: u32) -> Result<(), Failure> {
    use rustix::thread::{self, CapabilitySet, CapabilitySets};
    // Kernels know 41 of them, and refuse the numbers beyond their last as invalid.
    for capability in 0..64 {
        // SAFETY: changes only what this thread may ever get.
        let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if done != 0
            && (capability == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL))
        {
            return Err(Errno::PERM).step("dropping capabilities");
        }
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    thread::set_thread_groups(&[]).step("leaving groups")?;
    thread::set_thread_res_gid(group, group, group).step("changing the group")?;
    thread::set_thread_res_uid(user, user, user).step("changing the user")?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    thread::set_capabilities(None, none).step("dropping capabilities")?;
    thread::set_no_new_privs(true).step("giving up new privileges")?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("hiding memory")?;
    // What was told to the kernel is what it says now.
    let (real, root) = (rustix::process::geteuid(), rustix::fs::openat(CWD, "/proc", OPEN, MODE));
    if real != user || root.is_ok() {
        return Err(Errno::PERM).step("looking around inside");
    }
    Ok(())
}

const OPEN: rustix::fs::OFlags = rustix::fs::OFlags::RDONLY;
const MODE: rustix::fs::Mode = rustix::fs::Mode::empty();

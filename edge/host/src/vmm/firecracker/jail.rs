//! The jail of one VMM: the operator's jailer makes it, and finds in it what Firecracker works on.
//!
//! The jailer needs a directory that can hold device nodes and programs (a host's `/run` holds neither) and closes
//! every descriptor but the standard three. So, in the process that is about to become the jailer, in a mount namespace
//! of its own, a small tmpfs takes the place of the jail, and each file is mounted into it. The host sees an empty
//! directory, and nothing is left when the VMM has ended.
//!
//! Invariants:
//! - A VMM sees its own files under their names, read-only where it has nothing to write, the directory of its sockets,
//!   and nothing else of the host.
//! - Its standard output is the machine's lock, open for reading only; its standard input, which it never reads, is a
//!   socket in which the machine's TAP waits for the daemon that adopts it.
//! - What runs between fork and exec neither allocates nor locks.
#![allow(unsafe_code)]

use super::super::start::sockets_dir;
use cloudpal_compute::driver::MachineSpec;
use cloudpal_model::{Kind, Problem};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::{
    fs::{Mode, OFlags},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
};
use std::{
    env,
    ffi::{CStr, CString},
    fs,
    io::{self, IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

/// The sockets' directory, as the VMM names it.
pub const SOCKETS: &str = "vmm";
/// Beside the program's copy that the jailer makes.
const SPARE_BYTES: u64 = 1 << 20;
const NO_DATA: Option<&CStr> = None;

/// Firecracker and its jailer, checked.
#[derive(Clone, Debug)]
pub struct Programs {
    pub firecracker: PathBuf,
    jailer: PathBuf,
    bytes: u64,
}

impl Programs {
    /// `jailer`: by default what is called so beside Firecracker, with the same ending of its name.
    pub fn find(firecracker: &Path, jailer: Option<&Path>) -> Result<Programs, Problem> {
        let firecracker = resolve(firecracker, "name Firecracker's program with --firecracker")?;
        let mend = "Firecracker's releases have it beside Firecracker; or name it with --jailer";
        let jailer = match jailer {
            Some(named) => resolve(named, mend)?,
            None => resolve(&jailer_beside(&firecracker), mend)?,
        };
        let bytes = fs::metadata(&firecracker).map_err(|error| Problem::io(firecracker.display(), &error))?;
        if is_dynamic(&firecracker).map_err(|error| Problem::io(firecracker.display(), &error))? {
            let what = format!("{} needs shared libraries, and a jail has none", firecracker.display());
            let mend = "take Firecracker's release, or build it with `-C target-feature=+crt-static`";
            return Err(Problem::new(Kind::HostLacks, what, mend));
        }
        Ok(Programs { firecracker, jailer, bytes: bytes.len() })
    }

    /// The command that becomes the jailer and then Firecracker, with the files in their places.
    pub fn command(
        &self,
        spec: &MachineSpec,
        (uid, gid): (u32, u32),
        files: &[JailFile],
        arguments: &[&str],
    ) -> Result<Command, Problem> {
        let base = spec.run_dir.join("jail");
        fs::create_dir_all(&base).map_err(|error| Problem::io(base.display(), &error))?;
        let id = spec.id.to_string();
        let plan = Plan::new(self, &base, &id, &sockets_dir(spec), files)
            .map_err(|error| Problem::io(base.display(), &error))?;
        let mut command = Command::new(&self.jailer);
        command.args(["--id", &id, "--uid", &uid.to_string(), "--gid", &gid.to_string()]);
        command.arg("--exec-file").arg(&self.firecracker).arg("--chroot-base-dir").arg(&base);
        command.arg("--").args(arguments);
        // SAFETY: the plan is made of system calls on strings that exist already; nothing is allocated.
        unsafe { command.pre_exec(move || plan.carry_out()) };
        Ok(command)
    }
}

/// `firecracker-v1.13.1-x86_64` has `jailer-v1.13.1-x86_64` beside it.
fn jailer_beside(firecracker: &Path) -> PathBuf {
    let name = firecracker.file_name().unwrap_or_default().to_string_lossy();
    let jailer = name.strip_prefix("firecracker").map_or("jailer".into(), |ending| format!("jailer{ending}"));
    firecracker.with_file_name(jailer)
}

/// The file itself, looked for as a shell does.
fn resolve(program: &Path, mend: &str) -> Result<PathBuf, Problem> {
    let named = if program.components().count() > 1 {
        Some(program.to_path_buf())
    } else {
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
    };
    let found = named.and_then(|file| fs::canonicalize(file).ok()).filter(|file| file.is_file());
    found.ok_or_else(|| Problem::new(Kind::HostLacks, format!("there is no {}", program.display()), mend))
}

/// Whether an ELF program names an interpreter, which loads its libraries (System V ABI: PT_INTERP).
fn is_dynamic(program: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    fs::File::open(program)?.take(64 << 10).read_to_end(&mut head)?;
    let number = |at: usize, bytes: usize| {
        let field = head.get(at..at.checked_add(bytes)?)?;
        Some(field.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte)))
    };
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Ok(false);
    }
    let field = |at, bytes| number(at, bytes).and_then(|value| usize::try_from(value).ok()).unwrap_or(0);
    let (table, size, count) = (field(32, 8), field(54, 2), field(56, 2));
    let mut kinds = (0..count).map_while(|index| number(table.checked_add(size * index)?, 4));
    Ok(kinds.any(|kind| kind == u64::from(PT_INTERP)))
}

/// A file that the VMM finds in its jail.
pub struct JailFile {
    pub name: &'static str,
    pub path: PathBuf,
    pub read_only: bool,
}

/// What is mounted where.
struct Mount {
    from: CString,
    to: CString,
    read_only: bool,
    is_dir: bool,
}

/// All that is done in the child, in words that exist before the fork.
struct Plan {
    base: CString,
    options: CString,
    /// From the base down to the jail's root.
    dirs: Vec<CString>,
    mounts: Vec<Mount>,
}

impl Plan {
    fn new(
        programs: &Programs,
        base: &Path,
        id: &str,
        sockets: &Path,
        files: &[JailFile],
    ) -> io::Result<Plan> {
        let text = |path: &Path| Ok::<CString, io::Error>(CString::new(path.as_os_str().as_bytes())?);
        let name = programs.firecracker.file_name().unwrap_or_default();
        let below = [base.join(name), base.join(name).join(id), base.join(name).join(id).join("root")];
        let root = &below[2];
        let mut mounts = vec![Mount {
            from: text(sockets)?,
            to: text(&root.join(SOCKETS))?,
            read_only: false,
            is_dir: true,
        }];
        for file in files {
            let (from, to) = (text(&file.path)?, text(&root.join(file.name))?);
            mounts.push(Mount { from, to, read_only: file.read_only, is_dir: false });
        }
        let options = CString::new(format!("mode=0700,size={}", programs.bytes + SPARE_BYTES))?;
        let dirs = below.iter().map(|dir| text(dir)).collect::<io::Result<_>>()?;
        Ok(Plan { base: text(base)?, options, dirs, mounts })
    }

    /// Says on standard error what failed: the parent is told the number only.
    fn carry_out(&self) -> io::Result<()> {
        let told = |place: &CStr, result: Result<(), rustix::io::Errno>| {
            result.inspect_err(|_| {
                for part in [c"making the jail: ", place, c"\n"] {
                    let _ = rustix::io::write(rustix::stdio::stderr(), part.to_bytes());
                }
            })
        };
        told(c"a mount namespace", self.enter())?;
        for dir in &self.dirs {
            told(dir, rustix::fs::mkdir(dir.as_c_str(), Mode::RWXU))?;
        }
        for each in &self.mounts {
            told(&each.from, each.make())?;
        }
        Ok(())
    }

    fn enter(&self) -> Result<(), rustix::io::Errno> {
        unshare(CloneFlags::CLONE_NEWNS).map_err(errno)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(NO_DATA, c"/", NO_DATA, private, NO_DATA).map_err(errno)?;
        let options = Some(self.options.as_c_str());
        mount(Some(c"jail"), self.base.as_c_str(), Some(c"tmpfs"), MsFlags::MS_NOSUID, options).map_err(errno)
    }
}

impl Mount {
    fn make(&self) -> Result<(), rustix::io::Errno> {
        let to = self.to.as_c_str();
        if self.is_dir {
            rustix::fs::mkdir(to, Mode::RWXU)?;
        } else {
            drop(rustix::fs::open(to, OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, Mode::RUSR)?);
        }
        mount(Some(self.from.as_c_str()), to, NO_DATA, MsFlags::MS_BIND, NO_DATA).map_err(errno)?;
        if self.read_only {
            let again = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(NO_DATA, to, NO_DATA, again, NO_DATA).map_err(errno)?;
        }
        Ok(())
    }
}

fn errno(error: nix::Error) -> rustix::io::Errno {
    rustix::io::Errno::from_raw_os_error(error as i32)
}

/// A socket in which the TAP waits, for as long as somebody has the socket open.
pub fn keep(tap: &impl AsFd) -> io::Result<OwnedFd> {
    let (kept, sender) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [tap.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(&sender, &[IoSlice::new(b"tap")], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(kept)
}

/// A duplicate of what waits there; it stays there, too.
pub fn kept(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0; 8];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    recvmsg(socket, &mut [IoSliceMut::new(&mut word)], &mut ancillary, flags)?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut each) => each.next(),
        _ => None,
    });
    descriptors.next().ok_or_else(|| io::Error::other("the TAP that the VMM was to keep is not there"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_is_kept_can_be_had_again_and_again() {
        let file = tempfile::tempfile().unwrap();
        let socket = keep(&file).unwrap();
        for _ in 0..2 {
            let again = fs::File::from(kept(&socket).unwrap());
            assert_eq!(again.metadata().unwrap().ino(), file.metadata().unwrap().ino());
        }
        let (empty, _other) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        assert!(kept(&empty).is_err());
    }

    #[test]
    fn a_jailer_has_the_ending_of_its_firecracker() {
        for (firecracker, jailer) in [
            ("/opt/firecracker", "/opt/jailer"),
            ("/opt/firecracker-v1.13.1-x86_64", "/opt/jailer-v1.13.1-x86_64"),
            ("/opt/fc", "/opt/jailer"),
        ] {
            assert_eq!(jailer_beside(Path::new(firecracker)), Path::new(jailer));
        }
    }

    #[test]
    fn what_cannot_be_jailed_is_refused() {
        let problem = Programs::find(Path::new("/no/firecracker"), None).unwrap_err();
        assert!(problem.what.contains("/no/firecracker"), "{problem}");
        // The tests themselves are linked to shared libraries.
        let own = env::current_exe().unwrap();
        let problem = Programs::find(&own, Some(&own)).unwrap_err();
        assert!(problem.what.contains("shared libraries"), "{problem}");
    }

    #[test]
    fn a_broken_program_has_no_interpreter() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [("empty", &b""[..]), ("short", b"\x7fELF\x02\x01"), ("script", b"#!/bin/sh\n")]
        {
            let path = dir.path().join(name);
            fs::write(&path, bytes).unwrap();
            assert!(!is_dynamic(&path).unwrap(), "{name}");
        }
        let mut absurd = b"\x7fELF\x02\x01".to_vec();
        absurd.resize(64, 0xff);
        fs::write(dir.path().join("absurd"), absurd).unwrap();
        assert!(!is_dynamic(&dir.path().join("absurd")).unwrap());
    }
}

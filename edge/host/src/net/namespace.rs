//! Named network namespaces: made, entered by a thread of their own, removed.
//!
//! Invariants: no thread of the runtime ever changes its namespace, only threads that end right after; a namespace is
//! bind-mounted under /run/netns, so it outlives the daemon and `ip netns` sees it.

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{FsType, fstatfs},
};
use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// Where iproute2 keeps its named namespaces.
const NAMED: &str = "/run/netns";

/// Linux' NSFS_MAGIC: what a bind-mounted namespace's file lies on.
const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// A named network namespace, held open.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
}

impl Namespace {
    /// Opens the namespace of that name, or makes it. `true`: it was made now.
    pub fn open_or_create(name: &str) -> io::Result<(Arc<Self>, bool)> {
        if let Some(existing) = Self::open(name)? {
            return Ok((existing, false));
        }
        let path = Path::new(NAMED).join(name);
        fs::create_dir_all(NAMED)?;
        match File::create_new(&path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let target = path.clone();
        thread::spawn(move || -> nix::Result<()> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            mount(Some("/proc/thread-self/ns/net"), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        })
        .join()
        .map_err(|_| io::Error::other("the thread that makes the namespace panicked"))??;
        match Self::open(name)? {
            Some(made) => Ok((made, true)),
            None => Err(io::Error::other(format!("{} was made, but is not a namespace", path.display()))),
        }
    }

    /// The namespace of that name; `None` when there is none (also for a left-over file that is no namespace).
    pub fn open(name: &str) -> io::Result<Option<Arc<Self>>> {
        let path = Path::new(NAMED).join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let is_namespace = fstatfs(&file)?.filesystem_type() == NSFS_MAGIC;
        Ok(is_namespace.then(|| Arc::new(Namespace { path, file })))
    }

    /// Runs `work` on a thread that is inside this namespace; sockets and files it opens stay inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            inside
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
        })
    }

    /// Takes the name away. The kernel ends the namespace when the last socket or file of it is closed.
    pub fn remove(name: &str) -> io::Result<()> {
        let path = Path::new(NAMED).join(name);
        match umount2(&path, MntFlags::MNT_DETACH) {
            // EINVAL: the file is there, but nothing is mounted on it.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The names of all namespaces of this host, ours and others'.
pub fn all_names() -> io::Result<Vec<String>> {
    match fs::read_dir(NAMED) {
        Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

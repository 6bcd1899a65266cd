//! A sleeping machine on the disk: `snapshot/{snapshot.json,state,memory}`.
//!
//! Invariants:
//! - Written as `snapshot.tmp`, made durable, then renamed: a snapshot that has its name is whole.
//! - `take` renames it away, durably, before the guest runs again: a consumed snapshot can never be woken twice, also
//!   not after a power cut.
//! - It names everything that it fits to. What does not fit is refused with the reason and set aside, never tried.

use super::memory::{self, Block};
use cloudpal_compute::driver::MachineSpec;
use cloudpal_model::Problem;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

const VERSION: u32 = 1;
/// No device state is larger: a bound for what is read into memory.
const MAX_STATE_BYTES: u64 = 64 << 20;

/// What a snapshot fits to: the same VMM with the same machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub vmm_version: String,
    pub accelerator: String,
    pub machine: String,
    pub cpu: String,
    pub memory_mib: u32,
    pub vcpus: u32,
}

/// A file as it was, without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Description {
    version: u32,
    identity: Identity,
    disk: Stamp,
    rootfs_bytes: u64,
    state_bytes: u64,
    state_crc32c: u32,
    pub blocks: Vec<Block>,
}

pub fn path(dir: &Path) -> PathBuf {
    dir.join("snapshot")
}

pub fn exists(dir: &Path) -> bool {
    path(dir).join("snapshot.json").is_file()
}

/// A snapshot that is being written.
pub struct Draft {
    dir: PathBuf,
    temporary: PathBuf,
}

impl Draft {
    pub fn begin(dir: &Path) -> io::Result<Draft> {
        let temporary = dir.join("snapshot.tmp");
        remove(&temporary)?;
        fs::create_dir(&temporary)?;
        Ok(Draft { dir: dir.to_path_buf(), temporary })
    }

    pub fn memory_file(&self) -> io::Result<File> {
        File::options().read(true).write(true).create_new(true).open(self.temporary.join("memory"))
    }

    /// Writes what is missing and makes everything durable; it has its name only after [`Draft::publish`].
    pub fn complete(
        &self,
        spec: &MachineSpec,
        identity: Identity,
        state: &mut File,
        blocks: Vec<Block>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        io::Seek::rewind(state)?;
        state.read_to_end(&mut bytes)?;
        write_durably(&self.temporary.join("state"), &bytes)?;
        let description = Description {
            version: VERSION,
            identity,
            disk: stamp(&spec.dir.join("disk.img"))?,
            rootfs_bytes: fs::metadata(&spec.rootfs)?.len(),
            state_bytes: bytes.len() as u64,
            state_crc32c: crc32c::crc32c(&bytes),
            blocks,
        };
        write_durably(&self.temporary.join("snapshot.json"), &serde_json::to_vec(&description)?)?;
        sync_dir(&self.temporary)
    }

    pub fn publish(self) -> io::Result<()> {
        remove(&path(&self.dir))?;
        fs::rename(&self.temporary, path(&self.dir))?;
        sync_dir(&self.dir)
    }

    pub fn discard(self) {
        // What cannot be removed now is removed by the next draft.
        drop(remove(&self.temporary));
    }
}

/// Everything of a snapshot that is cheap to read, verified. `Err`: why it is refused.
pub fn open(spec: &MachineSpec, identity: &Identity) -> Result<(Description, Vec<u8>), String> {
    let dir = path(&spec.dir);
    let text = fs::read(dir.join("snapshot.json")).map_err(|error| format!("snapshot.json: {error}"))?;
    let found: Description =
        serde_json::from_slice(&text).map_err(|error| format!("snapshot.json: {error}"))?;
    if found.version != VERSION {
        return Err(format!("it has the format {}, this program reads {VERSION}", found.version));
    }
    if &found.identity != identity {
        return Err(format!("it was made by another VMM or machine: {:?}, not {identity:?}", found.identity));
    }
    let disk = stamp(&spec.dir.join("disk.img")).map_err(|error| format!("disk.img: {error}"))?;
    if found.disk != disk {
        return Err("the disk was changed since".into());
    }
    let rootfs = fs::metadata(&spec.rootfs).map_err(|error| format!("{}: {error}", spec.rootfs.display()))?;
    if found.rootfs_bytes != rootfs.len() {
        return Err("the image was changed since".into());
    }
    if found.state_bytes > MAX_STATE_BYTES {
        return Err(format!("its device state is {} bytes long", found.state_bytes));
    }
    let state = fs::read(dir.join("state")).map_err(|error| format!("state: {error}"))?;
    if state.len() as u64 != found.state_bytes || crc32c::crc32c(&state) != found.state_crc32c {
        return Err("its device state is damaged".into());
    }
    Ok((found, state))
}

pub fn load_memory(dir: &Path, blocks: &[Block], into: &File) -> Result<(), String> {
    let file = File::open(path(dir).join("memory")).map_err(|error| format!("memory: {error}"))?;
    memory::load(&file, blocks, into).map_err(|error| format!("memory: {error}"))?
}

/// From here on it is not good any more: the guest is about to run.
pub fn take(dir: &Path) -> io::Result<()> {
    let consumed = dir.join("snapshot.consumed");
    remove(&consumed)?;
    fs::rename(path(dir), consumed)?;
    sync_dir(dir)
}

pub fn remove_consumed(dir: &Path) {
    // What cannot be removed now is removed by the next `take`.
    drop(remove(&dir.join("snapshot.consumed")));
}

/// Keeps a refused snapshot for whoever wants to look at it, out of the way.
pub fn set_aside(dir: &Path) {
    let refused = dir.join("snapshot.refused");
    let moved = remove(&refused).and_then(|()| match fs::rename(path(dir), &refused) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    });
    if let Err(error) = moved {
        tracing::warn!(dir = %dir.display(), %error, "a refused snapshot could not be set aside");
    }
}

/// The machine runs on or starts anew: an older snapshot must not be woken any more.
pub fn discard(dir: &Path) -> Result<(), Problem> {
    let gone = remove(&dir.join("snapshot.tmp")).and_then(|()| match exists(dir) {
        true => take(dir),
        false => remove(&path(dir)),
    });
    gone.map_err(|error| Problem::io(format!("removing the old snapshot in {}", dir.display()), &error))?;
    remove_consumed(dir);
    Ok(())
}

pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let data = fs::metadata(path)?;
    Ok(Stamp { bytes: data.len(), modified_s: data.mtime(), modified_ns: data.mtime_nsec() })
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

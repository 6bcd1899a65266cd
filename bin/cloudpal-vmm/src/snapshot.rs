//! A machine asleep: a directory with two files, `state` and `memory`, that never change once they have their name.
//!
//! ```text
//!  memory:  the guest's memory, sparse │ one page: magic, pairing, checksum of the memory
//!  state:   see `state.rs`
//! ```
//! Invariants:
//! - A directory under its own name is complete: it is written beside it, made durable, and renamed. An older
//!   snapshot of that name is exchanged for it in one step.
//! - Nothing is taken from a snapshot before all of it that a wake relies on was found true: version, checksum,
//!   sizes, that the two files belong together, and that this CPU has what the guest saw. The memory's contents are
//!   read only by `verify_memory`: to read them at each wake would cost more than the wake.

use crate::{
    Error, Host, Machine, Spare, cpu,
    state::{Damage, State},
};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Damage(#[from] Damage),
    #[error("{0}")]
    Cpu(String),
    #[error("its memory has {taken} bytes, the machine's {machine}")]
    MemorySize { taken: u64, machine: u64 },
    #[error("the memory file has {found} bytes instead of {wanted}")]
    MemoryFile { found: u64, wanted: u64 },
    #[error("the memory file belongs to another snapshot")]
    Pairing,
    #[error("the memory file is damaged: its checksum is {found:#010x} instead of {wanted:#010x}")]
    MemoryChecksum { found: u32, wanted: u32 },
}

const MEMORY: &str = "memory";
const STATE: &str = "state";
const FOOTER: usize = 4096;
const FOOTER_MAGIC: [u8; 8] = *b"CLDPLMEM";
/// Memory is written in pieces of this size; one that is all zero becomes a hole.
const PIECE: usize = 64 * 1024;
/// Far more than a state can have; a wrong file is not read into memory.
const STATE_MAX: u64 = 1 << 20;

pub struct Snapshot {
    pub state: State,
    memory: File,
    dir: PathBuf,
}

impl Snapshot {
    /// Saves the machine, which is not running, under that name.
    pub fn take(machine: &mut Machine, host: &Host, dir: &Path) -> Result<(), Error> {
        let mut state = machine.save(host)?;
        getrandom::fill(&mut state.pairing).map_err(|e| Error::Host(format!("no random bytes: {e}")))?;
        let fresh = beside(dir, &state.pairing)?;
        let written = write(machine, &state, &fresh).and_then(|()| put_in_place(&fresh, dir));
        if written.is_err() {
            // What failed is told; a rest that cannot be removed either is found by its name.
            let _ = fs::remove_dir_all(&fresh);
        }
        written
    }

    /// Opens a snapshot for any number of wakes, and refuses what cannot be woken here.
    pub fn open(host: &Host, dir: &Path) -> Result<Snapshot, Error> {
        let state_path = dir.join(STATE);
        let mut bytes = Vec::new();
        let file = File::open(&state_path).map_err(Error::file(&state_path))?;
        file.take(STATE_MAX).read_to_end(&mut bytes).map_err(Error::file(&state_path))?;
        let state = State::decode(&bytes).map_err(Refusal::from)?;
        cpu::fits(&state.vcpu.cpuid, &host.supported).map_err(Refusal::Cpu)?;
        let memory_path = dir.join(MEMORY);
        let memory = File::open(&memory_path).map_err(Error::file(&memory_path))?;
        let found = memory.metadata().map_err(Error::file(&memory_path))?.len();
        let wanted = state.memory_bytes.saturating_add(FOOTER as u64);
        if found != wanted {
            return Err(Refusal::MemoryFile { found, wanted }.into());
        }
        let snapshot = Snapshot { state, memory, dir: dir.to_owned() };
        let (pairing, _) = snapshot.footer()?;
        if pairing != snapshot.state.pairing {
            return Err(Refusal::Pairing.into());
        }
        Ok(snapshot)
    }

    /// Reads all of the memory and compares its checksum.
    pub fn verify_memory(&self) -> Result<(), Error> {
        let mut piece = vec![0; PIECE];
        let (mut at, mut found) = (0, 0);
        while at < self.state.memory_bytes {
            let len = PIECE.min((self.state.memory_bytes - at) as usize);
            self.memory.read_exact_at(&mut piece[..len], at).map_err(Error::file(self.dir.join(MEMORY)))?;
            found = crc32c::crc32c_append(found, &piece[..len]);
            at += len as u64;
        }
        let (_, wanted) = self.footer()?;
        if found == wanted { Ok(()) } else { Err(Refusal::MemoryChecksum { found, wanted }.into()) }
    }

    /// One more machine from this snapshot. It goes on with the instruction behind the last one that the saved one ran.
    pub fn wake(&self, spare: Spare) -> Result<Machine, Error> {
        let (taken, machine) = (self.state.memory_bytes, spare.memory_bytes());
        if taken != machine {
            return Err(Refusal::MemorySize { taken, machine }.into());
        }
        spare.wake(&self.state, &self.memory)
    }

    fn footer(&self) -> Result<([u8; 16], u32), Error> {
        let mut footer = [0; 28];
        let read = self.memory.read_exact_at(&mut footer, self.state.memory_bytes);
        read.map_err(Error::file(self.dir.join(MEMORY)))?;
        let (magic, rest) = footer.split_at(8);
        let (Some((pairing, rest)), true) = (rest.split_first_chunk::<16>(), magic == FOOTER_MAGIC) else {
            return Err(Refusal::Pairing.into());
        };
        Ok((*pairing, rest.first_chunk().map_or(0, |crc| u32::from_le_bytes(*crc))))
    }
}

fn write(machine: &Machine, state: &State, dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().mode(0o700).create(dir).map_err(Error::file(dir))?;
    let path = dir.join(MEMORY);
    let memory = create(&path)?;
    memory.set_len(state.memory_bytes + FOOTER as u64).map_err(Error::file(&path))?;
    let (mut piece, zero, mut crc) = (vec![0; PIECE], vec![0; PIECE], 0);
    machine.memory.each_chunk(&mut piece, |offset, bytes| {
        crc = crc32c::crc32c_append(crc, bytes);
        if bytes == &zero[..bytes.len()] {
            return Ok(());
        }
        memory.write_all_at(bytes, offset).map_err(Error::file(&path))
    })?;
    let footer = [&FOOTER_MAGIC[..], &state.pairing, &crc.to_le_bytes()].concat();
    memory.write_all_at(&footer, state.memory_bytes).map_err(Error::file(&path))?;
    memory.sync_all().map_err(Error::file(&path))?;
    let path = dir.join(STATE);
    let file = create(&path)?;
    file.write_all_at(&state.encode(), 0).and_then(|()| file.sync_all()).map_err(Error::file(&path))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::file(dir))
}

/// A guest's memory is nobody else's to read.
fn create(path: &Path) -> Result<File, Error> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(Error::file(path))
}

/// A name beside it that nobody else uses.
fn beside(dir: &Path, random: &[u8; 16]) -> Result<PathBuf, Error> {
    let name = dir.file_name().ok_or_else(|| {
        Error::file(dir)(std::io::Error::new(std::io::ErrorKind::InvalidInput, "a snapshot needs a name"))
    })?;
    Ok(dir.with_file_name(format!(".{}.{:032x}.new", name.to_string_lossy(), u128::from_le_bytes(*random))))
}

fn put_in_place(fresh: &Path, dir: &Path) -> Result<(), Error> {
    let told = |errno: Errno| Error::file(dir)(errno.into());
    match renameat_with(CWD, fresh, CWD, dir, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            renameat_with(CWD, fresh, CWD, dir, RenameFlags::EXCHANGE).map_err(told)?;
            fs::remove_dir_all(fresh).map_err(Error::file(fresh))?;
        }
        Err(errno) => return Err(told(errno)),
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(Error::file(parent))
}

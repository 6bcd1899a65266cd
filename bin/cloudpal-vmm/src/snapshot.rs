//! A machine asleep: the files `state`, `memory` and at times `diff`, that never change once they have their names.
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

pub mod diff;
mod working_set;

use crate::{
    Error, Host, Machine, Spare, cpu,
    machine::Wake,
    memory::Memory,
    state::{Damage, State},
    virtio::Device,
};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use std::{
    fs::{self, File},
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
    #[error("it has {taken} vCPUs, the machine {machine}")]
    Vcpus { taken: usize, machine: usize },
    #[error("it has {saved} devices, the machine {given}")]
    Devices { saved: usize, given: usize },
    #[error("its device {slot} does not fit the machine's: {why}")]
    Device { slot: usize, why: &'static str },
    #[error("its serial port cannot be restored: {0}")]
    Com1(&'static str),
    #[error("its diff of the memory cannot be used: {0}")]
    Diff(&'static str),
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
const FOOTER_MAGIC: [u8; 8] = *b"CLDPLME2";
const FOOTER_MAGIC_1: [u8; 8] = *b"CLDPLMEM";
/// Memory is written in pieces of this size; one that is all zero becomes a hole.
const PIECE: usize = 64 * 1024;
/// Memory between two looks whether the guest is wanted back: a fraction of a millisecond.
const BETWEEN_QUESTIONS: u64 = 1 << 20;
/// Far more than a state can have; a wrong file is not read into memory.
const STATE_MAX: u64 = 1 << 20;

/// Open files to save a machine into. Whoever gives them makes them durable and gives them their names.
pub struct Save<'a> {
    pub state: &'a File,
    /// Written when the whole memory is kept.
    pub memory: &'a File,
    /// Written instead when there is one, the machine was woken, and little of its memory has changed since.
    pub diff: Option<&'a File>,
    /// Written too, when the machine was woken: what it has used since.
    pub working_set: Option<&'a File>,
    /// Asked between two pieces of memory: true ends the save with [`Error::GivenUp`], so that the machine can run on.
    pub given_up: &'a dyn Fn() -> bool,
}

impl Save<'_> {
    fn go_on(&self) -> Result<(), Error> {
        if (self.given_up)() { Err(Error::GivenUp) } else { Ok(()) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Full,
    Diff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    pub kind: Kind,
    /// Bytes of memory that were written; what is zero is none.
    pub bytes: u64,
}

/// The memory file that a machine woke from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Base(pub [u8; 16]);

impl Machine {
    /// Saves all of the machine, which is not running.
    pub fn save(&mut self, save: Save<'_>) -> Result<Saved, Error> {
        let mut state = self.state()?;
        crate::random::fill(&mut state.pairing).map_err(|e| Error::Host(format!("no random bytes: {e}")))?;
        let told = Error::file("/proc/self/pagemap");
        let changed = self.memory.changed().map_err(told)?;
        if let (Some(file), Some(_)) = (save.working_set, self.base)
            && let Some(used) = self.memory.used().map_err(Error::file("/proc/self/pagemap"))?
        {
            // Before anything of the memory is read here, which would count as used.
            working_set::write(file, &used)?;
        }
        let saved = match (save.diff, self.base, &changed) {
            (Some(file), Some(base), Some(changed)) if self.is_little(changed) => {
                let bytes = diff::write(file, &save, &self.memory, changed, (base.0, state.pairing))?;
                Saved { kind: Kind::Diff, bytes }
            }
            _ => {
                // Without a file below, what was never touched is zero.
                let used = changed.as_deref().filter(|_| self.base.is_none());
                let bytes = write_memory(&self.memory, used, &save, state.pairing)?;
                Saved { kind: Kind::Full, bytes }
            }
        };
        let encoded = state.encode();
        let written = save.state.set_len(encoded.len() as u64);
        let written = written.and_then(|()| save.state.write_all_at(&encoded, 0));
        written.map_err(Error::file("the snapshot's state"))?;
        Ok(saved)
    }

    /// A diff of this is worth its while at the next wake.
    fn is_little(&self, changed: &[diff::Extent]) -> bool {
        const SHARE: u64 = 4;
        changed.iter().map(|(_, len)| len).sum::<u64>() <= self.memory.bytes() / SHARE
    }
}

/// Refuses what cannot be woken here, by that spare.
pub(crate) fn check(spare: &Spare, host: &Host, wake: &Wake<'_>) -> Result<Base, Error> {
    let (taken, machine) = (wake.state.memory_bytes, spare.memory_bytes());
    if taken != machine {
        return Err(Refusal::MemorySize { taken, machine }.into());
    }
    let (taken, machine) = (wake.state.vcpus.len(), spare.vcpu_count());
    if taken != machine {
        return Err(Refusal::Vcpus { taken, machine }.into());
    }
    check_files(host, wake.state, wake.memory, wake.diff)
}

fn check_files(host: &Host, state: &State, memory: &File, diff: Option<&File>) -> Result<Base, Error> {
    let count = u8::try_from(state.vcpus.len()).unwrap_or(u8::MAX);
    let first = state.vcpus.first().map_or(&[][..], |vcpu| &vcpu.cpuid);
    cpu::fits(first, &host.shown(0, count)).map_err(Refusal::Cpu)?;
    let found = memory.metadata().map_err(Error::file("the snapshot's memory"))?.len();
    let wanted = state.memory_bytes.saturating_add(FOOTER as u64);
    if found != wanted {
        return Err(Refusal::MemoryFile { found, wanted }.into());
    }
    let base = footer(memory, state.memory_bytes)?.pairing;
    let pairing = match diff.map(diff::header).transpose()? {
        Some(diff) if diff.base == base => diff.pairing,
        Some(_) => return Err(Refusal::Pairing.into()),
        None => base,
    };
    if pairing == state.pairing { Ok(Base(base)) } else { Err(Refusal::Pairing.into()) }
}

/// Reads a state file, which is foreign.
pub fn read_state(file: &File) -> Result<State, Error> {
    let told = || Error::file("the snapshot's state");
    let len = file.metadata().map_err(told())?.len();
    if len > STATE_MAX {
        return Err(Refusal::Damage(Damage::Length { found: len, wanted: STATE_MAX }).into());
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).map_err(told())?;
    Ok(State::decode(&bytes).map_err(Refusal::from)?)
}

pub struct Snapshot {
    pub state: State,
    memory: File,
}

impl Snapshot {
    /// Saves the machine, which is not running, under that name.
    pub fn take(machine: &mut Machine, dir: &Path) -> Result<(), Error> {
        let mut random = [0; 16];
        crate::random::fill(&mut random).map_err(|e| Error::Host(format!("no random bytes: {e}")))?;
        let fresh = beside(dir, &random)?;
        let written = write(machine, &fresh).and_then(|()| put_in_place(&fresh, dir));
        if written.is_err() {
            // What failed is told; a rest that cannot be removed either is found by its name.
            let _ = fs::remove_dir_all(&fresh);
        }
        written
    }

    /// Opens a snapshot for any number of wakes, and refuses what cannot be woken here.
    pub fn open(host: &Host, dir: &Path) -> Result<Snapshot, Error> {
        let path = dir.join(STATE);
        let state = read_state(&File::open(&path).map_err(Error::file(&path))?)?;
        let path = dir.join(MEMORY);
        let memory = File::open(&path).map_err(Error::file(&path))?;
        check_files(host, &state, &memory, None)?;
        Ok(Snapshot { state, memory })
    }

    /// Reads all of the memory and compares its checksum.
    pub fn verify_memory(&self) -> Result<(), Error> {
        verify_memory(&self.state, &self.memory)
    }

    /// One more machine from this snapshot. It goes on with the instruction behind the last one that the saved one ran.
    pub fn wake(&self, host: &Host, spare: Spare) -> Result<Machine, Error> {
        self.wake_with(host, spare, Vec::new())
    }

    pub fn wake_with(
        &self,
        host: &Host,
        spare: Spare,
        devices: Vec<Box<dyn Device>>,
    ) -> Result<Machine, Error> {
        let wake = Wake { state: &self.state, memory: &self.memory, diff: None, devices, com1: None };
        spare.wake(host, wake)
    }
}

/// Reads all of a memory file and compares its checksum.
pub fn verify_memory(state: &State, file: &File) -> Result<(), Error> {
    let memory_bytes = state.memory_bytes;
    let footer = footer(file, memory_bytes)?;
    let mut piece = vec![0; PIECE];
    let (mut at, mut checksum) = (0, Checksum::default());
    while at < memory_bytes {
        let len = PIECE.min((memory_bytes - at) as usize);
        file.read_exact_at(&mut piece[..len], at).map_err(Error::file("the snapshot's memory"))?;
        if footer.of_pieces {
            checksum.add(at, &piece[..len]);
        } else {
            checksum.0 = crc32c::crc32c_append(checksum.0, &piece[..len]);
        }
        at += len as u64;
    }
    let (found, wanted) = (checksum.0, footer.checksum);
    if found == wanted { Ok(()) } else { Err(Refusal::MemoryChecksum { found, wanted }.into()) }
}

/// What stands behind the memory.
struct Footer {
    pairing: [u8; 16],
    checksum: u32,
    /// Of the pieces that are not zero; beside states of version 1, of every byte.
    of_pieces: bool,
}

fn footer(memory: &File, memory_bytes: u64) -> Result<Footer, Error> {
    let mut footer = [0; 28];
    memory.read_exact_at(&mut footer, memory_bytes).map_err(Error::file("the snapshot's memory"))?;
    let (magic, rest) = footer.split_at(8);
    let known = magic == FOOTER_MAGIC || magic == FOOTER_MAGIC_1;
    let (Some((pairing, rest)), true) = (rest.split_first_chunk::<16>(), known) else {
        return Err(Refusal::Pairing.into());
    };
    let checksum = rest.first_chunk().map_or(0, |crc| u32::from_le_bytes(*crc));
    Ok(Footer { pairing: *pairing, checksum, of_pieces: magic == FOOTER_MAGIC })
}

/// Writes all of the memory, with holes where it is zero. `used` says where it may be anything else.
fn write_memory(
    memory: &Memory,
    used: Option<&[diff::Extent]>,
    save: &Save<'_>,
    pairing: [u8; 16],
) -> Result<u64, Error> {
    let file = save.memory;
    let told = || Error::file("the snapshot's memory");
    file.set_len(0).and_then(|()| file.set_len(memory.bytes() + FOOTER as u64)).map_err(told())?;
    let (mut piece, mut checksum, mut written) = (vec![0; PIECE], Checksum::default(), 0);
    let all = [(0, memory.bytes())];
    // Pieces are aligned; one that an extent begins or ends in is written as a whole, and once.
    let mut next = 0;
    for (offset, len) in used.unwrap_or(&all) {
        let mut at = next.max(offset / PIECE as u64 * PIECE as u64);
        while at < offset + len {
            if at.is_multiple_of(BETWEEN_QUESTIONS) {
                save.go_on()?;
            }
            let some = (memory.bytes() - at).min(PIECE as u64);
            memory.each_chunk_of(at, some, &mut piece, |bytes| {
                if checksum.add(at, bytes) {
                    written += some;
                    file.write_all_at(bytes, at).map_err(told())?;
                }
                Ok::<_, Error>(())
            })?;
            at += some;
        }
        next = next.max(at);
    }
    let footer = [&FOOTER_MAGIC[..], &pairing, &checksum.0.to_le_bytes()].concat();
    file.write_all_at(&footer, memory.bytes()).map_err(told())?;
    Ok(written)
}

/// CRC-32C of the pieces that are not zero, each behind its offset.
#[derive(Default)]
struct Checksum(u32);

impl Checksum {
    /// False when there is nothing in it.
    fn add(&mut self, offset: u64, bytes: &[u8]) -> bool {
        static ZERO: [u8; PIECE] = [0; PIECE];
        if bytes == &ZERO[..bytes.len()] {
            return false;
        }
        self.0 = crc32c::crc32c_append(crc32c::crc32c_append(self.0, &offset.to_le_bytes()), bytes);
        true
    }
}

fn write(machine: &mut Machine, dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new().mode(0o700).create(dir).map_err(Error::file(dir))?;
    let (memory, state) = (create(&dir.join(MEMORY))?, create(&dir.join(STATE))?);
    let save = Save { state: &state, memory: &memory, diff: None, working_set: None, given_up: &|| false };
    machine.save(save)?;
    memory.sync_all().map_err(Error::file(dir.join(MEMORY)))?;
    state.sync_all().map_err(Error::file(dir.join(STATE)))?;
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

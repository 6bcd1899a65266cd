//! Puts a kernel and its initramfs into a guest's memory: an ELF, or Linux' bzImage (boot protocol 2.12, Linux:
//! Documentation/arch/x86/boot.rst). Foreign files: whatever is odd is refused with its reason.

use crate::{
    Error,
    elf::{self, u16_at, u32_at},
    layout::{HIGH_MEMORY, INITRAMFS_END_MAX, memory_ranges},
    memory::Memory,
};
use std::{fs::File, os::unix::fs::FileExt};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is cut short: {what} ends at byte {end}, the file at {len}")]
    Short { what: &'static str, end: u64, len: u64 },
    #[error("it is neither an ELF file nor a bzImage")]
    Unknown,
    #[error("it is an ELF file, but {0}")]
    Wrong(&'static str),
    #[error("it is a bzImage, but {0}")]
    WrongBzImage(&'static str),
    #[error("it loads nothing")]
    Empty,
    #[error("a segment goes to {start:#x}, below 1 MiB, where the boot tables are")]
    Low { start: u64 },
    #[error("a segment goes to {start:#x}..{end:#x}, outside the guest's memory")]
    Outside { start: u64, end: u64 },
    #[error("two segments go to {0:#x}")]
    Overlap(u64),
    #[error("it starts at {0:#x}, where it loads nothing")]
    Entry(u64),
    #[error("its initramfs of {0} bytes does not fit between it and the end of memory")]
    Initramfs(u64),
}

/// A file's bytes, here or still outside.
pub enum Image<'a> {
    Bytes(&'a [u8]),
    File { file: &'a File, len: u64 },
}

impl<'a> Image<'a> {
    pub fn file(file: &'a File) -> Result<Image<'a>, Error> {
        let len = file.metadata().map_err(Error::file("the kernel or its initramfs"))?.len();
        Ok(Image::File { file, len })
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Image::Bytes(bytes) => bytes.len() as u64,
            Image::File { len, .. } => *len,
        }
    }

    fn check(&self, what: &'static str, start: u64, len: u64) -> Result<(), Refusal> {
        let end = start.saturating_add(len);
        if end <= self.len() { Ok(()) } else { Err(Refusal::Short { what, end, len: self.len() }) }
    }

    /// A few bytes of it: `len` is never a number from the file without a limit of ours.
    pub(crate) fn part(&self, what: &'static str, start: u64, len: usize) -> Result<Vec<u8>, Error> {
        self.check(what, start, len as u64)?;
        match self {
            Image::Bytes(bytes) => Ok(bytes[start as usize..start as usize + len].to_vec()),
            Image::File { file, .. } => {
                let mut part = vec![0; len];
                file.read_exact_at(&mut part, start).map_err(Error::file("the kernel"))?;
                Ok(part)
            }
        }
    }

    /// Copies a piece into the guest's memory.
    pub(crate) fn place(&self, start: u64, len: u64, memory: &Memory, to: u64) -> Result<(), Error> {
        self.check("a piece of it", start, len)?;
        match self {
            Image::Bytes(bytes) => memory.write(to, &bytes[start as usize..(start + len) as usize]),
            Image::File { file, .. } => memory.fill_from(to, file, start, len),
        }
    }
}

/// A kernel in memory.
pub struct Loaded {
    pub entry: elf::Entry,
    /// Linux' setup header, when the kernel came with one: the zero page has it.
    pub setup_header: Vec<u8>,
    /// Where the initramfs is: start and length.
    pub initramfs: Option<(u64, u64)>,
}

/// Loads them, or says why it does not; what is refused may be in memory in part.
pub fn load(memory: &Memory, kernel: &Image<'_>, initramfs: Option<&Image<'_>>) -> Result<Loaded, Error> {
    let magic = kernel.part("its magic", 0, 4).unwrap_or_default();
    let (entry, end, setup_header) = if magic == *b"\x7fELF" {
        let (entry, end) = elf::load(memory, kernel)?;
        (entry, end, Vec::new())
    } else {
        load_bzimage(memory, kernel)?
    };
    let initramfs = initramfs.map(|image| place_initramfs(memory, image, end)).transpose()?;
    Ok(Loaded { entry, setup_header, initramfs })
}

/// As high as every kernel reaches, where it is in no kernel's way.
fn place_initramfs(memory: &Memory, image: &Image<'_>, kernel_end: u64) -> Result<(u64, u64), Error> {
    const PAGE: u64 = 4096;
    let len = image.len();
    let low_memory = memory_ranges(memory.bytes()).first().map_or(0, |(_, len)| *len);
    let start = low_memory.min(INITRAMFS_END_MAX).checked_sub(len).map(|start| start / PAGE * PAGE);
    let start = start.filter(|start| *start >= kernel_end).ok_or(Refusal::Initramfs(len))?;
    image.place(0, len, memory, start)?;
    Ok((start, len))
}

/// Offsets of the setup header.
const SETUP_SECTORS: usize = 0x1f1;
const JUMP: usize = 0x200;
const MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const LOAD_FLAGS: usize = 0x211;
const XLOAD_FLAGS: usize = 0x236;
const INIT_SIZE: usize = 0x260;
const SETUP_LEN: usize = 0x290;

fn load_bzimage(memory: &Memory, kernel: &Image<'_>) -> Result<(elf::Entry, u64, Vec<u8>), Error> {
    const LOADED_HIGH: u8 = 1;
    const HAS_64_BIT_ENTRY: u16 = 1;
    const ENTRY_64: u64 = 0x200;
    const SECTOR: u64 = 512;
    let Ok(setup) = kernel.part("its setup header", 0, SETUP_LEN) else {
        return Err(Refusal::Unknown.into());
    };
    if setup[MAGIC..MAGIC + 4] != *b"HdrS" {
        return Err(Refusal::Unknown.into());
    }
    let version = u16_at(&setup, VERSION);
    if version < 0x20c || setup[LOAD_FLAGS] & LOADED_HIGH == 0 {
        return Err(Refusal::WrongBzImage("one of an older boot protocol than 2.12").into());
    }
    if u16_at(&setup, XLOAD_FLAGS) & HAS_64_BIT_ENTRY == 0 {
        return Err(Refusal::WrongBzImage("without an entry in 64-bit mode").into());
    }
    // Zero stands for four, from the days of the boot floppy.
    let sectors = if setup[SETUP_SECTORS] == 0 { 4 } else { u64::from(setup[SETUP_SECTORS]) };
    let start = (sectors + 1) * SECTOR;
    let len = kernel.len().checked_sub(start).filter(|len| *len > ENTRY_64);
    let len = len.ok_or(Refusal::Short { what: "its setup code", end: start, len: kernel.len() })?;
    // It unpacks itself to where it likes to be, and needs so much memory there.
    let preferred = u64::from(u32_at(&setup, 0x258)) | u64::from(u32_at(&setup, 0x25c)) << 32;
    let end = preferred.max(HIGH_MEMORY).saturating_add(u64::from(u32_at(&setup, INIT_SIZE)));
    let end = end.max(HIGH_MEMORY.saturating_add(len));
    if end > memory_ranges(memory.bytes()).first().map_or(0, |(_, len)| *len) {
        return Err(Refusal::Outside { start: HIGH_MEMORY, end }.into());
    }
    kernel.place(start, len, memory, HIGH_MEMORY)?;
    let header_end = (MAGIC + usize::from(setup[JUMP + 1])).clamp(MAGIC, SETUP_LEN);
    Ok((elf::Entry::Long(HIGH_MEMORY + ENTRY_64), end, setup[SETUP_SECTORS..header_end].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bzimage() -> Vec<u8> {
        let mut file = vec![0; 5 * 512 + 4096];
        file[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        file[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        (file[SETUP_SECTORS], file[LOAD_FLAGS], file[XLOAD_FLAGS], file[JUMP + 1]) = (4, 1, 1, 0x6a);
        file[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        file[5 * 512] = 0x5a;
        file
    }

    fn tried(file: &[u8], initramfs: Option<&[u8]>) -> Result<(Memory, Loaded), Error> {
        let memory = Memory::reserve(8).expect("memory");
        let initramfs = initramfs.map(Image::Bytes);
        load(&memory, &Image::Bytes(file), initramfs.as_ref()).map(|loaded| (memory, loaded))
    }

    fn refusal(file: &[u8]) -> Refusal {
        match tried(file, None) {
            Err(Error::Kernel(refusal)) => refusal,
            _ => panic!("it was taken"),
        }
    }

    #[test]
    fn a_bzimage_goes_to_one_mib_and_its_initramfs_to_the_end() {
        let (memory, loaded) = tried(&bzimage(), Some(&[7; 5000])).expect("loads");
        assert_eq!(loaded.entry, elf::Entry::Long(0x10_0200));
        assert_eq!(memory.read_u32(HIGH_MEMORY).expect("memory"), 0x5a);
        assert_eq!(loaded.initramfs, Some(((8 << 20) - 8192, 5000)));
        assert_eq!(memory.read_u32((8 << 20) - 8192).expect("memory"), 0x0707_0707);
        assert_eq!(loaded.setup_header.len(), 0x202 + 0x6a - SETUP_SECTORS);
    }

    #[test]
    fn a_file_is_loaded_as_its_bytes_are() {
        let mut file = tempfile::tempfile().expect("a file");
        std::io::Write::write_all(&mut file, &bzimage()).expect("writes");
        let memory = Memory::reserve(8).expect("memory");
        let loaded = load(&memory, &Image::file(&file).expect("a file"), None).expect("loads");
        assert_eq!(loaded.entry, elf::Entry::Long(0x10_0200));
        assert_eq!(memory.read_u32(HIGH_MEMORY).expect("memory"), 0x5a);
    }

    #[test]
    fn what_is_odd_is_refused_with_its_reason() {
        let changed = |at: usize, byte: u8| {
            let mut file = bzimage();
            file[at] = byte;
            refusal(&file)
        };
        assert_eq!(refusal(b""), Refusal::Unknown);
        assert_eq!(refusal(b"\x7fEL"), Refusal::Unknown);
        assert_eq!(changed(MAGIC, 0), Refusal::Unknown);
        assert!(matches!(changed(VERSION, 0), Refusal::WrongBzImage(_)));
        assert!(matches!(changed(XLOAD_FLAGS, 0), Refusal::WrongBzImage(_)));
        assert!(matches!(changed(SETUP_SECTORS, 200), Refusal::Short { .. }));
        assert!(matches!(changed(INIT_SIZE + 3, 1), Refusal::Outside { .. }));
        let big = vec![0; 7 << 20];
        assert!(matches!(tried(&bzimage(), Some(&big)), Err(Error::Kernel(Refusal::Initramfs(_)))));
    }

    proptest! {
        #[test]
        fn no_bzimage_makes_the_loader_panic(at in SETUP_SECTORS..SETUP_LEN, byte: u8, len in 0_usize..6000) {
            let mut file = bzimage();
            file[at] = byte;
            file.truncate(len);
            if let Err(error) = tried(&file, None) {
                prop_assert!(matches!(error, Error::Kernel(_)), "{error}");
            }
        }
    }
}

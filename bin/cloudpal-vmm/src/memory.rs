//! A guest's memory: an anonymous reservation that costs nothing until it is touched, or a snapshot's file over it.
#![allow(unsafe_code)]

use crate::{Error, error::Doing, layout, layout::RENEWAL_PAGE, snapshot::diff::Extent};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::{
    fs::{SeekFrom, seek},
    io::Errno,
};
use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

pub const MIN_MIB: u32 = 4;
pub const MAX_MIB: u32 = 256 * 1024;

/// Bits of the kernel's map of pages.
const OF_A_FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

#[derive(Debug)]
pub struct Memory {
    map: GuestMemoryMmap<()>,
    bytes: u64,
    /// Opened early: a jailed process has no /proc.
    pagemap: Option<File>,
}

impl Memory {
    pub fn reserve(mib: u32) -> Result<Memory, Error> {
        if !(MIN_MIB..=MAX_MIB).contains(&mib) {
            return Err(Error::MemorySize(mib));
        }
        let bytes = u64::from(mib) << 20;
        let ranges = layout::memory_ranges(bytes);
        let ranges: Vec<_> =
            ranges.iter().map(|(start, len)| (GuestAddress(*start), *len as usize)).collect();
        let map = GuestMemoryMmap::from_ranges(&ranges)
            .map_err(|e| Error::Host(format!("no address space for a guest of {mib} MiB: {e}")))?;
        Ok(Memory { map, bytes, pagemap: File::open("/proc/self/pagemap").ok() })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tells KVM of the memory. Done before there is a vCPU: afterwards each slot costs 5 ms (it waits for SRCU).
    pub(crate) fn register(&self, vm: &VmFd) -> Result<(), Error> {
        for (slot, region) in (0..).zip(self.map.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is a mapping of just this length; the ranges do not overlap; and the machine drops
            // its VM before its memory.
            unsafe { vm.set_user_memory_region(region) }.doing("register the guest's memory")?;
        }
        Ok(())
    }

    /// Puts the file in place of the memory, which nobody has used yet, privately: what the guest writes stays with
    /// this guest. Where the file has a large hole the memory stays as it is, as zero as the hole: KVM goes through
    /// all that is replaced, and a page of a hole would first become one of the page cache.
    pub(crate) fn map_over(&self, file: &File) -> io::Result<()> {
        let holes_from = LEAST_HOLE.max(self.bytes / MAPPINGS_MAX);
        let pieces = with_data(file, self.bytes, holes_from)?;
        let mut start = 0;
        for region in self.map.iter() {
            let end = start + region.len();
            small_pages(region.as_ptr(), region.len() as usize)?;
            for (from, to) in &pieces {
                let (from, to) = (start.max(*from), end.min(*to));
                if from < to {
                    let within = region.as_ptr().wrapping_add((from - start) as usize);
                    map_fixed(within, (to - from) as usize, file, from)?;
                }
            }
            start = end;
        }
        Ok(())
    }

    /// Reads a piece of a file straight into the guest's memory.
    pub(crate) fn fill_from(&self, at: u64, file: &File, offset: u64, len: u64) -> Result<(), Error> {
        let outside = |_| Error::OutsideMemory(at.saturating_add(len));
        let len = usize::try_from(len).map_err(|_| Error::OutsideMemory(u64::MAX))?;
        let slice = self.map.get_slice(GuestAddress(at), len).map_err(outside)?;
        let guard = slice.ptr_guard_mut();
        let mut done = 0;
        while done < len {
            // SAFETY: `slice` is `len` mapped bytes of guest memory, which nothing of Rust's refers to; `done` is less.
            let read = unsafe {
                let to = guard.as_ptr().add(done);
                libc::pread(file.as_raw_fd(), to.cast(), len - done, (offset + done as u64) as libc::off_t)
            };
            match read {
                0 => return Err(Error::file("a file for the guest")(io::ErrorKind::UnexpectedEof.into())),
                read if read > 0 => done += read as usize,
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(Error::file("a file for the guest")(error)),
                },
            }
        }
        Ok(())
    }

    /// The memory as devices see it.
    pub(crate) fn for_devices(&self) -> GuestMemoryMmap<()> {
        self.map.clone()
    }

    pub fn write(&self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        self.map.write_slice(bytes, GuestAddress(at)).map_err(|_| Error::OutsideMemory(at))
    }

    pub fn read(&self, at: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.map.read_slice(bytes, GuestAddress(at)).map_err(|_| Error::OutsideMemory(at))
    }

    pub fn read_u32(&self, at: u64) -> Result<u32, Error> {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Two clones of one snapshot must never draw the same random bytes: each gets an id and a seed of its own,
    /// before its first instruction.
    pub(crate) fn renew(&self) -> Result<(), Error> {
        let mut fresh = [0; 48];
        crate::random::fill(&mut fresh).map_err(|e| Error::Host(format!("no random bytes: {e}")))?;
        self.write(RENEWAL_PAGE, &fresh)
    }

    /// Where a piece of the memory file is in guest memory. Pieces of whole pages never lie across the gap.
    fn address(offset: u64) -> GuestAddress {
        GuestAddress(if offset < layout::GAP { offset } else { layout::GAP_END + (offset - layout::GAP) })
    }

    /// Hands out a piece of the memory file that lies on one side of the gap.
    pub(crate) fn each_chunk_of<E: From<Error>>(
        &self,
        offset: u64,
        len: u64,
        chunk: &mut [u8],
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = offset;
        while at < offset + len {
            let some = chunk.len().min((offset + len - at) as usize);
            self.read(Self::address(at).0, &mut chunk[..some])?;
            take(&chunk[..some])?;
            at += some as u64;
        }
        Ok(())
    }

    /// Fills a piece of the memory file that lies on one side of the gap.
    pub(crate) fn fill_pages(&self, offset: u64, len: u64, file: &File, at: u64) -> Result<(), Error> {
        self.fill_from(Self::address(offset).0, file, at, len)
    }

    /// What this process has copies of its own of, as extents of the memory file; `None` where the kernel does not
    /// tell.
    pub(crate) fn changed(&self) -> io::Result<Option<Vec<Extent>>> {
        self.pages(|word| word & (PRESENT | SWAPPED) != 0 && word & OF_A_FILE == 0)
    }

    /// What has been used since the file was mapped, changed or only read.
    pub(crate) fn used(&self) -> io::Result<Option<Vec<Extent>>> {
        self.pages(|word| word & (PRESENT | SWAPPED) != 0)
    }

    /// Pages by what the kernel says of them (Linux: Documentation/admin-guide/mm/pagemap.rst).
    fn pages(&self, wanted: impl Fn(u64) -> bool) -> io::Result<Option<Vec<Extent>>> {
        const PAGE: u64 = 4096;
        let Some(pagemap) = &self.pagemap else { return Ok(None) };
        let mut extents: Vec<Extent> = Vec::new();
        let mut words = vec![0; 64 * 1024];
        let mut start = 0;
        for region in self.map.iter() {
            let (first, pages) = (region.as_ptr() as u64 / PAGE, region.len() / PAGE);
            let mut page = 0;
            while page < pages {
                let some = (words.len() as u64 / 8).min(pages - page);
                let words = &mut words[..some as usize * 8];
                pagemap.read_exact_at(words, (first + page) * 8)?;
                for (index, word) in (0..).zip(words.as_chunks::<8>().0) {
                    if !wanted(u64::from_le_bytes(*word)) {
                        continue;
                    }
                    let offset = start + (page + index) * PAGE;
                    match extents.last_mut() {
                        Some((at, len)) if *at + *len == offset && offset != layout::GAP => *len += PAGE,
                        _ => extents.push((offset, PAGE)),
                    }
                }
                page += some;
            }
            start += region.len();
        }
        Ok(Some(extents))
    }

    /// Where the memory is in this process, for the measurement of what it costs.
    pub fn host_ranges(&self) -> Vec<(u64, u64)> {
        self.map.iter().map(|region| (region.as_ptr() as u64, region.len())).collect()
    }
}

/// Holes that are shorter are mapped with what is around them.
const LEAST_HOLE: u64 = 8 << 20;
const MAPPINGS_MAX: u64 = 32;

/// The parts of a file's first bytes between its large holes, in whole pages.
fn with_data(file: &File, bytes: u64, holes_from: u64) -> io::Result<Vec<(u64, u64)>> {
    const PAGE: u64 = 4096;
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < bytes {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) if data < bytes => data,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        // A file system's blocks may be smaller than a page.
        let start = data / PAGE * PAGE;
        at = seek(file, SeekFrom::Hole(data))?.next_multiple_of(PAGE).min(bytes);
        match pieces.last_mut() {
            Some((_, end)) if start < *end + holes_from => *end = at,
            _ => pieces.push((start, at)),
        }
    }
    Ok(pieces)
}

/// A woken machine takes what it touches, not 2 MiB around it: many sleep and wake on one host.
fn small_pages(at: *mut u8, len: usize) -> io::Result<()> {
    // SAFETY: says something about pages of a mapping that a region owns, and changes nothing in them.
    match unsafe { libc::madvise(at.cast(), len, libc::MADV_NOHUGEPAGE) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without huge pages.
            error if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            error => Err(error),
        },
    }
}

fn map_fixed(at: *mut u8, len: usize, file: &File, offset: u64) -> io::Result<()> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: replaces pages of a mapping that a region owns and unmaps in the end; guest memory is only ever accessed
    // as volatile bytes, so that nothing holds a reference into it.
    let mapped = unsafe { libc::mmap(at.cast(), len, prot, flags, file.as_raw_fd(), offset) };
    if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_addresses_outside_are_refused() {
        for mib in [0, MIN_MIB - 1, MAX_MIB + 1, u32::MAX] {
            assert!(matches!(Memory::reserve(mib), Err(Error::MemorySize(_))), "{mib}");
        }
        let memory = Memory::reserve(4).expect("4 MiB");
        assert!(memory.write((4 << 20) - 4, &[1; 4]).is_ok());
        for at in [(4 << 20) - 3, u64::MAX - 1] {
            assert!(matches!(memory.write(at, &[1; 4]), Err(Error::OutsideMemory(_))), "{at:#x}");
        }
    }

    #[test]
    fn a_file_with_holes_comes_over_the_memory_as_it_is() {
        const MIB: u64 = 1 << 20;
        let file = tempfile::tempfile().expect("a file");
        // The last byte but one lies in the page behind the memory, as a snapshot's footer does.
        for (at, byte) in [(5 * MIB + 77, 1), (6 * MIB, 2), (40 * MIB - 1, 3), (64 * MIB, 4)] {
            file.write_all_at(&[byte], at).expect("written");
        }
        let pieces = with_data(&file, 64 * MIB, 8 * MIB).expect("a file");
        assert_eq!(pieces, [(5 * MIB, 6 * MIB + 4096), (40 * MIB - 4096, 40 * MIB)]);
        assert_eq!(with_data(&file, 64 * MIB, 64 * MIB).expect("a file"), [(5 * MIB, 40 * MIB)]);
        let memory = Memory::reserve(64).expect("64 MiB");
        memory.map_over(&file).expect("a mapping");
        let byte = |at| {
            let mut byte = [9];
            memory.read(at, &mut byte).map(|()| byte[0]).expect("in memory")
        };
        assert_eq!([5 * MIB + 77, 6 * MIB, 40 * MIB - 1].map(byte), [1, 2, 3]);
        assert_eq!([0, 5 * MIB, 20 * MIB, 64 * MIB - 1].map(byte), [0; 4]);
        memory.write(20 * MIB, &[7]).expect("in memory");
        memory.write(6 * MIB, &[8]).expect("in memory");
        assert_eq!(file.metadata().expect("a file").len(), 64 * MIB + 1);
        let mut kept = [9];
        file.read_exact_at(&mut kept, 6 * MIB).expect("a file");
        assert_eq!(kept, [2], "the snapshot stays what it is");
        // What was changed is told page by page, be it over the file or over a hole.
        let changed = memory.changed().expect("a map").expect("a kernel that tells");
        for at in [20 * MIB, 6 * MIB] {
            assert!(changed.iter().any(|(from, len)| (*from..from + len).contains(&at)), "{changed:?}");
        }
    }
}

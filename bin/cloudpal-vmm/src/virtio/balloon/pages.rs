//! Gives a guest's pages back to the host.
//!
//! Invariant: afterwards such a page is zeros, or, where a snapshot's file lies beneath and this process has mapped as
//! often as it may, what the file has. Neither is anybody else's: a driver is told that its pages' content is lost.
#![allow(unsafe_code)]

use crate::virtio::chain::Slice;

const PAGE: usize = 4096;
/// Each hole in a private file mapping is a mapping of its own, and Linux has 65530 for a process (max_map_count).
const MAPPINGS_MAX: u32 = 16_384;

/// What the guest's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    Anonymous,
    /// A snapshot's memory file, mapped privately: forgetting a page brings back what the file has.
    PrivateFile,
}

pub(super) struct Pages {
    backing: Backing,
    mappings: u32,
    pub released_bytes: u64,
}

impl Pages {
    pub fn new(backing: Backing) -> Pages {
        Pages { backing, mappings: 0, released_bytes: 0 }
    }

    /// Whole pages of the slice only.
    pub fn release(&mut self, slice: &Slice<'_>) {
        let guard = slice.ptr_guard_mut();
        let start = guard.as_ptr();
        let before = start.align_offset(PAGE);
        let len = slice.len().saturating_sub(before) & !(PAGE - 1);
        if len == 0 {
            return;
        }
        // SAFETY: inside the slice, by the sum above.
        let start = unsafe { start.add(before) };
        let fresh = self.backing == Backing::PrivateFile && self.mappings < MAPPINGS_MAX;
        self.released_bytes += len as u64;
        if fresh && map_fresh(start, len) {
            self.mappings += 1;
            return;
        }
        // SAFETY: whole pages of guest memory, which is only ever accessed as volatile bytes: they may change.
        // An error leaves the pages as they are: the host gets less back.
        let _ = unsafe { libc::madvise(start.cast(), len, libc::MADV_DONTNEED) };
    }
}

/// Puts zeros that cost nothing in place of the pages.
fn map_fresh(start: *mut u8, len: usize) -> bool {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: replaces whole pages of guest memory, whose addresses stay one range that is unmapped as a whole in the
    // end; nothing holds a reference into it.
    unsafe { libc::mmap(start.cast(), len, prot, flags, -1, 0) != libc::MAP_FAILED }
}

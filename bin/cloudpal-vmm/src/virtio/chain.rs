//! One descriptor chain as pieces of guest memory, and system calls straight into them.
//!
//! Invariants:
//! - A chain is taken whole or not at all: each piece lies in guest memory, what the device reads stands before what it
//!   writes, and there are no more pieces than one system call takes.
//! - Pieces are volatile bytes that the guest may change at any time. What is decided upon is copied out first.
#![allow(unsafe_code)]

use super::{Broken, GuestMemory};
use std::{
    io,
    os::fd::AsRawFd,
    sync::atomic::{Ordering, fence},
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice, bitmap::Bitmap};

/// Below IOV_MAX of Linux (1024), and beyond what any driver's queue of 256 needs.
pub const MAX_PIECES: usize = 512;

pub type Slice<'m> = VolatileSlice<'m>;

#[derive(Default)]
pub struct Chain<'m> {
    pub head: u16,
    /// What the device reads, and what it writes.
    pub readable: Pieces<'m>,
    pub writable: Pieces<'m>,
    /// Neither may be used: the chain is answered with nothing.
    pub malformed: bool,
}

impl<'m> Chain<'m> {
    /// Takes the queue's next chain; if there is none, the guest will notify of the one after.
    pub fn take(&mut self, queue: &mut Queue, memory: &'m GuestMemory) -> Result<bool, Broken> {
        self.readable.clear();
        self.writable.clear();
        if !queue.ready() {
            return Ok(false);
        }
        let mut chain = queue.pop_descriptor_chain(memory);
        if chain.is_none() {
            if !queue.enable_notification(memory).map_err(|_| Broken)? {
                return Ok(false);
            }
            chain = queue.pop_descriptor_chain(memory);
        }
        // Not even now, although the index is another one: it has run away.
        let Some(chain) = chain else { return Err(Broken) };
        self.head = chain.head_index();
        self.malformed = self.load(chain, memory).is_none();
        Ok(true)
    }

    fn load(
        &mut self,
        chain: virtio_queue::DescriptorChain<&'m GuestMemory>,
        memory: &'m GuestMemory,
    ) -> Option<()> {
        for descriptor in chain {
            let pieces = if descriptor.is_write_only() { &mut self.writable } else { &mut self.readable };
            for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
                pieces.push(slice.ok()?);
            }
            let readable_after_writable = !descriptor.is_write_only() && !self.writable.is_empty();
            if readable_after_writable || self.readable.count() + self.writable.count() > MAX_PIECES {
                return None;
            }
        }
        Some(())
    }

    /// Gives the chain back, with so many bytes written into it.
    pub fn answer(&self, queue: &mut Queue, memory: &GuestMemory, written: usize) -> Result<(), Broken> {
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        queue.add_used(memory, self.head, written).map_err(|_| Broken)
    }
}

/// Does the guest want to hear of what was used since it was last asked?
pub fn wants_interrupt(used: bool, queue: &mut Queue, memory: &GuestMemory) -> Result<bool, Broken> {
    Ok(used && queue.needs_notification(memory).map_err(|_| Broken)?)
}

/// Gives several chains back in one moment: the guest sees all of them or none.
pub fn answer_together(
    queue: &mut Queue,
    memory: &GuestMemory,
    answers: &[(u16, u32)],
) -> Result<(), Broken> {
    let Some((last, others)) = answers.split_last() else { return Ok(()) };
    for (head, written) in others {
        // As `add_used` does it, without telling of it (virtio 1.2, section 2.7.8).
        let at = queue.used_ring() + 4 + u64::from(queue.next_used() % queue.size()) * 8;
        let element = [u32::from(*head).to_le_bytes(), written.to_le_bytes()].concat();
        memory.write_slice(&element, GuestAddress(at)).map_err(|_| Broken)?;
        queue.set_next_used(queue.next_used().wrapping_add(1));
    }
    queue.add_used(memory, last.0, last.1).map_err(|_| Broken)
}

/// Does the guest want to hear of what was used since the index stood there?
pub fn wants_interrupt_since(before: u16, queue: &mut Queue, memory: &GuestMemory) -> Result<bool, Broken> {
    let now = queue.next_used();
    if now == before || !queue.event_idx_enabled() {
        return Ok(now != before);
    }
    // What was used must be seen before its wish is read (section 2.7.10).
    fence(Ordering::SeqCst);
    let at = queue.avail_ring() + 4 + u64::from(queue.size()) * 2;
    let wish: u16 = memory.load(GuestAddress(at), Ordering::Relaxed).map_err(|_| Broken)?;
    Ok(now.wrapping_sub(u16::from_le(wish)).wrapping_sub(1) < now.wrapping_sub(before))
}

#[derive(Default)]
pub struct Pieces<'m> {
    slices: Vec<Slice<'m>>,
    /// The slices before this one are used up.
    first: usize,
    bytes: usize,
}

impl<'m> Pieces<'m> {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub fn count(&self) -> usize {
        self.slices.len() - self.first
    }

    pub fn slices(&self) -> &[Slice<'m>] {
        &self.slices[self.first..]
    }

    pub fn clear(&mut self) {
        self.slices.clear();
        (self.first, self.bytes) = (0, 0);
    }

    pub fn push(&mut self, slice: Slice<'m>) {
        if self.first > MAX_PIECES {
            // What is used up must not pile up.
            self.slices.drain(..self.first);
            self.first = 0;
        }
        if !slice.is_empty() {
            self.bytes += slice.len();
            self.slices.push(slice);
        }
    }

    /// Adds another's pieces behind these.
    pub fn extend(&mut self, other: &Pieces<'m>) {
        other.slices().iter().for_each(|slice| self.push(*slice));
    }

    /// Copies the first bytes out, and leaves the rest. Nothing happens where there are too few.
    pub fn read(&mut self, to: &mut [u8]) -> Option<()> {
        let mut done = 0;
        self.consume(to.len(), |slice| {
            slice.copy_to(&mut to[done..done + slice.len()]);
            done += slice.len();
        })
    }

    /// Copies into the first bytes, and leaves the rest. Nothing happens where there are too few.
    pub fn write(&mut self, from: &[u8]) -> Option<()> {
        let mut done = 0;
        self.consume(from.len(), |slice| {
            slice.copy_from(&from[done..done + slice.len()]);
            done += slice.len();
        })
    }

    /// Copies out of the middle, and leaves all as it is.
    pub fn get(&self, at: usize, to: &mut [u8]) -> Option<()> {
        let mut done = 0;
        self.visit(at, to.len(), |slice| {
            slice.copy_to(&mut to[done..done + slice.len()]);
            done += slice.len();
        })
    }

    /// Copies into the middle, and leaves all as it is.
    pub fn put(&self, at: usize, from: &[u8]) -> Option<()> {
        let mut done = 0;
        self.visit(at, from.len(), |slice| {
            slice.copy_from(&from[done..done + slice.len()]);
            done += slice.len();
        })
    }

    fn visit(&self, at: usize, bytes: usize, mut visit: impl FnMut(Slice<'m>)) -> Option<()> {
        at.checked_add(bytes).filter(|end| *end <= self.bytes)?;
        let (mut before, mut left) = (at, bytes);
        for slice in self.slices() {
            if left == 0 {
                break;
            }
            let start = before.min(slice.len());
            let len = left.min(slice.len() - start);
            visit(slice.subslice(start, len).ok()?);
            (before, left) = (before - start, left - len);
        }
        Some(())
    }

    /// Leaves the first bytes out.
    pub fn skip(&mut self, bytes: usize) -> Option<()> {
        self.consume(bytes, |_| {})
    }

    fn consume(&mut self, bytes: usize, mut visit: impl FnMut(Slice<'m>)) -> Option<()> {
        if bytes > self.bytes {
            return None;
        }
        let mut left = bytes;
        while left > 0 {
            let slice = self.slices.get_mut(self.first)?;
            let len = left.min(slice.len());
            let (head, tail) = slice.split_at(len).ok()?;
            visit(head);
            *slice = tail;
            if tail.is_empty() {
                self.first += 1;
            }
            (left, self.bytes) = (left - len, self.bytes - len);
        }
        Some(())
    }

    /// Keeps the first bytes only.
    pub fn truncate(&mut self, bytes: usize) {
        while self.bytes > bytes {
            let Some(slice) = self.slices.last_mut() else { return };
            let excess = self.bytes - bytes;
            match slice.len().checked_sub(excess).filter(|kept| *kept > 0) {
                Some(kept) => {
                    if let Ok((head, _)) = slice.split_at(kept) {
                        *slice = head;
                    }
                    self.bytes = bytes;
                }
                None => {
                    self.bytes -= slice.len();
                    self.slices.pop();
                }
            }
        }
    }

    /// Cuts the last byte off: where a block device's status goes.
    pub fn split_last(&mut self) -> Option<Slice<'m>> {
        let slice = self.slices.last_mut().filter(|_| self.bytes > 0)?;
        let (head, last) = slice.split_at(slice.len() - 1).ok()?;
        *slice = head;
        if head.is_empty() {
            self.slices.pop();
        }
        self.bytes -= 1;
        Some(last)
    }

    fn iovecs(&self, more: usize) -> Vec<libc::iovec> {
        let mut iovecs = Vec::with_capacity(self.count() + more);
        iovecs.extend(self.slices().iter().map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
        iovecs
    }

    fn mark_written(&self, bytes: usize) {
        let mut left = bytes;
        for slice in self.slices() {
            let len = left.min(slice.len());
            slice.bitmap().mark_dirty(0, len);
            left -= len;
        }
    }

    /// readv(2) with one byte behind the pieces: more than `bytes` were read when what came did not fit.
    pub fn read_whole_from(&self, file: &impl AsRawFd) -> io::Result<usize> {
        let mut excess = 0_u8;
        let mut iovecs = self.iovecs(1);
        iovecs.push(libc::iovec { iov_base: (&raw mut excess).cast(), iov_len: 1 });
        // SAFETY: the pieces are mapped guest memory that nothing of Rust's refers to, and stay mapped as long as they
        // are borrowed; the last is a byte on this stack.
        let read = again(|| unsafe { libc::readv(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) })?;
        self.mark_written(read.min(self.bytes));
        Ok(read)
    }

    /// readv(2).
    pub fn read_from(&self, file: &impl AsRawFd) -> io::Result<usize> {
        let iovecs = self.iovecs(0);
        // SAFETY: as in `read_whole_from`, without the byte.
        let read = again(|| unsafe { libc::readv(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) })?;
        self.mark_written(read);
        Ok(read)
    }

    /// preadv(2).
    pub fn read_at(&self, file: &impl AsRawFd, offset: u64) -> io::Result<usize> {
        let (iovecs, offset) = (self.iovecs(0), offset as libc::off_t);
        let (start, count) = (iovecs.as_ptr(), iovecs.len() as i32);
        // SAFETY: as in `read_from`.
        let read = again(|| unsafe { libc::preadv(file.as_raw_fd(), start, count, offset) })?;
        self.mark_written(read);
        Ok(read)
    }

    /// writev(2).
    pub fn write_to(&self, file: &impl AsRawFd) -> io::Result<usize> {
        let iovecs = self.iovecs(0);
        // SAFETY: as in `read_from`; the kernel only reads.
        again(|| unsafe { libc::writev(file.as_raw_fd(), iovecs.as_ptr(), iovecs.len() as i32) })
    }

    /// pwritev(2).
    pub fn write_at(&self, file: &impl AsRawFd, offset: u64) -> io::Result<usize> {
        let (iovecs, offset) = (self.iovecs(0), offset as libc::off_t);
        let (start, count) = (iovecs.as_ptr(), iovecs.len() as i32);
        // SAFETY: as in `write_to`.
        again(|| unsafe { libc::pwritev(file.as_raw_fd(), start, count, offset) })
    }

    /// sendmsg(2): a socket whose other end is gone answers with an error, not with a signal.
    pub fn send_to(&self, socket: &impl AsRawFd) -> io::Result<usize> {
        let mut iovecs = self.iovecs(0);
        // SAFETY: all zeros are a message without address, control bytes and flags.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (iovecs.as_mut_ptr(), iovecs.len());
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: as in `write_to`; the message lives for the call, and has nothing but pieces.
        again(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
    }
}

fn again(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        if let Ok(bytes) = usize::try_from(call()) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

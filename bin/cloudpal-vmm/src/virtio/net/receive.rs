//! Frames from the TAP into the guest's buffers.
//!
//! Invariant: buffers are taken from the queue ahead of a frame, in a window; those that no frame filled go back when
//! the call ends, so that between two calls the queue is as if they had never been taken.

use super::{FRAME_MAX, HEADER, Net, feature};
use crate::virtio::{
    Broken, GuestMemory, Work,
    chain::{Chain, Pieces, answer_together, wants_interrupt_since},
};
use std::{collections::VecDeque, io};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

/// Room for the largest frame, and for the largest of a link without segmentation offload.
const WHOLE: usize = HEADER + FRAME_MAX;
const PLAIN: usize = HEADER + 9018;
/// And for one of 1500 bytes with an Ethernet header.
const ORDINARY: usize = HEADER + 1514;
/// Pieces of a window: one system call takes them all.
const PIECES_MAX: usize = 256;
const NEEDS_CSUM: u8 = 1;

#[derive(Default)]
struct Window<'m> {
    /// All buffers' pieces, one behind the other.
    pieces: Pieces<'m>,
    /// Head and bytes of each buffer.
    buffers: VecDeque<(u16, usize)>,
    /// What the frame used.
    used: Vec<(u16, u32)>,
}

enum Filled {
    Enough,
    /// The guest notifies when it has more.
    TooLittle,
}

impl<'m> Window<'m> {
    /// Takes buffers until there is room for so many bytes; `single`: no more than one.
    fn fill(
        &mut self,
        queue: &mut Queue,
        memory: &'m GuestMemory,
        wanted: usize,
        single: bool,
        chain: &mut Chain<'m>,
    ) -> Result<Filled, Broken> {
        loop {
            let enough = if single { !self.buffers.is_empty() } else { self.pieces.bytes() >= wanted };
            if enough || self.pieces.count() >= PIECES_MAX {
                return Ok(Filled::Enough);
            }
            if self.buffers.len() >= usize::from(queue.size()) || !chain.take(queue, memory)? {
                // A ring that never holds enough for the largest frame does what it can with what it has.
                let roomy = self
                    .buffers
                    .front()
                    .is_some_and(|(_, bytes)| bytes.saturating_mul(usize::from(queue.size())) >= 2 * wanted);
                // And a frame of an ordinary link is let in where it fits.
                let ordinary = wanted == PLAIN && self.pieces.bytes() >= ORDINARY;
                let enough = !self.buffers.is_empty() && (!roomy || ordinary);
                return Ok(if enough { Filled::Enough } else { Filled::TooLittle });
            }
            if !chain.malformed && chain.writable.bytes() > HEADER {
                self.buffers.push_back((chain.head, chain.writable.bytes()));
                self.pieces.extend(&chain.writable);
            } else if self.buffers.is_empty() {
                // Nothing can ever be put into it.
                chain.answer(queue, memory, 0)?;
            } else {
                queue.go_to_previous_position();
                return Ok(Filled::Enough);
            }
        }
    }

    /// How many buffers a frame of so many bytes fills.
    fn buffers_of(&self, bytes: usize) -> usize {
        let mut room = 0;
        let fits = |(_, len): &&(u16, usize)| {
            let full = room >= bytes;
            room += len;
            !full
        };
        self.buffers.iter().take_while(fits).count()
    }

    /// Gives the first buffers to the guest, with so many bytes in them.
    fn answer(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        count: usize,
        bytes: usize,
    ) -> Result<(), Broken> {
        let mut left = bytes;
        self.used.clear();
        for (head, len) in self.buffers.drain(..count) {
            let written = left.min(len);
            self.used.push((head, written as u32));
            self.pieces.skip(len).ok_or(Broken)?;
            left -= written;
        }
        answer_together(queue, memory, &self.used)
    }

    fn give_back(&mut self, queue: &mut Queue) {
        self.buffers.drain(..).for_each(|_| queue.go_to_previous_position());
    }
}

impl Net {
    pub(super) fn receive(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        if self.handle.is_held() {
            return Ok(Work::default());
        }
        let before = queue.next_used();
        let mut window = Window::default();
        let more = self.receive_into(&mut window, queue, memory)?;
        window.give_back(queue);
        Ok(Work { interrupt: wants_interrupt_since(before, queue, memory)?, more, ..Work::default() })
    }

    /// Reads frames until there are none, there is no room, or the call has done its share: then there is more.
    fn receive_into<'m>(
        &mut self,
        window: &mut Window<'m>,
        queue: &mut Queue,
        memory: &'m GuestMemory,
    ) -> Result<bool, Broken> {
        let single = self.acked & feature::MRG_RXBUF == 0;
        let large = self.acked & (feature::GUEST_TSO4 | feature::GUEST_TSO6) != 0;
        let wanted = if large { WHOLE } else { PLAIN };
        let mut chain = Chain::default();
        for _ in 0..queue.size() {
            if !self.receive_limit.may_go_on() {
                return Ok(false);
            }
            if let Filled::TooLittle = window.fill(queue, memory, wanted, single, &mut chain)? {
                return Ok(false);
            }
            let Ok(bytes) = self.read_frame(&window.pieces) else { return Ok(false) };
            let fits = bytes > HEADER && bytes <= window.pieces.bytes();
            let count = window.buffers_of(bytes);
            if !fits || self.finish_header(&window.pieces, count).is_none() {
                self.handle.dropped();
                window.answer(queue, memory, 1, 0)?;
                continue;
            }
            window.answer(queue, memory, count, bytes)?;
            self.receive_limit.charge(bytes - HEADER);
            self.handle.received(bytes - HEADER);
        }
        Ok(true)
    }

    /// With its header, and one byte more than there is room for when it was cut off.
    fn read_frame(&self, pieces: &Pieces<'_>) -> io::Result<usize> {
        if self.headers {
            return pieces.read_whole_from(&self.tap);
        }
        let mut behind_header = Pieces::default();
        behind_header.extend(pieces);
        // There is no buffer without room for more than a header.
        let _ = behind_header.skip(HEADER);
        match behind_header.read_whole_from(&self.tap)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            bytes => Ok(HEADER + bytes),
        }
    }

    /// Says how many buffers the frame fills, and takes away what the driver does not know. `None`: it must not get it.
    fn finish_header(&self, pieces: &Pieces<'_>, count: usize) -> Option<()> {
        let count = u16::try_from(count).ok()?.to_le_bytes();
        if self.headers && self.acked & feature::GUEST_CSUM != 0 {
            return pieces.put(HEADER - 2, &count);
        }
        if self.headers {
            let mut header = [0; 2];
            pieces.get(0, &mut header)?;
            let [flags, segmentation] = header;
            if flags & NEEDS_CSUM != 0 || segmentation != 0 {
                // It waited since another driver was there, who would have taken it.
                return None;
            }
        }
        pieces.put(0, &[0; HEADER - 2])?;
        pieces.put(HEADER - 2, &count)
    }
}

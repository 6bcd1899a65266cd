//! virtio-blk on a file (virtio 1.2, section 5.2): shared and read-only, or this machine's own and writable.
//!
//! Invariants:
//! - Bytes go straight between guest memory and the file. A write is in the host's page cache when it is answered, and
//!   on the disk when the next flush is; a driver that knows no flush has each write on the disk.
//! - While it is held, nothing that would change the file is taken from the queue, nor anything that stands behind it.
//! - Whatever the host's disk answers (full, broken, too short), the guest gets an IO error and goes on.
//! - One call moves `BYTES_PER_CALL` at most. A larger request stays in the queue and goes on with the next call; how
//!   far it came is part of the state.

use super::{
    Broken, Device, GuestMemory, Mismatch, Source, Work,
    chain::{Chain, Pieces, wants_interrupt},
    copy_config,
    hold::Hold,
    mmio::{FEATURE_EVENT_INDEX, QUEUE_SIZE_MAX},
    rate::Limiter,
};
use rustix::fs::{FallocateFlags, fallocate};
use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

const STATE_VERSION: u8 = 1;
const SECTOR: u64 = 512;
const HEADER: usize = 16;
const SEGMENT: usize = 16;
/// What one call moves before others have their turn.
pub const BYTES_PER_CALL: usize = 16 << 20;
/// A flush counts as so many bytes of these.
const FLUSH_COST: usize = 1 << 20;
/// Data segments of a request: the queue without the header and the status.
const SEGMENTS_MAX: u32 = QUEUE_SIZE_MAX as u32 - 2;
/// Ranges of one discard, and their sizes; the zeros may have to be written.
const RANGES_MAX: u32 = 16;
const DISCARD_SECTORS_MAX: u32 = 1 << 21;
const ZERO_SECTORS_MAX: u32 = 1 << 11;
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_RO: u64 = 1 << 5;
const FEATURE_BLK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_DISCARD: u64 = 1 << 13;
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

/// Kinds of requests.
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
}

const STATUS_OK: u8 = 0;

/// A request that was not done; the numbers are the status that the guest reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Io = 1,
    Unsupported = 2,
}

impl From<io::Error> for Fault {
    fn from(_: io::Error) -> Fault {
        Fault::Io
    }
}

/// How far a request came.
enum Done {
    Wholly,
    /// There is more of it than this call may move.
    Partly,
    /// It would change the file, which it may not yet.
    Held,
}

pub struct Blk {
    file: File,
    serial: [u8; 20],
    sectors: u64,
    read_only: bool,
    limiter: Limiter,
    hold: Option<Hold>,
    /// The driver asks for flushes itself.
    flushes: bool,
    /// So many bytes of the queue's first request are moved already.
    moved: u64,
    /// Requests that ended with an IO error.
    pub faults: u64,
}

impl Blk {
    /// What of the serial number is beyond 20 bytes is cut off, and what of the file is beyond whole sectors.
    pub fn new(mut file: File, serial: &str, read_only: bool, limiter: Limiter) -> io::Result<Blk> {
        let mut id = [0; 20];
        let len = serial.len().min(id.len());
        id[..len].copy_from_slice(&serial.as_bytes()[..len]);
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR;
        Ok(Blk {
            file,
            serial: id,
            sectors,
            read_only,
            limiter,
            hold: None,
            flushes: false,
            moved: 0,
            faults: 0,
        })
    }

    /// Its file does not change before the hold's release.
    pub fn held_by(self, hold: Hold) -> Blk {
        Blk { hold: Some(hold), ..self }
    }

    fn is_held(&self) -> bool {
        self.hold.as_ref().is_some_and(Hold::is_held)
    }

    fn serve_queue(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        let (mut used, mut chain, mut budget) = (false, Chain::default(), BYTES_PER_CALL);
        for _ in 0..queue.size() {
            if !self.limiter.may_go_on() || !chain.take(queue, memory)? {
                return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
            }
            let bytes = chain.writable.bytes();
            let written = match self.serve(&mut chain, &mut budget) {
                Some((_, Ok(Done::Partly))) => {
                    queue.go_to_previous_position();
                    break;
                }
                Some((_, Ok(Done::Held))) => {
                    queue.go_to_previous_position();
                    return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
                }
                Some((status, Ok(Done::Wholly))) => {
                    status.copy_from(&[STATUS_OK]);
                    bytes
                }
                Some((status, Err(fault))) => {
                    self.faults += u64::from(fault == Fault::Io);
                    status.copy_from(&[fault as u8]);
                    usize::from(bytes == 1)
                }
                // There is not even room for a status.
                None => 0,
            };
            self.moved = 0;
            chain.answer(queue, memory, written)?;
            used = true;
            if budget == 0 {
                break;
            }
        }
        Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, more: true, ..Work::default() })
    }

    /// Does a request. Returns where its status goes, unless it is no request at all.
    fn serve<'m>(
        &mut self,
        chain: &mut Chain<'m>,
        budget: &mut usize,
    ) -> Option<(super::chain::Slice<'m>, Result<Done, Fault>)> {
        let mut header = [0; HEADER];
        if chain.malformed {
            return None;
        }
        let status = chain.writable.split_last()?;
        if chain.readable.read(&mut header).is_none() {
            return Some((status, Err(Fault::Io)));
        }
        let header = u128::from_le_bytes(header);
        let (request, sector) = (header as u32, (header >> 64) as u64);
        let before = *budget;
        let done = match request {
            kind::IN => self
                .transfer(&mut chain.writable, sector, budget, |pieces, file, at| pieces.read_at(file, at)),
            kind::OUT if self.read_only => Err(Fault::Io),
            kind::OUT | kind::DISCARD | kind::WRITE_ZEROES if self.is_held() => Ok(Done::Held),
            kind::OUT => self.write(&mut chain.readable, sector, budget),
            kind::FLUSH => self.flush(),
            kind::GET_ID => {
                let len = self.serial.len().min(chain.writable.bytes());
                chain.writable.write(&self.serial[..len]).map(|()| Done::Wholly).ok_or(Fault::Io)
            }
            kind::DISCARD | kind::WRITE_ZEROES if !self.read_only => {
                self.clear(&mut chain.readable, request, budget)
            }
            _ => Err(Fault::Unsupported),
        };
        self.limiter.charge(before - *budget);
        if request == kind::FLUSH {
            *budget = budget.saturating_sub(FLUSH_COST);
        }
        Some((status, done))
    }

    fn write(&mut self, pieces: &mut Pieces<'_>, sector: u64, budget: &mut usize) -> Result<Done, Fault> {
        let done = self.transfer(pieces, sector, budget, |pieces, file, at| pieces.write_at(file, at))?;
        if !self.flushes && matches!(done, Done::Wholly) {
            self.file.sync_data()?;
        }
        Ok(done)
    }

    fn flush(&mut self) -> Result<Done, Fault> {
        if !self.read_only {
            self.file.sync_data()?;
        }
        Ok(Done::Wholly)
    }

    /// Moves bytes between the pieces and the file, as many as the budget has.
    fn transfer(
        &mut self,
        pieces: &mut Pieces<'_>,
        sector: u64,
        budget: &mut usize,
        io: impl Fn(&Pieces<'_>, &File, u64) -> io::Result<usize>,
    ) -> Result<Done, Fault> {
        let mut offset = self.offset(sector, pieces.bytes() as u64)?;
        // The driver changed its request while it was on its way: what there is of it now counts.
        pieces.skip(usize::try_from(self.moved).unwrap_or(usize::MAX)).ok_or(Fault::Io)?;
        offset += self.moved;
        let whole = pieces.bytes() <= *budget;
        pieces.truncate(*budget);
        while !pieces.is_empty() {
            let len = io(pieces, &self.file, offset)?;
            if len == 0 {
                // Somebody cut the file.
                return Err(Fault::Io);
            }
            pieces.skip(len).ok_or(Fault::Io)?;
            (offset, self.moved, *budget) = (offset + len as u64, self.moved + len as u64, *budget - len);
        }
        Ok(if whole { Done::Wholly } else { Done::Partly })
    }

    /// Where so many bytes from that sector on are, if they are on the disk.
    fn offset(&self, sector: u64, bytes: u64) -> Result<u64, Fault> {
        let end = sector.checked_add(bytes / SECTOR).filter(|end| *end <= self.sectors);
        end.filter(|_| bytes.is_multiple_of(SECTOR)).map(|_| sector * SECTOR).ok_or(Fault::Io)
    }

    /// Discards ranges, or makes zeros of them.
    fn clear(&mut self, ranges: &mut Pieces<'_>, request: u32, budget: &mut usize) -> Result<Done, Fault> {
        let bytes = ranges.bytes();
        if bytes == 0 || !bytes.is_multiple_of(SEGMENT) || bytes > RANGES_MAX as usize * SEGMENT {
            return Err(Fault::Io);
        }
        let mut range = [0; SEGMENT];
        while ranges.read(&mut range).is_some() {
            let words = u128::from_le_bytes(range);
            let (sector, count, flags) = (words as u64, (words >> 64) as u32, (words >> 96) as u32);
            let len = u64::from(count) * SECTOR;
            let offset = self.offset(sector, len)?;
            match (request, flags) {
                _ if len == 0 => {}
                (kind::DISCARD, 0) if count <= DISCARD_SECTORS_MAX => self.discard(offset, len)?,
                (kind::WRITE_ZEROES, 0 | 1) if count <= ZERO_SECTORS_MAX => {
                    self.zero(offset, len, flags == 1)?;
                    *budget = budget.saturating_sub(len as usize);
                }
                (kind::WRITE_ZEROES, 0 | 1) | (kind::DISCARD, 0) => return Err(Fault::Io),
                _ => return Err(Fault::Unsupported),
            }
        }
        if !self.flushes {
            self.file.sync_data()?;
        }
        Ok(Done::Wholly)
    }

    /// A discard is a hint: a file system that cannot do it has done it.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Fault> {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, hole, offset, len) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(_) => Err(Fault::Io),
        }
    }

    fn zero(&self, offset: u64, len: u64, unmap: bool) -> Result<(), Fault> {
        let how = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        if fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, len).is_ok() {
            return Ok(());
        }
        let (mut offset, mut len) = (offset, len as usize);
        while len > 0 {
            let zeros = &ZEROS[..len.min(ZEROS.len())];
            let written = rustix::io::pwrite(&self.file, zeros, offset).map_err(|_| Fault::Io)?;
            if written == 0 {
                return Err(Fault::Io);
            }
            (offset, len) = (offset + written as u64, len - written);
        }
        Ok(())
    }

    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        if !self.read_only {
            put(36, &DISCARD_SECTORS_MAX.to_le_bytes());
            put(40, &RANGES_MAX.to_le_bytes());
            // Holes are punched by the page.
            put(44, &8_u32.to_le_bytes());
            put(48, &ZERO_SECTORS_MAX.to_le_bytes());
            put(52, &RANGES_MAX.to_le_bytes());
            put(56, &[1]);
        }
        config
    }
}

impl Device for Blk {
    fn kind(&self) -> u32 {
        2
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX]
    }

    fn features(&self) -> u64 {
        let both = FEATURE_SEG_MAX | FEATURE_BLK_SIZE | FEATURE_FLUSH | FEATURE_EVENT_INDEX;
        both | if self.read_only { FEATURE_RO } else { FEATURE_DISCARD | FEATURE_WRITE_ZEROES }
    }

    fn activate(&mut self, acked: u64) {
        self.flushes = acked & FEATURE_FLUSH != 0;
    }

    fn read_config(&self, offset: u64, to: &mut [u8]) {
        copy_config(&self.config(), offset, to);
    }

    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        match queues.get_mut(queue) {
            Some(queue) => self.serve_queue(queue, memory),
            None => Ok(Work::default()),
        }
    }

    fn sources(&self) -> Vec<Source> {
        let released = self.hold.as_ref().map(Hold::source);
        self.limiter.source().into_iter().chain(released).map(|fd| Source { fd, queue: 0 }).collect()
    }

    fn reset(&mut self) {
        (self.flushes, self.moved) = (false, 0);
    }

    fn save(&self) -> Vec<u8> {
        let mut bytes = vec![STATE_VERSION, u8::from(self.read_only)];
        bytes.extend(self.sectors.to_le_bytes().into_iter().chain(self.moved.to_le_bytes()));
        bytes
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let Some((&[STATE_VERSION, read_only], words)) = bytes.split_first_chunk() else {
            return Err(Mismatch("it is no state of a block device"));
        };
        let ([sectors, moved], []) = words.as_chunks::<8>() else {
            return Err(Mismatch("it is no state of a block device"));
        };
        if read_only != u8::from(self.read_only) || u64::from_le_bytes(*sectors) != self.sectors {
            return Err(Mismatch("the disk has another size, or is writable where it was not"));
        }
        self.moved = u64::from_le_bytes(*moved);
        Ok(())
    }
}

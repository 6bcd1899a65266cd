//! virtio-balloon (virtio 1.2, section 5.5): the guest gives pages back when it is asked to, and reports free ones of
//! its own accord.
//!
//! Invariants:
//! - A page is given back only when all of it lies in guest memory; a number that names no page names nothing.
//! - The guest's buffer for its statistics stays in its queue until fresh ones are wanted: it is no state of ours.
//! - One call makes about `RUNS_PER_CALL` system calls at most.

mod handle;
mod pages;

pub use handle::{Handle, Stats};
pub use pages::Backing;

use super::{
    Broken, Device, GuestMemory, Mismatch, Source, Work,
    chain::{Chain, wants_interrupt},
    copy_config,
};
use pages::Pages;
use std::io;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

pub const INFLATE: usize = 0;
pub const DEFLATE: usize = 1;
/// The other two are there if the driver takes their features, one behind the other.
pub const FEATURE_STATS: u64 = 1 << 1;
pub const FEATURE_DEFLATE_ON_OOM: u64 = 1 << 2;
pub const FEATURE_REPORTING: u64 = 1 << 5;
const STATE_VERSION: u8 = 1;
/// Linux reports 32 ranges at once, and takes no smaller queue.
const QUEUE_SIZE: u16 = 32;
const PAGE: usize = 4096;
/// Numbers of pages in one buffer; what is beyond stays the guest's. Linux sends 256.
const PAGES_MAX: usize = 4096;
const RUNS_PER_CALL: usize = 4096;
const STAT: usize = 10;
const STATS_MAX: usize = 32;
const ACTUAL: u64 = 4;

pub struct Balloon {
    handle: Handle,
    pages: Pages,
    /// What the configuration says.
    target: u32,
    stats_queue: Option<usize>,
    reporting_queue: Option<usize>,
}

impl Balloon {
    pub fn new(backing: Backing) -> io::Result<Balloon> {
        Ok(Balloon {
            handle: Handle::new()?,
            pages: Pages::new(backing),
            target: 0,
            stats_queue: None,
            reporting_queue: None,
        })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Has each chain of the queue taken by `take`, which says how many system calls it made.
    fn each(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        take: impl Fn(&mut Pages, &mut Chain<'_>, &GuestMemory) -> usize,
    ) -> Result<Work, Broken> {
        let (mut used, mut chain, mut runs) = (false, Chain::default(), 0);
        for _ in 0..queue.size() {
            if !chain.take(queue, memory)? {
                return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
            }
            if !chain.malformed {
                runs += take(&mut self.pages, &mut chain, memory);
                self.handle.set_released(self.pages.released_bytes);
            }
            chain.answer(queue, memory, 0)?;
            used = true;
            if runs >= RUNS_PER_CALL {
                break;
            }
        }
        Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, more: true, ..Work::default() })
    }

    fn stats(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        let mut chain = Chain::default();
        if !chain.take(queue, memory)? {
            return Ok(Work::default());
        }
        let mut stat = [0; STAT];
        for _ in 0..STATS_MAX {
            if chain.malformed || chain.readable.read(&mut stat).is_none() {
                break;
            }
            let [a, b, value @ ..] = stat;
            self.handle.note(u16::from_le_bytes([a, b]), u64::from_le_bytes(value));
        }
        self.handle.noted();
        if !self.handle.take_wanted() {
            queue.go_to_previous_position();
            return Ok(Work::default());
        }
        // Given back, it comes again with fresh figures.
        chain.answer(queue, memory, 0)?;
        Ok(Work { interrupt: wants_interrupt(true, queue, memory)?, ..Work::default() })
    }
}

/// The pages whose numbers stand in the chain.
fn inflate(pages: &mut Pages, chain: &mut Chain<'_>, memory: &GuestMemory) -> usize {
    let count = (chain.readable.bytes() / 4).min(PAGES_MAX);
    let mut bytes = vec![0; count * 4];
    if chain.readable.read(&mut bytes).is_none() {
        return 0;
    }
    let (words, _) = bytes.as_chunks::<4>();
    let mut numbers: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let runs = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b));
    runs.map(|run| {
        let start = u64::from(run[0]) * PAGE as u64;
        let slices = memory.get_slices(GuestAddress(start), run.len() * PAGE);
        // What lies outside of memory ends the run.
        slices.map_while(Result::ok).for_each(|slice| pages.release(&slice));
    })
    .count()
}

/// The pages that the chain itself consists of.
fn report(pages: &mut Pages, chain: &mut Chain<'_>, _memory: &GuestMemory) -> usize {
    chain.writable.slices().iter().for_each(|slice| pages.release(slice));
    chain.writable.count()
}

impl Device for Balloon {
    fn kind(&self) -> u32 {
        5
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 4]
    }

    fn features(&self) -> u64 {
        FEATURE_STATS | FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING
    }

    fn activate(&mut self, acked: u64) {
        let stats = acked & FEATURE_STATS != 0;
        self.stats_queue = stats.then_some(2);
        self.reporting_queue = (acked & FEATURE_REPORTING != 0).then_some(2 + usize::from(stats));
    }

    fn read_config(&self, offset: u64, to: &mut [u8]) {
        let words = [self.target, self.handle.actual_pages()];
        copy_config(words.map(u32::to_le_bytes).as_flattened(), offset, to);
    }

    fn write_config(&mut self, offset: u64, from: &[u8]) {
        if let (ACTUAL, Ok(actual)) = (offset, from.try_into()) {
            self.handle.set_actual(u32::from_le_bytes(actual));
        }
    }

    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        let target = self.handle.target_pages();
        let config = std::mem::replace(&mut self.target, target) != target;
        let (stats, reporting) = (self.stats_queue, self.reporting_queue);
        // What the host wants comes in by the first queue's source.
        let mut asked = Work::default();
        if let Some(stats) = stats.and_then(|stats| queues.get_mut(stats)).filter(|_| queue == INFLATE) {
            asked = self.stats(stats, memory)?;
        }
        let Some(ours) = queues.get_mut(queue) else { return Ok(Work::default()) };
        let work = match queue {
            INFLATE => self.each(ours, memory, inflate)?,
            // What is taken out is there when it is touched.
            DEFLATE => self.each(ours, memory, |_, _, _| 0)?,
            queue if Some(queue) == stats => self.stats(ours, memory)?,
            queue if Some(queue) == reporting => self.each(ours, memory, report)?,
            _ => Work::default(),
        };
        Ok(Work { interrupt: work.interrupt | asked.interrupt, config, ..work })
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.handle.source(), queue: INFLATE }]
    }

    fn reset(&mut self) {
        (self.stats_queue, self.reporting_queue) = (None, None);
        self.handle.set_actual(0);
    }

    fn save(&self) -> Vec<u8> {
        let words = [self.target, self.handle.actual_pages()].map(u32::to_le_bytes);
        [&[STATE_VERSION], words.as_flattened()].concat()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let words = match bytes {
            [STATE_VERSION, words @ ..] => words.as_chunks::<4>(),
            _ => return Err(Mismatch("it is no state of a balloon")),
        };
        let ([target, actual], []) = words else { return Err(Mismatch("it is no state of a balloon")) };
        self.target = u32::from_le_bytes(*target);
        self.handle.restore(self.target, u32::from_le_bytes(*actual));
        Ok(())
    }
}

//! virtio-rng (virtio 1.2, section 5.4): the host's random bytes, straight from getrandom(2).
//!
//! Invariant: nothing is kept between two requests, and nothing is part of a snapshot; two clones never get the same
//! bytes from here.

use super::{
    Broken, Device, GuestMemory, Mismatch, Source, Work,
    chain::{Chain, wants_interrupt},
    rate::{Limit, Limiter, Limits},
};
use std::io;
use virtio_queue::{Queue, QueueT};

const STATE_VERSION: u8 = 1;
const QUEUE_SIZE: u16 = 8;
/// A request gets no more at once; the driver asks again.
const ANSWER_MAX: usize = 4096;
/// The host's CPU is not the guest's to burn: a generator is seeded with some hundred bytes.
const LIMITS: Limits =
    Limits { bytes: Some(Limit { per_second: 64 << 10, burst: 64 << 10 }), operations: None };

pub struct Rng {
    limiter: Limiter,
}

impl Rng {
    pub fn new() -> io::Result<Rng> {
        Ok(Rng { limiter: Limiter::new(LIMITS)? })
    }

    fn answer(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        let (mut used, mut chain, mut bytes) = (false, Chain::default(), [0; ANSWER_MAX]);
        for _ in 0..queue.size() {
            if !self.limiter.may_go_on() || !chain.take(queue, memory)? {
                return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
            }
            let wanted = if chain.malformed { 0 } else { chain.writable.bytes().min(ANSWER_MAX) };
            let bytes = &mut bytes[..wanted];
            // A host that has none yet gives none: no guess is better than a bad one.
            let filled = crate::random::fill(bytes).is_ok() && chain.writable.write(bytes).is_some();
            chain.answer(queue, memory, if filled { wanted } else { 0 })?;
            // An empty request is one, too.
            self.limiter.charge(wanted.max(64));
            used = true;
        }
        Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, more: true, ..Work::default() })
    }
}

impl Device for Rng {
    fn kind(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn activate(&mut self, _acked: u64) {}

    fn read_config(&self, _offset: u64, _to: &mut [u8]) {}

    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        match queues.get_mut(queue) {
            Some(queue) => self.answer(queue, memory),
            None => Ok(Work::default()),
        }
    }

    fn sources(&self) -> Vec<Source> {
        self.limiter.source().into_iter().map(|fd| Source { fd, queue: 0 }).collect()
    }

    fn reset(&mut self) {}

    fn save(&self) -> Vec<u8> {
        vec![STATE_VERSION]
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        match bytes {
            [STATE_VERSION] => Ok(()),
            _ => Err(Mismatch("it is no state of a random generator")),
        }
    }
}

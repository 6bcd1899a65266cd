//! A hostile guest's program out of bytes, so that a changed byte is a changed move: addresses and lengths are chosen
//! mostly among those that mean something to a device.

use crate::driver::{BUFFERS, MEMORY, Move, Rig, SIZE, table};
use cloudpal_vmm::virtio::Device;

/// Longer programs find nothing that shorter ones do not.
const MOVES_MAX: usize = 100;

/// Bytes from the front; zeros behind the end.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// As many as there are, up to that.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    fn address(&mut self) -> u64 {
        match self.u8() {
            at @ 0..200 => BUFFERS + u64::from(at % 64) * 0x400,
            200..215 => MEMORY - 8,
            215..235 => table(0) + u64::from(self.u16() % 0x3000),
            _ => self.u64(),
        }
    }

    fn len(&mut self) -> u32 {
        match self.u8() {
            len @ 0..100 => u32::from(len),
            100..200 => u32::from(self.u16()) % 5000,
            200..220 => 60_000 + u32::from(self.u16()) % 10_000,
            220..230 => u32::MAX,
            _ => self.u32(),
        }
    }

    fn step(&mut self, queues: usize) -> Option<Move> {
        let queue = |byte: u8| usize::from(byte) % queues;
        Some(match self.u8() % 16 {
            0 => Move::Register(u64::from(self.u8() % 0x48) * 4, self.value()),
            1 => Move::Register(self.u64(), self.u32()),
            2 => Move::Read(u64::from(self.u16()), usize::from(self.u8() % 9)),
            3 => {
                let (at, len) = (u64::from(self.u8() % 80), usize::from(self.u8() % 9));
                Move::Config(at, self.take(len).to_vec())
            }
            4 => {
                let at = table(queue(self.u8())) + u64::from(self.u16() % 0x3000);
                Move::Memory(at, self.content())
            }
            5 => {
                let at = BUFFERS + u64::from(self.u8() % 64) * 0x400 + u64::from(self.u8());
                Move::Memory(at, self.content())
            }
            6..9 => {
                let (queue, index) = (queue(self.u8()), u16::from(self.u8()) % SIZE);
                let (address, len) = (self.address(), self.len());
                Move::Descriptor(
                    queue,
                    index,
                    address,
                    len,
                    u16::from(self.u8() % 8),
                    u16::from(self.u8()) % SIZE,
                )
            }
            9 => Move::Offer(queue(self.u8()), u16::from(self.u8()) % SIZE),
            10 => Move::Work(usize::from(self.u8()) % (queues + 2)),
            11 => Move::SetUp(self.u64(), 1 << (1 + self.u8() % 8)),
            12 => Move::Sleep,
            13 => return None,
            _ => Move::World(self.u32(), self.u32()),
        })
    }

    fn value(&mut self) -> u32 {
        match self.u8() {
            value @ 0..200 => u32::from(value),
            200..210 => u32::MAX,
            _ => self.u32(),
        }
    }

    fn content(&mut self) -> Vec<u8> {
        let len = usize::from(self.u8() % 64);
        self.take(len).to_vec()
    }
}

pub enum Turn {
    /// Something that only this device knows.
    World(u32, u32),
    /// The device has done what it does.
    After,
}

/// Does what the bytes say; `world` plays the outside, and looks at what came of each move.
pub fn run<D: Device>(rig: &mut Rig<D>, program: &mut Bytes<'_>, mut world: impl FnMut(&mut Rig<D>, Turn)) {
    let queues = rig.device.queue_count();
    for _ in 0..MOVES_MAX {
        if program.is_empty() {
            break;
        }
        match program.step(queues) {
            Some(Move::World(what, which)) => world(rig, Turn::World(what, which)),
            Some(step) => rig.suffer(step),
            None => wake_from_another_state(rig, program),
        }
        world(rig, Turn::After);
    }
    rig.comes_back();
}

/// A snapshot that somebody has changed. Taken or refused; then the guest goes on.
fn wake_from_another_state<D: Device>(rig: &mut Rig<D>, program: &mut Bytes<'_>) {
    let mut state = rig.device.save();
    let (which, value) = (program.u8(), program.u64());
    let queue = usize::from(which / 16) % state.queues.len().max(1);
    match (which % 16, state.queues.get_mut(queue)) {
        (0, _) => state.status = value as u32,
        (1, _) => state.driver_features = value,
        (2, _) => state.queue_select = value as u32,
        (3, _) => state.interrupt_status = value as u32,
        (4, _) => drop(state.queues.pop()),
        (5, Some(queue)) => queue.size = value as u16,
        (6, Some(queue)) => queue.max_size = value as u16,
        (7, Some(queue)) => queue.next_avail = value as u16,
        (8, Some(queue)) => queue.next_used = value as u16,
        (9, Some(queue)) => queue.desc_table = value,
        (10, Some(queue)) => queue.avail_ring = value,
        (11, Some(queue)) => queue.used_ring = value,
        (12, Some(queue)) => queue.ready = value & 1 != 0,
        (13, Some(queue)) => queue.event_idx_enabled = value & 1 != 0,
        _ => {
            let at = usize::from(value as u16) % (state.device.len() + 1);
            let len = usize::from((value >> 16) as u8);
            state.device.truncate(at);
            state.device.extend_from_slice(program.take(len));
        }
    }
    let _ = rig.device.restore(&state, &rig.memory);
    for queue in 0..rig.device.queue_count() {
        rig.notify(queue);
    }
}

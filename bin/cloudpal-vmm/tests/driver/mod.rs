//! A guest's driver for the tests of virtio devices: a well-behaved one, and one that does what it likes.
#![allow(dead_code)]

use cloudpal_vmm::virtio::{
    Device, GuestMemory, Work,
    mmio::{Transport, register, status},
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

pub const MEMORY: u64 = 4 << 20;
/// As many entries has each queue here.
pub const SIZE: u16 = 16;
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// Room for buffers, behind all tables.
pub const BUFFERS: u64 = 0x10_0000;

/// Each queue's descriptors; its rings are a page and two behind.
pub const fn table(queue: usize) -> u64 {
    0x1_0000 + queue as u64 * 0x4000
}

pub struct Rig<D> {
    pub device: Transport<D>,
    pub memory: GuestMemory,
    size: u16,
}

impl<D: Device> Rig<D> {
    /// A device that nobody has touched.
    pub fn fresh(device: D) -> Rig<D> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory");
        Rig::over(device, memory)
    }

    pub fn over(device: D, memory: GuestMemory) -> Rig<D> {
        Rig { device: Transport::new(device), memory, size: SIZE }
    }

    /// A device set up as the specification says; the driver takes these features.
    pub fn ready(device: D, features: u64) -> Rig<D> {
        let mut rig = Rig::fresh(device);
        rig.set_up(features, SIZE);
        rig
    }

    pub fn set_up(&mut self, features: u64, size: u16) {
        self.size = size;
        self.set(register::STATUS, status::ACKNOWLEDGE);
        self.set(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        self.set(register::DRIVER_FEATURES_SELECT, 0);
        self.set(register::DRIVER_FEATURES, features as u32);
        self.set(register::DRIVER_FEATURES_SELECT, 1);
        self.set(register::DRIVER_FEATURES, (features >> 32) as u32 | 1);
        self.set(register::STATUS, status::FEATURES_OK);
        assert_ne!(self.get(register::STATUS) & status::FEATURES_OK, 0, "features {features:#x}");
        for queue in 0..self.device.queue_count() {
            let at = table(queue) as u32;
            self.set(register::QUEUE_SELECT, queue as u32);
            self.set(register::QUEUE_SIZE, u32::from(size));
            self.set(register::DESC_LOW, at);
            self.set(register::AVAIL_LOW, at + 0x1000);
            self.set(register::USED_LOW, at + 0x2000);
            self.set(register::QUEUE_READY, 1);
        }
        self.set(register::STATUS, status::DRIVER_OK);
        assert_eq!(self.get(register::STATUS) & status::NEEDS_RESET, 0);
    }

    pub fn set(&mut self, offset: u64, value: u32) -> Work {
        self.device.write(offset, &value.to_le_bytes(), &self.memory)
    }

    pub fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.device.read(register::CONFIG + offset, &mut data);
        data
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("in memory");
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("in memory");
        bytes
    }

    pub fn u16(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).expect("in memory")
    }

    pub fn descriptor(&self, queue: usize, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = table(queue) + u64::from(index) * 16;
        let bytes =
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.put(at, &bytes.concat());
    }

    /// Makes the chain that begins there available.
    pub fn offer(&self, queue: usize, head: u16) {
        let avail = table(queue) + 0x1000;
        let index = self.u16(avail + 2);
        self.put(avail + 4 + u64::from(index % self.size) * 2, &head.to_le_bytes());
        self.put(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// Writes a chain of (address, length, flags) into the descriptors from `head` on, and makes it available.
    pub fn chain(&self, queue: usize, head: u16, parts: &[(u64, u32, u16)]) {
        for (index, (address, len, flags)) in (head..).zip(parts) {
            let more = if usize::from(index - head) + 1 < parts.len() { NEXT } else { 0 };
            self.descriptor(queue, index, *address, *len, flags | more, index + 1);
        }
        self.offer(queue, head);
    }

    pub fn notify(&mut self, queue: usize) -> Work {
        self.device.work(queue, &self.memory)
    }

    /// Until the device says that there is no more.
    pub fn drain(&mut self, queue: usize) {
        for _ in 0..10_000 {
            if !self.notify(queue).more {
                return;
            }
        }
        panic!("queue {queue} never ends");
    }

    /// How many chains came back.
    pub fn used(&self, queue: usize) -> u16 {
        self.u16(table(queue) + 0x2000 + 2)
    }

    /// Head and length of a chain that came back, counted from 0.
    pub fn answer(&self, queue: usize, nth: u16) -> (u32, u32) {
        let at = table(queue) + 0x2000 + 4 + u64::from(nth % self.size) * 8;
        let word = |at| self.memory.read_obj::<u32>(GuestAddress(at)).expect("in memory");
        (word(at), word(at + 4))
    }

    pub fn last_len(&self, queue: usize) -> u32 {
        self.answer(queue, self.used(queue).wrapping_sub(1)).1
    }

    /// Saves the device and puts its state into another one, over the same memory.
    pub fn restored(&self, device: D) -> Rig<D> {
        let state = self.device.save();
        let mut rig = Rig { device: Transport::new(device), memory: self.memory.clone(), size: self.size };
        rig.device.restore(&state, &self.memory).expect("a state of this device");
        for queue in 0..rig.device.queue_count() {
            rig.drain(queue);
        }
        rig
    }
}

/// Every state that is not of this device or version is refused, and a cut or damaged one does not panic.
pub fn state_is_picky<D: Device>(make: impl Fn() -> D, good: &[u8]) {
    make().restore(good).expect("what was saved");
    assert!(make().restore(&[]).is_err());
    let mut newer = good.to_vec();
    newer[0] = 255;
    assert!(make().restore(&newer).is_err(), "another version");
    assert!(make().restore(&[good, &[0]].concat()).is_err(), "too long");
    for len in 0..good.len() {
        assert!(make().restore(&good[..len]).is_err(), "{len} bytes");
    }
}

/// What a hostile guest may do, and the world meanwhile.
#[derive(Clone, Debug)]
pub enum Move {
    Register(u64, u32),
    Read(u64, usize),
    Config(u64, Vec<u8>),
    /// Anything, into a queue's tables or its buffers.
    Memory(u64, Vec<u8>),
    /// Queue, index, address, length, flags, next; then it is offered and the device looks.
    Descriptor(usize, u16, u64, u32, u16, u16),
    Offer(usize, u16),
    Work(usize),
    /// The driver begins anew, in the middle of everything.
    SetUp(u64, u16),
    /// Saved, and restored in place.
    Sleep,
    /// Something that only this device knows.
    World(u32, u32),
}

pub fn moves(queues: usize) -> impl Strategy<Value = Move> {
    let registers = prop_oneof![(0_u64..0x48).prop_map(|word| word * 4), any::<u64>()];
    let values = prop_oneof![0_u32..16, Just(u32::from(SIZE)), Just(u32::MAX), any::<u32>()];
    let addresses = prop_oneof![
        4 => (0_u64..64).prop_map(|n| BUFFERS + n * 0x400),
        1 => Just(MEMORY - 8),
        1 => Just(table(0)),
        1 => any::<u64>()
    ];
    let lens = prop_oneof![
        4 => 0_u32..64,
        4 => 0_u32..5000,
        1 => 60_000_u32..70_000,
        1 => Just(MEMORY as u32 - BUFFERS as u32),
        1 => Just(u32::MAX),
        1 => any::<u32>()
    ];
    let places = prop_oneof![
        (0..queues, 0_u64..0x3000).prop_map(|(queue, at)| table(queue) + at),
        (0_u64..64, 0_u64..64).prop_map(|(n, at)| BUFFERS + n * 0x400 + at)
    ];
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 1..64),
        prop::collection::vec(0_u8..16, 1..64),
        (0_u32..16, 0_u32..8, 0_u64..9000).prop_map(|(kind, other, at)| {
            [&kind.to_le_bytes()[..], &other.to_le_bytes(), &at.to_le_bytes()].concat()
        })
    ];
    prop_oneof![
        4 => (registers.clone(), values).prop_map(|(offset, value)| Move::Register(offset, value)),
        2 => (registers, 0_usize..9).prop_map(|(offset, len)| Move::Read(offset, len)),
        1 => (0_u64..80, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(at, data)| Move::Config(at, data)),
        8 => (places, bytes).prop_map(|(at, bytes)| Move::Memory(at, bytes)),
        12 => (0..queues, 0..SIZE, addresses, lens, 0_u16..8, 0_u16..SIZE)
            .prop_map(|(q, i, a, l, f, n)| Move::Descriptor(q, i, a, l, f, n)),
        4 => (0..queues, 0..SIZE).prop_map(|(queue, head)| Move::Offer(queue, head)),
        6 => (0..queues + 2).prop_map(Move::Work),
        1 => (any::<u64>(), 1_u16..9).prop_map(|(features, power)| Move::SetUp(features, 1 << power)),
        1 => Just(Move::Sleep),
        8 => (any::<u32>(), any::<u32>()).prop_map(|(what, which)| Move::World(what, which)),
    ]
}

impl<D: Device> Rig<D> {
    /// One move of a hostile guest. True when the device was saved and wants to be restored.
    pub fn suffer(&mut self, step: Move) {
        match step {
            Move::Register(offset, value) => drop(self.set(offset, value)),
            Move::Read(offset, len) => self.device.read(offset, &mut vec![0; len]),
            Move::Config(at, data) => {
                self.device.write(register::CONFIG + at, &data, &self.memory);
            }
            Move::Memory(at, bytes) => self.put(at, &bytes),
            Move::Descriptor(queue, index, address, len, flags, next) => {
                self.descriptor(queue, index, address, len, flags, next);
                self.offer(queue, index);
                self.notify(queue);
            }
            Move::Offer(queue, head) => {
                self.offer(queue, head);
                self.notify(queue);
            }
            Move::Work(queue) => drop(self.notify(queue)),
            Move::SetUp(features, size) => {
                self.set(register::STATUS, 0);
                for queue in 0..self.device.queue_count() {
                    self.put(table(queue) + 0x1000, &[0; 4]);
                    self.put(table(queue) + 0x2000, &[0; 4]);
                }
                let offered = self.offered();
                self.set_up(features & offered, size);
            }
            Move::Sleep => {
                let state = self.device.save();
                // Some of what a guest can do to its registers no wake takes: then it boots.
                let _ = self.device.restore(&state, &self.memory);
            }
            Move::World(..) => {}
        }
    }

    pub fn offered(&mut self) -> u64 {
        self.set(register::DEVICE_FEATURES_SELECT, 0);
        let low = self.get(register::DEVICE_FEATURES);
        self.set(register::DEVICE_FEATURES_SELECT, 1);
        u64::from(low) | u64::from(self.get(register::DEVICE_FEATURES)) << 32
    }

    /// Whatever it did, a reset makes the device new.
    pub fn comes_back(&mut self) {
        self.set(register::STATUS, 0);
        assert_eq!((self.get(register::STATUS), self.get(register::INTERRUPT_STATUS)), (0, 0));
        self.suffer(Move::SetUp(0, SIZE));
    }
}

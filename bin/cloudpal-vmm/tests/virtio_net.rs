//! virtio-net against a well-behaved driver, then against a hostile one. A socket that keeps frames apart stands for
//! the TAP.

use cloudpal_vmm::virtio::{
    GuestMemory, Work,
    mmio::{QUEUE_SIZE_MAX, Transport, register, status},
    net::{FRAME_MAX, HEADER, Net, RECEIVE, TRANSMIT},
};
use proptest::prelude::*;
use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
};
use vm_memory::{Bytes, GuestAddress};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MEMORY: u64 = 1 << 20;
const SIZE: u16 = 8;
const WRITE: u16 = 2;
const NEXT: u16 = 1;
/// Each queue has its tables here, a page apart.
const QUEUES: [u64; 2] = [0x1_0000, 0x2_0000];
const BUFFERS: u64 = 0x4_0000;

struct Rig {
    net: Transport<Net>,
    memory: GuestMemory,
    wire: UnixDatagram,
}

impl Rig {
    /// A device that nobody has touched.
    fn fresh() -> Rig {
        let (ours, wire) = UnixDatagram::pair().expect("a pair of sockets");
        for end in [&ours, &wire] {
            end.set_nonblocking(true).expect("not blocking");
        }
        let net = Transport::new(Net::new(File::from(OwnedFd::from(ours)), MAC));
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory");
        Rig { net, memory, wire }
    }

    /// A device set up as the specification says.
    fn ready() -> Rig {
        let mut rig = Rig::fresh();
        rig.set(register::STATUS, status::ACKNOWLEDGE);
        rig.set(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        rig.set(register::DRIVER_FEATURES_SELECT, 1);
        rig.set(register::DRIVER_FEATURES, 1);
        rig.set(register::STATUS, status::FEATURES_OK);
        assert_ne!(rig.get(register::STATUS) & status::FEATURES_OK, 0);
        for (queue, at) in (0..).zip(QUEUES) {
            rig.set(register::QUEUE_SELECT, queue);
            rig.set(register::QUEUE_SIZE, u32::from(SIZE));
            rig.set(register::DESC_LOW, at as u32);
            rig.set(register::AVAIL_LOW, at as u32 + 0x1000);
            rig.set(register::USED_LOW, at as u32 + 0x2000);
            rig.set(register::QUEUE_READY, 1);
        }
        rig.set(register::STATUS, status::DRIVER_OK);
        assert_eq!(rig.get(register::STATUS) & status::NEEDS_RESET, 0);
        rig
    }

    fn set(&mut self, offset: u64, value: u32) -> Work {
        self.net.write(offset, &value.to_le_bytes(), &self.memory)
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.net.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("in memory");
    }

    fn u16(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).expect("in memory")
    }

    fn descriptor(&self, queue: usize, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = QUEUES[queue] + u64::from(index) * 16;
        let bytes =
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.put(at, &bytes.concat());
    }

    /// Makes the chain that begins there available.
    fn offer(&self, queue: usize, head: u16) {
        let avail = QUEUES[queue] + 0x1000;
        let index = self.u16(avail + 2);
        self.put(avail + 4 + u64::from(index % SIZE) * 2, &head.to_le_bytes());
        self.put(avail + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// How many buffers came back, and the length of the last.
    fn used(&self, queue: usize) -> (u16, u32) {
        let used = QUEUES[queue] + 0x2000;
        let count = self.u16(used + 2);
        let last = used + 4 + u64::from(count.wrapping_sub(1) % SIZE) * 8;
        (count, self.memory.read_obj(GuestAddress(last + 4)).expect("in memory"))
    }

    fn sent(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; FRAME_MAX + 1];
        let len = self.wire.recv(&mut frame).ok()?;
        frame.truncate(len);
        Some(frame)
    }
}

#[test]
fn the_device_says_what_it_is() {
    let rig = Rig::fresh();
    let words = [register::MAGIC, register::VERSION, register::KIND].map(|offset| rig.get(offset));
    assert_eq!(words, [0x7472_6976, 2, 1]);
    let mut mac = [0; 6];
    rig.net.read(register::CONFIG, &mut mac);
    assert_eq!(mac, MAC);
    assert_eq!(rig.get(register::QUEUE_SIZE_MAX), u32::from(QUEUE_SIZE_MAX));
}

#[test]
fn frames_go_out_whole_and_gathered() {
    let mut rig = Rig::ready();
    rig.put(BUFFERS + HEADER as u64, b"one ");
    rig.put(BUFFERS + 0x1000, b"frame");
    rig.descriptor(TRANSMIT, 0, BUFFERS, HEADER as u32 + 4, NEXT, 1);
    rig.descriptor(TRANSMIT, 1, BUFFERS + 0x1000, 5, 0, 0);
    rig.offer(TRANSMIT, 0);
    assert_eq!(rig.set(register::QUEUE_NOTIFY, TRANSMIT as u32), Work { interrupt: true, ..Work::default() });
    assert_eq!(rig.sent().as_deref(), Some(&b"one frame"[..]));
    assert_eq!(rig.used(TRANSMIT).0, 1);
    assert_eq!(rig.get(register::INTERRUPT_STATUS), 1);
    rig.set(register::INTERRUPT_ACK, 1);
    assert_eq!(rig.get(register::INTERRUPT_STATUS), 0);
}

#[test]
fn a_frame_waits_outside_until_the_guest_has_a_buffer() {
    let mut rig = Rig::ready();
    rig.wire.send(b"hello").expect("sends");
    assert_eq!(rig.net.work(RECEIVE, &rig.memory), Work::default(), "no buffer: nothing is read");
    rig.descriptor(RECEIVE, 0, BUFFERS, 2048, WRITE, 0);
    rig.offer(RECEIVE, 0);
    assert!(rig.set(register::QUEUE_NOTIFY, RECEIVE as u32).interrupt);
    assert_eq!(rig.used(RECEIVE), (1, HEADER as u32 + 5));
    let mut got = [0; 5];
    rig.memory.read_slice(&mut got, GuestAddress(BUFFERS + HEADER as u64)).expect("in memory");
    assert_eq!(&got, b"hello");
    rig.offer(RECEIVE, 0);
    assert_eq!(rig.net.work(RECEIVE, &rig.memory), Work::default(), "no frame: the buffer stays");
    assert_eq!(rig.used(RECEIVE).0, 1);
}

/// Outside memory, without a frame, without a whole header, and one byte longer than a frame can be.
const OUT_OF_BOUNDS: [(u64, u32); 5] = [
    (BUFFERS, u32::MAX),
    (u64::MAX - 4, 100),
    (BUFFERS, HEADER as u32),
    (BUFFERS, 3),
    (BUFFERS, (HEADER + FRAME_MAX) as u32 + 1),
];

#[test]
fn a_buffer_that_is_too_small_or_outside_memory_loses_its_frame_only() {
    let mut rig = Rig::ready();
    rig.descriptor(RECEIVE, 0, BUFFERS, 14, WRITE, 0);
    rig.descriptor(RECEIVE, 1, MEMORY - 1, 2048, WRITE, 0);
    rig.descriptor(RECEIVE, 2, BUFFERS, 2048, WRITE, 0);
    for (head, frame) in (0..).zip([&b"lost"[..], b"lost, too", b"kept"]) {
        rig.wire.send(frame).expect("sends");
        rig.offer(RECEIVE, head);
    }
    rig.net.work(RECEIVE, &rig.memory);
    assert_eq!((rig.used(RECEIVE), rig.net.device.dropped), ((3, HEADER as u32 + 4), 2));
    for (address, len) in OUT_OF_BOUNDS {
        rig.descriptor(TRANSMIT, 0, address, len, 0, 0);
        rig.offer(TRANSMIT, 0);
        rig.set(register::QUEUE_NOTIFY, TRANSMIT as u32);
        assert_eq!(rig.sent(), None, "{address:#x} {len}");
    }
    assert_eq!(usize::from(rig.used(TRANSMIT).0), OUT_OF_BOUNDS.len());
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let mut rig = Rig::ready();
    rig.descriptor(TRANSMIT, 0, BUFFERS, 100, NEXT, 1);
    rig.descriptor(TRANSMIT, 1, BUFFERS, 100, NEXT, 0);
    rig.offer(TRANSMIT, 0);
    rig.set(register::QUEUE_NOTIFY, TRANSMIT as u32);
    assert_eq!(rig.used(TRANSMIT).0, 1);
}

#[test]
fn queues_outside_memory_and_unoffered_features_are_refused() {
    let mut rig = Rig::fresh();
    rig.set(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    rig.set(register::DRIVER_FEATURES, u32::MAX);
    rig.set(register::DRIVER_FEATURES_SELECT, 1);
    rig.set(register::DRIVER_FEATURES, 1);
    rig.set(register::STATUS, status::FEATURES_OK);
    assert_eq!(rig.get(register::STATUS) & status::FEATURES_OK, 0);
    rig.set(register::DRIVER_FEATURES_SELECT, 0);
    rig.set(register::DRIVER_FEATURES, 0);
    rig.set(register::STATUS, status::FEATURES_OK);
    rig.set(register::QUEUE_SIZE, u32::from(SIZE));
    rig.set(register::DESC_HIGH, u32::MAX);
    rig.set(register::QUEUE_READY, 1);
    assert!(rig.set(register::STATUS, status::DRIVER_OK).interrupt);
    assert_ne!(rig.get(register::STATUS) & status::NEEDS_RESET, 0);
    rig.set(register::STATUS, 0);
    assert_eq!(rig.get(register::STATUS), 0);
}

/// What a hostile guest may do, and the world meanwhile.
#[derive(Clone, Debug)]
enum Move {
    Register(u64, u32),
    Read(u64, usize),
    Memory(u64, Vec<u8>),
    /// Queue, index, address, length, flags, next; then it is offered and notified of.
    Descriptor(usize, u16, u64, u32, u16, u16),
    Offer(usize, u16),
    Notify(u32),
    Arrives(usize),
}

fn moves() -> impl Strategy<Value = Move> {
    let registers = prop_oneof![(0_u64..0x48).prop_map(|word| word * 4), any::<u64>()];
    let values = prop_oneof![0_u32..16, Just(u32::from(SIZE)), Just(u32::MAX), any::<u32>()];
    let addresses = prop_oneof![Just(BUFFERS), Just(MEMORY - 8), Just(QUEUES[0]), any::<u64>()];
    let lens = prop_oneof![0_u32..3000, 60_000_u32..70_000, Just(u32::MAX), any::<u32>()];
    let tables = (0_usize..2, 0_u64..0x3000).prop_map(|(queue, at)| QUEUES[queue] + at);
    prop_oneof![
        (registers.clone(), values).prop_map(|(offset, value)| Move::Register(offset, value)),
        (registers, 0_usize..9).prop_map(|(offset, len)| Move::Read(offset, len)),
        (tables, prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Move::Memory(at, bytes)),
        (0_usize..2, 0..SIZE, addresses, lens, 0_u16..8, 0_u16..12)
            .prop_map(|(q, i, a, l, f, n)| Move::Descriptor(q, i, a, l, f, n)),
        (0_usize..2, 0_u16..12).prop_map(|(queue, head)| Move::Offer(queue, head)),
        (0_u32..4).prop_map(Move::Notify),
        (0_usize..3000).prop_map(Move::Arrives),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn a_hostile_guest_gets_no_further_than_its_own_queue(moves in prop::collection::vec(moves(), 1..60)) {
        let mut rig = Rig::ready();
        for step in moves {
            match step {
                Move::Register(offset, value) => drop(rig.set(offset, value)),
                Move::Read(offset, len) => rig.net.read(offset, &mut vec![0; len]),
                Move::Memory(at, bytes) => rig.put(at, &bytes),
                Move::Descriptor(queue, index, address, len, flags, next) => {
                    rig.descriptor(queue, index, address, len, flags, next);
                    rig.offer(queue, index);
                    rig.set(register::QUEUE_NOTIFY, queue as u32);
                }
                Move::Offer(queue, head) => {
                    rig.offer(queue, head);
                    rig.set(register::QUEUE_NOTIFY, queue as u32);
                }
                Move::Notify(queue) => drop(rig.set(register::QUEUE_NOTIFY, queue)),
                // A full wire is the wire's affair.
                Move::Arrives(len) => drop(rig.wire.send(&vec![7; len])),
            }
            let mut frames = 0;
            while let Some(frame) = rig.sent() {
                prop_assert!(!frame.is_empty() && frame.len() <= FRAME_MAX);
                frames += 1;
            }
            prop_assert!(frames <= QUEUE_SIZE_MAX, "{frames} frames in one step");
        }
        // Whatever it did, a reset makes the device new.
        rig.set(register::STATUS, 0);
        prop_assert_eq!((rig.get(register::STATUS), rig.get(register::INTERRUPT_STATUS)), (0, 0));
    }
}

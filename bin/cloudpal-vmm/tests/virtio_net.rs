//! virtio-net against a well-behaved driver, then against a hostile one. A socket that keeps frames apart stands for
//! the TAP; a real one shows that headers and offloads are those of Linux.

mod driver;

use cloudpal_vmm::virtio::{
    Device, Work,
    mmio::{FEATURE_EVENT_INDEX, QUEUE_SIZE_MAX, register, status},
    net::{Counts, FRAME_MAX, HEADER, Handle, Net, RECEIVE, Settings, TRANSMIT, feature},
    rate::{Limit, Limits},
};
use driver::{BUFFERS, MEMORY, Move, NEXT, Rig, SIZE, WRITE, moves, state_is_picky};
use proptest::prelude::*;
use std::{
    fs::File,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HEADER_LEN: u32 = HEADER as u32;

fn device(settings: Settings) -> (Net, UnixDatagram) {
    let (ours, wire) = UnixDatagram::pair().expect("a pair of sockets");
    wire.set_nonblocking(true).expect("not blocking");
    let net = Net::new(File::from(OwnedFd::from(ours)), Settings { mac: MAC, ..settings });
    (net.expect("a device"), wire)
}

fn ready(features: u64) -> (Rig<Net>, UnixDatagram) {
    let (net, wire) = device(Settings::default());
    (Rig::ready(net, features), wire)
}

fn sent(wire: &UnixDatagram) -> Option<Vec<u8>> {
    let mut frame = vec![0; FRAME_MAX + 1];
    let len = wire.recv(&mut frame).ok()?;
    frame.truncate(len);
    Some(frame)
}

/// A frame behind an empty header.
fn transmit(rig: &mut Rig<Net>, frame: &[u8]) -> Work {
    rig.put(BUFFERS, &[&[0; HEADER], frame].concat());
    rig.chain(TRANSMIT, 0, &[(BUFFERS, HEADER_LEN + frame.len() as u32, 0)]);
    rig.notify(TRANSMIT)
}

#[test]
fn the_device_says_what_it_is() {
    let mut rig = Rig::fresh(device(Settings::default()).0);
    let words = [register::MAGIC, register::VERSION, register::KIND].map(|offset| rig.get(offset));
    assert_eq!(words, [0x7472_6976, 2, 1]);
    assert_eq!((rig.config::<6>(0), rig.get(register::QUEUE_SIZE_MAX)), (MAC, u32::from(QUEUE_SIZE_MAX)));
    let plain = feature::MAC | feature::MRG_RXBUF | FEATURE_EVENT_INDEX | 1 << 32;
    assert_eq!(rig.offered(), plain, "a socket knows no offloads");
}

#[test]
fn frames_go_out_whole_and_gathered() {
    let (mut rig, wire) = ready(0);
    rig.put(BUFFERS + HEADER as u64, b"one ");
    rig.put(BUFFERS + 0x1000, b"frame");
    rig.descriptor(TRANSMIT, 0, BUFFERS, HEADER_LEN + 4, NEXT, 1);
    rig.descriptor(TRANSMIT, 1, BUFFERS + 0x1000, 5, 0, 0);
    rig.offer(TRANSMIT, 0);
    let work = rig.set(register::QUEUE_NOTIFY, TRANSMIT as u32);
    assert_eq!(work, Work { interrupt: true, ..Work::default() });
    assert_eq!(sent(&wire).as_deref(), Some(&b"one frame"[..]));
    assert_eq!((rig.used(TRANSMIT), rig.get(register::INTERRUPT_STATUS)), (1, 1));
    rig.set(register::INTERRUPT_ACK, 1);
    assert_eq!(rig.get(register::INTERRUPT_STATUS), 0);
}

#[test]
fn a_frame_waits_outside_until_the_guest_has_a_buffer() {
    let (mut rig, wire) = ready(0);
    wire.send(b"hello").expect("sends");
    assert_eq!(rig.notify(RECEIVE), Work::default(), "no buffer: nothing is read");
    rig.chain(RECEIVE, 0, &[(BUFFERS, 2048, WRITE)]);
    assert!(rig.notify(RECEIVE).interrupt);
    assert_eq!((rig.used(RECEIVE), rig.last_len(RECEIVE)), (1, HEADER_LEN + 5));
    assert_eq!(rig.bytes(BUFFERS, HEADER + 5), [&[0; 10], &[1, 0][..], b"hello"].concat());
    rig.offer(RECEIVE, 0);
    assert_eq!(rig.notify(RECEIVE), Work::default(), "no frame: the buffer stays");
    wire.send(b"again").expect("sends");
    assert!(rig.notify(RECEIVE).interrupt);
    assert_eq!(rig.used(RECEIVE), 2);
    let counts = Counts { received_frames: 2, received_bytes: 10, ..Counts::default() };
    assert_eq!(rig.device.device.handle().counts(), counts);
}

#[test]
fn a_held_device_leaves_every_frame_where_it_is_and_sends_all_the_same() {
    let (net, wire) = device(Settings { held: true, ..Settings::default() });
    let (handle, sources) = (net.handle(), net.sources());
    assert_eq!(sources.len(), 2, "the TAP and the release");
    let mut rig = Rig::ready(net, 0);
    for (head, frame) in (0..).zip([b"1", b"2", b"3"]) {
        wire.send(frame).expect("sends");
        rig.chain(RECEIVE, head, &[(BUFFERS + u64::from(head) * 0x400, 64, WRITE)]);
    }
    assert_eq!((rig.notify(RECEIVE), rig.used(RECEIVE)), (Work::default(), 0));
    transmit(&mut rig, b"out");
    assert_eq!(sent(&wire).as_deref(), Some(&b"out"[..]));
    // Asleep and awake again: they still wait.
    handle.release();
    assert!(rig.notify(RECEIVE).interrupt);
    let frames = [0, 1, 2].map(|nth| rig.bytes(BUFFERS + nth * 0x400 + HEADER as u64, 1)[0]);
    assert_eq!((frames, handle.is_held()), (*b"123", false));
}

/// Outside memory, without a frame, without a whole header, and one byte longer than a frame can be.
const OUT_OF_BOUNDS: [(u64, u32); 5] = [
    (BUFFERS, u32::MAX),
    (u64::MAX - 4, 100),
    (BUFFERS, HEADER_LEN),
    (BUFFERS, 3),
    (BUFFERS, (HEADER + FRAME_MAX) as u32 + 1),
];

#[test]
fn a_buffer_that_is_too_small_or_outside_memory_loses_its_frame_only() {
    let (mut rig, wire) = ready(0);
    // 16 bytes take a header and four more; two buffers take nothing, and are given back without one.
    let buffers =
        [(BUFFERS, 16), (BUFFERS, HEADER_LEN), (MEMORY - 1, 2048), (BUFFERS + 0x1000, HEADER_LEN + 4)];
    for (head, (address, len)) in (0..).zip(buffers) {
        rig.chain(RECEIVE, head, &[(address, len, WRITE)]);
    }
    wire.send(b"lost!").expect("sends");
    wire.send(b"kept").expect("sends");
    rig.notify(RECEIVE);
    assert_eq!((rig.used(RECEIVE), rig.last_len(RECEIVE)), (4, HEADER_LEN + 4));
    assert_eq!([0, 1, 2].map(|nth| rig.answer(RECEIVE, nth).1), [0; 3]);
    for (address, len) in OUT_OF_BOUNDS {
        rig.descriptor(TRANSMIT, 0, address, len, 0, 0);
        rig.offer(TRANSMIT, 0);
        rig.notify(TRANSMIT);
        assert_eq!(sent(&wire), None, "{address:#x} {len}");
    }
    assert_eq!(usize::from(rig.used(TRANSMIT)), OUT_OF_BOUNDS.len());
    assert_eq!(rig.device.device.handle().counts().dropped_frames, 1 + OUT_OF_BOUNDS.len() as u64);
}

#[test]
fn a_large_frame_takes_several_buffers_at_once_and_what_it_does_not_need_goes_back() {
    let (mut rig, wire) = ready(feature::MRG_RXBUF);
    for head in 0..8 {
        rig.chain(RECEIVE, head, &[(BUFFERS + u64::from(head) * 0x400, 100, WRITE)]);
    }
    let frame: Vec<u8> = (0..250).collect();
    wire.send(&frame).expect("sends");
    wire.send(b"small").expect("sends");
    rig.notify(RECEIVE);
    let answers = [0, 1, 2, 3].map(|nth| rig.answer(RECEIVE, nth));
    assert_eq!((rig.used(RECEIVE), answers), (4, [(0, 100), (1, 100), (2, 62), (3, 17)]));
    assert_eq!(rig.bytes(BUFFERS, HEADER), [&[0; 10][..], &[3, 0]].concat());
    let got = [rig.bytes(BUFFERS + 12, 88), rig.bytes(BUFFERS + 0x400, 100), rig.bytes(BUFFERS + 0x800, 62)];
    assert_eq!((got.concat(), rig.bytes(BUFFERS + 0xc00, 17)[10]), (frame, 1));
    // The other four are the guest's still.
    wire.send(&[7; 300]).expect("sends");
    rig.notify(RECEIVE);
    assert_eq!((rig.used(RECEIVE), rig.answer(RECEIVE, 7)), (8, (7, 12)));
}

#[test]
fn with_event_indices_the_guest_hears_as_often_as_it_asked_for() {
    let (mut rig, wire) = ready(feature::MRG_RXBUF | FEATURE_EVENT_INDEX);
    // It wants to hear of the fifth buffer.
    rig.put(driver::table(RECEIVE) + 0x1000 + 4 + 2 * u64::from(SIZE), &[4, 0]);
    for (nth, told) in (0..3_u16).zip([false, false, true]) {
        for head in nth * 4..nth * 4 + 4 {
            rig.chain(RECEIVE, head, &[(BUFFERS + u64::from(head) * 0x400, 100, WRITE)]);
        }
        wire.send(&[1; 150]).expect("sends");
        assert_eq!(rig.notify(RECEIVE).interrupt, told, "{nth}");
    }
    assert_eq!(rig.used(RECEIVE), 6);
}

#[test]
fn a_limit_leaves_frames_in_the_tap() {
    let limit = Limits { operations: Some(Limit { per_second: 50, burst: 0 }), bytes: None };
    let (net, wire) = device(Settings { receive: limit, transmit: limit, ..Settings::default() });
    assert_eq!(net.sources().len(), 4);
    let mut rig = Rig::ready(net, 0);
    let start = std::time::Instant::now();
    for head in 0..3 {
        wire.send(b"frame").expect("sends");
        rig.chain(RECEIVE, head, &[(BUFFERS, 100, WRITE)]);
    }
    rig.notify(RECEIVE);
    assert_eq!(rig.used(RECEIVE), 1);
    while rig.used(RECEIVE) < 3 {
        rig.notify(RECEIVE);
    }
    assert!(start.elapsed().as_millis() >= 40, "{:?}", start.elapsed());
    transmit(&mut rig, b"1");
    transmit(&mut rig, b"2");
    assert_eq!(rig.used(TRANSMIT), 1);
}

#[test]
fn a_chain_that_bites_its_tail_ends() {
    let (mut rig, _wire) = ready(0);
    rig.descriptor(TRANSMIT, 0, BUFFERS, 100, NEXT, 1);
    rig.descriptor(TRANSMIT, 1, BUFFERS, 100, NEXT, 0);
    rig.offer(TRANSMIT, 0);
    rig.notify(TRANSMIT);
    assert_eq!(rig.used(TRANSMIT), 1);
}

#[test]
fn queues_outside_memory_are_refused() {
    let mut rig = Rig::fresh(device(Settings::default()).0);
    rig.set(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
    rig.set(register::STATUS, status::FEATURES_OK);
    rig.set(register::QUEUE_SIZE, u32::from(SIZE));
    rig.set(register::DESC_HIGH, u32::MAX);
    rig.set(register::QUEUE_READY, 1);
    assert!(rig.set(register::STATUS, status::DRIVER_OK).interrupt);
    assert_ne!(rig.get(register::STATUS) & status::NEEDS_RESET, 0);
    rig.set(register::STATUS, 0);
    assert_eq!(rig.get(register::STATUS), 0);
}

/// Unikraft's driver takes all that it knows; OSv's takes nothing of the upper half, not even that the device is a
/// modern one.
#[test]
fn a_driver_gets_what_it_takes_of_what_is_offered() {
    for (lower, upper) in [(u32::MAX, u32::MAX), (feature::MAC as u32, 0)] {
        let mut rig = Rig::fresh(device(Settings::default()).0);
        let offered = rig.offered();
        rig.set(register::STATUS, status::ACKNOWLEDGE | status::DRIVER);
        for (half, value) in [(0, lower), (1, upper)] {
            rig.set(register::DRIVER_FEATURES_SELECT, half);
            rig.set(register::DRIVER_FEATURES, value);
        }
        rig.set(register::STATUS, status::FEATURES_OK);
        assert_ne!(rig.get(register::STATUS) & status::FEATURES_OK, 0);
        let taken = rig.device.save().driver_features;
        assert_eq!(taken, offered & (u64::from(lower) | u64::from(upper) << 32));
    }
}

#[test]
fn its_state_is_these_bytes_and_no_others() {
    assert_eq!(device(Settings::default()).0.save(), [1]);
    state_is_picky(|| device(Settings::default()).0, &[1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn a_hostile_guest_gets_no_further_than_its_own_queue(
        moves in prop::collection::vec(moves(2), 1..60),
        merged in any::<bool>(),
    ) {
        let (mut rig, wire) = ready(if merged { feature::MRG_RXBUF } else { 0 });
        let handle: Handle = rig.device.device.handle();
        for step in moves {
            if let Move::World(len, _) = step {
                // A full wire is the wire's affair.
                let _ = wire.send(&vec![7; len as usize % 3000]);
            }
            rig.suffer(step);
            let mut frames = 0;
            while let Some(frame) = sent(&wire) {
                prop_assert!(!frame.is_empty() && frame.len() <= FRAME_MAX);
                frames += 1;
            }
            prop_assert!(frames <= QUEUE_SIZE_MAX, "{frames} frames in one step");
        }
        let counts = handle.counts();
        prop_assert!(counts.received_bytes <= counts.received_frames * 3000);
        rig.comes_back();
    }
}

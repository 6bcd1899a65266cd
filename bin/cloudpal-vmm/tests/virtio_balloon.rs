//! virtio-balloon: pages that really go, over anonymous memory and over a file; figures; then a hostile driver.
#![allow(unsafe_code)]

mod driver;

use cloudpal_vmm::virtio::{
    Device, GuestMemory,
    balloon::{Backing, Balloon, DEFLATE, FEATURE_DEFLATE_ON_OOM, FEATURE_REPORTING, FEATURE_STATS, INFLATE},
    mmio::register,
};
use driver::{BUFFERS, MEMORY, Move, Rig, SIZE, WRITE, moves, state_is_picky};
use proptest::prelude::*;
use std::{fs::File, os::unix::fs::FileExt};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestRegionMmap, MmapRegion};

const PAGE: u64 = 4096;
/// Pages that are given away, behind all tables and buffers.
const GIVEN: u64 = 0x20_0000;
const ALL: u64 = FEATURE_STATS | FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING;

fn balloon(backing: Backing) -> Balloon {
    Balloon::new(backing).expect("a device")
}

/// Over a snapshot's file, as after a wake: each byte of the file is 0xf1.
fn over_file(features: u64) -> Rig<Balloon> {
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(&vec![0xf1; (MEMORY - GIVEN) as usize], GIVEN).expect("written");
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let region = MmapRegion::build(Some(FileOffset::new(file, 0)), MEMORY as usize, prot, flags);
    let region = GuestRegionMmap::new(region.expect("a mapping"), GuestAddress(0)).expect("a region");
    let memory = GuestMemory::from_regions(vec![region]).expect("memory");
    let mut rig = Rig::over(balloon(Backing::PrivateFile), memory);
    rig.set_up(features, SIZE);
    rig
}

/// Pages of guest memory that this process has in its own memory, by /proc/self/pagemap: bit 63 is "present", bit 61
/// "of a file".
fn own_pages(memory: &GuestMemory, start: u64, count: usize) -> usize {
    let slice = memory.get_slice(GuestAddress(start), count * PAGE as usize).expect("in memory");
    let at = slice.ptr_guard().as_ptr() as u64 / PAGE * 8;
    let mut entries = vec![0; count * 8];
    File::open("/proc/self/pagemap")
        .and_then(|map| map.read_exact_at(&mut entries, at))
        .expect("the page map");
    let (entries, _) = entries.as_chunks::<8>();
    let own = |entry: &&[u8; 8]| u64::from_le_bytes(**entry) >> 61 & 0b101 == 0b100;
    entries.iter().filter(own).count()
}

fn inflate(rig: &mut Rig<Balloon>, numbers: &[u32]) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    rig.put(BUFFERS, &bytes);
    rig.chain(INFLATE, 0, &[(BUFFERS, bytes.len() as u32, 0)]);
    rig.notify(INFLATE);
}

#[test]
fn inflated_pages_leave_the_process_and_read_as_zeros() {
    let anonymous = Rig::ready(balloon(Backing::Anonymous), 0);
    for (mut rig, before) in [(anonymous, 0), (over_file(0), 0xf1)] {
        assert_eq!(rig.bytes(GIVEN, 1), [before]);
        rig.put(GIVEN, &[7; 16 * PAGE as usize]);
        assert_eq!(own_pages(&rig.memory, GIVEN, 16), 16);
        let first = (GIVEN / PAGE) as u32;
        // In no order, twice, and some that are no pages.
        inflate(&mut rig, &[first + 3, first + 1, first + 2, first + 9, first + 9, u32::MAX, 0x400]);
        assert_eq!((rig.used(INFLATE), own_pages(&rig.memory, GIVEN, 16)), (1, 12));
        for (page, byte) in [(0, 7), (1, 0), (2, 0), (3, 0), (4, 7), (8, 7), (9, 0), (10, 7)] {
            assert_eq!(rig.bytes(GIVEN + page * PAGE, 1), [byte], "page {page}");
        }
        assert_eq!(rig.device.device.handle().stats().released_bytes, 4 * PAGE);
        // And back: it is the guest's to touch.
        rig.chain(DEFLATE, 0, &[(BUFFERS, 8, 0)]);
        assert!(rig.notify(DEFLATE).interrupt);
        rig.put(GIVEN + PAGE, &[1]);
        assert_eq!(rig.bytes(GIVEN + PAGE, 2), [1, 0]);
    }
}

#[test]
fn reported_ranges_leave_the_process_but_for_what_is_no_whole_page() {
    for (features, queue) in [(FEATURE_REPORTING, 2), (ALL, 3)] {
        let mut rig = over_file(features);
        rig.put(GIVEN, &[7; 16 * PAGE as usize]);
        rig.chain(
            queue,
            0,
            &[(GIVEN + 100, 3 * PAGE as u32, WRITE), (GIVEN + 8 * PAGE, 2 * PAGE as u32, WRITE)],
        );
        assert!(rig.notify(queue).interrupt);
        assert_eq!(own_pages(&rig.memory, GIVEN, 16), 12);
        assert_eq!((rig.bytes(GIVEN, 1), rig.bytes(GIVEN + 3 * PAGE, 1)), (vec![7], vec![7]));
    }
}

#[test]
fn the_guest_is_told_of_a_target_and_says_how_far_it_is() {
    let mut rig = Rig::ready(balloon(Backing::Anonymous), ALL);
    let handle = rig.device.device.handle();
    assert_eq!((rig.get(register::KIND), rig.device.device.sources().len()), (5, 1));
    handle.set_target_mib(3);
    assert_eq!(rig.config::<4>(0), [0; 4]);
    assert!(rig.notify(INFLATE).interrupt);
    assert_eq!((rig.get(register::INTERRUPT_STATUS), u32::from_le_bytes(rig.config(0))), (2, 768));
    rig.set(register::CONFIG + 4, 700);
    assert_eq!((u32::from_le_bytes(rig.config(4)), handle.stats().balloon_bytes), (700, 700 * PAGE));
    assert!(!rig.notify(INFLATE).interrupt, "once");
    let rig = rig.restored(balloon(Backing::PrivateFile));
    assert_eq!((u32::from_le_bytes(rig.config(0)), u32::from_le_bytes(rig.config(4))), (768, 700));
}

#[test]
fn figures_come_when_they_are_wanted() {
    let mut rig = Rig::ready(balloon(Backing::Anonymous), FEATURE_STATS);
    let handle = rig.device.device.handle();
    let figures =
        |free: u64| [&[4, 0], &free.to_le_bytes()[..], &[5, 0], &[0, 0, 16, 0, 0, 0, 0, 0]].concat();
    rig.put(BUFFERS, &figures(1000));
    rig.chain(2, 0, &[(BUFFERS, 20, 0)]);
    rig.notify(2);
    let stats = handle.stats();
    assert_eq!(
        (stats.free_bytes, stats.total_bytes, stats.available_bytes),
        (Some(1000), Some(1 << 20), None)
    );
    assert_eq!((stats.answers, rig.used(2)), (1, 0), "the buffer stays");
    handle.ask_stats();
    assert!(rig.notify(INFLATE).interrupt);
    assert_eq!(rig.used(2), 1);
    rig.put(BUFFERS, &figures(2000));
    rig.offer(2, 0);
    rig.notify(2);
    assert_eq!((handle.stats().free_bytes, rig.used(2)), (Some(2000), 1));
}

#[test]
fn its_state_is_these_bytes_and_no_others() {
    let good = [1, 0, 3, 0, 0, 188, 2, 0, 0];
    let mut device = balloon(Backing::Anonymous);
    device.restore(&good).expect("a state");
    assert_eq!(device.save(), good);
    state_is_picky(|| balloon(Backing::Anonymous), &good);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn a_hostile_driver_loses_nothing_but_its_own_pages(
        moves in prop::collection::vec(moves(4), 1..60),
        file in any::<bool>(),
    ) {
        let mut rig = if file { over_file(ALL) } else { Rig::ready(balloon(Backing::Anonymous), ALL) };
        let handle = rig.device.device.handle();
        for step in moves {
            if let Move::World(what, which) = step {
                match what % 4 {
                    0 => handle.set_target_mib(which),
                    1 => handle.ask_stats(),
                    2 => inflate(&mut rig, &[which, which % 1024, which % 1024 + 1, u32::MAX]),
                    _ => rig.chain(3, 0, &[(u64::from(which) % MEMORY, which, WRITE)]),
                }
                for queue in 0..4 {
                    rig.notify(queue);
                }
            }
            rig.suffer(step);
        }
        rig.comes_back();
        // All of its memory is still there.
        prop_assert_eq!(rig.bytes(0, MEMORY as usize).len() as u64, MEMORY);
    }
}

//! virtio-blk: bytes, bounds, flushes, holes, a disk that fails, limits; then a hostile driver.

mod driver;

use cloudpal_vmm::virtio::{
    Device,
    blk::{BYTES_PER_CALL, Blk},
    hold::Hold,
    mmio::{FEATURE_EVENT_INDEX, register},
    rate::{Limit, Limiter, Limits},
};
use driver::{BUFFERS, Move, Rig, WRITE, moves, state_is_picky, table};
use proptest::prelude::*;
use std::{
    fs::File,
    os::unix::fs::{FileExt, MetadataExt},
};

const SECTORS: u64 = 1024;
const FLUSH: u64 = 1 << 9;
const IN: u32 = 0;
const OUT: u32 = 1;
const DO_FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x800;
const DATA: u64 = BUFFERS + 0x1000;

fn disk() -> File {
    let file = tempfile::tempfile().expect("a file");
    let bytes: Vec<u8> = (0..SECTORS * 512).map(|at| (at / 512) as u8).collect();
    file.write_all_at(&bytes, 0).expect("written");
    file
}

fn blk(file: &File, read_only: bool) -> Blk {
    let file = file.try_clone().expect("a descriptor");
    Blk::new(file, "disk", read_only, Limiter::none()).expect("a disk")
}

/// Asks, and returns the status and how many bytes the device says that it wrote.
fn ask(rig: &mut Rig<Blk>, request: u32, sector: u64, parts: &[(u64, u32, u16)]) -> (u8, u32) {
    let before = rig.used(0);
    rig.put(HEADER, &[&request.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
    rig.put(STATUS, &[0xee]);
    let chain = [&[(HEADER, 16, 0)], parts, &[(STATUS, 1, WRITE)]].concat();
    rig.chain(0, 0, &chain);
    rig.drain(0);
    assert_eq!(rig.used(0), before + 1, "one answer to request {request}");
    (rig.bytes(STATUS, 1)[0], rig.last_len(0))
}

#[test]
fn it_says_what_it_is() {
    let file = disk();
    for (read_only, features) in [(false, 0x6244), (true, 0x264)] {
        let mut rig = Rig::fresh(blk(&file, read_only));
        assert_eq!(rig.offered(), features | FEATURE_EVENT_INDEX | 1 << 32);
        assert_eq!((rig.get(register::KIND), u64::from_le_bytes(rig.config(0))), (2, SECTORS));
        assert_eq!(u32::from_le_bytes(rig.config(20)), 512);
    }
}

#[test]
fn bytes_come_and_go_in_pieces() {
    let file = disk();
    let mut rig = Rig::ready(blk(&file, false), FLUSH);
    assert_eq!(ask(&mut rig, IN, 7, &[(DATA, 100, WRITE), (DATA + 0x1000, 924, WRITE)]), (0, 1025));
    assert_eq!((rig.bytes(DATA, 100), rig.bytes(DATA + 0x1000, 412)), (vec![7; 100], vec![7; 412]));
    assert_eq!(rig.bytes(DATA + 0x1000 + 412, 512), vec![8; 512]);
    rig.put(DATA, &[0xaa; 512]);
    assert_eq!(ask(&mut rig, OUT, 9, &[(DATA, 500, 0), (DATA + 500, 12, 0)]), (0, 1));
    assert_eq!(ask(&mut rig, DO_FLUSH, 0, &[]), (0, 1));
    let mut bytes = [0; 1536];
    file.read_exact_at(&mut bytes, 8 * 512).expect("a disk");
    assert_eq!((bytes[511], bytes[512], bytes[1023], bytes[1024]), (8, 0xaa, 0xaa, 10));
    assert_eq!(
        (ask(&mut rig, GET_ID, 0, &[(DATA, 20, WRITE)]), rig.bytes(DATA, 5)),
        ((0, 21), b"disk\0".to_vec())
    );
}

#[test]
fn what_is_not_on_the_disk_or_not_allowed_is_an_error_and_no_more() {
    let file = disk();
    let mut rig = Rig::ready(blk(&file, false), FLUSH);
    for sector in [SECTORS, SECTORS - 1, u64::MAX, u64::MAX / 512, 1 << 55] {
        for (request, flag) in [(IN, WRITE), (OUT, 0)] {
            assert_eq!(ask(&mut rig, request, sector, &[(DATA, 1024, flag)]).0, 1, "{request} {sector:#x}");
        }
    }
    assert_eq!(ask(&mut rig, IN, 0, &[(DATA, 100, WRITE)]).0, 1, "half a sector");
    assert_eq!(ask(&mut rig, 77, 0, &[]).0, 2);
    assert_eq!(file.metadata().expect("a file").len(), SECTORS * 512);
    let mut rig = Rig::ready(blk(&file, true), FLUSH);
    assert_eq!(ask(&mut rig, OUT, 0, &[(DATA, 512, 0)]).0, 1);
    assert_eq!(ask(&mut rig, DISCARD, 0, &[(DATA, 16, 0)]).0, 2);
    assert_eq!((ask(&mut rig, DO_FLUSH, 0, &[]).0, ask(&mut rig, IN, 1, &[(DATA, 512, WRITE)]).0), (0, 0));
}

#[test]
fn a_disk_that_fails_does_not_stop_the_guest() {
    // One that is shorter than it was.
    let file = disk();
    let mut rig = Rig::ready(blk(&file, false), FLUSH);
    file.set_len(512).expect("cut");
    assert_eq!(ask(&mut rig, IN, 1, &[(DATA, 512, WRITE)]).0, 1);
    assert_eq!(ask(&mut rig, IN, 0, &[(DATA, 512, WRITE)]).0, 0);
    assert_eq!(rig.device.device.faults, 1);
    // Opened for reading, and called writable all the same.
    let named = tempfile::NamedTempFile::new().expect("a file");
    named.as_file().set_len(4096).expect("a length");
    let reading = File::open(named.path()).expect("a file");
    let mut rig = Rig::ready(Blk::new(reading, "", false, Limiter::none()).expect("a disk"), FLUSH);
    assert_eq!(ask(&mut rig, OUT, 0, &[(DATA, 512, 0)]).0, 1);
    assert_eq!(ask(&mut rig, DISCARD, 0, &[(DATA, 16, 0)]).0, 0, "no range is no work");
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &count.to_le_bytes(), &flags.to_le_bytes()].concat()
}

#[test]
fn discarded_and_zeroed_sectors_are_holes_and_zeros() {
    let file = disk();
    let mut rig = Rig::ready(blk(&file, false), FLUSH);
    let blocks = || file.metadata().expect("a file").blocks();
    let before = blocks();
    rig.put(DATA, &[range(0, 64, 0), range(128, 64, 0)].concat());
    assert_eq!(ask(&mut rig, DISCARD, 0, &[(DATA, 32, 0)]).0, 0);
    assert!(blocks() <= before - 128, "{} of {before} blocks", blocks());
    for (flags, at) in [(0, 300), (1, 400)] {
        rig.put(DATA, &range(at, 3, flags));
        assert_eq!(ask(&mut rig, WRITE_ZEROES, 0, &[(DATA, 16, 0)]).0, 0);
        let mut bytes = [1; 512 * 5];
        file.read_exact_at(&mut bytes, (at - 1) * 512).expect("a disk");
        assert_eq!(bytes[512..2048], [0; 1536]);
        assert_eq!((bytes[511], bytes[2048]), ((at - 1) as u8, (at + 3) as u8));
    }
    assert_eq!(file.metadata().expect("a file").len(), SECTORS * 512);
    for (bytes, status) in [
        (range(SECTORS - 1, 2, 0), 1),
        (range(u64::MAX, 1, 0), 1),
        (range(0, 1, 2), 2),
        (range(0, u32::MAX, 0), 1),
        (vec![0; 15], 1),
        (vec![0; 16 * 17], 1),
        (Vec::new(), 1),
    ] {
        rig.put(DATA, &bytes);
        let parts = [(DATA, bytes.len() as u32, 0)];
        assert_eq!(ask(&mut rig, WRITE_ZEROES, 0, &parts).0, status, "{bytes:?}");
    }
}

#[test]
fn one_call_moves_a_bounded_number_of_bytes_and_a_wake_goes_on_in_the_middle() {
    let file = tempfile::tempfile().expect("a file");
    file.set_len(1 << 30).expect("a length");
    let mut rig = Rig::ready(blk(&file, false), FLUSH);
    rig.put(HEADER, &[&OUT.to_le_bytes()[..], &[0; 12]].concat());
    rig.put(DATA, &[0x5a; 4096]);
    // The same two MiB, as often as a chain has room: 28 MiB.
    let mut parts = vec![(HEADER, 16, 0)];
    parts.extend([(DATA, 2 << 20, 0); 14]);
    parts.push((STATUS, 1, WRITE));
    rig.chain(0, 0, &parts);
    assert!(rig.notify(0).more);
    assert_eq!(rig.used(0), 0);
    let state = rig.device.save().device;
    assert_eq!(state[10..], (BYTES_PER_CALL as u64).to_le_bytes());
    let rig = rig.restored(blk(&file, false));
    assert_eq!((rig.used(0), rig.bytes(STATUS, 1)), (1, vec![0]));
    let mut page = [0; 4096];
    for at in 0..14 {
        file.read_exact_at(&mut page, at * (2 << 20)).expect("a disk");
        assert_eq!(page, [0x5a; 4096], "{at}");
    }
    file.read_exact_at(&mut page, 28 << 20).expect("a disk");
    assert_eq!(page, [0; 4096]);
}

#[test]
fn a_limit_holds_requests_back_until_its_timer_rings() {
    let limits = Limits { bytes: Some(Limit { per_second: 100_000, burst: 1000 }), operations: None };
    let file = disk();
    let limiter = Limiter::new(limits).expect("a timer");
    let device = Blk::new(file.try_clone().expect("a descriptor"), "", false, limiter).expect("a disk");
    assert_eq!(device.sources().len(), 1);
    let mut rig = Rig::ready(device, FLUSH);
    rig.put(HEADER, &[0; 16]);
    let start = std::time::Instant::now();
    for head in [0, 3, 6] {
        rig.chain(0, head, &[(HEADER, 16, 0), (DATA, 4096, WRITE), (STATUS, 1, WRITE)]);
    }
    rig.notify(0);
    assert_eq!(rig.used(0), 1, "the burst is one request");
    while rig.used(0) < 3 {
        rig.notify(0);
    }
    // 8 KiB, less the burst, at 100 kB/s.
    assert!(start.elapsed().as_millis() >= 70, "{:?}", start.elapsed());
}

#[test]
fn a_held_disk_is_read_and_does_not_change_before_its_release() {
    let (file, hold) = (disk(), Hold::new(true).expect("an event"));
    let device = blk(&file, false).held_by(hold.clone());
    assert_eq!(device.sources().len(), 1, "the release is heard");
    let mut rig = Rig::ready(device, FLUSH);
    assert_eq!(ask(&mut rig, IN, 7, &[(DATA, 512, WRITE)]).0, 0);
    assert_eq!(ask(&mut rig, DO_FLUSH, 0, &[]).0, 0, "there is nothing yet that it could make durable");
    let on_disk = || {
        let mut bytes = [0; 1024];
        file.read_exact_at(&mut bytes, 9 * 512).expect("a disk");
        (bytes[0], bytes[512])
    };
    let before = rig.used(0);
    for (head, request, sector) in [(0_u64, OUT, 9_u64), (3, WRITE_ZEROES, 0), (6, IN, 9)] {
        rig.put(HEADER + 32 * head, &[&request.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        let flag = if request == IN { WRITE } else { 0 };
        let (data, len) = if request == WRITE_ZEROES { (DATA + 0x2000, 16) } else { (DATA, 512) };
        let status = (STATUS + head, 1, WRITE);
        rig.chain(0, head as u16, &[(HEADER + 32 * head, 16, 0), (data, len, flag), status]);
    }
    rig.put(STATUS, &[0xee; 7]);
    rig.put(DATA, &[0xaa; 512]);
    rig.put(DATA + 0x2000, &range(10, 1, 0));
    for _ in 0..3 {
        let work = rig.notify(0);
        assert!(!work.more, "it waits without being asked again and again");
    }
    assert_eq!((rig.used(0), on_disk()), (before, (9, 10)));
    hold.release();
    rig.drain(0);
    assert_eq!((rig.used(0), on_disk()), (before + 3, (0xaa, 0)));
    assert_eq!([0, 3, 6].map(|head| rig.bytes(STATUS + head, 1)[0]), [0; 3]);
}

#[test]
fn its_state_is_these_bytes_and_no_others() {
    let file = disk();
    let good = [&[1, 0], &SECTORS.to_le_bytes()[..], &[0; 8]].concat();
    assert_eq!(blk(&file, false).save(), good);
    state_is_picky(|| blk(&file, false), &good);
    assert!(blk(&file, true).restore(&good).is_err(), "it was writable");
    file.set_len((SECTORS + 1) * 512).expect("longer");
    assert!(blk(&file, false).restore(&good).is_err(), "it has another size");
}

#[test]
fn with_event_indices_the_guest_hears_as_often_as_it_asked_for() {
    let file = disk();
    let mut rig = Rig::ready(blk(&file, false), FLUSH | FEATURE_EVENT_INDEX);
    rig.put(HEADER, &[0; 16]);
    // It wants to hear of the third.
    rig.put(table(0) + 0x1000 + 4 + 2 * u64::from(driver::SIZE), &[2, 0]);
    for nth in 0..4_u16 {
        rig.chain(0, nth * 3, &[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
        assert_eq!(rig.notify(0).interrupt, nth == 2, "{nth}");
        let told = rig.u16(table(0) + 0x2000 + 4 + 8 * u64::from(driver::SIZE));
        assert_eq!(told, nth + 1, "from where on it wants to be notified");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]
    #[test]
    fn a_hostile_driver_gets_no_further_than_its_own_disk(
        moves in prop::collection::vec(moves(1), 1..60),
        read_only in any::<bool>(),
    ) {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(SECTORS * 512).expect("a length");
        let mut rig = Rig::ready(blk(&file, read_only), 0);
        for step in moves {
            if let Move::World(what, which) = step {
                // What a good driver would ask, with a foot put wrong here and there.
                let request = [IN, OUT, DO_FLUSH, GET_ID, DISCARD, WRITE_ZEROES][what as usize % 6];
                let sector = u64::from(which % 2048);
                rig.put(HEADER, &[&request.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
                rig.chain(0, 0, &[(HEADER, 16, 0), (DATA, which >> 16, (what >> 8) as u16 & 7), (STATUS, 1, WRITE)]);
                rig.notify(0);
            }
            rig.suffer(step);
            prop_assert_eq!(file.metadata().expect("a file").len(), SECTORS * 512);
            if read_only {
                prop_assert_eq!(file.metadata().expect("a file").blocks(), 0);
            }
        }
        rig.comes_back();
    }
}

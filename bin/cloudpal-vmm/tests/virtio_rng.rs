//! virtio-rng: fresh bytes, as many as there is room for, and no more than its rate; then a hostile driver.

mod driver;

use cloudpal_vmm::virtio::{Device, mmio::register, rng::Rng};
use driver::{BUFFERS, Move, Rig, WRITE, moves, state_is_picky};
use proptest::prelude::*;

fn rng() -> Rng {
    Rng::new().expect("a device")
}

#[test]
fn each_request_is_filled_with_other_bytes() {
    let mut rig = Rig::ready(rng(), 0);
    assert_eq!(rig.get(register::KIND), 4);
    rig.chain(0, 0, &[(BUFFERS, 20, WRITE), (BUFFERS + 0x100, 44, WRITE)]);
    rig.chain(0, 2, &[(BUFFERS + 0x200, 64, WRITE)]);
    assert!(rig.notify(0).interrupt);
    assert_eq!((rig.answer(0, 0).1, rig.answer(0, 1).1), (64, 64));
    let (a, b, c) = (rig.bytes(BUFFERS, 20), rig.bytes(BUFFERS + 0x100, 44), rig.bytes(BUFFERS + 0x200, 64));
    assert!(a != [0; 20] && b[24..] != [0; 20] && a != c[..20] && b != c[20..]);
    assert_eq!(rig.bytes(BUFFERS + 20, 1), [0], "not one byte beyond");
}

#[test]
fn two_clones_get_different_bytes() {
    let mut first = Rig::ready(rng(), 0);
    let take = |rig: &mut Rig<Rng>| {
        rig.chain(0, 0, &[(BUFFERS, 32, WRITE)]);
        rig.notify(0);
        rig.bytes(BUFFERS, 32)
    };
    take(&mut first);
    let (mut a, mut b) = (first.restored(rng()), first.restored(rng()));
    assert_ne!(take(&mut a), take(&mut b));
}

#[test]
fn a_greedy_guest_waits_for_the_timer() {
    let mut rig = Rig::ready(rng(), 0);
    for _ in 0..64 {
        rig.chain(0, 0, &[(BUFFERS, 1 << 20, WRITE)]);
        rig.notify(0);
    }
    let used = rig.used(0);
    assert!((16..24).contains(&used), "{used} answers of 4 KiB");
    assert_eq!((rig.device.device.sources().len(), rig.last_len(0)), (1, 4096));
}

#[test]
fn its_state_is_these_bytes_and_no_others() {
    assert_eq!(rng().save(), [1]);
    state_is_picky(rng, &[1]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn a_hostile_driver_gets_no_further_than_its_own_queue(moves in prop::collection::vec(moves(1), 1..60)) {
        let mut rig = Rig::ready(rng(), 0);
        for step in moves {
            if let Move::World(len, flags) = step {
                rig.chain(0, 0, &[(BUFFERS, len, flags as u16 & 7)]);
                rig.notify(0);
            }
            rig.suffer(step);
        }
        rig.comes_back();
    }
}

//! virtio-balloon: whatever a guest gives away, its memory can still be read.

use crate::{
    driver::{BUFFERS, MEMORY, Rig, WRITE},
    program::{Bytes, Turn, run},
};
use cloudpal_vmm::virtio::balloon::{
    Backing, Balloon, FEATURE_DEFLATE_ON_OOM, FEATURE_REPORTING, FEATURE_STATS, INFLATE,
};

const ALL: u64 = FEATURE_STATS | FEATURE_DEFLATE_ON_OOM | FEATURE_REPORTING;

pub fn digest(input: &[u8]) {
    let balloon = Balloon::new(Backing::Anonymous).expect("a device");
    let handle = balloon.handle();
    let mut rig = Rig::ready(balloon, ALL);
    run(&mut rig, &mut Bytes(input), |rig, turn| {
        let Turn::World(what, which) = turn else { return };
        match what % 4 {
            0 => handle.set_target_mib(which),
            1 => handle.ask_stats(),
            2 => {
                let numbers =
                    [which, which % 1024, which % 1024 + 1, u32::MAX].map(u32::to_le_bytes).concat();
                rig.put(BUFFERS, &numbers);
                rig.chain(INFLATE, 0, &[(BUFFERS, numbers.len() as u32, 0)]);
            }
            _ => rig.chain(3, 0, &[(u64::from(which) % MEMORY, which, WRITE)]),
        }
        for queue in 0..4 {
            rig.notify(queue);
        }
    });
    assert_eq!(rig.bytes(BUFFERS, 4096).len(), 4096);
}

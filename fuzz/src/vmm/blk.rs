//! virtio-blk, over a file in memory: it never grows, and one that is only read never changes.

use crate::{
    driver::{BUFFERS, Rig, WRITE},
    program::{Bytes, Turn, run},
};
use cloudpal_vmm::virtio::{blk::Blk, rate::Limiter};
use std::os::unix::fs::MetadataExt;

const LEN: u64 = 1024 * 512;
const HEADER: u64 = BUFFERS;
const STATUS: u64 = BUFFERS + 0x800;
const DATA: u64 = BUFFERS + 0x1000;
/// In, out, flush, get an id, discard, write zeroes.
const REQUESTS: [u32; 6] = [0, 1, 4, 8, 11, 13];

pub fn digest(input: &[u8]) {
    let mut program = Bytes(input);
    let flags = program.u8();
    let read_only = flags & 1 != 0;
    let file = super::file(LEN);
    let disk = file.try_clone().expect("a descriptor");
    let blk = Blk::new(disk, "disk", read_only, Limiter::none()).expect("a disk");
    let mut rig = Rig::ready(blk, 0);
    run(&mut rig, &mut program, |rig, turn| match turn {
        // What a good driver would ask, with a foot put wrong here and there.
        Turn::World(what, which) => {
            let request = REQUESTS[what as usize % REQUESTS.len()];
            let sector = u64::from(which % 2048);
            rig.put(HEADER, &[&request.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
            let data = (DATA, which >> 16, (what >> 8) as u16 & 7);
            rig.chain(0, 0, &[(HEADER, 16, 0), data, (STATUS, 1, WRITE)]);
            rig.notify(0);
        }
        Turn::After => {
            let found = file.metadata().expect("a file");
            assert_eq!(found.len(), LEN);
            assert!(!read_only || found.blocks() == 0, "what is read only was written");
        }
    });
}

//! A sleeping machine's files. Their checksums are put right first: nobody who means harm leaves them wrong.

use crate::driver::MEMORY;
use cloudpal_vmm::{
    memory::Memory,
    snapshot::diff,
    state::{MAGIC, State},
    virtio::{
        Device, GuestMemory,
        balloon::{Backing, Balloon},
        mmio::{Transport, TransportState},
        rng::Rng,
    },
};
use std::os::unix::fs::FileExt;
use vm_memory::GuestAddress;

const STATE_HEADER: usize = 24;

pub fn state(input: &[u8]) {
    let _ = State::decode(input);
    let mut file = input.to_vec();
    if file.len() < STATE_HEADER {
        return;
    }
    let body = [file.len() as u32 - STATE_HEADER as u32, crc32c::crc32c(&file[STATE_HEADER..])];
    file[..8].copy_from_slice(&MAGIC);
    file[12..20].copy_from_slice(&body.map(u32::to_le_bytes).concat());
    let Ok(state) = State::decode(&file) else { return };
    if file[8] == 2 {
        assert_eq!(state.encode(), file, "another file means the same");
    }
    for device in &state.devices {
        wake(Rng::new().expect("a device"), device);
        wake(Balloon::new(Backing::Anonymous).expect("a device"), device);
    }
}

fn wake(device: impl Device, state: &TransportState) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory");
    let mut device = Transport::new(device);
    let state = TransportState { kind: device.device.kind(), ..state.clone() };
    if device.restore(&state, &memory).is_ok() {
        for queue in 0..device.queue_count() {
            device.work(queue, &memory);
        }
    }
}

const DIFF_HEADER: usize = 64;

pub fn diff(input: &[u8]) {
    let mut bytes = input.to_vec();
    if let (Some(count), true) = (bytes.get(12), bytes.len() >= DIFF_HEADER) {
        let table = DIFF_HEADER + usize::from(*count) * 16;
        let data = table.next_multiple_of(4096);
        let checksum = crc32c::crc32c(bytes.get(DIFF_HEADER..table).unwrap_or_default());
        let checksum = crc32c::crc32c_append(checksum, bytes.get(data..).unwrap_or_default());
        bytes[48..52].copy_from_slice(&checksum.to_le_bytes());
    }
    let file = super::file(0);
    file.write_all_at(&bytes, 0).expect("written");
    let memory = Memory::reserve(4).expect("memory");
    let _ = diff::apply(&file, &memory);
}

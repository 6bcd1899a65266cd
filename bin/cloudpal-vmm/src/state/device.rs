//! A virtio device's state as bytes: its registers, its queues, and behind them what the device itself keeps.

use crate::virtio::mmio::TransportState;
use virtio_queue::QueueState;

const REGISTERS: usize = 40;
const QUEUE: usize = 36;
/// More queues than any device has.
const QUEUES_MAX: usize = 64;

pub(super) fn encode(state: &TransportState) -> Vec<u8> {
    let words = [
        state.kind,
        state.status,
        state.device_features_select,
        state.driver_features_select,
        state.queue_select,
        state.interrupt_status,
        state.generation,
        state.queues.len() as u32,
    ];
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.extend(state.driver_features.to_le_bytes());
    for queue in &state.queues {
        let sizes = [queue.max_size, queue.size, queue.next_avail, queue.next_used];
        bytes.extend(sizes.into_iter().flat_map(u16::to_le_bytes));
        bytes.extend([u8::from(queue.ready), u8::from(queue.event_idx_enabled), 0, 0]);
        bytes.extend(
            [queue.desc_table, queue.avail_ring, queue.used_ring].into_iter().flat_map(u64::to_le_bytes),
        );
    }
    bytes.extend_from_slice(&state.device);
    bytes
}

pub(super) fn decode(bytes: &[u8]) -> Option<TransportState> {
    let (registers, rest) = bytes.split_first_chunk::<REGISTERS>()?;
    let word = |at: usize| crate::elf::u32_at(registers, at * 4);
    let count = usize::try_from(word(7)).ok().filter(|count| *count <= QUEUES_MAX)?;
    let (queues, device) = rest.split_at_checked(count * QUEUE)?;
    let queues = queues.chunks_exact(QUEUE).map(queue).collect::<Option<Vec<_>>>()?;
    Some(TransportState {
        kind: word(0),
        status: word(1),
        device_features_select: word(2),
        driver_features_select: word(3),
        queue_select: word(4),
        interrupt_status: word(5),
        generation: word(6),
        driver_features: crate::elf::u64_at(registers, 32),
        queues,
        device: device.to_vec(),
    })
}

fn queue(bytes: &[u8]) -> Option<QueueState> {
    let flag = |at: usize| match bytes[at] {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    };
    let (half, long) = (|at| crate::elf::u16_at(bytes, at), |at| crate::elf::u64_at(bytes, at));
    if bytes[10..12] != [0, 0] {
        return None;
    }
    Some(QueueState {
        max_size: half(0),
        size: half(2),
        next_avail: half(4),
        next_used: half(6),
        ready: flag(8)?,
        event_idx_enabled: flag(9)?,
        desc_table: long(12),
        avail_ring: long(20),
        used_ring: long(28),
    })
}

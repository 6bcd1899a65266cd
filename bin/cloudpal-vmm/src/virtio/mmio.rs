//! The virtio-mmio transport (virtio 1.2, section 4.2): one device's page of registers.
//!
//! ```text
//!  0 ─ACKNOWLEDGE─ DRIVER ──features──► FEATURES_OK ──queues──► DRIVER_OK ──work──┐
//!  ▲                                                                │ ◄───────────┘
//!  └──────────── status := 0 ◄── NEEDS_RESET ◄── a broken queue ────┘
//! ```
//! Each register is writable only in its own phase; a write in another is swallowed. So nothing of a queue can change
//! while the device looks at it.

use super::{Device, GuestMemory, Mismatch, Work};
use virtio_queue::{Queue, QueueState, QueueT};

pub const QUEUE_SIZE_MAX: u16 = 256;
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
const VENDOR: u32 = 0;
/// Offered by a device that likes it; the transport then sets the queues accordingly.
pub const FEATURE_EVENT_INDEX: u64 = 1 << 29;
const FEATURE_VERSION_1: u64 = 1 << 32;

/// Register offsets.
pub mod register {
    pub const MAGIC: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const KIND: u64 = 0x008;
    pub const VENDOR: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SELECT: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x024;
    pub const QUEUE_SELECT: u64 = 0x030;
    pub const QUEUE_SIZE_MAX: u64 = 0x034;
    pub const QUEUE_SIZE: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const DESC_LOW: u64 = 0x080;
    pub const DESC_HIGH: u64 = 0x084;
    pub const AVAIL_LOW: u64 = 0x090;
    pub const AVAIL_HIGH: u64 = 0x094;
    pub const USED_LOW: u64 = 0x0a0;
    pub const USED_HIGH: u64 = 0x0a4;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// Bits of the status register.
pub mod status {
    pub const ACKNOWLEDGE: u32 = 1;
    pub const DRIVER: u32 = 2;
    pub const DRIVER_OK: u32 = 4;
    pub const FEATURES_OK: u32 = 8;
    pub const NEEDS_RESET: u32 = 64;
    pub const FAILED: u32 = 128;
}

const USED_RING: u32 = 1;
const CONFIG_CHANGED: u32 = 2;

pub struct Transport<D> {
    pub device: D,
    queues: Vec<Queue>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    interrupt_status: u32,
    generation: u32,
}

impl<D: Device> Transport<D> {
    pub fn new(device: D) -> Transport<D> {
        Transport {
            queues: fresh_queues(&device),
            device,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            interrupt_status: 0,
            generation: 0,
        }
    }

    fn reset(&mut self) {
        self.queues = fresh_queues(&self.device);
        (self.status, self.interrupt_status, self.queue_select) = (0, 0, 0);
        (self.driver_features, self.device_features_select, self.driver_features_select) = (0, 0, 0);
        self.device.reset();
    }

    fn offered(&self) -> u64 {
        self.device.features() | FEATURE_VERSION_1
    }

    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// What the guest reads at that offset of the device's page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            self.device.read_config(at, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.register(offset).to_le_bytes();
        }
    }

    fn register(&self, offset: u64) -> u32 {
        let queue = self.queues.get(self.queue_select as usize);
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::KIND => self.device.kind(),
            register::VENDOR => VENDOR,
            register::DEVICE_FEATURES => half(self.offered(), self.device_features_select),
            register::QUEUE_SIZE_MAX => queue.map_or(0, |queue| u32::from(queue.max_size())),
            register::QUEUE_READY => queue.map_or(0, |queue| u32::from(queue.ready())),
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => self.status,
            register::CONFIG_GENERATION => self.generation,
            _ => 0,
        }
    }

    /// What the guest writes. The caller raises the interrupt line when that is asked for, and has all queues looked at
    /// when there is `more`.
    pub fn write(&mut self, offset: u64, data: &[u8], memory: &GuestMemory) -> Work {
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            if self.is(status::DRIVER, status::NEEDS_RESET | status::FAILED) {
                self.device.write_config(at, data);
            }
            return Work::default();
        }
        let Ok(value) = data.try_into().map(u32::from_le_bytes) else { return Work::default() };
        match offset {
            register::STATUS => return self.set_status(value, memory),
            register::QUEUE_NOTIFY => return self.work(value as usize, memory),
            register::INTERRUPT_ACK => self.interrupt_status &= !value,
            register::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            register::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            register::QUEUE_SELECT => self.queue_select = value,
            register::DRIVER_FEATURES if self.is(status::DRIVER, status::FEATURES_OK) => {
                let shift = if self.driver_features_select == 0 { 0 } else { 32 };
                if self.driver_features_select < 2 {
                    let kept = self.driver_features & !(u64::from(u32::MAX) << shift);
                    self.driver_features = kept | u64::from(value) << shift;
                }
            }
            _ if self.is(status::FEATURES_OK, status::DRIVER_OK) => self.set_queue(offset, value),
            _ => {}
        }
        Work::default()
    }

    /// These bits set, and those not.
    fn is(&self, set: u32, unset: u32) -> bool {
        self.status & (set | unset) == set
    }

    fn set_queue(&mut self, offset: u64, value: u32) {
        let Some(queue) = self.queues.get_mut(self.queue_select as usize) else { return };
        if offset == register::QUEUE_READY {
            return queue.set_ready(value == 1);
        }
        if queue.ready() {
            return;
        }
        match offset {
            register::QUEUE_SIZE => queue.set_size(u16::try_from(value).unwrap_or(0)),
            register::DESC_LOW => queue.set_desc_table_address(Some(value), None),
            register::DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            register::AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            register::AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            register::USED_LOW => queue.set_used_ring_address(Some(value), None),
            register::USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32, memory: &GuestMemory) -> Work {
        if value == 0 {
            self.reset();
            return Work::default();
        }
        let known =
            status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK | status::FAILED;
        let fresh = value & known & !self.status;
        let before = self.status;
        self.status |= fresh & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if fresh & status::FEATURES_OK != 0 && before & status::DRIVER != 0 {
            // As Firecracker does it, and what runs there relies on that: OSv does not take FEATURE_VERSION_1, though
            // it must, and there is no other version here; Unikraft takes what was not offered, and does not use it.
            self.driver_features &= self.offered();
            self.status |= status::FEATURES_OK;
        }
        if fresh & status::DRIVER_OK == 0 || before & status::FEATURES_OK == 0 {
            return Work::default();
        }
        if self.queues.iter().any(|queue| queue.ready() && !queue.is_valid(memory)) {
            return self.broken();
        }
        self.status |= status::DRIVER_OK;
        self.activate();
        Work { more: true, ..Work::default() }
    }

    fn activate(&mut self) {
        let event_index = self.driver_features & FEATURE_EVENT_INDEX != 0;
        self.queues.iter_mut().for_each(|queue| queue.set_event_idx(event_index));
        self.device.activate(self.driver_features);
    }

    /// Has the device look at that queue: the guest notified, or there is something for it.
    pub fn work(&mut self, queue: usize, memory: &GuestMemory) -> Work {
        let ready = self.queues.get(queue).is_some_and(QueueT::ready);
        if !ready || !self.is(status::DRIVER_OK, status::NEEDS_RESET | status::FAILED) {
            return Work::default();
        }
        match self.device.work(queue, &mut self.queues, memory) {
            Ok(work) => {
                if work.interrupt {
                    self.interrupt_status |= USED_RING;
                }
                if work.config {
                    self.interrupt_status |= CONFIG_CHANGED;
                    self.generation = self.generation.wrapping_add(1);
                }
                Work { interrupt: work.interrupt || work.config, ..work }
            }
            Err(super::Broken) => self.broken(),
        }
    }

    /// The driver is told that only a reset helps.
    pub fn is_broken(&self) -> bool {
        self.status & status::NEEDS_RESET != 0
    }

    /// The guest was told of something and has not acknowledged it.
    pub fn interrupt_pending(&self) -> bool {
        self.interrupt_status != 0
    }

    pub fn save(&self) -> TransportState {
        TransportState {
            kind: self.device.kind(),
            status: self.status,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            queue_select: self.queue_select,
            interrupt_status: self.interrupt_status,
            generation: self.generation,
            queues: self.queues.iter().map(Queue::state).collect(),
            device: self.device.save(),
        }
    }

    /// Puts saved state into a device that is new. Everything in it is foreign.
    pub fn restore(&mut self, state: &TransportState, memory: &GuestMemory) -> Result<(), Mismatch> {
        if state.kind != self.device.kind() {
            return Err(Mismatch("it is another kind of device"));
        }
        if state.driver_features & !self.offered() != 0 {
            return Err(Mismatch("the guest uses features that this device does not have"));
        }
        let sizes = self.device.queue_sizes();
        if !state.queues.iter().map(|queue| queue.max_size).eq(sizes.iter().copied()) {
            return Err(Mismatch("its queues are other ones"));
        }
        let queues = state.queues.iter().map(|queue| Queue::try_from(*queue));
        self.queues = queues.collect::<Result<_, _>>().map_err(|_| Mismatch("a queue of it cannot be"))?;
        let running = state.status & status::DRIVER_OK != 0;
        if running && self.queues.iter().any(|queue| queue.ready() && !queue.is_valid(memory)) {
            return Err(Mismatch("a queue of it lies outside of memory"));
        }
        (self.status, self.interrupt_status, self.generation) =
            (state.status, state.interrupt_status, state.generation);
        (self.device_features_select, self.driver_features_select) =
            (state.device_features_select, state.driver_features_select);
        (self.driver_features, self.queue_select) = (state.driver_features, state.queue_select);
        self.device.restore(&state.device)?;
        if running {
            self.activate();
        }
        Ok(())
    }

    fn broken(&mut self) -> Work {
        self.status |= status::NEEDS_RESET;
        self.interrupt_status |= CONFIG_CHANGED;
        Work { interrupt: true, ..Work::default() }
    }
}

/// A device's registers, queues and own bytes, as a snapshot keeps them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportState {
    pub kind: u32,
    pub status: u32,
    pub device_features_select: u32,
    pub driver_features_select: u32,
    pub driver_features: u64,
    pub queue_select: u32,
    pub interrupt_status: u32,
    pub generation: u32,
    pub queues: Vec<QueueState>,
    pub device: Vec<u8>,
}

/// Sizes that the library does not take are the device's fault: such a queue is missing, and a guest sees that.
fn fresh_queues(device: &impl Device) -> Vec<Queue> {
    device.queue_sizes().iter().filter_map(|size| Queue::new(*size).ok()).collect()
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

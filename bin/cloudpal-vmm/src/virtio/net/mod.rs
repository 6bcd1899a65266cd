//! virtio-net on a TAP descriptor that it is handed (virtio 1.2, section 5.1).
//!
//! Invariants:
//! - A frame is read from the TAP only when the guest has room for it and the device is not held. Until then it waits
//!   in the TAP, where falling asleep finds it.
//! - Frames go straight between guest memory and the TAP. Where the TAP puts headers before them (IFF_VNET_HDR), the
//!   guest is offered to leave checksums and segmentation to the host, and to take them over.
//! - All buffers of a frame are used at once: a guest never sees a part of one.

mod handle;
mod receive;
mod tap;

pub use handle::{Counts, Handle};

use super::{
    Broken, Device, GuestMemory, Mismatch, Source, Work,
    chain::{Chain, wants_interrupt},
    copy_config,
    mmio::{FEATURE_EVENT_INDEX, QUEUE_SIZE_MAX},
    rate::{Limiter, Limits},
};
use std::{fs::File, io, os::fd::AsRawFd};
use virtio_queue::{Queue, QueueT};

pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;
/// A header stands before each frame; its last field says how many buffers make up a frame.
pub const HEADER: usize = 12;
/// The largest frame that a TAP takes or gives: an IP packet and an Ethernet header with a VLAN tag.
pub const FRAME_MAX: usize = 65_535 + 18;
const STATE_VERSION: u8 = 1;

/// Feature bits.
pub mod feature {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const OFFLOADS: u64 = CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6;
}

/// What the machine's owner decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub mac: [u8; 6],
    pub receive: Limits,
    pub transmit: Limits,
    /// Nothing is read from the TAP until the handle releases it.
    pub held: bool,
}

pub struct Net {
    /// Not blocking.
    tap: File,
    mac: [u8; 6],
    /// The TAP gives and takes the guest's headers.
    headers: bool,
    acked: u64,
    /// The TAP does not know yet what the driver takes. Told by the devices' thread: a vCPU's may not.
    offloads_due: bool,
    receive_limit: Limiter,
    transmit_limit: Limiter,
    handle: Handle,
}

impl Net {
    pub fn new(tap: File, settings: Settings) -> io::Result<Net> {
        rustix::io::ioctl_fionbio(&tap, true)?;
        Ok(Net {
            headers: tap::takes_headers(&tap),
            tap,
            mac: settings.mac,
            acked: 0,
            offloads_due: false,
            receive_limit: Limiter::new(settings.receive)?,
            transmit_limit: Limiter::new(settings.transmit)?,
            handle: Handle::new(settings.held)?,
        })
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    fn transmit(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        let (mut used, mut chain) = (false, Chain::default());
        for _ in 0..queue.size() {
            if !self.transmit_limit.may_go_on() || !chain.take(queue, memory)? {
                return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
            }
            match self.send(&mut chain) {
                Some(bytes) => {
                    self.transmit_limit.charge(bytes);
                    self.handle.sent(bytes);
                }
                None => self.handle.dropped(),
            }
            chain.answer(queue, memory, 0)?;
            used = true;
        }
        Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, more: true, ..Work::default() })
    }

    /// A frame goes out whole or not at all; what the TAP has no room for is lost, as on any link.
    fn send(&self, chain: &mut Chain<'_>) -> Option<usize> {
        let bytes =
            chain.readable.bytes().checked_sub(HEADER).filter(|bytes| (1..=FRAME_MAX).contains(bytes))?;
        if chain.malformed {
            return None;
        }
        if !self.headers {
            chain.readable.skip(HEADER)?;
        }
        chain.readable.write_to(&self.tap).ok()?;
        Some(bytes)
    }
}

impl Device for Net {
    fn kind(&self) -> u32 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX; 2]
    }

    fn features(&self) -> u64 {
        let always = feature::MAC | feature::MRG_RXBUF | FEATURE_EVENT_INDEX;
        if self.headers { always | feature::OFFLOADS } else { always }
    }

    fn activate(&mut self, acked: u64) {
        self.acked = acked;
        self.offloads_due = self.headers;
    }

    fn read_config(&self, offset: u64, to: &mut [u8]) {
        copy_config(&self.mac, offset, to);
    }

    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        if std::mem::take(&mut self.offloads_due) {
            // A TAP that refuses gives plain frames, which every driver takes.
            let _ = tap::set_offloads(&self.tap, self.acked);
        }
        match (queue, queues) {
            (RECEIVE, [receive, _]) => self.receive(receive, memory),
            (TRANSMIT, [_, transmit]) => self.transmit(transmit, memory),
            _ => Ok(Work::default()),
        }
    }

    fn sources(&self) -> Vec<Source> {
        let source = |queue| move |fd| Source { fd, queue };
        let of_receive =
            [Some(self.tap.as_raw_fd()), Some(self.handle.source()), self.receive_limit.source()];
        let mut sources: Vec<_> = of_receive.into_iter().flatten().map(source(RECEIVE)).collect();
        sources.extend(self.transmit_limit.source().map(source(TRANSMIT)));
        sources
    }

    fn reset(&mut self) {
        self.acked = 0;
    }

    fn save(&self) -> Vec<u8> {
        vec![STATE_VERSION]
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        match bytes {
            [STATE_VERSION] => Ok(()),
            _ => Err(Mismatch("it is no state of a network device")),
        }
    }
}

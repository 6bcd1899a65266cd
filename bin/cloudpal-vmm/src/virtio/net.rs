//! virtio-net on a TAP descriptor that it is handed (virtio 1.2, section 5.1): frames as they are, without offloads.
//!
//! Invariant: a frame is read from the TAP only when the guest has a buffer for it. Until then it waits in the TAP,
//! where falling asleep finds it.

use super::{Broken, Device, GuestMemory, Mismatch, Source, Work, copy_config, mmio::QUEUE_SIZE_MAX};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::AsRawFd,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT, Reader, Writer};

pub const RECEIVE: usize = 0;
pub const TRANSMIT: usize = 1;
/// A header stands before each frame; its last field says that one buffer makes up a frame.
pub const HEADER: usize = 12;
/// The largest frame that a TAP takes or gives: an IP packet and an Ethernet header with a VLAN tag.
pub const FRAME_MAX: usize = 65_535 + 18;
const STATE_VERSION: u8 = 1;
const FEATURE_MAC: u64 = 1 << 5;

pub struct Net {
    /// Not blocking.
    tap: File,
    mac: [u8; 6],
    frame: Vec<u8>,
    /// Frames that did not fit into what the guest or the TAP had for them.
    pub dropped: u64,
}

impl Net {
    pub fn new(tap: File, mac: [u8; 6]) -> Net {
        Net { tap, mac, frame: vec![0; HEADER + FRAME_MAX], dropped: 0 }
    }

    fn receive(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        let mut used = false;
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop_descriptor_chain(memory) else { return done(used, queue, memory) };
            let len = match self.tap.read(&mut self.frame[HEADER..]) {
                Ok(len) if len > 0 => HEADER + len,
                // Nothing there: the buffer stays the guest's.
                _ => {
                    queue.go_to_previous_position();
                    return done(used, queue, memory);
                }
            };
            self.frame[..HEADER].fill(0);
            self.frame[10] = 1;
            let head = chain.head_index();
            let written = Writer::new(memory, chain).ok().filter(|writer| writer.available_bytes() >= len);
            let written = written.and_then(|mut writer| writer.write_all(&self.frame[..len]).ok());
            if written.is_none() {
                self.dropped += 1;
            }
            let len = if written.is_some() { len as u32 } else { 0 };
            queue.add_used(memory, head, len).map_err(|_| Broken)?;
            used = true;
        }
        done(used, queue, memory).map(|work| Work { more: true, ..work })
    }

    fn transmit(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
        let mut used = false;
        for _ in 0..queue.size() {
            let Some(chain) = queue.pop_descriptor_chain(memory) else { return done(used, queue, memory) };
            let head = chain.head_index();
            let reader = Reader::new(memory, chain).ok();
            let reader = reader.filter(|reader| reader.available_bytes() <= self.frame.len());
            let sent = reader.and_then(|mut reader| {
                let len = reader.available_bytes();
                reader.read_exact(&mut self.frame[..len]).ok()?;
                let frame = self.frame[..len].get(HEADER..).filter(|frame| !frame.is_empty())?;
                send(&mut self.tap, frame).ok()
            });
            if sent.is_none() {
                self.dropped += 1;
            }
            queue.add_used(memory, head, 0).map_err(|_| Broken)?;
            used = true;
        }
        done(used, queue, memory).map(|work| Work { more: true, ..work })
    }
}

/// A frame goes out whole or not at all; what the TAP has no room for is lost, as on any link.
fn send(tap: &mut File, frame: &[u8]) -> io::Result<()> {
    loop {
        match tap.write(frame) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => return Ok(()),
        }
    }
}

fn done(used: bool, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
    let interrupt = used && queue.needs_notification(memory).map_err(|_| Broken)?;
    Ok(Work { interrupt, ..Work::default() })
}

impl Device for Net {
    fn kind(&self) -> u32 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX; 2]
    }

    fn features(&self) -> u64 {
        FEATURE_MAC
    }

    fn activate(&mut self, _acked: u64) {}

    fn read_config(&self, offset: u64, to: &mut [u8]) {
        copy_config(&self.mac, offset, to);
    }

    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        match (queue, queues) {
            (RECEIVE, [receive, _]) => self.receive(receive, memory),
            (TRANSMIT, [_, transmit]) => self.transmit(transmit, memory),
            _ => Ok(Work::default()),
        }
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source { fd: self.tap.as_raw_fd(), queue: RECEIVE }]
    }

    fn reset(&mut self) {}

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

//! virtio-console with several named ports (virtio 1.2, section 5.3): bytes between a port's two queues and its end on
//! the host (`ends.rs`).
//!
//! ```text
//!  driver: DEVICE_READY ──► PORT_ADD for each port ──► driver: PORT_READY ──► PORT_NAME, PORT_OPEN
//!                           driver: PORT_OPEN(1) ──► bytes flow to it ──► driver: PORT_OPEN(0)
//! ```
//! Invariants:
//! - To the guest the host's side is always open. Whether a client is there changes nothing in the guest: what it
//!   writes for nobody waits in its own queue, which is bounded by being its own.
//! - What is to be said on the control queue is a few bits per port, whatever the guest asks and however often.
//! - A driver without the multiport feature has no ports: what it writes is swallowed.

mod ends;

pub use ends::End;

use super::{
    Broken, Device, GuestMemory, Mismatch, Source, Work,
    chain::{Chain, wants_interrupt},
    copy_config,
};
use ends::{Received, Sent};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

const STATE_VERSION: u8 = 1;
const FEATURE_MULTIPORT: u64 = 1 << 1;
pub const CONTROL_RECEIVE: usize = 2;
pub const CONTROL_TRANSMIT: usize = 3;
const CONTROL_SIZE: u16 = 16;
const RECEIVE_SIZE: u16 = 32;
const TRANSMIT_SIZE: u16 = 64;
/// Of the 31 that the specification has room for.
pub const PORTS_MAX: usize = 8;

/// Events of the control queues.
mod event {
    pub const DEVICE_READY: u16 = 0;
    pub const PORT_ADD: u16 = 1;
    pub const PORT_READY: u16 = 3;
    pub const PORT_OPEN: u16 = 6;
    pub const PORT_NAME: u16 = 7;
}

/// What of a port is to be said, and what is known of it; the bits of the saved state.
mod due {
    pub const ADD: u8 = 1;
    pub const NAME: u8 = 2;
    pub const OPEN: u8 = 4;
    /// In this order.
    pub const ALL: [u8; 3] = [ADD, NAME, OPEN];
    pub const GUEST_OPENED: u8 = 8;
}

pub struct Port {
    name: &'static str,
    end: End,
    /// Bits of `due`.
    state: u8,
}

impl Port {
    pub fn new(name: &'static str, end: End) -> Port {
        Port { name, end, state: 0 }
    }
}

pub struct Console {
    ports: Vec<Port>,
    queue_sizes: Vec<u16>,
    multiport: bool,
}

/// A port's queues: those of the first stand before the control queues.
pub const fn receive_queue(port: usize) -> usize {
    if port == 0 { 0 } else { 2 + 2 * port }
}

pub const fn transmit_queue(port: usize) -> usize {
    receive_queue(port) + 1
}

fn port_of(queue: usize) -> usize {
    (queue / 2).saturating_sub(1)
}

impl Console {
    /// More than `PORTS_MAX` ports are cut off.
    pub fn new(mut ports: Vec<Port>) -> Console {
        ports.truncate(PORTS_MAX);
        let mut queue_sizes = vec![0; 2 + 2 * ports.len().max(1)];
        for (port, Port { end, .. }) in ports.iter().enumerate() {
            // A driver fills the whole queue with pages; where nothing comes, two do.
            queue_sizes[receive_queue(port)] = if end.sends() { RECEIVE_SIZE } else { 2 };
            queue_sizes[transmit_queue(port)] = TRANSMIT_SIZE;
        }
        queue_sizes[CONTROL_RECEIVE..=CONTROL_TRANSMIT].fill(CONTROL_SIZE);
        Console { ports, queue_sizes, multiport: false }
    }

    fn control(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        let opened = self.hear(&mut queues[CONTROL_TRANSMIT], memory)?;
        let mut work = Work { interrupt: opened.interrupt, more: opened.more, ..Work::default() };
        work.interrupt |= self.say(&mut queues[CONTROL_RECEIVE], memory)?;
        for port in opened.ports() {
            let flowed = self.port(port, queues, memory)?;
            work.interrupt |= flowed.interrupt;
            work.more |= flowed.more;
        }
        Ok(work)
    }

    /// Takes what the driver says.
    fn hear(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<Heard, Broken> {
        let mut heard = Heard::default();
        let mut chain = Chain::default();
        for _ in 0..queue.size() {
            if !chain.take(queue, memory)? {
                heard.interrupt = wants_interrupt(heard.any, queue, memory)?;
                return Ok(heard);
            }
            let mut message = [0; 8];
            if !chain.malformed && chain.readable.read(&mut message).is_some() {
                heard.opened |= self.answer(message);
            }
            chain.answer(queue, memory, 0)?;
            heard.any = true;
        }
        heard.interrupt = wants_interrupt(heard.any, queue, memory)?;
        heard.more = true;
        Ok(heard)
    }

    /// Notes what follows from a message of the driver. Returns the port that it opened, as a bit.
    fn answer(&mut self, message: [u8; 8]) -> u32 {
        let [a, b, c, d, e, f, g, h] = message;
        let (id, event, value) =
            (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
        if event == event::DEVICE_READY {
            let add = if value == 1 { due::ADD } else { 0 };
            self.ports.iter_mut().for_each(|port| port.state = add);
            return 0;
        }
        let Some(port) = self.ports.get_mut(id as usize) else { return 0 };
        match (event, value) {
            (event::PORT_READY, 1) => port.state |= due::NAME | due::OPEN,
            (event::PORT_OPEN, 0) => port.state &= !due::GUEST_OPENED,
            (event::PORT_OPEN, _) => {
                port.state |= due::GUEST_OPENED;
                return 1 << id;
            }
            _ => {}
        }
        0
    }

    /// Says what is due, as far as the driver has room. True when it wants to hear of it.
    fn say(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<bool, Broken> {
        let (mut used, mut chain) = (false, Chain::default());
        for (id, port) in (0_u32..).zip(&mut self.ports) {
            for what in due::ALL {
                if port.state & what == 0 {
                    continue;
                }
                if !chain.take(queue, memory)? {
                    return wants_interrupt(used, queue, memory);
                }
                let (event, name) = match what {
                    due::ADD => (event::PORT_ADD, ""),
                    due::NAME => (event::PORT_NAME, port.name),
                    _ => (event::PORT_OPEN, ""),
                };
                let mut message = id.to_le_bytes().to_vec();
                message.extend(event.to_le_bytes().into_iter().chain(1_u16.to_le_bytes()));
                message.extend_from_slice(name.as_bytes());
                // A driver without room for it does not learn it.
                let written = !chain.malformed && chain.writable.write(&message).is_some();
                chain.answer(queue, memory, if written { message.len() } else { 0 })?;
                port.state &= !what;
                used = true;
            }
        }
        wants_interrupt(used, queue, memory)
    }

    /// Moves a port's bytes, both ways.
    fn port(&mut self, port: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        let multiport = self.multiport;
        let Some(Port { end, state, .. }) = self.ports.get_mut(port) else { return Ok(Work::default()) };
        let mut work = Work::default();
        if multiport {
            end.attend();
            if *state & due::GUEST_OPENED != 0 {
                work = receive(end, &mut queues[receive_queue(port)], memory)?;
            }
        }
        let end = multiport.then_some(end);
        let sent = transmit(end, &mut queues[transmit_queue(port)], memory)?;
        Ok(Work { interrupt: work.interrupt | sent.interrupt, more: work.more | sent.more, ..work })
    }
}

#[derive(Default)]
struct Heard {
    /// A bit for each port that the driver opened.
    opened: u32,
    any: bool,
    interrupt: bool,
    more: bool,
}

impl Heard {
    fn ports(&self) -> impl Iterator<Item = usize> + use<> {
        let opened = self.opened;
        (0..PORTS_MAX).filter(move |port| opened & 1 << port != 0)
    }
}

/// From the host to the guest.
fn receive(end: &mut End, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
    let (mut used, mut chain) = (false, Chain::default());
    for _ in 0..queue.size() {
        if !end.sends() || !chain.take(queue, memory)? {
            return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
        }
        let mut received = 0;
        if !chain.malformed && !chain.writable.is_empty() {
            match end.receive(&chain.writable) {
                Received::Bytes(bytes) => received = bytes,
                Received::Nothing => {
                    queue.go_to_previous_position();
                    return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
                }
            }
        }
        chain.answer(queue, memory, received)?;
        used = true;
    }
    Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, more: true, ..Work::default() })
}

/// From the guest to the host; without an end, to nowhere.
fn transmit(mut end: Option<&mut End>, queue: &mut Queue, memory: &GuestMemory) -> Result<Work, Broken> {
    let (mut used, mut chain) = (false, Chain::default());
    for _ in 0..queue.size() {
        if !chain.take(queue, memory)? {
            return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
        }
        let end = end.as_deref_mut().filter(|_| !chain.malformed);
        if end.is_some_and(|end| end.send(&mut chain.readable) == Sent::Later) {
            queue.go_to_previous_position();
            return Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, ..Work::default() });
        }
        chain.answer(queue, memory, 0)?;
        used = true;
    }
    Ok(Work { interrupt: wants_interrupt(used, queue, memory)?, more: true, ..Work::default() })
}

impl Device for Console {
    fn kind(&self) -> u32 {
        3
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        FEATURE_MULTIPORT
    }

    fn activate(&mut self, acked: u64) {
        self.multiport = acked & FEATURE_MULTIPORT != 0;
    }

    fn read_config(&self, offset: u64, to: &mut [u8]) {
        // Columns and rows are nobody's; then the number of ports.
        let mut config = [0; 12];
        config[4..8].copy_from_slice(&(self.ports.len() as u32).to_le_bytes());
        copy_config(&config, offset, to);
    }

    fn work(&mut self, queue: usize, queues: &mut [Queue], memory: &GuestMemory) -> Result<Work, Broken> {
        if queues.len() != self.queue_sizes.len() || queue >= queues.len() {
            return Ok(Work::default());
        }
        match queue {
            CONTROL_RECEIVE | CONTROL_TRANSMIT => self.control(queues, memory),
            queue => self.port(port_of(queue), queues, memory),
        }
    }

    fn sources(&self) -> Vec<Source> {
        let ends = self.ports.iter().enumerate();
        ends.filter_map(|(port, Port { end, .. })| {
            Some(Source { fd: end.source()?, queue: transmit_queue(port) })
        })
        .collect()
    }

    fn reset(&mut self) {
        self.multiport = false;
        for port in &mut self.ports {
            port.state = 0;
            port.end.forget_half();
        }
    }

    fn save(&self) -> Vec<u8> {
        let mut bytes = vec![STATE_VERSION];
        bytes.extend(self.ports.iter().map(|port| port.state));
        bytes
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        let known = due::ALL.into_iter().sum::<u8>() | due::GUEST_OPENED;
        match bytes {
            [STATE_VERSION, states @ ..]
                if states.len() == self.ports.len() && states.iter().all(|state| state & !known == 0) =>
            {
                for (port, state) in self.ports.iter_mut().zip(states) {
                    port.state = *state;
                    port.end.forget_half();
                }
                Ok(())
            }
            _ => Err(Mismatch("it is no state of a console with these ports")),
        }
    }
}

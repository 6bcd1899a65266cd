//! What is at a guest's addresses and ports, and the wires between devices and KVM: each device has a doorbell (a write
//! to QUEUE_NOTIFY becomes an event without an exit) and an interrupt line.
//!
//! Invariants:
//! - A port or address that nobody answers reads as all ones and swallows what is written, as an empty bus does.
//! - A vCPU's access to a device is a few register operations under that device's lock; the work itself is always done
//!   by the devices' thread (`events.rs`), which holds the lock for one bounded call at a time.
//! - The wires are there before the devices are, and before the first vCPU: afterwards each costs milliseconds.

use crate::{
    Error,
    com1::Com1,
    error::Doing,
    layout,
    virtio::{
        Device, GuestMemory, Work,
        mmio::{Transport, TransportState, register},
    },
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub type BoxedDevice = Transport<Box<dyn Device>>;

/// A device's place on the bus.
pub(crate) struct Slot {
    pub doorbell: EventFd,
    interrupt: EventFd,
    device: Mutex<Option<BoxedDevice>>,
}

pub(crate) struct Bus {
    pub slots: Vec<Slot>,
    com1: Mutex<Com1>,
    com1_interrupt: EventFd,
    generation: EventFd,
    pub memory: GuestMemory,
}

/// What a write to a port means for the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Reset,
    Off,
}

fn event() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|e| Error::Host(format!("no event descriptor: {e}")))
}

fn twice(event: &EventFd) -> Result<EventFd, Error> {
    event.try_clone().map_err(|e| Error::Host(format!("no event descriptor: {e}")))
}

impl Bus {
    /// The wires for so many devices.
    pub(crate) fn make(vm: &VmFd, slots: u8, memory: GuestMemory) -> Result<Bus, Error> {
        let wired = |gsi| {
            let event = event()?;
            vm.register_irqfd(&event, gsi).doing("connect an interrupt line")?;
            Ok::<_, Error>(event)
        };
        let slots = (0..slots).map(|slot| {
            let (doorbell, interrupt) = (event()?, wired(layout::device_gsi(slot))?);
            let notify = IoEventAddress::Mmio(layout::device_page(slot) + register::QUEUE_NOTIFY);
            vm.register_ioevent(&doorbell, &notify, NoDatamatch).doing("connect a device's doorbell")?;
            Ok(Slot { doorbell, interrupt, device: Mutex::new(None) })
        });
        let slots = slots.collect::<Result<Vec<_>, Error>>()?;
        let com1_interrupt = wired(layout::COM1_GSI)?;
        let com1 = Mutex::new(Com1::new(twice(&com1_interrupt)?, None));
        Ok(Bus { slots, com1, com1_interrupt, generation: wired(layout::GENERATION_GSI)?, memory })
    }

    /// Puts the devices into the slots, in their order.
    pub(crate) fn plug(&self, devices: Vec<Box<dyn Device>>) -> Result<(), Error> {
        if devices.len() > self.slots.len() {
            return Err(Error::Devices { given: devices.len(), slots: self.slots.len() });
        }
        for (slot, device) in self.slots.iter().zip(devices) {
            *slot.device() = Some(Transport::new(device));
        }
        Ok(())
    }

    pub(crate) fn devices(&self) -> u8 {
        self.slots.iter().filter(|slot| slot.device().is_some()).count() as u8
    }

    pub(crate) fn com1(&self) -> MutexGuard<'_, Com1> {
        self.com1.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn save_devices(&self) -> Vec<TransportState> {
        self.slots.iter().filter_map(|slot| slot.device().as_ref().map(Transport::save)).collect()
    }

    /// Puts the saved state into devices that were just plugged in.
    pub(crate) fn restore_devices(&self, states: &[TransportState]) -> Result<(), Error> {
        let given = usize::from(self.devices());
        if states.len() != given {
            return Err(crate::snapshot::Refusal::Devices { saved: states.len(), given }.into());
        }
        for (index, (slot, state)) in self.slots.iter().zip(states).enumerate() {
            if let Some(device) = slot.device().as_mut() {
                device
                    .restore(state, &self.memory)
                    .map_err(|mismatch| crate::snapshot::Refusal::Device { slot: index, why: mismatch.0 })?;
            }
        }
        Ok(())
    }

    pub(crate) fn restore_com1(&self, registers: [u8; 9]) -> Result<(), Error> {
        let restored = self.com1().restore(registers, twice(&self.com1_interrupt)?);
        restored.map_err(|mismatch| crate::snapshot::Refusal::Com1(mismatch.0).into())
    }

    /// After a wake: interrupts that were on their way when the state was saved are raised again, every queue is looked
    /// at, and last of all the guest is told that it is another machine now.
    pub(crate) fn announce_wake(&self) {
        for slot in &self.slots {
            if let Some(device) = slot.device().as_ref() {
                if device.interrupt_pending() {
                    raise(&slot.interrupt);
                }
                raise(&slot.doorbell);
            }
        }
        raise(&self.generation);
    }

    pub(crate) fn read_memory(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        let Some((slot, offset)) = self.slot_at(address) else { return };
        if let Some(device) = slot.device().as_ref() {
            device.read(offset, data);
        }
    }

    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) {
        let Some((slot, offset)) = self.slot_at(address) else { return };
        let mut place = slot.device();
        let Some(device) = place.as_mut() else { return };
        if offset == register::QUEUE_NOTIFY {
            // Of another width than the doorbell hears.
            return raise(&slot.doorbell);
        }
        let work = device.write(offset, data, &self.memory);
        if work.interrupt {
            raise(&slot.interrupt);
        }
        if work.more {
            raise(&slot.doorbell);
        }
    }

    fn slot_at(&self, address: u64) -> Option<(&Slot, u64)> {
        let at = address.checked_sub(layout::DEVICES)?;
        let slot = self.slots.get(usize::try_from(at / layout::DEVICE_PAGE).ok()?)?;
        Some((slot, at % layout::DEVICE_PAGE))
    }

    /// True when there is something at that port.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) -> bool {
        match (port, data) {
            (layout::COM1..=COM1_END, [byte]) => *byte = self.com1().read((port - layout::COM1) as u8),
            // No key was pressed, and the controller is not busy.
            (layout::KEYBOARD_DATA | layout::KEYBOARD_COMMAND, data) => data.fill(0),
            (layout::SLEEP_CONTROL | layout::SLEEP_STATUS, data) => data.fill(0),
            _ => return false,
        }
        true
    }

    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> (bool, Option<Switch>) {
        const OFF: u8 = crate::acpi::SLEEP_ENABLE | crate::acpi::SLEEP_TYPE_OFF << 2;
        match (port, data) {
            (layout::COM1..=COM1_END, [byte]) => self.com1().write((port - layout::COM1) as u8, *byte),
            (layout::KEYBOARD_COMMAND, [layout::KEYBOARD_RESET]) => return (true, Some(Switch::Reset)),
            (layout::SLEEP_CONTROL, [OFF]) => return (true, Some(Switch::Off)),
            (layout::KEYBOARD_DATA | layout::KEYBOARD_COMMAND, _) => {}
            (layout::SLEEP_CONTROL | layout::SLEEP_STATUS, _) => {}
            _ => return (false, None),
        }
        (true, None)
    }
}

const COM1_END: u16 = layout::COM1 + 7;

impl Slot {
    pub(crate) fn device(&self) -> MutexGuard<'_, Option<BoxedDevice>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the device look at one of its queues.
    pub(crate) fn work(&self, queue: usize, memory: &GuestMemory) -> Work {
        let work = self.device().as_mut().map_or(Work::default(), |device| device.work(queue, memory));
        if work.interrupt {
            raise(&self.interrupt);
        }
        work
    }
}

/// An event counts up to 2^64 before a write can fail.
fn raise(event: &EventFd) {
    let _ = event.write(1);
}

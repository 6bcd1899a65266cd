//! Which devices a machine has, made of the descriptors that came for it.
//!
//! Invariant: the same descriptors always make the same devices in the same order, for the same kind of machine: a
//! snapshot has them slot by slot.

use super::{Files, Refusal};
use cloudpal_model::{
    BURST_MS,
    vmm::{self, File as Handed},
};
use cloudpal_vmm::virtio::{
    Device,
    blk::Blk,
    console::{Console, End, Port},
    hold::Hold,
    net::{self, Net},
    rate::{Limit, Limiter, Limits},
    rng::Rng,
};
use std::num::NonZeroU64;

/// Places on the bus: each is wired before anything is known of the machine.
pub const SLOTS: u8 = 6;

/// Somebody else cuts a log that has grown long; this bounds what comes in between.
const LOG_BYTES_MAX: u64 = 64 << 20;

/// The names by which the guest's init finds its disks and ports.
const ROOT: &str = "root";
const DISK: &str = "disk";
const CONTROL_PORT: &str = "cloudpal.control";
const LOG_PORT: &str = "cloudpal.log";

pub struct Devices {
    pub devices: Vec<Box<dyn Device>>,
    pub release: Release,
}

/// Lets frames in, and what a woken guest writes onto its disk.
pub struct Release {
    net: Option<net::Handle>,
    disk: Hold,
}

impl Release {
    pub fn release(&self) {
        self.disk.release();
        if let Some(net) = &self.net {
            net.release();
        }
    }
}

/// `disk_held`: the guest may run before its disk may change.
pub fn make(machine: &vmm::Machine, files: &mut Files, disk_held: bool) -> Result<Devices, Refusal> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    let mut release = Release { net: None, disk: Hold::new(disk_held)? };
    for (kind, serial, read_only) in [(Handed::Root, ROOT, true), (Handed::Disk, DISK, false)] {
        if let Some(file) = files.optional(kind) {
            let rate = Limiter::new(limits(machine.rates.disk_bytes_per_s))?;
            let disk = Blk::new(file, serial, read_only, rate)?;
            let disk = if read_only { disk } else { disk.held_by(release.disk.clone()) };
            devices.push(Box::new(disk));
        }
    }
    if let Some(tap) = files.optional(Handed::Tap) {
        let each_way = limits(machine.rates.network_bytes_per_s);
        let settings = net::Settings { mac: machine.mac, receive: each_way, transmit: each_way, held: true };
        let net = Net::new(tap, settings)?;
        release.net = Some(net.handle());
        // Unikraft looks no further than the first device that it has no driver for, which may be a disk's.
        let place = if machine.library_os { 0 } else { devices.len() };
        devices.insert(place, Box::new(net));
    }
    if machine.library_os {
        return Ok(Devices { devices, release });
    }
    let mut ports = Vec::new();
    if let Some(listener) = files.optional(Handed::ControlSocket) {
        ports.push(Port::new(CONTROL_PORT, End::channel(listener.into())?));
    }
    if let Some(log) = files.optional(Handed::Log) {
        ports.push(Port::new(LOG_PORT, End::log(log, LOG_BYTES_MAX)));
    }
    devices.push(Box::new(Console::new(ports)));
    devices.push(Box::new(Rng::new()?));
    Ok(Devices { devices, release })
}

fn limits(bytes_per_s: Option<NonZeroU64>) -> Limits {
    let limit = |rate: NonZeroU64| {
        let burst = u128::from(rate.get()) * u128::from(BURST_MS) / 1000;
        Limit { per_second: rate.get(), burst: burst as u64 }
    };
    Limits { bytes: bytes_per_s.map(limit), operations: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloudpal_model::Rates;
    use std::collections::HashMap;

    #[test]
    fn a_library_os_finds_nothing_but_disks_and_network() {
        let made = |library_os| {
            let disk = tempfile::tempfile().expect("a file");
            disk.set_len(1 << 20).expect("a disk");
            let mut files = Files(HashMap::from([(Handed::Disk, disk.into())]));
            let machine = vmm::Machine { mac: [2; 6], rates: Rates::default(), library_os };
            let Ok(made) = make(&machine, &mut files, false) else { panic!("no devices") };
            made.devices.iter().map(|device| device.kind()).collect::<Vec<_>>()
        };
        const DISK: u32 = 2;
        assert_eq!(made(true), [DISK]);
        assert_eq!(made(false)[0], DISK);
        assert_eq!(made(false).len(), 3, "console and random generator, too");
    }
}

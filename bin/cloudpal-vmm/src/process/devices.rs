//! Which devices a machine has, made of the descriptors that came for it.
//!
//! Invariant: the same descriptors always make the same devices in the same order: a snapshot has them slot by slot.

use super::{Files, Refusal};
use cloudpal_model::vmm::{self, File as Handed};
use cloudpal_vmm::virtio::{
    Device,
    blk::Blk,
    console::{Console, End, Port},
    net::{self, Net},
    rate::Limiter,
    rng::Rng,
};

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

/// Lets frames in.
pub struct Release(Option<net::Handle>);

impl Release {
    pub fn release(&self) {
        if let Some(net) = &self.0 {
            net.release();
        }
    }
}

pub fn make(machine: &vmm::Machine, files: &mut Files) -> Result<Devices, Refusal> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    for (kind, serial, read_only) in [(Handed::Root, ROOT, true), (Handed::Disk, DISK, false)] {
        if let Some(file) = files.optional(kind) {
            devices.push(Box::new(Blk::new(file, serial, read_only, Limiter::none())?));
        }
    }
    let mut release = Release(None);
    if let Some(tap) = files.optional(Handed::Tap) {
        let settings = net::Settings { mac: machine.mac, held: true, ..net::Settings::default() };
        let net = Net::new(tap, settings)?;
        release.0 = Some(net.handle());
        devices.push(Box::new(net));
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

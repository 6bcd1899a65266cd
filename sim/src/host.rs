//! The fake host: what outlives the daemon (TAPs, VMMs, disks, networks) and what the world knows of each packet.
//!
//! Invariant: it does what Linux and the VMM do, and nothing cleverer: a TAP is a queue of 1,000 packets that is lost
//! when nobody holds it, a VMM reads it when it runs, a killed VMM takes what it read with it.

use cloudpal_model::{DeviceId, MachineId, TenantId};
use cloudpal_net::plan::NetPlan;
use std::{
    collections::{BTreeMap, VecDeque},
    net::Ipv4Addr,
};

/// Packets that a TAP holds at most.
pub const TAP_QUEUE: usize = 1000;

pub type PacketId = usize;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// In a TAP, a VMM or a snapshot.
    UnderWay,
    Answered,
    /// Destroyed with what held it.
    LostInCrash,
    /// Nobody may answer it.
    Refused,
}

#[derive(Clone, Debug)]
pub struct Packet {
    pub tenant: TenantId,
    pub to: Ipv4Addr,
    pub fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest boots by itself; its network is still down.
    Booting,
    /// The memory is being restored; nothing runs.
    Restoring,
    Running,
    /// The vCPUs are stopped and saved; the process still runs, and may still take packets.
    Stopped,
    /// The process is frozen.
    Frozen,
}

#[derive(Clone, Debug)]
pub struct Vmm {
    /// Tells this process from an earlier one of the same machine.
    pub serial: u64,
    pub phase: Phase,
    pub tenant: TenantId,
    pub address: Ipv4Addr,
    /// Taken from the TAP, not answered yet.
    pub taken: Vec<PacketId>,
    /// Of `taken`, those that are part of the saved state.
    pub saved: Vec<PacketId>,
}

#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The state of the disk that belongs to it.
    pub disk: u64,
    /// What a driver can tell by looking at it.
    pub good: bool,
    /// What it cannot: whether all of the memory is in it.
    pub complete: bool,
    pub taken: Vec<PacketId>,
}

/// One machine's part of the host.
#[derive(Default)]
pub struct Place {
    pub tap: VecDeque<PacketId>,
    pub delivered: u64,
    pub vmm: Option<Vmm>,
    /// Grows whenever a guest starts to run.
    pub disk: u64,
    pub snapshot: Option<Snapshot>,
    pub cpu_us: u64,
}

#[derive(Default)]
pub struct Host {
    pub nets: BTreeMap<TenantId, NetPlan>,
    pub places: BTreeMap<MachineId, Place>,
    pub packets: Vec<Packet>,
    pub serials: u64,
}

impl Host {
    pub fn place(&mut self, machine: MachineId) -> &mut Place {
        self.places.entry(machine).or_default()
    }

    pub fn vmm(&mut self, machine: MachineId) -> Option<&mut Vmm> {
        self.places.get_mut(&machine)?.vmm.as_mut()
    }

    pub fn lose(&mut self, packets: impl IntoIterator<Item = PacketId>) {
        for id in packets {
            if let Some(packet) = self.packets.get_mut(id)
                && packet.fate == Fate::UnderWay
            {
                packet.fate = Fate::LostInCrash;
            }
        }
    }

    /// The process ends; what it had taken is gone, unless it is in `kept`.
    pub fn end_vmm(&mut self, machine: MachineId, kept: &[PacketId]) -> Option<Vmm> {
        let vmm = self.place(machine).vmm.take()?;
        let lost: Vec<PacketId> = vmm.taken.iter().copied().filter(|id| !kept.contains(id)).collect();
        self.lose(lost);
        Some(vmm)
    }

    /// The place of a packet is gone for good, together with the app.
    pub fn refuse(&mut self, packets: impl IntoIterator<Item = PacketId>) {
        for id in packets {
            if let Some(packet) = self.packets.get_mut(id)
                && packet.fate == Fate::UnderWay
            {
                packet.fate = Fate::Refused;
            }
        }
    }

    /// Makes the tenant's network so. TAPs that the plan does not name go, with what is in them.
    pub fn apply(&mut self, plan: NetPlan) {
        let before = self.nets.insert(plan.tenant, plan.clone());
        let gone = before.into_iter().flat_map(|net| net.machines).map(|machine| machine.id);
        for machine in gone.filter(|id| !plan.machines.iter().any(|machine| machine.id == *id)) {
            let queued: Vec<PacketId> = self.place(machine).tap.drain(..).collect();
            self.refuse(queued);
        }
    }

    pub fn has_tap(&self, tenant: TenantId, machine: MachineId) -> bool {
        self.nets.get(&tenant).is_some_and(|net| net.machines.iter().any(|m| m.id == machine))
    }

    /// Everything of a removed app goes.
    pub fn remove(&mut self, machine: MachineId) {
        if let Some(place) = self.places.remove(&machine) {
            self.refuse(place.tap);
            self.refuse(place.snapshot.into_iter().flat_map(|snapshot| snapshot.taken));
            self.refuse(place.vmm.into_iter().flat_map(|vmm| vmm.taken));
        }
    }

    /// Takes a packet of a device to the TAP of the machine that has its address, in the tenant's own network.
    /// `daemon_up`: somebody holds the TAPs of machines that do not run.
    pub fn route(
        &mut self,
        tenant: TenantId,
        from: Option<DeviceId>,
        to: Ipv4Addr,
        shared: bool,
        daemon_up: bool,
    ) -> Option<MachineId> {
        let id = self.packets.len();
        let known = self.nets.get(&tenant).is_some_and(|net| net.devices.iter().any(|d| Some(d.id) == from));
        let mut nets = self.nets.values().filter(|net| shared || net.tenant == tenant);
        let machine = nets.find_map(|net| net.machines.iter().find(|machine| machine.v4 == to)).map(|m| m.id);
        let machine = machine.filter(|_| known);
        let fate = if machine.is_some() { Fate::UnderWay } else { Fate::Refused };
        self.packets.push(Packet { tenant, to, fate });
        let machine = machine?;
        let place = self.place(machine);
        if (daemon_up || place.vmm.is_some()) && place.tap.len() < TAP_QUEUE {
            place.tap.push_back(id);
            return Some(machine);
        }
        self.lose([id]);
        None
    }

    /// Nobody holds the TAPs of machines without a VMM any more: what they held is gone.
    pub fn daemon_died(&mut self) {
        let mut lost = Vec::new();
        for place in self.places.values_mut().filter(|place| place.vmm.is_none()) {
            lost.extend(place.tap.drain(..));
        }
        self.lose(lost);
    }

    pub fn power_lost(&mut self) {
        self.nets.clear();
        let machines: Vec<MachineId> = self.places.keys().copied().collect();
        for machine in machines {
            self.end_vmm(machine, &[]);
            let queued: Vec<PacketId> = self.place(machine).tap.drain(..).collect();
            self.lose(queued);
        }
    }
}

//! The fake driver: carries out one command per machine, in steps between which anything may happen.
//!
//! Its steps are those that the port in `compute::driver` promises, also of a driver that dies between two of them.

use crate::{
    Bug,
    host::{PacketId, Phase, Snapshot, Vmm},
    world::{Happening, World},
};
use cloudpal_compute::life::{Command, Event};
use cloudpal_model::MachineId;

/// A command under way.
pub struct Job {
    pub number: u64,
    command: Command,
    step: u8,
}

impl World {
    pub fn command(&mut self, machine: MachineId, command: Command) {
        if self.jobs.contains_key(&machine) {
            return self.violate(format!("{machine}: {command:?} while another command is under way"));
        }
        let has_vmm = self.host.vmm(machine).is_some();
        match command {
            Command::Boot | Command::Wake if has_vmm => {
                return self.violate(format!("{machine}: {command:?}, though it has a VMM"));
            }
            Command::Boot | Command::Wake if !self.net_is_ready(machine) => {
                return self.violate(format!("{machine}: {command:?} before its network is there"));
            }
            // The VMM has just died, and the engine does not know yet.
            Command::Sleep { .. } if !has_vmm => {
                return self.tell_machine(machine, Event::SleepFailed { why: "there is no VMM".into() });
            }
            Command::Stop { .. } | Command::Kill if !has_vmm => return self.exited(machine, true),
            _ => {}
        }
        self.watching.remove(&machine);
        self.job_numbers += 1;
        let number = self.job_numbers;
        self.jobs.insert(machine, Job { number, command, step: 0 });
        self.next_step(machine, number, 1_000, 50_000);
    }

    fn next_step(&mut self, machine: MachineId, number: u64, low_us: u64, high_us: u64) {
        self.soon(low_us, high_us, Happening::Step { machine, number });
    }

    fn finish(&mut self, machine: MachineId, event: Event) {
        self.jobs.remove(&machine);
        self.tell_machine(machine, event);
    }

    fn exited(&mut self, machine: MachineId, clean: bool) {
        let why = if clean { "it was asked to" } else { "bang" };
        self.tell_machine(machine, Event::Exited { clean, why: why.to_owned() });
    }

    /// The next step of the machine's command, unless the daemon that carried it out has died.
    pub fn step(&mut self, machine: MachineId, number: u64) {
        let Some(job) = self.jobs.get_mut(&machine).filter(|job| job.number == number) else { return };
        let step = job.step;
        job.step += 1;
        match job.command.clone() {
            Command::Adopt => self.adopt(machine),
            Command::Boot => self.boot(machine),
            Command::Wake => self.wake(machine, number, step),
            Command::Sleep { idle_since_packets } => self.sleep(machine, number, step, idle_since_packets),
            Command::Stop { .. } | Command::Kill => {
                self.host.end_vmm(machine, &[]);
                self.jobs.remove(&machine);
                self.exited(machine, true);
            }
        }
    }

    fn spawn(&mut self, machine: MachineId, phase: Phase, taken: Vec<PacketId>) -> u64 {
        let Some(facts) = self.facts(machine) else { return 0 };
        self.host.serials += 1;
        let serial = self.host.serials;
        let address = facts.guest.network.ipv4;
        let vmm = Vmm { serial, phase, tenant: facts.tenant, address, taken, saved: Vec::new() };
        if self.host.place(machine).vmm.replace(vmm).is_some() {
            self.violate(format!("{machine} has two VMMs"));
        }
        serial
    }

    /// The guest's first instruction, or the first after a stop.
    fn run_guest(&mut self, machine: MachineId) {
        let place = self.host.place(machine);
        place.disk += 1;
        if let Some(vmm) = &mut place.vmm {
            vmm.phase = Phase::Running;
            vmm.saved.clear();
            let serial = vmm.serial;
            self.soon(10, 500, Happening::Read { machine, serial });
            self.soon(500, 20_000, Happening::Work { machine, serial });
        }
    }

    fn boot(&mut self, machine: MachineId) {
        if self.chance(self.scenario.faults.start_failure) {
            return self.finish(machine, Event::StartFailed { why: "no memory".into() });
        }
        // Whatever snapshot is there would be older than the disk from now on.
        let aside = self.host.place(machine).snapshot.take();
        self.host.lose(aside.into_iter().flat_map(|snapshot| snapshot.taken));
        let serial = self.spawn(machine, Phase::Booting, Vec::new());
        self.soon(500_000, 3_000_000, Happening::GuestUp { machine, serial });
    }

    pub fn guest_up(&mut self, machine: MachineId, serial: u64) {
        let booting = |vmm: &&mut Vmm| vmm.serial == serial && vmm.phase == Phase::Booting;
        if self.host.vmm(machine).filter(booting).is_none() {
            return;
        }
        self.run_guest(machine);
        if self.jobs.get(&machine).is_some_and(|job| job.command == Command::Boot) {
            self.report.boots += 1;
            self.finish(machine, Event::Started);
        }
    }

    fn wake(&mut self, machine: MachineId, number: u64, step: u8) {
        let fails = self.chance(self.scenario.faults.start_failure);
        let place = self.host.place(machine);
        if step == 0 {
            if place.snapshot.as_ref().is_none_or(|snapshot| !snapshot.good) {
                let aside = place.snapshot.take();
                self.host.lose(aside.into_iter().flat_map(|snapshot| snapshot.taken));
                self.report.refused_snapshots += 1;
                return self
                    .finish(machine, Event::SnapshotRefused { why: "it is missing or damaged".into() });
            }
            self.spawn(machine, Phase::Restoring, Vec::new());
            return self.next_step(machine, number, 20_000, 200_000);
        }
        if fails {
            self.host.end_vmm(machine, &[]);
            return self.finish(machine, Event::StartFailed { why: "the VMM did not come up".into() });
        }
        let Some(snapshot) = place.snapshot.clone() else { return };
        if snapshot.disk != place.disk {
            return self.violate(format!("{machine} woke from a snapshot older than its disk"));
        }
        if !snapshot.complete {
            return self.violate(format!("{machine} woke from a snapshot that was cut short"));
        }
        if self.scenario.bug != Some(Bug::SnapshotNotConsumed) {
            place.snapshot = None;
        }
        if let Some(vmm) = &mut place.vmm {
            vmm.taken = snapshot.taken;
        }
        self.run_guest(machine);
        self.report.wakes += 1;
        self.finish(machine, Event::Started);
    }

    fn sleep(&mut self, machine: MachineId, number: u64, step: u8, idle_since_packets: u64) {
        let fails = step == 2 && self.chance(self.scenario.faults.sleep_failure);
        let place = self.host.place(machine);
        let idle = place.delivered == idle_since_packets && place.tap.is_empty();
        let idle = idle || self.scenario.bug == Some(Bug::SleepIgnoresPackets);
        let disk = place.disk;
        let Some(vmm) = &mut place.vmm else { return };
        match step {
            // The vCPUs stop, the devices' state is saved; the process may still take packets.
            0 => {
                vmm.phase = Phase::Stopped;
                vmm.saved = vmm.taken.clone();
                self.next_step(machine, number, 1_000, 10_000);
            }
            // Frozen; from here the memory is written.
            1 => {
                vmm.phase = Phase::Frozen;
                if !idle {
                    return self.cancel_sleep(machine);
                }
                if self.scenario.bug == Some(Bug::SnapshotInPlace) {
                    let taken = vmm.saved.clone();
                    place.snapshot = Some(Snapshot { disk, good: true, complete: false, taken });
                }
                self.next_step(machine, number, 50_000, 500_000);
            }
            2 if fails => {
                self.thaw(machine);
                self.finish(machine, Event::SleepFailed { why: "the disk is full".into() });
            }
            2 if !idle => self.cancel_sleep(machine),
            2 => {
                let taken = vmm.saved.clone();
                place.snapshot = Some(Snapshot { disk, good: true, complete: true, taken });
                self.next_step(machine, number, 100, 2_000);
            }
            // Nothing may be lost here, so nothing is excused: what was taken and not saved will be missed.
            _ => {
                place.vmm = None;
                self.report.sleeps += 1;
                self.finish(machine, Event::Slept);
            }
        }
    }

    fn cancel_sleep(&mut self, machine: MachineId) {
        self.thaw(machine);
        self.report.cancelled_sleeps += 1;
        self.finish(machine, Event::SleepCancelled);
    }

    fn thaw(&mut self, machine: MachineId) {
        let forgets = self.scenario.bug == Some(Bug::ThawForgetsPackets);
        let place = self.host.place(machine);
        if place.snapshot.as_ref().is_some_and(|snapshot| !snapshot.complete) {
            place.snapshot = None;
        }
        if let Some(vmm) = &mut place.vmm
            && forgets
        {
            vmm.taken = vmm.saved.clone();
        }
        self.run_guest(machine);
    }

    fn adopt(&mut self, machine: MachineId) {
        let blind = self.scenario.bug == Some(Bug::AdoptIsBlind);
        let place = self.host.place(machine);
        let has_snapshot = place.snapshot.as_ref().is_some_and(|snapshot| snapshot.good);
        let phase = place.vmm.as_ref().map(|vmm| vmm.phase).filter(|_| !blind);
        let event = match phase {
            None => Event::NothingToAdopt { has_snapshot },
            // Its guest has not run: the snapshot is still the truth.
            Some(Phase::Restoring) => {
                place.vmm = None;
                Event::NothingToAdopt { has_snapshot }
            }
            Some(Phase::Booting | Phase::Running) => Event::Adopted,
            // The snapshot was complete; only the end of the process was missing.
            Some(Phase::Stopped | Phase::Frozen) if has_snapshot => {
                place.vmm = None;
                Event::NothingToAdopt { has_snapshot }
            }
            Some(Phase::Stopped | Phase::Frozen) => {
                self.thaw(machine);
                Event::Adopted
            }
        };
        self.finish(machine, event);
    }

    /// A VMM dies by itself.
    pub fn crash_vmm(&mut self, machine: MachineId) {
        if self.host.end_vmm(machine, &[]).is_none() {
            return;
        }
        self.report.vmm_crashes += 1;
        match self.jobs.get(&machine).map(|job| job.command.clone()) {
            Some(Command::Adopt) => {}
            Some(Command::Boot | Command::Wake) => {
                self.finish(machine, Event::StartFailed { why: "bang".into() })
            }
            Some(Command::Sleep { .. }) => {
                if self.chance(500) {
                    self.finish(machine, Event::SleepFailed { why: "bang".into() });
                }
                self.jobs.remove(&machine);
                self.exited(machine, false);
            }
            Some(Command::Stop { .. } | Command::Kill) => {
                self.jobs.remove(&machine);
                self.exited(machine, false);
            }
            None => self.exited(machine, false),
        }
    }
}

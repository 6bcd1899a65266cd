//! The world: one clock, one queue of what happens when, the engine, and the checks.

use crate::{
    Bug, Report, Scenario, Violation,
    driver::Job,
    host::{Fate, Host, Packet, Phase},
    random::Random,
    store::FakeStore,
};
use cloudpal_compute::{image::ImageConfig, life};
use cloudpal_control::{
    effect::Effect,
    engine::{Engine, MachineFacts, Settings},
    event::{Event, Image},
    request::{Accepted, Request},
    view::TenantView,
};
use cloudpal_model::{Kind, MachineId, Now, OperationId, PrivateKey, Problem, TenantId};
use cloudpal_net::plan::NetPlan;
use std::collections::{BTreeMap, BTreeSet};

const SAMPLE_US: u64 = 500_000;

#[derive(Debug)]
pub enum Happening {
    Burst,
    Read {
        machine: MachineId,
        serial: u64,
    },
    Work {
        machine: MachineId,
        serial: u64,
    },
    GuestUp {
        machine: MachineId,
        serial: u64,
    },
    Step {
        machine: MachineId,
        number: u64,
    },
    CrashVmm {
        machine: MachineId,
    },
    CrashDaemon,
    LosePower,
    DaemonUp,
    /// The rest is the daemon's own, and dies with it.
    Tell {
        daemon: u64,
        event: Box<Event>,
    },
    Apply {
        daemon: u64,
        plan: Box<NetPlan>,
    },
    Import {
        daemon: u64,
        operation: OperationId,
    },
    Sample {
        daemon: u64,
    },
    Tick {
        daemon: u64,
        at_us: u64,
    },
}

pub struct World {
    seed: u64,
    pub scenario: Scenario,
    pub random: Random,
    pub now_us: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    happenings: u64,
    pub disk: FakeStore,
    pub engine: Option<Engine<FakeStore>>,
    /// Which daemon it is: it grows with each restart.
    daemon: u64,
    next_tick_us: Option<u64>,
    pub host: Host,
    pub jobs: BTreeMap<MachineId, Job>,
    pub job_numbers: u64,
    pub watching: BTreeSet<MachineId>,
    pub report: Report,
    violation: Option<String>,
    /// What the people know.
    pub known: Vec<TenantView>,
    pub private_keys: Vec<PrivateKey>,
    pub bursts_left: u32,
    pub names: u64,
}

impl World {
    pub fn new(seed: u64, scenario: Scenario) -> World {
        World {
            seed,
            random: Random::new(seed),
            now_us: 0,
            queue: BTreeMap::new(),
            happenings: 0,
            disk: FakeStore::default(),
            engine: None,
            daemon: 0,
            next_tick_us: None,
            host: Host::default(),
            jobs: BTreeMap::new(),
            job_numbers: 0,
            watching: BTreeSet::new(),
            report: Report::default(),
            violation: None,
            known: Vec::new(),
            private_keys: Vec::new(),
            bursts_left: scenario.bursts,
            names: 0,
            scenario,
        }
    }

    pub fn run(mut self) -> Result<Report, Violation> {
        let faults = std::mem::take(&mut self.scenario.faults);
        self.daemon_up();
        self.settle_in();
        self.run_for(60_000_000);
        self.scenario.faults = faults;
        self.soon(0, 1000, Happening::Burst);
        while self.bursts_left > 0 && self.violation.is_none() {
            self.run_for(1_000_000);
        }
        self.scenario.faults = crate::Faults::default();
        self.disk.disk().failing = 0;
        self.run_for(90_000_000);
        self.start_everything();
        self.run_for(90_000_000);
        self.check_nothing_waits();
        let last = self.ask_everything();
        self.run_for(90_000_000);
        self.check_the_end(last);
        self.report.simulated_us = self.now_us;
        self.report.store_commits = self.disk.disk().commits;
        match self.violation {
            None => Ok(self.report),
            Some(what) => Err(Violation { seed: self.seed, at_us: self.now_us, what }),
        }
    }

    pub fn violate(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub fn now(&self) -> Now {
        Now { mono_us: self.now_us, wall_ms: 1_800_000_000_000 + self.now_us / 1000 }
    }

    pub fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.random.per_mille(per_mille)
    }

    pub fn soon(&mut self, low_us: u64, high_us: u64, happening: Happening) {
        let at_us = self.now_us + self.random.between(low_us, high_us);
        self.at(at_us, happening);
    }

    fn at(&mut self, at_us: u64, happening: Happening) {
        self.happenings += 1;
        self.queue.insert((at_us, self.happenings), happening);
    }

    fn run_for(&mut self, us: u64) {
        let end_us = self.now_us + us;
        while self.violation.is_none() {
            match self.queue.first_entry() {
                Some(first) if first.key().0 <= end_us => {
                    let ((at_us, _), happening) = first.remove_entry();
                    self.now_us = at_us;
                    self.happen(happening);
                }
                _ => break,
            }
        }
        self.now_us = end_us;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Burst => self.burst(),
            Happening::Read { machine, serial } => self.read(machine, serial),
            Happening::Work { machine, serial } => self.work(machine, serial),
            Happening::GuestUp { machine, serial } => self.guest_up(machine, serial),
            Happening::Step { machine, number } => self.step(machine, number),
            Happening::CrashVmm { machine } => self.crash_vmm(machine),
            Happening::CrashDaemon => self.crash_daemon(),
            Happening::LosePower => self.lose_power(),
            Happening::DaemonUp => self.daemon_up(),
            Happening::Tell { daemon, event } if daemon == self.daemon => self.hear(*event),
            Happening::Apply { daemon, plan } if daemon == self.daemon => self.apply(*plan),
            Happening::Import { daemon, operation } if daemon == self.daemon => self.import(operation),
            Happening::Sample { daemon } if daemon == self.daemon => self.sample(),
            Happening::Tick { daemon, at_us }
                if daemon == self.daemon && self.next_tick_us == Some(at_us) =>
            {
                self.next_tick_us = None;
                self.with_engine(|engine, now| engine.tick(now));
            }
            // Of a daemon that is no more.
            _ => {}
        }
    }

    /// Lets the engine do something, then carries out what it wants.
    pub fn with_engine<T>(&mut self, act: impl FnOnce(&mut Engine<FakeStore>, Now) -> T) -> Option<T> {
        let now = self.now();
        let engine = self.engine.as_mut()?;
        let result = act(engine, now);
        for effect in engine.take_effects() {
            self.carry_out(effect);
        }
        let deadline_us = self.engine.as_ref()?.next_deadline().map(|at_us| at_us.max(self.now_us));
        if deadline_us != self.next_tick_us {
            self.next_tick_us = deadline_us;
            if let Some(at_us) = deadline_us {
                self.at(at_us, Happening::Tick { daemon: self.daemon, at_us });
            }
        }
        Some(result)
    }

    fn hear(&mut self, event: Event) {
        self.with_engine(|engine, now| engine.event(now, event));
    }

    fn tell(&mut self, low_us: u64, high_us: u64, event: Event) {
        if self.engine.is_some() {
            self.soon(low_us, high_us, Happening::Tell { daemon: self.daemon, event: Box::new(event) });
        }
    }

    /// At once, so that what is told of one machine stays in order.
    pub fn tell_machine(&mut self, machine: MachineId, event: life::Event) {
        self.tell(0, 0, Event::Machine { machine, event });
    }

    pub fn facts(&self, machine: MachineId) -> Option<MachineFacts> {
        self.engine.as_ref()?.facts(machine)
    }

    pub fn net_is_ready(&self, machine: MachineId) -> bool {
        self.facts(machine).is_some_and(|facts| self.host.has_tap(facts.tenant, machine))
    }

    fn carry_out(&mut self, effect: Effect) {
        let daemon = self.daemon;
        match effect {
            Effect::ApplyNet { plan } => self.soon(1_000, 20_000, Happening::Apply { daemon, plan }),
            Effect::RemoveNet { tenant } => {
                self.host.nets.remove(&tenant);
                self.tell(1_000, 10_000, Event::NetRemoved { tenant });
            }
            Effect::ImportImage { operation, .. } => {
                self.soon(50_000, 500_000, Happening::Import { daemon, operation });
            }
            Effect::Machine { machine, command } => self.command(machine, command),
            Effect::WatchTap { machine } => self.watch(machine),
            Effect::RemoveMachine { machine } => {
                if self.host.vmm(machine).is_some() {
                    self.violate(format!("{machine} is removed while its VMM runs"));
                }
                self.host.remove(machine);
                self.tell(1_000, 10_000, Event::MachineRemoved { machine });
            }
        }
    }

    fn watch(&mut self, machine: MachineId) {
        if !self.net_is_ready(machine) {
            return self.violate(format!("{machine}: its TAP is watched before it is there"));
        }
        self.watching.insert(machine);
        if !self.host.place(machine).tap.is_empty() && self.scenario.bug != Some(Bug::WatchMissesQueued) {
            self.packet_waits(machine);
        }
    }

    /// A packet is in the machine's TAP: a running VMM reads it, a watching daemon hears of it.
    pub fn packet_waits(&mut self, machine: MachineId) {
        if let Some(vmm) = self.host.vmm(machine) {
            let serial = vmm.serial;
            self.soon(10, 500, Happening::Read { machine, serial });
        }
        if self.watching.remove(&machine) {
            self.tell(50, 500, Event::PacketWaiting { machine });
        }
    }

    fn apply(&mut self, plan: NetPlan) {
        let tenant = plan.tenant;
        if self.chance(self.scenario.faults.net_failure) {
            let problem = Problem::new(Kind::HostLacks, "no netlink today", "try again");
            return self.tell(0, 1_000, Event::NetFailed { tenant, problem });
        }
        self.host.apply(plan);
        self.tell(0, 1_000, Event::NetApplied { tenant });
    }

    fn import(&mut self, operation: OperationId) {
        if self.chance(self.scenario.faults.image_failure) {
            let problem = Problem::new(Kind::BadImage, "a digest is wrong", "build the image again");
            return self.hear(Event::ImageFailed { operation, problem });
        }
        let entrypoint = vec!["/app".to_owned()];
        let config = ImageConfig { entrypoint, exposed_tcp_ports: vec![80], ..ImageConfig::default() };
        let image = Image { digest: "sha256:00".to_owned(), config, rootfs_bytes: 1, has_kernel: false };
        self.hear(Event::ImageReady { operation, image });
    }

    fn sample(&mut self) {
        self.at(self.now_us + SAMPLE_US, Happening::Sample { daemon: self.daemon });
        let running =
            |place: &crate::host::Place| place.vmm.as_ref().is_some_and(|vmm| vmm.phase != Phase::Restoring);
        let samples: Vec<_> = self.host.places.iter().filter(|(_, place)| running(place)).collect();
        let samples: Vec<_> =
            samples.into_iter().map(|(id, place)| (*id, place.delivered, place.cpu_us)).collect();
        for (machine, delivered_packets, cpu_us) in samples {
            self.hear(Event::Activity { machine, delivered_packets, cpu_us });
        }
    }

    /// The VMM takes what is in the TAP, unless it is frozen or not ready.
    fn read(&mut self, machine: MachineId, serial: u64) {
        let place = self.host.place(machine);
        let Some(vmm) = place.vmm.as_mut().filter(|vmm| vmm.serial == serial) else { return };
        if !matches!(vmm.phase, Phase::Running | Phase::Stopped) || place.tap.is_empty() {
            return;
        }
        place.delivered += place.tap.len() as u64;
        vmm.taken.extend(place.tap.drain(..));
        self.soon(500, 20_000, Happening::Work { machine, serial });
    }

    /// The guest answers what the VMM took.
    fn work(&mut self, machine: MachineId, serial: u64) {
        let place = self.host.place(machine);
        let Some(vmm) = place.vmm.as_mut().filter(|vmm| vmm.serial == serial) else { return };
        if vmm.phase != Phase::Running {
            return;
        }
        let (tenant, address) = (vmm.tenant, vmm.address);
        let taken = std::mem::take(&mut vmm.taken);
        place.cpu_us += 1000 * taken.len() as u64;
        for id in taken {
            let packet = &mut self.host.packets[id];
            if packet.tenant != tenant || packet.to != address {
                let what = format!(
                    "{machine} of {tenant} at {address} got a packet of {} to {}",
                    packet.tenant, packet.to
                );
                return self.violate(what);
            }
            match packet.fate {
                Fate::UnderWay => packet.fate = Fate::Answered,
                Fate::Answered => return self.violate(format!("packet {id} was answered twice")),
                Fate::LostInCrash | Fate::Refused => {}
            }
        }
    }

    fn daemon_up(&mut self) {
        if self.engine.is_some() {
            return;
        }
        let settings = Settings {
            domain_suffix: "pal".to_owned(),
            endpoint_host: "192.0.2.1".to_owned(),
            first_port: 51820,
        };
        match Engine::open(self.disk.clone(), settings, self.now()) {
            Ok(engine) => self.engine = Some(engine),
            Err(problem) => return self.violate(format!("the engine does not open: {problem}")),
        }
        self.at(self.now_us + SAMPLE_US, Happening::Sample { daemon: self.daemon });
        self.with_engine(|_, _| ());
    }

    fn daemon_gone(&mut self) {
        self.daemon += 1;
        self.engine = None;
        self.next_tick_us = None;
        self.jobs.clear();
        self.watching.clear();
        self.host.daemon_died();
        self.soon(100_000, 5_000_000, Happening::DaemonUp);
    }

    fn crash_daemon(&mut self) {
        if self.engine.is_some() {
            self.report.daemon_crashes += 1;
            self.daemon_gone();
        }
    }

    fn lose_power(&mut self) {
        if self.engine.is_some() {
            self.report.power_losses += 1;
            self.host.power_lost();
            self.daemon_gone();
        }
    }

    /// Somebody asks for something; a refusal must have changed nothing.
    pub fn request(&mut self, request: Request) -> Option<Accepted> {
        let before = self.engine.as_ref()?.view();
        let mut secrets = Random::new(self.random.next());
        let shown = format!("{request:?}");
        let mut fill = |bytes: &mut [u8]| secrets.fill(bytes);
        let result = self.with_engine(|engine, now| engine.request(now, "sim", request, &mut fill))?;
        match result {
            Ok(accepted) => {
                if let Accepted::DeviceAdded { profile, .. } = &accepted {
                    self.private_keys.push(profile.private_key.clone());
                }
                Some(accepted)
            }
            Err(problem) => {
                self.report.refused_requests += 1;
                if self.engine.as_ref().is_some_and(|engine| engine.view() != before) {
                    self.violate(format!("{shown} was refused, yet changed something: {problem}"));
                }
                None
            }
        }
    }

    /// No packet waits for a later one to be noticed.
    fn check_nothing_waits(&mut self) {
        let waits = |packet: &Packet| packet.fate == Fate::UnderWay;
        if let Some((id, packet)) = self.host.packets.iter().enumerate().find(|(_, packet)| waits(packet)) {
            let what = format!("packet {id} of {} to {} was never answered", packet.tenant, packet.to);
            self.violate(what);
        }
    }

    /// Everything that must hold when all is quiet. `last`: packets that must have been answered.
    fn check_the_end(&mut self, last: Vec<(TenantId, MachineId, usize)>) {
        for (tenant, machine, id) in last {
            let fate = self.host.packets[id].fate;
            if fate != Fate::Answered {
                let state = self.engine.as_ref().map(Engine::view).unwrap_or_default();
                let apps = state.tenants.into_iter().flat_map(|tenant| tenant.apps);
                let app = apps.into_iter().find(|app| app.machine == machine);
                let app = app.map(|app| format!("{} ({})", app.state, app.note));
                self.violate(format!("{machine} of {tenant} does not answer any more: {fate:?}, {app:?}"));
            }
        }
        for (id, packet) in self.host.packets.iter().enumerate() {
            match packet.fate {
                Fate::Answered => self.report.answered += 1,
                Fate::LostInCrash => self.report.lost_in_crashes += 1,
                Fate::Refused => self.report.refused += 1,
                Fate::UnderWay => {
                    let what = format!("packet {id} of {} to {} was lost", packet.tenant, packet.to);
                    self.violation.get_or_insert(what);
                }
            }
        }
        self.report.packets = self.host.packets.len() as u64;
        self.check_keys();
    }

    fn check_keys(&mut self) {
        let disk = self.disk.disk();
        let texts: Vec<String> = self.private_keys.iter().map(PrivateKey::to_base64).collect();
        for (record, value) in &disk.records {
            let holds = |needle: &[u8]| value.windows(needle.len()).any(|window| window == needle);
            if texts.iter().any(|text| holds(text.as_bytes()))
                || self.private_keys.iter().any(|key| holds(&key.0))
            {
                self.violation.get_or_insert(format!("the record {record} has a device's private key"));
            }
        }
    }
}

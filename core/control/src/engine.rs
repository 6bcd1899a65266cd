//! The engine: owns what is wanted, hears what happens, and says what to do next.
//!
//! Invariants:
//! - A request is checked, then made durable in one batch with its operation, then taken into memory, then acted
//!   upon. When the store refuses, nothing has changed.
//! - After a restart, `open` asks the host for everything that memory cannot know, and so reaches the wanted state
//!   again.

use crate::{
    effect::Effect,
    event::Event,
    household::{self, App, Household, Tenant},
    operations::Later,
    records::{self, AppRecord, DeviceRecord, InstallRecord, Meta, TenantRecord, WantedRecord},
    request::{Accepted, Request},
    view::{OperationState, OperationView},
};
use cloudpal_compute::life::{Input, Machine, Origin};
use cloudpal_model::{
    Kind, MachineId, Now, OperationId, Problem, TenantId, guest::GuestConfig, store::Store,
};
use cloudpal_net::{address, address::Range, domain::Domain, profile::EndpointHost};
use std::collections::{BTreeMap, BTreeSet};

pub use crate::settings::Settings;

/// What the daemon must know of a machine to build its VMM. The digest names the image.
#[derive(Clone, Debug, PartialEq)]
pub struct MachineFacts {
    pub tenant: TenantId,
    pub digest: String,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub disk_mib: u32,
    pub mac: [u8; 6],
    /// The command line of a unikernel, in whose place `guest` is not used.
    pub command_line: Option<String>,
    /// Complete but for `wall_us` and `entropy_base64`, which belong to each boot.
    pub guest: GuestConfig,
}

/// Everything that one host decides. One task owns it.
pub struct Engine<S: Store> {
    pub(crate) store: S,
    pub(crate) settings: Settings,
    pub(crate) endpoint: EndpointHost,
    pub(crate) meta: Meta,
    pub(crate) household: Household,
    pub(crate) operations: BTreeMap<OperationId, OperationView>,
    pub(crate) operation_changes: u64,
    pub(crate) later: Later,
    /// What the store said last; empty: nothing is wrong with it.
    pub(crate) store_trouble: String,
    /// Removed, but the host has not said yet that nothing of them is left.
    pub(crate) leaving: BTreeSet<MachineId>,
    pub(crate) effects: Vec<Effect>,
}

impl<S: Store> Engine<S> {
    /// Reads the store, and asks the host for the rest: every network, every machine, every import that was cut short.
    pub fn open(store: S, settings: Settings, now: Now) -> Result<Engine<S>, Problem> {
        let endpoint = settings.endpoint_host.parse::<EndpointHost>()?;
        format!("a.{}", settings.domain_suffix).parse::<Domain>()?;
        let records = store.load()?;
        let mut engine = Engine {
            store,
            settings,
            endpoint,
            meta: Meta::default(),
            household: Household::default(),
            operations: BTreeMap::new(),
            operation_changes: 0,
            later: Later::default(),
            store_trouble: String::new(),
            leaving: BTreeSet::new(),
            effects: Vec::new(),
        };
        let mut apps = Vec::new();
        let mut devices = Vec::new();
        for (key, value) in &records {
            engine.take_in(key, value, &mut devices, &mut apps)?;
        }
        for device in devices {
            engine.take_in_device(device)?;
        }
        let mut adoptions = Vec::new();
        for app in apps {
            adoptions.extend(engine.take_in_app(now, app)?);
        }
        for tenant in engine.tenants() {
            if !engine.tenant_left(now, tenant) {
                engine.net_changed(tenant);
            }
        }
        engine.effects.extend(adoptions);
        engine.resume_installs(now);
        Ok(engine)
    }

    fn take_in(
        &mut self,
        key: &str,
        value: &[u8],
        devices: &mut Vec<DeviceRecord>,
        apps: &mut Vec<AppRecord>,
    ) -> Result<(), Problem> {
        if key == records::META {
            self.meta = records::read(key, value)?;
            if self.meta.format != records::FORMAT {
                let what = format!(
                    "the state store has format {}; this is for {}",
                    self.meta.format,
                    records::FORMAT
                );
                return Err(Problem::new(
                    Kind::Refused,
                    what,
                    "run the version of CloudPal that wrote it, or a newer one",
                ));
            }
        } else if key.starts_with(records::TENANT) {
            let record: TenantRecord = records::read(key, value)?;
            self.household.tenants.insert(record.id, Tenant::new(record));
        } else if key.starts_with(records::DEVICE) {
            devices.push(records::read(key, value)?);
        } else if key.starts_with(records::APP) {
            apps.push(records::read(key, value)?);
        } else if key.starts_with(records::INSTALL) {
            let record: InstallRecord = records::read(key, value)?;
            self.household.installs.insert(record.operation, record);
        } else if key.starts_with(records::OPERATION) {
            let record: OperationView = records::read(key, value)?;
            self.operations.insert(record.id, record);
        } else if key.starts_with(records::GONE_TENANT) {
            self.effects.push(Effect::RemoveNet { tenant: records::read(key, value)? });
        } else {
            return Err(records::damaged(key, "nobody knows this key"));
        }
        Ok(())
    }

    fn take_in_device(&mut self, device: DeviceRecord) -> Result<(), Problem> {
        let key = records::key(records::DEVICE, device.id.0);
        let tenant = self.household.tenants.get_mut(&device.tenant);
        let tenant = tenant.ok_or_else(|| records::damaged(&key, "its tenant is missing"))?;
        if device.slot >= Range::Devices.slots() {
            return Err(records::damaged(&key, "its address is out of range"));
        }
        tenant.devices.insert(device.name.clone(), device);
        Ok(())
    }

    /// Returns the question whether its VMM outlived the last daemon.
    fn take_in_app(&mut self, now: Now, record: AppRecord) -> Result<Option<Effect>, Problem> {
        let id = record.machine;
        let key = records::key(records::APP, id.0);
        let removed = record.wanted == WantedRecord::Removed;
        let Some(tenant) = self.household.tenants.get_mut(&record.tenant) else {
            if !removed {
                return Err(records::damaged(&key, "its tenant is missing"));
            }
            self.leaving.insert(id);
            return Ok(Some(Effect::RemoveMachine { machine: id }));
        };
        if record.slot >= Range::Apps.slots() {
            return Err(records::damaged(&key, "its address is out of range"));
        }
        if !removed {
            tenant.apps.insert(record.name.clone(), id);
        }
        tenant.machines.insert(id);
        // It is in the first plan of this tenant.
        let needs_net = 1;
        let origin = Origin::Known { wanted: (&record.wanted).into() };
        let (machine, command) = Machine::new(now.mono_us, App::policy(&record.manifest), origin);
        self.household.apps.insert(id, App { record, machine, since_wall_ms: now.wall_ms, needs_net });
        Ok(command.map(|command| Effect::Machine { machine: id, command }))
    }

    /// Imports that a restart cut short are begun again; other operations cannot be, and end.
    fn resume_installs(&mut self, now: Now) {
        for install in self.household.installs.values() {
            self.effects.extend(self.household.import(install));
        }
        let running =
            self.operations.values().filter(|op| matches!(op.state, OperationState::Running { .. }));
        let cut: Vec<_> =
            running.map(|op| op.id).filter(|id| !self.household.installs.contains_key(id)).collect();
        for id in cut {
            let problem =
                Problem::new(Kind::Unavailable, "the daemon ended before it was done", "ask for it again");
            self.end_operation(now, id, OperationState::Failed { problem });
        }
    }

    /// What somebody asks for. `random` fills a buffer with secret random bytes.
    pub fn request(
        &mut self,
        now: Now,
        actor: &str,
        request: Request,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Accepted, Problem> {
        match request {
            Request::TenantAdd { name, subnet_v4, prefix_v6 } => {
                self.tenant_add(now, actor, name, (subnet_v4, prefix_v6), random)
            }
            Request::TenantRemove { name } => self.tenant_remove(now, actor, &name),
            Request::DeviceAdd { tenant, name, exit } => {
                self.device_add(now, actor, &tenant, name, exit, random)
            }
            Request::DeviceRevoke { tenant, name } => self.device_revoke(now, actor, &tenant, &name),
            Request::AppInstall { tenant, name, app } => self.app_install(now, actor, &tenant, name, app),
            Request::AppRemove { tenant, name } => self.app_remove(now, actor, &tenant, &name),
            Request::MachineStart { tenant, name } => {
                self.machine_ask(now, actor, (&tenant, &name), Input::Start)
            }
            Request::MachineSleep { tenant, name } => {
                self.machine_ask(now, actor, (&tenant, &name), Input::Sleep)
            }
            Request::MachineStop { tenant, name } => {
                self.machine_ask(now, actor, (&tenant, &name), Input::Stop)
            }
        }
    }

    /// What the host tells.
    pub fn event(&mut self, now: Now, event: Event) {
        match event {
            Event::NetApplied { tenant } => self.net_applied(now, tenant),
            Event::NetFailed { tenant, problem } => self.net_failed(now, tenant, &problem),
            Event::NetRemoved { tenant } => self.net_removed(now, tenant),
            Event::ImageProgress { operation, done_bytes, total_bytes, stage } => {
                self.image_progress(operation, OperationState::Running { stage, done_bytes, total_bytes });
            }
            Event::ImageReady { operation, image } => self.image_ready(now, operation, image),
            Event::ImageFailed { operation, problem } => self.install_failed(now, operation, problem),
            Event::OperationEnded { operation, outcome } => {
                let state = match outcome {
                    Ok(()) => OperationState::Done,
                    Err(problem) => OperationState::Failed { problem },
                };
                self.end_operation(now, operation, state);
            }
            Event::PacketWaiting { machine } => self.machine_input(now, machine, Input::PacketWaiting),
            Event::Activity { machine, delivered_packets, cpu_us } => {
                self.machine_input(now, machine, Input::Activity { delivered_packets, cpu_us });
            }
            Event::Machine { machine, event } => self.machine_input(now, machine, Input::Event(event)),
            Event::MachineRemoved { machine } => self.machine_removed(now, machine),
            Event::DeviceSeen { tenant, public_key, endpoint } => {
                self.device_seen(now, tenant, &public_key, endpoint)
            }
        }
        self.flush_later(now);
    }

    /// Time has passed: call it at [`Engine::next_deadline`], or whenever.
    pub fn tick(&mut self, now: Now) {
        let due = |app: &App| app.machine.next_deadline().is_some_and(|at_us| at_us <= now.mono_us);
        let machines: Vec<_> =
            self.household.apps.iter().filter(|(_, app)| due(app)).map(|(id, _)| *id).collect();
        for machine in machines {
            self.machine_input(now, machine, Input::Tick);
        }
        self.retry_nets(now);
        self.flush_later(now);
    }

    /// What must be done, in this order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// When [`Engine::tick`] is due, if nothing else happens (monotonic microseconds).
    pub fn next_deadline(&self) -> Option<u64> {
        let machines = self.household.apps.values().filter_map(|app| app.machine.next_deadline());
        let nets = self.household.tenants.values().filter_map(|tenant| tenant.net.retry_at_us);
        machines.chain(nets).chain(self.later.due_us()).min()
    }

    /// Whose networks the host must have: also of those that are just leaving, and that no [`Engine::view`] shows.
    pub fn tenants(&self) -> Vec<TenantId> {
        self.household.tenants.keys().copied().collect()
    }

    /// What the daemon needs to build the machine's VMM; `None`: there is no such machine.
    pub fn facts(&self, machine: MachineId) -> Option<MachineFacts> {
        let app = self.household.apps.get(&machine)?;
        let tenant = self.household.tenants.get(&app.record.tenant)?;
        let manifest = &app.record.manifest;
        let guest = self.household.guest(tenant, app);
        Some(MachineFacts {
            command_line: household::command_line(app, &guest),
            tenant: tenant.record.id,
            digest: app.record.image.digest.clone(),
            memory_mib: manifest.memory_mib,
            vcpus: manifest.vcpus,
            disk_mib: manifest.disk_mib,
            mac: address::machine_mac(machine),
            guest,
        })
    }
}

//! Wanted against actual: networks and machines, and the wake arm that joins them.
//!
//! Invariants: one `ApplyNet` per tenant is under way at a time, and the next one says what is wanted then; a machine
//! is told that its network is there only after a plan with that machine in it was applied.

use crate::{effect::Effect, engine::Engine, household::App, records, records::WantedRecord};
use cloudpal_compute::life::{Command, Event as LifeEvent, Input, State};
use cloudpal_model::{
    MachineId, Now, Problem, PublicKey, TenantId,
    store::{Change, Store},
};
use std::net::SocketAddr;

/// The pause before a network that failed is tried again, the first time and at most.
const FIRST_RETRY_US: u64 = 1_000_000;
const MAX_RETRY_US: u64 = 60_000_000;
/// What is only remembered for comfort reaches the store at most this often.
const COMFORT_WRITE_US: u64 = 5_000_000;

impl<S: Store> Engine<S> {
    /// The tenant's network must be another now.
    pub(crate) fn net_changed(&mut self, id: TenantId) {
        let Some(tenant) = self.household.tenants.get_mut(&id) else { return };
        tenant.net.wanted += 1;
        tenant.net.retry_at_us = None;
        if tenant.net.in_flight.is_none() {
            self.apply_net(id);
        }
    }

    fn apply_net(&mut self, id: TenantId) {
        let Some(tenant) = self.household.tenants.get_mut(&id) else { return };
        tenant.net.in_flight = Some(tenant.net.wanted);
        tenant.net.retry_at_us = None;
        let Some(tenant) = self.household.tenants.get(&id) else { return };
        self.effects.push(Effect::ApplyNet { plan: Box::new(self.household.plan(tenant)) });
    }

    pub(crate) fn net_applied(&mut self, now: Now, id: TenantId) {
        let Some(tenant) = self.household.tenants.get_mut(&id) else { return };
        let Some(applied) = tenant.net.in_flight.take() else { return };
        tenant.net.applied = applied;
        tenant.net.failures = 0;
        tenant.net.trouble.clear();
        let behind = tenant.net.wanted > applied;
        let apps = tenant.machines.iter().filter_map(|machine| self.household.apps.get(machine));
        let ready = apps.filter(|app| app.needs_net <= applied && !app.machine.net_is_ready());
        let ready: Vec<MachineId> = ready.map(|app| app.record.machine).collect();
        if behind {
            self.apply_net(id);
        }
        for machine in ready {
            self.machine_input(now, machine, Input::NetReady);
        }
    }

    pub(crate) fn net_failed(&mut self, now: Now, id: TenantId, problem: &Problem) {
        let Some(tenant) = self.household.tenants.get_mut(&id) else { return };
        let net = &mut tenant.net;
        let Some(tried) = net.in_flight.take() else { return };
        net.trouble = problem.to_string();
        net.failures = net.failures.saturating_add(1);
        if net.wanted > tried {
            self.apply_net(id);
            return;
        }
        let pause_us = FIRST_RETRY_US.saturating_mul(1 << (net.failures - 1).min(10)).min(MAX_RETRY_US);
        net.retry_at_us = Some(now.mono_us.saturating_add(pause_us));
    }

    pub(crate) fn retry_nets(&mut self, now: Now) {
        let due = |at_us: Option<u64>| at_us.is_some_and(|at_us| at_us <= now.mono_us);
        let tenants = self.household.tenants.values().filter(|tenant| due(tenant.net.retry_at_us));
        for id in tenants.map(|tenant| tenant.record.id).collect::<Vec<_>>() {
            self.apply_net(id);
        }
    }

    pub(crate) fn net_removed(&mut self, now: Now, id: TenantId) {
        if !self.household.tenants.contains_key(&id) {
            let key = records::key(records::GONE_TENANT, id.0);
            self.write_later(Ok(Change::Delete { key }), now.mono_us);
        }
    }

    /// Feeds a machine, hands its command on, and has its TAP watched whenever a packet should start it.
    pub(crate) fn machine_input(&mut self, now: Now, id: MachineId, input: Input) {
        let Some(app) = self.household.apps.get_mut(&id) else { return };
        let watched = |app: &App| app.machine.net_is_ready() && app.machine.state().wants_watch();
        let was_watched = watched(app);
        let was_killed = matches!(app.machine.state(), State::Killed { .. });
        let since_us = app.machine.since_us();
        let fell_asleep = input == Input::Event(LifeEvent::Slept);
        let command: Option<Command> = app.machine.handle(now.mono_us, input);
        if app.machine.since_us() != since_us {
            app.since_wall_ms = now.wall_ms;
        }
        let watch = watched(app) && !was_watched;
        self.effects.extend(command.map(|command| Effect::Machine { machine: id, command }));
        if watch {
            self.effects.push(Effect::WatchTap { machine: id });
        }
        match app.machine.state().clone() {
            State::Killed { reason } if !was_killed => self.machine_killed(now, id, reason),
            State::Removed => self.machine_ended_for_ever(now, id),
            _ if fell_asleep => self.save_later(now.mono_us.saturating_add(COMFORT_WRITE_US), id),
            _ => {}
        }
    }

    fn machine_killed(&mut self, now: Now, id: MachineId, reason: String) {
        let Some(app) = self.household.apps.get_mut(&id) else { return };
        if app.record.wanted == (WantedRecord::Killed { reason: reason.clone() }) {
            return;
        }
        app.record.wanted = WantedRecord::Killed { reason: reason.clone() };
        let Some(tenant) = self.household.tenants.get(&app.record.tenant) else { return };
        let name = format!("{}/{}", tenant.record.name, app.record.name);
        let tenant_id = tenant.record.id;
        self.save_later(now.mono_us, id);
        self.note_operation(
            now,
            tenant_id,
            format!("machine kill {name}: {reason}"),
            format!("machine start {name}"),
        );
    }

    /// Counts since ever, for the record.
    pub(crate) fn save_later(&mut self, due_us: u64, id: MachineId) {
        let Some(app) = self.household.apps.get_mut(&id) else { return };
        let change = records::put(records::key(records::APP, id.0), &app.to_record());
        self.write_later(change, due_us);
    }

    /// The VMM of a removed app is no more: its files may go.
    fn machine_ended_for_ever(&mut self, now: Now, id: MachineId) {
        let Some(app) = self.household.apps.remove(&id) else { return };
        if let Some(tenant) = self.household.tenants.get_mut(&app.record.tenant) {
            tenant.machines.remove(&id);
        }
        self.leaving.insert(id);
        self.effects.push(Effect::RemoveMachine { machine: id });
        self.tenant_left(now, app.record.tenant);
    }

    pub(crate) fn machine_removed(&mut self, now: Now, id: MachineId) {
        if self.leaving.remove(&id) {
            let key = records::key(records::APP, id.0);
            self.write_later(Ok(Change::Delete { key }), now.mono_us);
        }
    }

    /// Remembered so that the device can be called after a restart. Not in the operation log: nobody asked for it.
    pub(crate) fn device_seen(&mut self, now: Now, tenant: TenantId, key: &PublicKey, endpoint: SocketAddr) {
        let Some(tenant) = self.household.tenants.get_mut(&tenant) else { return };
        let Some(device) = tenant.devices.values_mut().find(|device| device.public_key == *key) else {
            return;
        };
        if device.last_endpoint.replace(endpoint) != Some(endpoint) {
            let change = records::put(records::key(records::DEVICE, device.id.0), device);
            self.write_later(change, now.mono_us.saturating_add(COMFORT_WRITE_US));
        }
    }
}

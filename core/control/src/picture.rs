//! The picture that people get of the engine's memory. It holds no secret.

use crate::{
    engine::Engine,
    household::{self, App, Tenant},
    records::InstallRecord,
    view::{AppView, DeviceView, OperationState, TenantView, View},
};
use cloudpal_compute::life::State;
use cloudpal_model::store::Store;

impl<S: Store> Engine<S> {
    pub fn view(&self) -> View {
        let mut tenants: Vec<TenantView> = self
            .household
            .tenants
            .values()
            .filter(|t| !t.record.leaving)
            .map(|t| self.tenant_view(t))
            .collect();
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
        View { tenants }
    }

    /// What is wrong with the state store just now; empty: nothing.
    pub fn store_trouble(&self) -> &str {
        &self.store_trouble
    }

    fn tenant_view(&self, tenant: &Tenant) -> TenantView {
        let record = &tenant.record;
        let devices = tenant.devices.values().map(|device| {
            let (v4, v6) = tenant.device_address(device.slot);
            DeviceView {
                id: device.id,
                name: device.name.clone(),
                v4,
                v6,
                public_key: device.public_key,
                exit: device.exit,
                last_endpoint: device.last_endpoint,
                added_wall_ms: device.added_wall_ms,
            }
        });
        let installed = tenant.apps.values().filter_map(|machine| self.household.apps.get(machine));
        let installs = self.household.installs.values().filter(|install| install.tenant == record.id);
        let mut apps: Vec<AppView> = installed.map(|app| app_view(tenant, app)).collect();
        apps.extend(installs.map(|install| self.install_view(tenant, install)));
        apps.sort_by(|a, b| a.name.cmp(&b.name));
        TenantView {
            id: record.id,
            name: record.name.clone(),
            domain: record.domain.clone(),
            subnet_v4: record.subnets.v4,
            prefix_v6: record.subnets.v6,
            dns_v4: record.subnets.server_v4(),
            public_key: tenant.public_key,
            listen_port: record.listen_port,
            network_trouble: tenant.net.trouble.clone(),
            network_pending: tenant.net.applied < tenant.net.wanted,
            devices: devices.collect(),
            apps,
        }
    }

    fn install_view(&self, tenant: &Tenant, install: &InstallRecord) -> AppView {
        let (v4, v6) = tenant.app_address(install.slot);
        let operation = self.operations.get(&install.operation);
        let note = match operation.map(|operation| &operation.state) {
            Some(OperationState::Running { stage, .. }) => stage.clone(),
            _ => String::new(),
        };
        AppView {
            name: install.name.clone(),
            machine: install.machine,
            image: install.manifest.image.clone(),
            digest: String::new(),
            v4,
            v6,
            ports: household::ports(&install.manifest, None),
            memory_mib: install.manifest.memory_mib,
            idle_timeout_ms: install.manifest.idle_timeout_ms,
            state: "installing".to_owned(),
            note,
            state_since_wall_ms: operation.map_or(0, |operation| operation.at_wall_ms),
            boots: 0,
            wakes: 0,
            sleeps: 0,
            last_wake_us: None,
        }
    }
}

fn app_view(tenant: &Tenant, app: &App) -> AppView {
    let (v4, v6) = tenant.app_address(app.record.slot);
    let record = app.to_record();
    let state = app.machine.state();
    let note = match state {
        State::Killed { reason } => reason.clone(),
        // An app that listens elsewhere is one that never comes up, to whoever is not told.
        State::Booting if app.machine.note().is_empty() && !app.ports().is_empty() => {
            let ports: Vec<String> = app.ports().iter().map(u16::to_string).collect();
            format!("until it listens on {}; `cloudpal logs` shows what it does", ports.join(" or "))
        }
        _ => app.machine.note().to_owned(),
    };
    AppView {
        name: record.name,
        machine: record.machine,
        ports: app.ports(),
        memory_mib: record.manifest.memory_mib,
        idle_timeout_ms: record.manifest.idle_timeout_ms,
        image: record.manifest.image,
        digest: record.image.digest,
        v4,
        v6,
        state: state.as_str().to_owned(),
        note,
        state_since_wall_ms: app.since_wall_ms,
        boots: record.boots,
        wakes: record.wakes,
        sleeps: record.sleeps,
        last_wake_us: app.machine.last_wake_us(),
    }
}

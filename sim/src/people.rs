//! The people: devices that send, owners that change their minds, and the bad luck that befalls them.

use crate::{
    Bug,
    world::{Happening, World},
};
use cloudpal_control::{
    request::{AppManifest, Request},
    view::TenantView,
};
use cloudpal_model::{DeviceId, MachineId, Name, TenantId};
use std::net::{Ipv4Addr, Ipv6Addr};

/// All tenants use the same addresses.
const PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 2, 0, 0, 0, 0, 0);

fn name(text: String) -> Name {
    text.parse().unwrap_or_else(|error| unreachable!("{error}"))
}

impl World {
    /// The first day: tenants, devices, apps.
    pub fn settle_in(&mut self) {
        for tenant in 0..self.scenario.tenants {
            let tenant = name(format!("tenant-{tenant}"));
            let prefix_v6 = Some(PREFIX_V6);
            self.request(Request::TenantAdd { name: tenant.clone(), subnet_v4: None, prefix_v6 });
            for device in ["phone", "laptop"] {
                let name = name(device.to_owned());
                self.request(Request::DeviceAdd { tenant: tenant.clone(), name, exit: false });
            }
            for app in 0..self.scenario.apps_per_tenant {
                self.install(tenant.clone(), name(format!("app-{app}")));
            }
        }
    }

    fn install(&mut self, tenant: Name, name: Name) {
        let idle_timeout_ms = self.scenario.idle_timeout_ms;
        let app = AppManifest { idle_timeout_ms, ..AppManifest::new("oci:/app") };
        self.request(Request::AppInstall { tenant, name, app });
    }

    fn look(&mut self) {
        if let Some(engine) = &self.engine {
            self.known = engine.view().tenants;
        }
    }

    /// One device sends a few packets at once; then comes the next burst, and sometimes bad luck.
    pub fn burst(&mut self) {
        self.look();
        let mut target = None;
        if let Some(tenant) = self.pick_tenant() {
            let app = self.random.pick(&tenant.apps).cloned();
            // Now and then to an address that only others have, or nobody.
            let stray = self.chance(50);
            let address = match app {
                Some(app) if !stray => Some(app.v4),
                _ => Some(Ipv4Addr::from(
                    tenant.subnet_v4.to_bits() | 0x4000 | self.random.between(1, 12) as u32,
                )),
            };
            let device = self.random.pick(&tenant.devices).map(|device| device.id);
            if let Some(to) = address {
                for _ in 0..self.random.between(1, 20) {
                    target = self.send(tenant.id, device, to).or(target);
                }
            }
        }
        self.bursts_left = self.bursts_left.saturating_sub(1);
        if self.bursts_left > 0 {
            let soon = self.chance(500);
            let (low_us, high_us) = if soon { (1_000, 500_000) } else { (1_000_000, 8_000_000) };
            self.soon(low_us, high_us, Happening::Burst);
            self.bad_luck(target);
        }
    }

    fn send(&mut self, tenant: TenantId, device: Option<DeviceId>, to: Ipv4Addr) -> Option<MachineId> {
        let shared = self.scenario.bug == Some(Bug::RoutesAreShared);
        let up = self.engine.is_some();
        let machine = self.host.route(tenant, device, to, shared, up)?;
        self.packet_waits(machine);
        Some(machine)
    }

    fn pick_tenant(&mut self) -> Option<TenantView> {
        self.random.pick(&self.known).cloned()
    }

    fn bad_luck(&mut self, target: Option<MachineId>) {
        let faults = self.scenario.faults.clone();
        let machines: Vec<MachineId> = self.host.places.keys().copied().collect();
        let machine = self.random.pick(&machines).copied();
        // The one that has just got packets is the one that runs.
        if let (true, Some(machine)) = (self.chance(faults.vmm_crash), target) {
            self.soon(0, 3_000_000, Happening::CrashVmm { machine });
        }
        if self.chance(faults.daemon_crash) {
            self.soon(0, 3_000_000, Happening::CrashDaemon);
        }
        if self.chance(faults.power_loss) {
            self.soon(0, 3_000_000, Happening::LosePower);
        }
        if self.chance(faults.store_failure) {
            self.disk.disk().failing = self.random.between(1, 5) as u32;
        }
        if let (true, Some(machine)) = (self.chance(faults.bad_snapshot), machine)
            && let Some(snapshot) = &mut self.host.place(machine).snapshot
        {
            snapshot.good = false;
        }
        if self.chance(faults.owner) {
            self.owner_acts();
        }
    }

    fn owner_acts(&mut self) {
        self.look();
        let Some(owner) = self.pick_tenant() else { return };
        let tenant = owner.name.clone();
        self.names += 1;
        let new = name(format!("new-{}", self.names));
        let app = self.random.pick(&owner.apps).map(|app| app.name.clone());
        let device = self.random.pick(&owner.devices).map(|device| device.name.clone());
        let request = match (self.random.between(0, 8), app, device) {
            (0, Some(name), _) => Request::MachineStop { tenant, name },
            (1 | 2, Some(name), _) => Request::MachineStart { tenant, name },
            (3 | 4, Some(name), _) => Request::MachineSleep { tenant, name },
            (5, Some(name), _) => Request::AppRemove { tenant, name },
            (6, _, Some(name)) => Request::DeviceRevoke { tenant, name },
            (7, ..) => Request::DeviceAdd { tenant, name: new, exit: true },
            _ => return self.install(tenant, new),
        };
        self.request(request);
    }

    /// What was stopped or killed is started; who has no device gets one.
    pub fn start_everything(&mut self) {
        self.look();
        for tenant in self.known.clone() {
            if tenant.devices.is_empty() {
                let name = name("last".to_owned());
                self.request(Request::DeviceAdd { tenant: tenant.name.clone(), name, exit: false });
            }
            for app in tenant.apps.iter().filter(|app| matches!(app.state.as_str(), "stopped" | "killed")) {
                let (tenant, name) = (tenant.name.clone(), app.name.clone());
                self.request(Request::MachineStart { tenant, name });
            }
        }
    }

    /// Every app gets one packet, and must answer it. Returns whose packet went to which machine.
    pub fn ask_everything(&mut self) -> Vec<(TenantId, MachineId, usize)> {
        self.look();
        let mut asked = Vec::new();
        for tenant in self.known.clone() {
            let device = tenant.devices.first().map(|device| device.id);
            for app in &tenant.apps {
                asked.push((tenant.id, app.machine, self.host.packets.len()));
                self.send(tenant.id, device, app.v4);
            }
        }
        asked
    }
}

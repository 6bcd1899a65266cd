//! The engine's memory: tenants with their devices, apps with their machines, installs under way.
//!
//! Invariant: it says what the store says, plus what can be found out again (the machines' states, the network's).

use crate::{
    effect::{AppKey, Effect},
    event::Image,
    records::{AppRecord, DeviceRecord, InstallRecord, TenantRecord},
    request::{AppKind, AppManifest},
};
use cloudpal_compute::life::{Machine, Policy};
use cloudpal_model::{
    Kind, MachineId, Name, OperationId, Problem, PublicKey, TenantId,
    guest::{GuestConfig, Process},
};
use cloudpal_net::{
    address::{self, Range},
    keys,
    plan::{DevicePlan, MachinePlan, NetPlan},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

/// How long packets of a booting app wait for it to listen.
const READY_TIMEOUT_MS: u64 = 120_000;

pub struct Tenant {
    pub record: TenantRecord,
    pub public_key: PublicKey,
    pub devices: BTreeMap<Name, DeviceRecord>,
    /// The apps that people see.
    pub apps: BTreeMap<Name, MachineId>,
    /// Every machine, also of apps that are being removed.
    pub machines: BTreeSet<MachineId>,
    pub net: NetState,
}

/// How far the tenant's network is what it should be.
#[derive(Default)]
pub struct NetState {
    /// Grows with every change of what is wanted.
    pub wanted: u64,
    /// What the host is asked to make true just now.
    pub in_flight: Option<u64>,
    pub applied: u64,
    pub failures: u32,
    pub retry_at_us: Option<u64>,
    pub trouble: String,
}

pub struct App {
    pub record: AppRecord,
    pub machine: Machine,
    pub since_wall_ms: u64,
    /// The version of the tenant's network that has this machine in it.
    pub needs_net: u64,
}

#[derive(Default)]
pub struct Household {
    /// Also those that are removed, until their last machine has ended.
    pub tenants: BTreeMap<TenantId, Tenant>,
    pub apps: BTreeMap<MachineId, App>,
    pub installs: BTreeMap<OperationId, InstallRecord>,
}

impl Tenant {
    pub fn new(record: TenantRecord) -> Tenant {
        Tenant {
            public_key: keys::public_key(&record.private_key),
            record,
            devices: BTreeMap::new(),
            apps: BTreeMap::new(),
            machines: BTreeSet::new(),
            net: NetState::default(),
        }
    }

    pub fn device_address(&self, slot: u16) -> (Ipv4Addr, Ipv6Addr) {
        self.address(Range::Devices, slot)
    }

    pub fn app_address(&self, slot: u16) -> (Ipv4Addr, Ipv6Addr) {
        self.address(Range::Apps, slot)
    }

    /// Slots are checked when they are given out and when records are read, so each has an address.
    fn address(&self, range: Range, slot: u16) -> (Ipv4Addr, Ipv6Addr) {
        self.record.subnets.address(range, slot).unwrap_or((Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED))
    }
}

impl App {
    pub fn policy(manifest: &AppManifest) -> Policy {
        Policy::with_idle_timeout_ms(manifest.idle_timeout_ms)
    }

    /// The record with the counts of this run of the daemon added.
    pub fn to_record(&self) -> AppRecord {
        let counts = self.machine.counts;
        let mut record = self.record.clone();
        record.boots += counts.boots;
        record.wakes += counts.wakes;
        record.sleeps += counts.sleeps;
        record
    }

    pub fn ports(&self) -> Vec<u16> {
        ports(&self.record.manifest, Some(&self.record.image))
    }
}

pub fn ports(manifest: &AppManifest, image: Option<&Image>) -> Vec<u16> {
    match image {
        Some(image) if manifest.ready_tcp_ports.is_empty() => image.config.exposed_tcp_ports.clone(),
        _ => manifest.ready_tcp_ports.clone(),
    }
}

impl Household {
    /// What begins an installation; `None`: its tenant is gone.
    pub fn import(&self, install: &InstallRecord) -> Option<Effect> {
        let tenant = self.tenants.get(&install.tenant)?.record.name.clone();
        Some(Effect::ImportImage {
            operation: install.operation,
            app: AppKey { tenant, name: install.name.clone() },
            source: install.manifest.image.clone(),
            // A unikernel may do without a command line.
            argv_given: !install.manifest.argv.is_empty() || install.manifest.kind == AppKind::Unikernel,
        })
    }

    pub fn tenant(&self, name: &Name) -> Result<&Tenant, Problem> {
        let is_it = |tenant: &&Tenant| tenant.record.name == *name && !tenant.record.leaving;
        self.tenants.values().find(is_it).ok_or_else(|| {
            let mend = "`cloudpal tenant list` shows those that exist";
            Problem::new(Kind::NotFound, format!("there is no tenant {name}"), mend)
        })
    }

    /// The app's machine; also says so when the app is only being installed.
    pub fn app(&self, tenant: &Name, name: &Name) -> Result<(&Tenant, &App), Problem> {
        let owner = self.tenant(tenant)?;
        if let Some(app) = owner.apps.get(name).and_then(|machine| self.apps.get(machine)) {
            return Ok((owner, app));
        }
        if self.install(owner.record.id, name).is_some() {
            let what = format!("the app {tenant}/{name} is still being installed");
            return Err(Problem::new(Kind::Refused, what, "wait until its installation is done"));
        }
        let mend = format!("`cloudpal app list {tenant}` shows those that exist");
        Err(Problem::new(Kind::NotFound, format!("tenant {tenant} has no app {name}"), mend))
    }

    pub fn install(&self, tenant: TenantId, name: &Name) -> Option<&InstallRecord> {
        self.installs.values().find(|install| install.tenant == tenant && install.name == *name)
    }

    /// Devices and apps are names in one DNS domain, so a name is one or the other.
    pub fn name_is_free(&self, tenant: &Tenant, name: &Name) -> Result<(), Problem> {
        let what = if tenant.devices.contains_key(name) {
            "a device"
        } else if tenant.apps.contains_key(name) || self.install(tenant.record.id, name).is_some() {
            "an app"
        } else {
            return Ok(());
        };
        let what = format!("tenant {} has {what} named {name} already", tenant.record.name);
        Err(Problem::new(Kind::Taken, what, "choose another name"))
    }

    pub fn free_app_slot(&self, tenant: &Tenant) -> Option<u16> {
        let installed =
            tenant.machines.iter().filter_map(|machine| self.apps.get(machine)).map(|app| app.record.slot);
        let coming = self.installs.values().filter(|i| i.tenant == tenant.record.id).map(|i| i.slot);
        Range::Apps.lowest_free_slot(installed.chain(coming))
    }

    /// The whole of what the tenant's network must be. A machine that is being removed is no part of it any more.
    pub fn plan(&self, tenant: &Tenant) -> NetPlan {
        let devices = tenant.devices.values().map(|device| {
            let (v4, v6) = tenant.device_address(device.slot);
            DevicePlan {
                id: device.id,
                name: device.name.clone(),
                public_key: device.public_key,
                preshared_key: device.preshared_key.clone(),
                v4,
                v6,
                exit: device.exit,
                last_endpoint: device.last_endpoint,
            }
        });
        let apps = tenant.apps.values().filter_map(|machine| self.apps.get(machine));
        NetPlan {
            tenant: tenant.record.id,
            domain: tenant.record.domain.clone(),
            subnets: tenant.record.subnets,
            private_key: tenant.record.private_key.clone(),
            listen_port: tenant.record.listen_port,
            devices: devices.collect(),
            machines: apps.map(|app| machine_plan(tenant, app)).collect(),
        }
    }

    pub fn guest(&self, tenant: &Tenant, app: &App) -> GuestConfig {
        let plan = self.plan(tenant);
        GuestConfig {
            hostname: app.record.name.to_string(),
            process: process(&app.record.manifest, &app.record.image),
            network: address::guest_network(&plan, &machine_plan(tenant, app)),
            ready_tcp_ports: app.ports(),
            ready_timeout_ms: READY_TIMEOUT_MS,
            wall_us: 0,
            entropy_base64: String::new(),
        }
    }
}

/// The command line of an app that is a unikernel, with its addresses filled in.
pub fn command_line(app: &App, guest: &GuestConfig) -> Option<String> {
    if app.record.manifest.kind != AppKind::Unikernel {
        return None;
    }
    let network = &guest.network;
    let mac = address::machine_mac(app.record.machine).map(|byte| format!("{byte:02x}")).join(":");
    let filled = [
        ("{ipv4}", network.ipv4.to_string()),
        ("{ipv6}", network.ipv6.to_string()),
        ("{gateway_ipv4}", network.gateway_ipv4.to_string()),
        ("{gateway_ipv6}", network.gateway_ipv6.to_string()),
        ("{dns}", network.dns.to_string()),
        ("{mac}", mac),
        ("{hostname}", guest.hostname.clone()),
        ("{mtu}", network.mtu.to_string()),
    ];
    let line = guest.process.argv.join(" ");
    Some(filled.iter().fold(line, |line, (name, value)| line.replace(name, value)))
}

fn machine_plan(tenant: &Tenant, app: &App) -> MachinePlan {
    let (v4, v6) = tenant.app_address(app.record.slot);
    let id = app.record.machine;
    MachinePlan { id, name: app.record.name.clone(), v4, v6, mac: address::machine_mac(id) }
}

/// What runs in the guest: the image's process, with the manifest's say over it.
pub fn process(manifest: &AppManifest, image: &Image) -> Process {
    let config = &image.config;
    let argv = if manifest.argv.is_empty() {
        config.entrypoint.iter().chain(&config.cmd).cloned().collect()
    } else {
        manifest.argv.clone()
    };
    let variable = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let overridden: BTreeSet<String> = manifest.env.iter().map(|entry| variable(entry)).collect();
    let kept = config.env.iter().filter(|entry| !overridden.contains(&variable(entry)));
    Process {
        argv,
        env: kept.chain(&manifest.env).cloned().collect(),
        cwd: config.cwd.clone(),
        user: config.user.clone(),
        stop_signal: config.stop_signal,
    }
}

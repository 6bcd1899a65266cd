//! Many sleeping apps in one engine, to measure what one of them costs.

use crate::store::NullStore;
use cloudpal_compute::{image::ImageConfig, life};
use cloudpal_control::{
    effect::Effect,
    engine::{Engine, Settings},
    event::{Event, Image},
    request::{AppManifest, Request},
};
use cloudpal_model::{MachineId, Name, Now, Problem};
use std::collections::BTreeSet;

/// Apps of one tenant, below the limit of the control core.
const APPS_PER_TENANT: usize = 200;

/// An engine whose apps all sleep. Hold it while measuring.
pub struct SleepingHousehold {
    engine: Engine<NullStore>,
    apps: usize,
    booted: BTreeSet<MachineId>,
}

impl SleepingHousehold {
    /// How many apps there are, and how many of them really sleep.
    pub fn apps_and_sleeping(&self) -> (usize, usize) {
        let tenants = self.engine.view().tenants;
        let asleep =
            tenants.iter().flat_map(|tenant| &tenant.apps).filter(|app| app.state == "asleep").count();
        (self.apps, asleep)
    }
}

/// Installs `apps` apps, boots each by a packet and lets it fall asleep.
pub fn household(apps: usize) -> Result<SleepingHousehold, Problem> {
    let settings = Settings {
        domain_suffix: "pal".to_owned(),
        endpoint_host: "192.0.2.1".to_owned(),
        first_port: 20_000,
    };
    let mut now = Now::default();
    let engine = Engine::open(NullStore, settings, now)?;
    let mut household = SleepingHousehold { engine, apps, booted: BTreeSet::new() };
    let mut random = crate::random::Random::new(1);
    for app in 0..apps {
        let tenant = name(format!("tenant-{}", app / APPS_PER_TENANT));
        if app % APPS_PER_TENANT == 0 {
            let request = Request::TenantAdd { name: tenant.clone(), subnet_v4: None, prefix_v6: None };
            household.engine.request(now, "sim", request, &mut |bytes| random.fill(bytes))?;
        }
        let request = Request::AppInstall {
            tenant,
            name: name(format!("app-{app}")),
            app: AppManifest::new("oci:/app"),
        };
        household.engine.request(now, "sim", request, &mut |bytes| random.fill(bytes))?;
        household.serve(now);
    }
    now.mono_us += 60_000_000;
    for machine in (1..=apps as u32).map(MachineId) {
        household.sample(now, machine);
        household.serve(now);
    }
    now.mono_us += 60_000_000;
    for machine in (1..=apps as u32).map(MachineId) {
        household.sample(now, machine);
        household.serve(now);
    }
    Ok(household)
}

fn name(text: String) -> Name {
    text.parse().unwrap_or_else(|error| unreachable!("{error}"))
}

impl SleepingHousehold {
    fn sample(&mut self, now: Now, machine: MachineId) {
        self.engine.event(now, Event::Activity { machine, delivered_packets: 1, cpu_us: 0 });
    }

    /// A host on which everything works at once, and where each new app gets a packet.
    fn serve(&mut self, now: Now) {
        loop {
            let effects = self.engine.take_effects();
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                if let Some(event) = self.answer(effect) {
                    self.engine.event(now, event);
                }
            }
        }
    }

    fn answer(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::ApplyNet { plan } => Some(Event::NetApplied { tenant: plan.tenant }),
            Effect::ImportImage { operation, .. } => {
                let entrypoint = vec!["/usr/bin/app".to_owned(), "--listen".to_owned()];
                let env = vec!["PATH=/usr/bin:/bin".to_owned()];
                let config = ImageConfig { entrypoint, env, ..ImageConfig::default() };
                let digest = format!("sha256:{}", "0".repeat(64));
                Some(Event::ImageReady {
                    operation,
                    image: Image { digest, config, rootfs_bytes: 1 << 20, has_kernel: false },
                })
            }
            // Asleep, nobody sends any more; the first time, a packet boots it.
            Effect::WatchTap { machine } => {
                self.booted.insert(machine).then_some(Event::PacketWaiting { machine })
            }
            Effect::Machine { machine, command } => {
                let event = match command {
                    life::Command::Sleep { .. } => life::Event::Slept,
                    _ => life::Event::Started,
                };
                Some(Event::Machine { machine, event })
            }
            Effect::RemoveNet { .. } | Effect::RemoveMachine { .. } => None,
        }
    }
}

//! Builds the parts and wires them: effects of the engine go to the host, events of the host go back to the engine.
//!
//! Invariant: nothing is decided here. What must happen is decided by the control engine, how it happens by `host`.

use crate::{
    brain::{self, Brain, Clock},
    data::DataHost,
    driver::{self, Chosen},
    images::Imports,
    machines::Machines,
    networks::Networks,
    sampling,
    settings::{Settings, WireGuardChoice},
};
use cloudpal_compute::driver::{MachineSpec, Unikernel};
use cloudpal_control::{
    effect::Effect,
    engine::{Engine, MachineFacts},
    event::Event,
};
use cloudpal_host::{
    image::ImageStore,
    net::{NetHost, NetSettings, WireGuardKind},
    store::RedbStore,
};
use cloudpal_model::{Kind, MachineId, Problem, Rates};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// Where each machine's files are.
#[derive(Clone)]
pub struct Places {
    state_dir: PathBuf,
    run_dir: PathBuf,
}

impl Places {
    pub fn machine_dir(&self, machine: MachineId) -> PathBuf {
        self.state_dir.join("machines").join(machine.to_string())
    }

    pub fn machine_run_dir(&self, machine: MachineId) -> PathBuf {
        self.run_dir.join("machines").join(machine.to_string())
    }

    fn missing_image(&self, digest: &str) -> PathBuf {
        self.state_dir.join("images").join(digest)
    }

    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }
}

/// The running daemon.
pub struct Daemon {
    pub settings: Settings,
    pub places: Places,
    pub brain: Brain,
    pub machines: Arc<Machines>,
    pub networks: Arc<Networks>,
    pub imports: Arc<Imports>,
    pub driver: Chosen,
    pub net: Arc<NetHost>,
    pub data: Arc<DataHost>,
}

impl Daemon {
    /// Opens everything, and sets out to make the actual state the wanted one.
    pub async fn start(settings: Settings) -> Result<Arc<Daemon>, Problem> {
        let places = Places { state_dir: settings.state_dir.clone(), run_dir: settings.run_dir.clone() };
        check_first_port(&settings)?;
        private_dir(&places.state_dir)?;
        private_dir(&places.run_dir)?;
        // The store's lock is also what keeps a second daemon away from everything below.
        let store = RedbStore::open(&places.state_dir.join("state.redb"))?;
        let clock = Clock::start();
        let engine = Engine::open(store, engine_settings(&settings), clock.now())?;
        let images = Arc::new(ImageStore::open(&places.state_dir.join("images"))?);
        let chosen = driver::choose(&settings)?;
        let driver = chosen.driver.clone();
        let net = Arc::new(NetHost::start(net_settings(&settings)).await?);
        net.remove_others(&engine.tenants()).await?;
        tracing::info!(driver = chosen.explain(), network = net.explain(), "the host");

        let (brain, inbox) = brain::channel();
        let machines = Arc::new(Machines::new(driver.clone(), net.clone(), brain.clone()));
        let networks = Arc::new(Networks::new(net.clone(), brain.clone()));
        let imports = Arc::new(Imports::new(images, brain.clone()));
        let data = Arc::new(DataHost::new(&places.state_dir, net.clone(), brain.clone()));
        let dispatcher = Dispatcher {
            places: places.clone(),
            rates: settings.rates(),
            brain: brain.clone(),
            machines: machines.clone(),
            networks: networks.clone(),
            imports: imports.clone(),
            data: data.clone(),
        };
        tokio::spawn(brain::run(
            engine,
            clock,
            inbox,
            Box::new(move |effect, facts| dispatcher.carry(effect, facts)),
        ));
        tokio::spawn(sampling::activity(machines.clone(), net.clone(), brain.clone()));
        tokio::spawn(sampling::firewall(net.clone()));
        tokio::spawn(sampling::logs(machines.clone(), places.clone()));
        tokio::spawn(sampling::endpoints(networks.clone(), brain.clone()));
        let (opening, auditing) = (data.clone(), brain.clone());
        tokio::spawn(async move {
            opening.open_all().await;
            crate::data::write_audit(auditing, opening).await;
        });
        let driver = chosen;
        Ok(Arc::new(Daemon { settings, places, brain, machines, networks, imports, driver, net, data }))
    }

    /// Puts the machines to sleep and ends the network. Namespaces and TAPs stay, for a quick start.
    pub async fn stop(&self) {
        self.machines.shutdown().await;
        self.data.close().await;
        self.net.shutdown().await;
    }
}

/// Hands each effect to the task that carries it out.
struct Dispatcher {
    places: Places,
    rates: Rates,
    brain: Brain,
    machines: Arc<Machines>,
    networks: Arc<Networks>,
    imports: Arc<Imports>,
    data: Arc<DataHost>,
}

impl Dispatcher {
    fn carry(&self, effect: Effect, facts: Option<MachineFacts>) {
        match effect {
            Effect::ApplyNet { plan } => self.networks.apply(*plan),
            Effect::RemoveNet { tenant } => {
                self.networks.remove(tenant);
                let data = self.data.clone();
                tokio::spawn(async move { data.remove(tenant).await });
            }
            Effect::ImportImage { operation, app, source, argv_given } => {
                self.imports.start(operation, &app, source, argv_given);
            }
            Effect::WatchTap { machine } => self.machines.watch_tap(machine),
            Effect::Machine { machine, command } => match facts {
                Some(facts) => self.machines.command(machine, command, self.spec(machine, facts)),
                None => tracing::error!(%machine, ?command, "a command for a machine that does not exist"),
            },
            Effect::RemoveMachine { machine } => {
                let (machines, places) = (self.machines.clone(), self.places.clone());
                let (brain, imports) = (self.brain.clone(), self.imports.clone());
                tokio::spawn(async move {
                    remove_machine(&machines, &places, machine).await;
                    brain.event(Event::MachineRemoved { machine });
                    if let Err(problem) = imports.collect().await {
                        tracing::warn!(%problem, "images that no app uses could not be removed");
                    }
                });
            }
        }
    }

    fn spec(&self, machine: MachineId, facts: MachineFacts) -> MachineSpec {
        let stored = self.imports.stored(&facts.digest);
        // Gone, it is a path that does not exist, and the driver says so.
        let missing = || self.places.missing_image(&facts.digest);
        let unikernel = facts.command_line.map(|command_line| {
            let (kernel, initrd, disk) =
                stored.clone().map_or((None, None, None), |image| (image.kernel, image.initrd, image.disk));
            Unikernel { kernel: kernel.unwrap_or_else(missing), initrd, disk, command_line }
        });
        MachineSpec {
            id: machine,
            dir: self.places.machine_dir(machine),
            run_dir: self.places.machine_run_dir(machine),
            rootfs: stored.map_or_else(missing, |image| image.rootfs),
            unikernel,
            memory_mib: facts.memory_mib,
            vcpus: facts.vcpus,
            disk_mib: facts.disk_mib,
            mac: facts.mac,
            rates: self.rates,
            guest: facts.guest,
        }
    }
}

/// Between two tries to delete a removed app's files.
const FIRST_REMOVAL_PAUSE: Duration = Duration::from_secs(1);
const MAX_REMOVAL_PAUSE: Duration = Duration::from_secs(600);

/// Ends only when nothing is left of the machine: its owner was told that its data is gone.
async fn remove_machine(machines: &Machines, places: &Places, machine: MachineId) {
    if let Some(vm) = machines.remove(machine) {
        vm.kill().await;
        vm.exited().await;
    }
    for dir in [places.machine_dir(machine), places.machine_run_dir(machine)] {
        let mut pause = FIRST_REMOVAL_PAUSE;
        loop {
            match tokio::fs::remove_dir_all(&dir).await {
                Ok(()) => break,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => break,
                Err(e) => {
                    tracing::warn!(dir = %dir.display(), error = %e, "a removed app's files cannot be deleted yet");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MAX_REMOVAL_PAUSE);
        }
    }
}

/// Made root's alone, since it holds keys, memory and data of the owners, or leads to them. One that exists is left as
/// it is: it may be the operator's.
fn private_dir(dir: &std::path::Path) -> Result<(), Problem> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| Problem::io(format_args!("creating {}", dir.display()), &e))
}

/// The exit's translation may hand out its own ports; a tenant's WireGuard port must not be one of them.
fn check_first_port(settings: &Settings) -> Result<(), Problem> {
    let taken = cloudpal_net::ruleset::EXIT_PORTS;
    if settings.first_port > *taken.end() {
        return Ok(());
    }
    let what = format!("--first-port {} is not above the exit's ports {taken:?}", settings.first_port);
    Err(Problem::new(Kind::Invalid, what, "choose a port from 51000 on; 51820 is the usual one"))
}

fn engine_settings(settings: &Settings) -> cloudpal_control::engine::Settings {
    cloudpal_control::engine::Settings {
        domain_suffix: settings.domain.clone(),
        endpoint_host: settings.endpoint.clone(),
        first_port: settings.first_port,
    }
}

fn net_settings(settings: &Settings) -> NetSettings {
    let wireguard = match settings.wireguard {
        WireGuardChoice::Auto => WireGuardKind::Auto,
        WireGuardChoice::Kernel => WireGuardKind::Kernel,
        WireGuardChoice::Userspace => WireGuardKind::Userspace,
    };
    NetSettings {
        instance: settings.instance.clone(),
        wireguard,
        upstream_dns: settings.upstream_dns.clone(),
    }
}

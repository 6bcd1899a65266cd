//! The owner's day, played against the real programs in a world of network namespaces, and printed as a timeline.
//!
//! Each step is a function in a file of its own; it fails with what it saw. Steps share the state that a person would:
//! one host, two tenants, their phones.

mod between;
mod closing;
mod daemon_killed;
mod falling_asleep;
mod first_use;
mod neighbour;
mod other_packets;
mod photo;
mod revoked;
mod setting_up;
mod timeline;
mod twenty_rounds;

pub use timeline::{Timeline, percentile};

use crate::{
    daemon::{Cli, Daemon},
    interrupt,
    world::{Reply, Request, World},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

pub const TENANT: &str = "ada";
pub const APP: &str = "calendar";
/// Where Radicale listens.
pub const PORT: u16 = 5232;
/// Where the event is kept.
pub const EVENT: &str = "/ada/calendar/dinner.ics";
/// What must be in it.
pub const SUMMARY: &str = "SUMMARY:Dinner with Charles";

/// How long a boot may take under emulation on a busy machine.
pub const BOOT_PATIENCE: Duration = Duration::from_secs(120);

pub struct Day {
    // Dropped in this order: the daemon lives in the world.
    pub daemon: Daemon,
    pub world: World,
    pub image: PathBuf,
    /// Where the JavaScript Hypercore stack is installed, if it is.
    pub javascript: Option<PathBuf>,
    /// After how long without packets the app falls asleep.
    pub idle: String,
    /// How often it is woken in a row.
    pub rounds: u32,
    pub timeline: Timeline,
}

type Step = fn(&mut Day) -> Result<()>;

const STEPS: [(&str, Step); 11] = [
    ("set up", setting_up::play),
    ("first use", first_use::play),
    ("falling asleep", falling_asleep::play),
    ("many rounds", twenty_rounds::play),
    ("other packets", other_packets::play),
    ("packets in the middle of falling asleep", between::play),
    ("kill -9 of the daemon", daemon_killed::play),
    ("a photo there, a photo back", photo::play),
    ("a neighbour with the same addresses", neighbour::play),
    ("the phone is lost", revoked::play),
    ("closing", closing::play),
];

impl Day {
    pub fn play(&mut self) -> Result<()> {
        for (name, step) in STEPS {
            self.timeline.begin(name);
            step(self).with_context(|| format!("the step \"{name}\" did not hold"))?;
        }
        Ok(())
    }

    /// What has to be there before anything can be measured: used by the benchmark, too.
    pub fn set_up(&mut self) -> Result<()> {
        setting_up::play(self)?;
        first_use::play(self)
    }

    pub fn cli(&self) -> Cli {
        self.daemon.cli()
    }

    /// What the daemon says of an app.
    pub fn app_of(&self, tenant: &str) -> Result<Value> {
        self.cli().json(&["app", "show", tenant, APP])
    }

    pub fn app(&self) -> Result<Value> {
        self.app_of(TENANT)
    }

    /// The app's address and port.
    pub fn address(&self, family: &str) -> Result<SocketAddr> {
        let app = self.app()?;
        let address: IpAddr = text(&app, family)?.parse()?;
        Ok(SocketAddr::new(address, PORT))
    }

    /// Asks for the event, as the owner's phone.
    pub fn ask(&self) -> Result<Reply> {
        self.ask_at(self.address("v4")?)
    }

    /// The same, without asking the daemon for anything.
    pub fn ask_at(&self, address: SocketAddr) -> Result<Reply> {
        let reply = self.world.phones[0].request(address, &Request::get(EVENT))?;
        ensure!(reply.status == 200, "asked for the event and was answered {}: {}", reply.status, reply.body);
        ensure!(reply.body.contains(SUMMARY), "the event has changed: {}", reply.body);
        Ok(reply)
    }

    /// Waits until the app's machine is asleep.
    pub fn wait_asleep(&self) -> Result<Duration> {
        self.wait_asleep_of(TENANT)
    }

    pub fn wait_asleep_of(&self, tenant: &str) -> Result<Duration> {
        let asleep = interrupt::wait_for("the app falls asleep", Duration::from_secs(60), || {
            Ok((text(&self.app_of(tenant)?, "state")? == "asleep").then_some(()))
        });
        asleep.map(|((), took)| took)
    }

    pub fn machine_dir(&self) -> Result<PathBuf> {
        let machine = number(&self.app()?, "machine")?;
        Ok(self.daemon.settings().state_dir.join("machines").join(format!("m{machine}")))
    }
}

pub fn text(value: &Value, field: &str) -> Result<String> {
    let found = value[field].as_str().with_context(|| format!("no text `{field}` in {value}"));
    found.map(str::to_owned)
}

pub fn number(value: &Value, field: &str) -> Result<u64> {
    value[field].as_u64().with_context(|| format!("no number `{field}` in {value}"))
}

/// Disk space really taken by a file or folder, bytes.
pub fn disk_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::symlink_metadata(path).map_or(0, |meta| meta.blocks() * 512);
    let inside = std::fs::read_dir(path).into_iter().flatten().flatten();
    own + inside.map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}

//! The same cores as in the daemon, driven from one seed against fakes of the host: hours of wakes, sleeps, bursts and
//! crashes in milliseconds.
//!
//! What [`run`] holds the cores to, at every step:
//! - no packet is lost: each is answered in the end, but for those that a crash destroyed together with what held them;
//! - never two VMMs of one machine, nor two commands under way for it;
//! - a good snapshot is never replaced by a bad one, and a machine never wakes from an old one;
//! - no tenant sees another's packet, though all use the same addresses;
//! - after any crash the wanted state is reached again: every app answers;
//! - no device's private key is in the store, and a request that the store refused has changed nothing.

mod driver;
mod host;
mod household;
mod people;
mod random;
mod store;
mod world;

pub use household::{SleepingHousehold, household};

/// What is simulated. Shares are per thousand.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub tenants: u32,
    pub apps_per_tenant: u32,
    /// How often a device sends a burst of packets.
    pub bursts: u32,
    pub idle_timeout_ms: u64,
    pub faults: Faults,
    /// A known bug in the fakes, which the checks must notice.
    pub bug: Option<Bug>,
}

/// How often what goes wrong. Per thousand bursts, or per thousand commands.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// A VMM dies, at a random moment.
    pub vmm_crash: u64,
    /// A boot or wake fails.
    pub start_failure: u64,
    /// A sleep fails: the disk is full.
    pub sleep_failure: u64,
    /// The daemon is killed, at a random moment.
    pub daemon_crash: u64,
    /// The host loses power.
    pub power_loss: u64,
    /// A snapshot is damaged on the disk.
    pub bad_snapshot: u64,
    pub net_failure: u64,
    pub image_failure: u64,
    pub store_failure: u64,
    /// The owner stops, starts, puts to sleep, installs, removes, adds and revokes.
    pub owner: u64,
}

impl Faults {
    /// Everything goes wrong, all the time.
    pub fn all() -> Faults {
        Faults {
            vmm_crash: 30,
            start_failure: 50,
            sleep_failure: 50,
            daemon_crash: 30,
            power_loss: 10,
            bad_snapshot: 20,
            net_failure: 200,
            image_failure: 200,
            store_failure: 50,
            owner: 100,
        }
    }
}

/// Mistakes that a real host could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// The sleep is not cancelled by a packet that the stopping VMM took.
    SleepIgnoresPackets,
    /// A cancelled sleep forgets the packet that the stopping VMM took.
    ThawForgetsPackets,
    /// The watch on a TAP misses packets that were there before it.
    WatchMissesQueued,
    /// A snapshot is written in place, not under another name.
    SnapshotInPlace,
    /// A wake leaves the snapshot in place, though the disk moves on.
    SnapshotNotConsumed,
    /// After a restart the daemon does not find the VMM that still runs.
    AdoptIsBlind,
    /// All tenants share one table of addresses.
    RoutesAreShared,
}

impl Bug {
    pub const ALL: [Bug; 7] = [
        Bug::SleepIgnoresPackets,
        Bug::ThawForgetsPackets,
        Bug::WatchMissesQueued,
        Bug::SnapshotInPlace,
        Bug::SnapshotNotConsumed,
        Bug::AdoptIsBlind,
        Bug::RoutesAreShared,
    ];
}

impl Scenario {
    /// Some tenants with the same addresses, and everything going wrong.
    pub fn rough(bursts: u32) -> Scenario {
        Scenario {
            tenants: 3,
            apps_per_tenant: 3,
            bursts,
            idle_timeout_ms: 2000,
            faults: Faults::all(),
            bug: None,
        }
    }

    /// Nothing goes wrong: then nothing may be excused either.
    pub fn calm(bursts: u32) -> Scenario {
        Scenario { faults: Faults::default(), ..Scenario::rough(bursts) }
    }
}

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub packets: u64,
    pub answered: u64,
    /// Destroyed together with the VMM, TAP or host that held them.
    pub lost_in_crashes: u64,
    /// Sent by a revoked device, or to a removed app: nobody may answer.
    pub refused: u64,
    pub boots: u64,
    pub wakes: u64,
    pub sleeps: u64,
    pub cancelled_sleeps: u64,
    pub vmm_crashes: u64,
    pub daemon_crashes: u64,
    pub power_losses: u64,
    pub refused_snapshots: u64,
    pub refused_requests: u64,
    pub store_commits: u64,
    pub simulated_us: u64,
}

impl std::ops::AddAssign<&Report> for Report {
    fn add_assign(&mut self, other: &Report) {
        self.packets += other.packets;
        self.answered += other.answered;
        self.lost_in_crashes += other.lost_in_crashes;
        self.refused += other.refused;
        self.boots += other.boots;
        self.wakes += other.wakes;
        self.sleeps += other.sleeps;
        self.cancelled_sleeps += other.cancelled_sleeps;
        self.vmm_crashes += other.vmm_crashes;
        self.daemon_crashes += other.daemon_crashes;
        self.power_losses += other.power_losses;
        self.refused_snapshots += other.refused_snapshots;
        self.refused_requests += other.refused_requests;
        self.store_commits += other.store_commits;
        self.simulated_us += other.simulated_us;
    }
}

/// A promise that was broken. The seed and the scenario bring it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub seed: u64,
    pub at_us: u64,
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {} at {} us: {}", self.seed, self.at_us, self.what)
    }
}

impl std::error::Error for Violation {}

/// Plays the scenario. The same seed gives the same report.
pub fn run(seed: u64, scenario: &Scenario) -> Result<Report, Violation> {
    world::World::new(seed, scenario.clone()).run()
}

//! The `embedded` driver: a microVM is a `cloudpal-vmm` process, jailed, taken from a pool of waiting ones.
//!
//! ```text
//!  launch ─► jailed, VM and vCPUs made ─► Spare ──Boot──► guest starts ──ready──► Release ─► Machine
//!                                           └────Wake──► restored ─► snapshot consumed ─► Resume ─► guest's clock
//!                                                                                         fresh ─► Release ─► Machine
//!  Machine ──guest's disk written, Pause, Save, fsync, rename──► killed: asleep
//! ```
//! Invariants, beside those of the port ([`cloudpal_compute::driver`]):
//! - The VMM process is not trusted, for its guest may have taken it over: it is told everything over its channel, gets
//!   descriptors instead of paths, and can change nothing by which the daemon finds its way ([`channel`], [`start`]).
//! - The snapshot's contents are the VMM's business; what they go with is the daemon's ([`machine`]).

mod channel;
mod machine;
mod pool;
mod spare;
mod start;
mod working_set;

use super::{accelerator, cgroup::Cgroups, snapshot};
use async_trait::async_trait;
use cloudpal_compute::driver::{Driver, MachineSpec, Vm, WakeError};
use cloudpal_model::{Kind, Problem};
use machine::Machine;
use pool::Pool;
use spare::{Class, Launcher};
use start::Start;
use std::{os::fd::OwnedFd, path::PathBuf, process::Command, sync::Arc};

/// Above the numbers of the other drivers' users, and nobody's.
pub const FIRST_UID: u32 = 2_000_000_000;

#[derive(Clone, Debug)]
pub struct EmbeddedSettings {
    /// Holds `vmlinuz` and `initramfs.img`.
    pub guest_dir: PathBuf,
    /// `cloudpal-vmm`.
    pub program: PathBuf,
    /// Each VMM is a user of its own: this plus its process' number.
    pub first_uid: u32,
    /// Waiting VMMs of each size in use.
    pub spares_per_class: usize,
    /// Keeps XSAVE from the guests, and with it AVX: not every KVM that is itself emulated has it right.
    pub without_xsave: bool,
}

impl EmbeddedSettings {
    pub fn new(guest_dir: impl Into<PathBuf>, program: impl Into<PathBuf>) -> Self {
        let (guest_dir, program) = (guest_dir.into(), program.into());
        EmbeddedSettings {
            guest_dir,
            program,
            first_uid: FIRST_UID,
            spares_per_class: 2,
            without_xsave: false,
        }
    }
}

pub struct EmbeddedDriver {
    guest_dir: PathBuf,
    pool: Pool,
    explanation: String,
}

impl EmbeddedDriver {
    /// Checks that everything is there. Whether KVM is worth using is the caller's question: see [`usable`].
    pub fn new(settings: EmbeddedSettings) -> Result<EmbeddedDriver, Problem> {
        let version = version(&settings)?;
        let cgroups = Cgroups::find();
        cgroups.sweep();
        let explanation = format!("cloudpal-vmm {version}; {}", cgroups.explain());
        let EmbeddedSettings { program, first_uid, without_xsave, .. } = settings;
        let launcher = Launcher { program, first_uid, cgroups, without_xsave };
        let pool = Pool::new(launcher, settings.spares_per_class);
        Ok(EmbeddedDriver { guest_dir: settings.guest_dir, pool, explanation })
    }

    fn start<'a>(&'a self, spec: &'a MachineSpec) -> Start<'a> {
        Start { driver: self, spec }
    }
}

/// Whether this host's KVM runs guests natively, and the sentence that explains it.
pub fn usable() -> (bool, String) {
    let (chosen, why) = accelerator::choose();
    (chosen == accelerator::Accelerator::Kvm, why)
}

#[async_trait]
impl Driver for EmbeddedDriver {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn explain(&self) -> String {
        let (spares, classes) = self.pool.ready();
        format!("{}; {spares} spare VMMs of {classes} sizes wait", self.explanation)
    }

    async fn boot(&self, spec: &MachineSpec, tap: OwnedFd) -> Result<Arc<dyn Vm>, Problem> {
        Ok(self.start(spec).boot(tap).await?)
    }

    async fn wake(&self, spec: &MachineSpec, tap: OwnedFd) -> Result<Arc<dyn Vm>, WakeError> {
        match self.start(spec).wake(tap).await {
            Ok(machine) => Ok(machine),
            Err(WakeError::SnapshotRefused { why }) => {
                snapshot::set_aside(&spec.dir);
                Err(WakeError::SnapshotRefused { why })
            }
            Err(failed) => Err(failed),
        }
    }

    async fn adopt(&self, spec: &MachineSpec) -> Result<Option<(Arc<dyn Vm>, OwnedFd)>, Problem> {
        let adopted = self.start(spec).adopt().await?;
        Ok(adopted.map(|(machine, tap): (Arc<Machine>, OwnedFd)| (machine as Arc<dyn Vm>, tap)))
    }

    fn has_snapshot(&self, spec: &MachineSpec) -> bool {
        let sleeps = snapshot::exists(&spec.dir);
        if sleeps {
            self.pool.expect(Class { memory_mib: spec.memory_mib, vcpus: spec.vcpus });
        }
        sleeps
    }
}

fn version(settings: &EmbeddedSettings) -> Result<String, Problem> {
    for name in ["vmlinuz", "initramfs.img"] {
        let path = settings.guest_dir.join(name);
        if !path.is_file() {
            let what = format!("there is no guest's {}", path.display());
            let mend = "build it with `cargo xtask guest`, or name its directory with --guest-dir";
            return Err(Problem::new(Kind::HostLacks, what, mend));
        }
    }
    let mend = "install it beside the daemon, or name it with --vmm";
    let lacks = |what: String| Problem::new(Kind::HostLacks, what, mend);
    let program = settings.program.display();
    let output = Command::new(&settings.program).arg("--version").output();
    let output = output.map_err(|error| lacks(format!("{program} cannot be run: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.trim().strip_prefix("cloudpal-vmm ").map(str::to_owned);
    version.ok_or_else(|| lacks(format!("{program} is not cloudpal-vmm: it says {:?}", text.trim())))
}

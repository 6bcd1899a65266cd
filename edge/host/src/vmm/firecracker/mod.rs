//! The `firecracker` driver: a microVM is a process of the operator's own Firecracker.
//!
//! Invariants, beside those of the port ([`cloudpal_compute::driver`]):
//! - Firecracker takes paths only, and keeps them in its snapshots. It runs in a jail of its own, where each file has
//!   the same name always; so nobody's paths are among them, and it sees nothing else: see [`jail`].
//! - Packets wait in the machine's TAP until the guest is ready for them: see [`relay`].
//! - A connection to the guest does not outlive a snapshot; each wake makes a new one.
//! - The file `started` in the run directory says that packets were let in: a machine without it is not adopted.
//!
//! What does not hold as with the other drivers: the relay is the daemon's, so while no daemon runs a machine's packets
//! wait.

mod api;
mod jail;
mod log;
mod machine;
mod memory;
mod rates;
mod relay;
mod start;

use super::{
    accelerator,
    cgroup::Cgroups,
    snapshot::{self, Identity},
};
use async_trait::async_trait;
use cloudpal_compute::driver::{Driver, MachineSpec, Vm, WakeError};
use cloudpal_model::{Kind, Problem};
use jail::Programs;
use start::Start;
use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

const STARTED: &str = "started";

#[derive(Clone, Debug)]
pub struct FirecrackerSettings {
    /// Holds `vmlinuz` and `initramfs.img`.
    pub guest_dir: PathBuf,
    /// The operator's Firecracker.
    pub binary: PathBuf,
    /// Its jailer; `None`: what is called so beside Firecracker.
    pub jailer: Option<PathBuf>,
    /// Each VMM runs as a user of its own: this plus the machine's number. `None`: as the daemon.
    pub first_uid: Option<u32>,
}

pub struct FirecrackerDriver {
    settings: FirecrackerSettings,
    programs: Programs,
    verifies_memory: bool,
    version: String,
    cpu: String,
    explanation: String,
    cgroups: Cgroups,
}

impl FirecrackerDriver {
    /// Checks that everything is there.
    pub fn new(settings: FirecrackerSettings) -> Result<FirecrackerDriver, Problem> {
        for name in ["vmlinuz", "initramfs.img"] {
            let path = settings.guest_dir.join(name);
            if !path.is_file() {
                let mend = "build it with `cargo xtask guest`, or name its directory with --guest-dir";
                let what = format!("there is no guest's {}", path.display());
                return Err(Problem::new(Kind::HostLacks, what, mend));
            }
        }
        let programs = Programs::find(&settings.binary, settings.jailer.as_deref())?;
        let version = version(&programs.firecracker)?;
        if !Path::new("/dev/kvm").exists() {
            let what = "Firecracker runs on KVM only, and there is no /dev/kvm";
            return Err(Problem::new(Kind::HostLacks, what, "choose the qemu driver here"));
        }
        // Whoever names Firecracker gets it, also where a guest is slow.
        let (_, why) = accelerator::choose();
        let cgroups = Cgroups::find();
        cgroups.sweep();
        let explanation = format!("Firecracker {version} in its jail, {why}; {}", cgroups.explain());
        let cpu = cpu();
        Ok(FirecrackerDriver {
            settings,
            programs,
            verifies_memory: true,
            version,
            cpu,
            explanation,
            cgroups,
        })
    }

    /// A wake then does not read the whole memory file to see that it is undamaged: Firecracker itself does not either.
    pub fn trusting_memory(self) -> FirecrackerDriver {
        FirecrackerDriver { verifies_memory: false, ..self }
    }

    fn identity(&self, spec: &MachineSpec) -> Identity {
        // Its sockets' names are in its snapshots, and they are other ones in a jail.
        let jailed = Identity::new("firecracker", spec).with("sockets", jail::SOCKETS);
        jailed.with("version", &self.version).with("cpu", &self.cpu)
    }

    fn start<'a>(&'a self, spec: &'a MachineSpec) -> Start<'a> {
        Start { driver: self, spec }
    }
}

#[async_trait]
impl Driver for FirecrackerDriver {
    fn name(&self) -> &'static str {
        "firecracker"
    }

    fn explain(&self) -> String {
        self.explanation.clone()
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
        Ok(adopted.map(|(machine, tap)| (machine as Arc<dyn Vm>, tap)))
    }

    fn has_snapshot(&self, spec: &MachineSpec) -> bool {
        snapshot::exists(&spec.dir)
    }
}

fn version(program: &Path) -> Result<String, Problem> {
    let mend = "name Firecracker's program in the daemon's settings";
    let lacks = |what: String| Problem::new(Kind::HostLacks, what, mend);
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| lacks(format!("{} cannot be run: {error}", program.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    let version = line.strip_prefix("Firecracker v").map(str::to_owned);
    version.ok_or_else(|| lacks(format!("{} is not Firecracker: it says {line:?}", program.display())))
}

/// The model and what it can do: Firecracker itself does not look whether a snapshot's CPU is this one.
fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    let model = field("model name").split_once(':').map(|(_, model)| model.trim().to_owned());
    format!("{}, flags {:08x}", model.unwrap_or_default(), crc32c::crc32c(field("flags").as_bytes()))
}

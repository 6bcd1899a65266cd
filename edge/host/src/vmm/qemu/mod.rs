//! The `qemu` driver: a microVM is a QEMU process with the `microvm` machine.
//!
//! Invariants, beside those of the port ([`cloudpal_compute::driver`]):
//! - The guest's memory is a memfd that the daemon holds too ([`memory`]); QEMU's own stream carries the devices only.
//! - Packets are held inside the VMM (`filter-buffer`) until the guest is ready for them: at boot until the app
//!   listens, at a wake until its clock and random generator are fresh. None is dropped: they are let in, in order.
//! - The file `started` in the run directory says that the hold was lifted: a machine without it is not adopted.

mod command;
mod machine;
mod memory;
mod qmp;
mod start;

use super::{
    Accel,
    accelerator::{self, Accelerator, CounterRate},
    cgroup::Cgroups,
    snapshot::{self, Identity},
    start::blocking,
};
use async_trait::async_trait;
use cloudpal_compute::driver::{Driver, MachineSpec, Vm, WakeError};
use cloudpal_model::{Kind, Problem};
use machine::Machine;
use start::Start;
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

/// The marker file of a machine that is whole.
const STARTED: &str = "started";

#[derive(Clone, Debug)]
pub struct QemuSettings {
    /// Holds `vmlinuz` and `initramfs.img`.
    pub guest_dir: PathBuf,
    pub qemu_binary: PathBuf,
    pub accel: Accel,
    /// Each VMM runs as a user and group of its own: this plus the machine's number. `None`: as the daemon.
    pub first_uid: Option<u32>,
}

impl QemuSettings {
    pub fn new(guest_dir: impl Into<PathBuf>) -> Self {
        let qemu_binary = "qemu-system-x86_64".into();
        QemuSettings { guest_dir: guest_dir.into(), qemu_binary, accel: Accel::Auto, first_uid: None }
    }
}

pub struct QemuDriver {
    settings: QemuSettings,
    accelerator: Accelerator,
    explanation: String,
    version: String,
    counter: CounterRate,
    cgroups: Cgroups,
}

impl QemuDriver {
    /// Checks that everything is there, and measures which accelerator to use.
    pub fn new(settings: QemuSettings) -> Result<QemuDriver, Problem> {
        for name in ["vmlinuz", "initramfs.img"] {
            let path = settings.guest_dir.join(name);
            if !path.is_file() {
                let mend = "build it with `cargo xtask guest`, or name its directory with --guest-dir";
                return Err(Problem::new(
                    Kind::HostLacks,
                    format!("there is no guest's {}", path.display()),
                    mend,
                ));
            }
        }
        let version = qemu_version(&settings.qemu_binary)?;
        let counter = CounterRate::start();
        let (accelerator, why) = match settings.accel {
            Accel::Auto => accelerator::choose(),
            Accel::Tcg => {
                (Accelerator::Tcg, "tcg (software emulation, slow): as the settings say".to_owned())
            }
            Accel::Kvm => (Accelerator::Kvm, "kvm: as the settings say".to_owned()),
        };
        let cgroups = Cgroups::find();
        cgroups.sweep();
        let explanation = format!("QEMU {version}, {why}; {}", cgroups.explain());
        Ok(QemuDriver { settings, accelerator, explanation, version, counter, cgroups })
    }

    fn identity(&self, spec: &MachineSpec) -> Identity {
        let identity = Identity::new("qemu", spec)
            .with("vmm_version", &self.version)
            .with("accelerator", self.accelerator)
            .with("machine", command::MACHINE)
            .with("cpu", command::CPU);
        match self.accelerator {
            Accelerator::Tcg => identity,
            // There the guest has what the host has.
            Accelerator::Kvm => identity.with("host_cpu", accelerator::host_cpu()),
        }
    }

    fn start<'a>(&'a self, spec: &'a MachineSpec) -> Start<'a> {
        Start { driver: self, spec }
    }
}

#[async_trait]
impl Driver for QemuDriver {
    fn name(&self) -> &'static str {
        "qemu"
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
                let dir = spec.dir.clone();
                blocking(move || snapshot::set_aside(&dir)).await.map_err(WakeError::Failed)?;
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
        snapshot::exists(&spec.dir)
    }
}

fn qemu_version(program: &Path) -> Result<String, Problem> {
    let lacks = |what: String| Problem::new(Kind::HostLacks, what, "apt-get install qemu-system-x86");
    let output = Command::new(program).arg("--version").output();
    let output = output.map_err(|error| lacks(format!("{} cannot be run: {error}", program.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    let version = line.strip_prefix("QEMU emulator version ").map(str::to_owned);
    version.ok_or_else(|| lacks(format!("{} is not QEMU: it says {line:?}", program.display())))
}

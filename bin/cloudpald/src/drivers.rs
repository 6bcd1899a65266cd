//! Which VMM runs the machines: what the settings say, or the best that works here.

use crate::settings::{AccelChoice, DriverChoice, Settings};
use cloudpal_compute::driver::Driver;
use cloudpal_host::vmm::{Accel, FirecrackerDriver, FirecrackerSettings, QemuDriver, QemuSettings};
use cloudpal_model::{Kind, Problem};
use std::sync::Arc;

pub fn choose(settings: &Settings) -> Result<Arc<dyn Driver>, Problem> {
    match settings.driver {
        DriverChoice::Auto | DriverChoice::Qemu => Ok(Arc::new(QemuDriver::new(qemu(settings))?)),
        DriverChoice::Firecracker => Ok(Arc::new(FirecrackerDriver::new(firecracker(settings)?)?)),
    }
}

fn qemu(settings: &Settings) -> QemuSettings {
    let accel = match settings.accel {
        AccelChoice::Auto => Accel::Auto,
        AccelChoice::Tcg => Accel::Tcg,
        AccelChoice::Kvm => Accel::Kvm,
    };
    QemuSettings { accel, first_uid: Some(settings.first_vmm_uid), ..QemuSettings::new(&settings.guest_dir) }
}

fn firecracker(settings: &Settings) -> Result<FirecrackerSettings, Problem> {
    let lacks = || {
        let what = "the firecracker driver runs the operator's own Firecracker, and none is named";
        Problem::new(Kind::Invalid, what, "name its program with --firecracker")
    };
    Ok(FirecrackerSettings {
        guest_dir: settings.guest_dir.clone(),
        binary: settings.firecracker.clone().ok_or_else(lacks)?,
        first_uid: Some(settings.first_vmm_uid),
        verify_memory: true,
    })
}

//! Which driver runs the machines, and why.

use crate::settings::{AccelChoice, DriverChoice, Settings};
use cloudpal_compute::driver::Driver;
use cloudpal_host::vmm::{
    Accel, FirecrackerDriver, FirecrackerSettings, QemuDriver, QemuSettings,
    embedded::{EmbeddedDriver, EmbeddedSettings, usable},
};
use cloudpal_model::{Kind, Problem};
use std::{path::PathBuf, sync::Arc};

pub struct Chosen {
    pub driver: Arc<dyn Driver>,
    /// For `doctor`: what was looked at.
    pub why: String,
}

impl Chosen {
    pub fn explain(&self) -> String {
        format!("{}, {}: {}", self.driver.name(), self.why, self.driver.explain())
    }
}

pub fn choose(settings: &Settings) -> Result<Chosen, Problem> {
    let as_set = "as the settings say".to_owned();
    match settings.driver {
        DriverChoice::Embedded => Ok(Chosen { driver: embedded(settings)?, why: as_set }),
        DriverChoice::Qemu => Ok(Chosen { driver: qemu(settings)?, why: as_set }),
        DriverChoice::Firecracker => Ok(Chosen { driver: firecracker(settings)?, why: as_set }),
        DriverChoice::Auto => measured(settings),
    }
}

/// The embedded VMM where KVM runs a guest's instructions itself, which is measured; QEMU where it does not, and where
/// the embedded VMM lacks something.
fn measured(settings: &Settings) -> Result<Chosen, Problem> {
    let why = match usable() {
        (false, measured) => format!("since the embedded VMM needs a real KVM ({measured})"),
        (true, measured) => match embedded(settings) {
            Ok(driver) => return Ok(Chosen { driver, why: format!("since KVM is real ({measured})") }),
            Err(problem) => format!("since the embedded VMM cannot be used: {problem}"),
        },
    };
    Ok(Chosen { driver: qemu(settings)?, why })
}

fn embedded(settings: &Settings) -> Result<Arc<dyn Driver>, Problem> {
    let program = settings.vmm.clone().unwrap_or_else(beside_us);
    let own = EmbeddedSettings::new(&settings.guest_dir, program);
    let own = EmbeddedSettings { without_xsave: settings.guests_without_xsave, ..own };
    Ok(Arc::new(EmbeddedDriver::new(own)?))
}

fn beside_us() -> PathBuf {
    const NAME: &str = "cloudpal-vmm";
    std::env::current_exe().map_or_else(|_| NAME.into(), |daemon| daemon.with_file_name(NAME))
}

fn qemu(settings: &Settings) -> Result<Arc<dyn Driver>, Problem> {
    if settings.machine_network_rate.is_some() {
        let what =
            "--machine-network-rate is set, but QEMU runs the machines, and it cannot hold them to a rate";
        let mend = "leave it out, or choose `--driver embedded` on a host with KVM";
        return Err(Problem::new(Kind::Invalid, what, mend));
    }
    let accel = match settings.accel {
        AccelChoice::Auto => Accel::Auto,
        AccelChoice::Tcg => Accel::Tcg,
        AccelChoice::Kvm => Accel::Kvm,
    };
    let first_uid = Some(settings.first_vmm_uid);
    let settings = QemuSettings { accel, first_uid, ..QemuSettings::new(&settings.guest_dir) };
    Ok(Arc::new(QemuDriver::new(settings)?))
}

fn firecracker(settings: &Settings) -> Result<Arc<dyn Driver>, Problem> {
    let own = FirecrackerSettings {
        guest_dir: settings.guest_dir.clone(),
        binary: settings.firecracker.clone(),
        jailer: settings.jailer.clone(),
        first_uid: Some(settings.first_vmm_uid),
    };
    Ok(Arc::new(FirecrackerDriver::new(own)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn settings(more: &[&str]) -> Settings {
        let arguments = ["cloudpald", "--endpoint", "host.example", "--driver", "qemu"];
        Settings::try_parse_from(arguments.iter().chain(more)).expect("arguments")
    }

    #[test]
    fn a_rate_that_the_driver_cannot_hold_is_refused() {
        let Err(problem) = choose(&settings(&["--machine-network-rate", "100"])) else { panic!("taken") };
        assert_eq!(problem.kind, Kind::Invalid);
        assert!(problem.to_string().contains("--machine-network-rate"), "{problem}");
    }

    #[test]
    fn rates_are_in_bytes_a_second_and_never_zero() {
        let rates = settings(&["--machine-network-rate", "8", "--machine-disk-rate", "3"]).rates();
        let bytes =
            [rates.network_bytes_per_s, rates.disk_bytes_per_s].map(|rate| rate.map(|rate| rate.get()));
        assert_eq!(bytes, [Some(1_000_000), Some(3_000_000)]);
        assert_eq!(settings(&[]).rates(), cloudpal_model::Rates::default());
        let arguments = ["cloudpald", "--endpoint", "host.example", "--machine-disk-rate", "0"];
        assert!(Settings::try_parse_from(arguments).is_err());
    }
}

//! The daemon's command line: where things are, and the few choices an operator has.

use clap::{Parser, ValueEnum};
use cloudpal_model::Rates;
use std::{net::SocketAddr, num::NonZeroU64, path::PathBuf};

/// CloudPal's daemon: hosts personal clouds on this machine.
///
/// Runs in the foreground, as root, and logs to standard error. `SIGTERM` or Ctrl-C puts every awake machine to
/// sleep and ends it. Killed without warning it loses nothing: machines run on and the next daemon adopts them.
#[derive(Clone, Debug, Parser)]
#[command(name = "cloudpald", version)]
pub struct Settings {
    /// What must survive a reboot: the state store, images, and each machine's disk and snapshot.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cloudpal")]
    pub state_dir: PathBuf,

    /// Sockets and locks, gone after a reboot. Keep the path short: a socket's path has at most 107 bytes.
    #[arg(long, value_name = "DIR", default_value = "/run/cloudpal")]
    pub run_dir: PathBuf,

    /// The guest's kernel and initramfs: `vmlinuz`, `initramfs.img`, `kernel-version`.
    #[arg(long, value_name = "DIR", default_value = "/usr/lib/cloudpal/guest")]
    pub guest_dir: PathBuf,

    /// The name or address at which devices reach this host from the internet; written into their profiles.
    #[arg(long, value_name = "HOST")]
    pub endpoint: String,

    /// Prefix of the names of namespaces, interfaces and firewall tables; two daemons on one host need two.
    #[arg(long, value_name = "NAME", default_value = "cloudpal")]
    pub instance: String,

    /// The UDP port of the first tenant's WireGuard; each further tenant takes the next free one.
    #[arg(long, value_name = "PORT", default_value_t = 51820)]
    pub first_port: u16,

    /// Tenants' domains end with this.
    #[arg(long, value_name = "LABEL", default_value = "pal")]
    pub domain: String,

    /// Which WireGuard: `auto` takes the kernel's where its module is.
    #[arg(long, value_enum, default_value_t = WireGuardChoice::Auto)]
    pub wireguard: WireGuardChoice,

    /// What runs the machines: `auto` measures KVM, and takes CloudPal's own VMM where it is real, else QEMU.
    #[arg(long, value_enum, default_value_t = DriverChoice::Auto)]
    pub driver: DriverChoice,

    /// CloudPal's own VMM. Default: `cloudpal-vmm` beside this program.
    #[arg(long, value_name = "FILE")]
    pub vmm: Option<PathBuf>,

    /// CloudPal's own VMM keeps XSAVE from the guests, and AVX with it: not every KVM that is itself emulated has it
    /// right.
    #[arg(long)]
    pub guests_without_xsave: bool,

    /// Firecracker, for the driver of that name.
    #[arg(long, value_name = "FILE", default_value = "firecracker")]
    pub firecracker: PathBuf,

    /// Its jailer. Default: `jailer` beside it, with the same ending of the name.
    #[arg(long, value_name = "FILE")]
    pub jailer: Option<PathBuf>,

    /// With the qemu driver, what runs the guests' instructions: `auto` measures KVM and takes it only when it is real.
    #[arg(long, value_enum, default_value_t = AccelChoice::Auto)]
    pub accel: AccelChoice,

    /// Each machine's VMM runs as a user of its own without any privilege: this number plus the machine's. No real
    /// account may have a number from here on.
    #[arg(long, value_name = "UID", default_value_t = 1_900_000_000)]
    pub first_vmm_uid: u32,

    /// What a machine may send, and what it may receive, at most, in millions of bits a second. Default: all that the
    /// host can. Holds from a machine's next boot or wake on. Not with QEMU.
    #[arg(long, value_name = "MBIT/S", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub machine_network_rate: Option<u32>,

    /// What a machine may read from and write to each of its disks, together, at most, in millions of bytes a second.
    /// Default: all that the host can. Holds from a machine's next boot or wake on.
    #[arg(long, value_name = "MB/S", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub machine_disk_rate: Option<u32>,

    /// Resolvers for names outside the overlay; repeatable. Default: those of /etc/resolv.conf.
    #[arg(long, value_name = "IP:PORT")]
    pub upstream_dns: Vec<SocketAddr>,
}

impl Settings {
    /// The same for every machine.
    pub fn rates(&self) -> Rates {
        let rate = |millions: Option<u32>, bytes: u64| NonZeroU64::new(u64::from(millions?) * bytes);
        Rates {
            network_bytes_per_s: rate(self.machine_network_rate, 1_000_000 / 8),
            disk_bytes_per_s: rate(self.machine_disk_rate, 1_000_000),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WireGuardChoice {
    Auto,
    Kernel,
    Userspace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DriverChoice {
    Auto,
    /// CloudPal's own VMM, on KVM.
    Embedded,
    Qemu,
    /// The operator's Firecracker: see `--firecracker`.
    Firecracker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AccelChoice {
    Auto,
    Tcg,
    Kvm,
}

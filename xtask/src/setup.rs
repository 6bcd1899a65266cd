//! Installs what is missing from Debian. Says what and why before it does anything.
//!
//! Invariants: what is there is not touched; a second run changes nothing; no service is started by a package.

use crate::shell;
use anyhow::{Context, Result, bail};
use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, path::Path};

/// What the machine is to be made ready for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum For {
    /// Running CloudPal and its example app.
    Up,
    /// Testing it, too.
    Test,
}

struct Package {
    name: &'static str,
    why: &'static str,
    needed: For,
}

const fn package(name: &'static str, needed: For, why: &'static str) -> Package {
    Package { name, why, needed }
}

const PACKAGES: &[Package] = &[
    package("qemu-system-x86", For::Up, "the VMM of the machines where no real KVM is"),
    package("e2fsprogs", For::Up, "mkfs.ext4, for the machines' writable disks"),
    package("erofs-utils", For::Up, "mkfs.erofs, for the machines' read-only root file systems"),
    package("nftables", For::Up, "the tenants' packet rules"),
    package("iproute2", For::Up, "network namespaces, and looking at them"),
    package("cpio", For::Up, "the guest's initramfs"),
    package("kmod", For::Up, "which modules the guest kernel needs, and in which order"),
    package("debootstrap", For::Up, "the example app's root file system, from Debian's packages"),
    package("umoci", For::Up, "makes an OCI image of it"),
    package("wireguard-tools", For::Test, "wg and wg-quick: a device's client that is not ours"),
    package("wireguard-go", For::Test, "a device's WireGuard that is not ours"),
    package("iputils-ping", For::Test, "a ping must wake a machine, too"),
    package("skopeo", For::Test, "images as archives, and in a registry"),
    package("docker-registry", For::Test, "a registry that is not ours, to pull from"),
    package("g++", For::Test, "libFuzzer, which drives the parsers of foreign bytes"),
];

pub fn run(needed: For) -> Result<()> {
    let missing = missing(needed)?;
    if !missing.is_empty() {
        install(&missing)?;
    }
    if needed == For::Test && !shell::succeeds(&mut shell::command("cargo", &["nextest", "--version"])) {
        println!("set-up: installing cargo-nextest with cargo: it runs the tests, each in its own process");
        shell::run(&mut shell::command("cargo", &["install", "--locked", "cargo-nextest"]))?;
    }
    Ok(())
}

fn missing(needed: For) -> Result<Vec<&'static Package>> {
    let listed = shell::output(&mut shell::command(
        "dpkg-query",
        &["--show", "--showformat", "${db:Status-Status} ${Package}\n"],
    ))
    .context("set-up knows Debian 12 only")?;
    let there: BTreeSet<&str> = listed.lines().filter_map(|line| line.strip_prefix("installed ")).collect();
    Ok(PACKAGES.iter().filter(|p| p.needed <= needed && !there.contains(p.name)).collect())
}

fn install(missing: &[&Package]) -> Result<()> {
    println!("set-up: these Debian packages are missing and will be installed:");
    for package in missing {
        println!("  {:16} {}", package.name, package.why);
    }
    if !nix::unistd::geteuid().is_root() {
        let names: Vec<&str> = missing.iter().map(|p| p.name).collect();
        bail!("installing needs root: run this as root, or run `apt-get install {}` first", names.join(" "));
    }
    let _quiet = NoServices::hold()?;
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(missing.iter().map(|p| p.name));
    apt(&arguments)
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = shell::command("apt-get", arguments);
    command.env("DEBIAN_FRONTEND", "noninteractive");
    shell::output(&mut command).map(drop).context("Debian's package manager did not succeed")
}

/// While it lives, packages start no services (docker-registry would, on port 5000).
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn hold() -> Result<Self> {
        if Path::new(POLICY).exists() {
            return Ok(NoServices { ours: false });
        }
        fs::write(
            POLICY,
            "#!/bin/sh\n# Made by CloudPal's set-up while it installs; no service may start.\nexit 101\n",
        )
        .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
        .with_context(|| format!("cannot write {POLICY}"))?;
        Ok(NoServices { ours: true })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("set-up: please remove {POLICY} by hand: {error}");
        }
    }
}

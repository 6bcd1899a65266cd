//! The guest's kernel and initramfs, made from Debian's cloud kernel package and our static `cloudpal-init`.
//!
//! Invariants: the package is downloaded and unpacked, never installed, so the host's own kernel stays as it is; a file
//! is written under a temporary name and renamed, so an interrupted build leaves none that looks whole; and a second
//! build of the same sources writes nothing.

mod cpio;
mod kernel;

use crate::{paths, shell};
use anyhow::{Context, Result, bail};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The meta package that always depends on the newest security update.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the guest needs; their dependencies are found in the modules themselves.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio-rng",
    "crc32c-intel",
    "erofs",
    "overlay",
];

/// Loaded only where the VMM offers a vsock instead of a virtio console.
const VSOCK_MODULES: &[&str] = &["vmw_vsock_virtio_transport"];

#[derive(Debug)]
pub struct GuestArtifacts {
    pub dir: PathBuf,
    pub kernel_version: String,
    /// False: everything was up to date.
    pub changed: bool,
}

/// The folder in which the project's own builds and tests look for the guest.
pub fn default_dir() -> PathBuf {
    paths::target().join("guest")
}

/// Builds `vmlinuz`, `initramfs.img` and `kernel-version` into `out_dir`.
pub fn build(out_dir: &Path) -> Result<GuestArtifacts> {
    fs::create_dir_all(out_dir).with_context(|| format!("cannot create {}", out_dir.display()))?;
    let Package { root: unpacked, version: kernel_version } = package(&out_dir.join("cache"))?;
    let init = build_init()?;

    let mut changed = false;
    if !out_dir.join("vmlinuz").exists() || read(&out_dir.join("kernel-version")).trim() != kernel_version {
        let packed = fs::read(unpacked.join(format!("boot/vmlinuz-{kernel_version}")))?;
        // Unpacked here once rather than by every boot: one second less under software emulation.
        let image = kernel::uncompressed(&packed).unwrap_or(packed);
        replace(&out_dir.join("vmlinuz"), &image)?;
        changed = true;
    }
    let init = fs::read(init)?;
    let modules = unpacked.join("lib/modules").join(&kernel_version);
    let initramfs = initramfs(
        &modules,
        &[("order", MODULES), ("vsock", VSOCK_MODULES)],
        &[("init", &init)],
        &["run", "cloudpal"],
    )?;
    changed |= replace_if_different(&out_dir.join("initramfs.img"), &initramfs)?;
    changed |=
        replace_if_different(&out_dir.join("kernel-version"), format!("{kernel_version}\n").as_bytes())?;
    Ok(GuestArtifacts { dir: out_dir.to_path_buf(), kernel_version, changed })
}

/// A kernel package, unpacked.
pub struct Package {
    pub root: PathBuf,
    pub version: String,
}

/// The newest kernel package, downloaded and unpacked into `cache` unless it is there already.
pub fn package(cache: &Path) -> Result<Package> {
    let root = unpack_package(cache)?;
    let version = version_of(&root)?;
    Ok(Package { root, version })
}

/// Downloads the kernel package that the meta package stands for, unless it is there already, and unpacks it.
fn unpack_package(cache: &Path) -> Result<PathBuf> {
    let package = kernel_package(cache)?;
    let unpacked = cache.join(&package);
    if unpacked.is_dir() {
        return Ok(unpacked);
    }
    println!("guest: downloading {package} from Debian (it is unpacked for the guests, not installed here)");
    let fresh = cache.join("fresh");
    drop(fs::remove_dir_all(&fresh));
    fs::create_dir_all(fresh.join("root"))?;
    shell::output(shell::command("apt-get", &["-q", "download", &package]).current_dir(&fresh))?;
    let archive =
        fs::read_dir(&fresh)?.flatten().find(|entry| entry.path().extension().is_some_and(|e| e == "deb"));
    let archive = archive.context("apt-get download left no .deb file")?.path();
    let root = fresh.join("root");
    shell::output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&root))?;
    fs::rename(&root, &unpacked)?;
    drop(fs::remove_dir_all(&fresh));
    Ok(unpacked)
}

/// `linux-image-6.1.0-N-cloud-amd64`. Without package lists (no network), the newest one that was unpacked before.
fn kernel_package(cache: &Path) -> Result<String> {
    let listed = shell::output(&mut shell::command("apt-cache", &["depends", META_PACKAGE]))?;
    let mut names = listed.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    if let Some(name) = names.find(|name| name.starts_with("linux-image-")) {
        return Ok(name.to_owned());
    }
    let known = fs::read_dir(cache).into_iter().flatten().flatten();
    let mut known: Vec<_> = known.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    known.retain(|name| name.starts_with("linux-image-"));
    known.sort();
    known
        .pop()
        .with_context(|| format!("apt knows no package {META_PACKAGE}; run `apt-get update`, then try again"))
}

fn version_of(unpacked: &Path) -> Result<String> {
    let mut modules = fs::read_dir(unpacked.join("lib/modules"))?.flatten();
    let version = modules.next().and_then(|entry| entry.file_name().into_string().ok());
    version.with_context(|| format!("{} holds no kernel modules", unpacked.display()))
}

fn build_init() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--release", "-p", "cloudpal-init", "--target", TARGET]);
    command.current_dir(paths::root());
    command.env("RUSTFLAGS", "-C target-feature=+crt-static").env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    shell::run(&mut command)?;
    Ok(paths::target().join(TARGET).join("release/cloudpal-init"))
}

/// An initramfs with these executables, directories, and the modules with all that they need, in the order in which
/// the file of each list, `/modules/NAME`, names them.
pub fn initramfs(
    modules: &Path,
    wanted: &[(&str, &[&str])],
    programs: &[(&str, &[u8])],
    dirs: &[&str],
) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::default();
    for name in ["proc", "sys", "dev", "modules"].iter().chain(dirs) {
        archive.directory(name);
    }
    for (name, bytes) in programs {
        archive.file(name, 0o755, bytes);
    }
    // The kernel opens it for PID 1 before anything is mounted.
    archive.character_device("dev/console", 5, 1);
    let mut packed = BTreeSet::new();
    for (list, wanted) in wanted {
        let mut order = String::new();
        for module in kernel::modules(modules, wanted)? {
            order += &format!("{}.ko\n", module.name);
            let path = format!("modules/{}.ko", module.name);
            if packed.insert(module.name) {
                archive.file(&path, 0o644, &module.bytes);
            }
        }
        archive.file(&format!("modules/{list}"), 0o644, order.as_bytes());
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn replace_if_different(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|present| present == bytes) {
        return Ok(false);
    }
    replace(path, bytes)?;
    Ok(true)
}

fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.is_empty() {
        bail!("{} would be empty", path.display());
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes).with_context(|| format!("cannot write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("cannot rename to {}", path.display()))
}

//! What is mounted where, and the orderly end.
//!
//! ```text
//!   /            the initramfs: init, its modules
//!   /cloudpal/image   the image, EROFS, read-only      /cloudpal/disk   the writable disk, ext4
//!   /cloudpal/root    overlay of both: the app's root, with its own /dev, /proc, /sys
//! ```

use crate::Fault;
use cloudpal_model::guest::GuestConfig;
use nix::{
    kmod::{ModuleInitFlags, finit_module},
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{
        reboot::{RebootMode, reboot},
        stat::{Mode, SFlag, makedev, mknod},
    },
    unistd::mkdir,
};
use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread::sleep,
    time::{Duration, Instant},
};

pub const ROOT: &str = "/cloudpal/root";
const IMAGE: &str = "/cloudpal/image";
const DISK: &str = "/cloudpal/disk";
const MODULES: &str = "/modules";

const NO_SUID_DEV_EXEC: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

pub fn kernel_file_systems() -> Result<(), Fault> {
    mount_at("proc", "/proc", "proc", NO_SUID_DEV_EXEC, "")?;
    mount_at("sysfs", "/sys", "sysfs", NO_SUID_DEV_EXEC, "")?;
    mount_at("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")
}

/// Loads a list of modules in the order in which the set-up resolved their dependencies.
pub fn load_modules(list: &str) -> Result<(), Fault> {
    let order = fs::read_to_string(format!("{MODULES}/{list}"))?;
    for name in order.lines() {
        let file = File::open(format!("{MODULES}/{name}"))?;
        match finit_module(file, c"", ModuleInitFlags::empty()) {
            // Present already, or made for a processor feature that this one lacks; what is truly missing shows later.
            Ok(()) | Err(nix::errno::Errno::EEXIST | nix::errno::Errno::ENODEV) => {}
            Err(fault) => return Err(format!("loading the kernel module {name}: {fault}").into()),
        }
    }
    Ok(())
}

/// Puts the app's root together.
pub fn root(config: &GuestConfig) -> Result<(), Fault> {
    mount_at(&block_device(Disk::Root)?, IMAGE, "erofs", MsFlags::MS_RDONLY | MsFlags::MS_NODEV, "")?;
    let disk_flags = MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    mount_at(&block_device(Disk::Writable)?, DISK, "ext4", disk_flags, "")?;
    for name in ["upper", "work"] {
        fs::create_dir_all(format!("{DISK}/{name}"))?;
    }
    let layers = format!("lowerdir={IMAGE},upperdir={DISK}/upper,workdir={DISK}/work");
    mount_at("overlay", ROOT, "overlay", disk_flags, &layers)?;
    app_file_systems()?;
    provided_files(config)
}

/// The image or the writable disk: the order of discovery is nobody's promise. A VMM names them by serial numbers, or,
/// when those are its own, offers one that can be written and one that cannot.
fn block_device(disk: Disk) -> Result<String, Fault> {
    let (serial, read_only) = match disk {
        Disk::Root => ("root", "1"),
        Disk::Writable => ("disk", "0"),
    };
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(30) {
        let disks =
            fs::read_dir("/sys/block")?.flatten().filter(|entry| entry.path().join("serial").exists());
        for entry in disks {
            let attribute = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            let found = match attribute("serial").trim() {
                "root" | "disk" => attribute("serial").trim() == serial,
                _ => attribute("ro").trim() == read_only,
            };
            let device = PathBuf::from("/dev").join(entry.file_name());
            if found && device.exists() {
                return Ok(device.to_string_lossy().into_owned());
            }
        }
        sleep(Duration::from_millis(2));
    }
    Err(format!("the VMM offers no disk with the serial number {serial}").into())
}

enum Disk {
    Root,
    Writable,
}

fn app_file_systems() -> Result<(), Fault> {
    let within = |path: &str| format!("{ROOT}{path}");
    mount_at("proc", &within("/proc"), "proc", NO_SUID_DEV_EXEC, "")?;
    mount_at("sysfs", &within("/sys"), "sysfs", NO_SUID_DEV_EXEC | MsFlags::MS_RDONLY, "")?;
    mount_at("tmpfs", &within("/dev"), "tmpfs", MsFlags::MS_NOSUID, "mode=0755,size=64k")?;
    let everybody = Mode::from_bits_truncate(0o666);
    for (name, major, minor) in
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
    {
        let path = within(&format!("/dev/{name}"));
        mknod(path.as_str(), SFlag::S_IFCHR, everybody, makedev(major, minor))?;
        // mknod is subject to the umask.
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    }
    let links = [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("stdout", "/proc/self/fd/1")];
    for (name, target) in links.into_iter().chain([("stderr", "/proc/self/fd/2"), ("ptmx", "pts/ptmx")]) {
        symlink(target, within(&format!("/dev/{name}")))?;
    }
    let pts = "newinstance,ptmxmode=0666,mode=0620,gid=5";
    mount_at("devpts", &within("/dev/pts"), "devpts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, pts)?;
    mount_at("shm", &within("/dev/shm"), "tmpfs", NO_SUID_DEV_EXEC, "mode=1777")?;
    mount_at("mqueue", &within("/dev/mqueue"), "mqueue", NO_SUID_DEV_EXEC, "")?;
    if fs::symlink_metadata(within("/tmp")).is_err() {
        mkdir(within("/tmp").as_str(), Mode::from_bits_truncate(0o777))?;
        fs::set_permissions(within("/tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    }
    Ok(())
}

/// The files that every container runtime provides. Written anew at each boot.
fn provided_files(config: &GuestConfig) -> Result<(), Fault> {
    let network = &config.network;
    nix::unistd::sethostname(&config.hostname)?;
    let etc = Path::new(ROOT).join("etc");
    match fs::symlink_metadata(&etc) {
        Ok(data) if data.is_dir() => {}
        // A link would lead out of the app's root, into init's.
        Ok(_) => return Ok(()),
        Err(_) => fs::create_dir(&etc)?,
    }
    let (name, domain) = (&config.hostname, &network.search_domain);
    let full = if domain.is_empty() { name.clone() } else { format!("{name}.{domain} {name}") };
    let hosts = format!(
        "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{} {full}\n{} {full}\n",
        network.ipv4, network.ipv6
    );
    let search = if domain.is_empty() { String::new() } else { format!("search {domain}\n") };
    write_anew(&etc.join("hosts"), &hosts)?;
    write_anew(&etc.join("hostname"), &format!("{name}\n"))?;
    write_anew(&etc.join("resolv.conf"), &format!("nameserver {}\n{search}", network.dns))
}

/// Replaces whatever the image has there, and never writes through a link of the image's.
fn write_anew(path: &Path, text: &str) -> Result<(), Fault> {
    match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => return Ok(()),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<(), Fault> {
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() => {}
        // The image has a file or a link where a directory must be; the app's root is ours to arrange.
        Ok(_) => {
            fs::remove_file(target)?;
            fs::create_dir(target)?;
        }
        Err(_) => fs::create_dir_all(target)?,
    }
    let data = (!data.is_empty()).then_some(data);
    mount(Some(source), target, Some(kind), flags, data)
        .map_err(|fault| format!("mounting {source} ({kind}) on {target}: {fault}").into())
}

/// Writes everything, makes the disk read-only, and ends the machine.
pub fn power_off() -> ! {
    nix::unistd::sync();
    // The app's processes are gone or about to go: detach what they may still hold, so that ext4 ends clean.
    let _ = umount2(ROOT, MntFlags::MNT_DETACH);
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let _ = mount(None::<&str>, DISK, None::<&str>, flags, None::<&str>);
    nix::unistd::sync();
    // Without a power switch a machine would stand still: there a reset is its end, and the VMM says so to the kernel.
    let parameters = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    if !parameters.split_ascii_whitespace().any(|parameter| parameter == "reboot=k") {
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    loop {
        sleep(Duration::from_secs(1));
    }
}

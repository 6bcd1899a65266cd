//! The host VM's files: Debian's kernel, a small initramfs, and a read-only root made by debootstrap.

use super::kernel_package;
use crate::{guest, paths, shell};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
};

const SUITE: &str = "bookworm";

/// Raised when this file would make another root from the same packages.
const RECIPE: &str = "3";

const PACKAGES: &str = "bind9-dnsutils,busybox-static,iproute2,iputils-ping,kmod,nftables,procps,wireguard-go,\
                        wireguard-tools,curl,ca-certificates,erofs-utils,e2fsprogs,util-linux-extra,qemu-system-x86";

/// What the initramfs needs to find its root.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_blk", "erofs", "overlay"];

/// The initramfs: the read-only root under a writable layer in memory, the work disk at /job, then over to it.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo \"hostvm: no module $module\"; done
mkdir -p /lower /upper /new
mount -t erofs -o ro /dev/vda /lower
mount -t tmpfs -o size=50% upper /upper
mkdir -p /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work root /new
mkdir -p /new/job
mount -t erofs -o ro /dev/vdb /new/job
mount -t ext4 -o noatime /dev/vdc /new/tmp
mount --move /dev /new/dev
umount /proc
exec switch_root /new /job/run
";

/// How a run begins: the file systems that a host has, the modules that its kernel loads on demand only with a udev,
/// and a VM that is never run.
///
/// The first VM of a host and the end of its last one switch static keys in KVM and in the scheduler (jump labels),
/// that is, the kernel patches code that the other CPU is in. QEMU before 8.1 translates code and protects its page
/// against writing in two steps, so it can keep the breakpoint that was there in between: the host then never leaves
/// it. With one VM that stays, nothing is patched.
pub const PREAMBLE: &str = "#!/bin/sh
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
[ ! -e /job/firecracker ] || export CLOUDPAL_FIRECRACKER=/job/firecracker
[ ! -e /job/unikernel ] || export CLOUDPAL_UNIKERNEL=/job/unikernel \
    \"CLOUDPAL_UNIKERNEL_ARGUMENTS=$(cat /job/unikernel-arguments)\" \
    \"CLOUDPAL_UNIKERNEL_SAYS=$(cat /job/unikernel-says)\" \
    \"CLOUDPAL_UNIKERNEL_SERVES=$(cat /job/unikernel-serves)\" \
    \"CLOUDPAL_UNIKERNEL_WITHOUT=$(cat /job/unikernel-without)\"
export CLOUDPAL_TEST_WIREGUARD=kernel CLOUDPAL_GUEST_DIR=/job/built/guest CLOUDPAL_VMM=/job/built/cloudpal-vmm
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
echo '+cpu +memory +io +pids' >/sys/fs/cgroup/cgroup.subtree_control
mkdir -p /dev/pts /dev/shm /run/netns
mount -t tmpfs shm /dev/shm
mount -t devpts pts /dev/pts
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
ip link set lo up
chmod 1777 /tmp /dev/shm
for module in kvm_amd wireguard tun veth nf_tables nft_chain_nat nft_masq nft_ct nft_reject_inet; do
    modprobe $module || echo \"hostvm: no module $module\"
done
chgrp kvm /dev/kvm && chmod 660 /dev/kvm
chmod 666 /dev/net/tun
[ ! -e /dev/kvm ] || qemu-system-x86_64 -accel kvm -M microvm -m 8 -nodefaults -display none -S </dev/null >/dev/null &
echo \"hostvm: $(uname -r), $(grep -c ^processor /proc/cpuinfo) CPUs, $(ls /dev/kvm)\"
";

pub struct Host {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub rootfs: PathBuf,
}

/// Builds what is not there yet; about two minutes the first time.
pub fn build() -> Result<Host> {
    let package = kernel_package()?;
    let dir = paths::target().join("hostvm");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let host = Host {
        kernel: package.root.join(format!("boot/vmlinuz-{}", package.version)),
        initramfs: dir.join("initramfs.img"),
        rootfs: dir.join("rootfs.erofs"),
    };
    let stamp = dir.join("recipe");
    let recipe = format!("{RECIPE} {}", package.version);
    if fs::read_to_string(&stamp).is_ok_and(|text| text == recipe) {
        return Ok(host);
    }
    println!("hostvm: building a Debian {SUITE} host from packages (debootstrap; about two minutes)");
    let work = dir.join(format!("root.{}", std::process::id()));
    let built = make(&work, &package, &host);
    let removed = if work.exists() { fs::remove_dir_all(&work) } else { Ok(()) };
    built.context("cannot build the host VM")?;
    removed.with_context(|| format!("cannot remove {}", work.display()))?;
    fs::write(&stamp, recipe)?;
    Ok(host)
}

fn make(work: &Path, package: &guest::Package, host: &Host) -> Result<()> {
    let root = work.to_string_lossy().into_owned();
    let include = format!("--include={PACKAGES}");
    shell::output(&mut shell::command("debootstrap", &["--variant=minbase", &include, SUITE, &root]))
        .context("debootstrap needs root and Debian's archive")?;
    let modules = package.root.join("lib/modules");
    let copy = format!(
        "cp -a {} usr/lib/ && depmod -b . {} && chroot . groupadd -rf kvm && rm -rf dev/* var/cache/apt/* \
         var/lib/apt/lists/* usr/share/doc usr/share/locale usr/share/man",
        modules.display(),
        package.version
    );
    shell::output(shell::command("sh", &["-euc", &copy]).current_dir(work))?;
    erofs(work, &host.rootfs)?;
    let busybox = fs::read(work.join("bin/busybox")).context("the host has no static busybox")?;
    fs::write(paths::target().join("hostvm/busybox"), &busybox)?;
    let initramfs = guest::initramfs(
        &modules.join(&package.version),
        &[("order", &MODULES)],
        &[("init", INIT.as_bytes()), ("bin/busybox", &busybox)],
        &["bin", "new"],
    )?;
    fs::write(&host.initramfs, initramfs).context("cannot write the host VM's initramfs")
}

/// A read-only file system image of a directory.
pub fn erofs(dir: &Path, image: &Path) -> Result<()> {
    drop(fs::remove_file(image));
    let (image, dir) = (image.to_string_lossy(), dir.to_string_lossy());
    shell::output(&mut shell::command("mkfs.erofs", &["--quiet", &image, &dir])).map(drop)
}

/// The host's static busybox: what the tests' guests run, too.
pub fn busybox() -> Result<Vec<u8>> {
    let kept = paths::target().join("hostvm/busybox");
    fs::read(&kept).with_context(|| format!("{} is missing: remove target/hostvm/recipe", kept.display()))
}

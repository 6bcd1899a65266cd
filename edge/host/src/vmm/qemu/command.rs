//! QEMU's command line.
//!
//! Invariant: nothing that a person typed is part of it, not even a path: files are descriptors that the daemon opened.

use crate::vmm::accelerator::Accelerator;
use cloudpal_compute::driver::MachineSpec;
use cloudpal_model::Problem;
use serde_json::{Value, json};
use std::{
    fs::{File, OpenOptions},
    os::fd::{AsRawFd, RawFd},
    path::Path,
    process::Command,
};

/// `acpi=on`: Debian's kernel finds virtio-mmio devices by no other means. The old clock and interrupt controllers are
/// for kernels that look for them. Part of a snapshot's identity.
pub const MACHINE: &str = "microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial=on,usb=off,graphics=off";
pub const CPU: &str = "max";
pub const HOLD: &str = "hold";

/// QEMU's numbers of the descriptors that it opens as `/dev/fdset/N`: the root, the disk, the log, the console.
const ROOT_SET: u32 = 1;
const LOG_SET: u32 = 3;
const CONSOLE_SET: u32 = 4;

/// What the VMM works on, opened by the daemon: the VMM's user may not even look into the directories.
pub struct Files {
    kernel: File,
    initramfs: File,
    rootfs: File,
    disk: File,
    log: File,
    console: File,
    sockets_dir: File,
}

impl Files {
    pub fn open(guest_dir: &Path, spec: &MachineSpec, sockets_dir: &Path) -> Result<Files, Problem> {
        let open = |options: &mut OpenOptions, path: &Path| {
            options.open(path).map_err(|error| Problem::io(path.display(), &error))
        };
        let read = |path: &Path| open(File::options().read(true), path);
        Ok(Files {
            kernel: read(&guest_dir.join("vmlinuz"))?,
            initramfs: read(&guest_dir.join("initramfs.img"))?,
            rootfs: read(&spec.rootfs)?,
            disk: open(File::options().read(true).write(true), &spec.dir.join("disk.img"))?,
            log: open(File::options().append(true).create(true), &spec.dir.join("log"))?,
            console: open(File::options().append(true).create(true), &spec.run_dir.join("console.log"))?,
            sockets_dir: read(sockets_dir)?,
        })
    }

    pub fn descriptors(&self) -> [RawFd; 7] {
        let Files { kernel, initramfs, rootfs, disk, log, console, sockets_dir } = self;
        [kernel, initramfs, rootfs, disk, log, console, sockets_dir].map(AsRawFd::as_raw_fd)
    }

    /// A socket in the VMM's own directory.
    fn socket(&self, name: &str) -> String {
        format!("{}/{name}", opened(&self.sockets_dir))
    }
}

/// The path under which a process finds its own descriptor.
fn opened(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

pub struct Plan<'a> {
    pub program: &'a Path,
    pub accelerator: Accelerator,
    pub counter_khz: u64,
    pub spec: &'a MachineSpec,
    pub tap_fd: RawFd,
    pub memory_fd: RawFd,
    pub files: &'a Files,
    /// Restores: the machine waits for the stream.
    pub incoming: bool,
}

impl Plan<'_> {
    pub fn command(&self) -> Command {
        let mut command = Command::new(self.program);
        self.machine(&mut command);
        self.devices(&mut command);
        self.channels(&mut command);
        if self.incoming {
            command.args(["-incoming", "defer"]);
        }
        command
    }

    fn machine(&self, command: &mut Command) {
        let spec = self.spec;
        let memory = format!(
            "memory-backend-file,id=ram,size={}M,mem-path=/proc/self/fd/{},share=on",
            spec.memory_mib, self.memory_fd
        );
        let accelerator = match self.accelerator {
            // Without a bound the translated code may take a gigabyte.
            Accelerator::Tcg => "tcg,tb-size=96",
            Accelerator::Kvm => "kvm",
        };
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args([
            "-machine",
            &format!("{MACHINE},memory-backend=ram"),
            "-accel",
            accelerator,
            "-cpu",
            CPU,
        ]);
        command.args([
            "-object",
            &memory,
            "-m",
            &format!("{}M", spec.memory_mib),
            "-smp",
            &spec.vcpus.to_string(),
        ]);
        command.args(["-kernel", &opened(&self.files.kernel), "-initrd", &opened(&self.files.initramfs)]);
        command.args(["-append", &self.kernel_parameters()]);
        command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        command.args(["-name", &format!("cloudpal-{}", spec.id)]);
    }

    fn kernel_parameters(&self) -> String {
        // A guest that resets does it by a triple fault, at once: the kernel would first wait for a keyboard controller
        // that is not there, with 650,000 looks at its port, each an exit.
        let mut parameters =
            "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t random.trust_cpu=on audit=0 lsm= \
            8250.nr_uarts=1 i8042.noaux i8042.nokbd cryptomgr.notests"
                .to_owned();
        if self.accelerator == Accelerator::Tcg {
            // The kernel cannot measure the counter here (it may even hang trying); there is no speculation to tame.
            let khz = self.counter_khz;
            parameters +=
                &format!(" tsc_early_khz={khz} tsc=reliable no_timer_check mitigations=off init_on_alloc=0");
        }
        parameters
    }

    fn devices(&self, command: &mut Command) {
        let spec = self.spec;
        let disks = [("root", &self.files.rootfs, true), ("disk", &self.files.disk, false)];
        for (set, (serial, file, read_only)) in (ROOT_SET..).zip(disks) {
            let fd = file.as_raw_fd();
            command.args(["-add-fd", &format!("fd={fd},set={set}")]);
            let node = |driver: &str, below: Value| {
                let discard = if read_only { "ignore" } else { "unmap" };
                json!({ "driver": driver, "read-only": read_only, "discard": discard, "file": below })
            };
            let file = json!({ "driver": "file", "filename": format!("/dev/fdset/{set}") });
            let mut node = match spec.rates.disk_bytes_per_s {
                None => node("raw", file),
                Some(rate) => {
                    let id = format!("{serial}-rate");
                    // Without a size of its own, a burst is [`BURST_MS`] here, too.
                    let limits = json!({ "bps-total": rate });
                    let group = json!({ "qom-type": "throttle-group", "id": id, "limits": limits });
                    command.args(["-object", &group.to_string()]);
                    let mut node = node("throttle", node("raw", file));
                    node["throttle-group"] = json!(id);
                    node
                }
            };
            node["node-name"] = json!(serial);
            command.args(["-blockdev", &node.to_string()]);
            // An error is the guest's to handle: QEMU would rather pause it for ever on a full disk.
            let errors = "werror=report,rerror=report";
            command.args(["-device", &format!("virtio-blk-device,drive={serial},serial={serial},{errors}")]);
        }
        let mac = spec.mac.map(|byte| format!("{byte:02x}")).join(":");
        command.args(["-netdev", &format!("tap,id=net0,fd={},vhost=off", self.tap_fd)]);
        // Packets come in before the guest's driver has said which header it wants: so that all of them fit, the header
        // must be the same from the first moment on. Without merged buffers it is.
        let plain =
            "mrg_rxbuf=off,guest_tso4=off,guest_tso6=off,guest_ufo=off,guest_ecn=off,guest_announce=off";
        command.args(["-device", &format!("virtio-net-device,netdev=net0,mac={mac},{plain}")]);
        // Keeps what arrives until the guest is ready for it; removed then, which lets everything through in order.
        let hold = format!("filter-buffer,id={HOLD},netdev=net0,queue=tx,interval=4000000000");
        command.args(["-object", &hold]);
        command.args(["-device", "virtio-rng-device", "-device", "virtio-serial-device"]);
    }

    fn channels(&self, command: &mut Command) {
        let socket = |name: &str| self.files.socket(name);
        let control = format!("socket,id=control,path={},server=on,wait=off", socket("control.sock"));
        command.args(["-chardev", &control]);
        command.args(["-device", "virtserialport,chardev=control,name=cloudpal.control"]);
        command.args(["-add-fd", &format!("fd={},set={LOG_SET}", self.files.log.as_raw_fd())]);
        command.args(["-chardev", &format!("file,id=log,path=/dev/fdset/{LOG_SET},append=on")]);
        command.args(["-device", "virtserialport,chardev=log,name=cloudpal.log"]);
        command.args(["-add-fd", &format!("fd={},set={CONSOLE_SET}", self.files.console.as_raw_fd())]);
        let console = format!("file,id=console,path=/dev/fdset/{CONSOLE_SET},append=on");
        command.args(["-chardev", &console, "-serial", "chardev:console"]);
        // Here it waits for the daemon before it makes the machine: once it has one it takes packets from the TAP.
        let monitor = format!("socket,id=qmp,path={},server=on,wait=on", socket("qmp.sock"));
        command.args(["-chardev", &monitor, "-mon", "chardev=qmp,mode=control"]);
    }
}

/// The descriptor of the stream, by number.
pub fn stream(fd: RawFd) -> String {
    format!("fd:{fd}")
}

//! QEMU's command line.
//!
//! Invariant: nothing that a person typed is part of it: names of files are passed so that their commas stay commas.

use super::{accelerator::Accelerator, process::Descriptors};
use cloudpal_compute::driver::MachineSpec;
use serde_json::json;
use std::{os::fd::RawFd, path::Path, process::Command};

/// `acpi=on`: Debian's kernel finds virtio-mmio devices by no other means. The old clock and interrupt controllers are
/// for kernels that look for them. Part of a snapshot's identity.
pub const MACHINE: &str = "microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial=on,usb=off,graphics=off";
pub const CPU: &str = "max";
pub const HOLD: &str = "hold";

pub struct Plan<'a> {
    pub program: &'a Path,
    pub guest_dir: &'a Path,
    pub accelerator: Accelerator,
    pub counter_khz: u64,
    pub spec: &'a MachineSpec,
    pub descriptors: &'a Descriptors,
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
        let (spec, fds) = (self.spec, self.descriptors);
        let memory = format!(
            "memory-backend-file,id=ram,size={}M,mem-path=/proc/self/fd/{},share=on",
            spec.memory_mib, fds.memory_fd
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
        command.arg("-kernel").arg(self.guest_dir.join("vmlinuz"));
        command.arg("-initrd").arg(self.guest_dir.join("initramfs.img"));
        command.args(["-append", &self.kernel_parameters()]);
        command.args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
        command.args(["-name", &format!("cloudpal-{}", spec.id)]);
        command.arg("-pidfile").arg(spec.run_dir.join("vmm.pid"));
    }

    fn kernel_parameters(&self) -> String {
        let mut parameters = "console=ttyS0 quiet loglevel=4 panic=-1 random.trust_cpu=on audit=0 lsm= \
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
        for (serial, path, read_only) in
            [("root", spec.rootfs.clone(), true), ("disk", spec.dir.join("disk.img"), false)]
        {
            let file = json!({ "driver": "file", "filename": path.to_string_lossy() });
            let mut node =
                json!({ "driver": "raw", "node-name": serial, "read-only": read_only, "file": file });
            if !read_only {
                node["discard"] = json!("unmap");
            }
            command.args(["-blockdev", &node.to_string()]);
            command.args(["-device", &format!("virtio-blk-device,drive={serial},serial={serial}")]);
        }
        let mac = spec.mac.map(|byte| format!("{byte:02x}")).join(":");
        command.args(["-netdev", &format!("tap,id=net0,fd={},vhost=off", self.descriptors.tap_fd)]);
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
        let run_dir = &self.spec.run_dir;
        let socket = |id: &str, name: &str| {
            format!("socket,id={id},path={},server=on,wait=off", with_commas(&run_dir.join(name)))
        };
        let file = |id: &str, path: &Path| format!("file,id={id},path={},append=on", with_commas(path));
        command.args(["-chardev", &socket("control", "control.sock")]);
        command.args(["-device", "virtserialport,chardev=control,name=cloudpal.control"]);
        command.args(["-chardev", &file("log", &self.spec.dir.join("log"))]);
        command.args(["-device", "virtserialport,chardev=log,name=cloudpal.log"]);
        command.args([
            "-chardev",
            &file("console", &run_dir.join("console.log")),
            "-serial",
            "chardev:console",
        ]);
        // Here it waits for the daemon before it makes the machine: once it has one it takes packets from the TAP.
        let monitor =
            format!("socket,id=qmp,path={},server=on,wait=on", with_commas(&run_dir.join("qmp.sock")));
        command.args(["-chardev", &monitor, "-mon", "chardev=qmp,mode=control"]);
    }
}

/// In QEMU's option lists a comma in a value is written twice.
fn with_commas(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// The descriptor of the stream, by number.
pub fn stream(fd: RawFd) -> String {
    format!("fd:{fd}")
}

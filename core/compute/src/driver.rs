//! The port to a VMM: what every driver (`qemu`, `embedded`, `firecracker`) promises.
//!
//! Invariants that every driver keeps:
//! - Never two VMM processes of one machine: a driver takes the machine's lock file before it starts one, and the VMM
//!   process itself holds that lock until it ends, also when the daemon has died.
//! - A snapshot is good or it is not there: it is written under a temporary name, made durable, then renamed. It is
//!   *consumed* (no longer good) before the guest's first instruction after a wake, since from then on the disk
//!   moves on.
//! - No packet is lost by a sleep: see [`Vm::sleep`].

use async_trait::async_trait;
use cloudpal_model::{MachineId, Problem, Rates, guest::GuestConfig};
use std::{os::fd::OwnedFd, path::PathBuf, sync::Arc, time::Duration};

/// What a VMM needs to know of a machine. The same at every boot and wake of that machine, but for its rates.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    pub id: MachineId,
    /// The machine's durable directory: `disk.img`, `snapshot/`, `log`.
    pub dir: PathBuf,
    /// The machine's directory for sockets and locks; gone after a reboot of the host.
    pub run_dir: PathBuf,
    /// The image's read-only root (EROFS).
    pub rootfs: PathBuf,
    pub memory_mib: u32,
    pub vcpus: u32,
    /// Size of the writable disk. It is sparse.
    pub disk_mib: u32,
    pub mac: [u8; 6],
    /// May be others at the next wake.
    pub rates: Rates,
    /// `wall_us` and `entropy_base64` are filled in by the driver at each boot.
    pub guest: GuestConfig,
    /// Boots this instead of the host's guest kernel; then `rootfs` and `guest` are not looked at.
    pub unikernel: Option<Unikernel>,
}

/// A library OS with its app in one (OSv, Unikraft): it has no `cloudpal-init`, so there is no exec and no word
/// when it is ready, and its random generator is made fresh by the VM generation id alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unikernel {
    /// An ELF with a PVH note or a 64-bit Linux entry, or a bzImage.
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    /// The image's own disk, read-only: the first block device. The writable one is the next.
    pub disk: Option<PathBuf>,
    pub command_line: String,
}

/// One VMM: `qemu`, `embedded` or `firecracker`.
#[async_trait]
pub trait Driver: Send + Sync {
    fn name(&self) -> &'static str;

    /// What `doctor` says of it: which accelerator, and why.
    fn explain(&self) -> String;

    /// Boots from the disk. Resolves when the app is ready for packets (`FromGuest::Ready`).
    /// `tap` is a duplicate of the descriptor that the daemon keeps.
    async fn boot(&self, spec: &MachineSpec, tap: OwnedFd) -> Result<Arc<dyn Vm>, Problem>;

    /// Restores from the snapshot. Resolves when the guest runs again and its clock and random generator are fresh.
    async fn wake(&self, spec: &MachineSpec, tap: OwnedFd) -> Result<Arc<dyn Vm>, WakeError>;

    /// After a restart of the daemon: finds the machine's VMM if it still runs, resumes it if it was caught in the
    /// middle of falling asleep, and recovers its TAP descriptor. `None` when there is none.
    async fn adopt(&self, spec: &MachineSpec) -> Result<Option<(Arc<dyn Vm>, OwnedFd)>, Problem>;

    /// Whether a good snapshot is on the disk (cheap: does not read the memory file).
    fn has_snapshot(&self, spec: &MachineSpec) -> bool;
}

#[derive(Debug)]
pub enum WakeError {
    /// The snapshot is missing, damaged or from another host; it was set aside. Boot instead, and say so.
    SnapshotRefused { why: String },
    /// The wake failed for another reason; the snapshot is still there unless the guest had already run.
    Failed(Problem),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SleepOutcome {
    /// The VMM has ended, its memory is given back, a good snapshot is on the disk.
    Asleep,
    /// A packet came in the meantime: the machine runs on, and has the packet.
    Cancelled,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Ended by the guest itself (power-off, or its app ended) or asked by us; false: crashed or killed.
    pub clean: bool,
    /// For the owner: why, as far as it is known.
    pub why: String,
}

/// What a running machine uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of the VMM process so far, microseconds.
    pub cpu_us: u64,
    /// Resident memory of the VMM process, KiB.
    pub resident_kib: u64,
}

/// The output of a command run inside the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    pub code: i32,
    pub output: Vec<u8>,
    pub truncated: bool,
}

/// One running microVM.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Puts the machine to sleep, losing no packet:
    /// 1. the guest writes its file systems to the disk; 2. the vCPUs stop and the device state is saved;
    /// 3. the VMM process is frozen (SIGSTOP), so that it can take no further packet from the TAP;
    /// 4. `still_idle` is asked: it compares the TAP's count of packets taken with the count at the decision to
    /// sleep, and
    ///    whether packets wait. If not idle: thaw, run on, `Cancelled`;
    /// 5. memory is written out, asking `still_idle` now and then, and once more at the very end;
    /// 6. the snapshot is renamed into place, and the frozen VMM killed.
    async fn sleep(&self, still_idle: &(dyn Fn() -> bool + Send + Sync)) -> Result<SleepOutcome, Problem>;

    /// Ends the app and powers off, by force after the grace.
    async fn stop(&self, grace: Duration) -> Result<(), Problem>;

    /// Ends the VMM process at once.
    async fn kill(&self);

    /// Resolves when the VMM process has ended, for whatever reason but a completed [`Vm::sleep`].
    async fn exited(&self) -> Exit;

    async fn exec(&self, argv: Vec<String>) -> Result<ExecOutput, Problem>;

    fn usage(&self) -> Usage;

    fn pid(&self) -> u32;
}

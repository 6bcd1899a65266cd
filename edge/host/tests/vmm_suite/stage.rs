//! What every scenario stands on: a world, a driver in it, and what one does to a machine.

use crate::vmm_world::{GREETING, World};
use cloudpal_compute::driver::{Driver, SleepOutcome, Vm, WakeError};
use cloudpal_host::vmm::{
    FirecrackerDriver, FirecrackerSettings, QemuDriver, QemuSettings,
    embedded::{self, EmbeddedDriver, EmbeddedSettings},
};
use cloudpal_model::Problem;
use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

pub type Machine = Arc<dyn Vm>;

/// Chooses one driver, which then must run.
const CHOICE: &str = "CLOUDPAL_TEST_DRIVER";

/// No account has a number from here on.
pub const FIRST_UID: u32 = 1_900_000_000;

pub struct Stage {
    pub world: World,
    pub driver: Arc<dyn Driver>,
    pub kind: &'static str,
    /// What the guest had received when it was last put to sleep.
    received: AtomicU64,
}

/// A driver of that kind, as the daemon would make it.
pub fn driver(kind: &str, guest_dir: &Path, first_uid: Option<u32>) -> Result<Arc<dyn Driver>, String> {
    let told = |problem: Problem| problem.to_string();
    match kind {
        "qemu" => {
            let settings = QemuSettings { first_uid, ..QemuSettings::new(guest_dir) };
            Ok(Arc::new(QemuDriver::new(settings).map_err(told)?))
        }
        "firecracker" => {
            let binary = env::var_os("CLOUDPAL_FIRECRACKER").ok_or("CLOUDPAL_FIRECRACKER names no binary")?;
            let guest_dir = guest_dir.to_path_buf();
            let settings = FirecrackerSettings { guest_dir, binary: binary.into(), jailer: None, first_uid };
            Ok(Arc::new(FirecrackerDriver::new(settings).map_err(told)?))
        }
        "embedded" => {
            let chosen = env::var_os(CHOICE).is_some_and(|choice| choice == "embedded");
            let (usable, why) = embedded::usable();
            // A KVM that emulates every instruction takes minutes for a Linux boot: only on demand.
            if !usable && !chosen {
                return Err(why);
            }
            let beside = env::current_exe().map_err(|error| error.to_string())?;
            let beside = beside.ancestors().nth(2).unwrap_or(Path::new("/")).join("cloudpal-vmm");
            let program = env::var_os("CLOUDPAL_VMM").map_or(beside, PathBuf::from);
            let settings = EmbeddedSettings::new(guest_dir, program);
            let first_uid = first_uid.unwrap_or(settings.first_uid);
            let settings = EmbeddedSettings { first_uid, ..settings };
            Ok(Arc::new(EmbeddedDriver::new(settings).map_err(told)?))
        }
        _ => Err(format!("there is no driver {kind:?}")),
    }
}

impl Stage {
    /// `None`, said aloud, when this machine cannot run that driver, or another one was chosen.
    pub fn set(kind: &'static str, name: &str) -> Option<Stage> {
        let choice = env::var(CHOICE).ok();
        if choice.as_deref().is_some_and(|choice| choice != kind) {
            eprintln!("SKIPPED: {CHOICE} chooses another driver than {kind}");
            return None;
        }
        let skip = |why: String| {
            assert!(choice.is_none(), "{kind} was chosen, but cannot run: {why}");
            eprintln!("SKIPPED: {kind}: {why}");
            None
        };
        // Interface and namespace names are short.
        let short: String = name.split('_').map(|word| &word[..1]).collect();
        let Some(world) = World::make(&format!("{}{short}", &kind[..1])) else {
            return skip("the world above is missing".into());
        };
        match driver(kind, world.guest_dir(), None) {
            Ok(driver) => Some(Stage { world, driver, kind, received: AtomicU64::new(0) }),
            Err(why) => skip(why),
        }
    }

    pub async fn boot(&self) -> Machine {
        self.driver.boot(&self.world.spec, self.world.tap.dup().unwrap()).await.unwrap()
    }

    pub async fn try_wake(&self) -> Result<Machine, WakeError> {
        self.driver.wake(&self.world.spec, self.world.tap.dup().unwrap()).await
    }

    pub fn has_snapshot(&self) -> bool {
        self.driver.has_snapshot(&self.world.spec)
    }

    /// Everybody has been answered: a machine is put to sleep in this state only.
    pub async fn fall_asleep(&self, vm: &Machine) -> Duration {
        self.note_received(vm).await;
        let start = Instant::now();
        let delivered = self.world.tap.delivered_packets();
        let outcome = vm.sleep(&|| self.world.is_idle(delivered)).await.unwrap();
        assert_eq!(outcome, SleepOutcome::Asleep);
        assert!(process_is_gone(vm.pid()) && self.has_snapshot());
        self.world.tap.reset_offloads();
        start.elapsed()
    }

    /// What the guest will have received when it is put to sleep: that is what comes next.
    pub async fn note_received(&self, vm: &Machine) {
        self.received.store(self.count_received(vm).await, Ordering::Relaxed);
    }

    /// Waits until nothing is on its way, and asks the guest how many packets it has received.
    async fn count_received(&self, vm: &Machine) -> u64 {
        loop {
            self.world.quiet().await;
            let delivered = self.world.tap.delivered_packets();
            let counted = run(vm, "cat /sys/class/net/eth0/statistics/rx_packets").await;
            if self.world.is_idle(delivered) {
                return counted.parse().unwrap();
            }
        }
    }

    /// The packet that wakes it is the first of a request, which is answered; and each packet that the TAP gave away
    /// since has come to the guest, so that no client had to repeat one.
    pub async fn wake_by_packet(&self) -> Machine {
        assert!(!self.world.tap.has_waiting());
        let delivered_before = self.world.tap.delivered_packets();
        let get = self.world.get();
        self.world.tap.wait_readable().await;
        let start = Instant::now();
        let vm = self.try_wake().await.unwrap();
        let woke = start.elapsed();
        let took = answered(get).await;
        eprintln!("woken in {} ms, answered after {} ms", woke.as_millis(), took.as_millis());
        let received = self.count_received(&vm).await - self.received.load(Ordering::Relaxed);
        let delivered = self.world.tap.delivered_packets() - delivered_before;
        assert_eq!(
            received, delivered,
            "of {delivered} packets that were delivered, the guest has {received}"
        );
        vm
    }

    /// Whatever state a crash left it in: as the daemon would bring it up again.
    pub async fn bring_back(&self) -> Machine {
        self.world.tap.reset_offloads();
        if !self.has_snapshot() {
            return self.boot().await;
        }
        match self.try_wake().await {
            Ok(vm) => vm,
            Err(why) => panic!("a good snapshot does not wake: {why:?}"),
        }
    }

    /// Whether the lock says that no VMM lives.
    pub fn nobody_lives(&self) -> bool {
        let lock = fs::File::open(self.world.spec.run_dir.join("vmm.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
    }
}

pub async fn run(vm: &Machine, script: &str) -> String {
    let (code, text) = try_run(vm, script).await;
    assert_eq!(code, 0, "{script}: {text}");
    text
}

pub async fn try_run(vm: &Machine, script: &str) -> (i32, String) {
    let output = vm.exec(vec!["sh".into(), "-c".into(), script.into()]).await.unwrap();
    (output.code, String::from_utf8_lossy(&output.output).trim().to_owned())
}

pub async fn body_of(get: JoinHandle<(String, Duration)>) -> (String, Duration) {
    tokio::task::spawn_blocking(move || get.join().unwrap()).await.unwrap()
}

pub async fn answered(get: JoinHandle<(String, Duration)>) -> Duration {
    let (body, took) = body_of(get).await;
    assert_eq!(body, GREETING);
    took
}

pub fn process_is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// The VMM that a start has just made, as soon as there is one.
pub async fn new_vmm(run_dir: &Path) -> u32 {
    loop {
        let noted = fs::read_to_string(run_dir.join("vmm.pid")).unwrap_or_default();
        match noted.trim().parse() {
            Ok(pid) if !process_is_gone(pid) => return pid,
            _ => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

pub fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

//! The VMMs beside each other: the same kernel, root, app and network, in interleaved rounds.
//!
//! Not a test: `cargo xtask hostvm bench` runs it where KVM is real, and reads its figures from the lines that begin
//! with `figure`.

#[allow(dead_code, reason = "the tests use more of it")]
mod vmm_world;

use cloudpal_compute::driver::{Driver, SleepOutcome, Vm};
use cloudpal_host::vmm::{
    Accel, FirecrackerDriver, FirecrackerSettings, QemuDriver, QemuSettings,
    embedded::{EmbeddedDriver, EmbeddedSettings},
};
use rustix::fs::{Advice, fadvise};
use std::{
    env,
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use vmm_world::{GREETING, World};

/// No account has a number from here on.
const FIRST_UID: u32 = 1_900_000_000;

/// What is written to the disk, and then sent over the network.
const MOVED_MIB: u32 = 32;
/// Until the pool has a VMM again for the next wake.
const REFILL: Duration = Duration::from_secs(2);

type Machine = Arc<dyn Vm>;

struct Contender {
    name: &'static str,
    world: World,
    driver: Box<dyn Driver>,
}

fn contenders() -> Vec<Contender> {
    let mut all = Vec::new();
    let guest_dir = PathBuf::from(env::var_os("CLOUDPAL_GUEST_DIR").expect("CLOUDPAL_GUEST_DIR"));
    let mut add = |name: &'static str, make: &dyn Fn() -> Box<dyn Driver>| {
        let world = World::make(&format!("bench-{name}")).expect("everything is there");
        all.push(Contender { name, world, driver: make() });
    };
    if let Some(program) = env::var_os("CLOUDPAL_VMM") {
        let settings = EmbeddedSettings::new(&guest_dir, program);
        add("embedded", &|| Box::new(EmbeddedDriver::new(settings.clone()).unwrap()));
        let alone = EmbeddedSettings { spares_per_class: 0, ..settings.clone() };
        add("embedded-without-pool", &|| Box::new(EmbeddedDriver::new(alone.clone()).unwrap()));
    }
    if let Some(binary) = env::var_os("CLOUDPAL_FIRECRACKER") {
        let settings = FirecrackerSettings {
            guest_dir: guest_dir.clone(),
            binary: binary.into(),
            jailer: None,
            first_uid: Some(FIRST_UID),
        };
        add("firecracker", &|| Box::new(FirecrackerDriver::new(settings.clone()).unwrap().trusting_memory()));
    }
    let settings =
        QemuSettings { accel: Accel::Kvm, first_uid: Some(FIRST_UID), ..QemuSettings::new(&guest_dir) };
    add("qemu", &|| Box::new(QemuDriver::new(settings.clone()).unwrap()));
    all
}

fn figure(driver: &str, what: &str, took: Duration) {
    println!("figure {driver} {what} {}", took.as_micros());
}

/// How long the guest itself has worked until it was up: its kernel and its init.
async fn uptime(vm: &Machine) -> Duration {
    let told = vm.exec(["busybox", "cat", "/proc/uptime"].map(str::to_owned).to_vec()).await.unwrap();
    let seconds = String::from_utf8_lossy(&told.output).split(' ').next().unwrap().parse().unwrap();
    Duration::from_secs_f64(seconds)
}

async fn joined(get: JoinHandle<(String, Duration)>) -> (String, Duration) {
    tokio::task::spawn_blocking(move || get.join().unwrap()).await.unwrap()
}

impl Contender {
    async fn fall_asleep(&self, vm: &Machine) -> Duration {
        self.world.quiet().await;
        let begun = Instant::now();
        let delivered = self.world.tap.delivered_packets();
        let outcome = vm.sleep(&|| self.world.is_idle(delivered)).await.unwrap();
        assert_eq!(outcome, SleepOutcome::Asleep);
        let took = begun.elapsed();
        self.world.tap.reset_offloads();
        took
    }

    async fn wake(&self) -> Machine {
        self.driver.wake(&self.world.spec, self.world.tap.dup().unwrap()).await.unwrap()
    }

    /// To the disk and on it, by the app's user; then from there over the network.
    async fn move_bytes(&self, vm: &Machine) {
        let write = format!("busybox dd if=/dev/zero of=/data/moved bs=1M count={MOVED_MIB} conv=fsync");
        let begun = Instant::now();
        let written = vm.exec(vec!["sh".into(), "-c".into(), write]).await.unwrap();
        assert_eq!(written.code, 0, "{}", String::from_utf8_lossy(&written.output));
        figure(self.name, "disk", begun.elapsed());
        let (body, took) = joined(self.world.get_path("/moved")).await;
        assert_eq!(body.len(), MOVED_MIB as usize * 1024 * 1024);
        figure(self.name, "network", took);
    }

    /// Boot, bytes moved, then asleep and awake three times: on request, by a packet, and on request again.
    async fn round(&self) {
        let begun = Instant::now();
        let vm = self.driver.boot(&self.world.spec, self.world.tap.dup().unwrap()).await.unwrap();
        figure(self.name, "boot", begun.elapsed());
        figure(self.name, "guest", uptime(&vm).await);
        self.move_bytes(&vm).await;
        figure(self.name, "sleep", self.fall_asleep(&vm).await);
        tokio::time::sleep(REFILL).await;
        let begun = Instant::now();
        let vm = self.wake().await;
        figure(self.name, "wake", begun.elapsed());
        self.fall_asleep(&vm).await;
        tokio::time::sleep(REFILL).await;
        let get = self.world.get();
        self.world.tap.wait_readable().await;
        let vm = self.wake().await;
        let (body, took) = joined(get).await;
        assert_eq!(body, GREETING);
        figure(self.name, "packet", took);
        self.fall_asleep(&vm).await;
        tokio::time::sleep(REFILL).await;
        let begun = Instant::now();
        let vm = self.wake().await;
        figure(self.name, "again", begun.elapsed());
        self.fall_asleep(&vm).await;
        let vm = self.answer_from_the_disk("cold").await;
        let vm = if self.name == "embedded" {
            self.fall_asleep(&vm).await;
            // What was noted of the last time: only advice, so nothing else changes.
            fs::remove_file(self.world.spec.dir.join("snapshot/working-set")).unwrap();
            self.answer_from_the_disk("cold-unadvised").await
        } else {
            vm
        };
        vm.stop(Duration::from_secs(5)).await.unwrap();
    }

    /// With nothing of its snapshot in the host's memory: from the packet to the answer.
    async fn answer_from_the_disk(&self, what: &str) -> Machine {
        tokio::time::sleep(REFILL).await;
        let snapshot = self.world.spec.dir.join("snapshot");
        for file in fs::read_dir(snapshot).unwrap().flatten() {
            let file = File::open(file.path()).unwrap();
            file.sync_all().unwrap();
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
        let get = self.world.get();
        self.world.tap.wait_readable().await;
        let vm = self.wake().await;
        let (body, took) = joined(get).await;
        assert_eq!(body, GREETING);
        figure(self.name, what, took);
        vm
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn measure() {
    let Ok(rounds) = env::var("CLOUDPAL_BENCH_ROUNDS") else {
        eprintln!("nothing is measured without CLOUDPAL_BENCH_ROUNDS: `cargo xtask hostvm bench` sets it");
        return;
    };
    let contenders = contenders();
    for contender in &contenders {
        println!("contender {} {}", contender.name, contender.driver.explain());
    }
    for round in 0..rounds.parse().unwrap() {
        // Whoever comes after QEMU finds the host's caches empty: nobody always does.
        for turn in 0..contenders.len() {
            contenders[(round + turn) % contenders.len()].round().await;
        }
    }
}

//! A real guest through a machine's whole life: boot, sleep, wake, adopt, crash, stop.

mod vmm_world;

use cloudpal_compute::driver::{Driver, SleepOutcome, Vm, WakeError};
use cloudpal_model::Kind;
use std::{
    fs,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use vmm_world::{GREETING, World, sh};

type Machine = Arc<dyn Vm>;

/// No account has a number from here on.
const FIRST_UID: u32 = 1_900_000_000;

async fn run(vm: &Machine, script: &str) -> String {
    let output = vm.exec(vec!["sh".into(), "-c".into(), script.into()]).await.unwrap();
    let text = String::from_utf8(output.output).unwrap();
    assert_eq!(output.code, 0, "{script}: {text}");
    text.trim().to_owned()
}

fn process_is_gone(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

fn clock_error_ms(guest_seconds: &str) -> u128 {
    let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let guest = Duration::from_secs(guest_seconds.parse().unwrap());
    host.abs_diff(guest).as_millis()
}

/// Everybody has been answered: a machine is put to sleep in this state only.
async fn fall_asleep(world: &World, vm: &Machine) -> Duration {
    world.quiet().await;
    let start = Instant::now();
    let delivered = world.tap.delivered_packets();
    let outcome = vm.sleep(&|| world.is_idle(delivered)).await.unwrap();
    assert_eq!(outcome, SleepOutcome::Asleep);
    assert!(process_is_gone(vm.pid()));
    world.tap.reset_offloads();
    start.elapsed()
}

async fn answered(get: std::thread::JoinHandle<(String, Duration)>) -> Duration {
    let (body, took) = tokio::task::spawn_blocking(move || get.join().unwrap()).await.unwrap();
    assert_eq!(body, GREETING);
    took
}

async fn wake_by_packet(world: &World, driver: &dyn Driver) -> Machine {
    assert!(!world.tap.has_waiting());
    let get = world.get();
    world.tap.wait_readable().await;
    let start = Instant::now();
    let vm = driver.wake(&world.spec, world.tap.dup().unwrap()).await.unwrap();
    let woke = start.elapsed();
    let took = answered(get).await;
    eprintln!("woken in {} ms, answered after {} ms", woke.as_millis(), took.as_millis());
    // A client repeats its first packet after one second: if the wake was quicker than that, so is the answer.
    assert!(
        woke > Duration::from_millis(900) || took < Duration::from_millis(1000),
        "the first packet was lost"
    );
    vm
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_lives_sleeps_and_wakes() {
    let Some(world) = World::make("life") else { return };
    let driver = world.driver();
    eprintln!("{}", driver.explain());

    // The first packet comes before there is a machine; it waits, and is the first that the app sees.
    let ping = world.ping();
    world.tap.wait_readable().await;
    let get = world.get();
    let start = Instant::now();
    let vm: Machine = driver.boot(&world.spec, world.tap.dup().unwrap()).await.unwrap();
    eprintln!("booted in {} ms", start.elapsed().as_millis());
    answered(get).await;
    assert!(tokio::task::spawn_blocking(|| ping.join().unwrap()).await.unwrap(), "the first packet was lost");
    assert!(
        driver.boot(&world.spec, world.tap.dup().unwrap()).await.is_err(),
        "never two VMMs of one machine"
    );

    inside(&vm).await;
    run(&vm, "echo kept > /data/file; echo only in memory > /tmp/file").await;
    let usage = vm.usage();
    assert!(usage.cpu_us > 0 && usage.resident_kib > 10_000, "{usage:?}");

    eprintln!("asleep in {} ms", fall_asleep(&world, &vm).await.as_millis());
    assert!(driver.has_snapshot(&world.spec));
    let told = tokio::time::timeout(Duration::from_millis(50), vm.exited()).await;
    assert!(told.is_err(), "a completed sleep is no exit");
    drop(vm);

    let vm = wake_by_packet(&world, &*driver).await;
    assert!(!driver.has_snapshot(&world.spec), "consumed");
    assert_eq!(run(&vm, "cat /data/file /tmp/file").await, "kept\nonly in memory");
    assert!(clock_error_ms(&run(&vm, "date +%s").await) < 3000);
    let mut vm = vm;
    for _ in 0..3 {
        eprintln!("asleep in {} ms", fall_asleep(&world, &vm).await.as_millis());
        let ping = world.ping();
        world.tap.wait_readable().await;
        vm = driver.wake(&world.spec, world.tap.dup().unwrap()).await.unwrap();
        let heard = tokio::task::spawn_blocking(|| ping.join().unwrap()).await.unwrap();
        assert!(heard, "the packet that woke it was lost");
    }
    assert_eq!(run(&vm, "cat /tmp/file").await, "only in memory");
    vm.kill().await;
    let exit = vm.exited().await;
    assert!(exit.clean, "{exit:?}");
}

async fn inside(vm: &Machine) {
    assert_eq!(run(vm, "id -u; id -g; id -G").await, "33\n33\n33 44");
    assert_eq!(run(vm, "echo $COLOUR $HOME; pwd; cat /etc/hostname").await, "green /data\n/srv/app\ntiny");
    assert!(run(vm, "cat /etc/resolv.conf").await.contains("search ada.pal"));
    assert!(clock_error_ms(&run(vm, "date +%s").await) < 3000);
    // The app has no capability, whatever its user tries: it owns none that would reach init or the disks.
    assert_eq!(run(vm, "cat /proc/self/status | busybox grep CapEff").await, "CapEff:\t0000000000000000");
    let failed = vm.exec(vec!["no-such-program".into()]).await.unwrap();
    assert_eq!(failed.code, 127);
    assert!(String::from_utf8_lossy(&failed.output).contains("no-such-program is not in the image"));
    let long = vm.exec(vec!["sh".into(), "-c".into(), "yes | head -c 3000000".into()]).await.unwrap();
    assert!(long.truncated && long.output.len() >= 512 * 1024 && long.output.len() <= 1 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_in_the_middle_of_falling_asleep_is_answered() {
    let Some(world) = World::make("cancel") else { return };
    let driver = world.driver();
    let vm: Machine = driver.boot(&world.spec, world.tap.dup().unwrap()).await.unwrap();
    let mut cancelled = 0;
    // Whenever the packet comes: before the vCPUs stop, frozen, in the middle of writing, at the end.
    for at in [1, 2, 3, 5, 100] {
        world.quiet().await;
        let delivered = world.tap.delivered_packets();
        let (calls, get) = (AtomicU32::new(0), std::sync::Mutex::new(None));
        let outcome = vm
            .sleep(&|| {
                if calls.fetch_add(1, Ordering::Relaxed) + 1 == at {
                    *get.lock().unwrap() = Some(world.get());
                    std::thread::sleep(Duration::from_millis(20));
                }
                world.is_idle(delivered)
            })
            .await
            .unwrap();
        let get = get.into_inner().unwrap();
        if let Some(get) = get {
            assert_eq!(outcome, SleepOutcome::Cancelled, "packet at question {at}");
            assert!(!driver.has_snapshot(&world.spec) && !world.spec.dir.join("snapshot.tmp").exists());
            let took = answered(get).await;
            eprintln!("packet at question {at}: cancelled, answered after {} ms", took.as_millis());
            cancelled += 1;
        } else {
            // It asked fewer times than that: then it is asleep, and the next packet wakes it.
            assert_eq!(outcome, SleepOutcome::Asleep);
            world.tap.reset_offloads();
        }
    }
    assert!(cancelled >= 3);
    let vm = wake_by_packet(&world, &*driver).await;
    vm.stop(Duration::from_secs(5)).await.unwrap();
    assert!(process_is_gone(vm.pid()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_snapshot_is_refused_and_one_woken_twice_draws_other_randomness() {
    let Some(world) = World::make("bad") else { return };
    let driver = world.driver();
    let vm: Machine = driver.boot(&world.spec, world.tap.dup().unwrap()).await.unwrap();
    run(&vm, "echo kept > /data/file").await;
    fall_asleep(&world, &vm).await;

    let dir = world.spec.dir.display().to_string();
    sh(&format!("cp -a --sparse=always {dir} {dir}.copy"));
    let restore = || sh(&format!("rm -rf {dir} && cp -a --sparse=always {dir}.copy {dir}"));
    let mut drawn = Vec::new();
    for _ in 0..2 {
        let vm = wake_by_packet(&world, &*driver).await;
        drawn.push(run(&vm, "head -c 16 /dev/urandom | sha256sum").await);
        vm.kill().await;
        restore();
        world.tap.reset_offloads();
    }
    assert_ne!(drawn[0], drawn[1]);

    for (what, damage) in [
        ("cut short", &(|| truncate(&world.spec.dir.join("snapshot/memory"))) as &dyn Fn()),
        ("damaged", &|| {
            flip(&world.spec.dir.join("snapshot/memory"));
            after_another_start(&world.spec.dir.join("snapshot/snapshot.json"));
        }),
        ("state", &|| truncate(&world.spec.dir.join("snapshot/state"))),
        ("description", &|| truncate(&world.spec.dir.join("snapshot/snapshot.json"))),
        ("disk moved on", &|| flip(&world.spec.dir.join("disk.img"))),
    ] {
        restore();
        damage();
        let refused = driver.wake(&world.spec, world.tap.dup().unwrap()).await;
        let Err(WakeError::SnapshotRefused { why }) = refused else { panic!("{what}: not refused") };
        eprintln!("{what}: {why}");
        assert!(!driver.has_snapshot(&world.spec), "set aside");
    }
    restore();
    truncate(&world.spec.dir.join("snapshot/memory"));
    assert!(driver.wake(&world.spec, world.tap.dup().unwrap()).await.is_err());
    let vm: Machine = driver.boot(&world.spec, world.tap.dup().unwrap()).await.unwrap();
    assert_eq!(run(&vm, "cat /data/file").await, "kept");
    vm.stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!(vm.exited().await.why, "stopped on request");
}

/// As if the host had been started anew since: a driver that maps memory reads it whole only then.
fn after_another_start(description: &Path) {
    let own = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(description).unwrap();
    fs::write(description, text.replace(own.trim(), "another")).unwrap();
}

fn truncate(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

/// Changes one byte that is not zero, so that it lies in memory which is in use.
fn flip(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let at = bytes.iter().rposition(|&byte| byte != 0).unwrap();
    fs::File::options().write(true).open(path).unwrap().write_all_at(&[!bytes[at]], at as u64).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_adopts_what_runs_and_hears_of_its_end() {
    let Some(world) = World::make("adopt") else { return };
    let driver = world.driver();
    assert!(driver.adopt(&world.spec).await.unwrap().is_none());
    let vm: Machine = driver.boot(&world.spec, world.tap.dup().unwrap()).await.unwrap();
    run(&vm, "echo still here > /tmp/file").await;
    let pid = vm.pid();
    drop(vm);
    drop(driver);

    // Caught in the middle of falling asleep: frozen, with a snapshot that has its name already.
    sh(&format!("kill -STOP {pid}"));
    fs::create_dir_all(world.spec.dir.join("snapshot")).unwrap();
    fs::write(world.spec.dir.join("snapshot/snapshot.json"), "{}").unwrap();
    let driver = world.driver();
    assert!(driver.has_snapshot(&world.spec));
    let (vm, tap) = driver.adopt(&world.spec).await.unwrap().unwrap();
    assert!(!driver.has_snapshot(&world.spec), "the machine runs on: the snapshot is no longer true");
    assert_eq!(vm.pid(), pid);
    assert_eq!(run(&vm, "cat /tmp/file").await, "still here");
    answered(world.get()).await;
    drop(tap);

    // An adopted machine sleeps and wakes as any other.
    fall_asleep(&world, &vm).await;
    assert!(driver.adopt(&world.spec).await.unwrap().is_none());
    let vm = wake_by_packet(&world, &*driver).await;
    assert_eq!(run(&vm, "cat /tmp/file").await, "still here");

    sh(&format!("kill -KILL {}", vm.pid()));
    let exit = vm.exited().await;
    assert!(!exit.clean && exit.why.contains("killed by signal 9"), "{exit:?}");
    assert!(driver.adopt(&world.spec).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_ends_is_told_with_its_code_and_its_words() {
    let Some(mut world) = World::make("end") else { return };
    let driver = world.driver();
    world.spec.guest.process.argv[2] = "echo no database; exit 7".into();
    let Err(problem) = driver.boot(&world.spec, world.tap.dup().unwrap()).await else {
        panic!("it was ready")
    };
    assert!(problem.what.contains("ended before it was ready"), "{problem}");
    assert!(problem.what.contains("no database"), "{problem}");

    world.spec.guest.ready_tcp_ports.clear();
    world.spec.guest.process.argv[2] =
        "while ! test -e /data/end; do busybox usleep 20000; done; exit 7".into();
    let vm: Machine = driver.boot(&world.spec, world.tap.dup().unwrap()).await.unwrap();
    run(&vm, "echo > /data/end").await;
    let exit = vm.exited().await;
    assert!(exit.clean, "{exit:?}");
    assert_eq!(exit.why, "the app ended with code 7");
    assert!(fs::read_to_string(world.spec.dir.join("log")).unwrap().contains("no database"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_keeps_the_machine_awake_and_the_vmm_needs_no_privilege() {
    let Some(mut world) = World::make("full") else { return };
    let driver = world.driver_as(Some(FIRST_UID));
    let small = world.mount_small("64k");
    world.spec.dir = small.path().join("machine");
    let Err(problem) = driver.boot(&world.spec, world.tap.dup().unwrap()).await else { panic!("it booted") };
    assert_eq!(problem.kind, Kind::DiskFull, "{problem}");
    assert!(fs::read_dir(&world.spec.dir).unwrap().flatten().all(|entry| entry.file_name() != "disk.img"));
    drop(small);

    let small = world.mount_small("30m");
    world.spec.dir = small.path().join("machine");
    let vm: Machine = driver.boot(&world.spec, world.tap.dup().unwrap()).await.unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let uid = FIRST_UID + if driver.name() == "embedded" { vm.pid() } else { world.spec.id.0 };
    assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    world.quiet().await;
    let problem = vm.sleep(&|| true).await.unwrap_err();
    assert_eq!(problem.kind, Kind::DiskFull, "{problem}");
    assert!(!driver.has_snapshot(&world.spec) && !world.spec.dir.join("snapshot.tmp").exists());
    answered(world.get()).await;
    vm.stop(Duration::from_secs(5)).await.unwrap();
}

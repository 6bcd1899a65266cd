//! A host in trouble: full disks, no descriptors. And what a VMM may do on it, and how much.

use crate::stage::{FIRST_UID, Machine, Stage, answered, body_of, driver, run};
use cloudpal_compute::driver::WakeError;
use cloudpal_model::{Kind, Rates};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{
    fs,
    num::NonZeroU64,
    path::Path,
    time::{Duration, Instant},
};

pub async fn full_disks_and_no_privilege(mut stage: Stage) {
    stage.driver = driver(stage.kind, stage.world.guest_dir(), Some(FIRST_UID)).unwrap();
    let small = stage.world.mount_small("64k");
    stage.world.spec.dir = small.path().join("machine");
    let booted = stage.driver.boot(&stage.world.spec, stage.world.tap.dup().unwrap()).await;
    let Err(problem) = booted else { panic!("it booted") };
    assert_eq!(problem.kind, Kind::DiskFull, "{problem}");
    let left = fs::read_dir(&stage.world.spec.dir).unwrap().flatten();
    assert!(left.into_iter().all(|entry| entry.file_name() != "disk.img"));
    drop(small);

    let small = stage.world.mount_small("30m");
    stage.world.spec.dir = small.path().join("machine");
    let vm = stage.boot().await;
    let status = fs::read_to_string(format!("/proc/{}/status", vm.pid())).unwrap();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:\t")).unwrap();
    let uids: Vec<u32> = uid.split('\t').map(|uid| uid.parse().unwrap()).collect();
    assert!(uids.iter().all(|&uid| uid >= FIRST_UID && uid == uids[0]), "{status}");
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    if stage.kind != "qemu" {
        sees_nothing_of_the_host(vm.pid());
    }
    stage.world.quiet().await;
    let problem = vm.sleep(&|| true).await.unwrap_err();
    assert_eq!(problem.kind, Kind::DiskFull, "{problem}");
    assert!(!stage.has_snapshot() && !stage.world.spec.dir.join("snapshot.tmp").exists());
    answered(stage.world.get()).await;

    // The guest's disk is larger than what the host has left: its writes fail, which may hold up whoever writes, but
    // not the machine.
    let write =
        vm.exec(vec!["sh".into(), "-c".into(), "head -c 60000000 /dev/zero > /data/big; sync".into()]);
    let wrote = tokio::time::timeout(Duration::from_secs(15), write).await;
    eprintln!("more than the host has: {wrote:?}");
    let failed = "I/O error, dev";
    let console = fs::read_to_string(stage.world.spec.run_dir.join("console.log")).unwrap();
    assert!(console.contains(failed), "the guest was not told: {console}");
    answered(stage.world.get()).await;
    vm.kill().await;
}

/// Jailed: QEMU alone keeps the host's files in view, as far as anybody may read them.
fn sees_nothing_of_the_host(pid: u32) {
    for name in ["etc", "home", "job", "proc", "sys", "tmp", "usr", "var"] {
        assert!(!Path::new(&format!("/proc/{pid}/root/{name}")).exists(), "it sees /{name}");
    }
    for kind in ["mnt", "net"] {
        let [its, ours] = [pid.to_string(), "self".into()]
            .map(|who| fs::read_link(format!("/proc/{who}/ns/{kind}")).unwrap());
        assert_ne!(its, ours, "it is in the host's {kind} namespace");
    }
}

pub async fn faults_refuse_nothing(stage: Stage) {
    let vm = stage.boot().await;
    run(&vm, "echo only in memory > /tmp/file").await;
    stage.fall_asleep(&vm).await;
    drop(vm);
    let limit = getrlimit(Resource::Nofile);
    let open = fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    let tap = stage.world.tap.dup().unwrap();
    let (mut failed, mut awake) = (0, None);
    for room in [0, 1, 2, 4, 7, 10] {
        let tap = tap.try_clone().unwrap();
        setrlimit(Resource::Nofile, Rlimit { current: Some(open + room), maximum: limit.maximum }).unwrap();
        let woken = stage.driver.wake(&stage.world.spec, tap).await;
        setrlimit(Resource::Nofile, limit).unwrap();
        match woken {
            Err(WakeError::Failed(problem)) => eprintln!("room for {room} descriptors: {problem}"),
            Err(WakeError::SnapshotRefused { why }) => panic!("room for {room} descriptors: refused: {why}"),
            // With a VMM that waits already, so many are enough.
            Ok(vm) => {
                awake = Some(vm);
                break;
            }
        }
        assert!(stage.has_snapshot(), "room for {room} descriptors: the snapshot is gone");
        failed += 1;
    }
    assert!(failed >= 3, "it woke with room for hardly a descriptor");
    let vm = match awake {
        Some(vm) => vm,
        None => stage.wake_by_packet().await,
    };
    assert_eq!(run(&vm, "cat /tmp/file").await, "only in memory");
    vm.kill().await;
}

const MOVED_BYTES: usize = 4 << 20;
const SLOW_BYTES_PER_S: u64 = 1 << 20;
/// What is left of four seconds when the burst and the last operation cost nothing.
const HELD: Duration = Duration::from_secs(3);

pub async fn hold_a_machine_to_its_rates(mut stage: Stage) {
    let vm = stage.boot().await;
    let free = moved(&stage, &vm).await;
    stage.fall_asleep(&vm).await;
    let slow = NonZeroU64::new(SLOW_BYTES_PER_S);
    // QEMU's daemon refuses a rate of the network.
    let network_bytes_per_s = slow.filter(|_| stage.kind != "qemu");
    stage.world.spec.rates = Rates { network_bytes_per_s, disk_bytes_per_s: slow };
    let vm = stage.try_wake().await.unwrap();
    let held = moved(&stage, &vm).await;
    stage.fall_asleep(&vm).await;
    // It fell asleep with its rates: they are not part of what is woken.
    stage.world.spec.rates = Rates::default();
    let vm = stage.try_wake().await.unwrap();
    let again = moved(&stage, &vm).await;
    vm.kill().await;
    vm.exited().await;
    stage.world.spec.rates = Rates { network_bytes_per_s, disk_bytes_per_s: slow };
    let vm = stage.boot().await;
    let booted = moved(&stage, &vm).await;
    vm.kill().await;
    eprintln!(
        "disk and network: {free:?} before, {held:?} held, {again:?} free again, {booted:?} held from the boot on"
    );
    for way in (0..2).filter(|way| *way == 0 || network_bytes_per_s.is_some()) {
        assert!(held[way] >= HELD && booted[way] >= HELD);
        assert!(free[way] < held[way] && again[way] < held[way]);
    }
}

/// How long it took onto the disk, and from there over the network.
async fn moved(stage: &Stage, vm: &Machine) -> [Duration; 2] {
    let begun = Instant::now();
    run(vm, &format!("head -c {MOVED_BYTES} /dev/zero > /data/moved && sync")).await;
    let disk = begun.elapsed();
    let (body, network) = body_of(stage.world.get_path("/moved")).await;
    assert_eq!(body.len(), MOVED_BYTES);
    [disk, network]
}

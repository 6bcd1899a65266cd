//! A machine's life without trouble, and an app's own end.

use crate::stage::{Machine, Stage, answered, run};
use std::{
    fs,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

fn clock_error_ms(guest_seconds: &str) -> u128 {
    let host = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let guest = Duration::from_secs(guest_seconds.parse().unwrap());
    host.abs_diff(guest).as_millis()
}

pub async fn lives_sleeps_and_wakes(stage: Stage) {
    let world = &stage.world;
    eprintln!("{}", stage.driver.explain());
    // The first packet comes before there is a machine; it waits, and is the first that the app sees.
    let ping = world.ping();
    world.tap.wait_readable().await;
    let get = world.get();
    let start = Instant::now();
    let vm = stage.boot().await;
    eprintln!("booted in {} ms", start.elapsed().as_millis());
    answered(get).await;
    assert!(tokio::task::spawn_blocking(|| ping.join().unwrap()).await.unwrap(), "the first packet was lost");
    let second = stage.driver.boot(&world.spec, world.tap.dup().unwrap()).await;
    assert!(second.is_err(), "never two VMMs of one machine");

    inside(&vm).await;
    outside(&vm);
    run(&vm, "echo kept > /data/file; echo only in memory > /tmp/file").await;
    let usage = vm.usage();
    assert!(usage.cpu_us > 0 && usage.resident_kib > 1000, "{usage:?}");

    eprintln!("asleep in {} ms", stage.fall_asleep(&vm).await.as_millis());
    let told = tokio::time::timeout(Duration::from_millis(50), vm.exited()).await;
    assert!(told.is_err(), "a completed sleep is no exit");
    drop(vm);
    // The clock must be right, however long it slept.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut vm = stage.wake_by_packet().await;
    assert!(!stage.has_snapshot(), "consumed");
    assert!(clock_error_ms(&run(&vm, "date +%s").await) < 3000);
    assert_eq!(run(&vm, "cat /data/file /tmp/file").await, "kept\nonly in memory");
    for _ in 0..2 {
        stage.fall_asleep(&vm).await;
        let ping = world.ping();
        world.tap.wait_readable().await;
        vm = stage.try_wake().await.unwrap();
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
    // Given up in its middle, it holds nobody up.
    let endless = vm.exec(vec!["busybox".into(), "sleep".into(), "1000".into()]);
    assert!(tokio::time::timeout(Duration::from_millis(300), endless).await.is_err());
    assert_eq!(run(vm, "echo on").await, "on");
}

/// The VMM's own view of the host.
fn outside(vm: &Machine) {
    let net = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let pid = vm.pid().to_string();
    assert_ne!(net(&pid), net("self"), "it sees the host's network");
    let devices = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert!(!devices.contains("eth") && !devices.contains("m1"), "{devices}");
}

pub async fn apps_that_end_or_listen_elsewhere(mut stage: Stage) {
    stage.world.spec.guest.process.argv[2] = "echo no database; exit 7".into();
    let Err(problem) = stage.driver.boot(&stage.world.spec, stage.world.tap.dup().unwrap()).await else {
        panic!("it was ready")
    };
    assert!(problem.what.contains("ended before it was ready"), "{problem}");
    assert!(problem.what.contains("no database"), "{problem}");
    assert!(stage.nobody_lives());

    stage.world.spec.guest.ready_tcp_ports = vec![81, 82];
    stage.world.spec.guest.ready_timeout_ms = 5_000;
    stage.world.spec.guest.process.argv[2] =
        "busybox httpd -p 80 -h /www; while ! test -e /data/end; do busybox usleep 20000; done; exit 7"
            .into();
    let vm = stage.boot().await;
    run(&vm, "echo > /data/end").await;
    let exit = vm.exited().await;
    assert!(exit.clean, "{exit:?}");
    assert_eq!(exit.why, "the app ended with code 7");
    let log = fs::read_to_string(stage.world.spec.dir.join("log")).unwrap();
    assert!(log.contains("no database"), "{log}");
    assert!(log.contains("nobody listens on 81, 82 yet, but on 80;"), "{log}");
}

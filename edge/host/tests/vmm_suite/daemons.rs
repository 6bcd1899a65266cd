//! The daemon is killed at every step of what a driver does: the next one finds a machine that is whole, or brings it
//! up again.
//!
//! The daemon is this test program once more, as a process of its own: nothing of it gets to clean up.

use crate::{
    stage::{Machine, Stage, answered, driver, process_is_gone, run},
    vmm_world::machine_spec,
};
use rustix::io::{FdFlags, fcntl_setfd};
use std::{
    env,
    io::{BufRead, BufReader},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

const WHAT: &str = "CLOUDPAL_SUITE_DAEMON";
const BEGINS: &str = "the daemon begins";

/// A daemon that does one thing, and is killed some time after it has begun.
async fn killed_after(stage: &Stage, what: &str, after_ms: u64) {
    let tap = stage.world.tap.dup().unwrap();
    fcntl_setfd(&tap, FdFlags::empty()).unwrap();
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "daemons::the_daemon_that_is_killed", "--nocapture"]);
    command.env(WHAT, format!("{what} {} {}", stage.kind, tap.as_raw_fd()));
    command.env("CLOUDPAL_SUITE_DIR", stage.world.dir());
    command.env("CLOUDPAL_SUITE_GUEST", stage.world.guest_dir());
    let mut daemon = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let stdout = daemon.stdout.take().unwrap();
    let begun = tokio::task::spawn_blocking(move || {
        BufReader::new(stdout).lines().map_while(Result::ok).any(|line| line.contains(BEGINS))
    });
    assert!(begun.await.unwrap());
    tokio::time::sleep(Duration::from_millis(after_ms)).await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

/// Not a scenario: what [`killed_after`] starts.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_that_is_killed() {
    let Ok(what) = env::var(WHAT) else { return };
    let [what, kind, tap] = what.split(' ').collect::<Vec<_>>()[..] else { panic!("{what}") };
    let path = |name: &str| PathBuf::from(env::var_os(name).unwrap());
    let spec = machine_spec(&path("CLOUDPAL_SUITE_DIR"));
    let driver = driver(kind, &path("CLOUDPAL_SUITE_GUEST"), None).unwrap();
    // SAFETY: handed to this process for this alone.
    #[allow(unsafe_code)]
    let tap = unsafe { OwnedFd::from_raw_fd(tap.parse().unwrap()) };
    let say = || println!("\n{BEGINS}");
    match what {
        "boot" => {
            say();
            drop(driver.boot(&spec, tap).await);
        }
        "sleep" => {
            let (vm, _tap) = driver.adopt(&spec).await.unwrap().unwrap();
            say();
            drop(vm.sleep(&|| true).await);
        }
        "wake" => {
            say();
            drop(driver.wake(&spec, tap).await);
        }
        _ => panic!("{what}"),
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
}

/// What the next daemon does.
async fn next_daemon(stage: &Stage) -> Machine {
    match stage.driver.adopt(&stage.world.spec).await.unwrap() {
        Some((vm, _tap)) => {
            assert!(!stage.has_snapshot(), "it runs on: no snapshot of it may be woken");
            vm
        }
        None => {
            assert!(stage.nobody_lives());
            stage.bring_back().await
        }
    }
}

pub async fn die_at_every_step(stage: Stage) {
    assert!(stage.driver.adopt(&stage.world.spec).await.unwrap().is_none());
    for after_ms in [20, 800] {
        killed_after(&stage, "boot", after_ms).await;
        assert!(stage.driver.adopt(&stage.world.spec).await.unwrap().is_none(), "it was not whole");
        assert!(stage.nobody_lives());
    }
    let mut vm = stage.boot().await;
    run(&vm, "echo kept > /data/file; sync").await;
    for after_ms in [30, 120, 250, 500, 2500] {
        stage.world.quiet().await;
        run(&vm, "echo only in memory > /tmp/file").await;
        let pid = vm.pid();
        drop(vm);
        killed_after(&stage, "sleep", after_ms).await;
        vm = next_daemon(&stage).await;
        eprintln!("killed after {after_ms} ms of a sleep: the same VMM: {}", vm.pid() == pid);
        assert!(vm.pid() == pid || process_is_gone(pid));
        assert_eq!(run(&vm, "cat /data/file /tmp/file").await, "kept\nonly in memory");
        answered(stage.world.get()).await;
    }
    for after_ms in [20, 60, 120, 250] {
        stage.fall_asleep(&vm).await;
        drop(vm);
        killed_after(&stage, "wake", after_ms).await;
        vm = next_daemon(&stage).await;
        assert_eq!(run(&vm, "cat /data/file").await, "kept");
        answered(stage.world.get()).await;
    }
    vm.kill().await;
}

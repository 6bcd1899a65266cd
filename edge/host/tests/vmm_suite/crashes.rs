//! The VMM is killed at every step of what it does: nothing is left half done, and the machine comes back.

use crate::stage::{Stage, answered, kill, new_vmm, run};
use cloudpal_compute::driver::{SleepOutcome, WakeError};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

const BOOT_MS: [u64; 4] = [0, 60, 400, 1200];
const WAKE_MS: [u64; 6] = [0, 15, 40, 80, 130, 200];

pub async fn at_every_step(stage: Stage) {
    for after_ms in BOOT_MS {
        in_a_boot(&stage, after_ms).await;
    }
    let mut vm = stage.boot().await;
    run(&vm, "echo kept > /data/file; sync").await;
    for question in [1, 2, 3, 5] {
        stage.world.quiet().await;
        let calls = AtomicU32::new(0);
        let (pid, killed) = (vm.pid(), AtomicU32::new(0));
        let outcome = vm
            .sleep(&|| {
                if calls.fetch_add(1, Ordering::Relaxed) + 1 == question {
                    kill(pid);
                    killed.store(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
                true
            })
            .await;
        eprintln!("killed at question {question} of a sleep: {outcome:?}");
        // Everything may have been saved before the end came; if not, nothing may look as if it were.
        assert_eq!(stage.has_snapshot(), matches!(outcome, Ok(SleepOutcome::Asleep)), "{outcome:?}");
        assert_eq!(killed.into_inner(), 1, "it asked fewer times than {question}");
        vm = stage.bring_back().await;
        answered(stage.world.get()).await;
        assert_eq!(run(&vm, "cat /data/file").await, "kept");
    }
    for after_ms in WAKE_MS {
        stage.fall_asleep(&vm).await;
        in_a_wake(&stage, after_ms).await;
        vm = stage.bring_back().await;
        assert_eq!(run(&vm, "cat /data/file").await, "kept");
    }
    let exit = async { vm.exited().await };
    kill(vm.pid());
    let exit = exit.await;
    assert!(!exit.clean && exit.why.contains("signal 9"), "{exit:?}");
}

async fn in_a_boot(stage: &Stage, after_ms: u64) {
    let boot = stage.driver.boot(&stage.world.spec, stage.world.tap.dup().unwrap());
    let killer = async {
        let pid = new_vmm(&stage.world.spec.run_dir).await;
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        kill(pid);
    };
    let patience = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(boot, killer).0 });
    let Err(problem) = patience.await.expect("it waits for a VMM that is dead") else {
        panic!("killed after {after_ms} ms, it booted")
    };
    assert!(problem.what.contains("VMM"), "{problem}");
    assert!(stage.nobody_lives() && !stage.has_snapshot());
}

async fn in_a_wake(stage: &Stage, after_ms: u64) {
    let killer = async {
        let pid = new_vmm(&stage.world.spec.run_dir).await;
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        kill(pid);
    };
    let both = async { tokio::join!(stage.try_wake(), killer).0 };
    let woken = tokio::time::timeout(Duration::from_secs(20), both).await;
    match woken.expect("it waits for a VMM that is dead") {
        Ok(vm) => {
            assert!(!vm.exited().await.clean);
            assert!(!stage.has_snapshot(), "woken, it is consumed");
        }
        Err(WakeError::Failed(problem)) => {
            let left = stage.has_snapshot();
            eprintln!("killed after {after_ms} ms of a wake (snapshot left: {left}): {problem}");
            assert!(stage.nobody_lives());
        }
        Err(WakeError::SnapshotRefused { why }) => panic!("a VMM that was killed refused a good one: {why}"),
    }
}

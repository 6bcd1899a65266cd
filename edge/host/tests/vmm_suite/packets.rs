//! Packets that come at the worst moments of falling asleep.

use crate::stage::{Machine, Stage, answered, process_is_gone, run};
use cloudpal_compute::driver::SleepOutcome;
use std::{
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

pub async fn in_the_middle_of_falling_asleep(stage: Stage) {
    let world = &stage.world;
    let mut vm: Machine = stage.boot().await;
    let mut cancelled = 0;
    // Whenever the packet comes: before the vCPUs stop, frozen, in the middle of writing, at the end.
    for at in [1, 2, 3, 5, 100] {
        stage.note_received(&vm).await;
        let delivered = world.tap.delivered_packets();
        let (calls, get) = (AtomicU32::new(0), Mutex::new(None));
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
            assert!(!stage.has_snapshot() && !world.spec.dir.join("snapshot.tmp").exists());
            let took = answered(get).await;
            eprintln!("packet at question {at}: cancelled, answered after {} ms", took.as_millis());
            cancelled += 1;
        } else {
            // It asked fewer times than that: then it is asleep, and the next packet wakes it.
            assert_eq!(outcome, SleepOutcome::Asleep);
            world.tap.reset_offloads();
            vm = stage.wake_by_packet().await;
        }
    }
    assert!(cancelled >= 3);
    vm.stop(Duration::from_secs(5)).await.unwrap();
    assert!(process_is_gone(vm.pid()));
    assert_eq!(vm.exited().await.why, "stopped on request");
}

/// Whoever put it to sleep goes away in the middle of it: it runs on.
pub async fn a_sleep_that_is_given_up(stage: Stage) {
    let world = &stage.world;
    let vm = stage.boot().await;
    for at in [1, 2, 3, 4, 2, 3] {
        world.quiet().await;
        let calls = AtomicU32::new(0);
        let reached = tokio::sync::Notify::new();
        let still_idle = || {
            if calls.fetch_add(1, Ordering::Relaxed) + 1 == at {
                reached.notify_one();
            }
            true
        };
        let sleep = vm.sleep(&still_idle);
        let given_up = tokio::select! {
            biased;
            () = reached.notified() => true,
            _ = sleep => false,
        };
        assert!(given_up, "it asked fewer times than {at}");
        answered(world.get()).await;
        // Its timers go on as well.
        assert_eq!(run(&vm, "busybox usleep 30000; echo on").await, "on");
        assert!(!stage.has_snapshot());
    }
    stage.fall_asleep(&vm).await;
    stage.wake_by_packet().await.kill().await;
}

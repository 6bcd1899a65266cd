//! Guests in trouble of their own: no memory, no disk, a kernel that panics or resets.

use crate::stage::{Stage, answered, run, try_run};
use std::time::Duration;

pub async fn in_trouble(mut stage: Stage) {
    stage.world.spec.disk_mib = 24;
    stage.world.spec.guest.process.user = "root".into();
    let vm = stage.boot().await;
    let (code, said) = try_run(&vm, "head -c 60000000 /dev/zero > /data/big").await;
    let bytes: u64 = run(&vm, "busybox stat -c %s /data/big").await.parse().unwrap();
    assert!(code != 0 && bytes < 24 << 20, "{code} {said}, {bytes} bytes");
    run(&vm, "busybox rm /data/big; echo room > /data/file; sync").await;

    // Whoever takes all memory is ended; the machine is not.
    let (code, _) = try_run(&vm, "busybox tail -c 1000000000 /dev/zero | head -c 1; exit $?").await;
    eprintln!("out of memory: code {code}");
    answered(stage.world.get()).await;
    assert_eq!(run(&vm, "cat /data/file").await, "room");

    for (letter, what) in [("c", "panic"), ("b", "reset")] {
        let vm = if letter == "c" { vm.clone() } else { stage.boot().await };
        let cause = vm.exec(vec!["sh".into(), "-c".into(), format!("echo {letter} > /proc/sysrq-trigger")]);
        let exit =
            tokio::time::timeout(Duration::from_secs(30), async { tokio::join!(cause, vm.exited()).1 });
        let exit = exit.await.expect("it goes on");
        eprintln!("{what}: {exit:?}");
        assert!(!exit.clean, "{exit:?}");
        assert!(stage.nobody_lives());
    }
    let vm = stage.boot().await;
    assert_eq!(run(&vm, "cat /data/file").await, "room");
    vm.kill().await;
}

//! Snapshots that are no good, and good ones that are woken twice.

use crate::{
    stage::{Stage, run},
    vmm_world::sh,
};
use cloudpal_compute::driver::WakeError;
use std::{fs, os::unix::fs::FileExt, path::Path, time::Duration};

/// A machine's directory, to go back to.
struct Kept(String);

impl Kept {
    fn keep(stage: &Stage) -> Kept {
        let dir = stage.world.spec.dir.display().to_string();
        sh(&format!("cp -a --sparse=always {dir} {dir}.copy"));
        Kept(dir)
    }

    fn restore(&self) {
        let dir = &self.0;
        sh(&format!("rm -rf {dir} && cp -a --sparse=always {dir}.copy {dir}"));
    }
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

pub async fn bad_ones_are_refused(stage: Stage) {
    let spec = &stage.world.spec;
    let vm = stage.boot().await;
    run(&vm, "echo kept > /data/file").await;
    stage.fall_asleep(&vm).await;
    let kept = Kept::keep(&stage);
    let file = |name: &str| spec.dir.join("snapshot").join(name);
    let swap = || {
        let away = file("away");
        fs::rename(file("memory"), &away).unwrap();
        fs::rename(file("state"), file("memory")).unwrap();
        fs::rename(away, file("state")).unwrap();
    };
    for (what, damage) in [
        ("cut short", &(|| truncate(&file("memory"))) as &dyn Fn()),
        ("damaged", &|| flip(&file("memory"))),
        ("state cut short", &|| truncate(&file("state"))),
        ("state damaged", &|| flip(&file("state"))),
        ("swapped", &swap),
        ("missing", &|| fs::remove_file(file("memory")).unwrap()),
        ("description", &|| truncate(&file("snapshot.json"))),
        ("disk moved on", &|| flip(&spec.dir.join("disk.img"))),
    ] {
        kept.restore();
        damage();
        let refused = stage.try_wake().await;
        let Err(WakeError::SnapshotRefused { why }) = refused else { panic!("{what}: not refused") };
        eprintln!("{what}: {why}");
        assert!(!stage.has_snapshot(), "set aside");
        assert!(stage.nobody_lives());
    }
    kept.restore();
    truncate(&file("memory"));
    assert!(stage.try_wake().await.is_err());
    let vm = stage.boot().await;
    assert_eq!(run(&vm, "cat /data/file").await, "kept");
    vm.stop(Duration::from_secs(5)).await.unwrap();
}

pub async fn two_clones(stage: Stage) {
    let vm = stage.boot().await;
    stage.fall_asleep(&vm).await;
    let kept = Kept::keep(&stage);
    let mut drawn = Vec::new();
    for _ in 0..2 {
        let vm = stage.wake_by_packet().await;
        drawn.push(run(&vm, "head -c 16 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid").await);
        vm.kill().await;
        kept.restore();
        stage.world.tap.reset_offloads();
    }
    let lines = |at: usize| drawn[at].lines().collect::<Vec<_>>();
    assert!(lines(0).iter().zip(lines(1)).all(|(one, other)| *one != other), "{drawn:?}");
}

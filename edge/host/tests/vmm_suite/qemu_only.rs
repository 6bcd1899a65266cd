//! What only QEMU can show: a VMM of another version under a running machine.

use crate::{
    stage::{Stage, run},
    vmm_world::sh,
};
use cloudpal_compute::driver::Driver;
use cloudpal_host::vmm::{QemuDriver, QemuSettings};

/// The host's QEMU is replaced while a machine runs, and the new daemon adopts it: its snapshot is still the old one's.
#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_machine_keeps_its_own_identity() {
    let Some(stage) = Stage::set("qemu", "identity") else { return };
    let vm = stage.boot().await;
    run(&vm, "echo only in memory > /tmp/file").await;
    drop(vm);
    let newer = stage.world.dir().join("qemu-newer");
    let script =
        "case $1 in --version) echo QEMU emulator version 99.0;; *) exec qemu-system-x86_64 \"$@\";; esac";
    std::fs::write(&newer, format!("#!/bin/sh\n{script}\n")).unwrap();
    sh(&format!("chmod +x {}", newer.display()));
    let settings = QemuSettings { qemu_binary: newer, ..QemuSettings::new(stage.world.guest_dir()) };
    let other = QemuDriver::new(settings).unwrap();
    let (vm, _tap) = other.adopt(&stage.world.spec).await.unwrap().unwrap();
    stage.fall_asleep(&vm).await;
    let vm = stage.wake_by_packet().await;
    assert_eq!(run(&vm, "cat /tmp/file").await, "only in memory");
    stage.fall_asleep(&vm).await;
    let woken = other.wake(&stage.world.spec, stage.world.tap.dup().unwrap()).await;
    let Err(refused) = woken else { panic!("another QEMU took its state") };
    assert!(format!("{refused:?}").contains("99.0"), "{refused:?}");
}

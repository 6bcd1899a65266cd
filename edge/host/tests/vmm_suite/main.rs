//! One suite for every driver: what the port promises, on real guests, through every end that a VMM can come to.
//!
//! A driver that this machine cannot run is skipped with the reason. `CLOUDPAL_TEST_DRIVER=qemu|embedded|firecracker`
//! chooses one: then it must run, and a reason to skip it is a failure.
//!
//! Invariant: a scenario knows nothing of the driver but the port; what only one driver can show is in its own file.

#[path = "../vmm_world/mod.rs"]
mod vmm_world;

mod crashes;
mod daemons;
mod guests;
mod hosts;
mod life;
mod packets;
mod qemu_only;
mod snapshots;
mod stage;

macro_rules! scenarios {
    ($($driver:ident)*) => {$(
        mod $driver {
            use crate::*;
            const DRIVER: &str = stringify!($driver);
            scenarios!(@each
                life::lives_sleeps_and_wakes, life::apps_that_end_or_listen_elsewhere,
                packets::in_the_middle_of_falling_asleep, packets::a_sleep_that_is_given_up,
                snapshots::bad_ones_are_refused, snapshots::two_clones,
                crashes::at_every_step, daemons::die_at_every_step,
                guests::in_trouble,
                hosts::full_disks_and_no_privilege, hosts::faults_refuse_nothing, hosts::hold_a_machine_to_its_rates);
        }
    )*};
    (@each $($file:ident::$scenario:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $scenario() {
            if let Some(stage) = stage::Stage::set(DRIVER, stringify!($scenario)) {
                $file::$scenario(stage).await;
            }
        }
    )*};
}

scenarios!(qemu embedded firecracker);

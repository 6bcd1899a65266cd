//! Hundreds of seeds, and proof that the checks can fail.

use sim::{Bug, Faults, Report, Scenario, run};

fn play(seeds: std::ops::Range<u64>, scenario: &Scenario) -> Report {
    let mut total = Report::default();
    for seed in seeds {
        match run(seed, scenario) {
            Ok(report) => total += &report,
            Err(violation) => panic!("{violation}\nplay it again with this seed and {scenario:?}"),
        }
    }
    eprintln!("{total:#?}");
    total
}

#[test]
fn when_nothing_goes_wrong_every_single_packet_is_answered() {
    let total = play(0..50, &Scenario::calm(400));
    assert_eq!(total.answered + total.refused, total.packets);
    assert_eq!((total.lost_in_crashes, total.vmm_crashes, total.refused_requests), (0, 0, 0));
    assert!(total.wakes > 2000 && total.cancelled_sleeps > 10, "too calm to say anything: {total:?}");
}

#[test]
fn whatever_goes_wrong_no_promise_is_broken() {
    let total = play(0..400, &Scenario::rough(300));
    assert!(total.wakes > 10_000 && total.sleeps > 10_000, "{total:?}");
    assert!(total.vmm_crashes > 1000 && total.daemon_crashes > 1000 && total.power_losses > 200, "{total:?}");
    assert!(total.refused_snapshots > 50 && total.refused_requests > 50, "{total:?}");
    // What was excused is little: most packets survive even this.
    assert!(total.answered * 10 > (total.packets - total.refused) * 8, "{total:?}");
}

#[test]
fn without_any_crash_failures_alone_lose_nothing() {
    let faults = Faults {
        net_failure: 300,
        image_failure: 300,
        start_failure: 100,
        sleep_failure: 200,
        ..Faults::default()
    };
    let total = play(0..50, &Scenario { faults, ..Scenario::rough(300) });
    assert_eq!(total.lost_in_crashes, 0, "{total:?}");
}

#[test]
fn the_same_seed_tells_the_same_story() {
    assert_eq!(run(7, &Scenario::rough(200)), run(7, &Scenario::rough(200)));
}

#[test]
fn the_checks_notice_each_known_bug() {
    for bug in Bug::ALL {
        let scenario = Scenario { bug: Some(bug), ..Scenario::rough(300) };
        let noticed = (0..300).find_map(|seed| run(seed, &scenario).err());
        let violation = noticed.unwrap_or_else(|| panic!("nobody noticed {bug:?} in 300 seeds"));
        eprintln!("{bug:?}: {violation}");
    }
}

#[test]
fn a_thousand_sleeping_apps_cost_the_daemon_little_memory() {
    let resident_kib = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        4 * pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before_kib = resident_kib();
    let household = sim::household(1000).unwrap();
    assert_eq!(household.apps_and_sleeping(), (1000, 1000));
    let grown_kib = resident_kib() - before_kib;
    eprintln!("1,000 sleeping apps: {grown_kib} KiB");
    assert!(grown_kib < 16 * 1024, "{grown_kib} KiB");
}

//! Nobody calls: the machine falls asleep by itself and gives everything back but its disk.

use super::{APP, Day, TENANT, disk_bytes};
use crate::interrupt;
use anyhow::{Result, bail, ensure};
use std::{path::Path, time::Duration};

pub fn play(day: &mut Day) -> Result<()> {
    let pids = day.daemon.vmm_pids();
    ensure!(pids.len() == 1, "one machine is awake, and there are {} VMM processes", pids.len());
    let resident_kib = resident_kib(pids[0]);
    let took = day.wait_asleep()?;
    day.timeline.held(
        "nobody calls: the machine falls asleep by itself",
        took,
        format!("idle for {}", day.idle),
    );

    let patience = Duration::from_secs(2);
    let ((), gone) = interrupt::wait_for("the VMM process ends", patience, || {
        Ok(day.daemon.vmm_pids().is_empty().then_some(()))
    })?;
    if Path::new(&format!("/proc/{}/exe", pids[0])).exists() {
        bail!("the VMM process {} is still there", pids[0]);
    }
    let usage = day.cli().json(&["machine", "usage", TENANT, APP])?;
    ensure!(usage["pid"].is_null(), "the daemon says that the sleeping machine runs: {usage}");
    let freed = format!("{} MiB given back", resident_kib / 1024);
    day.timeline.held("no VMM process is left", gone, freed);

    let snapshot = day.machine_dir()?.join("snapshot");
    let files = std::fs::read_dir(&snapshot).map_or(0, Iterator::count);
    ensure!(files > 0, "no snapshot in {}", snapshot.display());
    let found = format!("{} MiB on disk", disk_bytes(&snapshot) / 1024 / 1024);
    day.timeline.held("its snapshot is on the disk", Duration::ZERO, found);
    Ok(())
}

/// Of a process; 0 when it has ended.
fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

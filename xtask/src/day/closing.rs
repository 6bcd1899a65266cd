//! Everything is removed, the daemon ends, and nothing is left.

use super::{APP, Day, TENANT};
use crate::interrupt;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

pub fn play(day: &mut Day) -> Result<()> {
    let cli = day.cli();
    let started = Instant::now();
    for tenant in [TENANT, "bob"] {
        cli.json(&["app", "remove", tenant, APP])?;
        cli.json(&["tenant", "remove", tenant])?;
    }
    let state_dir = day.daemon.settings().state_dir.clone();
    let has_entries =
        |dir: &str| std::fs::read_dir(state_dir.join(dir)).is_ok_and(|mut entries| entries.next().is_some());
    let patience = Duration::from_secs(30);
    interrupt::wait_for("the tenants' namespaces and data go", patience, || {
        let gone = day.daemon.tenant_namespaces().is_empty() && day.daemon.vmm_pids().is_empty();
        Ok((gone && !has_entries("data") && !has_entries("keys")).then_some(()))
    })?;
    let found = "no namespace, no VMM process, no data";
    day.timeline.held("apps and tenants are removed", started.elapsed(), found);

    let ended = day.daemon.stop()?;
    let machines = std::fs::read_dir(day.daemon.settings().state_dir.join("machines"));
    ensure!(machines.map_or(0, Iterator::count) == 0, "machines' files are left in the state directory");
    day.timeline.held("the daemon ends when asked", ended, "");
    Ok(())
}

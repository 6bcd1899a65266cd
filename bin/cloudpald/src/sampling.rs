//! What must be looked at regularly: how busy the awake machines are, where the devices were last seen, how much the
//! guests have written, and whether the firewall is still there.

use crate::{brain::Brain, daemon::Places, machines::Machines, networks::Networks};
use cloudpal_control::event::Event;
use cloudpal_host::{net::NetHost, vmm::logs};
use std::{sync::Arc, time::Duration};

/// Short against the shortest useful idle timeout (a second or two), long against the cost of a sample (two small
/// reads).
const ACTIVITY_EVERY: Duration = Duration::from_millis(200);

/// A device that moved is found again after a crash if the crash comes later than this.
const ENDPOINTS_EVERY: Duration = Duration::from_secs(2);

/// What a guest can write in between is a few hundred megabytes at the very worst.
const LOGS_EVERY: Duration = Duration::from_secs(1);

/// Listing one table takes a few milliseconds; the host is open for at most this long.
const FIREWALL_EVERY: Duration = Duration::from_secs(5);

pub async fn activity(machines: Arc<Machines>, net: Arc<NetHost>, brain: Brain) {
    let mut ticks = tokio::time::interval(ACTIVITY_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (machine, vm) in machines.running() {
            let Some(tap) = net.tap(machine) else { continue };
            let delivered_packets = tap.delivered_packets();
            brain.event(Event::Activity { machine, delivered_packets, cpu_us: vm.usage().cpu_us });
        }
    }
}

pub async fn endpoints(networks: Arc<Networks>, brain: Brain) {
    let mut ticks = tokio::time::interval(ENDPOINTS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for tenant in networks.tenants() {
            for peer in networks.peers(tenant).await {
                let Some(endpoint) = peer.endpoint else { continue };
                brain.event(Event::DeviceSeen { tenant, public_key: peer.public_key, endpoint });
            }
        }
    }
}

/// A guest can fill neither the disk nor memory with its words.
pub async fn logs(machines: Arc<Machines>, places: Places) {
    let mut ticks = tokio::time::interval(LOGS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for (machine, _) in machines.running() {
            let (dir, run_dir) = (places.machine_dir(machine), places.machine_run_dir(machine));
            let bounded = tokio::task::spawn_blocking(move || logs::keep_bounded(&dir, &run_dir)).await;
            if let Ok(Err(error)) = bounded {
                tracing::warn!(%machine, %error, "the machine's log could not be cut");
            }
        }
    }
}

/// The host's firewall belongs to its operator too, who may flush it.
pub async fn firewall(net: Arc<NetHost>) {
    let mut ticks = tokio::time::interval(FIREWALL_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match net.keep_host_rules().await {
            Ok(false) => {}
            Ok(true) => tracing::warn!("somebody flushed the host's firewall; our rules are in force again"),
            Err(problem) => tracing::error!(%problem, "the host's firewall is not as wanted"),
        }
    }
}

//! What the engine must be told regularly: how busy the awake machines are, and where the devices were last seen.

use crate::{brain::Brain, machines::Machines, networks::Networks};
use cloudpal_control::event::Event;
use cloudpal_host::net::NetHost;
use std::{sync::Arc, time::Duration};

/// Short against the shortest useful idle timeout (a second or two), long against the cost of a sample (two small
/// reads).
const ACTIVITY_EVERY: Duration = Duration::from_millis(200);

/// A device that moved is found again after a crash if the crash comes later than this.
const ENDPOINTS_EVERY: Duration = Duration::from_secs(2);

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

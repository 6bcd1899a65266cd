//! A machine's rates as Firecracker's token buckets (its docs/api_requests/patch-block.md, patch-network-interface.md).

use super::api::Api;
use crate::vmm::start::ANSWER_PATIENCE;
use cloudpal_compute::driver::MachineSpec;
use cloudpal_model::{BURST_MS, Problem};
use serde_json::{Value, json};
use std::num::NonZeroU64;

/// A bucket of the size of a burst; one of no size is no limit.
pub fn limiter(bytes_per_s: Option<NonZeroU64>) -> Value {
    let in_a_burst = |rate: NonZeroU64| (u128::from(rate.get()) * u128::from(BURST_MS) / 1000) as u64;
    let bucket = match bytes_per_s.map(in_a_burst) {
        Some(size) => json!({ "size": size.max(1), "refill_time": BURST_MS }),
        None => json!({ "size": 0, "refill_time": 0 }),
    };
    json!({ "bandwidth": bucket })
}

/// A snapshot comes with the rates that the machine had when it fell asleep.
pub async fn change(api: &Api, spec: &MachineSpec) -> Result<(), Problem> {
    let disk = limiter(spec.rates.disk_bytes_per_s);
    let has_root = spec.unikernel.as_ref().is_none_or(|own| own.disk.is_some());
    for name in ["root", "disk"].into_iter().filter(|name| has_root || *name != "root") {
        let changed = json!({ "drive_id": name, "rate_limiter": disk });
        api.patch(&format!("/drives/{name}"), &changed, ANSWER_PATIENCE).await?;
    }
    let each_way = limiter(spec.rates.network_bytes_per_s);
    let changed = json!({ "iface_id": "eth0", "rx_rate_limiter": each_way, "tx_rate_limiter": each_way });
    api.patch("/network-interfaces/eth0", &changed, ANSWER_PATIENCE).await
}

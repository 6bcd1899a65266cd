//! How much a machine may move in a time, so that one of many cannot take a host's link or disk for itself.
//!
//! Invariant: a rate is never zero: what may not move at all would hang its guest.

use serde::{Deserialize, Serialize};
use std::num::NonZeroU64;

/// After a rest a machine may move at once what its rate gives in this time.
pub const BURST_MS: u64 = 100;

/// `None` is as much as the host can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rates {
    /// To the machine, and from it: each way has this for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_bytes_per_s: Option<NonZeroU64>,
    /// Each of its disks has this for itself, reads and writes together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes_per_s: Option<NonZeroU64>,
}

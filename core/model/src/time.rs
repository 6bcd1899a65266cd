//! Time is an argument: the pure crates are told what time it is.

use serde::{Deserialize, Serialize};

/// One reading of both clocks of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Now {
    /// Monotonic, from an arbitrary origin; for durations. Microseconds.
    pub mono_us: u64,
    /// Since the Unix epoch; for people and logs. Milliseconds.
    pub wall_ms: u64,
}

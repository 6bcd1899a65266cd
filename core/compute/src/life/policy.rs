//! When a machine may sleep, and how long to pause after each kind of failure.
//!
//! Invariant: every pause grows with repeated failure and is bounded; success takes it back to nothing.

/// The longest pause between two attempts to start.
const MAX_START_PAUSE_US: u64 = 60_000_000;
/// The longest pause between two attempts to sleep.
const MAX_SLEEP_PAUSE_US: u64 = 600_000_000;
const FIRST_PAUSE_US: u64 = 1_000_000;
/// An app that ends by itself sooner than this after its start has failed, whatever it says.
const SHORT_LIFE_US: u64 = 10_000_000;
/// A CPU share over less than this says nothing.
const MIN_CPU_WINDOW_US: u64 = 100_000;

/// The rules of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// No packet for this long: fall asleep. 0: never.
    pub idle_timeout_us: u64,
    /// More CPU than this share of one core since the last sample defers sleep.
    pub busy_share_percent: u64,
    /// But at most for this many idle timeouts.
    pub busy_defers_times: u64,
    pub max_crashes: usize,
    pub crash_window_us: u64,
    pub stop_grace_ms: u64,
}

impl Policy {
    pub fn with_idle_timeout_ms(idle_timeout_ms: u64) -> Policy {
        Policy {
            idle_timeout_us: idle_timeout_ms.saturating_mul(1000),
            busy_share_percent: 30,
            busy_defers_times: 10,
            max_crashes: 5,
            crash_window_us: 600_000_000,
            stop_grace_ms: 10_000,
        }
    }
}

/// The share of one core that a machine used, between samples.
#[derive(Clone, Debug, Default)]
pub(super) struct CpuShare {
    last: Option<(u64, u64)>,
    percent: Option<u64>,
}

impl CpuShare {
    /// The share in percent over the last window; `None` until there was one.
    pub fn sample(&mut self, now_us: u64, cpu_us: u64) -> Option<u64> {
        match self.last {
            None => self.last = Some((now_us, cpu_us)),
            Some((at_us, before_us)) => {
                let window_us = now_us.saturating_sub(at_us);
                if window_us >= MIN_CPU_WINDOW_US {
                    self.percent = Some(cpu_us.saturating_sub(before_us).saturating_mul(100) / window_us);
                    self.last = Some((now_us, cpu_us));
                }
            }
        }
        self.percent
    }
}

/// What failed lately, and until when to hold back.
#[derive(Clone, Debug, Default)]
pub(super) struct Pauses {
    failed_starts: u32,
    failed_sleeps: u32,
    crashes_us: Vec<u64>,
    started_us: Option<u64>,
    start_not_before_us: u64,
    sleep_not_before_us: u64,
}

fn grown(first_us: u64, failures: u32, max_us: u64) -> u64 {
    first_us.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(max_us)
}

impl Pauses {
    pub fn start_not_before_us(&self) -> u64 {
        self.start_not_before_us
    }

    pub fn sleep_not_before_us(&self) -> u64 {
        self.sleep_not_before_us
    }

    pub fn started(&mut self, now_us: u64) {
        self.failed_starts = 0;
        self.started_us = Some(now_us);
    }

    pub fn slept(&mut self) {
        self.failed_sleeps = 0;
    }

    /// Returns the pause.
    pub fn start_failed(&mut self, now_us: u64) -> u64 {
        self.failed_starts = self.failed_starts.saturating_add(1);
        let pause_us = grown(FIRST_PAUSE_US, self.failed_starts, MAX_START_PAUSE_US);
        self.start_not_before_us = now_us.saturating_add(pause_us);
        pause_us
    }

    /// Returns the pause.
    pub fn sleep_failed(&mut self, now_us: u64, policy: &Policy) -> u64 {
        self.failed_sleeps = self.failed_sleeps.saturating_add(1);
        let first_us = policy.idle_timeout_us.max(5 * FIRST_PAUSE_US);
        let pause_us = grown(first_us, self.failed_sleeps, MAX_SLEEP_PAUSE_US);
        self.sleep_not_before_us = now_us.saturating_add(pause_us);
        pause_us
    }

    /// It ended soon after it had started.
    pub fn was_short(&self, now_us: u64) -> bool {
        self.started_us.is_some_and(|at_us| now_us.saturating_sub(at_us) < SHORT_LIFE_US)
    }

    /// Returns how many crashes there were in the policy's window, this one included.
    pub fn crashed(&mut self, now_us: u64, policy: &Policy) -> usize {
        self.crashes_us.retain(|&at_us| now_us.saturating_sub(at_us) < policy.crash_window_us);
        self.crashes_us.push(now_us);
        let crashes = self.crashes_us.len();
        let pause_us = grown(FIRST_PAUSE_US, u32::try_from(crashes).unwrap_or(u32::MAX), MAX_START_PAUSE_US);
        self.start_not_before_us = now_us.saturating_add(pause_us);
        crashes
    }
}

//! What happened when, and how long it took: printed as it happens, and kept for the JSON file.

use serde::Serialize;
use std::{
    fmt::Display,
    time::{Duration, Instant},
};

pub struct Timeline {
    started: Instant,
    step: String,
    pub lines: Vec<Line>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub at_ms: f64,
    pub step: String,
    pub what: String,
    pub took_ms: f64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub found: String,
}

impl Timeline {
    pub fn start() -> Timeline {
        Timeline { started: Instant::now(), step: String::new(), lines: Vec::new() }
    }

    pub fn begin(&mut self, step: &str) {
        self.step = step.to_owned();
        println!("\n  {step}");
    }

    /// One thing that held: what, how long it took, and what was found.
    pub fn held(&mut self, what: &str, took: Duration, found: impl Display) {
        let at_ms = ms(self.started.elapsed());
        let line = Line {
            at_ms,
            step: self.step.clone(),
            what: what.to_owned(),
            took_ms: ms(took),
            found: found.to_string(),
        };
        println!("  {:>7.1} s  {:<58} {:>10.1} ms  {}", at_ms / 1000.0, line.what, line.took_ms, line.found);
        self.lines.push(line);
    }

    /// Does it, and notes how long it took.
    pub fn time<T>(&mut self, what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
        let started = Instant::now();
        let done = work()?;
        self.held(what, started.elapsed(), "");
        Ok(done)
    }
}

pub fn ms(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1_000_000.0).round() / 1000.0
}

/// By the nearest rank; the list need not be sorted, and must not be empty.
pub fn percentile(durations: &[Duration], percent: usize) -> Duration {
    let mut sorted = durations.to_vec();
    sorted.sort();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank.min(sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_the_nearest_rank() {
        let list: Vec<Duration> = (1..=20).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&list, 50), Duration::from_millis(10));
        assert_eq!(percentile(&list, 99), Duration::from_millis(20));
        assert_eq!(percentile(&list[..1], 50), Duration::from_millis(20));
    }
}

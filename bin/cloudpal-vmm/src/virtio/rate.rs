//! How much a device may do in a time: so many bytes and operations a second, and so many at once after a rest.
//!
//! Invariants:
//! - What is charged over a time is at most its rate times that time, plus the burst, plus one operation: the last one
//!   before a wait may be larger than what was left, and is waited for afterwards. So nothing is too large to go.
//! - Without a limit no clock is read. A device that waits wakes by the timer's edge, never by polling.

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    time::Instant,
};

const NS: u128 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub per_second: u64,
    pub burst: u64,
}

/// What a device may do; `None` is as much as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub bytes: Option<Limit>,
    pub operations: Option<Limit>,
}

/// A bucket of tokens, written as a time: when all that was charged is paid for at the limit's rate.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    limit: Limit,
    paid_ns: u64,
}

impl Bucket {
    fn new(limit: Limit) -> Bucket {
        Bucket { limit, paid_ns: 0 }
    }

    fn ns(&self, units: u64) -> u64 {
        let ns = u128::from(units) * NS / u128::from(self.limit.per_second.max(1));
        // A century is forever.
        u64::try_from(ns).unwrap_or(u64::MAX).min(u64::MAX >> 2)
    }

    fn wait_ns(&self, now_ns: u64) -> u64 {
        self.paid_ns.saturating_sub(now_ns.saturating_add(self.ns(self.limit.burst)))
    }

    fn charge(&mut self, units: u64, now_ns: u64) {
        self.paid_ns = self.paid_ns.max(now_ns).saturating_add(self.ns(units));
    }
}

pub struct Limiter {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
    /// With the time from which the buckets count.
    timer: Option<(OwnedFd, Instant)>,
}

impl Limiter {
    pub fn none() -> Limiter {
        Limiter { bytes: None, operations: None, timer: None }
    }

    pub fn new(limits: Limits) -> io::Result<Limiter> {
        let limited = limits.bytes.is_some() || limits.operations.is_some();
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = if limited {
            Some((timerfd_create(TimerfdClockId::Monotonic, flags)?, Instant::now()))
        } else {
            None
        };
        Ok(Limiter {
            bytes: limits.bytes.map(Bucket::new),
            operations: limits.operations.map(Bucket::new),
            timer,
        })
    }

    /// May the next operation go? If not, the source tells when.
    pub fn may_go_on(&mut self) -> bool {
        let Some((timer, start)) = &self.timer else { return true };
        let now_ns = start.elapsed().as_nanos() as u64;
        let buckets = [&self.bytes, &self.operations].into_iter().flatten();
        let wait_ns = buckets.map(|bucket| bucket.wait_ns(now_ns)).max().unwrap_or(0);
        if wait_ns == 0 {
            return true;
        }
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let (tv_sec, tv_nsec) = ((wait_ns / 1_000_000_000) as i64, (wait_ns % 1_000_000_000) as i64);
        let once = Itimerspec { it_interval: zero, it_value: Timespec { tv_sec, tv_nsec } };
        // A timer that cannot be set must not hold the guest up for ever.
        timerfd_settime(timer, TimerfdTimerFlags::empty(), &once).is_err()
    }

    /// One operation of so many bytes was done.
    pub fn charge(&mut self, bytes: usize) {
        let Some((_, start)) = &self.timer else { return };
        let now_ns = start.elapsed().as_nanos() as u64;
        if let Some(bucket) = &mut self.bytes {
            bucket.charge(bytes as u64, now_ns);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.charge(1, now_ns);
        }
    }

    pub fn source(&self) -> Option<RawFd> {
        self.timer.as_ref().map(|(timer, _)| timer.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_gives_no_more_than_its_rate_and_burst_and_no_less(
            per_second in 1_u64..1 << 40,
            burst in 0_u64..1 << 40,
            asks in prop::collection::vec((0_u64..1 << 34, 1_u64..1 << 30), 1..50),
        ) {
            let mut bucket = Bucket::new(Limit { per_second, burst });
            let (mut now_ns, mut charged, mut largest) = (0, 0_u128, 0);
            for (rest_ns, units) in asks {
                now_ns += rest_ns;
                let wait_ns = bucket.wait_ns(now_ns);
                if wait_ns > 0 {
                    prop_assert!(bucket.wait_ns(now_ns + wait_ns - 1) > 0, "it waits too long");
                }
                now_ns += wait_ns;
                prop_assert_eq!(bucket.wait_ns(now_ns), 0);
                bucket.charge(units, now_ns);
                charged += u128::from(units);
                largest = largest.max(units);
                let earned = u128::from(now_ns + 50) * u128::from(per_second) / NS;
                let allowed = earned + u128::from(burst) + u128::from(largest) + 50;
                prop_assert!(charged <= allowed, "{charged} of {allowed} after {now_ns} ns");
            }
        }
    }

    #[test]
    fn no_figure_overflows() {
        for limit in [(0, 0), (0, u64::MAX), (u64::MAX, u64::MAX), (1, 0)] {
            let mut bucket = Bucket::new(Limit { per_second: limit.0, burst: limit.1 });
            for _ in 0..9 {
                bucket.charge(u64::MAX, u64::MAX / 2);
                bucket.wait_ns(u64::MAX);
            }
        }
    }

    #[test]
    fn the_timer_rings_when_the_next_operation_may_go() {
        let limit = Limit { per_second: 1000, burst: 0 };
        let limits = Limits { bytes: None, operations: Some(limit) };
        let mut limiter = Limiter::new(limits).expect("a timer");
        assert!(limiter.may_go_on());
        limiter.charge(1 << 30);
        assert!(!limiter.may_go_on());
        let (timer, _) = limiter.timer.as_ref().expect("a timer");
        let mut ready = [rustix::event::PollFd::new(timer, rustix::event::PollFlags::IN)];
        assert_eq!(rustix::event::poll(&mut ready, None), Ok(1));
        assert!(limiter.may_go_on());
    }
}

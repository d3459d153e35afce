//! How fast the HSM is, and so how many DEKs go to it as one job if they come at the same
//! time. With one that takes microseconds most of a job is to wake the worker, and the
//! caller again; with one that takes milliseconds each job should have a session of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a DEK has taken of late; not known at first.
#[derive(Debug, Default)]
pub(super) struct Pace(AtomicU64);

impl Pace {
    /// So many DEKs took so long.
    pub(super) fn note(&self, took: Duration, deks: usize) {
        let Some(sample) = took.as_nanos().checked_div(deks as u128) else { return };
        let sample = u64::try_from(sample).unwrap_or(u64::MAX).clamp(1, SLOWEST);
        // Others who note at the same time may be lost.
        let known = self.0.load(Ordering::Relaxed);
        let next = if known == 0 { sample } else { (known * 7 + sample) / 8 };
        self.0.store(next, Ordering::Relaxed);
    }

    /// How many go together at most, from 1.
    pub(super) fn together(&self) -> usize {
        match self.0.load(Ordering::Relaxed) {
            0 => 1,
            known => usize::try_from(BUDGET / known).unwrap_or(1).clamp(1, MOST),
        }
    }
}

/// How long a job of them should take, in nanoseconds: what waking two threads takes, a few
/// times over.
const BUDGET: u64 = 200_000;
/// As many as a batch sends as one job.
const MOST: usize = 64;
/// So that one call that hung is soon forgotten, in nanoseconds.
const SLOWEST: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_hsm_gets_many_together_and_a_slow_one_each_alone() {
        for (micros, together) in [(1, 64), (11, 18), (40, 5), (150, 1), (3_000, 1)] {
            let pace = Pace::default();
            assert_eq!(pace.together(), 1, "nothing is known");
            pace.note(Duration::from_micros(micros), 1);
            assert_eq!(pace.together(), together, "{micros}");
            pace.note(Duration::from_micros(10 * micros), 10);
            assert_eq!(pace.together(), together, "{micros}");
        }
    }

    #[test]
    fn one_that_becomes_slow_or_fast_is_soon_known_for_it() {
        let pace = Pace::default();
        pace.note(Duration::from_micros(10), 1);
        pace.note(Duration::from_secs(60), 1);
        assert_eq!(pace.together(), 1);
        for _ in 0..50 {
            pace.note(Duration::from_micros(10), 1);
        }
        assert!(pace.together() > 10);
        pace.note(Duration::ZERO, 0);
        assert!(pace.together() > 10);
    }
}

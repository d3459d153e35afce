//! `Timestamp`: a moment by the machine's clock. `RunTime`: how long the daemon
//! has run. `Moment`: both at once. Reading clocks is the business of `clock.rs`.
//!
//! A date (expiration, rotation) is compared with the machine's clock; a span that
//! must have passed (30 s, 1 h, 4 h, 30 d, 90 d) with the run time, which no wrong
//! date shortens (`facts/reliability.md` 3, "Clock").

use std::ops::Add;
use std::time::Duration;

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(i64);

/// Microseconds that the daemon has run, all its runs together. Never goes back.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct RunTime(u64);

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Moment {
    /// By the machine's clock.
    pub time: Timestamp,
    /// By the run time.
    pub run: RunTime,
}

impl Timestamp {
    /// From microseconds since the Unix epoch, UTC.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole seconds since the Unix epoch, UTC.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000))
    }

    /// Microseconds since the Unix epoch, UTC.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since the Unix epoch, and the nanoseconds above them.
    pub fn seconds_and_nanos(self) -> (i64, i32) {
        let nanos = self.0.rem_euclid(1_000_000) * 1_000;
        (self.0.div_euclid(1_000_000), i32::try_from(nanos).unwrap_or(0))
    }

    /// How long from `self` until `later`; zero if that is past.
    pub fn until(self, later: Timestamp) -> Duration {
        let micros = later.0.saturating_sub(self.0).max(0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }
}

impl RunTime {
    /// From microseconds.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// In microseconds.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long from `earlier` until `self`; zero if that is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Moment {
    /// How long the daemon has run from `self` until `now`.
    pub const fn elapsed(self, now: Moment) -> Duration {
        now.run.since(self.run)
    }

    /// How much of `span` after `self` is left at `now`.
    pub fn left_of(self, span: Duration, now: Moment) -> Duration {
        span.saturating_sub(self.elapsed(now))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, span: Duration) -> Timestamp {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Timestamp(self.0.saturating_add(micros))
    }
}

impl Add<Duration> for RunTime {
    type Output = RunTime;

    fn add(self, span: Duration) -> RunTime {
        RunTime(self.0.saturating_add(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    fn add(self, span: Duration) -> Moment {
        Moment { time: self.time + span, run: self.run + span }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A moment at which both clocks say so many seconds.
    pub(crate) const fn at(seconds: i64) -> Moment {
        let run = RunTime::from_micros(seconds.unsigned_abs() * 1_000_000);
        Moment { time: Timestamp::from_seconds(seconds), run }
    }

    #[test]
    fn a_moment_before_the_epoch_splits_into_floor_and_rest() {
        assert_eq!(Timestamp::from_micros(-1).seconds_and_nanos(), (-1, 999_999_000));
        assert_eq!(Timestamp::from_micros(1_500_000).seconds_and_nanos(), (1, 500_000_000));
    }

    #[test]
    fn a_past_moment_is_zero_away() {
        let now = Timestamp::from_seconds(10);
        assert_eq!(now.until(Timestamp::from_seconds(9)), Duration::ZERO);
        assert_eq!(now.until(now + Duration::from_secs(30)), Duration::from_secs(30));
    }

    #[test]
    fn a_span_is_measured_by_the_run_time_whatever_the_date_says() {
        let began = at(100);
        let now = Moment { time: Timestamp::from_seconds(9_999_999), ..at(110) };
        assert_eq!(began.elapsed(now), Duration::from_secs(10));
        assert_eq!(began.left_of(Duration::from_secs(30), now), Duration::from_secs(20));
        assert_eq!(now.elapsed(began), Duration::ZERO);
    }
}

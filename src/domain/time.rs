//! `Timestamp`: a moment by the daemon's clock. Reading the clock is the
//! business of `app.rs` alone.

use std::ops::Add;
use std::time::Duration;

/// Microseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(i64);

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

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, span: Duration) -> Timestamp {
        let micros = i64::try_from(span.as_micros()).unwrap_or(i64::MAX);
        Timestamp(self.0.saturating_add(micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}

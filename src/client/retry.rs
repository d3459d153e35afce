//! `RetryPolicy`: whether a call that failed is made again, and when.
//!
//! Pure: time and randomness are arguments. It decides nothing about a refusal that
//! says no: only a daemon that cannot answer now is asked again.

use std::{error::Error, time::Duration};

use tonic::{Status, TimeoutExpired};

use super::Refusal;

/// How long a call may take with all its attempts, and how long it waits between them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RetryPolicy {
    /// For the whole call: every attempt, and the waiting between them.
    pub deadline: Duration,
    /// Before the second attempt; it doubles with each.
    pub first_pause: Duration,
    /// It doubles up to here.
    pub longest_pause: Duration,
}

impl Default for RetryPolicy {
    /// 10 s for a call; 50 ms to 2 s between attempts.
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(10),
            first_pause: Duration::from_millis(50),
            longest_pause: Duration::from_secs(2),
        }
    }
}

impl RetryPolicy {
    /// How long to wait before a call is made again that was made `attempts` times and
    /// has `left` of its deadline; `None` if it is not made again.
    ///
    /// `random` is 0 to 1: it spreads the callers of a daemon that was away, so that
    /// they do not all come back at once. What RetryInfo says is the least.
    pub fn pause(
        &self,
        failed: &Failed,
        repeat: Repeat,
        (attempts, left): (u32, Duration),
        random: f64,
    ) -> Option<Duration> {
        let row = match failed.outcome() {
            //                      harmless  harmful
            Outcome::Refused => [false, false],
            Outcome::NotDone => [true, true],
            Outcome::Unknown => [true, false],
        };
        let allowed = match repeat {
            Repeat::Harmless => row[0],
            Repeat::Harmful => row[1],
        };
        let pause =
            self.backoff(attempts, random).max(failed.refusal.retry_after.unwrap_or_default());
        (allowed && pause < left).then_some(pause)
    }

    /// Half of it is certain, half is left to chance.
    fn backoff(&self, attempts: u32, random: f64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(16);
        let whole = self.first_pause.saturating_mul(1 << doublings).min(self.longest_pause);
        whole / 2 + (whole / 2).mul_f64(random.clamp(0.0, 1.0))
    }
}

/// Whether a call can be made twice.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Repeat {
    /// It reads; or what it writes twice is as if it were written once; or it carries a
    /// request id, and the daemon answers the second as the first.
    Harmless,
    /// It would do something twice, or be refused because of itself.
    Harmful,
}

/// A call that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// What the daemon said, or the way to it.
    pub refusal: Refusal,
    /// The daemon did not answer: the connection broke, or could not be made.
    pub lost: bool,
}

/// What is known of a call that failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Outcome {
    /// It was refused for good.
    Refused,
    /// Nothing was done; it may be asked for again.
    NotDone,
    /// It may have been done.
    Unknown,
}

impl Failed {
    fn outcome(&self) -> Outcome {
        let reason = self.refusal.reason.as_str();
        if reason == "OVERLOADED" {
            return Outcome::NotDone;
        }
        if self.lost || UNKNOWN.contains(&reason) {
            return Outcome::Unknown;
        }
        // TOO_EARLY and the like: a wait that the deadline allows is waited.
        if self.refusal.retry_after.is_some() { Outcome::NotDone } else { Outcome::Refused }
    }
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self { lost: is_lost(&status), refusal: Refusal::from(status) }
    }
}

/// A status that the daemon sent has no source; one that the transport made has.
fn is_lost(status: &Status) -> bool {
    let Some(mut error) = Error::source(status) else { return false };
    loop {
        if error.is::<TimeoutExpired>() {
            return false;
        }
        match error.source() {
            Some(source) => error = source,
            None => return true,
        }
    }
}

/// After these a write may have been done, or may not.
const UNKNOWN: [&str; 5] = [
    "UNAVAILABLE",
    "HSM_UNAVAILABLE",
    "STORE_UNAVAILABLE",
    "AUDIT_UNAVAILABLE",
    "DEADLINE_EXCEEDED",
];

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, io};

    use super::*;
    use crate::error;

    const LEFT: Duration = Duration::from_secs(10);

    fn failed(reason: &str, retry_after: Option<Duration>) -> Failed {
        let refusal = Refusal {
            reason: reason.into(),
            message: "no".into(),
            status_reason: None,
            metadata: BTreeMap::new(),
            retry_after,
        };
        Failed { refusal, lost: false }
    }

    fn pause(failed: &Failed, repeat: Repeat) -> Option<Duration> {
        RetryPolicy::default().pause(failed, repeat, (1, LEFT), 0.0)
    }

    #[test]
    fn a_key_that_says_no_is_not_asked_again() {
        for reason in
            ["KEY_SUSPENDED", "KEY_DESTROYED", "PERMISSION_DENIED", "CIPHERTEXT_UNVERIFIED"]
        {
            assert_eq!(pause(&failed(reason, None), Repeat::Harmless), None, "{reason}");
        }
    }

    #[test]
    fn a_daemon_that_cannot_answer_now_is_asked_again() {
        for reason in ["UNAVAILABLE", "OVERLOADED", "HSM_UNAVAILABLE", "AUDIT_UNAVAILABLE"] {
            assert!(pause(&failed(reason, None), Repeat::Harmless).is_some(), "{reason}");
        }
    }

    #[test]
    fn the_policy_agrees_with_the_daemons_table() {
        for reason in error::Reason::ALL {
            let wire = reason.wire();
            let retry_after = match wire.retry {
                error::Retry::No => None,
                error::Retry::Later | error::Retry::Yes => Some(Duration::from_millis(1)),
            };
            let again = pause(&failed(wire.name, retry_after), Repeat::Harmless).is_some();
            assert_eq!(again, wire.retry != error::Retry::No, "{}", wire.name);
        }
    }

    #[test]
    fn a_write_that_may_have_been_done_is_not_made_twice() {
        for reason in UNKNOWN {
            assert_eq!(pause(&failed(reason, None), Repeat::Harmful), None, "{reason}");
        }
        let lost = Failed { lost: true, ..failed("UNKNOWN", None) };
        assert_eq!(pause(&lost, Repeat::Harmful), None);
        assert!(pause(&lost, Repeat::Harmless).is_some());
        // A full queue: nothing was done.
        assert!(pause(&failed("OVERLOADED", None), Repeat::Harmful).is_some());
    }

    #[test]
    fn retry_info_is_the_least_that_is_waited() {
        let second = Duration::from_secs(1);
        assert_eq!(pause(&failed("OVERLOADED", Some(second)), Repeat::Harmless), Some(second));
    }

    #[test]
    fn what_the_deadline_does_not_allow_is_not_waited_for() {
        let hour = Duration::from_secs(3600);
        assert_eq!(pause(&failed("ROTATION_TOO_SOON", Some(hour)), Repeat::Harmless), None);
        let policy = RetryPolicy::default();
        let over =
            policy.pause(&failed("UNAVAILABLE", None), Repeat::Harmless, (1, Duration::ZERO), 0.0);
        assert_eq!(over, None);
    }

    #[test]
    fn pauses_double_up_to_a_limit_and_half_of_each_is_chance() {
        let policy = RetryPolicy::default();
        let at = |attempts, random| policy.backoff(attempts, random).as_millis();
        assert_eq!((at(1, 0.0), at(1, 1.0)), (25, 50));
        assert_eq!((at(2, 0.0), at(2, 1.0)), (50, 100));
        assert_eq!((at(40, 0.0), at(40, 1.0)), (1000, 2000));
        assert_eq!(at(1, f64::INFINITY), 50);
    }

    #[test]
    fn what_the_transport_says_is_lost_and_what_the_daemon_says_is_not() {
        let broken = Status::from_error(Box::new(io::Error::other("broken pipe")));
        assert!(Failed::from(broken).lost);
        assert!(!Failed::from(Status::unknown("the daemon's word")).lost);
        // Our own limit: there is no time left in which to ask again.
        assert!(!Failed::from(Status::from_error(Box::new(TimeoutExpired(())))).lost);
    }
}

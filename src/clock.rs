//! The two clocks of the daemon, and what to make of them when they disagree.
//!
//! The run time adds up what a steady clock says while the daemon runs (and while it
//! does not, within one boot of the machine). The machine's clock is believed as far
//! as it does not fall behind what it said before plus the time that has passed
//! since: expiration dates that have come do not go away again. A jump of either kind
//! raises an alarm (`facts/reliability.md` 3, "Clock"). Reading the real clocks is
//! the business of `app.rs`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::domain::{Moment, RunTime, Timestamp};
use crate::store::ClockReading;

/// Where the clocks come from: the machine, or a test.
#[derive(Clone)]
pub struct ClockSource {
    /// Which boot of the machine it is; empty if not known.
    pub boot: String,
    /// Reads both clocks.
    pub read: Arc<dyn Fn() -> RawTime + Send + Sync>,
}

/// What the clocks of the machine say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RawTime {
    /// The date.
    pub time: Timestamp,
    /// Microseconds since the boot, by a clock that nobody can set.
    pub steady: u64,
}

/// The machine's clock was set, or runs wrong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClockJump {
    /// What it says.
    pub said: Timestamp,
    /// What it should say by the time that has passed.
    pub expected: Timestamp,
}

/// The clocks.
pub struct Clock {
    source: ClockSource,
    state: Mutex<State>,
}

struct State {
    run: RunTime,
    last: RawTime,
    /// The least that the date can be, at the last reading: it goes on with the run
    /// time, and never back.
    anchor: Moment,
    /// How far the date was off at the last reading.
    off: Off,
    /// Since when the date is ahead, if it is.
    ahead: Option<RunTime>,
    alarms: Vec<ClockJump>,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Off {
    No,
    Ahead,
    Behind,
}

/// Whether to believe a date that is behind what the daemon has seen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trust {
    /// Not.
    Seen,
    /// Yes: an operator says that the machine's clock is right.
    Machine,
}

impl Clock {
    /// Goes on from what the store has noted.
    pub fn new(source: ClockSource, noted: Option<&ClockReading>, trust: Trust) -> Self {
        let raw = (source.read)();
        let mut run = noted.map_or_else(RunTime::default, |noted| noted.run);
        let same_boot =
            noted.is_some_and(|noted| !noted.boot.is_empty() && noted.boot == source.boot);
        if let Some(noted) = noted.filter(|_| same_boot) {
            run = run + Duration::from_micros(raw.steady.saturating_sub(noted.boot_time));
        }
        let passed = noted.map_or(Duration::ZERO, |noted| run.since(noted.run));
        let least = noted.filter(|_| trust == Trust::Seen).map(|noted| noted.time + passed);
        // In another boot the machine may have been off for any time.
        let believed = match least {
            Some(least) if same_boot || raw.time < least => least,
            Some(_) | None => raw.time,
        };
        let anchor = Moment { time: believed, run };
        let (ahead, alarms) = (None, Vec::new());
        let state = State { run, last: raw, anchor, off: Off::No, ahead, alarms };
        Self { source, state: Mutex::new(state) }
    }

    /// Both clocks now.
    pub fn now(&self) -> Moment {
        let mut state = self.state.lock();
        let raw = (self.source.read)();
        state.advance(raw)
    }

    /// For the store, from time to time: what [`Clock::new`] goes on from.
    pub fn reading(&self) -> ClockReading {
        let mut state = self.state.lock();
        let raw = (self.source.read)();
        state.advance(raw);
        ClockReading {
            run: state.run,
            time: state.expected(),
            boot: self.source.boot.clone(),
            boot_time: state.last.steady,
        }
    }

    /// Whether the date is ahead of what has passed, and has not been for so long that
    /// it is taken as right.
    pub fn is_ahead(&self) -> bool {
        self.state.lock().ahead.is_some()
    }

    /// Jumps since the last call.
    pub fn jumps(&self) -> Vec<ClockJump> {
        std::mem::take(&mut self.state.lock().alarms)
    }
}

impl State {
    fn expected(&self) -> Timestamp {
        self.anchor.time + self.run.since(self.anchor.run)
    }

    fn advance(&mut self, raw: RawTime) -> Moment {
        let passed = raw.steady.saturating_sub(self.last.steady);
        self.run = self.run + Duration::from_micros(passed);
        // A steady clock that goes back is none; it is not followed.
        self.last = RawTime { steady: self.last.steady.max(raw.steady), ..raw };
        let expected = self.expected();
        let off = if raw.time > expected + TOLERANCE {
            Off::Ahead
        } else if raw.time + TOLERANCE < expected {
            Off::Behind
        } else {
            Off::No
        };
        let least = match off {
            // The steady clock drifts, and the date is put right in small steps. Where
            // it is behind it stands still until the machine's clock has caught up.
            Off::No => raw.time.max(self.anchor.time),
            Off::Ahead | Off::Behind => expected,
        };
        if off != Off::No && off != self.off && self.alarms.len() < MOST_ALARMS {
            self.alarms.push(ClockJump { said: raw.time, expected });
        }
        self.off = off;
        self.ahead = (off == Off::Ahead).then(|| self.ahead.unwrap_or(self.run));
        // It has been ahead for long, and nobody has put it right: it was put right then.
        let right = self.ahead.is_some_and(|since| self.run.since(since) >= AHEAD_FOR_LONG);
        let least = if right { raw.time } else { least };
        self.anchor = Moment { time: least, run: self.run };
        Moment { time: raw.time.max(least), run: self.run }
    }
}

/// How far the date may be off before it is a jump.
const TOLERANCE: Duration = Duration::from_secs(60);
/// After this span a date that is ahead is taken as right.
const AHEAD_FOR_LONG: Duration = Duration::from_secs(24 * 60 * 60);
/// Jumps that are kept for the next look.
const MOST_ALARMS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    /// Clocks that a test sets: the date and the steady clock, in seconds.
    fn clocks(boot: &str) -> (ClockSource, Arc<Mutex<(i64, u64)>>) {
        let set = Arc::new(Mutex::new((1_000_000, 500)));
        let said = Arc::clone(&set);
        let read = move || {
            let (time, steady) = *said.lock();
            RawTime { time: Timestamp::from_seconds(time), steady: steady * 1_000_000 }
        };
        (ClockSource { boot: boot.into(), read: Arc::new(read) }, set)
    }

    fn seconds(moment: Moment) -> (i64, u64) {
        (moment.time.as_micros() / 1_000_000, moment.run.as_micros() / 1_000_000)
    }

    #[test]
    fn both_clocks_go_on_together() {
        let (source, set) = clocks("b");
        let clock = Clock::new(source, None, Trust::Seen);
        assert_eq!(seconds(clock.now()), (1_000_000, 0));
        *set.lock() = (1_000_010, 510);
        assert_eq!(seconds(clock.now()), (1_000_010, 10));
        assert!(clock.jumps().is_empty());
    }

    #[test]
    fn a_date_that_goes_ahead_is_believed_and_alarms_and_the_run_time_is_not_moved() {
        let (source, set) = clocks("b");
        let clock = Clock::new(source, None, Trust::Seen);
        *set.lock() = (40_000_000, 501);
        assert_eq!(seconds(clock.now()), (40_000_000, 1));
        clock.now();
        assert_eq!(clock.jumps().len(), 1);
        // Put right again: nothing is left of it.
        *set.lock() = (1_000_002, 502);
        assert_eq!(seconds(clock.now()), (1_000_002, 2));
        assert!(clock.jumps().is_empty());
    }

    #[test]
    fn a_date_that_stays_ahead_for_a_day_is_taken_as_right() {
        let (source, set) = clocks("b");
        let clock = Clock::new(source, None, Trust::Seen);
        *set.lock() = (5_000_000, 501);
        clock.now();
        *set.lock() = (5_086_399, 501 + 86_399);
        clock.now();
        assert!(clock.is_ahead());
        *set.lock() = (5_086_400, 501 + 86_400);
        clock.now();
        *set.lock() = (5_086_401, 501 + 86_401);
        clock.now();
        assert!(!clock.is_ahead());
        assert_eq!(clock.jumps().len(), 1);
    }

    #[test]
    fn a_date_that_goes_back_is_not_believed_and_alarms() {
        let (source, set) = clocks("b");
        let clock = Clock::new(source, None, Trust::Seen);
        *set.lock() = (5, 510);
        assert_eq!(seconds(clock.now()), (1_000_010, 10));
        let expected = Timestamp::from_seconds(1_000_010);
        assert_eq!(clock.jumps(), [ClockJump { said: Timestamp::from_seconds(5), expected }]);
    }

    #[test]
    fn small_steps_are_followed() {
        let (source, set) = clocks("b");
        let clock = Clock::new(source, None, Trust::Seen);
        for step in 1..100_u32 {
            *set.lock() = (1_000_000 + 40 * i64::from(step), 500 + u64::from(step));
            clock.now();
        }
        assert!(clock.jumps().is_empty());
    }

    #[test]
    fn a_date_that_has_come_does_not_go_away_for_a_small_step_back() {
        let (source, set) = clocks("b");
        let clock = Clock::new(source, None, Trust::Seen);
        *set.lock() = (1_000_100 - 50, 600);
        let said = [clock.now(), clock.now(), clock.now()].map(|now| seconds(now).0);
        assert_eq!(said, [1_000_050; 3]);
        *set.lock() = (1_000_051 - 40, 601);
        assert_eq!(seconds(clock.now()).0, 1_000_050);
        *set.lock() = (1_000_062, 652);
        assert_eq!(seconds(clock.now()).0, 1_000_062);
        assert!(clock.jumps().is_empty());
    }

    #[test]
    fn the_run_time_outlives_a_restart_and_counts_it_within_one_boot() {
        let (source, set) = clocks("one");
        let noted = {
            let clock = Clock::new(source.clone(), None, Trust::Seen);
            *set.lock() = (1_000_100, 600);
            clock.reading()
        };
        *set.lock() = (1_000_150, 650);
        let again = Clock::new(source, Some(&noted), Trust::Seen);
        assert_eq!(seconds(again.now()), (1_000_150, 150));
        let (other, set) = clocks("two");
        *set.lock() = (2_000_000, 7);
        let rebooted = Clock::new(other, Some(&noted), Trust::Seen);
        assert_eq!(seconds(rebooted.now()), (2_000_000, 100));
        assert!(rebooted.jumps().is_empty());
    }

    #[test]
    fn a_machine_that_boots_in_the_past_is_believed_only_if_an_operator_says_so() {
        let (source, set) = clocks("one");
        let noted = Clock::new(source, None, Trust::Seen).reading();
        let (other, other_set) = clocks("two");
        *other_set.lock() = (10, 7);
        let clock = Clock::new(other.clone(), Some(&noted), Trust::Seen);
        assert_eq!(seconds(clock.now()).0, 1_000_000);
        assert_eq!(clock.jumps().len(), 1);
        let told = Clock::new(other, Some(&noted), Trust::Machine);
        assert_eq!(seconds(told.now()).0, 10);
        drop(set);
    }
}

//! Judges a history of a real run: uses of keys, and changes that take a key away or give
//! it back, each with its times as the client saw them. In O(n log n), for all clients
//! and keys at once.
//!
//! A use is stale if it began after a change that takes away was acknowledged, and was
//! answered with success before the next one that gives back was sent. A refusal is wrong
//! the other way round. What overlaps a change may have either answer.

use std::collections::HashMap;
use std::time::Instant;

/// One use of a key, and whether it succeeded.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub key: usize,
    pub began: Instant,
    pub ended: Instant,
    pub ok: bool,
}

/// Which way a change goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// Disabled, deleted, expired, an authorization removed.
    Takes,
    /// Enabled, restored, made, an authorization given.
    Gives,
}

/// One change of a key.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub key: usize,
    pub effect: Effect,
    pub sent: Instant,
    /// When it was acknowledged; `None` if it was not, so that nobody knows.
    pub acknowledged: Option<Instant>,
}

/// What a use should not have been.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    Stale,
    WronglyRefused,
}

/// A time in which every answer is known.
struct Period {
    from: Instant,
    until: Option<Instant>,
}

/// What must not be.
pub fn faults(uses: &[Use], changes: &[Change]) -> Vec<(Use, Fault)> {
    let mut of_key: HashMap<usize, Vec<Change>> = HashMap::new();
    for change in changes {
        of_key.entry(change.key).or_default().push(*change);
    }
    for changes in of_key.values_mut() {
        changes.sort_by_key(|change| change.sent);
    }
    let periods = |effect| -> HashMap<usize, Vec<Period>> {
        of_key.iter().map(|(key, changes)| (*key, periods_of(changes, effect))).collect()
    };
    let (taken, given) = (periods(Effect::Takes), periods(Effect::Gives));
    let fault = |it: &Use| {
        let (periods, fault) =
            if it.ok { (&taken, Fault::Stale) } else { (&given, Fault::WronglyRefused) };
        within(periods.get(&it.key)?, it).then_some((*it, fault))
    };
    uses.iter().filter_map(fault).collect()
}

/// From when a change of that effect is acknowledged until the next of the other is sent.
fn periods_of(changes: &[Change], effect: Effect) -> Vec<Period> {
    let mut periods: Vec<Period> = Vec::new();
    let mut open = false;
    for change in changes {
        match change.acknowledged {
            Some(from) if change.effect == effect && !open => {
                periods.push(Period { from, until: None });
                open = true;
            }
            Some(_) | None if change.effect == effect => {}
            // Acknowledged or not: it may have happened.
            Some(_) | None => {
                if let Some(period) = periods.last_mut().filter(|_| open) {
                    period.until = Some(change.sent);
                }
                open = false;
            }
        }
    }
    periods
}

fn within(periods: &[Period], it: &Use) -> bool {
    let after = periods.partition_point(|period| period.from < it.began);
    let last = after.checked_sub(1).map(|place| &periods[place]);
    last.is_some_and(|period| period.until.is_none_or(|until| it.ended < until))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn the_judge_finds_a_stale_use_and_a_wrong_refusal_and_nothing_else() {
        let start = Instant::now();
        let change = |effect, sent, acknowledged: Option<u64>| Change {
            key: 0,
            effect,
            sent: at(start, sent),
            acknowledged: acknowledged.map(|millis| at(start, millis)),
        };
        let changes = [
            change(Effect::Takes, 8, Some(10)),
            // Deleted too: it is not given back by that.
            change(Effect::Takes, 12, None),
            change(Effect::Gives, 20, Some(22)),
            // Nobody knows whether that happened.
            change(Effect::Takes, 30, None),
            change(Effect::Gives, 34, Some(36)),
            change(Effect::Takes, 40, Some(42)),
        ];
        let one =
            |began, ended, ok| Use { key: 0, began: at(start, began), ended: at(start, ended), ok };
        let fine = [
            one(5, 9, true),
            one(9, 15, true),
            one(15, 23, true),
            one(15, 19, false),
            one(23, 29, true),
            one(29, 31, false),
            one(31, 33, false),
            one(31, 33, true),
            one(39, 41, false),
            one(43, 99, false),
        ];
        assert!(faults(&fine, &changes).is_empty(), "{:?}", faults(&fine, &changes));
        let wrong = [
            (one(11, 19, true), Fault::Stale),
            (one(13, 14, true), Fault::Stale),
            (one(43, 99, true), Fault::Stale),
            (one(23, 29, false), Fault::WronglyRefused),
            (one(37, 39, false), Fault::WronglyRefused),
        ];
        for (wrong, fault) in wrong {
            let found: Vec<_> = faults(&[wrong], &changes).iter().map(|it| it.1).collect();
            assert_eq!(found, [fault], "{wrong:?}");
            assert!(faults(&[Use { key: 1, ..wrong }], &changes).is_empty());
        }
    }

    #[test]
    fn one_stale_use_is_found_among_a_hundred_thousand() {
        let start = Instant::now();
        let (mut uses, mut changes) = (Vec::new(), Vec::new());
        for cycle in 0..10_000 {
            let begin = cycle * 100;
            let change = |effect, sent: u64| Change {
                key: 3,
                effect,
                sent: at(start, sent),
                acknowledged: Some(at(start, sent + 2)),
            };
            changes.push(change(Effect::Takes, begin));
            changes.push(change(Effect::Gives, begin + 50));
            for number in 0..10 {
                let began = at(start, begin + number * 10 + 3);
                let ended = began + Duration::from_millis(2);
                uses.push(Use { key: 3, began, ended, ok: number >= 5 });
            }
        }
        assert!(faults(&uses, &changes).is_empty());
        let stale = &mut uses[70_002];
        assert!(!stale.ok);
        stale.ok = true;
        let found = faults(&uses, &changes);
        assert_eq!((found.len(), found[0].1), (1, Fault::Stale));
    }
}

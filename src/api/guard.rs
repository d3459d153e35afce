//! Before a call is worked on: whether its principal asks too often (RATE_LIMITED),
//! and whether there is room for it (OVERLOADED). Room is shared fairly between the
//! principals that ask, and methods that take access away have room of their own
//! (docs/adr/0014).

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;

use super::Limits;
use crate::domain::PrincipalId;
use crate::error::{Error, Reason};
use crate::service::Method;

/// See the module.
pub(super) struct Guard {
    data: Lane,
    control: Lane,
    tightening: Lane,
}

/// What kind of work a method is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// DEKs: it goes to the HSM, at any rate that services need.
    Data,
    /// All else: it reads and changes what the store holds.
    Control,
    /// It takes access away, and must get through whatever else goes on.
    Tightening,
}

/// Of one class: how often each principal may ask, and how much is under way.
struct Lane {
    rate: Option<Rate>,
    gate: Arc<Gate>,
}

struct Rate {
    most: NonZeroU32,
    limiter: DefaultKeyedRateLimiter<PrincipalId>,
}

struct Gate {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    total: usize,
    by_principal: HashMap<PrincipalId, usize>,
}

/// Room for a call; given back when it is dropped.
pub(super) struct Pass {
    gate: Arc<Gate>,
    principal: PrincipalId,
    weight: usize,
}

/// The class of a method.
pub fn class_of(method: &Method) -> Class {
    if TIGHTENING.contains(&method.name) {
        Class::Tightening
    } else if method.name.starts_with("CryptoService/") {
        Class::Data
    } else {
        Class::Control
    }
}

impl Guard {
    pub(super) fn new(limits: &Limits) -> Self {
        let lane = |rate, calls| Lane { rate: Rate::new(rate), gate: Arc::new(Gate::new(calls)) };
        Self {
            data: lane(limits.data_per_second, limits.calls),
            control: lane(limits.control_per_second, limits.control_calls),
            tightening: lane(limits.tightening_per_second, limits.control_calls),
        }
    }

    /// Lets a call in that is about `deks` DEKs, or about something else if zero.
    ///
    /// # Errors
    /// RATE_LIMITED, OVERLOADED.
    pub(super) fn enter(
        &self,
        method: &Method,
        principal: &PrincipalId,
        deks: usize,
    ) -> Result<Pass, Error> {
        let lane = match class_of(method) {
            Class::Data => &self.data,
            Class::Control => &self.control,
            Class::Tightening => &self.tightening,
        };
        if let Some(rate) = &lane.rate {
            rate.charge(principal, deks.max(1))?;
        }
        let weight = deks.div_ceil(DEKS_OF_ONE_CALL).max(1);
        let overloaded = || Error::new(Reason::Overloaded, "the daemon has its hands full");
        lane.gate.admit(principal, weight).ok_or_else(overloaded)
    }

    /// Forgets principals that have not asked lately.
    pub(super) fn forget_old(&self) {
        for lane in [&self.data, &self.control, &self.tightening] {
            if let Some(rate) = &lane.rate {
                rate.limiter.retain_recent();
                rate.limiter.shrink_to_fit();
            }
        }
    }
}

impl Rate {
    /// So many a second, and as many at once; zero is no limit.
    fn new(per_second: u32) -> Option<Self> {
        let most = NonZeroU32::new(per_second)?;
        Some(Self { most, limiter: RateLimiter::keyed(Quota::per_second(most)) })
    }

    fn charge(&self, principal: &PrincipalId, cost: usize) -> Result<(), Error> {
        // What costs more than there ever is takes all there is.
        let cost = u32::try_from(cost).ok().and_then(NonZeroU32::new).unwrap_or(self.most);
        let wait = match self.limiter.check_key_n(principal, cost.min(self.most)) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(not_yet)) => not_yet.wait_time_from(DefaultClock::default().now()),
            Err(_beyond) => Duration::from_secs(1),
        };
        let message = format!("more than {} a second of this kind", self.most);
        Err(Error::rate_limited(message, wait.max(SHORTEST_WAIT)).about(principal.as_str()))
    }
}

impl Gate {
    fn new(limit: usize) -> Self {
        Self { limit, held: Mutex::default() }
    }

    /// Room, while there is some; and when there is none, still to whoever holds
    /// less than an equal share. So no more than twice the limit is under way.
    fn admit(self: &Arc<Self>, principal: &PrincipalId, weight: usize) -> Option<Pass> {
        let mut held = self.held.lock();
        let mine = held.by_principal.get(principal).copied().unwrap_or(0);
        let active = held.by_principal.len() + usize::from(mine == 0);
        let share = (self.limit / active).max(1);
        let weight = weight.min(share);
        if held.total + weight > self.limit && mine + weight > share {
            return None;
        }
        held.total += weight;
        *held.by_principal.entry(principal.clone()).or_default() += weight;
        drop(held);
        Some(Pass { gate: Arc::clone(self), principal: principal.clone(), weight })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Self { gate, principal, weight } = self;
        let mut held = gate.held.lock();
        held.total -= *weight;
        if let Some(mine) = held.by_principal.get_mut(principal) {
            *mine -= *weight;
            if *mine == 0 {
                held.by_principal.remove(principal);
            }
        }
    }
}

/// Methods that take access away. None needs the HSM to answer.
const TIGHTENING: [&str; 5] = [
    "KeyService/DisableKey",
    "KeyService/DeleteKey",
    "InstanceService/DeleteInstance",
    "AccessService/DeleteBinding",
    "AccessService/DeleteServiceAuthorization",
];
/// DEKs that go to the HSM as one job.
const DEKS_OF_ONE_CALL: usize = 64;
/// What RetryInfo says at least.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::methods;

    fn principal(name: &str) -> PrincipalId {
        format!("spiffe://td/{name}").parse().unwrap()
    }

    #[test]
    fn every_name_that_tightens_is_a_method() {
        for name in TIGHTENING {
            assert!(methods::ALL.iter().any(|method| method.name == name), "{name}");
        }
        assert_eq!(class_of(&methods::UNWRAP_DEK), Class::Data);
        assert_eq!(class_of(&methods::DISABLE_KEY), Class::Tightening);
        assert_eq!(class_of(&methods::ENABLE_KEY), Class::Control);
    }

    #[test]
    fn one_alone_may_hold_all_and_a_second_gets_its_share_at_once() {
        let gate = Arc::new(Gate::new(8));
        let (noisy, quiet) = (principal("noisy"), principal("quiet"));
        let mut held: Vec<_> = (0..8).map(|_| gate.admit(&noisy, 1).unwrap()).collect();
        assert!(gate.admit(&noisy, 1).is_none());
        let mine: Vec<_> = (0..4).map(|_| gate.admit(&quiet, 1).unwrap()).collect();
        assert!(gate.admit(&quiet, 1).is_none());
        // What the noisy one gives back it does not get again, above its share.
        held.truncate(5);
        assert!(gate.admit(&noisy, 1).is_none());
        drop(mine);
        assert!(gate.admit(&noisy, 1).is_some());
    }

    #[test]
    fn all_is_given_back_and_whoever_holds_nothing_is_forgotten() {
        let gate = Arc::new(Gate::new(4));
        let held: Vec<_> = ["a", "b", "c"]
            .map(|name| gate.admit(&principal(name), 100).unwrap())
            .into_iter()
            .collect();
        drop(held);
        let state = gate.held.lock();
        assert_eq!((state.total, state.by_principal.len()), (0, 0));
    }

    #[test]
    fn a_rate_counts_deks_and_principals_apart() {
        let rate = Rate::new(100).unwrap();
        rate.charge(&principal("a"), 60).unwrap();
        let refused = rate.charge(&principal("a"), 60).unwrap_err();
        assert_eq!(refused.reason, Reason::RateLimited);
        assert!(refused.retry_after.is_some());
        rate.charge(&principal("b"), 1000).unwrap();
        assert!(rate.charge(&principal("b"), 1).is_err());
        assert!(Rate::new(0).is_none());
    }
}

//! Before a call is worked on: whether its principal asks too often (RATE_LIMITED),
//! and whether there is room for it. Where there is none it waits, at most until its
//! deadline (OVERLOADED), and for so many places to wait there is a bound, too. Room and
//! places are shared fairly between the principals that ask, and methods that take access
//! away have some of their own (docs/adr/0014).

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use parking_lot::Mutex;
use tokio::sync::oneshot;

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
    places: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Held,
    waiting: Waiting,
}

/// Room, or places to wait in, by who has it.
#[derive(Default)]
struct Held {
    total: usize,
    by_principal: HashMap<PrincipalId, usize>,
}

/// Those who wait, in their order; the principals are asked in turn.
#[derive(Default)]
struct Waiting {
    places: Held,
    turns: VecDeque<PrincipalId>,
    queues: HashMap<PrincipalId, VecDeque<Waiter>>,
}

struct Waiter {
    weight: usize,
    tell: oneshot::Sender<Pass>,
}

/// Room for a call; given back when it is dropped.
pub(super) struct Pass {
    gate: Arc<Gate>,
    principal: PrincipalId,
    weight: usize,
}

/// A call was let in, or has a place to wait for that.
pub(super) enum Entry {
    Now(Pass),
    Later(Place),
}

/// A place to wait in.
pub(super) struct Place(oneshot::Receiver<Pass>);

impl Place {
    /// Waits for room.
    ///
    /// # Errors
    /// OVERLOADED, if there is none before the deadline.
    pub(super) async fn room(self, deadline: Instant) -> Result<Pass, Error> {
        match tokio::time::timeout_at(deadline.into(), self.0).await {
            Ok(Ok(pass)) => Ok(pass),
            Ok(Err(_gone)) => Err(overloaded()),
            Err(elapsed) => Err(overloaded().caused_by(elapsed)),
        }
    }
}

fn overloaded() -> Error {
    Error::new(Reason::Overloaded, "the daemon has its hands full")
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
        let lane = |rate, calls| {
            let gate = Arc::new(Gate::new(calls, limits.waiting));
            Lane { rate: Rate::new(rate), gate }
        };
        Self {
            data: lane(limits.data_per_second, limits.calls),
            control: lane(limits.control_per_second, limits.control_calls),
            tightening: lane(limits.tightening_per_second, limits.control_calls),
        }
    }

    /// Lets a call in that is about `deks` DEKs, or about something else if zero; or gives
    /// it a place to wait in.
    ///
    /// # Errors
    /// RATE_LIMITED; OVERLOADED, if there is no such place.
    pub(super) fn enter(
        &self,
        method: &Method,
        principal: &PrincipalId,
        deks: usize,
    ) -> Result<Entry, Error> {
        let lane = match class_of(method) {
            Class::Data => &self.data,
            Class::Control => &self.control,
            Class::Tightening => &self.tightening,
        };
        if let Some(rate) = &lane.rate {
            rate.charge(principal, deks.max(1))?;
        }
        let weight = deks.div_ceil(DEKS_OF_ONE_CALL).max(1);
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
    fn new(limit: usize, places: usize) -> Self {
        Self { limit, places, state: Mutex::default() }
    }

    /// Room; where there is none, or others of the same principal wait for some, a place
    /// to wait in; `None` if there is no such place.
    fn admit(self: &Arc<Self>, principal: &PrincipalId, weight: usize) -> Option<Entry> {
        let State { held, waiting } = &mut *self.state.lock();
        if !waiting.queues.contains_key(principal)
            && let Some(weight) = held.take(self.limit, principal, weight)
        {
            return Some(Entry::Now(self.pass(principal, weight)));
        }
        waiting.places.take(self.places, principal, 1)?;
        let (tell, told) = oneshot::channel();
        let queue = waiting.queues.entry(principal.clone()).or_insert_with(|| {
            waiting.turns.push_back(principal.clone());
            VecDeque::new()
        });
        queue.push_back(Waiter { weight, tell });
        Some(Entry::Later(Place(told)))
    }

    fn pass(self: &Arc<Self>, principal: &PrincipalId, weight: usize) -> Pass {
        Pass { gate: Arc::clone(self), principal: principal.clone(), weight }
    }

    /// Takes back what a call held, and lets in whoever waits and now has room.
    fn leave(self: &Arc<Self>, principal: &PrincipalId, weight: usize) {
        let mut let_in = Vec::new();
        let mut state = self.state.lock();
        let State { held, waiting } = &mut *state;
        held.give_back(principal, weight);
        let mut refused = 0;
        while refused < waiting.turns.len() {
            let Some(principal) = waiting.turns.pop_front() else { break };
            match waiting.next(&principal, |weight| held.take(self.limit, &principal, weight)) {
                Some((tell, weight)) => {
                    let_in.push((tell, self.pass(&principal, weight)));
                    refused = 0;
                }
                None => refused += 1,
            }
            if waiting.queues.contains_key(&principal) {
                waiting.turns.push_back(principal);
            }
        }
        // Whoever does not wait any more drops the pass, which comes here again.
        drop(state);
        for (tell, pass) in let_in {
            drop(tell.send(pass));
        }
    }
}

impl Held {
    /// Takes some while there is some; and when there is none, still for whoever holds
    /// less than an equal share. So no more than twice the limit is held. How much was
    /// taken: at most that share.
    fn take(&mut self, limit: usize, principal: &PrincipalId, weight: usize) -> Option<usize> {
        let mine = self.by_principal.get(principal).copied().unwrap_or(0);
        let active = self.by_principal.len() + usize::from(mine == 0);
        let share = (limit / active).max(usize::from(limit > 0));
        let weight = weight.min(share);
        if weight == 0 || self.total + weight > limit && mine + weight > share {
            return None;
        }
        self.total += weight;
        match self.by_principal.get_mut(principal) {
            Some(mine) => *mine += weight,
            None => drop(self.by_principal.insert(principal.clone(), weight)),
        }
        Some(weight)
    }

    fn give_back(&mut self, principal: &PrincipalId, weight: usize) {
        self.total -= weight;
        if let Some(mine) = self.by_principal.get_mut(principal) {
            *mine -= weight;
            if *mine == 0 {
                self.by_principal.remove(principal);
            }
        }
    }
}

impl Waiting {
    /// The first of this principal's that still waits, if `take` has room for it.
    fn next(
        &mut self,
        principal: &PrincipalId,
        mut take: impl FnMut(usize) -> Option<usize>,
    ) -> Option<(oneshot::Sender<Pass>, usize)> {
        let queue = self.queues.get_mut(principal)?;
        let mut found = None;
        while let Some(waiter) = queue.pop_front() {
            if waiter.tell.is_closed() {
                self.places.give_back(principal, 1);
                continue;
            }
            match take(waiter.weight) {
                Some(weight) => {
                    self.places.give_back(principal, 1);
                    found = Some((waiter.tell, weight));
                }
                None => queue.push_front(waiter),
            }
            break;
        }
        if queue.is_empty() {
            self.queues.remove(principal);
        }
        found
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(&self.principal, self.weight);
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

    fn now(entry: Option<Entry>) -> Option<Pass> {
        match entry? {
            Entry::Now(pass) => Some(pass),
            Entry::Later(_) => None,
        }
    }

    fn place(entry: Option<Entry>) -> Option<Place> {
        match entry? {
            Entry::Now(_) => None,
            Entry::Later(place) => Some(place),
        }
    }

    #[test]
    fn one_alone_may_hold_all_and_a_second_gets_its_share_at_once() {
        let gate = Arc::new(Gate::new(8, 0));
        let (noisy, quiet) = (principal("noisy"), principal("quiet"));
        let mut held: Vec<_> = (0..8).map(|_| now(gate.admit(&noisy, 1)).unwrap()).collect();
        assert!(gate.admit(&noisy, 1).is_none());
        let mine: Vec<_> = (0..4).map(|_| now(gate.admit(&quiet, 1)).unwrap()).collect();
        assert!(gate.admit(&quiet, 1).is_none());
        // What the noisy one gives back it does not get again, above its share.
        held.truncate(5);
        assert!(gate.admit(&noisy, 1).is_none());
        drop(mine);
        assert!(now(gate.admit(&noisy, 1)).is_some());
    }

    #[test]
    fn who_waits_is_let_in_by_who_leaves_principal_by_principal() {
        let gate = Arc::new(Gate::new(4, 8));
        let (noisy, quiet) = (principal("noisy"), principal("quiet"));
        let mut held: Vec<_> = (0..4).map(|_| now(gate.admit(&noisy, 1)).unwrap()).collect();
        let mut noise: Vec<_> = (0..4).map(|_| place(gate.admit(&noisy, 1)).unwrap()).collect();
        let mut mine: Vec<_> = (0..2).map(|_| now(gate.admit(&quiet, 1)).unwrap()).collect();
        let mut wait: Vec<_> = (0..2).map(|_| place(gate.admit(&quiet, 1)).unwrap()).collect();
        // Four of the one and two of the other: there is no room before three have left.
        drop(held.pop());
        assert!(noise[0].0.try_recv().is_err());
        mine.pop();
        // Of the quiet one again, which has less than its share.
        mine.push(wait[0].0.try_recv().unwrap());
        drop(held.drain(..2).collect::<Vec<_>>());
        held.push(noise[0].0.try_recv().unwrap());
        assert!(noise[1].0.try_recv().is_err() && wait[1].0.try_recv().is_err());
        drop((mine, held));
        assert!(noise[1].0.try_recv().is_ok() && wait[1].0.try_recv().is_ok());
    }

    #[test]
    fn places_to_wait_in_have_a_bound_and_one_that_is_given_up_is_free() {
        let gate = Arc::new(Gate::new(1, 2));
        let (noisy, quiet) = (principal("noisy"), principal("quiet"));
        let held = now(gate.admit(&noisy, 1)).unwrap();
        let first = place(gate.admit(&noisy, 1)).unwrap();
        let mut second = place(gate.admit(&noisy, 1)).unwrap();
        assert!(gate.admit(&noisy, 1).is_none());
        let mine = now(gate.admit(&quiet, 1)).unwrap();
        let mut wait = place(gate.admit(&quiet, 1)).unwrap();
        assert!(gate.admit(&quiet, 1).is_none());
        drop((first, held));
        let second = second.0.try_recv().unwrap();
        drop((second, mine));
        drop(wait.0.try_recv().unwrap());
        let state = gate.state.lock();
        assert_eq!((state.held.total, state.waiting.places.total), (0, 0));
        assert!(state.waiting.queues.is_empty() && state.waiting.turns.is_empty());
    }

    #[tokio::test]
    async fn who_waits_until_the_deadline_is_refused() {
        let gate = Arc::new(Gate::new(1, 1));
        let held = now(gate.admit(&principal("a"), 1)).unwrap();
        let wait = place(gate.admit(&principal("a"), 1)).unwrap();
        let refused = wait.room(Instant::now()).await.map(drop).unwrap_err();
        assert_eq!(refused.reason, Reason::Overloaded);
        drop(held);
        assert!(now(gate.admit(&principal("a"), 1)).is_some());
    }

    #[test]
    fn all_is_given_back_and_whoever_holds_nothing_is_forgotten() {
        let gate = Arc::new(Gate::new(4, 0));
        let held: Vec<_> = ["a", "b", "c"]
            .map(|name| now(gate.admit(&principal(name), 100)).unwrap())
            .into_iter()
            .collect();
        drop(held);
        let state = gate.state.lock();
        assert_eq!((state.held.total, state.held.by_principal.len()), (0, 0));
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

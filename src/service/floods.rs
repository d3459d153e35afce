//! Records of calls that were refused because there were too many. One record a
//! call would let a flood fill the log, so they are counted: one record a second
//! for each principal, method and reason, with the count. Refusals of authorization
//! are not of this kind; each has its own record.

use std::collections::HashMap;
use std::time::Instant;

use parking_lot::Mutex;

use super::{Caller, Method, Service, refused};
use crate::domain::{Event, PrincipalId};
use crate::error::{Error, Reason};

/// What was refused and is not recorded yet.
#[derive(Default)]
pub(super) struct Floods(Mutex<HashMap<Flood, Event>>);

#[derive(Clone, Eq, Hash, PartialEq)]
struct Flood {
    /// `None` for all beyond [`MOST_FLOODS`].
    principal: Option<PrincipalId>,
    action: &'static str,
    reason: Reason,
}

impl Service {
    /// Counts a call that was refused because there were too many.
    pub fn count_refused(&self, caller: &Caller, method: &'static Method, error: &Error) {
        let event = self.event(caller, method.action, ("", refused(error)));
        self.count_call(caller, method.action, &event);
        let mut floods = self.floods.0.lock();
        let principal = caller.principal.clone().filter(|_| floods.len() < MOST_FLOODS);
        let flood = Flood { principal, action: method.action, reason: error.reason };
        add(&mut floods, flood, event, 1);
    }

    /// Records what was counted since the last time.
    pub async fn record_refused(&self) {
        let floods = std::mem::take(&mut *self.floods.0.lock());
        let events: Vec<_> = floods.values().cloned().collect();
        if events.is_empty() {
            return;
        }
        if let Err(error) = self.append(events, Instant::now()).await {
            tracing::error!(%error, "refusals wait for the audit log");
            let mut kept = self.floods.0.lock();
            for (flood, event) in floods {
                let count = count_in(&event);
                add(&mut kept, flood, event, count);
            }
        }
    }
}

fn add(floods: &mut HashMap<Flood, Event>, flood: Flood, event: Event, more: u64) {
    let event = floods.entry(flood).or_insert(Event { details: Vec::new(), ..event });
    let count = count_in(event) + more;
    event.details = vec![(COUNT.into(), count.to_string())];
}

fn count_in(event: &Event) -> u64 {
    let count = event.details.iter().find(|(name, _)| name == COUNT);
    count.and_then(|(_, count)| count.parse().ok()).unwrap_or(0)
}

/// Detail that says how many calls a record stands for.
const COUNT: &str = "count";
/// Kept apart; more are counted together, as nobody's.
const MOST_FLOODS: usize = 4096;

//! Events of keys for the services that have resources registered: watched, and
//! acknowledged.
//!
//! An event is committed together with the change that it tells of, with a delivery
//! for each service; what a service is sent is read from there, so nothing is lost
//! over a reconnect or a restart. Rules: `facts/key-protect.md` section 6.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream;
use tokio::sync::watch;

use super::registrations::service_of;
use super::{Answer, Asked, Call, Caller, Method, Service, daemon_event, details, within};
use crate::domain::key_event::{ACKNOWLEDGE_WITHIN, EVENTS_KEPT};
use crate::domain::{InstanceId, Key, KeyEvent, KeyName, Malformed, Moment, Outcome, RunTime};
use crate::error::{Error, Reason};
use crate::store::{Acknowledgement, Change};

/// What a service says of an event.
#[derive(Clone, Debug)]
pub struct EventAnswer {
    /// The key.
    pub key: KeyName,
    /// The event.
    pub event: u64,
    /// Why the service could not do what it asks; empty if it did.
    pub failure: String,
}

/// Where a watcher is.
struct Watcher {
    service: Arc<Service>,
    caller: Arc<Caller>,
    method: &'static Method,
    name: String,
    instance: InstanceId,
    after: u64,
    read: VecDeque<KeyEvent>,
    changed: watch::Receiver<u64>,
    stopped: watch::Receiver<bool>,
}

impl Service {
    /// Streams events to the service that calls, from the resume token on.
    ///
    /// # Errors
    /// SERVICE_ONLY; FIELD_INVALID for a token that is none of ours.
    pub async fn watch_key_events(
        self: &Arc<Self>,
        call: &Call,
        instance: InstanceId,
        resume_token: &str,
        stopped: watch::Receiver<bool>,
    ) -> Result<Answer<impl Stream<Item = Result<KeyEvent, Error>> + Send + 'static>, Error> {
        let name = service_of(call)?;
        let after = match resume_token {
            "" => self.store.first_key_event(&name, &instance).await?,
            token => token.parse().map_err(|_other| BAD_TOKEN)?,
        };
        let about = format!("instances/{instance}");
        let watcher = Watcher {
            service: Arc::clone(self),
            caller: Arc::clone(&call.caller),
            method: call.method,
            name,
            instance,
            after,
            read: VecDeque::new(),
            changed: self.key_events.subscribe(),
            stopped,
        };
        Ok(Answer::about(stream::unfold(Some(watcher), step), about))
    }

    /// Notes that a service has done what an event asks, or why not. Whether every
    /// service has.
    ///
    /// # Errors
    /// SERVICE_ONLY, EVENT_NOT_FOUND, FIELD_INVALID, or of the store.
    pub async fn acknowledge_key_event(
        self: &Arc<Self>,
        call: &Call,
        answer: EventAnswer,
    ) -> Result<Answer<bool>, Error> {
        let EventAnswer { key: key_name, event: id, failure } = answer;
        let service_name = service_of(call)?;
        if failure.chars().count() > 240 || failure.chars().any(char::is_control) {
            let problem = "must be at most 240 characters, without control characters";
            return Err(Malformed::new("failure", problem).into());
        }
        // A key that was purged meanwhile has no events any more.
        let key = self.registry.find(&key_name)?.key();
        let not_found = || {
            let message = format!("the event {id} of this key does not concern the service");
            Error::new(Reason::EventNotFound, message).about(key.name())
        };
        let found = self.store.find_key_event(&service_name, id).await?;
        let (event, open) = found.filter(|(it, _)| it.event.key == key.id).ok_or_else(not_found)?;
        if event.acknowledged {
            return Ok(Answer::about(open == 0, key.name()));
        }
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let mut record =
                service.event(&call.caller, call.method.action, (&key.name(), Outcome::Success));
            record.details = acknowledged_details(&key, &event, &service_name);
            record.details.push(details::date("event_ack_time_stamp", record.time));
            if !failure.is_empty() {
                record.details.push(("reason_code".into(), "409".into()));
                record.details.push(("reason_for_failure".into(), failure.clone()));
            }
            let acknowledgement = Some(Acknowledgement {
                service: service_name,
                event: id,
                time: service.now().time,
                failure: Some(failure).filter(|text| !text.is_empty()),
            });
            let events = vec![record.clone()];
            service.store.commit(Change { acknowledgement, events, ..Change::default() }).await?;
            service.publish(vec![record]).await;
            Ok(Answer::recorded(open <= 1))
        })
        .await
    }

    /// Tells the services of a key once more what it is; how many there are.
    ///
    /// # Errors
    /// TOO_EARLY, KEY_NOT_FOUND, or of the store.
    pub async fn sync_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
    ) -> Result<Answer<u32>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.registry.find(&name)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let decide = |key: &Key, now| Ok(key.synced(now)?);
            service.replace(&call, &slot, "", super::keys::Effect::Loosen, decide).await?;
            Ok(Answer::recorded(service.store.services_of(slot.key().id).await?))
        })
        .await
    }

    /// Wakes those who watch. What they are told is in the store already.
    pub(super) fn wake_watchers(&self) {
        self.key_events.send_modify(|count| *count += 1);
    }

    /// Records which services are late with an acknowledgement.
    pub(super) async fn look_after_events(&self, now: Moment) -> Result<(), Error> {
        let Some(before) = before(now, ACKNOWLEDGE_WITHIN) else { return Ok(()) };
        let late = self.store.overdue_key_events(before, MOST_AT_ONCE).await?;
        if late.is_empty() {
            return Ok(());
        }
        let records = late.iter().map(|(service, event)| {
            let name = format!("instances/{}/keys/{}", event.event.instance, event.event.key);
            let mut record = daemon_event("kms.secrets-event.ack", now, &name);
            record.outcome = Outcome::Refused("ACKNOWLEDGEMENT_OVERDUE".into());
            record.details = vec![
                ("service".into(), service.clone()),
                ("event_id".into(), event.id.to_string()),
                ("event_type".into(), event.event.kind.name().into()),
                ("reason_code".into(), "408".into()),
                ("reason_for_failure".into(), "not acknowledged within 4 hours".into()),
            ];
            record
        });
        let events: Vec<_> = records.collect();
        let overdue = late.into_iter().map(|(service, event)| (service, event.id)).collect();
        let change = Change { overdue, events: events.clone(), ..Change::default() };
        self.store.commit(change).await?;
        self.publish(events).await;
        Ok(())
    }
}

/// The next event for a watcher; the end when the daemon stops, or after a refusal.
async fn step(watcher: Option<Watcher>) -> Option<(Result<KeyEvent, Error>, Option<Watcher>)> {
    let mut watcher = watcher?;
    loop {
        if let Some(event) = watcher.read.pop_front() {
            watcher.after = event.id;
            return Some((Ok(event), Some(watcher)));
        }
        watcher.changed.mark_unchanged();
        match watcher.look().await {
            Ok((_, None)) => {}
            Ok((found, Some(read))) => {
                watcher.read = found.into();
                if watcher.read.is_empty() {
                    watcher.after = read;
                }
                continue;
            }
            Err(error) => return Some((Err(error), None)),
        }
        let Watcher { changed, stopped, .. } = &mut watcher;
        tokio::select! {
            // Err: the service is gone.
            woken = changed.changed() => woken.ok()?,
            _ = stopped.wait_for(|stopped| *stopped) => return None,
            // Whether it may still watch is looked at again.
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

impl Watcher {
    /// What comes next that the service may see, and how far that was read; if it may
    /// still watch.
    async fn look(&self) -> Result<(Vec<KeyEvent>, Option<u64>), Error> {
        let Self { service, caller, method, name, instance, after, .. } = self;
        let call = service.enter(caller, method, Ok(Asked::Within(instance)))?;
        let sight = service.sight(&call, instance);
        let mut found = service.store.list_key_events(name, instance, *after, PAGE).await?;
        let read = found.last().map(|event| event.id);
        found.retain(|event| service.shows_key(&sight, event.event.key));
        Ok((found, read))
    }
}

fn acknowledged_details(key: &Key, event: &KeyEvent, service: &str) -> Vec<(String, String)> {
    let version = |id| key.version_name(id);
    let mut found = vec![
        ("service".into(), service.to_owned()),
        ("event_id".into(), event.id.to_string()),
        ("event_type".into(), event.event.kind.name().into()),
        ("key_state".into(), event.event.state.name().into()),
        ("new_key_version".into(), version(event.event.version)),
    ];
    if let Some(previous) = event.event.previous {
        found.push(("old_key_version".into(), version(previous)));
    }
    let dated = [("new", Some(event.event.version)), ("old", event.event.previous)];
    for (which, id) in dated {
        if let Some(version) = id.and_then(|id| key.version(id)) {
            let name = format!("{which}_key_version_creation_date");
            found.push(details::date(&name, version.created));
        }
    }
    found
}

/// A span ago; `None` if the daemon has not run so long.
fn before(now: Moment, span: Duration) -> Option<RunTime> {
    let span = u64::try_from(span.as_micros()).ok()?;
    now.run.as_micros().checked_sub(span).map(RunTime::from_micros)
}

/// Before when acknowledged events are forgotten, if the daemon has run so long.
pub(super) fn forgotten_before(now: Moment) -> Option<RunTime> {
    before(now, EVENTS_KEPT)
}

const BAD_TOKEN: Malformed = Malformed::new("resume_token", "is not of an event");
/// Events read at once for a watcher.
const PAGE: usize = 200;
/// Deliveries looked at in one tick.
const MOST_AT_ONCE: usize = 100;
/// How often a quiet watcher's permission is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

//! Purge: the material of a deleted key is destroyed in the HSM, for good.
//!
//! The intents come first, together with the mark that nothing can bring the key back;
//! then the objects go, and each is seen to be gone in a new session; then the row
//! goes and a tombstone stays. After a crash, or when the HSM was away, the scheduler
//! goes on where it ended: every step can be done again.

use std::sync::Arc;

use super::keys::Effect;
use super::registry::Slot;
use super::{Answer, Call, Service, daemon_event, details, within};
use crate::domain::event::DAEMON;
use crate::domain::{Area, Event, Key, KeyName, Moment, ObjectId, Scope, Timestamp};
use crate::error::{Error, Reason};
use crate::store::{Change, Intent, IntentStage, Tombstone};

/// Who has a key purged.
pub(super) enum Purger<'a> {
    /// A caller.
    Call(&'a Call),
    /// Nobody: it was deleted 90 days ago, or its purge was begun.
    Time,
}

impl Service {
    /// Destroys the material of a DESTROYED key; when it was seen to be gone.
    ///
    /// # Errors
    /// KEY_NOT_DESTROYED, TOO_EARLY, or of HSM and store. If the HSM fails in the
    /// middle the key is gone for everybody, and the purge is finished later.
    pub async fn purge_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
    ) -> Result<Answer<Timestamp>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.registry.find_even_purging(&name)?;
            let changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let purged = service.purge(&slot, Purger::Call(&call)).await;
            drop(changing);
            purged.map(Answer::recorded)
        })
        .await
    }

    /// Purges the key in `slot`, whose lock the caller holds.
    pub(super) async fn purge(&self, slot: &Slot, by: Purger<'_>) -> Result<Timestamp, Error> {
        let key = slot.key();
        let name = key.name();
        if self.registry.by_id(key.id).is_none() {
            return Err(Error::new(Reason::KeyNotFound, format!("there is no key {name}")));
        }
        let key = if key.history.purging.is_some() { key } else { self.begin_purge(slot).await? };
        failpoint!("purge.begun");
        self.retire_wrapped(&key);
        let objects: Vec<ObjectId> = objects_in_token(&key).collect();
        for object in &objects {
            self.wipe(*object).await.map_err(|error| error.about(name.clone()))?;
            failpoint!("purge.wiped");
        }
        let now = self.now();
        let event = by.event(self, &key, now);
        let purged_by = match by {
            Purger::Call(call) => call.principal.as_str().to_owned(),
            Purger::Time => DAEMON.to_owned(),
        };
        let change = Change {
            end: objects.clone(),
            purge: Some(Tombstone { key: Arc::clone(&key), purged: now.time, purged_by }),
            events: vec![event.clone()],
            ..Change::default()
        };
        self.store.commit(change).await?;
        failpoint!("purge.committed");
        self.findings.note_purged(&key);
        self.registry.remove(&key);
        // Those on it went with it.
        let scope = Scope { instance: key.instance.clone(), area: Area::Key(key.id) };
        self.rebind(|all| all.retain(|binding| binding.scope != scope));
        for object in objects {
            self.intents.end(object);
        }
        failpoint!("purge.removed");
        self.publish(vec![event]).await;
        Ok(now.time)
    }

    /// Of versions that are kept wrapped no session objects stay in the HSM.
    fn retire_wrapped(&self, key: &Key) {
        let wrapped = key.versions.iter().filter(|version| version.wrapped.is_some());
        let objects: Vec<_> = wrapped.map(|version| version.object).collect();
        if !objects.is_empty() {
            self.hsm.retire(&objects);
        }
    }

    /// The point of no return.
    async fn begin_purge(&self, slot: &Slot) -> Result<Arc<Key>, Error> {
        let key = slot.key();
        let now = self.now();
        let denied = |denied| Error::from(denied).about(key.name());
        let new = Arc::new(key.purging(now, self.settings.profile).map_err(denied)?);
        if !self.hsm.is_up() {
            let message = "the HSM cannot be used now; nothing was purged";
            return Err(Error::new(Reason::HsmUnavailable, message).about(key.name()));
        }
        let intents = objects_in_token(&new).map(|object| Intent {
            object,
            key: new.id,
            stage: IntentStage::Destroying,
            begun: now.time,
            purpose: format!("purge {}", new.name()),
        });
        let begin: Vec<_> = intents.collect();
        for intent in &begin {
            self.intents.begin(intent.clone());
        }
        let begun = self.put(slot, &new, Effect::Tighten, Change { begin, ..Change::default() });
        if let Err(error) = begun.await {
            for object in objects_in_token(&new) {
                self.intents.end(object);
            }
            return Err(error);
        }
        Ok(new)
    }
}

/// Of versions that are kept wrapped nothing is in the token: they go with their rows.
fn objects_in_token(key: &Key) -> impl Iterator<Item = ObjectId> {
    let versions = key.versions.iter().filter(|version| version.wrapped.is_none());
    versions.map(|version| version.object)
}

impl Purger<'_> {
    fn event(&self, service: &Service, key: &Key, now: Moment) -> Event {
        let mut event = match self {
            Self::Call(call) => service.change_event(call, key),
            Self::Time => daemon_event("kms.secrets.purge", now, &key.name()),
        };
        let deleted = key.history.destroyed.map_or(now.time, |at| at.time);
        event.details.extend(details::of_purge(deleted));
        event.details.push(("versions".into(), key.versions.len().to_string()));
        event
    }
}

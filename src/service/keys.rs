//! The life of a key: create, update, rotate, disable, enable, delete, restore.
//!
//! A change runs in a task of its own, so that a caller who hangs up does not
//! leave it half done. What takes something away is seen by everybody before it
//! is committed, what gives something after (`facts/reliability.md` 2.2). What
//! touches the HSM too is begun with an intent, which `reconcile.rs` finishes or
//! undoes after a crash.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use uuid::Uuid;

use super::registry::Slot;
use super::{Answer, Call, Service, interrupted, state_detail, within};
use crate::domain::{
    Alias, Event, History, InstanceId, Key, KeyAction, KeyDetails, KeyId, KeyName, Malformed,
    Outcome, PrincipalId, Timestamp, Version, VersionId, deletion,
};
use crate::error::{Error, Reason};
use crate::hsm::Sealed;
use crate::store::{Change, KeyWrite, Request, StoreError};

/// What a new key shall be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its tenant.
    pub instance: InstanceId,
    /// What people say of it; checked against its limits here.
    pub details: KeyDetails,
    /// When it expires, if ever; must be in the future.
    pub expires: Option<Timestamp>,
}

/// The caller's id of a request that makes something, so that it can be repeated.
#[derive(Clone, Copy, Debug)]
pub struct RequestId {
    /// The caller's own.
    pub id: Uuid,
    /// SHA-256 of the rest of the request.
    pub fingerprint: [u8; 32],
}

/// New values for what people say of a key; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Field `display_name`.
    pub display_name: Option<String>,
    /// Field `aliases`.
    pub aliases: Option<Vec<Alias>>,
    /// Field `tags`.
    pub tags: Option<Vec<String>>,
}

/// Requests with an id that are under way, by principal and id.
pub(super) type UnderWay = HashMap<(PrincipalId, Uuid), Weak<Mutex<()>>>;

/// Whether a change takes something away or gives something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Effect {
    Tighten,
    Loosen,
}

impl Service {
    /// Generates a root key in the HSM.
    ///
    /// # Errors
    /// FIELD_INVALID, ALIAS_TAKEN, REQUEST_ID_REUSED, or of HSM and store.
    pub async fn create_key(
        self: &Arc<Self>,
        call: &Call,
        new: NewKey,
        request: Option<RequestId>,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let NewKey { instance, details, expires } = new;
        let details = details.checked()?;
        if expires.is_some_and(|expires| expires <= self.now()) {
            return Err(Malformed::new("key.expire_time", "must be in the future").into());
        }
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let _alone = service.alone(&call, request).await?;
            if let Some(made) = service.made_before(&call, request).await? {
                return Ok(made);
            }
            let id = KeyId::from(Uuid::new_v4());
            let aliases = details.aliases.clone();
            service.registry.reserve(&instance, &aliases, id)?;
            let new = NewKey { instance: instance.clone(), details, expires };
            let made = service.create_with_id(&call, id, new, request).await;
            if made.is_err() {
                service.registry.free(&instance, &aliases);
            }
            made
        })
        .await
    }

    async fn create_with_id(
        self: &Arc<Self>,
        call: &Call,
        id: KeyId,
        new: NewKey,
        request: Option<RequestId>,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let NewKey { instance, details, expires } = new;
        let purpose = format!("create instances/{instance}/keys/{id}");
        let (object, check_value) = self.make_object(id, purpose).await?;
        let now = self.now();
        let version = version(id.into(), object, &check_value, now);
        let key = Arc::new(Key {
            id,
            instance,
            details,
            imported: false,
            history: History::begun(now, expires),
            versions: Arc::from([version]),
            created_by: call.principal.as_str().into(),
            updated: None,
            rotated: None,
            generation: 1,
        });
        let event = self.change_event(call, &key);
        let change = Change {
            key: Some(KeyWrite::Insert(Arc::clone(&key))),
            end: vec![object],
            request: request.map(|request| record(call, request, id, now)),
            events: vec![event.clone()],
            ..Change::default()
        };
        if let Err(error) = self.store.commit(change).await {
            self.abandon(object);
            return Err(error.into());
        }
        self.intents.end(object);
        self.registry.insert(Arc::clone(&key));
        self.publish(vec![event]).await;
        Ok(Answer::recorded(key))
    }

    /// Makes a new version, which wraps from now on.
    ///
    /// # Errors
    /// Of state, etag, request id, HSM and store.
    pub async fn rotate_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        etag: String,
        request: Option<RequestId>,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let _alone = service.alone(&call, request).await?;
            if let Some(made) = service.made_before(&call, request).await? {
                return Ok(made);
            }
            let slot = service.registry.find(&name)?;
            let key = slot.key();
            service.may_rotate(&key, &etag)?;
            let id = VersionId::from(Uuid::new_v4());
            let purpose = format!("rotate {} to {id}", key.name());
            // The HSM may take its time: other changes of the key need not wait,
            // and what they did is looked at again below.
            let (object, check_value) = service.make_object(key.id, purpose).await?;
            let rotated = async {
                let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
                let key = slot.key();
                service.may_rotate(&key, &etag)?;
                let now = service.now();
                let mut new = Key { rotated: Some(now), ..key.changed(now) };
                let added = version(id, object, &check_value, now);
                new.versions = key.versions.iter().cloned().chain([added]).collect();
                let new = Arc::new(new);
                let event = service.change_event(&call, &new);
                let change = Change {
                    key: Some(KeyWrite::Update { key: Arc::clone(&new), from: key.generation }),
                    end: vec![object],
                    request: request.map(|request| record(&call, request, key.id, now)),
                    events: vec![event.clone()],
                    ..Change::default()
                };
                service.store.commit(change).await?;
                // After the commit: nothing is wrapped under a version that a
                // crash could take back.
                slot.publish(Arc::clone(&new));
                Ok((new, event))
            };
            match rotated.await {
                Ok((key, event)) => {
                    service.intents.end(object);
                    service.publish(vec![event]).await;
                    Ok(Answer::recorded(key))
                }
                Err(error) => {
                    service.abandon(object);
                    Err(error)
                }
            }
        })
        .await
    }

    fn may_rotate(&self, key: &Key, etag: &str) -> Result<(), Error> {
        check_etag(key, etag)?;
        self.permit(key, KeyAction::Rotate, self.now())
    }

    /// ACTIVE to SUSPENDED. Once it has returned, no unwrap that begins later succeeds.
    ///
    /// # Errors
    /// Of state, etag and store.
    pub async fn disable_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        etag: String,
    ) -> Result<Answer<Arc<Key>>, Error> {
        self.transition(call, name, etag, Effect::Tighten, |service, key, now| {
            service.permit(key, KeyAction::Disable, now)?;
            let mut new = key.changed(now);
            new.history.suspended = Some(now);
            Ok(new)
        })
        .await
    }

    /// SUSPENDED to ACTIVE.
    ///
    /// # Errors
    /// Of state, etag, timing and store.
    pub async fn enable_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        etag: String,
    ) -> Result<Answer<Arc<Key>>, Error> {
        self.transition(call, name, etag, Effect::Loosen, |service, key, now| {
            service.permit(key, KeyAction::Enable, now)?;
            deletion::may_enable(key, now).map_err(|error| Error::from(error).about(key.name()))?;
            let mut new = key.changed(now);
            new.history.suspended = None;
            Ok(new)
        })
        .await
    }

    /// To DESTROYED.
    ///
    /// # Errors
    /// Of state, etag and store.
    pub async fn delete_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        etag: String,
    ) -> Result<Answer<Arc<Key>>, Error> {
        self.transition(call, name, etag, Effect::Tighten, |service, key, now| {
            service.permit(key, KeyAction::Delete, now)?;
            let mut new = key.changed(now);
            new.history.destroyed = Some(now);
            Ok(new)
        })
        .await
    }

    /// Undoes [`Service::delete_key`]. The key is ACTIVE then, whatever it was
    /// before it was deleted (the seed, "Restoring deleted root keys").
    ///
    /// # Errors
    /// Of state, etag, timing and store; KEY_NOT_IMPORTED under profile vpc.
    pub async fn restore_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        etag: String,
    ) -> Result<Answer<Arc<Key>>, Error> {
        self.transition(call, name, etag, Effect::Loosen, |service, key, now| {
            service.permit(key, KeyAction::Restore, now)?;
            deletion::may_restore(key, now, service.settings.profile)
                .map_err(|error| Error::from(error).about(key.name()))?;
            let mut new = key.changed(now);
            new.history.destroyed = None;
            new.history.suspended = None;
            Ok(new)
        })
        .await
    }

    /// Changes what people say of a key.
    ///
    /// # Errors
    /// FIELD_INVALID, ALIAS_TAKEN, of state, etag and store.
    pub async fn update_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        etag: String,
        update: Update,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.registry.find(&name)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let before = slot.key();
            let wanted = update.aliases.clone().unwrap_or_default();
            service.registry.reserve(&before.instance, &wanted, before.id)?;
            let changed = service.replace(&call, &slot, &etag, Effect::Loosen, |key, now| {
                service.permit(key, KeyAction::Update, now)?;
                let Update { display_name, aliases, tags } = update;
                let old = key.details.clone();
                let details = KeyDetails {
                    display_name: display_name.unwrap_or(old.display_name),
                    description: old.description,
                    aliases: aliases.unwrap_or(old.aliases),
                    tags: tags.unwrap_or(old.tags),
                };
                Ok(Key { details: details.checked()?, ..key.changed(now) })
            });
            let changed = changed.await;
            // What the key has now stays taken; all else of before and wanted is free.
            let has = &slot.key().details.aliases;
            let known = before.details.aliases.iter().cloned().chain(wanted);
            let gone: Vec<_> = known.filter(|alias| !has.contains(alias)).collect();
            service.registry.free(&before.instance, &gone);
            changed
        })
        .await
    }

    /// One key.
    ///
    /// # Errors
    /// KEY_NOT_FOUND.
    pub fn key(&self, _call: &Call, name: &KeyName) -> Result<Answer<Arc<Key>>, Error> {
        let key = self.registry.find(name)?.key();
        let name = key.name();
        Ok(Answer::about(key, name))
    }

    /// A change of one key alone, which the HSM has no part in.
    async fn transition(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        etag: String,
        effect: Effect,
        decide: impl FnOnce(&Self, &Key, Timestamp) -> Result<Key, Error> + Send + 'static,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.registry.find(&name)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let decide = |key: &Key, now| decide(&service, key, now);
            service.replace(&call, &slot, &etag, effect, decide).await
        })
        .await
    }

    /// Puts another state of a key in the place of this one, in memory and in the
    /// store. The caller holds the slot's lock.
    async fn replace(
        &self,
        call: &Call,
        slot: &Slot,
        etag: &str,
        effect: Effect,
        decide: impl FnOnce(&Key, Timestamp) -> Result<Key, Error> + Send,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let old = slot.key();
        check_etag(&old, etag)?;
        let new = Arc::new(decide(&old, self.now())?);
        let event = self.change_event(call, &new);
        let change = Change {
            key: Some(KeyWrite::Update { key: Arc::clone(&new), from: old.generation }),
            events: vec![event.clone()],
            ..Change::default()
        };
        if effect == Effect::Tighten {
            slot.publish(Arc::clone(&new));
        }
        match self.store.commit(change).await {
            Ok(()) => slot.publish(Arc::clone(&new)),
            Err(error) => {
                // The store says so only where nothing was written for certain;
                // where that is not known it ends the process.
                slot.publish(old);
                return Err(Error::from(error).about(new.name()));
            }
        }
        self.publish(vec![event]).await;
        Ok(Answer::recorded(new))
    }

    /// Runs a change in a task of its own; the caller waits until the deadline.
    async fn change<T: Send + 'static>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let task = self.changes.spawn(work);
        let joined = within(call.caller.deadline, task).await?;
        joined.unwrap_or_else(|error| Err(interrupted().caused_by(error)))
    }

    /// Waits until no other request with this id is under way, so that the same
    /// request twice at once makes one thing.
    async fn alone(
        &self,
        call: &Call,
        request: Option<RequestId>,
    ) -> Result<Option<OwnedMutexGuard<()>>, Error> {
        let Some(request) = request else { return Ok(None) };
        let gate = {
            let mut under_way = self.under_way.lock();
            under_way.retain(|_, gate| gate.strong_count() > 0);
            let name = (call.principal.clone(), request.id);
            let gate = under_way.get(&name).and_then(Weak::upgrade).unwrap_or_default();
            under_way.insert(name, Arc::downgrade(&gate));
            gate
        };
        Ok(Some(within(call.caller.deadline, gate.lock_owned()).await?))
    }

    /// What this request made, if it was made before.
    async fn made_before(
        &self,
        call: &Call,
        request: Option<RequestId>,
    ) -> Result<Option<Answer<Arc<Key>>>, Error> {
        let Some(request) = request else { return Ok(None) };
        let found = self.store.find_request(&call.principal, request.id).await?;
        let now = self.now();
        let Some(found) = found.filter(|found| now < found.time + REQUEST_ID_KEPT) else {
            return Ok(None);
        };
        if found.fingerprint != request.fingerprint {
            return Err(Error::new(
                Reason::RequestIdReused,
                "request_id was used for another request in the last 24 hours",
            ));
        }
        let slot = self.registry.by_id(found.key).ok_or_else(interrupted)?;
        let key = slot.key();
        let name = key.name();
        Ok(Some(Answer::about(key, name)))
    }

    /// The record of a change, which is committed together with it.
    fn change_event(&self, call: &Call, key: &Key) -> Event {
        let about = (key.name(), Outcome::Success);
        let mut event = self.event(&call.caller, call.method.action, (&about.0, about.1));
        event.key_version = key.version_name(key.primary().id);
        event.details.push(state_detail(key.state(self.now())));
        event.details.push(("generation".into(), key.generation.to_string()));
        event
    }
}

fn check_etag(key: &Key, etag: &str) -> Result<(), Error> {
    if etag.is_empty() || etag == key.etag() {
        return Ok(());
    }
    Err(Error::from(StoreError::Conflict).about(key.name()))
}

fn version(
    id: VersionId,
    object: crate::domain::ObjectId,
    check_value: &Sealed,
    now: Timestamp,
) -> Version {
    let check_value = [&check_value.iv[..], &check_value.bytes].concat().into_boxed_slice();
    Version { id, object, check_value, created: now }
}

/// How long a request id is remembered.
const REQUEST_ID_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

fn record(call: &Call, request: RequestId, key: KeyId, time: Timestamp) -> Request {
    let RequestId { id, fingerprint } = request;
    Request { principal: call.principal.clone(), id, fingerprint, key, time }
}

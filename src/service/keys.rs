//! The life of a key, as far as the HSM has no part in it: update, disable, enable,
//! set for deletion, delete, restore.
//!
//! What a key becomes is decided in `domain/`. Here a change is carried out: in a
//! task of its own, so that a caller who hangs up does not leave it half done. What
//! takes something away is seen by everybody before it is committed, what gives
//! something after (`facts/reliability.md` 2.2).

use std::sync::Arc;

use super::registry::Slot;
use super::{Answer, Asked, Call, Service, details, interrupted, state_detail, within};
use crate::domain::{
    Alias, Event, Force, Key, KeyAction, KeyDetails, KeyName, KeyRingId, KeyRingName, Malformed,
    Moment, NewKeyEvent, Outcome, Registered, RotationPeriod,
};
use crate::error::Error;
use crate::store::{Change, KeyWrite, StoreError};

/// New values for what can change of a key; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct Update {
    /// Field `display_name`.
    pub display_name: Option<String>,
    /// Field `aliases`.
    pub aliases: Option<Vec<Alias>>,
    /// Field `tags`.
    pub tags: Option<Vec<String>>,
    /// Field `key_ring`.
    pub ring: Option<KeyRingId>,
    /// Field `rotation_period`; `Some(None)` takes the policy away.
    pub rotation: Option<Option<RotationPeriod>>,
    /// Field `dual_auth_delete`.
    pub dual_auth: Option<bool>,
}

/// Whether a change takes something away or gives something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Effect {
    /// Seen by everybody before it is committed.
    Tighten,
    /// Seen by everybody after it is committed.
    Loosen,
}

impl Service {
    /// ACTIVE to SUSPENDED. Once it has returned, no unwrap that begins later succeeds.
    ///
    /// # Errors
    /// Of etag, state and store; IMPACT_STALE.
    pub async fn disable_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        (etag, impact_token): (String, String),
    ) -> Result<Answer<Arc<Key>>, Error> {
        self.transition(call, name, etag, Effect::Tighten, move |service, slot, key, now| {
            service.check_impact(slot, key, &impact_token)?;
            Ok(key.disabled(now, service.settings.profile)?)
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
        self.transition(call, name, etag, Effect::Loosen, |service, _slot, key, now| {
            Ok(key.enabled(now, service.settings.profile)?)
        })
        .await
    }

    /// Gives the first of two authorizations for deletion.
    ///
    /// # Errors
    /// NOT_DUAL_AUTH, of state and store.
    pub async fn set_key_for_deletion(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let by = call.principal.clone();
        let decide = move |service: &Self, _: &Slot, key: &Key, now| {
            Ok(key.set_for_deletion(&by, now, service.settings.profile)?)
        };
        self.transition(call, name, String::new(), Effect::Loosen, decide).await
    }

    /// Takes that authorization back.
    ///
    /// # Errors
    /// NOT_DUAL_AUTH, of state and store.
    pub async fn unset_key_for_deletion(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let decide = |service: &Self, _: &Slot, key: &Key, now| {
            Ok(key.unset_for_deletion(now, service.settings.profile)?)
        };
        self.transition(call, name, String::new(), Effect::Tighten, decide).await
    }

    /// To DESTROYED.
    ///
    /// # Errors
    /// Of etag, state, registrations, authorizations and store; IMPACT_STALE.
    pub async fn delete_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        (etag, impact_token): (String, String),
        force: Force,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let by = call.principal.clone();
        let decide = move |service: &Self, slot: &Slot, key: &Key, now| {
            service.check_impact(slot, key, &impact_token)?;
            let profile = service.settings.profile;
            Ok(key.deleted((&by, force), slot.registered(), now, profile)?)
        };
        self.transition(call, name, etag, Effect::Tighten, decide).await
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
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.registry.find(&name)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let key = slot.key();
            // The ring cannot go while its key comes back.
            let _hold = service.tenants.hold(&key.instance, &key.ring)?;
            let decide = |key: &Key, now| Ok(key.restored(now, service.settings.profile)?);
            service.replace(&call, &slot, &etag, Effect::Loosen, decide).await
        })
        .await
    }

    /// Changes what people say of a key, its ring and its policies.
    ///
    /// # Errors
    /// FIELD_INVALID, ALIAS_TAKEN, KEY_RING_NOT_FOUND, of state, etag and store.
    pub async fn update_key(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        etag: String,
        update: Update,
    ) -> Result<Answer<Arc<Key>>, Error> {
        // To move a key needs the permission on both rings.
        if let Some(ring) = update.ring.clone() {
            let to = KeyRingName { instance: name.instance.clone(), ring };
            self.enter_too(call, Asked::Ring(&to))
                .or_else(|denied| self.stays(&name, &to).then_some(()).ok_or(denied))?;
        }
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.registry.find(&name)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let before = slot.key();
            let ring = update.ring.as_ref();
            let _hold =
                ring.map(|ring| service.tenants.hold(&before.instance, ring)).transpose()?;
            let wanted = update.aliases.clone().unwrap_or_default();
            service.registry.reserve(&before.instance, &wanted, before.id)?;
            let changed = service.replace(&call, &slot, &etag, Effect::Loosen, |key, now| {
                key.permit(KeyAction::Update, now, service.settings.profile)?;
                updated(key, update, now)
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

    /// Whether that is the ring that the key is in.
    fn stays(&self, key: &KeyName, ring: &KeyRingName) -> bool {
        self.registry.find(key).is_ok_and(|slot| slot.key().ring == ring.ring)
    }

    /// One key.
    ///
    /// # Errors
    /// KEY_NOT_FOUND.
    pub fn key(&self, _call: &Call, name: &KeyName) -> Result<Answer<Arc<Key>>, Error> {
        let key = self.registry.find(name)?.key();
        let name = key.name();
        let now = self.now();
        let mut more = details::of_key(&key, now.time);
        more.push(state_detail(key.state(now)));
        Ok(Answer::about(key, name).with(more))
    }

    /// Resources that are registered against a key.
    pub fn registered_against(&self, key: &Key) -> Registered {
        self.registry.by_id(key.id).map(|slot| slot.registered()).unwrap_or_default()
    }

    /// A change of one key alone, which the HSM has no part in.
    async fn transition(
        self: &Arc<Self>,
        call: &Call,
        name: KeyName,
        etag: String,
        effect: Effect,
        decide: impl FnOnce(&Self, &Slot, &Key, Moment) -> Result<Key, Error> + Send + 'static,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.registry.find(&name)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let decide = |key: &Key, now| decide(&service, &slot, key, now);
            service.replace(&call, &slot, &etag, effect, decide).await
        })
        .await
    }

    /// Puts another state of a key in the place of this one, in memory and in the
    /// store. The caller holds the slot's lock.
    pub(super) async fn replace(
        &self,
        call: &Call,
        slot: &Slot,
        etag: &str,
        effect: Effect,
        decide: impl FnOnce(&Key, Moment) -> Result<Key, Error> + Send,
    ) -> Result<Answer<Arc<Key>>, Error> {
        let old = slot.key();
        check_etag(&old, etag)?;
        let new = Arc::new(decide(&old, self.now()).map_err(|error| error.about(old.name()))?);
        let mut event = self.change_event(call, &new);
        event.details.extend(details::of_change(&old, &new));
        let from_reserve = takes_away(call);
        let change = Change { events: vec![event.clone()], from_reserve, ..Change::default() };
        self.put(slot, &new, effect, change).await?;
        self.publish(vec![event]).await;
        Ok(Answer::recorded(new))
    }

    /// Commits `change` with `new` in the place of the key that the slot has, and
    /// lets everybody see it. The caller holds the slot's lock.
    pub(super) async fn put(
        &self,
        slot: &Slot,
        new: &Arc<Key>,
        effect: Effect,
        change: Change,
    ) -> Result<(), Error> {
        let old = slot.key();
        let key = Some(KeyWrite::Update { key: Arc::clone(new), from: old.generation });
        let key_events: Vec<_> = NewKeyEvent::of(&old, new, self.now()).into_iter().collect();
        let tells = !key_events.is_empty();
        match effect {
            Effect::Tighten => {
                self.registry.publish(slot, Arc::clone(new));
                self.retire_unless_used(new);
                failpoint!("key.tightened");
            }
            Effect::Loosen => self.must_be_recordable().map_err(|error| error.about(old.name()))?,
        }
        match self.store.commit(Change { key, key_events, ..change }).await {
            Ok(()) => {
                failpoint!("key.committed");
                self.registry.publish(slot, Arc::clone(new));
                failpoint!("key.published");
                if tells {
                    self.wake_watchers();
                }
                Ok(())
            }
            Err(error) => {
                // The store says so only where nothing was written for certain;
                // where that is not known it ends the process.
                self.registry.publish(slot, old);
                Err(Error::from(error).about(new.name()))
            }
        }
    }

    /// Of a key that neither wraps nor unwraps no copies stay in the HSM's sessions. That
    /// decides nothing: its state does, which is looked at before and after each use.
    pub(super) fn retire_unless_used(&self, key: &Key) {
        let (now, profile) = (self.now(), self.settings.profile);
        let is_used = |action| key.permit(action, now, profile).is_ok();
        if !is_used(KeyAction::Unwrap) && !is_used(KeyAction::Wrap) {
            let objects: Vec<_> = key.versions.iter().map(|version| version.object).collect();
            self.hsm.retire(&objects);
        }
    }

    /// Runs a change in a task of its own; the caller waits until the deadline. While the
    /// audit log cannot be written only what takes away is begun.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        call: Call,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        if !takes_away(&call) {
            self.must_be_recordable()?;
        }
        let task = self.changes.spawn(async {
            let done = work.await;
            failpoint!("change.done");
            done
        });
        let joined = within(call.caller.deadline, task).await?;
        joined.unwrap_or_else(|error| Err(interrupted().caused_by(error)))
    }

    /// The record of a change, which is committed together with it.
    pub(super) fn change_event(&self, call: &Call, key: &Key) -> Event {
        let about = (key.name(), Outcome::Success);
        let mut event = self.event(&call.caller, call.method.action, (&about.0, about.1));
        event.key_version = key.version_name(key.primary().id);
        let now = self.now();
        event.details = details::of_key(key, now.time);
        event.details.push(state_detail(key.state(now)));
        event.details.push(("generation".into(), key.generation.to_string()));
        event
    }
}

/// The key with what `update` sets.
fn updated(key: &Key, update: Update, now: Moment) -> Result<Key, Error> {
    let Update { display_name, aliases, tags, ring, rotation, dual_auth } = update;
    let old = key.details.clone();
    let details = KeyDetails {
        display_name: display_name.unwrap_or(old.display_name),
        description: old.description,
        aliases: aliases.unwrap_or(old.aliases),
        tags: tags.unwrap_or(old.tags),
    };
    if key.imported && matches!(rotation, Some(Some(_))) {
        return Err(NO_POLICY_FOR_IMPORTED.into());
    }
    if key.dual_auth && dual_auth == Some(false) {
        return Err(Malformed::new("key.dual_auth_delete", "cannot be taken back").into());
    }
    Ok(Key {
        details: details.checked()?,
        ring: ring.unwrap_or_else(|| key.ring.clone()),
        rotation: rotation.unwrap_or(key.rotation),
        dual_auth: dual_auth.unwrap_or(key.dual_auth),
        ..key.changed(now)
    })
}

pub(super) fn check_etag(key: &Key, etag: &str) -> Result<(), Error> {
    if etag.is_empty() || etag == key.etag() {
        return Ok(());
    }
    Err(Error::from(StoreError::Conflict).about(key.name()))
}

/// Whether a call takes away what others may do with a key: such a one is done on a full
/// disk too, from the store's reserve.
pub(super) fn takes_away(call: &Call) -> bool {
    TAKES_AWAY.contains(&call.method.name)
}

pub(super) const TAKES_AWAY: [&str; 4] = [
    "KeyService/DisableKey",
    "KeyService/DeleteKey",
    "AccessService/DeleteBinding",
    "AccessService/DeleteServiceAuthorization",
];

/// An imported key is rotated by its owner's new material alone.
pub(super) const NO_POLICY_FOR_IMPORTED: Malformed =
    Malformed::new("key.rotation_period", "cannot be set for an imported key");

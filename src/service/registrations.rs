//! Registrations: services register the resources that a key protects.
//!
//! A registration is written under the lock of its key, as the key's own changes
//! are: none is acknowledged after the key's deletion. Rules:
//! `facts/key-protect.md` section 6.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use uuid::Uuid;

use super::entry::Sight;
use super::registry::Slot;
use super::{Answer, Call, Listed, Service, within};
use crate::domain::{
    Crn, CrnPattern, Event, InstanceId, Key, KeyId, KeyName, KeyState, Malformed, Outcome, Place,
    Registered, Registration, RegistrationId, RegistrationName, ResourceKind, VersionId,
};
use crate::error::{Error, Reason};
use crate::store::{Change, RegistrationQuery, RegistrationWrite, StoreError};

/// A resource to register.
#[derive(Clone, Debug)]
pub struct NewRegistration {
    /// The resource.
    pub resource: Crn,
    /// What kind of resource it is.
    pub kind: ResourceKind,
    /// The virtual server that it is attached to, if any.
    pub attached_to: Option<Crn>,
    /// For people; at most 240 characters.
    pub description: String,
    /// Whether the key must not be deleted.
    pub prevents_deletion: bool,
    /// Name of the key version that wraps its DEK; the newest if unset.
    pub version: Option<String>,
    /// The resource that it was made from, if any.
    pub source: Option<Crn>,
}

/// New values of a registration; `None` leaves a field as it is.
#[derive(Clone, Debug, Default)]
pub struct RegistrationUpdate {
    /// Field `attached_to`; `Some(None)` takes it away.
    pub attached_to: Option<Option<Crn>>,
    /// Field `description`.
    pub description: Option<String>,
    /// Field `prevent_key_deletion`.
    pub prevents_deletion: Option<bool>,
    /// Field `key_version`; empty for the newest.
    pub version: Option<String>,
}

/// Which registrations to list.
#[derive(Clone, Debug)]
pub struct RegistrationsWanted {
    /// Of this tenant.
    pub instance: InstanceId,
    /// Of this key; of all if unset.
    pub key: Option<KeyName>,
    /// 1 to 5000.
    pub page_size: usize,
    /// From the page before, or empty.
    pub page_token: String,
    /// Of these resources; of all if unset.
    pub resources: Option<CrnPattern>,
    /// Only those that prevent the deletion of their key.
    pub preventing: bool,
}

impl Service {
    /// Registers a resource against an active key; the same resource again replaces
    /// what can change of its registration.
    ///
    /// # Errors
    /// SERVICE_ONLY, RESOURCE_OWNER, KEY_NOT_FOUND, KEY_NOT_ACTIVE,
    /// KEY_VERSION_INVALID, FIELD_INVALID, or of the store.
    pub async fn register(
        self: &Arc<Self>,
        call: &Call,
        key: KeyName,
        new: NewRegistration,
    ) -> Result<Answer<Registration>, Error> {
        check_new(call, &new)?;
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.registry.find(&key)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let alteration = service.registering(&call, &slot, new).await?;
            service.alter(&call, &slot, alteration, Vec::new()).await.map(Answer::recorded)
        })
        .await
    }

    /// What registers `new` against the key in `slot`, whose lock the caller holds.
    ///
    /// # Errors
    /// RESOURCE_OWNER, KEY_NOT_ACTIVE, KEY_VERSION_INVALID, FIELD_INVALID, or of the
    /// store.
    pub(super) async fn registering(
        &self,
        call: &Call,
        slot: &Slot,
        new: NewRegistration,
    ) -> Result<Alteration, Error> {
        let owner = service_of(call)?;
        let key = slot.key();
        let state = key.state(self.now());
        if state != KeyState::Active {
            let message = format!("the key is {}; only an active one protects more", state.name());
            return Err(Error::new(Reason::KeyNotActive, message).about(key.name()));
        }
        let found = self.store.find_resource(key.id, new.resource.as_str()).await?;
        let version = version_named(&key, new.version.as_deref().unwrap_or_default())?;
        let Some(old) = found else {
            return Ok(Alteration::Add(Registration {
                id: RegistrationId::from(Uuid::new_v4()),
                instance: key.instance.clone(),
                key: key.id,
                resource: new.resource,
                kind: new.kind,
                attached_to: new.attached_to,
                description: new.description,
                prevents_deletion: new.prevents_deletion,
                version,
                source: new.source,
                service: owner.into(),
                created: self.now().time,
                created_by: call.principal.as_str().into(),
                updated: None,
                generation: 1,
            }));
        };
        check_owner(call, &old)?;
        if (old.kind, &old.source) != (new.kind, &new.source) {
            let problem = "is registered with another kind or source";
            return Err(Malformed::new("registration.resource", problem).into());
        }
        let updated = Registration {
            attached_to: new.attached_to,
            description: new.description,
            prevents_deletion: new.prevents_deletion,
            version,
            ..old.clone()
        };
        self.updating(call, &key, old, updated)
    }

    /// Changes a registration, in any state of its key.
    ///
    /// # Errors
    /// SERVICE_ONLY, RESOURCE_OWNER, REGISTRATION_NOT_FOUND, KEY_VERSION_INVALID,
    /// ETAG_MISMATCH, FIELD_INVALID, or of the store.
    pub async fn update_registration(
        self: &Arc<Self>,
        call: &Call,
        name: RegistrationName,
        (etag, update): (String, RegistrationUpdate),
    ) -> Result<Answer<Registration>, Error> {
        service_of(call)?;
        let RegistrationUpdate { attached_to, description, prevents_deletion, version } = update;
        check_description(description.as_deref().unwrap_or_default())?;
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.slot_of(&name)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let (key, old) = (slot.key(), service.find_registration(&slot, &name).await?);
            check_owner(&call, &old)?;
            check_etag(&old, &etag)?;
            let version = version.map(|name| version_named(&key, &name)).transpose()?;
            let updated = Registration {
                attached_to: attached_to.unwrap_or_else(|| old.attached_to.clone()),
                description: description.unwrap_or_else(|| old.description.clone()),
                prevents_deletion: prevents_deletion.unwrap_or(old.prevents_deletion),
                version: version.unwrap_or(old.version),
                ..old.clone()
            };
            let alteration = service.updating(&call, &key, old, updated)?;
            service.alter(&call, &slot, alteration, Vec::new()).await.map(Answer::recorded)
        })
        .await
    }

    /// One registration.
    ///
    /// # Errors
    /// REGISTRATION_NOT_FOUND.
    pub async fn registration(
        &self,
        _call: &Call,
        name: &RegistrationName,
    ) -> Result<Answer<Registration>, Error> {
        let registration = self.find_registration(&*self.slot_of(name)?, name).await?;
        let name = registration.name();
        Ok(Answer::about(registration, name))
    }

    /// Registrations of a key, or of the keys of an instance that the caller may see, by
    /// resource.
    ///
    /// # Errors
    /// KEY_NOT_FOUND; FIELD_INVALID for a page token that is none of ours.
    pub async fn list_registrations(
        &self,
        call: &Call,
        wanted: RegistrationsWanted,
    ) -> Result<Answer<Listed<Registration>>, Error> {
        let RegistrationsWanted { instance, key, page_size, page_token, resources, preventing } =
            wanted;
        let about = match &key {
            Some(name) => name.to_string(),
            None => format!("instances/{instance}"),
        };
        let key = key.map(|name| self.registry.find(&name)).transpose()?;
        let key = key.map(|slot| slot.key().id);
        // The permission on the one key was asked for already.
        let sight = key.is_none().then(|| self.sight(call, &instance));
        let after = parse_place(&page_token)?;
        let limit = page_size + 1;
        let query = RegistrationQuery { instance, key, resources, preventing, after, limit };
        let mut items = self.store.list_registrations(query).await?;
        let more = items.len() > page_size;
        items.truncate(page_size);
        let next_page_token = match items.last().filter(|_| more) {
            Some(last) => place_token(last),
            None => String::new(),
        };
        if let Some(sight) = sight {
            items.retain(|it| self.shows_key(&sight, it.key));
        }
        Ok(Answer::about(Listed { items, next_page_token }, about))
    }

    /// Takes a registration back, in any state of its key.
    ///
    /// # Errors
    /// SERVICE_ONLY, RESOURCE_OWNER, REGISTRATION_NOT_FOUND, ETAG_MISMATCH, or of
    /// the store.
    pub async fn unregister(
        self: &Arc<Self>,
        call: &Call,
        name: RegistrationName,
        etag: String,
    ) -> Result<Answer<()>, Error> {
        service_of(call)?;
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let slot = service.slot_of(&name)?;
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            let old = service.find_registration(&slot, &name).await?;
            check_owner(&call, &old)?;
            check_etag(&old, &etag)?;
            service.alter(&call, &slot, Alteration::Remove(old), Vec::new()).await?;
            Ok(Answer::recorded(()))
        })
        .await
    }

    /// What puts `updated` in the place of `old`.
    fn updating(
        &self,
        call: &Call,
        key: &Key,
        old: Registration,
        updated: Registration,
    ) -> Result<Alteration, Error> {
        let place = |id| key.versions.iter().position(|version| version.id == id);
        if place(updated.version) < place(old.version) {
            let message = "the key version is older than the recorded one";
            let error = Error::new(Reason::KeyVersionInvalid, message);
            return Err(error.of_field(KEY_VERSION).about(old.name()));
        }
        let new = Registration {
            updated: Some((self.now().time, call.principal.as_str().into())),
            generation: old.generation + 1,
            ..updated
        };
        Ok(Alteration::Replace { old: Box::new(old), new: Box::new(new) })
    }

    /// Carries out a change of one registration, with its record and `more` records
    /// in the same commit; what is registered then, or was. The caller holds the
    /// slot's lock.
    pub(super) async fn alter(
        &self,
        call: &Call,
        slot: &Slot,
        alteration: Alteration,
        more: Vec<Event>,
    ) -> Result<Registration, Error> {
        let Registered { total, preventing } = slot.registered();
        let prevents = |registration: &Registration| u64::from(registration.prevents_deletion);
        let (registration, write, total, preventing) = match alteration {
            Alteration::Add(new) => {
                let preventing = preventing + prevents(&new);
                (new.clone(), RegistrationWrite::Insert(new), total + 1, preventing)
            }
            Alteration::Replace { old, new } => {
                let preventing = preventing - prevents(&old) + prevents(&new);
                let (registration, from) = ((*new).clone(), old.generation);
                (*new, RegistrationWrite::Update { registration, from }, total, preventing)
            }
            Alteration::Remove(old) => {
                let write = RegistrationWrite::Remove { id: old.id, from: old.generation };
                let preventing = preventing - prevents(&old);
                (old, write, total - 1, preventing)
            }
        };
        let mut events = vec![self.registration_event(call, &registration)];
        events.extend(more);
        let change =
            Change { registration: Some(write), events: events.clone(), ..Change::default() };
        self.store.commit(change).await?;
        slot.set_registered(Registered { total, preventing });
        self.publish(events).await;
        Ok(registration)
    }

    fn registration_event(&self, call: &Call, registration: &Registration) -> Event {
        let name = registration.name();
        let mut event = self.event(&call.caller, call.method.action, (&name, Outcome::Success));
        event.resource = registration.resource.as_str().to_owned();
        event.details.push(("kind".into(), registration.kind.name().into()));
        let prevents = registration.prevents_deletion.to_string();
        event.details.push(("prevent_key_deletion".into(), prevents));
        event
    }

    /// A key that is gone is seen by who may see the whole instance.
    pub(super) fn shows_key(&self, sight: &Sight, key: KeyId) -> bool {
        sight.is_all()
            || self.registry.by_id(key).is_some_and(|slot| sight.shows(Place::of(&slot.key())))
    }

    fn slot_of(&self, name: &RegistrationName) -> Result<Arc<Slot>, Error> {
        self.registry.find(&name.key).map_err(|no_key| not_found(name).caused_by(no_key))
    }

    /// Of the key in `slot`; by an alias, the name may lead to another one by now.
    async fn find_registration(
        &self,
        slot: &Slot,
        name: &RegistrationName,
    ) -> Result<Registration, Error> {
        let key = slot.key().id;
        let found = self.store.find_registration(name.id).await?;
        found.filter(|found| found.key == key).ok_or_else(|| not_found(name))
    }
}

/// A change of one registration.
#[derive(Debug)]
pub(super) enum Alteration {
    /// This one is new.
    Add(Registration),
    /// The one takes the place of the other.
    Replace {
        /// As it was.
        old: Box<Registration>,
        /// As it shall be.
        new: Box<Registration>,
    },
    /// This one goes.
    Remove(Registration),
}

/// What can be said of a new registration without looking at its key.
///
/// # Errors
/// SERVICE_ONLY, FIELD_INVALID.
pub(super) fn check_new(call: &Call, new: &NewRegistration) -> Result<(), Error> {
    service_of(call)?;
    Ok(check_description(&new.description)?)
}

/// The service that calls.
pub(super) fn service_of(call: &Call) -> Result<String, Error> {
    let service = call.principal.service().map(str::to_owned);
    let refused = || Error::new(Reason::ServiceOnly, "only a service writes registrations");
    service.ok_or_else(refused)
}

fn check_owner(call: &Call, registration: &Registration) -> Result<(), Error> {
    if service_of(call)? == *registration.service {
        return Ok(());
    }
    let message = "the resource was registered by another service";
    Err(Error::new(Reason::ResourceOwner, message).about(registration.name()))
}

fn check_etag(registration: &Registration, etag: &str) -> Result<(), Error> {
    if etag.is_empty() || etag == registration.etag() {
        return Ok(());
    }
    Err(Error::from(StoreError::Conflict).about(registration.name()))
}

fn check_description(description: &str) -> Result<(), Malformed> {
    if description.chars().count() > 240 || description.chars().any(char::is_control) {
        let problem = "must be at most 240 characters, without control characters";
        return Err(Malformed::new("registration.description", problem));
    }
    Ok(())
}

/// The version of that name; the newest if the name is empty.
fn version_named(key: &Key, name: &str) -> Result<VersionId, Error> {
    if name.is_empty() {
        return Ok(key.primary().id);
    }
    let id = name.split_once("/versions/").and_then(|(of, id)| {
        let of = of.parse::<KeyName>().ok()?;
        key.is_called(&of).then_some(id)
    });
    let found = key.versions.iter().find(|it| id.is_some_and(|id| it.id.to_string() == id));
    let unknown = || Error::new(Reason::KeyVersionInvalid, "the key has no such version");
    Ok(found.ok_or_else(|| unknown().of_field(KEY_VERSION).about(key.name()))?.id)
}

fn not_found(name: &RegistrationName) -> Error {
    Error::new(Reason::RegistrationNotFound, format!("there is no registration {name}"))
        .about(name.to_string())
}

pub(super) fn place_token(last: &Registration) -> String {
    let place = [&last.key.as_bytes()[..], last.resource.as_str().as_bytes()].concat();
    URL_SAFE_NO_PAD.encode(place)
}

pub(super) fn parse_place(token: &str) -> Result<Option<(String, KeyId)>, Malformed> {
    if token.is_empty() {
        return Ok(None);
    }
    let bad = Malformed::new("page_token", "is not from the page before");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_unreadable| bad)?;
    let (key, resource) = bytes.split_first_chunk::<16>().ok_or(bad)?;
    let resource = std::str::from_utf8(resource).map_err(|_unreadable| bad)?;
    Ok(Some((resource.to_owned(), KeyId::from_bytes(*key))))
}

const KEY_VERSION: &str = "registration.key_version";

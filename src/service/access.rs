//! Bindings of principals and authorizations of services: make, list, remove.
//!
//! A removal is seen by everybody before it is committed, and a DEK that was on its
//! way is looked at again after its record is durable: no use that begins after the
//! removal returned succeeds, as with DisableKey. A new binding is seen after its
//! commit. Changes of one instance wait for each other, or the last two Managers
//! could remove one another.

use std::collections::HashSet;
use std::sync::Arc;

use uuid::Uuid;

use super::keys::takes_away;
use super::{Answer, Asked, Call, Configured, Listed, Service, daemon_event, within};
use crate::domain::{
    Area, Binding, BindingCollection, BindingId, BindingName, BindingSubject, Bindings, Event,
    Gift, InstanceId, KeyName, KeyRingName, Malformed, Outcome, Place, Scope,
};
use crate::error::{Error, Reason};
use crate::store::{BindingWrite, Change};

impl Service {
    /// Gives a role.
    ///
    /// # Errors
    /// PERMISSION_DENIED, KEY_NOT_FOUND, KEY_RING_NOT_FOUND, BINDING_EXISTS,
    /// LIMIT_REACHED, AUDIT_UNAVAILABLE, or of the store.
    pub async fn bind(
        self: &Arc<Self>,
        call: &Call,
        gift: Gift,
    ) -> Result<Answer<Arc<Binding>>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let tenant = service.tenants.find(&gift.scope.instance)?;
            let _changing = within(call.caller.deadline, tenant.changing.lock()).await?;
            // A key cannot be purged, nor the ring deleted, before this is committed.
            let slot = match &gift.scope.area {
                Area::All => None,
                Area::Ring(ring) if tenant.has_ring(ring) => None,
                Area::Ring(ring) => return Err(super::tenants::no_ring(&tenant.id, ring)),
                Area::Key(key) => {
                    let name = KeyName::of(tenant.id.clone(), *key);
                    Some(service.registry.find(&name)?)
                }
            };
            let _unpurged = match &slot {
                Some(slot) => Some(within(call.caller.deadline, slot.changing.lock()).await?),
                None => None,
            };
            if let Some(slot) = &slot {
                service.registry.find(&slot.key().name().parse()?)?;
            }
            service.check_new(&gift)?;
            let Gift { subject, role, scope } = gift;
            let (id, created) = (BindingId::from(Uuid::new_v4()), service.now().time);
            let created_by = call.principal.as_str().into();
            let binding = Binding { id, subject, role, scope, created, created_by };
            let event = service.binding_event(&call, &binding);
            let change = Change {
                binding: Some(BindingWrite::Insert(binding.clone())),
                events: vec![event.clone()],
                ..Change::default()
            };
            service.store.commit(change).await?;
            let binding = Arc::new(binding);
            service.rebind(|all| all.push(Arc::clone(&binding)));
            service.publish(vec![event]).await;
            Ok(Answer::recorded(binding))
        })
        .await
    }

    /// Takes a role back. Once it has returned, nothing that begins later succeeds by it.
    ///
    /// # Errors
    /// BINDING_NOT_FOUND, LAST_MANAGER, or of the store.
    pub async fn unbind(
        self: &Arc<Self>,
        call: &Call,
        name: BindingName,
    ) -> Result<Answer<()>, Error> {
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let tenant = service.tenants.find(&name.instance)?;
            let _changing = within(call.caller.deadline, tenant.changing.lock()).await?;
            let binding = service.find_binding(&name)?;
            service.check_last(&binding)?;
            let event = service.binding_event(&call, &binding);
            let change = Change {
                binding: Some(BindingWrite::Remove(binding.id)),
                events: vec![event.clone()],
                from_reserve: takes_away(&call),
                ..Change::default()
            };
            service.rebind(|all| all.retain(|it| it.id != binding.id));
            if let Err(error) = service.store.commit(change).await {
                // For certain nothing was written.
                service.rebind(|all| all.push(binding));
                return Err(Error::from(error).about(name.to_string()));
            }
            service.publish(vec![event]).await;
            Ok(Answer::recorded(()))
        })
        .await
    }

    /// Bindings of an instance that the caller manages, oldest first.
    ///
    /// # Errors
    /// FIELD_INVALID for a page token that is none of ours.
    pub fn list_bindings(
        &self,
        call: &Call,
        (instance, collection): (InstanceId, BindingCollection),
        (page_size, page_token): (usize, &str),
    ) -> Result<Answer<Listed<Arc<Binding>>>, Error> {
        let sight = self.sight(call, &instance);
        let after = match page_token {
            "" => None,
            token => Some(parse_place(token)?),
        };
        let mut found: Vec<_> = self.all_bindings.lock().clone();
        found.retain(|it| {
            let name = it.name();
            name.instance == instance
                && name.collection == collection
                && self.with_place(&it.scope, |place| sight.shows(place))
        });
        let place = |it: &Binding| (it.created.as_micros(), it.id);
        found.retain(|it| after.is_none_or(|after| place(it) > after));
        found.sort_by_key(|it| place(it));
        let more = found.len() > page_size;
        found.truncate(page_size);
        let next_page_token = match found.last().filter(|_| more) {
            Some(last) => format!("{}.{}", last.created.as_micros(), last.id),
            None => String::new(),
        };
        let listed = Listed { items: found, next_page_token };
        Ok(Answer::about(listed, format!("instances/{instance}")))
    }

    /// Where the permission to remove a binding is asked for; `None` if there is none of
    /// that name.
    pub fn scope_of(&self, name: &BindingName) -> Option<Scope> {
        self.find_binding(name).ok().map(|binding| binding.scope.clone())
    }

    /// The scope that a key is, which is called by an alias.
    ///
    /// # Errors
    /// PERMISSION_DENIED: it is asked before it is known who asks.
    pub fn scope_of_key(&self, name: &KeyName) -> Result<Scope, Error> {
        let key = self.registry.find(name).map_err(|missing| Error::denied().caused_by(missing))?;
        Ok(Scope { instance: name.instance.clone(), area: Area::Key(key.key().id) })
    }

    /// Asks for what stands in a scope.
    pub fn with_asked<T>(scope: &Scope, ask: impl FnOnce(Asked<'_>) -> T) -> T {
        let Scope { instance, area } = scope;
        match area {
            Area::All => ask(Asked::Instance(instance)),
            Area::Ring(ring) => {
                let (instance, ring) = (instance.clone(), ring.clone());
                ask(Asked::Ring(&KeyRingName { instance, ring }))
            }
            Area::Key(key) => ask(Asked::Key(&KeyName::of(instance.clone(), *key))),
        }
    }

    /// Where a scope is now. A key that is gone is in the whole instance.
    pub(super) fn with_place<T>(&self, scope: &Scope, ask: impl FnOnce(Place<'_>) -> T) -> T {
        let Scope { instance, area } = scope;
        match area {
            Area::All => ask(Place::Instance(instance)),
            Area::Ring(ring) => ask(Place::Ring(instance, ring)),
            Area::Key(key) => match self.registry.by_id(*key) {
                Some(slot) => ask(Place::of(&slot.key())),
                None => ask(Place::Instance(instance)),
            },
        }
    }

    /// Takes over what the configuration gives and has not given before: what was
    /// removed since does not come back by a restart. Not waited for: if it is lost in a
    /// crash it is taken over again.
    pub(super) fn take_over(self: &Arc<Self>, configured: &[Gift], before: &[Gift]) {
        let mut known: HashSet<_> = before.iter().cloned().collect();
        for gift in configured {
            if !known.insert(gift.clone()) {
                continue;
            }
            let there = self.all_bindings.lock().iter().any(|it| it.gives(gift));
            let binding = (!there).then(|| self.configured_binding(gift.clone()));
            let mut events = Vec::new();
            if let Some(binding) = &binding {
                let action = match &binding.subject {
                    BindingSubject::Principal(_) => "rootkeyd.binding.create",
                    BindingSubject::Service(_) => "rootkeyd.service-authorization.create",
                };
                let mut event = daemon_event(action, self.now(), &binding.name().to_string());
                event.details = details(binding);
                event.details.push(("from".into(), "configuration".into()));
                events.push(event);
                self.rebind(|all| all.push(Arc::new(binding.clone())));
            }
            let binding = Some(BindingWrite::TakeOver(binding, gift.clone()));
            let change = Change { binding, events: events.clone(), ..Change::default() };
            let (service, committed) = (Arc::clone(self), self.store.commit(change));
            self.changes.spawn(async move {
                match committed.await {
                    Ok(()) => service.publish(events).await,
                    // It is taken over again at the next start.
                    Err(error) => tracing::warn!(%error, "a binding was not written down"),
                }
            });
        }
    }

    /// Alters the bindings, and with them who may do what.
    pub(super) fn rebind(&self, alter: impl FnOnce(&mut Vec<Arc<Binding>>)) {
        let mut all = self.all_bindings.lock();
        alter(&mut all);
        let bindings = Bindings::new(all.iter().cloned(), self.operators.iter().cloned());
        self.bindings.store(Arc::new(bindings));
    }

    fn configured_binding(&self, gift: Gift) -> Binding {
        let Gift { subject, role, scope } = gift;
        Binding {
            id: BindingId::from(Uuid::new_v4()),
            subject,
            role,
            scope,
            created: self.now().time,
            created_by: crate::domain::event::DAEMON.into(),
        }
    }

    fn find_binding(&self, name: &BindingName) -> Result<Arc<Binding>, Error> {
        let all = self.all_bindings.lock();
        let found = all.iter().find(|it| it.id == name.id && it.name() == *name).cloned();
        let missing = || Error::new(Reason::BindingNotFound, format!("there is no {name}"));
        found.ok_or_else(|| missing().about(name.to_string()))
    }

    fn check_new(&self, gift: &Gift) -> Result<(), Error> {
        let all = self.all_bindings.lock();
        let of_instance = || all.iter().filter(|it| it.scope.instance == gift.scope.instance);
        if let Some(there) = of_instance().find(|it| it.gives(gift)) {
            let message = "the same role is given there already";
            return Err(Error::new(Reason::BindingExists, message).about(there.name().to_string()));
        }
        if of_instance().count() >= MOST_BINDINGS {
            let message = "an instance has at most 10000 bindings and authorizations";
            let subject = format!("instances/{}", gift.scope.instance);
            return Err(Error::new(Reason::LimitReached, message).about(subject));
        }
        Ok(())
    }

    fn check_last(&self, binding: &Binding) -> Result<(), Error> {
        let all = self.all_bindings.lock();
        let another = |it: &Arc<Binding>| {
            it.id != binding.id && it.manages_all() && it.scope.instance == binding.scope.instance
        };
        if binding.manages_all() && !all.iter().any(another) {
            let message = "it is the last Manager of the instance";
            return Err(Error::new(Reason::LastManager, message).about(binding.name().to_string()));
        }
        Ok(())
    }

    fn binding_event(&self, call: &Call, binding: &Binding) -> Event {
        let name = binding.name().to_string();
        let mut event = self.event(&call.caller, call.method.action, (&name, Outcome::Success));
        event.details = details(binding);
        event
    }
}

impl Configured {
    /// Instances that its bindings are on.
    pub(super) fn instances(&self) -> impl Iterator<Item = &InstanceId> {
        self.bindings.iter().map(|gift| &gift.scope.instance)
    }
}

fn parse_place(token: &str) -> Result<(i64, BindingId), Malformed> {
    let (created, id) = token.split_once('.').ok_or(BAD_TOKEN)?;
    let created = created.parse().map_err(|_unreadable| BAD_TOKEN)?;
    let id = id.parse::<Uuid>().map_err(|_unreadable| BAD_TOKEN)?;
    Ok((created, id.into()))
}

fn details(binding: &Binding) -> Vec<(String, String)> {
    vec![
        ("subject".into(), binding.subject.to_string()),
        ("role".into(), binding.role.name().into()),
        ("scope".into(), binding.scope.to_string()),
    ]
}

/// Of one instance. All are in memory, and written anew there at each change.
const MOST_BINDINGS: usize = 10_000;
const BAD_TOKEN: Malformed = Malformed::new("page_token", "is not from the page before");

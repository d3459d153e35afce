//! Key rings: create, list, delete. A key moves by an update (`keys.rs`).

use std::sync::Arc;

use super::keys::Effect;
use super::registry::Count;
use super::{Answer, Call, Listed, Service, within};
use crate::domain::{
    Area, InstanceId, Key, KeyRing, KeyRingId, KeyRingName, Malformed, Outcome, Place, Scope,
};
use crate::error::{Error, Reason};
use crate::store::{Change, RingWrite};

/// A ring, with what made it and how many keys it holds.
#[derive(Clone, Debug)]
pub struct RingReport {
    /// Its name.
    pub name: KeyRingName,
    /// What made it; `None` for `default`.
    pub ring: Option<Arc<KeyRing>>,
    /// Keys in it, of every state.
    pub keys: u64,
}

impl Service {
    /// Makes a key ring.
    ///
    /// # Errors
    /// FIELD_INVALID, KEY_RING_EXISTS, LIMIT_REACHED, or of the store.
    pub async fn create_ring(
        self: &Arc<Self>,
        call: &Call,
        instance: InstanceId,
        id: KeyRingId,
    ) -> Result<Answer<RingReport>, Error> {
        if id.is_default() {
            return Err(Malformed::new("key_ring_id", "is the ring that every instance has").into());
        }
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let tenant = service.tenants.find(&instance)?;
            let _changing = within(call.caller.deadline, tenant.changing.lock()).await?;
            let name = KeyRingName { instance: instance.clone(), ring: id.clone() };
            let subject = name.to_string();
            if tenant.has_ring(&id) {
                let message = format!("there is a key ring {id} already");
                return Err(Error::new(Reason::KeyRingExists, message).about(subject));
            }
            if tenant.ring_count() >= KeyRingId::MOST {
                let message = "an instance has at most 50 key rings";
                return Err(Error::new(Reason::LimitReached, message).about(subject));
            }
            let (created, created_by) = (service.now().time, call.principal.as_str().into());
            let ring = KeyRing { instance, id, created, created_by };
            let event =
                service.event(&call.caller, call.method.action, (&subject, Outcome::Success));
            let change = Change {
                ring: Some(RingWrite::Insert(ring.clone())),
                events: vec![event.clone()],
                ..Change::default()
            };
            service.store.commit(change).await?;
            tenant.insert_ring(ring.clone());
            service.publish(vec![event]).await;
            Ok(Answer::recorded(RingReport { name, ring: Some(Arc::new(ring)), keys: 0 }))
        })
        .await
    }

    /// Key rings of an instance that the caller may see, by name.
    ///
    /// # Errors
    /// INSTANCE_NOT_FOUND; FIELD_INVALID for a page token that is none of ours.
    pub fn list_rings(
        &self,
        call: &Call,
        instance: InstanceId,
        (page_size, page_token): (usize, &str),
    ) -> Result<Answer<Listed<RingReport>>, Error> {
        let tenant = self.tenants.find(&instance)?;
        let after = match page_token {
            "" => None,
            token => Some(token.parse::<KeyRingId>().map_err(|bad| bad.of("page_token"))?),
        };
        // At most 50, so all of them are looked at.
        let sight = self.sight(call, &instance);
        let mut rings = tenant.rings();
        rings.retain(|(id, _)| sight.shows(Place::Ring(&instance, id)));
        rings.retain(|(id, _)| after.as_ref().is_none_or(|after| id > after));
        let more = rings.len() > page_size;
        rings.truncate(page_size);
        let next_page_token = match rings.last().filter(|_| more) {
            Some((id, _)) => id.to_string(),
            None => String::new(),
        };
        let items = rings.into_iter().map(|(id, ring)| {
            let Count { total, .. } = self.registry.count_of(&instance, &id);
            let name = KeyRingName { instance: instance.clone(), ring: id };
            RingReport { name, ring, keys: total }
        });
        let listed = Listed { items: items.collect(), next_page_token };
        Ok(Answer::about(listed, format!("instances/{instance}")))
    }

    /// Deletes a ring that holds no key; with `force` its deleted keys move to
    /// `default` first. How many did.
    ///
    /// # Errors
    /// FIELD_INVALID for `default`, KEY_RING_NOT_FOUND, KEY_RING_NOT_EMPTY, or of
    /// the store.
    pub async fn delete_ring(
        self: &Arc<Self>,
        call: &Call,
        name: KeyRingName,
        force: bool,
    ) -> Result<Answer<u64>, Error> {
        if name.ring.is_default() {
            return Err(Malformed::new("name", "is the ring that every instance has").into());
        }
        let (service, call) = (Arc::clone(self), call.clone());
        self.change(call.clone(), async move {
            let tenant = service.tenants.find(&name.instance)?;
            let _changing = within(call.caller.deadline, tenant.changing.lock()).await?;
            let ring = tenant.close_ring(&service.registry, &name.ring, force)?;
            let deleted = service.delete_closed(&call, &name, &ring).await;
            match deleted {
                Ok(moved) => {
                    tenant.remove_ring(&name.ring);
                    Ok(Answer::recorded(moved))
                }
                Err(error) => {
                    tenant.reopen_ring(&name.ring);
                    Err(error)
                }
            }
        })
        .await
    }

    async fn delete_closed(
        &self,
        call: &Call,
        name: &KeyRingName,
        ring: &KeyRing,
    ) -> Result<u64, Error> {
        let mut moved = 0;
        for slot in self.registry.in_ring(&name.instance, &name.ring) {
            let _changing = within(call.caller.deadline, slot.changing.lock()).await?;
            if slot.key().ring != name.ring {
                continue;
            }
            let key = slot.key();
            let new = Key { ring: KeyRingId::default_ring(), ..key.changed(self.now()) };
            let new = Arc::new(new);
            let event = self.change_event(call, &new);
            let change = Change { events: vec![event.clone()], ..Change::default() };
            self.put(&slot, &new, Effect::Loosen, change).await?;
            self.publish(vec![event]).await;
            moved += 1;
        }
        let subject = name.to_string();
        let mut event = self.event(&call.caller, call.method.action, (&subject, Outcome::Success));
        event.details.push(("moved_keys".into(), moved.to_string()));
        let change = Change {
            ring: Some(RingWrite::Remove(ring.clone())),
            events: vec![event.clone()],
            ..Change::default()
        };
        self.store.commit(change).await?;
        // Those on it went with it.
        let scope = Scope { instance: name.instance.clone(), area: Area::Ring(name.ring.clone()) };
        self.rebind(|all| all.retain(|binding| binding.scope != scope));
        self.publish(vec![event]).await;
        Ok(moved)
    }
}

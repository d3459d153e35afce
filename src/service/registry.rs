//! Every key in memory, for the hot path: found by id or alias, read without a
//! lock, changed by one task at a time.
//!
//! What is here is what the store holds, except while a change is under way: a
//! change that takes something away is here before it is in the store, one that
//! gives something is here after (`facts/reliability.md` 2.2).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio::sync::Mutex;

use crate::domain::{Alias, InstanceId, Key, KeyId, KeyName, KeyRef, Timestamp};
use crate::error::{Error, Reason};

/// A key's place in memory.
pub(super) struct Slot {
    key: ArcSwap<Key>,
    /// Held over a change of the key, its commit included: changes of one key
    /// wait for each other, which is their point. An exception to "no lock over
    /// an await", written down in docs/adr/0004.
    pub(super) changing: Mutex<()>,
}

impl Slot {
    /// The key now.
    pub(super) fn key(&self) -> Arc<Key> {
        self.key.load_full()
    }

    /// Makes `key` what everybody sees from now on.
    pub(super) fn publish(&self, key: Arc<Key>) {
        self.key.store(key);
    }
}

/// Every key.
pub(super) struct Registry(RwLock<Index>);

#[derive(Default)]
struct Index {
    slots: HashMap<KeyId, Arc<Slot>>,
    /// Reserved before the key with the alias is committed, freed after.
    aliases: HashMap<(InstanceId, Alias), KeyId>,
    /// By age, for paging.
    order: HashMap<InstanceId, BTreeSet<(Timestamp, KeyId)>>,
}

impl Registry {
    pub(super) fn new(keys: Vec<Key>) -> Self {
        let registry = Self(RwLock::default());
        for key in keys {
            let aliases = key.details.aliases.iter();
            let aliases = aliases.map(|alias| ((key.instance.clone(), alias.clone()), key.id));
            registry.0.write().aliases.extend(aliases);
            registry.insert(Arc::new(key));
        }
        registry
    }

    /// Finds a key by its name.
    ///
    /// # Errors
    /// KEY_NOT_FOUND.
    pub(super) fn find(&self, name: &KeyName) -> Result<Arc<Slot>, Error> {
        let index = self.0.read();
        let slot = match &name.key {
            KeyRef::Id(id) => index.slots.get(id),
            KeyRef::Alias(alias) => index
                .aliases
                .get(&(name.instance.clone(), alias.clone()))
                .and_then(|id| index.slots.get(id))
                // Reserved is not yet given.
                .filter(|slot| slot.key.load().details.aliases.contains(alias)),
        };
        let slot = slot.filter(|slot| slot.key.load().instance == name.instance);
        slot.cloned().ok_or_else(|| not_found(name))
    }

    /// The key with that id, if any.
    pub(super) fn by_id(&self, id: KeyId) -> Option<Arc<Slot>> {
        self.0.read().slots.get(&id).cloned()
    }

    /// Adds a key that is committed. Its aliases are reserved already.
    pub(super) fn insert(&self, key: Arc<Key>) {
        let mut index = self.0.write();
        let place = (key.history.activated, key.id);
        index.order.entry(key.instance.clone()).or_default().insert(place);
        let slot = Slot { key: ArcSwap::new(Arc::clone(&key)), changing: Mutex::default() };
        index.slots.insert(key.id, Arc::new(slot));
    }

    /// Takes aliases for a key; all or none.
    ///
    /// # Errors
    /// ALIAS_TAKEN, if another key has one of them.
    pub(super) fn reserve(
        &self,
        instance: &InstanceId,
        aliases: &[Alias],
        key: KeyId,
    ) -> Result<(), Error> {
        let mut index = self.0.write();
        let entry = |alias: &Alias| (instance.clone(), alias.clone());
        for alias in aliases {
            if index.aliases.get(&entry(alias)).is_some_and(|other| *other != key) {
                return Err(Error::new(
                    Reason::AliasTaken,
                    format!("the alias {alias} is another key's"),
                ));
            }
        }
        index.aliases.extend(aliases.iter().map(|alias| (entry(alias), key)));
        Ok(())
    }

    /// Gives aliases back that no committed key has any more.
    pub(super) fn free(&self, instance: &InstanceId, aliases: &[Alias]) {
        let mut index = self.0.write();
        for alias in aliases {
            index.aliases.remove(&(instance.clone(), alias.clone()));
        }
    }

    /// Up to `most` keys of an instance that are after `after`, oldest first.
    pub(super) fn after(
        &self,
        instance: &InstanceId,
        after: Option<(Timestamp, KeyId)>,
        most: usize,
    ) -> Vec<Arc<Key>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let index = self.0.read();
        let Some(order) = index.order.get(instance) else { return Vec::new() };
        let from = after.map_or(Unbounded, Excluded);
        let ids = order.range((from, Unbounded)).take(most);
        ids.filter_map(|(_, id)| index.slots.get(id)).map(|slot| slot.key()).collect()
    }

    /// Every key.
    pub(super) fn all(&self) -> Vec<Arc<Key>> {
        self.0.read().slots.values().map(|slot| slot.key()).collect()
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.0.read().slots.len()
    }
}

fn not_found(name: &KeyName) -> Error {
    Error::new(Reason::KeyNotFound, format!("there is no key {name}")).about(name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::tests::key_at;

    fn alias(text: &str) -> Alias {
        text.parse().unwrap()
    }

    fn registry() -> (Registry, Key) {
        let mut key = key_at(Timestamp::from_seconds(1));
        key.details.aliases = vec![alias("volumes")];
        (Registry::new(vec![key.clone()]), key)
    }

    #[test]
    fn a_key_is_found_by_id_and_alias_in_its_own_instance_alone() {
        let (registry, key) = registry();
        let find = |name: String| registry.find(&name.parse().unwrap()).map(|slot| slot.key().id);
        assert_eq!(find(key.name()).unwrap(), key.id);
        assert_eq!(find("instances/default/keys/volumes".into()).unwrap(), key.id);
        for name in
            [format!("instances/other/keys/{}", key.id), "instances/other/keys/volumes".into()]
        {
            assert_eq!(find(name).unwrap_err().reason, Reason::KeyNotFound);
        }
    }

    #[test]
    fn a_reserved_alias_leads_nowhere_and_is_nobody_elses() {
        let (registry, key) = registry();
        let other = KeyId::from_bytes([3; 16]);
        registry.reserve(&key.instance, &[alias("soon")], key.id).unwrap();
        assert!(registry.find(&"instances/default/keys/soon".parse().unwrap()).is_err());
        let taken = registry.reserve(&key.instance, &[alias("new"), alias("soon")], other);
        assert_eq!(taken.unwrap_err().reason, Reason::AliasTaken);
        registry.reserve(&key.instance, &[alias("new")], other).unwrap();
        registry.free(&key.instance, &[alias("soon")]);
        registry.reserve(&key.instance, &[alias("soon")], other).unwrap();
        registry.reserve(&"other".parse().unwrap(), &[alias("volumes")], other).unwrap();
    }

    #[test]
    fn keys_are_paged_by_age_and_then_id() {
        let keys = [(2, 1), (1, 9), (1, 3)].map(|(time, id)| Key {
            id: KeyId::from_bytes([id; 16]),
            ..key_at(Timestamp::from_seconds(time))
        });
        let registry = Registry::new(keys.to_vec());
        let instance = "default".parse().unwrap();
        let first = registry.after(&instance, None, 2);
        assert_eq!(first.iter().map(|key| key.id.as_bytes()[0]).collect::<Vec<_>>(), [3, 9]);
        let last = &first[1];
        let rest = registry.after(&instance, Some((last.history.activated, last.id)), 2);
        assert_eq!(rest.iter().map(|key| key.id.as_bytes()[0]).collect::<Vec<_>>(), [1]);
    }
}

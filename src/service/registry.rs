//! Every key in memory, for the hot path: found by id or alias, read without a
//! lock, changed by one task at a time.
//!
//! What is here is what the store holds, except while a change is under way: a
//! change that takes something away is here before it is in the store, one that
//! gives something is here after (`facts/reliability.md` 2.2).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use tokio::sync::Mutex;

use super::budget::Budget;
use crate::domain::{
    Alias, InstanceId, Key, KeyId, KeyName, KeyRef, KeyRingId, Moment, Registered, RunTime,
    Timestamp, VersionId,
};
use crate::error::{Error, Reason};

/// A key's place in memory.
pub(super) struct Slot {
    key: ArcSwap<Key>,
    budget: ArcSwap<Budget>,
    registered: ArcSwap<Registered>,
    /// Counts changes of registrations since the start.
    registrations: AtomicU64,
    /// When a DEK was last unwrapped, in microseconds; [`NEVER`] if that is not known.
    unwrapped: AtomicI64,
    /// Whether that is to be written down.
    unwritten: AtomicBool,
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

    /// What its primary version may wrap.
    pub(super) fn budget(&self) -> Arc<Budget> {
        self.budget.load_full()
    }

    /// Resources that are registered against it.
    pub(super) fn registered(&self) -> Registered {
        **self.registered.load()
    }

    /// Notes how many resources are registered, after any change of a registration.
    /// Whoever does holds `changing`.
    pub(super) fn set_registered(&self, registered: Registered) {
        self.registrations.fetch_add(1, Ordering::Release);
        self.registered.store(Arc::new(registered));
    }

    /// How often its registrations changed since the start.
    pub(super) fn registrations(&self) -> u64 {
        self.registrations.load(Ordering::Acquire)
    }

    /// Notes that a DEK was unwrapped. True if that must be put down to be written:
    /// the first time since it was written last.
    pub(super) fn note_unwrap(&self, time: Timestamp) -> bool {
        self.unwrapped.store(time.as_micros(), Ordering::Relaxed);
        // Read first: that costs nothing where many threads unwrap under one key.
        !self.unwritten.load(Ordering::Relaxed) && !self.unwritten.swap(true, Ordering::AcqRel)
    }

    /// When a DEK was last unwrapped, as it is written now.
    pub(super) fn writes_unwrap(&self) -> Option<Timestamp> {
        self.unwritten.store(false, Ordering::Release);
        self.last_unwrap()
    }

    /// When a DEK was last unwrapped, if that is known.
    pub(super) fn last_unwrap(&self) -> Option<Timestamp> {
        let micros = self.unwrapped.load(Ordering::Relaxed);
        (micros != NEVER).then_some(Timestamp::from_micros(micros))
    }
}

/// In place of a time.
const NEVER: i64 = i64::MIN;

/// Every key.
pub(super) struct Registry(RwLock<Index>);

/// How many keys there are of something.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Count {
    /// Of every state.
    pub(super) total: u64,
    /// Those that are not deleted.
    pub(super) live: u64,
}

#[derive(Default)]
struct Index {
    slots: HashMap<KeyId, Arc<Slot>>,
    /// Reserved before the key with the alias is committed, freed after.
    aliases: HashMap<(InstanceId, Alias), KeyId>,
    /// By age, for paging.
    order: HashMap<InstanceId, BTreeSet<(Timestamp, KeyId)>>,
    counts: HashMap<(InstanceId, KeyRingId), Count>,
    /// When something is to be done about a key by itself: at a date, or when the
    /// daemon has run so long.
    dates: BTreeSet<(Timestamp, KeyId)>,
    runs: BTreeSet<(RunTime, KeyId)>,
}

impl Registry {
    pub(super) fn new(
        keys: Vec<Key>,
        registered: &HashMap<KeyId, Registered>,
        wrap_grants: &HashMap<VersionId, u64>,
        unwrapped: &HashMap<KeyId, Timestamp>,
    ) -> Self {
        let registry = Self(RwLock::default());
        for key in keys {
            let aliases = key.details.aliases.iter();
            let aliases = aliases.map(|alias| ((key.instance.clone(), alias.clone()), key.id));
            registry.0.write().aliases.extend(aliases);
            let granted = wrap_grants.get(&key.primary().id).copied().unwrap_or(0);
            let registered = registered.get(&key.id).copied().unwrap_or_default();
            let unwrapped = unwrapped.get(&key.id).copied();
            registry.add(Arc::new(key), granted, (registered, unwrapped));
        }
        registry
    }

    /// Finds a key by its name.
    ///
    /// # Errors
    /// KEY_NOT_FOUND.
    pub(super) fn find_even_purging(&self, name: &KeyName) -> Result<Arc<Slot>, Error> {
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

    /// The same, but a key whose material is being destroyed is there no more.
    ///
    /// # Errors
    /// KEY_NOT_FOUND.
    pub(super) fn find(&self, name: &KeyName) -> Result<Arc<Slot>, Error> {
        let slot = self.find_even_purging(name)?;
        let purging = slot.key.load().history.purging.is_some();
        if purging { Err(not_found(name)) } else { Ok(slot) }
    }

    /// The key with that id, if any.
    pub(super) fn by_id(&self, id: KeyId) -> Option<Arc<Slot>> {
        self.0.read().slots.get(&id).cloned()
    }

    /// Adds a key that is committed. Its aliases are reserved already.
    pub(super) fn insert(&self, key: Arc<Key>) {
        self.add(key, 0, (Registered::default(), None));
    }

    fn add(
        &self,
        key: Arc<Key>,
        granted: u64,
        (registered, unwrapped): (Registered, Option<Timestamp>),
    ) {
        let mut index = self.0.write();
        let place = (key.history.activated, key.id);
        index.order.entry(key.instance.clone()).or_default().insert(place);
        index.note(None, Some(&key));
        let slot = Slot {
            budget: ArcSwap::from_pointee(Budget::new(key.primary().id, granted)),
            registered: ArcSwap::from_pointee(registered),
            registrations: AtomicU64::new(0),
            unwrapped: AtomicI64::new(unwrapped.map_or(NEVER, Timestamp::as_micros)),
            unwritten: AtomicBool::new(false),
            key: ArcSwap::new(Arc::clone(&key)),
            changing: Mutex::default(),
        };
        index.slots.insert(key.id, Arc::new(slot));
    }

    /// Makes `key` what everybody sees from now on. Whoever does holds the slot's
    /// lock.
    pub(super) fn publish(&self, slot: &Slot, key: Arc<Key>) {
        if slot.budget.load().version != key.primary().id {
            slot.budget.store(Arc::new(Budget::new(key.primary().id, 0)));
        }
        let old = slot.key.swap(Arc::clone(&key));
        if agenda(&old) != agenda(&key) || membership(&old) != membership(&key) {
            self.0.write().note(Some(&old), Some(&key));
        }
    }

    /// Takes a key out that is no more.
    pub(super) fn remove(&self, key: &Key) {
        let mut index = self.0.write();
        index.note(Some(key), None);
        if let Some(order) = index.order.get_mut(&key.instance) {
            order.remove(&(key.history.activated, key.id));
        }
        index.aliases.retain(|_, owner| *owner != key.id);
        index.slots.remove(&key.id);
    }

    /// Keys about which something is to be done by itself at `now`, up to `most`.
    pub(super) fn due(&self, now: Moment, most: usize) -> Vec<Arc<Slot>> {
        let index = self.0.read();
        let dates = index.dates.iter().take_while(|(date, _)| *date <= now.time);
        let runs = index.runs.iter().take_while(|(run, _)| *run <= now.run);
        // So that what cannot be done of the one kind does not keep back the other.
        let half = most.div_ceil(2);
        let ids = runs.map(|(_, id)| id).take(half).chain(dates.map(|(_, id)| id).take(half));
        ids.filter_map(|id| index.slots.get(id)).cloned().collect()
    }

    /// How many keys a ring holds.
    pub(super) fn count_of(&self, instance: &InstanceId, ring: &KeyRingId) -> Count {
        let entry = (instance.clone(), ring.clone());
        self.0.read().counts.get(&entry).copied().unwrap_or_default()
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

    /// Keys that a ring holds. Looks at every key of the instance.
    pub(super) fn in_ring(&self, instance: &InstanceId, ring: &KeyRingId) -> Vec<Arc<Slot>> {
        let index = self.0.read();
        let order = index.order.get(instance).into_iter().flatten();
        let slots = order.filter_map(|(_, id)| index.slots.get(id));
        slots.filter(|slot| slot.key.load().ring == *ring).cloned().collect()
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

impl Index {
    /// Puts counts and agenda right after a key changed, came or went.
    fn note(&mut self, old: Option<&Key>, new: Option<&Key>) {
        if let Some(old) = old {
            let (date, run) = agenda(old);
            date.map(|date| self.dates.remove(&(date, old.id)));
            run.map(|run| self.runs.remove(&(run, old.id)));
            let (ring, live) = membership(old);
            let count = self.counts.entry((old.instance.clone(), ring.clone())).or_default();
            count.total -= 1;
            count.live -= u64::from(live);
        }
        if let Some(new) = new {
            let (date, run) = agenda(new);
            date.map(|date| self.dates.insert((date, new.id)));
            run.map(|run| self.runs.insert((run, new.id)));
            let (ring, live) = membership(new);
            let count = self.counts.entry((new.instance.clone(), ring.clone())).or_default();
            count.total += 1;
            count.live += u64::from(live);
        }
    }
}

/// When something is to be done about the key by itself.
fn agenda(key: &Key) -> (Option<Timestamp>, Option<RunTime>) {
    if key.history.purging.is_some() {
        // Begun and not finished: as soon as can be.
        return (None, Some(RunTime::default()));
    }
    let expiry = key.expiry_due();
    let date = match (expiry, key.rotation_due()) {
        (Some(expiry), Some(rotation)) => Some(expiry.min(rotation)),
        (expiry, rotation) => expiry.or(rotation),
    };
    (date, key.purge_due())
}

fn membership(key: &Key) -> (&KeyRingId, bool) {
    (&key.ring, key.history.destroyed.is_none())
}

fn not_found(name: &KeyName) -> Error {
    Error::new(Reason::KeyNotFound, format!("there is no key {name}")).about(name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::tests::key_at;
    use crate::domain::time::tests::at;
    use crate::domain::{Profile, RotationPeriod};

    fn of(keys: Vec<Key>) -> Registry {
        Registry::new(keys, &HashMap::new(), &HashMap::new(), &HashMap::new())
    }

    fn alias(text: &str) -> Alias {
        text.parse().unwrap()
    }

    fn registry() -> (Registry, Key) {
        let mut key = key_at(at(1));
        key.details.aliases = vec![alias("volumes")];
        (of(vec![key.clone()]), key)
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
    fn an_unwrap_is_put_down_once_until_it_is_written() {
        let (registry, key) = registry();
        let slot = registry.by_id(key.id).unwrap();
        assert_eq!(slot.last_unwrap(), None);
        let noted = [5, 6].map(|seconds| slot.note_unwrap(at(seconds).time));
        assert_eq!(noted, [true, false]);
        assert_eq!(slot.writes_unwrap(), Some(at(6).time));
        assert!(slot.note_unwrap(at(7).time));
    }

    #[test]
    fn keys_are_paged_by_age_and_then_id() {
        let keys = [(2, 1), (1, 9), (1, 3)]
            .map(|(time, id)| Key { id: KeyId::from_bytes([id; 16]), ..key_at(at(time)) });
        let registry = of(keys.to_vec());
        let instance = "default".parse().unwrap();
        let first = registry.after(&instance, None, 2);
        assert_eq!(first.iter().map(|key| key.id.as_bytes()[0]).collect::<Vec<_>>(), [3, 9]);
        let last = &first[1];
        let rest = registry.after(&instance, Some((last.history.activated, last.id)), 2);
        assert_eq!(rest.iter().map(|key| key.id.as_bytes()[0]).collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn what_is_due_comes_by_date_and_by_run_time_and_goes_with_its_cause() {
        let mut key = key_at(at(10));
        key.history.expires = Some(at(100).time);
        key.rotation = RotationPeriod::from_days(30).ok();
        let registry = of(vec![key.clone()]);
        let slot = registry.by_id(key.id).unwrap();
        let due = |seconds| registry.due(at(seconds), 10).len();
        assert_eq!((due(99), due(100)), (0, 1));
        let mut noted = (*slot.key()).clone();
        noted.history.expiry_noted = true;
        registry.publish(&slot, Arc::new(noted.clone()));
        assert_eq!(due(100 * 86_400), 0);
        noted.history.destroyed = Some(at(200));
        registry.publish(&slot, Arc::new(noted.clone()));
        assert_eq!((due(200 + 90 * 86_400 - 1), due(200 + 90 * 86_400)), (0, 1));
        noted.history.purging = Some(at(300));
        registry.publish(&slot, Arc::new(noted.clone()));
        assert_eq!(due(0), 1);
        assert!(registry.find(&key.name().parse().unwrap()).is_err());
        registry.remove(&noted);
        assert_eq!((due(1_000_000_000), registry.len()), (0, 0));
    }

    #[test]
    fn rings_are_counted_with_and_without_deleted_keys() {
        let key = key_at(at(1));
        let registry = of(vec![key.clone()]);
        let slot = registry.by_id(key.id).unwrap();
        let (default, other) = (KeyRingId::default_ring(), "other".parse().unwrap());
        let count = |ring: &KeyRingId| {
            let count = registry.count_of(&key.instance, ring);
            (count.total, count.live)
        };
        assert_eq!((count(&default), count(&other)), ((1, 1), (0, 0)));
        registry.publish(&slot, Arc::new(Key { ring: other.clone(), ..key.clone() }));
        assert_eq!((count(&default), count(&other)), ((0, 0), (1, 1)));
        let mut gone = (*slot.key()).clone();
        gone.history.destroyed = Some(at(2));
        registry.publish(&slot, Arc::new(gone));
        assert_eq!(count(&other), (1, 0));
        assert!(slot.key().disabled(at(3), Profile::Vpc).is_err());
    }
}

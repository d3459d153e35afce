//! Instances in memory: their policies, rings, import tokens and counts of calls.
//!
//! A key that is made, moved or restored *holds* its ring meanwhile, so that neither
//! ring nor instance can be deleted under it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::{Mutex, RwLock};

use super::registry::{Count, Registry};
use crate::domain::{ImportToken, Instance, InstanceId, Ipv4Net, KeyRing, KeyRingId};
use crate::error::{Error, Reason};

/// Every instance, by name.
pub(super) struct Tenants {
    by_id: RwLock<BTreeMap<InstanceId, Arc<Tenant>>>,
    /// Whether some instance ever wanted its calls counted: so long as none did, a
    /// call costs nothing more.
    counting: AtomicBool,
}

/// One instance.
pub(super) struct Tenant {
    pub(super) id: InstanceId,
    info: ArcSwap<Instance>,
    rings: Mutex<Rings>,
    /// Held over a change of its policies, token or self, commit included
    /// (docs/adr/0004).
    pub(super) changing: tokio::sync::Mutex<()>,
    import_token: ArcSwapOption<ImportToken>,
    calls: Mutex<BTreeMap<(&'static str, String), Calls>>,
}

/// How many calls ended in one way, and how long they took together.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Calls {
    /// How many.
    pub count: u64,
    /// Their time together.
    pub took: Duration,
}

struct Rings {
    /// The instance is being deleted, or is deleted.
    closed: bool,
    by_id: BTreeMap<KeyRingId, RingState>,
}

struct RingState {
    /// `None` for `default`.
    ring: Option<Arc<KeyRing>>,
    /// Keys that are being made in it, moved to it or restored in it.
    holds: usize,
    /// It is being deleted.
    closing: bool,
}

/// Keeps a ring from being deleted, until it is dropped.
pub(super) struct Hold {
    tenant: Arc<Tenant>,
    ring: KeyRingId,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(state) = self.tenant.rings.lock().by_id.get_mut(&self.ring) {
            state.holds -= 1;
        }
    }
}

impl Tenants {
    pub(super) fn new(
        instances: Vec<Instance>,
        rings: Vec<KeyRing>,
        tokens: Vec<ImportToken>,
    ) -> Self {
        let tenants = Self { by_id: RwLock::default(), counting: AtomicBool::new(false) };
        for instance in instances {
            tenants.insert(instance);
        }
        for ring in rings {
            if let Some(tenant) = tenants.any(&ring.instance) {
                tenant.insert_ring(ring);
            }
        }
        for token in tokens {
            if let Some(tenant) = tenants.any(&token.instance) {
                tenant.set_import_token(Some(token));
            }
        }
        tenants
    }

    /// An instance that is not deleted.
    pub(super) fn open(&self, id: &InstanceId) -> Option<Arc<Tenant>> {
        self.any(id).filter(|tenant| tenant.info.load().deleted.is_none())
    }

    /// An instance, deleted or not.
    pub(super) fn any(&self, id: &InstanceId) -> Option<Arc<Tenant>> {
        self.by_id.read().get(id).cloned()
    }

    /// The same as [`Tenants::open`], as an error.
    ///
    /// # Errors
    /// INSTANCE_NOT_FOUND.
    pub(super) fn find(&self, id: &InstanceId) -> Result<Arc<Tenant>, Error> {
        let missing = || Error::new(Reason::InstanceNotFound, format!("there is no instance {id}"));
        self.open(id).ok_or_else(|| missing().about(format!("instances/{id}")))
    }

    /// Whether calls may have to be counted.
    pub(super) fn counting(&self) -> bool {
        self.counting.load(Ordering::Relaxed)
    }

    /// From now on they may.
    pub(super) fn start_counting(&self) {
        self.counting.store(true, Ordering::Relaxed);
    }

    /// Adds one.
    pub(super) fn insert(&self, instance: Instance) -> Arc<Tenant> {
        if instance.policies.metrics {
            self.start_counting();
        }
        let closed = instance.deleted.is_some();
        let default = RingState { ring: None, holds: 0, closing: false };
        let by_id = BTreeMap::from([(KeyRingId::default_ring(), default)]);
        let tenant = Arc::new(Tenant {
            id: instance.id.clone(),
            info: ArcSwap::from_pointee(instance),
            rings: Mutex::new(Rings { closed, by_id }),
            changing: tokio::sync::Mutex::default(),
            import_token: ArcSwapOption::empty(),
            calls: Mutex::default(),
        });
        self.by_id.write().insert(tenant.id.clone(), Arc::clone(&tenant));
        tenant
    }

    /// Up to `most` instances after `after`, by name.
    pub(super) fn after(&self, after: Option<&InstanceId>, most: usize) -> Vec<Arc<Tenant>> {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, Excluded);
        let tenants = self.by_id.read();
        tenants
            .range::<InstanceId, _>((from, Unbounded))
            .take(most)
            .map(|(_, t)| t.clone())
            .collect()
    }

    /// Instances that have an import token, ended or not.
    pub(super) fn with_token(&self) -> Vec<Arc<Tenant>> {
        self.those(|tenant| tenant.import_token.load().is_some())
    }

    fn those(&self, wanted: impl Fn(&Tenant) -> bool) -> Vec<Arc<Tenant>> {
        self.by_id.read().values().filter(|tenant| wanted(tenant)).cloned().collect()
    }

    /// Holds a ring of an instance.
    ///
    /// # Errors
    /// INSTANCE_NOT_FOUND, KEY_RING_NOT_FOUND.
    pub(super) fn hold(&self, instance: &InstanceId, ring: &KeyRingId) -> Result<Hold, Error> {
        let tenant = self.find(instance)?;
        {
            let mut rings = tenant.rings.lock();
            let closed = rings.closed;
            let state = rings.by_id.get_mut(ring).filter(|state| !closed && !state.closing);
            state.ok_or_else(|| no_ring(instance, ring))?.holds += 1;
        }
        Ok(Hold { tenant, ring: ring.clone() })
    }
}

impl Tenant {
    /// What it is, with its policies.
    pub(super) fn info(&self) -> Arc<Instance> {
        self.info.load_full()
    }

    /// Whether its policies answer a caller at `address`.
    pub(super) fn answers(&self, address: Option<IpAddr>, private: &[Ipv4Net]) -> bool {
        self.info.load().policies.allow_caller(address, private)
    }

    /// Makes `instance` what everybody sees.
    pub(super) fn set_info(&self, instance: Instance) {
        self.info.store(Arc::new(instance));
    }

    /// Its import token, ended or not.
    pub(super) fn import_token(&self) -> Option<Arc<ImportToken>> {
        self.import_token.load_full()
    }

    /// Puts another import token in the place of this one.
    pub(super) fn set_import_token(&self, token: Option<ImportToken>) {
        self.import_token.store(token.map(Arc::new));
    }

    /// Whether there is a ring of that name.
    pub(super) fn has_ring(&self, ring: &KeyRingId) -> bool {
        self.rings.lock().by_id.contains_key(ring)
    }

    /// How many rings there are.
    pub(super) fn ring_count(&self) -> usize {
        self.rings.lock().by_id.len()
    }

    /// Adds a ring.
    pub(super) fn insert_ring(&self, ring: KeyRing) {
        let state = RingState { ring: Some(Arc::new(ring.clone())), holds: 0, closing: false };
        self.rings.lock().by_id.insert(ring.id, state);
    }

    /// Takes a ring out.
    pub(super) fn remove_ring(&self, ring: &KeyRingId) {
        self.rings.lock().by_id.remove(ring);
    }

    /// Every ring by name, with what made it; `None` for `default`.
    pub(super) fn rings(&self) -> Vec<(KeyRingId, Option<Arc<KeyRing>>)> {
        let rings = self.rings.lock();
        rings.by_id.iter().map(|(id, state)| (id.clone(), state.ring.clone())).collect()
    }

    /// Closes a ring that holds no key but, by `force`, deleted ones: nothing comes
    /// into it any more.
    ///
    /// # Errors
    /// KEY_RING_NOT_FOUND, KEY_RING_NOT_EMPTY.
    pub(super) fn close_ring(
        &self,
        registry: &Registry,
        ring: &KeyRingId,
        force: bool,
    ) -> Result<Arc<KeyRing>, Error> {
        let mut rings = self.rings.lock();
        let state = rings.by_id.get_mut(ring).filter(|state| !state.closing);
        let state = state.ok_or_else(|| no_ring(&self.id, ring))?;
        let kept = state.ring.clone().ok_or_else(|| no_ring(&self.id, ring))?;
        let Count { total, live } = registry.count_of(&self.id, ring);
        if state.holds > 0 || live > 0 || (total > 0 && !force) {
            let message =
                format!("the key ring {ring} holds {total} keys, {live} of them not deleted");
            let name = format!("instances/{}/keyRings/{ring}", self.id);
            return Err(Error::new(Reason::KeyRingNotEmpty, message).about(name));
        }
        state.closing = true;
        Ok(kept)
    }

    /// Opens a ring again that could not be deleted.
    pub(super) fn reopen_ring(&self, ring: &KeyRingId) {
        if let Some(state) = self.rings.lock().by_id.get_mut(ring) {
            state.closing = false;
        }
    }

    /// Closes the instance if all of its keys are deleted.
    ///
    /// # Errors
    /// INSTANCE_NOT_EMPTY.
    pub(super) fn close(&self, registry: &Registry) -> Result<(), Error> {
        let mut rings = self.rings.lock();
        let live: u64 = rings.by_id.keys().map(|ring| registry.count_of(&self.id, ring).live).sum();
        if live > 0 || rings.by_id.values().any(|state| state.holds > 0) {
            let message = format!("the instance has {live} keys that are not deleted");
            return Err(Error::new(Reason::InstanceNotEmpty, message)
                .about(format!("instances/{}", self.id)));
        }
        rings.closed = true;
        Ok(())
    }

    /// Opens it again after it could not be deleted.
    pub(super) fn reopen(&self) {
        self.rings.lock().closed = false;
    }

    /// Keys of all its rings.
    pub(super) fn count(&self, registry: &Registry) -> Count {
        let rings = self.rings.lock();
        let counts = rings.by_id.keys().map(|ring| registry.count_of(&self.id, ring));
        counts.fold(Count::default(), |sum, ring| Count {
            total: sum.total + ring.total,
            live: sum.live + ring.live,
        })
    }

    /// Counts a call, if the metrics policy wants it; `reason` is empty for success.
    pub(super) fn count_call(&self, action: &'static str, reason: &str, took: Duration) {
        if !self.info.load().policies.metrics {
            return;
        }
        let mut calls = self.calls.lock();
        let entry = calls.entry((action, reason.to_owned())).or_default();
        entry.count += 1;
        entry.took += took;
    }

    /// What was counted, by action and reason.
    pub(super) fn calls(&self) -> Vec<(&'static str, String, Calls)> {
        let calls = self.calls.lock();
        calls.iter().map(|((action, reason), calls)| (*action, reason.clone(), *calls)).collect()
    }

    /// Forgets what was counted.
    pub(super) fn forget_calls(&self) {
        self.calls.lock().clear();
    }
}

pub(super) fn no_ring(instance: &InstanceId, ring: &KeyRingId) -> Error {
    Error::new(Reason::KeyRingNotFound, format!("there is no key ring {ring}"))
        .about(format!("instances/{instance}/keyRings/{ring}"))
}

//! What a change of a key would do to the resources that it protects. Counts cost the
//! same however many there are; resources come by the page.
//!
//! Whoever has looked at it can change the key on the condition that nothing is
//! otherwise since: that is the impact token.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use super::registrations::RegistrationsWanted;
use super::registry::Slot;
use super::resources::ResourceReport;
use super::{Answer, Call, Listed, Service};
use crate::domain::resource_status::{Attachment, Status, Subject, cell};
use crate::domain::{
    Condition, Crn, Force, Key, KeyName, Moment, Permission, Place, ResourceKind, Timestamp,
};
use crate::error::{Error, Reason};

/// A change of a key that somebody thinks of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyChange {
    /// DisableKey.
    Disable,
    /// DeleteKey, with force.
    Delete,
    /// The services lose their bindings.
    RemoveAuthorization,
}

/// Which impact is wanted.
#[derive(Clone, Debug)]
pub struct ImpactWanted {
    /// Of this key.
    pub key: KeyName,
    /// Of this change.
    pub change: KeyChange,
    /// 1 to 5000.
    pub page_size: usize,
    /// From the page before, or empty.
    pub page_token: String,
}

/// What a change of a key would do.
#[derive(Debug)]
pub struct Impact {
    /// The key.
    pub key: Arc<Key>,
    /// Kinds that there are resources of, in the order of the tables.
    pub kinds: Vec<KindImpact>,
    /// Registrations that prevent the deletion of the key.
    pub preventing: u64,
    /// Why the change would be refused now.
    pub refusal: Option<Reason>,
    /// Names of the versions in use, and how many resources each has.
    pub versions: Vec<(String, u64)>,
    /// When a DEK was last unwrapped, if that is known.
    pub last_unwrap: Option<Timestamp>,
    /// A page of resources, as they would be.
    pub resources: Vec<ResourceReport>,
    /// Virtual servers of that page that would be stopped.
    pub stopped: BTreeSet<Crn>,
    /// For the next page; empty on the last.
    pub next_page_token: String,
    /// What it holds for; DisableKey and DeleteKey take it.
    pub token: String,
}

/// Resources of one kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KindImpact {
    /// The kind.
    pub kind: ResourceKind,
    /// How many there are.
    pub total: u64,
    /// How many of them are attached.
    pub attached: u64,
    /// What they would be.
    pub status: Status,
}

impl Service {
    /// What a change of a key would do.
    ///
    /// # Errors
    /// KEY_NOT_FOUND, or of the store.
    pub async fn key_impact(
        &self,
        call: &Call,
        wanted: ImpactWanted,
    ) -> Result<Answer<Impact>, Error> {
        let ImpactWanted { key: name, change, page_size, page_token } = wanted;
        let slot = self.registry.find(&name)?;
        let key = slot.key();
        // Before the rest is read: what changes meanwhile makes it stale.
        let token = self.impact_token(&slot, &key);
        let now = self.now();
        let would_be = |condition: Condition| match change {
            KeyChange::Disable => condition.max(Condition::Suspended),
            KeyChange::Delete => condition.max(Condition::Destroyed),
            KeyChange::RemoveAuthorization => condition.max(Condition::AuthorizationRemoved),
        };
        let counts = self.store.count_registrations(key.id).await?;
        let page = RegistrationsWanted {
            instance: key.instance.clone(),
            key: Some(name),
            page_size,
            page_token,
            resources: None,
            preventing: false,
        };
        let Listed { items, next_page_token } = self.list_registrations(call, page).await?.value;
        let resources: Vec<_> =
            self.protected(items).iter().map(|it| it.report_in(would_be(it.told()))).collect();
        // Deleted already is stopped already.
        let stops = change == KeyChange::Delete && Condition::of(&key, now) != Condition::Destroyed;
        let stopped = resources.iter().filter(|report| stops && report.subject.is_volume());
        let stopped = stopped.filter_map(|report| report.attached_to.clone()).collect();

        let mut versions = BTreeMap::new();
        let mut kinds: BTreeMap<ResourceKind, (u64, u64)> = BTreeMap::new();
        for count in counts {
            *versions.entry(key.version_name(count.version)).or_default() += count.n;
            let (total, attached) = kinds.entry(count.kind).or_default();
            *total += count.n;
            *attached += if count.attached { count.n } else { 0 };
        }
        let condition = would_be(Condition::of(&key, now));
        let kinds = kinds.into_iter().map(|(kind, (total, attached))| {
            let status = cell(Subject::Registered(kind), condition, Attachment::Attached).status;
            KindImpact { kind, total, attached, status }
        });
        let impact = Impact {
            kinds: kinds.collect(),
            preventing: slot.registered().preventing,
            refusal: self.refusal_of(call, (&slot, &key), change, now),
            versions: versions.into_iter().collect(),
            last_unwrap: slot.last_unwrap(),
            resources,
            stopped,
            next_page_token,
            token,
            key,
        };
        let about = impact.key.name();
        Ok(Answer::about(impact, about))
    }

    /// Refuses a change of `key` whose impact was looked at and is another now. The
    /// caller holds the slot's lock.
    ///
    /// # Errors
    /// IMPACT_STALE.
    pub(super) fn check_impact(&self, slot: &Slot, key: &Key, token: &str) -> Result<(), Error> {
        if token.is_empty() || token == self.impact_token(slot, key) {
            return Ok(());
        }
        let message = "the key or its registrations changed since its impact was looked at";
        Err(Error::new(Reason::ImpactStale, message))
    }

    fn impact_token(&self, slot: &Slot, key: &Key) -> String {
        let hash = Sha256::new()
            .chain_update(self.boot_id.as_bytes())
            .chain_update(key.id.as_bytes())
            .chain_update(key.generation.to_be_bytes())
            .chain_update(slot.registrations().to_be_bytes());
        URL_SAFE_NO_PAD.encode(hash.finalize())
    }

    fn refusal_of(
        &self,
        call: &Call,
        (slot, key): (&Slot, &Key),
        change: KeyChange,
        now: Moment,
    ) -> Option<Reason> {
        let (by, profile) = (&call.principal, self.settings.profile);
        let refused = match change {
            KeyChange::RemoveAuthorization => return None,
            KeyChange::Disable => key.disabled(now, profile).err(),
            KeyChange::Delete => {
                key.deleted((by, Force::Yes), slot.registered(), now, profile).err()
            }
        };
        if !self.bindings.load().allow(by, Permission::ManageKeys, Place::of(key)) {
            return Some(Reason::PermissionDenied);
        }
        refused.map(|denied| Error::from(denied).reason)
    }
}

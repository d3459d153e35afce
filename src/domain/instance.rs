//! Instances and their key rings: the tenants of a daemon.

use super::{InstanceId, KeyRingId, Policies, Timestamp};

/// A tenant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Instance {
    /// For ever.
    pub id: InstanceId,
    /// For people; at most 90 characters.
    pub display_name: String,
    /// When it was made, and by which principal; unset if the configuration names it.
    pub created: Option<(Timestamp, Box<str>)>,
    /// When it was deleted. It stays until its last key is purged.
    pub deleted: Option<Timestamp>,
    /// What holds in it.
    pub policies: Policies,
}

/// A key ring other than `default`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyRing {
    /// Its tenant.
    pub instance: InstanceId,
    /// In it.
    pub id: KeyRingId,
    /// When it was made.
    pub created: Timestamp,
    /// Principal that made it.
    pub created_by: Box<str>,
}

impl Instance {
    /// One that the configuration names.
    pub fn configured(id: InstanceId) -> Self {
        let (display_name, created, deleted) = (String::new(), None, None);
        Self { id, display_name, created, deleted, policies: Policies::default() }
    }

    /// `instances/{instance}`.
    pub fn name(&self) -> String {
        format!("instances/{}", self.id)
    }
}

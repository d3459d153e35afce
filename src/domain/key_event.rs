//! Events of keys, as services with registered resources are told of them: what
//! happened, and until when it is to be acknowledged.
//!
//! Which event a change of a key is follows from the key before and after. Figures:
//! `facts/key-protect.md` sections 3 and 6 (4 hours to acknowledge, 1 hour to sync).

use std::time::Duration;

use super::{Crn, Denied, InstanceId, Key, KeyId, KeyState, Moment, RegistrationId, VersionId};

/// Services acknowledge within this span.
pub const ACKNOWLEDGE_WITHIN: Duration = Duration::from_secs(4 * 60 * 60);
/// A key is synchronized at most once in this span, and not after another event.
pub const SYNC_REST: Duration = Duration::from_secs(60 * 60);
/// What was acknowledged is kept for this long.
pub const EVENTS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What happened to a key.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum KeyEventKind {
    /// It was disabled.
    Disable,
    /// It was enabled.
    Enable,
    /// It was deleted.
    Delete,
    /// It was restored.
    Restore,
    /// It has a new version.
    Rotate,
    /// Its expiration date has come.
    Expire,
    /// Nothing; services shall bring their resources to what it is.
    Sync,
    /// Nothing; a service shall rewrap the DEK of one resource.
    Rewrap,
}

/// An event that is to be told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NewKeyEvent {
    /// Tenant of the key.
    pub instance: InstanceId,
    /// The key.
    pub key: KeyId,
    /// What happened.
    pub kind: KeyEventKind,
    /// When.
    pub at: Moment,
    /// The key's state after it.
    pub state: KeyState,
    /// The version that wraps.
    pub version: VersionId,
    /// The one before, of a rotation.
    pub previous: Option<VersionId>,
    /// What to rewrap, and whose it is; `None` if every service is told.
    pub rewrap: Option<Rewrap>,
}

/// One resource whose DEK is to be rewrapped.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rewrap {
    /// Its registration.
    pub registration: RegistrationId,
    /// The resource.
    pub resource: Crn,
    /// The service that has it.
    pub service: Box<str>,
}

/// An event as a service is told of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KeyEvent {
    /// Grows; an event with a higher one was committed later.
    pub id: u64,
    /// What happened.
    pub event: NewKeyEvent,
    /// Whether the service has acknowledged it.
    pub acknowledged: bool,
}

impl KeyEventKind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Disable,
        Self::Enable,
        Self::Delete,
        Self::Restore,
        Self::Rotate,
        Self::Expire,
        Self::Sync,
        Self::Rewrap,
    ];

    /// For the store and the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Delete => "delete",
            Self::Restore => "restore",
            Self::Rotate => "rotate",
            Self::Expire => "expire",
            Self::Sync => "sync",
            Self::Rewrap => "rewrap",
        }
    }

    /// The kind of that name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// What a change from `old` to `new` is, if services are to be told of it.
    pub fn of(old: &Key, new: &Key) -> Option<Self> {
        let (before, after) = (&old.history, &new.history);
        let cases = [
            (Self::Delete, before.destroyed.is_none() && after.destroyed.is_some()),
            (Self::Restore, before.destroyed.is_some() && after.destroyed.is_none()),
            (Self::Disable, before.suspended.is_none() && after.suspended.is_some()),
            (Self::Enable, before.suspended.is_some() && after.suspended.is_none()),
            (Self::Rotate, new.versions.len() > old.versions.len()),
            (Self::Expire, after.expiry_noted && !before.expiry_noted),
            (Self::Sync, new.told != old.told),
        ];
        cases.into_iter().find(|(_, holds)| *holds).map(|(kind, _)| kind)
    }
}

impl NewKeyEvent {
    /// What services are to be told of a change from `old` to `new` at `now`.
    pub fn of(old: &Key, new: &Key, now: Moment) -> Option<Self> {
        let kind = KeyEventKind::of(old, new)?;
        let rotated = kind == KeyEventKind::Rotate;
        let previous = rotated.then(|| old.primary().id);
        Some(Self { previous, ..Self::about(new, kind, now) })
    }

    /// An event that asks for the rewrap of one resource.
    pub fn rewrap(key: &Key, rewrap: Rewrap, now: Moment) -> Self {
        Self { rewrap: Some(rewrap), ..Self::about(key, KeyEventKind::Rewrap, now) }
    }

    fn about(key: &Key, kind: KeyEventKind, now: Moment) -> Self {
        Self {
            instance: key.instance.clone(),
            key: key.id,
            kind,
            at: now,
            state: key.state(now),
            version: key.primary().id,
            previous: None,
            rewrap: None,
        }
    }
}

impl Key {
    /// With its services told once more at `now`, though nothing happened.
    ///
    /// # Errors
    /// [`Denied::TooEarly`].
    pub fn synced(&self, now: Moment) -> Result<Key, Denied> {
        let wait = self.told.map_or(Duration::ZERO, |told| told.left_of(SYNC_REST, now));
        if !wait.is_zero() {
            let what = "sync cannot be performed until 1 hour after the last event of the key";
            return Err(Denied::TooEarly { what, wait });
        }
        Ok(Key { told: Some(now), generation: self.generation + 1, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::tests::key_at;
    use crate::domain::time::tests::at;
    use crate::domain::{Force, Profile, Registered};

    #[test]
    fn which_event_a_change_is_follows_from_the_key_before_and_after() {
        const KP: Profile = Profile::KeyProtect;
        let key = key_at(at(0));
        let by = "spiffe://td/a".parse().unwrap();
        let suspended = key.disabled(at(1), KP).unwrap();
        let none = Registered::default();
        let deleted = suspended.deleted((&by, Force::No), none, at(2), KP).unwrap();
        let restored = deleted.restored(at(40), KP).unwrap();
        let rotated = key.rotated(key.primary().clone(), at(3), KP).unwrap();
        let mut expired = key.clone();
        expired.history.expiry_noted = true;
        let cases = [
            (&key, &suspended, Some(KeyEventKind::Disable)),
            (&suspended, &suspended.enabled(at(31), KP).unwrap(), Some(KeyEventKind::Enable)),
            (&suspended, &deleted, Some(KeyEventKind::Delete)),
            (&deleted, &restored, Some(KeyEventKind::Restore)),
            (&key, &rotated, Some(KeyEventKind::Rotate)),
            (&key, &expired, Some(KeyEventKind::Expire)),
            (&key, &key.synced(at(4)).unwrap(), Some(KeyEventKind::Sync)),
            (&key, &key.changed(at(5)), None),
        ];
        for (old, new, kind) in cases {
            assert_eq!(KeyEventKind::of(old, new), kind);
        }
        let event = NewKeyEvent::of(&key, &rotated, at(3)).unwrap();
        assert_eq!(event.previous, Some(key.primary().id));
    }

    #[test]
    fn a_key_is_synchronized_an_hour_after_its_last_event() {
        let key = key_at(at(0)).disabled(at(10), Profile::Vpc).unwrap();
        assert!(matches!(key.synced(at(10 + 3_599)), Err(Denied::TooEarly { .. })));
        let synced = key.synced(at(10 + 3_600)).unwrap();
        assert!(synced.synced(at(10 + 3_601)).is_err());
        assert!(key_at(at(0)).synced(at(1)).is_ok());
    }

    #[test]
    fn every_kind_has_a_name_and_is_found_by_it() {
        for kind in KeyEventKind::ALL {
            assert_eq!(KeyEventKind::named(kind.name()), Some(kind));
        }
        assert_eq!(KeyEventKind::named("explode"), None);
    }
}

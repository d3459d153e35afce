//! Disable, enable, delete, restore, purge: what a key becomes, or why it does not.
//! The guards stand in the order of `facts/key-protect.md` section 5.
//!
//! What the *state* allows is `lifecycle.rs`. Windows are measured by the run time
//! (`time.rs`), so that a wrong date neither opens nor closes one. Restore: the
//! seed, "Restoring deleted root keys".

use std::time::Duration;

use thiserror::Error;

use super::{
    Key, KeyAction, KeyState, Moment, PrincipalId, Profile, Refusal, Refused, RunTime, Timestamp,
};

/// A key rests for this long after it was disabled or deleted.
pub const SETTLE: Duration = Duration::from_secs(30);
/// A deleted key can be restored for this long.
pub const RESTORE_WINDOW: Duration = Duration::from_secs(30 * DAY);
/// A deleted key can be purged after this long.
pub const PURGE_WAIT: Duration = Duration::from_secs(4 * 60 * 60);
/// A deleted key is purged by itself after this long.
pub const PURGE_BY_ITSELF: Duration = Duration::from_secs(90 * DAY);
/// The first of two authorizations for deletion is valid for this long.
pub const AUTHORIZATION_WINDOW: Duration = Duration::from_secs(7 * DAY);

/// The first of two authorizations for deletion.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Authorization {
    /// Who gave it.
    pub by: PrincipalId,
    /// When.
    pub at: Moment,
}

/// Resources that are registered against a key.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Registered {
    /// All.
    pub total: u64,
    /// Those that prevent the key's deletion.
    pub preventing: u64,
}

/// Whether to delete a key although resources are registered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Force {
    /// Not if there are any.
    No,
    /// Also then.
    Yes,
}

/// Why a key cannot be changed as asked.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum Denied {
    /// Its state forbids it.
    #[error(transparent)]
    State(#[from] Refused),
    /// It must rest first.
    #[error("too early: {what}")]
    TooEarly {
        /// The rule, in words.
        what: &'static str,
        /// How long until it may.
        wait: Duration,
    },
    /// It was rotated within the hour.
    #[error("this root key was rotated within the last hour: one rotation an hour is allowed")]
    RotatedLately {
        /// How long until it may.
        wait: Duration,
    },
    /// The window to restore it has closed.
    #[error("the key was deleted more than 30 days ago")]
    WindowClosed,
    /// Its expiration date has come.
    #[error("the key has expired")]
    Expired,
    /// Only imported keys can be restored under this profile.
    #[error("only an imported key can be restored")]
    NotImported,
    /// It needs no second authorization.
    #[error("the key has no dual authorization policy")]
    NotDualAuth,
    /// Nobody has given the first authorization, or it has lapsed.
    #[error(
        "1 prior authorization is required for deletion: SetKeyForDeletion, within 7 days, by another principal"
    )]
    NotAuthorized,
    /// The one who deletes is the one who gave the first authorization.
    #[error("the authorization for deletion was given by the same principal; it takes two")]
    SamePrincipal,
    /// A registration prevents it.
    #[error("{count} registrations prevent the deletion of their key")]
    Prevented {
        /// How many do.
        count: u64,
    },
    /// Resources are registered.
    #[error("{count} resources are registered against the key; force deletes it all the same")]
    Registered {
        /// How many are.
        count: u64,
    },
}

impl Key {
    /// Disabled at `now`.
    ///
    /// # Errors
    /// [`Denied::State`].
    pub fn disabled(&self, now: Moment, profile: Profile) -> Result<Key, Denied> {
        self.permit(KeyAction::Disable, now, profile)?;
        let mut new = self.told_change(now);
        new.history.suspended = Some(now);
        Ok(new)
    }

    /// Enabled at `now`.
    ///
    /// # Errors
    /// [`Denied::State`], [`Denied::TooEarly`], [`Denied::Expired`].
    pub fn enabled(&self, now: Moment, profile: Profile) -> Result<Key, Denied> {
        self.permit(KeyAction::Enable, now, profile)?;
        settled(self.history.suspended, now)?;
        if self.history.expired(now.time) {
            return Err(Denied::Expired);
        }
        let mut new = self.told_change(now);
        new.history.suspended = None;
        Ok(new)
    }

    /// With the first authorization for deletion, given by `by` at `now`. Given
    /// again, the later one counts.
    ///
    /// # Errors
    /// [`Denied::State`], [`Denied::NotDualAuth`].
    pub fn set_for_deletion(
        &self,
        by: &PrincipalId,
        now: Moment,
        profile: Profile,
    ) -> Result<Key, Denied> {
        self.permit(KeyAction::SetForDeletion, now, profile)?;
        if !self.dual_auth {
            return Err(Denied::NotDualAuth);
        }
        let authorization = Some(Authorization { by: by.clone(), at: now });
        Ok(Key { authorization, ..self.changed(now) })
    }

    /// Without that authorization.
    ///
    /// # Errors
    /// [`Denied::State`], [`Denied::NotDualAuth`].
    pub fn unset_for_deletion(&self, now: Moment, profile: Profile) -> Result<Key, Denied> {
        self.permit(KeyAction::UnsetForDeletion, now, profile)?;
        if !self.dual_auth {
            return Err(Denied::NotDualAuth);
        }
        Ok(Key { authorization: None, ..self.changed(now) })
    }

    /// The first authorization for deletion, if it is valid at `now`.
    pub fn valid_authorization(&self, now: Moment) -> Option<&Authorization> {
        let valid = |given: &&Authorization| given.at.elapsed(now) < AUTHORIZATION_WINDOW;
        self.authorization.as_ref().filter(valid)
    }

    /// Deleted by `by` at `now`.
    ///
    /// # Errors
    /// In this order: [`Denied::State`], [`Denied::Prevented`], which force does
    /// not help, [`Denied::NotAuthorized`] or [`Denied::SamePrincipal`], neither,
    /// [`Denied::Registered`], which it does.
    pub fn deleted(
        &self,
        (by, force): (&PrincipalId, Force),
        registered: Registered,
        now: Moment,
        profile: Profile,
    ) -> Result<Key, Denied> {
        self.permit(KeyAction::Delete, now, profile)?;
        if registered.preventing > 0 {
            return Err(Denied::Prevented { count: registered.preventing });
        }
        if self.dual_auth {
            let given = self.valid_authorization(now).ok_or(Denied::NotAuthorized)?;
            if given.by == *by {
                return Err(Denied::SamePrincipal);
            }
        }
        if registered.total > 0 && force == Force::No {
            return Err(Denied::Registered { count: registered.total });
        }
        let mut new = Key { authorization: None, ..self.told_change(now) };
        new.history.destroyed = Some(now);
        new.history.restored = None;
        Ok(new)
    }

    /// Restored at `now`: active, whatever it was before it was deleted.
    ///
    /// # Errors
    /// What stands against it, of all that does the one that lasts longest.
    pub fn restored(&self, now: Moment, profile: Profile) -> Result<Key, Denied> {
        self.permit(KeyAction::Restore, now, profile)?;
        if profile == Profile::Vpc && !self.imported {
            return Err(Denied::NotImported);
        }
        if self.history.destroyed.is_some_and(|at| at.elapsed(now) > RESTORE_WINDOW) {
            return Err(Denied::WindowClosed);
        }
        if self.history.expired(now.time) {
            return Err(Denied::Expired);
        }
        settled(self.history.destroyed, now)?;
        let mut new = self.told_change(now);
        new.history.destroyed = None;
        new.history.suspended = None;
        new.history.restored = Some(now);
        Ok(new)
    }

    /// The date until which it can be restored, as it looks by the date of its deletion:
    /// 30 days, or its expiration date if that comes first; `None` while it is not
    /// deleted.
    pub fn restorable_until(&self) -> Option<Timestamp> {
        let window = self.history.destroyed.map(|at| at.time + RESTORE_WINDOW)?;
        Some(self.history.expires.map_or(window, |expires| expires.min(window)))
    }

    /// Given up at `now`: nothing can bring it back, and its material is destroyed.
    ///
    /// # Errors
    /// [`Denied::State`], [`Denied::TooEarly`].
    pub fn purging(&self, now: Moment, profile: Profile) -> Result<Key, Denied> {
        self.permit(KeyAction::Purge, now, profile)?;
        let wait = self.history.destroyed.map_or(PURGE_WAIT, |at| at.left_of(PURGE_WAIT, now));
        if !wait.is_zero() {
            let what = "a key can be purged 4 hours after it was deleted";
            return Err(Denied::TooEarly { what, wait });
        }
        let mut new = self.changed(now);
        new.history.purging = Some(now);
        Ok(new)
    }

    /// From when the key is purged by itself; `None` while it is not deleted.
    pub fn purge_due(&self) -> Option<RunTime> {
        self.history.destroyed.map(|at| at.run + PURGE_BY_ITSELF)
    }

    /// Whether its state at `now` allows `action`. A suspended key past its date
    /// can never be enabled, so it may be set for deletion as it is. Of a key whose
    /// material is being destroyed nothing can be asked any more.
    ///
    /// # Errors
    /// [`Refused`], by the table in `lifecycle.rs`.
    pub fn permit(&self, action: KeyAction, now: Moment, profile: Profile) -> Result<(), Refused> {
        let state = self.state(now);
        if self.history.purging.is_some() && action != KeyAction::Read {
            return Err(Refused { action, state, refusal: Refusal::Destroyed });
        }
        let stuck = state == KeyState::Suspended && self.history.expired(now.time);
        let of_deletion = matches!(action, KeyAction::SetForDeletion | KeyAction::UnsetForDeletion);
        if stuck && of_deletion {
            return Ok(());
        }
        state.permit(action, profile)
    }
}

fn settled(since: Option<Moment>, now: Moment) -> Result<(), Denied> {
    let wait = since.map_or(Duration::ZERO, |since| since.left_of(SETTLE, now));
    let what = "the last action on the key was less than 30 seconds ago";
    if wait.is_zero() { Ok(()) } else { Err(Denied::TooEarly { what, wait }) }
}

const DAY: u64 = 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::tests::key_at;
    use crate::domain::time::tests::at;
    use crate::domain::{Profile::KeyProtect, Profile::Vpc};

    const T0: i64 = 1_000_000;

    fn later(seconds: i64) -> Moment {
        at(T0 + seconds)
    }

    fn who(name: &str) -> PrincipalId {
        format!("spiffe://td/{name}").parse().unwrap()
    }

    fn suspended() -> Key {
        key_at(at(T0)).disabled(at(T0), Vpc).unwrap()
    }

    fn destroyed() -> Key {
        let none = Registered::default();
        key_at(at(T0)).deleted((&who("a"), Force::No), none, at(T0), Vpc).unwrap()
    }

    #[test]
    fn a_key_may_be_enabled_thirty_seconds_after_it_was_disabled() {
        let key = suspended();
        let early = key.enabled(later(29), Vpc).unwrap_err();
        assert!(matches!(early, Denied::TooEarly { wait, .. } if wait == Duration::from_secs(1)));
        assert_eq!(key.enabled(later(30), Vpc).unwrap().history.suspended, None);
    }

    #[test]
    fn a_wrong_date_neither_opens_nor_closes_a_window() {
        let key = suspended();
        let year = Duration::from_secs(365 * DAY);
        let jumped = Moment { time: later(1).time + year, ..later(1) };
        assert!(matches!(key.enabled(jumped, Vpc), Err(Denied::TooEarly { .. })));
        let back = Moment { time: Timestamp::from_seconds(0), ..later(30) };
        assert!(key.enabled(back, Vpc).is_ok());
        let deleted = destroyed();
        assert!(matches!(deleted.purging(jumped, Vpc), Err(Denied::TooEarly { .. })));
        let jumped = Moment { time: later(31).time + year, ..later(31) };
        assert!(deleted.restored(jumped, KeyProtect).is_ok());
    }

    #[test]
    fn an_expired_suspended_key_cannot_be_enabled_but_set_for_deletion() {
        let mut key = Key { dual_auth: true, ..suspended() };
        assert!(key.set_for_deletion(&who("a"), later(30), Vpc).is_err());
        key.history.expires = Some(later(30).time);
        assert_eq!(key.enabled(later(30), Vpc), Err(Denied::Expired));
        let set = key.set_for_deletion(&who("a"), later(30), Vpc).unwrap();
        let none = Registered::default();
        assert!(set.deleted((&who("b"), Force::No), none, later(31), Vpc).is_ok());
    }

    #[test]
    fn restore_is_open_from_thirty_seconds_to_thirty_days() {
        let key = destroyed();
        let at = |seconds| key.restored(later(seconds), KeyProtect).map(drop);
        let day = i64::try_from(DAY).unwrap();
        assert!(matches!(at(29), Err(Denied::TooEarly { .. })));
        assert_eq!(at(30), Ok(()));
        assert_eq!(at(30 * day), Ok(()));
        assert_eq!(at(30 * day + 1), Err(Denied::WindowClosed));
    }

    #[test]
    fn under_the_seed_only_an_imported_key_can_be_restored() {
        let mut key = destroyed();
        assert_eq!(key.restored(later(60), Vpc), Err(Denied::NotImported));
        key.imported = true;
        let restored = key.restored(later(60), Vpc).unwrap();
        assert_eq!(restored.state(later(60)), KeyState::Active);
    }

    #[test]
    fn an_expired_key_cannot_be_restored() {
        let mut key = destroyed();
        key.history.expires = Some(later(30).time);
        assert_eq!(key.restored(later(30), KeyProtect), Err(Denied::Expired));
    }

    #[test]
    fn a_key_says_that_it_can_be_restored_for_30_days_or_until_it_expires() {
        let day = 86_400;
        assert_eq!(key_at(at(T0)).restorable_until(), None);
        let mut key = destroyed();
        assert_eq!(key.restorable_until(), Some(later(30 * day).time));
        for (expires, until) in [(day, day), (40 * day, 30 * day)] {
            key.history.expires = Some(later(expires).time);
            assert_eq!(key.restorable_until(), Some(later(until).time));
        }
    }

    #[test]
    fn a_key_can_be_purged_four_hours_after_it_was_deleted() {
        let key = destroyed();
        let hours = 4 * 60 * 60;
        assert!(matches!(key.purging(later(hours - 1), Vpc), Err(Denied::TooEarly { .. })));
        assert!(key.purging(later(hours), Vpc).unwrap().history.purging.is_some());
        assert_eq!(key.purge_due(), Some(later(90 * 86_400).run));
    }

    #[test]
    fn nothing_brings_back_a_key_that_is_being_purged() {
        let hours = 4 * 60 * 60;
        let key = destroyed().purging(later(hours), KeyProtect).unwrap();
        for denied in
            [key.restored(later(hours), KeyProtect), key.purging(later(hours), KeyProtect)]
        {
            let Err(Denied::State(refused)) = denied else { panic!("{denied:?}") };
            assert_eq!(refused.refusal, Refusal::Destroyed);
        }
    }

    #[test]
    fn a_dual_authorization_takes_two_within_seven_days() {
        let none = Registered::default();
        let key = Key { dual_auth: true, ..key_at(at(T0)) };
        let delete = |key: &Key, by: &str, seconds| {
            key.deleted((&who(by), Force::Yes), none, later(seconds), Vpc).map(drop)
        };
        assert_eq!(delete(&key, "b", 1), Err(Denied::NotAuthorized));
        let set = key.set_for_deletion(&who("a"), later(1), Vpc).unwrap();
        assert_eq!(delete(&set, "a", 2), Err(Denied::SamePrincipal));
        assert_eq!(delete(&set, "b", 2), Ok(()));
        assert_eq!(delete(&set, "b", 7 * 86_400), Ok(()));
        assert_eq!(delete(&set, "b", 7 * 86_400 + 1), Err(Denied::NotAuthorized));
        let unset = set.unset_for_deletion(later(3), Vpc).unwrap();
        assert_eq!(delete(&unset, "b", 4), Err(Denied::NotAuthorized));
        let plain = key_at(at(T0));
        assert_eq!(plain.set_for_deletion(&who("a"), at(T0), Vpc), Err(Denied::NotDualAuth));
    }

    #[test]
    fn the_guards_of_deletion_stand_in_their_order() {
        let some = Registered { total: 3, preventing: 1 };
        let plain = Registered { total: 3, preventing: 0 };
        let dual = Key { dual_auth: true, ..key_at(at(T0)) };
        let delete = |key: &Key, force, registered| {
            key.deleted((&who("b"), force), registered, later(1), Vpc).map(drop)
        };
        assert!(matches!(delete(&destroyed(), Force::Yes, some), Err(Denied::State(_))));
        assert_eq!(delete(&dual, Force::Yes, some), Err(Denied::Prevented { count: 1 }));
        assert_eq!(delete(&dual, Force::Yes, plain), Err(Denied::NotAuthorized));
        let key = key_at(at(T0));
        assert_eq!(delete(&key, Force::No, plain), Err(Denied::Registered { count: 3 }));
        assert_eq!(delete(&key, Force::Yes, plain), Ok(()));
    }
}

//! When a key may be enabled, restored and purged: the windows that open and
//! close with time. What the *state* allows is `lifecycle.rs`.
//!
//! Figures: `facts/key-protect.md` 1.2 and section 5; the seed for restore.

use std::time::Duration;

use thiserror::Error;

use super::{Key, Profile, Timestamp};

/// A key rests for this long after it was disabled or deleted.
pub const SETTLE: Duration = Duration::from_secs(30);
/// A deleted key can be restored for this long.
pub const RESTORE_WINDOW: Duration = Duration::from_secs(30 * DAY);
/// A deleted key can be purged after this long.
pub const PURGE_WAIT: Duration = Duration::from_secs(4 * 60 * 60);
/// A deleted key is purged by itself after this long.
pub const PURGE_BY_ITSELF: Duration = Duration::from_secs(90 * DAY);

/// Why a key in the right state cannot come back now.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum NotNow {
    /// It must rest first.
    #[error("too early: the last action on the key was less than 30 seconds ago")]
    TooEarly {
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
}

/// Whether a suspended key may be enabled at `now`.
///
/// # Errors
/// [`NotNow::Expired`] or [`NotNow::TooEarly`].
pub fn may_enable(key: &Key, now: Timestamp) -> Result<(), NotNow> {
    settled(key.history.suspended, now)?;
    if key.history.expired(now) {
        return Err(NotNow::Expired);
    }
    Ok(())
}

/// Whether a destroyed key may be restored at `now`.
///
/// # Errors
/// What stands against it, of all that does the one that lasts longest.
pub fn may_restore(key: &Key, now: Timestamp, profile: Profile) -> Result<(), NotNow> {
    if profile == Profile::Vpc && !key.imported {
        return Err(NotNow::NotImported);
    }
    if key.history.destroyed.is_some_and(|destroyed| destroyed + RESTORE_WINDOW < now) {
        return Err(NotNow::WindowClosed);
    }
    if key.history.expired(now) {
        return Err(NotNow::Expired);
    }
    settled(key.history.destroyed, now)
}

fn settled(since: Option<Timestamp>, now: Timestamp) -> Result<(), NotNow> {
    let wait = since.map_or(Duration::ZERO, |since| now.until(since + SETTLE));
    if wait.is_zero() { Ok(()) } else { Err(NotNow::TooEarly { wait }) }
}

const DAY: u64 = 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::tests::key_at;

    const T0: Timestamp = Timestamp::from_seconds(1_000_000);

    #[test]
    fn a_key_may_be_enabled_thirty_seconds_after_it_was_disabled() {
        let mut key = key_at(T0);
        key.history.suspended = Some(T0);
        let early = Timestamp::from_micros((T0 + SETTLE).as_micros() - 1);
        let wait = Duration::from_micros(1);
        assert_eq!(may_enable(&key, early), Err(NotNow::TooEarly { wait }));
        assert_eq!(may_enable(&key, T0 + SETTLE), Ok(()));
    }

    #[test]
    fn an_expired_suspended_key_cannot_be_enabled() {
        let mut key = key_at(T0);
        key.history.suspended = Some(T0);
        key.history.expires = Some(T0 + SETTLE);
        assert_eq!(may_enable(&key, T0 + SETTLE), Err(NotNow::Expired));
    }

    #[test]
    fn restore_is_open_from_thirty_seconds_to_thirty_days() {
        let mut key = key_at(T0);
        key.history.destroyed = Some(T0);
        let at =
            |seconds| may_restore(&key, T0 + Duration::from_secs(seconds), Profile::KeyProtect);
        assert!(matches!(at(29), Err(NotNow::TooEarly { .. })));
        assert_eq!(at(30), Ok(()));
        assert_eq!(at(30 * DAY), Ok(()));
        assert_eq!(at(30 * DAY + 1), Err(NotNow::WindowClosed));
    }

    #[test]
    fn under_the_seed_only_an_imported_key_can_be_restored() {
        let mut key = key_at(T0);
        key.history.destroyed = Some(T0);
        let later = T0 + Duration::from_secs(60);
        assert_eq!(may_restore(&key, later, Profile::Vpc), Err(NotNow::NotImported));
        key.imported = true;
        assert_eq!(may_restore(&key, later, Profile::Vpc), Ok(()));
    }

    #[test]
    fn an_expired_key_cannot_be_restored() {
        let mut key = key_at(T0);
        key.history.destroyed = Some(T0);
        key.history.expires = Some(T0 + SETTLE);
        assert_eq!(may_restore(&key, T0 + SETTLE, Profile::KeyProtect), Err(NotNow::Expired));
    }
}

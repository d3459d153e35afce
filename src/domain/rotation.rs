//! Rotation: how often a key may be and is rotated, and how much one version may
//! wrap.
//!
//! Figures: `facts/key-protect.md` section 4; the wrap budget is NIST SP 800-38D
//! 8.3, at most 2^32 invocations of GCM under one key with random IVs.

use std::time::Duration;

use super::{Denied, Key, KeyAction, Malformed, Moment, Profile, Timestamp, Version};

/// A key is rotated at most once in this span.
pub const ROTATION_REST: Duration = Duration::from_secs(60 * 60);
/// What one version may wrap.
pub const WRAP_BUDGET: u64 = 1 << 32;
/// From here on an operator is warned: 50 %.
pub const WRAP_BUDGET_WARNED: u64 = WRAP_BUDGET / 2;
/// From here on it is refused: 90 %.
pub const WRAP_BUDGET_SPENT: u64 = WRAP_BUDGET / 10 * 9;
/// Wraps are counted durably in steps of this many: a crash can waste one step and
/// never give one back.
pub const WRAP_STEP: u64 = 1 << 16;

/// How long a generated key is used before it is rotated by itself: 1 to 12
/// times 30 days.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RotationPeriod(u16);

impl RotationPeriod {
    /// From days: a multiple of 30 up to 360.
    ///
    /// # Errors
    /// [`Malformed`], of the field `key.rotation_period`.
    pub fn from_days(days: u64) -> Result<Self, Malformed> {
        let fits = (30..=360).contains(&days) && days.is_multiple_of(30);
        let days = u16::try_from(days).ok().filter(|_| fits);
        days.map(Self).ok_or(Malformed::new(
            "key.rotation_period",
            "must be a multiple of 30 days, up to 360",
        ))
    }

    /// In days.
    pub const fn days(self) -> u16 {
        self.0
    }

    /// As a span.
    pub const fn span(self) -> Duration {
        Duration::from_secs(self.0 as u64 * 86_400)
    }
}

impl Key {
    /// Whether it may be rotated at `now`.
    ///
    /// # Errors
    /// [`Denied::State`], [`Denied::RotatedLately`].
    pub fn may_rotate(&self, now: Moment, profile: Profile) -> Result<(), Denied> {
        self.permit(KeyAction::Rotate, now, profile)?;
        let wait = self.rotated.map_or(Duration::ZERO, |at| at.left_of(ROTATION_REST, now));
        if wait.is_zero() { Ok(()) } else { Err(Denied::RotatedLately { wait }) }
    }

    /// With `version` as its primary version from `now` on.
    ///
    /// # Errors
    /// As [`Key::may_rotate`].
    pub fn rotated(&self, version: Version, now: Moment, profile: Profile) -> Result<Key, Denied> {
        self.may_rotate(now, profile)?;
        let versions = self.versions.iter().cloned().chain([version]).collect();
        Ok(Key { rotated: Some(now), versions, ..self.told_change(now) })
    }

    /// When its expiration is to be recorded; `None` if that is done, or cannot come
    /// while it is suspended or deleted.
    pub fn expiry_due(&self) -> Option<Timestamp> {
        let quiet = self.history.suspended.is_some() || self.history.destroyed.is_some();
        self.history.expires.filter(|_| !quiet && !self.history.expiry_noted)
    }

    /// When it is to be rotated by itself; `None` without a policy, or while it is
    /// suspended or deleted. The clock of the policy starts when the key is made and
    /// again at each rotation, by hand too.
    pub fn rotation_due(&self) -> Option<Timestamp> {
        let quiet = self.history.suspended.is_some() || self.history.destroyed.is_some();
        let since = self.rotated.map_or(self.history.activated, |at| at.time);
        let due = self.rotation.filter(|_| !quiet).map(|period| since + period.span())?;
        // A deactivated key is not rotated by itself under any profile.
        let expired =
            self.history.expiry_noted || self.history.expires.is_some_and(|expires| expires <= due);
        (!expired).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Profile::Vpc;
    use crate::domain::key::tests::key_at;
    use crate::domain::time::tests::at;

    fn rotated(key: &Key, seconds: i64) -> Result<Key, Denied> {
        key.rotated(key.primary().clone(), at(seconds), Vpc)
    }

    #[test]
    fn the_first_rotation_is_free_and_the_next_comes_an_hour_later() {
        let once = rotated(&key_at(at(10)), 11).unwrap();
        assert_eq!(once.versions.len(), 2);
        let wait = Duration::from_secs(1);
        assert_eq!(rotated(&once, 11 + 3_599), Err(Denied::RotatedLately { wait }));
        assert!(rotated(&once, 11 + 3_600).is_ok());
        let jumped = Moment { time: at(99_999).time, ..at(12) };
        assert!(once.may_rotate(jumped, Vpc).is_err());
    }

    #[test]
    fn a_policy_counts_from_the_last_rotation_and_rests_with_the_key() {
        let period = RotationPeriod::from_days(30).unwrap();
        let month = 30 * 86_400;
        let mut key = Key { rotation: Some(period), ..key_at(at(10)) };
        assert_eq!(key.rotation_due(), Some(Timestamp::from_seconds(10 + month)));
        let once = rotated(&key, 500).unwrap();
        assert_eq!(once.rotation_due(), Some(Timestamp::from_seconds(500 + month)));
        key.history.expires = Some(Timestamp::from_seconds(month));
        assert_eq!(key.rotation_due(), None);
        let off = once.disabled(at(600), Vpc).unwrap();
        assert_eq!(off.rotation_due(), None);
    }

    #[test]
    fn a_period_is_one_to_twelve_times_thirty_days() {
        assert_eq!(RotationPeriod::from_days(360).unwrap().days(), 360);
        for days in [0, 29, 31, 390, u64::MAX] {
            assert!(RotationPeriod::from_days(days).is_err(), "{days}");
        }
    }
}

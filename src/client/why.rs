//! `KeyRefusal`: why a key was refused, as a type that a storage service can match
//! on. It follows from the reason in ErrorInfo alone; `docs/errors.md` has them all.
//!
//! It does not decide what becomes of the resource: that is the service's.

use super::Refusal;

/// Why a root key did not do what was asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum KeyRefusal {
    /// The key is disabled. What is attached goes on; nothing new can be attached.
    Suspended,
    /// The key expired: it unwraps, and wraps no more.
    Deactivated,
    /// The key is deleted. Its resources are unusable until it is restored.
    Destroyed,
    /// A resource cannot be registered against a key that is not active.
    NotActive,
    /// The service may not use the key, or the key might not exist.
    NotPermitted,
    /// Wrapped DEK, key and AAD do not belong together.
    Unverified,
    /// There is no such key.
    NotFound,
    /// There is no such registration.
    NotRegistered,
    /// The newest version has wrapped as much as it may; rotation helps.
    WrapBudgetSpent,
    /// The HSM does not have the key's material: the operator must restore it.
    MaterialMissing,
    /// The daemon, its HSM or its disk cannot be used now. Nothing is said of the key.
    Unavailable,
    /// There was no answer in time. Nothing is said of the key.
    TimedOut,
    /// Another reason: [`Refusal::reason`] has it.
    Other,
}

impl KeyRefusal {
    /// Of a `reason` in ErrorInfo, or the name of a gRPC code.
    pub fn of_reason(reason: &str) -> Self {
        let row = TABLE.iter().find(|(name, _, _)| *name == reason);
        row.map_or(Self::Other, |(_, why, _)| *why)
    }

    /// What the resource's status is due to, in the seed's words: the
    /// `status_reason` of a volume, an image or a snapshot. `None` where no key state
    /// is the cause.
    pub fn status_reason(self) -> Option<&'static str> {
        TABLE.iter().find(|(_, why, _)| *why == self).and_then(|(_, _, reason)| *reason)
    }

    /// Whether the same call can succeed without anybody changing the key or the
    /// service's authorization.
    pub fn is_passing(self) -> bool {
        matches!(self, Self::Unavailable | Self::TimedOut)
    }
}

impl Refusal {
    /// Why, as a type to match on.
    ///
    /// ```
    /// use rootkeyd::client::{KeyRefusal, Refusal};
    ///
    /// fn volume_status(refusal: &Refusal) -> &'static str {
    ///     match refusal.why() {
    ///         KeyRefusal::Destroyed => "unusable",
    ///         KeyRefusal::Suspended => "available, and cannot be attached",
    ///         _ => "available",
    ///     }
    /// }
    /// ```
    pub fn why(&self) -> KeyRefusal {
        KeyRefusal::of_reason(&self.reason)
    }
}

#[rustfmt::skip]
const TABLE: [(&str, KeyRefusal, Option<&str>); 19] = [
    ("KEY_SUSPENDED",          KeyRefusal::Suspended,       Some("encryption_key_disabled")),
    ("KEY_DEACTIVATED",        KeyRefusal::Deactivated,     None),
    ("KEY_DESTROYED",          KeyRefusal::Destroyed,       Some("encryption_key_deleted")),
    ("KEY_NOT_ACTIVE",         KeyRefusal::NotActive,       None),
    ("PERMISSION_DENIED",      KeyRefusal::NotPermitted,    None),
    ("UNAUTHENTICATED",        KeyRefusal::NotPermitted,    None),
    ("SERVICE_ONLY",           KeyRefusal::NotPermitted,    None),
    ("RESOURCE_OWNER",         KeyRefusal::NotPermitted,    None),
    ("CIPHERTEXT_UNVERIFIED",  KeyRefusal::Unverified,      None),
    ("KEY_NOT_FOUND",          KeyRefusal::NotFound,        None),
    ("REGISTRATION_NOT_FOUND", KeyRefusal::NotRegistered,   None),
    ("WRAP_BUDGET_SPENT",      KeyRefusal::WrapBudgetSpent, None),
    ("HSM_KEY_MISSING",        KeyRefusal::MaterialMissing, None),
    ("UNAVAILABLE",            KeyRefusal::Unavailable,     None),
    ("OVERLOADED",             KeyRefusal::Unavailable,     None),
    ("HSM_UNAVAILABLE",        KeyRefusal::Unavailable,     None),
    ("STORE_UNAVAILABLE",      KeyRefusal::Unavailable,     None),
    ("AUDIT_UNAVAILABLE",      KeyRefusal::Unavailable,     None),
    ("DEADLINE_EXCEEDED",      KeyRefusal::TimedOut,        None),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Reason;

    #[test]
    fn every_row_is_a_reason_of_the_daemon_with_its_status_reason() {
        for (name, why, status_reason) in TABLE {
            if name == "UNAVAILABLE" {
                continue; // gRPC's own: nobody answered
            }
            let reason = Reason::named(name).unwrap_or_else(|| panic!("the daemon has no {name}"));
            assert_eq!(reason.wire().status_reason, status_reason, "{name}");
            assert_eq!(KeyRefusal::of_reason(name), why);
        }
    }

    #[test]
    fn every_status_reason_of_the_daemon_has_a_row() {
        for reason in Reason::ALL {
            let wire = reason.wire();
            let why = KeyRefusal::of_reason(wire.name);
            assert_eq!(why.status_reason(), wire.status_reason, "{}", wire.name);
        }
    }

    #[test]
    fn a_reason_of_a_later_daemon_is_another_one() {
        assert_eq!(KeyRefusal::of_reason("KEY_ON_HOLIDAY"), KeyRefusal::Other);
        assert_eq!(KeyRefusal::Other.status_reason(), None);
    }

    #[test]
    fn only_what_says_nothing_of_the_key_passes() {
        assert!(KeyRefusal::of_reason("HSM_UNAVAILABLE").is_passing());
        for reason in ["KEY_SUSPENDED", "KEY_DESTROYED", "PERMISSION_DENIED", "HSM_KEY_MISSING"] {
            assert!(!KeyRefusal::of_reason(reason).is_passing(), "{reason}");
        }
    }
}

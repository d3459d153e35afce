//! What the record of a call says besides who, what and on what: the fields that Key
//! Protect's events have, in our names. Dates are microseconds since the Unix epoch.
//!
//! Which action has which: `facts/key-protect.md` section 10.

use std::time::Duration;

use crate::domain::deletion::{AUTHORIZATION_WINDOW, Authorization, PURGE_BY_ITSELF, PURGE_WAIT};
use crate::domain::{Key, Timestamp};

/// Names and values.
pub(super) type Details = Vec<(String, String)>;

/// Of a key that is made, read or changed.
pub(super) fn of_key(key: &Key, now: Timestamp) -> Details {
    let mut details = vec![
        ("key_type".into(), "root".into()),
        date("key_version_creation_date", key.primary().created),
    ];
    details.extend(of_expiration(key, now));
    details
}

/// Of a key that expires.
pub(super) fn of_expiration(key: &Key, now: Timestamp) -> Details {
    let Some(expires) = key.history.expires else { return Details::new() };
    let days = now.until(expires).as_secs() / DAY_SECONDS;
    vec![date("expiration_date", expires), ("days_to_key_expire".into(), days.to_string())]
}

/// Of what a change replaced.
pub(super) fn of_change(old: &Key, new: &Key) -> Details {
    let mut details = Details::new();
    if old.ring != new.ring {
        details.push(("old_key_ring".into(), old.ring.to_string()));
        details.push(("new_key_ring".into(), new.ring.to_string()));
    }
    if old.authorization != new.authorization {
        for (which, given) in [("old", &old.authorization), ("new", &new.authorization)] {
            let by = given.as_ref().map_or("", |Authorization { by, .. }| by.as_str());
            details.push((format!("{which}_authorization"), by.into()));
            if let Some(Authorization { at, .. }) = given {
                let name = format!("{which}_authorization_expiration");
                details.push(date(&name, at.time + AUTHORIZATION_WINDOW));
            }
        }
    }
    details
}

/// Of a purge of a key that was deleted then.
pub(super) fn of_purge(deleted: Timestamp) -> Details {
    let after = |span: Duration| deleted + span;
    vec![
        date("deletion_date", deleted),
        date("purge_allowed_from", after(PURGE_WAIT)),
        date("purge_eligible_on", after(PURGE_BY_ITSELF)),
    ]
}

/// Of a page of a list.
pub(super) fn of_list<T>(items: &[T]) -> Details {
    vec![("total_resources".into(), items.len().to_string())]
}

pub(super) fn date(name: &str, time: Timestamp) -> (String, String) {
    (format!("{name}_micros"), time.as_micros().to_string())
}

const DAY_SECONDS: u64 = 24 * 60 * 60;

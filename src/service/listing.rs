//! Lists: of keys, of versions, of audit records. Every list is paged, and the
//! work of one page is bounded.

use std::io::ErrorKind::InvalidInput;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Answer, Call, Service, details};
use crate::audit::{AuditError, Cursor, Query, Record};
use crate::domain::{
    InstanceId, Key, KeyId, KeyName, KeyRingId, KeyState, Malformed, Place, Timestamp, Version,
};
use crate::error::{Error, Reason};

/// One page of something.
#[derive(Debug)]
pub struct Listed<T> {
    /// At most as many as were asked for.
    pub items: Vec<T>,
    /// For the next page; empty on the last.
    pub next_page_token: String,
}

/// A key, and one page of its versions.
pub type VersionsOfKey = (Arc<Key>, Listed<Version>);

/// Which keys to list.
#[derive(Clone, Debug)]
pub struct KeyQuery {
    /// Of this tenant.
    pub instance: InstanceId,
    /// 1 to 5000.
    pub page_size: usize,
    /// From the page before, or empty.
    pub page_token: String,
    /// Only keys in one of these states.
    pub states: Vec<KeyState>,
    /// Only keys of this ring.
    pub ring: Option<KeyRingId>,
    /// Part of a display name or alias, in any case, or a UUID; empty for all.
    pub search: String,
}

/// Which audit records to list.
#[derive(Clone, Debug)]
pub struct AuditQuery {
    /// Of this tenant.
    pub instance: InstanceId,
    /// 1 to 5000.
    pub page_size: usize,
    /// From the page before, or empty.
    pub page_token: String,
    /// Only of this key.
    pub key: Option<KeyName>,
}

impl Service {
    /// Keys of an instance that the caller may see, oldest first.
    ///
    /// # Errors
    /// FIELD_INVALID for a page token that is none of ours.
    pub fn list_keys(
        &self,
        call: &Call,
        query: &KeyQuery,
    ) -> Result<Answer<Listed<Arc<Key>>>, Error> {
        let mut place = parse_place(&query.page_token)?;
        let search = query.search.to_lowercase();
        let now = self.now();
        let sight = self.sight(call, &query.instance);
        let wanted = |key: &Key| {
            sight.shows(Place::of(key))
                && query.states.contains(&key.state(now))
                && query.ring.as_ref().is_none_or(|ring| key.ring == *ring)
                && key.history.purging.is_none()
                && matches_search(key, &search)
        };
        let mut items = Vec::new();
        let mut seen = 0;
        while items.len() < query.page_size && seen < MOST_SEEN {
            let found = self.registry.after(&query.instance, place, STRIDE);
            let last = found.len() < STRIDE;
            for key in found {
                place = Some((key.history.activated, key.id));
                seen += 1;
                if wanted(&key) {
                    items.push(key);
                }
                if items.len() == query.page_size {
                    break;
                }
            }
            if last && items.len() < query.page_size {
                place = None;
                break;
            }
        }
        let more =
            place.filter(|place| !self.registry.after(&query.instance, Some(*place), 1).is_empty());
        let listed = Listed { items, next_page_token: more.map_or_else(String::new, place_token) };
        let more = details::of_list(&listed.items);
        Ok(Answer::about(listed, format!("instances/{}", query.instance)).with(more))
    }

    /// Versions of a key, newest first, with whether each is primary.
    ///
    /// # Errors
    /// KEY_NOT_FOUND; FIELD_INVALID for a page token that is none of ours.
    pub fn list_versions(
        &self,
        _call: &Call,
        name: &KeyName,
        (page_size, page_token): (usize, &str),
    ) -> Result<Answer<VersionsOfKey>, Error> {
        let key = self.registry.find(name)?.key();
        // The token is how many older versions are left: new ones do not disturb it.
        let left = match page_token {
            "" => key.versions.len(),
            token => token
                .parse()
                .ok()
                .filter(|left| (1..key.versions.len()).contains(left))
                .ok_or(BAD_TOKEN)?,
        };
        let items: Vec<_> = key.versions[..left].iter().rev().take(page_size).cloned().collect();
        let left = left - items.len();
        let next_page_token = if left == 0 { String::new() } else { left.to_string() };
        let about = key.name();
        let more = details::of_list(&items);
        Ok(Answer::about((key, Listed { items, next_page_token }), about).with(more))
    }

    /// Audit records of an instance, newest first.
    ///
    /// # Errors
    /// KEY_NOT_FOUND; FIELD_INVALID for a page token that is none of ours;
    /// AUDIT_UNAVAILABLE.
    pub async fn list_audit_events(
        &self,
        _call: &Call,
        query: AuditQuery,
    ) -> Result<Answer<Listed<Record>>, Error> {
        let AuditQuery { instance, page_size, page_token, key } = query;
        let from: Option<Cursor> = match page_token.as_str() {
            "" => None,
            token => Some(token.parse().map_err(|_unreadable| BAD_TOKEN)?),
        };
        let key = key.map(|name| self.registry.find(&name)).transpose()?;
        let about = format!("instances/{instance}");
        let query = Query { instance, key: key.map(|slot| slot.key().name()), limit: page_size };
        let audit = self.audit.clone();
        // Reads files; not the path of an unwrap.
        let page = tokio::task::spawn_blocking(move || audit.page(&query, from)).await;
        let page = page.map_err(|error| {
            Error::new(Reason::Internal, "the audit log could not be read").caused_by(error)
        })?;
        let page = page.map_err(|error| {
            // Of the right form, and no place in this log.
            let nowhere = matches!(&error, AuditError::Unavailable { source, .. }
                if source.kind() == InvalidInput);
            if nowhere { Error::from(BAD_TOKEN) } else { Error::from(error) }
        })?;
        let next_page_token = page.next.map_or_else(String::new, |cursor| cursor.to_string());
        Ok(Answer::about(Listed { items: page.records, next_page_token }, about))
    }
}

fn matches_search(key: &Key, search: &str) -> bool {
    search.is_empty()
        || key.id.to_string() == search
        || key.details.display_name.to_lowercase().contains(search)
        || key.details.aliases.iter().any(|alias| alias.as_str().to_lowercase().contains(search))
}

fn place_token((created, id): (Timestamp, KeyId)) -> String {
    let place = [&created.as_micros().to_be_bytes()[..], id.as_bytes()].concat();
    URL_SAFE_NO_PAD.encode(place)
}

fn parse_place(token: &str) -> Result<Option<(Timestamp, KeyId)>, Malformed> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_unreadable| BAD_TOKEN)?;
    let place: [u8; 24] = bytes.try_into().map_err(|_other_length| BAD_TOKEN)?;
    let (micros, id) = place.split_first_chunk::<8>().ok_or(BAD_TOKEN)?;
    let id = id.try_into().map_err(|_other_length| BAD_TOKEN)?;
    Ok(Some((Timestamp::from_micros(i64::from_be_bytes(*micros)), KeyId::from_bytes(id))))
}

const BAD_TOKEN: Malformed = Malformed::new("page_token", "is not from the page before");
/// Keys read under one hold of the lock.
const STRIDE: usize = 1_000;
/// Keys looked at for one page; a page can then hold fewer than were asked for.
const MOST_SEEN: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_comes_back_as_it_was_and_others_are_refused() {
        let place = (Timestamp::from_micros(-5), KeyId::from_bytes([8; 16]));
        assert_eq!(parse_place(&place_token(place)).unwrap(), Some(place));
        assert_eq!(parse_place("").unwrap(), None);
        for token in ["x", "AAAA", "!", &"A".repeat(33)] {
            assert_eq!(parse_place(token), Err(BAD_TOKEN));
        }
    }
}

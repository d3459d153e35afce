//! protobuf ↔ domain: every message is taken apart field by field, so that a new
//! field does not compile until it is decided what to do with it. A file each for the
//! services; here is what they have in common.

mod access;
mod admin;
mod crypto;
mod events;
mod import;
mod instances;
mod keys;
mod policies;
mod registrations;
mod resources;

use prost_types::{Duration as PbDuration, Timestamp as PbTimestamp};
use sha2::{Digest, Sha256};
use std::time::Duration;
use uuid::Uuid;

pub(super) use access::{
    Resource, address, authorization, binding, new_authorization, new_binding, permissions,
    tested_methods, tested_resource,
};
pub(super) use admin::{audit_event, audit_query, hsm_status, records_wanted, server_info};
pub(super) use crypto::{
    Register, generate_request, generated, rewrap_request, rewrapped, unwrap_request,
    unwrap_result, unwrapped, wrap_request, wrapped,
};
pub(super) use events::{campaign, campaign_key, event_answer, key_event};
pub(super) use import::{import_token, import_token_instance, new_import_token};
pub(super) use instances::{instance, new_instance, ring};
pub(super) use keys::{
    imported_key, key, key_name, key_query, key_version, new_key, rotation, update,
};
pub(super) use policies::{metrics, policies, policy_change};
pub(super) use registrations::{
    new_registration, registration, registration_update, registrations_wanted,
};

pub(super) use resources::{
    action_wanted, checked, impact, impact_wanted, resource_status, statuses_wanted,
};

use crate::domain::{Malformed, Timestamp};
use crate::service::RequestId;

/// 1 to 5000; 0 stands for 200.
///
/// # Errors
/// [`Malformed`], of the field `page_size`.
pub(super) fn page_size_of(page_size: i32) -> Result<usize, Malformed> {
    match page_size {
        0 => Ok(200),
        1..=5000 => Ok(usize::try_from(page_size).unwrap_or(200)),
        _ => Err(Malformed::new("page_size", "must be 0 to 5000")),
    }
}

/// The caller's request id, with the fingerprint of all else in the request.
fn request_id(
    method: &str,
    text: &str,
    rest: impl FnOnce() -> Vec<u8>,
) -> Result<Option<RequestId>, Malformed> {
    if text.is_empty() {
        return Ok(None);
    }
    let id =
        Uuid::try_parse(text).map_err(|_other| Malformed::new("request_id", "must be a UUID"))?;
    let fingerprint = Sha256::new().chain_update(method).chain_update([0]).chain_update(rest());
    Ok(Some(RequestId { id, fingerprint: fingerprint.finalize().into() }))
}

fn timestamp(time: &PbTimestamp, field: &'static str) -> Result<Timestamp, Malformed> {
    let PbTimestamp { seconds, nanos } = *time;
    // Years 1 to 9999, as google.protobuf.Timestamp says.
    let valid = (-62_135_596_800..=253_402_300_799).contains(&seconds);
    if !valid || !(0..1_000_000_000).contains(&nanos) {
        return Err(Malformed::new(field, "is no valid time"));
    }
    Ok(Timestamp::from_micros(seconds * 1_000_000 + i64::from(nanos) / 1_000))
}

/// A time by the machine's clock.
pub(super) fn pb_timestamp(time: Timestamp) -> PbTimestamp {
    let (seconds, nanos) = time.seconds_and_nanos();
    PbTimestamp { seconds, nanos }
}

fn duration(span: &PbDuration, field: &'static str) -> Result<Duration, Malformed> {
    let PbDuration { seconds, nanos } = *span;
    let parts = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok());
    let parts = parts.filter(|(_, nanos)| *nanos < 1_000_000_000);
    let (seconds, nanos) =
        parts.ok_or_else(|| Malformed::new(field, "is no valid span of time"))?;
    Ok(Duration::new(seconds, nanos))
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_outside_the_calendar_are_refused() {
        let time = |seconds, nanos| timestamp(&PbTimestamp { seconds, nanos }, "f");
        assert_eq!(time(1, 5_000), Ok(Timestamp::from_micros(1_000_005)));
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000)] {
            assert!(time(seconds, nanos).is_err());
        }
    }

    #[test]
    fn spans_that_are_negative_or_no_spans_are_refused() {
        let span = |seconds, nanos| duration(&PbDuration { seconds, nanos }, "f");
        assert_eq!(span(1, 5), Ok(Duration::new(1, 5)));
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000), (i64::MIN, 0)] {
            assert!(span(seconds, nanos).is_err());
        }
    }

    #[test]
    fn the_same_request_has_the_same_fingerprint_whatever_its_id() {
        let id =
            |text: &str, rest: &[u8]| request_id("m", text, || rest.to_vec()).unwrap().unwrap();
        let (one, two) = (Uuid::new_v4().to_string(), Uuid::new_v4().to_string());
        assert_eq!(id(&one, b"a").fingerprint, id(&two, b"a").fingerprint);
        assert_ne!(id(&one, b"a").fingerprint, id(&one, b"b").fingerprint);
        assert!(request_id("m", "not a uuid", Vec::new).is_err());
        assert!(request_id("m", "", Vec::new).unwrap().is_none());
    }
}

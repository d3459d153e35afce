//! protobuf ↔ domain: every message is taken apart field by field, so that a new
//! field does not compile until it is decided what to do with it.
//!
//! One of the three places that may look into a `Secret`.

use prost::Message;
use prost_types::{Duration as PbDuration, FieldMask, Timestamp as PbTimestamp};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::pb;
use super::pb::key::State;
use super::status;
use crate::audit::Record;
use crate::domain::deletion::{PURGE_BY_ITSELF, PURGE_WAIT, RESTORE_WINDOW};
use crate::domain::{
    Alias, Event, InstanceId, Key, KeyDetails, KeyName, KeyState, Malformed, Outcome, Timestamp,
    Version,
};
use crate::error::Error;
use crate::secret::Secret;
use crate::service::{
    AuditQuery, DekAction, DekAnswer, DekRequest, HsmReport, KeyQuery, NewKey, RequestId,
    ServerReport, Update,
};

// Requests of CryptoService.

/// A DEK to wrap. The field's own buffer becomes the `Secret`; no copy is left.
pub(super) fn wrap_request(request: pb::WrapDekRequest) -> DekRequest {
    let pb::WrapDekRequest { key, dek, aad, resource } = request;
    DekRequest { key, aad, resource, action: DekAction::Wrap(Secret::new(dek)) }
}

/// A DEK to unwrap.
pub(super) fn unwrap_request(request: pb::UnwrapDekRequest) -> DekRequest {
    let pb::UnwrapDekRequest { key, wrapped_dek, aad, resource } = request;
    DekRequest { key, aad, resource, action: DekAction::Unwrap(wrapped_dek) }
}

/// A DEK to rewrap.
pub(super) fn rewrap_request(request: pb::RewrapDekRequest) -> DekRequest {
    let pb::RewrapDekRequest { key, wrapped_dek, aad, resource } = request;
    DekRequest { key, aad, resource, action: DekAction::Rewrap(wrapped_dek) }
}

/// A DEK to generate, and whether only the wrapped one is wanted.
pub(super) fn generate_request(request: pb::GenerateDekRequest) -> (DekRequest, bool) {
    let pb::GenerateDekRequest { key, size_bytes, aad, resource, wrapped_only } = request;
    let size = if size_bytes == 0 { DEFAULT_DEK_BYTES } else { size_bytes };
    let action = DekAction::Generate(usize::try_from(size).unwrap_or(usize::MAX));
    (DekRequest { key, aad, resource, action }, wrapped_only)
}

// Answers of CryptoService.

/// What was wrapped.
pub(super) fn wrapped(answer: DekAnswer) -> pb::WrapDekResponse {
    let DekAnswer { key, dek: _, version, wrapped } = answer;
    let (_, bytes) = wrapped.unwrap_or((version, Vec::new()));
    pb::WrapDekResponse { wrapped_dek: bytes.into(), key_version: key.version_name(version) }
}

/// What was unwrapped, and rewrapped if an older version had wrapped it.
pub(super) fn unwrapped(answer: DekAnswer) -> pb::UnwrapDekResponse {
    let DekAnswer { key, dek, version, wrapped } = answer;
    let (rewrapped_dek, rewrapped_key_version) = match wrapped {
        Some((to, bytes)) => (bytes.into(), key.version_name(to)),
        None => Default::default(),
    };
    pb::UnwrapDekResponse {
        dek: dek.into_bytes(),
        key_version: key.version_name(version),
        rewrapped_dek,
        rewrapped_key_version,
    }
}

/// What was rewrapped.
pub(super) fn rewrapped(answer: DekAnswer) -> pb::RewrapDekResponse {
    let DekAnswer { key, dek: _, version, wrapped } = answer;
    let (to, bytes) = wrapped.unwrap_or((version, Vec::new()));
    pb::RewrapDekResponse {
        wrapped_dek: bytes.into(),
        key_version: key.version_name(to),
        previous_key_version: key.version_name(version),
    }
}

/// What was generated.
pub(super) fn generated(answer: DekAnswer, wrapped_only: bool) -> pb::GenerateDekResponse {
    let DekAnswer { key, dek, version, wrapped } = answer;
    let (_, bytes) = wrapped.unwrap_or((version, Vec::new()));
    pb::GenerateDekResponse {
        dek: if wrapped_only { Default::default() } else { dek.into_bytes() },
        wrapped_dek: bytes.into(),
        key_version: key.version_name(version),
    }
}

/// What became of one of many.
pub(super) fn unwrap_result(
    result: Result<DekAnswer, Error>,
    request_id: &str,
) -> pb::UnwrapDekResult {
    use pb::unwrap_dek_result::Outcome;
    let outcome = match result {
        Ok(answer) => Outcome::Response(unwrapped(answer)),
        Err(error) => Outcome::Refusal(status::refusal(&error, request_id)),
    };
    pb::UnwrapDekResult { outcome: Some(outcome) }
}

// Requests of KeyService.

/// `instances/{instance}/keys/{key}` in the field `name`.
///
/// # Errors
/// [`Malformed`], of the field `name`.
pub(super) fn key_name(name: &str) -> Result<KeyName, Malformed> {
    name.parse()
}

/// A key to create.
///
/// # Errors
/// FIELD_INVALID; UNIMPLEMENTED for what comes with a later version.
pub(super) fn new_key(
    instance: InstanceId,
    request: pb::CreateKeyRequest,
) -> Result<(NewKey, Option<RequestId>), Error> {
    let request_id = request_id("CreateKey", &request.request_id, || {
        pb::CreateKeyRequest { request_id: String::new(), ..request.clone() }.encode_to_vec()
    })?;
    let pb::CreateKeyRequest { parent: _, key, request_id: _ } = request;
    let key = key.ok_or(Malformed::new("key", "is required"))?;
    let pb::Key {
        display_name,
        description,
        aliases,
        key_ring,
        tags,
        expire_time,
        rotation_period,
        dual_auth_delete,
        // Output only: ignored, as the contract says.
        name: _,
        crn: _,
        state: _,
        imported: _,
        primary_version: _,
        create_time: _,
        created_by: _,
        update_time: _,
        rotate_time: _,
        delete_time: _,
        restore_expire_time: _,
        purge_allow_time: _,
        purge_time: _,
        registration_count: _,
        deletion_auth_expire_time: _,
        etag: _,
    } = key;
    check_key_ring(&key_ring)?;
    check_policies(rotation_period.as_ref(), dual_auth_delete)?;
    let expires = expire_time.map(|time| timestamp(&time, "key.expire_time")).transpose()?;
    let aliases = parse_aliases(aliases)?;
    let details = KeyDetails { display_name, description, aliases, tags };
    Ok((NewKey { instance, details, expires }, request_id))
}

/// The fields of a key that an update sets, its name and its etag.
///
/// # Errors
/// FIELD_INVALID; UNIMPLEMENTED for what comes with a later version.
pub(super) fn update(key: pb::Key, mask: Option<FieldMask>) -> Result<(String, Update), Error> {
    let FieldMask { paths } = mask.unwrap_or_default();
    if paths.is_empty() {
        return Err(Malformed::new("update_mask", "must name a field").into());
    }
    let mut update = Update::default();
    for path in paths {
        match path.as_str() {
            "display_name" => update.display_name = Some(key.display_name.clone()),
            "aliases" => update.aliases = Some(parse_aliases(key.aliases.clone())?),
            "tags" => update.tags = Some(key.tags.clone()),
            "key_ring" => check_key_ring(&key.key_ring)?,
            "rotation_period" => return Err(Error::unimplemented("key.rotation_period")),
            "dual_auth_delete" => return Err(Error::unimplemented("key.dual_auth_delete")),
            _ => {
                return Err(
                    Malformed::new("update_mask", "names a field that cannot change").into()
                );
            }
        }
    }
    Ok((key.etag, update))
}

/// Which keys to list.
///
/// # Errors
/// FIELD_INVALID; UNIMPLEMENTED for what comes with a later version.
pub(super) fn key_query(
    instance: InstanceId,
    request: pb::ListKeysRequest,
) -> Result<KeyQuery, Error> {
    let pb::ListKeysRequest { parent: _, page_size, page_token, states, key_ring, search } =
        request;
    check_key_ring(&key_ring)?;
    if search.chars().count() > 90 {
        return Err(Malformed::new("search", "must be at most 90 characters").into());
    }
    let states = if states.is_empty() {
        vec![KeyState::Active, KeyState::Suspended, KeyState::Deactivated]
    } else {
        states.into_iter().map(key_state).collect::<Result<_, _>>()?
    };
    let page_size = page_size_of(page_size)?;
    Ok(KeyQuery { instance, page_size, page_token, states, search })
}

/// Which audit records to list.
///
/// # Errors
/// FIELD_INVALID, also for a key of another instance.
pub(super) fn audit_query(
    instance: InstanceId,
    request: pb::ListAuditEventsRequest,
) -> Result<AuditQuery, Malformed> {
    let pb::ListAuditEventsRequest { parent: _, page_size, page_token, key } = request;
    let key = match key.as_str() {
        "" => None,
        name => Some(name.parse::<KeyName>().map_err(|malformed| malformed.of("key"))?),
    };
    if key.as_ref().is_some_and(|key| key.instance != instance) {
        return Err(Malformed::new("key", "must be of the parent's instance"));
    }
    let page_size = page_size_of(page_size)?;
    Ok(AuditQuery { instance, page_size, page_token, key })
}

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
///
/// # Errors
/// [`Malformed`], of the field `request_id`.
pub(super) fn request_id(
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

fn parse_aliases(aliases: Vec<String>) -> Result<Vec<Alias>, Malformed> {
    let parsed = aliases.iter().map(|alias| alias.parse());
    parsed.collect::<Result<_, Malformed>>().map_err(|malformed| malformed.of("key.aliases"))
}

/// Key rings other than the one that every instance has come later.
fn check_key_ring(key_ring: &str) -> Result<(), Error> {
    match key_ring {
        "" | "default" => Ok(()),
        _ => Err(Error::unimplemented("a key ring other than `default`")),
    }
}

fn check_policies(
    rotation_period: Option<&PbDuration>,
    dual_auth_delete: bool,
) -> Result<(), Error> {
    if rotation_period.is_some() {
        return Err(Error::unimplemented("key.rotation_period"));
    }
    if dual_auth_delete {
        return Err(Error::unimplemented("key.dual_auth_delete"));
    }
    Ok(())
}

fn key_state(number: i32) -> Result<KeyState, Malformed> {
    let unknown = Malformed::new("states", "holds a state that there is not");
    match State::try_from(number).map_err(|_unknown| unknown)? {
        State::Unspecified => Err(unknown),
        State::Active => Ok(KeyState::Active),
        State::Suspended => Ok(KeyState::Suspended),
        State::Deactivated => Ok(KeyState::Deactivated),
        State::Destroyed => Ok(KeyState::Destroyed),
    }
}

// Answers of KeyService, AuditService and AdminService.

/// A key as it is at `now`.
pub(super) fn key(key: &Key, crn_prefix: &str, now: Timestamp) -> pb::Key {
    let Key {
        id,
        instance,
        details,
        imported,
        history,
        versions: _,
        created_by,
        updated,
        rotated,
        generation: _,
    } = key;
    let KeyDetails { display_name, description, aliases, tags } = details;
    let state = match key.state(now) {
        KeyState::Active => State::Active,
        KeyState::Suspended => State::Suspended,
        KeyState::Deactivated => State::Deactivated,
        KeyState::Destroyed => State::Destroyed,
    };
    let destroyed = history.destroyed;
    pb::Key {
        name: key.name(),
        crn: format!("{crn_prefix}:{instance}:key:{id}"),
        display_name: display_name.clone(),
        description: description.clone(),
        aliases: aliases.iter().map(Alias::to_string).collect(),
        key_ring: "default".into(),
        tags: tags.clone(),
        state: state.into(),
        imported: *imported,
        primary_version: key.version_name(key.primary().id),
        create_time: Some(pb_timestamp(history.activated)),
        created_by: created_by.to_string(),
        update_time: updated.map(pb_timestamp),
        rotate_time: rotated.map(pb_timestamp),
        expire_time: history.expires.map(pb_timestamp),
        delete_time: destroyed.map(pb_timestamp),
        restore_expire_time: destroyed.map(|time| pb_timestamp(time + RESTORE_WINDOW)),
        purge_allow_time: destroyed.map(|time| pb_timestamp(time + PURGE_WAIT)),
        purge_time: destroyed.map(|time| pb_timestamp(time + PURGE_BY_ITSELF)),
        // Registrations, rotation policy and dual authorization come later;
        // until then no key has any.
        registration_count: 0,
        rotation_period: None,
        dual_auth_delete: false,
        deletion_auth_expire_time: None,
        etag: key.etag(),
    }
}

/// One version of `key`.
pub(super) fn key_version(key: &Key, version: &Version) -> pb::KeyVersion {
    let Version { id, object: _, check_value: _, created } = version;
    pb::KeyVersion {
        name: key.version_name(*id),
        create_time: Some(pb_timestamp(*created)),
        primary: *id == key.primary().id,
    }
}

/// One record of the audit log.
pub(super) fn audit_event(record: Record) -> pb::AuditEvent {
    use pb::audit_event::Outcome as PbOutcome;
    let Record { sequence, event, previous_hash, hash } = record;
    let Event {
        id: _,
        time,
        action,
        principal,
        source_address,
        instance: _,
        subject,
        key_version,
        resource,
        outcome,
        request_id,
        details,
    } = event;
    let (outcome, reason) = match outcome {
        Outcome::Success => (PbOutcome::Success, String::new()),
        Outcome::Refused(reason) => (PbOutcome::Refused, reason.into_owned()),
    };
    pb::AuditEvent {
        sequence,
        time: Some(pb_timestamp(time)),
        action: action.into_owned(),
        principal,
        source_address,
        subject,
        key_version,
        resource,
        outcome: outcome.into(),
        reason,
        request_id,
        previous_hash: previous_hash.to_vec(),
        hash: hash.to_vec(),
        details: details.into_iter().collect(),
    }
}

/// Which daemon answers.
pub(super) fn server_info(report: ServerReport) -> pb::ServerInfo {
    let ServerReport { boot_id, started, profile, keys, audit_events } = report;
    pb::ServerInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        boot_id,
        start_time: Some(pb_timestamp(started)),
        profile: profile.name().into(),
        key_count: count(keys),
        audit_event_count: audit_events,
    }
}

/// What the HSM is and can do.
pub(super) fn hsm_status(report: HsmReport) -> pb::HsmStatus {
    let HsmReport {
        problem,
        module,
        token_label,
        workers,
        token,
        objects,
        orphans,
        missing,
        round_trip,
    } = report;
    let mechanisms = token.iter().flat_map(|token| &token.mechanisms);
    let mechanisms = mechanisms.map(|(name, used_for)| pb::hsm_status::Mechanism {
        name: name.clone(),
        used_for: used_for.unwrap_or_default().into(),
    });
    pb::HsmStatus {
        ready: problem.is_none(),
        problem: problem.unwrap_or_default(),
        module,
        mechanisms: mechanisms.collect(),
        slot: token.as_ref().map_or(0, |token| token.slot),
        library: token.as_ref().map(|token| token.library.clone()).unwrap_or_default(),
        token_serial: token.map(|token| token.serial).unwrap_or_default(),
        token_label,
        workers: u32::try_from(workers).unwrap_or(u32::MAX),
        objects: count(objects),
        orphans: count(orphans),
        missing: count(missing),
        round_trip: round_trip.is_some(),
        round_trip_micros: round_trip
            .map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
    }
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

fn pb_timestamp(time: Timestamp) -> PbTimestamp {
    let (seconds, nanos) = time.seconds_and_nanos();
    PbTimestamp { seconds, nanos }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// What GenerateDek makes if it is not told a size.
const DEFAULT_DEK_BYTES: u32 = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::key::tests::key_at;

    #[test]
    fn every_state_has_key_protects_number_and_comes_back() {
        for (state, number) in KeyState::ALL.into_iter().zip([1, 2, 3, 5]) {
            assert_eq!(key_state(number), Ok(state));
        }
        for number in [0, 4, 6, -1] {
            assert!(key_state(number).is_err());
        }
    }

    #[test]
    fn times_outside_the_calendar_are_refused() {
        let time = |seconds, nanos| timestamp(&PbTimestamp { seconds, nanos }, "f");
        assert_eq!(time(1, 5_000), Ok(Timestamp::from_micros(1_000_005)));
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000)] {
            assert!(time(seconds, nanos).is_err());
        }
    }

    #[test]
    fn a_deleted_key_says_until_when_it_can_be_restored_and_purged() {
        let mut deleted = key_at(Timestamp::from_seconds(0));
        deleted.history.destroyed = Some(Timestamp::from_seconds(0));
        let shown = key(&deleted, "crn", Timestamp::from_seconds(1));
        let seconds = |time: Option<PbTimestamp>| time.unwrap().seconds;
        assert_eq!(shown.state(), State::Destroyed);
        assert_eq!(seconds(shown.restore_expire_time), 30 * 86_400);
        assert_eq!(seconds(shown.purge_allow_time), 4 * 3_600);
        assert_eq!(seconds(shown.purge_time), 90 * 86_400);
        assert_eq!(shown.crn, format!("crn:default:key:{}", deleted.id));
    }

    #[test]
    fn an_update_refuses_what_cannot_change() {
        let masked = |path: &str| {
            update(pb::Key::default(), Some(FieldMask { paths: vec![path.into()] })).map(drop)
        };
        assert!(masked("display_name").is_ok());
        assert_eq!(masked("state").unwrap_err().field, Some("update_mask"));
        assert_eq!(
            masked("rotation_period").unwrap_err().reason,
            crate::error::Reason::Unimplemented
        );
        assert_eq!(update(pb::Key::default(), None).unwrap_err().field, Some("update_mask"));
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

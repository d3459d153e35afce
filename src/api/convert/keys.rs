//! Messages of KeyService.

use prost::Message;
use prost_types::{Duration as PbDuration, FieldMask};

use super::super::pb;
use super::super::pb::key::State;
use super::{duration, page_size_of, pb_timestamp, request_id, timestamp};
use crate::domain::deletion::{AUTHORIZATION_WINDOW, PURGE_BY_ITSELF, PURGE_WAIT};
use crate::domain::{
    Alias, InstanceId, Key, KeyDetails, KeyName, KeyRingId, KeyState, Malformed, Moment,
    Registered, RotationPeriod, SealedMaterial, Version,
};
use crate::error::Error;
use crate::service::{KeyQuery, NewKey, RequestId, Update};

/// A rotation that is asked for: etag, material and request id.
pub(in crate::api) type Rotation = ((String, Option<SealedMaterial>), Option<RequestId>);

/// `instances/{instance}/keys/{key}` in the field `name`.
///
/// # Errors
/// [`Malformed`], of the field `name`.
pub(in crate::api) fn key_name(name: &str) -> Result<KeyName, Malformed> {
    name.parse()
}

/// A key to create.
///
/// # Errors
/// FIELD_INVALID.
pub(in crate::api) fn new_key(
    instance: InstanceId,
    request: pb::CreateKeyRequest,
) -> Result<(NewKey, Option<RequestId>), Error> {
    let request_id = request_id("CreateKey", &request.request_id, || {
        pb::CreateKeyRequest { request_id: String::new(), ..request.clone() }.encode_to_vec()
    })?;
    let pb::CreateKeyRequest { parent: _, key, request_id: _ } = request;
    Ok((described_key(instance, key, None)?, request_id))
}

/// A key to import.
///
/// # Errors
/// FIELD_INVALID.
pub(in crate::api) fn imported_key(
    instance: InstanceId,
    request: pb::ImportKeyRequest,
) -> Result<(NewKey, Option<RequestId>), Error> {
    let request_id = request_id("ImportKey", &request.request_id, || {
        pb::ImportKeyRequest { request_id: String::new(), ..request.clone() }.encode_to_vec()
    })?;
    let pb::ImportKeyRequest { parent: _, key, material, request_id: _ } = request;
    let material = sealed_material(material.ok_or(Malformed::new("material", "is required"))?)?;
    Ok((described_key(instance, key, Some(material))?, request_id))
}

/// A rotation.
///
/// # Errors
/// FIELD_INVALID.
pub(in crate::api) fn rotation(request: pb::RotateKeyRequest) -> Result<Rotation, Error> {
    let request_id = request_id("RotateKey", &request.request_id, || {
        pb::RotateKeyRequest { request_id: String::new(), ..request.clone() }.encode_to_vec()
    })?;
    let pb::RotateKeyRequest { name: _, material, etag, request_id: _ } = request;
    Ok(((etag, material.map(sealed_material).transpose()?), request_id))
}

fn described_key(
    instance: InstanceId,
    key: Option<pb::Key>,
    material: Option<SealedMaterial>,
) -> Result<NewKey, Error> {
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
    } = key.ok_or(Malformed::new("key", "is required"))?;
    let aliases = parse_aliases(aliases)?;
    Ok(NewKey {
        instance,
        ring: ring_or_default(&key_ring)?,
        details: KeyDetails { display_name, description, aliases, tags },
        expires: expire_time.map(|time| timestamp(&time, "key.expire_time")).transpose()?,
        rotation: rotation_period.as_ref().map(rotation_days).transpose()?,
        dual_auth: dual_auth_delete,
        material,
    })
}

fn sealed_material(material: pb::SealedKeyMaterial) -> Result<SealedMaterial, Malformed> {
    let pb::SealedKeyMaterial { encrypted_key, algorithm, encrypted_nonce, nonce_iv } = material;
    SealedMaterial::new(encrypted_key, &algorithm, encrypted_nonce, &nonce_iv)
}

/// The fields of a key that an update sets, and its etag.
///
/// # Errors
/// FIELD_INVALID.
pub(in crate::api) fn update(
    key: pb::Key,
    mask: Option<FieldMask>,
) -> Result<(String, Update), Error> {
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
            "key_ring" => update.ring = Some(ring_or_default(&key.key_ring)?),
            "rotation_period" => {
                let period = key.rotation_period.as_ref().map(rotation_days).transpose()?;
                update.rotation = Some(period);
            }
            "dual_auth_delete" => update.dual_auth = Some(key.dual_auth_delete),
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
/// FIELD_INVALID.
pub(in crate::api) fn key_query(
    instance: InstanceId,
    request: pb::ListKeysRequest,
) -> Result<KeyQuery, Error> {
    let pb::ListKeysRequest { parent: _, page_size, page_token, states, key_ring, search } =
        request;
    let ring = match key_ring.as_str() {
        "" => None,
        text => Some(text.parse::<KeyRingId>()?),
    };
    if search.chars().count() > 90 {
        return Err(Malformed::new("search", "must be at most 90 characters").into());
    }
    let states = if states.is_empty() {
        vec![KeyState::Active, KeyState::Suspended, KeyState::Deactivated]
    } else {
        states.into_iter().map(key_state).collect::<Result<_, _>>()?
    };
    let page_size = page_size_of(page_size)?;
    Ok(KeyQuery { instance, page_size, page_token, states, ring, search })
}

fn parse_aliases(aliases: Vec<String>) -> Result<Vec<Alias>, Malformed> {
    let parsed = aliases.iter().map(|alias| alias.parse());
    parsed.collect::<Result<_, Malformed>>().map_err(|malformed| malformed.of("key.aliases"))
}

fn ring_or_default(text: &str) -> Result<KeyRingId, Malformed> {
    match text {
        "" => Ok(KeyRingId::default_ring()),
        text => text.parse().map_err(|malformed: Malformed| malformed.of("key.key_ring")),
    }
}

fn rotation_days(period: &PbDuration) -> Result<RotationPeriod, Malformed> {
    let span = duration(period, "key.rotation_period")?;
    let whole = span.subsec_nanos() == 0 && span.as_secs().is_multiple_of(SECONDS_OF_DAY);
    // Not whole days are as wrong as 0.
    RotationPeriod::from_days(if whole { span.as_secs() / SECONDS_OF_DAY } else { 0 })
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

/// A key as it is at `now`.
pub(in crate::api) fn key(
    key: &Key,
    registered: Registered,
    crn_prefix: &str,
    now: Moment,
) -> pb::Key {
    let Key {
        id,
        instance,
        ring,
        details,
        imported,
        history,
        versions: _,
        created_by,
        updated,
        rotated,
        told: _,
        rotation,
        dual_auth,
        authorization: _,
        generation: _,
    } = key;
    let KeyDetails { display_name, description, aliases, tags } = details;
    let state = match key.state(now) {
        KeyState::Active => State::Active,
        KeyState::Suspended => State::Suspended,
        KeyState::Deactivated => State::Deactivated,
        KeyState::Destroyed => State::Destroyed,
    };
    let destroyed = history.destroyed.map(|at| at.time);
    let authorized = key.valid_authorization(now).map(|given| given.at.time);
    pb::Key {
        name: key.name(),
        crn: format!("{crn_prefix}:{instance}:key:{id}"),
        display_name: display_name.clone(),
        description: description.clone(),
        aliases: aliases.iter().map(Alias::to_string).collect(),
        key_ring: ring.to_string(),
        tags: tags.clone(),
        state: state.into(),
        imported: *imported,
        primary_version: key.version_name(key.primary().id),
        create_time: Some(pb_timestamp(history.activated)),
        created_by: created_by.to_string(),
        update_time: updated.map(pb_timestamp),
        rotate_time: rotated.map(|at| pb_timestamp(at.time)),
        expire_time: history.expires.map(pb_timestamp),
        delete_time: destroyed.map(pb_timestamp),
        restore_expire_time: key.restorable_until().map(pb_timestamp),
        purge_allow_time: destroyed.map(|time| pb_timestamp(time + PURGE_WAIT)),
        purge_time: destroyed.map(|time| pb_timestamp(time + PURGE_BY_ITSELF)),
        registration_count: registered.total,
        rotation_period: rotation.map(pb_period),
        dual_auth_delete: *dual_auth,
        deletion_auth_expire_time: authorized.map(|time| pb_timestamp(time + AUTHORIZATION_WINDOW)),
        etag: key.etag(),
    }
}

/// One version of `key`.
pub(in crate::api) fn key_version(key: &Key, version: &Version) -> pb::KeyVersion {
    let Version { id, object: _, check_value: _, created, wrapped: _ } = version;
    pb::KeyVersion {
        name: key.version_name(*id),
        create_time: Some(pb_timestamp(*created)),
        primary: *id == key.primary().id,
    }
}

/// A rotation period.
pub(super) fn pb_period(period: RotationPeriod) -> PbDuration {
    let seconds = i64::try_from(period.span().as_secs()).unwrap_or(i64::MAX);
    PbDuration { seconds, nanos: 0 }
}

/// A rotation period that was asked for.
pub(super) fn period(span: &PbDuration) -> Result<RotationPeriod, Malformed> {
    rotation_days(span)
}

const SECONDS_OF_DAY: u64 = 86_400;

#[cfg(test)]
mod tests {
    use prost_types::Timestamp as PbTimestamp;

    use super::*;
    use crate::domain::key::tests::key_at;
    use crate::domain::time::tests::at;

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
    fn a_deleted_key_says_until_when_it_can_be_restored_and_purged() {
        let mut deleted = key_at(at(0));
        deleted.history.destroyed = Some(at(0));
        let shown = key(&deleted, Registered { total: 3, preventing: 0 }, "crn", at(1));
        let seconds = |time: Option<PbTimestamp>| time.unwrap().seconds;
        assert_eq!(shown.state(), State::Destroyed);
        assert_eq!(seconds(shown.restore_expire_time), 30 * 86_400);
        assert_eq!(seconds(shown.purge_allow_time), 4 * 3_600);
        assert_eq!(seconds(shown.purge_time), 90 * 86_400);
        assert_eq!(shown.registration_count, 3);
        assert_eq!(shown.crn, format!("crn:default:key:{}", deleted.id));
    }

    #[test]
    fn an_update_refuses_what_cannot_change() {
        let masked = |path: &str| {
            update(pb::Key::default(), Some(FieldMask { paths: vec![path.into()] })).map(drop)
        };
        assert!(masked("display_name").is_ok() && masked("rotation_period").is_ok());
        assert_eq!(masked("state").unwrap_err().field, Some("update_mask"));
        assert_eq!(update(pb::Key::default(), None).unwrap_err().field, Some("update_mask"));
    }

    #[test]
    fn a_rotation_period_is_of_whole_days() {
        let days = |seconds, nanos| rotation_days(&PbDuration { seconds, nanos });
        assert_eq!(days(30 * 86_400, 0).map(RotationPeriod::days), Ok(30));
        for (seconds, nanos) in [(30 * 86_400 + 1, 0), (30 * 86_400, 1), (-1, 0), (0, 0)] {
            assert_eq!(days(seconds, nanos).unwrap_err().field, "key.rotation_period");
        }
    }
}

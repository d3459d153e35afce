//! Messages of RegistrationService.

use prost_types::FieldMask;

use super::super::pb;
use super::super::pb::registration::Kind;
use super::{page_size_of, pb_timestamp};
use crate::domain::{Crn, CrnPattern, InstanceId, KeyName, Malformed, Registration, ResourceKind};
use crate::service::{NewRegistration, RegistrationUpdate, RegistrationsWanted};

/// A resource to register.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn new_registration(
    registration: Option<pb::Registration>,
) -> Result<NewRegistration, Malformed> {
    let pb::Registration {
        resource,
        kind,
        attached_to,
        description,
        prevent_key_deletion,
        key_version,
        source,
        // Output only: ignored, as the contract says.
        name: _,
        service: _,
        create_time: _,
        created_by: _,
        update_time: _,
        updated_by: _,
        etag: _,
    } = registration.ok_or(Malformed::new("registration", "is required"))?;
    let resource: Result<Crn, Malformed> = resource.parse();
    Ok(NewRegistration {
        resource: resource.map_err(|bad| bad.of("registration.resource"))?,
        kind: kind_of(kind, "registration.kind")?,
        attached_to: some_crn(&attached_to, "registration.attached_to")?,
        description,
        prevents_deletion: prevent_key_deletion,
        version: (!key_version.is_empty()).then_some(key_version),
        source: some_crn(&source, "registration.source")?,
    })
}

/// The fields of a registration that an update sets, and its etag.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn registration_update(
    registration: pb::Registration,
    mask: Option<FieldMask>,
) -> Result<(String, RegistrationUpdate), Malformed> {
    let FieldMask { paths } = mask.unwrap_or_default();
    if paths.is_empty() {
        return Err(Malformed::new("update_mask", "must name a field"));
    }
    let mut update = RegistrationUpdate::default();
    for path in paths {
        match path.as_str() {
            "attached_to" => {
                let crn = some_crn(&registration.attached_to, "registration.attached_to")?;
                update.attached_to = Some(crn);
            }
            "description" => update.description = Some(registration.description.clone()),
            "prevent_key_deletion" => {
                update.prevents_deletion = Some(registration.prevent_key_deletion);
            }
            "key_version" => update.version = Some(registration.key_version.clone()),
            _ => return Err(Malformed::new("update_mask", "names a field that cannot change")),
        }
    }
    Ok((registration.etag, update))
}

/// Which registrations to list; `key` is unset for those of every key.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn registrations_wanted(
    (instance, key): (InstanceId, Option<KeyName>),
    request: pb::ListRegistrationsRequest,
) -> Result<RegistrationsWanted, Malformed> {
    let pb::ListRegistrationsRequest {
        parent: _,
        page_size,
        page_token,
        resource,
        prevent_key_deletion,
    } = request;
    let bound = if key.is_some() { 0 } else { BOUND_SEGMENTS };
    let resources = match resource.as_str() {
        "" => None,
        pattern => Some(CrnPattern::parse(pattern, bound)?),
    };
    let (page_size, preventing) = (page_size_of(page_size)?, prevent_key_deletion);
    Ok(RegistrationsWanted { instance, key, page_size, page_token, resources, preventing })
}

/// A registration.
pub(in crate::api) fn registration(registration: Registration) -> pb::Registration {
    let (name, etag) = (registration.name(), registration.etag());
    let Registration {
        id: _,
        instance,
        key,
        resource,
        kind,
        attached_to,
        description,
        prevents_deletion,
        version,
        source,
        service,
        created,
        created_by,
        updated,
        generation: _,
    } = registration;
    let text = |crn: Option<Crn>| crn.map(|crn| crn.to_string()).unwrap_or_default();
    pb::Registration {
        name,
        resource: resource.to_string(),
        kind: pb_kind(kind).into(),
        attached_to: text(attached_to),
        description,
        prevent_key_deletion: prevents_deletion,
        key_version: format!("instances/{instance}/keys/{key}/versions/{version}"),
        source: text(source),
        service: service.into(),
        create_time: Some(pb_timestamp(created)),
        created_by: created_by.into(),
        update_time: updated.as_ref().map(|(time, _)| pb_timestamp(*time)),
        updated_by: updated.map(|(_, by)| by.into()).unwrap_or_default(),
        etag,
    }
}

/// A kind.
pub(super) const fn pb_kind(kind: ResourceKind) -> Kind {
    match kind {
        ResourceKind::CustomImage => Kind::CustomImage,
        ResourceKind::BootVolume => Kind::BootVolume,
        ResourceKind::DataVolume => Kind::DataVolume,
        ResourceKind::Snapshot => Kind::Snapshot,
        ResourceKind::FileShare => Kind::FileShare,
    }
}

/// The kind of that number, in `field`.
///
/// # Errors
/// [`Malformed`].
pub(super) fn kind_of(number: i32, field: &'static str) -> Result<ResourceKind, Malformed> {
    let unknown = Malformed::new(field, "must be a kind that there is");
    match Kind::try_from(number).map_err(|_unknown| unknown)? {
        Kind::Unspecified => Err(unknown),
        Kind::CustomImage => Ok(ResourceKind::CustomImage),
        Kind::BootVolume => Ok(ResourceKind::BootVolume),
        Kind::DataVolume => Ok(ResourceKind::DataVolume),
        Kind::Snapshot => Ok(ResourceKind::Snapshot),
        Kind::FileShare => Ok(ResourceKind::FileShare),
    }
}

fn some_crn(text: &str, field: &'static str) -> Result<Option<Crn>, Malformed> {
    match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|malformed: Malformed| malformed.of(field)),
    }
}

/// Segments that must be whole in a search through every key.
pub(super) const BOUND_SEGMENTS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_names_the_field_that_is_wrong() {
        let good = pb::Registration {
            resource: "crn:v1:bluemix:public:is:us-south-1:a/1::volume:r006-1".into(),
            kind: Kind::DataVolume.into(),
            ..Default::default()
        };
        assert!(new_registration(Some(good.clone())).is_ok());
        let cases = [
            ("registration.resource", pb::Registration { resource: "x".into(), ..good.clone() }),
            ("registration.kind", pb::Registration { kind: 0, ..good.clone() }),
            ("registration.kind", pb::Registration { kind: 99, ..good.clone() }),
            ("registration.source", pb::Registration { source: "crn:x".into(), ..good.clone() }),
            ("registration.attached_to", pb::Registration { attached_to: "y".into(), ..good }),
        ];
        for (field, registration) in cases {
            assert_eq!(new_registration(Some(registration)).unwrap_err().field, field);
        }
        assert!(new_registration(None).is_err());
    }
}

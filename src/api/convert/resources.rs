//! Messages of ResourceService.

use super::super::pb;
use super::super::pb::preview_key_impact_request::Change;
use super::registrations::{BOUND_SEGMENTS, kind_of, pb_kind};
use super::{key_name, page_size_of, pb_timestamp};
use crate::domain::resource_status::Subject;
use crate::domain::{Condition, Crn, CrnPattern, InstanceId, KeyName, Malformed, ResourceAction};
use crate::service::{
    ActionWanted, Checked, Impact, ImpactWanted, KeyChange, KindImpact, ResourceReport,
    StatusesWanted, Target,
};

/// Which statuses to list; `key` is unset for those of every key.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn statuses_wanted(
    (instance, key): (InstanceId, Option<KeyName>),
    request: pb::ListResourceStatusesRequest,
) -> Result<StatusesWanted, Malformed> {
    let pb::ListResourceStatusesRequest { parent: _, page_size, page_token, resource } = request;
    let bound = if key.is_some() { 0 } else { BOUND_SEGMENTS };
    let resources = match resource.as_str() {
        "" => None,
        pattern => Some(CrnPattern::parse(pattern, bound)?),
    };
    let page_size = page_size_of(page_size)?;
    Ok(StatusesWanted { instance, key, page_size, page_token, resources })
}

/// What somebody would do.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn action_wanted(
    instance: InstanceId,
    request: pb::CheckResourceActionRequest,
) -> Result<ActionWanted, Malformed> {
    let pb::CheckResourceActionRequest { parent: _, action, resource, key, kind } = request;
    let action = action_of(action)?;
    let target = if action == ResourceAction::Provision {
        let name = key_name(&key).map_err(|bad| bad.of("key"))?;
        if name.instance != instance {
            return Err(Malformed::new("key", "must be of the instance that parent names"));
        }
        Target::New(name, kind_of(kind, "kind")?)
    } else {
        Target::Resource(resource.parse::<Crn>()?)
    };
    Ok(ActionWanted { instance, action, target })
}

/// Which impact is wanted.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn impact_wanted(
    key: KeyName,
    request: pb::PreviewKeyImpactRequest,
) -> Result<ImpactWanted, Malformed> {
    let pb::PreviewKeyImpactRequest { name: _, change, page_size, page_token } = request;
    let unknown = Malformed::new("change", "must be a change that there is");
    let change = match Change::try_from(change).map_err(|_unknown| unknown)? {
        Change::Unspecified => return Err(unknown),
        Change::Disable => KeyChange::Disable,
        Change::Delete => KeyChange::Delete,
        Change::RemoveAuthorization => KeyChange::RemoveAuthorization,
    };
    Ok(ImpactWanted { key, change, page_size: page_size_of(page_size)?, page_token })
}

/// What a resource is.
pub(in crate::api) fn resource_status(report: ResourceReport) -> pb::ResourceStatus {
    let ResourceReport { resource, subject, registration, attached_to, key, condition, cell } =
        report;
    let kind = match subject {
        Subject::Registered(kind) => pb_kind(kind),
        Subject::VirtualServer => pb::registration::Kind::Unspecified,
    };
    pb::ResourceStatus {
        resource,
        registration,
        kind: kind.into(),
        attached_to: attached_to.map(|crn| crn.to_string()).unwrap_or_default(),
        key,
        condition: pb_condition(condition).into(),
        status: cell.status.name().to_owned(),
        status_reason: condition.status_reason().unwrap_or_default().to_owned(),
        tooltip: condition.tooltip().unwrap_or_default().to_owned(),
        consequence: cell.consequence.to_owned(),
    }
}

/// Whether something can be done.
pub(in crate::api) fn checked(checked: Checked) -> pb::CheckResourceActionResponse {
    let Checked { refusal, report } = checked;
    let status = Some(resource_status(report));
    let (allowed, reason, message) = match refusal {
        None => (true, String::new(), String::new()),
        Some(error) => (false, error.reason.wire().name.to_owned(), error.message),
    };
    pb::CheckResourceActionResponse { allowed, reason, message, status }
}

/// What a change of a key would do.
pub(in crate::api) fn impact(impact: Impact) -> pb::KeyImpact {
    use pb::key_impact::{KindCount, VersionCount};
    let Impact {
        key,
        kinds,
        preventing,
        refusal,
        versions,
        last_unwrap,
        resources,
        stopped,
        next_page_token,
        token,
    } = impact;
    let kinds = kinds.into_iter().map(|KindImpact { kind, total, attached, status }| KindCount {
        kind: pb_kind(kind).into(),
        total,
        attached,
        status: status.name().to_owned(),
    });
    let versions = versions.into_iter();
    let versions = versions.map(|(key_version, total)| VersionCount { key_version, total });
    pb::KeyImpact {
        key: key.name(),
        kinds: kinds.collect(),
        preventing,
        refusal: refusal.map(|reason| reason.wire().name.to_owned()).unwrap_or_default(),
        versions: versions.collect(),
        last_unwrap_time: last_unwrap.map(pb_timestamp),
        resources: resources.into_iter().map(resource_status).collect(),
        stopped_instances: stopped.into_iter().map(|crn| crn.to_string()).collect(),
        next_page_token,
        impact_token: token,
    }
}

fn action_of(number: i32) -> Result<ResourceAction, Malformed> {
    use pb::ResourceAction as Pb;
    let unknown = Malformed::new("action", "must be an action that there is");
    match Pb::try_from(number).map_err(|_unknown| unknown)? {
        Pb::Unspecified => Err(unknown),
        Pb::Provision => Ok(ResourceAction::Provision),
        Pb::Attach => Ok(ResourceAction::Attach),
        Pb::Detach => Ok(ResourceAction::Detach),
        Pb::StartInstance => Ok(ResourceAction::StartInstance),
        Pb::StopInstance => Ok(ResourceAction::StopInstance),
        Pb::Restore => Ok(ResourceAction::Restore),
        Pb::Mount => Ok(ResourceAction::Mount),
        Pb::ReadWrite => Ok(ResourceAction::ReadWrite),
        Pb::BootFromImage => Ok(ResourceAction::BootFromImage),
        Pb::Delete => Ok(ResourceAction::Delete),
    }
}

const fn pb_condition(condition: Condition) -> pb::KeyCondition {
    match condition {
        Condition::Active => pb::KeyCondition::Active,
        Condition::Suspended => pb::KeyCondition::Suspended,
        Condition::Deactivated => pb::KeyCondition::Deactivated,
        Condition::Destroyed => pb::KeyCondition::Destroyed,
        Condition::Restored => pb::KeyCondition::Restored,
        Condition::AuthorizationRemoved => pb::KeyCondition::AuthorizationRemoved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "crn:v1:bluemix:public:is:us-south-1:a/1::volume:r006-1";

    #[test]
    fn an_action_names_the_field_that_is_wrong() {
        let wanted = |request| action_wanted("default".parse().unwrap(), request);
        let attach = pb::CheckResourceActionRequest {
            action: pb::ResourceAction::Attach.into(),
            resource: VOLUME.into(),
            ..Default::default()
        };
        let provision = pb::CheckResourceActionRequest {
            action: pb::ResourceAction::Provision.into(),
            key: "instances/default/keys/volumes".into(),
            kind: pb::registration::Kind::DataVolume.into(),
            ..Default::default()
        };
        assert!(wanted(attach.clone()).is_ok() && wanted(provision.clone()).is_ok());
        let elsewhere = "instances/other/keys/volumes".to_owned();
        let cases = [
            ("action", pb::CheckResourceActionRequest { action: 0, ..attach.clone() }),
            ("action", pb::CheckResourceActionRequest { action: 99, ..attach.clone() }),
            ("resource", pb::CheckResourceActionRequest { resource: "x".into(), ..attach }),
            ("key", pb::CheckResourceActionRequest { key: String::new(), ..provision.clone() }),
            ("key", pb::CheckResourceActionRequest { key: elsewhere, ..provision.clone() }),
            ("kind", pb::CheckResourceActionRequest { kind: 0, ..provision }),
        ];
        for (field, request) in cases {
            assert_eq!(wanted(request).unwrap_err().field, field);
        }
    }

    #[test]
    fn a_change_must_be_one_that_there_is() {
        let key = || "instances/default/keys/volumes".parse().unwrap();
        for (change, good) in [(0, false), (1, true), (2, true), (3, true), (4, false)] {
            let request = pb::PreviewKeyImpactRequest { change, ..Default::default() };
            assert_eq!(impact_wanted(key(), request).is_ok(), good);
        }
    }
}

//! Messages of InstanceService and KeyRingService.

use super::super::pb;
use super::pb_timestamp;
use crate::domain::{Instance, InstanceId, KeyRing, Malformed, PrincipalId};
use crate::service::{InstanceReport, NewInstance, RingReport};

/// An instance to make.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn new_instance(
    request: pb::CreateInstanceRequest,
) -> Result<NewInstance, Malformed> {
    let pb::CreateInstanceRequest { instance_id, display_name, managers } = request;
    if managers.len() > MOST_MANAGERS {
        return Err(Malformed::new("managers", "must be at most 20"));
    }
    let id: Result<InstanceId, Malformed> = instance_id.parse();
    let managers = managers.iter().map(|id| id.parse::<PrincipalId>());
    Ok(NewInstance {
        id: id.map_err(|malformed| malformed.of("instance_id"))?,
        display_name,
        managers: managers.collect::<Result<_, _>>().map_err(|bad| bad.of("managers"))?,
    })
}

/// An instance.
pub(in crate::api) fn instance(report: InstanceReport) -> pb::Instance {
    let InstanceReport { instance, keys, live_keys } = report;
    let Instance { id: _, display_name, created, deleted: _, policies: _ } = &*instance;
    pb::Instance {
        name: instance.name(),
        display_name: display_name.clone(),
        create_time: created.as_ref().map(|(time, _)| pb_timestamp(*time)),
        created_by: created.as_ref().map(|(_, by)| by.to_string()).unwrap_or_default(),
        key_count: keys,
        live_key_count: live_keys,
    }
}

/// A key ring.
pub(in crate::api) fn ring(report: RingReport) -> pb::KeyRing {
    let RingReport { name, ring, keys } = report;
    let made = ring.as_deref().map(|ring| {
        let KeyRing { instance: _, id: _, created, created_by } = ring;
        (*created, created_by.to_string())
    });
    pb::KeyRing {
        name: name.to_string(),
        create_time: made.as_ref().map(|(time, _)| pb_timestamp(*time)),
        created_by: made.map(|(_, by)| by).unwrap_or_default(),
        key_count: keys,
    }
}

/// Principals that can get the role Manager with the instance.
const MOST_MANAGERS: usize = 20;

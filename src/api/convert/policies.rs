//! Messages of PolicyService. An update replaces a policy whole: what a request
//! leaves out is at its default, and a policy that is switched off takes no
//! attributes (`facts/key-protect.md` section 8).

use super::super::pb;
use super::super::pb::allowed_network_policy::Network;
use super::super::pb::set_instance_policy_request::Policy;
use super::keys::{pb_period, period};
use super::pb_timestamp;
use crate::domain::policy::{AllowedNetwork, CreateImportAccess};
use crate::domain::{Instance, Malformed, Policies, PolicyChange};
use crate::service::Metrics;

/// The policy that is set, and the etag.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn policy_change(
    request: pb::SetInstancePolicyRequest,
) -> Result<(PolicyChange, String), Malformed> {
    let pb::SetInstancePolicyRequest { parent: _, policy, etag } = request;
    let change = match policy.ok_or(Malformed::new("policy", "is required"))? {
        Policy::DualAuthDelete(pb::DualAuthDeletePolicy { enabled }) => {
            PolicyChange::DualAuthDelete(enabled)
        }
        Policy::Rotation(pb::RotationPolicy { enabled, rotation_period }) => {
            let field = "rotation.rotation_period";
            let given = attribute(enabled, rotation_period, field)?;
            let given = given.as_ref().map(period).transpose();
            PolicyChange::Rotation(given.map_err(|bad| bad.of(field))?)
        }
        Policy::KeyCreateImportAccess(policy) => create_import(policy)?,
        Policy::AllowedIp(pb::AllowedIpPolicy { enabled, allowed_ip }) => {
            let field = "allowed_ip.allowed_ip";
            let some = (!allowed_ip.is_empty()).then_some(allowed_ip);
            let given = attribute(enabled, some, field)?;
            if given.as_ref().is_some_and(|networks| networks.len() > MOST_NETWORKS) {
                return Err(Malformed::new(field, "must be at most 1000"));
            }
            let networks = given.map(|texts| texts.iter().map(|text| text.parse()).collect());
            PolicyChange::AllowedIp(networks.transpose().map_err(|bad: Malformed| bad.of(field))?)
        }
        Policy::AllowedNetwork(pb::AllowedNetworkPolicy { enabled, allowed_network }) => {
            let field = "allowed_network.allowed_network";
            let unknown = Malformed::new(field, "is a network that there is not");
            let network = match Network::try_from(allowed_network).map_err(|_other| unknown)? {
                Network::Unspecified => None,
                Network::PublicAndPrivate => Some(AllowedNetwork::PublicAndPrivate),
                Network::PrivateOnly => Some(AllowedNetwork::PrivateOnly),
            };
            PolicyChange::AllowedNetwork(attribute(enabled, network, field)?)
        }
        Policy::Metrics(pb::MetricsPolicy { enabled }) => PolicyChange::Metrics(enabled),
    };
    Ok((change, etag))
}

/// What a policy needs while it is on, and must not have while it is off.
fn attribute<T>(
    enabled: bool,
    value: Option<T>,
    field: &'static str,
) -> Result<Option<T>, Malformed> {
    match (enabled, &value) {
        (true, None) => Err(Malformed::new(field, "is required if the policy is enabled")),
        (false, Some(_)) => {
            Err(Malformed::new(field, "must be empty if the policy is not enabled"))
        }
        (true, Some(_)) | (false, None) => Ok(value),
    }
}

fn create_import(policy: pb::KeyCreateImportAccessPolicy) -> Result<PolicyChange, Malformed> {
    let pb::KeyCreateImportAccessPolicy {
        enabled,
        create_root_key,
        import_root_key,
        enforce_token,
    } = policy;
    let given = create_root_key.or(import_root_key).or(enforce_token).is_some();
    if !enabled && given {
        let problem = "takes no attributes if it is not enabled";
        return Err(Malformed::new("key_create_import_access", problem));
    }
    Ok(PolicyChange::CreateImport(enabled.then_some(CreateImportAccess {
        create_root_key: create_root_key.unwrap_or(true),
        import_root_key: import_root_key.unwrap_or(true),
        enforce_token: enforce_token.unwrap_or(false),
    })))
}

/// What holds in an instance.
pub(in crate::api) fn policies(instance: &Instance) -> pb::InstancePolicies {
    let Policies {
        dual_auth_delete,
        rotation,
        create_import,
        allowed_ip,
        allowed_network,
        metrics,
        updated,
        generation: _,
    } = &instance.policies;
    let network = match allowed_network {
        None => Network::Unspecified,
        Some(AllowedNetwork::PublicAndPrivate) => Network::PublicAndPrivate,
        Some(AllowedNetwork::PrivateOnly) => Network::PrivateOnly,
    };
    let networks = allowed_ip.as_deref().unwrap_or_default();
    pb::InstancePolicies {
        name: instance.name(),
        dual_auth_delete: Some(pb::DualAuthDeletePolicy { enabled: *dual_auth_delete }),
        rotation: Some(pb::RotationPolicy {
            enabled: rotation.is_some(),
            rotation_period: rotation.map(pb_period),
        }),
        key_create_import_access: Some(pb::KeyCreateImportAccessPolicy {
            enabled: create_import.is_some(),
            create_root_key: create_import.map(|access| access.create_root_key),
            import_root_key: create_import.map(|access| access.import_root_key),
            enforce_token: create_import.map(|access| access.enforce_token),
        }),
        allowed_ip: Some(pb::AllowedIpPolicy {
            enabled: allowed_ip.is_some(),
            allowed_ip: networks.iter().map(ToString::to_string).collect(),
        }),
        allowed_network: Some(pb::AllowedNetworkPolicy {
            enabled: allowed_network.is_some(),
            allowed_network: network.into(),
        }),
        metrics: Some(pb::MetricsPolicy { enabled: *metrics }),
        update_time: updated.as_ref().map(|(time, _)| pb_timestamp(*time)),
        updated_by: updated.as_ref().map(|(_, by)| by.clone()).unwrap_or_default(),
        etag: instance.policies.etag(),
    }
}

/// What the metrics policy counted.
pub(in crate::api) fn metrics(metrics: Metrics) -> pb::InstanceMetrics {
    let rows = metrics.into_iter().map(|(action, reason, calls)| pb::instance_metrics::Row {
        action: action.into(),
        reason,
        count: calls.count,
        total_micros: u64::try_from(calls.took.as_micros()).unwrap_or(u64::MAX),
    });
    pb::InstanceMetrics { rows: rows.collect() }
}

/// Networks in one policy.
const MOST_NETWORKS: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn set(policy: Policy) -> Result<PolicyChange, Malformed> {
        let policy = Some(policy);
        policy_change(pb::SetInstancePolicyRequest { policy, ..Default::default() }).map(|(c, _)| c)
    }

    #[test]
    fn a_policy_needs_its_attribute_while_it_is_on_and_has_none_while_it_is_off() {
        let month = Some(prost_types::Duration { seconds: 30 * 86_400, nanos: 0 });
        let rotation = |enabled, rotation_period: &Option<_>| {
            let rotation_period = *rotation_period;
            set(Policy::Rotation(pb::RotationPolicy { enabled, rotation_period }))
        };
        assert!(rotation(true, &month).is_ok() && rotation(false, &None).is_ok());
        assert_eq!(rotation(true, &None).unwrap_err().field, "rotation.rotation_period");
        assert!(rotation(false, &month).is_err());
        let ip = |enabled, allowed_ip: &[&str]| {
            let allowed_ip = allowed_ip.iter().map(|text| (*text).to_owned()).collect();
            set(Policy::AllowedIp(pb::AllowedIpPolicy { enabled, allowed_ip }))
        };
        assert!(ip(true, &["10.0.0.0/8"]).is_ok() && ip(false, &[]).is_ok());
        assert!(ip(true, &[]).is_err() && ip(true, &["::/0"]).is_err());
        assert!(ip(false, &["10.0.0.0/8"]).is_err());
    }

    #[test]
    fn what_is_left_out_of_create_and_import_is_at_its_default() {
        let policy = pb::KeyCreateImportAccessPolicy {
            enabled: true,
            create_root_key: Some(false),
            ..Default::default()
        };
        let change = set(Policy::KeyCreateImportAccess(policy)).unwrap();
        let access = CreateImportAccess {
            create_root_key: false,
            import_root_key: true,
            enforce_token: false,
        };
        assert_eq!(change, PolicyChange::CreateImport(Some(access)));
        let off = pb::KeyCreateImportAccessPolicy { enabled: false, ..policy };
        assert!(set(Policy::KeyCreateImportAccess(off)).is_err());
        assert!(policy_change(pb::SetInstancePolicyRequest::default()).is_err());
    }
}

//! How policies are shown: what each means in words, and every field in JSON.

use comfy_table::Table;
use serde::Serialize;

use crate::{
    api::pb::{self, allowed_network_policy::Network},
    cli::{
        output::{NOTHING, fields, human_time, or_nothing, rfc3339},
        rotation_period::period_words,
    },
};

/// The policies of an instance, as they are shown.
#[derive(Debug, Serialize)]
pub(super) struct PoliciesView {
    name: String,
    dual_auth_delete: SwitchView,
    rotation: RotationView,
    key_create_import_access: AccessView,
    allowed_ip: AllowedIpView,
    allowed_network: AllowedNetworkView,
    metrics: SwitchView,
    update_time: Option<String>,
    updated_by: String,
    etag: String,
}

impl From<pb::InstancePolicies> for PoliciesView {
    fn from(policies: pb::InstancePolicies) -> Self {
        let pb::InstancePolicies {
            name,
            dual_auth_delete,
            rotation,
            key_create_import_access,
            allowed_ip,
            allowed_network,
            metrics,
            update_time,
            updated_by,
            etag,
        } = policies;
        let pb::DualAuthDeletePolicy { enabled: dual_auth_delete } =
            dual_auth_delete.unwrap_or_default();
        let pb::MetricsPolicy { enabled: metrics } = metrics.unwrap_or_default();
        Self {
            name,
            dual_auth_delete: SwitchView { enabled: dual_auth_delete },
            rotation: rotation.unwrap_or_default().into(),
            key_create_import_access: key_create_import_access.unwrap_or_default().into(),
            allowed_ip: allowed_ip.unwrap_or_default().into(),
            allowed_network: allowed_network.unwrap_or_default().into(),
            metrics: SwitchView { enabled: metrics },
            update_time: update_time.as_ref().and_then(rfc3339),
            updated_by,
            etag,
        }
    }
}

impl PoliciesView {
    pub(super) fn table(&self) -> Table {
        let deletion = match self.dual_auth_delete.enabled {
            true => "new keys need two principals to be deleted",
            false => OFF,
        };
        let metrics = if self.metrics.enabled { "calls are counted" } else { OFF };
        let fixed = [
            ("dual-auth-delete", deletion.to_owned()),
            ("rotation", self.rotation.words()),
            ("create-import-access", self.key_create_import_access.words()),
            ("allowed-ip", self.allowed_ip.words()),
            ("allowed-network", self.allowed_network.words().to_owned()),
            ("metrics", metrics.to_owned()),
            ("updated by", or_nothing(&self.updated_by)),
            ("etag", or_nothing(&self.etag)),
        ];
        let updated = ("updated", human_time(self.update_time.as_ref()));
        fields(fixed.into_iter().chain([updated].into_iter().filter(|(_, time)| time != NOTHING)))
    }
}

/// A policy that says nothing else.
#[derive(Debug, Serialize)]
struct SwitchView {
    enabled: bool,
}

#[derive(Debug, Serialize)]
struct RotationView {
    enabled: bool,
    rotation_period_seconds: Option<i64>,
}

impl From<pb::RotationPolicy> for RotationView {
    fn from(policy: pb::RotationPolicy) -> Self {
        let pb::RotationPolicy { enabled, rotation_period } = policy;
        Self { enabled, rotation_period_seconds: rotation_period.map(|period| period.seconds) }
    }
}

impl RotationView {
    fn words(&self) -> String {
        match (self.enabled, self.rotation_period_seconds) {
            (true, Some(seconds)) => format!("new keys are rotated {}", period_words(seconds)),
            (true, None) | (false, _) => OFF.to_owned(),
        }
    }
}

#[derive(Debug, Serialize)]
struct AccessView {
    enabled: bool,
    create_root_key: Option<bool>,
    import_root_key: Option<bool>,
    enforce_token: Option<bool>,
}

impl From<pb::KeyCreateImportAccessPolicy> for AccessView {
    fn from(policy: pb::KeyCreateImportAccessPolicy) -> Self {
        let pb::KeyCreateImportAccessPolicy {
            enabled,
            create_root_key,
            import_root_key,
            enforce_token,
        } = policy;
        Self { enabled, create_root_key, import_root_key, enforce_token }
    }
}

impl AccessView {
    /// An attribute that is not set means what the contract says.
    fn words(&self) -> String {
        if !self.enabled {
            return OFF.to_owned();
        }
        let allowed = |is| if is { "allowed" } else { "refused" };
        let token = if self.enforce_token.unwrap_or(false) { "" } else { "not " };
        format!(
            "generating {}\nimporting {}\nimport token {token}enforced",
            allowed(self.create_root_key.unwrap_or(true)),
            allowed(self.import_root_key.unwrap_or(true)),
        )
    }
}

#[derive(Debug, Serialize)]
struct AllowedIpView {
    enabled: bool,
    allowed_ip: Vec<String>,
}

impl From<pb::AllowedIpPolicy> for AllowedIpView {
    fn from(policy: pb::AllowedIpPolicy) -> Self {
        let pb::AllowedIpPolicy { enabled, allowed_ip } = policy;
        Self { enabled, allowed_ip }
    }
}

impl AllowedIpView {
    fn words(&self) -> String {
        if self.enabled { self.allowed_ip.join("\n") } else { OFF.to_owned() }
    }
}

#[derive(Debug, Serialize)]
struct AllowedNetworkView {
    enabled: bool,
    /// `None` where none is said, and for one that this client does not know.
    allowed_network: Option<&'static str>,
}

impl From<pb::AllowedNetworkPolicy> for AllowedNetworkView {
    fn from(policy: pb::AllowedNetworkPolicy) -> Self {
        let pb::AllowedNetworkPolicy { enabled, allowed_network } = policy;
        let allowed_network = match Network::try_from(allowed_network) {
            Ok(Network::PublicAndPrivate) => Some("public-and-private"),
            Ok(Network::PrivateOnly) => Some("private-only"),
            Ok(Network::Unspecified) | Err(_) => None,
        };
        Self { enabled, allowed_network }
    }
}

impl AllowedNetworkView {
    fn words(&self) -> &'static str {
        if self.enabled { self.allowed_network.unwrap_or("unknown") } else { OFF }
    }
}

const OFF: &str = "off";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_that_were_never_set_are_off() {
        let view = PoliciesView::from(pb::InstancePolicies::default());
        let json = serde_json::to_value(&view).unwrap();
        for policy in ["dual_auth_delete", "rotation", "allowed_ip", "allowed_network", "metrics"] {
            assert_eq!(json[policy]["enabled"], false, "{policy}");
        }
        assert_eq!(view.table().to_string().matches("off").count(), 6);
    }

    #[test]
    fn an_attribute_that_is_not_set_means_its_default() {
        let access = AccessView::from(pb::KeyCreateImportAccessPolicy {
            enabled: true,
            create_root_key: Some(false),
            ..pb::KeyCreateImportAccessPolicy::default()
        });
        let words = "generating refused\nimporting allowed\nimport token not enforced";
        assert_eq!(access.words(), words);
    }

    #[test]
    fn policies_are_said_in_words() {
        let view = PoliciesView::from(pb::InstancePolicies {
            rotation: Some(pb::RotationPolicy {
                enabled: true,
                rotation_period: Some(prost_types::Duration { seconds: 7_776_000, nanos: 0 }),
            }),
            allowed_network: Some(pb::AllowedNetworkPolicy {
                enabled: true,
                allowed_network: Network::PrivateOnly.into(),
            }),
            ..pb::InstancePolicies::default()
        });
        assert_eq!(view.rotation.words(), "new keys are rotated every 90 days");
        assert_eq!(view.allowed_network.words(), "private-only");
    }
}

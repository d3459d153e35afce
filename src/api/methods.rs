//! Every method of the API as data: what the caller must be allowed, and what
//! the audit log calls it. A method without a row cannot be served.
//!
//! Permissions: `facts/key-protect.md` section 9. Actions: section 10; what Key
//! Protect has no word for begins with `rootkeyd.`.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::domain::{KeyAction, Permission};
use crate::service::Method;

macro_rules! methods {
    ($($row:ident = $name:literal, $permission:ident, $action:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`.")]
            pub static $row: Method =
                Method { name: $name, permission: Permission::$permission, action: $action };
        )*

        /// Every method.
        pub static ALL: &[&Method] = &[$(&$row,)*];
    };
}

#[rustfmt::skip]
methods! {
    WRAP_DEK               = "CryptoService/WrapDek",            UseKeys,    "kms.secrets.wrap";
    UNWRAP_DEK             = "CryptoService/UnwrapDek",          UseKeys,    "kms.secrets.unwrap";
    REWRAP_DEK             = "CryptoService/RewrapDek",          UseKeys,    "kms.secrets.rewrap";
    GENERATE_DEK           = "CryptoService/GenerateDek",        UseKeys,    "kms.secrets.wrap";
    BATCH_UNWRAP_DEKS      = "CryptoService/BatchUnwrapDeks",    UseKeys,    "kms.secrets.unwrap";
    STREAM_UNWRAP_DEKS     = "CryptoService/StreamUnwrapDeks",   UseKeys,    "kms.secrets.unwrap";
    CREATE_KEY             = "KeyService/CreateKey",             WriteKeys,  "kms.secrets.create";
    IMPORT_KEY             = "KeyService/ImportKey",             WriteKeys,  "kms.secrets.create";
    GET_KEY                = "KeyService/GetKey",                ReadKeys,   "kms.secrets-metadata.read";
    LIST_KEYS              = "KeyService/ListKeys",              ReadKeys,   "kms.secrets.list";
    UPDATE_KEY             = "KeyService/UpdateKey",             ManageKeys, "kms.secrets.patch";
    ROTATE_KEY             = "KeyService/RotateKey",             WriteKeys,  "kms.secrets.rotate";
    DISABLE_KEY            = "KeyService/DisableKey",            ManageKeys, "kms.secrets.disable";
    ENABLE_KEY             = "KeyService/EnableKey",             ManageKeys, "kms.secrets.enable";
    SET_KEY_FOR_DELETION   = "KeyService/SetKeyForDeletion",     WriteKeys,  "kms.secrets.setkeyfordeletion";
    UNSET_KEY_FOR_DELETION = "KeyService/UnsetKeyForDeletion",   WriteKeys,  "kms.secrets.unsetkeyfordeletion";
    DELETE_KEY             = "KeyService/DeleteKey",             ManageKeys, "kms.secrets.delete";
    RESTORE_KEY            = "KeyService/RestoreKey",            ManageKeys, "kms.secrets.restore";
    PURGE_KEY              = "KeyService/PurgeKey",              PurgeKeys,  "kms.secrets.purge";
    LIST_KEY_VERSIONS      = "KeyService/ListKeyVersions",       ReadKeys,   "kms.secrets-key-versions.list";
    CREATE_KEY_RING        = "KeyRingService/CreateKeyRing",     WriteKeys,  "kms.key-rings.create";
    LIST_KEY_RINGS         = "KeyRingService/ListKeyRings",      ReadKeys,   "kms.key-rings.list";
    DELETE_KEY_RING        = "KeyRingService/DeleteKeyRing",     ManageKeys, "kms.key-rings.delete";
    CREATE_IMPORT_TOKEN    = "ImportService/CreateImportToken",  WriteKeys,  "kms.import-token.create";
    GET_IMPORT_TOKEN       = "ImportService/GetImportToken",     WriteKeys,  "kms.import-token.read";
    GET_INSTANCE_POLICIES  = "PolicyService/GetInstancePolicies", ManagePolicies, "kms.instance-policies.read";
    SET_INSTANCE_POLICY    = "PolicyService/SetInstancePolicy", ManagePolicies, "kms.instance-policies.write";
    GET_INSTANCE_METRICS   = "PolicyService/GetInstanceMetrics", ManagePolicies, "rootkeyd.instance-metrics.read";
    CREATE_REGISTRATION    = "RegistrationService/CreateRegistration", UseKeys, "kms.registrations.create";
    UPDATE_REGISTRATION    = "RegistrationService/UpdateRegistration", UseKeys, "kms.registrations.merge";
    GET_REGISTRATION       = "RegistrationService/GetRegistration", ReadKeys, "kms.registrations.list";
    LIST_REGISTRATIONS     = "RegistrationService/ListRegistrations", ReadKeys, "kms.registrations.list";
    DELETE_REGISTRATION    = "RegistrationService/DeleteRegistration", ReadKeys, "kms.registrations.delete";
    GET_RESOURCE_STATUS    = "ResourceService/GetResourceStatus", ReadKeys,  "rootkeyd.resource-status.read";
    LIST_RESOURCE_STATUSES = "ResourceService/ListResourceStatuses", ReadKeys, "rootkeyd.resource-status.list";
    CHECK_RESOURCE_ACTION  = "ResourceService/CheckResourceAction", ReadKeys, "rootkeyd.resource-action.check";
    PREVIEW_KEY_IMPACT     = "ResourceService/PreviewKeyImpact", ReadKeys,   "rootkeyd.key-impact.read";
    WATCH_KEY_EVENTS       = "EventService/WatchKeyEvents",      ReadKeys,   "rootkeyd.key-events.watch";
    ACKNOWLEDGE_KEY_EVENT  = "EventService/AcknowledgeKeyEvent", ReadKeys,   "kms.secrets-event.ack";
    SYNC_KEY               = "EventService/SyncKey",             WriteKeys,  "kms.secrets.sync";
    CREATE_REWRAP_CAMPAIGN = "EventService/CreateRewrapCampaign", WriteKeys, "rootkeyd.rewrap-campaign.create";
    GET_REWRAP_CAMPAIGN    = "EventService/GetRewrapCampaign",   ReadKeys,   "rootkeyd.rewrap-campaign.read";
    PAUSE_REWRAP_CAMPAIGN  = "EventService/PauseRewrapCampaign", WriteKeys,  "rootkeyd.rewrap-campaign.pause";
    RESUME_REWRAP_CAMPAIGN = "EventService/ResumeRewrapCampaign", WriteKeys, "rootkeyd.rewrap-campaign.resume";
    CREATE_INSTANCE        = "InstanceService/CreateInstance",   ManageInstances, "rootkeyd.instance.create";
    GET_INSTANCE           = "InstanceService/GetInstance",      ReadKeys,   "rootkeyd.instance.read";
    LIST_INSTANCES         = "InstanceService/ListInstances",    ManageInstances, "rootkeyd.instance.list";
    DELETE_INSTANCE        = "InstanceService/DeleteInstance",   ManageInstances, "rootkeyd.instance.delete";
    LIST_AUDIT_EVENTS      = "AuditService/ListAuditEvents",     ReadAudit,  "rootkeyd.audit.list";
    CREATE_BINDING         = "AccessService/CreateBinding",      ManageAccess, "rootkeyd.binding.create";
    LIST_BINDINGS          = "AccessService/ListBindings",       ManageAccess, "rootkeyd.binding.list";
    DELETE_BINDING         = "AccessService/DeleteBinding",      ManageAccess, "rootkeyd.binding.delete";
    CREATE_SERVICE_AUTHORIZATION = "AccessService/CreateServiceAuthorization", ManageAccess, "rootkeyd.service-authorization.create";
    LIST_SERVICE_AUTHORIZATIONS = "AccessService/ListServiceAuthorizations", ManageAccess, "rootkeyd.service-authorization.list";
    DELETE_SERVICE_AUTHORIZATION = "AccessService/DeleteServiceAuthorization", ManageAccess, "rootkeyd.service-authorization.delete";
    TEST_PERMISSIONS       = "AccessService/TestPermissions",    TestAccess,   "rootkeyd.access.test";
    WATCH_AUDIT_EVENTS     = "AuditService/WatchAuditEvents",    ReadAudit,  "rootkeyd.audit.watch";
    GET_CHECKPOINT         = "AuditService/GetCheckpoint",       ReadAudit,  "rootkeyd.audit-checkpoint.read";
    EXPORT_AUDIT_LOG       = "AuditService/ExportAuditLog",      ExportAudit, "rootkeyd.audit.export";
    GET_SERVER_INFO        = "AdminService/GetServerInfo",       ReadServer, "rootkeyd.server.read";
    GET_HSM_STATUS         = "AdminService/GetHsmStatus",        ReadServer, "rootkeyd.hsm.read";
}

/// A method that there is not: what a call of it is recorded as.
pub static UNKNOWN: Method =
    Method { name: "", permission: Permission::ReadServer, action: "kms.secrets.default" };

/// The method of that name, such as `KeyService/GetKey`; [`UNKNOWN`] if there is none.
pub fn of(name: &str) -> &'static Method {
    static BY_NAME: LazyLock<HashMap<&str, &Method>> =
        LazyLock::new(|| ALL.iter().map(|method| (method.name, *method)).collect());
    BY_NAME.get(name).copied().unwrap_or(&UNKNOWN)
}

/// Methods that the state of a key can refuse, and by which action: what
/// TestPermissions looks at (`domain/lifecycle.rs`).
pub const KEY_ACTIONS: &[(&str, KeyAction)] = &[
    ("CryptoService/WrapDek", KeyAction::Wrap),
    ("CryptoService/GenerateDek", KeyAction::Wrap),
    ("CryptoService/UnwrapDek", KeyAction::Unwrap),
    ("CryptoService/BatchUnwrapDeks", KeyAction::Unwrap),
    ("CryptoService/StreamUnwrapDeks", KeyAction::Unwrap),
    ("CryptoService/RewrapDek", KeyAction::Rewrap),
    ("KeyService/RotateKey", KeyAction::Rotate),
    ("KeyService/UpdateKey", KeyAction::Update),
    ("KeyService/SetKeyForDeletion", KeyAction::SetForDeletion),
    ("KeyService/UnsetKeyForDeletion", KeyAction::UnsetForDeletion),
    ("KeyService/DisableKey", KeyAction::Disable),
    ("KeyService/EnableKey", KeyAction::Enable),
    ("KeyService/DeleteKey", KeyAction::Delete),
    ("KeyService/RestoreKey", KeyAction::Restore),
    ("KeyService/PurgeKey", KeyAction::Purge),
];

/// Fields that hold a DEK: message and field. Their messages print lengths only.
pub const SECRET_FIELDS: [(&str, &str); 3] =
    [("WrapDekRequest", "dek"), ("UnwrapDekResponse", "dek"), ("GenerateDekResponse", "dek")];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::api::pb;

    fn descriptors() -> FileDescriptorSet {
        let mut all = FileDescriptorSet::decode(pb::DESCRIPTORS).unwrap();
        all.file.retain(|file| file.package() == "rootkeyd.v1");
        all
    }

    #[test]
    fn every_rpc_of_the_contract_has_just_one_row() {
        let mut rpcs = BTreeSet::new();
        for service in descriptors().file.iter().flat_map(|file| &file.service) {
            let methods = service.method.iter();
            rpcs.extend(methods.map(|method| format!("{}/{}", service.name(), method.name())));
        }
        let rows: Vec<_> = ALL.iter().map(|method| method.name.to_owned()).collect();
        assert_eq!(rows.len(), rpcs.len());
        assert_eq!(rows.into_iter().collect::<BTreeSet<_>>(), rpcs);
    }

    #[test]
    fn every_field_that_is_called_dek_is_known_to_be_secret() {
        let files = descriptors().file;
        let mut found = BTreeSet::new();
        for message in files.iter().flat_map(|file| &file.message_type) {
            let deks = message.field.iter().filter(|field| field.name() == "dek");
            found.extend(deks.map(|field| (message.name().to_owned(), field.name().to_owned())));
        }
        let known = SECRET_FIELDS.map(|(message, field)| (message.to_owned(), field.to_owned()));
        assert_eq!(found, BTreeSet::from(known));
    }

    #[test]
    fn a_message_with_a_dek_prints_its_length_alone() {
        let dek = b"a dek that nobody may see".to_vec();
        let request = pb::WrapDekRequest { dek: dek.clone(), ..Default::default() };
        let unwrapped = pb::UnwrapDekResponse { dek: dek.clone().into(), ..Default::default() };
        let generated = pb::GenerateDekResponse { dek: dek.into(), ..Default::default() };
        for text in [format!("{request:?}"), format!("{unwrapped:?}"), format!("{generated:?}")] {
            assert!(text.contains("25 bytes"), "{text}");
            assert!(!text.contains("nobody") && !text.contains("97, 32"), "{text}");
        }
    }
}

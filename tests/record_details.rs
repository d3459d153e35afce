//! Records have the fields that Key Protect's events have: a table of actions and the
//! details that each must have, against a real daemon.

mod common;

use common::{Daemon, unwrap_request};
use prost_types::FieldMask;
use rootkeyd::api::pb;

/// Action → names that its newest successful record must have.
#[rustfmt::skip]
const REQUIRED: [(&str, &[&str]); 12] = [
    ("kms.secrets.create", &["key_type", "key_state", "key_version_creation_date_micros", "expiration_date_micros", "days_to_key_expire"]),
    ("kms.secrets-metadata.read", &["key_type", "key_state", "key_version_creation_date_micros", "expiration_date_micros"]),
    ("kms.secrets.wrap", &["expiration_date_micros", "days_to_key_expire"]),
    ("kms.secrets.unwrap", &["expiration_date_micros", "days_to_key_expire"]),
    ("kms.secrets.patch", &["old_key_ring", "new_key_ring"]),
    ("kms.secrets.list", &["total_resources"]),
    ("kms.secrets-key-versions.list", &["total_resources"]),
    ("kms.secrets.setkeyfordeletion", &["old_authorization", "new_authorization", "new_authorization_expiration_micros"]),
    ("kms.secrets.unsetkeyfordeletion", &["old_authorization", "old_authorization_expiration_micros", "new_authorization"]),
    ("kms.secrets.delete", &["key_state"]),
    ("kms.secrets.purge", &["deletion_date_micros", "purge_allowed_from_micros", "purge_eligible_on_micros"]),
    ("kms.import-token.create", &["expiration_date_micros", "max_allowed_retrievals", "remaining_retrievals"]),
];

#[tokio::test]
async fn each_action_leaves_the_details_that_its_event_has_in_key_protect() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let ring =
        pb::CreateKeyRingRequest { parent: "instances/default".into(), key_ring_id: "ring".into() };
    client.rings.create_key_ring(ring).await.unwrap();
    let now = client.create("clock").await;
    let seconds = now.create_time.unwrap().seconds + 10 * 86_400;
    let key = pb::Key {
        display_name: "volumes".into(),
        expire_time: Some(prost_types::Timestamp { seconds, nanos: 0 }),
        dual_auth_delete: true,
        ..Default::default()
    };
    let name = client.create_key(key).await.unwrap().name;
    client.get(&name).await.unwrap();
    let wrapped = client.wrap(&name, b"dek", &[]).await.unwrap();
    client.crypto.unwrap_dek(unwrap_request(&name, &wrapped, &[])).await.unwrap();
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { name: name.clone(), key_ring: "ring".into(), ..Default::default() }),
        update_mask: Some(FieldMask { paths: vec!["key_ring".into()] }),
    };
    client.keys.update_key(update).await.unwrap();
    let parent = "instances/default".to_owned();
    let list = pb::ListKeysRequest { parent, ..Default::default() };
    client.keys.list_keys(list).await.unwrap();
    let versions = pb::ListKeyVersionsRequest { parent: name.clone(), ..Default::default() };
    client.keys.list_key_versions(versions).await.unwrap();
    let set = pb::SetKeyForDeletionRequest { name: name.clone() };
    client.keys.set_key_for_deletion(set).await.unwrap();
    let unset = pb::UnsetKeyForDeletionRequest { name };
    client.keys.unset_key_for_deletion(unset).await.unwrap();
    client.import_token(3).await;
    client.delete(&now.name).await.unwrap();
    daemon.set_clock("+5h");
    daemon.client("key-purge").await.purge(&now.name).await.unwrap();

    let events = client.audit_events().await;
    for (action, names) in REQUIRED {
        let event = events.iter().find(|it| it.action == action && it.reason.is_empty());
        let details = &event.unwrap_or_else(|| panic!("no {action}")).details;
        for name in names {
            assert!(details.contains_key(*name), "{action} has no {name}: {details:?}");
        }
    }
    let patched = events.iter().find(|it| it.action == "kms.secrets.patch").unwrap();
    let rings = ["old_key_ring", "new_key_ring"].map(|name| patched.details[name].as_str());
    assert_eq!(rings, ["default", "ring"]);
}

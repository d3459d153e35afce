//! What the state of a key means for the resources that it protects, compared with
//! the seed's tables through the sockets; what a change of a key would do; and a wrap
//! that registers what it is for.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use common::{Client, Daemon, Refusal, refusal, unwrap_request};
use prost_types::Timestamp;
use rootkeyd::api::pb;
use rootkeyd::api::pb::preview_key_impact_request::Change;
use rootkeyd::api::pb::registration::Kind;
use rootkeyd::api::pb::{KeyCondition, ResourceAction};
use tonic::{Code, Response};

const KEY_PROTECT: fn(String) -> String =
    |config| config.replace("profile = \"vpc\"", "profile = \"key-protect\"");
const EXPIRES: i64 = 1_893_456_060;

/// The kinds that are registered, and whether attached.
const RESOURCES: [(&str, Kind, bool); 8] = [
    ("custom image", Kind::CustomImage, false),
    ("boot volume", Kind::BootVolume, true),
    ("boot volume", Kind::BootVolume, false),
    ("data volume", Kind::DataVolume, true),
    ("data volume", Kind::DataVolume, false),
    ("snapshot", Kind::Snapshot, false),
    ("file share", Kind::FileShare, true),
    ("file share", Kind::FileShare, false),
];

/// Conditions, with reason code and tooltip.
const CONDITIONS: [(KeyCondition, &str, &str); 6] = [
    (KeyCondition::Active, "", ""),
    (KeyCondition::Suspended, "encryption_key_disabled", "key suspended"),
    (KeyCondition::Deactivated, "", ""),
    (KeyCondition::Destroyed, "encryption_key_deleted", ""),
    (KeyCondition::Restored, "", ""),
    (KeyCondition::AuthorizationRemoved, "", ""),
];

/// The seed's tables "Enabled", "Disabled" and "Deleted root key", and beside them
/// what docs/adr/0011 decides. In the order of [`CONDITIONS`].
#[rustfmt::skip]
const STATUSES: [(&str, [&str; 6]); 6] = [
    ("custom image",   ["active",    "unusable",  "active",    "unusable",  "active",    "active"]),
    ("boot volume",    ["available", "available", "available", "unusable",  "available", "available"]),
    ("data volume",    ["available", "available", "available", "unusable",  "available", "available"]),
    ("snapshot",       ["stable",    "unusable",  "stable",    "unusable",  "stable",    "stable"]),
    ("file share",     ["stable",    "stable",    "stable",    "suspended", "stable",    "stable"]),
    ("virtual server", ["available", "available", "available", "unusable",  "available", "available"]),
];

fn crn(what: &str, id: &str) -> String {
    format!("crn:v1:bluemix:public:is:us-south-1:a/1::{what}:{id}")
}

fn resource_of(key: &str, place: usize) -> String {
    crn("resource", &format!("{}-{place}", key.rsplit('/').next().unwrap()))
}

fn server_of(key: &str) -> String {
    crn("instance", key.rsplit('/').next().unwrap())
}

fn said<T>(result: Result<T, Refusal>) -> String {
    result.map_or_else(|refusal| refusal.reason, |_| "ok".to_owned())
}

fn volume(resource: &str) -> pb::Registration {
    pb::Registration {
        resource: resource.into(),
        kind: Kind::DataVolume.into(),
        ..Default::default()
    }
}

async fn wrap_registered(
    client: &mut Client,
    key: &str,
    register: pb::Registration,
) -> Result<pb::WrapDekResponse, Refusal> {
    let request = pb::WrapDekRequest {
        key: key.into(),
        dek: b"dek".to_vec(),
        register: Some(register),
        ..Default::default()
    };
    client.crypto.wrap_dek(request).await.map(Response::into_inner).map_err(refusal)
}

async fn status(client: &mut Client, resource: &str) -> Result<pb::ResourceStatus, Refusal> {
    let (parent, resource) = ("instances/default".into(), resource.into());
    let request = pb::GetResourceStatusRequest { parent, resource };
    client.resources.get_resource_status(request).await.map(Response::into_inner).map_err(refusal)
}

async fn statuses(client: &mut Client, parent: &str) -> Vec<pb::ResourceStatus> {
    let request = pb::ListResourceStatusesRequest { parent: parent.into(), ..Default::default() };
    client.resources.list_resource_statuses(request).await.unwrap().into_inner().statuses
}

async fn check(
    client: &mut Client,
    action: ResourceAction,
    resource: &str,
) -> Result<pb::CheckResourceActionResponse, Refusal> {
    let request = pb::CheckResourceActionRequest {
        parent: "instances/default".into(),
        action: action.into(),
        resource: resource.into(),
        ..Default::default()
    };
    client.resources.check_resource_action(request).await.map(Response::into_inner).map_err(refusal)
}

async fn check_provision(client: &mut Client, key: &str, kind: Kind) -> String {
    let request = pb::CheckResourceActionRequest {
        parent: "instances/default".into(),
        action: ResourceAction::Provision.into(),
        key: key.into(),
        kind: kind.into(),
        ..Default::default()
    };
    outcome(client.resources.check_resource_action(request).await.unwrap().into_inner())
}

/// `ok`, or the reason.
fn outcome(answer: pb::CheckResourceActionResponse) -> String {
    let pb::CheckResourceActionResponse { allowed, reason, message, status } = answer;
    assert!(status.is_some());
    assert_eq!((allowed, allowed), (reason.is_empty(), message.is_empty()));
    if allowed { "ok".to_owned() } else { reason }
}

async fn impact(client: &mut Client, key: &str, change: Change) -> pb::KeyImpact {
    let request = pb::PreviewKeyImpactRequest {
        name: key.into(),
        change: change.into(),
        ..Default::default()
    };
    client.resources.preview_key_impact(request).await.unwrap().into_inner()
}

async fn registrations(client: &mut Client, key: &str) -> Vec<pb::Registration> {
    let request = pb::ListRegistrationsRequest { parent: key.into(), ..Default::default() };
    client.registrations.list_registrations(request).await.unwrap().into_inner().registrations
}

/// A key in that condition, with every resource and a wrapped DEK for it.
async fn key_in(
    condition: KeyCondition,
    admin: &mut Client,
    service: &mut Client,
) -> (String, Vec<u8>) {
    let mut key = pb::Key { display_name: format!("{condition:?}"), ..Default::default() };
    if condition == KeyCondition::Deactivated {
        key.expire_time = Some(Timestamp { seconds: EXPIRES, nanos: 0 });
    }
    let key = admin.create_key(key).await.unwrap().name;
    let mut wrapped = Vec::new();
    for (place, (_, kind, attached)) in RESOURCES.into_iter().enumerate() {
        let register = pb::Registration {
            resource: resource_of(&key, place),
            kind: kind.into(),
            attached_to: if attached { server_of(&key) } else { String::new() },
            ..Default::default()
        };
        wrapped = wrap_registered(service, &key, register).await.unwrap().wrapped_dek.to_vec();
    }
    match condition {
        KeyCondition::Suspended => drop(admin.disable(&key).await.unwrap()),
        KeyCondition::Destroyed | KeyCondition::Restored => {
            let request =
                pb::DeleteKeyRequest { name: key.clone(), force: true, ..Default::default() };
            admin.keys.delete_key(request).await.unwrap();
        }
        KeyCondition::Active
        | KeyCondition::Deactivated
        | KeyCondition::AuthorizationRemoved
        | KeyCondition::Unspecified => {}
    }
    (key, wrapped)
}

/// Every row of the seed's tables, and the columns that they lack.
async fn compare_statuses(admin: &mut Client, key: &str, column: usize) {
    let (condition, reason, tooltip) = CONDITIONS[column];
    let expected: HashMap<_, _> =
        STATUSES.into_iter().map(|(name, row)| (name, row[column])).collect();
    let listed = statuses(admin, key).await;
    assert_eq!(listed.len(), RESOURCES.len());
    for (place, (name, kind, attached)) in RESOURCES.into_iter().enumerate() {
        let status = status(admin, &resource_of(key, place)).await.unwrap();
        let told = (status.condition(), &*status.status, &*status.status_reason, &*status.tooltip);
        assert_eq!(told, (condition, expected[name], reason, tooltip), "{name} {attached}");
        assert_eq!((status.kind(), &*status.key), (kind, key));
        assert_eq!(status.attached_to.is_empty(), !attached);
        assert!(status.consequence.ends_with('.') && !status.registration.is_empty());
        assert!(listed.contains(&status));
    }
    let server = status(admin, &server_of(key)).await.unwrap();
    let told = (server.condition(), &*server.status, &*server.status_reason, &*server.tooltip);
    assert_eq!(told, (condition, expected["virtual server"], reason, tooltip));
    assert_eq!((server.kind(), &*server.registration), (Kind::Unspecified, ""));
}

/// What a check says is what a wrap or unwrap is really answered.
async fn compare_actions(
    (admin, service): (&mut Client, &mut Client),
    (key, wrapped): (&str, &[u8]),
    condition: KeyCondition,
) {
    let unwraps = said(service.unwrap(key, wrapped, &[]).await);
    let wraps = said(service.wrap(key, b"dek", &[]).await);
    let goes_on = if condition == KeyCondition::Destroyed { "KEY_DESTROYED" } else { "ok" };
    let place = |kind: Kind, attached: bool| {
        RESOURCES.iter().position(|it| (it.1, it.2) == (kind, attached)).unwrap()
    };
    let (image, snapshot) = (place(Kind::CustomImage, false), place(Kind::Snapshot, false));
    let share = place(Kind::FileShare, false);
    let volumes = [Kind::BootVolume, Kind::DataVolume];
    let [(boot, boot_alone), (data, data_alone)] =
        volumes.map(|kind| (place(kind, true), place(kind, false)));
    #[rustfmt::skip]
    let table = [
        (ResourceAction::BootFromImage, image,      &*unwraps),
        (ResourceAction::Restore,       snapshot,   &*unwraps),
        (ResourceAction::Attach,        data_alone, &*unwraps),
        (ResourceAction::Attach,        boot_alone, &*unwraps),
        (ResourceAction::ReadWrite,     data_alone, &*unwraps),
        (ResourceAction::StartInstance, boot,       &*unwraps),
        (ResourceAction::StartInstance, data,       &*unwraps),
        (ResourceAction::ReadWrite,     boot,       goes_on),
        (ResourceAction::ReadWrite,     data,       goes_on),
        (ResourceAction::ReadWrite,     share,      goes_on),
        (ResourceAction::Mount,         share,      goes_on),
        (ResourceAction::StopInstance,  boot,       "ok"),
        (ResourceAction::Detach,        data,       "ok"),
        (ResourceAction::Delete,        data,       "ok"),
        (ResourceAction::Delete,        image,      "ok"),
        (ResourceAction::Mount,         image,      "FIELD_INVALID"),
        (ResourceAction::Attach,        share,      "FIELD_INVALID"),
        (ResourceAction::Provision,     image,      "FIELD_INVALID"),
        (ResourceAction::StartInstance, boot_alone, "FIELD_INVALID"),
    ];
    for (action, place, expected) in table {
        let answer = check(admin, action, &resource_of(key, place)).await;
        let became = answer.map_or_else(|refusal| refusal.reason, outcome);
        assert_eq!(became, expected, "{action:?} {:?} {condition:?}", RESOURCES[place]);
    }
    let start = check(admin, ResourceAction::StartInstance, &server_of(key)).await;
    assert_eq!(outcome(start.unwrap()), unwraps);
    if condition != KeyCondition::AuthorizationRemoved {
        for (_, kind, _) in RESOURCES {
            assert_eq!(check_provision(admin, key, kind).await, wraps);
        }
    }
}

#[tokio::test]
async fn every_resource_is_as_the_seed_says_and_every_check_as_the_key_answers() {
    let daemon = Daemon::start_edited(KEY_PROTECT);
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    daemon.set_clock("2030-01-01T00:00:00Z");
    let mut keys = Vec::new();
    for (condition, _, _) in &CONDITIONS[..5] {
        keys.push(key_in(*condition, &mut admin, &mut service).await);
    }
    // Past the expiration date and the 30 seconds of rest.
    daemon.set_clock("2030-01-01T00:01:00Z");
    admin.restore(&keys[4].0).await.unwrap();
    for (column, (key, wrapped)) in keys.iter().enumerate() {
        compare_statuses(&mut admin, key, column).await;
        let clients = (&mut admin, &mut service);
        compare_actions(clients, (key, wrapped), CONDITIONS[column].0).await;
    }
    assert_eq!(statuses(&mut admin, "instances/default/keys/-").await.len(), 40);

    // The service's authorization is taken away.
    let authorization = admin.authorization_of("block-storage").await;
    admin.deauthorize(&authorization).await.unwrap();
    let (active, wrapped) = &keys[0];
    compare_statuses(&mut admin, active, 5).await;
    let removed = KeyCondition::AuthorizationRemoved;
    compare_actions((&mut admin, &mut service), (active, wrapped), removed).await;
    // What the key is outranks it, and a call is refused for the permission first.
    compare_statuses(&mut admin, &keys[1].0, 1).await;
    compare_statuses(&mut admin, &keys[3].0, 3).await;
    let (destroyed, wrapped) = &keys[3];
    let attach = check(&mut admin, ResourceAction::Attach, &resource_of(destroyed, 4)).await;
    let unwraps = said(service.unwrap(destroyed, wrapped, &[]).await);
    assert_eq!((&*outcome(attach.unwrap()), &*unwraps), ("PERMISSION_DENIED", "PERMISSION_DENIED"));
}

#[tokio::test]
async fn a_virtual_server_is_as_the_worst_of_its_volumes_and_what_is_not_there_is_not_found() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let (one, two) = (admin.create("one").await.name, admin.create("two").await.name);
    let server = crn("instance", "web");
    for (key, id, kind) in [(&one, "boot", Kind::BootVolume), (&two, "data", Kind::DataVolume)] {
        let register = pb::Registration {
            kind: kind.into(),
            attached_to: server.clone(),
            ..volume(&crn("volume", id))
        };
        wrap_registered(&mut service, key, register).await.unwrap();
    }
    assert_eq!(status(&mut admin, &server).await.unwrap().key, one);
    admin.disable(&two).await.unwrap();
    let suspended = status(&mut admin, &server).await.unwrap();
    assert_eq!((&*suspended.status, &suspended.key), ("available", &two));
    // It runs, and cannot start again; nor by its boot volume, which is fine itself.
    for resource in [&server, &crn("volume", "boot")] {
        let start = check(&mut admin, ResourceAction::StartInstance, resource).await.unwrap();
        assert_eq!(outcome(start), "KEY_SUSPENDED");
    }
    let request = pb::DeleteKeyRequest { name: one.clone(), force: true, ..Default::default() };
    admin.keys.delete_key(request).await.unwrap();
    let destroyed = status(&mut admin, &server).await.unwrap();
    assert_eq!((&*destroyed.status, &destroyed.key), ("unusable", &one));

    let none = crn("instance", "none");
    let missing = status(&mut admin, &none).await.unwrap_err();
    assert_eq!((missing.code, &*missing.reason), (Code::NotFound, "RESOURCE_NOT_FOUND"));
    assert_eq!(said(status(&mut admin, "vol-1").await), "FIELD_INVALID");
    // A purged key is not there, and neither is what it protected.
    daemon.set_clock("+5h");
    let mut purger = daemon.client("key-purge").await;
    purger.keys.purge_key(pb::PurgeKeyRequest { name: one }).await.unwrap();
    assert_eq!(said(status(&mut admin, &crn("volume", "boot")).await), "RESOURCE_NOT_FOUND");
    assert_eq!(status(&mut admin, &server).await.unwrap().key, two);
}

#[tokio::test]
async fn the_impact_of_a_change_is_counted_and_its_token_holds_until_something_changes() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let (key, wrapped) = key_in(KeyCondition::Active, &mut admin, &mut service).await;
    let before = impact(&mut admin, &key, Change::Delete).await;
    let kinds: Vec<_> =
        before.kinds.iter().map(|it| (it.kind(), it.total, it.attached, &*it.status)).collect();
    let expected = [
        (Kind::CustomImage, 1, 0, "unusable"),
        (Kind::BootVolume, 2, 1, "unusable"),
        (Kind::DataVolume, 2, 1, "unusable"),
        (Kind::Snapshot, 1, 0, "unusable"),
        (Kind::FileShare, 2, 1, "suspended"),
    ];
    assert_eq!(kinds, expected);
    assert_eq!((before.preventing, &*before.refusal), (0, ""));
    assert_eq!((before.versions.len(), before.versions[0].total), (1, 8));
    assert_eq!(before.last_unwrap_time, None);
    assert_eq!(before.stopped_instances, [server_of(&key)]);
    assert!(before.resources.iter().all(|it| it.condition() == KeyCondition::Destroyed));
    // Nothing was changed.
    assert_eq!(status(&mut admin, &resource_of(&key, 0)).await.unwrap().status, "active");

    let disable = impact(&mut admin, &key, Change::Disable).await;
    assert_eq!(disable.impact_token, before.impact_token);
    assert!(disable.stopped_instances.is_empty());
    assert_eq!((&*disable.kinds[0].status, &*disable.kinds[4].status), ("unusable", "stable"));
    let removal = impact(&mut admin, &key, Change::RemoveAuthorization).await;
    assert_eq!((&*removal.refusal, &*removal.kinds[0].status), ("", "active"));
    let mut reader = daemon.client("block-storage").await;
    assert_eq!(impact(&mut reader, &key, Change::Delete).await.refusal, "PERMISSION_DENIED");

    // An unwrap is no change; its time is told.
    service.unwrap(&key, &wrapped, &[]).await.unwrap();
    let used = impact(&mut admin, &key, Change::Delete).await;
    assert_eq!(used.impact_token, before.impact_token);
    assert!(used.last_unwrap_time.is_some());

    // A registration makes it stale, and so does a change of the key.
    let held = pb::Registration { prevent_key_deletion: true, ..volume(&crn("volume", "held")) };
    wrap_registered(&mut service, &key, held).await.unwrap();
    let stale = pb::DeleteKeyRequest {
        name: key.clone(),
        force: true,
        impact_token: before.impact_token,
        ..Default::default()
    };
    let refused = refusal(admin.keys.delete_key(stale).await.unwrap_err());
    assert_eq!((refused.code, &*refused.reason), (Code::Aborted, "IMPACT_STALE"));
    let now = impact(&mut admin, &key, Change::Delete).await;
    assert_eq!((now.preventing, &*now.refusal), (1, "DELETION_PREVENTED"));
    let disable = |impact_token: String, etag: &str| pb::DisableKeyRequest {
        name: key.clone(),
        etag: etag.into(),
        impact_token,
    };
    let token = now.impact_token;
    let refused = admin.keys.disable_key(disable(token.clone(), "\"99\"")).await.unwrap_err();
    assert_eq!(refusal(refused).reason, "ETAG_MISMATCH");
    admin.keys.disable_key(disable(token.clone(), "")).await.unwrap();
    let refused = admin.keys.disable_key(disable(token, "")).await.unwrap_err();
    assert_eq!(refusal(refused).reason, "IMPACT_STALE");
    assert_eq!(impact(&mut admin, &key, Change::Disable).await.refusal, "KEY_SUSPENDED");
}

#[tokio::test]
async fn the_time_of_the_last_unwrap_outlives_a_restart_and_a_token_does_not() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    client.crypto.unwrap_dek(unwrap_request(&key, &wrapped, &[])).await.unwrap();
    let before = impact(&mut client, &key, Change::Disable).await;
    assert!(before.last_unwrap_time.is_some());
    drop(client);
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    let after = impact(&mut client, &key, Change::Disable).await;
    assert_eq!(after.last_unwrap_time, before.last_unwrap_time);
    let request = pb::DisableKeyRequest {
        name: key,
        impact_token: before.impact_token,
        ..Default::default()
    };
    let stale = client.keys.disable_key(request).await.unwrap_err();
    assert_eq!(refusal(stale).reason, "IMPACT_STALE");
}

#[tokio::test]
async fn pages_of_statuses_and_of_an_impact_hold_each_resource_once() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let (key, _) = key_in(KeyCondition::Active, &mut admin, &mut service).await;
    let (mut listed, mut impacted) = (Vec::new(), Vec::new());
    let (mut list_token, mut impact_token) = (String::new(), String::new());
    for _ in 0..3 {
        let request = pb::ListResourceStatusesRequest {
            parent: key.clone(),
            page_size: 3,
            page_token: list_token,
            resource: crn("resource", "*"),
        };
        let page = admin.resources.list_resource_statuses(request).await.unwrap().into_inner();
        listed.extend(page.statuses.into_iter().map(|it| it.resource));
        list_token = page.next_page_token;
        let request = pb::PreviewKeyImpactRequest {
            name: key.clone(),
            change: Change::Disable.into(),
            page_size: 3,
            page_token: impact_token,
        };
        let page = admin.resources.preview_key_impact(request).await.unwrap().into_inner();
        impacted.extend(page.resources.into_iter().map(|it| it.resource));
        impact_token = page.next_page_token;
    }
    let expected: Vec<_> = (0..RESOURCES.len()).map(|place| resource_of(&key, place)).collect();
    assert_eq!((&listed, &impacted), (&expected, &expected));
    assert!(list_token.is_empty() && impact_token.is_empty());
}

#[tokio::test]
async fn a_wrap_registers_with_both_records_or_does_not_wrap() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let mut other = daemon.client("file-storage").await;
    let key = admin.create("volumes").await.name;
    let resource = crn("volume", "one");
    let wrapped = wrap_registered(&mut service, &key, volume(&resource)).await.unwrap();
    assert_eq!(service.unwrap(&key, &wrapped.wrapped_dek, &[]).await.unwrap().dek, &b"dek"[..]);
    let there = registrations(&mut admin, &key).await;
    assert_eq!((there.len(), &there[0].key_version), (1, &wrapped.key_version));
    let events = admin.audit_events().await;
    let mine = |action: &str| {
        let of = |event: &&pb::AuditEvent| event.resource == resource && event.action == action;
        events.iter().find(of).unwrap().request_id.clone()
    };
    assert_eq!(mine("kms.secrets.wrap"), mine("kms.registrations.create"));
    // The same again replaces it; a new DEK does too.
    let request = pb::GenerateDekRequest {
        key: key.clone(),
        register: Some(pb::Registration { description: "two".into(), ..volume(&resource) }),
        ..Default::default()
    };
    service.crypto.generate_dek(request).await.unwrap();
    let there = registrations(&mut admin, &key).await;
    assert_eq!((there.len(), &*there[0].description), (1, "two"));

    let fresh = crn("volume", "fresh");
    let long = "x".repeat(241);
    let version = format!("{key}/versions/{}", uuid::Uuid::new_v4());
    let cases = [
        (volume("crn:x"), "FIELD_INVALID"),
        (pb::Registration { kind: 0, ..volume(&fresh) }, "FIELD_INVALID"),
        (pb::Registration { description: long, ..volume(&fresh) }, "FIELD_INVALID"),
        (pb::Registration { key_version: version, ..volume(&fresh) }, "KEY_VERSION_INVALID"),
        (pb::Registration { source: fresh.clone(), ..volume(&resource) }, "FIELD_INVALID"),
    ];
    for (registration, expected) in cases {
        let refused = wrap_registered(&mut service, &key, registration).await.unwrap_err();
        assert_eq!(refused.reason, expected);
        assert!(refused.message.contains("register") || expected != "FIELD_INVALID");
    }
    assert_eq!(said(wrap_registered(&mut admin, &key, volume(&fresh)).await), "SERVICE_ONLY");
    assert_eq!(said(wrap_registered(&mut other, &key, volume(&resource)).await), "RESOURCE_OWNER");
    let request = pb::WrapDekRequest {
        key: key.clone(),
        dek: b"dek".to_vec(),
        resource: crn("volume", "another"),
        register: Some(volume(&fresh)),
        ..Default::default()
    };
    let refused = refusal(service.crypto.wrap_dek(request).await.unwrap_err());
    assert_eq!(refused.reason, "FIELD_INVALID");
    admin.disable(&key).await.unwrap();
    assert_eq!(said(wrap_registered(&mut service, &key, volume(&fresh)).await), "KEY_SUSPENDED");
    assert_eq!(registrations(&mut admin, &key).await.len(), 1);
    // Each refusal has its record.
    let newest = &admin.audit_events().await[1];
    assert_eq!((&*newest.action, &*newest.reason), ("kms.secrets.wrap", "KEY_SUSPENDED"));
    assert_eq!(newest.resource, fresh);
}

/// A key is deleted while a wrap registers against it: one of the two is refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrap_that_registers_and_a_deletion_never_both_succeed() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let service = daemon.client("block-storage").await;
    let mut wraps = 0;
    for race in 0..100_i64 {
        let key = admin.create("volumes").await.name;
        let (mut service, mut deleter) = (service.clone(), admin.clone());
        let (name, deleted_key) = (key.clone(), key.clone());
        // From the wrap long before the deletion to the deletion long before the wrap: however
        // fast the machine is, each wins at its end and they meet somewhere between.
        let lead = (race - 50) * 400;
        let wait =
            |microseconds: i64| Duration::from_micros(u64::try_from(microseconds.max(0)).unwrap());
        let wrap = tokio::spawn(async move {
            tokio::time::sleep(wait(lead)).await;
            let resource = crn("volume", &race.to_string());
            wrap_registered(&mut service, &name, volume(&resource)).await
        });
        let delete = tokio::spawn(async move {
            tokio::time::sleep(wait(-lead)).await;
            deleter.delete(&deleted_key).await
        });
        let (wrapped, deleted) = (wrap.await.unwrap(), delete.await.unwrap());
        let there = registrations(&mut admin, &key).await.len();
        let key = admin.get(&key).await.unwrap();
        match (&wrapped, &deleted) {
            (Ok(_), Err(refused)) => {
                assert_eq!((&*refused.reason, there), ("KEY_REGISTERED", 1));
                assert_eq!((key.registration_count, key.state()), (1, pb::key::State::Active));
                wraps += 1;
            }
            (Err(refused), Ok(_)) => {
                assert_eq!((&*refused.reason, there), ("KEY_DESTROYED", 0));
                assert_eq!(key.registration_count, 0);
            }
            (wrapped, deleted) => panic!("{wrapped:?} {deleted:?}"),
        }
    }
    assert!((1..100).contains(&wraps), "no race: {wraps} wraps won");
}

#[tokio::test]
async fn the_command_line_shows_statuses_and_impact() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let (key, _) = key_in(KeyCondition::Active, &mut admin, &mut service).await;
    let said = |arguments: &[&str]| {
        let output = daemon.cli(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |arguments: &[&str]| -> serde_json::Value {
        serde_json::from_str(&said(&[&["--output", "json"], arguments].concat())).unwrap()
    };
    let table = said(&["impact", &key]);
    assert!(table.contains("2 data volumes (1 attached; would be unusable)"), "{table}");
    let shown = json(&["impact", &key, "--change", "disable"]);
    assert_eq!(shown["resources"].as_array().unwrap().len(), 8);
    assert_eq!(shown["kinds"][0]["status"], "unusable");
    assert_eq!(json(&["resource", "list", &key]).as_array().unwrap().len(), 8);
    let volume = resource_of(&key, 4);
    assert_eq!(json(&["resource", "status", &volume])["status"], "available");
    assert_eq!(json(&["resource", "check", "attach", &volume])["allowed"], true);
    let provision = ["resource", "check", "provision", "--key", &key, "--kind", "snapshot"];
    assert_eq!(json(&provision)["allowed"], true);
    let deleted = json(&["key", "delete", &key, "--force", "--yes"]);
    assert_eq!(deleted["state"], "destroyed");
    assert_eq!(json(&["resource", "check", "attach", &volume])["reason"], "KEY_DESTROYED");
    let table = said(&["resource", "list", &key]);
    assert!(table.contains("encryption_key_deleted"), "{table}");
}

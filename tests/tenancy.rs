//! Instances, their key rings and their policies: what is one tenant's own, and what
//! the policies of an instance change.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::BTreeSet;

use common::{
    Client, Daemon, Refusal, import_request, outcome, refusal, said, token_request, unwrap_request,
};
use prost_types::{Duration as PbDuration, FieldMask};
use rootkeyd::api::pb;
use rootkeyd::api::pb::allowed_network_policy::Network;
use rootkeyd::api::pb::key::State;
use rootkeyd::api::pb::set_instance_policy_request::Policy;
use rootkeyd::api::pb::unwrap_dek_result::Outcome;
use tonic::Code;

const DEFAULT: &str = "instances/default";
const VOLUME: &str = "crn:v1:bluemix:public:is:us-south-1:a/123::volume:r006-1";

async fn create_ring(client: &mut Client, id: &str) -> Result<pb::KeyRing, Refusal> {
    let request = pb::CreateKeyRingRequest { parent: DEFAULT.into(), key_ring_id: id.into() };
    outcome(client.rings.create_key_ring(request).await)
}

async fn rings(client: &mut Client, parent: &str, page_size: i32) -> Vec<pb::KeyRing> {
    let (mut rings, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListKeyRingsRequest { parent: parent.into(), page_size, page_token };
        let page = outcome(client.rings.list_key_rings(request).await).unwrap();
        assert!(page_size == 0 || page.key_rings.len() <= usize::try_from(page_size).unwrap());
        rings.extend(page.key_rings);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return rings;
        }
    }
}

/// Names and counts of keys.
async fn ring_counts(client: &mut Client) -> Vec<(String, u64)> {
    let rings = rings(client, DEFAULT, 0).await.into_iter();
    rings.map(|ring| (last(&ring.name).to_owned(), ring.key_count)).collect()
}

async fn delete_ring(client: &mut Client, id: &str, force: bool) -> Result<u64, Refusal> {
    let request = pb::DeleteKeyRingRequest { name: format!("{DEFAULT}/keyRings/{id}"), force };
    outcome(client.rings.delete_key_ring(request).await).map(|deleted| deleted.moved_key_count)
}

async fn move_key(client: &mut Client, name: &str, ring: &str) -> Result<pb::Key, Refusal> {
    let key = pb::Key { name: name.into(), key_ring: ring.into(), ..Default::default() };
    let update_mask = Some(FieldMask { paths: vec!["key_ring".into()] });
    outcome(client.keys.update_key(pb::UpdateKeyRequest { key: Some(key), update_mask }).await)
}

/// Names of keys, those that are deleted too.
async fn listed(client: &mut Client, parent: &str, ring: &str) -> BTreeSet<String> {
    let states = [State::Active, State::Suspended, State::Deactivated, State::Destroyed];
    let request = pb::ListKeysRequest {
        parent: parent.into(),
        states: states.map(Into::into).to_vec(),
        key_ring: ring.into(),
        ..Default::default()
    };
    let keys = outcome(client.keys.list_keys(request).await).unwrap().keys;
    keys.into_iter().map(|key| key.name).collect()
}

fn in_ring(ring: &str) -> pb::Key {
    pb::Key { display_name: "a key".into(), key_ring: ring.into(), ..Default::default() }
}

fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap()
}

#[tokio::test]
async fn an_instance_has_fifty_rings_of_which_default_is_neither_made_nor_deleted() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let made = create_ring(&mut client, "ring-00").await.unwrap();
    assert_eq!(made.name, "instances/default/keyRings/ring-00");
    assert_eq!((made.created_by.as_str(), made.key_count), ("spiffe://rootkeyd.dev/admin", 0));
    for number in 1..49 {
        create_ring(&mut client, &format!("ring-{number:02}")).await.unwrap();
    }
    let full = create_ring(&mut client, "ring-49").await.unwrap_err();
    assert_eq!((full.code, full.reason.as_str()), (Code::FailedPrecondition, "LIMIT_REACHED"));
    let exists = create_ring(&mut client, "ring-00").await.unwrap_err();
    assert_eq!((exists.code, exists.reason.as_str()), (Code::AlreadyExists, "KEY_RING_EXISTS"));
    for bad in ["default", "", "a", "ring 1", "ring/1", &"r".repeat(101)] {
        let refused = create_ring(&mut client, bad).await.unwrap_err();
        assert_eq!(refused.metadata["field"], "key_ring_id", "{bad:?}");
    }
    for force in [false, true] {
        let kept = delete_ring(&mut client, "default", force).await.unwrap_err();
        assert_eq!(
            (kept.reason.as_str(), kept.metadata["field"].as_str()),
            ("FIELD_INVALID", "name")
        );
    }
    let reader = daemon.client("block-storage").await;
    assert_eq!(said(create_ring(&mut reader.clone(), "mine").await), "PERMISSION_DENIED");
    let writer = daemon.client("writer").await;
    assert_eq!(said(delete_ring(&mut writer.clone(), "ring-00", false).await), "PERMISSION_DENIED");

    let all: Vec<_> = rings(&mut client, DEFAULT, 0).await;
    assert_eq!(all.len(), 50);
    assert!(all.is_sorted_by(|one, two| one.name < two.name));
    assert_eq!(last(&all[0].name), "default");
    assert_eq!((&all[0].create_time, all[0].created_by.as_str()), (&None, ""));
    for page_size in [1, 7, 49, 50] {
        assert_eq!(rings(&mut client, DEFAULT, page_size).await, all, "pages of {page_size}");
    }
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    assert_eq!(rings(&mut client, DEFAULT, 0).await, all);
    delete_ring(&mut client, "ring-17", false).await.unwrap();
    assert_eq!(said(create_ring(&mut client, "ring-49").await), "ok");
}

#[tokio::test]
async fn a_key_is_made_in_a_ring_and_moves_and_is_counted_where_it_is() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    for ring in ["blue", "red"] {
        create_ring(&mut client, ring).await.unwrap();
    }
    let blue = client.create_key(in_ring("blue")).await.unwrap();
    assert_eq!(blue.key_ring, "blue");
    let plain = client.create_key(in_ring("")).await.unwrap();
    assert_eq!(plain.key_ring, "default");
    let none = client.create_key(in_ring("green")).await.unwrap_err();
    assert_eq!((none.code, none.reason.as_str()), (Code::NotFound, "KEY_RING_NOT_FOUND"));
    assert_eq!(said(move_key(&mut client, &plain.name, "green").await), "KEY_RING_NOT_FOUND");
    let counts = |blue, default, red| {
        [("blue", blue), ("default", default), ("red", red)].map(|(ring, n)| (ring.to_owned(), n))
    };
    assert_eq!(ring_counts(&mut client).await, counts(1, 1, 0));

    let moved = move_key(&mut client, &blue.name, "red").await.unwrap();
    assert_eq!((moved.key_ring.as_str(), moved.display_name.as_str()), ("red", "a key"));
    assert_eq!(ring_counts(&mut client).await, counts(0, 1, 1));
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    assert_eq!(ring_counts(&mut client).await, counts(0, 1, 1));
    assert_eq!(listed(&mut client, DEFAULT, "red").await, BTreeSet::from([blue.name.clone()]));
    assert_eq!(listed(&mut client, DEFAULT, "blue").await, BTreeSet::new());
    assert_eq!(listed(&mut client, DEFAULT, "").await.len(), 2);
    // Without a name it is `default`.
    assert_eq!(move_key(&mut client, &blue.name, "").await.unwrap().key_ring, "default");
}

#[tokio::test]
async fn a_ring_with_keys_stays_and_by_force_its_deleted_keys_move_to_default() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    create_ring(&mut client, "blue").await.unwrap();
    let live = client.create_key(in_ring("blue")).await.unwrap().name;
    let gone = client.create_key(in_ring("blue")).await.unwrap().name;
    client.delete(&gone).await.unwrap();
    for force in [false, true] {
        let kept = delete_ring(&mut client, "blue", force).await.unwrap_err();
        assert_eq!(
            (kept.code, kept.reason.as_str()),
            (Code::FailedPrecondition, "KEY_RING_NOT_EMPTY")
        );
        assert_eq!(kept.metadata["subject"], "instances/default/keyRings/blue");
    }
    client.delete(&live).await.unwrap();
    assert_eq!(said(delete_ring(&mut client, "blue", false).await), "KEY_RING_NOT_EMPTY");
    assert_eq!(delete_ring(&mut client, "blue", true).await.unwrap(), 2);
    assert_eq!(said(delete_ring(&mut client, "blue", true).await), "KEY_RING_NOT_FOUND");
    assert_eq!(ring_counts(&mut client).await, [("default".to_owned(), 2)]);
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    assert_eq!(ring_counts(&mut client).await, [("default".to_owned(), 2)]);
    let moved = client.get(&gone).await.unwrap();
    assert_eq!((moved.key_ring.as_str(), moved.state()), ("default", State::Destroyed));
    create_ring(&mut client, "blue").await.unwrap();
    assert_eq!(delete_ring(&mut client, "blue", false).await.unwrap(), 0);
}

async fn create_instance(
    client: &mut Client,
    id: &str,
    managers: &[&str],
) -> Result<pb::Instance, Refusal> {
    let manager = |name: &&str| format!("spiffe://rootkeyd.dev/{name}");
    let request = pb::CreateInstanceRequest {
        instance_id: id.into(),
        display_name: "A team".into(),
        managers: managers.iter().map(manager).collect(),
    };
    outcome(client.instances.create_instance(request).await)
}

async fn delete_instance(client: &mut Client, id: &str) -> Result<(), Refusal> {
    let request = pb::DeleteInstanceRequest { name: format!("instances/{id}") };
    outcome(client.instances.delete_instance(request).await).map(drop)
}

async fn get_instance(client: &mut Client, id: &str) -> Result<pb::Instance, Refusal> {
    let request = pb::GetInstanceRequest { name: format!("instances/{id}") };
    outcome(client.instances.get_instance(request).await)
}

async fn instances(client: &mut Client, page_size: i32) -> Vec<String> {
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListInstancesRequest { page_size, page_token };
        let page = outcome(client.instances.list_instances(request).await).unwrap();
        names.extend(page.instances.iter().map(|instance| last(&instance.name).to_owned()));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return names;
        }
    }
}

async fn create_in(client: &mut Client, parent: &str, key: pb::Key) -> Result<pb::Key, Refusal> {
    let (parent, request_id) = (parent.into(), String::new());
    let request = pb::CreateKeyRequest { parent, key: Some(key), request_id };
    outcome(client.keys.create_key(request).await)
}

fn with_alias(alias: &str) -> pb::Key {
    pb::Key { display_name: "a key".into(), aliases: vec![alias.into()], ..Default::default() }
}

/// What every method says to `client` about the names of an instance, with the
/// method's own name.
async fn every_method(
    client: &Client,
    instance: &str,
    (key, registration): (&str, &str),
) -> Vec<(&'static str, Refusal)> {
    let mut said = Vec::new();
    let mut client = client.clone();
    let (name, parent) = (key.to_owned(), instance.to_owned());
    let bytes = vec![7; 100];
    macro_rules! call {
        ($service:ident . $method:ident, $message:expr) => {
            let result = client.$service.$method($message).await;
            said.push((stringify!($method), refusal(result.map(drop).unwrap_err())));
        };
    }
    let named = || pb::Key { name: name.clone(), ..in_ring("") };
    let material = || Some(pb::SealedKeyMaterial::default());
    let mask = |path: &str| Some(FieldMask { paths: vec![path.into()] });
    let policy = Some(Policy::Metrics(pb::MetricsPolicy { enabled: true }));
    let resource = pb::Registration {
        name: registration.into(),
        resource: VOLUME.into(),
        kind: pb::registration::Kind::DataVolume.into(),
        ..Default::default()
    };
    call!(
        crypto.wrap_dek,
        pb::WrapDekRequest { key: name.clone(), dek: bytes.clone(), ..Default::default() }
    );
    call!(crypto.unwrap_dek, unwrap_request(&name, &bytes, &[]));
    call!(
        crypto.rewrap_dek,
        pb::RewrapDekRequest { key: name.clone(), wrapped_dek: bytes, ..Default::default() }
    );
    call!(crypto.generate_dek, pb::GenerateDekRequest { key: name.clone(), ..Default::default() });
    call!(
        keys.create_key,
        pb::CreateKeyRequest {
            parent: parent.clone(),
            key: Some(in_ring("")),
            ..Default::default()
        }
    );
    call!(
        keys.import_key,
        pb::ImportKeyRequest {
            parent: parent.clone(),
            ..import_request("a key", material().unwrap())
        }
    );
    call!(keys.get_key, pb::GetKeyRequest { name: name.clone() });
    call!(keys.list_keys, pb::ListKeysRequest { parent: parent.clone(), ..Default::default() });
    call!(keys.update_key, pb::UpdateKeyRequest { key: Some(named()), update_mask: mask("tags") });
    call!(keys.rotate_key, pb::RotateKeyRequest { name: name.clone(), ..Default::default() });
    call!(keys.disable_key, pb::DisableKeyRequest { name: name.clone(), ..Default::default() });
    call!(keys.enable_key, pb::EnableKeyRequest { name: name.clone(), ..Default::default() });
    call!(keys.set_key_for_deletion, pb::SetKeyForDeletionRequest { name: name.clone() });
    call!(keys.unset_key_for_deletion, pb::UnsetKeyForDeletionRequest { name: name.clone() });
    call!(
        keys.delete_key,
        pb::DeleteKeyRequest { name: name.clone(), force: true, ..Default::default() }
    );
    call!(keys.restore_key, pb::RestoreKeyRequest { name: name.clone(), ..Default::default() });
    call!(keys.purge_key, pb::PurgeKeyRequest { name: name.clone() });
    call!(
        keys.list_key_versions,
        pb::ListKeyVersionsRequest { parent: name.clone(), ..Default::default() }
    );
    call!(
        rings.create_key_ring,
        pb::CreateKeyRingRequest { parent: parent.clone(), key_ring_id: "ring".into() }
    );
    call!(
        rings.list_key_rings,
        pb::ListKeyRingsRequest { parent: parent.clone(), ..Default::default() }
    );
    call!(
        rings.delete_key_ring,
        pb::DeleteKeyRingRequest { name: format!("{parent}/keyRings/ring"), force: true }
    );
    call!(
        import.create_import_token,
        pb::CreateImportTokenRequest { parent: parent.clone(), ..token_request() }
    );
    call!(
        import.get_import_token,
        pb::GetImportTokenRequest { name: format!("{parent}/importToken") }
    );
    call!(
        policies.get_instance_policies,
        pb::GetInstancePoliciesRequest { parent: parent.clone() }
    );
    call!(
        policies.set_instance_policy,
        pb::SetInstancePolicyRequest { parent: parent.clone(), policy, etag: String::new() }
    );
    call!(policies.get_instance_metrics, pb::GetInstanceMetricsRequest { parent: parent.clone() });
    call!(
        registrations.create_registration,
        pb::CreateRegistrationRequest {
            parent: name.clone(),
            registration: Some(resource.clone())
        }
    );
    call!(
        registrations.update_registration,
        pb::UpdateRegistrationRequest {
            registration: Some(resource),
            update_mask: mask("description")
        }
    );
    call!(registrations.get_registration, pb::GetRegistrationRequest { name: registration.into() });
    call!(
        registrations.list_registrations,
        pb::ListRegistrationsRequest { parent: name.clone(), ..Default::default() }
    );
    call!(
        registrations.list_registrations,
        pb::ListRegistrationsRequest { parent: format!("{parent}/keys/-"), ..Default::default() }
    );
    call!(
        registrations.delete_registration,
        pb::DeleteRegistrationRequest { name: registration.into(), etag: String::new() }
    );
    call!(instances.get_instance, pb::GetInstanceRequest { name: parent.clone() });
    call!(
        audit.list_audit_events,
        pb::ListAuditEventsRequest { parent: parent.clone(), ..Default::default() }
    );
    call!(
        audit.list_audit_events,
        pb::ListAuditEventsRequest {
            parent: parent.clone(),
            key: name.clone(),
            ..Default::default()
        }
    );
    // One of these is refused and the call is not.
    let batch =
        pb::BatchUnwrapDeksRequest { requests: vec![unwrap_request(&name, &[7; 100], &[])] };
    let results = outcome(client.crypto.batch_unwrap_deks(batch).await).unwrap().results;
    let Some(Outcome::Refusal(refused)) = results[0].outcome.clone() else { panic!("unwrapped") };
    let pb::UnwrapDekRefusal { code, reason, message, metadata } = refused;
    let refused = Refusal { code: code.into(), reason, message, metadata, retry_after: None };
    said.push(("batch_unwrap_deks", refused));
    let request = Some(unwrap_request(&name, &[7; 100], &[]));
    let one = tokio_stream::iter([pb::StreamUnwrapDeksRequest { id: 1, request }]);
    let mut answers = outcome(client.crypto.stream_unwrap_deks(one).await).unwrap();
    let result = answers.message().await.unwrap().unwrap().result.unwrap();
    let Some(Outcome::Refusal(refused)) = result.outcome else { panic!("unwrapped") };
    let pb::UnwrapDekRefusal { code, reason, message, metadata } = refused;
    let refused = Refusal { code: code.into(), reason, message, metadata, retry_after: None };
    said.push(("stream_unwrap_deks", refused));
    said
}

#[tokio::test]
async fn nothing_of_one_instance_is_visible_or_usable_in_another() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut officer = daemon.client("officer").await;
    let made = create_instance(&mut admin, "team-a", &["officer", "service/image"]).await.unwrap();
    assert_eq!((made.name.as_str(), made.key_count), ("instances/team-a", 0));
    let theirs = create_in(&mut officer, "instances/team-a", with_alias("volumes")).await.unwrap();
    let ours = create_in(&mut officer, DEFAULT, with_alias("volumes")).await.unwrap();
    assert_ne!(theirs.name, ours.name);
    let mut image = daemon.client("image").await;
    let resource = pb::Registration {
        resource: VOLUME.into(),
        kind: pb::registration::Kind::CustomImage.into(),
        ..Default::default()
    };
    let registration = image.register(&theirs.name, resource).await.unwrap().name;

    // The operator who made it, a Writer, a Reader and a purger of another instance:
    // one and the same refusal, whether it is there or not.
    let nowhere = theirs.name.replace("team-a", "team-z");
    let nowhere_registration = registration.replace("team-a", "team-z");
    for name in ["admin", "writer", "block-storage", "key-purge"] {
        let client = daemon.client(name).await;
        let there = every_method(&client, "instances/team-a", (&theirs.name, &registration)).await;
        let by_alias = every_method(
            &client,
            "instances/team-a",
            ("instances/team-a/keys/volumes", &registration),
        )
        .await;
        let not_there =
            every_method(&client, "instances/team-z", (&nowhere, &nowhere_registration)).await;
        for (method, refused) in there.into_iter().chain(by_alias).chain(not_there) {
            assert_eq!(
                (refused.code, refused.reason.as_str(), refused.message.as_str()),
                (
                    Code::PermissionDenied,
                    "PERMISSION_DENIED",
                    "permission denied (or it might not exist)"
                ),
                "{name}: {method}"
            );
            assert_eq!(refused.metadata.get("subject"), None, "{name}: {method}");
        }
    }

    // The officer is in both; even so a key is found in its own alone.
    let crossed = theirs.name.replace("team-a", "default");
    assert_eq!(said(officer.get(&crossed).await), "KEY_NOT_FOUND");
    assert_eq!(said(officer.wrap(&crossed, b"dek", &[]).await), "KEY_NOT_FOUND");
    let crossed = registration.replace("team-a", "default");
    let request = pb::GetRegistrationRequest { name: crossed };
    let crossed = outcome(officer.registrations.get_registration(request).await);
    assert_eq!(said(crossed), "REGISTRATION_NOT_FOUND");
    for (parent, key) in [(DEFAULT, &ours), ("instances/team-a", &theirs)] {
        assert_eq!(listed(&mut officer, parent, "").await, BTreeSet::from([key.name.clone()]));
        assert_eq!(officer.get(&format!("{parent}/keys/volumes")).await.unwrap().name, key.name);
        for event in officer.audit_events_of(parent).await {
            assert!(event.subject.starts_with(parent), "{parent}: {event:?}");
        }
    }
    assert_eq!(rings(&mut officer, "instances/team-a", 0).await.len(), 1);
    let wrapped = officer.wrap(&theirs.name, b"dek", &[]).await.unwrap();
    let other = officer.unwrap(&ours.name, &wrapped, &[]).await.unwrap_err();
    assert_eq!(other.reason, "CIPHERTEXT_UNVERIFIED");
}

#[tokio::test]
async fn an_instance_is_made_and_deleted_by_operators_and_used_by_its_managers() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut officer = daemon.client("officer").await;
    assert_eq!(said(create_instance(&mut officer, "mine", &[]).await), "PERMISSION_DENIED");
    assert_eq!(said(delete_instance(&mut officer, "default").await), "PERMISSION_DENIED");
    let list = officer.instances.list_instances(pb::ListInstancesRequest::default()).await;
    assert_eq!(said(outcome(list)), "PERMISSION_DENIED");
    for bad in ["", "Team", "1st", "a_b", &"a".repeat(64)] {
        let refused = create_instance(&mut admin, bad, &[]).await.unwrap_err();
        assert_eq!(refused.metadata["field"], "instance_id", "{bad:?}");
    }
    let request = pb::CreateInstanceRequest {
        instance_id: "team-a".into(),
        managers: vec!["not a principal".into()],
        ..Default::default()
    };
    let refused = outcome(admin.instances.create_instance(request).await).unwrap_err();
    assert_eq!(refused.metadata["field"], "managers");

    create_instance(&mut admin, "team-b", &["officer", "officer"]).await.unwrap();
    let own = create_instance(&mut admin, "team-a", &[]).await.unwrap();
    assert_eq!(own.created_by, "spiffe://rootkeyd.dev/admin");
    assert_eq!(said(create_instance(&mut admin, "team-a", &[]).await), "INSTANCE_EXISTS");
    for page_size in [1, 2, 3, 0] {
        assert_eq!(instances(&mut admin, page_size).await, ["default", "team-a", "team-b"]);
    }
    create_in(&mut admin, "instances/team-a", in_ring("")).await.unwrap();
    daemon.stop().await;
    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    let mut officer = daemon.client("officer").await;
    let seen = get_instance(&mut admin, "team-a").await.unwrap();
    assert_eq!((seen.display_name.as_str(), seen.key_count, seen.live_key_count), ("A team", 1, 1));
    assert_eq!(said(get_instance(&mut admin, "team-b").await), "PERMISSION_DENIED");
    assert_eq!(said(get_instance(&mut officer, "team-b").await), "ok");
    assert_eq!(said(get_instance(&mut officer, "team-a").await), "PERMISSION_DENIED");
    assert_eq!(said(create_in(&mut officer, "instances/team-b", in_ring("")).await), "ok");
    assert_eq!(said(delete_instance(&mut admin, "team-z").await), "INSTANCE_NOT_FOUND");
}

#[tokio::test]
async fn a_deleted_instance_lets_nobody_in_its_keys_are_purged_and_its_name_is_never_anothers() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut officer = daemon.client("officer").await;
    create_instance(&mut admin, "team-a", &["officer"]).await.unwrap();
    let key =
        create_in(&mut officer, "instances/team-a", with_alias("volumes")).await.unwrap().name;
    let request =
        pb::CreateKeyRingRequest { parent: "instances/team-a".into(), key_ring_id: "blue".into() };
    outcome(officer.rings.create_key_ring(request).await).unwrap();
    let live = delete_instance(&mut admin, "team-a").await.unwrap_err();
    assert_eq!((live.code, live.reason.as_str()), (Code::FailedPrecondition, "INSTANCE_NOT_EMPTY"));
    assert_eq!(said(officer.get(&key).await), "ok");
    officer.delete(&key).await.unwrap();
    delete_instance(&mut admin, "team-a").await.unwrap();

    for restarted in [false, true] {
        if restarted {
            daemon.stop().await;
            daemon.start_again();
            admin = daemon.client("admin").await;
            officer = daemon.client("officer").await;
        }
        assert_eq!(said(officer.get(&key).await), "PERMISSION_DENIED", "{restarted}");
        assert_eq!(said(get_instance(&mut officer, "team-a").await), "PERMISSION_DENIED");
        let made = create_in(&mut officer, "instances/team-a", in_ring("")).await;
        assert_eq!(said(made), "PERMISSION_DENIED");
        assert_eq!(instances(&mut admin, 0).await, ["default"]);
        assert_eq!(said(create_instance(&mut admin, "team-a", &[]).await), "INSTANCE_EXISTS");
        assert_eq!(said(delete_instance(&mut admin, "team-a").await), "INSTANCE_NOT_FOUND");
    }
    assert_eq!(admin.hsm_status().await.objects, 1);
    // 90 days and a minute later its keys are gone; its name is never another's, since
    // the audit log goes by it.
    daemon.set_clock("+2160h 1m");
    let gone = async || admin.clone().hsm_status().await.objects == 0;
    daemon.until("the key is purged by itself", gone).await;
    assert_eq!(said(create_instance(&mut admin, "team-a", &[]).await), "INSTANCE_EXISTS");
}

fn days(days: i64) -> Option<PbDuration> {
    Some(PbDuration { seconds: days * 86_400, nanos: 0 })
}

fn dual_auth(enabled: bool) -> Policy {
    Policy::DualAuthDelete(pb::DualAuthDeletePolicy { enabled })
}

fn rotation(period: Option<PbDuration>) -> Policy {
    Policy::Rotation(pb::RotationPolicy { enabled: period.is_some(), rotation_period: period })
}

fn allowed_ip(networks: &[&str]) -> Policy {
    let allowed_ip = networks.iter().map(|network| (*network).to_owned()).collect();
    Policy::AllowedIp(pb::AllowedIpPolicy { enabled: !networks.is_empty(), allowed_ip })
}

fn allowed_network(network: Network) -> Policy {
    Policy::AllowedNetwork(pb::AllowedNetworkPolicy {
        enabled: network != Network::Unspecified,
        allowed_network: network.into(),
    })
}

async fn policies(client: &mut Client) -> Result<pb::InstancePolicies, Refusal> {
    let request = pb::GetInstancePoliciesRequest { parent: DEFAULT.into() };
    outcome(client.policies.get_instance_policies(request).await)
}

#[tokio::test]
async fn policies_are_replaced_whole_and_hold_for_keys_that_are_made_later() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let before = admin.create("before").await;
    let at_first = policies(&mut admin).await.unwrap();
    assert_eq!((&at_first.update_time, at_first.updated_by.as_str()), (&None, ""));
    assert_eq!(at_first.dual_auth_delete, Some(pb::DualAuthDeletePolicy { enabled: false }));
    let bad = rotation(days(45));
    let refused = admin.set_policy(DEFAULT, bad).await.unwrap_err();
    assert_eq!(refused.metadata["field"], "rotation.rotation_period");

    let set = admin.set_policy(DEFAULT, dual_auth(true)).await.unwrap();
    assert_ne!(set.etag, at_first.etag);
    assert_eq!(set.updated_by, "spiffe://rootkeyd.dev/admin");
    admin.set_policy(DEFAULT, rotation(days(90))).await.unwrap();
    let stale = pb::SetInstancePolicyRequest {
        parent: DEFAULT.into(),
        policy: Some(dual_auth(false)),
        etag: set.etag,
    };
    let refused = outcome(admin.policies.set_instance_policy(stale.clone()).await).unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Aborted, "ETAG_MISMATCH"));

    daemon.stop().await;
    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    let kept = policies(&mut admin).await.unwrap();
    assert_eq!(kept.dual_auth_delete, Some(pb::DualAuthDeletePolicy { enabled: true }));
    assert_eq!(kept.rotation.unwrap().rotation_period, days(90));
    let inherits = admin.create("inherits").await;
    assert_eq!((inherits.dual_auth_delete, inherits.rotation_period), (true, days(90)));
    let own = pb::Key { rotation_period: days(30), ..in_ring("") };
    assert_eq!(admin.create_key(own).await.unwrap().rotation_period, days(30));
    let old = admin.get(&before.name).await.unwrap();
    assert_eq!((old.dual_auth_delete, old.rotation_period), (false, None));
    assert_eq!(said(admin.delete(&before.name).await), "ok");
    let alone = admin.delete(&inherits.name).await.unwrap_err();
    assert_eq!(alone.metadata["key_protect_code"], "AUTHORIZATIONS_NOT_MET");

    // An imported key has no rotation of its own, and what is generated later none
    // when the policy is off.
    let token = admin.import_token(1).await;
    let imported = admin.import_key("imported", common::seal(&token, &[5; 32])).await.unwrap();
    assert_eq!((imported.dual_auth_delete, imported.rotation_period), (true, None));
    let etag = policies(&mut admin).await.unwrap().etag;
    let fresh = pb::SetInstancePolicyRequest { etag, ..stale };
    outcome(admin.policies.set_instance_policy(fresh).await).unwrap();
    admin.set_policy(DEFAULT, rotation(None)).await.unwrap();
    let later = admin.create("later").await;
    assert_eq!((later.dual_auth_delete, later.rotation_period), (false, None));
    assert!(admin.get(&inherits.name).await.unwrap().dual_auth_delete);
    let mut writer = daemon.client("writer").await;
    assert_eq!(said(writer.set_policy(DEFAULT, dual_auth(true)).await), "PERMISSION_DENIED");
    assert_eq!(said(policies(&mut writer).await), "PERMISSION_DENIED");
}

#[tokio::test]
async fn allowed_ip_shuts_callers_out_at_once_and_an_operator_who_manages_can_undo_it() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let mut writer = daemon.client("writer").await;
    let mut officer = daemon.client("officer").await;
    let key = admin.create("volumes").await.name;
    let wrapped = service.wrap(&key, b"dek", &[]).await.unwrap();
    let ipv6 = allowed_ip(&["2001:db8::/32"]);
    let refused = admin.set_policy(DEFAULT, ipv6).await.unwrap_err();
    assert_eq!(refused.metadata["field"], "allowed_ip.allowed_ip");

    admin.set_policy(DEFAULT, allowed_ip(&["192.0.2.0/24"])).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            daemon.stop().await;
            daemon.start_again();
            (admin, service) = (daemon.client("admin").await, daemon.client("block-storage").await);
            (writer, officer) = (daemon.client("writer").await, daemon.client("officer").await);
        }
        let shut_out = service.unwrap(&key, &wrapped, &[]).await.unwrap_err();
        assert_eq!(
            (shut_out.code, shut_out.reason.as_str()),
            (Code::PermissionDenied, "PERMISSION_DENIED")
        );
        assert_eq!(shut_out.message, "permission denied (or it might not exist)");
        assert_eq!(said(writer.create_key(in_ring("")).await), "PERMISSION_DENIED");
        // A Manager who is no operator, and the operator for all but the policies.
        let loose = officer.set_policy(DEFAULT, allowed_ip(&[])).await;
        assert_eq!(said(loose), "PERMISSION_DENIED");
        assert_eq!(said(admin.get(&key).await), "PERMISSION_DENIED");
        assert_eq!(said(policies(&mut admin).await), "ok");
    }
    let both = allowed_ip(&["192.0.2.0/24", "127.0.0.1/32"]);
    let set = admin.set_policy(DEFAULT, both).await.unwrap();
    assert_eq!(set.allowed_ip.unwrap().allowed_ip, ["192.0.2.0/24", "127.0.0.1/32"]);
    assert_eq!(service.unwrap(&key, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
    // Replaced whole.
    admin.set_policy(DEFAULT, allowed_ip(&["198.51.100.7"])).await.unwrap();
    assert_eq!(said(service.unwrap(&key, &wrapped, &[]).await), "PERMISSION_DENIED");
    admin.set_policy(DEFAULT, allowed_ip(&[])).await.unwrap();
    assert_eq!(said(service.unwrap(&key, &wrapped, &[]).await), "ok");
}

#[tokio::test]
async fn allowed_network_lets_in_who_is_in_what_the_configuration_calls_private() {
    for (private, expected) in [("127.0.0.0/8", "ok"), ("10.0.0.0/8", "PERMISSION_DENIED")] {
        let networks = format!("[listen]\nprivate_networks = [\"{private}\"]\n");
        let daemon = Daemon::start_edited(|config| config.replace("[listen]\n", &networks));
        let mut admin = daemon.client("admin").await;
        let mut service = daemon.client("block-storage").await;
        let key = admin.create("volumes").await.name;
        admin.set_policy(DEFAULT, allowed_network(Network::PrivateOnly)).await.unwrap();
        assert_eq!(said(service.wrap(&key, b"dek", &[]).await), expected, "{private}");
        for open in [Network::PublicAndPrivate, Network::Unspecified] {
            admin.set_policy(DEFAULT, allowed_network(open)).await.unwrap();
            assert_eq!(said(service.wrap(&key, b"dek", &[]).await), "ok", "{private} {open:?}");
        }
    }
}

#[tokio::test]
async fn calls_are_counted_while_the_metrics_policy_is_on() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut service = daemon.client("block-storage").await;
    let key = admin.create("volumes").await.name;
    let metrics = async || {
        let request = pb::GetInstanceMetricsRequest { parent: DEFAULT.into() };
        let rows = admin.clone().policies.get_instance_metrics(request).await;
        let rows = outcome(rows).unwrap().rows.into_iter();
        let rows = rows.filter(|row| row.action.starts_with("kms.secrets."));
        rows.map(|row| (row.action, row.reason, row.count)).collect::<Vec<_>>()
    };
    let wrapped = service.wrap(&key, b"dek", &[]).await.unwrap();
    assert_eq!(metrics().await, []);
    let switch = |enabled| Policy::Metrics(pb::MetricsPolicy { enabled });
    admin.clone().set_policy(DEFAULT, switch(true)).await.unwrap();
    for _ in 0..3 {
        service.unwrap(&key, &wrapped, &[]).await.unwrap();
    }
    service.unwrap(&key, &wrapped, &[b"other"]).await.unwrap_err();
    service.disable(&key).await.unwrap_err();
    let row = |action: &str, reason: &str, count| (action.to_owned(), reason.to_owned(), count);
    let expected = [
        row("kms.secrets.disable", "PERMISSION_DENIED", 1),
        row("kms.secrets.unwrap", "", 3),
        row("kms.secrets.unwrap", "CIPHERTEXT_UNVERIFIED", 1),
    ];
    assert_eq!(metrics().await, expected);
    admin.clone().set_policy(DEFAULT, switch(false)).await.unwrap();
    service.unwrap(&key, &wrapped, &[]).await.unwrap();
    assert_eq!(metrics().await, []);
    admin.clone().set_policy(DEFAULT, switch(true)).await.unwrap();
    service.unwrap(&key, &wrapped, &[]).await.unwrap();
    assert_eq!(metrics().await, [row("kms.secrets.unwrap", "", 1)]);
}

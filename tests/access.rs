//! Who may do what, through the sockets: every method for every role in every scope,
//! against an oracle that is written down here and knows nothing of the code's tables;
//! and bindings and authorizations as they come and go.
//!
//! Source of the oracle: `facts/key-protect.md` section 9.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![expect(clippy::print_stdout, reason = "how much was tried says what the result is worth")]

mod common;

use std::collections::BTreeSet;
use std::fs;

use bytes::{Buf, BufMut};
use common::{Client, Daemon, Refusal, outcome, refusal};
use http::uri::PathAndQuery;
use prost::Message;
use rootkeyd::api::pb;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

const WRITER: &str = "spiffe://rootkeyd.dev/writer";
const HERE: &str = "instances/default";
const THERE: &str = "instances/other";

// --- the matrix ---------------------------------------------------------------

/// What a method is asked about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum About {
    /// One key.
    Key,
    /// One ring, or what is to be in it.
    Ring,
    /// The whole of an instance.
    Instance,
    /// Whatever the caller may see of an instance.
    Part,
    /// The daemon: who has a whole instance.
    Daemon,
    /// Operators alone.
    Operators,
}

/// Which roles a method needs: Reader, `ReaderPlus`, Writer, Manager, `KeyPurge`.
#[rustfmt::skip]
const METHODS: [(&str, About, &str); 52] = [
    ("CryptoService/WrapDek",                     About::Key,      "RPWM"),
    ("CryptoService/UnwrapDek",                   About::Key,      "RPWM"),
    ("CryptoService/RewrapDek",                   About::Key,      "RPWM"),
    ("CryptoService/GenerateDek",                 About::Key,      "RPWM"),
    ("KeyService/CreateKey",                      About::Ring,     "WM"),
    ("KeyService/ImportKey",                      About::Ring,     "WM"),
    ("KeyService/GetKey",                         About::Key,      "RPWM"),
    ("KeyService/ListKeys",                       About::Part,     "RPWM"),
    ("KeyService/UpdateKey",                      About::Key,      "M"),
    ("KeyService/RotateKey",                      About::Key,      "WM"),
    ("KeyService/DisableKey",                     About::Key,      "M"),
    ("KeyService/EnableKey",                      About::Key,      "M"),
    ("KeyService/SetKeyForDeletion",              About::Key,      "WM"),
    ("KeyService/UnsetKeyForDeletion",            About::Key,      "WM"),
    ("KeyService/DeleteKey",                      About::Key,      "M"),
    ("KeyService/RestoreKey",                     About::Key,      "M"),
    ("KeyService/PurgeKey",                       About::Key,      "K"),
    ("KeyService/ListKeyVersions",                About::Key,      "RPWM"),
    ("KeyRingService/CreateKeyRing",              About::Instance, "WM"),
    ("KeyRingService/ListKeyRings",               About::Part,     "RPWM"),
    ("KeyRingService/DeleteKeyRing",              About::Ring,     "M"),
    ("ImportService/CreateImportToken",           About::Instance, "WM"),
    ("ImportService/GetImportToken",              About::Instance, "WM"),
    ("PolicyService/GetInstancePolicies",         About::Instance, "M"),
    ("PolicyService/SetInstancePolicy",           About::Instance, "M"),
    ("PolicyService/GetInstanceMetrics",          About::Instance, "M"),
    ("RegistrationService/CreateRegistration",    About::Key,      "RPWM"),
    ("RegistrationService/UpdateRegistration",    About::Key,      "RPWM"),
    ("RegistrationService/GetRegistration",       About::Key,      "RPWM"),
    ("RegistrationService/ListRegistrations",     About::Key,      "RPWM"),
    ("RegistrationService/DeleteRegistration",    About::Key,      "RPWM"),
    ("ResourceService/ListResourceStatuses",      About::Part,     "RPWM"),
    ("ResourceService/PreviewKeyImpact",          About::Key,      "RPWM"),
    ("EventService/AcknowledgeKeyEvent",          About::Key,      "RPWM"),
    ("EventService/SyncKey",                      About::Key,      "WM"),
    ("EventService/CreateRewrapCampaign",         About::Key,      "WM"),
    ("EventService/GetRewrapCampaign",            About::Key,      "RPWM"),
    ("EventService/PauseRewrapCampaign",          About::Key,      "WM"),
    ("EventService/ResumeRewrapCampaign",         About::Key,      "WM"),
    ("InstanceService/CreateInstance",            About::Operators, ""),
    ("InstanceService/GetInstance",               About::Instance, "RPWM"),
    ("InstanceService/ListInstances",             About::Operators, ""),
    ("InstanceService/DeleteInstance",            About::Operators, ""),
    ("AuditService/ListAuditEvents",              About::Instance, "M"),
    ("AccessService/CreateBinding",               About::Instance, "M"),
    ("AccessService/ListBindings",                About::Part,     "M"),
    ("AccessService/CreateServiceAuthorization",  About::Instance, "M"),
    ("AccessService/ListServiceAuthorizations",   About::Part,     "M"),
    ("AccessService/TestPermissions",             About::Part,     "RPWMK"),
    ("AuditService/GetCheckpoint",                About::Daemon,   "M"),
    ("AdminService/GetServerInfo",                About::Daemon,   "M"),
    ("AdminService/GetHsmStatus",                 About::Daemon,   "M"),
];

/// Methods that the matrix cannot call as a plain message with one name in it, and what
/// tries them instead.
const OTHERWISE: [(&str, &str); 9] = [
    ("CryptoService/BatchUnwrapDeks", "batches_and_streams_refuse_each_dek_by_itself"),
    ("CryptoService/StreamUnwrapDeks", "batches_and_streams_refuse_each_dek_by_itself"),
    ("EventService/WatchKeyEvents", "a_part_of_an_instance_is_all_that_is_seen"),
    ("ResourceService/GetResourceStatus", "a_part_of_an_instance_is_all_that_is_seen"),
    ("ResourceService/CheckResourceAction", "a_part_of_an_instance_is_all_that_is_seen"),
    ("AuditService/WatchAuditEvents", "export_is_for_operators_and_the_rest_for_managers"),
    ("AuditService/ExportAuditLog", "export_is_for_operators_and_the_rest_for_managers"),
    ("AccessService/DeleteBinding", "a_manager_of_a_ring_gives_and_takes_there_alone"),
    ("AccessService/DeleteServiceAuthorization", "a_manager_of_a_ring_gives_and_takes_there_alone"),
];

const ROLES: [(pb::Role, char); 5] = [
    (pb::Role::Reader, 'R'),
    (pb::Role::ReaderPlus, 'P'),
    (pb::Role::Writer, 'W'),
    (pb::Role::Manager, 'M'),
    (pb::Role::KeyPurge, 'K'),
];

/// Keys of the matrix, by where they are and in what state.
struct World {
    /// Active, suspended, deactivated, destroyed: in the ring `boot`.
    own: [String; 4],
    /// Another in the same ring.
    sibling: String,
    /// In the ring `default`.
    elsewhere: String,
    /// In another instance.
    foreign: String,
}

impl World {
    async fn make(daemon: &Daemon, admin: &mut Client) -> Self {
        outcome(admin.instances.create_instance(new_instance("other")).await).unwrap();
        for parent in [HERE, THERE] {
            let (parent, key_ring_id) = (parent.into(), "boot".into());
            let request = pb::CreateKeyRingRequest { parent, key_ring_id };
            outcome(admin.rings.create_key_ring(request).await).unwrap();
        }
        let in_ring = async |admin: &mut Client, parent: &str, ring: &str, expires: bool| {
            let expire_time = prost_types::Timestamp { seconds: 1_900_000_000, nanos: 0 };
            let key = pb::Key {
                display_name: "key".into(),
                key_ring: ring.into(),
                expire_time: expires.then_some(expire_time),
                ..Default::default()
            };
            let (parent, key) = (parent.into(), Some(key));
            let request = pb::CreateKeyRequest { parent, key, ..Default::default() };
            outcome(admin.keys.create_key(request).await).unwrap().name
        };
        let mut own = Vec::new();
        for state in 0..4 {
            own.push(in_ring(admin, HERE, "boot", state == 2).await);
        }
        let sibling = in_ring(admin, HERE, "boot", false).await;
        let elsewhere = in_ring(admin, HERE, "default", false).await;
        let foreign = in_ring(admin, THERE, "boot", false).await;
        // Past its expiration date, for the third of them.
        daemon.set_clock("2030-12-01T00:00:00Z");
        admin.disable(&own[1]).await.unwrap();
        admin.delete(&own[3]).await.unwrap();
        Self { own: own.try_into().unwrap(), sibling, elsewhere, foreign }
    }
}

fn new_instance(id: &str) -> pb::CreateInstanceRequest {
    pb::CreateInstanceRequest { instance_id: id.into(), ..Default::default() }
}

/// Where the role is held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Held {
    Instance,
    Ring,
    Key,
}

/// Whether a role that is held there covers a key in the world: written down, not computed.
fn covers_key(world: &World, held: Held, key: &str, bound: &str) -> bool {
    let in_boot = world.own.iter().any(|own| own == key) || key == world.sibling;
    match held {
        Held::Instance => key != world.foreign,
        Held::Ring => in_boot,
        Held::Key => key == bound,
    }
}

#[tokio::test]
async fn every_method_is_let_in_by_role_and_scope_just_as_the_oracle_says() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let world = World::make(&daemon, &mut admin).await;
    let mut caller = daemon.client("writer").await;
    // It has nothing now but what each round gives.
    let first = bindings_of(&mut admin, WRITER).await;
    for binding in first {
        admin.unbind(&binding.name).await.unwrap();
    }
    let (mut tried, mut let_in) = (0, 0);
    for (role, letter) in ROLES {
        for held in [Held::Instance, Held::Ring, Held::Key] {
            for bound in &world.own {
                if held != Held::Key && *bound != world.own[0] {
                    continue;
                }
                let scope = match held {
                    Held::Instance => HERE.to_owned(),
                    Held::Ring => format!("{HERE}/keyRings/boot"),
                    Held::Key => bound.clone(),
                };
                let binding = admin.bind(WRITER, role, &scope).await.unwrap();
                for (method, about, roles) in METHODS {
                    for (target, covered) in targets(&world, about, held, bound) {
                        let expected = covered && roles.contains(letter);
                        let reason = call(&mut caller, method, &target).await;
                        let got = reason != "PERMISSION_DENIED";
                        assert_eq!(got, expected, "{letter} {scope} {method} {target}: {reason}");
                        tried += 1;
                        let_in += u32::from(got);
                    }
                }
                admin.unbind(&binding.name).await.unwrap();
            }
        }
    }
    println!("{tried} calls, {let_in} let in");
    assert!(tried > 3000 && let_in > 500);
    // Without a binding nothing is let in at all.
    for (method, about, _) in METHODS {
        for (target, _) in targets(&world, about, Held::Instance, "") {
            assert_eq!(call(&mut caller, method, &target).await, "PERMISSION_DENIED", "{method}");
        }
    }
}

/// Names to call a method with, and whether a role that is held there covers each.
fn targets(world: &World, about: About, held: Held, bound: &str) -> Vec<(String, bool)> {
    let all = held == Held::Instance;
    match about {
        About::Key => {
            let others = [&world.sibling, &world.elsewhere, &world.foreign];
            let keys = world.own.iter().chain(others);
            let mut keys: Vec<_> =
                keys.map(|key| (key.clone(), covers_key(world, held, key, bound))).collect();
            // One that is not there is refused to who has not the whole instance.
            keys.push((format!("{HERE}/keys/00000000-0000-4000-8000-000000000000"), all));
            keys
        }
        About::Ring => vec![
            (format!("{HERE}/keyRings/boot"), all || held == Held::Ring),
            (format!("{HERE}/keyRings/default"), all),
            (format!("{THERE}/keyRings/boot"), false),
        ],
        About::Instance => vec![(HERE.into(), all), (THERE.into(), false)],
        About::Part => vec![(HERE.into(), true), (THERE.into(), false)],
        About::Daemon => vec![(String::new(), all)],
        About::Operators => vec![(HERE.into(), false)],
    }
}

#[tokio::test]
async fn what_a_test_of_permissions_says_is_what_the_calls_do() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let world = World::make(&daemon, &mut admin).await;
    let mut caller = daemon.client("writer").await;
    // Profile vpc, in the order active, suspended, deactivated, destroyed; 30 seconds and
    // other times apart. Source: docs/key-states.md, as people read it.
    let states = [
        ("CryptoService/WrapDek", [true, false, false, false]),
        ("CryptoService/UnwrapDek", [true, false, true, false]),
        ("KeyService/RotateKey", [true, false, false, false]),
        ("KeyService/GetKey", [true, true, true, true]),
    ];
    for (method, allowed) in states {
        for (key, allowed) in world.own.iter().zip(allowed) {
            let own = test(&mut caller, "", method, key).await.unwrap();
            assert_eq!(own.allowed, allowed, "{method} {key}: {own:?}");
            let told = test(&mut admin, WRITER, method, key).await.unwrap();
            assert_eq!(told.allowed, allowed);
            assert_eq!(told.conditions[0].condition, "permission");
            assert!(told.conditions[0].explanation.contains("Writer on instances/default"));
        }
    }
    let reason = call(&mut caller, "CryptoService/GenerateDek", &world.own[1]).await;
    let said = test(&mut caller, "", "CryptoService/GenerateDek", &world.own[1]).await.unwrap();
    assert_eq!((&*reason, said.allowed), ("KEY_SUSPENDED", false));
    assert_eq!(said.conditions.last().unwrap().condition, "state");

    // Nobody is told of another but by who manages access there; nor of what it may not see.
    let refused = test(&mut caller, "spiffe://rootkeyd.dev/admin", "KeyService/GetKey", HERE).await;
    assert_eq!(refused.unwrap_err(), "PERMISSION_DENIED");
    let denied = test(&mut caller, "", "KeyService/DisableKey", &world.own[1]).await.unwrap();
    assert_eq!((denied.allowed, denied.conditions.len()), (false, 1));
    assert!(denied.conditions[0].explanation.contains("needs Manager"), "{denied:?}");
    let foreign = test(&mut caller, "", "KeyService/GetKey", &world.foreign).await;
    assert_eq!(foreign.unwrap_err(), "PERMISSION_DENIED");

    // An address that the policies keep out.
    let policy =
        rootkeyd::api::pb::set_instance_policy_request::Policy::AllowedIp(pb::AllowedIpPolicy {
            enabled: true,
            allowed_ip: vec!["127.0.0.0/8".into()],
        });
    admin.set_policy(HERE, policy).await.unwrap();
    for (from, allowed) in [("127.0.0.9", true), ("192.0.2.1", false)] {
        let request = pb::TestPermissionsRequest {
            resource: world.own[0].clone(),
            methods: vec!["KeyService/GetKey".into()],
            principal: WRITER.into(),
            source_address: from.into(),
        };
        let answer = outcome(admin.access.test_permissions(request).await).unwrap();
        assert_eq!(answer.permissions[0].allowed, allowed, "{from}");
    }
    for (field, resource, method, address) in [
        ("resource", "keys/x", "KeyService/GetKey", ""),
        ("methods", HERE, "KeyService/Get", ""),
        ("source_address", HERE, "KeyService/GetKey", "localhost"),
    ] {
        let request = pb::TestPermissionsRequest {
            resource: resource.into(),
            methods: vec![method.into()],
            principal: String::new(),
            source_address: address.into(),
        };
        let refused = outcome(admin.access.test_permissions(request).await).unwrap_err();
        assert_eq!(refused.reason, "FIELD_INVALID");
        assert!(refused.message.starts_with(field), "{refused:?}");
    }
}

#[test]
fn every_method_of_the_contract_is_in_the_matrix_or_tried_otherwise() {
    let tried = METHODS.map(|(method, _, _)| method);
    let known: BTreeSet<_> = tried.into_iter().chain(OTHERWISE.map(|(method, _)| method)).collect();
    let all: BTreeSet<_> = rootkeyd::api::methods::ALL.iter().map(|method| method.name).collect();
    let missing: Vec<_> = all.difference(&known).collect();
    let text = ["tests/access.rs", "tests/proof.rs"].map(|path| fs::read_to_string(path).unwrap());
    assert!(missing.is_empty(), "{missing:?}");
    for (method, by) in OTHERWISE {
        assert!(text.concat().contains(&format!("async fn {by}()")), "{method}");
    }
}

// --- what the matrix cannot call ------------------------------------------------

#[tokio::test]
async fn batches_and_streams_refuse_each_dek_by_itself() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let world = World::make(&daemon, &mut admin).await;
    let mut caller = daemon.client("writer").await;
    for binding in bindings_of(&mut admin, WRITER).await {
        admin.unbind(&binding.name).await.unwrap();
    }
    let mut requests = Vec::new();
    for key in [&world.sibling, &world.elsewhere, &world.foreign] {
        let wrapped_dek = admin.wrap(key, b"a dek", &[]).await.unwrap();
        requests.push(pb::UnwrapDekRequest { key: key.clone(), wrapped_dek, ..Default::default() });
    }
    let denied = "PERMISSION_DENIED";
    let batch = pb::BatchUnwrapDeksRequest { requests: requests.clone() };
    let nothing = outcome(caller.crypto.batch_unwrap_deks(batch.clone()).await).unwrap().results;
    assert_eq!(nothing.into_iter().map(reason_of).collect::<Vec<_>>(), [denied; 3]);

    admin.bind(WRITER, pb::Role::Reader, &format!("{HERE}/keyRings/boot")).await.unwrap();
    let results = outcome(caller.crypto.batch_unwrap_deks(batch).await).unwrap().results;
    let reasons: Vec<_> = results.into_iter().map(reason_of).collect();
    assert_eq!(reasons, ["", denied, denied]);
    let stream = requests
        .into_iter()
        .zip(0..)
        .map(|(request, id)| pb::StreamUnwrapDeksRequest { id, request: Some(request) });
    let stream = tokio_stream::iter(stream.collect::<Vec<_>>());
    let mut answers = caller.crypto.stream_unwrap_deks(stream).await.unwrap().into_inner();
    let mut reasons = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        reasons.push((answer.id, reason_of(answer.result.unwrap())));
    }
    reasons.sort();
    assert_eq!(reasons, [(0, "".into()), (1, denied.into()), (2, denied.into())]);
}

fn reason_of(result: pb::UnwrapDekResult) -> String {
    use pb::unwrap_dek_result::Outcome;
    match result.outcome.unwrap() {
        Outcome::Response(response) => {
            assert_eq!(&response.dek[..], b"a dek");
            String::new()
        }
        Outcome::Refusal(refusal) => refusal.reason,
    }
}

#[tokio::test]
async fn a_part_of_an_instance_is_all_that_is_seen() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let world = World::make(&daemon, &mut admin).await;
    let mut service = daemon.client("file-storage").await;
    let whole = admin.authorization_of("file-storage").await;
    let resource = |name: &str| format!("crn:v1:x:public:is:r:a/1::share:{name}");
    let keys = [("in", &world.sibling), ("out", &world.elsewhere)];
    for (name, key) in keys {
        let registration = pb::Registration {
            resource: resource(name),
            kind: pb::registration::Kind::FileShare.into(),
            ..Default::default()
        };
        service.register(key, registration).await.unwrap();
    }
    admin.authorize("file-storage", &format!("{HERE}/keyRings/boot")).await.unwrap();
    admin.deauthorize(&whole).await.unwrap();

    let parent = || HERE.to_owned();
    let request = pb::ListKeysRequest { parent: parent(), ..Default::default() };
    let listed = outcome(service.keys.list_keys(request).await).unwrap().keys;
    assert!(listed.iter().all(|key| key.key_ring == "boot") && listed.len() == 4, "{listed:?}");
    let request = pb::ListKeyRingsRequest { parent: parent(), ..Default::default() };
    let rings = outcome(service.rings.list_key_rings(request).await).unwrap().key_rings;
    assert_eq!(
        rings.iter().map(|ring| &*ring.name).collect::<Vec<_>>(),
        ["instances/default/keyRings/boot"]
    );
    let all = format!("{HERE}/keys/-");
    let request = pb::ListRegistrationsRequest { parent: all.clone(), ..Default::default() };
    let seen = outcome(service.registrations.list_registrations(request).await).unwrap();
    let seen: Vec<_> = seen.registrations.iter().map(|it| it.resource.clone()).collect();
    assert_eq!(seen, [resource("in")]);
    let request = pb::ListResourceStatusesRequest { parent: all.clone(), ..Default::default() };
    let seen = outcome(service.resources.list_resource_statuses(request).await).unwrap().statuses;
    assert_eq!(seen.iter().map(|it| it.resource.clone()).collect::<Vec<_>>(), [resource("in")]);

    for (name, expected) in [("in", ""), ("out", "PERMISSION_DENIED"), ("no", "PERMISSION_DENIED")]
    {
        let request = pb::GetResourceStatusRequest { parent: parent(), resource: resource(name) };
        let got = service.resources.get_resource_status(request).await;
        assert_eq!(said(outcome(got).map(|_| ())), expected, "{name}");
        let request = pb::CheckResourceActionRequest {
            parent: parent(),
            action: pb::ResourceAction::Mount.into(),
            resource: resource(name),
            ..Default::default()
        };
        let got = service.resources.check_resource_action(request).await;
        assert_eq!(said(outcome(got).map(|_| ())), expected, "{name}");
    }

    // It is told of the one key and not of the other; the resources of the other are
    // listed to who sees all, as those of a service that may not use it any more.
    admin.disable(&world.elsewhere).await.unwrap();
    admin.disable(&world.sibling).await.unwrap();
    let request = pb::WatchKeyEventsRequest { parent: parent(), resume_token: "0".into() };
    let channel = service.channel.clone();
    let mut events = pb::event_service_client::EventServiceClient::new(channel);
    let mut events = events.watch_key_events(request).await.unwrap().into_inner();
    let event = events.message().await.unwrap().unwrap();
    assert_eq!(event.key, world.sibling);
    let request = pb::ListResourceStatusesRequest { parent: all, ..Default::default() };
    let seen = outcome(admin.resources.list_resource_statuses(request).await).unwrap().statuses;
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_manager_of_a_ring_gives_and_takes_there_alone() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let world = World::make(&daemon, &mut admin).await;
    let mut caller = daemon.client("writer").await;
    for binding in bindings_of(&mut admin, WRITER).await {
        admin.unbind(&binding.name).await.unwrap();
    }
    let ring = format!("{HERE}/keyRings/boot");
    admin.bind(WRITER, pb::Role::Manager, &ring).await.unwrap();
    let reader = "spiffe://rootkeyd.dev/reader";
    let denied = "PERMISSION_DENIED";
    for (scope, expected) in [(&*ring, ""), (&world.own[0], ""), (HERE, denied), (THERE, denied)] {
        let bound = caller.bind(reader, pb::Role::Reader, scope).await;
        let authorized = caller.authorize("image", scope).await;
        let outcomes = (said(bound.clone()), said(authorized.clone()));
        assert_eq!(outcomes, (expected.into(), expected.into()), "{scope}");
        if expected.is_empty() {
            caller.unbind(&bound.unwrap().name).await.unwrap();
            caller.deauthorize(&authorized.unwrap().name).await.unwrap();
        }
    }
    let whole = admin.authorization_of("image").await;
    assert_eq!(said(caller.deauthorize(&whole).await), denied);
    let of_admin = bindings_of(&mut admin, "spiffe://rootkeyd.dev/admin").await;
    assert_eq!(said(caller.unbind(&of_admin[0].name).await), denied);
    assert_eq!(bindings_of(&mut caller, WRITER).await.len(), 1);
    let nobody = "00000000-0000-4000-8000-000000000000";
    assert_eq!(said(caller.unbind(&format!("{HERE}/bindings/{nobody}")).await), denied);
    let missing = admin.unbind(&format!("{HERE}/bindings/{nobody}")).await;
    assert_eq!(said(missing), "BINDING_NOT_FOUND");

    // A key can be moved by who manages both rings, and takes nothing with it.
    let moved = |ring: &str| pb::UpdateKeyRequest {
        key: Some(pb::Key {
            name: world.sibling.clone(),
            key_ring: ring.into(),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["key_ring".into()] }),
    };
    let refused = outcome(caller.keys.update_key(moved("default")).await);
    assert_eq!(said(refused.map(|_| ())), denied);
    outcome(caller.keys.update_key(moved("boot")).await).unwrap();
    outcome(admin.keys.update_key(moved("default")).await).unwrap();
    assert_eq!(said(caller.get(&world.sibling).await), denied);
    outcome(admin.keys.update_key(moved("boot")).await).unwrap();
    caller.get(&world.sibling).await.unwrap();
}

// --- bindings as they come and go -------------------------------------------------

#[tokio::test]
async fn an_instance_keeps_a_manager_and_a_binding_is_given_once() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let managers = ["spiffe://rootkeyd.dev/admin", "spiffe://rootkeyd.dev/officer"];
    let again = admin.bind(managers[0], pb::Role::Manager, HERE).await;
    assert_eq!(said(again), "BINDING_EXISTS");
    // Of a part of it is not enough.
    let (parent, key_ring_id) = (HERE.into(), "boot".into());
    let request = pb::CreateKeyRingRequest { parent, key_ring_id };
    outcome(admin.rings.create_key_ring(request).await).unwrap();
    let ring = format!("{HERE}/keyRings/boot");
    admin.bind(WRITER, pb::Role::Manager, &ring).await.unwrap();
    let names = [
        bindings_of(&mut admin, managers[0]).await[0].name.clone(),
        bindings_of(&mut admin, managers[1]).await[0].name.clone(),
    ];
    // Both at once: one of them stays.
    let mut other = daemon.client("officer").await;
    let mut results = Vec::new();
    let both = tokio::join!(admin.unbind(&names[1]), other.unbind(&names[0]));
    results.extend([both.0, both.1].map(said));
    results.sort();
    let kept = results.iter().filter(|it| it.is_empty()).count();
    assert_eq!(kept, 1, "{results:?}");
    assert!(["LAST_MANAGER", "PERMISSION_DENIED"].contains(&&*results[1]), "{results:?}");
    let (left, mut client) =
        if admin.get("instances/default/keys/x-x").await.unwrap_err().reason == "KEY_NOT_FOUND" {
            (&names[0], admin)
        } else {
            (&names[1], other)
        };
    assert_eq!(said(client.unbind(left).await), "LAST_MANAGER");

    for (scope, reason) in [
        (format!("{HERE}/keyRings/none"), "KEY_RING_NOT_FOUND"),
        (format!("{HERE}/keys/00000000-0000-4000-8000-000000000000"), "KEY_NOT_FOUND"),
        (format!("{HERE}/keys/alias"), "FIELD_INVALID"),
    ] {
        let bound = client.bind("spiffe://rootkeyd.dev/a", pb::Role::Reader, &scope).await;
        assert_eq!(said(bound), reason, "{scope}");
    }
}

#[tokio::test]
async fn what_is_on_a_ring_or_a_key_goes_with_it() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let (parent, key_ring_id) = (HERE.into(), "boot".into());
    let request = pb::CreateKeyRingRequest { parent, key_ring_id };
    outcome(admin.rings.create_key_ring(request.clone()).await).unwrap();
    let key = admin.create("key").await.name;
    let ring = format!("{HERE}/keyRings/boot");
    for scope in [&ring, &key] {
        admin.bind("spiffe://rootkeyd.dev/a", pb::Role::Reader, scope).await.unwrap();
        admin.authorize("image", scope).await.unwrap();
    }
    let deletion = pb::DeleteKeyRingRequest { name: ring.clone(), force: false };
    outcome(admin.rings.delete_key_ring(deletion).await).unwrap();
    admin.delete(&key).await.unwrap();
    daemon.set_clock("+5h");
    daemon.client("key-purge").await.purge(&key).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            daemon.stop().await;
            daemon.start_again();
            admin = daemon.client("admin").await;
        }
        assert!(bindings_of(&mut admin, "spiffe://rootkeyd.dev/a").await.is_empty());
        let parent = HERE.into();
        let request = pb::ListServiceAuthorizationsRequest { parent, ..Default::default() };
        let left = outcome(admin.access.list_service_authorizations(request).await).unwrap();
        let left: Vec<_> = left.service_authorizations.into_iter().map(|it| it.scope).collect();
        assert_eq!(left, [HERE; 3]);
    }
    // A new ring of the same name begins with nothing.
    outcome(admin.rings.create_key_ring(request).await).unwrap();
    assert!(bindings_of(&mut admin, "spiffe://rootkeyd.dev/a").await.is_empty());
}

#[tokio::test]
async fn what_was_removed_does_not_come_back_by_a_restart_and_what_is_new_comes_once() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let key = admin.create("key").await.name;
    let mut image = daemon.client("image").await;
    image.get(&key).await.unwrap();
    let authorization = admin.authorization_of("image").await;
    admin.deauthorize(&authorization).await.unwrap();
    let denied = "PERMISSION_DENIED";
    assert_eq!(said(image.get(&key).await), denied);
    daemon.stop().await;
    let path = daemon.dir.join("rootkeyd.toml");
    let config = fs::read_to_string(&path).unwrap();
    let more = "\n[[bindings]]\nprincipal = \"spiffe://rootkeyd.dev/service/image\"\n\
                role = \"Writer\"\nscope = \"instances/default\"\n";
    for (config, expected) in [(config.clone(), denied), (config + more, "")] {
        fs::write(&path, config).unwrap();
        for _ in 0..2 {
            daemon.start_again();
            assert_eq!(said(daemon.client("image").await.get(&key).await), expected);
            daemon.stop().await;
        }
    }
    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    let events = admin.audit_events().await;
    let given: Vec<_> = events
        .iter()
        .filter(|it| it.details.get("from").is_some_and(|from| from == "configuration"))
        .map(|it| (it.action.clone(), it.details["subject"].clone(), it.details["role"].clone()))
        .collect();
    let unique: BTreeSet<_> = given.iter().collect();
    // Seven of `rootkeyd dev`, and the new one; each once.
    assert_eq!((given.len(), unique.len()), (8, 8), "{given:?}");
    let removed = events.iter().find(|it| it.action == "rootkeyd.service-authorization.delete");
    let removed = removed.unwrap();
    assert_eq!(removed.details["subject"], "service:image");
    assert_eq!((&*removed.subject, &*removed.details["scope"]), (&*authorization, HERE));
}

#[tokio::test]
async fn lists_of_bindings_are_paged_oldest_first() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let names: Vec<_> = (0..7).map(|n| format!("spiffe://rootkeyd.dev/reader-{n}")).collect();
    for name in &names {
        admin.bind(name, pb::Role::Reader, HERE).await.unwrap();
    }
    let (mut seen, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = pb::ListBindingsRequest { parent: HERE.into(), page_size: 2, page_token };
        let page = outcome(admin.access.list_bindings(request).await).unwrap();
        assert!(page.bindings.len() <= 2);
        seen.extend(page.bindings.into_iter().map(|it| it.principal));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen.len(), 11);
    assert_eq!(seen[4..], names);
    let request =
        pb::ListBindingsRequest { parent: HERE.into(), page_size: 0, page_token: "other".into() };
    let refused = outcome(admin.access.list_bindings(request).await).unwrap_err();
    assert_eq!(refused.reason, "FIELD_INVALID");
}

/// The reason of a refusal; empty if there is none.
fn said<T>(result: Result<T, Refusal>) -> String {
    result.err().map(|refused| refused.reason).unwrap_or_default()
}

// --- how it is asked ---------------------------------------------------------------

async fn bindings_of(client: &mut Client, principal: &str) -> Vec<pb::Binding> {
    let request = pb::ListBindingsRequest { parent: HERE.into(), ..Default::default() };
    let listed = outcome(client.access.list_bindings(request).await).unwrap().bindings;
    listed.into_iter().filter(|it| it.principal == principal).collect()
}

async fn test(
    client: &mut Client,
    principal: &str,
    method: &str,
    resource: &str,
) -> Result<pb::MethodPermission, String> {
    let request = pb::TestPermissionsRequest {
        resource: resource.into(),
        methods: vec![method.into()],
        principal: principal.into(),
        source_address: String::new(),
    };
    let answer = outcome(client.access.test_permissions(request).await);
    Ok(answer.map_err(|refused| refused.reason)?.permissions.remove(0))
}

/// Calls a method about `target`, in such a way that a call that is let in changes
/// nothing that matters to the others; the reason of the refusal, or nothing.
async fn call(client: &mut Client, method: &str, target: &str) -> String {
    let mut grpc = tonic::client::Grpc::new(client.channel.clone());
    grpc.ready().await.unwrap();
    let path: PathAndQuery = format!("/rootkeyd.v1.{method}").parse().unwrap();
    let request = Request::new(message(method, target));
    match grpc.unary(request, path, Raw).await {
        Ok(_response) => String::new(),
        Err(status) => refusal(status).reason,
    }
}

/// The request: most have the name in field 1, and no more.
fn message(method: &str, target: &str) -> Vec<u8> {
    let name = || target.to_owned();
    let (instance, ring) = target.split_once("/keyRings/").unwrap_or((target, "boot"));
    // Of no generation of any key: refused after the permission and the state.
    let etag = || "none".to_owned();
    let too_long = "x".repeat(100);
    let key =
        || pb::Key { key_ring: ring.into(), display_name: too_long.clone(), ..Default::default() };
    let of_registration = || format!("{target}/registrations/00000000-0000-4000-8000-000000000000");
    match method {
        "KeyService/CreateKey" => {
            pb::CreateKeyRequest { parent: instance.into(), key: Some(key()), ..Default::default() }
                .encode_to_vec()
        }
        "KeyService/ImportKey" => {
            pb::ImportKeyRequest { parent: instance.into(), key: Some(key()), ..Default::default() }
                .encode_to_vec()
        }
        "KeyService/UpdateKey" => pb::UpdateKeyRequest {
            key: Some(pb::Key { name: name(), etag: etag(), ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["display_name".into()] }),
        }
        .encode_to_vec(),
        "KeyService/RotateKey" => {
            pb::RotateKeyRequest { name: name(), etag: etag(), ..Default::default() }
                .encode_to_vec()
        }
        "KeyService/DisableKey" => {
            pb::DisableKeyRequest { name: name(), etag: etag(), ..Default::default() }
                .encode_to_vec()
        }
        "KeyService/EnableKey" => {
            pb::EnableKeyRequest { name: name(), etag: etag() }.encode_to_vec()
        }
        "KeyService/DeleteKey" => {
            pb::DeleteKeyRequest { name: name(), etag: etag(), ..Default::default() }
                .encode_to_vec()
        }
        "KeyService/RestoreKey" => {
            pb::RestoreKeyRequest { name: name(), etag: etag() }.encode_to_vec()
        }
        "KeyRingService/CreateKeyRing" => {
            let (parent, key_ring_id) = (name(), "default".into());
            pb::CreateKeyRingRequest { parent, key_ring_id }.encode_to_vec()
        }
        "ImportService/GetImportToken" => {
            pb::GetImportTokenRequest { name: format!("{target}/importToken") }.encode_to_vec()
        }
        "ImportService/CreateImportToken" => pb::CreateImportTokenRequest {
            parent: name(),
            max_allowed_retrievals: -1,
            ..Default::default()
        }
        .encode_to_vec(),
        "RegistrationService/UpdateRegistration" => pb::UpdateRegistrationRequest {
            registration: Some(pb::Registration { name: of_registration(), ..Default::default() }),
            update_mask: None,
        }
        .encode_to_vec(),
        "RegistrationService/GetRegistration" | "RegistrationService/DeleteRegistration" => {
            pb::GetRegistrationRequest { name: of_registration() }.encode_to_vec()
        }
        "ResourceService/ListResourceStatuses" => pb::ListResourceStatusesRequest {
            parent: format!("{target}/keys/-"),
            ..Default::default()
        }
        .encode_to_vec(),
        "EventService/GetRewrapCampaign"
        | "EventService/PauseRewrapCampaign"
        | "EventService/ResumeRewrapCampaign" => {
            pb::GetRewrapCampaignRequest { name: format!("{target}/rewrapCampaign") }
                .encode_to_vec()
        }
        "EventService/CreateRewrapCampaign" => {
            pb::CreateRewrapCampaignRequest { parent: name(), rate_per_minute: u32::MAX }
                .encode_to_vec()
        }
        "AuditService/GetCheckpoint"
        | "InstanceService/ListInstances"
        | "AdminService/GetServerInfo"
        | "AdminService/GetHsmStatus" => Vec::new(),
        _ => pb::GetKeyRequest { name: name() }.encode_to_vec(),
    }
}

/// Messages as their bytes.
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        buffer.advance(buffer.remaining());
        Ok(Some(()))
    }
}

//! Registrations: which resources a key protects, who may say so, and what that
//! means for the deletion of the key.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::BTreeSet;

use common::{Client, Daemon, Refusal, outcome, said};
use prost_types::{FieldMask, Timestamp};
use rootkeyd::api::pb;
use rootkeyd::api::pb::key::State;
use rootkeyd::api::pb::registration::Kind;
use tonic::Code;

/// All but the last two segments of a CRN.
const PLACE: &str = "crn:v1:bluemix:public:is:us-south-1:a/123:";

fn crn(kind: &str, id: impl std::fmt::Display) -> String {
    format!("{PLACE}:{kind}:{id}")
}

fn volume(id: impl std::fmt::Display) -> pb::Registration {
    pb::Registration {
        resource: crn("volume", id),
        kind: Kind::DataVolume.into(),
        ..Default::default()
    }
}

fn preventing(id: impl std::fmt::Display) -> pb::Registration {
    pb::Registration { prevent_key_deletion: true, ..volume(id) }
}

async fn update(
    client: &mut Client,
    registration: pb::Registration,
    path: &str,
) -> Result<pb::Registration, Refusal> {
    let update_mask = Some(FieldMask { paths: vec![path.into()] });
    let registration = Some(registration);
    let request = pb::UpdateRegistrationRequest { registration, update_mask };
    outcome(client.registrations.update_registration(request).await)
}

async fn unregister(client: &mut Client, name: &str) -> Result<(), Refusal> {
    let request = pb::DeleteRegistrationRequest { name: name.into(), etag: String::new() };
    outcome(client.registrations.delete_registration(request).await).map(drop)
}

async fn delete_key(client: &mut Client, name: &str, force: bool) -> Result<pb::Key, Refusal> {
    let request = pb::DeleteKeyRequest { name: name.into(), force, ..Default::default() };
    outcome(client.keys.delete_key(request).await)
}

fn of(parent: &str) -> pb::ListRegistrationsRequest {
    pb::ListRegistrationsRequest { parent: parent.into(), ..Default::default() }
}

async fn list(
    client: &mut Client,
    request: pb::ListRegistrationsRequest,
) -> Result<pb::ListRegistrationsResponse, Refusal> {
    outcome(client.registrations.list_registrations(request).await)
}

/// Every page.
async fn list_all(
    client: &mut Client,
    mut request: pb::ListRegistrationsRequest,
) -> Vec<pb::Registration> {
    let mut all = Vec::new();
    loop {
        let page = list(client, request.clone()).await.unwrap();
        if request.page_size > 0 {
            assert!(page.registrations.len() <= usize::try_from(request.page_size).unwrap());
        }
        all.extend(page.registrations);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return all;
        }
    }
}

fn resources(registrations: &[pb::Registration]) -> Vec<&str> {
    registrations.iter().map(|registration| registration.resource.as_str()).collect()
}

#[tokio::test]
async fn services_alone_write_registrations_and_each_alters_its_own() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut block = daemon.client("block-storage").await;
    let mut file = daemon.client("file-storage").await;
    let key = admin.create("volumes").await.name;
    for person in ["admin", "writer"] {
        let mut person = daemon.client(person).await;
        let refused = person.register(&key, volume(1)).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (Code::PermissionDenied, "SERVICE_ONLY")
        );
        assert_eq!(refused.metadata["key_protect_code"], "SERVICE_ONLY_ERR");
    }
    let mut purger = daemon.client("key-purge").await;
    assert_eq!(said(purger.register(&key, volume(1)).await), "PERMISSION_DENIED");

    let asked = pb::Registration {
        attached_to: crn("instance", "i-1"),
        description: "the first".into(),
        source: crn("snapshot", "s-1"),
        ..volume(1)
    };
    let made = block.register(&key, asked.clone()).await.unwrap();
    assert_eq!(made.service, "block-storage");
    assert_eq!(made.created_by, "spiffe://rootkeyd.dev/service/block-storage");
    assert_eq!(made.key_version, admin.get(&key).await.unwrap().primary_version);
    assert!(made.name.starts_with(&format!("{key}/registrations/")) && made.update_time.is_none());
    assert_eq!(
        (&made.attached_to, &made.description, &made.source),
        (&asked.attached_to, &asked.description, &asked.source)
    );

    // Another service's: it may be read, and neither replaced, altered nor taken back.
    let read = pb::GetRegistrationRequest { name: made.name.clone() };
    for mut reader in [file.clone(), admin.clone()] {
        let read = outcome(reader.registrations.get_registration(read.clone()).await);
        assert_eq!(read.unwrap(), made);
    }
    let refused = file.register(&key, volume(1)).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::PermissionDenied, "RESOURCE_OWNER"));
    assert_eq!(refused.metadata["key_protect_code"], "RESOURCE_OWNER_ERR");
    assert_eq!(said(update(&mut file, made.clone(), "description").await), "RESOURCE_OWNER");
    assert_eq!(said(unregister(&mut file, &made.name).await), "RESOURCE_OWNER");
    assert_eq!(said(update(&mut admin, made.clone(), "description").await), "SERVICE_ONLY");
    assert_eq!(said(unregister(&mut admin, &made.name).await), "SERVICE_ONLY");
    assert_eq!(said(file.register(&key, volume(2)).await), "ok");
    unregister(&mut block, &made.name).await.unwrap();
    assert_eq!(said(unregister(&mut block, &made.name).await), "REGISTRATION_NOT_FOUND");
    let gone = outcome(block.registrations.get_registration(read).await);
    assert_eq!(said(gone), "REGISTRATION_NOT_FOUND");
    assert_eq!(said(file.register(&key, volume(1)).await), "ok");
}

#[tokio::test]
async fn the_same_resource_again_replaces_what_can_change_of_its_registration() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut block = daemon.client("block-storage").await;
    let key = admin.create("volumes").await.name;
    let other_key = admin.create("other").await.name;
    let first = pb::Registration {
        attached_to: crn("instance", "i-1"),
        description: "the first".into(),
        ..preventing(1)
    };
    let made = block.register(&key, first).await.unwrap();
    let again = block.register(&key, volume(1)).await.unwrap();
    assert_eq!((&again.name, &again.create_time), (&made.name, &made.create_time));
    assert_ne!(again.etag, made.etag);
    assert_eq!(
        (again.attached_to.as_str(), again.description.as_str(), again.prevent_key_deletion),
        ("", "", false)
    );
    assert_eq!(again.updated_by, "spiffe://rootkeyd.dev/service/block-storage");
    assert_eq!(admin.get(&key).await.unwrap().registration_count, 1);
    let otherwise = pb::Registration { kind: Kind::BootVolume.into(), ..volume(1) };
    let refused = block.register(&key, otherwise).await.unwrap_err();
    assert_eq!(
        (refused.reason.as_str(), refused.metadata["field"].as_str()),
        ("FIELD_INVALID", "registration.resource")
    );
    // Under another key it is another registration.
    assert_ne!(block.register(&other_key, volume(1)).await.unwrap().name, made.name);

    // One field alone; and an etag of before.
    let described = pb::Registration { description: "described".into(), ..again.clone() };
    let described = update(&mut block, described, "description").await.unwrap();
    assert_eq!(
        (described.description.as_str(), described.prevent_key_deletion),
        ("described", false)
    );
    let refused = update(&mut block, again, "attached_to").await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Aborted, "ETAG_MISMATCH"));
    let stale = pb::DeleteRegistrationRequest { name: made.name, etag: made.etag };
    let refused = outcome(block.registrations.delete_registration(stale).await);
    assert_eq!(said(refused), "ETAG_MISMATCH");
    for path in ["resource", "kind", "source", "service", ""] {
        let refused = update(&mut block, described.clone(), path).await.unwrap_err();
        assert_eq!(refused.metadata["field"], "update_mask", "{path:?}");
    }
}

#[tokio::test]
async fn what_is_no_registration_is_refused_by_its_field() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut block = daemon.client("block-storage").await;
    let key = admin.create("volumes").await.name;
    let long = format!("{PLACE}:volume:{}", "x".repeat(513 - PLACE.len() - 8));
    assert_eq!(long.len(), 513);
    #[rustfmt::skip]
    let cases = [
        ("registration.resource",    pb::Registration { resource: String::new(), ..volume(1) }),
        ("registration.resource",    pb::Registration { resource: "crn:v1:nine".into(), ..volume(1) }),
        ("registration.resource",    pb::Registration { resource: format!("{}:x", crn("volume", 1)), ..volume(1) }),
        ("registration.resource",    pb::Registration { resource: crn("volume", "*"), ..volume(1) }),
        ("registration.resource",    pb::Registration { resource: long.clone(), ..volume(1) }),
        ("registration.kind",        pb::Registration { kind: 0, ..volume(1) }),
        ("registration.attached_to", pb::Registration { attached_to: "i-1".into(), ..volume(1) }),
        ("registration.source",      pb::Registration { source: "s-1".into(), ..volume(1) }),
        ("registration.description", pb::Registration { description: "d".repeat(241), ..volume(1) }),
        ("registration.key_version", pb::Registration { key_version: "no such".into(), ..volume(1) }),
    ];
    for (field, registration) in cases {
        let refused = block.register(&key, registration.clone()).await.unwrap_err();
        assert_eq!(refused.code, Code::InvalidArgument);
        assert_eq!(refused.metadata["field"], field, "{registration:?}");
    }
    let longest = pb::Registration {
        resource: long[..512].into(),
        description: "d".repeat(240),
        ..volume(1)
    };
    assert_eq!(said(block.register(&key, longest).await), "ok");
    let nowhere = "instances/default/keys/nowhere";
    assert_eq!(said(block.register(nowhere, volume(1)).await), "KEY_NOT_FOUND");
    assert_eq!(block.register("keys/x", volume(1)).await.unwrap_err().metadata["field"], "parent");
}

#[tokio::test]
async fn a_registration_never_goes_back_to_an_older_key_version() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut block = daemon.client("block-storage").await;
    let key = admin.create("volumes").await;
    let made = block.register(&key.name, volume(1)).await.unwrap();
    let rotated = admin.rotate(&key.name).await.unwrap();
    let old = |registration: &pb::Registration| pb::Registration {
        key_version: key.primary_version.clone(),
        etag: String::new(),
        ..registration.clone()
    };
    // The older one while it is the recorded one; then the newest, and not back.
    assert_eq!(
        update(&mut block, old(&made), "key_version").await.unwrap().key_version,
        key.primary_version
    );
    let newest =
        pb::Registration { key_version: String::new(), etag: String::new(), ..made.clone() };
    let newest = update(&mut block, newest, "key_version").await.unwrap();
    assert_eq!(newest.key_version, rotated.primary_version);
    let refused = update(&mut block, old(&made), "key_version").await.unwrap_err();
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::InvalidArgument, "KEY_VERSION_INVALID")
    );
    assert_eq!(refused.metadata["field"], "registration.key_version");
    assert_eq!(said(block.register(&key.name, old(&volume(1))).await), "KEY_VERSION_INVALID");
    // A resource that is new can be of an older version.
    let other = block.register(&key.name, old(&volume(2))).await.unwrap();
    assert_eq!(other.key_version, key.primary_version);
    // A version of another key is none.
    let stranger = admin.create("stranger").await.primary_version;
    let strange = pb::Registration { key_version: stranger, ..volume(3) };
    assert_eq!(said(block.register(&key.name, strange).await), "KEY_VERSION_INVALID");
}

#[tokio::test]
async fn a_registration_and_a_version_are_named_by_an_alias_of_their_key_too() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut block = daemon.client("block-storage").await;
    let aliased = |alias: &str| pb::Key {
        display_name: "a key".into(),
        aliases: vec![alias.into()],
        ..Default::default()
    };
    let key = admin.create_key(aliased("boot")).await.unwrap();
    admin.create_key(aliased("data")).await.unwrap();
    let rotated = admin.rotate(&key.name).await.unwrap();
    let by = |alias: &str, name: &str| {
        name.replace(&key.name, &format!("instances/default/keys/{alias}"))
    };
    let old = pb::Registration { key_version: by("boot", &key.primary_version), ..volume(1) };
    let made = block.register("instances/default/keys/boot", old.clone()).await.unwrap();
    assert_eq!(made.key_version, key.primary_version);
    let name = by("boot", &made.name);
    let newest = pb::Registration {
        name: name.clone(),
        key_version: by("boot", &rotated.primary_version),
        ..Default::default()
    };
    let updated = update(&mut block, newest, "key_version").await.unwrap();
    assert_eq!((&updated.name, &updated.key_version), (&made.name, &rotated.primary_version));
    let strange = pb::Registration { key_version: by("data", &key.primary_version), ..volume(2) };
    assert_eq!(said(block.register(&key.name, strange).await), "KEY_VERSION_INVALID");
    let other = by("data", &made.name);
    assert_eq!(said(unregister(&mut block, &other).await), "REGISTRATION_NOT_FOUND");
    assert_eq!(said(unregister(&mut block, &name).await), "ok");
}

#[tokio::test]
async fn an_active_key_alone_is_registered_against_and_any_key_is_unregistered() {
    let daemon = Daemon::start();
    daemon.set_clock("2030-01-01T00:00:00Z");
    let mut admin = daemon.client("admin").await;
    let mut block = daemon.client("block-storage").await;
    let mut keys = Vec::new();
    for state in [State::Suspended, State::Deactivated, State::Destroyed] {
        let key = pb::Key {
            display_name: "a key".into(),
            expire_time: (state == State::Deactivated)
                .then_some(Timestamp { seconds: 1_893_456_060, nanos: 0 }),
            ..Default::default()
        };
        let key = admin.create_key(key).await.unwrap().name;
        let made = block.register(&key, volume(1)).await.unwrap();
        match state {
            State::Suspended => drop(admin.disable(&key).await.unwrap()),
            State::Destroyed => drop(delete_key(&mut admin, &key, true).await.unwrap()),
            State::Active | State::Deactivated | State::Unspecified => {}
        }
        keys.push((state, key, made));
    }
    daemon.set_clock("2030-01-01T00:01:00Z");
    for (state, key, made) in keys {
        let seen = admin.get(&key).await.unwrap();
        assert_eq!((seen.state(), seen.registration_count), (state, 1));
        let refused = block.register(&key, volume(2)).await.unwrap_err();
        assert_eq!(
            (refused.code, refused.reason.as_str()),
            (Code::FailedPrecondition, "KEY_NOT_ACTIVE"),
            "{state:?}"
        );
        assert_eq!(refused.metadata["key_protect_code"], "KEY_INVALID_STATE_ERR");
        // What is registered already can be told about, listed and taken back.
        let described = pb::Registration { description: "still".into(), ..made.clone() };
        assert_eq!(said(update(&mut block, described, "description").await), "ok", "{state:?}");
        assert_eq!(list_all(&mut block, of(&key)).await.len(), 1, "{state:?}");
        assert_eq!(said(unregister(&mut block, &made.name).await), "ok", "{state:?}");
        assert_eq!(admin.get(&key).await.unwrap().registration_count, 0, "{state:?}");
    }
}

#[tokio::test]
async fn registrations_are_listed_by_key_instance_and_pattern_without_gap_or_repeat() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let block = daemon.client("block-storage").await;
    let keys = [admin.create("one").await.name, admin.create("two").await.name];
    // 500 volumes, every tenth preventing; five of them under both keys; a share.
    let calls = (0..500).map(|number| {
        let (mut block, key) = (block.clone(), keys[number % 2].clone());
        let id = format!("r-{number:03}");
        let it = if number % 10 == 0 { preventing(id) } else { volume(id) };
        async move { block.register(&key, it).await.unwrap() }
    });
    futures_util::future::join_all(calls).await;
    let mut block = block;
    for number in (0..10).step_by(2) {
        block.register(&keys[1], volume(format!("r-{number:03}"))).await.unwrap();
    }
    let share = pb::Registration {
        resource: crn("share", "r-000"),
        kind: Kind::FileShare.into(),
        ..Default::default()
    };
    daemon.client("file-storage").await.register(&keys[0], share).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            daemon.stop().await;
            daemon.start_again();
            admin = daemon.client("admin").await;
        }
        let counts = [admin.get(&keys[0]).await.unwrap(), admin.get(&keys[1]).await.unwrap()];
        assert_eq!(counts.map(|key| key.registration_count), [251, 255]);
    }

    let every = "instances/default/keys/-";
    let whole =
        list_all(&mut admin, pb::ListRegistrationsRequest { page_size: 5000, ..of(every) }).await;
    assert_eq!(whole.len(), 506);
    assert!(resources(&whole).is_sorted());
    let names: BTreeSet<_> = whole.iter().map(|it| &it.name).collect();
    assert_eq!(names.len(), 506);
    for page_size in [1, 7, 100, 253, 0] {
        let paged =
            list_all(&mut admin, pb::ListRegistrationsRequest { page_size, ..of(every) }).await;
        assert!(paged == whole, "pages of {page_size}");
        let request = pb::ListRegistrationsRequest { page_size, ..of(&keys[1]) };
        assert_eq!(list_all(&mut admin, request).await.len(), 255, "pages of {page_size}");
    }
    let request =
        pb::ListRegistrationsRequest { page_size: 7, prevent_key_deletion: true, ..of(every) };
    let preventing = list_all(&mut admin, request).await;
    assert_eq!(preventing.len(), 50);
    assert!(preventing.iter().all(|it| it.prevent_key_deletion));
    let request = pb::ListRegistrationsRequest { prevent_key_deletion: true, ..of(&keys[1]) };
    assert_eq!(list_all(&mut admin, request).await, []);

    #[rustfmt::skip]
    let patterns = [
        (every,    crn("volume", "r-000"), 2),
        (every,    crn("volume", "r-00*"), 15),
        (every,    crn("volume", "r-1*"),  100),
        (every,    crn("volume", "*"),     505),
        (every,    crn("*", "*"),          506),
        (every,    crn("volume", "x*"),    0),
        (&keys[0], crn("volume", "r-00*"), 5),
        (&keys[0], crn("share", "*"),      1),
        (&keys[0], "crn:*:*:*:*:*:*:*:*:*".into(), 251),
    ];
    for (parent, resource, expected) in patterns {
        for page_size in [3, 0] {
            let resource = resource.clone();
            let request = pb::ListRegistrationsRequest { page_size, resource, ..of(parent) };
            let found = list_all(&mut admin, request.clone()).await;
            assert_eq!(found.len(), expected, "{request:?}");
            assert!(resources(&found).is_sorted());
        }
    }
    let bad = [
        "*",
        "crn:*",
        "crn:v1:bluemix:public:is:us-south-1:a/123:*:*:*",
        &crn("v*", "*"),
        &crn("*", "r"),
    ];
    for resource in bad {
        let request = pb::ListRegistrationsRequest { resource: resource.into(), ..of(every) };
        let refused = list(&mut admin, request).await.unwrap_err();
        assert_eq!(refused.metadata["field"], "resource", "{resource}");
    }
    for page_token in ["x", "AAAA"] {
        let request = pb::ListRegistrationsRequest { page_token: page_token.into(), ..of(every) };
        assert_eq!(list(&mut admin, request).await.unwrap_err().metadata["field"], "page_token");
    }
    for page_size in [-1, 5001] {
        let request = pb::ListRegistrationsRequest { page_size, ..of(every) };
        assert_eq!(list(&mut admin, request).await.unwrap_err().metadata["field"], "page_size");
    }
}

#[tokio::test]
async fn a_registered_key_is_deleted_by_force_alone_and_a_preventing_one_not_at_all() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut block = daemon.client("block-storage").await;
    let key = admin.create("volumes").await.name;
    let plain = block.register(&key, volume(1)).await.unwrap();
    let kept = block.register(&key, preventing(2)).await.unwrap();
    for restarted in [false, true] {
        if restarted {
            daemon.stop().await;
            daemon.start_again();
            admin = daemon.client("admin").await;
            block = daemon.client("block-storage").await;
        }
        for force in [false, true] {
            let refused = delete_key(&mut admin, &key, force).await.unwrap_err();
            assert_eq!(
                (refused.code, refused.reason.as_str()),
                (Code::FailedPrecondition, "DELETION_PREVENTED")
            );
            assert_eq!(refused.metadata["key_protect_code"], "PREV_KEY_DEL_ERR");
        }
    }
    let allowed = pb::Registration { prevent_key_deletion: false, ..kept };
    update(&mut block, allowed.clone(), "prevent_key_deletion").await.unwrap();
    let refused = delete_key(&mut admin, &key, false).await.unwrap_err();
    assert_eq!(refused.reason, "KEY_REGISTERED");
    assert_eq!(refused.metadata["key_protect_code"], "PROTECTED_RESOURCE_ERR");
    let deleted = delete_key(&mut admin, &key, true).await.unwrap();
    assert_eq!((deleted.state(), deleted.registration_count), (State::Destroyed, 2));
    assert_eq!(list_all(&mut admin, of(&key)).await.len(), 2);

    let free = admin.create("free").await.name;
    let made = block.register(&free, preventing(3)).await.unwrap();
    unregister(&mut block, &made.name).await.unwrap();
    assert_eq!(said(delete_key(&mut admin, &free, false).await), "ok");

    // Purged, it takes its registrations with it.
    daemon.set_clock("+4h 1m");
    daemon.client("key-purge").await.purge(&key).await.unwrap();
    assert_eq!(said(unregister(&mut block, &plain.name).await), "REGISTRATION_NOT_FOUND");
    assert_eq!(list_all(&mut admin, of("instances/default/keys/-")).await, []);
}

/// 1,000 times at once. Whoever is first decides: either the key is deleted and the
/// registration refused, or the other way round. A key is restored, or the registration
/// taken back, and raced for again: to make a key each time would take SoftHSM minutes.
#[tokio::test(flavor = "multi_thread")]
async fn no_resource_is_registered_against_a_key_whose_deletion_was_acknowledged() {
    const KEYS: usize = 20;
    const RACES: usize = 50;
    let mut daemon = Daemon::start_edited(|config| {
        config.replace("profile = \"vpc\"", "profile = \"key-protect\"")
    });
    let mut admin = daemon.client("admin").await;
    let mut block = daemon.client("block-storage").await;
    let mut raced = Vec::new();
    let (mut registered, mut deleted) = (0, 0);
    for number in 0..KEYS {
        let key = admin.create("raced").await.name;
        for race in 0..RACES {
            let last = race + 1 == RACES;
            match one_race(&admin, &block, (&key, race)).await {
                (Ok(made), Err(refused)) => {
                    assert_eq!(refused.reason, "KEY_REGISTERED");
                    registered += 1;
                    if last {
                        raced.push((key.clone(), true));
                    } else {
                        unregister(&mut block, &made.name).await.unwrap();
                    }
                }
                (Err(refused), Ok(_)) => {
                    assert_eq!(refused.reason, "KEY_NOT_ACTIVE");
                    deleted += 1;
                    if last {
                        raced.push((key.clone(), false));
                    } else {
                        let races = number * RACES + race + 1;
                        daemon.set_clock(&format!("+{}s", races * 31));
                        admin.restore(&key).await.unwrap();
                    }
                }
                (Ok(_), Ok(_)) => panic!("both were acknowledged"),
                (Err(one), Err(two)) => panic!("neither was done: {one:?} {two:?}"),
            }
        }
    }
    eprintln!("{registered} registered, {deleted} deleted");
    // Or it would have shown nothing.
    assert!(registered > KEYS && deleted > KEYS);
    daemon.stop().await;
    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    for (key, registered) in raced {
        let seen = admin.get(&key).await.unwrap();
        let expected = if registered { (State::Active, 1) } else { (State::Destroyed, 0) };
        assert_eq!((seen.state(), seen.registration_count), expected);
    }
}

/// A registration and a deletion at once; now one, now the other has a head start.
async fn one_race(
    admin: &Client,
    block: &Client,
    (key, race): (&str, usize),
) -> (Result<pb::Registration, Refusal>, Result<pb::Key, Refusal>) {
    let (mut one, mut two) = (block.clone(), admin.clone());
    let registers = {
        let key = key.to_owned();
        tokio::spawn(async move { one.register(&key, volume(race)).await })
    };
    let deletes = {
        let key = key.to_owned();
        tokio::spawn(async move {
            for _ in 0..race % 10 * 100 {
                tokio::task::yield_now().await;
            }
            delete_key(&mut two, &key, false).await
        })
    };
    (registers.await.unwrap(), deletes.await.unwrap())
}

//! What every store must do, as one suite that is run against each of them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{
    Change, Intent, IntentStage, KeyWrite, RegistrationCount, RegistrationWrite, Request, Store,
    StoreError,
};
use crate::domain::deletion::Authorization;
use crate::domain::key::tests::key_at;
use crate::domain::{
    Crn, Event, Key, KeyDetails, KeyId, MasterKey, Moment, ObjectId, Outcome, Registration,
    RegistrationId, ResourceKind, RotationPeriod, RunTime, Timestamp, Version, VersionId,
    WrappedKey,
};

/// Runs the suite; `open` opens the store in a directory.
pub(super) fn run(open: impl Fn(&Path) -> Arc<dyn Store>) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let fresh = || {
            let directory = tempfile::tempdir().unwrap();
            let store = open(directory.path());
            (directory, store)
        };
        keys_load_as_they_were_written(fresh(), &open).await;
        a_change_from_another_generation_conflicts(fresh().1).await;
        versions_are_never_taken_away(fresh().1).await;
        an_alias_is_one_keys_of_an_instance(fresh().1).await;
        intents_go_through_their_stages(fresh().1).await;
        requests_are_unique_for_a_day(fresh().1).await;
        the_outbox_keeps_its_order(fresh().1).await;
        changes_at_once_all_land_but_the_one_in_conflict(fresh(), &open).await;
        registrations_are_counted_by_sort_and_found_where_they_are_attached(fresh().1).await;
        the_last_unwrap_is_kept_until_the_key_goes(fresh().1).await;
        a_closed_store_refuses(fresh().1).await;
    });
}

const T0: Timestamp = Timestamp::from_seconds(1_700_000_000);
const M0: Moment = Moment { time: T0, run: RunTime::from_micros(77) };

fn key(number: u8) -> Key {
    let id = KeyId::from_bytes([number; 16]);
    let base = key_at(M0);
    let version = Version {
        id: id.into(),
        object: ObjectId::from_bytes([number ^ 0x80; 16]),
        check_value: vec![number; 30].into(),
        created: T0,
        wrapped: None,
    };
    Key { id, versions: Arc::from([version]), ..base }
}

fn insert(key: &Key) -> Change {
    Change { key: Some(KeyWrite::Insert(Arc::new(key.clone()))), ..Change::default() }
}

fn update(key: &Key, from: u64) -> Change {
    Change { key: Some(KeyWrite::Update { key: Arc::new(key.clone()), from }), ..Change::default() }
}

fn with_aliases(key: &Key, aliases: &[&str]) -> Key {
    let aliases = aliases.iter().map(|alias| alias.parse().unwrap()).collect();
    Key { details: KeyDetails { aliases, ..key.details.clone() }, ..key.changed(M0) }
}

fn event(number: u8, outcome: Outcome) -> Event {
    Event {
        id: [number; 16],
        time: T0,
        action: "kms.secrets.create".into(),
        principal: "spiffe://td/a".into(),
        source_address: "127.0.0.1:5".into(),
        instance: "default".into(),
        subject: "instances/default/keys/ü \"quoted\"".into(),
        key_version: "v".into(),
        resource: "crn:v1".into(),
        outcome,
        request_id: "r".into(),
        details: vec![("key_state".into(), "active".into()), ("a".into(), "b".into())],
    }
}

async fn keys_load_as_they_were_written(
    (directory, store): (tempfile::TempDir, Arc<dyn Store>),
    open: &impl Fn(&Path) -> Arc<dyn Store>,
) {
    let plain = key(1);
    let mut full = with_aliases(&key(2), &["one", "Two_2", "three-3"]);
    full.details.description = "für \"alles\"\0".replace('\0', "");
    full.details.tags = vec!["a b".into(), "ü".into()];
    full.imported = true;
    full.ring = "boot_1".parse().unwrap();
    full.rotation = RotationPeriod::from_days(90).ok();
    full.dual_auth = true;
    let by = "spiffe://td/a".parse().unwrap();
    full.authorization = Some(Authorization { by, at: M0 });
    full.history.purging = Some(M0);
    full.history.restored = Some(M0);
    full.told = Some(M0);
    full.history.expiry_noted = true;
    full.history.expires = Some(T0 + Duration::from_secs(9));
    full.history.suspended = Some(Moment { time: Timestamp::from_micros(-1), ..M0 });
    full.history.destroyed = Some(M0);
    full.rotated = Some(M0);
    let older = full.versions[0].clone();
    let master = ObjectId::from_bytes([0x77; 16]);
    let newer = Version {
        id: VersionId::from_bytes([0x55; 16]),
        object: ObjectId::from_bytes([0x66; 16]),
        wrapped: Some(Arc::new(WrappedKey::new(master, vec![5; 40]).unwrap())),
        ..older.clone()
    };
    full.versions = Arc::from([older, newer]);
    store.commit(insert(&plain)).await.unwrap();
    // Nothing is wrapped under what the store does not know.
    assert!(matches!(store.commit(insert(&full)).await, Err(StoreError::Conflict)));
    let master_key = Some(MasterKey { object: master, created: T0 });
    store.commit(Change { master_key, ..Change::default() }).await.unwrap();
    store.commit(insert(&full)).await.unwrap();

    store.close();
    let store = open(directory.path());
    let snapshot = store.load().unwrap();
    assert_eq!(snapshot.master_keys, [MasterKey { object: master, created: T0 }]);
    let mut loaded = snapshot.keys;
    loaded.sort_by_key(|key| key.id);
    assert_eq!(loaded, [plain.clone(), full]);
    assert!(matches!(store.commit(insert(&plain)).await, Err(StoreError::Conflict)));
    store.close();
}

async fn a_change_from_another_generation_conflicts(store: Arc<dyn Store>) {
    let first = key(1);
    store.commit(insert(&first)).await.unwrap();
    let mut second = first.changed(M0);
    second.history.suspended = Some(M0);
    store.commit(update(&second, 1)).await.unwrap();
    let late = store.commit(update(&first.changed(M0), 1)).await;
    assert!(matches!(late, Err(StoreError::Conflict)));
    let unknown = store.commit(update(&key(9), 1)).await;
    assert!(matches!(unknown, Err(StoreError::Conflict)));
    assert_eq!(store.load().unwrap().keys, [second]);
}

async fn registrations_are_counted_by_sort_and_found_where_they_are_attached(
    store: Arc<dyn Store>,
) {
    let key = key(1);
    store.commit(insert(&key)).await.unwrap();
    let crn = |id: &str| format!("crn:v1:a:b:c:d:e::x:{id}").parse::<Crn>().unwrap();
    let registration = |id: u8, kind, attached: bool| Registration {
        id: RegistrationId::from_bytes([id; 16]),
        instance: key.instance.clone(),
        key: key.id,
        resource: crn(&id.to_string()),
        kind,
        attached_to: attached.then(|| crn("server")),
        description: String::new(),
        prevents_deletion: id == 2,
        version: key.versions[0].id,
        source: None,
        service: "block".into(),
        created: T0,
        created_by: "spiffe://td/service/block".into(),
        updated: None,
        generation: 1,
    };
    let write = |registration| Change { registration: Some(registration), ..Change::default() };
    let three = [
        registration(1, ResourceKind::BootVolume, true),
        registration(2, ResourceKind::DataVolume, true),
        registration(3, ResourceKind::DataVolume, true),
    ];
    for registration in three.clone() {
        store.commit(write(RegistrationWrite::Insert(registration))).await.unwrap();
    }
    let attached = store.list_attached(&key.instance, crn("server").as_str(), 9).await.unwrap();
    assert_eq!(attached, three);
    let some = store.list_attached(&key.instance, crn("server").as_str(), 2).await.unwrap();
    assert_eq!(some.len(), 2);
    let elsewhere = "elsewhere".parse().unwrap();
    let none = store.list_attached(&elsewhere, crn("server").as_str(), 9).await.unwrap();
    assert!(none.is_empty());
    let count =
        |kind, n| RegistrationCount { kind, attached: true, version: key.versions[0].id, n };
    // Both data volumes are one sort, though one prevents the key's deletion.
    let expected = [count(ResourceKind::BootVolume, 1), count(ResourceKind::DataVolume, 2)];
    assert_eq!(store.count_registrations(key.id).await.unwrap(), expected);
    let gone = RegistrationWrite::Remove { id: three[0].id, from: 1 };
    store.commit(write(gone)).await.unwrap();
    assert_eq!(store.count_registrations(key.id).await.unwrap(), expected[1..]);
}

async fn the_last_unwrap_is_kept_until_the_key_goes(store: Arc<dyn Store>) {
    let key = key(1);
    store.commit(insert(&key)).await.unwrap();
    let later = T0 + Duration::from_secs(5);
    let unknown = KeyId::from_bytes([9; 16]);
    let unwrapped = vec![(key.id, later), (unknown, T0)];
    store.commit(Change { unwrapped, ..Change::default() }).await.unwrap();
    store.commit(Change { unwrapped: vec![(key.id, T0)], ..Change::default() }).await.unwrap();
    let kept = store.load().unwrap().unwrapped;
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), [(key.id, later)]);
}

async fn versions_are_never_taken_away(store: Arc<dyn Store>) {
    let first = key(1);
    store.commit(insert(&first)).await.unwrap();
    let mut rotated = first.changed(M0);
    let newer = Version {
        id: VersionId::from_bytes([0x55; 16]),
        object: ObjectId::from_bytes([0x66; 16]),
        ..first.versions[0].clone()
    };
    rotated.versions = Arc::from([first.versions[0].clone(), newer]);
    store.commit(update(&rotated, 1)).await.unwrap();
    let fewer = Key { versions: first.versions.clone(), ..rotated.changed(M0) };
    assert!(matches!(store.commit(update(&fewer, 2)).await, Err(StoreError::Conflict)));
    assert_eq!(store.load().unwrap().keys, [rotated]);
}

async fn an_alias_is_one_keys_of_an_instance(store: Arc<dyn Store>) {
    let (one, two) = (key(1), key(2));
    let elsewhere = Key { instance: "elsewhere".parse().unwrap(), ..key(3) };
    for key in [&one, &two, &elsewhere] {
        store.commit(insert(key)).await.unwrap();
    }
    let named = with_aliases(&one, &["volumes", "disks"]);
    store.commit(update(&named, 1)).await.unwrap();
    let thief = with_aliases(&two, &["volumes"]);
    assert!(matches!(store.commit(update(&thief, 1)).await, Err(StoreError::Conflict)));
    store.commit(update(&with_aliases(&elsewhere, &["volumes"]), 1)).await.unwrap();

    let renamed = with_aliases(&named, &["disks", "more"]);
    store.commit(update(&renamed, 2)).await.unwrap();
    store.commit(update(&thief, 1)).await.unwrap();
    let loaded = store.load().unwrap().keys;
    assert!(loaded.contains(&renamed) && loaded.contains(&thief));
}

async fn intents_go_through_their_stages(store: Arc<dyn Store>) {
    let intent = |number: u8| Intent {
        object: ObjectId::from_bytes([number; 16]),
        key: KeyId::from_bytes([7; 16]),
        stage: IntentStage::Creating,
        begun: T0,
        purpose: "create instances/a/keys/b".into(),
    };
    let (done, left) = (intent(1), intent(2));
    let begin = vec![done.clone(), left.clone()];
    store.commit(Change { begin, ..Change::default() }).await.unwrap();
    let end = vec![done.object];
    store.commit(Change { end: end.clone(), ..insert(&key(1)) }).await.unwrap();
    let destroying = vec![left.object];
    store.commit(Change { destroying, ..Change::default() }).await.unwrap();
    let left = Intent { stage: IntentStage::Destroying, ..left };
    assert_eq!(store.load().unwrap().intents, [left]);

    // What was ended cannot be ended, nor gone on with, again; and nothing else
    // of that change happens.
    let twice = store.commit(Change { end: end.clone(), ..insert(&key(2)) }).await;
    assert!(matches!(twice, Err(StoreError::Conflict)));
    let on = store.commit(Change { destroying: end, ..Change::default() }).await;
    assert!(matches!(on, Err(StoreError::Conflict)));
    assert_eq!(store.load().unwrap().keys.len(), 1);
}

async fn requests_are_unique_for_a_day(store: Arc<dyn Store>) {
    let request = |principal: &str, number, time| Request {
        principal: principal.parse().unwrap(),
        id: Uuid::from_bytes([number; 16]),
        fingerprint: [number; 32],
        key: KeyId::from_bytes([number; 16]),
        time,
    };
    let change = |request: &Request| Change { request: Some(request.clone()), ..Change::default() };
    let first = request("spiffe://td/a", 1, T0);
    store.commit(change(&first)).await.unwrap();
    assert!(matches!(store.commit(change(&first)).await, Err(StoreError::Conflict)));
    store.commit(change(&request("spiffe://td/b", 1, T0))).await.unwrap();
    let found = store.find_request(&first.principal, first.id).await.unwrap();
    assert_eq!(found.as_ref(), Some(&first));
    let unknown = store.find_request(&first.principal, Uuid::from_bytes([9; 16])).await.unwrap();
    assert_eq!(unknown, None);

    let a_day_later = T0 + Duration::from_secs(24 * 60 * 60);
    store.commit(change(&request("spiffe://td/c", 2, a_day_later))).await.unwrap();
    let forgotten = store.find_request(&first.principal, first.id).await.unwrap();
    assert_eq!(forgotten, None);
}

async fn the_outbox_keeps_its_order(store: Arc<dyn Store>) {
    let refused = Outcome::Refused("KEY_SUSPENDED".into());
    let events = [event(9, Outcome::Success), event(3, refused), event(5, Outcome::Success)];
    for event in &events {
        let change = Change { events: vec![event.clone()], ..Change::default() };
        store.commit(change).await.unwrap();
    }
    assert_eq!(store.load().unwrap().outbox, events);
    let published = vec![[3; 16], [77; 16]];
    store.commit(Change { published, ..Change::default() }).await.unwrap();
    let [first, _, last] = events;
    assert_eq!(store.load().unwrap().outbox, [first, last]);
}

async fn changes_at_once_all_land_but_the_one_in_conflict(
    (directory, store): (tempfile::TempDir, Arc<dyn Store>),
    open: &impl Fn(&Path) -> Arc<dyn Store>,
) {
    let mut pending: Vec<_> = (1..=50).map(|number| store.commit(insert(&key(number)))).collect();
    pending.push(store.commit(insert(&key(25))));
    pending.push(store.commit(insert(&key(51))));
    // Nobody has waited for an answer yet: closing finishes what was taken.
    store.close();
    let mut answers = Vec::new();
    for pending in pending {
        answers.push(pending.await.is_ok());
    }
    assert_eq!(answers.iter().filter(|landed| !**landed).count(), 1);
    assert!(!answers[50]);
    assert_eq!(open(directory.path()).load().unwrap().keys.len(), 51);
}

async fn a_closed_store_refuses(store: Arc<dyn Store>) {
    store.close();
    store.close();
    let refused = store.commit(insert(&key(1))).await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })));
    assert!(matches!(store.load(), Err(StoreError::Unavailable { .. })));
}

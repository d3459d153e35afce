//! How a key ends: the guards of its deletion, its expiration to the second, the
//! windows to restore and to purge it, and what is left of it then.
//! Rules: `facts/key-protect.md` 1.2 and 5. Every cell of them: `tests/states.rs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;
#[path = "common/deletion.rs"]
mod deletion;
#[path = "common/imports.rs"]
mod imports;

use std::time::Duration;

use common::{Client, Daemon, refusal};
use deletion::{
    delete, prevent, purge, register, registered, set_for_deletion, unregister, unset_for_deletion,
};
use imports::Imports;
use prost_types::Timestamp;
use rootkeyd::api::pb;
use rootkeyd::api::pb::key::State;
use rusqlite::{Connection, OpenFlags};
use tonic::Code;
use uuid::Uuid;

/// Sets both clocks to so long after 2030-01-01, and lets them stand.
fn stand(daemon: &Daemon, after: Duration) {
    let time = jiff::Timestamp::from_second(BEGIN).unwrap() + after;
    daemon.set_clock(&time.to_string());
}

fn at(after: Duration) -> Option<Timestamp> {
    let seconds = BEGIN + i64::try_from(after.as_secs()).unwrap();
    Some(Timestamp { seconds, nanos: i32::try_from(after.subsec_nanos()).unwrap() })
}

fn named(display_name: &str) -> pb::Key {
    pb::Key { display_name: display_name.into(), ..Default::default() }
}

/// A new key that expires so long after 2030-01-01.
async fn expiring(client: &mut Client, after: Duration) -> String {
    let key = pb::Key { expire_time: at(after), ..named("short") };
    client.create_key(key).await.unwrap().name
}

/// Actions by the daemon itself on a key, oldest first.
async fn by_daemon(client: &mut Client, key: &str) -> Vec<pb::AuditEvent> {
    let mut events = client.audit_events().await;
    events.retain(|event| event.subject == key && event.principal == "daemon");
    events.reverse();
    events
}

async fn actions_by_daemon(client: &mut Client, key: &str) -> Vec<String> {
    by_daemon(client, key).await.into_iter().map(|event| event.action).collect()
}

async fn hsm(client: &Client) -> (u64, u64, u64) {
    let status = client.admin.clone().get_hsm_status(pb::GetHsmStatusRequest {}).await;
    let pb::HsmStatus { objects, orphans, missing, .. } = status.unwrap().into_inner();
    (objects, orphans, missing)
}

#[tokio::test]
async fn a_deletion_is_refused_by_the_first_guard_that_stands() {
    let daemon = Daemon::start();
    stand(&daemon, Duration::ZERO);
    let (mut admin, officer) = (daemon.client("admin").await, daemon.client("officer").await);
    let (writer, service) = (daemon.client("writer").await, daemon.client("block-storage").await);
    let key = pb::Key { dual_auth_delete: true, ..named("volumes") };
    let key = admin.create_key(key).await.unwrap().name;
    let plain = register(&service, &key, ("plain", false)).await.unwrap().name;
    let kept = register(&service, &key, ("kept", true)).await.unwrap().name;
    let deleter = admin.clone();
    let refused = async |force| delete(&deleter, &key, force).await.unwrap_err();

    // All guards stand: the registration that prevents it is first, force or not.
    for force in [false, true] {
        let refused = refused(force).await;
        let codes = (refused.reason.as_str(), refused.metadata["key_protect_code"].as_str());
        assert_eq!(codes, ("DELETION_PREVENTED", "PREV_KEY_DEL_ERR"));
        assert_eq!(refused.code, Code::FailedPrecondition);
    }
    prevent(&service, &kept, false).await;
    for force in [false, true] {
        let refused = refused(force).await;
        let codes = (refused.reason.as_str(), refused.metadata["key_protect_code"].as_str());
        assert_eq!(codes, ("AUTHORIZATIONS_NOT_MET", "AUTHORIZATIONS_NOT_MET"));
    }
    // One principal cannot be two.
    set_for_deletion(&admin, &key).await.unwrap();
    assert_eq!(refused(true).await.reason, "AUTHORIZATIONS_NOT_MET");
    // Given again by another, it is that one's.
    let set = set_for_deletion(&writer, &key).await.unwrap();
    assert_eq!(set.deletion_auth_expire_time, at(7 * DAY));
    assert_eq!(set.state(), State::Active);
    for name in [&plain, &kept] {
        let refused = refused(false).await;
        let codes = (refused.reason.as_str(), refused.metadata["key_protect_code"].as_str());
        assert_eq!(codes, ("KEY_REGISTERED", "PROTECTED_RESOURCE_ERR"));
        unregister(&service, name).await.unwrap();
    }
    // Nothing stands any more, but that the authorization is taken back or lapses.
    unset_for_deletion(&officer, &key).await.unwrap();
    assert_eq!(refused(true).await.reason, "AUTHORIZATIONS_NOT_MET");
    set_for_deletion(&officer, &key).await.unwrap();
    stand(&daemon, 7 * DAY);
    assert_eq!(refused(true).await.reason, "AUTHORIZATIONS_NOT_MET");
    assert_eq!(admin.get(&key).await.unwrap().deletion_auth_expire_time, None);
    set_for_deletion(&officer, &key).await.unwrap();
    stand(&daemon, 14 * DAY - MICRO);
    let deleted = delete(&admin, &key, false).await.unwrap();
    assert_eq!((deleted.state(), deleted.deletion_auth_expire_time), (State::Destroyed, None));
    assert_eq!(refused(true).await.reason, "KEY_DESTROYED");
}

#[tokio::test]
async fn a_key_expires_to_the_second_and_that_is_recorded_once_over_restarts() {
    let mut daemon = Daemon::start();
    stand(&daemon, Duration::ZERO);
    let mut client = daemon.client("admin").await;
    let date = Duration::from_secs(60);
    // What comes a microsecond before shows that the scheduler has come by.
    let before = expiring(&mut client, date - MICRO).await;
    let key = expiring(&mut client, date).await;
    let suspended = expiring(&mut client, date).await;
    client.disable(&suspended).await.unwrap();
    let away = expiring(&mut client, 2 * date).await;

    stand(&daemon, date - MICRO);
    assert_eq!(client.get(&before).await.unwrap().state(), State::Deactivated);
    assert_eq!(client.get(&key).await.unwrap().state(), State::Active);
    let mut asks = client.clone();
    let noted = async || !by_daemon(&mut asks, &before).await.is_empty();
    daemon.until("the first expiration is noted", noted).await;
    assert!(by_daemon(&mut client, &key).await.is_empty());

    stand(&daemon, date);
    assert_eq!(client.get(&key).await.unwrap().state(), State::Deactivated);
    let mut asks = client.clone();
    let noted = async || !by_daemon(&mut asks, &key).await.is_empty();
    daemon.until("the expiration is noted", noted).await;
    let event = by_daemon(&mut client, &key).await.remove(0);
    assert_eq!((event.action.as_str(), event.time), ("kms.secrets.expire", at(date)));
    assert_eq!(event.outcome(), pb::audit_event::Outcome::Success);
    let detail = |name| event.details[name].as_str();
    assert_eq!((detail("initial_key_state"), detail("key_state")), ("active", "deactivated"));

    // One that comes while nobody is there is noted late, and no other again.
    daemon.stop().await;
    stand(&daemon, 2 * date);
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    let mut asks = client.clone();
    let noted = async || !by_daemon(&mut asks, &away).await.is_empty();
    daemon.until("the expiration that was missed is noted", noted).await;
    daemon.kill();
    daemon.start_again();
    let mut client_again = daemon.client("admin").await;
    let last = expiring(&mut client_again, 3 * date).await;
    stand(&daemon, 3 * date);
    let mut asks = client_again.clone();
    let noted = async || !by_daemon(&mut asks, &last).await.is_empty();
    daemon.until("the last expiration is noted", noted).await;
    client = client_again;
    for key in [&before, &key, &away, &last] {
        assert_eq!(actions_by_daemon(&mut client, key).await, ["kms.secrets.expire"], "{key}");
    }
    // A suspended key stays what it is.
    assert_eq!(client.get(&suspended).await.unwrap().state(), State::Suspended);
    assert!(by_daemon(&mut client, &suspended).await.is_empty());
}

/// It can never be enabled, so its authorization is given while it is suspended.
#[tokio::test]
async fn a_suspended_key_past_its_date_is_not_enabled_but_deleted_by_two() {
    let daemon = Daemon::start();
    stand(&daemon, Duration::ZERO);
    let (mut admin, officer) = (daemon.client("admin").await, daemon.client("officer").await);
    let key = pb::Key { dual_auth_delete: true, expire_time: at(DAY), ..named("short") };
    let key = admin.create_key(key).await.unwrap().name;
    admin.disable(&key).await.unwrap();
    stand(&daemon, DAY - MICRO);
    assert_eq!(set_for_deletion(&officer, &key).await.unwrap_err().reason, "KEY_SUSPENDED");
    stand(&daemon, DAY);
    assert_eq!(admin.enable(&key).await.unwrap_err().reason, "KEY_EXPIRED");
    assert_eq!(admin.delete(&key).await.unwrap_err().reason, "AUTHORIZATIONS_NOT_MET");
    set_for_deletion(&officer, &key).await.unwrap();
    assert_eq!(admin.delete(&key).await.unwrap().state(), State::Destroyed);
}

#[tokio::test]
async fn an_imported_key_is_restored_from_30_seconds_to_30_days_after_its_deletion() {
    let daemon = Daemon::start();
    stand(&daemon, Duration::ZERO);
    let mut admin = daemon.client("admin").await;
    let service = daemon.client("block-storage").await;
    let imports = Imports::new(&admin).await;
    let (early, late) = (
        imports.import(&admin, named("early")).await.name,
        imports.import(&admin, named("late")).await.name,
    );
    let wrapped = admin.wrap(&early, b"dek", &[]).await.unwrap();
    register(&service, &early, ("one", false)).await.unwrap();
    let deleted = delete(&admin, &early, true).await.unwrap();
    assert_eq!(deleted.restore_expire_time, at(30 * DAY));
    delete(&admin, &late, true).await.unwrap();

    let rest = Duration::from_secs(30);
    stand(&daemon, rest - MICRO);
    let refused = admin.restore(&early).await.unwrap_err();
    let codes = (refused.reason.as_str(), refused.metadata["key_protect_code"].as_str());
    assert_eq!(codes, ("TOO_EARLY", "REQ_TOO_EARLY_ERR"));
    assert_eq!(refused.retry_after, Some(MICRO));
    stand(&daemon, rest);
    let restored = admin.restore(&early).await.unwrap();
    assert_eq!((restored.state(), restored.delete_time), (State::Active, None));
    assert_eq!((restored.restore_expire_time, restored.purge_time), (None, None));
    // With its material and its registrations.
    assert_eq!(admin.unwrap(&early, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
    assert_eq!(registered(&admin, &early).await.unwrap().len(), 1);
    assert_eq!(admin.restore(&early).await.unwrap_err().reason, "KEY_NOT_DESTROYED");

    // Deleted again, its windows begin again.
    delete(&admin, &early, true).await.unwrap();
    stand(&daemon, 30 * DAY);
    admin.restore(&late).await.unwrap();
    delete(&admin, &late, true).await.unwrap();
    stand(&daemon, 30 * DAY + rest);
    admin.restore(&early).await.unwrap();
    stand(&daemon, 60 * DAY + MICRO);
    let refused = admin.restore(&late).await.unwrap_err();
    let codes = (refused.reason.as_str(), refused.metadata["key_protect_code"].as_str());
    assert_eq!(codes, ("RESTORE_WINDOW_CLOSED", "KEY_RESTORE_EXPIRED"));
}

#[tokio::test]
async fn a_deleted_key_is_restored_until_its_expiration_date_and_not_later() {
    let daemon = Daemon::start();
    stand(&daemon, Duration::ZERO);
    let mut admin = daemon.client("admin").await;
    let imports = Imports::new(&admin).await;
    let key = |days: u32| pb::Key { expire_time: at(days * DAY), ..named("short") };
    let mut names = Vec::new();
    for days in [1, 1, 40] {
        let name = imports.import(&admin, key(days)).await.name;
        let deleted = delete(&admin, &name, false).await.unwrap();
        assert_eq!(deleted.restore_expire_time, at(days.min(30) * DAY));
        names.push(name);
    }
    stand(&daemon, DAY - MICRO);
    assert_eq!(admin.restore(&names[0]).await.unwrap().state(), State::Active);
    stand(&daemon, DAY);
    let refused = admin.restore(&names[1]).await.unwrap_err();
    let codes = (refused.reason.as_str(), refused.metadata["key_protect_code"].as_str());
    assert_eq!(codes, ("KEY_EXPIRED", "KEY_EXPIRED_ERR"));
    stand(&daemon, 30 * DAY);
    assert_eq!(admin.restore(&names[2]).await.unwrap().state(), State::Active);
}

#[tokio::test]
async fn a_deleted_key_is_purged_by_keypurge_alone_and_after_four_hours() {
    let daemon = Daemon::start();
    stand(&daemon, Duration::ZERO);
    let mut admin = daemon.client("admin").await;
    let purger = daemon.client("key-purge").await;
    let key = admin.create("volumes").await.name;
    assert_eq!(purge(&purger, &key).await.unwrap_err().reason, "KEY_NOT_DESTROYED");
    let deleted = admin.delete(&key).await.unwrap();
    let wait = Duration::from_secs(4 * 60 * 60);
    assert_eq!(deleted.purge_allow_time, at(wait));
    stand(&daemon, wait - MICRO);
    let refused = purge(&purger, &key).await.unwrap_err();
    let codes = (refused.reason.as_str(), refused.metadata["key_protect_code"].as_str());
    assert_eq!(codes, ("TOO_EARLY", "REQ_TOO_EARLY_ERR"));
    assert_eq!(refused.retry_after, Some(MICRO));
    stand(&daemon, wait);
    assert_eq!(purge(&admin, &key).await.unwrap_err().reason, "PERMISSION_DENIED");
    assert_eq!(purge(&purger, &key).await.unwrap().purge_time, at(wait));
    let mut events = admin.audit_events().await;
    events.retain(|event| event.action == "kms.secrets.purge" && event.reason.is_empty());
    assert_eq!((events.len(), events[0].subject.as_str()), (1, key.as_str()));
    assert_eq!(events[0].principal, "spiffe://rootkeyd.dev/key-purge");
}

#[tokio::test]
async fn a_deleted_key_is_purged_by_itself_after_90_days_though_the_daemon_was_away() {
    let mut daemon = Daemon::start();
    stand(&daemon, Duration::ZERO);
    let mut client = daemon.client("admin").await;
    let (first, second, third) = (
        client.create("first").await.name,
        client.create("second").await.name,
        client.create("third").await.name,
    );
    assert_eq!(client.delete(&first).await.unwrap().purge_time, at(90 * DAY));
    stand(&daemon, MICRO);
    client.delete(&second).await.unwrap();
    stand(&daemon, DAY);
    client.delete(&third).await.unwrap();
    stand(&daemon, 90 * DAY - MICRO);
    assert_eq!(client.get(&first).await.unwrap().state(), State::Destroyed);

    stand(&daemon, 90 * DAY);
    let mut asks = client.clone();
    let gone = async || asks.get(&first).await.is_err();
    daemon.until("the first key is purged", gone).await;
    // It is unknown from the moment that its purge is begun.
    let mut asks = client.clone();
    let recorded = async || !by_daemon(&mut asks, &first).await.is_empty();
    daemon.until("its purge is recorded", recorded).await;
    assert_eq!(client.get(&second).await.unwrap().state(), State::Destroyed);
    stand(&daemon, 90 * DAY + MICRO);
    let mut asks = client.clone();
    let recorded = async || !by_daemon(&mut asks, &second).await.is_empty();
    daemon.until("the second key is purged", recorded).await;

    daemon.stop().await;
    stand(&daemon, 91 * DAY);
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    let mut asks = client.clone();
    let recorded = async || !by_daemon(&mut asks, &third).await.is_empty();
    daemon.until("the key that was due meanwhile is purged", recorded).await;
    for key in [&first, &second, &third] {
        assert_eq!(client.get(key).await.unwrap_err().reason, "KEY_NOT_FOUND");
        assert_eq!(actions_by_daemon(&mut client, key).await, ["kms.secrets.purge"]);
    }
    assert_eq!(hsm(&client).await, (0, 0, 0));
}

#[tokio::test]
async fn a_purged_key_is_unknown_to_all_and_its_alias_is_free() {
    let daemon = Daemon::start();
    stand(&daemon, Duration::ZERO);
    let mut admin = daemon.client("admin").await;
    let service = daemon.client("block-storage").await;
    let aliased = || pb::Key { aliases: vec!["volumes".into()], ..named("volumes") };
    let key = admin.create_key(aliased()).await.unwrap().name;
    let other = admin.create("other").await.name;
    let wrapped = admin.wrap(&key, b"dek", &[]).await.unwrap();
    let registration = register(&service, &key, ("one", false)).await.unwrap().name;
    delete(&admin, &key, true).await.unwrap();
    stand(&daemon, DAY);
    // Until it is purged the alias is its own, and it shows who used it.
    assert_eq!(admin.create_key(aliased()).await.unwrap_err().reason, "ALIAS_TAKEN");
    assert_eq!(registered(&admin, &key).await.unwrap().len(), 1);
    purge(&daemon.client("key-purge").await, &key).await.unwrap();

    for name in ["admin", "officer", "writer", "block-storage"] {
        let mut client = daemon.client(name).await;
        for key in [key.as_str(), "instances/default/keys/volumes"] {
            let refused = client.get(key).await.unwrap_err();
            assert_eq!((refused.code, refused.reason.as_str()), (Code::NotFound, "KEY_NOT_FOUND"));
            assert_eq!(refused.metadata["key_protect_code"], "KEY_NOT_FOUND_ERR");
            let refused = client.unwrap(key, &wrapped, &[]).await.unwrap_err();
            assert_eq!(refused.reason, "KEY_NOT_FOUND");
        }
    }
    assert_eq!(registered(&admin, &key).await.unwrap_err().reason, "KEY_NOT_FOUND");
    let gone = unregister(&service, &registration).await.unwrap_err();
    assert_eq!(gone.reason, "REGISTRATION_NOT_FOUND");
    let states = [State::Active, State::Suspended, State::Deactivated, State::Destroyed];
    let list = pb::ListKeysRequest {
        parent: "instances/default".into(),
        states: states.iter().map(|state| i32::from(*state)).collect(),
        ..Default::default()
    };
    let listed = admin.keys.list_keys(list).await.map_err(refusal).unwrap().into_inner();
    assert_eq!(listed.keys.iter().map(|key| &key.name).collect::<Vec<_>>(), [&other]);
    let heir = admin.create_key(aliased()).await.unwrap().name;
    assert_eq!(admin.get("instances/default/keys/volumes").await.unwrap().name, heir);
    // What it wrapped is lost, under the key that has its alias too.
    let lost = admin.unwrap("instances/default/keys/volumes", &wrapped, &[]).await;
    assert_eq!(lost.unwrap_err().reason, "CIPHERTEXT_UNVERIFIED");
}

#[tokio::test]
async fn a_purged_key_leaves_a_tombstone_in_the_store_and_no_object_in_the_hsm() {
    let mut daemon = Daemon::start();
    stand(&daemon, Duration::ZERO);
    let mut admin = daemon.client("admin").await;
    let service = daemon.client("block-storage").await;
    let key = admin.create("volumes").await.name;
    let kept = admin.create("kept").await.name;
    let wrapped = admin.wrap(&kept, b"dek", &[]).await.unwrap();
    for day in 1..=2 {
        stand(&daemon, day * DAY);
        admin.rotate(&key).await.unwrap();
    }
    register(&service, &key, ("one", false)).await.unwrap();
    delete(&admin, &key, true).await.unwrap();
    // Its three versions are there until it is purged: it could be restored.
    assert_eq!(hsm(&admin).await, (4, 0, 0));
    stand(&daemon, 3 * DAY);
    purge(&daemon.client("key-purge").await, &key).await.unwrap();
    assert_eq!(hsm(&admin).await, (1, 0, 0));

    daemon.stop().await;
    let id = key.rsplit('/').next().unwrap().parse::<Uuid>().unwrap();
    let file = daemon.dir.join("state/store.sqlite");
    let store = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    let count =
        |sql: &str| -> i64 { store.query_row(sql, [id.as_bytes()], |row| row.get(0)).unwrap() };
    for table in ["key_versions", "aliases", "registrations", "registration_counts", "intents"] {
        assert_eq!(count(&format!("SELECT count(*) FROM {table} WHERE key = ?1")), 0, "{table}");
    }
    assert_eq!(count("SELECT count(*) FROM keys WHERE id = ?1"), 0);
    let row = store.query_row(
        "SELECT display_name, created, deleted, purged, purged_by, json_array_length(versions)
         FROM tombstones WHERE key = ?1 AND instance = 'default' AND imported = 0",
        [id.as_bytes()],
        |row| {
            let times: [i64; 3] = [row.get(1)?, row.get(2)?, row.get(3)?];
            Ok((row.get::<_, String>(0)?, times, row.get::<_, String>(4)?, row.get::<_, i64>(5)?))
        },
    );
    let day = |days: i64| (BEGIN + days * 86_400) * 1_000_000;
    let purger = "spiffe://rootkeyd.dev/key-purge".to_owned();
    assert_eq!(row.unwrap(), ("volumes".to_owned(), [day(0), day(2), day(3)], purger, 3));
    drop(store);

    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    assert_eq!(admin.get(&key).await.unwrap_err().reason, "KEY_NOT_FOUND");
    assert_eq!(admin.unwrap(&kept, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
    assert_eq!(hsm(&admin).await, (1, 0, 0));
}

/// 2030-01-01.
const BEGIN: i64 = 1_893_456_000;
const DAY: Duration = Duration::from_secs(86_400);
/// The daemon's clocks know nothing shorter.
const MICRO: Duration = Duration::from_micros(1);

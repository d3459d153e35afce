//! What comes with time: rotation by policy, the limits of rotating and wrapping, and
//! what a wrong date does not do.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::time::Duration;

use common::{Client, Daemon, outcome, said};
use prost_types::{Duration as PbDuration, Timestamp};
use rootkeyd::api::pb;
use rootkeyd::api::pb::key::State;
use rusqlite::Connection;
use uuid::Uuid;

fn rotated_each_month(display_name: &str) -> pb::Key {
    pb::Key {
        display_name: display_name.into(),
        rotation_period: Some(PbDuration { seconds: 30 * 86_400, nanos: 0 }),
        ..Default::default()
    }
}

async fn versions(client: &mut Client, key: &str) -> usize {
    let request = pb::ListKeyVersionsRequest { parent: key.into(), ..Default::default() };
    outcome(client.keys.list_key_versions(request).await).unwrap().key_versions.len()
}

async fn until_versions(daemon: &Daemon, client: &Client, key: &str, number: usize) {
    let reached = async || versions(&mut client.clone(), key).await == number;
    daemon.until("the key is rotated", reached).await;
}

async fn events(client: &mut Client, action: &str, subject: &str) -> Vec<pb::AuditEvent> {
    let mut events = client.audit_events().await;
    events.retain(|event| event.action == action && event.subject == subject);
    events
}

#[tokio::test]
async fn a_key_is_rotated_by_its_policy_when_its_time_comes_and_by_hand_begins_anew() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create_key(rotated_each_month("by itself")).await.unwrap().name;
    let by_hand = client.create_key(rotated_each_month("by hand")).await.unwrap().name;
    let suspended = client.create_key(rotated_each_month("suspended")).await.unwrap().name;
    let plain = client.create("without a policy").await.name;
    let wrapped = client.wrap(&key, b"dek", &[]).await.unwrap();
    client.disable(&suspended).await.unwrap();
    daemon.set_clock("+719h");
    common::tick(&daemon, &client).await;
    assert_eq!(versions(&mut client, &key).await, 1);
    client.rotate(&by_hand).await.unwrap();

    daemon.set_clock("+721h");
    until_versions(&daemon, &client, &key, 2).await;
    common::tick(&daemon, &client).await;
    let all = [&key, &by_hand, &suspended, &plain];
    let mut numbers = Vec::new();
    for name in all {
        numbers.push(versions(&mut client, name).await);
    }
    assert_eq!(numbers, [2, 2, 1, 1]);
    let rotations = events(&mut client, "kms.secrets.rotate", &key).await;
    assert_eq!(rotations.len(), 1);
    assert_eq!(rotations[0].details["by"], "rotation policy");
    let rotated = client.get(&key).await.unwrap();
    assert_eq!(rotations[0].key_version, rotated.primary_version);
    let unwrapped = client.unwrap(&key, &wrapped, &[]).await.unwrap();
    assert_eq!(unwrapped.dek, &b"dek"[..]);
    assert_eq!(unwrapped.rewrapped_key_version, rotated.primary_version);

    // 720 hours from the rotation by hand, and from that by the policy.
    daemon.set_clock("+1438h");
    common::tick(&daemon, &client).await;
    assert_eq!(versions(&mut client, &by_hand).await, 2);
    daemon.set_clock("+1440h");
    until_versions(&daemon, &client, &by_hand, 3).await;
    common::tick(&daemon, &client).await;
    assert_eq!(versions(&mut client, &key).await, 2);
    daemon.set_clock("+1442h");
    until_versions(&daemon, &client, &key, 3).await;
    common::tick(&daemon, &client).await;
    assert_eq!(versions(&mut client, &suspended).await, 1);
    // What it missed it is given once, when it is enabled.
    client.enable(&suspended).await.unwrap();
    until_versions(&daemon, &client, &suspended, 2).await;
    common::tick(&daemon, &client).await;
    assert_eq!(versions(&mut client, &suspended).await, 2);
}

#[tokio::test]
async fn after_100_days_of_down_time_a_key_is_rotated_once() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create_key(rotated_each_month("volumes")).await.unwrap().name;
    daemon.stop().await;
    daemon.set_clock("+2400h");
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    until_versions(&daemon, &client, &key, 2).await;
    common::tick(&daemon, &client).await;
    assert_eq!(versions(&mut client, &key).await, 2);
    daemon.set_clock("+3119h");
    common::tick(&daemon, &client).await;
    assert_eq!(versions(&mut client, &key).await, 2);
    daemon.set_clock("+3121h");
    until_versions(&daemon, &client, &key, 3).await;
}

#[tokio::test]
async fn one_rotation_an_hour_is_allowed_and_a_restart_does_not_change_that() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    client.rotate(&key).await.unwrap();
    daemon.set_clock("+59m");
    for restarted in [false, true] {
        if restarted {
            daemon.stop().await;
            daemon.start_again();
            client = daemon.client("admin").await;
        }
        let early = client.rotate(&key).await.unwrap_err();
        assert_eq!(early.reason, "ROTATION_TOO_SOON");
        assert_eq!(early.metadata["key_protect_code"], "KEY_ROTATION_NOT_PERMITTED");
        assert!(early.retry_after.unwrap() <= Duration::from_secs(60), "{early:?}");
    }
    // The date is not what the hour is measured by.
    daemon.set_clock("+59m wall +61m");
    assert_eq!(said(client.rotate(&key).await), "ROTATION_TOO_SOON");
    daemon.set_clock("+60m 1s");
    assert_eq!(said(client.rotate(&key).await), "ok");
    assert_eq!(versions(&mut client, &key).await, 3);
}

/// 2^32 wraps are the limit of a version: 50 % are warned of, 90 % are the end.
const WARNED: u64 = 1 << 31;
const SPENT: u64 = (1 << 32) / 10 * 9;

/// Makes the primary version of a key one that was granted so many wraps, while the
/// daemon is stopped.
fn grant(daemon: &Daemon, key: &pb::Key, granted: u64) {
    let version = key.primary_version.rsplit('/').next().unwrap().parse::<Uuid>().unwrap();
    let store = Connection::open(daemon.dir.join("state/store.sqlite")).unwrap();
    let sql = "UPDATE wrap_grants SET granted = ?2 WHERE version = ?1";
    let granted = i64::try_from(granted).unwrap();
    let changed = store.execute(sql, rusqlite::params![version.as_bytes(), granted]).unwrap();
    assert_eq!(changed, 1);
}

#[tokio::test]
async fn a_version_that_has_wrapped_nine_tenths_of_its_budget_unwraps_and_wraps_no_more() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await;
    let name = key.name.as_str();
    let wrapped = client.wrap(name, b"dek", &[]).await.unwrap();
    daemon.stop().await;
    grant(&daemon, &key, SPENT - 1);
    daemon.start_again();
    client = daemon.client("admin").await;
    assert_eq!(said(client.wrap(name, b"the last", &[]).await), "ok");
    for restarted in [false, true] {
        if restarted {
            daemon.stop().await;
            daemon.start_again();
            client = daemon.client("admin").await;
        }
        let refused = client.wrap(name, b"dek", &[]).await.unwrap_err();
        assert_eq!(refused.reason, "WRAP_BUDGET_SPENT");
        assert_eq!(refused.metadata["subject"], name);
        let generate = pb::GenerateDekRequest { key: name.into(), ..Default::default() };
        let refused = outcome(client.crypto.generate_dek(generate).await);
        assert_eq!(said(refused), "WRAP_BUDGET_SPENT");
        assert_eq!(client.unwrap(name, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
    }
    client.rotate(name).await.unwrap();
    assert_eq!(said(client.wrap(name, b"dek", &[]).await), "ok");
    assert_eq!(client.unwrap(name, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
}

#[tokio::test]
async fn half_of_a_versions_budget_is_warned_of_once() {
    const WARNING: &str = "rootkeyd.wrap-budget.warn";
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await;
    let name = key.name.as_str();
    client.wrap(name, b"dek", &[]).await.unwrap();
    assert!(events(&mut client, WARNING, name).await.is_empty());
    daemon.stop().await;
    grant(&daemon, &key, WARNED - 1);
    daemon.start_again();
    client = daemon.client("admin").await;
    assert!(events(&mut client, WARNING, name).await.is_empty());
    for restarted in [false, true] {
        if restarted {
            daemon.stop().await;
            daemon.start_again();
            client = daemon.client("admin").await;
        }
        for _ in 0..3 {
            client.wrap(name, b"dek", &[]).await.unwrap();
        }
        let warnings = events(&mut client, WARNING, name).await;
        assert_eq!(warnings.len(), 1, "{restarted}");
        assert_eq!(warnings[0].key_version, key.primary_version);
        assert_eq!(warnings[0].details["wraps"], WARNED.to_string());
    }
}

/// Jumps of the clock that the audit log tells of; they are about no instance.
fn jumps(daemon: &Daemon) -> usize {
    let files = fs::read_dir(daemon.dir.join("state/audit")).unwrap();
    let texts = files.map(|file| fs::read(file.unwrap().path()).unwrap_or_default());
    texts.map(|text| String::from_utf8_lossy(&text).matches("rootkeyd.clock.jump").count()).sum()
}

#[tokio::test]
async fn a_date_that_is_a_year_ahead_and_comes_back_purges_nothing_and_closes_no_window() {
    // Every key can be restored, generated ones too.
    let daemon = Daemon::start_edited(|config| {
        config.replace("profile = \"vpc\"", "profile = \"key-protect\"")
    });
    let mut admin = daemon.client("admin").await;
    let mut purger = daemon.client("key-purge").await;
    let live = admin.create("live").await.name;
    let wrapped = admin.wrap(&live, b"dek", &[]).await.unwrap();
    let mut deleted = Vec::new();
    for name in ["restored ahead", "restored after", "purged"] {
        let name = admin.create(name).await.name;
        admin.delete(&name).await.unwrap();
        deleted.push(name);
    }
    assert_eq!(jumps(&daemon), 0);

    // 31 seconds have passed, and the machine says that it was a year.
    daemon.set_clock("+31s wall +8760h");
    daemon.until("the jump is told", async || jumps(&daemon) == 1).await;
    // The scheduler tells of the next jump when it has done all that was due by this one.
    daemon.set_clock("+31s wall -1h");
    daemon.until("the jump back is told", async || jumps(&daemon) == 2).await;
    daemon.set_clock("+31s wall +8760h");
    daemon.until("the jump is told again", async || jumps(&daemon) == 3).await;
    let early = purger.purge(&deleted[2]).await.unwrap_err();
    assert_eq!(early.reason, "TOO_EARLY");
    assert!(early.retry_after.unwrap() > Duration::from_secs(3 * 3600));
    for name in &deleted {
        assert_eq!(admin.get(name).await.unwrap().state(), State::Destroyed);
    }
    assert_eq!(admin.restore(&deleted[0]).await.unwrap().state(), State::Active);
    assert_eq!(admin.unwrap(&live, &wrapped, &[]).await.unwrap().dek, &b"dek"[..]);

    daemon.set_clock("+40s");
    common::tick(&daemon, &admin).await;
    assert_eq!(admin.restore(&deleted[1]).await.unwrap().state(), State::Active);
    // More than four hours by the date alone; and then by both clocks.
    daemon.set_clock("+50s wall +5h");
    assert_eq!(said(purger.purge(&deleted[2]).await), "TOO_EARLY");
    daemon.until("the last jump is told", async || jumps(&daemon) == 4).await;
    assert!(daemon.logged().contains("the machine's clock jumped"));
    daemon.set_clock("+4h");
    assert_eq!(said(purger.purge(&deleted[2]).await), "ok");
    assert_eq!(said(admin.get(&deleted[2]).await), "KEY_NOT_FOUND");
    assert_eq!(said(admin.get(&deleted[0]).await), "ok");
}

#[tokio::test]
async fn a_date_that_is_behind_is_not_believed_and_a_key_that_expired_stays_so() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let now = client.create("now").await.create_time.unwrap();
    let expires = pb::Key {
        display_name: "short".into(),
        expire_time: Some(Timestamp { seconds: now.seconds + 3600, ..now }),
        ..Default::default()
    };
    let key = client.create_key(expires).await.unwrap().name;
    daemon.set_clock("+2h");
    assert_eq!(client.get(&key).await.unwrap().state(), State::Deactivated);
    daemon.set_clock("+2h wall -24h");
    daemon.until("the jump is told", async || jumps(&daemon) == 1).await;
    assert_eq!(client.get(&key).await.unwrap().state(), State::Deactivated);
    assert_eq!(said(client.wrap(&key, b"dek", &[]).await), "KEY_DEACTIVATED");
}

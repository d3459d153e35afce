//! Root keys that are kept in the store, wrapped under a master key of the HSM
//! (`hsm.residency = "wrapped"`): the same life as others have, without an object in the
//! token, and what becomes of them when store or token are not what they were.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common::{Client, Daemon, said, seal};
use rootkeyd::api::pb;
use rootkeyd::api::pb::hsm_status::finding::Kind;
use rusqlite::Connection;
use uuid::Uuid;

const THREADS: &str = "";
const PROCESSES: &str = "isolation = \"process\"\nworkers = 2\n";

/// A daemon that keeps keys wrapped, with these settings of the HSM besides.
fn start(more: &str) -> Daemon {
    Daemon::start_edited(|config| wrapped(&config, more))
}

fn wrapped(config: &str, more: &str) -> String {
    config.replacen("[hsm]\n", &format!("[hsm]\nresidency = \"wrapped\"\n{more}"), 1)
}

/// Has the daemon keep keys that are made from now on where `residency` says.
async fn set_residency(daemon: &mut Daemon, residency: &str) {
    daemon.stop().await;
    let path = daemon.dir.join("rootkeyd.toml");
    let config = fs::read_to_string(&path).unwrap();
    let config: Vec<_> = config.lines().filter(|line| !line.starts_with("residency")).collect();
    let table = format!("[hsm]\nresidency = \"{residency}\"\n");
    fs::write(&path, config.join("\n").replacen("[hsm]\n", &table, 1)).unwrap();
    daemon.start_again();
}

/// Object files of the token.
fn objects(daemon: &Daemon) -> BTreeSet<PathBuf> {
    let tokens = fs::read_dir(daemon.dir.join("tokens")).unwrap();
    let files = tokens.flat_map(|token| fs::read_dir(token.unwrap().path()).unwrap());
    let files = files.map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|it| it == "object")).collect()
}

fn store(daemon: &Daemon) -> Connection {
    Connection::open(daemon.dir.join("state/store.sqlite")).unwrap()
}

fn id(key: &str) -> [u8; 16] {
    *key.rsplit('/').next().unwrap().parse::<Uuid>().unwrap().as_bytes()
}

/// A new key with a DEK that it wrapped.
async fn make(client: &mut Client, display_name: &str) -> (String, Vec<u8>) {
    let name = client.create(display_name).await.name;
    let dek = client.wrap(&name, b"dek", &[b"aad"]).await.unwrap();
    (name, dek)
}

async fn unwrap(client: &mut Client, (key, dek): &(String, Vec<u8>)) -> String {
    match client.unwrap(key, dek, &[b"aad"]).await {
        Ok(unwrapped) => String::from_utf8(unwrapped.dek.to_vec()).unwrap(),
        Err(refusal) => refusal.reason,
    }
}

async fn a_wrapped_key_lives_as_any_other(more: &str) {
    let daemon = start(more);
    daemon.set_clock("2030-01-01T00:00:00Z");
    let mut admin = daemon.client("admin").await;
    let before = objects(&daemon).len();
    let first = make(&mut admin, "first").await;
    let other = make(&mut admin, "other").await;
    // The master key, and none besides.
    assert_eq!(objects(&daemon).len(), before + 1);
    assert_eq!(unwrap(&mut admin, &first).await, "dek");

    let crossed = (first.0.clone(), other.1.clone());
    assert_eq!(unwrap(&mut admin, &crossed).await, "CIPHERTEXT_UNVERIFIED");
    let mut tampered = first.clone();
    *tampered.1.last_mut().unwrap() ^= 1;
    assert_eq!(unwrap(&mut admin, &tampered).await, "CIPHERTEXT_UNVERIFIED");

    admin.rotate(&first.0).await.unwrap();
    let rewrapped = admin.unwrap(&first.0, &first.1, &[b"aad"]).await.unwrap().rewrapped_dek;
    let rewrapped = (first.0.clone(), rewrapped.to_vec());
    assert_eq!(unwrap(&mut admin, &rewrapped).await, "dek");
    assert_eq!(objects(&daemon).len(), before + 1);

    admin.disable(&first.0).await.unwrap();
    assert_eq!(unwrap(&mut admin, &first).await, "KEY_SUSPENDED");
    assert_eq!(unwrap(&mut admin, &rewrapped).await, "KEY_SUSPENDED");
    daemon.set_clock("2030-01-01T00:01:00Z");
    admin.enable(&first.0).await.unwrap();
    assert_eq!(unwrap(&mut admin, &first).await, "dek");

    let status = admin.hsm_status().await;
    assert_eq!((status.wrapped, status.missing, status.orphans), (3, 0, 0), "{status:?}");
    admin.delete(&first.0).await.unwrap();
    assert_eq!(unwrap(&mut admin, &rewrapped).await, "KEY_DESTROYED");
    daemon.set_clock("2030-01-01T05:00:00Z");
    let mut purger = daemon.client("key-purge").await;
    purger.purge(&first.0).await.unwrap();
    assert_eq!(unwrap(&mut admin, &rewrapped).await, "KEY_NOT_FOUND");
    assert_eq!(unwrap(&mut admin, &other).await, "dek");
    assert_eq!(admin.hsm_status().await.wrapped, 1);
    // Nor is its blob in the store.
    let sql = "SELECT count(*) FROM key_versions WHERE wrapped IS NOT NULL";
    let left: i64 = store(&daemon).query_row(sql, [], |row| row.get(0)).unwrap();
    assert_eq!(left, 1);
    assert_eq!(objects(&daemon).len(), before + 1);
}

#[tokio::test]
async fn a_wrapped_key_lives_as_any_other_in_threads() {
    a_wrapped_key_lives_as_any_other(THREADS).await;
}

#[tokio::test]
async fn a_wrapped_key_lives_as_any_other_in_processes() {
    a_wrapped_key_lives_as_any_other(PROCESSES).await;
}

#[tokio::test]
async fn a_deleted_wrapped_key_can_be_restored_with_all_its_versions() {
    let daemon = Daemon::start_edited(|config| {
        wrapped(&config, "").replacen("profile = \"vpc\"", "profile = \"key-protect\"", 1)
    });
    let mut admin = daemon.client("admin").await;
    let first = make(&mut admin, "first").await;
    admin.rotate(&first.0).await.unwrap();
    let second = (first.0.clone(), admin.wrap(&first.0, b"new", &[b"aad"]).await.unwrap());
    admin.delete(&first.0).await.unwrap();
    daemon.set_clock("+60s");
    admin.restore(&first.0).await.unwrap();
    assert_eq!(unwrap(&mut admin, &first).await, "dek");
    assert_eq!(unwrap(&mut admin, &second).await, "new");
}

#[tokio::test]
async fn keys_of_both_residencies_live_side_by_side_and_the_setting_can_be_changed_back() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let kept = make(&mut admin, "in the token").await;
    set_residency(&mut daemon, "wrapped").await;
    let mut admin = daemon.client("admin").await;
    let wrapped = make(&mut admin, "in the store").await;
    admin.rotate(&kept.0).await.unwrap();
    let rotated = (kept.0.clone(), admin.wrap(&kept.0, b"new", &[b"aad"]).await.unwrap());
    let token = admin.import_token(1).await;
    let imported = admin.import_key("imported", seal(&token, &[7; 32])).await.unwrap().name;
    let imported = (imported.clone(), admin.wrap(&imported, b"own", &[b"aad"]).await.unwrap());
    set_residency(&mut daemon, "token").await;
    let mut admin = daemon.client("admin").await;
    let later = make(&mut admin, "in the token again").await;
    for (key, dek) in
        [(&kept, "dek"), (&wrapped, "dek"), (&rotated, "new"), (&imported, "own"), (&later, "dek")]
    {
        assert_eq!(unwrap(&mut admin, key).await, dek, "{}", key.0);
    }
    let status = admin.hsm_status().await;
    assert_eq!((status.wrapped, status.missing, status.orphans), (2, 0, 0), "{status:?}");
    // A key with a version of each is purged with both.
    daemon.set_clock("+1s");
    admin.delete(&kept.0).await.unwrap();
    daemon.set_clock("+5h");
    let before = objects(&daemon).len();
    daemon.client("key-purge").await.purge(&kept.0).await.unwrap();
    assert_eq!(objects(&daemon).len(), before - 1);
    assert_eq!(admin.hsm_status().await.wrapped, 1);
}

#[tokio::test]
async fn wrapped_keys_outlive_a_kill_of_the_daemon() {
    let mut daemon = start(THREADS);
    let mut admin = daemon.client("admin").await;
    let (one, two) = (make(&mut admin, "one").await, make(&mut admin, "two").await);
    admin.disable(&two.0).await.unwrap();
    daemon.kill();
    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    assert_eq!(unwrap(&mut admin, &one).await, "dek");
    assert_eq!(unwrap(&mut admin, &two).await, "KEY_SUSPENDED");
    let before = objects(&daemon).len();
    let three = make(&mut admin, "three").await;
    assert_eq!(unwrap(&mut admin, &three).await, "dek");
    // Under the master key that there is.
    assert_eq!(objects(&daemon).len(), before);
}

#[tokio::test]
async fn blobs_that_were_tampered_with_or_swapped_are_refused_and_lose_nothing() {
    let mut daemon = start(THREADS);
    let mut admin = daemon.client("admin").await;
    let mut keys = Vec::new();
    for name in ["tampered", "swapped", "swapped too", "whole"] {
        keys.push(make(&mut admin, name).await);
    }
    daemon.stop().await;
    let path = daemon.dir.join("state/store.sqlite");
    let store = || Connection::open(&path).unwrap();
    let blob = |key: &(String, Vec<u8>)| -> Vec<u8> {
        let sql = "SELECT wrapped FROM key_versions WHERE key = ?1";
        store().query_row(sql, [id(&key.0)], |row| row.get(0)).unwrap()
    };
    let set = |key: &(String, Vec<u8>), blob: &[u8]| {
        let sql = "UPDATE key_versions SET wrapped = ?2 WHERE key = ?1";
        let altered = store().execute(sql, rusqlite::params![id(&key.0), blob]);
        assert_eq!(altered.unwrap(), 1);
    };
    let good: Vec<_> = keys.iter().map(blob).collect();
    let mut tampered = good[0].clone();
    tampered[20] ^= 0x10;
    set(&keys[0], &tampered);
    set(&keys[1], &good[2]);
    set(&keys[2], &good[1]);

    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    for _ in 0..2 {
        for key in &keys[..3] {
            assert_eq!(unwrap(&mut admin, key).await, "HSM_KEY_MISSING", "{}", key.0);
            assert_eq!(said(admin.wrap(&key.0, b"dek", &[]).await), "HSM_KEY_MISSING");
            assert_eq!(admin.get(&key.0).await.unwrap().name, key.0);
        }
        assert_eq!(unwrap(&mut admin, &keys[3]).await, "dek");
    }
    let status = admin.hsm_status().await;
    assert_eq!((status.wrong, status.missing, status.wrapped), (3, 0, 4), "{status:?}");
    assert!(daemon.logged().contains("a wrapped root key is not what it was"));

    daemon.stop().await;
    for (key, blob) in keys.iter().zip(&good) {
        set(key, blob);
    }
    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    for key in &keys {
        assert_eq!(unwrap(&mut admin, key).await, "dek", "{}", key.0);
    }
    assert_eq!(admin.hsm_status().await.wrong, 0);
}

#[tokio::test]
async fn without_its_master_key_nothing_is_unwrapped_nor_made_and_no_other_one_is_made() {
    let mut daemon = start(THREADS);
    let before = objects(&daemon);
    let mut admin = daemon.client("admin").await;
    let key = make(&mut admin, "volumes").await;
    let master = objects(&daemon).difference(&before).next().unwrap().clone();
    daemon.stop().await;
    let aside = daemon.dir.join("master");
    fs::rename(&master, &aside).unwrap();

    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    assert_eq!(unwrap(&mut admin, &key).await, "HSM_KEY_MISSING");
    let refused = admin.create_key(pb::Key { display_name: "more".into(), ..Default::default() });
    let refused = refused.await.unwrap_err();
    assert_eq!(refused.reason, "HSM_KEY_MISSING");
    assert!(refused.message.contains("master key"), "{}", refused.message);
    assert_eq!(said(admin.rotate(&key.0).await), "HSM_KEY_MISSING");
    assert_eq!(objects(&daemon), before);
    let status = admin.hsm_status().await;
    let found: Vec<_> = status.findings.iter().filter(|it| it.kind() == Kind::Missing).collect();
    assert_eq!((status.missing, found.len(), status.ready), (1, 1, true), "{status:?}");
    let output = daemon.cli(&["doctor"]).output().unwrap();
    let doctor = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && doctor.contains("master"), "{doctor}");
    // What is known of the key stays, and can be taken away.
    admin.disable(&key.0).await.unwrap();
    daemon.set_clock("+60s");
    admin.enable(&key.0).await.unwrap();

    daemon.stop().await;
    fs::rename(&aside, &master).unwrap();
    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    assert_eq!(unwrap(&mut admin, &key).await, "dek");
    make(&mut admin, "more").await;
}

/// Wraps and unwraps by turns, with fewer session objects than there are keys.
async fn keys_are_unwrapped_again_as_they_are_wanted(more: &str) {
    let daemon = start(more);
    let mut admin = daemon.client("admin").await;
    let mut keys = Vec::new();
    for number in 0..12 {
        keys.push(make(&mut admin, &format!("key {number}")).await);
    }
    let callers = (0..8).map(|caller| {
        let (mut client, keys) = (admin.clone(), keys.clone());
        tokio::spawn(async move {
            for turn in 0..24 {
                let key = &keys[(turn * 5 + caller) % keys.len()];
                assert_eq!(unwrap(&mut client, key).await, "dek");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    // A key that is disabled meanwhile is refused, whatever is in the HSM's sessions.
    admin.disable(&keys[0].0).await.unwrap();
    for _ in 0..8 {
        assert_eq!(unwrap(&mut admin, &keys[0]).await, "KEY_SUSPENDED");
    }
}

#[tokio::test]
async fn keys_are_unwrapped_again_as_they_are_wanted_in_threads() {
    keys_are_unwrapped_again_as_they_are_wanted("session_objects = 3\n").await;
}

#[tokio::test]
async fn keys_are_unwrapped_again_as_they_are_wanted_in_processes() {
    let more = format!("session_objects = 3\n{PROCESSES}");
    keys_are_unwrapped_again_as_they_are_wanted(&more).await;
}

#[tokio::test]
async fn a_backup_of_store_and_token_brings_back_wrapped_keys_and_with_them_purged_ones() {
    let mut daemon = start(THREADS);
    let mut admin = daemon.client("admin").await;
    let key = make(&mut admin, "volumes").await;
    let backup = daemon.dir.join("backup.sqlite");
    let state = daemon.dir.join("state");
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let arguments = ["backup", "--state-dir", &text(&state), "--to", &text(&backup)];
    let output = daemon.cli(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    admin.delete(&key.0).await.unwrap();
    daemon.set_clock("+5h");
    daemon.client("key-purge").await.purge(&key.0).await.unwrap();

    daemon.stop().await;
    let arguments = ["restore", &text(&backup), "--yes", "--state-dir", &text(&state)];
    let output = daemon.cli(&arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut accept = daemon.by_config();
    accept.arg("--accept-restored-store");
    daemon.start_by(accept);
    let mut admin = daemon.client("admin").await;
    // The trade: a blob that a backup has is a key for as long as its master key is there.
    assert_eq!(unwrap(&mut admin, &key).await, "dek");
}

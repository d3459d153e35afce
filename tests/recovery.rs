//! A store or an audit log from earlier, below a daemon that was stopped meanwhile: nothing
//! is unwrapped until an operator accepts it, whichever way it came there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use common::{Client, Daemon, said};
use rootkeyd::api::pb;
use rootkeyd::api::pb::key::State;
use rootkeyd::audit::{Audit, Settings};
use rootkeyd::domain::{Event, LogPosition};
use rusqlite::Connection;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Two keys and a DEK under each.
struct Keys {
    disabled: (String, Vec<u8>),
    deleted: (String, Vec<u8>),
}

async fn make(client: &mut Client) -> Keys {
    let mut names = Vec::new();
    for display_name in ["to be disabled", "to be deleted"] {
        let name = client.create(display_name).await.name;
        let wrapped = client.wrap(&name, b"the dek", &[]).await.unwrap();
        names.push((name, wrapped));
    }
    let [disabled, deleted] = names.try_into().unwrap();
    Keys { disabled, deleted }
}

/// What the one who restores must hear of; the name of the key that is made.
async fn take_away(client: &mut Client, keys: &Keys) -> String {
    client.disable(&keys.disabled.0).await.unwrap();
    client.delete(&keys.deleted.0).await.unwrap();
    client.create("made since").await.name
}

/// Nothing is unwrapped, wrapped or given, as often as it is tried; reading works, and what
/// takes away does.
async fn waits_for_an_operator(daemon: &Daemon, keys: &Keys) {
    let mut client = daemon.client("admin").await;
    for (key, wrapped) in [&keys.disabled, &keys.deleted] {
        for _ in 0..50 {
            let unwrapped = client.unwrap(key, wrapped, &[]).await.unwrap_err();
            assert_eq!(unwrapped.reason, "STORE_UNAVAILABLE");
            assert!(unwrapped.message.contains("--accept-restored-store"), "{unwrapped:?}");
        }
        assert_eq!(said(client.wrap(key, b"dek", &[]).await), "STORE_UNAVAILABLE");
        assert_eq!(said(client.enable(key).await), "STORE_UNAVAILABLE");
    }
    let key = pb::Key { display_name: "new".into(), ..Default::default() };
    assert_eq!(said(client.create_key(key).await), "STORE_UNAVAILABLE");
    let authorized = client.authorize("image", "instances/default").await;
    assert_eq!(said(authorized), "STORE_UNAVAILABLE");
    assert!(!client.audit_events().await.is_empty());
    let status = client.hsm_status().await;
    assert!(!status.ready && status.problem.contains("recovery mode"), "{status:?}");
    assert!(!is_serving(&client).await);
}

async fn is_serving(client: &Client) -> bool {
    let mut health = HealthClient::new(client.channel.clone());
    let answer = health.check(HealthCheckRequest::default()).await.unwrap();
    answer.into_inner().status() == ServingStatus::Serving
}

/// `rootkeyd --config … --accept-restored-store`.
fn accepting(daemon: &Daemon) -> Command {
    let mut command = daemon.by_config();
    command.arg("--accept-restored-store");
    command
}

/// Writes the intent to make the key's object into `store`, as it was before it was made.
fn under_way(store: &Path, newer: &Path, key: &str) {
    let id = key.rsplit('/').next().unwrap().parse::<uuid::Uuid>().unwrap();
    let sql = "SELECT object FROM key_versions WHERE key = ?1";
    let newer = Connection::open(newer).unwrap();
    let object: [u8; 16] = newer.query_row(sql, [id.as_bytes()], |row| row.get(0)).unwrap();
    let sql = "INSERT INTO intents (object, key, stage, begun, purpose)
               VALUES (?1, ?2, 'creating', 0, 'create instances/default')";
    Connection::open(store).unwrap().execute(sql, (object, id.as_bytes())).unwrap();
}

/// After a stop: the newest record of that action.
fn recorded(daemon: &Daemon, action: &str) -> Event {
    let audit = Audit::open(Settings::new(daemon.dir.join("state/audit"))).unwrap();
    let mut found = None;
    let start = LogPosition { records: 0, hash: [0; 32] };
    let all = audit.each_behind(&start, |record| {
        if found.is_none() && record.event.action == action {
            found = Some(record.event);
        }
    });
    assert!(all.unwrap());
    found.unwrap()
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let status = Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
}

fn ran(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

#[tokio::test]
async fn a_backup_that_is_restored_unwraps_nothing_before_an_operator_accepts_it() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let keys = make(&mut client).await;
    let (state, backup) = (daemon.dir.join("state"), daemon.dir.join("yesterday"));
    let state_dir = ["--state-dir", state.to_str().unwrap()];
    let file = backup.to_str().unwrap();
    let covered = async || client.clone().audit_checkpoint().await;
    daemon.until("there is a checkpoint", covered).await;

    // While the daemon runs.
    let (done, text) = ran(daemon.cli(&["backup", "--to", file]).args(state_dir));
    assert!(done, "{text}");
    assert_eq!(backup.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let (done, text) = ran(daemon.cli(&["backup", "--to", file]).args(state_dir));
    assert!(!done && text.contains("FILE_EXISTS"), "{text}");

    let made = take_away(&mut client, &keys).await;
    let (done, text) = ran(daemon.cli(&["restore", file, "--yes"]).args(state_dir));
    assert!(!done && text.contains("stop that first"), "{text}");
    daemon.stop().await;
    let (done, text) = ran(daemon.cli(&["restore", file]).args(state_dir));
    assert!(!done && text.contains("NOT_CONFIRMED"), "{text}");
    let (done, text) = ran(daemon.cli(&["restore", file, "--yes"]).args(state_dir));
    assert!(done && text.contains("by the key of this audit log"), "{text}");

    // As if the backup had been taken while that key was made: its object is under way there.
    under_way(&state.join("store.sqlite"), &state.join("store.sqlite.before-restore-1"), &made);

    // However often it is started.
    for _ in 0..2 {
        daemon.start_again();
        waits_for_an_operator(&daemon, &keys).await;
        daemon.stop().await;
    }
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    client.disable(&keys.disabled.0).await.unwrap();
    daemon.kill();

    daemon.start_by(accepting(&daemon));
    let mut client = daemon.client("admin").await;
    let (key, wrapped) = &keys.disabled;
    assert_eq!(said(client.unwrap(key, wrapped, &[]).await), "KEY_SUSPENDED");
    let (key, wrapped) = &keys.deleted;
    assert_eq!(&client.unwrap(key, wrapped, &[]).await.unwrap().dek[..], b"the dek");
    assert_eq!(said(client.get(&made).await), "KEY_NOT_FOUND");
    // Nobody knows whose it is, so it stays.
    let stays = async || client.clone().hsm_status().await.orphans == 1;
    daemon.until("the object of the key that was made since is an orphan", stays).await;
    daemon.stop().await;
    let accepted = recorded(&daemon, "rootkeyd.recovery.accept");
    let missing: Vec<_> = accepted.details.iter().filter(|(name, _)| name == "missing").collect();
    for (action, key) in [("disable", &keys.disabled.0), ("delete", &keys.deleted.0)] {
        let begin = format!("kms.secrets.{action} {key} by ");
        assert!(missing.iter().any(|(_, text)| text.starts_with(&begin)), "{accepted:?}");
    }
    daemon.start_again();
    let client = daemon.client("admin").await;
    assert!(is_serving(&client).await, "it was accepted");
    drop(client);
    daemon.stop().await;
}

#[tokio::test]
async fn a_store_that_is_copied_back_by_hand_or_lost_is_found() {
    let mut daemon = Daemon::start();
    let keys = make(&mut daemon.client("admin").await).await;
    daemon.stop().await;
    let (state, aside) = (daemon.dir.join("state"), daemon.dir.join("aside.sqlite"));
    let store = state.join("store.sqlite");
    copy(&store, &aside);
    daemon.start_again();
    take_away(&mut daemon.client("admin").await, &keys).await;
    daemon.stop().await;

    // With nothing that was changed since there is nothing to accept.
    daemon.start_again();
    assert!(is_serving(&daemon.client("admin").await).await);
    daemon.stop().await;

    copy(&store, &daemon.dir.join("newest.sqlite"));
    copy(&aside, &store);
    for _ in 0..2 {
        daemon.start_again();
        waits_for_an_operator(&daemon, &keys).await;
        // Is recorded, and no sign that the store had been accepted.
        let _ = daemon.client("admin").await.disable(&keys.disabled.0).await;
        daemon.kill();
    }
    // And back: the newest store is the right one.
    for end in ["-wal", "-shm"] {
        let _ = fs::remove_file(state.join(format!("store.sqlite{end}")));
    }
    copy(&daemon.dir.join("newest.sqlite"), &store);
    daemon.start_by(accepting(&daemon));
    let mut client = daemon.client("admin").await;
    assert!(is_serving(&client).await);
    assert_eq!(client.get(&keys.deleted.0).await.unwrap().state(), State::Destroyed);
    drop(client);
    daemon.stop().await;

    fs::remove_file(&store).unwrap();
    daemon.start_again();
    let unready = async || daemon.logged().contains("recovery mode: the audit log tells of");
    daemon.until("a store that is not there is missed", unready).await;
    daemon.stop().await;
}

#[tokio::test]
async fn an_audit_log_that_is_copied_back_is_found_however_much_is_recorded_after_it() {
    let mut daemon = Daemon::start();
    let keys = make(&mut daemon.client("admin").await).await;
    daemon.stop().await;
    let (log, aside) = (daemon.dir.join("state/audit"), daemon.dir.join("audit.before"));
    copy(&log, &aside);
    daemon.start_again();
    take_away(&mut daemon.client("admin").await, &keys).await;
    daemon.stop().await;
    fs::remove_dir_all(&log).unwrap();
    copy(&aside, &log);
    // The refusals make the log longer than the one that is gone.
    for _ in 0..2 {
        daemon.start_again();
        waits_for_an_operator(&daemon, &keys).await;
        daemon.stop().await;
    }
    daemon.start_by(accepting(&daemon));
    let mut client = daemon.client("admin").await;
    assert_eq!(client.get(&keys.disabled.0).await.unwrap().state(), State::Suspended);
    client.create("new").await;
    drop(client);
    daemon.stop().await;
    recorded(&daemon, "rootkeyd.recovery.accept");
    daemon.start_again();
    assert!(is_serving(&daemon.client("admin").await).await);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_has_everything_that_was_acknowledged_before_it_was_begun() {
    let mut daemon = Daemon::start();
    let state = daemon.dir.join("state");
    let made = Arc::new(Mutex::new(Vec::new()));
    let (mut client, book) = (daemon.client("admin").await, Arc::clone(&made));
    let maker = tokio::spawn(async move {
        loop {
            let name = client.create("volumes").await.name;
            book.lock().unwrap().push(name);
        }
    });
    for round in 1..=5 {
        let enough = async || made.lock().unwrap().len() >= round * 5;
        daemon.until("keys are made", enough).await;
        let backup = daemon.dir.join(format!("backup-{round}"));
        let before = made.lock().unwrap().clone();
        let (done, text) = ran(daemon
            .cli(&["backup", "--to", backup.to_str().unwrap()])
            .args(["--state-dir", state.to_str().unwrap()]));
        assert!(done, "{text}");
        let backup = Connection::open(backup).unwrap();
        for name in before {
            let id = name.rsplit('/').next().unwrap().parse::<uuid::Uuid>().unwrap();
            let sql = "SELECT count(*) FROM keys WHERE id = ?1";
            let found: u64 = backup.query_row(sql, [id.as_bytes()], |row| row.get(0)).unwrap();
            assert_eq!(found, 1, "{name}");
        }
    }
    maker.abort();
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_damaged_or_no_backup_is_not_restored() {
    let mut daemon = Daemon::start();
    let (state, backup) = (daemon.dir.join("state"), daemon.dir.join("backup"));
    let state_dir = ["--state-dir", state.to_str().unwrap()];
    let file = backup.to_str().unwrap();
    make(&mut daemon.client("admin").await).await;
    let (done, text) = ran(daemon.cli(&["backup", "--to", file]).args(state_dir));
    assert!(done, "{text}");
    daemon.stop().await;
    let store = state.join("store.sqlite");
    let before = fs::read(&store).unwrap();
    let bytes = fs::read(&backup).unwrap();
    let mut damaged = bytes.clone();
    damaged[4096..][..2000].fill(0xff);
    for wrong in [before.clone(), damaged, bytes[..bytes.len() / 2].to_vec(), b"text".to_vec()] {
        fs::write(&backup, wrong).unwrap();
        let (done, text) = ran(daemon.cli(&["restore", file, "--yes"]).args(state_dir));
        assert!(!done && text.starts_with("STORE_UNUSABLE"), "{text}");
        assert_eq!(fs::read(&store).unwrap(), before);
    }
}

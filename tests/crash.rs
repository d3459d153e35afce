//! kill -9 while keys are made, rotated, disabled and deleted: what was
//! acknowledged is there after the restart, and what was not leaves nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![expect(clippy::print_stdout, reason = "how much was tried says what the result is worth")]

#[path = "common/chaos.rs"]
mod chaos;
mod common;
#[path = "crash/points.rs"]
mod points;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chaos::Dice;
use common::{Client, Daemon, refusal};
use rootkeyd::api::pb;
use rootkeyd::api::pb::key::State;
use tonic::{Response, Status};
use tonic_types::StatusExt;

/// A key as its caller knows it.
#[derive(Clone, Debug)]
struct Known {
    /// What was acknowledged last.
    key: pb::Key,
    /// What was sent since and not answered: the change may have happened or not.
    in_flight: Option<Change>,
    dek: Vec<u8>,
    wrapped: Vec<u8>,
    acknowledged_versions: usize,
    /// How many changes were.
    acknowledged: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Change {
    Rotate,
    Disable,
    Enable,
    Delete,
    Rename,
}

type Book = Arc<Mutex<HashMap<String, Known>>>;

/// Changes keys until the daemon is gone.
async fn change_keys(mut client: Client, book: Book, mut dice: Dice) {
    let mut mine: Vec<String> = Vec::new();
    loop {
        if mine.len() < 2 || dice.roll(4) == 0 {
            let key = pb::Key { display_name: "volumes".into(), ..Default::default() };
            let request = pb::CreateKeyRequest {
                parent: "instances/default".into(),
                key: Some(key),
                request_id: String::new(),
            };
            let key = match client.keys.create_key(request).await {
                Ok(key) => key.into_inner(),
                Err(status) => return gone(&status),
            };
            let dek = format!("the dek of {}", key.name).into_bytes();
            // Noted before it is used: it is acknowledged.
            let known = Known {
                key: key.clone(),
                in_flight: None,
                dek: dek.clone(),
                wrapped: Vec::new(),
                acknowledged_versions: 1,
                acknowledged: 1,
            };
            book.lock().unwrap().insert(key.name.clone(), known);
            let wrap = pb::WrapDekRequest { key: key.name.clone(), dek, ..Default::default() };
            let Ok(wrapped) = client.crypto.wrap_dek(wrap).await else { return };
            let wrapped = wrapped.into_inner().wrapped_dek.to_vec();
            book.lock().unwrap().get_mut(&key.name).unwrap().wrapped = wrapped;
            mine.push(key.name);
            continue;
        }
        let name = mine[usize::try_from(dice.roll(mine.len() as u64)).unwrap()].clone();
        let state = book.lock().unwrap()[&name].key.state();
        let change = match (state, dice.roll(10)) {
            (State::Suspended, _) => Change::Enable,
            (_, 0) => Change::Delete,
            (_, 1..=3) => Change::Disable,
            (_, 4..=6) => Change::Rename,
            _ => Change::Rotate,
        };
        book.lock().unwrap().get_mut(&name).unwrap().in_flight = Some(change);
        let Some(key) = apply(&mut client, &name, change).await else { return };
        let mut book = book.lock().unwrap();
        let known = book.get_mut(&name).unwrap();
        known.acknowledged_versions += usize::from(change == Change::Rotate);
        known.acknowledged += 1;
        (known.key, known.in_flight) = (key, None);
        if change == Change::Delete {
            mine.retain(|other| *other != name);
        }
    }
}

/// The daemon is gone, as the connection says; or the token made a key badly, which
/// is refused and undone (docs/adr/0003). Nothing else is expected.
fn gone(status: &Status) {
    let reason = status.get_details_error_info().map(|info| info.reason);
    let badly_made = ["INTERNAL", "HSM_UNAVAILABLE", "HSM_KEY_MISSING"];
    assert!(reason.is_none_or(|reason| badly_made.contains(&reason.as_str())), "{status:?}");
}

/// The key after the change; `None` if the daemon is gone.
async fn apply(client: &mut Client, name: &str, change: Change) -> Option<pb::Key> {
    loop {
        match apply_once(client, name, change).await {
            // The clock runs ahead, but has not yet.
            Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                let reason = refusal(status).reason;
                assert!(["TOO_EARLY", "ROTATION_TOO_SOON"].contains(&reason.as_str()), "{reason}");
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Ok(key) => return Some(key.into_inner()),
            Err(status) => {
                gone(&status);
                return None;
            }
        }
    }
}

async fn apply_once(
    client: &mut Client,
    name: &str,
    change: Change,
) -> Result<Response<pb::Key>, Status> {
    let (name, etag) = (name.to_owned(), String::new());
    let keys = &mut client.keys;
    match change {
        Change::Rotate => {
            keys.rotate_key(pb::RotateKeyRequest { name, ..Default::default() }).await
        }
        Change::Disable => {
            keys.disable_key(pb::DisableKeyRequest { name, etag, ..Default::default() }).await
        }
        Change::Enable => keys.enable_key(pb::EnableKeyRequest { name, etag }).await,
        Change::Delete => {
            keys.delete_key(pb::DeleteKeyRequest { name, etag, force: false, ..Default::default() })
                .await
        }
        Change::Rename => {
            let key = pb::Key { name, display_name: "renamed".into(), ..Default::default() };
            let update_mask = Some(prost_types::FieldMask { paths: vec!["display_name".into()] });
            keys.update_key(pb::UpdateKeyRequest { key: Some(key), update_mask }).await
        }
    }
}

/// More than the clock runs ahead in one round, so that it never goes back. All rounds
/// are less than the 90 days after which a deleted key is purged.
const ROUND_SECONDS: u64 = 100_000;
/// How much the clock runs ahead in a millisecond.
const STEP_SECONDS: u64 = 301;

/// What the key may be now, of what it was acknowledged to be.
fn may_be(known: &Known, now: &pb::Key) -> bool {
    let Known { key, in_flight, .. } = known;
    let same = (now.state, &now.primary_version, &now.display_name)
        == (key.state, &key.primary_version, &key.display_name);
    let changed = match in_flight {
        None => false,
        Some(Change::Rotate) => now.primary_version != key.primary_version,
        Some(Change::Disable) => now.state() == State::Suspended,
        Some(Change::Enable) => now.state() == State::Active,
        Some(Change::Delete) => now.state() == State::Destroyed,
        Some(Change::Rename) => now.display_name == "renamed",
    };
    same || changed
}

/// Compares the daemon with the book, and brings the book up to date.
async fn check(client: &mut Client, book: &Book) {
    let book_now = book.lock().unwrap().clone();
    for (name, known) in book_now {
        let now = client.get(&name).await.unwrap();
        assert!(may_be(&known, &now), "{known:?}\nis now {now:?}");
        let request = pb::ListKeyVersionsRequest { parent: name.clone(), ..Default::default() };
        let versions = client.keys.list_key_versions(request).await.unwrap().into_inner();
        let count = versions.key_versions.len();
        let more = usize::from(known.in_flight == Some(Change::Rotate));
        assert!(
            (known.acknowledged_versions..=known.acknowledged_versions + more).contains(&count)
        );
        if now.state() == State::Active && !known.wrapped.is_empty() {
            let unwrapped = client.unwrap(&name, &known.wrapped, &[]).await.unwrap();
            assert!(unwrapped.dek == known.dek, "a wrong plaintext");
        }
        let known = Known { key: now, in_flight: None, acknowledged_versions: count, ..known };
        book.lock().unwrap().insert(name, known);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_load_loses_no_acknowledged_key_or_state() {
    let mut seen = chaos::Seen::default();
    // A daemon has so many rounds: what it holds is looked at after each of them.
    let kills = chaos::rounds(KILLS, 1000);
    for daemon in 0..kills.div_ceil(KILLS) {
        let one = kill_under_load(Dice(7 + daemon)).await;
        seen.faults += one.faults;
        seen.checked += one.checked;
    }
    chaos::report("kill -9 under load", seen);
}

/// Of one daemon.
const KILLS: u64 = 30;
/// Changes that a kill must have cut short, or it would have shown nothing.
const MUST_BE_CUT: usize = 6;

async fn kill_under_load(mut dice: Dice) -> chaos::Seen {
    let mut daemon = Daemon::start();
    let book = Book::default();
    let (mut in_flight, mut checked) = (0, 0);
    let mut round = 0;
    // On a busy machine most kills find nothing under way.
    while round < KILLS || (in_flight < MUST_BE_CUT && round < 10 * KILLS) {
        // A key that rests for 30 seconds would not change much.
        daemon.set_clock(&format!("+{}s", round * ROUND_SECONDS));
        let clock = daemon.clock.clone();
        let client = daemon.client("admin").await;
        let tasks: Vec<_> = (0..4)
            .map(|number| {
                let seed = Dice(round * 100 + number);
                tokio::spawn(change_keys(client.clone(), Arc::clone(&book), seed))
            })
            .collect();
        // The clock runs ahead, so that what was disabled can be enabled, and what was
        // rotated be rotated again.
        let ahead = tokio::spawn(async move {
            for step in 0..ROUND_SECONDS / STEP_SECONDS {
                let text = format!("+{}s", round * ROUND_SECONDS + step * STEP_SECONDS);
                let new = clock.with_extension("ahead");
                std::fs::write(&new, text).unwrap();
                std::fs::rename(&new, &clock).unwrap();
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        // Random, so that the kill finds it in every place; not before it does something.
        let before = acknowledged(&book);
        let began = std::time::Instant::now();
        while acknowledged(&book) == before && began.elapsed() < Duration::from_secs(20) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(dice.roll(150))).await;
        daemon.kill();
        for task in tasks {
            match task.await {
                Ok(()) => {}
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        ahead.abort();
        in_flight +=
            book.lock().unwrap().values().filter(|known| known.in_flight.is_some()).count();
        daemon.set_clock(&format!("+{}s", (round + 1) * ROUND_SECONDS));
        daemon.start_again();
        check(&mut daemon.client("admin").await, &book).await;
        checked += book.lock().unwrap().len() as u64;
        round += 1;
    }
    let mut admin = daemon.client("admin").await;
    let keys = book.lock().unwrap().len();
    println!("{keys} acknowledged keys, {in_flight} changes cut short");
    // Or it would have shown nothing.
    assert!(keys > 20 && in_flight >= MUST_BE_CUT);
    agree(&daemon, &admin).await;

    let events = admin.audit_events().await;
    for name in book.lock().unwrap().keys() {
        let made = |event: &&pb::AuditEvent| {
            event.subject == *name && event.action == "kms.secrets.create"
        };
        assert_eq!(events.iter().filter(made).count(), 1, "records of the making of {name}");
    }
    drop(admin);
    daemon.stop().await;
    let verified = rootkeyd::audit::verify(&daemon.dir.join("state/audit")).unwrap();
    assert!(verified.records >= events.len() as u64);
    chaos::Seen { faults: round, checked, ..chaos::Seen::default() }
}

/// Counts what was acknowledged.
fn acknowledged(book: &Book) -> u64 {
    book.lock().unwrap().values().map(|known| known.acknowledged).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_in_a_purge_leaves_the_key_whole_or_gone_and_the_purge_is_finished() {
    let mut daemon = Daemon::start();
    let mut dice = Dice(11);
    let mut cut_short = 0;
    for round in 0..12 {
        daemon.set_clock(&format!("+{}h", 6 * round));
        let mut admin = daemon.client("admin").await;
        let mut keys = Vec::new();
        for _ in 0..3 {
            let key = admin.create("to be purged").await.name;
            admin.rotate(&key).await.unwrap();
            admin.delete(&key).await.unwrap();
            keys.push(key);
        }
        daemon.set_clock(&format!("+{}h", 6 * round + 5));
        let purger = daemon.client("key-purge").await;
        let purges: Vec<_> =
            keys.iter().map(|key| tokio::spawn(purge(purger.clone(), key.clone()))).collect();
        tokio::time::sleep(Duration::from_micros(dice.roll(25_000))).await;
        daemon.kill();
        let mut acknowledged = Vec::new();
        for (key, purge) in keys.iter().zip(purges) {
            match purge.await.unwrap() {
                Ok(()) => acknowledged.push(key.clone()),
                Err(status) => gone(&status),
            }
        }
        daemon.start_again();
        let mut admin = daemon.client("admin").await;
        for key in &keys {
            match admin.get(key).await {
                // The point of no return was not passed: nothing is missing.
                Ok(whole) => {
                    assert!(!acknowledged.contains(key));
                    assert_eq!(whole.state(), State::Destroyed);
                    purge(daemon.client("key-purge").await, key.clone()).await.unwrap();
                }
                Err(refused) => {
                    assert_eq!(refused.reason, "KEY_NOT_FOUND");
                    cut_short += usize::from(!acknowledged.contains(key));
                }
            }
        }
        let finished = async || {
            let status = admin.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await.unwrap();
            let status = status.into_inner();
            let events = admin.audit_events().await;
            let recorded = |key: &String| {
                let purge = |it: &pb::AuditEvent| it.action == "kms.secrets.purge";
                let done = |it: &pb::AuditEvent| it.reason.is_empty() && it.subject == *key;
                events.iter().any(|event| purge(event) && done(event))
            };
            (status.objects, status.orphans, status.missing) == (0, 0, 0)
                && keys.iter().all(recorded)
        };
        daemon.until("every purge is finished", finished).await;
    }
    // Or it would have shown nothing.
    assert!(cut_short > 0, "no purge was cut short");
    daemon.stop().await;
    let store = rusqlite::Connection::open(daemon.dir.join("state/store.sqlite")).unwrap();
    let count = |sql: &str| store.query_row(sql, [], |row| row.get::<_, u64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM tombstones"), 36);
    assert_eq!(count("SELECT count(*) FROM keys"), 0);
    assert_eq!(count("SELECT count(*) FROM intents"), 0);
}

async fn purge(mut client: Client, name: String) -> Result<(), Status> {
    client.keys.purge_key(pb::PurgeKeyRequest { name }).await.map(drop)
}

/// HSM and store agree once everything is undone that was not finished.
async fn agree(daemon: &Daemon, admin: &Client) {
    daemon
        .until("HSM and store agree", async || {
            let mut admin = admin.admin.clone();
            let status = admin.get_hsm_status(pb::GetHsmStatusRequest {}).await;
            let status = status.unwrap().into_inner();
            assert_eq!(status.missing, 0);
            status.ready && status.orphans == 0
        })
        .await;
    let undone = daemon.logged().matches("an unfinished change was undone").count();
    println!("{undone} objects were undone");
}

/// The key, asked for again while the refusal says that this may help.
async fn repeated(admin: &mut Client, request: pb::CreateKeyRequest) -> pb::Key {
    loop {
        match admin.keys.create_key(request.clone()).await {
            Ok(made) => return made.into_inner(),
            Err(status) => {
                assert!(status.get_details_retry_info().is_some(), "{status:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_that_was_cut_short_is_repeated_with_its_request_id_and_makes_one_key() {
    let mut daemon = Daemon::start();
    let mut dice = Dice(11);
    let request = |number: usize| pb::CreateKeyRequest {
        parent: "instances/default".into(),
        key: Some(pb::Key { display_name: format!("key {number}"), ..Default::default() }),
        request_id: format!("{number:08x}-95c9-4a0e-8a3e-1f2d3c4b5a69"),
    };
    let mut acknowledged: HashMap<usize, String> = HashMap::new();
    for round in 0..10 {
        let client = daemon.client("admin").await;
        let first = Arc::new(tokio::sync::Notify::new());
        let tasks: Vec<_> = (round * 20..round * 20 + 20)
            .map(|number| {
                let (mut client, request) = (client.clone(), request(number));
                let first = Arc::clone(&first);
                tokio::spawn(async move {
                    match client.keys.create_key(request).await {
                        Ok(made) => {
                            first.notify_one();
                            Some((number, made.into_inner().name))
                        }
                        Err(status) => {
                            gone(&status);
                            None
                        }
                    }
                })
            })
            .collect();
        // Every other time one at least is acknowledged, however slow the machine is.
        if round % 2 == 0 {
            let answered = tokio::time::timeout(Duration::from_secs(30), first.notified()).await;
            answered.expect("no create was acknowledged");
        } else {
            tokio::time::sleep(Duration::from_millis(20 + dice.roll(150))).await;
        }
        daemon.kill();
        for task in tasks {
            acknowledged.extend(task.await.unwrap());
        }
        daemon.start_again();
    }
    let mut admin = daemon.client("admin").await;
    let all = 200;
    println!("{} of {all} creates were acknowledged before a kill", acknowledged.len());
    assert!(!acknowledged.is_empty() && acknowledged.len() < all);
    for number in 0..all {
        let key = repeated(&mut admin, request(number)).await;
        if let Some(name) = acknowledged.get(&number) {
            assert_eq!(key.name, *name, "the same request made two keys");
        }
    }
    let list = pb::ListKeysRequest {
        parent: "instances/default".into(),
        page_size: 5000,
        ..Default::default()
    };
    assert_eq!(admin.keys.list_keys(list).await.unwrap().into_inner().keys.len(), all);
    agree(&daemon, &admin).await;
}

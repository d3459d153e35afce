//! A disk that loses its power, becomes full or breaks, below a running daemon: what was
//! acknowledged is there, each answered unwrap has its record, and no answer is wrong.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

#[path = "common/chaos.rs"]
mod chaos;
mod common;
#[path = "common/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chaos::{Dice, Seen};
use common::{Client, Daemon};
use disk::Disk;
use rootkeyd::api::pb;
use rootkeyd::api::pb::key::State;
use rustix::process::Signal;
use tonic::Status;
use tonic_types::StatusExt;

/// What a key was acknowledged to be.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The number in its name, which goes up.
    number: u64,
    disabled: bool,
    unwraps: u64,
    wrapped: Vec<u8>,
}

type Book = Arc<Mutex<BTreeMap<String, Known>>>;

/// Makes, changes and disables keys and unwraps, until the daemon does not answer.
async fn work(mut client: Client, book: Book) -> Result<(), Status> {
    let mut mine = create(&mut client, &book).await?;
    for turn in 1..MOST_TURNS {
        if turn.is_multiple_of(8) {
            let (name, etag) = (mine, String::new());
            let request = pb::DisableKeyRequest { name: name.clone(), etag, ..Default::default() };
            client.keys.disable_key(request).await?;
            book.lock().unwrap().get_mut(&name).unwrap().disabled = true;
            mine = create(&mut client, &book).await?;
        }
        rename(&mut client, &mine, turn).await?;
        book.lock().unwrap().get_mut(&mine).unwrap().number = turn;
        unwrap(&mut client, &book, &mine).await?;
    }
    Ok(())
}

async fn create(client: &mut Client, book: &Book) -> Result<String, Status> {
    let key = pb::Key { display_name: "0000".into(), ..Default::default() };
    let parent = "instances/default".into();
    let request = pb::CreateKeyRequest { parent, key: Some(key), request_id: String::new() };
    let name = client.keys.create_key(request).await?.into_inner().name;
    book.lock().unwrap().insert(name.clone(), Known::default());
    let dek = name.clone().into_bytes();
    let wrap = pb::WrapDekRequest { key: name.clone(), dek, ..Default::default() };
    let wrapped = client.crypto.wrap_dek(wrap).await?.into_inner().wrapped_dek.to_vec();
    book.lock().unwrap().get_mut(&name).unwrap().wrapped = wrapped;
    Ok(name)
}

async fn rename(client: &mut Client, name: &str, number: u64) -> Result<(), Status> {
    let display_name = format!("{number:04}");
    let key = Some(pb::Key { name: name.into(), display_name, ..Default::default() });
    let update_mask = Some(prost_types::FieldMask { paths: vec!["display_name".into()] });
    client.keys.update_key(pb::UpdateKeyRequest { key, update_mask }).await.map(drop)
}

async fn unwrap(client: &mut Client, book: &Book, name: &str) -> Result<(), Status> {
    let wrapped = book.lock().unwrap()[name].wrapped.clone();
    let answer = client.crypto.unwrap_dek(common::unwrap_request(name, &wrapped, &[])).await?;
    assert_eq!(&answer.into_inner().dek[..], name.as_bytes(), "a wrong plaintext");
    book.lock().unwrap().get_mut(name).unwrap().unwraps += 1;
    Ok(())
}

/// The daemon is gone, as the connection says; or the token made a key badly, which is
/// undone (docs/adr/0003).
fn is_gone(status: &Status) -> bool {
    let reason = status.get_details_error_info().map(|info| info.reason);
    let badly_made = ["INTERNAL", "HSM_UNAVAILABLE", "HSM_KEY_MISSING"];
    reason.is_none_or(|reason| badly_made.contains(&reason.as_str()))
}

/// The audit log, as far as it was read.
#[derive(Default)]
struct Log {
    read: u64,
    /// Records of unwraps, by key.
    unwraps: BTreeMap<String, u64>,
}

impl Log {
    /// Reads what is new: all of it each time would be more with every round.
    async fn read_on(&mut self, client: &mut Client) {
        let (until, mut page_token) = (self.read, String::new());
        loop {
            let (parent, page_size) = ("instances/default".into(), 1000);
            let request =
                pb::ListAuditEventsRequest { parent, page_size, page_token, ..Default::default() };
            let page = client.audit.list_audit_events(request).await.unwrap().into_inner();
            let known = page.audit_events.iter().any(|event| event.sequence <= until);
            for event in page.audit_events.into_iter().filter(|event| event.sequence > until) {
                self.read = self.read.max(event.sequence);
                if event.action == "kms.secrets.unwrap" && event.reason.is_empty() {
                    *self.unwraps.entry(event.subject).or_default() += 1;
                }
            }
            page_token = page.next_page_token;
            if known || page_token.is_empty() {
                return;
            }
        }
    }
}

/// Looks for what was acknowledged.
async fn look(client: &mut Client, book: &Book) -> Seen {
    look_on(client, book, &mut Log::default()).await
}

/// The same, where the log was read before, up to a place that is still there.
async fn look_on(client: &mut Client, book: &Book, log: &mut Log) -> Seen {
    let mut seen = Seen::default();
    log.read_on(client).await;
    let records = &log.unwraps;
    let known = book.lock().unwrap().clone();
    for (name, known) in known {
        seen.checked += 1 + known.number + known.unwraps + u64::from(known.disabled);
        seen.lost += known.unwraps.saturating_sub(records.get(&name).copied().unwrap_or(0));
        match client.get(&name).await {
            Ok(now) => {
                let number: u64 = now.display_name.parse().unwrap();
                seen.lost += known.number.saturating_sub(number);
                seen.lost += u64::from(known.disabled && now.state() != State::Suspended);
            }
            Err(refusal) => {
                assert_eq!(refusal.reason, "KEY_NOT_FOUND", "{refusal:?}");
                seen.lost += 1;
            }
        }
    }
    seen
}

/// Cuts the power so many times. What was acknowledged is looked for each time, until
/// something is lost.
async fn cut_the_power(rounds: u64, order: &str) -> Seen {
    let mut daemon = Daemon::start();
    daemon.stop().await;
    let disk = Disk::of(&daemon.dir);
    disk.order(order);
    let (mut dice, mut seen, mut cut) = (Dice(17), Seen::default(), 0);
    let (book, mut log) = (Book::default(), Log::default());
    daemon.start_by(disk.under(daemon.dev()));
    while seen.faults < rounds && seen.lost == 0 {
        // What was looked at often enough is not looked at again.
        while book.lock().unwrap().len() > KEYS_LOOKED_AT {
            book.lock().unwrap().pop_first();
        }
        let client = daemon.client("admin").await;
        let workers: Vec<_> =
            (0..4).map(|_| tokio::spawn(work(client.clone(), Arc::clone(&book)))).collect();
        // However busy the machine is: something is acknowledged.
        let unwraps = || book.lock().unwrap().values().map(|known| known.unwraps).sum::<u64>();
        let before = unwraps();
        daemon.until("something is unwrapped", async || unwraps() >= before + 3).await;
        tokio::time::sleep(Duration::from_millis(dice.roll(100))).await;
        daemon.kill();
        for worker in workers {
            match worker.await {
                Ok(ended) => assert!(!order.is_empty() || is_gone(&ended.unwrap_err())),
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            }
        }
        cut += disk.cut(|sides| dice.roll(sides));
        seen.faults += 1;
        if !daemon.tries_to_start_by(disk.under(daemon.dev())) {
            // It sees for itself that something is not there.
            seen.lost += 1;
            break;
        }
        let mut client = daemon.client("admin").await;
        if client.hsm_status().await.problem.contains("recovery mode") {
            assert!(!order.is_empty(), "store and log belong together\n{}", daemon.logged());
            seen.lost += 1;
        }
        if !order.is_empty() {
            // What was read of it may be gone.
            log = Log::default();
        }
        let Seen { checked, lost, .. } = look_on(&mut client, &book, &mut log).await;
        (seen.checked, seen.lost) = (seen.checked + checked, seen.lost + lost);
    }
    // Or the cuts would have cut nothing.
    assert!(cut > 0, "no write was lost");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let seen = cut_the_power(chaos::rounds(12, 1_000), "").await;
    chaos::report("power cut, unsynced writes lost", seen);
    assert_eq!(seen.lost, 0, "{seen:?}");
    assert!(seen.checked > 100, "{seen:?}");
}

/// The same test finds a store and a log that are not synced, or it would show nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_about_fsync_is_found_out() {
    for order in ["lie sync store.sqlite-wal 1 on", "lie sync .log 1 on"] {
        let seen = cut_the_power(20, order).await;
        assert!(seen.lost > 0, "{order}: {seen:?}");
    }
}

/// One of everything; each answer is right or a refusal, and what is acknowledged is in
/// the book. Whether the daemon still answers.
async fn one_of_everything(client: &mut Client, book: &Book, turn: u64) -> bool {
    let said = async {
        let name = create(client, book).await?;
        rename(client, &name, turn).await?;
        book.lock().unwrap().get_mut(&name).unwrap().number = turn;
        unwrap(client, book, &name).await?;
        let request = pb::DisableKeyRequest { name: name.clone(), ..Default::default() };
        client.keys.disable_key(request).await?;
        book.lock().unwrap().get_mut(&name).unwrap().disabled = true;
        // Disabled is disabled, on whatever disk.
        let refused = unwrap(client, book, &name).await.unwrap_err();
        let reason = refused.get_details_error_info().map(|info| info.reason);
        if reason.as_deref() == Some("KEY_SUSPENDED") { Ok::<_, Status>(()) } else { Err(refused) }
    };
    match said.await {
        Ok(()) => true,
        Err(status) => {
            let reason = status.get_details_error_info().map(|info| info.reason);
            let Some(reason) = reason else { return false };
            assert!(CLEAN.contains(&reason.as_str()), "{status:?}");
            true
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_fails_is_a_clean_refusal_or_the_end_and_never_a_wrong_answer() {
    let mut daemon = Daemon::start();
    daemon.stop().await;
    let disk = Disk::of(&daemon.dir);
    let (book, all, mut seen) = (Book::default(), Book::default(), Seen::default());
    daemon.start_by(disk.under(daemon.dev()));
    let mut client = daemon.client("admin").await;
    let orders = [
        "enospc write store.sqlite-wal",
        "enospc write .log",
        "eio write .log",
        "eio write store.sqlite-wal",
    ];
    for order in orders {
        let most = if order == "eio write store.sqlite-wal" { chaos::rounds(3, 60) } else { 60 };
        for nth in 1..=most {
            disk.order(&format!("{order} {nth}"));
            let answers = one_of_everything(&mut client, &book, nth).await;
            let fired = disk.fired();
            disk.calm();
            if !answers {
                // Nobody knows what is on the disk after that: it ends, and reads it.
                assert!(order.starts_with("eio write store"), "{order} {nth}\n{}", daemon.logged());
                assert_eq!(daemon.ended().signal(), Some(Signal::ABORT.as_raw()), "{order} {nth}");
                daemon.start_by(disk.under(daemon.dev()));
                client = daemon.client("admin").await;
                let found = look(&mut client, &book).await;
                assert_eq!(found.lost, 0, "{order} {nth}");
            }
            all.lock().unwrap().append(&mut book.lock().unwrap());
            seen.faults += fired;
            // The script is over before that many writes.
            if fired == 0 {
                break;
            }
        }
    }
    disk.calm();
    daemon.kill();
    disk.cut(|_| 0);
    daemon.start_by(disk.under(daemon.dev()));
    let found = look(&mut daemon.client("admin").await, &all).await;
    seen.checked += found.checked;
    seen.lost += found.lost;
    chaos::report("failed write of store or audit log", seen);
    assert_eq!(seen.lost, 0, "{seen:?}");
    assert!(seen.faults > 20, "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_fsync_ends_the_daemon_and_is_not_tried_again() {
    let mut daemon = Daemon::start();
    daemon.stop().await;
    let disk = Disk::of(&daemon.dir);
    let (book, mut seen) = (Book::default(), Seen::default());
    for end in ["store.sqlite-wal", ".log", "store.sqlite"] {
        // The file itself is synced when the WAL is long, which takes a while.
        let most = if end == "store.sqlite" { 1 } else { chaos::rounds(2, 12) };
        for nth in 1..=most {
            daemon.start_by(disk.under(daemon.dev()));
            let client = daemon.client("admin").await;
            disk.order(&format!("eio sync {end} {nth}"));
            let workers: Vec<_> =
                (0..2).map(|_| tokio::spawn(work(client.clone(), Arc::clone(&book)))).collect();
            for worker in workers {
                worker.await.unwrap().unwrap_err();
            }
            assert_eq!(daemon.ended().signal(), Some(Signal::ABORT.as_raw()), "{end} {nth}");
            assert_eq!(disk.fired(), 1, "{end} {nth}");
            disk.calm();
            // What the failed fsync was to write is not there.
            disk.cut(|_| 0);
            daemon.start_by(disk.under(daemon.dev()));
            let found = look(&mut daemon.client("admin").await, &book).await;
            seen.faults += 1;
            (seen.checked, seen.lost) = (seen.checked + found.checked, seen.lost + found.lost);
            assert_eq!(seen.lost, 0, "{end} {nth}");
            daemon.kill();
        }
    }
    chaos::report("failed fsync of store or audit log", seen);
}

/// If the daemon is still there then, it did not end although it should have.
const MOST_TURNS: u64 = 5_000;
/// More would make each round longer than the last.
const KEYS_LOOKED_AT: usize = 100;
/// What a disk may make the daemon say.
const CLEAN: [&str; 2] = ["STORE_UNAVAILABLE", "AUDIT_UNAVAILABLE"];

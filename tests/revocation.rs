//! Revocation under load: no unwrap that begins after DisableKey returned
//! succeeds, no plaintext is ever wrong, and every answer has its record.
//!
//! Many clients unwrap all the time, one by one, in batches and on streams, while
//! keys are disabled and enabled, deleted and restored, or taken from their service.
//! Everything is written down with its times, and judged afterwards. The same of wraps,
//! while keys expire.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![expect(clippy::print_stdout, reason = "how much was tried says what the result is worth")]

#[path = "common/chaos.rs"]
mod chaos;
mod common;
#[path = "common/history.rs"]
#[expect(unreachable_pub, reason = "what a test shares")]
mod history;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Client, Daemon, refusal, said, unwrap_request};
use history::{Change, Effect, Fault, Use};
use rootkeyd::api::pb;
use rootkeyd::api::pb::audit_event::Outcome as Recorded;
use rootkeyd::api::pb::unwrap_dek_result::Outcome;
use tokio::task::JoinHandle;
use tonic::Request;

/// What takes a key away from those who use it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum By {
    Disabling,
    Deletion,
    RemovalOfAuthorization,
}

impl By {
    const fn reason(self) -> &'static str {
        match self {
            Self::Disabling => "KEY_SUSPENDED",
            Self::Deletion => "KEY_DESTROYED",
            Self::RemovalOfAuthorization => "PERMISSION_DENIED",
        }
    }
}

/// What is common to all clients.
struct Load {
    /// Name, DEK and wrapped DEK of each key.
    keys: Vec<(String, Vec<u8>, Vec<u8>)>,
    /// What takes the keys away.
    by: By,
    over: AtomicBool,
    unwraps: Mutex<Vec<Use>>,
    /// What each request id was answered: how many succeeded, how many did not.
    answers: Mutex<HashMap<String, (i64, i64)>>,
    next: AtomicU64,
}

impl Load {
    fn new_id(&self) -> String {
        format!("load-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn request(&self, key: usize) -> pb::UnwrapDekRequest {
        unwrap_request(&self.keys[key].0, &self.keys[key].2, &[b"aad"])
    }

    /// Judges one outcome by itself; returns whether it was a plaintext.
    fn check(&self, key: usize, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Response(response) => {
                assert!(response.dek == self.keys[key].1, "a wrong plaintext");
                true
            }
            Outcome::Refusal(refusal) => {
                assert_eq!(refusal.reason, self.by.reason());
                if self.by == By::Disabling {
                    assert_eq!(refusal.metadata["status_reason"], "encryption_key_disabled");
                }
                false
            }
        }
    }

    fn note(&self, id: String, began: Instant, outcomes: &[(usize, bool)]) {
        let ended = Instant::now();
        let unwraps = outcomes.iter().map(|(key, ok)| Use { key: *key, began, ended, ok: *ok });
        self.unwraps.lock().unwrap().extend(unwraps);
        let mut answers = self.answers.lock().unwrap();
        let counts = answers.entry(id).or_default();
        for (_, ok) in outcomes {
            *if *ok { &mut counts.0 } else { &mut counts.1 } += 1;
        }
    }

    async fn one_by_one(&self, mut client: Client, mut key: usize) {
        while !self.is_over() {
            key = (key + 1) % self.keys.len();
            let id = self.new_id();
            let request = with_id(self.request(key), &id);
            let began = Instant::now();
            let outcome = match client.crypto.unwrap_dek(request).await {
                Ok(response) => Outcome::Response(response.into_inner()),
                Err(status) => {
                    let refusal = refusal(status);
                    Outcome::Refusal(pb::UnwrapDekRefusal {
                        reason: refusal.reason,
                        metadata: refusal.metadata,
                        ..Default::default()
                    })
                }
            };
            self.note(id, began, &[(key, self.check(key, outcome))]);
        }
    }

    async fn in_batches(&self, mut client: Client) {
        while !self.is_over() {
            let keys: Vec<_> = (0..20).map(|number| number % self.keys.len()).collect();
            let requests = keys.iter().map(|key| self.request(*key)).collect();
            let id = self.new_id();
            let request = with_id(pb::BatchUnwrapDeksRequest { requests }, &id);
            let began = Instant::now();
            let response = client.crypto.batch_unwrap_deks(request).await.unwrap().into_inner();
            let outcomes: Vec<_> = keys
                .into_iter()
                .zip(response.results)
                .map(|(key, result)| (key, self.check(key, result.outcome.unwrap())))
                .collect();
            self.note(id, began, &outcomes);
        }
    }

    async fn on_a_stream(self: Arc<Self>, mut client: Client) {
        let id = self.new_id();
        let (send, receive) = tokio::sync::mpsc::channel(16);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receive);
        let answers = client.crypto.stream_unwrap_deks(with_id(stream, &id)).await.unwrap();
        let mut answers = answers.into_inner();
        let mut number = 0;
        while !self.is_over() {
            // One at a time: then it is known when each of them began.
            let key = usize::try_from(number).unwrap() % self.keys.len();
            let request = Some(self.request(key));
            let began = Instant::now();
            send.send(pb::StreamUnwrapDeksRequest { id: number, request }).await.unwrap();
            let answer = answers.message().await.unwrap().unwrap();
            assert_eq!(answer.id, number);
            let ok = self.check(key, answer.result.unwrap().outcome.unwrap());
            self.note(id.clone(), began, &[(key, ok)]);
            number += 1;
        }
    }
}

fn with_id<T>(message: T, id: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-request-id", id.parse().unwrap());
    request
}

/// Takes every key away and gives it back, in turn, until the load is over.
async fn toggle(load: &Load, daemon: &Daemon, mut admin: Client) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut authorizations = Vec::new();
    if load.by == By::RemovalOfAuthorization {
        for (name, _, _) in &load.keys {
            authorizations.push(admin.authorize("block-storage", name).await.unwrap().name);
        }
    }
    let mut seconds = 0;
    while !load.is_over() {
        for (key, (name, _, _)) in load.keys.iter().enumerate() {
            let sent = Instant::now();
            match load.by {
                By::Disabling => drop(admin.disable(name).await.unwrap()),
                By::Deletion => drop(admin.delete(name).await.unwrap()),
                By::RemovalOfAuthorization => {
                    admin.deauthorize(&authorizations[key]).await.unwrap();
                }
            }
            let acknowledged = Some(Instant::now());
            changes.push(Change { key, effect: Effect::Takes, sent, acknowledged });
            tokio::time::sleep(Duration::from_millis(15)).await;
            // The 30 seconds of rest are over at once, by the test clock.
            seconds += 31;
            if load.by != By::RemovalOfAuthorization {
                daemon.set_clock(&format!("+{seconds}s"));
            }
            let sent = Instant::now();
            match load.by {
                By::Disabling => drop(admin.enable(name).await.unwrap()),
                By::Deletion => drop(admin.restore(name).await.unwrap()),
                By::RemovalOfAuthorization => {
                    authorizations[key] =
                        admin.authorize("block-storage", name).await.unwrap().name;
                }
            }
            let acknowledged = Some(Instant::now());
            changes.push(Change { key, effect: Effect::Gives, sent, acknowledged });
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    changes
}

/// How long the load lasts.
fn duration() -> Duration {
    Duration::from_secs(chaos::rounds(8, 120))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_unwrap_that_begins_after_disable_returned_succeeds() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let load = begin(&mut admin, By::Disabling).await;
    let clients = spread(&daemon, &load, &["block-storage", "file-storage", "image"]).await;
    end_after(&load, duration());
    let changes = toggle(&load, &daemon, admin.clone()).await;
    judge(&load, clients, &changes, &mut admin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_unwrap_that_begins_after_delete_returned_succeeds() {
    // Every key can be restored, generated ones too.
    let daemon = Daemon::start_edited(|config| {
        config.replace("profile = \"vpc\"", "profile = \"key-protect\"")
    });
    let mut admin = daemon.client("admin").await;
    let load = begin(&mut admin, By::Deletion).await;
    let clients = spread(&daemon, &load, &["block-storage", "file-storage", "image"]).await;
    end_after(&load, duration());
    let changes = toggle(&load, &daemon, admin.clone()).await;
    judge(&load, clients, &changes, &mut admin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_unwrap_that_begins_after_the_removal_of_an_authorization_returned_succeeds() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let load = begin(&mut admin, By::RemovalOfAuthorization).await;
    // On one key more, or a whole batch would be refused at once while it has none.
    let other = admin.create("other").await.name;
    admin.authorize("block-storage", &other).await.unwrap();
    let whole = admin.authorization_of("block-storage").await;
    admin.deauthorize(&whole).await.unwrap();
    let clients = spread(&daemon, &load, &["block-storage"]).await;
    end_after(&load, duration());
    let changes = toggle(&load, &daemon, admin.clone()).await;
    judge(&load, clients, &changes, &mut admin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_wrap_that_begins_after_a_key_has_expired_succeeds() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let now = admin.create("now").await.create_time.unwrap();
    let mut keys = Vec::new();
    for hour in 1..=EXPIRING {
        let expire_time = prost_types::Timestamp { seconds: now.seconds + hour * 3600, nanos: 0 };
        let key = pb::Key {
            display_name: "expires".into(),
            expire_time: Some(expire_time),
            ..Default::default()
        };
        keys.push(admin.create_key(key).await.unwrap().name);
    }
    let keys = Arc::new(keys);
    let over = Arc::new(AtomicBool::new(false));
    let mut wrappers = Vec::new();
    for first in 0..16 {
        let mut client = daemon.client("block-storage").await;
        let (keys, over) = (Arc::clone(&keys), Arc::clone(&over));
        wrappers.push(tokio::spawn(async move {
            let (mut uses, mut key) = (Vec::new(), first);
            while !over.load(Ordering::Relaxed) {
                key = (key + 1) % keys.len();
                let began = Instant::now();
                let wrapped = said(client.wrap(&keys[key], b"dek", &[]).await);
                let ok = wrapped == "ok";
                assert!(ok || wrapped == "KEY_DEACTIVATED", "{wrapped}");
                uses.push(Use { key, began, ended: Instant::now(), ok });
            }
            uses
        }));
    }
    let mut changes = Vec::new();
    for (key, (name, hour)) in keys.iter().zip(1..).enumerate() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let sent = Instant::now();
        daemon.set_clock(&format!("+{hour}h"));
        let expired =
            async || admin.clone().get(name).await.unwrap().state() == pb::key::State::Deactivated;
        daemon.until("it has expired", expired).await;
        let acknowledged = Some(Instant::now());
        changes.push(Change { key, effect: Effect::Takes, sent, acknowledged });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    over.store(true, Ordering::Relaxed);
    let mut uses = Vec::new();
    for wrapper in wrappers {
        uses.extend(wrapper.await.unwrap());
    }
    judge_history("expiry", &uses, &changes);
}

/// Keys that expire, an hour after one another.
const EXPIRING: i64 = 40;

/// Keys, and nothing asked of them yet.
async fn begin(admin: &mut Client, by: By) -> Arc<Load> {
    let mut keys = Vec::new();
    for number in 0..4 {
        let name = admin.create(&format!("key {number}")).await.name;
        let dek = format!("the dek of key {number}").into_bytes();
        let wrapped = admin.wrap(&name, &dek, &[b"aad"]).await.unwrap();
        keys.push((name, dek, wrapped));
    }
    Arc::new(Load {
        keys,
        by,
        over: AtomicBool::new(false),
        unwraps: Mutex::default(),
        answers: Mutex::default(),
        next: AtomicU64::new(0),
    })
}

/// 64 clients, of these services in turn, on a connection for each eight.
async fn spread(daemon: &Daemon, load: &Arc<Load>, services: &[&str]) -> Vec<JoinHandle<()>> {
    let mut clients = Vec::new();
    let mut client = None;
    for number in 0..64 {
        if number % 8 == 0 {
            client = Some(daemon.client(services[number / 8 % services.len()]).await);
        }
        let (load, client) = (Arc::clone(load), client.clone().unwrap());
        clients.push(tokio::spawn(async move {
            match number % 16 {
                0 | 1 => load.in_batches(client).await,
                2 => load.on_a_stream(client).await,
                _ => load.one_by_one(client, number).await,
            }
        }));
    }
    clients
}

fn end_after(load: &Arc<Load>, time: Duration) {
    let load = Arc::clone(load);
    tokio::spawn(async move {
        tokio::time::sleep(time).await;
        load.over.store(true, Ordering::Relaxed);
    });
}

async fn judge(load: &Load, clients: Vec<JoinHandle<()>>, changes: &[Change], admin: &mut Client) {
    for client in clients {
        client.await.unwrap();
    }
    let unwraps = load.unwraps.lock().unwrap().clone();
    judge_history(&format!("{:?}", load.by), &unwraps, changes);
    every_answer_has_its_record(load, admin).await;
}

fn judge_history(by: &str, uses: &[Use], changes: &[Change]) {
    let refused = uses.iter().filter(|it| !it.ok).count();
    let taken = changes.iter().filter(|change| change.effect == Effect::Takes).count();
    println!("{} uses, {refused} refused, {taken} times taken away", uses.len());
    // Or it would have shown nothing.
    assert!(uses.len() > 1000 && refused > 100 && taken > 20);
    let faults = history::faults(uses, changes);
    let stale = faults.iter().filter(|(_, fault)| *fault == Fault::Stale).count();
    let count = |n: usize| u64::try_from(n).unwrap();
    let seen = chaos::Seen {
        faults: count(taken),
        checked: count(uses.len()),
        lost: 0,
        stale: count(stale),
        wrong: count(faults.len() - stale),
    };
    chaos::report(&format!("revocation by {by}"), seen);
    assert!(faults.is_empty(), "{} of {}: {:?}", faults.len(), uses.len(), faults[0]);
}

async fn every_answer_has_its_record(load: &Load, admin: &mut Client) {
    let mut recorded: HashMap<String, (i64, i64)> = HashMap::new();
    for event in admin.audit_events().await {
        if !event.request_id.starts_with("load-") {
            continue;
        }
        // A success that was refused after all has a second record, which says so.
        let late = event.details.contains_key("refused");
        let counts = recorded.entry(event.request_id.clone()).or_default();
        match (event.outcome(), late) {
            (Recorded::Success, _) => counts.0 += 1,
            (Recorded::Refused, late) => {
                assert_eq!(event.reason, load.by.reason());
                counts.1 += 1;
                counts.0 -= i64::from(late);
            }
            (Recorded::Unspecified, _) => panic!("an outcome that is none"),
        }
    }
    let answers = load.answers.lock().unwrap();
    for (id, answered) in answers.iter() {
        assert_eq!(recorded.get(id), Some(answered), "{id}: records, answers");
    }
    assert_eq!(recorded.len(), answers.len());
}

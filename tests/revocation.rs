//! Revocation under load: no unwrap that begins after DisableKey returned
//! succeeds, no plaintext is ever wrong, and every answer has its record.
//!
//! Many clients unwrap all the time, one by one, in batches and on streams, while
//! keys are disabled and enabled. Everything is written down with its times, and
//! judged afterwards.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![expect(clippy::print_stdout, reason = "how much was tried says what the result is worth")]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Client, Daemon, refusal, unwrap_request};
use rootkeyd::api::pb;
use rootkeyd::api::pb::audit_event::Outcome as Recorded;
use rootkeyd::api::pb::unwrap_dek_result::Outcome;
use tokio::task::JoinHandle;
use tonic::Request;

/// One unwrap, of which key, from when until when, and whether it succeeded.
#[derive(Clone, Copy, Debug)]
struct Unwrap {
    key: usize,
    began: Instant,
    ended: Instant,
    ok: bool,
}

/// A key that was certainly disabled, or certainly enabled: from the return of
/// the one call until the next one was sent.
#[derive(Clone, Copy, Debug)]
struct Period {
    key: usize,
    from: Instant,
    until: Instant,
    disabled: bool,
}

/// Unwraps that ended otherwise than the period allows in which they began and ended.
fn impossible(unwraps: &[Unwrap], periods: &[Period]) -> Vec<Unwrap> {
    let mut of_key: HashMap<usize, Vec<Period>> = HashMap::new();
    for period in periods {
        of_key.entry(period.key).or_default().push(*period);
    }
    for periods in of_key.values_mut() {
        periods.sort_by_key(|period| period.from);
    }
    let contradicts = |unwrap: &&Unwrap| {
        let periods = of_key.get(&unwrap.key).map_or(&[][..], Vec::as_slice);
        let after = periods.partition_point(|period| period.from < unwrap.began);
        let last = after.checked_sub(1).map(|place| periods[place]);
        last.is_some_and(|period| unwrap.ended < period.until && unwrap.ok == period.disabled)
    };
    unwraps.iter().filter(contradicts).copied().collect()
}

#[test]
fn the_judge_finds_a_stale_unwrap_and_a_wrong_refusal() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let period =
        |from, until, disabled| Period { key: 0, from: at(from), until: at(until), disabled };
    let periods = [period(10, 20, true), period(22, 30, false), period(32, 40, true)];
    let unwrap = |began, ended, ok| Unwrap { key: 0, began: at(began), ended: at(ended), ok };
    let fine = [
        unwrap(5, 9, true),
        // Concurrent with the change: either is right.
        unwrap(9, 15, true),
        unwrap(15, 23, true),
        unwrap(15, 19, false),
        unwrap(23, 29, true),
        unwrap(29, 33, false),
    ];
    assert!(impossible(&fine, &periods).is_empty());
    assert_eq!(impossible(&[unwrap(11, 19, true)], &periods).len(), 1);
    assert_eq!(impossible(&[unwrap(33, 39, true)], &periods).len(), 1);
    assert_eq!(impossible(&[unwrap(23, 29, false)], &periods).len(), 1);
    assert!(impossible(&[Unwrap { key: 1, ..unwrap(11, 19, true) }], &periods).is_empty());
}

/// What takes a key away from those who use it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum By {
    Disabling,
    RemovalOfAuthorization,
}

impl By {
    const fn reason(self) -> &'static str {
        match self {
            Self::Disabling => "KEY_SUSPENDED",
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
    unwraps: Mutex<Vec<Unwrap>>,
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
        let unwraps = outcomes.iter().map(|(key, ok)| Unwrap { key: *key, began, ended, ok: *ok });
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

/// Takes each key away from the service and gives it back, in turn, until the load is over.
async fn toggle_authorizations(load: &Load, mut admin: Client) -> Vec<Period> {
    let mut periods = Vec::new();
    let mut names = Vec::new();
    for (key, _, _) in &load.keys {
        let given = admin.authorize("block-storage", key).await.unwrap();
        names.push((given.name, Instant::now()));
    }
    while !load.is_over() {
        for (key, (name, _, _)) in load.keys.iter().enumerate() {
            let sent = Instant::now();
            admin.deauthorize(&names[key].0).await.unwrap();
            let from = Instant::now();
            periods.push(Period { key, from: names[key].1, until: sent, disabled: false });
            tokio::time::sleep(Duration::from_millis(15)).await;
            let sent = Instant::now();
            let given = admin.authorize("block-storage", name).await.unwrap();
            periods.push(Period { key, from, until: sent, disabled: true });
            names[key] = (given.name, Instant::now());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    periods
}

/// Disables and enables every key in turn until the load is over.
async fn toggle(load: &Load, daemon: &Daemon, mut admin: Client) -> Vec<Period> {
    let mut periods = Vec::new();
    let mut since: Vec<Option<Instant>> = vec![None; load.keys.len()];
    let mut seconds = 0;
    while !load.is_over() {
        for (key, (name, _, _)) in load.keys.iter().enumerate() {
            let sent = Instant::now();
            admin.disable(name).await.unwrap();
            let from = Instant::now();
            if let Some(enabled) = since[key] {
                periods.push(Period { key, from: enabled, until: sent, disabled: false });
            }
            tokio::time::sleep(Duration::from_millis(15)).await;
            // The 30 seconds of rest are over at once, by the test clock.
            seconds += 31;
            daemon.set_clock(&format!("+{seconds}s"));
            let sent = Instant::now();
            admin.enable(name).await.unwrap();
            periods.push(Period { key, from, until: sent, disabled: true });
            since[key] = Some(Instant::now());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    periods
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_unwrap_that_begins_after_disable_returned_succeeds() {
    let daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let load = begin(&mut admin, By::Disabling).await;
    let clients = spread(&daemon, &load, &["block-storage", "file-storage", "image"]).await;
    end_after(&load, Duration::from_secs(20));
    let periods = toggle(&load, &daemon, admin.clone()).await;
    judge(&load, clients, &periods, &mut admin).await;
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
    end_after(&load, Duration::from_secs(15));
    let periods = toggle_authorizations(&load, admin.clone()).await;
    judge(&load, clients, &periods, &mut admin).await;
}

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

async fn judge(load: &Load, clients: Vec<JoinHandle<()>>, periods: &[Period], admin: &mut Client) {
    for client in clients {
        client.await.unwrap();
    }
    let unwraps = load.unwraps.lock().unwrap().clone();
    let refused = unwraps.iter().filter(|unwrap| !unwrap.ok).count();
    let disabled = periods.iter().filter(|period| period.disabled).count();
    println!("{} unwraps, {refused} refused, {disabled} times taken away", unwraps.len());
    // Or it would have shown nothing.
    assert!(unwraps.len() > 1000 && refused > 100 && disabled > 20);
    let wrong = impossible(&unwraps, periods);
    assert!(wrong.is_empty(), "{} of {}: {:?}", wrong.len(), unwraps.len(), wrong[0]);
    every_answer_has_its_record(load, admin).await;
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

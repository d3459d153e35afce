//! Callers that keep a server busy. First as fast as it answers, each with one call under
//! way: that gives rate and CPU. Then at 70 % of that rate, by a clock that does not wait
//! for the server, each call timed from when it was due: that gives latencies in which no
//! omission is hidden (a server that stalls is charged for all who would have called).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rootkeyd::api::pb;
use rootkeyd::api::pb::crypto_service_client::CryptoServiceClient;
use rootkeyd::api::pb::unwrap_dek_result::Outcome;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::cpu;
use crate::figures::{Latencies, Taken};

/// What a caller calls.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Call {
    Unwrap,
    Wrap,
    /// BatchUnwrapDeks of so many.
    Batch(usize),
    /// StreamUnwrapDeks with so many under way.
    Stream(usize),
}

/// Who is called, and with what.
#[derive(Clone)]
pub struct Target {
    pub pid: u32,
    /// The callers are dealt out among them.
    pub channels: Vec<Channel>,
    pub unwrap: pb::UnwrapDekRequest,
    pub wrap: pb::WrapDekRequest,
}

impl Target {
    /// One turn of so many callers.
    pub fn turn(&self, runtime: &Runtime, call: Call, callers: usize, time: Duration) -> Taken {
        let mut taken = self.as_fast_as_it_goes(runtime, call, callers, time);
        let calls_per_s = SHARE * taken.deks_per_s / call.deks() as f64;
        let paced = Arc::new(Pace::at(calls_per_s, time));
        let work = self.start(runtime, call, callers, &paced);
        paced.keep();
        let latencies = runtime.block_on(work.end());
        taken.set_latencies(&latencies);
        taken
    }

    fn as_fast_as_it_goes(
        &self,
        runtime: &Runtime,
        call: Call,
        callers: usize,
        time: Duration,
    ) -> Taken {
        let pace = Arc::new(Pace::free());
        let work = self.start(runtime, call, callers, &pace);
        std::thread::sleep(WARM_UP);
        let (done, cpu) = (work.done.load(Ordering::Relaxed), cpu::of(self.pid));
        let began = Instant::now();
        std::thread::sleep(time);
        // Of large batches more time: what is half done at both ends must not count.
        let enough = done + (LEAST_CALLS * call.deks()) as u64;
        while work.done.load(Ordering::Relaxed) < enough && began.elapsed() < PATIENCE {
            std::thread::sleep(WARM_UP);
        }
        let deks = work.done.load(Ordering::Relaxed) - done;
        let used = cpu::since(&cpu, &cpu::of(self.pid));
        let seconds = began.elapsed().as_secs_f64();
        pace.stop();
        let latencies = runtime.block_on(work.end());
        assert!(deks > 0, "nothing was answered in {time:?}");
        Taken::of_server(deks, seconds, &used, &latencies)
    }

    fn start(&self, runtime: &Runtime, call: Call, callers: usize, pace: &Arc<Pace>) -> Work {
        let latencies = Arc::<Mutex<Latencies>>::default();
        let done = Arc::<AtomicU64>::default();
        let tasks = (0..callers).map(|number| {
            let channel = self.channels[number % self.channels.len()].clone();
            let caller = Caller {
                client: CryptoServiceClient::new(channel).max_decoding_message_size(16 << 20),
                target: self.clone(),
                pace: Arc::clone(pace),
                latencies: Arc::clone(&latencies),
                done: Arc::clone(&done),
            };
            runtime.spawn(caller.run(call))
        });
        Work { tasks: tasks.collect(), latencies: Arc::clone(&latencies), done: Arc::clone(&done) }
    }
}

impl Call {
    fn deks(self) -> usize {
        match self {
            Self::Unwrap | Self::Wrap | Self::Stream(_) => 1,
            Self::Batch(deks) => deks,
        }
    }
}

/// Callers at work.
struct Work {
    tasks: Vec<tokio::task::JoinHandle<()>>,
    latencies: Arc<Mutex<Latencies>>,
    done: Arc<AtomicU64>,
}

impl Work {
    /// Waits until all have ended.
    async fn end(self) -> Latencies {
        for task in self.tasks {
            let ended = tokio::time::timeout(PATIENCE, task).await;
            ended.expect("a turn does not end").unwrap();
        }
        std::mem::take(&mut *self.latencies.lock())
    }
}

/// When the next call is due.
struct Pace {
    began: Instant,
    /// Between two calls; `None` if one is due as soon as the last is answered.
    every: Option<Duration>,
    /// How many are due in all.
    total: AtomicUsize,
    taken: AtomicUsize,
    /// As many permits as have become due.
    due: Semaphore,
}

impl Pace {
    fn free() -> Self {
        Self::new(None, usize::MAX)
    }

    fn at(calls_per_s: f64, time: Duration) -> Self {
        let total = (calls_per_s * time.as_secs_f64()).max(1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is small")]
        Self::new(Some(Duration::from_secs_f64(1.0 / calls_per_s)), total as usize)
    }

    fn new(every: Option<Duration>, total: usize) -> Self {
        let (began, taken) = (Instant::now(), AtomicUsize::new(0));
        Self { began, every, total: AtomicUsize::new(total), taken, due: Semaphore::new(0) }
    }

    fn stop(&self) {
        self.total.store(0, Ordering::Relaxed);
    }

    fn due_at(&self, number: usize, every: Duration) -> Instant {
        self.began + every.mul_f64(number as f64)
    }

    /// Lets calls become due until all are; takes this thread.
    fn keep(&self) {
        let Some(every) = self.every else { return };
        let total = self.total.load(Ordering::Relaxed);
        let mut given = 0;
        while given < total {
            std::thread::sleep(self.due_at(given, every).saturating_duration_since(Instant::now()));
            let before = given;
            while given < total && self.due_at(given, every) <= Instant::now() {
                given += 1;
            }
            self.due.add_permits(given - before);
        }
    }

    /// Waits for the next call; `None` if there is none. From when it was due.
    async fn next(&self) -> Option<Instant> {
        let number = self.taken.fetch_add(1, Ordering::Relaxed);
        if number >= self.total.load(Ordering::Relaxed) {
            return None;
        }
        let Some(every) = self.every else { return Some(Instant::now()) };
        self.due.acquire().await.unwrap().forget();
        Some(self.due_at(number, every))
    }
}

struct Caller {
    client: CryptoServiceClient<Channel>,
    target: Target,
    pace: Arc<Pace>,
    latencies: Arc<Mutex<Latencies>>,
    done: Arc<AtomicU64>,
}

impl Caller {
    async fn run(mut self, call: Call) {
        match call {
            Call::Unwrap => {
                while let Some(due) = self.pace.next().await {
                    self.client.unwrap_dek(self.target.unwrap.clone()).await.unwrap();
                    self.answered(due, 1);
                }
            }
            Call::Wrap => {
                while let Some(due) = self.pace.next().await {
                    self.client.wrap_dek(self.target.wrap.clone()).await.unwrap();
                    self.answered(due, 1);
                }
            }
            Call::Batch(deks) => {
                let requests = vec![self.target.unwrap.clone(); deks];
                let batch = pb::BatchUnwrapDeksRequest { requests };
                while let Some(due) = self.pace.next().await {
                    let answer = self.client.batch_unwrap_deks(batch.clone()).await.unwrap();
                    answer.into_inner().results.into_iter().for_each(unwrapped);
                    self.answered(due, deks);
                }
            }
            Call::Stream(window) => self.stream(window).await,
        }
    }

    /// Ids are places in the window: each is used again when its answer is there.
    async fn stream(mut self, window: usize) {
        let (free, mut places) = mpsc::channel(window);
        let (send, requests) = mpsc::channel(window);
        let dues = Arc::new(Mutex::new(vec![Instant::now(); window]));
        for place in 0..window {
            free.send(place).await.unwrap();
        }
        let (pace, asked) = (Arc::clone(&self.pace), Arc::clone(&dues));
        let request = self.target.unwrap.clone();
        let sender = tokio::spawn(async move {
            while let Some(place) = places.recv().await
                && let Some(due) = pace.next().await
            {
                asked.lock()[place] = due;
                let (id, request) = (place as u64, Some(request.clone()));
                send.send(pb::StreamUnwrapDeksRequest { id, request }).await.unwrap();
            }
        });
        let requests = ReceiverStream::new(requests);
        let answers = self.client.stream_unwrap_deks(requests).await.unwrap();
        let mut answers = answers.into_inner();
        while let Some(answer) = answers.message().await.unwrap() {
            let place = usize::try_from(answer.id).unwrap();
            unwrapped(answer.result.unwrap());
            let due = dues.lock()[place];
            self.answered(due, 1);
            // Err: nothing more is sent.
            let _ = free.send(place).await;
        }
        sender.await.unwrap();
    }

    fn answered(&self, due: Instant, deks: usize) {
        self.done.fetch_add(deks as u64, Ordering::Relaxed);
        self.latencies.lock().record(due.elapsed());
    }
}

fn unwrapped(result: pb::UnwrapDekResult) {
    match result.outcome.unwrap() {
        Outcome::Response(_) => {}
        Outcome::Refusal(refusal) => panic!("{}: {}", refusal.reason, refusal.message),
    }
}

/// Of the rate that it can do, when latencies are taken.
const SHARE: f64 = 0.7;
/// What is not measured, before a turn.
const WARM_UP: Duration = Duration::from_millis(150);
/// A turn has so many calls at least.
const LEAST_CALLS: usize = 20;
/// For the calls that were begun.
const PATIENCE: Duration = Duration::from_secs(60);

//! The path of wrap and unwrap: the envelope, AAD and the permit alone, a job of the HSM
//! alone, and the whole through the daemon, with mutual TLS, authorization and a durable
//! audit record for each DEK, as in production.
//!
//! `make bench` collects what criterion finds into target/bench/latest.json, with
//! ratios of figures that were taken in this one run and the change to the run before.
//! How the daemon stands beside what it is made of is `benches/load`.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should fail")]

#[path = "load/connect.rs"]
#[expect(unreachable_pub, reason = "nobody uses a program as a library")]
mod connect;

use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput};
use rootkeyd::api::pb;
use rootkeyd::api::pb::crypto_service_client::CryptoServiceClient;
use rootkeyd::api::pb::key_service_client::KeyServiceClient;
use rootkeyd::dev;
use rootkeyd::domain::{
    Aad, Area, Binding, BindingSubject, Bindings, History, InstanceId, KeyAction, KeyId, KeyRingId,
    ObjectId, Permission, Place, PrincipalId, Profile, Role, Scope, Timestamp,
};
use rootkeyd::envelope::{Wrapped, authenticated};
use rootkeyd::hsm::{Crypt, Health, Hsm, Sealed, SessionCopies};
use rootkeyd::secret::Secret;
use tokio::runtime::Runtime;
use tonic::transport::Channel;

fn main() {
    let path = std::env::temp_dir().join("rootkeyd-bench");
    // SoftHSM reads its environment alone: this starts the benchmark anew with it.
    if std::env::var_os("SOFTHSM2_CONF").is_none() {
        // Left by a run that was cut short; there may be none.
        let _ = std::fs::remove_dir_all(&path);
    }
    dev::with_softhsm(&path).unwrap();

    let mut criterion = Criterion::default().configure_from_args();
    let runtime = Runtime::new().unwrap();
    envelope(&mut criterion);
    aad(&mut criterion);
    permit(&mut criterion);
    hsm_job(&mut criterion, &runtime, &path);
    let (threads, processes) = (path.join("daemon"), path.join("processes"));
    end_to_end(&mut criterion, &runtime, ("end_to_end", &threads));
    isolate(&processes);
    end_to_end(&mut criterion, &runtime, ("processes", &processes));
    criterion.final_summary();
    drop(runtime);
    std::fs::remove_dir_all(path).unwrap();
}

fn envelope(criterion: &mut Criterion) {
    let key = KeyId::from_bytes([7; 16]);
    let sealed = [9; 48];
    let wrapped = Wrapped { key, version: key.into(), iv: [3; 12], sealed: &sealed };
    let bytes = wrapped.encode();
    let aad =
        Aad::new(vec![b"crn:v1:rootkeyd:public:is:local:a/bench::volume:1".to_vec()]).unwrap();
    let mut group = criterion.benchmark_group("envelope");
    group.bench_function("encode", |b| b.iter(|| black_box(&wrapped).encode()));
    group.bench_function("decode", |b| {
        b.iter(|| {
            let parts = Wrapped::decode(black_box(&bytes)).unwrap();
            authenticated(parts.key, parts.version, &aad)
        });
    });
    group.finish();
}

fn aad(criterion: &mut Criterion) {
    let (key, version) = (KeyId::from_bytes([7; 16]), KeyId::from_bytes([8; 16]).into());
    let mut group = criterion.benchmark_group("aad");
    for (name, items, bytes) in [("one_item", 1, 50), ("the_most", 255, 255)] {
        let given = vec![vec![b'a'; bytes]; items];
        group.bench_function(name, |b| {
            b.iter_batched(
                || given.clone(),
                |given| authenticated(key, version, &Aad::new(given).unwrap()),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// Who may what, and what the key's state allows: twice for each DEK.
fn permit(criterion: &mut Criterion) {
    let now = Timestamp::from_seconds(1_800_000_000);
    let expires = now + Duration::from_secs(3600);
    let history = History::begun(now, Some(expires));
    let (instance, ring): (InstanceId, KeyRingId) =
        ("default".parse().unwrap(), "default".parse().unwrap());
    let key = KeyId::from_bytes([7; 16]);
    let service: PrincipalId = "spiffe://rootkeyd.dev/service/block-storage".parse().unwrap();
    let binding = |subject: BindingSubject, area| {
        Arc::new(Binding {
            id: uuid::Uuid::new_v4().into(),
            subject,
            role: Role::Reader,
            scope: Scope { instance: instance.clone(), area },
            created: now,
            created_by: "bench".into(),
        })
    };
    let others = (0..10_000).map(|number| {
        let subject = format!("spiffe://rootkeyd.dev/other-{number}").parse().unwrap();
        binding(BindingSubject::Principal(subject), Area::All)
    });
    let mine = BindingSubject::Service(service.service().unwrap().parse().unwrap());
    let bindings = Bindings::new(others.chain([binding(mine, Area::Key(key))]), std::iter::empty());
    let mut group = criterion.benchmark_group("permit");
    group.bench_function("state", |b| {
        b.iter(|| {
            black_box(&history).state(black_box(now)).permit(KeyAction::Unwrap, Profile::Vpc)
        });
    });
    group.bench_function("binding_among_10001", |b| {
        let place = Place::Key(&instance, &ring, key);
        b.iter(|| assert!(bindings.allow(black_box(&service), Permission::UseKeys, place)));
    });
    group.finish();
}

fn hsm_job(criterion: &mut Criterion, runtime: &Runtime, path: &Path) {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = dev::prepare(path, listen).unwrap();
    config.hsm.session_objects.copies = SessionCopies::On;
    let hsm = Hsm::start(config.hsm).unwrap();
    let object = ObjectId::from(uuid::Uuid::new_v4());
    let deadline = || Instant::now() + Duration::from_secs(10);
    let aad = vec![5; 90];
    let (check_value, sealed) = runtime.block_on(async {
        let mut health = hsm.watch();
        health.wait_for(|health| matches!(health, Health::Ready { .. })).await.unwrap();
        let check_value = hsm.generate(object, deadline()).await.unwrap();
        let dek = Secret::new(vec![1; 32]);
        let seal = Crypt::Seal { key: object.into(), aad: aad.clone(), dek };
        let done = hsm.crypt(vec![seal], deadline()).await.unwrap().pop().unwrap().unwrap();
        (check_value, done.sealed.unwrap().unwrap())
    });
    let check_value = [&check_value.iv[..], &check_value.bytes].concat();
    let open = |sealed: &Sealed| Crypt::Open {
        key: object.into(),
        aad: aad.clone(),
        sealed: sealed.clone(),
        reseal: None,
    };
    let mut group = criterion.benchmark_group("hsm");
    for items in [1, 64] {
        group.throughput(Throughput::Elements(items));
        group.bench_function(format!("open_{items}_in_a_job"), |b| {
            b.iter(|| {
                let job = (0..items).map(|_| open(&sealed)).collect();
                runtime.block_on(hsm.crypt(job, deadline())).unwrap()
            });
        });
        // A check value is always opened by the token object itself.
        group.bench_function(format!("open_{items}_by_token_object"), |b| {
            b.iter(|| {
                let job = (0..items).map(|_| Hsm::check(object, &check_value).unwrap()).collect();
                runtime.block_on(hsm.crypt(job, deadline())).unwrap()
            });
        });
    }
    group.finish();
    let by_copy = || open(&sealed);
    let by_token_object = || Hsm::check(object, &check_value).unwrap();
    for items in [1, 64] {
        let run = |item: &dyn Fn() -> Crypt| {
            let before = workers_cpu();
            for _ in 0..4096 / items {
                let job = (0..items).map(|_| item()).collect();
                runtime.block_on(hsm.crypt(job, deadline())).unwrap();
            }
            (workers_cpu() - before).as_secs_f64() * 1e6 / 4096.0
        };
        let mut rounds: Vec<_> = (0..31).map(|_| [run(&by_copy), run(&by_token_object)]).collect();
        rounds.sort_by(|one, other| (one[0] / one[1]).total_cmp(&(other[0] / other[1])));
        let [copy, token] = rounds[rounds.len() / 2];
        eprintln!(
            "hsm/open_{items}: {copy:.1} µs CPU by a session copy, {token:.1} by the token object, \
             {:.2} (the middle of 31 rounds)",
            copy / token
        );
    }
    hsm.stop();
}

/// What the HSM's workers in this process have used.
fn workers_cpu() -> Duration {
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let workers = tasks.filter(|task| read(task.join("comm")).starts_with("hsm-"));
    let nanos = workers.map(|task| read(task.join("schedstat")));
    let nanos = nanos.filter_map(|stat| stat.split(' ').next()?.parse::<u64>().ok());
    Duration::from_nanos(nanos.sum())
}

/// The daemon of this profile, in a directory of its own.
struct Started {
    child: Child,
    address: String,
}

impl Started {
    fn begin(path: &Path) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_rootkeyd"))
            .args(["dev", "--listen", "127.0.0.1:0", "--dir"])
            .arg(path)
            .env("ROOTKEYD_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on ").unwrap().to_owned();
        Self { child, address }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The same, with clients.
struct Daemon {
    _daemon: Started,
    channels: Vec<Channel>,
    key: String,
}

/// Has the module of the daemon in that directory run in processes of its own.
fn isolate(path: &Path) {
    drop(Started::begin(path));
    let config = path.join("rootkeyd.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replacen("[hsm]\n", "[hsm]\nisolation = \"process\"\n", 1))
        .unwrap();
}

fn end_to_end(criterion: &mut Criterion, runtime: &Runtime, (name, path): (&str, &Path)) {
    let daemon = runtime.block_on(Daemon::start(path));
    let wrap = || pb::WrapDekRequest {
        register: None,
        key: daemon.key.clone(),
        dek: vec![1; 32],
        aad: vec![b"crn:v1:rootkeyd:public:is:local:a/bench::volume:1".to_vec()],
        resource: String::new(),
    };
    let wrapped = runtime.block_on(async { daemon.crypto(0).wrap_dek(wrap()).await.unwrap() });
    let wrapped = wrapped.into_inner().wrapped_dek;
    let unwrap = || {
        let pb::WrapDekRequest { key, aad, resource, .. } = wrap();
        pb::UnwrapDekRequest { key, wrapped_dek: wrapped.to_vec(), aad, resource }
    };
    let mut group = criterion.benchmark_group(name);
    group.sample_size(30).measurement_time(Duration::from_secs(8));
    group.throughput(Throughput::Elements(1));
    group.bench_function("wrap", |b| {
        let mut client = daemon.crypto(0);
        b.iter(|| runtime.block_on(client.wrap_dek(wrap())).unwrap());
    });
    group.bench_function("unwrap", |b| {
        let mut client = daemon.crypto(0);
        b.iter(|| runtime.block_on(client.unwrap_dek(unwrap())).unwrap());
    });
    group.bench_function("unwrap_64_at_once", |b| {
        b.iter_custom(|rounds| runtime.block_on(daemon.at_once(rounds, unwrap())));
    });
    group.bench_function("unwrap_on_a_stream", |b| {
        b.iter_custom(|rounds| runtime.block_on(daemon.streamed(rounds, unwrap())));
    });
    group.bench_function("unwrap_in_batches_of_64", |b| {
        b.iter_custom(|rounds| runtime.block_on(daemon.batched(rounds, unwrap())));
    });
    group.finish();
}

impl Daemon {
    async fn start(path: &Path) -> Self {
        let daemon = Started::begin(path);
        let endpoint = connect::endpoint((path, "admin"), &daemon.address);
        let mut channels = Vec::new();
        for _ in 0..8 {
            channels.push(endpoint.connect().await.unwrap());
        }
        let key = pb::Key { display_name: "bench".into(), ..Default::default() };
        let request = pb::CreateKeyRequest {
            parent: "instances/default".into(),
            key: Some(key),
            request_id: String::new(),
        };
        let mut keys = KeyServiceClient::new(channels[0].clone());
        let key = keys.create_key(request).await.unwrap().into_inner().name;
        Self { _daemon: daemon, channels, key }
    }

    fn crypto(&self, number: usize) -> CryptoServiceClient<Channel> {
        CryptoServiceClient::new(self.channels[number % self.channels.len()].clone())
    }

    /// How long `rounds` unwraps take by 64 callers over 8 connections.
    async fn at_once(&self, rounds: u64, request: pb::UnwrapDekRequest) -> Duration {
        let began = Instant::now();
        let callers = (0..64_u64).map(|number| {
            let mut client = self.crypto(usize::try_from(number).unwrap());
            let mine = rounds / 64 + u64::from(number < rounds % 64);
            let request = request.clone();
            tokio::spawn(async move {
                for _ in 0..mine {
                    client.unwrap_dek(request.clone()).await.unwrap();
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        began.elapsed()
    }

    async fn streamed(&self, rounds: u64, request: pb::UnwrapDekRequest) -> Duration {
        let began = Instant::now();
        let requests = (0..rounds)
            .map(move |id| pb::StreamUnwrapDeksRequest { id, request: Some(request.clone()) });
        let requests = tokio_stream::iter(requests);
        let answers = self.crypto(0).stream_unwrap_deks(requests).await.unwrap();
        let mut answers = answers.into_inner();
        let mut answered = 0;
        while answers.message().await.unwrap().is_some() {
            answered += 1;
        }
        assert_eq!(answered, rounds);
        began.elapsed()
    }

    async fn batched(&self, rounds: u64, request: pb::UnwrapDekRequest) -> Duration {
        let began = Instant::now();
        let mut left = rounds;
        while left > 0 {
            let size = left.min(64);
            let requests = vec![request.clone(); usize::try_from(size).unwrap()];
            let batch = pb::BatchUnwrapDeksRequest { requests };
            self.crypto(0).batch_unwrap_deks(batch).await.unwrap();
            left -= size;
        }
        began.elapsed()
    }
}

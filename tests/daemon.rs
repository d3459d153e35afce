//! The daemon as its operator meets it: how it starts and stops, what it does
//! while the HSM is away. Whom it lets in: tests/identity.rs.
//!
//! SoftHSM keeps a token in a folder, so to move that folder away is to pull the
//! HSM's plug; what a real one says then is a matter of its module.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Client, DAEMON, Daemon, Refusal, unwrap_request};
use rootkeyd::api::pb;
use rootkeyd::api::pb::unwrap_dek_result::Outcome;
use rustix::fs::inotify;
use tokio::sync::Barrier;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1 as reflection;
use tonic_types::StatusExt;

const DEK: &[u8] = b"a dek of some length";

/// A root key, and a DEK that it wrapped.
struct Wrapped {
    key: pb::Key,
    wrapped: Vec<u8>,
}

impl Wrapped {
    async fn new(client: &mut Client, display_name: &str) -> Self {
        let key = client.create(display_name).await;
        let wrapped = client.wrap(&key.name, DEK, &[b"aad"]).await.unwrap();
        Self { key, wrapped }
    }

    /// Whether it unwraps, to what it was; or the refusal.
    async fn unwrap(&self, client: &mut Client) -> Result<(), Refusal> {
        let unwrapped = client.unwrap(&self.key.name, &self.wrapped, &[b"aad"]).await?;
        assert_eq!(unwrapped.dek, DEK);
        Ok(())
    }

    /// Whether it unwraps now; a refusal that says more than that the HSM is
    /// away would be a lie.
    async fn unwraps_or_waits(&self, client: &mut Client) -> bool {
        let Err(refused) = self.unwrap(client).await else { return true };
        assert_unavailable(&refused);
        false
    }
}

fn assert_unavailable(refused: &Refusal) {
    assert_eq!(
        (refused.code, refused.reason.as_str()),
        (Code::Unavailable, "HSM_UNAVAILABLE"),
        "{refused:?}"
    );
    assert!(refused.retry_after.is_some_and(|delay| !delay.is_zero()), "{refused:?}");
}

async fn health(client: &Client, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.into() };
    let response = HealthClient::new(client.channel.clone()).check(request).await.unwrap();
    response.into_inner().status()
}

async fn hsm_status(client: &mut Client) -> pb::HsmStatus {
    client.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await.unwrap().into_inner()
}

async fn key_names(client: &mut Client) -> BTreeSet<String> {
    let request = pb::ListKeysRequest { parent: "instances/default".into(), ..Default::default() };
    let listed = client.keys.list_keys(request).await.unwrap().into_inner();
    listed.keys.into_iter().map(|key| key.name).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A daemon that must not start; what it said on standard error.
fn refuses_to_start(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(status.code(), Some(1), "{}", text(&stderr));
    assert!(stdout.is_empty(), "{}", text(&stdout));
    text(&stderr)
}

#[tokio::test]
async fn a_second_daemon_on_the_same_directory_refuses_to_start_and_names_the_first() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let before = Wrapped::new(&mut client, "before").await;
    for mut second in [daemon.dev(), daemon.by_config()] {
        let said = refuses_to_start(&mut second);
        assert!(said.contains(&format!("pid {};", daemon.pid())), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    before.unwrap(&mut client).await.unwrap();
    let mut another = daemon.client("admin").await;
    Wrapped::new(&mut another, "after").await.unwrap(&mut another).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_answers_what_was_begun_and_ends_well() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let wrapped = Arc::new(Wrapped::new(&mut client, "volumes").await);
    for _ in 0..5 {
        let mut callers = Vec::new();
        // So that each was answered once, however slow the machine is.
        let all_answered = Arc::new(Barrier::new(24 + 1));
        for number in 0..24 {
            let (wrapped, mut client) = (Arc::clone(&wrapped), daemon.client("admin").await);
            let all_answered = Arc::clone(&all_answered);
            callers.push(tokio::spawn(async move {
                call_until_it_ends(number, &wrapped, (&mut client, &all_answered)).await
            }));
        }
        all_answered.wait().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        daemon.stop().await;
        for caller in callers {
            assert!(caller.await.unwrap() > 0, "a caller was never answered");
        }
        daemon.start_again();
    }
    let mut client = daemon.client("admin").await;
    wrapped.unwrap(&mut client).await.unwrap();
    assert!(!daemon.logged().contains("in time"), "{}", daemon.logged());
}

/// Calls until a call fails, which must be for want of a connection; how many
/// were answered. A third wrap, a third unwrap, a third unwrap 300 at once.
async fn call_until_it_ends(
    number: usize,
    wrapped: &Wrapped,
    (client, all_answered): (&mut Client, &Barrier),
) -> usize {
    let name = &wrapped.key.name;
    let one = unwrap_request(name, &wrapped.wrapped, &[b"aad"]);
    for answered in 0.. {
        if answered == 1 {
            all_answered.wait().await;
        }
        let ended = match number % 3 {
            0 => {
                let request = pb::WrapDekRequest {
                    key: name.clone(),
                    dek: DEK.to_vec(),
                    ..Default::default()
                };
                client.crypto.wrap_dek(request).await.err()
            }
            1 => match client.crypto.unwrap_dek(one.clone()).await {
                Ok(response) => {
                    assert_eq!(response.into_inner().dek, DEK);
                    None
                }
                Err(status) => Some(status),
            },
            _ => {
                let request = pb::BatchUnwrapDeksRequest { requests: vec![one.clone(); 300] };
                match client.crypto.batch_unwrap_deks(request).await {
                    Ok(response) => {
                        let results = response.into_inner().results;
                        assert_eq!(results.len(), 300);
                        let fine = |result: pb::UnwrapDekResult| matches!(result.outcome, Some(Outcome::Response(r)) if r.dek == DEK);
                        assert!(results.into_iter().all(fine));
                        None
                    }
                    Err(status) => Some(status),
                }
            }
        };
        if let Some(status) = ended {
            assert!(status.get_details_error_info().is_none(), "{status:?}");
            return answered;
        }
    }
    unreachable!("it ends when the daemon does")
}

#[tokio::test]
async fn a_stream_that_stays_open_does_not_keep_the_daemon_from_ending() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    let (send, requests) = tokio::sync::mpsc::channel(1);
    let request = Some(unwrap_request(&wrapped.key.name, &wrapped.wrapped, &[b"aad"]));
    send.send(pb::StreamUnwrapDeksRequest { id: 7, request }).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = client.crypto.stream_unwrap_deks(requests).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().id, 7);
    daemon.stop().await;
    // It was ended in good order, and not cut off when patience was over.
    assert!(answers.message().await.unwrap().is_none());
    assert!(!daemon.logged().contains("were not done in time"));
    drop(send);
}

#[tokio::test]
async fn a_directory_can_be_copied_and_served_from_another_path() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    let names = key_names(&mut client).await;
    daemon.stop().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let copied = elsewhere.path().join("a copy/of it");
    fs::create_dir_all(copied.parent().unwrap()).unwrap();
    let cp = Command::new("cp").arg("-a").arg(&daemon.dir).arg(&copied).status().unwrap();
    assert!(cp.success());
    // At once, so that neither can live on what is the other's.
    let copy = Daemon::start_in(&copied);
    daemon.start_again();
    for daemon in [&copy, &daemon] {
        let mut client = daemon.client("admin").await;
        assert_eq!(key_names(&mut client).await, names);
        wrapped.unwrap(&mut client).await.unwrap();
        let another = Wrapped::new(&mut client, "another").await;
        another.unwrap(&mut client).await.unwrap();
        assert_eq!(key_names(&mut client).await.len(), names.len() + 1);
    }
    drop(daemon);
    let mut client = copy.client("admin").await;
    wrapped.unwrap(&mut client).await.unwrap();
}

#[test]
fn dev_makes_what_its_interface_says() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("not/there yet");
    let mut child = Command::new(DAEMON)
        .args(["dev", "--listen", "127.0.0.1:0", "--dir"])
        .arg(&dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.strip_prefix("listening on ").and_then(|line| line.strip_suffix('\n'));
    let address: SocketAddr = address.unwrap().parse().unwrap();
    assert_ne!(address.port(), 0);
    std::net::TcpStream::connect(address).unwrap();

    let mut expected: Vec<PathBuf> =
        ["client.toml", "rootkeyd.toml", "softhsm2.conf", "pin", "state/store.sqlite"]
            .iter()
            .map(|file| dir.join(file))
            .collect();
    for name in ["ca", "server", "admin", "block-storage", "file-storage", "image"] {
        expected.extend(["pem", "key"].map(|end| dir.join("tls").join(name).with_extension(end)));
    }
    for file in expected {
        assert!(file.is_file(), "{} was not made", file.display());
    }
    let made = objects(&dir.join("tokens")).len();
    assert_eq!(made, 4, "the token itself, the canary, and the two halves of the signer");
    for path in walk(&dir) {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let expected = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.permissions().mode() & 0o7777, expected, "{}", path.display());
    }
    let client: toml::Table = fs::read_to_string(dir.join("client.toml")).unwrap().parse().unwrap();
    assert_eq!(client["endpoint"].as_str(), Some(format!("https://{address}").as_str()));
    for field in ["ca", "certificate", "key"] {
        assert!(dir.join(client[field].as_str().unwrap()).is_file(), "{field}");
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let help = Command::new(DAEMON).args(["dev", "--help"]).output().unwrap();
    assert!(text(&help.stdout).contains("127.0.0.1:8443"), "{}", text(&help.stdout));
}

/// `directory` and all that is in it.
fn walk(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if path.is_dir() {
            found.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

/// The files of a token that hold an object each.
fn objects(tokens: &Path) -> BTreeSet<PathBuf> {
    let is_object = |path: &PathBuf| path.extension().is_some_and(|end| end == "object");
    walk(tokens).into_iter().filter(is_object).collect()
}

#[tokio::test]
async fn the_configuration_serves_without_dev() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    daemon.stop().await;
    let config = daemon.dir.join("rootkeyd.toml");
    let made = fs::read_to_string(&config).unwrap();
    assert!(made.contains("address = \"127.0.0.1:0\""), "{made}");
    daemon.start_by(daemon.by_config());
    let mut client = daemon.client("admin").await;
    wrapped.unwrap(&mut client).await.unwrap();
    assert_eq!(health(&client, "").await, ServingStatus::Serving);
    daemon.stop().await;

    fs::write(&config, format!("no_such_key = 1\n{made}")).unwrap();
    let said = refuses_to_start(&mut daemon.by_config());
    assert!(said.contains("no_such_key") && said.contains("rootkeyd.toml"), "{said}");

    let credential = made.replacen("pin_file = \"pin\"", "pin_credential = \"hsm-pin\"", 1);
    assert_ne!(credential, made);
    fs::write(&config, credential).unwrap();
    let said = refuses_to_start(daemon.by_config().env_remove("CREDENTIALS_DIRECTORY"));
    assert!(said.contains("hsm.pin_credential"), "{said}");
    let credentials = tempfile::tempdir().unwrap();
    fs::rename(daemon.dir.join("pin"), credentials.path().join("hsm-pin")).unwrap();
    let mut command = daemon.by_config();
    command.env("CREDENTIALS_DIRECTORY", credentials.path());
    daemon.start_by(command);
    let mut client = daemon.client("admin").await;
    wrapped.unwrap(&mut client).await.unwrap();
}

/// The folder of the one token, which can be moved away and back.
struct Plug {
    connected: PathBuf,
    pulled: PathBuf,
}

impl Plug {
    fn of(daemon: &Daemon) -> Self {
        let mut tokens = fs::read_dir(daemon.dir.join("tokens")).unwrap();
        let connected = tokens.next().unwrap().unwrap().path();
        assert!(tokens.next().is_none());
        Self { connected, pulled: daemon.dir.join("pulled") }
    }

    fn pull(&self) {
        fs::rename(&self.connected, &self.pulled).unwrap();
    }

    fn connect(&self) {
        fs::rename(&self.pulled, &self.connected).unwrap();
    }
}

const CRYPTO: &str = "rootkeyd.v1.CryptoService";

#[tokio::test]
async fn a_token_that_is_lost_refuses_with_hsm_unavailable_and_comes_back_by_itself() {
    let daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let plug = Plug::of(&daemon);
    let mut kept = vec![Wrapped::new(&mut client, "first").await];
    let callers = Callers::begin(&daemon).await;
    for round in 0..3 {
        let victim = Wrapped::new(&mut client, "to be disabled").await;
        plug.pull();
        let pulled = Instant::now();
        let mut probe = client.clone();
        daemon
            .until("the loss is not noticed", async || {
                !kept[0].unwraps_or_waits(&mut probe).await
                    && health(&probe, "").await == ServingStatus::NotServing
            })
            .await;
        eprintln!("round {round}: noticed in {:?}", pulled.elapsed());
        assert_eq!(health(&client, CRYPTO).await, ServingStatus::NotServing);
        for wrapped in &kept {
            assert_unavailable(&wrapped.unwrap(&mut client).await.unwrap_err());
        }
        assert_unavailable(&client.wrap(&kept[0].key.name, DEK, &[]).await.unwrap_err());
        let key = pb::Key { display_name: "not now".into(), ..Default::default() };
        assert_unavailable(&client.create_key(key).await.unwrap_err());
        let status = hsm_status(&mut client).await;
        assert!(!status.ready && !status.round_trip, "{status:?}");
        assert!(status.problem.contains(' '), "no sentence: {status:?}");
        assert_eq!((status.missing, status.orphans), (0, 0), "{status:?}");
        let disabled = client.disable(&victim.key.name).await.unwrap();
        assert_eq!(disabled.state(), pb::key::State::Suspended);
        // Long enough for a module that is brought up without its token.
        let quiet = Instant::now();
        while quiet.elapsed() < Duration::from_secs(3) {
            assert!(!kept[0].unwraps_or_waits(&mut client).await, "unwrapped without a token");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }

        plug.connect();
        let connected = Instant::now();
        let mut probe = client.clone();
        daemon
            .until("the token is not noticed", async || {
                kept[0].unwraps_or_waits(&mut probe).await
                    && health(&probe, "").await == ServingStatus::Serving
            })
            .await;
        eprintln!("round {round}: back in {:?}", connected.elapsed());
        for wrapped in &kept {
            wrapped.unwrap(&mut client).await.unwrap();
        }
        assert_eq!(victim.unwrap(&mut client).await.unwrap_err().reason, "KEY_SUSPENDED");
        kept.push(Wrapped::new(&mut client, "of this round").await);
        let status = hsm_status(&mut client).await;
        assert!(status.ready && status.problem.is_empty(), "{status:?}");
        assert_eq!((status.missing, status.orphans), (0, 0), "{status:?}");
        assert_eq!(health(&client, CRYPTO).await, ServingStatus::Serving);
    }
    assert_eq!(key_names(&mut client).await.len(), 8, "first, two of each round, the callers'");
    let (unwrapped, refused) = callers.end().await;
    eprintln!("meanwhile {unwrapped} were unwrapped and {refused} refused");
    assert!(unwrapped > 0 && refused > 0);
}

/// Callers who go on unwrapping, whatever happens to the HSM.
struct Callers {
    end: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<[usize; 2]>>,
}

impl Callers {
    async fn begin(daemon: &Daemon) -> Self {
        let end = Arc::new(AtomicBool::new(false));
        let mut client = daemon.client("admin").await;
        let wrapped = Arc::new(Wrapped::new(&mut client, "the callers'").await);
        let call = |_number| {
            let (end, wrapped, mut client) =
                (Arc::clone(&end), Arc::clone(&wrapped), client.clone());
            tokio::spawn(async move {
                let mut counts = [0; 2];
                while !end.load(Ordering::Relaxed) {
                    let unwrapped = wrapped.unwraps_or_waits(&mut client).await;
                    counts[usize::from(unwrapped)] += 1;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                counts
            })
        };
        let tasks = (0..8).map(call).collect();
        Self { end, tasks }
    }

    /// How many were unwrapped, and how many refused.
    async fn end(self) -> (usize, usize) {
        self.end.store(true, Ordering::Relaxed);
        let mut sums = (0, 0);
        for task in self.tasks {
            let [refused, unwrapped] = task.await.unwrap();
            sums = (sums.0 + unwrapped, sums.1 + refused);
        }
        sums
    }
}

#[tokio::test]
async fn a_token_that_is_absent_at_start_is_no_reason_not_to_start() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    daemon.stop().await;
    let plug = Plug::of(&daemon);
    plug.pull();
    daemon.start_by(daemon.by_config());
    let mut client = daemon.client("admin").await;
    assert_eq!(health(&client, "").await, ServingStatus::NotServing);
    assert_unavailable(&wrapped.unwrap(&mut client).await.unwrap_err());
    assert_eq!(key_names(&mut client).await, [wrapped.key.name.clone()].into());
    let status = hsm_status(&mut client).await;
    assert!(status.problem.contains("no slot has a token with the label"), "{status:?}");
    plug.connect();
    let mut probe = client.clone();
    daemon
        .until("the token is not noticed", async || {
            wrapped.unwraps_or_waits(&mut probe).await
                && health(&probe, "").await == ServingStatus::Serving
        })
        .await;
    wrapped.unwrap(&mut client).await.unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_and_again_when_the_file_changes() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    daemon.stop().await;
    let right = fs::read(daemon.dir.join("pin")).unwrap();
    let opened = Opened::watch(&daemon.dir, "pin");
    write_pin(&daemon.dir, b"wrong-one");
    daemon.start_by(daemon.by_config());
    let mut client = daemon.client("admin").await;
    for wrong in ["wrong", "another wrong", "the third one"] {
        // More than the longest pause between two tries.
        tokio::time::sleep(Duration::from_millis(4500)).await;
        assert_eq!(opened.count(), 1, "{wrong}: not tried just once");
        assert_eq!(health(&client, "").await, ServingStatus::NotServing);
        assert_unavailable(&wrapped.unwrap(&mut client).await.unwrap_err());
        let status = hsm_status(&mut client).await;
        assert!(status.problem.contains("refused the PIN"), "{status:?}");
        if wrong == "the third one" {
            break;
        }
        write_pin(&daemon.dir, wrong.as_bytes());
    }
    write_pin(&daemon.dir, &right);
    let mut probe = client.clone();
    daemon
        .until("the right PIN is not tried", async || {
            wrapped.unwraps_or_waits(&mut probe).await
                && health(&probe, "").await == ServingStatus::Serving
        })
        .await;
    assert!(!daemon.logged().contains("wrong-one"));
}

/// Whole or not at all: a PIN that is half written would be a wrong one.
fn write_pin(dir: &Path, pin: &[u8]) {
    fs::write(dir.join("pin.new"), pin).unwrap();
    fs::rename(dir.join("pin.new"), dir.join("pin")).unwrap();
}

/// Counts how often a file is opened.
struct Opened {
    watch: rustix::fd::OwnedFd,
    name: &'static str,
}

impl Opened {
    fn watch(directory: &Path, name: &'static str) -> Self {
        let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        inotify::add_watch(&watch, directory, inotify::WatchFlags::OPEN).unwrap();
        Self { watch, name }
    }

    /// Since it was asked last.
    fn count(&self) -> usize {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        let mut count = 0;
        loop {
            match events.next() {
                Ok(event) => {
                    let of =
                        event.file_name().is_some_and(|of| of.to_bytes() == self.name.as_bytes());
                    count += usize::from(of);
                }
                Err(rustix::io::Errno::AGAIN) => return count,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[tokio::test]
async fn a_root_key_object_that_is_gone_is_hsm_key_missing_and_its_key_is_kept() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    let kept = Wrapped::new(&mut client, "kept").await;
    let tokens = daemon.dir.join("tokens");
    let before = objects(&tokens);
    let lost = Wrapped::new(&mut client, "lost").await;
    let made: Vec<_> = objects(&tokens).difference(&before).cloned().collect();
    let [object] = &made[..] else { panic!("a key is not one object: {made:?}") };
    daemon.stop().await;
    let backup = fs::read(object).unwrap();
    fs::remove_file(object).unwrap();
    daemon.start_again();

    let mut client = daemon.client("admin").await;
    for _ in 0..3 {
        let refused = lost.unwrap(&mut client).await.unwrap_err();
        assert_eq!((refused.code, refused.reason.as_str()), (Code::DataLoss, "HSM_KEY_MISSING"));
        assert_eq!(refused.metadata["key_protect_code"], "INCOMPLETE_METADATA_ERR");
        assert_eq!(refused.retry_after, None);
        kept.unwrap(&mut client).await.unwrap();
    }
    let refused = client.wrap(&lost.key.name, DEK, &[]).await.unwrap_err();
    assert_eq!(refused.reason, "HSM_KEY_MISSING");
    assert_eq!(client.get(&lost.key.name).await.unwrap().state(), pb::key::State::Active);
    let both: BTreeSet<_> = [lost.key.name.clone(), kept.key.name.clone()].into();
    assert_eq!(key_names(&mut client).await, both);
    let status = hsm_status(&mut client).await;
    assert!(status.ready, "{status:?}");
    assert_eq!((status.missing, status.orphans, status.objects), (1, 0, 1), "{status:?}");
    assert_eq!(health(&client, "").await, ServingStatus::Serving);
    Wrapped::new(&mut client, "new").await.unwrap(&mut client).await.unwrap();

    daemon.stop().await;
    fs::write(object, backup).unwrap();
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    lost.unwrap(&mut client).await.unwrap();
    assert_eq!(hsm_status(&mut client).await.missing, 0);
}

#[tokio::test]
async fn health_and_reflection_are_on() {
    let daemon = Daemon::start();
    let client = daemon.client("image").await;
    for service in ["", CRYPTO, "rootkeyd.v1.KeyService"] {
        assert_eq!(health(&client, service).await, ServingStatus::Serving);
    }
    let mut stub =
        reflection::server_reflection_client::ServerReflectionClient::new(client.channel.clone());
    let request = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(reflection::server_reflection_request::MessageRequest::ListServices(
            String::new(),
        )),
    };
    let mut answers =
        stub.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let reflection::server_reflection_response::MessageResponse::ListServicesResponse(listed) =
        answer
    else {
        panic!("{answer:?}")
    };
    let listed: BTreeSet<_> = listed.service.into_iter().map(|service| service.name).collect();
    for service in ["AdminService", "AuditService", "CryptoService", "KeyService"] {
        assert!(listed.contains(&format!("rootkeyd.v1.{service}")), "{listed:?}");
    }
    assert!(listed.contains("grpc.health.v1.Health"), "{listed:?}");
}

#[tokio::test]
async fn an_object_that_no_key_names_is_reported_and_left_alone() {
    let mut daemon = Daemon::start();
    daemon.client("admin").await.create("volumes").await;
    daemon.stop().await;
    let tokens = daemon.dir.join("tokens");
    let before = objects(&tokens);
    // As if the store were an old backup, which knows nothing of the key.
    for file in ["store.sqlite", "store.sqlite-wal"] {
        let _ = fs::remove_file(daemon.dir.join("state").join(file));
    }
    // A store that is not there is waited with (tests/recovery.rs).
    let mut accepting = daemon.by_config();
    accepting.arg("--accept-restored-store");
    daemon.start_by(accepting);
    let mut client = daemon.client("admin").await;
    assert_eq!(hsm_status(&mut client).await.orphans, 1);
    assert!(daemon.logged().contains("they are left alone"));
    daemon.stop().await;
    assert_eq!(objects(&tokens), before);
}

#[tokio::test]
async fn the_server_says_what_it_is() {
    let mut daemon = Daemon::start();
    let mut client = daemon.client("admin").await;
    client.create("volumes").await;
    let info = async |client: &mut Client| {
        client.admin.get_server_info(pb::GetServerInfoRequest {}).await.unwrap().into_inner()
    };
    let first = info(&mut client).await;
    assert_eq!(
        (first.version.as_str(), first.profile.as_str()),
        (env!("CARGO_PKG_VERSION"), "vpc")
    );
    assert_eq!(first.key_count, 1);
    daemon.stop().await;
    daemon.start_again();
    let second = info(&mut daemon.client("admin").await).await;
    assert_ne!(first.boot_id, second.boot_id);
    assert!(second.audit_event_count >= first.audit_event_count);
}

/// A module that hands everything to SoftHSM, but never comes back from one
/// C_Decrypt: from the first after the file `hang` beside it appears.
const HANGING_MODULE: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long (*decrypt)(unsigned long, void *, unsigned long, void *, void *);
typedef struct { unsigned char version[2]; void *functions[68]; } list;

static list ours;
static decrypt theirs;

static unsigned long hanging(unsigned long s, void *a, unsigned long n, void *b, void *m) {
    if (unlink(HANG_FILE) == 0) for (;;) sleep(1000);
    return theirs(s, a, n, b, m);
}

unsigned long C_GetFunctionList(list **out) {
    list *real;
    unsigned long (*get)(list **) = (unsigned long (*)(list **)) dlsym(dlopen(SOFTHSM, RTLD_NOW), "C_GetFunctionList");
    unsigned long rv = get(&real);
    if (rv != 0) return rv;
    ours = *real;
    /* PKCS#11 2.40, in the order of pkcs11f.h: C_Initialize is 0. */
    theirs = (decrypt) ours.functions[34];
    ours.functions[34] = (void *) hanging;
    *out = &ours;
    return 0;
}
"#;

#[tokio::test]
async fn a_worker_that_hangs_in_the_module_is_given_up_and_replaced() {
    let mut daemon = Daemon::start();
    daemon.stop().await;
    let config = daemon.dir.join("rootkeyd.toml");
    let configured = fs::read_to_string(&config).unwrap();
    let module =
        configured.lines().find_map(|line| line.strip_prefix("module = ")).unwrap().to_owned();
    let hang = daemon.dir.join("hang");
    let (source, shim) = (daemon.dir.join("hang.c"), daemon.dir.join("hang.so"));
    fs::write(&source, HANGING_MODULE).unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&shim)
        .arg(format!("-DHANG_FILE={:?}", hang.display().to_string()))
        .arg(format!("-DSOFTHSM={module}"))
        .arg(&source)
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", text(&built.stderr));
    let ours = "module = \"hang.so\"\nworkers = 2\nstuck_seconds = 1";
    let configured = configured.replace(&format!("module = {module}"), ours);
    fs::write(&config, configured).unwrap();
    daemon.start_again();

    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    // Until then one of the two is busy, and with the other in a hang no call gets on.
    let tried = "tried what key material the token unwraps";
    daemon.until("import is not tried", async || daemon.logged().matches(tried).count() == 2).await;
    for given_up in 1..=3 {
        fs::write(&hang, "").unwrap();
        // One call gets its deadline; the others go on, by the other worker.
        let mut request =
            Request::new(unwrap_request(&wrapped.key.name, &wrapped.wrapped, &[b"aad"]));
        request.set_timeout(Duration::from_millis(300));
        let late = client.crypto.unwrap_dek(request).await.unwrap_err();
        assert!([Code::DeadlineExceeded, Code::Cancelled].contains(&late.code()), "{late:?}");
        assert!(!hang.exists());
        wrapped.unwrap(&mut client).await.unwrap();
        daemon
            .until("the worker is given up", async || {
                daemon.logged().matches("hangs in the module").count() == given_up
            })
            .await;
        // As many workers as before: with one more lost there is still one.
        assert!(hsm_status(&mut client).await.ready);
    }
    wrapped.unwrap(&mut client).await.unwrap();
    drop(client);
    // Three threads are in the module for ever, and it ends all the same.
    daemon.signal(rustix::process::Signal::TERM);
    let began = Instant::now();
    while daemon.is_running() {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not end");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

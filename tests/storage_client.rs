//! `StorageClient` against a daemon that goes away and a certificate that is renewed.
//! What it does when a key says no: tests/story.rs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::process::Command;
use std::time::Duration;

use common::{DAEMON, Daemon};
use rootkeyd::client::{
    ClientConfig, DekContext, KeyRefusal, Registration, ResourceKind, RetryPolicy, StorageClient,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_call_waits_for_a_daemon_that_starts_again() {
    let mut daemon = Daemon::start();
    let key = daemon.client("admin").await.create("a key").await;
    let client = StorageClient::open(identity(&daemon, "block-storage"), patient()).unwrap();
    let context = DekContext::of(&key.name, VOLUME);
    let new = client.generate(&context, 32, None).await.unwrap();
    let mut again = Command::new(DAEMON);
    again.args(["dev", "--listen", &daemon.address, "--dir"]).arg(&daemon.dir);
    daemon.stop().await;
    let unwrap = client.unwrap(&context, &new.wrapped.bytes);
    let (unwrapped, ()) = tokio::join!(unwrap, async { daemon.start_by(again) });
    assert_eq!(unwrapped.unwrap().dek.expose(), new.dek.expose());
}

#[tokio::test]
async fn a_daemon_that_stays_away_is_unavailable_at_the_deadline() {
    let mut daemon = Daemon::start();
    let config = identity(&daemon, "block-storage");
    daemon.terminate();
    let policy = RetryPolicy { deadline: Duration::from_millis(300), ..RetryPolicy::default() };
    let client = StorageClient::open(config, policy).unwrap();
    let refusal = client.unwrap(&DekContext::of("k", VOLUME), b"wrapped").await.unwrap_err();
    assert!(refusal.why().is_passing(), "{refusal:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_and_no_call_fails_for_it() {
    let daemon = Daemon::start();
    let key = daemon.client("admin").await.create("a key").await;
    let tls = daemon.dir.join("tls");
    let replace = |extension: &str, name: &str| {
        let (file, new) = (tls.join("mine").with_extension(extension), tls.join("new"));
        fs::copy(tls.join(name).with_extension(extension), &new).unwrap();
        fs::rename(new, file).unwrap();
    };
    for extension in ["pem", "key"] {
        replace(extension, "admin");
    }
    let client = StorageClient::open(identity(&daemon, "mine"), patient()).unwrap();
    let context = DekContext::of(&key.name, VOLUME);
    let new = client.generate(&context, 32, None).await.unwrap();
    // Who calls is seen by what only a service may.
    let register = async || {
        client.unwrap(&context, &new.wrapped.bytes).await.unwrap();
        let registration = Registration {
            resource: VOLUME.into(),
            kind: ResourceKind::DataVolume.into(),
            ..Registration::default()
        };
        client.register(&key.name, registration).await
    };
    assert_eq!(register().await.unwrap_err().why(), KeyRefusal::NotPermitted);

    // One of two files: they do not go together, so it stays as it is.
    replace("pem", "block-storage");
    let began = std::time::Instant::now();
    daemon
        .until("more than a look at the files", async || {
            assert_eq!(register().await.unwrap_err().why(), KeyRefusal::NotPermitted);
            began.elapsed() > Duration::from_millis(1500)
        })
        .await;

    replace("key", "block-storage");
    daemon.until("the new certificate is used", async || register().await.is_ok()).await;
    let registered = client.registrations(&key.name, "").await.unwrap();
    assert!(registered[0].created_by.ends_with("service/block-storage"), "{registered:?}");
    client.unregister(&registered[0].name).await.unwrap();
    client.unregister(&registered[0].name).await.unwrap();
}

fn identity(daemon: &Daemon, name: &str) -> ClientConfig {
    let mut config = ClientConfig::load(&daemon.dir.join("client.toml")).unwrap();
    config.use_identity(name);
    config
}

fn patient() -> RetryPolicy {
    RetryPolicy { deadline: Duration::from_secs(60), ..RetryPolicy::default() }
}

const VOLUME: &str = "crn:v1:rootkeyd:public:is:local:a/dev::volume:1";

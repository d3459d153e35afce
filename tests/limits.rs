//! What one caller may ask for, and that others are served meanwhile: rates, fair
//! shares, bounds of the connection, and the record of what was refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{Client, Daemon, Refusal, refusal, unwrap_request};
use minicbor::Decoder;
use rootkeyd::api::pb;
use rootkeyd::api::pb::unwrap_dek_result::Outcome;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};
use tonic_types::StatusExt;

const DEK: &[u8] = b"a dek of some length";

fn limited(limits: &str) -> Daemon {
    Daemon::start_edited(|config| format!("{config}\n[limits]\n{limits}\n"))
}

/// A key and a DEK that it wrapped; waits as long as the rate makes it.
async fn wrapped(client: &mut Client) -> (String, Vec<u8>) {
    let key = client.create("volumes").await.name;
    loop {
        match client.wrap(&key, DEK, &[]).await {
            Ok(wrapped) => return (key, wrapped),
            Err(refused) => wait_for(&refused).await,
        }
    }
}

/// As a client does it: RetryInfo says how long.
async fn wait_for(refused: &Refusal) {
    assert_eq!(refused.reason, "RATE_LIMITED", "{refused:?}");
    tokio::time::sleep(refused.retry_after.unwrap()).await;
}

async fn batch(
    client: &mut Client,
    key: &str,
    wrapped: &[u8],
    count: usize,
) -> Result<usize, Refusal> {
    let requests = vec![unwrap_request(key, wrapped, &[]); count];
    let answered = client.crypto.batch_unwrap_deks(pb::BatchUnwrapDeksRequest { requests }).await;
    let results = answered.map_err(refusal)?.into_inner().results;
    let done = results.iter().filter(|it| matches!(it.outcome, Some(Outcome::Response(_))));
    Ok(done.count())
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back_and_nobody_else_is() {
    let daemon = limited("data_per_second = 5");
    let (mut admin, mut other) =
        (daemon.client("admin").await, daemon.client("block-storage").await);
    let (key, wrapped) = wrapped(&mut admin).await;
    let status = loop {
        let request = unwrap_request(&key, &wrapped, &[]);
        if let Err(status) = admin.crypto.unwrap_dek(request).await {
            break status;
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted);
    let violations = status.get_details_quota_failure().unwrap().violations;
    assert_eq!(violations[0].subject, "spiffe://rootkeyd.dev/admin");
    let refused = refusal(status);
    assert!(refused.retry_after.is_some_and(|wait| !wait.is_zero()), "{refused:?}");
    other.unwrap(&key, &wrapped, &[]).await.unwrap();
    // Its rate for everything else is another.
    admin.get(&key).await.unwrap();
    loop {
        match admin.unwrap(&key, &wrapped, &[]).await {
            Ok(answer) => break assert_eq!(answer.dek, DEK),
            Err(refused) => wait_for(&refused).await,
        }
    }
}

#[tokio::test]
async fn a_batch_costs_as_much_as_its_deks() {
    let daemon = limited("data_per_second = 30");
    let mut client = daemon.client("block-storage").await;
    let (key, wrapped) = wrapped(&mut daemon.client("admin").await).await;
    let refused = loop {
        match batch(&mut client, &key, &wrapped, 30).await {
            Ok(done) => assert_eq!(done, 30),
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.reason, "RATE_LIMITED");
    // One by one a call of 30 would have been the thirtieth, not the second.
    loop {
        match batch(&mut client, &key, &wrapped, 30).await {
            Ok(done) => break assert_eq!(done, 30),
            Err(refused) => wait_for(&refused).await,
        }
    }
}

#[tokio::test]
async fn every_refusal_is_counted_in_the_log_and_a_flood_does_not_fill_it() {
    let mut daemon = limited("data_per_second = 5");
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let mut refused = 0;
    for _ in 0..400 {
        match client.wrap(&key, DEK, &[]).await {
            Ok(_) => {}
            Err(refusal) => {
                assert_eq!(refusal.reason, "RATE_LIMITED");
                refused += 1;
            }
        }
    }
    // Refusals of authorization have a record each.
    let mut stranger = daemon.client("key-purge").await;
    for _ in 0..3 {
        assert_eq!(stranger.get(&key).await.unwrap_err().reason, "PERMISSION_DENIED");
    }
    daemon.stop().await;
    let records = refusals_in_log(&daemon);
    let of = |reason: &str| records.iter().filter(|it| it.1 == reason).collect::<Vec<_>>();
    let counted: u64 =
        of("RATE_LIMITED").iter().map(|it| it.2["count"].parse::<u64>().unwrap()).sum();
    assert_eq!(counted, refused);
    assert!((of("RATE_LIMITED").len() as u64) < refused, "as many records as refusals");
    assert_eq!(of("PERMISSION_DENIED").len(), 3);
}

/// Action, reason and details of the refusals in the log of an ended daemon
/// (docs/audit-format.md).
fn refusals_in_log(daemon: &Daemon) -> Vec<(String, String, BTreeMap<String, String>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(daemon.dir.join("state/audit")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|end| end != "log") {
            continue;
        }
        let bytes = fs::read(path).unwrap();
        let mut rest = &bytes[48..];
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let (payload, after) = after.split_at(u32::from_be_bytes(*length) as usize);
            rest = &after[36..];
            let mut payload = Decoder::new(payload);
            payload.array().unwrap();
            let mut skip = |count| (0..count).for_each(|_| payload.skip().unwrap());
            skip(3);
            let action = payload.str().unwrap().to_owned();
            (0..6).for_each(|_| payload.skip().unwrap());
            let Ok(reason) = payload.str().map(str::to_owned) else { continue };
            payload.skip().unwrap();
            let details: Vec<Vec<String>> = payload.decode().unwrap();
            let details = details.into_iter().map(|pair| (pair[0].clone(), pair[1].clone()));
            found.push((action, reason, details.collect()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disable_gets_through_a_flood_and_ends_it() {
    let daemon = limited("data_per_second = 100\ncalls = 8\ncontrol_calls = 4");
    let mut admin = daemon.client("admin").await;
    let (key, wrapped) = wrapped(&mut admin).await;
    let (disabled, ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (limited, suspended) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut floods = Vec::new();
    for _ in 0..16 {
        let mut client = daemon.client("admin").await;
        let (key, wrapped) = (key.clone(), wrapped.clone());
        let (disabled, ended) = (Arc::clone(&disabled), Arc::clone(&ended));
        let (limited, suspended) = (Arc::clone(&limited), Arc::clone(&suspended));
        floods.push(tokio::spawn(async move {
            while !ended.load(Ordering::SeqCst) {
                let late = disabled.load(Ordering::SeqCst);
                match client.unwrap(&key, &wrapped, &[]).await {
                    Ok(_) => assert!(!late, "plaintext after DisableKey was answered"),
                    Err(refused) => match refused.reason.as_str() {
                        "RATE_LIMITED" | "OVERLOADED" => {
                            limited.fetch_add(1, Ordering::SeqCst);
                        }
                        "KEY_SUSPENDED" => {
                            suspended.fetch_add(1, Ordering::SeqCst);
                        }
                        other => panic!("{other}"),
                    },
                }
            }
        }));
    }
    daemon.until("the flood is refused", async || limited.load(Ordering::SeqCst) > 100).await;
    admin.disable(&key).await.unwrap();
    disabled.store(true, Ordering::SeqCst);
    daemon.until("the key is refused", async || suspended.load(Ordering::SeqCst) > 5).await;
    ended.store(true, Ordering::SeqCst);
    for flood in floods {
        flood.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_noisy_principal_is_shed_and_a_quiet_one_is_always_served() {
    let daemon = limited("calls = 4\nwaiting = 8\ndata_per_second = 0");
    let (key, wrapped) = wrapped(&mut daemon.client("admin").await).await;
    let ended = Arc::new(AtomicBool::new(false));
    let shed = Arc::new(AtomicU64::new(0));
    let mut noise = Vec::new();
    for _ in 0..32 {
        let mut client = daemon.client("admin").await;
        let (key, wrapped) = (key.clone(), wrapped.clone());
        let (ended, shed) = (Arc::clone(&ended), Arc::clone(&shed));
        noise.push(tokio::spawn(async move {
            while !ended.load(Ordering::SeqCst) {
                match batch(&mut client, &key, &wrapped, 64).await {
                    Ok(done) => assert_eq!(done, 64),
                    Err(refused) => {
                        assert_eq!(
                            (refused.code, refused.reason.as_str()),
                            (Code::Unavailable, "OVERLOADED")
                        );
                        assert!(refused.retry_after.is_some());
                        shed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        }));
    }
    daemon.until("the noise is shed", async || shed.load(Ordering::SeqCst) > 100).await;
    let mut quiet = daemon.client("block-storage").await;
    for _ in 0..200 {
        quiet.unwrap(&key, &wrapped, &[]).await.unwrap();
    }
    ended.store(true, Ordering::SeqCst);
    for noise in noise {
        noise.await.unwrap();
    }
}

#[tokio::test]
async fn what_is_too_long_is_refused_and_the_connection_goes_on() {
    let daemon = limited("header_bytes = 4096\nmessage_bytes = 2048");
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await;
    let mut request = Request::new(pb::GetKeyRequest { name: key.name.clone() });
    let long = MetadataValue::try_from("x".repeat(8000)).unwrap();
    request.metadata_mut().insert("x-long", long);
    client.keys.get_key(request).await.unwrap_err();
    let long = pb::Key { description: "x".repeat(4000), ..Default::default() };
    assert_eq!(client.create_key(long).await.unwrap_err().reason, "FIELD_INVALID");
    client.get(&key.name).await.unwrap();
}

#[tokio::test]
async fn who_sends_no_message_is_refused_at_its_deadline_and_its_room_is_free() {
    let mut daemon = limited("request_seconds = 1\ncalls = 1\nwaiting = 0");
    let mut client = daemon.client("admin").await;
    let (key, dek) = wrapped(&mut client).await;
    let mut silent = tonic::client::Grpc::new(client.channel.clone());
    silent.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<pb::UnwrapDekRequest, pb::UnwrapDekResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/rootkeyd.v1.CryptoService/UnwrapDek");
    let nothing = Request::new(futures_util::stream::pending());
    let refused = silent.client_streaming(nothing, path, codec).await.map(drop).unwrap_err();
    assert_eq!(refusal(refused).reason, "DEADLINE_EXCEEDED");
    assert_eq!(client.unwrap(&key, &dek, &[]).await.unwrap().dek, DEK);
    daemon.stop().await;
    let refused = refusals_in_log(&daemon);
    assert!(refused.iter().any(|(_, reason, _)| reason == "DEADLINE_EXCEEDED"), "{refused:?}");
}

#[tokio::test]
async fn who_connects_too_often_or_greets_too_slowly_is_cut_off() {
    let daemon = Daemon::start_edited(|config| {
        let config = config.replace("[tls]", "handshake_seconds = 1\n\n[tls]");
        format!("{config}\n[limits]\nprincipal_connections = 2\n")
    });
    let (mut one, _two) = (daemon.client("admin").await, daemon.client("admin").await);
    let told = async |why: &str| {
        daemon.until(why, async || daemon.logged().contains(why)).await;
    };
    if let Ok(channel) = daemon.endpoint(Some("admin")).connect().await {
        let request = pb::GetKeyRequest { name: "instances/default/keys/none".into() };
        let refused = Client::new(channel).keys.get_key(request).await.unwrap_err();
        assert!(refused.get_details_error_info().is_none(), "{refused:?}");
    }
    told("its principal has too many connections").await;
    let mut silent = TcpStream::connect(&daemon.address).await.unwrap();
    let mut answer = Vec::new();
    silent.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty());
    told("it took too long").await;
    one.create("volumes").await;
    daemon.client("block-storage").await;
}

#[tokio::test]
async fn streams_beyond_the_limit_wait_for_one_that_ends() {
    let daemon = Daemon::start_edited(|config| config.replace("[tls]", "streams = 2\n\n[tls]"));
    let mut client = daemon.client("admin").await;
    let (key, wrapped) = wrapped(&mut client).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let (send, requests) = tokio::sync::mpsc::channel(1);
        let request = Some(unwrap_request(&key, &wrapped, &[]));
        send.send(pb::StreamUnwrapDeksRequest { id: 1, request }).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut answers = client.crypto.stream_unwrap_deks(requests).await.unwrap().into_inner();
        answers.message().await.unwrap().unwrap();
        open.push((send, answers));
    }
    let mut third = client.clone();
    let name = key.clone();
    let third = tokio::spawn(async move { third.get(&name).await });
    // A call on another connection is answered meanwhile; this one is not.
    daemon.client("admin").await.get(&key).await.unwrap();
    assert!(!third.is_finished());
    let (send, mut answers) = open.pop().unwrap();
    drop(send);
    assert!(answers.message().await.unwrap().is_none());
    third.await.unwrap().unwrap();
    tokio::time::timeout(Duration::from_secs(60), client.get(&key)).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_listener_for_control_disables_keys_and_knows_no_deks() {
    let mut daemon = Daemon::start_edited(|config| {
        config.replace("[tls]", "control = \"127.0.0.1:0\"\nconnections = 1\n\n[tls]")
    });
    // The one connection that the other listener takes.
    let mut client = daemon.client("admin").await;
    let (key, wrapped) = wrapped(&mut client).await;
    let logged = daemon.logged();
    let line = logged.lines().rfind(|line| line.contains("listening for control")).unwrap();
    daemon.address = line.split("address=").nth(1).unwrap().trim().into();
    let mut control = daemon.client("admin").await;
    let refused = control.unwrap(&key, &wrapped, &[]).await.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::Unimplemented, "UNIMPLEMENTED"));
    client.unwrap(&key, &wrapped, &[]).await.unwrap();
    control.disable(&key).await.unwrap();
    assert_eq!(client.unwrap(&key, &wrapped, &[]).await.unwrap_err().reason, "KEY_SUSPENDED");
    drop((client, control));
    daemon.stop().await;
}

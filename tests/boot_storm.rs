//! A region comes back, and its storage service unwraps the DEKs of all volumes at once:
//! many times what there is room for. Each call that has time left is answered.
//! `make bench` measures a larger one.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Client, Daemon, Refusal, outcome, refusal, unwrap_request};
use rootkeyd::api::pb;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tonic::Request;

const VOLUMES: usize = 500;
const KEYS: usize = 20;
const TENANTS: usize = 3;
const CLIENTS: usize = 50;

/// A volume: its key, its wrapped DEK, and the DEK.
type Volume = (String, Vec<u8>, Vec<u8>);

/// Volumes of keys of instances that `block-storage` may use.
async fn volumes(admin: &mut Client) -> Vec<Volume> {
    let mut volumes = Vec::new();
    for number in 0..TENANTS {
        let request = pb::CreateInstanceRequest {
            instance_id: format!("tenant-{number}"),
            ..Default::default()
        };
        outcome(admin.instances.create_instance(request).await).unwrap();
        admin.authorize("block-storage", &format!("instances/tenant-{number}")).await.unwrap();
    }
    for number in 0..KEYS {
        let key = pb::Key { display_name: format!("volumes {number}"), ..Default::default() };
        let request = pb::CreateKeyRequest {
            parent: format!("instances/tenant-{}", number % TENANTS),
            key: Some(key),
            request_id: String::new(),
        };
        let key = outcome(admin.keys.create_key(request).await).unwrap().name;
        for volume in 0..VOLUMES / KEYS {
            let dek = format!("the dek of volume {volume} of key {number}").into_bytes();
            let wrapped = admin.wrap(&key, &dek, &[]).await.unwrap();
            volumes.push((key.clone(), wrapped, dek));
        }
    }
    volumes
}

/// Unwraps them all at once; what came of each.
async fn storm(daemon: &Daemon, volumes: &[Volume], time: Duration) -> Vec<Result<(), Refusal>> {
    let ready = Arc::new(Barrier::new(volumes.len()));
    let mut calls = JoinSet::new();
    for of_client in volumes.chunks(volumes.len() / CLIENTS) {
        let client = daemon.client("block-storage").await;
        for volume in of_client {
            let (key, wrapped, dek) = volume.clone();
            let (mut client, ready) = (client.clone(), Arc::clone(&ready));
            calls.spawn(async move {
                let mut request = Request::new(unwrap_request(&key, &wrapped, &[]));
                request.set_timeout(time);
                ready.wait().await;
                let answer = client.crypto.unwrap_dek(request).await.map_err(refusal)?;
                assert_eq!(answer.into_inner().dek, dek);
                Ok(())
            });
        }
    }
    calls.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_boot_storm_nothing_is_refused_that_has_time_left() {
    let limits = "[limits]\ncalls = 16\ndata_per_second = 0\n";
    let daemon = Daemon::start_edited(|config| format!("{config}\n{limits}"));
    let volumes = volumes(&mut daemon.client("admin").await).await;
    let outcomes = storm(&daemon, &volumes, Duration::from_secs(60)).await;
    assert_eq!(outcomes.len(), VOLUMES);
    for outcome in outcomes {
        outcome.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_all_places_to_wait_are_taken_more_is_refused_at_once_and_may_come_back() {
    let limits = "[limits]\ncalls = 1\nwaiting = 2\ndata_per_second = 0\n";
    let daemon = Daemon::start_edited(|config| format!("{config}\n{limits}"));
    let mut admin = daemon.client("admin").await;
    let volumes = volumes(&mut admin).await;
    let outcomes = storm(&daemon, &volumes, Duration::from_secs(60)).await;
    let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty() && refused.len() < VOLUMES, "{}", refused.len());
    for refused in refused {
        assert_eq!(refused.reason, "OVERLOADED");
        assert!(refused.retry_after.is_some());
    }
    let (key, wrapped, dek) = &volumes[0];
    assert_eq!(admin.unwrap(key, wrapped, &[]).await.unwrap().dek, dek);
}

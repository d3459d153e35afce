//! A boot storm: a region comes back, and the storage service unwraps the DEKs of all its
//! volumes at once. Time to the last, whether the tenants are served alike, and what was
//! refused although it had time left, which should be nothing.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rootkeyd::api::pb;
use rootkeyd::api::pb::access_service_client::AccessServiceClient;
use rootkeyd::api::pb::crypto_service_client::CryptoServiceClient;
use rootkeyd::api::pb::instance_service_client::InstanceServiceClient;
use rootkeyd::api::pb::key_service_client::KeyServiceClient;
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_types::StatusExt;

use crate::daemon::Daemon;
use crate::figures::Latencies;

/// What came of it.
#[derive(Serialize)]
pub struct Storm {
    volumes: usize,
    keys: usize,
    clients: usize,
    /// Calls of one client under way.
    at_once: usize,
    seconds_to_last: f64,
    tenants: Vec<Tenant>,
    /// Of the tenants' times to the last: the longest by the shortest.
    longest_by_shortest: f64,
    /// Jain's index of the tenants' rates: 1 if all are alike, 1/tenants if one has all.
    jain: f64,
    /// Reasons, at the first try.
    refused: BTreeMap<String, usize>,
}

#[derive(Serialize)]
struct Tenant {
    unwrapped: usize,
    seconds_to_last: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Storms with a daemon of their own: with one call under way for each client, and
/// with all that it wants at once.
pub fn both(work: &Path) -> Vec<Storm> {
    let runtime = &Runtime::new().unwrap();
    let directory = tempfile::tempdir_in(work.canonicalize().unwrap()).unwrap();
    let daemon = Daemon::start(runtime, directory.path());
    let volumes = runtime.block_on(prepare(&daemon));
    let volumes: Arc<[_]> = volumes.into();
    let clients = daemon.connect(runtime, "block-storage", CLIENTS);
    let mine = VOLUMES / CLIENTS;
    let storms = [1, mine].map(|at_once| runtime.block_on(storm(&clients, &volumes, at_once)));
    storms.into()
}

/// The requests that unwrap the volumes' DEKs, tenant by tenant.
async fn prepare(daemon: &Daemon) -> Vec<pb::UnwrapDekRequest> {
    let channels = &daemon.target.channels;
    let mut requests = Vec::new();
    for tenant in 0..TENANTS {
        let instance = format!("storm-{tenant}");
        let parent = format!("instances/{instance}");
        make_instance(channels[0].clone(), instance, &parent).await;
        for number in 0..KEYS / TENANTS {
            let key = pb::Key { display_name: format!("volumes {number}"), ..Default::default() };
            let (parent, request_id) = (parent.clone(), String::new());
            let request = pb::CreateKeyRequest { parent, key: Some(key), request_id };
            let mut keys = KeyServiceClient::new(channels[0].clone());
            let key = keys.create_key(request).await.unwrap().into_inner().name;
            let mut wraps = JoinSet::new();
            for volume in 0..VOLUMES / KEYS {
                let mut client =
                    CryptoServiceClient::new(channels[volume % channels.len()].clone());
                let aad = vec![format!("crn:v1:storm:volume:{volume}").into_bytes()];
                let (key, dek) = (key.clone(), vec![1; 32]);
                let wrap = pb::WrapDekRequest { key, dek, aad, ..Default::default() };
                wraps.spawn(async move {
                    let pb::WrapDekRequest { key, aad, resource, .. } = wrap.clone();
                    let wrapped = client.wrap_dek(wrap).await.unwrap().into_inner();
                    let wrapped_dek = wrapped.wrapped_dek.to_vec();
                    pb::UnwrapDekRequest { key, wrapped_dek, aad, resource }
                });
            }
            requests.extend(wraps.join_all().await);
        }
    }
    requests
}

async fn make_instance(channel: Channel, instance_id: String, parent: &str) {
    let request = pb::CreateInstanceRequest { instance_id, ..Default::default() };
    let mut instances = InstanceServiceClient::new(channel.clone());
    instances.create_instance(request).await.unwrap();
    let authorization = pb::ServiceAuthorization {
        service: "block-storage".into(),
        scope: parent.into(),
        ..Default::default()
    };
    let request = pb::CreateServiceAuthorizationRequest {
        parent: parent.into(),
        service_authorization: Some(authorization),
    };
    AccessServiceClient::new(channel).create_service_authorization(request).await.unwrap();
}

/// What became of one volume: when, since the storm broke out, or the reason.
type Outcome = Result<Duration, String>;

async fn storm(
    clients: &[Channel],
    volumes: &Arc<[pb::UnwrapDekRequest]>,
    at_once: usize,
) -> Storm {
    let mine = volumes.len() / clients.len();
    let ready = Arc::new(Barrier::new(clients.len() * at_once));
    let mut callers = JoinSet::new();
    for (number, channel) in clients.iter().enumerate() {
        // Each client has volumes of one tenant.
        for part in 0..at_once {
            let volumes = Arc::clone(volumes);
            let range =
                number * mine + part * mine / at_once..number * mine + (part + 1) * mine / at_once;
            let mut client = CryptoServiceClient::new(channel.clone());
            let ready = Arc::clone(&ready);
            callers.spawn(async move {
                ready.wait().await;
                let began = Instant::now();
                let mut outcomes = Vec::new();
                for volume in range {
                    let mut request = Request::new(volumes[volume].clone());
                    request.set_timeout(TIME);
                    let answer = client.unwrap_dek(request).await;
                    let outcome =
                        answer.map(|_| began.elapsed()).map_err(|refused| reason(&refused));
                    outcomes.push((volume * TENANTS / volumes.len(), outcome));
                }
                outcomes
            });
        }
    }
    let outcomes: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
    judge(&outcomes, (volumes.len(), clients.len(), at_once))
}

fn judge(
    outcomes: &[(usize, Outcome)],
    (volumes, clients, at_once): (usize, usize, usize),
) -> Storm {
    let tenants: Vec<_> = (0..TENANTS)
        .map(|tenant| {
            let mine = outcomes.iter().filter(|(of, _)| *of == tenant);
            let times: Vec<_> = mine.filter_map(|(_, outcome)| outcome.as_ref().ok()).collect();
            let mut latencies = Latencies::default();
            times.iter().for_each(|time| latencies.record(**time));
            Tenant {
                unwrapped: times.len(),
                seconds_to_last: times.iter().max().map_or(0.0, |time| time.as_secs_f64()),
                p50_ms: latencies.micros(0.5) / 1e3,
                p99_ms: latencies.micros(0.99) / 1e3,
            }
        })
        .collect();
    let mut refused = BTreeMap::new();
    for reason in outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().err()) {
        *refused.entry(reason.clone()).or_default() += 1;
    }
    let lasts = || tenants.iter().map(|tenant| tenant.seconds_to_last);
    let rates = || tenants.iter().map(|tenant| tenant.unwrapped as f64 / tenant.seconds_to_last);
    let longest = lasts().fold(0.0, f64::max);
    Storm {
        volumes,
        keys: KEYS,
        clients,
        at_once,
        seconds_to_last: longest,
        longest_by_shortest: longest / lasts().fold(f64::INFINITY, f64::min),
        jain: rates().sum::<f64>().powi(2)
            / (TENANTS as f64 * rates().map(|rate| rate * rate).sum::<f64>()),
        tenants,
        refused,
    }
}

fn reason(refused: &Status) -> String {
    let info = refused.get_details_error_info();
    info.map_or_else(|| format!("{:?}", refused.code()), |info| info.reason)
}

impl Storm {
    /// A sentence for people.
    pub fn told(&self) -> String {
        let refused: usize = self.refused.values().sum();
        let slowest = self.tenants.iter().map(|tenant| tenant.p99_ms).fold(0.0, f64::max);
        format!(
            "boot storm of {} volumes, {} keys, {} tenants by {} clients with {} calls at once each: \
             {:.2} s to the last, p99 of the slowest tenant {slowest:.0} ms; tenants' last, longest by \
             shortest {:.2}, Jain {:.3}; refused {refused} {:?}",
            self.volumes,
            self.keys,
            self.tenants.len(),
            self.clients,
            self.at_once,
            self.seconds_to_last,
            self.longest_by_shortest,
            self.jain,
            self.refused,
        )
    }
}

const VOLUMES: usize = 5_000;
const KEYS: usize = 50;
const TENANTS: usize = 5;
const CLIENTS: usize = 200;
/// What each call has.
const TIME: Duration = Duration::from_secs(60);

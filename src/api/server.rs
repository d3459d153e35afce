//! The listener: accepts, does the TLS handshake aside, and serves HTTP/2 until
//! it is told to stop. With health and reflection.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_health::server::HealthReporter;

use super::connection::{ByPrincipal, Connection, Peer, Share, Socket};
use super::cores::{Core, Cores, Seat};
use super::dispatch::Dispatch;
use super::grpc::Edge;
use super::guard::Guard;
use super::handshakes::Handshakes;
use super::local::{self, Local};
use super::pb::access_service_server::AccessServiceServer;
use super::pb::admin_service_server::AdminServiceServer;
use super::pb::audit_service_server::AuditServiceServer;
use super::pb::crypto_service_server::CryptoServiceServer;
use super::pb::event_service_server::EventServiceServer;
use super::pb::import_service_server::ImportServiceServer;
use super::pb::instance_service_server::InstanceServiceServer;
use super::pb::key_ring_service_server::KeyRingServiceServer;
use super::pb::key_service_server::KeyServiceServer;
use super::pb::policy_service_server::PolicyServiceServer;
use super::pb::registration_service_server::RegistrationServiceServer;
use super::pb::resource_service_server::ResourceServiceServer;
use super::refusals::Refusals;
use super::tls::reason_of;
use super::trust::Trust;
use super::{Identity, Limits, TlsError, pb};
use crate::hsm;
use crate::service::Service;

/// A listener that serves.
pub struct Serving {
    /// What `serve` is told to stop by; it stops as this is dropped, too.
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// Where it is listened on already.
pub struct Listeners {
    /// gRPC over mutual TLS.
    pub tls: TcpListener,
    /// The same without the service of DEKs, if there is one.
    pub control: Option<TcpListener>,
    /// The Unix socket, if there is one, and who may be there.
    pub local: Option<(UnixListener, Local)>,
}

/// Begins to serve on `listeners`, in the runtimes of `cores`.
///
/// # Errors
/// [`TlsError`], if the TLS files cannot be used.
pub fn serve(
    service: Arc<Service>,
    (listeners, cores): (Listeners, &Cores),
    identity: &Identity,
    hsm: watch::Receiver<hsm::Health>,
    limits: Limits,
) -> Result<Serving, TlsError> {
    let trust = Trust::read(identity, &service)?;
    let (stop, stopped) = watch::channel(false);
    let (health, health_service) = tonic_health::server::health_reporter();
    let (hall, desks) = Hall::new(limits, cores, stopped.clone());
    if let Some((listener, local)) = listeners.local {
        tokio::spawn(local::accept(listener, local, hall.clone()));
    }
    tokio::spawn(accept(listeners.tls, Arc::clone(&trust), hall));
    tokio::spawn(Arc::clone(&trust).follow(stopped.clone()));
    tokio::spawn(tell_health(health, hsm, service.is_recovering()));

    let guard = Arc::new(Guard::new(&limits));
    tokio::spawn(forget_old(Arc::downgrade(&guard)));
    let refusals = Refusals(Arc::clone(&service), Arc::clone(&guard), Arc::clone(&trust));
    let edge = Edge::new((service, guard), stopped.clone());
    let served = Served { edge, refusals, limits, stopped: stopped.clone() };
    let mut tasks = JoinSet::new();
    if let Some(listener) = listeners.control {
        // With places of its own: those of the other may all be taken.
        let (hall, desks) = Hall::new(limits, cores, stopped);
        tokio::spawn(accept(listener, trust, hall));
        for (core, incoming) in desks {
            let served = served.clone().run(Services::Control, health_service.clone(), incoming);
            tasks.spawn_on(served, &core.runtime);
        }
    }
    for (core, incoming) in desks {
        let served = served.clone().run(Services::All, health_service.clone(), incoming);
        tasks.spawn_on(served, &core.runtime);
    }
    Ok(Serving { stop, tasks })
}

/// Which services a listener has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Services {
    All,
    /// All but that of DEKs.
    Control,
}

/// What the listeners serve.
#[derive(Clone)]
struct Served {
    edge: Edge,
    refusals: Refusals,
    limits: Limits,
    stopped: watch::Receiver<bool>,
}

impl Served {
    /// Serves what comes in until told to stop, and those calls that were begun.
    async fn run(
        self,
        services: Services,
        health: HealthServer<impl Health>,
        incoming: mpsc::Receiver<Result<Connection, io::Error>>,
    ) {
        let Self { edge, refusals, limits, mut stopped } = self;
        let most = limits.message_bytes;
        let crypto = CryptoServiceServer::new(edge.clone())
            .max_decoding_message_size(limits.dek_message_bytes);
        let crypto = (services == Services::All).then_some(crypto);
        let rest = Routes::default()
            .add_service(KeyServiceServer::new(edge.clone()).max_decoding_message_size(most))
            .add_service(KeyRingServiceServer::new(edge.clone()).max_decoding_message_size(most))
            .add_service(EventServiceServer::new(edge.clone()).max_decoding_message_size(most))
            .add_service(ImportServiceServer::new(edge.clone()).max_decoding_message_size(most))
            .add_service(PolicyServiceServer::new(edge.clone()).max_decoding_message_size(most))
            .add_service(
                RegistrationServiceServer::new(edge.clone()).max_decoding_message_size(most),
            )
            .add_service(ResourceServiceServer::new(edge.clone()).max_decoding_message_size(most))
            .add_service(AccessServiceServer::new(edge.clone()).max_decoding_message_size(most))
            .add_service(InstanceServiceServer::new(edge.clone()).max_decoding_message_size(most))
            .add_service(AuditServiceServer::new(edge.clone()).max_decoding_message_size(most))
            .add_service(AdminServiceServer::new(edge).max_decoding_message_size(most))
            .add_service(health);
        let rest = reflection().build_v1().into_iter().fold(rest, Routes::add_service);
        let rest = reflection().build_v1alpha().into_iter().fold(rest, Routes::add_service);
        let dispatch = Dispatch { crypto, rest: rest.prepare() };
        // Err: the one who could stop it is gone, which stops it.
        let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
        let incoming = ReceiverStream::new(incoming);
        let server = Server::builder()
            .layer(refusals)
            .max_concurrent_streams(limits.streams)
            .max_connection_age(limits.connection_age)
            .http2_max_header_list_size(limits.header_bytes)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT));
        let served = server.serve_with_incoming_shutdown(dispatch, incoming, stop);
        if let Err(error) = served.await {
            tracing::error!(%error, "the listener failed");
        }
    }
}

impl Serving {
    /// Takes no new calls, and waits until those that were begun are answered;
    /// at most `patience`.
    pub async fn drain(self, patience: Duration) {
        self.stop.send_replace(true);
        if tokio::time::timeout(patience, self.tasks.join_all()).await.is_err() {
            tracing::warn!(?patience, "some calls were not done in time; their connections end");
        }
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// What those who accept share: their connections are counted together.
#[derive(Clone)]
pub(super) struct Hall {
    pub(super) places: Arc<Semaphore>,
    pub(super) by_principal: ByPrincipal,
    pub(super) limits: Limits,
    /// Where connections are served.
    pub(super) desks: Vec<Desk>,
    pub(super) stopped: watch::Receiver<bool>,
}

/// A core, and by which it gets its connections.
#[derive(Clone)]
pub(super) struct Desk {
    pub(super) core: Core,
    pub(super) connections: mpsc::Sender<Result<Connection, io::Error>>,
}

type Incoming = mpsc::Receiver<Result<Connection, io::Error>>;

impl Hall {
    fn new(
        limits: Limits,
        cores: &Cores,
        stopped: watch::Receiver<bool>,
    ) -> (Self, Vec<(Core, Incoming)>) {
        let places = Arc::new(Semaphore::new(limits.connections));
        let by_principal = ByPrincipal::default();
        let (mut desks, mut incoming) = (Vec::new(), Vec::new());
        for core in cores.all() {
            let (connections, arriving) = mpsc::channel(limits.connections.min(128));
            desks.push(Desk { core: core.clone(), connections });
            incoming.push((core.clone(), arriving));
        }
        (Self { places, by_principal, limits, desks, stopped }, incoming)
    }

    /// The core with the fewest connections, and a seat at it.
    pub(super) fn desk(&self) -> (Desk, Seat) {
        let desk = self.desks.iter().min_by_key(|desk| desk.core.connections());
        let desk = desk.expect("there is at least one core").clone();
        let seat = desk.core.seat();
        (desk, seat)
    }
}

/// Accepts until told to stop; a slow handshake holds up nobody else.
async fn accept(listener: TcpListener, trust: Arc<Trust>, mut hall: Hall) {
    let refusals = Arc::new(Handshakes::default());
    let limits = hall.limits;
    loop {
        let Ok(place) = Arc::clone(&hall.places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = hall.stopped.wait_for(|stop| *stop) => return,
        };
        let accepted = accepted.and_then(|(stream, address)| Ok((stream.into_std()?, address)));
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // No file descriptors left, most likely: some will be closed.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (Desk { core, connections }, seat) = hall.desk();
        let (trust, refusals) = (Arc::clone(&trust), Arc::clone(&refusals));
        let by_principal = Arc::clone(&hall.by_principal);
        core.runtime.spawn(async move {
            let greeted = greet(&trust, stream, address, limits);
            match tokio::time::timeout(limits.handshake, greeted).await {
                Ok(Ok((stream, peer))) => {
                    let Some(share) = Share::of(&by_principal, &peer) else {
                        refusals.tell(address, "its principal has too many connections");
                        return;
                    };
                    let socket = Socket::Tls(Box::new(stream));
                    let connection = Connection {
                        socket,
                        peer: peer.into(),
                        _place: place,
                        _share: share,
                        _seat: seat,
                    };
                    // Err: the daemon stops.
                    drop(connections.send(Ok(connection)).await);
                }
                Ok(Err(error)) => refusals.tell(address, &reason_of(&error)),
                Err(_elapsed) => refusals.tell(address, "it took too long"),
            }
        });
    }
}

async fn greet(
    trust: &Arc<Trust>,
    stream: std::net::TcpStream,
    address: SocketAddr,
    limits: Limits,
) -> io::Result<(TlsStream<TcpStream>, Peer)> {
    stream.set_nodelay(true)?;
    // Here: what tells of its bytes is the runtime that it is made in.
    let stream = TcpStream::from_std(stream)?;
    let stream = TlsAcceptor::from(trust.config()).accept(stream).await?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    // The handshake saw to it that there is one.
    let (holder, presented) = trust.presented(chain).ok_or(io::ErrorKind::InvalidData)?;
    let peer = Peer {
        principal: Some(holder.principal),
        address: address.to_string().into(),
        ip: Some(address.ip()),
        standing: Some(Arc::new(presented)),
        ends: Instant::now() + limits.connection_age,
        limits,
    };
    Ok((stream, peer))
}

/// NOT_SERVING while the HSM cannot be used, and in recovery mode, which a restart ends.
async fn tell_health(
    reporter: HealthReporter,
    mut hsm: watch::Receiver<hsm::Health>,
    recovering: bool,
) {
    loop {
        let up = matches!(&*hsm.borrow_and_update(), hsm::Health::Ready { .. });
        let ready = up && !recovering;
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", "rootkeyd.v1.CryptoService", "rootkeyd.v1.KeyService"] {
            reporter.set_service_status(service, status).await;
        }
        if hsm.changed().await.is_err() {
            return;
        }
    }
}

/// So that the memory for rates is that of the principals that ask.
async fn forget_old(guard: Weak<Guard>) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        let Some(guard) = guard.upgrade() else { return };
        guard.forget_old();
    }
}

const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
const FORGET_EVERY: Duration = Duration::from_secs(60);
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

//! What gRPC costs: a server that answers as the daemon does, with bytes of the same
//! lengths over the same TLS, and does nothing else. In a process of its own.
//!
//! Either on one runtime of as many threads as there are cores, which is tonic's way, or
//! with a runtime of one thread for each core, among which the connections are dealt out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use futures_util::{Stream, StreamExt};
use rootkeyd::api::pb;
use rootkeyd::api::pb::crypto_service_server::{CryptoService, CryptoServiceServer};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, version};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

#[derive(Args, Clone)]
pub struct Echo {
    /// With the certificates that the daemon has.
    tls: PathBuf,
    /// Length of a DEK, in bytes.
    dek: usize,
    /// Length of a wrapped DEK, in bytes.
    wrapped: usize,
    /// Name of the key version in each answer.
    version: String,
    /// A runtime for each core.
    #[arg(long)]
    per_core: bool,
}

impl Echo {
    pub fn serve(self) {
        // Ends with the one who started it.
        std::thread::spawn(|| {
            let ended = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(i32::from(ended.is_err()));
        });
        let config = Arc::new(self.config());
        if self.per_core {
            return self.serve_per_core(&config);
        }
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let listener = listen().await;
            let (send, connections) = mpsc::unbounded_channel();
            tokio::spawn(self.serve_all(connections, config));
            loop {
                // Err: it has ended.
                let _ = send.send(listener.accept().await.unwrap().0.into_std().unwrap());
            }
        });
    }

    fn serve_per_core(self, config: &Arc<ServerConfig>) {
        let cores = std::thread::available_parallelism().unwrap().get();
        let one = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let deal: Vec<_> = (0..cores)
            .map(|_| {
                let (send, connections) = mpsc::unbounded_channel();
                let (echo, config) = (self.clone(), Arc::clone(config));
                std::thread::spawn(move || one().block_on(echo.serve_all(connections, config)));
                send
            })
            .collect();
        one().block_on(async {
            let listener = listen().await;
            for core in (0..cores).cycle() {
                let _ = deal[core].send(listener.accept().await.unwrap().0.into_std().unwrap());
            }
        });
    }

    async fn serve_all(
        self,
        connections: mpsc::UnboundedReceiver<std::net::TcpStream>,
        config: Arc<ServerConfig>,
    ) {
        let acceptor = TlsAcceptor::from(config);
        let incoming = UnboundedReceiverStream::new(connections).then(move |stream| {
            stream.set_nodelay(true).unwrap();
            // Here, so that it is this runtime that watches it.
            acceptor.accept(TcpStream::from_std(stream).unwrap())
        });
        let service = CryptoServiceServer::new(self).max_decoding_message_size(16 << 20);
        Server::builder()
            .max_concurrent_streams(1024)
            .add_service(service)
            .serve_with_incoming(incoming)
            .await
            .unwrap();
    }

    /// As `api/tls.rs` has it.
    fn config(&self) -> ServerConfig {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.tls.join("ca.pem")).unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let certificate = CertificateDer::from_pem_file(self.tls.join("server.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.tls.join("server.key")).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![certificate], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config
    }

    fn unwrapped(&self) -> pb::UnwrapDekResponse {
        pb::UnwrapDekResponse {
            dek: Bytes::from(vec![7; self.dek]),
            key_version: self.version.clone(),
            ..Default::default()
        }
    }

    fn result(&self) -> pb::UnwrapDekResult {
        let outcome = pb::unwrap_dek_result::Outcome::Response(self.unwrapped());
        pb::UnwrapDekResult { outcome: Some(outcome) }
    }
}

async fn listen() -> TcpListener {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    listener
}

#[tonic::async_trait]
impl CryptoService for Echo {
    async fn wrap_dek(
        &self,
        _request: Request<pb::WrapDekRequest>,
    ) -> Result<Response<pb::WrapDekResponse>, Status> {
        let wrapped_dek = Bytes::from(vec![7; self.wrapped]);
        let key_version = self.version.clone();
        Ok(Response::new(pb::WrapDekResponse { wrapped_dek, key_version }))
    }

    async fn unwrap_dek(
        &self,
        _request: Request<pb::UnwrapDekRequest>,
    ) -> Result<Response<pb::UnwrapDekResponse>, Status> {
        Ok(Response::new(self.unwrapped()))
    }

    async fn batch_unwrap_deks(
        &self,
        request: Request<pb::BatchUnwrapDeksRequest>,
    ) -> Result<Response<pb::BatchUnwrapDeksResponse>, Status> {
        let results = request.get_ref().requests.iter().map(|_| self.result()).collect();
        Ok(Response::new(pb::BatchUnwrapDeksResponse { results }))
    }

    type StreamUnwrapDeksStream =
        Pin<Box<dyn Stream<Item = Result<pb::StreamUnwrapDeksResponse, Status>> + Send>>;

    async fn stream_unwrap_deks(
        &self,
        request: Request<Streaming<pb::StreamUnwrapDeksRequest>>,
    ) -> Result<Response<Self::StreamUnwrapDeksStream>, Status> {
        let echo = self.clone();
        let answer = move |request: Result<pb::StreamUnwrapDeksRequest, Status>| {
            Ok(pb::StreamUnwrapDeksResponse { id: request?.id, result: Some(echo.result()) })
        };
        Ok(Response::new(Box::pin(request.into_inner().map(answer))))
    }

    async fn rewrap_dek(
        &self,
        _request: Request<pb::RewrapDekRequest>,
    ) -> Result<Response<pb::RewrapDekResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn generate_dek(
        &self,
        _request: Request<pb::GenerateDekRequest>,
    ) -> Result<Response<pb::GenerateDekResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }
}

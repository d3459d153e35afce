//! Which service a call is for: that of DEKs is asked at once, all else through tonic's
//! router, which costs several microseconds a call (docs/performance.md).

use std::convert::Infallible;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::service::Routes;
use tower::Service;

use super::grpc::Edge;
use super::pb::crypto_service_server::CryptoServiceServer;

/// The services of a listener.
#[derive(Clone)]
pub(super) struct Dispatch {
    /// `None` where DEKs are not served.
    pub(super) crypto: Option<CryptoServiceServer<Edge>>,
    pub(super) rest: Routes,
}

impl Service<Request<Body>> for Dispatch {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<
        <CryptoServiceServer<Edge> as Service<Request<Body>>>::Future,
        <Routes as Service<Request<Body>>>::Future,
    >;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Neither ever waits: each call finds its own room (`guard.rs`).
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match &mut self.crypto {
            Some(crypto) if is_about_deks(request.uri().path()) => {
                Either::Left(crypto.call(request))
            }
            Some(_) | None => Either::Right(self.rest.call(request)),
        }
    }
}

fn is_about_deks(path: &str) -> bool {
    let rest = path.strip_prefix('/');
    let rest = rest.and_then(|path| path.strip_prefix(CryptoServiceServer::<Edge>::NAME));
    rest.is_some_and(|rest| rest.starts_with('/'))
}

//! What is refused before a method sees it: a message that is not of the
//! contract's form or too long, a method that there is not. tonic answers these by
//! itself; here they get a reason, like every refusal, and their record. And what is
//! too much: too many calls of one principal, or of all.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service as TowerService};

use super::grpc::caller_in;
use super::guard::{Entry, Guard, Pass};
use super::methods;
use super::status::status;
use super::timely::Timely;
use super::tokens;
use super::trust::Trust;
use crate::domain::Malformed;
use crate::error::Error;
use crate::service::{Answer, Caller, Method, Service};

/// Wraps the services of the listener.
#[derive(Clone)]
pub(super) struct Refusals(pub(super) Arc<Service>, pub(super) Arc<Guard>, pub(super) Arc<Trust>);

/// A service whose refusals are looked at.
#[derive(Clone)]
pub(super) struct Watched<S> {
    inner: S,
    service: Arc<Service>,
    guard: Arc<Guard>,
    trust: Arc<Trust>,
}

impl<S> Layer<S> for Refusals {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        let (service, guard) = (Arc::clone(&self.0), Arc::clone(&self.1));
        Watched { inner, service, guard, trust: Arc::clone(&self.2) }
    }
}

impl<S> TowerService<Request<Body>> for Watched<S>
where
    S: TowerService<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Error: Send,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut request = self.with_token(request);
        let caller = Arc::new(caller_in(request.headers(), request.extensions()));
        // What is not ours, as health, has no room to ask for and no record.
        let Some(method) = request.uri().path().strip_prefix(PACKAGE).map(methods::of) else {
            return Box::pin(self.inner.call(request));
        };
        request.extensions_mut().insert(Arc::clone(&caller));
        let place = match self.enter(&caller, method) {
            Ok(None) => return Box::pin(self.serve(request, (caller, method), None)),
            Ok(Some(Entry::Now(pass))) => {
                return Box::pin(self.serve(request, (caller, method), Some(pass)));
            }
            Ok(Some(Entry::Later(place))) => place,
            Err(refused) => return Box::pin(async move { Ok(refused.into_http()) }),
        };
        // Waits with its body unread; its time has begun.
        let mut watched = self.clone();
        Box::pin(async move {
            match place.room(caller.deadline).await {
                Ok(pass) => watched.serve(request, (caller, method), Some(pass)).await,
                Err(error) => Ok(watched.counted(&caller, method, &error).into_http()),
            }
        })
    }
}

impl<S> Watched<S>
where
    S: TowerService<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    /// Hands the call on.
    fn serve(
        &mut self,
        request: Request<Body>,
        (caller, method): (Arc<Caller>, &'static Method),
        pass: Option<Pass>,
    ) -> impl Future<Output = Result<Response<Body>, S::Error>> + Send + use<S> {
        let deadline = caller.deadline;
        // A stream has no end that it must come to.
        let request = if std::ptr::eq(method, &methods::STREAM_UNWRAP_DEKS) {
            request
        } else {
            request.map(|body| Body::new(Timely::new(body, deadline)))
        };
        let answered = self.inner.call(request);
        let service = Arc::clone(&self.service);
        async move {
            let response = answered.await?;
            drop(pass);
            let Some(error) = not_ours(&response) else { return Ok(response) };
            Ok(recorded(&service, &caller, method, error).await.into_http())
        }
    }
}

impl<S> Watched<S> {
    /// The request without its token, with what that makes of the caller.
    fn with_token(&self, request: Request<Body>) -> Request<Body> {
        let (mut parts, body) = request.into_parts();
        let (tokens, now) = (self.trust.tokens(), || self.service.now().time);
        if let Some(acting) = tokens::take(&mut parts.headers, &parts.extensions, tokens, now) {
            parts.extensions.insert(acting);
        }
        Request::from_parts(parts, body)
    }

    /// Room for the call, or a place to wait for it, if it is of a kind that needs some
    /// here; or the refusal.
    fn enter(&self, caller: &Caller, method: &'static Method) -> Result<Option<Entry>, Status> {
        let Some(principal) = &caller.principal else { return Ok(None) };
        if BY_DEKS.contains(&method.name) || std::ptr::eq(method, &methods::UNKNOWN) {
            return Ok(None);
        }
        let entered = self.guard.enter(method, principal, 0);
        entered.map(Some).map_err(|error| self.counted(caller, method, &error))
    }

    fn counted(&self, caller: &Caller, method: &'static Method, error: &Error) -> Status {
        self.service.count_refused(caller, method, error);
        status(error, &caller.request_id)
    }
}

/// The error that tonic's own refusal of a message stands for; `None` if it tells
/// of the connection and not of the message.
pub(super) fn of_message(refused: &Status) -> Option<Error> {
    match refused.code() {
        Code::Internal | Code::InvalidArgument => {
            Some(Malformed::new("message", "is not of the contract's form").into())
        }
        Code::OutOfRange | Code::ResourceExhausted => {
            Some(Malformed::new("message", "is longer than this method takes").into())
        }
        // Of its body: what a method refuses has details.
        Code::DeadlineExceeded => Some(Error::deadline()),
        Code::Unimplemented => Some(Error::unimplemented("the method, or the compression,")),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => None,
    }
}

/// The status of a call that never reached its method, with its record written.
pub(super) async fn recorded(
    service: &Service,
    caller: &Caller,
    method: &'static Method,
    error: Error,
) -> Status {
    let refused: Result<Answer<std::convert::Infallible>, Error> = Err(error);
    match service.conclude(caller, method, "", refused).await {
        Ok(never) => match never {},
        Err(error) => status(&error, &caller.request_id),
    }
}

/// What a response that none of our methods made stands for. Ours carry details.
fn not_ours(response: &Response<Body>) -> Option<Error> {
    let headers = response.headers();
    if headers.contains_key("grpc-status-details-bin") {
        return None;
    }
    let refused = Status::from_header_map(headers)?;
    of_message(&refused)
}

/// These ask for room by the number of their DEKs, when they know it.
const BY_DEKS: [&str; 2] = [methods::BATCH_UNWRAP_DEKS.name, methods::STREAM_UNWRAP_DEKS.name];
/// The path that every method's name comes after.
const PACKAGE: &str = "/rootkeyd.v1.";

//! The services of `rootkeyd.v1`: each method decodes, calls one use case and
//! encodes. Here is what is common to all of them: who asks, the deadline, and the
//! record; a file each for the services.

mod access;
mod admin;
mod audit;
mod crypto;
mod events;
mod import;
mod keys;
mod registrations;
mod resources;
mod tenancy;

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Extensions, HeaderMap};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::connection::Peer;
use super::guard::Guard;
use super::tokens::Acting;
use super::{convert, status::status};
use crate::domain::{InstanceId, KeyName};
use crate::error::Error;
use crate::service::{Answer, Asked, Call, Caller, Method, Service};

pub(super) use registrations::parent;

/// The services, on the use cases.
#[derive(Clone)]
pub(super) struct Edge {
    service: Arc<Service>,
    guard: Arc<Guard>,
    crn_prefix: Arc<str>,
    /// Becomes true when the daemon stops.
    stopped: watch::Receiver<bool>,
}

impl Edge {
    pub(super) fn new(
        (service, guard): (Arc<Service>, Arc<Guard>),
        stopped: watch::Receiver<bool>,
    ) -> Self {
        let crn_prefix = service.settings().crn_prefix.as_str().into();
        Self { service, guard, crn_prefix, stopped }
    }

    /// One call from its request to its status: `work` is the use case; here are
    /// deadline and record.
    async fn run<Q, A, T, F>(
        &self,
        method: &'static Method,
        request: Request<Q>,
        subject: fn(&Q) -> &str,
        work: impl FnOnce(Arc<Service>, Arc<Caller>, Q) -> F,
        encode: impl FnOnce(A) -> T,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<Answer<A>, Error>>,
    {
        let caller = caller_of(&request);
        let message = request.into_inner();
        let subject = subject(&message).to_owned();
        let work = work(Arc::clone(&self.service), Arc::clone(&caller), message);
        let result = match tokio::time::timeout_at(caller.deadline.into(), work).await {
            Ok(result) => result,
            Err(elapsed) => Err(Error::deadline().caused_by(elapsed)),
        };
        let concluded = self.service.conclude(&caller, method, &subject, result).await;
        answer(concluded.map(encode), &caller.request_id)
    }
}

fn answer<T>(result: Result<T, Error>, request_id: &str) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status(&error, request_id))
}

/// Enters with the permission on a key.
fn enter_key(
    service: &Service,
    caller: &Arc<Caller>,
    method: &'static Method,
    name: &str,
) -> Result<(Call, KeyName), Error> {
    let name = convert::key_name(name);
    let call = service.enter(caller, method, name.as_ref().map(Asked::Key).map_err(|bad| *bad))?;
    Ok((call, name?))
}

/// A name that was malformed is called otherwise in this request.
fn of_field(error: Error, field: &'static str) -> Error {
    if error.field.is_some() { error.of_field(field) } else { error }
}

/// Enters with the permission on the whole of an instance.
fn enter_instance(
    service: &Service,
    caller: &Arc<Caller>,
    method: &'static Method,
    parent: &str,
) -> Result<(Call, InstanceId), Error> {
    let instance = InstanceId::from_parent(parent);
    let asked = instance.as_ref().map(Asked::Instance).map_err(|bad| *bad);
    Ok((service.enter(caller, method, asked)?, instance?))
}

/// Enters with the permission on some part of an instance: what the caller may not see
/// is left out of the answer.
fn enter_within(
    service: &Service,
    caller: &Arc<Caller>,
    method: &'static Method,
    parent: &str,
) -> Result<(Call, InstanceId), Error> {
    let instance = InstanceId::from_parent(parent);
    let asked = instance.as_ref().map(Asked::Within).map_err(|bad| *bad);
    Ok((service.enter(caller, method, asked)?, instance?))
}

/// Who asks, and until when.
fn caller_of<Q>(request: &Request<Q>) -> Arc<Caller> {
    let found = request.extensions().get::<Arc<Caller>>();
    Arc::clone(found.expect("`refusals.rs` puts it into each request"))
}

/// The same, found out before the request is tonic's.
pub(super) fn caller_in(headers: &HeaderMap, extensions: &Extensions) -> Caller {
    let peer = extensions.get::<Arc<Peer>>();
    let acting = extensions.get::<Acting>();
    let began = Instant::now();
    let (usual, longest) = peer.map_or((DEFAULT_DEADLINE, LONGEST_DEADLINE), |peer| {
        (peer.limits.request, peer.limits.longest_request)
    });
    let wait = timeout_in(headers).unwrap_or(usual).min(longest);
    Caller {
        // A token that does not count leaves the principal for the record: its
        // standing refuses the call.
        principal: acting
            .and_then(|acting| acting.principal.clone())
            .or_else(|| peer?.principal.clone()),
        source_address: peer.map_or_else(Default::default, |peer| Arc::clone(&peer.address)),
        source_ip: peer.and_then(|peer| peer.ip),
        standing: match acting {
            Some(acting) => Some(Arc::clone(&acting.standing)),
            None => peer.and_then(|peer| peer.standing.clone()),
        },
        request_id: request_id_in(headers),
        began,
        deadline: began + wait,
    }
}

/// When the streams of a connection end, if no one ends them before: when it has
/// its age, or the daemon stops.
fn stream_ends<Q>(
    request: &Request<Q>,
    mut stopped: watch::Receiver<bool>,
) -> impl Future<Output = ()> + use<Q> {
    let ends = request.extensions().get::<Arc<Peer>>().map(|peer| peer.ends);
    async move {
        let aged = async {
            match ends {
                Some(ends) => tokio::time::sleep_until(ends.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = aged => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
    }
}

/// `grpc-timeout`: up to 8 digits and a unit (gRPC over HTTP/2).
fn timeout_in(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let number = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// `x-request-id`, if it is one that can be logged; else a new one.
fn request_id_in(headers: &HeaderMap) -> String {
    let given = headers.get("x-request-id").and_then(|value| value.to_str().ok());
    let given = given.filter(|text| (1..=LONGEST_REQUEST_ID).contains(&text.len()));
    given.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// How long a caller waits who does not say, and who says more, without a connection
/// that says otherwise.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
const LONGEST_DEADLINE: Duration = Duration::from_secs(60);
/// In characters.
const LONGEST_REQUEST_ID: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_strictly() {
        let timeout = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout_in(&headers)
        };
        assert_eq!(timeout("5S"), Some(Duration::from_secs(5)));
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for text in ["", "S", "5", "5s", "+5S", "123456789S", "5 S"] {
            assert_eq!(timeout(text), None, "{text}");
        }
    }

    #[test]
    fn a_request_id_that_cannot_be_logged_is_replaced() {
        let id = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", text.parse().unwrap());
            request_id_in(&headers)
        };
        assert_eq!(id("abc-1"), "abc-1");
        assert_ne!(id(&"a".repeat(129)), "a".repeat(129));
        assert_eq!(request_id_in(&HeaderMap::new()).len(), 36);
    }
}

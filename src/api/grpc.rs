//! The services of `rootkeyd.v1`: each method decodes, calls one use case and
//! encodes. Who asks, the deadline and the record are common to all of them.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt, stream};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

use super::pb::{self, admin_service_server, audit_service_server, crypto_service_server};
use super::server::Peer;
use super::{convert, methods, pb::key_service_server, status::status};
use crate::domain::{InstanceId, Key, KeyName, Malformed};
use crate::error::Error;
use crate::service::{Answer, Call, Caller, DekAnswer, DekRequest, Listed, Method, Service};

/// The services, on the use cases.
#[derive(Clone)]
pub(super) struct Edge {
    service: Arc<Service>,
    crn_prefix: Arc<str>,
}

impl Edge {
    pub(super) fn new(service: Arc<Service>) -> Self {
        let crn_prefix = service.settings().crn_prefix.as_str().into();
        Self { service, crn_prefix }
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
        let caller = Arc::new(caller_of(&request));
        let message = request.into_inner();
        let subject = subject(&message).to_owned();
        let work = work(Arc::clone(&self.service), Arc::clone(&caller), message);
        let result = match tokio::time::timeout_at(caller.deadline.into(), work).await {
            Ok(result) => result,
            Err(elapsed) => Err(Error::deadline().caused_by(elapsed)),
        };
        // The deadline is over for the work, not for its record.
        let mut recorder = (*caller).clone();
        recorder.deadline = recorder.deadline.max(Instant::now() + RECORD_DEADLINE);
        let concluded = self.service.conclude(&recorder, method, &subject, result).await;
        answer(concluded.map(encode), &caller.request_id)
    }

    /// A call about one DEK, which records itself.
    async fn dek<T>(
        &self,
        method: &'static Method,
        caller: Caller,
        request: DekRequest,
        encode: impl FnOnce(DekAnswer) -> T,
    ) -> Result<Response<T>, Status> {
        let caller = Arc::new(caller);
        let mut results = self.service.deks(&caller, method, vec![request]).await;
        let result = results.pop().expect("one answer for one request");
        answer(result.map(encode), &caller.request_id)
    }

    /// A call about a key that answers with the key.
    fn encode_key(&self) -> impl FnOnce(Arc<Key>) -> pb::Key {
        let (crn_prefix, now) = (Arc::clone(&self.crn_prefix), self.service.now());
        move |key| convert::key(&key, &crn_prefix, now)
    }

    fn not_yet<Q, T>(
        &self,
        method: &'static Method,
        request: Request<Q>,
        subject: fn(&Q) -> &str,
        instance: fn(&Q) -> Result<InstanceId, Malformed>,
    ) -> impl Future<Output = Result<Response<T>, Status>> {
        self.run(
            method,
            request,
            subject,
            move |service, caller, message| async move {
                let instance = instance(&message);
                service.enter(&caller, method, scope(&instance))?;
                instance?;
                Err(Error::unimplemented(method.name))
            },
            |never: std::convert::Infallible| match never {},
        )
    }
}

#[tonic::async_trait]
impl crypto_service_server::CryptoService for Edge {
    async fn wrap_dek(
        &self,
        request: Request<pb::WrapDekRequest>,
    ) -> Result<Response<pb::WrapDekResponse>, Status> {
        let caller = caller_of(&request);
        let request = convert::wrap_request(request.into_inner());
        self.dek(&methods::WRAP_DEK, caller, request, convert::wrapped).await
    }

    async fn unwrap_dek(
        &self,
        request: Request<pb::UnwrapDekRequest>,
    ) -> Result<Response<pb::UnwrapDekResponse>, Status> {
        let caller = caller_of(&request);
        let request = convert::unwrap_request(request.into_inner());
        self.dek(&methods::UNWRAP_DEK, caller, request, convert::unwrapped).await
    }

    async fn rewrap_dek(
        &self,
        request: Request<pb::RewrapDekRequest>,
    ) -> Result<Response<pb::RewrapDekResponse>, Status> {
        let caller = caller_of(&request);
        let request = convert::rewrap_request(request.into_inner());
        self.dek(&methods::REWRAP_DEK, caller, request, convert::rewrapped).await
    }

    async fn generate_dek(
        &self,
        request: Request<pb::GenerateDekRequest>,
    ) -> Result<Response<pb::GenerateDekResponse>, Status> {
        let caller = caller_of(&request);
        let (request, wrapped_only) = convert::generate_request(request.into_inner());
        let encode = |answer| convert::generated(answer, wrapped_only);
        self.dek(&methods::GENERATE_DEK, caller, request, encode).await
    }

    async fn batch_unwrap_deks(
        &self,
        request: Request<pb::BatchUnwrapDeksRequest>,
    ) -> Result<Response<pb::BatchUnwrapDeksResponse>, Status> {
        let method = &methods::BATCH_UNWRAP_DEKS;
        if !(1..=MOST_IN_BATCH).contains(&request.get_ref().requests.len()) {
            let refuse = |service: Arc<Service>, caller, _| async move {
                service.enter(&caller, method, Ok(None))?;
                Err(Malformed::new("requests", "must be 1 to 1000").into())
            };
            let never = |never: std::convert::Infallible| match never {};
            return self.run(method, request, |_| "", refuse, never).await;
        }
        let caller = Arc::new(caller_of(&request));
        let pb::BatchUnwrapDeksRequest { requests } = request.into_inner();
        let mut requests = requests.into_iter().map(convert::unwrap_request).peekable();
        let chunks = std::iter::from_fn(|| {
            requests.peek()?;
            Some(requests.by_ref().take(CHUNK).collect::<Vec<_>>())
        });
        let results: Vec<_> = stream::iter(chunks)
            .map(|chunk| self.service.deks(&caller, method, chunk))
            .buffered(CHUNKS_UNDER_WAY)
            .flat_map(stream::iter)
            .map(|result| convert::unwrap_result(result, &caller.request_id))
            .collect()
            .await;
        answer(Ok(pb::BatchUnwrapDeksResponse { results }), &caller.request_id)
    }

    type StreamUnwrapDeksStream =
        Pin<Box<dyn Stream<Item = Result<pb::StreamUnwrapDeksResponse, Status>> + Send>>;

    async fn stream_unwrap_deks(
        &self,
        request: Request<Streaming<pb::StreamUnwrapDeksRequest>>,
    ) -> Result<Response<Self::StreamUnwrapDeksStream>, Status> {
        let caller = caller_of(&request);
        let service = Arc::clone(&self.service);
        let request_id = caller.request_id.clone();
        // What has come meanwhile goes to the HSM as one job; several jobs may be
        // under way, so that one chunk is read while another is worked on.
        let answers = request
            .into_inner()
            .ready_chunks(CHUNK)
            .map(move |chunk| {
                let deadline = Instant::now() + DEFAULT_DEADLINE;
                unwrap_chunk(Arc::clone(&service), Caller { deadline, ..caller.clone() }, chunk)
            })
            .buffer_unordered(CHUNKS_UNDER_WAY)
            .flat_map(stream::iter);
        answer(Ok(Box::pin(answers) as Self::StreamUnwrapDeksStream), &request_id)
    }
}

/// What came on a stream: unwrapped in one go, each answer with its id.
async fn unwrap_chunk(
    service: Arc<Service>,
    caller: Caller,
    chunk: Vec<Result<pb::StreamUnwrapDeksRequest, Status>>,
) -> Vec<Result<pb::StreamUnwrapDeksResponse, Status>> {
    let caller = Arc::new(caller);
    let (mut ids, mut requests, mut broken) = (Vec::new(), Vec::new(), None);
    for item in chunk {
        match item {
            Ok(pb::StreamUnwrapDeksRequest { id, request }) => {
                ids.push(id);
                // Without a request it names no key, and is refused for that.
                requests.push(convert::unwrap_request(request.unwrap_or_default()));
            }
            Err(status) => broken = Some(status),
        }
    }
    let results = service.deks(&caller, &methods::STREAM_UNWRAP_DEKS, requests).await;
    let results = ids.into_iter().zip(results).map(|(id, result)| {
        let result = Some(convert::unwrap_result(result, &caller.request_id));
        Ok(pb::StreamUnwrapDeksResponse { id, result })
    });
    results.chain(broken.map(Err)).collect()
}

/// A method of KeyService that changes one key: enter, then the use case.
macro_rules! change_key {
    ($self:ident, $request:ident, $method:ident, $use_case:ident) => {
        $self
            .run(
                &methods::$method,
                $request,
                |message| &message.name,
                |service, caller, message| async move {
                    let (call, name) =
                        enter_key(&service, &caller, &methods::$method, &message.name)?;
                    service.$use_case(&call, name, message.etag).await
                },
                $self.encode_key(),
            )
            .await
    };
}

#[tonic::async_trait]
impl key_service_server::KeyService for Edge {
    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::CREATE_KEY,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let (call, instance) =
                    enter_instance(&service, &caller, &methods::CREATE_KEY, &message.parent)?;
                let (new, request_id) = convert::new_key(instance, message)?;
                service.create_key(&call, new, request_id).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn import_key(
        &self,
        request: Request<pb::ImportKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        let instance = |message: &pb::ImportKeyRequest| InstanceId::from_parent(&message.parent);
        self.not_yet(&methods::IMPORT_KEY, request, |message| &message.parent, instance).await
    }

    async fn get_key(
        &self,
        request: Request<pb::GetKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::GET_KEY,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, name) = enter_key(&service, &caller, &methods::GET_KEY, &message.name)?;
                service.key(&call, &name)
            },
            self.encode_key(),
        )
        .await
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListKeysRequest>,
    ) -> Result<Response<pb::ListKeysResponse>, Status> {
        let (crn_prefix, now) = (Arc::clone(&self.crn_prefix), self.service.now());
        self.run(
            &methods::LIST_KEYS,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let (call, instance) =
                    enter_instance(&service, &caller, &methods::LIST_KEYS, &message.parent)?;
                service.list_keys(&call, &convert::key_query(instance, message)?)
            },
            |Listed { items, next_page_token }| pb::ListKeysResponse {
                keys: items.iter().map(|key| convert::key(key, &crn_prefix, now)).collect(),
                next_page_token,
            },
        )
        .await
    }

    async fn update_key(
        &self,
        request: Request<pb::UpdateKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::UPDATE_KEY,
            request,
            |message| message.key.as_ref().map_or("", |key| &key.name),
            |service, caller, message| async move {
                let pb::UpdateKeyRequest { key, update_mask } = message;
                let key = key.unwrap_or_default();
                let (call, name) = enter_key(&service, &caller, &methods::UPDATE_KEY, &key.name)?;
                let (etag, update) = convert::update(key, update_mask)?;
                service.update_key(&call, name, etag, update).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn rotate_key(
        &self,
        request: Request<pb::RotateKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        self.run(
            &methods::ROTATE_KEY,
            request,
            |message| &message.name,
            |service, caller, message| async move {
                let (call, key) =
                    enter_key(&service, &caller, &methods::ROTATE_KEY, &message.name)?;
                let request_id = convert::request_id("RotateKey", &message.request_id, || {
                    pb::RotateKeyRequest { request_id: String::new(), ..message.clone() }
                        .encode_to_vec()
                })?;
                let pb::RotateKeyRequest { name: _, material, etag, request_id: _ } = message;
                if material.is_some() {
                    return Err(Error::unimplemented("material, of an imported key,"));
                }
                service.rotate_key(&call, key, etag, request_id).await
            },
            self.encode_key(),
        )
        .await
    }

    async fn disable_key(
        &self,
        request: Request<pb::DisableKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, DISABLE_KEY, disable_key)
    }

    async fn enable_key(
        &self,
        request: Request<pb::EnableKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, ENABLE_KEY, enable_key)
    }

    async fn set_key_for_deletion(
        &self,
        request: Request<pb::SetKeyForDeletionRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        let method = &methods::SET_KEY_FOR_DELETION;
        self.not_yet(method, request, |m| &m.name, |m| instance_of(&m.name)).await
    }

    async fn unset_key_for_deletion(
        &self,
        request: Request<pb::UnsetKeyForDeletionRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        let method = &methods::UNSET_KEY_FOR_DELETION;
        self.not_yet(method, request, |m| &m.name, |m| instance_of(&m.name)).await
    }

    async fn delete_key(
        &self,
        request: Request<pb::DeleteKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        // `force` is about registrations, of which no key has any yet.
        change_key!(self, request, DELETE_KEY, delete_key)
    }

    async fn restore_key(
        &self,
        request: Request<pb::RestoreKeyRequest>,
    ) -> Result<Response<pb::Key>, Status> {
        change_key!(self, request, RESTORE_KEY, restore_key)
    }

    async fn purge_key(
        &self,
        request: Request<pb::PurgeKeyRequest>,
    ) -> Result<Response<pb::PurgeKeyResponse>, Status> {
        self.not_yet(&methods::PURGE_KEY, request, |m| &m.name, |m| instance_of(&m.name)).await
    }

    async fn list_key_versions(
        &self,
        request: Request<pb::ListKeyVersionsRequest>,
    ) -> Result<Response<pb::ListKeyVersionsResponse>, Status> {
        self.run(
            &methods::LIST_KEY_VERSIONS,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let pb::ListKeyVersionsRequest { parent, page_size, page_token } = message;
                let entered = enter_key(&service, &caller, &methods::LIST_KEY_VERSIONS, &parent);
                let (call, name) = entered?;
                let page_size = convert::page_size_of(page_size)?;
                service.list_versions(&call, &name, (page_size, &page_token))
            },
            |(key, Listed { items, next_page_token }): (Arc<Key>, _)| {
                let versions = items.iter().map(|version| convert::key_version(&key, version));
                let key_versions = versions.collect();
                pb::ListKeyVersionsResponse { key_versions, next_page_token }
            },
        )
        .await
    }
}

#[tonic::async_trait]
impl audit_service_server::AuditService for Edge {
    async fn list_audit_events(
        &self,
        request: Request<pb::ListAuditEventsRequest>,
    ) -> Result<Response<pb::ListAuditEventsResponse>, Status> {
        let method = &methods::LIST_AUDIT_EVENTS;
        self.run(
            method,
            request,
            |message| &message.parent,
            |service, caller, message| async move {
                let (call, instance) = enter_instance(&service, &caller, method, &message.parent)?;
                let query = convert::audit_query(instance, message)?;
                service.list_audit_events(&call, query).await
            },
            |Listed { items, next_page_token }| pb::ListAuditEventsResponse {
                audit_events: items.into_iter().map(convert::audit_event).collect(),
                next_page_token,
            },
        )
        .await
    }
}

#[tonic::async_trait]
impl admin_service_server::AdminService for Edge {
    async fn get_server_info(
        &self,
        request: Request<pb::GetServerInfoRequest>,
    ) -> Result<Response<pb::ServerInfo>, Status> {
        let method = &methods::GET_SERVER_INFO;
        let work = |service: Arc<Service>, caller, _| async move {
            let call = service.enter(&caller, method, Ok(None))?;
            Ok(service.server_report(&call))
        };
        self.run(method, request, |_| "", work, convert::server_info).await
    }

    async fn get_hsm_status(
        &self,
        request: Request<pb::GetHsmStatusRequest>,
    ) -> Result<Response<pb::HsmStatus>, Status> {
        let method = &methods::GET_HSM_STATUS;
        let work = |service: Arc<Service>, caller, _| async move {
            let call = service.enter(&caller, method, Ok(None))?;
            Ok(service.hsm_report(&call).await)
        };
        self.run(method, request, |_| "", work, convert::hsm_status).await
    }
}

fn answer<T>(result: Result<T, Error>, request_id: &str) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status(&error, request_id))
}

/// Enters with the permission on the instance of a key.
fn enter_key(
    service: &Service,
    caller: &Arc<Caller>,
    method: &'static Method,
    name: &str,
) -> Result<(Call, KeyName), Error> {
    let name = convert::key_name(name);
    let instance = name.as_ref().map(|name| Some(&name.instance)).map_err(|error| *error);
    let call = service.enter(caller, method, instance)?;
    Ok((call, name?))
}

/// Enters with the permission on an instance.
fn enter_instance(
    service: &Service,
    caller: &Arc<Caller>,
    method: &'static Method,
    parent: &str,
) -> Result<(Call, InstanceId), Error> {
    let instance = InstanceId::from_parent(parent);
    let call = service.enter(caller, method, scope(&instance))?;
    Ok((call, instance?))
}

fn scope(instance: &Result<InstanceId, Malformed>) -> Result<Option<&InstanceId>, Malformed> {
    instance.as_ref().map(Some).map_err(|malformed| *malformed)
}

fn instance_of(name: &str) -> Result<InstanceId, Malformed> {
    convert::key_name(name).map(|name| name.instance)
}

/// Who asks, and until when.
fn caller_of<Q>(request: &Request<Q>) -> Caller {
    let peer = request.extensions().get::<Peer>();
    let wait = timeout_in(request.metadata()).unwrap_or(DEFAULT_DEADLINE).min(LONGEST_DEADLINE);
    Caller {
        principal: peer.and_then(|peer| peer.principal.clone()),
        source_address: peer.map(|peer| peer.address.to_string()).unwrap_or_default(),
        request_id: request_id_in(request.metadata()),
        deadline: Instant::now() + wait,
    }
}

/// `grpc-timeout`: up to 8 digits and a unit (gRPC over HTTP/2).
fn timeout_in(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
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
fn request_id_in(metadata: &MetadataMap) -> String {
    let given = metadata.get("x-request-id").and_then(|value| value.to_str().ok());
    let given = given.filter(|text| (1..=LONGEST_REQUEST_ID).contains(&text.len()));
    given.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// How long a caller waits who does not say, and who says more.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
const LONGEST_DEADLINE: Duration = Duration::from_secs(60);
/// How long a record may take, of a call whose own deadline is over.
const RECORD_DEADLINE: Duration = Duration::from_secs(5);
/// DEKs that go to the HSM as one job.
const CHUNK: usize = 64;
/// Jobs of one batch or stream that may be under way.
const CHUNKS_UNDER_WAY: usize = 4;
/// The contract's limit of a batch.
const MOST_IN_BATCH: usize = 1000;
/// In characters.
const LONGEST_REQUEST_ID: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_timeout_is_read_strictly() {
        let timeout = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout_in(&metadata)
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
            let mut metadata = MetadataMap::new();
            metadata.insert("x-request-id", text.parse().unwrap());
            request_id_in(&metadata)
        };
        assert_eq!(id("abc-1"), "abc-1");
        assert_ne!(id(&"a".repeat(129)), "a".repeat(129));
        assert_eq!(request_id_in(&MetadataMap::new()).len(), 36);
    }
}

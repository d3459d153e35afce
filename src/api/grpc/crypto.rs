//! CryptoService: DEKs one by one, in batches and on streams. What is asked about
//! many goes to the HSM in chunks, each as one job.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{Stream, StreamExt, stream};
use tonic::{Request, Response, Status, Streaming};

use super::super::guard::{Entry, Guard, Pass};
use super::super::{convert, methods, pb, refusals};
use super::{DEFAULT_DEADLINE, Edge, answer, caller_of, stream_ends};
use crate::domain::Malformed;
use crate::error::Error;
use crate::service::{Asked, Caller, DekAnswer, DekRequest, Method, Service};
use pb::crypto_service_server::CryptoService;

impl Edge {
    /// A call about one DEK, which records itself; with a registration, if there is one.
    async fn dek<T>(
        &self,
        method: &'static Method,
        caller: Arc<Caller>,
        (request, register): (DekRequest, convert::Register),
        encode: impl FnOnce(DekAnswer) -> T,
    ) -> Result<Response<T>, Status> {
        let result = match register {
            Some(new) => {
                let methods = (method, &methods::CREATE_REGISTRATION);
                self.service.dek_registered(&caller, methods, request, new).await
            }
            None => {
                let mut results = self.service.deks(&caller, method, vec![request]).await;
                results.pop().expect("one answer for one request")
            }
        };
        answer(result.map(encode), &caller.request_id)
    }
}

#[tonic::async_trait]
impl CryptoService for Edge {
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
        self.dek(&methods::UNWRAP_DEK, caller, (request, None), convert::unwrapped).await
    }

    async fn rewrap_dek(
        &self,
        request: Request<pb::RewrapDekRequest>,
    ) -> Result<Response<pb::RewrapDekResponse>, Status> {
        let caller = caller_of(&request);
        let request = convert::rewrap_request(request.into_inner());
        self.dek(&methods::REWRAP_DEK, caller, (request, None), convert::rewrapped).await
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
                service.enter(&caller, method, Ok(Asked::Anywhere))?;
                Err(Malformed::new("requests", "must be 1 to 1000").into())
            };
            let never = |never: std::convert::Infallible| match never {};
            return self.run(method, request, |_| "", refuse, never).await;
        }
        let caller = caller_of(&request);
        let pb::BatchUnwrapDeksRequest { requests } = request.into_inner();
        let _pass = match pass(&self.service, &self.guard, &caller, method, requests.len()).await {
            Ok(pass) => pass,
            Err(error) => return answer(Err(error), &caller.request_id),
        };
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
        let shared = (Arc::clone(&self.service), Arc::clone(&self.guard));
        let request_id = caller.request_id.clone();
        // What has come meanwhile goes to the HSM as one job; several jobs may be
        // under way, so that one chunk is read while another is worked on.
        // When the daemon stops or the connection has its age, what was sent is
        // answered and no more is read.
        let ends = stream_ends(&request, self.stopped.clone());
        let answers = request
            .into_inner()
            .take_until(Box::pin(ends))
            .ready_chunks(CHUNK)
            .map(move |chunk| {
                let deadline = Instant::now() + DEFAULT_DEADLINE;
                unwrap_chunk(shared.clone(), Caller { deadline, ..(*caller).clone() }, chunk)
            })
            .buffer_unordered(CHUNKS_UNDER_WAY)
            .flat_map(stream::iter);
        answer(Ok(Box::pin(answers) as Self::StreamUnwrapDeksStream), &request_id)
    }
}

/// Room for so many DEKs, for which it may wait; or the refusal, which is counted.
async fn pass(
    service: &Service,
    guard: &Guard,
    caller: &Caller,
    method: &'static Method,
    deks: usize,
) -> Result<Option<Pass>, Error> {
    let Some(principal) = caller.principal.as_ref().filter(|_| deks > 0) else { return Ok(None) };
    let entered = match guard.enter(method, principal, deks) {
        Ok(Entry::Now(pass)) => Ok(pass),
        Ok(Entry::Later(place)) => place.room(caller.deadline).await,
        Err(error) => Err(error),
    };
    entered.map(Some).inspect_err(|error| service.count_refused(caller, method, error))
}

/// What came on a stream: unwrapped in one go, each answer with its id.
async fn unwrap_chunk(
    (service, guard): (Arc<Service>, Arc<Guard>),
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
    let method = &methods::STREAM_UNWRAP_DEKS;
    let results = match pass(&service, &guard, &caller, method, requests.len()).await {
        Ok(_pass) => service.deks(&caller, method, requests).await,
        Err(error) => requests.iter().map(|_refused| Err(error.again())).collect(),
    };
    let results = ids.into_iter().zip(results).map(|(id, result)| {
        let result = Some(convert::unwrap_result(result, &caller.request_id));
        Ok(pb::StreamUnwrapDeksResponse { id, result })
    });
    let mut answers: Vec<_> = results.collect();
    if let Some(refused) = broken {
        answers.push(Err(match refusals::of_message(&refused) {
            Some(error) => refusals::recorded(&service, &caller, method, error).await,
            // The caller is gone.
            None => refused,
        }));
    }
    answers
}

/// DEKs that go to the HSM as one job.
const CHUNK: usize = 64;
/// Jobs of one batch or stream that may be under way.
const CHUNKS_UNDER_WAY: usize = 4;
/// The contract's limit of a batch.
const MOST_IN_BATCH: usize = 1000;

//! `StorageClient`: what a service calls that has volumes, images, snapshots or
//! shares encrypted. Every call has a deadline, is made again where that helps and
//! cannot hurt, and follows the certificate of the service when it is renewed.
//!
//! It does not decide what a refusal means for a resource: [`Refusal::why`] says why,
//! and the service acts.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use prost_types::FieldMask;
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use zeroize::Zeroize;

use super::{
    ClientConfig, ClientError, Failed, KeyEvent, KeyEvents, KeyRefusal, MAX_MESSAGE_BYTES, Refusal,
    Registration, Repeat, RetryPolicy, Secret, full_name, reload::Connection,
};
use crate::api::pb::{
    self, crypto_service_client::CryptoServiceClient, event_service_client::EventServiceClient,
    registration_service_client::RegistrationServiceClient,
};

/// For services that have resources encrypted. Cheap to clone; clones share one
/// connection.
///
/// ```no_run
/// use std::path::Path;
/// use rootkeyd::client::{ClientConfig, DekContext, KeyRefusal, RetryPolicy, StorageClient};
///
/// # async fn attach(wrapped: &[u8]) -> Result<(), Box<dyn std::error::Error>> {
/// let mut config = ClientConfig::load(Path::new("client.toml"))?;
/// config.use_identity("block-storage");
/// let rootkeyd = StorageClient::open(config, RetryPolicy::default())?;
/// let volume = "crn:v1:rootkeyd:public:is:local:a/dev::volume:7d1c";
/// match rootkeyd.unwrap(&DekContext::of("volumes", volume), wrapped).await {
///     Ok(unwrapped) => drop(unwrapped.dek), // open the volume with it
///     Err(refusal) if refusal.why() == KeyRefusal::Suspended => {} // say so, and why
///     Err(refusal) => return Err(refusal.into()),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct StorageClient {
    connection: Arc<Connection>,
    instance: String,
    policy: RetryPolicy,
}

/// Which DEK is meant: the key that wraps it, and what it is bound to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DekContext {
    /// A UUID, an alias, or a full name.
    pub key: String,
    /// Additional authenticated data; what wraps and what unwraps must agree in it.
    pub aad: Vec<Vec<u8>>,
    /// CRN of the resource, for the audit record.
    pub resource: String,
}

impl DekContext {
    /// A DEK that is bound to one resource: the AAD is its CRN, so that the wrapped DEK
    /// of another resource does not unwrap in its place.
    pub fn of(key: &str, resource: &str) -> Self {
        let (key, aad) = (key.to_owned(), vec![resource.as_bytes().to_vec()]);
        Self { key, aad, resource: resource.to_owned() }
    }
}

/// A DEK that only its root key can open. Store it beside the resource.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WrappedDek {
    /// Opaque.
    pub bytes: Vec<u8>,
    /// Name of the key version that wrapped it.
    pub key_version: String,
}

/// A new DEK.
#[derive(Debug)]
pub struct NewDek {
    /// To encrypt with; wiped when dropped.
    pub dek: Secret,
    /// To store.
    pub wrapped: WrappedDek,
}

/// A DEK that was unwrapped.
#[derive(Debug)]
pub struct Unwrapped {
    /// Wiped when dropped.
    pub dek: Secret,
    /// Name of the key version that had wrapped it.
    pub key_version: String,
    /// To be stored in place of what was sent, where that was of an older version.
    pub rewrapped: Option<WrappedDek>,
}

/// A DEK that was wrapped again.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rewrapped {
    /// To be stored in place of what was sent.
    pub wrapped: WrappedDek,
    /// Name of the version that had wrapped it.
    pub previous_key_version: String,
}

impl StorageClient {
    /// Connects at the first call, so that a service can start before the daemon.
    /// To be called in a tokio runtime.
    ///
    /// # Errors
    /// If a PEM file cannot be read, or the endpoint is not `https`.
    pub fn open(config: ClientConfig, policy: RetryPolicy) -> Result<Self, ClientError> {
        let instance = config.instance.clone();
        Ok(Self { connection: Arc::new(Connection::open(config)?), instance, policy })
    }

    /// The name of a key that is given as a UUID, an alias or a full name.
    pub fn key_name(&self, key: &str) -> String {
        full_name(key, || format!("instances/{}/keys/{key}", self.instance))
    }

    /// Makes a DEK of `size` bytes (16 to 512) in the HSM. With `register`, the
    /// resource is registered against the key in the same commit.
    ///
    /// # Errors
    /// A refusal, after the attempts that the policy allows.
    pub async fn generate(
        &self,
        context: &DekContext,
        size: u32,
        register: Option<Registration>,
    ) -> Result<NewDek, Refusal> {
        let request = pb::GenerateDekRequest {
            key: self.key_name(&context.key),
            size_bytes: size,
            aad: context.aad.clone(),
            resource: context.resource.clone(),
            wrapped_only: false,
            register,
        };
        // What an answer that got lost had wrapped is nobody's.
        let answer = self
            .call(Repeat::Harmless, &request, async |channel, request| {
                crypto(channel).generate_dek(request).await
            })
            .await?;
        let pb::GenerateDekResponse { dek, wrapped_dek, key_version } = answer;
        let wrapped = WrappedDek { bytes: wrapped_dek.to_vec(), key_version };
        Ok(NewDek { dek: take_secret(dek), wrapped })
    }

    /// Wraps a DEK of the service's own. With `register`, as in [`Self::generate`].
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn wrap(
        &self,
        context: &DekContext,
        dek: &Secret,
        register: Option<Registration>,
    ) -> Result<WrappedDek, Refusal> {
        let request = pb::WrapDekRequest {
            key: self.key_name(&context.key),
            dek: dek.expose().to_vec(),
            aad: context.aad.clone(),
            resource: context.resource.clone(),
            register,
        };
        let answer = self
            .call(Repeat::Harmless, &request, async |channel, request| {
                crypto(channel).wrap_dek(request).await
            })
            .await;
        let mut request = request;
        request.dek.zeroize();
        let pb::WrapDekResponse { wrapped_dek, key_version } = answer?;
        Ok(WrappedDek { bytes: wrapped_dek.to_vec(), key_version })
    }

    /// Unwraps a DEK: at attach, start, restore or mount, and not before.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn unwrap(&self, context: &DekContext, wrapped: &[u8]) -> Result<Unwrapped, Refusal> {
        let request = pb::UnwrapDekRequest {
            key: self.key_name(&context.key),
            wrapped_dek: wrapped.to_vec(),
            aad: context.aad.clone(),
            resource: context.resource.clone(),
        };
        let answer = self
            .call(Repeat::Harmless, &request, async |channel, request| {
                crypto(channel).unwrap_dek(request).await
            })
            .await?;
        let pb::UnwrapDekResponse { dek, key_version, rewrapped_dek, rewrapped_key_version } =
            answer;
        let rewrapped = (!rewrapped_dek.is_empty()).then(|| WrappedDek {
            bytes: rewrapped_dek.to_vec(),
            key_version: rewrapped_key_version,
        });
        Ok(Unwrapped { dek: take_secret(dek), key_version, rewrapped })
    }

    /// Wraps again under the newest version; the DEK itself stays in the HSM.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn rewrap(&self, context: &DekContext, wrapped: &[u8]) -> Result<Rewrapped, Refusal> {
        let request = pb::RewrapDekRequest {
            key: self.key_name(&context.key),
            wrapped_dek: wrapped.to_vec(),
            aad: context.aad.clone(),
            resource: context.resource.clone(),
        };
        let answer = self
            .call(Repeat::Harmless, &request, async |channel, request| {
                crypto(channel).rewrap_dek(request).await
            })
            .await?;
        let pb::RewrapDekResponse { wrapped_dek, key_version, previous_key_version } = answer;
        let wrapped = WrappedDek { bytes: wrapped_dek.to_vec(), key_version };
        Ok(Rewrapped { wrapped, previous_key_version })
    }

    /// Registers a resource against an active key. The same resource again replaces
    /// its registration.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn register(
        &self,
        key: &str,
        registration: Registration,
    ) -> Result<Registration, Refusal> {
        let registration = Some(registration);
        let request = pb::CreateRegistrationRequest { parent: self.key_name(key), registration };
        self.call(Repeat::Harmless, &request, async |channel, request| {
            registrations(channel).create_registration(request).await
        })
        .await
    }

    /// Changes the fields that are named (of attached_to, description,
    /// prevent_key_deletion, key_version) in any state of the key. With an etag it is
    /// not made again when the answer gets lost: the second would be refused because
    /// of the first.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn update(
        &self,
        registration: Registration,
        fields: &[&str],
    ) -> Result<Registration, Refusal> {
        let repeat = if registration.etag.is_empty() { Repeat::Harmless } else { Repeat::Harmful };
        let paths = fields.iter().map(|field| (*field).to_owned()).collect();
        let request = pb::UpdateRegistrationRequest {
            registration: Some(registration),
            update_mask: Some(FieldMask { paths }),
        };
        self.call(repeat, &request, async |channel, request| {
            registrations(channel).update_registration(request).await
        })
        .await
    }

    /// Takes a registration back, in any state of the key. That it is gone already is
    /// no refusal: an answer may have got lost.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn unregister(&self, name: &str) -> Result<(), Refusal> {
        let request = pb::DeleteRegistrationRequest { name: name.into(), etag: String::new() };
        let answer = self
            .call(Repeat::Harmless, &request, async |channel, request| {
                registrations(channel).delete_registration(request).await
            })
            .await;
        match answer {
            Ok(pb::DeleteRegistrationResponse {}) => Ok(()),
            Err(refusal) if refusal.why() == KeyRefusal::NotRegistered => Ok(()),
            Err(refusal) => Err(refusal),
        }
    }

    /// Every registration of a key, or of all with `-`; of the resources that the CRN
    /// names, `*` in it stands for trailing segments; of all if it is empty.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn registrations(
        &self,
        key: &str,
        resource: &str,
    ) -> Result<Vec<Registration>, Refusal> {
        let mut request = pb::ListRegistrationsRequest {
            parent: self.key_name(key),
            page_size: PAGE_SIZE,
            page_token: String::new(),
            resource: resource.into(),
            prevent_key_deletion: false,
        };
        let mut all = Vec::new();
        loop {
            let page = self
                .call(Repeat::Harmless, &request, async |channel, request| {
                    registrations(channel).list_registrations(request).await
                })
                .await?;
            let pb::ListRegistrationsResponse { registrations, next_page_token } = page;
            all.extend(registrations);
            if next_page_token.is_empty() {
                return Ok(all);
            }
            request.page_token = next_page_token;
        }
    }

    /// The events of the keys that protect this service's resources, from the resume
    /// token on; with an empty one, from the oldest that was not acknowledged. An event
    /// may come twice.
    pub fn events(&self, resume_token: impl Into<String>) -> KeyEvents {
        KeyEvents::new(self.clone(), self.policy, resume_token.into())
    }

    /// Says that what the event asks is done, or why it could not be done. Returns
    /// whether every service that it concerns has said so.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub async fn acknowledge(&self, event: &KeyEvent, failure: &str) -> Result<bool, Refusal> {
        let request = pb::AcknowledgeKeyEventRequest {
            key: event.key.clone(),
            event_id: event.id,
            failure: one_line(failure),
        };
        let answer = self
            .call(Repeat::Harmless, &request, async |channel, request| {
                EventServiceClient::new(channel).acknowledge_key_event(request).await
            })
            .await?;
        Ok(answer.all_acknowledged)
    }

    /// A stream of events; it lasts until one of both sides ends it.
    pub(super) async fn watch(&self, token: &str) -> Result<Streaming<KeyEvent>, Failed> {
        let request = pb::WatchKeyEventsRequest {
            parent: format!("instances/{}", self.instance),
            resume_token: token.into(),
        };
        let channel = self.connection.channel().await;
        let mut client = EventServiceClient::new(channel);
        // Without grpc-timeout, which would end the stream; but not without a limit.
        let answer = tokio::time::timeout(self.policy.deadline, client.watch_key_events(request));
        Ok(answer.await.map_err(|_over| timed_out())?.map_err(Failed::from)?.into_inner())
    }

    async fn call<Q: Clone, A>(
        &self,
        repeat: Repeat,
        message: &Q,
        send: impl AsyncFn(Channel, Request<Q>) -> Result<Response<A>, Status>,
    ) -> Result<A, Refusal> {
        let began = Instant::now();
        let left = || self.policy.deadline.saturating_sub(began.elapsed());
        let mut attempts = 0;
        loop {
            attempts += 1;
            let channel = self.connection.channel().await;
            let mut request = Request::new(message.clone());
            request.set_timeout(left());
            let failed = match tokio::time::timeout(left(), send(channel, request)).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Failed::from(status),
                Err(_over) => timed_out(),
            };
            let pause = self.policy.pause(&failed, repeat, (attempts, left()), random());
            let Some(pause) = pause else { return Err(failed.refusal) };
            tracing::debug!(reason = failed.refusal.reason, attempts, ?pause, "asking again");
            tokio::time::sleep(pause).await;
        }
    }
}

fn crypto(channel: Channel) -> CryptoServiceClient<Channel> {
    CryptoServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn registrations(channel: Channel) -> RegistrationServiceClient<Channel> {
    RegistrationServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

fn timed_out() -> Failed {
    Failed { refusal: Status::deadline_exceeded("there was no answer in time").into(), lost: false }
}

/// As the contract wants it: what tools say has line ends, and may be long.
fn one_line(text: &str) -> String {
    let letters = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    letters.take(LONGEST_FAILURE).collect()
}

/// 0 to 1; the middle if the system has none to give.
pub(super) fn random() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}

/// Takes a DEK out of an answer, and wipes what it was received in as far as it is ours.
fn take_secret(bytes: Bytes) -> Secret {
    let secret = Secret::new(bytes.to_vec());
    if let Ok(mut bytes) = bytes.try_into_mut() {
        bytes.as_mut().zeroize();
    }
    secret
}

const PAGE_SIZE: i32 = 1000;
/// In characters; the contract's limit.
const LONGEST_FAILURE: usize = 240;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_that_the_contract_takes() {
        assert_eq!(one_line("qemu-img: no\r\nspace"), "qemu-img: no  space");
        assert_eq!(one_line(&"ä".repeat(300)).chars().count(), LONGEST_FAILURE);
    }

    /// A service calls from tasks of its own.
    #[tokio::test]
    async fn every_call_can_be_made_from_any_task() {
        fn of_any_task<T: Send>(_: &T) {}
        let dir = tempfile::tempdir().unwrap();
        let ca = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(dir.path().join("a.pem"), ca.cert.pem()).unwrap();
        std::fs::write(dir.path().join("a.key"), ca.signing_key.serialize_pem()).unwrap();
        let config = ClientConfig {
            endpoint: "https://127.0.0.1:9".into(),
            instance: "default".into(),
            ca: dir.path().join("a.pem"),
            certificate: dir.path().join("a.pem"),
            key: dir.path().join("a.key"),
        };
        let client = StorageClient::open(config, RetryPolicy::default()).unwrap();
        let (context, event) = (DekContext::of("k", "crn:v1"), KeyEvent::default());
        of_any_task(&client.generate(&context, 32, None));
        of_any_task(&client.wrap(&context, &Secret::zeroed(32), None));
        of_any_task(&client.unwrap(&context, &[]));
        of_any_task(&client.rewrap(&context, &[]));
        of_any_task(&client.register("k", Registration::default()));
        of_any_task(&client.update(Registration::default(), &[]));
        of_any_task(&client.unregister("n"));
        of_any_task(&client.registrations("k", ""));
        of_any_task(&client.acknowledge(&event, ""));
        of_any_task(&client.events("").next());
    }
}

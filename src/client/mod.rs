//! How to talk to the daemon: `client.toml`, mutual TLS, and one typed client for
//! each service ([`Client`], which retries nothing). For services that have resources
//! encrypted: [`StorageClient`], with deadlines, retries, certificate reload and events.
//!
//! It does not decide what to call.

mod events;
mod refusal;
mod reload;
mod retry;
mod storage;
mod why;

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use thiserror::Error as ThisError;
use tonic::{
    Request, Status,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

pub use self::{
    events::KeyEvents,
    refusal::{Chain, Refusal},
    retry::{Failed, Repeat, RetryPolicy},
    storage::{DekContext, NewDek, Rewrapped, StorageClient, Unwrapped, WrappedDek},
    why::KeyRefusal,
};
use crate::api::pb::{
    access_service_client::AccessServiceClient, admin_service_client::AdminServiceClient,
    audit_service_client::AuditServiceClient, crypto_service_client::CryptoServiceClient,
    event_service_client::EventServiceClient, import_service_client::ImportServiceClient,
    instance_service_client::InstanceServiceClient, key_ring_service_client::KeyRingServiceClient,
    key_service_client::KeyServiceClient, policy_service_client::PolicyServiceClient,
    registration_service_client::RegistrationServiceClient,
    resource_service_client::ResourceServiceClient,
};
pub use crate::{
    api::pb::{
        KeyEvent, Registration, key_event::Type as KeyEventType, registration::Kind as ResourceKind,
    },
    secret::Secret,
};

/// Where the daemon is, which instance is meant, and as whom to connect.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// URL of the daemon: `https://`, or `unix:///path` of its socket on this machine,
    /// which needs none of the files below.
    #[serde(default = "default_endpoint")]
    pub endpoint: String,
    /// The instance that key names without one are in.
    #[serde(default = "default_instance")]
    pub instance: String,
    /// PEM file of the certificate authority that signed the daemon's certificate.
    #[serde(default)]
    pub ca: PathBuf,
    /// PEM file of the caller's certificate.
    #[serde(default)]
    pub certificate: PathBuf,
    /// PEM file of the private key of `certificate`.
    #[serde(default)]
    pub key: PathBuf,
}

impl ClientConfig {
    /// Reads a `client.toml`; relative paths in it start at its folder.
    ///
    /// # Errors
    /// If the file cannot be read, or is not exactly a `client.toml`.
    pub fn load(path: &Path) -> Result<Self, ClientError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ClientError::Unread { path: path.to_owned(), source })?;
        let folder = path.parent().unwrap_or_else(|| Path::new(""));
        Self::parse(&text, folder).map_err(|source| ClientError::Malformed {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Reads the text of a `client.toml` that lies in `folder`.
    ///
    /// # Errors
    /// If the text is not TOML, lacks a field, or has one that is not known.
    pub fn parse(text: &str, folder: &Path) -> Result<Self, toml::de::Error> {
        let mut config: Self = toml::from_str(text)?;
        let local = config.is_local();
        let Self { endpoint: _, instance: _, ca, certificate, key } = &mut config;
        for (name, path) in [("ca", ca), ("certificate", certificate), ("key", key)] {
            if !path.as_os_str().is_empty() {
                *path = folder.join(&path);
            } else if !local {
                return Err(serde::de::Error::missing_field(name));
            }
        }
        Ok(config)
    }

    /// For the daemon whose Unix socket is at `endpoint`: it needs no files.
    pub fn local(endpoint: String) -> Self {
        let [ca, certificate, key] = [(); 3].map(|()| PathBuf::new());
        Self { endpoint, instance: default_instance(), ca, certificate, key }
    }

    /// Whether the system says who is who, and not certificates.
    pub fn is_local(&self) -> bool {
        self.endpoint.starts_with(LOCAL)
    }

    /// Takes the certificate and private key `NAME.pem` and `NAME.key` from the
    /// folder of the certificate that is configured.
    pub fn use_identity(&mut self, name: &str) {
        let folder = self.certificate.parent().unwrap_or_else(|| Path::new("")).to_owned();
        self.certificate = folder.join(format!("{name}.pem"));
        self.key = folder.join(format!("{name}.key"));
    }
}

/// Where `rootkeyd dev` serves.
pub fn default_endpoint() -> String {
    "https://127.0.0.1:8443".to_owned()
}

/// The instance that `rootkeyd dev` makes.
pub fn default_instance() -> String {
    "default".to_owned()
}

/// One connection, and the typed clients that share it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    transport: Transport,
    /// Without a time limit, for what has no end.
    unlimited: Transport,
    instance: String,
}

impl Client {
    /// Connects by mutual TLS; each request then has `timeout` to be answered.
    ///
    /// # Errors
    /// If a PEM file cannot be read, or the daemon not reached within 5 s.
    pub async fn connect(config: &ClientConfig, timeout: Duration) -> Result<Self, ClientError> {
        let channel = endpoint(config, concat!("rootkeyctl/", env!("CARGO_PKG_VERSION")))?
            .connect()
            .await
            .map_err(|source| {
                let endpoint = config.endpoint.clone();
                ClientError::Unreachable { endpoint, source }
            })?;
        let transport = InterceptedService::new(channel.clone(), Deadline(Some(timeout)));
        let unlimited = InterceptedService::new(channel, Deadline(None));
        Ok(Self { transport, unlimited, instance: config.instance.clone() })
    }

    /// Wraps and unwraps.
    pub fn crypto(&self) -> CryptoServiceClient<Transport> {
        CryptoServiceClient::new(self.transport.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The life cycle of root keys.
    pub fn keys(&self) -> KeyServiceClient<Transport> {
        KeyServiceClient::new(self.transport.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Who may do what.
    pub fn access(&self) -> AccessServiceClient<Transport> {
        AccessServiceClient::new(self.transport.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Key rings.
    pub fn rings(&self) -> KeyRingServiceClient<Transport> {
        KeyRingServiceClient::new(self.transport.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Import tokens.
    pub fn import(&self) -> ImportServiceClient<Transport> {
        ImportServiceClient::new(self.transport.clone())
    }

    /// The policies of an instance.
    pub fn policies(&self) -> PolicyServiceClient<Transport> {
        PolicyServiceClient::new(self.transport.clone())
    }

    /// Which resource is protected by which root key.
    pub fn registrations(&self) -> RegistrationServiceClient<Transport> {
        RegistrationServiceClient::new(self.transport.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What the state of a root key means for what it protects.
    pub fn resources(&self) -> ResourceServiceClient<Transport> {
        ResourceServiceClient::new(self.transport.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The instances of the daemon.
    pub fn instances(&self) -> InstanceServiceClient<Transport> {
        InstanceServiceClient::new(self.transport.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// What services are told of keys, and rewrap campaigns.
    pub fn events(&self) -> EventServiceClient<Transport> {
        EventServiceClient::new(self.transport.clone())
    }

    /// The same, to watch for as long as the daemon goes on.
    pub fn event_stream(&self) -> EventServiceClient<Transport> {
        EventServiceClient::new(self.unlimited.clone())
    }

    /// The audit log.
    pub fn audit(&self) -> AuditServiceClient<Transport> {
        AuditServiceClient::new(self.transport.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The same, to watch and to export for as long as it takes.
    pub fn audit_stream(&self) -> AuditServiceClient<Transport> {
        AuditServiceClient::new(self.unlimited.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The daemon itself.
    pub fn admin(&self) -> AdminServiceClient<Transport> {
        AdminServiceClient::new(self.transport.clone())
    }

    /// `instances/{instance}`, of the instance that is configured.
    pub fn parent(&self) -> String {
        format!("instances/{}", self.instance)
    }

    /// The name of a key that is given as a UUID, an alias or a full name. The
    /// daemon says whether it is one.
    pub fn key_name(&self, key: &str) -> String {
        full_name(key, || format!("{}/keys/{key}", self.parent()))
    }

    /// The name of a key ring that is given by its last part or a full name.
    pub fn ring_name(&self, ring: &str) -> String {
        full_name(ring, || format!("{}/keyRings/{ring}", self.parent()))
    }

    /// The name of a binding, of the collection `bindings` or `serviceAuthorizations`, that
    /// is given by its UUID or a full name.
    pub fn binding_name(&self, collection: &str, id: &str) -> String {
        full_name(id, || format!("{}/{collection}/{id}", self.parent()))
    }

    /// The name of a registration that is given as `KEY/UUID` or a full name.
    pub fn registration_name(&self, registration: &str) -> String {
        full_name(registration, || match registration.rsplit_once('/') {
            Some((key, id)) => format!("{}/registrations/{id}", self.key_name(key)),
            None => registration.to_owned(),
        })
    }

    /// The name of the import token of the instance that is configured.
    pub fn import_token_name(&self) -> String {
        format!("{}/importToken", self.parent())
    }
}

/// By mutual TLS, or a Unix socket; nothing is connected yet.
fn endpoint(config: &ClientConfig, user_agent: &str) -> Result<Endpoint, ClientError> {
    let ClientConfig { endpoint, instance: _, ca, certificate, key } = config;
    let invalid = |source| ClientError::Invalid { endpoint: endpoint.clone(), source };
    if config.is_local() {
        let made = Endpoint::from_shared(endpoint.clone()).map_err(invalid)?;
        let made = made.user_agent(user_agent).map_err(invalid)?;
        return Ok(made.connect_timeout(CONNECT_TIMEOUT));
    }
    if !endpoint.starts_with("https://") {
        return Err(ClientError::NotHttps { endpoint: endpoint.clone() });
    }
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read_pem(ca)?))
        .identity(Identity::from_pem(read_pem(certificate)?, read_pem(key)?));
    let made = Endpoint::from_shared(endpoint.clone())
        .map_err(invalid)?
        .user_agent(user_agent)
        .map_err(invalid)?
        .tls_config(tls)
        .map_err(invalid)?;
    Ok(made.connect_timeout(CONNECT_TIMEOUT))
}

/// The name of an instance that is given by its last part or a full name.
pub fn instance_name(instance: &str) -> String {
    full_name(instance, || format!("instances/{instance}"))
}

fn full_name(name: &str, made: impl FnOnce() -> String) -> String {
    if name.starts_with("instances/") { name.to_owned() } else { made() }
}

/// What the typed clients speak through.
pub type Transport = InterceptedService<Channel, Deadline>;

/// Gives every request the time it has: to the daemon by `grpc-timeout`, and to
/// the channel, which gives up by itself.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Duration>);

impl Interceptor for Deadline {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(limit) = self.0 {
            request.set_timeout(limit);
        }
        Ok(request)
    }
}

/// Why there is no connection.
#[derive(Debug, ThisError)]
pub enum ClientError {
    /// A configuration or PEM file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Unread {
        /// Of the file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no `client.toml`.
    #[error("{} is not a client.toml: {}", path.display(), source.message())]
    Malformed {
        /// Of the file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// The endpoint would carry DEKs in the clear.
    #[error("the endpoint {endpoint:?} does not begin with https:// or unix:///")]
    NotHttps {
        /// As it was given.
        endpoint: String,
    },
    /// The endpoint is no URL, or a PEM file holds no certificate or key.
    #[error("cannot set up a connection to {endpoint}: {}", Chain(source))]
    Invalid {
        /// As it was given.
        endpoint: String,
        /// What is wrong.
        source: tonic::transport::Error,
    },
    /// Nobody listens there, or the TLS handshake failed.
    #[error("cannot connect to {endpoint}: {}", Chain(source))]
    Unreachable {
        /// As it was given.
        endpoint: String,
        /// What went wrong.
        source: tonic::transport::Error,
    },
}

impl ClientError {
    /// In upper snake case, for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unread { .. }
            | Self::Malformed { .. }
            | Self::NotHttps { .. }
            | Self::Invalid { .. } => "CONFIG_INVALID",
            Self::Unreachable { .. } => "UNAVAILABLE",
        }
    }
}

fn read_pem(path: &Path) -> Result<Vec<u8>, ClientError> {
    fs::read(path).map_err(|source| ClientError::Unread { path: path.to_owned(), source })
}

const LOCAL: &str = "unix:///";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_MESSAGE_BYTES: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT_TOML: &str = r#"
        endpoint = "https://127.0.0.1:9000"
        instance = "prod"
        ca = "tls/ca.pem"
        certificate = "tls/admin.pem"
        key = "/keys/admin.key"
    "#;

    #[test]
    fn relative_paths_start_at_the_folder_of_client_toml() {
        let config = ClientConfig::parse(CLIENT_TOML, Path::new("/dev-dir")).unwrap();
        assert_eq!(config.endpoint, "https://127.0.0.1:9000");
        assert_eq!(config.instance, "prod");
        assert_eq!(config.ca, Path::new("/dev-dir/tls/ca.pem"));
        assert_eq!(config.certificate, Path::new("/dev-dir/tls/admin.pem"));
        assert_eq!(config.key, Path::new("/keys/admin.key"));
    }

    #[test]
    fn an_unknown_key_in_client_toml_is_refused() {
        let text = format!("{CLIENT_TOML}\ninsecure = true\n");
        let error = ClientConfig::parse(&text, Path::new("/")).unwrap_err();
        assert!(error.message().contains("unknown field `insecure`"), "{error}");
    }

    #[test]
    fn client_toml_without_a_certificate_is_refused() {
        let error = ClientConfig::parse("ca = \"a\"\nkey = \"b\"", Path::new("/")).unwrap_err();
        assert!(error.message().contains("missing field `certificate`"), "{error}");
    }

    #[test]
    fn client_toml_of_a_unix_socket_needs_no_files() {
        let text = "endpoint = \"unix:///run/rootkeyd.sock\"";
        let config = ClientConfig::parse(text, Path::new("/dev-dir")).unwrap();
        assert_eq!(config.ca, Path::new(""));
        assert!(endpoint(&config, "test").is_ok());
    }

    #[test]
    fn an_identity_is_taken_from_the_folder_of_the_certificate() {
        let mut config = ClientConfig::parse(CLIENT_TOML, Path::new("/dev-dir")).unwrap();
        config.use_identity("block-storage");
        assert_eq!(config.certificate, Path::new("/dev-dir/tls/block-storage.pem"));
        assert_eq!(config.key, Path::new("/dev-dir/tls/block-storage.key"));
    }

    #[tokio::test]
    async fn names_are_made_whole_and_full_names_taken_as_they_are() {
        let channel = Endpoint::from_static("https://127.0.0.1:9").connect_lazy();
        let transport = InterceptedService::new(channel, Deadline(Some(CONNECT_TIMEOUT)));
        let unlimited = transport.clone();
        let client = Client { transport, unlimited, instance: "prod".to_owned() };
        assert_eq!(client.key_name("block"), "instances/prod/keys/block");
        assert_eq!(client.key_name("instances/a/keys/k"), "instances/a/keys/k");
        assert_eq!(client.ring_name("payments"), "instances/prod/keyRings/payments");
        assert_eq!(client.import_token_name(), "instances/prod/importToken");
        assert_eq!(client.registration_name("k/7d1c"), "instances/prod/keys/k/registrations/7d1c");
        let full = "instances/a/keys/k/registrations/7d1c";
        assert_eq!(client.registration_name(full), full);
        assert_eq!(instance_name("prod"), "instances/prod");
        assert_eq!(instance_name("instances/prod"), "instances/prod");
    }
}

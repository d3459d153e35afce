//! A running daemon: the real binary, a real SoftHSM token, real sockets, in a
//! directory and on a port of its own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use aes_gcm::aead::Aead;
use aes_gcm::aead::consts::U12;
use aes_gcm::aes::Aes192;
use aes_gcm::{Aes128Gcm, Aes256Gcm, AesGcm, KeyInit};
use aws_lc_rs::rsa::{
    OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey,
};
use rootkeyd::api::pb;
use rootkeyd::api::pb::access_service_client::AccessServiceClient;
use rootkeyd::api::pb::admin_service_client::AdminServiceClient;
use rootkeyd::api::pb::audit_service_client::AuditServiceClient;
use rootkeyd::api::pb::crypto_service_client::CryptoServiceClient;
use rootkeyd::api::pb::import_service_client::ImportServiceClient;
use rootkeyd::api::pb::instance_service_client::InstanceServiceClient;
use rootkeyd::api::pb::key_ring_service_client::KeyRingServiceClient;
use rootkeyd::api::pb::key_service_client::KeyServiceClient;
use rootkeyd::api::pb::policy_service_client::PolicyServiceClient;
use rootkeyd::api::pb::registration_service_client::RegistrationServiceClient;
use rootkeyd::api::pb::resource_service_client::ResourceServiceClient;
use rootkeyd::api::pb::set_instance_policy_request::Policy;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt;

/// A daemon, and the directory that it keeps everything in.
pub struct Daemon {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub address: String,
    pub dir: PathBuf,
    pub clock: PathBuf,
    pub log: PathBuf,
    /// Removes the directory, if it is ours.
    temporary: Option<TempDir>,
}

/// One principal's clients.
#[derive(Clone)]
pub struct Client {
    pub crypto: CryptoServiceClient<Channel>,
    pub keys: KeyServiceClient<Channel>,
    pub audit: AuditServiceClient<Channel>,
    pub admin: AdminServiceClient<Channel>,
    pub rings: KeyRingServiceClient<Channel>,
    pub import: ImportServiceClient<Channel>,
    pub policies: PolicyServiceClient<Channel>,
    pub registrations: RegistrationServiceClient<Channel>,
    pub instances: InstanceServiceClient<Channel>,
    pub resources: ResourceServiceClient<Channel>,
    pub access: AccessServiceClient<Channel>,
    pub channel: Channel,
}

/// What a refusal says, as a client reads it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    pub code: Code,
    pub reason: String,
    pub message: String,
    pub metadata: HashMap<String, String>,
    pub retry_after: Option<Duration>,
}

pub const DAEMON: &str = env!("CARGO_BIN_EXE_rootkeyd");
pub const CLI: &str = env!("CARGO_BIN_EXE_rootkeyctl");

impl Daemon {
    /// In a new directory, on first use.
    pub fn start() -> Self {
        Self::start_with_env(&[])
    }

    /// The same, with these variables in its environment.
    pub fn start_with_env(variables: &[(&str, &str)]) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("dev");
        let mut daemon = Self::begin(&dir, variables);
        daemon.temporary = Some(temporary);
        daemon
    }

    /// In a new directory, whose configuration `edit` changes after the first use.
    pub fn start_edited(edit: impl FnOnce(String) -> String) -> Self {
        let mut daemon = Self::start();
        daemon.terminate();
        let config = daemon.dir.join("rootkeyd.toml");
        fs::write(&config, edit(fs::read_to_string(&config).unwrap())).unwrap();
        daemon.start_again();
        daemon
    }

    /// In `dir`.
    pub fn start_in(dir: &Path) -> Self {
        Self::begin(dir, &[])
    }

    fn begin(dir: &Path, variables: &[(&str, &str)]) -> Self {
        fs::create_dir_all(dir).unwrap();
        let (clock, log) = (dir.join("clock"), dir.join("log"));
        let mut command = dev(dir, &clock);
        let (child, stdout, address) = spawn(command.envs(variables.iter().copied()), &log);
        Self { child, stdout, address, dir: dir.into(), clock, log, temporary: None }
    }

    /// After it was ended: again in the same directory.
    pub fn start_again(&mut self) {
        self.start_by(self.dev());
    }

    /// After it was ended: by this command, which serves the same directory.
    pub fn start_by(&mut self, mut command: Command) {
        (self.child, self.stdout, self.address) = spawn(&mut command, &self.log);
    }

    /// The same, where it may not start; whether it did.
    pub fn tries_to_start_by(&mut self, mut command: Command) -> bool {
        let (child, stdout, address) = begin(&mut command, &self.log);
        let started = address.is_some();
        (self.child, self.stdout, self.address) = (child, stdout, address.unwrap_or_default());
        started
    }

    /// Waits until it ended by itself; how.
    pub fn ended(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// `rootkeyd dev`, in this directory.
    pub fn dev(&self) -> Command {
        dev(&self.dir, &self.clock)
    }

    /// `rootkeyd --config`, with the configuration that `rootkeyd dev` made.
    pub fn by_config(&self) -> Command {
        let mut command = Command::new(DAEMON);
        command.arg("--config").arg(self.dir.join("rootkeyd.toml"));
        command.env("SOFTHSM2_CONF", self.dir.join("softhsm2.conf"));
        command
    }

    /// SIGTERM; waits, and requires that it ended well.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}\n{}", self.logged());
    }

    /// The same, while this test's own connections go on: a client that does not
    /// answer holds up a graceful stop for its whole patience.
    pub async fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        assert!(status.success(), "{status}\n{}", self.logged());
    }

    /// SIGKILL; waits.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
    }

    /// SIGABRT; how it ended.
    pub fn abort(&mut self) -> ExitStatus {
        self.signal(Signal::ABORT);
        self.child.wait().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed after the line that it listens; waits until it ends.
    pub fn printed(&mut self) -> Vec<u8> {
        let mut printed = Vec::new();
        self.stdout.read_to_end(&mut printed).unwrap();
        printed
    }

    /// What it logged so far.
    pub fn logged(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sets the daemon's clock: `system`, `+31s`, or an RFC 3339 time.
    pub fn set_clock(&self, text: &str) {
        let temporary = self.clock.with_extension("new");
        fs::write(&temporary, text).unwrap();
        fs::rename(&temporary, &self.clock).unwrap();
    }

    /// The clients of one whose certificate is in `tls/`: `admin`, `officer`, `writer`,
    /// `key-purge`, `block-storage`, `file-storage` or `image`.
    pub async fn client(&self, name: &str) -> Client {
        let channel = self.endpoint(Some(name)).connect().await.unwrap();
        Client::new(channel)
    }

    /// An endpoint with the certificate of `name`, or none.
    pub fn endpoint(&self, name: Option<&str>) -> Endpoint {
        let read = |file: String| fs::read(self.dir.join("tls").join(file)).unwrap();
        self.endpoint_as(name.map(|name| {
            Identity::from_pem(read(format!("{name}.pem")), read(format!("{name}.key")))
        }))
    }

    /// An endpoint with this certificate, or none.
    pub fn endpoint_as(&self, identity: Option<Identity>) -> Endpoint {
        let ca = Certificate::from_pem(fs::read(self.dir.join("tls/ca.pem")).unwrap());
        let mut tls = ClientTlsConfig::new().ca_certificate(ca);
        if let Some(identity) = identity {
            tls = tls.identity(identity);
        }
        let uri = format!("https://{}", self.address);
        let endpoint = Endpoint::from_shared(uri).unwrap().tls_config(tls).unwrap();
        endpoint.connect_timeout(Duration::from_secs(20))
    }

    /// `rootkeyctl` with these arguments, as the admin.
    pub fn cli(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(CLI);
        command.args(arguments).env("ROOTKEYCTL_CONFIG", self.dir.join("client.toml"));
        command
    }

    /// Waits until `done`, at most a minute.
    pub async fn until(&self, what: &str, mut done: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !done().await {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}\n{}", self.logged());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}", self.logged());
        }
    }
}

fn dev(dir: &Path, clock: &Path) -> Command {
    let mut command = Command::new(DAEMON);
    command.args(["dev", "--listen", "127.0.0.1:0", "--dir"]).arg(dir);
    command.arg("--test-clock").arg(clock);
    command
}

fn spawn(command: &mut Command, log: &Path) -> (Child, BufReader<ChildStdout>, String) {
    let (child, stdout, address) = begin(command, log);
    let address = address.unwrap_or_else(|| {
        panic!("the daemon did not start\n{}", fs::read_to_string(log).unwrap_or_default())
    });
    (child, stdout, address)
}

fn begin(command: &mut Command, log: &Path) -> (Child, BufReader<ChildStdout>, Option<String>) {
    let log_file = File::options().create(true).append(true).open(log).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log_file);
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").map(str::to_owned);
    (child, stdout, address)
}

impl Client {
    pub fn new(channel: Channel) -> Self {
        Self {
            crypto: CryptoServiceClient::new(channel.clone())
                .max_decoding_message_size(64 << 20)
                .max_encoding_message_size(64 << 20),
            keys: KeyServiceClient::new(channel.clone()),
            audit: AuditServiceClient::new(channel.clone()),
            admin: AdminServiceClient::new(channel.clone()),
            rings: KeyRingServiceClient::new(channel.clone()),
            import: ImportServiceClient::new(channel.clone()),
            policies: PolicyServiceClient::new(channel.clone()),
            registrations: RegistrationServiceClient::new(channel.clone()),
            instances: InstanceServiceClient::new(channel.clone()),
            resources: ResourceServiceClient::new(channel.clone()),
            access: AccessServiceClient::new(channel.clone()),
            channel,
        }
    }

    /// Makes a key in instance `default`.
    pub async fn create(&mut self, display_name: &str) -> pb::Key {
        let key = pb::Key { display_name: display_name.into(), ..Default::default() };
        self.create_key(key).await.unwrap()
    }

    pub async fn create_key(&mut self, key: pb::Key) -> Result<pb::Key, Refusal> {
        let request = pb::CreateKeyRequest {
            parent: "instances/default".into(),
            key: Some(key),
            request_id: String::new(),
        };
        self.keys.create_key(request).await.map(tonic::Response::into_inner).map_err(refusal)
    }

    pub async fn wrap(&mut self, key: &str, dek: &[u8], aad: &[&[u8]]) -> Result<Vec<u8>, Refusal> {
        let request = pb::WrapDekRequest {
            register: None,
            key: key.into(),
            dek: dek.to_vec(),
            aad: items(aad),
            resource: String::new(),
        };
        let response = self.crypto.wrap_dek(request).await.map_err(refusal)?;
        Ok(response.into_inner().wrapped_dek.to_vec())
    }

    pub async fn unwrap(
        &mut self,
        key: &str,
        wrapped: &[u8],
        aad: &[&[u8]],
    ) -> Result<pb::UnwrapDekResponse, Refusal> {
        let request = unwrap_request(key, wrapped, aad);
        let response = self.crypto.unwrap_dek(request).await.map_err(refusal)?;
        Ok(response.into_inner())
    }

    pub async fn disable(&mut self, name: &str) -> Result<pb::Key, Refusal> {
        let request =
            pb::DisableKeyRequest { name: name.into(), etag: String::new(), ..Default::default() };
        self.keys.disable_key(request).await.map(tonic::Response::into_inner).map_err(refusal)
    }

    pub async fn enable(&mut self, name: &str) -> Result<pb::Key, Refusal> {
        let request = pb::EnableKeyRequest { name: name.into(), etag: String::new() };
        self.keys.enable_key(request).await.map(tonic::Response::into_inner).map_err(refusal)
    }

    pub async fn delete(&mut self, name: &str) -> Result<pb::Key, Refusal> {
        let request = pb::DeleteKeyRequest {
            name: name.into(),
            etag: String::new(),
            force: false,
            ..Default::default()
        };
        self.keys.delete_key(request).await.map(tonic::Response::into_inner).map_err(refusal)
    }

    pub async fn restore(&mut self, name: &str) -> Result<pb::Key, Refusal> {
        let request = pb::RestoreKeyRequest { name: name.into(), etag: String::new() };
        self.keys.restore_key(request).await.map(tonic::Response::into_inner).map_err(refusal)
    }

    pub async fn rotate(&mut self, name: &str) -> Result<pb::Key, Refusal> {
        let request = pb::RotateKeyRequest { name: name.into(), ..Default::default() };
        self.keys.rotate_key(request).await.map(tonic::Response::into_inner).map_err(refusal)
    }

    pub async fn get(&mut self, name: &str) -> Result<pb::Key, Refusal> {
        let request = pb::GetKeyRequest { name: name.into() };
        self.keys.get_key(request).await.map(tonic::Response::into_inner).map_err(refusal)
    }

    pub async fn purge(&mut self, name: &str) -> Result<pb::PurgeKeyResponse, Refusal> {
        let request = pb::PurgeKeyRequest { name: name.into() };
        outcome(self.keys.purge_key(request).await)
    }

    /// Makes an import token of instance `default`, and retrieves it once.
    pub async fn import_token(&mut self, max_allowed_retrievals: i32) -> pb::ImportToken {
        let request = pb::CreateImportTokenRequest { max_allowed_retrievals, ..token_request() };
        self.make_token(request).await.unwrap();
        self.retrieve_token().await.unwrap()
    }

    /// Makes an import token; an RSA pair can take longer than a caller waits by default.
    pub async fn make_token(
        &mut self,
        request: pb::CreateImportTokenRequest,
    ) -> Result<pb::ImportToken, Refusal> {
        let mut request = Request::new(request);
        request.set_timeout(Duration::from_secs(60));
        outcome(self.import.create_import_token(request).await)
    }

    /// The import token of instance `default`.
    pub async fn retrieve_token(&mut self) -> Result<pb::ImportToken, Refusal> {
        let name = "instances/default/importToken".to_owned();
        let request = || pb::GetImportTokenRequest { name: name.clone() };
        tried(async || outcome(self.import.get_import_token(request()).await)).await
    }

    /// Imports a key to instance `default`.
    pub async fn import_key(
        &mut self,
        display_name: &str,
        material: pb::SealedKeyMaterial,
    ) -> Result<pb::Key, Refusal> {
        let request = import_request(display_name, material);
        tried(async || outcome(self.keys.import_key(request.clone()).await)).await
    }

    /// Sets a policy of an instance.
    pub async fn set_policy(
        &mut self,
        parent: &str,
        policy: Policy,
    ) -> Result<pb::InstancePolicies, Refusal> {
        let (parent, policy) = (parent.into(), Some(policy));
        let request = pb::SetInstancePolicyRequest { parent, policy, etag: String::new() };
        outcome(self.policies.set_instance_policy(request).await)
    }

    /// Gives a role to a principal.
    pub async fn bind(
        &mut self,
        principal: &str,
        role: pb::Role,
        scope: &str,
    ) -> Result<pb::Binding, Refusal> {
        let instance = scope.split('/').take(2).collect::<Vec<_>>().join("/");
        let binding = pb::Binding {
            principal: principal.into(),
            role: role.into(),
            scope: scope.into(),
            ..Default::default()
        };
        let request = pb::CreateBindingRequest { parent: instance, binding: Some(binding) };
        outcome(self.access.create_binding(request).await)
    }

    pub async fn unbind(&mut self, name: &str) -> Result<(), Refusal> {
        let request = pb::DeleteBindingRequest { name: name.into() };
        outcome(self.access.delete_binding(request).await).map(drop)
    }

    /// Lets a service use keys.
    pub async fn authorize(
        &mut self,
        service: &str,
        scope: &str,
    ) -> Result<pb::ServiceAuthorization, Refusal> {
        let instance = scope.split('/').take(2).collect::<Vec<_>>().join("/");
        let new = pb::ServiceAuthorization {
            service: service.into(),
            scope: scope.into(),
            ..Default::default()
        };
        let request = pb::CreateServiceAuthorizationRequest {
            parent: instance,
            service_authorization: Some(new),
        };
        outcome(self.access.create_service_authorization(request).await)
    }

    pub async fn deauthorize(&mut self, name: &str) -> Result<(), Refusal> {
        let request = pb::DeleteServiceAuthorizationRequest { name: name.into() };
        outcome(self.access.delete_service_authorization(request).await).map(drop)
    }

    /// The authorization of a service on the whole instance `default`.
    pub async fn authorization_of(&mut self, service: &str) -> String {
        let parent = "instances/default".into();
        let request = pb::ListServiceAuthorizationsRequest { parent, ..Default::default() };
        let listed = outcome(self.access.list_service_authorizations(request).await).unwrap();
        let mut found = listed.service_authorizations.into_iter();
        found.find(|it| it.service == service && it.scope == "instances/default").unwrap().name
    }

    /// Registers a resource against a key.
    pub async fn register(
        &mut self,
        key: &str,
        registration: pb::Registration,
    ) -> Result<pb::Registration, Refusal> {
        let (parent, registration) = (key.into(), Some(registration));
        let request = pb::CreateRegistrationRequest { parent, registration };
        outcome(self.registrations.create_registration(request).await)
    }

    /// Has a checkpoint made of the audit log; whether that worked.
    pub async fn audit_checkpoint(&mut self) -> bool {
        self.audit.get_checkpoint(pb::GetCheckpointRequest { fresh: true }).await.is_ok()
    }

    /// What the HSM is and can do, as the daemon says.
    pub async fn hsm_status(&mut self) -> pb::HsmStatus {
        outcome(self.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await).unwrap()
    }

    /// Every audit record of instance `default`, newest first.
    pub async fn audit_events(&mut self) -> Vec<pb::AuditEvent> {
        self.audit_events_of("instances/default").await
    }

    /// Every audit record of an instance, newest first.
    pub async fn audit_events_of(&mut self, instance: &str) -> Vec<pb::AuditEvent> {
        let (mut events, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = pb::ListAuditEventsRequest {
                parent: instance.into(),
                page_size: 5000,
                page_token,
                key: String::new(),
            };
            // A page of 5000 records is more than the default of 4 MiB.
            let mut audit = self.audit.clone().max_decoding_message_size(64 << 20);
            let page = audit.list_audit_events(request).await.unwrap().into_inner();
            events.extend(page.audit_events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return events;
            }
        }
    }
}

/// Waits until the scheduler has looked at all that is due: a key that expires soon
/// has its expiration recorded.
pub async fn tick(daemon: &Daemon, client: &Client) {
    let mut client = client.clone();
    let now = client.create("now").await.create_time.unwrap();
    let expires = pb::Key {
        display_name: "soon".into(),
        expire_time: Some(prost_types::Timestamp { seconds: now.seconds + 2, ..now }),
        ..Default::default()
    };
    let key = client.create_key(expires).await.unwrap().name;
    let noted = async || {
        let events = client.audit_events().await;
        events.iter().any(|it| it.action == "kms.secrets.expire" && it.subject == key)
    };
    daemon.until("the expiration is noted", noted).await;
}

pub fn unwrap_request(key: &str, wrapped: &[u8], aad: &[&[u8]]) -> pb::UnwrapDekRequest {
    let (key, wrapped_dek) = (key.into(), wrapped.to_vec());
    pb::UnwrapDekRequest { key, wrapped_dek, aad: items(aad), resource: String::new() }
}

/// After a start it takes seconds until it is known what the HSM unwraps; until then
/// what has to do with that is refused, and may be tried again.
async fn tried<T>(mut call: impl AsyncFnMut() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let began = Instant::now();
    loop {
        match call().await {
            Err(Refusal { reason, retry_after: Some(wait), .. })
                if reason == "HSM_UNAVAILABLE" && began.elapsed() < Duration::from_secs(60) =>
            {
                tokio::time::sleep(wait).await;
            }
            result => return result,
        }
    }
}

/// For a token of instance `default` with the defaults.
pub fn token_request() -> pb::CreateImportTokenRequest {
    pb::CreateImportTokenRequest { parent: "instances/default".into(), ..Default::default() }
}

pub fn import_request(display_name: &str, material: pb::SealedKeyMaterial) -> pb::ImportKeyRequest {
    pb::ImportKeyRequest {
        parent: "instances/default".into(),
        key: Some(pb::Key { display_name: display_name.into(), ..Default::default() }),
        material: Some(material),
        request_id: String::new(),
    }
}

/// Seals an AES key to an import token, by the one algorithm that SoftHSM can do.
pub fn seal(token: &pb::ImportToken, key: &[u8]) -> pb::SealedKeyMaterial {
    seal_by("RSAES_OAEP_SHA_1", token, key)
}

/// Seals material to an import token as a caller would, by another implementation
/// than the daemon's. What is no AES key gets a proof that is none.
pub fn seal_by(algorithm: &str, token: &pb::ImportToken, key: &[u8]) -> pb::SealedKeyMaterial {
    let oaep = match algorithm {
        "RSAES_OAEP_SHA_1" => &OAEP_SHA1_MGF1SHA1,
        "RSAES_OAEP_SHA_256" => &OAEP_SHA256_MGF1SHA256,
        other => panic!("no algorithm {other}"),
    };
    let der = pem::parse(&token.public_key).unwrap();
    let public = PublicEncryptingKey::from_der(der.contents()).unwrap();
    let public = OaepPublicEncryptingKey::new(public).unwrap();
    let mut encrypted_key = vec![0; public.ciphertext_size()];
    public.encrypt(oaep, key, &mut encrypted_key, None).unwrap();
    let nonce_iv: [u8; 12] = random();
    pb::SealedKeyMaterial {
        encrypted_key,
        algorithm: algorithm.into(),
        encrypted_nonce: encrypted_nonce(key, nonce_iv, &token.nonce),
        nonce_iv: nonce_iv.to_vec(),
    }
}

fn encrypted_nonce(key: &[u8], iv: [u8; 12], nonce: &[u8]) -> Vec<u8> {
    fn gcm<C: KeyInit + Aead<NonceSize = U12>>(key: &[u8], iv: [u8; 12], text: &[u8]) -> Vec<u8> {
        C::new_from_slice(key).unwrap().encrypt(&iv.into(), text).unwrap()
    }
    match key.len() {
        16 => gcm::<Aes128Gcm>(key, iv, nonce),
        24 => gcm::<AesGcm<Aes192, U12>>(key, iv, nonce),
        32 => gcm::<Aes256Gcm>(key, iv, nonce),
        _ => vec![0; nonce.len() + 16],
    }
}

pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// The answer, or the refusal.
pub fn outcome<T>(result: Result<Response<T>, Status>) -> Result<T, Refusal> {
    result.map(Response::into_inner).map_err(refusal)
}

/// What became of an operation: `ok`, or the reason.
pub fn said<T>(result: Result<T, Refusal>) -> String {
    result.map_or_else(|refusal| refusal.reason, |_| "ok".to_owned())
}

pub fn items(aad: &[&[u8]]) -> Vec<Vec<u8>> {
    aad.iter().map(|item| item.to_vec()).collect()
}

/// Reads a status as a client would; fails if it lacks ErrorInfo.
pub fn refusal(status: Status) -> Refusal {
    let info =
        status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "rootkeyd.v1");
    Refusal {
        code: status.code(),
        reason: info.reason,
        message: status.message().into(),
        metadata: info.metadata,
        retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
    }
}

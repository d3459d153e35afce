//! The configuration: TOML → validated `Config`. Unknown keys are errors, and so
//! is everything that would only fail later. `rootkeyd.example.toml` has every
//! field with its comment.
//!
//! Relative paths are relative to the folder of the file, so that a folder with
//! its configuration can be moved. No secret is in here: the PIN is in a file of
//! its own, or a systemd credential.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;

use crate::api::{Identity, Limits, Local, LocalPrincipal, Tokens, Who};
use crate::audit;
use crate::auth::bearer::Issuer;
use crate::auth::mtls::Mapping;
use crate::domain::{
    BindingSubject, Gift, Ipv4Net, Malformed, PrincipalId, Profile, Residency, Role, Scope,
};
use crate::hsm;
use crate::memory::MemoryLock;
use crate::service;
use crate::sinks::{self, Sink, Target, View};

/// All that the daemon is told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where store, audit log and lock are.
    pub state_dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where to listen for all but DEKs, if there is such a place.
    pub control: Option<SocketAddr>,
    /// The Unix socket, if there is one.
    pub local: Option<Local>,
    /// Threads that serve connections, with a runtime each.
    pub threads: usize,
    /// Bounds of the listener.
    pub limits: Limits,
    /// PEM files of the listener.
    pub identity: Identity,
    /// What the HSM is and how it is driven.
    pub hsm: hsm::Settings,
    /// Changes of the store that may wait.
    pub store_queue: usize,
    /// Where the audit log is and how it is written.
    pub audit: audit::Settings,
    /// Copies of the audit log for other programs.
    pub sinks: sinks::Settings,
    /// Settings of the use cases.
    pub service: service::Settings,
    /// Who may do what.
    pub access: service::Configured,
    /// What is logged, and how.
    pub log: Log,
    /// Whether memory is kept from swap.
    pub memory: MemoryLock,
}

/// What is logged, and how.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A tracing filter, such as `info` or `rootkeyd=debug,warn`.
    pub filter: String,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration cannot be used, in a sentence.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is no TOML, lacks a field, or has one that there is not.
    #[error("{} is not a configuration: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A field holds what it must not.
    #[error("{field}: {problem}")]
    Invalid {
        /// Name of the field, with its table.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], naming file or field.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.into(), source };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text, &path.canonicalize().map_err(unreadable)?)
    }

    /// Checks the text of the file at `path`, which names relative paths in it.
    ///
    /// # Errors
    /// [`ConfigError`], naming file or field.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        let malformed =
            |source| ConfigError::Malformed { path: path.into(), source: Box::new(source) };
        File::check(toml::from_str(text).map_err(malformed)?, folder)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    state_dir: PathBuf,
    #[serde(default)]
    profile: ProfileName,
    crn_prefix: String,
    #[serde(default)]
    operators: Vec<String>,
    listen: Listen,
    #[serde(default)]
    local_principals: Vec<LocalTable>,
    tls: Tls,
    tokens: Option<TokensTable>,
    hsm: HsmTable,
    #[serde(default)]
    import: ImportTable,
    #[serde(default)]
    store: StoreTable,
    #[serde(default)]
    audit: AuditTable,
    #[serde(default)]
    limits: LimitsTable,
    #[serde(default)]
    memory: MemoryTable,
    #[serde(default)]
    log: Log,
    #[serde(default)]
    bindings: Vec<BindingTable>,
    #[serde(default)]
    authorizations: Vec<AuthorizationTable>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ProfileName {
    #[default]
    Vpc,
    KeyProtect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listen {
    address: SocketAddr,
    control: Option<SocketAddr>,
    unix: Option<PathBuf>,
    #[serde(default = "default_threads")]
    threads: usize,
    #[serde(default = "default_connections")]
    connections: usize,
    #[serde(default = "default_streams")]
    streams: u32,
    #[serde(default = "default_handshake_seconds")]
    handshake_seconds: u64,
    #[serde(default = "default_private_networks")]
    private_networks: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LocalTable {
    uid: Option<u32>,
    gid: Option<u32>,
    principal: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    #[serde(default)]
    crl: Vec<PathBuf>,
    #[serde(default)]
    principals: Vec<PrincipalTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokensTable {
    jwks: PathBuf,
    issuer: String,
    audience: String,
    trust_domain: String,
    gateways: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PrincipalTable {
    san: String,
    principal: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct LimitsTable {
    principal_connections: usize,
    connection_age_seconds: usize,
    request_seconds: usize,
    longest_request_seconds: usize,
    header_bytes: u32,
    dek_message_bytes: usize,
    message_bytes: usize,
    data_per_second: u32,
    control_per_second: u32,
    tightening_per_second: u32,
    calls: Option<usize>,
    control_calls: Option<usize>,
    waiting: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HsmTable {
    module: PathBuf,
    token_label: String,
    pin_file: Option<PathBuf>,
    pin_credential: Option<String>,
    #[serde(default = "default_workers")]
    workers: usize,
    #[serde(default = "default_hsm_queue")]
    queue: usize,
    #[serde(default = "default_object_deadline_seconds")]
    object_deadline_seconds: u64,
    #[serde(default = "default_stuck_seconds")]
    stuck_seconds: u64,
    sync_directory: Option<PathBuf>,
    #[serde(default)]
    isolation: IsolationName,
    #[serde(default)]
    worker_network: bool,
    #[serde(default)]
    session_copies: CopiesName,
    #[serde(default = "default_session_objects")]
    session_objects: usize,
    #[serde(default = "default_session_copy_seconds")]
    session_copy_seconds: u64,
    #[serde(default)]
    residency: ResidencyName,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ResidencyName {
    #[default]
    Token,
    Wrapped,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum CopiesName {
    #[default]
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum IsolationName {
    #[default]
    Thread,
    Process,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct MemoryTable {
    lock: MemoryLock,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ImportTable {
    software_unwrap: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct StoreTable {
    queue: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct AuditTable {
    segment_mib: u64,
    queue: usize,
    origin: Option<String>,
    checkpoint_records: u64,
    checkpoint_seconds: u64,
    witness: Option<PathBuf>,
    journal: PathBuf,
    sinks: Vec<SinkTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SinkTable {
    name: String,
    kind: SinkKind,
    path: PathBuf,
    #[serde(default)]
    view: SinkView,
    rotate_mib: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SinkKind {
    File,
    Syslog,
    Journald,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SinkView {
    #[default]
    Json,
    CloudEvents,
    Ocsf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BindingTable {
    principal: String,
    role: RoleName,
    scope: Option<String>,
    instance: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AuthorizationTable {
    service: String,
    scope: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
enum RoleName {
    Reader,
    ReaderPlus,
    Writer,
    Manager,
    KeyPurge,
}

impl File {
    fn check(self, folder: &Path) -> Result<Config, ConfigError> {
        let Self {
            state_dir,
            profile,
            crn_prefix,
            operators,
            listen,
            local_principals,
            tls,
            tokens,
            hsm,
            import,
            store,
            audit,
            limits,
            memory,
            log,
            bindings,
            authorizations,
        } = self;
        // `join` leaves an absolute path as it is.
        let path = |path: PathBuf| folder.join(path);
        let state_dir = path(state_dir);
        check_crn_prefix(&crn_prefix)?;
        within("listen.threads", listen.threads, 1, 1024)?;
        within("listen.connections", listen.connections, 1, 1_000_000)?;
        within("hsm.workers", hsm.workers, 1, 256)?;
        within("hsm.queue", hsm.queue, 1, 1_000_000)?;
        within("hsm.session_objects", hsm.session_objects, 1, 1_000_000)?;
        if !(1..=3600).contains(&hsm.session_copy_seconds) {
            return Err(invalid("hsm.session_copy_seconds", "must be 1 to 3600"));
        }
        within("store.queue", store.queue, 1, 1_000_000)?;
        within("audit.queue", audit.queue, 1, 1_000_000)?;
        if !(1..=4096).contains(&audit.segment_mib) {
            return Err(invalid("audit.segment_mib", "must be 1 to 4096"));
        }
        let proving = audit.proving(&crn_prefix)?;
        let sinks = sinks::Settings {
            directory: state_dir.join("audit"),
            origin: proving.origin.clone(),
            sinks: sinks(audit.sinks, folder)?,
        };
        let pin_file = pin_file(hsm.pin_file.map(path), hsm.pin_credential)?;
        let profile = match profile {
            ProfileName::Vpc => Profile::Vpc,
            ProfileName::KeyProtect => Profile::KeyProtect,
        };
        Ok(Config {
            local: local(listen.unix.as_ref().map(|unix| folder.join(unix)), local_principals)?,
            control: listen.control,
            listen: listen.address,
            threads: listen.threads,
            limits: limits.check(&listen, (hsm.queue, audit.queue, store.queue))?,
            identity: Identity {
                certificate: path(tls.certificate),
                key: path(tls.key),
                client_ca: path(tls.client_ca),
                crl: tls.crl.into_iter().map(path).collect(),
                principals: tls
                    .principals
                    .into_iter()
                    .map(PrincipalTable::check)
                    .collect::<Result<_, _>>()?,
                tokens: tokens.map(|tokens| tokens.check(folder)).transpose()?,
            },
            hsm: hsm::Settings {
                module: path(hsm.module),
                token_label: hsm.token_label,
                pin_file,
                workers: hsm.workers,
                queue: hsm.queue,
                stuck_after: Duration::from_secs(hsm.stuck_seconds),
                sync_directory: hsm.sync_directory.map(path),
                software_unwrap: import.software_unwrap,
                session_objects: hsm::SessionObjects {
                    copies: match hsm.session_copies {
                        CopiesName::Auto => hsm::SessionCopies::Auto,
                        CopiesName::On => hsm::SessionCopies::On,
                        CopiesName::Off => hsm::SessionCopies::Off,
                    },
                    most: hsm.session_objects,
                    renew_after: Duration::from_secs(hsm.session_copy_seconds),
                },
                isolation: match hsm.isolation {
                    IsolationName::Thread => hsm::Isolation::Threads,
                    IsolationName::Process => hsm::Isolation::Processes(hsm::Processes {
                        command: worker_command(&log, memory.lock),
                        writer_lock: state_dir.join("hsm-writer.lock"),
                        network: hsm.worker_network,
                    }),
                },
            },
            store_queue: store.queue,
            audit: audit::Settings {
                directory: state_dir.join("audit"),
                segment_bytes: audit.segment_mib * 1024 * 1024,
                queue: audit.queue,
                anchors: audit::Anchors {
                    witness: audit.witness.map(path),
                    journal: Some(path(audit.journal)),
                },
            },
            sinks,
            service: service::Settings {
                profile,
                crn_prefix,
                residency: match hsm.residency {
                    ResidencyName::Token => Residency::Token,
                    ResidencyName::Wrapped => Residency::Wrapped,
                },
                object_deadline: Duration::from_secs(hsm.object_deadline_seconds),
                private_networks: networks(&listen.private_networks)?,
                proving,
            },
            access: service::Configured {
                bindings: bindings
                    .into_iter()
                    .map(BindingTable::check)
                    .chain(authorizations.into_iter().map(AuthorizationTable::check))
                    .collect::<Result<_, _>>()?,
                operators: operators.iter().map(|id| operator(id)).collect::<Result<_, _>>()?,
            },
            log,
            memory: memory.lock,
            state_dir,
        })
    }
}

impl LimitsTable {
    /// `queues` are those of HSM, audit log and store. Of the calls that are let in,
    /// none finds one full: up to twice `calls` and `control_calls` are under way, and
    /// as many as the latter that take access away.
    fn check(
        self,
        listen: &Listen,
        (hsm, audit, store): (usize, usize, usize),
    ) -> Result<Limits, ConfigError> {
        let seconds = |seconds: usize| Duration::from_secs(seconds as u64);
        within("limits.principal_connections", self.principal_connections, 1, 1_000_000)?;
        within("limits.connection_age_seconds", self.connection_age_seconds, 1, 86_400)?;
        within("limits.longest_request_seconds", self.longest_request_seconds, 1, 3600)?;
        within("limits.request_seconds", self.request_seconds, 1, self.longest_request_seconds)?;
        within("limits.dek_message_bytes", self.dek_message_bytes, 1024, 64 << 20)?;
        within("limits.message_bytes", self.message_bytes, 1024, 64 << 20)?;
        let (calls, control) = ((hsm.min(audit) / 4).max(1), (store.min(audit) / 8).max(1));
        let chosen = (self.calls.unwrap_or(calls), self.control_calls.unwrap_or(control));
        within("limits.calls", chosen.0, 1, calls)?;
        within("limits.control_calls", chosen.1, 1, control)?;
        within("limits.waiting", self.waiting, 0, 100_000)?;
        Ok(Limits {
            connections: listen.connections,
            principal_connections: self.principal_connections,
            streams: listen.streams,
            handshake: Duration::from_secs(listen.handshake_seconds),
            connection_age: seconds(self.connection_age_seconds),
            request: seconds(self.request_seconds),
            longest_request: seconds(self.longest_request_seconds),
            header_bytes: self.header_bytes,
            dek_message_bytes: self.dek_message_bytes,
            message_bytes: self.message_bytes,
            data_per_second: self.data_per_second,
            control_per_second: self.control_per_second,
            tightening_per_second: self.tightening_per_second,
            calls: chosen.0,
            control_calls: chosen.1,
            waiting: self.waiting,
        })
    }
}

fn local(path: Option<PathBuf>, principals: Vec<LocalTable>) -> Result<Option<Local>, ConfigError> {
    let principals =
        principals.into_iter().map(LocalTable::check).collect::<Result<Vec<_>, _>>()?;
    match path {
        Some(path) => Ok(Some(Local { path, principals })),
        None if principals.is_empty() => Ok(None),
        None => Err(invalid("listen.unix", "must be set for local_principals to mean something")),
    }
}

impl LocalTable {
    fn check(self) -> Result<LocalPrincipal, ConfigError> {
        let who = match (self.uid, self.gid) {
            (Some(uid), None) => Who::Uid(uid),
            (None, Some(gid)) => Who::Gid(gid),
            (None, None) | (Some(_), Some(_)) => {
                return Err(invalid("local_principals", "exactly one of uid and gid must be set"));
            }
        };
        // What the kernel says for whoever has no number in our user namespace.
        if matches!(who, Who::Uid(OVERFLOW) | Who::Gid(OVERFLOW)) {
            return Err(invalid("local_principals", "65534 is nobody in particular"));
        }
        let principal = self.principal.parse();
        let principal = principal.map_err(|error| invalid("local_principals.principal", error))?;
        Ok(LocalPrincipal { who, principal })
    }
}

impl TokensTable {
    fn check(self, folder: &Path) -> Result<Tokens, ConfigError> {
        let Self { jwks, issuer, audience, trust_domain, gateways } = self;
        for (field, value) in [("tokens.issuer", &issuer), ("tokens.audience", &audience)] {
            if value.is_empty() {
                return Err(invalid(field, "must not be empty"));
            }
        }
        let issuer = Issuer { issuer, audience, trust_domain };
        issuer.principal("a").map_err(|_bad| invalid("tokens.trust_domain", "is not one"))?;
        if gateways.is_empty() {
            return Err(invalid("tokens.gateways", "must name who may send tokens"));
        }
        let gateways = gateways.iter().map(|id| id.parse()).collect::<Result<_, Malformed>>();
        let gateways = gateways.map_err(|error| invalid("tokens.gateways", error))?;
        Ok(Tokens { jwks: folder.join(jwks), issuer, gateways })
    }
}

impl PrincipalTable {
    fn check(self) -> Result<Mapping, ConfigError> {
        let (san, principal) = (self.san.parse(), self.principal.parse());
        Ok(Mapping {
            san: san.map_err(|problem: &str| invalid("tls.principals.san", problem))?,
            principal: principal.map_err(|error| invalid("tls.principals.principal", error))?,
        })
    }
}

impl AuditTable {
    fn proving(&self, crn_prefix: &str) -> Result<service::Proving, ConfigError> {
        let default = || format!("rootkeyd.v1/{crn_prefix}");
        let origin = self.origin.clone().unwrap_or_else(default);
        let letters = |c: u8| c.is_ascii_graphic() && c != b'+';
        if origin.is_empty() || origin.len() > 255 || !origin.bytes().all(letters) {
            let problem = "must be 1 to 255 letters, digits and signs, without spaces and +";
            return Err(invalid("audit.origin", problem));
        }
        if !(1..=1_000_000_000).contains(&self.checkpoint_records) {
            return Err(invalid("audit.checkpoint_records", "must be 1 to 1000000000"));
        }
        if !(1..=86_400).contains(&self.checkpoint_seconds) {
            return Err(invalid("audit.checkpoint_seconds", "must be 1 to 86400"));
        }
        let (records, every) =
            (self.checkpoint_records, Duration::from_secs(self.checkpoint_seconds));
        Ok(service::Proving { origin, records, every })
    }
}

impl BindingTable {
    fn check(self) -> Result<Gift, ConfigError> {
        let Self { principal, role, scope, instance } = self;
        let role = match role {
            RoleName::Reader => Role::Reader,
            RoleName::ReaderPlus => Role::ReaderPlus,
            RoleName::Writer => Role::Writer,
            RoleName::Manager => Role::Manager,
            RoleName::KeyPurge => Role::KeyPurge,
        };
        let principal = principal.parse();
        let principal = principal.map_err(|error| invalid("bindings.principal", error))?;
        let scope = match (scope, instance) {
            (Some(scope), None) => {
                scope.parse().map_err(|error| invalid("bindings.scope", error))?
            }
            // As it was written before there were other scopes.
            (None, Some(instance)) => {
                let instance = instance.parse();
                Scope::all(instance.map_err(|error| invalid("bindings.instance", error))?)
            }
            (Some(_), Some(_)) | (None, None) => {
                return Err(invalid("bindings.scope", "give it, and no instance"));
            }
        };
        Ok(Gift { subject: BindingSubject::Principal(principal), role, scope })
    }
}

impl AuthorizationTable {
    fn check(self) -> Result<Gift, ConfigError> {
        let Self { service, scope } = self;
        let service = service.parse().map_err(|error| invalid("authorizations.service", error))?;
        let scope = scope.parse().map_err(|error| invalid("authorizations.scope", error))?;
        Ok(Gift { subject: BindingSubject::Service(service), role: Role::Reader, scope })
    }
}

fn sinks(tables: Vec<SinkTable>, folder: &Path) -> Result<Vec<Sink>, ConfigError> {
    let mut names = BTreeSet::new();
    for SinkTable { name, .. } in &tables {
        let letters = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        if name.is_empty() || name.len() > 60 || !name.bytes().all(letters) {
            let problem = "must be 1 to 60 small letters, digits and -";
            return Err(invalid("audit.sinks.name", problem));
        }
        if !names.insert(name.clone()) {
            return Err(invalid("audit.sinks.name", format!("{name} is there twice")));
        }
    }
    tables.into_iter().map(|table| table.check(folder)).collect()
}

impl SinkTable {
    fn check(self, folder: &Path) -> Result<Sink, ConfigError> {
        let Self { name, kind, path, view, rotate_mib } = self;
        let path = folder.join(path);
        let target = match (kind, rotate_mib) {
            (SinkKind::File, Some(mib)) if !(1..=1_000_000).contains(&mib) => {
                return Err(invalid("audit.sinks.rotate_mib", "must be 1 to 1000000"));
            }
            (SinkKind::File, mib) => Target::File { path, rotate_bytes: mib.map(|mib| mib << 20) },
            (SinkKind::Syslog, None) => Target::Syslog { path },
            (SinkKind::Journald, None) => Target::Journald { path },
            (SinkKind::Syslog | SinkKind::Journald, Some(_)) => {
                return Err(invalid("audit.sinks.rotate_mib", "is for kind = \"file\" alone"));
            }
        };
        let view = match view {
            SinkView::Json => View::Json,
            SinkView::CloudEvents => View::CloudEvents,
            SinkView::Ocsf => View::Ocsf,
        };
        Ok(Sink { name, target, view })
    }
}

fn networks(texts: &[String]) -> Result<Vec<Ipv4Net>, ConfigError> {
    let parsed = texts.iter().map(|text| text.parse());
    parsed
        .collect::<Result<_, Malformed>>()
        .map_err(|malformed| invalid("listen.private_networks", malformed.problem))
}

fn operator(id: &str) -> Result<PrincipalId, ConfigError> {
    id.parse().map_err(|error| invalid("operators", error))
}

/// The one file that holds the PIN: named, or a systemd credential.
fn pin_file(file: Option<PathBuf>, credential: Option<String>) -> Result<PathBuf, ConfigError> {
    match (file, credential) {
        (Some(file), None) => Ok(file),
        (None, Some(name)) if !name.is_empty() && !name.contains('/') => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
                invalid("hsm.pin_credential", "needs $CREDENTIALS_DIRECTORY, which systemd sets")
            })?;
            Ok(Path::new(&directory).join(name))
        }
        (None, Some(_)) => Err(invalid("hsm.pin_credential", "must be a name, without /")),
        (None, None) | (Some(_), Some(_)) => {
            Err(invalid("hsm.pin_file", "exactly one of pin_file and pin_credential must be set"))
        }
    }
}

fn check_crn_prefix(prefix: &str) -> Result<(), ConfigError> {
    let letters = |c: u8| c.is_ascii_alphanumeric() || b":/-_.".contains(&c);
    if prefix.starts_with("crn:") && prefix.len() <= 200 && prefix.bytes().all(letters) {
        return Ok(());
    }
    Err(invalid("crn_prefix", "must begin with crn: and be at most 200 letters, digits and :/-_."))
}

fn within(field: &'static str, value: usize, least: usize, most: usize) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, format!("must be {least} to {most}")))
}

fn invalid(field: &'static str, problem: impl ToString) -> ConfigError {
    ConfigError::Invalid { field, problem: problem.to_string() }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

impl Default for StoreTable {
    fn default() -> Self {
        Self { queue: 4096 }
    }
}

impl Default for LimitsTable {
    fn default() -> Self {
        Self {
            principal_connections: 1024,
            connection_age_seconds: 3600,
            request_seconds: 5,
            longest_request_seconds: 60,
            header_bytes: 16 * 1024,
            // A batch of 1000 wrapped DEKs of the usual size is 200 KiB; of the longest, 8 MiB.
            dek_message_bytes: 16 * 1024 * 1024,
            message_bytes: 64 * 1024,
            data_per_second: 50_000,
            control_per_second: 5_000,
            tightening_per_second: 1_000,
            calls: None,
            control_calls: None,
            waiting: 8192,
        }
    }
}

impl Default for AuditTable {
    fn default() -> Self {
        Self {
            segment_mib: 64,
            queue: 4096,
            origin: None,
            checkpoint_records: 10_000,
            checkpoint_seconds: 60,
            witness: None,
            journal: "/run/systemd/journal/socket".into(),
            sinks: Vec::new(),
        }
    }
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

const fn default_connections() -> usize {
    4096
}

const fn default_streams() -> u32 {
    1024
}

const fn default_handshake_seconds() -> u64 {
    5
}

fn default_private_networks() -> Vec<String> {
    PRIVATE_NETWORKS.map(str::to_owned).to_vec()
}

/// What keeps the processors busy with a module that is a library; a device is another
/// matter, and its operator knows how many sessions it takes.
fn default_workers() -> usize {
    default_threads().clamp(2, 4)
}

/// This program again, as a worker process. By a name that stays right when the file
/// is replaced by a newer version.
fn worker_command(log: &Log, memory: MemoryLock) -> hsm::WorkerCommand {
    let mut arguments = vec!["hsm-worker", "--log-filter", &log.filter];
    match log.format {
        LogFormat::Text => {}
        LogFormat::Json => arguments.push("--log-json"),
    }
    match memory {
        MemoryLock::Required => arguments.push("--lock-memory"),
        MemoryLock::Off => {}
    }
    let arguments = arguments.into_iter().map(str::to_owned).collect();
    hsm::WorkerCommand { program: "/proc/self/exe".into(), arguments }
}

const fn default_session_objects() -> usize {
    1_000
}

const fn default_session_copy_seconds() -> u64 {
    60
}

const fn default_hsm_queue() -> usize {
    4096
}

const fn default_stuck_seconds() -> u64 {
    10
}

const fn default_object_deadline_seconds() -> u64 {
    30
}

/// The uid and gid of those who have none here (user_namespaces(7)).
const OVERFLOW: u32 = 65534;
/// Private (RFC 1918), shared (RFC 6598) and loopback addresses.
const PRIVATE_NETWORKS: [&str; 5] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8"];

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../rootkeyd.example.toml");

    fn parse(text: &str) -> Result<Config, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        file.check(Path::new("/etc/rootkeyd")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_example_is_a_configuration() {
        let config = parse(EXAMPLE).unwrap();
        assert_eq!(config.identity.key, Path::new("/etc/rootkeyd/tls/server.key"));
        assert_eq!(config.access.bindings.len(), 3);
    }

    #[test]
    fn the_sinks_of_the_example_are_sinks() {
        let begin = EXAMPLE.find("# [[audit.sinks]]").unwrap();
        let table: Vec<_> = EXAMPLE[begin..]
            .lines()
            .take_while(|line| line.starts_with("# "))
            .map(|line| line.trim_start_matches("# "))
            .filter(|line| line.starts_with('[') || line.contains(" = "))
            .collect();
        let config = parse(&EXAMPLE.replacen("[log]", &(table.join("\n") + "\n[log]"), 1)).unwrap();
        let [sink] = config.sinks.sinks.as_slice() else { panic!("{config:?}") };
        let Target::File { path, rotate_bytes } = &sink.target else { panic!("{sink:?}") };
        assert_eq!(
            (path.to_str(), *rotate_bytes),
            (Some("/var/log/rootkeyd/audit.jsonl"), Some(64 << 20))
        );
    }

    #[test]
    fn the_example_documents_every_field() {
        // An unknown field is refused with a list of those that there are.
        let tables = [
            "",
            "[listen]",
            "[[local_principals]]",
            "[tls]",
            "[tokens]",
            "[hsm]",
            "[import]",
            "[store]",
            "[audit]",
            "[limits]",
            "[memory]",
            "[[tls.principals]]",
            "[[audit.sinks]]",
            "[log]",
            "[[bindings]]",
        ];
        for table in tables {
            let refusal = toml::from_str::<File>(&format!("{table}\nno_such_field = 1"));
            let refusal = refusal.map(drop).unwrap_err().to_string();
            let fields: Vec<_> = refusal.split('`').skip(3).step_by(2).collect();
            assert!(!fields.is_empty(), "{refusal}");
            for field in fields {
                let lines = EXAMPLE.lines().map(|line| line.trim_start_matches("# "));
                let mut starts =
                    lines.map(|line| line.trim_start_matches('[').trim_start_matches("tls."));
                let named = |line: &str| {
                    line.starts_with(&format!("{field} ="))
                        || line.starts_with(&format!("{field}]"))
                        || line == format!("audit.{field}]]")
                };
                assert!(starts.any(named), "{field} of {table:?} is not in the example");
            }
        }
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_refused_by_name() {
        let cases = [
            ("state_dir = ", "sate_dir = ", "sate_dir"),
            ("profile = \"vpc\"", "profile = \"ibm\"", "ibm"),
            ("crn_prefix = \"crn:", "crn_prefix = \"", "crn_prefix"),
            ("role = \"Manager\"", "role = \"Owner\"", "Owner"),
            ("\nprincipal = \"spiffe://", "\nprincipal = \"", "bindings.principal"),
            ("workers = 4", "workers = 0", "hsm.workers"),
            ("pin_file = ", "pin_credential = \"x\"\npin_file = ", "hsm.pin_file"),
            ("segment_mib = 64", "segment_mib = 0", "audit.segment_mib"),
            (
                "[tls]",
                "[[local_principals]]\nuid = 1\nprincipal = \"spiffe://a/b\"\n[tls]",
                "listen.unix",
            ),
            (
                "[tls]",
                "[[local_principals]]\nuid = 65534\nprincipal = \"spiffe://a/b\"\n[tls]",
                "local_principals",
            ),
            (
                "[tls]",
                "[[local_principals]]\nuid = 1\ngid = 1\nprincipal = \"spiffe://a/b\"\n[tls]",
                "exactly one",
            ),
            ("segment_mib = 64", "origin = \"a b\"", "audit.origin"),
            ("checkpoint_records = 10000", "checkpoint_records = 0", "audit.checkpoint_records"),
            ("checkpoint_seconds = 60", "checkpoint_seconds = 0", "audit.checkpoint_seconds"),
            (
                "[log]",
                "[[audit.sinks]]\nname = \"A\"\nkind = \"file\"\npath = \"p\"\n[log]",
                "audit.sinks.name",
            ),
            (
                "[log]",
                "[[audit.sinks]]\nname = \"a\"\nkind = \"syslog\"\npath = \"p\"\nrotate_mib = 1\n[log]",
                "audit.sinks.rotate_mib",
            ),
            (
                "[log]",
                "[[audit.sinks]]\nname = \"a\"\nkind = \"kafka\"\npath = \"p\"\n[log]",
                "kafka",
            ),
        ];
        for (from, to, named) in cases {
            let text = EXAMPLE.replacen(from, to, 1);
            assert_ne!(text, EXAMPLE, "{from}");
            let refusal = parse(&text).map(drop).unwrap_err();
            assert!(refusal.contains(named), "{refusal}");
        }
    }
}

//! The tables of the file as they are written, with what holds where nothing is.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::Log;
use crate::memory::MemoryLock;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) state_dir: PathBuf,
    #[serde(default)]
    pub(super) profile: ProfileName,
    pub(super) crn_prefix: String,
    #[serde(default)]
    pub(super) operators: Vec<String>,
    pub(super) listen: Listen,
    #[serde(default)]
    pub(super) local_principals: Vec<LocalTable>,
    pub(super) tls: Tls,
    pub(super) tokens: Option<TokensTable>,
    pub(super) hsm: HsmTable,
    #[serde(default)]
    pub(super) import: ImportTable,
    #[serde(default)]
    pub(super) store: StoreTable,
    #[serde(default)]
    pub(super) audit: AuditTable,
    #[serde(default)]
    pub(super) limits: LimitsTable,
    #[serde(default)]
    pub(super) memory: MemoryTable,
    #[serde(default)]
    pub(super) log: Log,
    #[serde(default)]
    pub(super) bindings: Vec<BindingTable>,
    #[serde(default)]
    pub(super) authorizations: Vec<AuthorizationTable>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ProfileName {
    #[default]
    Vpc,
    KeyProtect,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listen {
    pub(super) address: SocketAddr,
    pub(super) control: Option<SocketAddr>,
    pub(super) unix: Option<PathBuf>,
    #[serde(default = "default_threads")]
    pub(super) threads: usize,
    #[serde(default = "default_connections")]
    pub(super) connections: usize,
    #[serde(default = "default_streams")]
    pub(super) streams: u32,
    #[serde(default = "default_handshake_seconds")]
    pub(super) handshake_seconds: u64,
    #[serde(default = "default_private_networks")]
    pub(super) private_networks: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LocalTable {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) principal: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) client_ca: PathBuf,
    #[serde(default)]
    pub(super) crl: Vec<PathBuf>,
    #[serde(default)]
    pub(super) principals: Vec<PrincipalTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokensTable {
    pub(super) jwks: PathBuf,
    pub(super) issuer: String,
    pub(super) audience: String,
    pub(super) trust_domain: String,
    pub(super) gateways: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PrincipalTable {
    pub(super) san: String,
    pub(super) principal: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsTable {
    pub(super) principal_connections: usize,
    pub(super) connection_age_seconds: usize,
    pub(super) request_seconds: usize,
    pub(super) longest_request_seconds: usize,
    pub(super) header_bytes: u32,
    pub(super) dek_message_bytes: usize,
    pub(super) message_bytes: usize,
    pub(super) data_per_second: u32,
    pub(super) control_per_second: u32,
    pub(super) tightening_per_second: u32,
    pub(super) calls: Option<usize>,
    pub(super) control_calls: Option<usize>,
    pub(super) waiting: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HsmTable {
    pub(super) module: PathBuf,
    pub(super) token_label: String,
    pub(super) pin_file: Option<PathBuf>,
    pub(super) pin_credential: Option<String>,
    #[serde(default = "default_workers")]
    pub(super) workers: usize,
    #[serde(default = "default_hsm_queue")]
    pub(super) queue: usize,
    #[serde(default = "default_object_deadline_seconds")]
    pub(super) object_deadline_seconds: u64,
    #[serde(default = "default_stuck_seconds")]
    pub(super) stuck_seconds: u64,
    pub(super) sync_directory: Option<PathBuf>,
    #[serde(default)]
    pub(super) isolation: IsolationName,
    #[serde(default)]
    pub(super) worker_network: bool,
    #[serde(default)]
    pub(super) session_copies: CopiesName,
    #[serde(default = "default_session_objects")]
    pub(super) session_objects: usize,
    #[serde(default = "default_session_copy_seconds")]
    pub(super) session_copy_seconds: u64,
    #[serde(default)]
    pub(super) residency: ResidencyName,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ResidencyName {
    #[default]
    Token,
    Wrapped,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CopiesName {
    #[default]
    Auto,
    On,
    Off,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum IsolationName {
    #[default]
    Thread,
    Process,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MemoryTable {
    pub(super) lock: MemoryLock,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ImportTable {
    pub(super) software_unwrap: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StoreTable {
    pub(super) queue: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct AuditTable {
    pub(super) segment_mib: u64,
    pub(super) queue: usize,
    pub(super) origin: Option<String>,
    pub(super) checkpoint_records: u64,
    pub(super) checkpoint_seconds: u64,
    pub(super) witness: Option<PathBuf>,
    pub(super) journal: PathBuf,
    pub(super) sinks: Vec<SinkTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SinkTable {
    pub(super) name: String,
    pub(super) kind: SinkKind,
    pub(super) path: PathBuf,
    #[serde(default)]
    pub(super) view: SinkView,
    pub(super) rotate_mib: Option<u64>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SinkKind {
    File,
    Syslog,
    Journald,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SinkView {
    #[default]
    Json,
    CloudEvents,
    Ocsf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BindingTable {
    pub(super) principal: String,
    pub(super) role: RoleName,
    pub(super) scope: Option<String>,
    pub(super) instance: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AuthorizationTable {
    pub(super) service: String,
    pub(super) scope: String,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) enum RoleName {
    Reader,
    ReaderPlus,
    Writer,
    Manager,
    KeyPurge,
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

/// Private (RFC 1918), shared (RFC 6598) and loopback addresses.
const PRIVATE_NETWORKS: [&str; 5] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8"];

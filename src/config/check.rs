//! From the tables of the file to what the daemon is told: what is in them is checked here.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::tables::{
    AuditTable, AuthorizationTable, BindingTable, CopiesName, File, IsolationName, LimitsTable,
    Listen, LocalTable, PrincipalTable, ProfileName, ResidencyName, RoleName, SinkKind, SinkTable,
    SinkView, TokensTable,
};
use super::{Config, ConfigError, Log, LogFormat};
use crate::api::{Identity, Limits, Local, LocalPrincipal, Tokens, Who};
use crate::auth::bearer::Issuer;
use crate::auth::mtls::Mapping;
use crate::domain::{
    BindingSubject, Gift, Ipv4Net, Malformed, PrincipalId, Profile, Residency, Role, Scope,
};
use crate::memory::MemoryLock;
use crate::sinks::{self, Sink, Target, View};
use crate::{audit, hsm, service};

impl File {
    pub(super) fn check(self, folder: &Path) -> Result<Config, ConfigError> {
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
        within("hsm.session_copy_seconds", hsm.session_copy_seconds, 1, 3600)?;
        within("store.queue", store.queue, 1, 1_000_000)?;
        within("audit.queue", audit.queue, 1, 1_000_000)?;
        within("audit.segment_mib", audit.segment_mib, 1, 4096)?;
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
        within("audit.checkpoint_records", self.checkpoint_records, 1, 1_000_000_000)?;
        within("audit.checkpoint_seconds", self.checkpoint_seconds, 1, 86_400)?;
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

fn within<N: Copy + Display + PartialOrd>(
    field: &'static str,
    value: N,
    least: N,
    most: N,
) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(invalid(field, format!("must be {least} to {most}")))
}

fn invalid(field: &'static str, problem: impl ToString) -> ConfigError {
    ConfigError::Invalid { field, problem: problem.to_string() }
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

/// The uid and gid of those who have none here (user_namespaces(7)).
const OVERFLOW: u32 = 65534;

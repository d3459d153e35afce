//! The configuration: TOML → validated `Config`. Unknown keys are errors, and so
//! is everything that would only fail later (`check.rs`). `rootkeyd.example.toml` has every
//! field with its comment.
//!
//! Relative paths are relative to the folder of the file, so that a folder with
//! its configuration can be moved. No secret is in here: the PIN is in a file of
//! its own, or a systemd credential.

mod check;
mod tables;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::api::{Identity, Limits, Local};
use crate::memory::MemoryLock;
use crate::{audit, hsm, service, sinks};
use tables::File;

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

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: "info".into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sinks::Target;

    const EXAMPLE: &str = include_str!("../../rootkeyd.example.toml");

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

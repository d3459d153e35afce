//! Everything that makes `rootkeyctl` exit with 1, and the line it prints then:
//! `REASON: message`, and ` (status_reason=…)` where the daemon gave one.

use std::{io, path::PathBuf};

use thiserror::Error;
use tonic::Status;

use super::{encoding::NotEncoded, output::printable, sealing::SealingError};
use crate::client::{ClientError, Refusal};

/// Why a command did not do what was asked.
#[derive(Debug, Error)]
pub enum Failure {
    /// There is no connection.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The daemon, or the way to it, refused the call.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// Neither a file nor enough flags.
    #[error(
        "no configuration: set ROOTKEYCTL_CONFIG or give --config FILE, \
         or give --ca, --certificate and --private-key"
    )]
    NoConfig,
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Of the file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// Standard input cannot be read.
    #[error("standard input: {0}")]
    Stdin(#[source] io::Error),
    /// Standard output cannot be written.
    #[error("standard output: {0}")]
    Stdout(#[source] io::Error),
    /// The system has no random bytes.
    #[error("no random bytes: {0}")]
    Random(#[from] getrandom::Error),
    /// The destination exists.
    #[error("{} exists; give --overwrite to replace it", path.display())]
    Exists {
        /// Of the file.
        path: PathBuf,
    },
    /// The destination cannot be told from the name of the source.
    #[error("{} does not end in .rk; name the decrypted file with --out", path.display())]
    NoDestination {
        /// Of the source.
        path: PathBuf,
    },
    /// Nothing was named, and what would be used is a terminal.
    #[error("{flag} is not given and there is a terminal in its place; give {flag} FILE or -")]
    Terminal {
        /// Such as `--out`.
        flag: &'static str,
    },
    /// Two outputs were both sent to standard output.
    #[error("the DEK and the wrapped DEK cannot both go to standard output")]
    OneStdout,
    /// What cannot be undone was not confirmed.
    #[error("not {done}: type what is asked for, or give --yes")]
    Unconfirmed {
        /// What did not happen, such as `deleted`.
        done: &'static str,
    },
    /// What was read is longer than what is meant can be.
    #[error("{what} is longer than {limit} bytes")]
    TooLong {
        /// What was read.
        what: &'static str,
        /// In bytes.
        limit: usize,
    },
    /// What was read is not in the encoding that was named.
    #[error(transparent)]
    NotEncoded(#[from] NotEncoded),
    /// Key material cannot be sealed.
    #[error(transparent)]
    Sealing(#[from] SealingError),
    /// A line of a batch is not what a line must be.
    #[error("line {number}: {source}")]
    Line {
        /// From 1.
        number: u64,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A result cannot be written as JSON.
    #[error("cannot write the result as JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// Some of many were refused; the output says which.
    #[error("{refused} of {total} DEKs were refused; each has its reason in the output")]
    SomeRefused {
        /// How many.
        refused: u64,
        /// Of how many.
        total: u64,
    },
    /// `doctor` found something.
    #[error("{failed} of {total} checks failed")]
    NotReady {
        /// How many.
        failed: usize,
        /// Of how many.
        total: usize,
    },
    /// An encrypted file is not as it was made.
    #[error(
        "{} is damaged, incomplete or changed, or was not made by rootkeyctl encrypt; \
         nothing was written",
        path.display()
    )]
    Unverified {
        /// Of the file.
        path: PathBuf,
    },
    /// An export of the audit log, or what it is held to, is not as it was signed.
    #[error("{}: {why}", path.display())]
    Unproven {
        /// Of the file.
        path: PathBuf,
        /// The first fault.
        why: String,
    },
    /// The store or the audit log of this machine, or a backup, cannot be used.
    #[error("{}: {why}", path.display())]
    State {
        /// Of what cannot be used.
        path: PathBuf,
        /// In a sentence.
        why: String,
    },
    /// The source is too long for the format.
    #[error("{} is too long for one file", path.display())]
    FileTooLong {
        /// Of the file.
        path: PathBuf,
    },
    /// The daemon's answer breaks the contract.
    #[error("the daemon's answer {0}")]
    Answer(&'static str),
}

impl Failure {
    /// `map_err` with the path of the file.
    pub(super) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        |source| Self::File { path: path.into(), source }
    }

    /// In upper snake case, for programs.
    pub fn reason(&self) -> &str {
        match self {
            Self::Client(error) => error.reason(),
            Self::Refused(refusal) => &refusal.reason,
            Self::NoConfig => "CONFIG_INVALID",
            Self::File { .. } | Self::Stdin(_) | Self::Stdout(_) => "IO_FAILED",
            Self::Exists { .. } => "FILE_EXISTS",
            Self::NoDestination { .. } | Self::Terminal { .. } => "ARGUMENT_MISSING",
            Self::OneStdout => "ARGUMENT_CONFLICT",
            Self::Unconfirmed { .. } => "NOT_CONFIRMED",
            Self::TooLong { .. }
            | Self::FileTooLong { .. }
            | Self::NotEncoded(_)
            | Self::Line { .. } => "FIELD_INVALID",
            Self::Sealing(error) => error.reason(),
            Self::SomeRefused { .. } => "SOME_REFUSED",
            Self::NotReady { .. } => "NOT_READY",
            Self::Unproven { .. } => "AUDIT_UNVERIFIED",
            Self::State { .. } => "STORE_UNUSABLE",
            Self::Unverified { .. } => "CIPHERTEXT_UNVERIFIED",
            Self::Random(_) | Self::Json(_) | Self::Answer(_) => "INTERNAL",
        }
    }

    /// The line for stderr, without its end.
    pub fn line(&self) -> String {
        let line = format!("{}: {self}", self.reason());
        let status_reason =
            if let Self::Refused(refusal) = self { refusal.status_reason.as_deref() } else { None };
        match status_reason {
            Some(reason) => printable(&format!("{line} (status_reason={reason})")),
            None => printable(&line),
        }
    }

    /// Whether the reader of our output went away, as `head` does: no failure
    /// that is worth a word.
    pub fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Stdout(source) if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Refusal::from(status).into()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn refused(message: &str, status_reason: Option<&str>) -> Failure {
        Failure::from(Refusal {
            reason: "KEY_SUSPENDED".to_owned(),
            message: message.to_owned(),
            status_reason: status_reason.map(str::to_owned),
            metadata: BTreeMap::new(),
            retry_after: None,
        })
    }

    #[test]
    fn the_line_of_a_refusal_ends_with_its_status_reason() {
        assert_eq!(
            refused("the key is suspended", Some("encryption_key_disabled")).line(),
            "KEY_SUSPENDED: the key is suspended (status_reason=encryption_key_disabled)"
        );
        assert_eq!(
            refused("the key is suspended", None).line(),
            "KEY_SUSPENDED: the key is suspended"
        );
    }

    #[test]
    fn a_message_cannot_break_the_line_nor_move_the_cursor() {
        assert_eq!(refused("a\nb\u{1b}[2Jc", None).line(), "KEY_SUSPENDED: a b [2Jc");
    }
}

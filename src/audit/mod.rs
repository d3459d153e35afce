//! The audit log.

use thiserror::Error;

/// The audit log could not do what was asked.
#[derive(Debug, Error)]
pub enum AuditError {
    /// Its queue is full; nothing was written.
    #[error("the queue of the audit log is full")]
    Overloaded,
    /// It cannot be written or read now; nothing was written.
    #[error("the audit log cannot be used: {what}")]
    Unavailable {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It holds what no daemon has written.
    #[error("the audit log is corrupt at {place}: {what}")]
    Corrupt {
        /// File and offset.
        place: String,
        /// What is wrong there.
        what: &'static str,
    },
}

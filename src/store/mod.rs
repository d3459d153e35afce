//! The store.

use thiserror::Error;

/// The store could not do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The row is of another generation than the change expects.
    #[error("the row changed meanwhile")]
    Conflict,
    /// Its queue is full; nothing was written.
    #[error("the queue of the store is full")]
    Overloaded,
    /// It cannot be written or read now; nothing was written.
    #[error("the store cannot be used: {what}")]
    Unavailable {
        /// What was tried.
        what: &'static str,
        /// What the database said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It holds what no daemon has written.
    #[error("the store is corrupt: {what}")]
    Corrupt {
        /// What is wrong.
        what: String,
    },
}

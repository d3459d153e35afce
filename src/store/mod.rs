//! The store: what is known of keys, unfinished changes and events that are not
//! yet in the audit log, behind a trait in terms of the domain.
//!
//! A `Change` is one transaction. A change of a key names the generation that it
//! was made from, and does not go through if the row has another one.

#[cfg(test)]
mod conformance;
mod rows;
mod sqlite;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::sync::oneshot;
use uuid::Uuid;

pub use sqlite::Sqlite;

use crate::domain::{Event, Key, KeyId, ObjectId, PrincipalId, Timestamp};

/// The store could not do what was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The row is of another generation than the change expects, or a name that
    /// must be unique is taken.
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

/// Where keys are kept. There is one for a single daemon; `conformance.rs` is
/// what each must do.
pub trait Store: Send + Sync + 'static {
    /// Everything, at start. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Corrupt`].
    fn load(&self) -> Result<Snapshot, StoreError>;

    /// Carries out a change, even if the answer is not waited for. Durable when
    /// the answer is there; an error means for certain that nothing was written.
    fn commit(&self, change: Change) -> Pending<()>;

    /// What that request of that principal made, if it is remembered.
    fn find_request(&self, principal: &PrincipalId, id: Uuid) -> Pending<Option<Request>>;

    /// Takes no more, finishes what waits, closes. Blocks; once is enough.
    fn close(&self);
}

/// An answer that is under way.
#[derive(Debug)]
#[must_use = "the answer says whether it was done"]
pub struct Pending<T>(oneshot::Receiver<Result<T, StoreError>>);

/// Everything that the store holds and memory must know.
#[derive(Debug)]
pub struct Snapshot {
    /// In no order.
    pub keys: Vec<Key>,
    /// In no order.
    pub intents: Vec<Intent>,
    /// Oldest first.
    pub outbox: Vec<Event>,
}

/// An unfinished change of HSM and store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Intent {
    /// The object that is made or destroyed.
    pub object: ObjectId,
    /// The key that it is for.
    pub key: KeyId,
    /// How far it has come.
    pub stage: IntentStage,
    /// When it was begun.
    pub begun: Timestamp,
    /// For people, such as `create instances/a/keys/b`.
    pub purpose: String,
}

/// How far an unfinished change has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IntentStage {
    /// The object may be there, or come.
    Creating,
    /// It must go. No way back.
    Destroying,
}

/// A request that made something, remembered for 24 hours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Request {
    /// Whose it was.
    pub principal: PrincipalId,
    /// The principal's own id of it.
    pub id: Uuid,
    /// SHA-256 of the rest of it.
    pub fingerprint: [u8; 32],
    /// What it made or changed.
    pub key: KeyId,
    /// When.
    pub time: Timestamp,
}

/// One transaction.
#[derive(Debug, Default)]
pub struct Change {
    /// The key that is added or altered.
    pub key: Option<KeyWrite>,
    /// New intents.
    pub begin: Vec<Intent>,
    /// Intents that go on to [`IntentStage::Destroying`].
    pub destroying: Vec<ObjectId>,
    /// Intents that are done.
    pub end: Vec<ObjectId>,
    /// The request that asked for it. A conflict, if its id is taken.
    pub request: Option<Request>,
    /// Records of it, into the outbox.
    pub events: Vec<Event>,
    /// Ids of events that have left the outbox for the audit log.
    pub published: Vec<[u8; 16]>,
}

/// How a key is written.
#[derive(Debug)]
pub enum KeyWrite {
    /// It is new.
    Insert(Arc<Key>),
    /// It was of the generation `from`. Versions may be added, never taken away.
    Update {
        /// As it shall be.
        key: Arc<Key>,
        /// The generation that it was made from.
        from: u64,
    },
}

impl<T> Future for Pending<T> {
    type Output = Result<T, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| {
            answer.unwrap_or_else(|dropped| {
                Err(StoreError::Unavailable { what: "it is closed", source: Box::new(dropped) })
            })
        })
    }
}

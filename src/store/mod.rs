//! The store: what is known of keys, unfinished changes and events that are not
//! yet in the audit log, behind a trait in terms of the domain.
//!
//! A `Change` is one transaction. A change of a key names the generation that it
//! was made from, and does not go through if the row has another one.

pub mod backup;
mod bindings;
mod clock;
#[cfg(test)]
mod conformance;
mod imports;
mod instances;
mod intents;
mod key_events;
mod keys;
mod master_keys;
mod outbox;
mod owner;
mod position;
mod registrations;
mod reserve;
mod rows;
mod sqlite;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::sync::oneshot;
use uuid::Uuid;

pub use sqlite::Sqlite;

use crate::domain::{
    Binding, BindingId, Campaign, CrnPattern, Event, Gift, ImportToken, Instance, InstanceId, Key,
    KeyEvent, KeyId, KeyRing, LogPosition, MasterKey, NewKeyEvent, ObjectId, PrincipalId,
    Registered, Registration, RegistrationId, ResourceKind, RunTime, Timestamp, VersionId,
};

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

    /// One registration, if there is such.
    fn find_registration(&self, id: RegistrationId) -> Pending<Option<Registration>>;

    /// The registration of a resource against a key, if there is one.
    fn find_resource(&self, key: KeyId, resource: &str) -> Pending<Option<Registration>>;

    /// Registrations, ordered by resource and key; the cost is that of a page.
    fn list_registrations(&self, query: RegistrationQuery) -> Pending<Vec<Registration>>;

    /// Events that a service is told of in an instance, after the event `after`, in
    /// their order.
    fn list_key_events(
        &self,
        service: &str,
        instance: &InstanceId,
        after: u64,
        limit: usize,
    ) -> Pending<Vec<KeyEvent>>;

    /// The event before the oldest that a service has not acknowledged in an
    /// instance; the newest of all if there is none.
    fn first_key_event(&self, service: &str, instance: &InstanceId) -> Pending<u64>;

    /// One event as a service is told of it, and how many services have not
    /// acknowledged it; `None` if it does not concern the service.
    fn find_key_event(&self, service: &str, id: u64) -> Pending<Option<(KeyEvent, u64)>>;

    /// Deliveries from before that run time that are not acknowledged and not marked
    /// as overdue, with the service of each.
    fn overdue_key_events(&self, before: RunTime, limit: usize)
    -> Pending<Vec<(String, KeyEvent)>>;

    /// How many services have resources registered against a key.
    fn services_of(&self, key: KeyId) -> Pending<u32>;

    /// Registrations that are attached to a virtual server, ordered by resource and
    /// key, at most `limit`.
    fn list_attached(
        &self,
        instance: &InstanceId,
        attached_to: &str,
        limit: usize,
    ) -> Pending<Vec<Registration>>;

    /// How many registrations of each sort a key has; the cost does not grow with them.
    fn count_registrations(&self, key: KeyId) -> Pending<Vec<RegistrationCount>>;

    /// Takes back the space that is kept for changes that take something away, as far as
    /// there is space again. Not waited for.
    fn refill_reserve(&self);

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
    /// Objects of keys that were purged.
    pub purged: HashMap<ObjectId, Purged>,
    /// In no order.
    pub intents: Vec<Intent>,
    /// Oldest first.
    pub outbox: Vec<Event>,
    /// In no order.
    pub instances: Vec<Instance>,
    /// Those other than `default`, in no order.
    pub rings: Vec<KeyRing>,
    /// In no order.
    pub bindings: Vec<Binding>,
    /// What was taken over from the configuration, in no order.
    pub configured: Vec<Gift>,
    /// Oldest first.
    pub master_keys: Vec<MasterKey>,
    /// At most one of an instance.
    pub import_tokens: Vec<ImportToken>,
    /// How many resources are registered against each key that has any.
    pub registered: HashMap<KeyId, Registered>,
    /// How many wraps each version was granted.
    pub wrap_grants: HashMap<VersionId, u64>,
    /// When a DEK was last unwrapped under each key, where that was noted.
    pub unwrapped: HashMap<KeyId, Timestamp>,
    /// What the clocks last said; `None` at the very first start.
    pub clock: Option<ClockReading>,
    /// At most one of a key.
    pub campaigns: Vec<Campaign>,
    /// How far the audit log had come; `None` at the very first start.
    pub audit_position: Option<LogPosition>,
    /// It comes from a backup, and no operator has accepted it yet.
    pub restored: bool,
}

/// What a service says of an event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Acknowledgement {
    /// The service.
    pub service: String,
    /// The event.
    pub event: u64,
    /// When.
    pub time: Timestamp,
    /// Why it could not do what the event asks, if it could not.
    pub failure: Option<String>,
}

/// A campaign as it shall be.
#[derive(Clone, Debug)]
pub struct CampaignWrite(pub Campaign);

/// What the clocks said at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClockReading {
    /// How long the daemon had run, all its runs together.
    pub run: RunTime,
    /// By the machine's clock.
    pub time: Timestamp,
    /// Which boot of the machine it was; empty if not known.
    pub boot: String,
    /// Microseconds since that boot.
    pub boot_time: u64,
}

/// What is left of a key that was purged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tombstone {
    /// As it was last.
    pub key: Arc<Key>,
    /// When its material was seen to be gone.
    pub purged: Timestamp,
    /// Principal, or the daemon itself.
    pub purged_by: String,
}

/// A key that was purged.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Purged {
    /// Its id.
    pub key: KeyId,
    /// Its name, such as `instances/a/keys/b`.
    pub name: String,
}

/// Which registrations are wanted.
#[derive(Clone, Debug)]
pub struct RegistrationQuery {
    /// Of this instance.
    pub instance: InstanceId,
    /// Of this key; of every key of the instance if unset.
    pub key: Option<KeyId>,
    /// Of these resources; of all if unset.
    pub resources: Option<CrnPattern>,
    /// Only those that prevent the deletion of their key.
    pub preventing: bool,
    /// After this resource and key.
    pub after: Option<(String, KeyId)>,
    /// At most so many.
    pub limit: usize,
}

/// Registrations of one sort.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RegistrationCount {
    /// Resources of this kind.
    pub kind: ResourceKind,
    /// Whether they are attached.
    pub attached: bool,
    /// Whose DEKs this version wraps.
    pub version: VersionId,
    /// How many there are.
    pub n: u64,
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
    /// The key that is no more: its row goes, with all that hangs on it, bindings too.
    pub purge: Option<Tombstone>,
    /// The instance that is added, altered or taken away.
    pub instance: Option<InstanceWrite>,
    /// The ring that is added or taken away.
    pub ring: Option<RingWrite>,
    /// The binding that is added or taken away.
    pub binding: Option<BindingWrite>,
    /// The master key that was made.
    pub master_key: Option<MasterKey>,
    /// The import token of an instance, as it shall be.
    pub import_token: Option<ImportTokenWrite>,
    /// The registration that is added, altered or taken away.
    pub registration: Option<RegistrationWrite>,
    /// How many wraps a version is granted from now on.
    pub wrap_grant: Option<(VersionId, u64)>,
    /// When a DEK was last unwrapped under these keys.
    pub unwrapped: Vec<(KeyId, Timestamp)>,
    /// What the clocks say.
    pub clock: Option<ClockReading>,
    /// Events that services are to be told of. Those that concern none are left out.
    pub key_events: Vec<NewKeyEvent>,
    /// What a service says of an event.
    pub acknowledgement: Option<Acknowledgement>,
    /// Deliveries that it was told of that they are late: service and event.
    pub overdue: Vec<(String, u64)>,
    /// Acknowledged deliveries from before this run time go.
    pub forget_events: Option<RunTime>,
    /// The campaign of a key.
    pub campaign: Option<CampaignWrite>,
    /// How far the audit log has come.
    pub audit_position: Option<PositionWrite>,
    /// Takes something away, so the space that is kept for that may be used.
    pub from_reserve: bool,
}

/// How a position in the audit log is written.
#[derive(Clone, Copy, Debug)]
pub enum PositionWrite {
    /// It was there a moment ago; of two the later one stays.
    Note(LogPosition),
    /// An operator accepts the store as it is, with the log as it is.
    Accept(LogPosition),
}

/// How an instance is written.
#[derive(Debug)]
pub enum InstanceWrite {
    /// It is new, with these bindings.
    Insert(Instance, Vec<Binding>),
    /// Its policies or its deletion changed. Bindings of a deleted one go; its row
    /// stays, so that its name is never another's.
    Update(Instance),
}

/// How a ring is written.
#[derive(Debug)]
pub enum RingWrite {
    /// It is new.
    Insert(KeyRing),
    /// It holds no key. Bindings on it go.
    Remove(KeyRing),
}

/// How a binding is written.
#[derive(Debug)]
pub enum BindingWrite {
    /// It is new.
    Insert(Binding),
    /// The configuration gives it, for the first time; `None` if it is there already.
    TakeOver(Option<Binding>, Gift),
    /// It goes.
    Remove(BindingId),
}

/// How an import token is written.
#[derive(Debug)]
pub enum ImportTokenWrite {
    /// In place of the one before.
    Put(ImportToken),
    /// The one of this instance goes.
    Remove(InstanceId),
}

/// How a registration is written.
#[derive(Debug)]
pub enum RegistrationWrite {
    /// It is new. A conflict, if the resource is registered against the key.
    Insert(Registration),
    /// It was of the generation `from`.
    Update {
        /// As it shall be.
        registration: Registration,
        /// The generation that it was made from.
        from: u64,
    },
    /// It was of the generation `from`.
    Remove {
        /// Which.
        id: RegistrationId,
        /// The generation that it was.
        from: u64,
    },
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

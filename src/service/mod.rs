//! Use cases: one file per noun, and here what is common to all of them: who may
//! enter, and the record without which nothing leaves.
//!
//! A use case takes a `&Call`, which only [`Service::enter`] makes, so a method
//! that skips authorization does not compile. Order of refusals, everywhere:
//! authentication, permission, form, existence, state, timing, HSM.

mod access;
mod admin;
mod agreement;
mod audit_streams;
mod budget;
mod campaigns;
mod crypto;
mod details;
mod entry;
mod events;
mod explain;
mod floods;
mod impact;
mod imports;
mod instances;
mod keys;
mod listing;
mod making;
mod masters;
mod proof;
mod purge;
mod reconcile;
mod recovery;
mod registrations;
mod registry;
mod requests;
mod resources;
mod rings;
mod scheduler;
mod tenants;
mod wrap_registered;

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

pub use admin::{HsmReport, ServerReport, TornFiles};
pub use agreement::Disagreement;
pub use audit_streams::RecordsWanted;
pub use campaigns::CampaignReport;
pub use crypto::{DekAction, DekAnswer, DekRequest};
pub use entry::Asked;
pub use events::EventAnswer;
pub use explain::{Explanation, Finding, Tested};
pub use impact::{Impact, ImpactWanted, KeyChange, KindImpact};
pub use imports::TokenAndAlgorithms;
pub use instances::{InstanceReport, Metrics, NewInstance};
pub use keys::Update;
pub use listing::{AuditQuery, KeyQuery, Listed, VersionsOfKey};
pub use making::NewKey;
pub use proof::{Proving, SignerProblem};
pub use registrations::{NewRegistration, RegistrationUpdate, RegistrationsWanted};
pub use requests::RequestId;
pub use resources::{ActionWanted, Checked, ResourceReport, StatusesWanted, Target};
pub use rings::RingReport;

use crate::audit::Audit;
use crate::clock::{Clock, ClockSource, Trust};
use crate::domain::event::DAEMON;
use crate::domain::{
    Binding, Bindings, Event, Gift, Instance, InstanceId, Ipv4Net, Key, KeyAction, KeyState,
    Moment, Outcome, Permission, PrincipalId, Profile, Residency, Timestamp,
};
use crate::error::{Error, Reason};
use crate::hsm::Hsm;
use crate::store::{Change, InstanceWrite, PositionWrite, Snapshot, Store};
use agreement::Findings;
use campaigns::Campaigns;
use keys::TAKES_AWAY;
use masters::Masters;
use reconcile::Intents;
use recovery::{Recovery, Rest};
use registry::{Registry, Slot};
use tenants::Tenants;

/// One method of the API, as far as the use cases must know it. The methods
/// themselves are rows in `api/methods.rs`.
#[derive(Debug)]
pub struct Method {
    /// `{service}/{method}`, without the package.
    pub name: &'static str,
    /// What the caller must be allowed.
    pub permission: Permission,
    /// What the audit log calls it.
    pub action: &'static str,
}

/// Who asks, as the edge found out.
#[derive(Clone, Debug)]
pub struct Caller {
    /// `None` if there is no one at the other end whom we know.
    pub principal: Option<PrincipalId>,
    /// Address of the socket.
    pub source_address: Arc<str>,
    /// The same without the port, for policies; `None` if there is none.
    pub source_ip: Option<IpAddr>,
    /// How the certificate stands that the connection began with.
    pub standing: Option<Arc<dyn Standing>>,
    /// The caller's own id of the request, or one made for it.
    pub request_id: String,
    /// When the request came.
    pub began: Instant,
    /// Until when the caller waits.
    pub deadline: Instant,
}

/// What a caller showed when the connection began, which may not be good any more.
pub trait Standing: std::fmt::Debug + Send + Sync {
    /// Whether it is good at `now`.
    ///
    /// # Errors
    /// Why not, in a sentence.
    fn check(&self, now: Timestamp) -> Result<(), String>;
}

/// A call that may go on: its caller is known and has the permission.
#[derive(Clone, Debug)]
pub struct Call {
    caller: Arc<Caller>,
    principal: PrincipalId,
    method: &'static Method,
}

/// What a use case answers.
#[derive(Debug)]
pub struct Answer<T> {
    /// For the caller.
    pub value: T,
    /// Name of what it concerned, for the record; `None` if the record was
    /// written together with a change.
    about: Option<String>,
    /// More for that record.
    details: details::Details,
}

impl<T> Answer<T> {
    /// An answer that is still to be recorded.
    fn about(value: T, about: impl Into<String>) -> Self {
        Self { value, about: Some(about.into()), details: Vec::new() }
    }

    /// An answer whose record was written with the change that it tells of.
    fn recorded(value: T) -> Self {
        Self { value, about: None, details: Vec::new() }
    }

    /// The same, with more for the record.
    fn with(self, details: details::Details) -> Self {
        Self { details, ..self }
    }
}

/// Settings of the use cases.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose rules hold.
    pub profile: Profile,
    /// What a key's CRN begins with: `{prefix}:{instance}:key:{uuid}`.
    pub crn_prefix: String,
    /// Where key material is that is made from now on.
    pub residency: Residency,
    /// Longest time that an object may take to be made or destroyed in the HSM.
    pub object_deadline: Duration,
    /// What the policy `allowed_network` calls private.
    pub private_networks: Vec<Ipv4Net>,
    /// How checkpoints of the audit log are made.
    pub proving: Proving,
}

/// Who may do what by the configuration.
#[derive(Clone, Debug, Default)]
pub struct Configured {
    /// What it gives, each once: from then on the store says who has it.
    pub bindings: Vec<Gift>,
    /// Who may make and delete instances.
    pub operators: Vec<PrincipalId>,
}

/// The use cases, with all that they act through.
pub struct Service {
    hsm: Hsm,
    store: Arc<dyn Store>,
    audit: Audit,
    clock: Clock,
    settings: Settings,
    registry: Registry,
    tenants: Tenants,
    campaigns: Campaigns,
    /// Counts commits that services are told of.
    key_events: watch::Sender<u64>,
    /// Instances are made one at a time (docs/adr/0004).
    making_instances: tokio::sync::Mutex<()>,
    /// Who may do what now.
    bindings: ArcSwap<Bindings>,
    /// What that is made of.
    all_bindings: Mutex<Vec<Arc<Binding>>>,
    operators: Vec<PrincipalId>,
    intents: Intents,
    masters: Masters,
    findings: Findings,
    /// Keys under which DEKs were unwrapped since that was last written down.
    unwrapped: Mutex<Vec<Arc<Slot>>>,
    /// Changes run here, so that a caller who hangs up does not interrupt one.
    changes: TaskTracker,
    /// Equal ones wait for each other.
    under_way: Mutex<requests::UnderWay>,
    /// Events that are durable in the store's outbox and not yet in the audit log.
    unpublished: Mutex<Vec<Event>>,
    /// Set while store and audit log do not belong together.
    recovery: ArcSwapOption<Recovery>,
    /// Refusals that are recorded by their number.
    floods: floods::Floods,
    /// Whether the signer was found; checkpoints are made one at a time.
    signing: tokio::sync::Mutex<bool>,
    boot_id: Uuid,
    started: Moment,
}

impl Service {
    /// Loads the state of every key, and what a crash left unfinished.
    ///
    /// # Errors
    /// If the store cannot be read, or holds what it must not.
    pub fn load(
        (hsm, store, audit): (Hsm, Arc<dyn Store>, Audit),
        configured: Configured,
        settings: Settings,
        (source, trust): (ClockSource, Trust),
    ) -> Result<Arc<Self>, Error> {
        let snapshot = store.load()?;
        let recovery = Recovery::look(&snapshot, &audit)?;
        let Snapshot {
            keys,
            purged,
            intents,
            outbox,
            instances,
            rings,
            bindings,
            configured: taken_over,
            master_keys,
            import_tokens,
            registered,
            wrap_grants,
            unwrapped,
            clock,
            campaigns,
            audit_position: _,
            restored: _,
        } = snapshot;
        let known: Vec<_> = outbox.iter().map(|event| event.id).collect();
        let in_log = audit.contains_recent(&known)?;
        let (published, unpublished): (Vec<_>, Vec<_>) =
            outbox.into_iter().zip(in_log).partition(|(_, in_log)| *in_log);
        let clock = Clock::new(source, clock.as_ref(), trust);
        let missing = missing_instances(&instances, &keys, &configured);
        let mut rest = Rest::of(&configured, missing.into_iter());
        rest.taken_over = taken_over;
        rest.published = published.into_iter().map(|(event, _)| event.id).collect();
        let service = Arc::new(Self {
            intents: Intents::new(intents, &keys),
            masters: Masters::new(master_keys),
            findings: Findings::new(purged),
            registry: Registry::new(keys, &registered, &wrap_grants, &unwrapped),
            tenants: Tenants::new(instances, rings, import_tokens),
            campaigns: Campaigns::new(campaigns),
            key_events: watch::Sender::new(0),
            making_instances: tokio::sync::Mutex::default(),
            bindings: ArcSwap::default(),
            all_bindings: Mutex::new(bindings.into_iter().map(Arc::new).collect()),
            operators: configured.operators,
            unwrapped: Mutex::default(),
            changes: TaskTracker::new(),
            under_way: Mutex::default(),
            floods: floods::Floods::default(),
            unpublished: Mutex::new(unpublished.into_iter().map(|(event, _)| event).collect()),
            signing: tokio::sync::Mutex::default(),
            recovery: ArcSwapOption::empty(),
            boot_id: Uuid::new_v4(),
            started: clock.now(),
            hsm,
            store,
            audit,
            clock,
            settings,
        });
        service.rebind(|_all| {});
        match recovery {
            None => service.begin_with(&rest),
            Some(found) => service.recovery.store(Some(Arc::new(found.then(rest)))),
        }
        Ok(service)
    }

    /// An instance that the configuration names, or a key from before there were
    /// instances. Not waited for: if it is lost in a crash it is added again.
    fn add_configured(&self, id: InstanceId) {
        let instance = Instance::configured(id);
        self.tenants.insert(instance.clone());
        let instance = Some(InstanceWrite::Insert(instance, Vec::new()));
        drop(self.store.commit(Change { instance, ..Change::default() }));
    }

    /// Counts a call, where the instance's metrics policy wants it.
    fn count_call(&self, caller: &Caller, action: &'static str, event: &Event) {
        if !self.tenants.counting() {
            return;
        }
        let Ok(instance) = event.instance.parse() else { return };
        if let Some(tenant) = self.tenants.open(&instance) {
            let reason = match &event.outcome {
                Outcome::Success => "",
                Outcome::Refused(reason) => reason,
            };
            tenant.count_call(action, reason, caller.began.elapsed());
        }
    }

    /// Ends a call: its record is durable before the answer leaves, a refusal's too.
    ///
    /// # Errors
    /// The refusal; or why it could not be recorded, and then that is the answer.
    pub async fn conclude<T>(
        &self,
        caller: &Caller,
        method: &'static Method,
        subject: &str,
        result: Result<Answer<T>, Error>,
    ) -> Result<T, Error> {
        let outcome = match &result {
            Ok(Answer { about: None, .. }) => {
                let done = self.event(caller, method.action, (subject, Outcome::Success));
                self.count_call(caller, method.action, &done);
                return result.map(|answer| answer.value);
            }
            Ok(Answer { about: Some(about), .. }) => (about.as_str(), Outcome::Success),
            Err(error) => (error.subject.as_deref().unwrap_or(subject), refused(error)),
        };
        let mut event = self.event(caller, method.action, outcome);
        if let Ok(Answer { details, .. }) = &result {
            event.details.clone_from(details);
        }
        self.count_call(caller, method.action, &event);
        self.append(vec![event], caller.deadline).await?;
        result.map(|answer| answer.value)
    }

    /// Waits until every change that was begun is done, and the outbox is empty
    /// or cannot be emptied.
    pub async fn finish(&self) {
        self.changes.close();
        self.changes.wait().await;
        self.record_refused().await;
        if !self.is_recovering() {
            self.publish_rest().await;
            self.note_clock().await;
        }
    }

    /// Tries again to write events to the audit log that could not be.
    pub async fn publish_rest(&self) {
        let waiting = std::mem::take(&mut *self.unpublished.lock());
        self.publish(waiting).await;
    }

    /// By both clocks.
    pub fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Settings of the use cases.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether the key's state at `now` allows `action`.
    fn permit(&self, key: &Key, action: KeyAction, now: Moment) -> Result<(), Error> {
        let permitted = key.permit(action, now, self.settings.profile);
        permitted.map_err(|refused| Error::from(refused).about(key.name()))
    }

    /// Appends records, which are durable when this returns. The caller's deadline
    /// is for the work: when it is over there is still time for the record.
    async fn append(&self, events: Vec<Event>, deadline: Instant) -> Result<(), Error> {
        let deadline = deadline.max(Instant::now() + RECORD_PATIENCE);
        match tokio::time::timeout_at(deadline.into(), self.audit.append(events)).await {
            Ok(appended) => Ok(appended.map(|_sequence| ())?),
            Err(_elapsed) => Err(Error::deadline()),
        }
    }

    /// Refuses what gives something while the audit log cannot be written: it would be
    /// done and not be seen.
    fn must_be_recordable(&self) -> Result<(), Error> {
        if self.audit.is_failing() {
            let message = "the audit log cannot be written now, so nothing that gives is done";
            return Err(Error::new(Reason::AuditUnavailable, message));
        }
        Ok(())
    }

    /// Takes back the store's reserve where there is space again.
    pub fn refill_reserve(&self) {
        self.store.refill_reserve();
    }

    /// Copies events from the outbox, where they are durable, to the audit log.
    async fn publish(&self, events: Vec<Event>) {
        let ids: Vec<_> = events.iter().map(|event| event.id).collect();
        if ids.is_empty() {
            return;
        }
        match self.audit.append(events.iter().cloned().map(recovery::marked).collect()).await {
            Ok(_sequence) => {
                failpoint!("record.copied");
                self.forget_published(ids);
            }
            Err(error) => {
                tracing::error!(%error, "events wait in the outbox for the audit log");
                self.unpublished.lock().extend(events);
            }
        }
    }

    /// Empties the outbox of what is in the audit log. Not waited for: what is
    /// left after a crash is found in the audit log and forgotten then.
    fn forget_published(&self, published: Vec<[u8; 16]>) {
        if !published.is_empty() {
            let audit_position = self.audit_position();
            drop(self.store.commit(Change { published, audit_position, ..Change::default() }));
        }
    }

    /// How far the audit log has come, for the store; not while that is in question.
    fn audit_position(&self) -> Option<PositionWrite> {
        (!self.is_recovering()).then(|| PositionWrite::Note(self.audit.position()))
    }

    fn event(&self, caller: &Caller, action: &'static str, about: (&str, Outcome)) -> Event {
        let (subject, outcome) = about;
        let principal = caller.principal.as_ref().map_or("", PrincipalId::as_str);
        Event {
            id: *Uuid::new_v4().as_bytes(),
            time: self.now().time,
            action: Cow::Borrowed(action),
            principal: principal.into(),
            source_address: (*caller.source_address).into(),
            instance: instance_in(subject).into(),
            subject: shortened(subject),
            key_version: String::new(),
            resource: String::new(),
            outcome,
            request_id: caller.request_id.clone(),
            details: Vec::new(),
        }
    }
}

/// The record of what the daemon does by itself.
fn daemon_event(action: &'static str, now: Moment, subject: &str) -> Event {
    Event {
        id: *Uuid::new_v4().as_bytes(),
        time: now.time,
        action: Cow::Borrowed(action),
        principal: DAEMON.into(),
        source_address: String::new(),
        instance: instance_in(subject).into(),
        subject: subject.into(),
        key_version: String::new(),
        resource: String::new(),
        outcome: Outcome::Success,
        request_id: String::new(),
        details: Vec::new(),
    }
}

/// Instances that keys or configuration name and the store does not hold.
fn missing_instances(
    instances: &[Instance],
    keys: &[Key],
    configured: &Configured,
) -> BTreeSet<InstanceId> {
    let named = keys.iter().map(|key| &key.instance);
    let named = named.chain(configured.instances());
    let known: HashSet<_> = instances.iter().map(|instance| &instance.id).collect();
    named.filter(|id| !known.contains(id)).cloned().collect()
}

fn refused(error: &Error) -> Outcome {
    Outcome::Refused(Cow::Borrowed(error.reason.wire().name))
}

/// The instance that a name begins with; empty if it names none.
fn instance_in(name: &str) -> &str {
    let instance = name.strip_prefix("instances/").and_then(|rest| rest.split('/').next());
    instance.filter(|instance| instance.parse::<InstanceId>().is_ok()).unwrap_or("")
}

/// What a caller sent as a name may be anything; the record keeps its beginning.
fn shortened(text: &str) -> String {
    // Fewer bytes than that are no more characters: nearly always.
    if text.len() <= LONGEST_SUBJECT {
        return text.to_owned();
    }
    text.chars().take(LONGEST_SUBJECT).collect()
}

/// Of a key, in the record of a change.
fn state_detail(state: KeyState) -> (String, String) {
    ("key_state".into(), state.name().into())
}

/// Of the deadline, in a wait for something that has none of its own.
async fn within<T>(deadline: Instant, work: impl Future<Output = T>) -> Result<T, Error> {
    let waited = tokio::time::timeout_at(deadline.into(), work).await;
    waited.map_err(|elapsed| Error::deadline().caused_by(elapsed))
}

/// How long a record may take, at least.
const RECORD_PATIENCE: Duration = Duration::from_secs(5);
/// In characters: more than the longest name that is valid.
const LONGEST_SUBJECT: usize = 300;

/// A reason that is not one's fault, for a task that died.
fn interrupted() -> Error {
    Error::new(Reason::Internal, "the change was interrupted; read the key to see what it is now")
}

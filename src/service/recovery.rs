//! Recovery mode: store and audit log are not of the same time, so one of them is a copy
//! from earlier. A store from earlier has keys enabled again that were disabled since, and
//! access that was taken away; so nothing is unwrapped until an operator accepts it.
//!
//! The log is the store's anchor: a change is in the store's outbox until its record is
//! durable in the log, where it has a mark. The store notes how far the log had come. Each
//! is held to the other at start (docs/adr/0019).

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::{Configured, Method, Service, TAKES_AWAY, daemon_event};
use crate::audit::{Audit, AuditError, Record};
use crate::domain::{Event, Gift, InstanceId, LogPosition};
use crate::error::{Error, Reason};
use crate::store::{Change, PositionWrite, Snapshot};

/// What is not right.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// `rootkeyctl restore` put the store there.
    Restored,
    /// The log tells of changes that the store does not have.
    StoreBehind,
    /// The log does not have the record that it had when the store was written last.
    LogBehind,
}

/// Store and log do not belong together, as it was found at start.
pub(super) struct Recovery {
    fault: Fault,
    /// What the store says that the log has.
    noted: Option<LogPosition>,
    /// What it has.
    found: LogPosition,
    /// Changes that the log tells of and the store does not have, oldest first.
    lost: Vec<Lost>,
    /// How many there are; more than are kept.
    lost_count: u64,
    /// What is to be done once it is accepted.
    rest: Rest,
}

/// What a start does to the store where nothing is wrong.
#[derive(Default)]
pub(super) struct Rest {
    pub(super) missing: Vec<InstanceId>,
    pub(super) configured: Vec<Gift>,
    pub(super) taken_over: Vec<Gift>,
    /// Events of the outbox that are in the log.
    pub(super) published: Vec<[u8; 16]>,
}

/// A change that the store does not know of.
struct Lost {
    action: String,
    subject: String,
    principal: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, subject, principal } = self;
        write!(f, "{action} {subject} by {principal}")
    }
}

impl Lost {
    /// Whether it had taken something away, which is there again.
    fn takes_away(&self) -> bool {
        TAKING.contains(&self.action.as_str())
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Restored => "the store was restored from a backup",
            Self::StoreBehind => "the audit log tells of changes that the store does not have",
            Self::LogBehind => "the audit log is not the one that the store was written with",
        })
    }
}

impl Recovery {
    /// Holds store and log to each other; `None` if they belong together. Blocks: reads what
    /// is in the log since the store was written last.
    pub(super) fn look(store: &Snapshot, audit: &Audit) -> Result<Option<Self>, AuditError> {
        let noted = store.audit_position;
        let from = noted.unwrap_or(LogPosition { records: 0, hash: [0; 32] });
        let waiting: HashSet<_> = store.outbox.iter().map(|event| event.id).collect();
        let (mut lost, mut lost_count) = (Vec::new(), 0);
        let there = audit.each_behind(&from, |Record { event, .. }| {
            if !is_marked(&event) || waiting.contains(&event.id) {
                return;
            }
            lost_count += 1;
            if lost.len() < MOST_KEPT {
                let Event { action, subject, principal, .. } = event;
                lost.push(Lost { action: action.into_owned(), subject, principal });
            }
        })?;
        lost.reverse();
        let fault = match (store.restored, there, lost_count) {
            (true, ..) => Fault::Restored,
            (false, false, _) => Fault::LogBehind,
            (false, true, 1..) => Fault::StoreBehind,
            (false, true, 0) => return Ok(None),
        };
        let (found, rest) = (audit.position(), Rest::default());
        Ok(Some(Self { fault, noted, found, lost, lost_count, rest }))
    }

    /// To be done once it is accepted.
    pub(super) fn then(self, rest: Rest) -> Self {
        Self { rest, ..self }
    }

    /// Why nothing is done, and how that ends.
    pub(super) fn sentence(&self) -> String {
        let Self { fault, lost_count, .. } = self;
        format!(
            "recovery mode: {fault} ({lost_count} changes are missing); read docs/operations.md, \
             then start rootkeyd with --accept-restored-store"
        )
    }

    fn record(&self, action: &'static str, service: &Service) -> Event {
        let mut event = daemon_event(action, service.now(), "");
        let noted = self.noted.map_or(0, |noted| noted.records);
        event.details = vec![
            ("why".into(), self.fault.to_string()),
            ("store_knows_records".into(), noted.to_string()),
            ("log_has_records".into(), self.found.records.to_string()),
            ("changes_missing".into(), self.lost_count.to_string()),
        ];
        let taking = self.lost.iter().filter(|lost| lost.takes_away());
        let taking = taking.take(MOST_RECORDED).map(|lost| ("missing".into(), lost.to_string()));
        event.details.extend(taking);
        event
    }

    fn tell(&self) {
        tracing::error!("{}", self.sentence());
        for lost in &self.lost {
            let undone = if lost.takes_away() { "what it took away is there again" } else { "" };
            tracing::warn!(change = %lost, undone, "a change is not in the store");
        }
    }
}

impl Service {
    /// Whether nothing is unwrapped until an operator accepts the store.
    pub fn is_recovering(&self) -> bool {
        self.recovery.load().is_some()
    }

    /// Why it is in recovery mode, if it is.
    pub(super) fn recovery_sentence(&self) -> Option<String> {
        self.recovery.load().as_ref().map(|recovery| recovery.sentence())
    }

    /// Refuses what recovery mode does not let through: everything but reading, and what takes
    /// something away.
    pub(super) fn must_not_recover(&self, method: &Method) -> Result<(), Error> {
        let recovery = self.recovery.load();
        let Some(recovery) = &*recovery else { return Ok(()) };
        let verb = method.name.rsplit('/').next().unwrap_or_default();
        let reads = READS.iter().any(|read| verb.starts_with(read));
        if reads || TAKES_AWAY.contains(&method.name) {
            return Ok(());
        }
        Err(Error::new(Reason::StoreUnavailable, recovery.sentence()))
    }

    /// Tells log and audit log that it is recovery mode, if it is.
    pub async fn tell_recovery(&self) {
        let Some(recovery) = self.recovery.load_full() else { return };
        recovery.tell();
        let record = recovery.record("rootkeyd.recovery.begin", self);
        if let Err(error) = self.audit.append(vec![record]).await {
            tracing::error!(%error, "recovery mode could not be recorded");
        }
    }

    /// Takes store and log as they are, for an operator who says so. Objects in the HSM of
    /// changes that were under way when the store was written stay: they may be those of keys
    /// that were made since.
    ///
    /// # Errors
    /// Of audit log and store; nothing is accepted then.
    pub async fn accept_restored_store(self: &Arc<Self>) -> Result<(), Error> {
        let Some(recovery) = self.recovery.load_full() else {
            tracing::warn!("there is nothing to accept: store and audit log belong together");
            return Ok(());
        };
        recovery.tell();
        self.audit.append(vec![recovery.record("rootkeyd.recovery.accept", self)]).await?;
        let audit_position = Some(PositionWrite::Accept(self.audit.position()));
        let end = self.intents.forget_made();
        self.store.commit(Change { audit_position, end, ..Change::default() }).await?;
        tracing::warn!("the store was accepted as it is");
        self.recovery.store(None);
        self.begin_with(&recovery.rest);
        Ok(())
    }

    /// What a start does to the store.
    pub(super) fn begin_with(self: &Arc<Self>, rest: &Rest) {
        for id in &rest.missing {
            self.add_configured(id.clone());
        }
        self.take_over(&rest.configured, &rest.taken_over);
        self.forget_published(rest.published.clone());
    }
}

impl Rest {
    /// Of what the configuration gives.
    pub(super) fn of(configured: &Configured, missing: impl Iterator<Item = InstanceId>) -> Self {
        let configured = configured.bindings.clone();
        Self { missing: missing.collect(), configured, ..Self::default() }
    }
}

/// The mark of a record that went through the store's outbox.
pub(super) fn marked(mut event: Event) -> Event {
    event.details.push((MARK.into(), "true".into()));
    event
}

fn is_marked(event: &Event) -> bool {
    event.details.iter().any(|(name, _)| name == MARK)
}

const MARK: &str = "stored";
/// What methods that change nothing begin with.
const READS: [&str; 7] = ["Get", "List", "Watch", "Preview", "Check", "Test", "Export"];
/// Changes that take something away.
const TAKING: [&str; 9] = [
    "kms.secrets.disable",
    "kms.secrets.delete",
    "kms.secrets.purge",
    "kms.secrets.expire",
    "kms.secrets.unsetkeyfordeletion",
    "kms.instance-policies.write",
    "rootkeyd.binding.delete",
    "rootkeyd.service-authorization.delete",
    "rootkeyd.instance.delete",
];
/// Missing changes that are kept for the log, and those that have a place in the record.
const MOST_KEPT: usize = 10_000;
const MOST_RECORDED: usize = 100;

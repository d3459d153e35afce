//! The audit log as streams: records of an instance as they are written, and the
//! whole log with its checkpoints, to be verified elsewhere.
//!
//! Memory is bounded by a page each, however slow the reader is. Whether the caller
//! still may is looked at again for every page.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use tokio::sync::watch;

use super::proof::aside;
use super::{Answer, Asked, Call, Caller, Method, Service};
use crate::audit::{Exporter, Place, Query, Record};
use crate::domain::{InstanceId, KeyName, Malformed};
use crate::error::{Error, Reason};

/// Which records to follow.
#[derive(Clone, Debug)]
pub struct RecordsWanted {
    /// Of this tenant.
    pub instance: InstanceId,
    /// Only of this key.
    pub key: Option<KeyName>,
    /// Of the last record that was received; empty for those that come.
    pub resume_token: String,
}

/// Where a watcher is.
struct Watcher {
    service: Arc<Service>,
    caller: Arc<Caller>,
    method: &'static Method,
    query: Query,
    place: Place,
    read: VecDeque<Record>,
    durable: watch::Receiver<u64>,
    stopped: watch::Receiver<bool>,
}

/// How far an export is.
struct Export {
    service: Arc<Service>,
    caller: Arc<Caller>,
    method: &'static Method,
    exporter: Exporter,
    stopped: watch::Receiver<bool>,
}

impl Service {
    /// Streams the records of an instance, oldest first, from the resume token on.
    ///
    /// # Errors
    /// KEY_NOT_FOUND; FIELD_INVALID for a token that is none of ours; AUDIT_UNAVAILABLE.
    pub async fn watch_audit_events(
        self: &Arc<Self>,
        call: &Call,
        wanted: RecordsWanted,
        stopped: watch::Receiver<bool>,
    ) -> Result<Answer<impl Stream<Item = Result<Record, Error>> + Send + use<>>, Error> {
        let RecordsWanted { instance, key, resume_token } = wanted;
        let durable = self.audit.durable();
        let after = match resume_token.as_str() {
            "" => self.audit.length(),
            token => token.parse().map_err(|_other| BAD_TOKEN)?,
        };
        let key = key.map(|name| self.registry.find(&name)).transpose()?;
        let audit = self.audit.clone();
        let place = aside(move || audit.place_after(after)).await??.ok_or(BAD_TOKEN)?;
        let about = format!("instances/{instance}");
        let watcher = Watcher {
            service: Arc::clone(self),
            caller: Arc::clone(&call.caller),
            method: call.method,
            query: Query { instance, key: key.map(|slot| slot.key().name()), limit: PAGE },
            place,
            read: VecDeque::new(),
            durable,
            stopped,
        };
        Ok(Answer::about(stream::unfold(Some(watcher), step), about))
    }

    /// Streams an export that begins with the record numbered `first`, up to a checkpoint of
    /// now.
    ///
    /// # Errors
    /// FIELD_INVALID, if there is no such record; of the HSM, if no checkpoint can be made.
    pub async fn export_audit_log(
        self: &Arc<Self>,
        call: &Call,
        first: u64,
        stopped: watch::Receiver<bool>,
    ) -> Result<Answer<impl Stream<Item = Result<Vec<u8>, Error>> + Send + use<>>, Error> {
        self.checkpoint(call.caller.deadline).await?;
        let audit = self.audit.clone();
        let begun = aside(move || audit.export(first.saturating_sub(1))).await??;
        let export = Export {
            service: Arc::clone(self),
            caller: Arc::clone(&call.caller),
            method: call.method,
            exporter: begun.ok_or(NO_SUCH_RECORD)?,
            stopped,
        };
        Ok(Answer::about(stream::unfold(Some(export), more), ""))
    }
}

/// The next record for a watcher; the end when the daemon stops, or after a refusal.
async fn step(watcher: Option<Watcher>) -> Option<(Result<Record, Error>, Option<Watcher>)> {
    let mut watcher = watcher?;
    loop {
        if *watcher.stopped.borrow() {
            return None;
        }
        if let Some(record) = watcher.read.pop_front() {
            return Some((Ok(record), Some(watcher)));
        }
        watcher.durable.mark_unchanged();
        let before = watcher.place.records();
        if let Err(error) = watcher.look().await {
            return Some((Err(error), None));
        }
        if watcher.place.records() > before {
            continue;
        }
        let Watcher { durable, stopped, .. } = &mut watcher;
        tokio::select! {
            // Err: the log is gone.
            woken = durable.changed() => woken.ok()?,
            _ = stopped.wait_for(|stopped| *stopped) => return None,
            // Whether it may still watch is looked at again.
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

impl Watcher {
    /// Reads a page of what comes next, if the caller may still watch.
    async fn look(&mut self) -> Result<(), Error> {
        let instance = &self.query.instance;
        self.service.enter(&self.caller, self.method, Ok(Asked::Instance(instance)))?;
        let (audit, query, mut place) =
            (self.service.audit.clone(), self.query.clone(), self.place);
        let (read, place) = aside(move || {
            let read = audit.read_after(&mut place, PAGE, |it| query.asks_for(&it.event));
            (read, place)
        })
        .await?;
        (self.read, self.place) = (read?.into(), place);
        Ok(())
    }
}

/// The next part of an export; a refusal if it does not come to its end.
async fn more(export: Option<Export>) -> Option<(Result<Vec<u8>, Error>, Option<Export>)> {
    let export = export?;
    if *export.stopped.borrow() {
        let message = "the daemon stops; export again from the record where this one ended";
        return Some((Err(Error::new(Reason::AuditUnavailable, message)), None));
    }
    match export.more().await {
        Ok((part, _)) if part.is_empty() => None,
        Ok((part, export)) => Some((Ok(part), Some(export))),
        Err(error) => Some((Err(error), None)),
    }
}

impl Export {
    async fn more(self) -> Result<(Vec<u8>, Self), Error> {
        self.service.enter(&self.caller, self.method, Ok(Asked::Daemon))?;
        let Self { service, caller, method, mut exporter, stopped } = self;
        let audit = service.audit.clone();
        let (part, exporter) = aside(move || {
            let part = audit.export_more(&mut exporter, PART_BYTES);
            (part, exporter)
        })
        .await?;
        Ok((part?, Self { service, caller, method, exporter, stopped }))
    }
}

const BAD_TOKEN: Malformed = Malformed::new("resume_token", "is not of a record");
const NO_SUCH_RECORD: Malformed = Malformed::new("first_sequence", "there is no such record yet");
/// Records read at once for a watcher.
const PAGE: usize = 200;
/// How often a quiet watcher's permission is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// About the bytes of one part of an export; a record more at most.
const PART_BYTES: usize = 256 * 1024;

//! The thread of a sink: reads the durable log in small batches, hands them to the
//! output, and notes the position. It looks every so often instead of being told, so
//! the thread that writes the log does nothing for it, and one fdatasync serves many.

use std::collections::VecDeque;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::position::Position;
use super::{Line, Output, View, view};
use crate::audit::{Audit, AuditError, Place};

pub(super) struct Follower {
    audit: Audit,
    name: String,
    output: Box<dyn Output>,
    look: (View, String),
    position: Position,
    /// Behind the records that were read; `None` until it was looked for.
    place: Option<Place>,
    /// Read and not yet taken.
    ready: VecDeque<Line>,
    /// How long to wait after the next failure; `None` while nothing fails.
    backoff: Option<Duration>,
}

impl Follower {
    pub(super) fn new(
        audit: Audit,
        name: String,
        output: Box<dyn Output>,
        look: (View, String),
        position: Position,
    ) -> Self {
        let (place, ready, backoff) = (None, VecDeque::new(), None);
        Self { audit, name, output, look, position, place, ready, backoff }
    }

    /// Until the other end of `stopped` is gone, and then until it has caught up or
    /// nobody waits any more.
    pub(super) fn run(&mut self, stopped: &Receiver<()>) {
        let mut until = None;
        loop {
            let wait = self.step();
            if until.is_some_and(|until| self.has_all() || Instant::now() > until) {
                return;
            }
            match (until, wait) {
                (_, None) => {}
                (Some(_), Some(wait)) => thread::sleep(wait),
                (None, Some(wait)) => match stopped.recv_timeout(wait) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => {
                        until = Some(Instant::now() + AFTER_STOP)
                    }
                },
            }
        }
    }

    fn has_all(&self) -> bool {
        self.position.taken >= self.audit.length()
    }

    /// One batch; how long to wait before the next, if it is to be waited for.
    fn step(&mut self) -> Option<Duration> {
        match self.deliver() {
            Ok(more) => {
                if self.backoff.take().is_some() {
                    tracing::info!(sink = self.name, "the audit sink takes records again");
                }
                (!more).then_some(LOOK_EVERY)
            }
            Err(problem) => {
                if self.backoff.is_none() {
                    tracing::warn!(sink = self.name, problem, "the audit sink takes no records");
                }
                let wait = self.backoff.unwrap_or(BACKOFF_LEAST);
                self.backoff = Some((wait * 2).min(BACKOFF_MOST));
                Some(wait)
            }
        }
    }

    /// Whether there may be more to deliver at once.
    fn deliver(&mut self) -> Result<bool, String> {
        if self.ready.is_empty() {
            self.read().map_err(|error| error.to_string())?;
        }
        if self.ready.is_empty() {
            // A position that could not be noted before.
            return self.position.note().map(|()| false).map_err(|error| error.to_string());
        }
        let (taken, outcome) = self.output.take(self.ready.make_contiguous());
        if let Some(last) = self.ready.drain(..taken).next_back() {
            self.position.taken = last.sequence;
            self.position.note().map_err(|error| format!("its position: {error}"))?;
        }
        outcome.map(|()| true).map_err(|error| error.to_string())
    }

    fn read(&mut self) -> Result<(), AuditError> {
        if self.has_all() {
            return Ok(());
        }
        let place = match &mut self.place {
            Some(place) => place,
            None => {
                let Some(place) = self.audit.place_after(self.position.taken)? else {
                    return Ok(());
                };
                self.place.insert(place)
            }
        };
        let mut ahead = *place;
        let records = self.audit.read_after(&mut ahead, BATCH, |_| true)?;
        *place = ahead;
        let (view, origin) = &self.look;
        self.ready.extend(records.iter().map(|record| view::line(record, *view, origin)));
        Ok(())
    }
}

/// Records that are read at once; each has at most 64 KiB.
const BATCH: usize = 128;
const LOOK_EVERY: Duration = Duration::from_millis(200);
const BACKOFF_LEAST: Duration = Duration::from_millis(100);
const BACKOFF_MOST: Duration = Duration::from_secs(5);
/// After that nobody waits for the thread.
const AFTER_STOP: Duration = Duration::from_secs(3);

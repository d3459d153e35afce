//! The thread that writes the audit log. It takes all appends that wait, puts
//! their records behind one another, writes them with one write and one
//! fdatasync, and only then answers (group commit).

use std::io;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use parking_lot::RwLock;
use tokio::sync::{oneshot, watch};

use super::AuditError;
use super::chain::{Head, TooLong};
use super::merkle::Tree;
use super::segment::{Directory, HEADER, Tail};
use crate::domain::Event;

/// Most bytes of one batch, and so of what a crash can tear.
pub(super) const BATCH_BYTES: usize = 4 << 20;

/// Events that are to be appended together.
pub(super) struct Entry {
    pub(super) events: Vec<Event>,
    pub(super) answer: Answer,
}

/// The sequence of the first record, once all are durable.
pub(super) type Answer = oneshot::Sender<Result<u64, AuditError>>;

/// Where entries come from. Each has its answer when this goes, however it goes: the
/// queue takes no more first, and then those that wait in it are dropped.
pub(super) struct Intake {
    pub(super) queue: Arc<Queue>,
    pub(super) receiver: Receiver<Entry>,
}

/// Where entries go; `None` once the log is closed.
pub(super) type Queue = RwLock<Option<Sender<Entry>>>;

impl Drop for Intake {
    fn drop(&mut self) {
        drop(self.queue.write().take());
        while self.receiver.try_recv().is_ok() {}
    }
}

/// What of the log is durable, and so may be read.
pub(super) struct State {
    /// First sequence numbers of all segments, in order; never empty.
    pub(super) segments: Vec<u64>,
    /// Length of the newest segment, in bytes.
    pub(super) end: u64,
    pub(super) head: Head,
    /// Of all records that are durable.
    pub(super) tree: Tree,
    /// Whether the last batch could not be written.
    pub(super) failing: bool,
}

/// What the thread owns.
pub(super) struct Writer {
    directory: Directory,
    tail: Tail,
    segment_bytes: u64,
    /// Whether the file of the next segment may exist, without its header: then no record
    /// can go into this one any more.
    rotating: bool,
    state: Arc<RwLock<State>>,
    /// Tells those who wait for records how many are durable.
    durable: watch::Sender<u64>,
    /// Where the chain will stand after the batch.
    head: Head,
    /// Hashes of the records of the batch.
    leaves: Vec<[u8; 32]>,
    /// Of the records that are durable.
    tree: Tree,
    batch: Vec<u8>,
    waiting: Vec<(u64, Answer)>,
}

impl Writer {
    /// Goes on at `tail`, where the chain stands as in `state`.
    pub(super) fn new(
        directory: Directory,
        tail: Tail,
        segment_bytes: u64,
        state: Arc<RwLock<State>>,
        durable: watch::Sender<u64>,
    ) -> Self {
        let (head, tree) = (state.read().head, state.read().tree.clone());
        let (batch, waiting, rotating) = (Vec::new(), Vec::new(), false);
        let leaves = Vec::new();
        Self {
            directory,
            tail,
            segment_bytes,
            rotating,
            state,
            durable,
            head,
            leaves,
            tree,
            batch,
            waiting,
        }
    }

    /// Until every sender of the queue is gone and nothing waits in it.
    pub(super) fn run(mut self, intake: &Intake) {
        while let Ok(entry) = intake.receiver.recv() {
            self.add(entry);
            while self.has_room()
                && let Ok(entry) = intake.receiver.try_recv()
            {
                self.add(entry);
            }
            self.commit();
        }
    }

    fn has_room(&self) -> bool {
        self.batch.len() + ENTRY_BYTES <= BATCH_BYTES
            && self.head.records - self.state.read().head.records < BATCH_RECORDS
    }

    fn add(&mut self, Entry { events, answer }: Entry) {
        let (head, start, leaves) = (self.head, self.batch.len(), self.leaves.len());
        for event in &events {
            let pushed = self.head.push(event, &mut self.batch);
            if pushed == Err(TooLong) || self.batch.len() - start > ENTRY_BYTES {
                self.head = head;
                self.batch.truncate(start);
                self.leaves.truncate(leaves);
                return reply(answer, Err(failed(&io::ErrorKind::InvalidInput.into())));
            }
            self.leaves.push(self.head.hash);
        }
        self.waiting.push((head.records + 1, answer));
    }

    fn commit(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let written = self.write();
        match &written {
            Ok(()) => {
                self.leaves.iter().for_each(|leaf| self.tree.push(leaf));
                let tree = self.tree.clone();
                let mut state = self.state.write();
                (state.end, state.head, state.tree) = (self.tail.end, self.head, tree);
                state.failing = false;
            }
            Err(error) => {
                tracing::error!(%error, "audit records could not be written");
                let mut state = self.state.write();
                state.failing = true;
                self.head = state.head;
            }
        }
        for (first, answer) in self.waiting.drain(..) {
            reply(answer, written.as_ref().map(|()| first).map_err(failed));
        }
        self.batch.clear();
        self.leaves.clear();
        // State is as new as this: who begins to wait now and looks at it misses nothing.
        if self.durable.receiver_count() > 0 {
            self.durable.send_replace(self.head.records);
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let end = self.tail.end + self.batch.len() as u64;
        self.rotating |= self.tail.end > HEADER && end > self.segment_bytes;
        if self.rotating {
            let head = self.state.read().head;
            self.tail = Tail::create(&self.directory, &head)?;
            self.rotating = false;
            let mut state = self.state.write();
            state.segments.push(head.records + 1);
            state.end = self.tail.end;
        }
        self.tail.append(&self.batch)
    }
}

fn reply(answer: Answer, what: Result<u64, AuditError>) {
    // Who does not wait any more does not need the answer; the record stays.
    drop(answer.send(what));
}

/// An `io::Error` cannot be cloned, and each of those who wait gets one.
fn failed(error: &io::Error) -> AuditError {
    AuditError::Unavailable { what: "append", source: again(error) }
}

/// The same error.
pub(super) fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Most bytes of one append.
const ENTRY_BYTES: usize = BATCH_BYTES / 2;
/// A batch that has as many records is written before more are taken.
const BATCH_RECORDS: u64 = 1024;

//! The audit log: records in a hash chain, in files that are only appended to.
//! An answer leaves the daemon when its record is durable, and not before.
//!
//! One thread writes (`log.rs`), anyone reads. The format and what it can show
//! and cannot: `docs/audit-format.md`.

mod chain;
pub mod checkpoint;
pub mod export;
mod exporter;
mod forward;
pub mod journal;
mod log;
pub mod merkle;
mod notebook;
mod page;
mod proof;
mod reading;
mod recovery;
mod segment;
mod together;
mod witness;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::TrySendError;
use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::sync::{oneshot, watch};

use crate::domain::{Event, ObjectId};
use crate::gather::Gather;

pub use chain::Record;
pub use exporter::Exporter;
pub use forward::Place;
pub use notebook::Signed;
pub use page::{Cursor, Page, Query};
pub use proof::{Anchors, PublicKey, Snapshot, newest_checkpoint, public_key, public_key_in};

use forward::Readable;
use log::{BATCH_BYTES, Entry, Intake, Queue, State, Writer};
use page::{Bound, Walk};
use proof::Proof;
use segment::Directory;

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

/// Where the audit log is, and its limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of the segments; made if it is not there.
    pub directory: PathBuf,
    /// A new segment begins before one gets longer than this, in bytes.
    pub segment_bytes: u64,
    /// Appends that may wait; at least 1.
    pub queue: usize,
    /// Where copies of the checkpoints go.
    pub anchors: Anchors,
}

impl Settings {
    /// 64 MiB a segment, 4096 waiting appends, no copies of checkpoints.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        let (directory, anchors) = (directory.into(), Anchors::default());
        Self { directory, segment_bytes: 64 << 20, queue: 4096, anchors }
    }
}

/// A chain without a fault, and where it ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Verified {
    /// How many records there are.
    pub records: u64,
    /// The hash of the last one; zeros if there is none.
    pub head: [u8; 32],
}

/// The audit log of this daemon. Clones are the same log; it is closed when the last one goes.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    state: Arc<RwLock<State>>,
    queue: Arc<Queue>,
    /// Appends of one event that go to the thread together.
    gather: Gather<Event, Result<u64, AuditError>>,
    /// How many records are durable, while somebody waits for more.
    durable: watch::Sender<u64>,
    proof: Mutex<Proof>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Audit {
    /// Opens the log, or begins one. Verifies the newest segment in full, of the
    /// earlier ones the header and the last record. What a crash left of an
    /// unfinished append is put aside (`torn-*.bin`). Holds it to the newest checkpoints,
    /// here and of the witness. Blocks.
    ///
    /// # Errors
    /// [`AuditError::Corrupt`] if it holds anything else that does not verify, or a segment is
    /// missing; [`AuditError::Unavailable`] if it cannot be read or written, or another process
    /// has it open (`WouldBlock`).
    pub fn open(settings: Settings) -> Result<Self, AuditError> {
        let Settings { directory: path, segment_bytes, queue, anchors } = settings;
        let directory = Directory::open(&path)?;
        let found = recovery::open(&directory, BATCH_BYTES as u64)?;
        let (segments, end) = (found.segments, found.tail.end);
        let log = Readable { directory: &path, segments: &segments, end };
        let (proof, tree) = Proof::open(log, found.head, anchors)?;
        let state = State { segments, end, head: found.head, tree, failing: false };
        let state = Arc::new(RwLock::new(state));
        let durable = watch::Sender::new(0);
        let writer =
            Writer::new(directory, found.tail, segment_bytes, Arc::clone(&state), durable.clone());
        let (sender, receiver) = crossbeam_channel::bounded(queue.max(1));
        let queue = Arc::new(RwLock::new(Some(sender)));
        let intake = Intake { queue: Arc::clone(&queue), receiver };
        let thread = thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run(&intake))
            .map_err(segment::unavailable("start the thread"))?;
        let thread = Mutex::new(Some(thread));
        let proof = Mutex::new(proof);
        let gather = Gather::default();
        Ok(Self(Arc::new(Inner { directory: path, state, queue, gather, durable, proof, thread })))
    }

    /// Appends events behind one another and returns when all are durable, with the sequence
    /// number of the first. Of no events it returns at once, with the number of the next record.
    /// They are written even if the future is dropped. A NUL in a text is written as U+2400.
    ///
    /// # Errors
    /// [`AuditError::Overloaded`] at once if too many appends wait; [`AuditError::Unavailable`]
    /// if the disk is full, the log is closed, or (`InvalidInput`) an event is longer than 64 KiB
    /// or all are longer than 2 MiB. Nothing is in the log then.
    pub async fn append(&self, events: Vec<Event>) -> Result<u64, AuditError> {
        if events.is_empty() {
            return Ok(self.length() + 1);
        }
        match <[Event; 1]>::try_from(events) {
            Ok([event]) if together::is_short(&event) => self.append_short(event).await,
            Ok([event]) => wait(self.send(vec![event])?).await,
            Err(events) => wait(self.send(events)?).await,
        }
    }

    /// Puts an append into the queue.
    fn send(&self, events: Vec<Event>) -> Result<Answered, AuditError> {
        let closed = || segment::unavailable(CLOSED)(std::io::ErrorKind::BrokenPipe.into());
        let (answer, answered) = oneshot::channel();
        let queue = self.0.queue.read();
        match queue.as_ref().ok_or_else(closed)?.try_send(Entry { events, answer }) {
            Ok(()) => Ok(answered),
            Err(TrySendError::Full(_)) => Err(AuditError::Overloaded),
            Err(TrySendError::Disconnected(_)) => Err(closed()),
        }
    }

    /// How many records are durable.
    pub fn length(&self) -> u64 {
        self.0.state.read().head.records
    }

    /// Whether the last records could not be written, such as on a full disk. The next
    /// that can be written make it false.
    pub fn is_failing(&self) -> bool {
        self.0.state.read().failing
    }

    /// Records that `query` asks for, the newest first; from where an earlier page ended, if
    /// `from` says so. Looks at no more than about 20 000 records or 32 MiB, so a page may
    /// be empty and have a `next`. Blocks.
    ///
    /// # Errors
    /// [`AuditError::Unavailable`] if it cannot be read, or (`InvalidInput`) `from` is no place in
    /// this log; [`AuditError::Corrupt`] at a record that does not verify.
    pub fn page(&self, query: &Query, from: Option<Cursor>) -> Result<Page, AuditError> {
        let (segments, end) = self.readable();
        page::read(Walk::new(&self.0.directory, &segments, end, from)?, query)
    }

    /// For each id, whether an event with it is among the newest records: the last 4096
    /// or 16 MiB, whichever is less. Blocks.
    ///
    /// # Errors
    /// As [`Audit::page`].
    pub fn contains_recent(&self, ids: &[[u8; 16]]) -> Result<Vec<bool>, AuditError> {
        let mut found = vec![false; ids.len()];
        let (segments, end) = self.readable();
        let mut walk = Walk::new(&self.0.directory, &segments, end, None)?;
        while found.contains(&false) && walk.is_within(RECENT) {
            let Some(record) = walk.back()? else { break };
            for (id, found) in ids.iter().zip(&mut found) {
                *found |= *id == record.event.id;
            }
        }
        Ok(found)
    }

    /// Verifies every record from the first to the one that is the last now. Blocks, in a
    /// dev build about three seconds for a million records.
    ///
    /// # Errors
    /// [`AuditError::Corrupt`] at the first fault; [`AuditError::Unavailable`] if it cannot be read.
    pub fn verify(&self) -> Result<Verified, AuditError> {
        let (segments, end, head) = {
            let state = self.0.state.read();
            (state.segments.clone(), state.end, state.head)
        };
        let verified = recovery::verify(&self.0.directory, &segments, Some(end))?;
        if (verified.records, verified.head) != (head.records, head.hash) {
            let place = self.0.directory.display().to_string();
            return Err(AuditError::Corrupt { place, what: "it is not what this daemon wrote" });
        }
        Ok(verified)
    }

    /// Takes no more, writes what waits, and ends the thread. Blocks. Reading goes on working.
    pub fn close(&self) {
        self.0.close();
    }

    fn readable(&self) -> (Vec<u64>, u64) {
        let state = self.0.state.read();
        (state.segments.clone(), state.end)
    }
}

/// Verifies every record of a log that no daemon is writing to. Needs no lock and changes nothing.
///
/// # Errors
/// [`AuditError::Corrupt`] at the first fault, and if there is no log or its end is torn;
/// [`AuditError::Unavailable`] if it cannot be read.
pub fn verify(directory: &Path) -> Result<Verified, AuditError> {
    let segments = segment::list(directory)?;
    if segments.is_empty() {
        let place = directory.display().to_string();
        return Err(AuditError::Corrupt { place, what: "there is no segment" });
    }
    recovery::verify(directory, &segments, None)
}

type Answered = oneshot::Receiver<Result<u64, AuditError>>;

async fn wait(answered: Answered) -> Result<u64, AuditError> {
    answered.await.unwrap_or_else(|_gone| Err(ended()))
}

/// Whoever was to answer has ended.
fn ended() -> AuditError {
    segment::unavailable("append, the thread ended")(std::io::ErrorKind::BrokenPipe.into())
}

impl Inner {
    fn close(&self) {
        drop(self.queue.write().take());
        // The lock is held for the join: a second caller returns when the thread has ended too.
        let mut thread = self.thread.lock();
        if thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread of the audit log panicked");
        }
        let witness = self.proof.lock().witness.take();
        if let Some(witness) = witness {
            witness.close();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

const CLOSED: &str = "append, it is closed";
const RECENT: Bound = Bound { records: 4096, bytes: 16 << 20 };

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::io::ErrorKind;
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;
    use crate::domain::{Outcome, Timestamp};

    /// A short event, the `number`th.
    pub(super) fn event(number: u16) -> Event {
        let mut id = [0; 16];
        id[14..].copy_from_slice(&number.to_be_bytes());
        Event {
            id,
            time: Timestamp::from_seconds(i64::from(number)),
            action: "kms.secrets.unwrap".into(),
            principal: "spiffe://td/vm".into(),
            source_address: String::new(),
            instance: "default".into(),
            subject: "instances/default/keys/a".into(),
            key_version: String::new(),
            resource: String::new(),
            outcome: Outcome::Success,
            request_id: number.to_string(),
            details: Vec::new(),
        }
    }

    pub(super) fn events(numbers: std::ops::RangeInclusive<u16>) -> Vec<Event> {
        numbers.map(event).collect()
    }

    /// A log in `directory` whose segments take some three short events.
    pub(super) fn open(directory: &TempDir) -> Result<Audit, AuditError> {
        Audit::open(Settings { segment_bytes: 600, ..Settings::new(directory.path()) })
    }

    fn all(key: Option<&str>, limit: usize) -> Query {
        Query { instance: "default".parse().unwrap(), key: key.map(str::to_owned), limit }
    }

    /// Numbers of the events of all pages, and how many pages there were.
    fn read(audit: &Audit, query: &Query) -> (Vec<i64>, usize) {
        let (mut numbers, mut pages, mut from) = (Vec::new(), 0, None);
        loop {
            let page = audit.page(query, from).unwrap();
            numbers.extend(page.records.iter().map(|r| r.event.time.as_micros() / 1_000_000));
            pages += 1;
            // As a caller does it: the cursor goes out as text and comes back.
            from = page.next.map(|next| next.to_string().parse().unwrap());
            if from.is_none() {
                return (numbers, pages);
            }
        }
    }

    #[tokio::test]
    async fn records_come_back_newest_first_over_pages_segments_and_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        assert_eq!(read(&audit, &all(None, 3)), (vec![], 1));
        for (number, sequence) in (0..10).zip(1_u64..) {
            assert_eq!(audit.append(vec![event(number)]).await.unwrap(), sequence);
        }
        assert!(segment::list(directory.path()).unwrap().len() > 2);
        let newest_first: Vec<i64> = (0..10).rev().collect();
        for limit in 1..12 {
            let (numbers, pages) = read(&audit, &all(None, limit));
            assert_eq!((numbers, pages), (newest_first.clone(), 10_usize.div_ceil(limit)));
        }
        drop(audit);
        let audit = open(&directory).unwrap();
        assert_eq!((audit.length(), read(&audit, &all(None, 4)).0), (10, newest_first));
    }

    #[tokio::test]
    async fn a_record_comes_back_as_it_was_appended_with_the_hashes_of_the_chain() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        let details = vec![("name".to_owned(), "wert".to_owned())];
        let second = Event { outcome: Outcome::Refused("NO".into()), details, ..event(2) };
        audit.append(vec![event(1), second.clone()]).await.unwrap();
        let page = audit.page(&all(None, 9), None).unwrap();
        let [newer, older] = page.records.as_slice() else { panic!("{page:?}") };
        assert_eq!((newer.sequence, &newer.event), (2, &second));
        assert_eq!((older.sequence, &older.event), (1, &event(1)));
        assert_eq!((newer.previous_hash, older.previous_hash), (older.hash, [0; 32]));
        assert_eq!(audit.verify().unwrap(), Verified { records: 2, head: newer.hash });
        assert_eq!(verify(directory.path()).unwrap(), audit.verify().unwrap());
    }

    #[tokio::test]
    async fn a_page_holds_the_key_what_is_below_it_and_no_other_tenant() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        let of = |subject: &str| Event { subject: subject.into(), ..event(1) };
        let stranger = Event { instance: "other".into(), ..of("instances/default/keys/a") };
        let subjects = [
            "instances/default/keys/a",
            "instances/default/keys/a/versions/1",
            "instances/default/keys/ab",
            "instances/default/keys/b",
            "instances/default/keys",
        ];
        audit.append(subjects.map(of).into()).await.unwrap();
        audit.append(vec![stranger]).await.unwrap();
        let key = Some("instances/default/keys/a");
        for limit in 1..4 {
            assert_eq!(read(&audit, &all(key, limit)).0.len(), 2);
            assert_eq!(read(&audit, &all(None, limit)).0.len(), 5);
        }
    }

    #[tokio::test]
    async fn the_work_for_a_page_is_bounded_and_the_next_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::open(Settings::new(directory.path())).unwrap();
        audit.append(vec![Event { subject: "rare".into(), ..event(7) }]).await.unwrap();
        for _ in 0..5 {
            audit.append(vec![event(1); 5000]).await.unwrap();
        }
        let first = audit.page(&all(Some("rare"), 1), None).unwrap();
        assert!(first.records.is_empty() && first.next.is_some());
        assert_eq!(read(&audit, &all(Some("rare"), 1)), (vec![7], 2));
    }

    #[tokio::test]
    async fn a_cursor_that_is_not_between_two_records_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        audit.append(events(1..=4)).await.unwrap();
        let page = audit.page(&all(None, 1), None).unwrap();
        assert_eq!(page.next.unwrap().to_string().len(), 32);
        let mut good = 0;
        for (segment, offset) in (0..5).flat_map(|s| (0..2000).map(move |offset| (s, offset))) {
            let cursor = format!("{segment:016x}{offset:016x}").parse().unwrap();
            match audit.page(&all(None, 1), Some(cursor)) {
                Ok(_) => good += 1,
                Err(AuditError::Unavailable { source, .. }) => {
                    assert_eq!(source.kind(), ErrorKind::InvalidInput);
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(good, 5, "before, between and behind the four records");
        let far = "ffffffffffffffffffffffffffffffff".parse().unwrap();
        assert!(audit.page(&all(None, 1), Some(far)).is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn concurrent_appends_get_consecutive_numbers_and_all_are_on_disk() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings { segment_bytes: 20_000, ..Settings::new(directory.path()) };
        let audit = Audit::open(settings.clone()).unwrap();
        let appenders = (0..16_u16).map(|appender| {
            let audit = audit.clone();
            tokio::spawn(async move {
                let mut taken = Vec::new();
                for round in 0..40_u16 {
                    let count = 1 + u64::from((appender + round) % 3);
                    let batch = (0..count).map(|_| event(appender)).collect();
                    let first = audit.append(batch).await.unwrap();
                    assert!(audit.length() >= first + count - 1);
                    taken.extend(first..first + count);
                }
                (appender, taken)
            })
        });
        let (mut taken, mut by_appender) = (BTreeSet::new(), Vec::new());
        for appender in appenders.collect::<Vec<_>>() {
            let (appender, numbers) = appender.await.unwrap();
            assert!(numbers.is_sorted() && numbers.iter().all(|number| taken.insert(*number)));
            by_appender.push((appender, numbers));
        }
        assert_eq!(taken, (1..=audit.length()).collect());
        let live = audit.verify().unwrap();
        drop(audit);
        assert_eq!(verify(directory.path()).unwrap(), live);
        let audit = Audit::open(settings).unwrap();
        let records = audit.page(&all(None, usize::MAX), None).unwrap().records;
        assert_eq!(records.len(), taken.len());
        for record in records {
            let appender = u16::from_be_bytes(*record.event.id.last_chunk().unwrap());
            let mut mine = by_appender.iter().filter(|(other, _)| *other == appender);
            assert!(mine.any(|(_, numbers)| numbers.contains(&record.sequence)));
        }
    }

    /// A log whose thread does not run, and what its thread would take from.
    pub(super) fn stalled(queue: usize) -> (Audit, Intake) {
        let (sender, receiver) = crossbeam_channel::bounded(queue);
        let other = tempfile::tempdir().unwrap();
        drop(open(&other).unwrap());
        let (segments, head) = (vec![1], chain::Head::START);
        let log = Readable { directory: other.path(), segments: &segments, end: 48 };
        let (proof, tree) = Proof::open(log, head, Anchors::default()).unwrap();
        let (proof, durable) = (Mutex::new(proof), watch::Sender::new(0));
        let state = State { segments, end: 48, head, tree, failing: false };
        let queue = Arc::new(RwLock::new(Some(sender)));
        let intake = Intake { queue: Arc::clone(&queue), receiver };
        let (state, thread) = (Arc::new(RwLock::new(state)), Mutex::new(None));
        let (directory, gather) = (PathBuf::new(), Gather::default());
        let inner = Inner { directory, state, queue, gather, durable, proof, thread };
        (Audit(Arc::new(inner)), intake)
    }

    #[tokio::test]
    async fn a_full_queue_answers_overloaded_at_once() {
        let (audit, _intake) = stalled(2);
        let waiting = [audit.clone(), audit.clone()]
            .map(|audit| tokio::spawn(async move { audit.append(vec![event(1); 2]).await }));
        tokio::task::yield_now().await;
        assert!(matches!(audit.append(vec![event(2)]).await, Err(AuditError::Overloaded)));
        assert!(waiting.iter().all(|task| !task.is_finished()));
    }

    #[tokio::test]
    async fn a_dead_thread_answers_unavailable() {
        let (audit, intake) = stalled(2);
        let waiting = tokio::spawn({
            let audit = audit.clone();
            async move { audit.append(vec![event(1)]).await }
        });
        for _ in 0..3 {
            tokio::task::yield_now().await;
        }
        drop(intake);
        assert!(matches!(waiting.await.unwrap(), Err(AuditError::Unavailable { .. })));
        assert!(matches!(audit.append(vec![event(2)]).await, Err(AuditError::Unavailable { .. })));
    }

    #[tokio::test]
    async fn close_writes_what_waits_and_takes_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        let mut answers = Vec::new();
        for number in 0..50 {
            answers.push(audit.send(vec![event(number)]).unwrap());
        }
        audit.close();
        audit.close();
        for (answer, sequence) in answers.into_iter().zip(1_u64..) {
            assert_eq!(answer.await.unwrap().unwrap(), sequence);
        }
        assert!(matches!(audit.append(vec![event(1)]).await, Err(AuditError::Unavailable { .. })));
        assert_eq!(read(&audit, &all(None, 9)).0.len(), 50);
        assert_eq!(open(&directory).unwrap().length(), 50);
    }

    #[tokio::test]
    async fn no_events_and_too_long_events_leave_no_record() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        assert_eq!(audit.append(vec![]).await.unwrap(), 1);
        let long = Event { subject: "x".repeat(65 * 1024), ..event(2) };
        let too_long = [vec![event(1), long], vec![event(1); 20_000]];
        for batch in too_long {
            let error = audit.append(batch).await.unwrap_err();
            assert!(matches!(error, AuditError::Unavailable { source, .. }
                if source.kind() == ErrorKind::InvalidInput));
        }
        assert_eq!(audit.append(vec![event(3)]).await.unwrap(), 1);
        assert_eq!(audit.verify().unwrap().records, 1);
    }

    #[tokio::test]
    async fn recent_ids_are_found_and_old_ones_are_not_looked_for() {
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::open(Settings::new(directory.path())).unwrap();
        assert_eq!(audit.contains_recent(&[event(1).id]).unwrap(), [false]);
        audit.append(events(1..=2)).await.unwrap();
        audit.append(events(3..=4097)).await.unwrap();
        let ids = [1, 2, 3, 4097, 5000].map(|number| event(number).id);
        assert_eq!(audit.contains_recent(&ids).unwrap(), [false, true, true, true, false]);
        assert!(audit.contains_recent(&[]).unwrap().is_empty());
    }

    /// The kernel's own refusal, EFBIG at a limit of the process. `sh` ignores SIGXFSZ for the
    /// child, which would kill it, and the child moves the limit.
    #[test]
    fn a_disk_that_is_full_refuses_the_batch_and_later_ones_succeed() {
        const NAME: &str = "a_disk_that_is_full_refuses_the_batch_and_later_ones_succeed";
        if std::env::var_os("AUDIT_TEST_FULL").is_some() {
            return fills_the_disk();
        }
        let child = Command::new("sh")
            .args(["-c", r#"trap "" XFSZ; exec "$@""#, "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", &format!("audit::tests::{NAME}"), "--nocapture"])
            .env("AUDIT_TEST_FULL", "1")
            .output()
            .unwrap();
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
    }

    fn fills_the_disk() {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Fsize).maximum;
        let limit = |bytes| setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        let append = |number| runtime.block_on(audit.append(vec![event(number)]));
        append(1).unwrap();
        // 20: not even the header of the next segment fits. 300: a part of the batch does.
        for (bytes, number) in [(20, 2), (300, 3), (20, 4)] {
            limit(Some(bytes));
            for count in [1, 30] {
                let error = runtime.block_on(audit.append(vec![event(number); count]));
                if let Err(AuditError::Unavailable { source, .. }) = &error {
                    assert_eq!(source.kind(), ErrorKind::FileTooLarge);
                }
                assert!(error.is_err() || bytes == 300, "{error:?}");
            }
            limit(maximum);
            append(number).unwrap();
            assert_eq!(verify(directory.path()).unwrap(), audit.verify().unwrap());
        }
        drop(audit);
        assert_eq!(open(&directory).unwrap().length(), verify(directory.path()).unwrap().records);
        assert!(segment::list(directory.path()).unwrap().len() > 1);
    }

    #[test]
    fn the_files_are_the_daemons_alone() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state/audit");
        drop(Audit::open(Settings::new(&path)).unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("00000000000000000001.log")), 0o600);
    }
}

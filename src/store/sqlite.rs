//! SQLite as the store of a single daemon: one thread owns the one connection.
//!
//! Changes that wait are carried out in one transaction, each in a savepoint of
//! its own, so that one fsync serves many and one that fails disturbs no other.
//! WAL with synchronous=FULL: a commit is durable when it returns. Others may read
//! along, for a backup (`backup.rs`); that no second daemon writes is the state
//! directory's lock.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, TrySendError};
use parking_lot::Mutex;
use rusqlite::hooks::Wal;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::reserve::Reserve;
use super::rows::RowError;
use super::{
    Change, KeyWrite, Pending, RegistrationCount, RegistrationQuery, Request, Snapshot, Store,
    StoreError, bindings, clock, imports, instances, intents, key_events, keys, master_keys,
    outbox, owner, position, registrations,
};
use crate::domain::{
    InstanceId, KeyEvent, KeyId, PrincipalId, Registration, RegistrationId, RunTime,
};

/// A store in one SQLite file.
pub struct Sqlite {
    /// `None` once it is closed.
    work: Mutex<Option<Sender<Work>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Work {
    Load(Sender<Result<Snapshot, StoreError>>),
    Commit(Box<Change>, oneshot::Sender<Result<(), StoreError>>),
    Read(Read),
    Refill,
    #[cfg(test)]
    Run(Box<dyn FnOnce(&Connection) + Send>),
}

/// Reads and answers, or answers why it could not be asked.
type Read = Box<dyn FnOnce(Result<&Connection, StoreError>) + Send>;

impl Sqlite {
    /// Opens `path`, which is made if there is none, and brings its tables up to
    /// date. `queue` changes may wait.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Corrupt`] if it is no store
    /// of ours or of a newer version.
    pub fn open(path: &Path, queue: usize) -> Result<Self, StoreError> {
        create_file(path).map_err(|source| unavailable("it cannot be made", source))?;
        let mut connection =
            Connection::open(path).map_err(|error| unavailable("it cannot be opened", error))?;
        set_up(&mut connection).map_err(|error| opening(path, error))?;
        migrate(&mut connection, path)?;
        let id = Uuid::new_v4();
        let reserve = Reserve::open(&path.with_file_name("reserve"));
        // A daemon starts on a full disk too: keys can be disabled then.
        while let Err(error) = owner::take(&connection, id) {
            if !is_disk_full(&error) || !reserve.release() {
                return Err(reading(error));
            }
        }
        reserve.refill();
        let (work, waiting) = crossbeam_channel::bounded(queue);
        let thread = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || run(Owned { connection, run: id }, &reserve, &waiting))
            .map_err(|source| unavailable("its thread cannot be made", source))?;
        Ok(Self { work: Mutex::new(Some(work)), thread: Mutex::new(Some(thread)) })
    }

    fn send(&self, work: Work) -> Result<(), (Work, StoreError)> {
        let sender = self.work.lock();
        let Some(sender) = &*sender else {
            return Err((work, unavailable("it is closed", rusqlite::Error::InvalidQuery)));
        };
        sender.try_send(work).map_err(|error| match error {
            TrySendError::Full(work) => (work, StoreError::Overloaded),
            TrySendError::Disconnected(work) => {
                (work, unavailable("its thread is gone", rusqlite::Error::InvalidQuery))
            }
        })
    }

    fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, RowError> + Send + 'static,
    ) -> Pending<T> {
        let (reply, answer) = oneshot::channel();
        let work = Work::Read(Box::new(move |connection| {
            let found = connection.and_then(|connection| read(connection).map_err(reading));
            drop(reply.send(found));
        }));
        if let Err((Work::Read(read), error)) = self.send(work) {
            read(Err(error));
        }
        Pending(answer)
    }

    #[cfg(test)]
    pub(super) fn with_connection(&self, run: impl FnOnce(&Connection) + Send + 'static) {
        assert!(self.send(Work::Run(Box::new(run))).is_ok());
    }
}

impl Store for Sqlite {
    fn load(&self) -> Result<Snapshot, StoreError> {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.send(Work::Load(reply)).map_err(|(_, error)| error)?;
        answer.recv().map_err(|gone| unavailable("its thread is gone", gone))?
    }

    fn commit(&self, change: Change) -> Pending<()> {
        let (reply, answer) = oneshot::channel();
        if let Err((Work::Commit(_, reply), error)) =
            self.send(Work::Commit(Box::new(change), reply))
        {
            drop(reply.send(Err(error)));
        }
        Pending(answer)
    }

    fn find_request(&self, principal: &PrincipalId, id: Uuid) -> Pending<Option<Request>> {
        let principal = principal.clone();
        self.read(move |connection| intents::find_request(connection, &principal, id))
    }

    fn find_registration(&self, id: RegistrationId) -> Pending<Option<Registration>> {
        self.read(move |connection| registrations::find(connection, id))
    }

    fn find_resource(&self, key: KeyId, resource: &str) -> Pending<Option<Registration>> {
        let resource = resource.to_owned();
        self.read(move |connection| registrations::find_resource(connection, key, &resource))
    }

    fn list_registrations(&self, query: RegistrationQuery) -> Pending<Vec<Registration>> {
        self.read(move |connection| registrations::list(connection, &query))
    }

    fn list_key_events(
        &self,
        service: &str,
        instance: &InstanceId,
        after: u64,
        limit: usize,
    ) -> Pending<Vec<KeyEvent>> {
        let (service, instance) = (service.to_owned(), instance.clone());
        self.read(move |connection| {
            key_events::list(connection, (&service, &instance), after, limit)
        })
    }

    fn first_key_event(&self, service: &str, instance: &InstanceId) -> Pending<u64> {
        let (service, instance) = (service.to_owned(), instance.clone());
        self.read(move |connection| key_events::start(connection, &service, &instance))
    }

    fn find_key_event(&self, service: &str, id: u64) -> Pending<Option<(KeyEvent, u64)>> {
        let service = service.to_owned();
        self.read(move |connection| key_events::find(connection, &service, id))
    }

    fn overdue_key_events(
        &self,
        before: RunTime,
        limit: usize,
    ) -> Pending<Vec<(String, KeyEvent)>> {
        self.read(move |connection| key_events::overdue(connection, before, limit))
    }

    fn services_of(&self, key: KeyId) -> Pending<u32> {
        self.read(move |connection| key_events::services(connection, key))
    }

    fn list_attached(
        &self,
        instance: &InstanceId,
        attached_to: &str,
        limit: usize,
    ) -> Pending<Vec<Registration>> {
        let (instance, attached_to) = (instance.clone(), attached_to.to_owned());
        self.read(move |connection| {
            registrations::list_attached(connection, &instance, &attached_to, limit)
        })
    }

    fn count_registrations(&self, key: KeyId) -> Pending<Vec<RegistrationCount>> {
        self.read(move |connection| registrations::count(connection, key))
    }

    fn refill_reserve(&self) {
        // If the queue is full there is a next time.
        drop(self.send(Work::Refill));
    }

    fn close(&self) {
        // Without a sender the thread ends when it has done what waits.
        drop(self.work.lock().take());
        let thread = self.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the store's thread panicked");
        }
    }
}

fn run(mut owned: Owned, reserve: &Reserve, waiting: &Receiver<Work>) {
    while let Ok(first) = waiting.recv() {
        let mut changes = Vec::new();
        for work in std::iter::once(first).chain(waiting.try_iter().take(MOST_TOGETHER - 1)) {
            if let Work::Commit(change, reply) = work {
                changes.push((change, reply));
            } else {
                // In order: what was sent before it is done before it.
                commit_all(&mut owned, reserve, std::mem::take(&mut changes));
                answer(&mut owned, reserve, work);
            }
        }
        commit_all(&mut owned, reserve, changes);
    }
    // Brings the WAL into the file; if that fails the next start does it.
    if let Err((_, error)) = owned.connection.close() {
        tracing::warn!(%error, "the store was not closed well");
    }
}

fn answer(owned: &mut Owned, reserve: &Reserve, work: Work) {
    match work {
        Work::Load(reply) => drop(reply.send(load(&owned.connection).map_err(reading))),
        Work::Read(read) => read(Ok(&owned.connection)),
        Work::Commit(change, reply) => commit_all(owned, reserve, vec![(change, reply)]),
        Work::Refill => reserve.refill(),
        #[cfg(test)]
        Work::Run(run) => run(&owned.connection),
    }
}

/// The connection, and which run of the daemon it is of.
struct Owned {
    connection: Connection,
    run: Uuid,
}

type Waiting = (Box<Change>, oneshot::Sender<Result<(), StoreError>>);

/// Carries out all of `changes` in one transaction, and answers. If the disk is full, those
/// for which there is a reserve are tried again with it, and the others are not.
fn commit_all(owned: &mut Owned, reserve: &Reserve, changes: Vec<Waiting>) {
    let (mut waiting, mut used) = (changes, false);
    let mut done = Vec::with_capacity(waiting.len());
    loop {
        let (answers, full) = commit_together(owned, &waiting);
        let again = full && waiting.iter().any(|(change, _)| change.from_reserve);
        let again = again && reserve.release();
        used |= again;
        let mut left = Vec::new();
        for ((change, reply), answer) in waiting.into_iter().zip(answers) {
            // One that was refused for another reason stays so.
            if again && change.from_reserve && answer.as_ref().is_err_and(is_unavailable) {
                left.push((change, reply));
            } else {
                done.push((reply, answer));
            }
        }
        waiting = left;
        if waiting.is_empty() {
            break;
        }
    }
    if used {
        tracing::warn!("the disk is full; the reserve was used for a change that takes away");
        // What is left of the slice is for the next such change, and for nothing that
        // somebody does who is answered now.
        reserve.refill();
    }
    for (reply, answer) in done {
        // A caller who no longer waits is no matter: it is done.
        drop(reply.send(answer));
    }
}

/// One try; the answers, and whether the disk was full.
fn commit_together(
    Owned { connection, run }: &mut Owned,
    changes: &[Waiting],
) -> (Vec<Result<(), StoreError>>, bool) {
    if changes.is_empty() {
        return (Vec::new(), false);
    }
    let mut results = Vec::with_capacity(changes.len());
    let committed = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(RowError::from)
        .and_then(|mut transaction| {
            end_unless_ours(&transaction, *run)?;
            for (change, _) in changes {
                let applied = apply_alone(&mut transaction, change);
                match applied {
                    // SQLite has taken back everything, as it does when the disk is full.
                    Err(error) if transaction.is_autocommit() => return Err(error),
                    applied => results.push(applied),
                }
            }
            failpoint!("store.applied");
            Ok(transaction.commit()?)
        });
    match committed {
        Ok(()) => {
            failpoint!("store.committed");
            let full = results.iter().any(|applied| applied.as_ref().is_err_and(is_disk_full));
            (results.into_iter().map(|applied| applied.map_err(writing)).collect(), full)
        }
        Err(error) => {
            let full = is_disk_full(&error);
            let lost = writing(error).to_string();
            let answer = |_: &_| Err(unavailable("it cannot be written", lost.clone()));
            (changes.iter().map(answer).collect(), full)
        }
    }
}

fn is_disk_full(error: &RowError) -> bool {
    match error {
        RowError::Sqlite(error) => error.sqlite_error_code() == Some(ErrorCode::DiskFull),
        RowError::Store(_) => false,
    }
}

fn is_unavailable(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable { .. })
}

/// In a savepoint, which takes back what it did if it fails.
fn apply_alone(transaction: &mut Transaction<'_>, change: &Change) -> Result<(), RowError> {
    let savepoint = transaction.savepoint()?;
    apply(&savepoint, change)?;
    Ok(savepoint.commit()?)
}

fn apply(transaction: &Connection, change: &Change) -> Result<(), RowError> {
    let Change {
        key,
        begin,
        destroying,
        end,
        request,
        events,
        published,
        purge,
        instance,
        ring,
        binding,
        master_key,
        import_token,
        registration,
        wrap_grant,
        unwrapped,
        clock,
        key_events: events_of_keys,
        acknowledgement,
        overdue,
        forget_events,
        campaign,
        audit_position,
        from_reserve: _,
    } = change;
    if let Some(master) = master_key {
        master_keys::insert(transaction, master)?;
    }
    match key {
        Some(KeyWrite::Insert(key)) => keys::insert_key(transaction, key)?,
        Some(KeyWrite::Update { key, from }) => keys::update_key(transaction, key, *from)?,
        None => {}
    }
    begin.iter().try_for_each(|intent| intents::insert_intent(transaction, intent))?;
    destroying.iter().try_for_each(|id| intents::mark_destroying(transaction, *id))?;
    end.iter().try_for_each(|id| intents::end_intent(transaction, *id))?;
    let some = |done: Option<Result<(), RowError>>| done.unwrap_or(Ok(()));
    some(request.as_ref().map(|request| intents::insert_request(transaction, request)))?;
    some(purge.as_ref().map(|tombstone| keys::purge_key(transaction, tombstone)))?;
    some(instance.as_ref().map(|write| instances::write(transaction, write)))?;
    some(ring.as_ref().map(|write| instances::write_ring(transaction, write)))?;
    some(binding.as_ref().map(|write| bindings::write(transaction, write)))?;
    some(import_token.as_ref().map(|write| imports::write(transaction, write)))?;
    some(registration.as_ref().map(|write| registrations::write(transaction, write)))?;
    some(wrap_grant.map(|(version, n)| keys::grant_wraps(transaction, version, n)))?;
    unwrapped.iter().try_for_each(|it| keys::note_unwrapped(transaction, it))?;
    some(clock.as_ref().map(|reading| clock::write(transaction, reading)))?;
    events_of_keys.iter().try_for_each(|event| key_events::insert(transaction, event))?;
    some(acknowledgement.as_ref().map(|given| key_events::acknowledge(transaction, given)))?;
    overdue.iter().try_for_each(|late| key_events::mark_overdue(transaction, late))?;
    some(forget_events.map(|before| key_events::forget(transaction, before)))?;
    some(campaign.as_ref().map(|write| key_events::write_campaign(transaction, write)))?;
    some(audit_position.as_ref().map(|write| position::write(transaction, write)))?;
    events.iter().try_for_each(|event| outbox::insert_event(transaction, event))?;
    published.iter().try_for_each(|id| outbox::remove_event(transaction, *id))
}

fn load(connection: &Connection) -> Result<Snapshot, RowError> {
    Ok(Snapshot {
        keys: keys::load_keys(connection)?,
        purged: keys::load_purged(connection)?,
        intents: intents::load_intents(connection)?,
        outbox: outbox::load_outbox(connection)?,
        instances: instances::load(connection)?,
        rings: instances::load_rings(connection)?,
        bindings: bindings::load(connection)?,
        configured: bindings::load_configured(connection)?,
        master_keys: master_keys::load(connection)?,
        import_tokens: imports::load(connection)?,
        registered: registrations::load_counts(connection)?,
        wrap_grants: keys::load_wrap_grants(connection)?,
        unwrapped: keys::load_unwrapped(connection)?,
        clock: clock::load(connection)?,
        campaigns: key_events::load_campaigns(connection)?,
        audit_position: position::load(connection)?,
        restored: position::is_restored(connection)?,
    })
}

/// After an I/O error nobody knows what is on the disk, and to try an fsync again
/// would hide what was lost. The restart reads the disk
/// (`facts/reliability.md` 2.2).
fn end_if_unknown(error: &rusqlite::Error) {
    let known = match error.sqlite_error_code() {
        Some(code) => certainly_nothing_written(code),
        // Not SQLite's: a fault before it was asked.
        None => true,
    };
    if !known {
        tracing::error!(%error, "the store does not know what is on the disk; the daemon ends");
        std::process::abort();
    }
}

/// Another run has the store: what is in our memory is not what is in it.
fn end_unless_ours(transaction: &Connection, run: Uuid) -> Result<(), RowError> {
    if owner::has(transaction, run)? {
        return Ok(());
    }
    tracing::error!("another run of the daemon has the store; the daemon ends");
    std::process::abort();
}

fn certainly_nothing_written(code: ErrorCode) -> bool {
    use ErrorCode::{
        ConstraintViolation, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, ReadOnly,
    };
    [ConstraintViolation, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, ReadOnly]
        .contains(&code)
}

fn writing(error: RowError) -> StoreError {
    match error {
        RowError::Store(error) => error,
        RowError::Sqlite(error) => {
            end_if_unknown(&error);
            if error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) {
                return StoreError::Conflict;
            }
            unavailable("it cannot be written", error)
        }
    }
}

fn reading(error: RowError) -> StoreError {
    match error {
        RowError::Store(error) => error,
        RowError::Sqlite(error) => unavailable("it cannot be read", error),
    }
}

fn create_file(path: &Path) -> std::io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.sync_all()?;
    let directory = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(fs::canonicalize(directory)?)?.sync_all()
}

fn set_up(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "trusted_schema", "OFF")?;
    // What is purged does not stay in free pages: it may be a wrapped root key.
    connection.pragma_update(None, "secure_delete", "ON")?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.wal_hook(Some(checkpoint))
}

/// Brings a long WAL into the file, in place of SQLite's own way, which does not tell of
/// an fsync that failed and tries it again later.
fn checkpoint(wal: &mut Wal, pages: std::ffi::c_int) -> rusqlite::Result<()> {
    if pages >= CHECKPOINT_PAGES
        && let Err(error) = wal.checkpoint()
    {
        end_if_unknown(&error);
        // What is committed is in the WAL, which gets longer meanwhile.
        tracing::warn!(%error, "the store's WAL cannot be brought into its file");
    }
    Ok(())
}

/// Brings the tables up to date, one file of `migrations/` after the other.
fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let pragma = |connection: &Connection, name: &str| -> Result<i64, StoreError> {
        connection
            .pragma_query_value(None, name, |row| row.get(0))
            .map_err(|error| opening(path, error))
    };
    let id = pragma(connection, "application_id")?;
    let version = pragma(connection, "user_version")?;
    let empty = version == 0 && id == 0;
    if !empty && id != APPLICATION_ID {
        return Err(corrupt(path, "is another program's database"));
    }
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > MIGRATIONS.len() {
        return Err(corrupt(path, "is of a newer rootkeyd; use that one"));
    }
    for (number, sql) in MIGRATIONS.iter().enumerate().skip(version) {
        let migrated = connection.transaction().and_then(|transaction| {
            transaction.execute_batch(sql)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", number + 1)?;
            transaction.commit()
        });
        migrated.map_err(|error| opening(path, error))?;
    }
    Ok(())
}

pub(super) fn opening(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            corrupt(path, "is no SQLite database, or a damaged one")
        }
        _ => unavailable("it cannot be opened", error),
    }
}

pub(super) fn corrupt(path: &Path, what: &str) -> StoreError {
    StoreError::Corrupt { what: format!("{} {what}", path.display()) }
}

pub(super) fn unavailable(
    what: &'static str,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
    StoreError::Unavailable { what, source: source.into() }
}

/// The length of the WAL from which on it is brought into the file, as SQLite has it.
const CHECKPOINT_PAGES: std::ffi::c_int = 1000;
/// "rkey": whose database it is.
pub(super) const APPLICATION_ID: i64 = 0x726b_6579;
/// The tables, from nothing to now. Never edited, only added to.
pub(super) const MIGRATIONS: [&str; 7] = [
    include_str!("migrations/sqlite/0001_keys.sql"),
    include_str!("migrations/sqlite/0002_life_cycle.sql"),
    include_str!("migrations/sqlite/0003_resources.sql"),
    include_str!("migrations/sqlite/0004_access.sql"),
    include_str!("migrations/sqlite/0005_recovery.sql"),
    include_str!("migrations/sqlite/0006_owner.sql"),
    include_str!("migrations/sqlite/0007_wrapped.sql"),
];
/// Changes in one transaction.
const MOST_TOGETHER: usize = 64;

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;
    use crate::domain::key::tests::key_at;
    use crate::domain::time::tests::at;
    use std::os::unix::process::ExitStatusExt;
    use std::sync::Arc;

    fn open(path: &Path) -> Sqlite {
        Sqlite::open(path, 64).unwrap()
    }

    #[test]
    fn sqlite_does_what_every_store_must() {
        conformance::run(|directory| Arc::new(open(&directory.join("store.sqlite"))));
    }

    #[test]
    fn a_commit_is_durable_by_the_settings_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("s"));
        let (tell, told) = crossbeam_channel::bounded(1);
        store.with_connection(move |connection| {
            let text = |name| connection.pragma_query_value(None, name, |r| r.get::<_, String>(0));
            let number = |name| connection.pragma_query_value(None, name, |r| r.get::<_, i64>(0));
            let values = (text("journal_mode").unwrap(), number("synchronous").unwrap());
            tell.send((values, number("foreign_keys").unwrap())).unwrap();
        });
        assert_eq!(told.recv().unwrap(), (("wal".into(), 2), 1));
    }

    #[test]
    fn what_is_not_our_database_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let cases: [(&str, i64, i64); 2] =
            [("another program's", 5, 1), ("newer", APPLICATION_ID, 99)];
        for (said, id, version) in cases {
            let _ = fs::remove_file(&path);
            let connection = Connection::open(&path).unwrap();
            connection.pragma_update(None, "application_id", id).unwrap();
            connection.pragma_update(None, "user_version", version).unwrap();
            drop(connection);
            let refusal = Sqlite::open(&path, 1).map(drop).unwrap_err().to_string();
            assert!(refusal.contains(said), "{refusal}");
        }
        let garbage = vec![0x5a; 5000];
        fs::write(&path, &garbage).unwrap();
        let refusal = Sqlite::open(&path, 1).map(drop).unwrap_err().to_string();
        assert!(refusal.contains("no SQLite database"), "{refusal}");
        assert_eq!(fs::read(&path).unwrap(), garbage);
    }

    #[test]
    fn bindings_from_before_there_were_scopes_hold_on_their_instance() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let connection = Connection::open(&path).unwrap();
        for sql in &MIGRATIONS[..3] {
            connection.execute_batch(sql).unwrap();
        }
        connection
            .execute_batch(
                "INSERT INTO instances (id, display_name, created, created_by, policies)
                     VALUES ('old', '', 7, 'spiffe://td/operator',
                         '{\"dual_auth_delete\":false,\"metrics\":false,\"generation\":1}');
                 INSERT INTO bindings VALUES ('spiffe://td/a', 'Manager', 'old'),
                     ('spiffe://td/b', 'Reader', 'old');",
            )
            .unwrap();
        connection.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        connection.pragma_update(None, "user_version", 3).unwrap();
        drop(connection);
        let mut bindings = open(&path).load().unwrap().bindings;
        bindings.sort_by_key(|binding| binding.subject.to_string());
        let texts: Vec<_> = bindings
            .iter()
            .map(|it| format!("{} {} {}", it.subject, it.role.name(), it.scope))
            .collect();
        assert_eq!(
            texts,
            ["spiffe://td/a Manager instances/old", "spiffe://td/b Reader instances/old"]
        );
        assert_eq!(bindings[0].created, crate::domain::Timestamp::from_micros(7));
        assert_ne!(bindings[0].id, bindings[1].id);
    }

    /// In a process of its own, which ends.
    #[tokio::test]
    async fn a_store_that_another_run_has_taken_acknowledges_nothing_and_ends_the_daemon() {
        const STORE: &str = "ROOTKEYD_TEST_TAKEN_STORE";
        let name = "a_store_that_another_run_has_taken_acknowledges_nothing_and_ends_the_daemon";
        let key =
            || Change { key: Some(KeyWrite::Insert(Arc::new(key_at(at(1))))), ..Change::default() };
        if let Some(path) = std::env::var_os(STORE) {
            let store = open(Path::new(&path));
            store.with_connection(|connection| {
                owner::take(connection, Uuid::from_bytes([9; 16])).unwrap();
            });
            let committed = store.commit(key()).await;
            panic!("answered {committed:?}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let mut ourselves = std::process::Command::new(std::env::current_exe().unwrap());
        ourselves.args(["--exact", &format!("store::sqlite::tests::{name}")]);
        let output = ourselves.env(STORE, &path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{said}");
        assert!(open(&path).load().unwrap().keys.is_empty());
    }

    #[tokio::test]
    async fn a_full_disk_refuses_changes_and_is_got_over() {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory.path().join("s"));
        store.with_connection(|connection| {
            let pages: i64 =
                connection.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
            connection.pragma_update(None, "max_page_count", pages).unwrap();
        });
        let mut key = key_at(at(1));
        key.created_by = "x".repeat(20_000).into();
        let insert =
            |key| Change { key: Some(KeyWrite::Insert(Arc::new(key))), ..Change::default() };
        let refused = store.commit(insert(key.clone())).await;
        assert!(matches!(refused, Err(StoreError::Unavailable { .. })), "{refused:?}");
        store.with_connection(|connection| {
            connection.pragma_update(None, "max_page_count", 1_000_000).unwrap();
        });
        store.commit(insert(key.clone())).await.unwrap();
        assert_eq!(store.load().unwrap().keys, [key]);
    }
}

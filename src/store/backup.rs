//! Copies of the store: taken while the daemon runs, looked through, and put back while it
//! does not. For `rootkeyctl backup` and `restore`.
//!
//! A backup is one SQLite file with everything that the store has, and a row that says when
//! it was taken and what the audit log's newest checkpoint was. The row stays when it is
//! restored: the daemon then waits for an operator (docs/adr/0019).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::sqlite::{APPLICATION_ID, MIGRATIONS, corrupt, opening, unavailable};
use super::{StoreError, position};
use crate::domain::LogPosition;

/// When a backup was taken, and what the audit log was then.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct About {
    /// In seconds since the Unix epoch.
    pub time: i64,
    /// The newest checkpoint, as it was signed; empty if there was none.
    pub checkpoint: String,
    /// The key that signed it, as PEM; empty if there was none.
    pub public_key: String,
}

/// A backup that was looked through.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Backup {
    /// When and of what.
    pub about: About,
    /// How many root keys are in it, of every state.
    pub keys: u64,
    /// How far the audit log had come, as the store knew it.
    pub position: Option<LogPosition>,
}

/// The store of a state directory.
pub fn store_in(state: &Path) -> PathBuf {
    state.join("store.sqlite")
}

/// Copies the store at `store` into the empty file `to`; a daemon may be using it. The
/// copy is not synced.
///
/// # Errors
/// [`StoreError`]; then what is in `to` is no backup.
pub fn take(store: &Path, to: &Path, about: &About) -> Result<Backup, StoreError> {
    // To read along with a daemon needs the right to write: who reads is noted beside the file.
    let connection = Connection::open_with_flags(store, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(|error| opening(store, error))?;
    check_kind(&connection, store)?;
    let text = to.to_str().ok_or_else(|| corrupt(to, "has a name that is no text"))?;
    let copied = connection.execute("VACUUM INTO ?1", [text]);
    copied.map_err(|error| unavailable("it cannot be copied", error))?;
    drop(connection);
    let copy = Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_WRITE)
        .map_err(|error| opening(to, error))?;
    let About { time, checkpoint, public_key } = about;
    let sql = "INSERT OR REPLACE INTO backup (one, time, checkpoint, public_key)
               VALUES (1, ?1, ?2, ?3)";
    copy.execute(sql, params![time, checkpoint, public_key])
        .map_err(|error| unavailable("the copy cannot be written", error))?;
    drop(copy);
    look(to)
}

/// Looks a backup through from beginning to end.
///
/// # Errors
/// [`StoreError::Corrupt`], if it is damaged or no backup; [`StoreError::Unavailable`].
pub fn look(path: &Path) -> Result<Backup, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection =
        Connection::open_with_flags(path, flags).map_err(|error| opening(path, error))?;
    check_kind(&connection, path)?;
    let damaged = |_other| corrupt(path, "is damaged");
    let intact = connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    let dangling = connection.query_row("PRAGMA foreign_key_check", [], |_row| Ok(())).optional();
    if intact.map_err(damaged)? != "ok" || dangling.map_err(damaged)?.is_some() {
        return Err(corrupt(path, "is damaged"));
    }
    let about = connection
        .query_row("SELECT time, checkpoint, public_key FROM backup", [], |row| {
            let (time, checkpoint) = (row.get("time")?, row.get("checkpoint")?);
            Ok(About { time, checkpoint, public_key: row.get("public_key")? })
        })
        .map_err(|_other| corrupt(path, "is no backup; a store that is copied is none"))?;
    let keys = connection.query_row("SELECT count(*) FROM keys", [], |row| row.get(0));
    let position = position::load(&connection).map_err(|_other| corrupt(path, "is damaged"))?;
    Ok(Backup { about, keys: keys.map_err(damaged)?, position })
}

/// Puts a backup, which was looked through, in the place of the store of a state directory
/// that no daemon has. Where the store is that was there, which is kept.
///
/// # Errors
/// [`StoreError::Unavailable`]. The store is the one before then, or none.
pub fn put_back(backup: &Path, state: &Path) -> Result<Option<PathBuf>, StoreError> {
    let _lock = lock(state)?;
    let failed = |source: io::Error| unavailable("it cannot be put back", source);
    let (store, new) = (store_in(state), state.join("store.sqlite.restoring"));
    copy(backup, &new).map_err(failed)?;
    let old = set_aside(&store).map_err(failed)?;
    // Here there is no store: a daemon that starts sees by the audit log that one is missing.
    fs::rename(&new, &store).map_err(failed)?;
    sync(state).map_err(failed)?;
    Ok(old)
}

/// Durably, for the owner alone.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(to)?;
    io::copy(&mut File::open(from)?, &mut file)?;
    file.sync_all()
}

/// The store and its WAL get another name, together.
fn set_aside(store: &Path) -> io::Result<Option<PathBuf>> {
    if !store.exists() {
        return Ok(None);
    }
    let named = |number: u32| store.with_file_name(format!("store.sqlite.before-restore-{number}"));
    let free = (1..).map(named).find(|path| !path.exists());
    let aside = free.ok_or(io::ErrorKind::AlreadyExists)?;
    // The WAL first: one that is left behind would be taken for that of the new store.
    for (end, keep) in [("-wal", true), ("-shm", false)] {
        let with = |path: &Path| PathBuf::from(format!("{}{end}", path.display()));
        let moved =
            if keep { fs::rename(with(store), with(&aside)) } else { fs::remove_file(with(store)) };
        match moved {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    fs::rename(store, &aside)?;
    sync(store.parent().unwrap_or_else(|| Path::new(".")))?;
    Ok(Some(aside))
}

fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The lock that a daemon has (`app.rs`).
fn lock(state: &Path) -> Result<File, StoreError> {
    let mut options = OpenOptions::new();
    let lock = options.read(true).write(true).create(true).truncate(false);
    let mut lock = lock
        .open(state.join("lock"))
        .map_err(|error| unavailable("the state directory cannot be locked", error))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Whatever can be read helps.
            let _ = lock.read_to_string(&mut pid);
            let pid = format!("pid {}", pid.trim());
            Err(unavailable("a rootkeyd is using it; stop that first", io::Error::other(pid)))
        }
        Err(TryLockError::Error(error)) => {
            Err(unavailable("the state directory cannot be locked", error))
        }
    }
}

/// Whether it is a store of ours, and not of a newer version.
fn check_kind(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let pragma = |name: &str| -> Result<i64, StoreError> {
        let value = connection.pragma_query_value(None, name, |row| row.get(0));
        value.map_err(|error| opening(path, error))
    };
    if pragma("application_id")? != APPLICATION_ID {
        return Err(corrupt(path, "is no store of rootkeyd"));
    }
    match usize::try_from(pragma("user_version")?) {
        Ok(version) if version > MIGRATIONS.len() => {
            Err(corrupt(path, "is of a newer rootkeyd; use that one"))
        }
        Ok(version) if version < WITH_BACKUPS => {
            Err(corrupt(path, "is of an older rootkeyd; start this one once"))
        }
        Ok(_) => Ok(()),
        Err(_negative) => Err(corrupt(path, "is no store of rootkeyd")),
    }
}

/// The first version of the tables that has the row of a backup.
const WITH_BACKUPS: usize = 5;

//! What reading and writing rows of any table has in common, for SQLite. Reading is
//! strict: what no daemon can have written is an error that names table and row.

use rusqlite::Row;
use rusqlite::types::FromSql;
use uuid::Uuid;

use super::StoreError;
use crate::domain::{Malformed, Moment, RunTime, Timestamp};

/// What can go wrong with a row.
#[derive(Debug)]
pub(super) enum RowError {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for RowError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for RowError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub(super) type Result<T, E = RowError> = std::result::Result<T, E>;

/// A count as SQLite has it.
pub(super) fn generation_number(generation: u64) -> Result<i64> {
    i64::try_from(generation).map_err(|_more| StoreError::Conflict.into())
}

/// A time that can be unset.
pub(super) fn time(row: &Row<'_>, column: &str) -> Result<Option<Timestamp>> {
    let micros: Option<i64> = row.get(column)?;
    Ok(micros.map(Timestamp::from_micros))
}

/// A text that must parse.
pub(super) fn parsed<T: std::str::FromStr<Err = Malformed>>(
    row: &Row<'_>,
    column: &str,
    named: &dyn Fn(&'static str) -> RowError,
) -> Result<T> {
    let text = String::column_result(row.get_ref(column)?).map_err(rusqlite::Error::from)?;
    text.parse().map_err(|malformed: Malformed| named(malformed.problem))
}

/// A row that no daemon has written.
pub(super) fn corrupt(table: &str, id: &[u8; 16], what: &str) -> RowError {
    let id = Uuid::from_bytes(*id);
    StoreError::Corrupt { what: format!("{id} in the table {table} {what}") }.into()
}

/// A time and a run time that can be unset. A row from before there was a run time
/// has none: its windows begin with the first run after.
pub(super) fn moment(row: &Row<'_>, (time, run): (&str, &str)) -> Result<Option<Moment>> {
    let micros: Option<i64> = row.get(time)?;
    let run: Option<u64> = row.get(run)?;
    let run = RunTime::from_micros(run.unwrap_or(0));
    Ok(micros.map(|micros| Moment { time: Timestamp::from_micros(micros), run }))
}

/// The two halves of a moment that can be unset.
pub(super) fn halves(moment: Option<Moment>) -> (Option<i64>, Option<u64>) {
    (moment.map(|at| at.time.as_micros()), moment.map(|at| at.run.as_micros()))
}

/// A changed row count that must be one; a conflict if it is not.
pub(super) fn just_one(altered: usize) -> Result<()> {
    if altered == 1 { Ok(()) } else { Err(StoreError::Conflict.into()) }
}

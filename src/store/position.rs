//! The row that says how far the audit log had come, and the mark of a restored store.

use rusqlite::{Connection, OptionalExtension, params};

use super::PositionWrite;
use super::rows::Result;
use crate::domain::LogPosition;

/// Notes a position. One that is noted later may be an earlier one, and is passed over,
/// unless an operator accepts the store with it.
pub(super) fn write(transaction: &Connection, write: &PositionWrite) -> Result<()> {
    let position = match write {
        PositionWrite::Note(position) => position,
        PositionWrite::Accept(position) => {
            transaction.execute_batch("DELETE FROM audit_position; DELETE FROM backup;")?;
            position
        }
    };
    let sql = "INSERT INTO audit_position (one, records, hash) VALUES (1, ?1, ?2)
               ON CONFLICT DO UPDATE SET records = excluded.records, hash = excluded.hash
                   WHERE excluded.records > records";
    let LogPosition { records, hash } = position;
    transaction.prepare_cached(sql)?.execute(params![records, hash])?;
    Ok(())
}

/// The position that was noted last; `None` if there is none.
pub(super) fn load(connection: &Connection) -> Result<Option<LogPosition>> {
    let sql = "SELECT records, hash FROM audit_position";
    let position = connection.query_row(sql, [], |row| {
        Ok(LogPosition { records: row.get("records")?, hash: row.get("hash")? })
    });
    Ok(position.optional()?)
}

/// Whether the store comes from a backup and was not accepted since.
pub(super) fn is_restored(connection: &Connection) -> Result<bool> {
    Ok(connection.query_row("SELECT count(*) FROM backup", [], |row| row.get::<_, u64>(0))? > 0)
}

//! Which run of the daemon has the store: whoever opened it last. Looked at in every
//! transaction, so that a daemon whose store was taken over, or put in the place of
//! another while it ran, acknowledges nothing (`facts/reliability.md` 2.2).

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::rows::Result;

/// Makes the store this run's.
pub(super) fn take(connection: &Connection, run: Uuid) -> Result<()> {
    let sql = "INSERT OR REPLACE INTO owner (only, run) VALUES (1, ?1)";
    connection.execute(sql, params![run.as_bytes()])?;
    Ok(())
}

/// Whether it still is.
pub(super) fn has(transaction: &Connection, run: Uuid) -> Result<bool> {
    let mut statement = transaction.prepare_cached("SELECT run FROM owner")?;
    let mut rows = statement.query([])?;
    let owner: Option<[u8; 16]> = rows.next()?.map(|row| row.get("run")).transpose()?;
    Ok(owner == Some(*run.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_of_the_run_that_took_it_last() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("migrations/sqlite/0006_owner.sql")).unwrap();
        let [one, two] = [1, 2].map(|byte| Uuid::from_bytes([byte; 16]));
        assert!(!has(&connection, one).unwrap());
        for (taker, other) in [(one, two), (two, one)] {
            take(&connection, taker).unwrap();
            assert!(has(&connection, taker).unwrap() && !has(&connection, other).unwrap());
        }
    }
}

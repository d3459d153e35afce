//! Rows of master keys: the keys of the HSM under which root keys are wrapped that are
//! kept in the store. A row comes when the key is made, and never goes.

use rusqlite::{Connection, params};

use super::rows::Result;
use crate::domain::{MasterKey, ObjectId, Timestamp};

/// Adds one that was made.
pub(super) fn insert(transaction: &Connection, master: &MasterKey) -> Result<()> {
    let MasterKey { object, created } = master;
    let sql = "INSERT INTO master_keys (object, created) VALUES (?1, ?2)";
    transaction.prepare_cached(sql)?.execute(params![object.as_bytes(), created.as_micros()])?;
    Ok(())
}

/// Every master key, oldest first.
pub(super) fn load(connection: &Connection) -> Result<Vec<MasterKey>> {
    let sql = "SELECT object, created FROM master_keys ORDER BY created, object";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        let object = ObjectId::from_bytes(row.get("object")?);
        Ok(MasterKey { object, created: Timestamp::from_micros(row.get("created")?) })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

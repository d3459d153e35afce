//! Rows of import tokens.

use std::time::Duration;

use rusqlite::{Connection, params};

use super::ImportTokenWrite;
use super::rows::{Result, corrupt, parsed};
use crate::domain::{ImportToken, Moment, ObjectId, RunTime, Timestamp};

/// Puts or takes away the token of an instance.
pub(super) fn write(transaction: &Connection, write: &ImportTokenWrite) -> Result<()> {
    let token = match write {
        ImportTokenWrite::Put(token) => token,
        ImportTokenWrite::Remove(instance) => {
            let sql = "DELETE FROM import_tokens WHERE instance = ?1";
            transaction.prepare_cached(sql)?.execute([instance.as_str()])?;
            return Ok(());
        }
    };
    let ImportToken {
        instance,
        object,
        public_key,
        nonce,
        created,
        lifetime,
        retrievals,
        remaining,
    } = token;
    let sql = "INSERT OR REPLACE INTO import_tokens (instance, object, public_key, nonce, created,
                   created_run, lifetime, retrievals, remaining)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    transaction.prepare_cached(sql)?.execute(params![
        instance.as_str(),
        object.as_bytes(),
        &**public_key,
        nonce,
        created.time.as_micros(),
        created.run.as_micros(),
        lifetime.as_secs(),
        retrievals,
        remaining,
    ])?;
    Ok(())
}

/// Every token.
pub(super) fn load(connection: &Connection) -> Result<Vec<ImportToken>> {
    let mut statement = connection.prepare("SELECT * FROM import_tokens")?;
    let mut rows = statement.query([])?;
    let mut tokens = Vec::new();
    while let Some(row) = rows.next()? {
        let object: [u8; 16] = row.get("object")?;
        let named = |what| corrupt("import_tokens", &object, what);
        let public_key: Vec<u8> = row.get("public_key")?;
        tokens.push(ImportToken {
            instance: parsed(row, "instance", &named)?,
            object: ObjectId::from_bytes(object),
            public_key: public_key.into(),
            nonce: row.get("nonce")?,
            created: Moment {
                time: Timestamp::from_micros(row.get("created")?),
                run: RunTime::from_micros(row.get("created_run")?),
            },
            lifetime: Duration::from_secs(row.get("lifetime")?),
            retrievals: row.get("retrievals")?,
            remaining: row.get("remaining")?,
        });
    }
    Ok(tokens)
}

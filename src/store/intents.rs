//! Rows of unfinished changes, and of requests that made something.

use rusqlite::{Connection, params};
use uuid::Uuid;

use super::rows::{Result, corrupt, just_one};
use super::{Intent, IntentStage, Request};
use crate::domain::{KeyId, ObjectId, PrincipalId, Timestamp};

/// Adds an intent.
pub(super) fn insert_intent(transaction: &Connection, intent: &Intent) -> Result<()> {
    let Intent { object, key, stage, begun, purpose } = intent;
    let sql =
        "INSERT INTO intents (object, key, stage, begun, purpose) VALUES (?1, ?2, ?3, ?4, ?5)";
    transaction.prepare_cached(sql)?.execute(params![
        object.as_bytes(),
        key.as_bytes(),
        stage_name(*stage),
        begun.as_micros(),
        purpose,
    ])?;
    Ok(())
}

/// Moves an intent on; a conflict if there is none.
pub(super) fn mark_destroying(transaction: &Connection, object: ObjectId) -> Result<()> {
    let sql = "UPDATE intents SET stage = ?2 WHERE object = ?1";
    let stage = stage_name(IntentStage::Destroying);
    just_one(transaction.prepare_cached(sql)?.execute(params![object.as_bytes(), stage])?)
}

/// Removes an intent; a conflict if there is none.
pub(super) fn end_intent(transaction: &Connection, object: ObjectId) -> Result<()> {
    let sql = "DELETE FROM intents WHERE object = ?1";
    just_one(transaction.prepare_cached(sql)?.execute([object.as_bytes()])?)
}

/// Every intent.
pub(super) fn load_intents(connection: &Connection) -> Result<Vec<Intent>> {
    let mut statement =
        connection.prepare("SELECT object, key, stage, begun, purpose FROM intents")?;
    let mut rows = statement.query([])?;
    let mut intents = Vec::new();
    while let Some(row) = rows.next()? {
        let object: [u8; 16] = row.get("object")?;
        let stage: String = row.get("stage")?;
        let stages = [IntentStage::Creating, IntentStage::Destroying];
        let stage = stages.into_iter().find(|known| stage_name(*known) == stage);
        intents.push(Intent {
            object: ObjectId::from_bytes(object),
            key: KeyId::from_bytes(row.get("key")?),
            stage: stage.ok_or_else(|| corrupt("intents", &object, "has a stage that is none"))?,
            begun: Timestamp::from_micros(row.get("begun")?),
            purpose: row.get("purpose")?,
        });
    }
    Ok(intents)
}

/// Remembers a request, and forgets those that are older than 24 hours.
pub(super) fn insert_request(transaction: &Connection, request: &Request) -> Result<()> {
    let Request { principal, id, fingerprint, key, time } = request;
    let forget = "DELETE FROM requests WHERE time <= ?1";
    let day_before = time.as_micros().saturating_sub(REQUESTS_KEPT_MICROS);
    transaction.prepare_cached(forget)?.execute([day_before])?;
    let sql = "INSERT INTO requests (principal, id, fingerprint, key, time)
               VALUES (?1, ?2, ?3, ?4, ?5)";
    transaction.prepare_cached(sql)?.execute(params![
        principal.as_str(),
        id.as_bytes(),
        fingerprint,
        key.as_bytes(),
        time.as_micros(),
    ])?;
    Ok(())
}

/// A request that is remembered.
pub(super) fn find_request(
    connection: &Connection,
    principal: &PrincipalId,
    id: Uuid,
) -> Result<Option<Request>> {
    let sql = "SELECT fingerprint, key, time FROM requests WHERE principal = ?1 AND id = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![principal.as_str(), id.as_bytes()])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Request {
        principal: principal.clone(),
        id,
        fingerprint: row.get("fingerprint")?,
        key: KeyId::from_bytes(row.get("key")?),
        time: Timestamp::from_micros(row.get("time")?),
    }))
}

fn stage_name(stage: IntentStage) -> &'static str {
    match stage {
        IntentStage::Creating => "creating",
        IntentStage::Destroying => "destroying",
    }
}

const REQUESTS_KEPT_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

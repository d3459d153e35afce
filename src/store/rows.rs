//! Rows ↔ domain, for SQLite. Reading is strict: what no daemon can have written
//! is an error that names table and row.

use std::sync::Arc;

use rusqlite::types::FromSql;
use rusqlite::{Connection, Row, named_params, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Intent, IntentStage, Request, StoreError};
use crate::domain::{
    Alias, Event, History, Key, KeyDetails, KeyId, Malformed, ObjectId, Outcome, PrincipalId,
    Timestamp, Version, VersionId,
};

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

type Result<T, E = RowError> = std::result::Result<T, E>;

/// Adds a key.
pub(super) fn insert_key(transaction: &Connection, key: &Key) -> Result<()> {
    let sql = "INSERT INTO keys (id, instance, display_name, description, tags, imported,
                   activated, expires, suspended, destroyed, created_by, updated, rotated, generation)
               VALUES (:id, :instance, :display_name, :description, :tags, :imported,
                   :activated, :expires, :suspended, :destroyed, :created_by, :updated, :rotated,
                   :generation)";
    let micros = |time: Option<Timestamp>| time.map(Timestamp::as_micros);
    transaction.prepare_cached(sql)?.execute(named_params! {
        ":id": key.id.as_bytes(),
        ":instance": key.instance.as_str(),
        ":display_name": key.details.display_name,
        ":description": key.details.description,
        ":tags": tags_text(&key.details.tags),
        ":imported": key.imported,
        ":activated": key.history.activated.as_micros(),
        ":expires": micros(key.history.expires),
        ":suspended": micros(key.history.suspended),
        ":destroyed": micros(key.history.destroyed),
        ":created_by": &*key.created_by,
        ":updated": micros(key.updated),
        ":rotated": micros(key.rotated),
        ":generation": generation_number(key.generation)?,
    })?;
    insert_aliases(transaction, key)?;
    insert_versions(transaction, key, 0)
}

/// Alters a key that has the generation `from`.
pub(super) fn update_key(transaction: &Connection, key: &Key, from: u64) -> Result<()> {
    let sql = "UPDATE keys SET display_name = :display_name, description = :description,
                   tags = :tags, expires = :expires, suspended = :suspended,
                   destroyed = :destroyed, updated = :updated, rotated = :rotated,
                   generation = :generation
               WHERE id = :id AND generation = :from";
    let micros = |time: Option<Timestamp>| time.map(Timestamp::as_micros);
    let altered = transaction.prepare_cached(sql)?.execute(named_params! {
        ":id": key.id.as_bytes(),
        ":from": generation_number(from)?,
        ":display_name": key.details.display_name,
        ":description": key.details.description,
        ":tags": tags_text(&key.details.tags),
        ":expires": micros(key.history.expires),
        ":suspended": micros(key.history.suspended),
        ":destroyed": micros(key.history.destroyed),
        ":updated": micros(key.updated),
        ":rotated": micros(key.rotated),
        ":generation": generation_number(key.generation)?,
    })?;
    if altered != 1 {
        return Err(StoreError::Conflict.into());
    }
    let delete = "DELETE FROM aliases WHERE key = ?1";
    transaction.prepare_cached(delete)?.execute([key.id.as_bytes()])?;
    insert_aliases(transaction, key)?;
    let count = "SELECT count(*) FROM key_versions WHERE key = ?1";
    let known: usize =
        transaction.prepare_cached(count)?.query_row([key.id.as_bytes()], |row| row.get(0))?;
    if key.versions.len() < known {
        return Err(StoreError::Conflict.into());
    }
    insert_versions(transaction, key, known)
}

fn insert_aliases(transaction: &Connection, key: &Key) -> Result<()> {
    let sql = "INSERT INTO aliases (instance, alias, key, position) VALUES (?1, ?2, ?3, ?4)";
    let mut statement = transaction.prepare_cached(sql)?;
    for (position, alias) in key.details.aliases.iter().enumerate() {
        let (instance, alias) = (key.instance.as_str(), alias.as_str());
        statement.execute(params![instance, alias, key.id.as_bytes(), position])?;
    }
    Ok(())
}

fn insert_versions(transaction: &Connection, key: &Key, known: usize) -> Result<()> {
    let sql = "INSERT INTO key_versions (key, position, id, object, check_value, created)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let mut statement = transaction.prepare_cached(sql)?;
    for (position, version) in key.versions.iter().enumerate().skip(known) {
        let Version { id, object, check_value, created } = version;
        statement.execute(params![
            key.id.as_bytes(),
            position,
            id.as_bytes(),
            object.as_bytes(),
            &**check_value,
            created.as_micros(),
        ])?;
    }
    Ok(())
}

/// Every key, with its aliases and versions.
pub(super) fn load_keys(connection: &Connection) -> Result<Vec<Key>> {
    let sql = "SELECT id, instance, display_name, description, tags, imported, activated, expires,
                   suspended, destroyed, created_by, updated, rotated, generation FROM keys";
    let mut aliases =
        connection.prepare("SELECT alias FROM aliases WHERE key = ?1 ORDER BY position")?;
    let mut versions = connection.prepare(
        "SELECT id, object, check_value, created, position FROM key_versions WHERE key = ?1
         ORDER BY position",
    )?;
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        let id: [u8; 16] = row.get("id")?;
        let named = |what| corrupt("keys", &id, what);
        let mut alias_rows = aliases.query([id])?;
        let mut key_aliases = Vec::new();
        while let Some(row) = alias_rows.next()? {
            key_aliases.push(parsed::<Alias>(row, "alias", &named)?);
        }
        let mut version_rows = versions.query([id])?;
        let mut key_versions = Vec::new();
        while let Some(row) = version_rows.next()? {
            if row.get::<_, usize>("position")? != key_versions.len() {
                return Err(named("has a gap in its versions"));
            }
            key_versions.push(version(row)?);
        }
        if key_versions.is_empty() {
            return Err(named("has no version"));
        }
        let tags: String = row.get("tags")?;
        let details = KeyDetails {
            display_name: row.get("display_name")?,
            description: row.get("description")?,
            aliases: key_aliases,
            tags: serde_json::from_str(&tags).map_err(|_other| named("has tags that are none"))?,
        };
        let details = details.checked().map_err(|malformed| named(malformed.problem))?;
        let created_by: String = row.get("created_by")?;
        let generation: i64 = row.get("generation")?;
        keys.push(Key {
            id: KeyId::from_bytes(id),
            instance: parsed(row, "instance", &named)?,
            details,
            imported: row.get("imported")?,
            history: History {
                activated: Timestamp::from_micros(row.get("activated")?),
                expires: time(row, "expires")?,
                suspended: time(row, "suspended")?,
                destroyed: time(row, "destroyed")?,
            },
            versions: Arc::from(key_versions),
            created_by: created_by.into(),
            updated: time(row, "updated")?,
            rotated: time(row, "rotated")?,
            generation: u64::try_from(generation).map_err(|_less| named("has no generation"))?,
        });
    }
    Ok(keys)
}

fn version(row: &Row<'_>) -> Result<Version> {
    let check_value: Vec<u8> = row.get("check_value")?;
    Ok(Version {
        id: VersionId::from_bytes(row.get("id")?),
        object: ObjectId::from_bytes(row.get("object")?),
        check_value: check_value.into(),
        created: Timestamp::from_micros(row.get("created")?),
    })
}

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
    let altered = transaction.prepare_cached(sql)?.execute(params![object.as_bytes(), stage])?;
    if altered == 1 { Ok(()) } else { Err(StoreError::Conflict.into()) }
}

/// Removes an intent; a conflict if there is none.
pub(super) fn end_intent(transaction: &Connection, object: ObjectId) -> Result<()> {
    let sql = "DELETE FROM intents WHERE object = ?1";
    let removed = transaction.prepare_cached(sql)?.execute([object.as_bytes()])?;
    if removed == 1 { Ok(()) } else { Err(StoreError::Conflict.into()) }
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

/// Puts an event into the outbox.
pub(super) fn insert_event(transaction: &Connection, event: &Event) -> Result<()> {
    let text = serde_json::to_string(&EventRow::from(event))
        .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
    let sql = "INSERT INTO outbox (id, event) VALUES (?1, ?2)";
    transaction.prepare_cached(sql)?.execute(params![event.id, text])?;
    Ok(())
}

/// Takes an event out of the outbox, if it is in it.
pub(super) fn remove_event(transaction: &Connection, id: [u8; 16]) -> Result<()> {
    transaction.prepare_cached("DELETE FROM outbox WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// The outbox, oldest first.
pub(super) fn load_outbox(connection: &Connection) -> Result<Vec<Event>> {
    let mut statement = connection.prepare("SELECT id, event FROM outbox ORDER BY place")?;
    let mut rows = statement.query([])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        let id: [u8; 16] = row.get("id")?;
        let text: String = row.get("event")?;
        let event: EventRow = serde_json::from_str(&text)
            .map_err(|_other| corrupt("outbox", &id, "holds what is no event"))?;
        events.push(event.into_event(id));
    }
    Ok(events)
}

/// An event as JSON in the outbox.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct EventRow {
    time: i64,
    action: String,
    principal: String,
    source_address: String,
    instance: String,
    subject: String,
    key_version: String,
    resource: String,
    /// Why it was refused; `None` if it was not.
    refused: Option<String>,
    request_id: String,
    details: Vec<(String, String)>,
}

impl From<&Event> for EventRow {
    fn from(event: &Event) -> Self {
        let Event {
            id: _,
            time,
            action,
            principal,
            source_address,
            instance,
            subject,
            key_version,
            resource,
            outcome,
            request_id,
            details,
        } = event.clone();
        Self {
            time: time.as_micros(),
            action: action.into_owned(),
            principal,
            source_address,
            instance,
            subject,
            key_version,
            resource,
            refused: match outcome {
                Outcome::Success => None,
                Outcome::Refused(reason) => Some(reason.into_owned()),
            },
            request_id,
            details,
        }
    }
}

impl EventRow {
    fn into_event(self, id: [u8; 16]) -> Event {
        Event {
            id,
            time: Timestamp::from_micros(self.time),
            action: self.action.into(),
            principal: self.principal,
            source_address: self.source_address,
            instance: self.instance,
            subject: self.subject,
            key_version: self.key_version,
            resource: self.resource,
            outcome: match self.refused {
                None => Outcome::Success,
                Some(reason) => Outcome::Refused(reason.into()),
            },
            request_id: self.request_id,
            details: self.details,
        }
    }
}

fn stage_name(stage: IntentStage) -> &'static str {
    match stage {
        IntentStage::Creating => "creating",
        IntentStage::Destroying => "destroying",
    }
}

fn tags_text(tags: &[String]) -> String {
    serde_json::Value::from(tags).to_string()
}

fn generation_number(generation: u64) -> Result<i64> {
    i64::try_from(generation).map_err(|_more| StoreError::Conflict.into())
}

fn time(row: &Row<'_>, column: &str) -> Result<Option<Timestamp>> {
    let micros: Option<i64> = row.get(column)?;
    Ok(micros.map(Timestamp::from_micros))
}

fn parsed<T: std::str::FromStr<Err = Malformed>>(
    row: &Row<'_>,
    column: &str,
    named: &dyn Fn(&'static str) -> RowError,
) -> Result<T> {
    let text = String::column_result(row.get_ref(column)?).map_err(rusqlite::Error::from)?;
    text.parse().map_err(|malformed: Malformed| named(malformed.problem))
}

fn corrupt(table: &str, id: &[u8; 16], what: &str) -> RowError {
    let id = Uuid::from_bytes(*id);
    StoreError::Corrupt { what: format!("{id} in the table {table} {what}") }.into()
}

const REQUESTS_KEPT_MICROS: i64 = 24 * 60 * 60 * 1_000_000;

//! Rows of the outbox: records of changes, on their way to the audit log.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::rows::{Result, corrupt};
use crate::domain::{Event, Outcome, Timestamp};

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

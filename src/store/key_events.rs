//! Rows of events of keys, of their deliveries to services, and of rewrap campaigns.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::{Result, corrupt, parsed};
use super::{Acknowledgement, CampaignWrite};
use crate::domain::campaign::{Campaign, CampaignState};
use crate::domain::key_event::{KeyEvent, KeyEventKind, NewKeyEvent, Rewrap};
use crate::domain::{
    InstanceId, KeyId, KeyState, Moment, RegistrationId, RunTime, Timestamp, VersionId,
};

/// Adds an event, with a delivery to each service that it concerns; nothing at all if
/// it concerns none.
pub(super) fn insert(transaction: &Connection, new: &NewKeyEvent) -> Result<()> {
    let NewKeyEvent { instance, key, kind, at, state, version, previous, rewrap } = new;
    let services = "SELECT service FROM registration_services WHERE key = ?1 AND n > 0";
    let services: Vec<String> = match rewrap {
        Some(rewrap) => vec![rewrap.service.to_string()],
        None => {
            let mut statement = transaction.prepare_cached(services)?;
            let rows = statement.query_map([key.as_bytes()], |row| row.get(0))?;
            rows.collect::<rusqlite::Result<_>>()?
        }
    };
    if services.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO key_events (instance, key, type, time, run, state, version, previous,
                   registration, resource)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    transaction.prepare_cached(sql)?.execute(params![
        instance.as_str(),
        key.as_bytes(),
        kind.name(),
        at.time.as_micros(),
        at.run.as_micros(),
        state.name(),
        version.as_bytes(),
        previous.as_ref().map(VersionId::as_bytes),
        rewrap.as_ref().map(|it| it.registration.as_bytes()),
        rewrap.as_ref().map(|it| it.resource.as_str()),
    ])?;
    let event = transaction.last_insert_rowid();
    let sql = "INSERT INTO deliveries (service, event, run) VALUES (?1, ?2, ?3)";
    let mut statement = transaction.prepare_cached(sql)?;
    for service in services {
        statement.execute(params![service, event, at.run.as_micros()])?;
    }
    Ok(())
}

/// Notes that a service has done what an event asks. The first time counts.
pub(super) fn acknowledge(transaction: &Connection, given: &Acknowledgement) -> Result<()> {
    let Acknowledgement { service, event, time, failure } = given;
    let sql = "UPDATE deliveries SET acknowledged = ?3, failure = ?4
               WHERE service = ?1 AND event = ?2 AND acknowledged IS NULL";
    transaction.prepare_cached(sql)?.execute(params![service, event, time.as_micros(), failure])?;
    Ok(())
}

/// Notes that it was told that a service is late.
pub(super) fn mark_overdue(
    transaction: &Connection,
    (service, event): &(String, u64),
) -> Result<()> {
    let sql = "UPDATE deliveries SET overdue = 1 WHERE service = ?1 AND event = ?2";
    transaction.prepare_cached(sql)?.execute(params![service, event])?;
    Ok(())
}

/// Forgets what was acknowledged of events from before `run`.
pub(super) fn forget(transaction: &Connection, before: RunTime) -> Result<()> {
    let deliveries = "DELETE FROM deliveries WHERE acknowledged IS NOT NULL AND run < ?1";
    transaction.prepare_cached(deliveries)?.execute([before.as_micros()])?;
    let events = "DELETE FROM key_events WHERE run < ?1
                  AND NOT EXISTS (SELECT 1 FROM deliveries WHERE event = key_events.id)";
    transaction.prepare_cached(events)?.execute([before.as_micros()])?;
    Ok(())
}

/// Events that a service is told of in an instance, after the event `after`.
pub(super) fn list(
    connection: &Connection,
    (service, instance): (&str, &InstanceId),
    after: u64,
    limit: usize,
) -> Result<Vec<KeyEvent>> {
    let sql = "SELECT e.*, d.acknowledged, d.service FROM deliveries d
               JOIN key_events e ON e.id = d.event
               WHERE d.service = ?1 AND d.event > ?2 AND e.instance = ?3 ORDER BY d.event LIMIT ?4";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![service, after, instance.as_str(), limit])?;
    let mut events = Vec::new();
    while let Some(row) = rows.next()? {
        events.push(event(row)?);
    }
    Ok(events)
}

/// The event before the oldest that the service has not acknowledged; the newest of
/// all if there is none.
pub(super) fn start(connection: &Connection, service: &str, instance: &InstanceId) -> Result<u64> {
    let open = "SELECT d.event - 1 FROM deliveries d JOIN key_events e ON e.id = d.event
                WHERE d.service = ?1 AND d.acknowledged IS NULL AND e.instance = ?2
                ORDER BY d.event LIMIT 1";
    let mut statement = connection.prepare_cached(open)?;
    let oldest = statement.query_row(params![service, instance.as_str()], |row| row.get(0));
    if let Some(before) = oldest.optional()? {
        return Ok(before);
    }
    let newest = "SELECT coalesce(max(id), 0) FROM key_events";
    Ok(connection.prepare_cached(newest)?.query_row([], |row| row.get(0))?)
}

/// One event as a service is told of it, and how many services have not acknowledged
/// it.
pub(super) fn find(
    connection: &Connection,
    service: &str,
    id: u64,
) -> Result<Option<(KeyEvent, u64)>> {
    let sql = "SELECT e.*, d.acknowledged, d.service FROM deliveries d
               JOIN key_events e ON e.id = d.event WHERE d.service = ?1 AND d.event = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![service, id])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let found = event(row)?;
    let open = "SELECT count(*) FROM deliveries WHERE event = ?1 AND acknowledged IS NULL";
    let open = connection.prepare_cached(open)?.query_row([id], |row| row.get(0))?;
    Ok(Some((found, open)))
}

/// Deliveries from before `run` that nobody has acknowledged, and nobody was told of.
pub(super) fn overdue(
    connection: &Connection,
    before: RunTime,
    limit: usize,
) -> Result<Vec<(String, KeyEvent)>> {
    let sql = "SELECT e.*, d.acknowledged, d.service FROM deliveries d
               JOIN key_events e ON e.id = d.event
               WHERE d.acknowledged IS NULL AND d.overdue = 0 AND d.run <= ?1
               ORDER BY d.run LIMIT ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![before.as_micros(), limit])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push((row.get("service")?, event(row)?));
    }
    Ok(found)
}

/// Services that have resources registered against a key.
pub(super) fn services(connection: &Connection, key: KeyId) -> Result<u32> {
    let sql = "SELECT count(*) FROM registration_services WHERE key = ?1 AND n > 0";
    Ok(connection.prepare_cached(sql)?.query_row([key.as_bytes()], |row| row.get(0))?)
}

fn event(row: &Row<'_>) -> Result<KeyEvent> {
    let key: [u8; 16] = row.get("key")?;
    let named = |what| corrupt("key_events", &key, what);
    let (kind, state): (String, String) = (row.get("type")?, row.get("state")?);
    let registration: Option<[u8; 16]> = row.get("registration")?;
    let previous: Option<[u8; 16]> = row.get("previous")?;
    let service: String = row.get("service")?;
    let rewrap = match registration {
        None => None,
        Some(id) => Some(Rewrap {
            registration: RegistrationId::from_bytes(id),
            resource: parsed(row, "resource", &named)?,
            service: service.into(),
        }),
    };
    let acknowledged: Option<i64> = row.get("acknowledged")?;
    let state = KeyState::ALL.into_iter().find(|it| it.name() == state);
    Ok(KeyEvent {
        id: row.get("id")?,
        event: NewKeyEvent {
            instance: parsed(row, "instance", &named)?,
            key: KeyId::from_bytes(key),
            kind: KeyEventKind::named(&kind).ok_or_else(|| named("has a type that is none"))?,
            at: Moment {
                time: Timestamp::from_micros(row.get("time")?),
                run: RunTime::from_micros(row.get("run")?),
            },
            state: state.ok_or_else(|| named("has a state that is none"))?,
            version: VersionId::from_bytes(row.get("version")?),
            previous: previous.map(VersionId::from_bytes),
            rewrap,
        },
        acknowledged: acknowledged.is_some(),
    })
}

/// Puts a campaign in the place of the one before.
pub(super) fn write_campaign(transaction: &Connection, write: &CampaignWrite) -> Result<()> {
    let Campaign { key, target, rate, state, place, requested, created, created_by } = &write.0;
    let sql = "INSERT OR REPLACE INTO campaigns (key, target, rate, state, place, requested,
                   created, created_by)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    transaction.prepare_cached(sql)?.execute(params![
        key.as_bytes(),
        target.as_bytes(),
        rate,
        state.name(),
        place,
        requested,
        created.as_micros(),
        &**created_by,
    ])?;
    Ok(())
}

/// Every campaign.
pub(super) fn load_campaigns(connection: &Connection) -> Result<Vec<Campaign>> {
    let mut statement = connection.prepare("SELECT * FROM campaigns")?;
    let mut rows = statement.query([])?;
    let mut campaigns = Vec::new();
    while let Some(row) = rows.next()? {
        let key: [u8; 16] = row.get("key")?;
        let named = |what| corrupt("campaigns", &key, what);
        let (state, created_by): (String, String) = (row.get("state")?, row.get("created_by")?);
        campaigns.push(Campaign {
            key: KeyId::from_bytes(key),
            target: VersionId::from_bytes(row.get("target")?),
            rate: row.get("rate")?,
            state: CampaignState::named(&state).ok_or_else(|| named("has a state that is none"))?,
            place: row.get("place")?,
            requested: row.get("requested")?,
            created: Timestamp::from_micros(row.get("created")?),
            created_by: created_by.into(),
        });
    }
    Ok(campaigns)
}

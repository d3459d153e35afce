//! Rows of registrations. Each is found by an index, and counts are kept by
//! triggers, so a page and a count cost the same however many there are.

use std::collections::HashMap;

use rusqlite::types::{ToSql, Value};
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::rows::{Result, corrupt, generation_number, just_one, parsed};
use super::{RegistrationCount, RegistrationQuery, RegistrationWrite};
use crate::domain::{
    Crn, CrnPattern, InstanceId, KeyId, Registered, Registration, RegistrationId, ResourceKind,
    Timestamp, VersionId,
};

/// Adds, alters or takes away a registration.
pub(super) fn write(transaction: &Connection, write: &RegistrationWrite) -> Result<()> {
    match write {
        RegistrationWrite::Insert(registration) => insert(transaction, registration),
        RegistrationWrite::Update { registration, from } => {
            update(transaction, registration, *from)
        }
        RegistrationWrite::Remove { id, from } => {
            let sql = "DELETE FROM registrations WHERE id = ?1 AND generation = ?2";
            let from = generation_number(*from)?;
            just_one(transaction.prepare_cached(sql)?.execute(params![id.as_bytes(), from])?)
        }
    }
}

fn insert(transaction: &Connection, registration: &Registration) -> Result<()> {
    let Registration {
        id,
        instance,
        key,
        resource,
        kind,
        attached_to,
        description,
        prevents_deletion,
        version,
        source,
        service,
        created,
        created_by,
        updated: _,
        generation,
    } = registration;
    let sql = "INSERT INTO registrations (id, instance, key, resource, kind, attached_to,
                   description, prevents, version, source, service, created, created_by,
                   generation)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
    transaction.prepare_cached(sql)?.execute(params![
        id.as_bytes(),
        instance.as_str(),
        key.as_bytes(),
        resource.as_str(),
        kind.name(),
        attached_to.as_ref().map(Crn::as_str),
        description,
        prevents_deletion,
        version.as_bytes(),
        source.as_ref().map(Crn::as_str),
        &**service,
        created.as_micros(),
        &**created_by,
        generation_number(*generation)?,
    ])?;
    Ok(())
}

fn update(transaction: &Connection, registration: &Registration, from: u64) -> Result<()> {
    let sql = "UPDATE registrations SET attached_to = ?3, description = ?4, prevents = ?5,
                   version = ?6, updated = ?7, updated_by = ?8, generation = ?9
               WHERE id = ?1 AND generation = ?2";
    just_one(transaction.prepare_cached(sql)?.execute(params![
        registration.id.as_bytes(),
        generation_number(from)?,
        registration.attached_to.as_ref().map(Crn::as_str),
        registration.description,
        registration.prevents_deletion,
        registration.version.as_bytes(),
        registration.updated.as_ref().map(|(time, _)| time.as_micros()),
        registration.updated.as_ref().map(|(_, by)| &**by),
        generation_number(registration.generation)?,
    ])?)
}

/// One registration, if there is such.
pub(super) fn find(connection: &Connection, id: RegistrationId) -> Result<Option<Registration>> {
    let sql = "SELECT * FROM registrations WHERE id = ?1";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([id.as_bytes()])?;
    rows.next()?.map(registration).transpose()
}

/// The registration of a resource against a key, if there is one.
pub(super) fn find_resource(
    connection: &Connection,
    key: KeyId,
    resource: &str,
) -> Result<Option<Registration>> {
    let sql = "SELECT id FROM registrations WHERE key = ?1 AND resource = ?2";
    let mut statement = connection.prepare_cached(sql)?;
    let id = statement.query_row(params![key.as_bytes(), resource], |row| row.get(0)).optional()?;
    id.map_or(Ok(None), |id| find(connection, RegistrationId::from_bytes(id)))
}

/// A page of registrations, ordered by resource and key.
pub(super) fn list(
    connection: &Connection,
    query: &RegistrationQuery,
) -> Result<Vec<Registration>> {
    let RegistrationQuery { instance, key, resources, preventing, after, limit } = query;
    let mut sql = String::from("SELECT * FROM registrations WHERE ");
    let mut values: Vec<Value> = Vec::new();
    match key {
        Some(key) => {
            sql.push_str("key = ?");
            values.push(Value::Blob(key.as_bytes().to_vec()));
        }
        None => {
            sql.push_str("instance = ?");
            values.push(Value::Text(instance.as_str().into()));
        }
    }
    match resources {
        Some(CrnPattern::Exactly(crn)) => {
            sql.push_str(" AND resource = ?");
            values.push(Value::Text(crn.as_str().into()));
        }
        Some(CrnPattern::Prefix(prefix)) => {
            // CRNs are text, and U+10FFFF is after every character in them.
            sql.push_str(" AND resource >= ? AND resource < ?");
            values.push(Value::Text(prefix.clone()));
            values.push(Value::Text(format!("{prefix}\u{10ffff}")));
        }
        None => {}
    }
    if let Some((resource, key)) = after {
        sql.push_str(" AND (resource, key) > (?, ?)");
        values.push(Value::Text(resource.clone()));
        values.push(Value::Blob(key.as_bytes().to_vec()));
    }
    if *preventing {
        sql.push_str(" AND prevents = 1");
    }
    sql.push_str(" ORDER BY resource, key LIMIT ?");
    let limit = i64::try_from(*limit).unwrap_or(i64::MAX);
    values.push(Value::Integer(limit));
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values.iter().map(|v| v as &dyn ToSql)))?;
    let mut registrations = Vec::new();
    while let Some(row) = rows.next()? {
        registrations.push(registration(row)?);
    }
    Ok(registrations)
}

/// How many resources are registered against each key that has any.
pub(super) fn load_counts(connection: &Connection) -> Result<HashMap<KeyId, Registered>> {
    let sql = "SELECT key, sum(n) AS total, sum(n * prevents) AS preventing
               FROM registration_counts GROUP BY key HAVING total > 0";
    let mut statement = connection.prepare(sql)?;
    let rows = statement.query_map([], |row| {
        let key = KeyId::from_bytes(row.get("key")?);
        Ok((key, Registered { total: row.get("total")?, preventing: row.get("preventing")? }))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Registrations that are attached to a virtual server.
pub(super) fn list_attached(
    connection: &Connection,
    instance: &InstanceId,
    attached_to: &str,
    limit: usize,
) -> Result<Vec<Registration>> {
    let sql = "SELECT * FROM registrations WHERE instance = ?1 AND attached_to = ?2
               ORDER BY resource, key LIMIT ?3";
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params![instance.as_str(), attached_to, limit])?;
    let mut registrations = Vec::new();
    while let Some(row) = rows.next()? {
        registrations.push(registration(row)?);
    }
    Ok(registrations)
}

/// How many registrations of each sort a key has.
pub(super) fn count(connection: &Connection, key: KeyId) -> Result<Vec<RegistrationCount>> {
    let sql = "SELECT version, kind, attached, sum(n) AS n FROM registration_counts
               WHERE key = ?1 GROUP BY version, kind, attached HAVING sum(n) > 0";
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([key.as_bytes()])?;
    let mut counts = Vec::new();
    while let Some(row) = rows.next()? {
        let kind: String = row.get("kind")?;
        let unknown = || corrupt("registration_counts", key.as_bytes(), "has a kind that is none");
        counts.push(RegistrationCount {
            kind: ResourceKind::named(&kind).ok_or_else(unknown)?,
            attached: row.get("attached")?,
            version: VersionId::from_bytes(row.get("version")?),
            n: row.get("n")?,
        });
    }
    Ok(counts)
}

fn registration(row: &Row<'_>) -> Result<Registration> {
    let id: [u8; 16] = row.get("id")?;
    let named = |what| corrupt("registrations", &id, what);
    let crn = |column: &str| -> Result<Option<Crn>> {
        match row.get::<_, Option<String>>(column)? {
            None => Ok(None),
            Some(text) => Ok(Some(text.parse().map_err(|_other| named("has no CRN"))?)),
        }
    };
    let kind: String = row.get("kind")?;
    let (service, created_by): (String, String) = (row.get("service")?, row.get("created_by")?);
    let updated: Option<i64> = row.get("updated")?;
    let updated_by: Option<String> = row.get("updated_by")?;
    Ok(Registration {
        id: RegistrationId::from_bytes(id),
        instance: parsed(row, "instance", &named)?,
        key: KeyId::from_bytes(row.get("key")?),
        resource: parsed(row, "resource", &named)?,
        kind: ResourceKind::named(&kind).ok_or_else(|| named("has a kind that is none"))?,
        attached_to: crn("attached_to")?,
        description: row.get("description")?,
        prevents_deletion: row.get("prevents")?,
        version: VersionId::from_bytes(row.get("version")?),
        source: crn("source")?,
        service: service.into(),
        created: Timestamp::from_micros(row.get("created")?),
        created_by: created_by.into(),
        updated: updated.map(Timestamp::from_micros).zip(updated_by.map(Box::from)),
        generation: row.get("generation")?,
    })
}

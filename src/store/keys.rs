//! Rows of keys, their aliases, versions and wrap grants, and of what is left of a
//! key that was purged.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
use rusqlite::{Connection, Row, Rows, named_params, params};
use uuid::Uuid;

use super::rows::{
    Result, RowError, corrupt, generation_number, halves, just_one, moment, parsed, time,
};
use super::{Purged, StoreError, Tombstone, bindings};
use crate::domain::deletion::Authorization;
use crate::domain::{
    Alias, Area, History, Key, KeyDetails, KeyId, Malformed, ObjectId, PrincipalId, RotationPeriod,
    Scope, Timestamp, Version, VersionId, WrappedKey,
};

/// Adds a key.
pub(super) fn insert_key(transaction: &Connection, key: &Key) -> Result<()> {
    let sql = "INSERT INTO keys (id, instance, description, imported, activated, expires,
                   created_by, display_name, tags, generation)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, '', '[]', ?8)";
    transaction.prepare_cached(sql)?.execute(params![
        key.id.as_bytes(),
        key.instance.as_str(),
        key.details.description,
        key.imported,
        key.history.activated.as_micros(),
        key.history.expires.map(Timestamp::as_micros),
        &*key.created_by,
        generation_number(key.generation)?,
    ])?;
    write_mutable(transaction, key, key.generation)?;
    insert_aliases(transaction, key)?;
    insert_versions(transaction, key, 0)
}

/// Objects of the keys that were purged. Of those that were purged before the objects
/// were written down nothing is known.
pub(super) fn load_purged(connection: &Connection) -> Result<HashMap<ObjectId, Purged>> {
    let sql = "SELECT t.key AS key, t.instance AS instance, it.value ->> 'object' AS object
               FROM tombstones AS t, json_each(t.versions) AS it WHERE it.type = 'object'";
    let mut statement = connection.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut purged = HashMap::new();
    while let Some(row) = rows.next()? {
        let key = KeyId::from_bytes(row.get("key")?);
        let (instance, object): (String, String) = (row.get("instance")?, row.get("object")?);
        let object = Uuid::parse_str(&object).map_err(|_malformed| {
            corrupt("tombstones", key.as_bytes(), "names an object that is none")
        })?;
        purged.insert(
            ObjectId::from(object),
            Purged { key, name: format!("instances/{instance}/keys/{key}") },
        );
    }
    Ok(purged)
}

/// Alters a key that has the generation `from`.
pub(super) fn update_key(transaction: &Connection, key: &Key, from: u64) -> Result<()> {
    write_mutable(transaction, key, from)?;
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

/// Everything of a key that can change, of a row that has the generation `from`.
fn write_mutable(transaction: &Connection, key: &Key, from: u64) -> Result<()> {
    let sql = "UPDATE keys SET display_name = :display_name, tags = :tags, ring = :ring,
                   suspended = :suspended, suspended_run = :suspended_run,
                   destroyed = :destroyed, destroyed_run = :destroyed_run,
                   restored = :restored, restored_run = :restored_run,
                   told = :told, told_run = :told_run,
                   purging = :purging, purging_run = :purging_run,
                   expiry_noted = :expiry_noted, updated = :updated,
                   rotated = :rotated, rotated_run = :rotated_run,
                   rotation_days = :rotation_days, dual_auth = :dual_auth,
                   authorized_by = :authorized_by, authorized = :authorized,
                   authorized_run = :authorized_run, generation = :generation
               WHERE id = :id AND generation = :from";
    let (suspended, suspended_run) = halves(key.history.suspended);
    let (destroyed, destroyed_run) = halves(key.history.destroyed);
    let (restored, restored_run) = halves(key.history.restored);
    let (told, told_run) = halves(key.told);
    let (purging, purging_run) = halves(key.history.purging);
    let (rotated, rotated_run) = halves(key.rotated);
    let (authorized, authorized_run) = halves(key.authorization.as_ref().map(|given| given.at));
    just_one(transaction.prepare_cached(sql)?.execute(named_params! {
        ":id": key.id.as_bytes(),
        ":from": generation_number(from)?,
        ":display_name": key.details.display_name,
        ":tags": tags_text(&key.details.tags),
        ":ring": key.ring.as_str(),
        ":suspended": suspended,
        ":suspended_run": suspended_run,
        ":destroyed": destroyed,
        ":destroyed_run": destroyed_run,
        ":restored": restored,
        ":restored_run": restored_run,
        ":told": told,
        ":told_run": told_run,
        ":purging": purging,
        ":purging_run": purging_run,
        ":expiry_noted": key.history.expiry_noted,
        ":updated": key.updated.map(Timestamp::as_micros),
        ":rotated": rotated,
        ":rotated_run": rotated_run,
        ":rotation_days": key.rotation.map(RotationPeriod::days),
        ":dual_auth": key.dual_auth,
        ":authorized_by": key.authorization.as_ref().map(|given| given.by.as_str()),
        ":authorized": authorized,
        ":authorized_run": authorized_run,
        ":generation": generation_number(key.generation)?,
    })?)
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
    let sql = "INSERT INTO key_versions (key, position, id, object, check_value, created, master,
                   wrapped)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    let mut statement = transaction.prepare_cached(sql)?;
    for (position, version) in key.versions.iter().enumerate().skip(known) {
        let Version { id, object, check_value, created, wrapped } = version;
        statement.execute(params![
            key.id.as_bytes(),
            position,
            id.as_bytes(),
            object.as_bytes(),
            &**check_value,
            created.as_micros(),
            wrapped.as_ref().map(|wrapped| wrapped.master.as_bytes()),
            wrapped.as_ref().map(|wrapped| wrapped.blob()),
        ])?;
    }
    Ok(())
}

/// Notes when a DEK was last unwrapped under a key; not if the key is no more.
pub(super) fn note_unwrapped(
    transaction: &Connection,
    (key, time): &(KeyId, Timestamp),
) -> Result<()> {
    let sql = "INSERT INTO key_use (key, unwrapped) SELECT id, ?2 FROM keys WHERE id = ?1
               ON CONFLICT DO UPDATE SET unwrapped = max(unwrapped, excluded.unwrapped)";
    transaction.prepare_cached(sql)?.execute(params![key.as_bytes(), time.as_micros()])?;
    Ok(())
}

/// When a DEK was last unwrapped under each key, where that was noted.
pub(super) fn load_unwrapped(connection: &Connection) -> Result<HashMap<KeyId, Timestamp>> {
    let mut statement = connection.prepare("SELECT key, unwrapped FROM key_use")?;
    let rows = statement.query_map([], |row| {
        Ok((KeyId::from_bytes(row.get(0)?), Timestamp::from_micros(row.get(1)?)))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Takes a key away for good; a tombstone stays. A conflict if it is of another
/// generation.
pub(super) fn purge_key(transaction: &Connection, tombstone: &Tombstone) -> Result<()> {
    let Tombstone { key, purged, purged_by } = tombstone;
    let sql = "INSERT INTO tombstones (key, instance, display_name, imported, created, created_by,
                   deleted, purged, purged_by, versions)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
    let left = |version: &Version| {
        let (id, object) = (version.id.to_string(), version.object.to_string());
        serde_json::json!({ "version": id, "object": object })
    };
    let versions: Vec<_> = key.versions.iter().map(left).collect();
    transaction.prepare_cached(sql)?.execute(params![
        key.id.as_bytes(),
        key.instance.as_str(),
        key.details.display_name,
        key.imported,
        key.history.activated.as_micros(),
        &*key.created_by,
        key.history.destroyed.map_or(0, |at| at.time.as_micros()),
        purged.as_micros(),
        purged_by,
        serde_json::Value::from(versions).to_string(),
    ])?;
    let scope = Scope { instance: key.instance.clone(), area: Area::Key(key.id) };
    bindings::remove_on(transaction, &scope)?;
    for version in key.versions.iter() {
        let grants = "DELETE FROM wrap_grants WHERE version = ?1";
        transaction.prepare_cached(grants)?.execute([version.id.as_bytes()])?;
    }
    for sql in [
        "DELETE FROM registrations WHERE key = ?1",
        "DELETE FROM registration_counts WHERE key = ?1",
        "DELETE FROM registration_services WHERE key = ?1",
        "DELETE FROM campaigns WHERE key = ?1",
        "DELETE FROM key_use WHERE key = ?1",
        "DELETE FROM aliases WHERE key = ?1",
        "DELETE FROM key_versions WHERE key = ?1",
    ] {
        transaction.prepare_cached(sql)?.execute([key.id.as_bytes()])?;
    }
    let sql = "DELETE FROM keys WHERE id = ?1 AND generation = ?2";
    let generation = generation_number(key.generation)?;
    just_one(transaction.prepare_cached(sql)?.execute(params![key.id.as_bytes(), generation])?)
}

/// Grants a version so many wraps; never fewer than before.
pub(super) fn grant_wraps(
    transaction: &Connection,
    version: VersionId,
    granted: u64,
) -> Result<()> {
    let sql = "INSERT INTO wrap_grants (version, granted) VALUES (?1, ?2)
               ON CONFLICT DO UPDATE SET granted = max(granted, excluded.granted)";
    transaction.prepare_cached(sql)?.execute(params![version.as_bytes(), granted])?;
    Ok(())
}

/// How many wraps each version was granted.
pub(super) fn load_wrap_grants(connection: &Connection) -> Result<HashMap<VersionId, u64>> {
    let mut statement = connection.prepare("SELECT version, granted FROM wrap_grants")?;
    let rows = statement.query_map([], |row| {
        Ok((VersionId::from_bytes(row.get("version")?), row.get("granted")?))
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Every key, with its aliases and versions. The three tables are read side by side in the
/// order of their keys, since a query for each of a million keys takes its time.
pub(super) fn load_keys(connection: &Connection) -> Result<Vec<Key>> {
    let mut aliases =
        connection.prepare("SELECT key, alias FROM aliases ORDER BY key, position")?;
    let mut versions = connection.prepare(
        "SELECT key, id, object, check_value, created, master, wrapped, position
         FROM key_versions ORDER BY key, position",
    )?;
    let mut statement = connection.prepare("SELECT * FROM keys ORDER BY id")?;
    let mut rows = statement.query([])?;
    let (mut alias_rows, mut version_rows) = (aliases.query([])?, versions.query([])?);
    // Each is at the first row that was not taken yet.
    alias_rows.advance()?;
    version_rows.advance()?;
    let mut keys = Vec::new();
    while let Some(row) = rows.next()? {
        let id: [u8; 16] = row.get("id")?;
        let named = |what| corrupt("keys", &id, what);
        let mut key_aliases = Vec::new();
        while let Some(row) = row_of(&alias_rows, id)? {
            key_aliases.push(parsed::<Alias>(row, "alias", &named)?);
            alias_rows.advance()?;
        }
        let mut key_versions = Vec::new();
        while let Some(row) = row_of(&version_rows, id)? {
            if row.get::<_, usize>("position")? != key_versions.len() {
                return Err(named("has a gap in its versions"));
            }
            key_versions.push(version(row, &named)?);
            version_rows.advance()?;
        }
        if key_versions.is_empty() {
            return Err(named("has no version"));
        }
        keys.push(key(row, key_aliases, key_versions.into())?);
    }
    Ok(keys)
}

/// The row that `rows` is at, if it is that key's.
fn row_of<'rows>(rows: &'rows Rows<'_>, key: [u8; 16]) -> Result<Option<&'rows Row<'rows>>> {
    let Some(row) = rows.get() else { return Ok(None) };
    Ok((row.get::<_, [u8; 16]>("key")? == key).then_some(row))
}

fn key(row: &Row<'_>, aliases: Vec<Alias>, versions: Arc<[Version]>) -> Result<Key> {
    let id: [u8; 16] = row.get("id")?;
    let named = |what| corrupt("keys", &id, what);
    let malformed = |malformed: Malformed| named(malformed.problem);
    let tags: String = row.get("tags")?;
    let details = KeyDetails {
        display_name: row.get("display_name")?,
        description: row.get("description")?,
        aliases,
        tags: serde_json::from_str(&tags).map_err(|_other| named("has tags that are none"))?,
    };
    let created_by: String = row.get("created_by")?;
    let generation: i64 = row.get("generation")?;
    let rotation: Option<u64> = row.get("rotation_days")?;
    Ok(Key {
        id: KeyId::from_bytes(id),
        instance: parsed(row, "instance", &named)?,
        ring: parsed(row, "ring", &named)?,
        details: details.checked().map_err(malformed)?,
        imported: row.get("imported")?,
        history: History {
            activated: Timestamp::from_micros(row.get("activated")?),
            expires: time(row, "expires")?,
            suspended: moment(row, ("suspended", "suspended_run"))?,
            destroyed: moment(row, ("destroyed", "destroyed_run"))?,
            restored: moment(row, ("restored", "restored_run"))?,
            purging: moment(row, ("purging", "purging_run"))?,
            expiry_noted: row.get("expiry_noted")?,
        },
        versions,
        created_by: created_by.into(),
        updated: time(row, "updated")?,
        rotated: moment(row, ("rotated", "rotated_run"))?,
        told: moment(row, ("told", "told_run"))?,
        rotation: rotation.map(RotationPeriod::from_days).transpose().map_err(malformed)?,
        dual_auth: row.get("dual_auth")?,
        authorization: authorization(row, &named)?,
        generation: u64::try_from(generation).map_err(|_less| named("has no generation"))?,
    })
}

fn authorization(
    row: &Row<'_>,
    named: &dyn Fn(&'static str) -> RowError,
) -> Result<Option<Authorization>> {
    match moment(row, ("authorized", "authorized_run"))? {
        None => Ok(None),
        Some(at) => {
            Ok(Some(Authorization { by: parsed::<PrincipalId>(row, "authorized_by", named)?, at }))
        }
    }
}

fn version(row: &Row<'_>, named: &dyn Fn(&'static str) -> RowError) -> Result<Version> {
    let check_value: Vec<u8> = row.get("check_value")?;
    let wrapped = match (row.get("master")?, row.get("wrapped")?) {
        (None, None) => None,
        (Some(master), Some(blob)) => {
            let wrapped = WrappedKey::new(ObjectId::from_bytes(master), blob);
            Some(Arc::new(wrapped.map_err(|malformed| named(malformed.problem))?))
        }
        (Some(_), None) | (None, Some(_)) => return Err(named("has half of a wrapped key")),
    };
    Ok(Version {
        id: VersionId::from_bytes(row.get("id")?),
        object: ObjectId::from_bytes(row.get("object")?),
        check_value: check_value.into(),
        created: Timestamp::from_micros(row.get("created")?),
        wrapped,
    })
}

fn tags_text(tags: &[String]) -> String {
    serde_json::Value::from(tags).to_string()
}

//! Rows of instances with their policies, and of key rings.

use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::rows::{Result, RowError, just_one, parsed, time};
use super::{InstanceWrite, RingWrite, StoreError, bindings};
use crate::domain::policy::{AllowedNetwork, CreateImportAccess};
use crate::domain::{
    Area, Instance, KeyRing, Malformed, Policies, RotationPeriod, Scope, Timestamp,
};

/// Adds, alters or takes away an instance.
pub(super) fn write(transaction: &Connection, write: &InstanceWrite) -> Result<()> {
    match write {
        InstanceWrite::Insert(instance, bindings) => {
            insert(transaction, instance)?;
            bindings.iter().try_for_each(|binding| bindings::insert(transaction, binding))
        }
        InstanceWrite::Update(instance) => update(transaction, instance),
    }
}

fn insert(transaction: &Connection, instance: &Instance) -> Result<()> {
    let Instance { id, display_name, created, deleted, policies } = instance;
    let sql = "INSERT INTO instances (id, display_name, created, created_by, deleted, policies)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    transaction.prepare_cached(sql)?.execute(params![
        id.as_str(),
        display_name,
        created.as_ref().map(|(time, _)| time.as_micros()),
        created.as_ref().map(|(_, by)| &**by),
        deleted.map(Timestamp::as_micros),
        policies_text(policies)?,
    ])?;
    Ok(())
}

fn update(transaction: &Connection, instance: &Instance) -> Result<()> {
    let sql = "UPDATE instances SET deleted = ?2, policies = ?3 WHERE id = ?1";
    let deleted = instance.deleted.map(Timestamp::as_micros);
    let policies = policies_text(&instance.policies)?;
    let id = instance.id.as_str();
    just_one(transaction.prepare_cached(sql)?.execute(params![id, deleted, policies])?)?;
    if deleted.is_some() {
        let sql = "DELETE FROM bindings WHERE instance = ?1";
        transaction.prepare_cached(sql)?.execute([id])?;
    }
    Ok(())
}

/// Every instance.
pub(super) fn load(connection: &Connection) -> Result<Vec<Instance>> {
    let mut statement = connection.prepare("SELECT * FROM instances")?;
    let mut rows = statement.query([])?;
    let mut instances = Vec::new();
    while let Some(row) = rows.next()? {
        let named = |what: &'static str| corrupt("instances", what);
        let created_by: Option<String> = row.get("created_by")?;
        let created = time(row, "created")?.zip(created_by.map(Box::from));
        let policies: String = row.get("policies")?;
        let policies: PoliciesRow = serde_json::from_str(&policies)
            .map_err(|_other| named("has policies that are none"))?;
        instances.push(Instance {
            id: parsed(row, "id", &named)?,
            display_name: row.get("display_name")?,
            created,
            deleted: time(row, "deleted")?,
            policies: policies.parse().map_err(|malformed| named(malformed.problem))?,
        });
    }
    Ok(instances)
}

/// Adds or takes away a ring.
pub(super) fn write_ring(transaction: &Connection, write: &RingWrite) -> Result<()> {
    match write {
        RingWrite::Insert(KeyRing { instance, id, created, created_by }) => {
            let sql = "INSERT INTO key_rings (instance, id, created, created_by)
                       VALUES (?1, ?2, ?3, ?4)";
            transaction.prepare_cached(sql)?.execute(params![
                instance.as_str(),
                id.as_str(),
                created.as_micros(),
                &**created_by,
            ])?;
            Ok(())
        }
        RingWrite::Remove(KeyRing { instance, id, created: _, created_by: _ }) => {
            let scope = Scope { instance: instance.clone(), area: Area::Ring(id.clone()) };
            bindings::remove_on(transaction, &scope)?;
            let sql = "DELETE FROM key_rings WHERE instance = ?1 AND id = ?2";
            just_one(transaction.prepare_cached(sql)?.execute([instance.as_str(), id.as_str()])?)
        }
    }
}

/// Every ring other than `default`.
pub(super) fn load_rings(connection: &Connection) -> Result<Vec<KeyRing>> {
    let mut statement = connection.prepare("SELECT * FROM key_rings")?;
    let mut rows = statement.query([])?;
    let mut rings = Vec::new();
    while let Some(row) = rows.next()? {
        let named = |what: &'static str| corrupt("key_rings", what);
        let created_by: String = row.get("created_by")?;
        rings.push(KeyRing {
            instance: parsed(row, "instance", &named)?,
            id: parsed(row, "id", &named)?,
            created: Timestamp::from_micros(row.get("created")?),
            created_by: created_by.into(),
        });
    }
    Ok(rings)
}

/// Policies as JSON in their row.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PoliciesRow {
    dual_auth_delete: bool,
    rotation_days: Option<u64>,
    create_import: Option<CreateImportRow>,
    allowed_ip: Option<Vec<String>>,
    private_only: Option<bool>,
    metrics: bool,
    updated: Option<(i64, String)>,
    generation: u64,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct CreateImportRow {
    create_root_key: bool,
    import_root_key: bool,
    enforce_token: bool,
}

fn policies_text(policies: &Policies) -> Result<String> {
    let Policies {
        dual_auth_delete,
        rotation,
        create_import,
        allowed_ip,
        allowed_network,
        metrics,
        updated,
        generation,
    } = policies;
    let row = PoliciesRow {
        dual_auth_delete: *dual_auth_delete,
        rotation_days: rotation.map(|period| period.days().into()),
        create_import: create_import.map(|access| {
            let CreateImportAccess { create_root_key, import_root_key, enforce_token } = access;
            CreateImportRow { create_root_key, import_root_key, enforce_token }
        }),
        allowed_ip: allowed_ip
            .as_ref()
            .map(|networks| networks.iter().map(ToString::to_string).collect()),
        private_only: allowed_network.map(|network| network == AllowedNetwork::PrivateOnly),
        metrics: *metrics,
        updated: updated.as_ref().map(|(time, by)| (time.as_micros(), by.clone())),
        generation: *generation,
    };
    let text = serde_json::to_string(&row);
    Ok(text.map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?)
}

impl PoliciesRow {
    fn parse(self) -> Result<Policies, Malformed> {
        let networks = |texts: Vec<String>| texts.iter().map(|text| text.parse()).collect();
        Ok(Policies {
            dual_auth_delete: self.dual_auth_delete,
            rotation: self.rotation_days.map(RotationPeriod::from_days).transpose()?,
            create_import: self.create_import.map(|row| CreateImportAccess {
                create_root_key: row.create_root_key,
                import_root_key: row.import_root_key,
                enforce_token: row.enforce_token,
            }),
            allowed_ip: self.allowed_ip.map(networks).transpose()?,
            allowed_network: self.private_only.map(|private_only| {
                if private_only {
                    AllowedNetwork::PrivateOnly
                } else {
                    AllowedNetwork::PublicAndPrivate
                }
            }),
            metrics: self.metrics,
            updated: self.updated.map(|(micros, by)| (Timestamp::from_micros(micros), by)),
            generation: self.generation,
        })
    }
}

fn corrupt(table: &str, what: &str) -> RowError {
    StoreError::Corrupt { what: format!("a row of the table {table} {what}") }.into()
}

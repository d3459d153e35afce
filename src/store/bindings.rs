//! Rows of bindings, and of what was taken over from the configuration.

use rusqlite::{Connection, params};

use super::BindingWrite;
use super::rows::{Result, corrupt, just_one, parsed};
use crate::domain::{Binding, BindingId, Gift, InstanceId, Role, Scope, Timestamp};

/// Adds or takes away bindings.
pub(super) fn write(transaction: &Connection, write: &BindingWrite) -> Result<()> {
    match write {
        BindingWrite::Insert(binding) => insert(transaction, binding),
        BindingWrite::TakeOver(binding, gift) => {
            let Gift { subject, role, scope } = gift;
            let sql = "INSERT INTO configured_bindings (scope, subject, role) VALUES (?1, ?2, ?3)";
            let texts = [scope.to_string(), subject.to_string(), role.name().to_owned()];
            transaction.prepare_cached(sql)?.execute(texts)?;
            binding.iter().try_for_each(|binding| insert(transaction, binding))
        }
        BindingWrite::Remove(id) => {
            let sql = "DELETE FROM bindings WHERE id = ?1";
            just_one(transaction.prepare_cached(sql)?.execute([id.as_bytes()])?)
        }
    }
}

/// Adds one.
pub(super) fn insert(transaction: &Connection, binding: &Binding) -> Result<()> {
    let Binding { id, subject, role, scope, created, created_by } = binding;
    let sql = "INSERT INTO bindings (id, instance, scope, subject, role, created, created_by)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    transaction.prepare_cached(sql)?.execute(params![
        id.as_bytes(),
        scope.instance.as_str(),
        scope.to_string(),
        subject.to_string(),
        role.name(),
        created.as_micros(),
        &**created_by,
    ])?;
    Ok(())
}

/// Takes away those on a key ring or a key that is no more.
pub(super) fn remove_on(transaction: &Connection, scope: &Scope) -> Result<()> {
    let sql = "DELETE FROM bindings WHERE scope = ?1";
    transaction.prepare_cached(sql)?.execute([scope.to_string()])?;
    Ok(())
}

/// Every binding.
pub(super) fn load(connection: &Connection) -> Result<Vec<Binding>> {
    let mut statement = connection.prepare("SELECT * FROM bindings")?;
    let mut rows = statement.query([])?;
    let mut bindings = Vec::new();
    while let Some(row) = rows.next()? {
        let id: [u8; 16] = row.get("id")?;
        let named = |what| corrupt("bindings", &id, what);
        let (role, created_by): (String, String) = (row.get("role")?, row.get("created_by")?);
        let scope: Scope = parsed(row, "scope", &named)?;
        if parsed::<InstanceId>(row, "instance", &named)? != scope.instance {
            return Err(named("is of another instance than its scope"));
        }
        bindings.push(Binding {
            id: BindingId::from_bytes(id),
            subject: parsed(row, "subject", &named)?,
            role: Role::named(&role).ok_or_else(|| named("has a role that is none"))?,
            scope,
            created: Timestamp::from_micros(row.get("created")?),
            created_by: created_by.into(),
        });
    }
    Ok(bindings)
}

/// Everything that was taken over from the configuration.
pub(super) fn load_configured(connection: &Connection) -> Result<Vec<Gift>> {
    let mut statement = connection.prepare("SELECT * FROM configured_bindings")?;
    let mut rows = statement.query([])?;
    let mut gifts = Vec::new();
    while let Some(row) = rows.next()? {
        let named = |what| corrupt("configured_bindings", &[0; 16], what);
        let role: String = row.get("role")?;
        gifts.push(Gift {
            subject: parsed(row, "subject", &named)?,
            role: Role::named(&role).ok_or_else(|| named("has a role that is none"))?,
            scope: parsed(row, "scope", &named)?,
        });
    }
    Ok(gifts)
}

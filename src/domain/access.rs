//! Who may do what: roles, their permissions, and the bindings that give a role
//! to a principal on an instance. Default deny.
//!
//! Roles and what each may: `facts/key-protect.md` section 9. Roles add up:
//! Reader is in Writer is in Manager; KeyPurge stands alone.

use std::collections::{HashMap, HashSet};

use super::{InstanceId, PrincipalId};

/// What a principal may be allowed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Permission {
    /// Wrap, unwrap, rewrap and generate DEKs.
    UseKeys,
    /// Read and list keys and their versions.
    ReadKeys,
    /// Create and rotate keys, set them for deletion.
    WriteKeys,
    /// Disable, enable, delete, restore and update keys.
    ManageKeys,
    /// Read and set the policies of an instance.
    ManagePolicies,
    /// Purge keys.
    PurgeKeys,
    /// Read the audit log.
    ReadAudit,
    /// Export the audit log of all instances; of operators, not of any role.
    ExportAudit,
    /// See what the daemon and its HSM are.
    ReadServer,
    /// Make, list and delete instances; of operators, not of any role.
    ManageInstances,
}

/// A set of permissions, by the name that people give it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// Uses keys; what a storage service has.
    Reader,
    /// Makes keys too.
    Writer,
    /// Decides over keys too.
    Manager,
    /// Purges keys, and nothing else.
    KeyPurge,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 4] = [Self::Reader, Self::Writer, Self::Manager, Self::KeyPurge];

    /// As it is written in the configuration and the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reader => "Reader",
            Self::Writer => "Writer",
            Self::Manager => "Manager",
            Self::KeyPurge => "KeyPurge",
        }
    }

    /// The role of that name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether the role holds `permission`.
    #[rustfmt::skip]
    pub const fn allows(self, permission: Permission) -> bool {
        let row = match permission { //  Reader  Writer  Manager  KeyPurge
            Permission::UseKeys    => [  true,   true,   true,    false],
            Permission::ReadKeys   => [  true,   true,   true,    false],
            Permission::WriteKeys  => [  false,  true,   true,    false],
            Permission::ManageKeys => [  false,  false,  true,    false],
            Permission::ManagePolicies => [false, false, true,    false],
            Permission::PurgeKeys  => [  false,  false,  false,   true ],
            Permission::ReadAudit  => [  false,  false,  true,    false],
            Permission::ReadServer => [  false,  false,  true,    false],
            Permission::ManageInstances => [false, false, false,  false],
            Permission::ExportAudit => [false,  false,  false,    false],
        };
        match self {
            Self::Reader => row[0],
            Self::Writer => row[1],
            Self::Manager => row[2],
            Self::KeyPurge => row[3],
        }
    }
}

/// Gives a role to a principal on an instance.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Binding {
    /// Who.
    pub principal: PrincipalId,
    /// What.
    pub role: Role,
    /// Where.
    pub instance: InstanceId,
}

/// Every binding that holds, indexed by principal, and who is an operator.
#[derive(Debug, Default)]
pub struct Bindings {
    roles: HashMap<PrincipalId, Vec<(InstanceId, Role)>>,
    operators: HashSet<PrincipalId>,
}

impl Bindings {
    /// Of those bindings and operators, and no others.
    pub fn new(
        bindings: impl IntoIterator<Item = Binding>,
        operators: impl IntoIterator<Item = PrincipalId>,
    ) -> Self {
        let mut roles: HashMap<_, Vec<_>> = HashMap::new();
        for Binding { principal, role, instance } in bindings {
            roles.entry(principal).or_default().push((instance, role));
        }
        Self { roles, operators: operators.into_iter().collect() }
    }

    /// Whether `principal` has `permission` on `instance`.
    pub fn allow(
        &self,
        principal: &PrincipalId,
        permission: Permission,
        instance: &InstanceId,
    ) -> bool {
        self.of(principal).iter().any(|(on, role)| on == instance && role.allows(permission))
    }

    /// Whether `principal` has `permission` on some instance, as calls ask that
    /// are about the daemon and no instance. An operator manages instances and exports
    /// the audit log.
    pub fn allow_anywhere(&self, principal: &PrincipalId, permission: Permission) -> bool {
        let operates = matches!(permission, Permission::ManageInstances | Permission::ExportAudit);
        (operates && self.operators.contains(principal))
            || self.of(principal).iter().any(|(_, role)| role.allows(permission))
    }

    fn of(&self, principal: &PrincipalId) -> &[(InstanceId, Role)] {
        self.roles.get(principal).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERMISSIONS: [Permission; 10] = [
        Permission::UseKeys,
        Permission::ReadKeys,
        Permission::WriteKeys,
        Permission::ManageKeys,
        Permission::ManagePolicies,
        Permission::PurgeKeys,
        Permission::ReadAudit,
        Permission::ReadServer,
        Permission::ManageInstances,
        Permission::ExportAudit,
    ];

    #[test]
    fn every_role_has_just_its_permissions() {
        let has = |role: Role| PERMISSIONS.map(|p| if role.allows(p) { '+' } else { '-' });
        assert_eq!(has(Role::Reader).iter().collect::<String>(), "++--------");
        assert_eq!(has(Role::Writer).iter().collect::<String>(), "+++-------");
        assert_eq!(has(Role::Manager).iter().collect::<String>(), "+++++-++--");
        assert_eq!(has(Role::KeyPurge).iter().collect::<String>(), "-----+----");
    }

    #[test]
    fn what_no_binding_gives_is_denied() {
        let here: InstanceId = "here".parse().unwrap();
        let there: InstanceId = "there".parse().unwrap();
        let reader: PrincipalId = "spiffe://td/reader".parse().unwrap();
        let other: PrincipalId = "spiffe://td/other".parse().unwrap();
        let binding =
            Binding { principal: reader.clone(), role: Role::Reader, instance: here.clone() };
        let operator: PrincipalId = "spiffe://td/operator".parse().unwrap();
        let bindings = Bindings::new([binding], [operator.clone()]);
        assert!(bindings.allow_anywhere(&operator, Permission::ManageInstances));
        assert!(!bindings.allow_anywhere(&reader, Permission::ManageInstances));
        assert!(bindings.allow_anywhere(&operator, Permission::ExportAudit));
        assert!(!bindings.allow_anywhere(&reader, Permission::ExportAudit));
        assert!(!bindings.allow(&operator, Permission::UseKeys, &here));
        assert!(bindings.allow(&reader, Permission::UseKeys, &here));
        assert!(!bindings.allow(&reader, Permission::UseKeys, &there));
        assert!(!bindings.allow(&reader, Permission::ManageKeys, &here));
        assert!(!bindings.allow(&other, Permission::UseKeys, &here));
        assert!(!bindings.allow_anywhere(&reader, Permission::ReadServer));
        assert!(!Bindings::default().allow(&reader, Permission::UseKeys, &here));
    }
}

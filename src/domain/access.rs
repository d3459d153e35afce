//! Who may do what: roles, their permissions, and the decision. Default deny.
//!
//! Roles and what each may: `facts/key-protect.md` section 9. Roles add up: Reader
//! is in ReaderPlus is in Writer is in Manager; KeyPurge stands alone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{
    Area, Binding, BindingSubject, InstanceId, Key, KeyId, KeyRingId, PrincipalId, ServiceName,
};

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
    /// Make, list and remove bindings and authorizations of services.
    ManageAccess,
    /// Ask what oneself may do.
    TestAccess,
    /// Make, list and delete instances; of operators, not of any role.
    ManageInstances,
}

impl Permission {
    /// Whether operators of the daemon have it, and no role.
    pub const fn is_operators(self) -> bool {
        matches!(self, Self::ManageInstances | Self::ExportAudit)
    }
}

/// A set of permissions, by the name that people give it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// Uses keys; what a storage service has.
    Reader,
    /// The same here. In Key Protect it reads the payload of standard keys too, which
    /// there are none of.
    ReaderPlus,
    /// Makes keys too.
    Writer,
    /// Decides over keys too, and over who may what.
    Manager,
    /// Purges keys, and nothing else.
    KeyPurge,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] =
        [Self::Reader, Self::ReaderPlus, Self::Writer, Self::Manager, Self::KeyPurge];

    /// As it is written in the configuration and the store.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reader => "Reader",
            Self::ReaderPlus => "ReaderPlus",
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
        const Y: bool = true;
        const N: bool = false;
        let row = match permission { //         Reader  ReaderPlus  Writer  Manager  KeyPurge
            Permission::UseKeys         => [Y,      Y,          Y,      Y,       N],
            Permission::ReadKeys        => [Y,      Y,          Y,      Y,       N],
            Permission::WriteKeys       => [N,      N,          Y,      Y,       N],
            Permission::ManageKeys      => [N,      N,          N,      Y,       N],
            Permission::ManagePolicies  => [N,      N,          N,      Y,       N],
            Permission::PurgeKeys       => [N,      N,          N,      N,       Y],
            Permission::ReadAudit       => [N,      N,          N,      Y,       N],
            Permission::ReadServer      => [N,      N,          N,      Y,       N],
            Permission::ManageAccess    => [N,      N,          N,      Y,       N],
            Permission::TestAccess      => [Y,      Y,          Y,      Y,       Y],
            Permission::ManageInstances => [N,      N,          N,      N,       N],
            Permission::ExportAudit     => [N,      N,          N,      N,       N],
        };
        match self {
            Self::Reader => row[0],
            Self::ReaderPlus => row[1],
            Self::Writer => row[2],
            Self::Manager => row[3],
            Self::KeyPurge => row[4],
        }
    }
}

/// Where a permission is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place<'a> {
    /// The whole of an instance.
    Instance(&'a InstanceId),
    /// A ring of it.
    Ring(&'a InstanceId, &'a KeyRingId),
    /// A key, in the ring that it is in.
    Key(&'a InstanceId, &'a KeyRingId, KeyId),
}

impl<'a> Place<'a> {
    /// Where a key is.
    pub const fn of(key: &'a Key) -> Self {
        Self::Key(&key.instance, &key.ring, key.id)
    }

    /// The instance that it is in.
    pub const fn instance(&self) -> &'a InstanceId {
        match self {
            Self::Instance(instance) | Self::Ring(instance, _) | Self::Key(instance, _, _) => {
                instance
            }
        }
    }
}

/// Every binding that holds, indexed by who has it, and who is an operator.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    principals: HashMap<PrincipalId, Vec<Arc<Binding>>>,
    services: HashMap<ServiceName, Vec<Arc<Binding>>>,
    operators: HashSet<PrincipalId>,
}

impl Bindings {
    /// Of those bindings and operators, and no others.
    pub fn new(
        bindings: impl IntoIterator<Item = Arc<Binding>>,
        operators: impl IntoIterator<Item = PrincipalId>,
    ) -> Self {
        let mut new = Self { operators: operators.into_iter().collect(), ..Self::default() };
        for binding in bindings {
            match &binding.subject {
                BindingSubject::Principal(principal) => {
                    new.principals.entry(principal.clone()).or_default().push(binding);
                }
                BindingSubject::Service(name) => {
                    new.services.entry(name.clone()).or_default().push(binding);
                }
            }
        }
        new
    }

    /// Whether `principal` has `permission` in `place`.
    pub fn allow(&self, principal: &PrincipalId, permission: Permission, place: Place<'_>) -> bool {
        self.giving(principal, permission, place).next().is_some()
    }

    /// The bindings by which `principal` has `permission` in `place`.
    pub fn giving(
        &self,
        principal: &PrincipalId,
        permission: Permission,
        place: Place<'_>,
    ) -> impl Iterator<Item = &Arc<Binding>> {
        self.of(principal).filter(move |it| it.role.allows(permission) && covers(it, place))
    }

    /// Whether `principal` has `permission` on some part of an instance, as calls ask
    /// that show what the caller may see and leave out the rest.
    pub fn allow_within(
        &self,
        principal: &PrincipalId,
        permission: Permission,
        instance: &InstanceId,
    ) -> bool {
        self.of(principal).any(|it| it.scope.instance == *instance && it.role.allows(permission))
    }

    /// Whether `principal` has `permission` anywhere, as calls ask that name nothing yet.
    pub fn allow_anywhere(&self, principal: &PrincipalId, permission: Permission) -> bool {
        self.allow_daemon(principal, permission)
            || self.of(principal).any(|it| it.role.allows(permission))
    }

    /// Whether `principal` has `permission` on the whole of some instance, as calls ask
    /// that are about the daemon. An operator manages instances and exports the audit log.
    pub fn allow_daemon(&self, principal: &PrincipalId, permission: Permission) -> bool {
        let operates = permission.is_operators() && self.is_operator(principal);
        let whole = |it: &Arc<Binding>| it.scope.area == Area::All && it.role.allows(permission);
        operates || self.of(principal).any(whole)
    }

    /// Whether `principal` is an operator of the daemon.
    pub fn is_operator(&self, principal: &PrincipalId) -> bool {
        self.operators.contains(principal)
    }

    /// Every binding of `principal`, its own and, if it is a service, the service's.
    pub fn of(&self, principal: &PrincipalId) -> impl Iterator<Item = &Arc<Binding>> {
        let own = self.principals.get(principal).into_iter().flatten();
        let as_service = principal.service().and_then(|name| self.services.get(name));
        own.chain(as_service.into_iter().flatten())
    }
}

fn covers(binding: &Binding, place: Place<'_>) -> bool {
    let part = match (&binding.scope.area, place) {
        (Area::All, _) => true,
        (Area::Ring(ring), Place::Ring(_, asked) | Place::Key(_, asked, _)) => ring == asked,
        (Area::Key(key), Place::Key(_, _, asked)) => *key == asked,
        (Area::Ring(_), Place::Instance(_))
        | (Area::Key(_), Place::Instance(_) | Place::Ring(_, _)) => false,
    };
    part && binding.scope.instance == *place.instance()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{BindingId, Scope, Timestamp};

    const PERMISSIONS: [Permission; 12] = [
        Permission::UseKeys,
        Permission::ReadKeys,
        Permission::WriteKeys,
        Permission::ManageKeys,
        Permission::ManagePolicies,
        Permission::PurgeKeys,
        Permission::ReadAudit,
        Permission::ReadServer,
        Permission::ManageAccess,
        Permission::TestAccess,
        Permission::ManageInstances,
        Permission::ExportAudit,
    ];

    fn binding(subject: &str, role: Role, scope: &str) -> Arc<Binding> {
        Arc::new(Binding {
            id: BindingId::from_bytes([1; 16]),
            subject: subject.parse().unwrap(),
            role,
            scope: scope.parse::<Scope>().unwrap(),
            created: Timestamp::from_seconds(1),
            created_by: "spiffe://td/admin".into(),
        })
    }

    #[test]
    fn every_role_has_just_its_permissions() {
        let has = |role: Role| PERMISSIONS.map(|p| if role.allows(p) { '+' } else { '-' });
        assert_eq!(has(Role::Reader).iter().collect::<String>(), "++-------+--");
        assert_eq!(has(Role::ReaderPlus).iter().collect::<String>(), "++-------+--");
        assert_eq!(has(Role::Writer).iter().collect::<String>(), "+++------+--");
        assert_eq!(has(Role::Manager).iter().collect::<String>(), "+++++-++++--");
        assert_eq!(has(Role::KeyPurge).iter().collect::<String>(), "-----+---+--");
    }

    #[test]
    fn a_binding_holds_in_its_scope_and_nowhere_else() {
        let (here, there): (InstanceId, InstanceId) =
            ("here".parse().unwrap(), "there".parse().unwrap());
        let (boot, data): (KeyRingId, KeyRingId) =
            ("boot".parse().unwrap(), "data".parse().unwrap());
        let (one, two) = (KeyId::from_bytes([1; 16]), KeyId::from_bytes([2; 16]));
        let places = [
            Place::Instance(&here),
            Place::Ring(&here, &boot),
            Place::Ring(&here, &data),
            Place::Key(&here, &boot, one),
            Place::Key(&here, &boot, two),
            Place::Key(&here, &data, one),
            Place::Key(&here, &data, two),
            Place::Instance(&there),
            Place::Ring(&there, &boot),
            Place::Key(&there, &boot, one),
        ];
        let key = format!("instances/here/keys/{one}");
        let principal: PrincipalId = "spiffe://td/reader".parse().unwrap();
        for (scope, held) in [
            ("instances/here", "+++++++---"),
            ("instances/here/keyRings/boot", "-+-++-----"),
            (&key, "---+-+----"),
        ] {
            let bindings = Bindings::new([binding("spiffe://td/reader", Role::Reader, scope)], []);
            let holds = places.map(|place| bindings.allow(&principal, Permission::UseKeys, place));
            let text: String = holds.map(|held| if held { '+' } else { '-' }).iter().collect();
            assert_eq!(text, held, "{scope}");
            assert!(bindings.allow_within(&principal, Permission::UseKeys, &here));
            assert!(!bindings.allow_within(&principal, Permission::UseKeys, &there));
        }
    }

    #[test]
    fn what_no_binding_gives_is_denied() {
        let here: InstanceId = "here".parse().unwrap();
        let place = Place::Instance(&here);
        let reader: PrincipalId = "spiffe://td/reader".parse().unwrap();
        let other: PrincipalId = "spiffe://td/other".parse().unwrap();
        let operator: PrincipalId = "spiffe://td/operator".parse().unwrap();
        let reads = binding("spiffe://td/reader", Role::Reader, "instances/here");
        let bindings = Bindings::new([reads], [operator.clone()]);
        assert!(bindings.allow_anywhere(&operator, Permission::ManageInstances));
        assert!(!bindings.allow_anywhere(&reader, Permission::ManageInstances));
        assert!(bindings.allow_daemon(&operator, Permission::ExportAudit));
        assert!(!bindings.allow_anywhere(&reader, Permission::ExportAudit));
        assert!(!bindings.allow(&operator, Permission::UseKeys, place));
        assert!(!bindings.allow(&operator, Permission::ManageAccess, place));
        assert!(bindings.allow(&reader, Permission::UseKeys, place));
        assert!(!bindings.allow(&reader, Permission::ManageKeys, place));
        assert!(!bindings.allow(&other, Permission::UseKeys, place));
        assert!(!bindings.allow_anywhere(&reader, Permission::ReadServer));
        assert!(!Bindings::default().allow(&reader, Permission::UseKeys, place));
    }

    #[test]
    fn a_service_is_bound_by_its_name_and_nobody_else_is() {
        let here: InstanceId = "here".parse().unwrap();
        let bindings =
            Bindings::new([binding("service:image", Role::Reader, "instances/here")], []);
        let may = |principal: &str| {
            let principal = principal.parse().unwrap();
            bindings.allow(&principal, Permission::UseKeys, Place::Instance(&here))
        };
        assert!(may("spiffe://td/service/image") && may("spiffe://other/service/image"));
        for other in
            ["spiffe://td/image", "spiffe://td/service/image/x", "spiffe://td/service/images"]
        {
            assert!(!may(other), "{other}");
        }
    }
}

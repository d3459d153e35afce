//! A binding: who has which role, and where. What a role allows, and the decision,
//! are `access.rs`.
//!
//! Whoever has a role is a principal or a service; where it holds is an instance, one
//! of its key rings or one key (`facts/key-protect.md` section 9, policy attributes).

use std::fmt;
use std::str::FromStr;

use super::{
    BindingCollection, BindingId, BindingName, InstanceId, KeyId, KeyName, KeyRef, KeyRingId,
    KeyRingName, Malformed, PrincipalId, Role, ServiceName, Timestamp,
};

/// Gives a role to somebody, somewhere.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Binding {
    /// Its own id.
    pub id: BindingId,
    /// Who.
    pub subject: BindingSubject,
    /// What.
    pub role: Role,
    /// Where.
    pub scope: Scope,
    /// When it was made.
    pub created: Timestamp,
    /// Principal, or the daemon itself.
    pub created_by: Box<str>,
}

impl Binding {
    /// The name that it is called by.
    pub fn name(&self) -> BindingName {
        let collection = match &self.subject {
            BindingSubject::Principal(_) => BindingCollection::Bindings,
            BindingSubject::Service(_) => BindingCollection::ServiceAuthorizations,
        };
        BindingName { instance: self.scope.instance.clone(), collection, id: self.id }
    }

    /// Whether it gives just that.
    pub fn gives(&self, gift: &Gift) -> bool {
        let Gift { subject, role, scope } = gift;
        (&self.subject, self.role, &self.scope) == (subject, *role, scope)
    }

    /// Whether it makes a principal Manager of the whole instance. An instance keeps
    /// one such.
    pub fn manages_all(&self) -> bool {
        let person = match &self.subject {
            BindingSubject::Principal(_) => true,
            BindingSubject::Service(_) => false,
        };
        person && self.role == Role::Manager && self.scope.area == Area::All
    }
}

/// What a binding gives.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Gift {
    /// To whom.
    pub subject: BindingSubject,
    /// What.
    pub role: Role,
    /// Where.
    pub scope: Scope,
}

/// Who has a role.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum BindingSubject {
    /// One principal.
    Principal(PrincipalId),
    /// Every principal that is this service, in whatever trust domain the CA lets in.
    Service(ServiceName),
}

impl FromStr for BindingSubject {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text.strip_prefix(SERVICE) {
            Some(name) => Ok(Self::Service(name.parse()?)),
            None => Ok(Self::Principal(text.parse()?)),
        }
    }
}

impl fmt::Display for BindingSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(principal) => principal.fmt(f),
            Self::Service(name) => write!(f, "{SERVICE}{name}"),
        }
    }
}

/// Where a role holds.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Scope {
    /// In this instance.
    pub instance: InstanceId,
    /// And there in what part of it.
    pub area: Area,
}

/// A part of an instance.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Area {
    /// All of it.
    All,
    /// The keys of one ring, so long as they are in it.
    Ring(KeyRingId),
    /// One key, in whatever ring.
    Key(KeyId),
}

impl Scope {
    /// The whole of an instance.
    pub const fn all(instance: InstanceId) -> Self {
        Self { instance, area: Area::All }
    }
}

/// `instances/{instance}`, with `/keyRings/{ring}` or `/keys/{uuid}` behind it.
impl FromStr for Scope {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let problem = Malformed::new(
            "scope",
            "must be instances/{instance}, or a key ring or a key (by its UUID) of it",
        );
        if let Ok(instance) = InstanceId::from_parent(text) {
            return Ok(Self::all(instance));
        }
        if let Ok(KeyRingName { instance, ring }) = text.parse() {
            return Ok(Self { instance, area: Area::Ring(ring) });
        }
        match text.parse() {
            Ok(KeyName { instance, key: KeyRef::Id(key) }) => {
                Ok(Self { instance, area: Area::Key(key) })
            }
            // An alias can come to name another key.
            Ok(KeyName { key: KeyRef::Alias(_), .. }) | Err(_) => Err(problem),
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, area } = self;
        match area {
            Area::All => write!(f, "instances/{instance}"),
            Area::Ring(ring) => write!(f, "instances/{instance}/keyRings/{ring}"),
            Area::Key(key) => write!(f, "instances/{instance}/keys/{key}"),
        }
    }
}

const SERVICE: &str = "service:";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_and_subjects_come_back_as_they_were() {
        let key = "instances/a/keys/5f2b3d9e-7a51-4f0c-9d3e-0a1b2c3d4e5f";
        for text in ["instances/a", "instances/a/keyRings/boot", key] {
            assert_eq!(text.parse::<Scope>().unwrap().to_string(), text);
        }
        for text in ["spiffe://td/admin", "service:block-storage"] {
            assert_eq!(text.parse::<BindingSubject>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_alias_is_no_scope_and_other_forms_are_refused() {
        for text in [
            "",
            "a",
            "instances/",
            "instances/a/",
            "instances/a/keys/boot",
            "instances/a/keyRings/x",
            "instances/a/keys/5F2B3D9E-7A51-4F0C-9D3E-0A1B2C3D4E5F",
            "instances/a/keyRings/boot/keys/5f2b3d9e-7a51-4f0c-9d3e-0a1b2c3d4e5f",
        ] {
            assert!(text.parse::<Scope>().is_err(), "{text:?}");
        }
        for text in ["", "service:", "service:a/b", "service:..", "service", "block-storage"] {
            assert!(text.parse::<BindingSubject>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_binding_is_called_by_what_it_binds() {
        let id = "5f2b3d9e-7a51-4f0c-9d3e-0a1b2c3d4e5f";
        for (collection, name) in [
            (BindingCollection::Bindings, format!("instances/a/bindings/{id}")),
            (
                BindingCollection::ServiceAuthorizations,
                format!("instances/a/serviceAuthorizations/{id}"),
            ),
        ] {
            assert_eq!(collection.parse(&name).unwrap().to_string(), name);
            let others = ["instances/a/bindings", &format!("{name}/x"), &format!("x{name}")];
            assert!(others.iter().all(|other| collection.parse(other).is_err()));
        }
        let binding = format!("instances/a/bindings/{id}");
        assert!(BindingCollection::ServiceAuthorizations.parse(&binding).is_err());
    }
}

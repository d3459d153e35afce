//! Names: of instances, keys, versions, principals and HSM objects, and the
//! grammar of resource names. A name is parsed once, at the edge; past it
//! there are no strings that stand for one.
//!
//! Limits: `facts/key-protect.md` section 2.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

/// A field does not have the form it must have.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{field}: {problem}")]
pub struct Malformed {
    /// Name of the field in the request.
    pub field: &'static str,
    /// What is wrong with it, for people.
    pub problem: &'static str,
}

impl Malformed {
    /// Says that `field` has `problem`.
    pub const fn new(field: &'static str, problem: &'static str) -> Self {
        Self { field, problem }
    }

    /// The same problem, of a field that is called otherwise.
    pub const fn of(self, field: &'static str) -> Self {
        Self { field, ..self }
    }
}

/// A tenant: 1 to 63 of `a-z`, `0-9` and `-`, beginning with a letter.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// As it stands in a resource name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses `instances/{instance}`.
    ///
    /// # Errors
    /// [`Malformed`], of the field `parent`, if it has another form.
    pub fn from_parent(parent: &str) -> Result<Self, Malformed> {
        let problem = Malformed::new("parent", "must be instances/{instance}");
        parent
            .strip_prefix("instances/")
            .ok_or(problem)?
            .parse()
            .map_err(|_form: Malformed| problem)
    }
}

impl FromStr for InstanceId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let letters = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let begins = text.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
        if begins && text.len() <= 63 && text.bytes().all(letters) {
            return Ok(Self(text.into()));
        }
        Err(Malformed::new("instance", "must be 1 to 63 of a-z, 0-9 and -, a letter first"))
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! uuid_id {
    ($name:ident, $what:literal) => {
        #[doc = $what]
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $name(Uuid);

        impl $name {
            /// From its 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// Its 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0.hyphenated())
            }
        }
    };
}

uuid_id!(KeyId, "A root key.");
uuid_id!(VersionId, "A key version; a key's first one has the key's UUID.");
uuid_id!(RegistrationId, "A resource's registration against a key.");
uuid_id!(BindingId, "A binding, or the authorization of a service.");
uuid_id!(ObjectId, "The CKA_ID of an object in the HSM: random, and never used twice.");

impl From<KeyId> for VersionId {
    fn from(key: KeyId) -> Self {
        Self(key.0)
    }
}

/// Another name of a key in its instance.
///
/// 2 to 90 letters, digits, `-` and `_`; not a UUID, nor a word of the REST paths.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Alias(Box<str>);

impl Alias {
    /// How many one key can have.
    pub const MOST: usize = 5;

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Alias {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let letters = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        if !(2..=90).contains(&text.len()) || !text.bytes().all(letters) {
            return Err(Malformed::new("aliases", "must be 2 to 90 letters, digits, - and _"));
        }
        if Uuid::try_parse(text).is_ok() {
            return Err(Malformed::new("aliases", "must not be a UUID"));
        }
        if RESERVED_ALIASES.contains(&text) {
            return Err(Malformed::new("aliases", "is a reserved word"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A group of keys in an instance: 2 to 100 letters, digits, `-` and `_`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct KeyRingId(Box<str>);

impl KeyRingId {
    /// How many an instance can have, `default` among them.
    pub const MOST: usize = 50;

    /// The ring that every instance has.
    pub fn default_ring() -> Self {
        Self(DEFAULT_RING.into())
    }

    /// Whether it is the ring that every instance has.
    pub fn is_default(&self) -> bool {
        &*self.0 == DEFAULT_RING
    }

    /// As it stands in a resource name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KeyRingId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let letters = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
        if (2..=100).contains(&text.len()) && text.bytes().all(letters) {
            return Ok(Self(text.into()));
        }
        Err(Malformed::new("key_ring", "must be 2 to 100 letters, digits, - and _"))
    }
}

impl fmt::Display for KeyRingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `instances/{instance}/keyRings/{ring}`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct KeyRingName {
    /// The tenant.
    pub instance: InstanceId,
    /// The ring in it.
    pub ring: KeyRingId,
}

impl FromStr for KeyRingName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let problem = Malformed::new("name", "must be instances/{instance}/keyRings/{ring}");
        let (instance, ring) = text
            .strip_prefix("instances/")
            .and_then(|rest| rest.split_once("/keyRings/"))
            .ok_or(problem)?;
        let instance = instance.parse().map_err(|_form: Malformed| problem)?;
        let ring = ring.parse().map_err(|_form: Malformed| problem)?;
        Ok(Self { instance, ring })
    }
}

impl fmt::Display for KeyRingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instances/{}/keyRings/{}", self.instance, self.ring)
    }
}

/// How a request names a key inside its instance.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum KeyRef {
    /// By its UUID.
    Id(KeyId),
    /// By one of its aliases.
    Alias(Alias),
}

/// `instances/{instance}/keys/{uuid or alias}`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct KeyName {
    /// The tenant.
    pub instance: InstanceId,
    /// The key in it.
    pub key: KeyRef,
}

impl FromStr for KeyName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let problem = Malformed::new("name", "must be instances/{instance}/keys/{uuid or alias}");
        let (instance, key) = text
            .strip_prefix("instances/")
            .and_then(|rest| rest.split_once("/keys/"))
            .ok_or(problem)?;
        let instance = instance.parse().map_err(|_form: Malformed| problem)?;
        let key = match printed_uuid(key) {
            Ok(Some(uuid)) => KeyRef::Id(KeyId(uuid)),
            Ok(None) => KeyRef::Alias(key.parse().map_err(|_form: Malformed| problem)?),
            Err(OtherForm) => return Err(problem),
        };
        Ok(Self { instance, key })
    }
}

impl KeyName {
    /// Names a key by its UUID.
    pub const fn of(instance: InstanceId, key: KeyId) -> Self {
        Self { instance, key: KeyRef::Id(key) }
    }
}

/// A UUID in another form than the one that we print: braces, urn:, capitals.
struct OtherForm;

fn printed_uuid(text: &str) -> Result<Option<Uuid>, OtherForm> {
    match Uuid::try_parse(text) {
        Ok(uuid) if text == uuid.hyphenated().to_string() => Ok(Some(uuid)),
        Ok(_) => Err(OtherForm),
        Err(_) => Ok(None),
    }
}

/// `instances/{instance}/keys/{uuid or alias}/registrations/{uuid}`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct RegistrationName {
    /// The key that it is against.
    pub key: KeyName,
    /// The registration itself.
    pub id: RegistrationId,
}

/// `instances/{instance}/bindings/{uuid}`, or `…/serviceAuthorizations/{uuid}`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct BindingName {
    /// The tenant.
    pub instance: InstanceId,
    /// Which of the two it is called.
    pub collection: BindingCollection,
    /// The binding itself.
    pub id: BindingId,
}

/// What a binding is listed under: bindings of principals, or authorizations of services.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum BindingCollection {
    /// Of principals.
    Bindings,
    /// Of services.
    ServiceAuthorizations,
}

impl BindingCollection {
    /// As it stands in a resource name.
    pub const fn segment(self) -> &'static str {
        match self {
            Self::Bindings => "bindings",
            Self::ServiceAuthorizations => "serviceAuthorizations",
        }
    }

    /// Parses a name of this collection.
    ///
    /// # Errors
    /// [`Malformed`], of the field `name`.
    pub fn parse(self, text: &str) -> Result<BindingName, Malformed> {
        let problem = Malformed::new(
            "name",
            match self {
                Self::Bindings => "must be instances/{instance}/bindings/{uuid}",
                Self::ServiceAuthorizations => {
                    "must be instances/{instance}/serviceAuthorizations/{uuid}"
                }
            },
        );
        let rest = text.strip_prefix("instances/").ok_or(problem)?;
        let mut parts = rest.split('/');
        let (Some(instance), Some(segment), Some(id), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(problem);
        };
        let id = printed_uuid(id).ok().flatten().ok_or(problem)?;
        let instance = instance.parse().map_err(|_form: Malformed| problem)?;
        if segment != self.segment() {
            return Err(problem);
        }
        Ok(BindingName { instance, collection: self, id: BindingId(id) })
    }
}

impl fmt::Display for BindingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { instance, collection, id } = self;
        write!(f, "instances/{instance}/{}/{id}", collection.segment())
    }
}

impl FromStr for RegistrationName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let problem = Malformed::new(
            "name",
            "must be instances/{instance}/keys/{uuid or alias}/registrations/{uuid}",
        );
        let (key, id) = text.split_once("/registrations/").ok_or(problem)?;
        let key = key.parse().map_err(|_form: Malformed| problem)?;
        let id = printed_uuid(id).ok().flatten().ok_or(problem)?;
        Ok(Self { key, id: RegistrationId(id) })
    }
}

impl fmt::Display for RegistrationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, id } = self;
        write!(f, "{key}/registrations/{id}")
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            KeyRef::Id(id) => write!(f, "instances/{}/keys/{id}", self.instance),
            KeyRef::Alias(alias) => write!(f, "instances/{}/keys/{alias}", self.instance),
        }
    }
}

/// Who asks: a SPIFFE ID, `spiffe://{trust domain}/{path}`.
///
/// Grammar: SPIFFE-ID standard, section 2; at most 2048 bytes.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PrincipalId(Arc<str>);

impl PrincipalId {
    /// The whole SPIFFE ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The service that it is, if it is one: `spiffe://{trust domain}/service/{name}`.
    pub fn service(&self) -> Option<&str> {
        let path = self.0.strip_prefix("spiffe://")?.split_once('/')?.1;
        path.strip_prefix("service/").filter(|name| !name.contains('/'))
    }
}

/// A service of the cloud, such as `block-storage`: the last part of its SPIFFE ID,
/// `spiffe://{trust domain}/service/{name}`. 1 to 63 letters, digits, `-`, `.` and `_`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceName(Box<str>);

impl ServiceName {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// Found by the name that a principal carries, without making one.
impl Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let letters = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
        let fine = (1..=63).contains(&text.len()) && text.bytes().all(letters);
        if fine && text != "." && text != ".." {
            return Ok(Self(text.into()));
        }
        Err(Malformed::new("service", "must be 1 to 63 letters, digits, -, . and _"))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for PrincipalId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let problem = Malformed::new("principal", "must be spiffe://{trust domain}/{path}");
        let (domain, path) = text
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.split_once('/'))
            .filter(|_| text.len() <= 2048)
            .ok_or(problem)?;
        let in_domain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-._".contains(&c);
        let in_path = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
        let segment = |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(in_path);
        if domain.is_empty() || !domain.bytes().all(in_domain) || !path.split('/').all(segment) {
            return Err(problem);
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for PrincipalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

const DEFAULT_RING: &str = "default";
/// Words of the REST paths, which `keys/{alias}` would collide with.
const RESERVED_ALIASES: [&str; 18] = [
    "allowed_ip",
    "key",
    "keys",
    "metadata",
    "policy",
    "policies",
    "registration",
    "registrations",
    "ring",
    "rings",
    "rotate",
    "wrap",
    "unwrap",
    "rewrap",
    "version",
    "versions",
    "restore",
    "purge",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_name_comes_back_as_it_was() {
        for name in [
            "instances/default/keys/5f2b3d9e-7a51-4f0c-9d3e-0a1b2c3d4e5f",
            "instances/a-1/keys/volumes_eu",
        ] {
            assert_eq!(name.parse::<KeyName>().unwrap().to_string(), name);
        }
    }

    #[test]
    fn other_forms_of_a_key_name_are_refused() {
        for name in [
            "",
            "keys/x",
            "instances//keys/abc",
            "instances/A/keys/abc",
            "instances/a/keys/",
            "instances/a/keys/x",
            "instances/a/keys/a b",
            "instances/a/keys/wrap",
            "instances/a/keys/ab/versions/cd",
            "instances/a/keys/5F2B3D9E-7A51-4F0C-9D3E-0A1B2C3D4E5F",
            "instances/a/keys/5f2b3d9e7a514f0c9d3e0a1b2c3d4e5f",
        ] {
            assert!(name.parse::<KeyName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_principal_is_a_strict_spiffe_id() {
        assert!("spiffe://rootkeyd.dev/service/block-storage".parse::<PrincipalId>().is_ok());
        for text in [
            "",
            "spiffe://",
            "spiffe://td",
            "spiffe://td/",
            "spiffe:///a",
            "spiffe://TD/a",
            "spiffe://td/a//b",
            "spiffe://td/../a",
            "spiffe://td/a?b",
            "https://td/a",
            "spiffe://td:80/a",
            "spiffe://u@td/a",
            "spiffe://td/a/",
        ] {
            assert!(text.parse::<PrincipalId>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_service_is_known_by_its_path() {
        let service =
            |text: &str| text.parse::<PrincipalId>().unwrap().service().map(str::to_owned);
        assert_eq!(service("spiffe://td/service/image"), Some("image".into()));
        for text in ["spiffe://td/admin", "spiffe://td/service/a/b", "spiffe://td/x/service/a"] {
            assert_eq!(service(text), None, "{text}");
        }
    }

    #[test]
    fn names_of_rings_and_registrations_come_back_as_they_were() {
        let ring = "instances/default/keyRings/boot_1";
        assert_eq!(ring.parse::<KeyRingName>().unwrap().to_string(), ring);
        let id = "5f2b3d9e-7a51-4f0c-9d3e-0a1b2c3d4e5f";
        for key in [id, "boot"] {
            let registration = format!("instances/a/keys/{key}/registrations/{id}");
            let parsed: RegistrationName = registration.parse().unwrap();
            assert_eq!(parsed.to_string(), registration);
        }
        for text in ["instances/a/keyRings/x", "instances/a/keyRings/a b", "keyRings/ab"] {
            assert!(text.parse::<KeyRingName>().is_err(), "{text}");
        }
        let by_alias = "instances/a/keys/boot/registrations/volume";
        assert!(by_alias.parse::<RegistrationName>().is_err());
    }

    #[test]
    fn an_alias_is_not_a_uuid_nor_a_reserved_word() {
        assert!("Volumes_1".parse::<Alias>().is_ok());
        for text in ["a", "keys", "a b", "5f2b3d9e-7a51-4f0c-9d3e-0a1b2c3d4e5f"] {
            assert!(text.parse::<Alias>().is_err(), "{text:?}");
        }
    }
}

//! A root key and its versions: what is known of them. The material itself is
//! in the HSM, under [`Version::object`], or wrapped by it ([`Version::wrapped`]).
//!
//! The primary version wraps; every version unwraps. Limits: `facts/key-protect.md` 2.

use std::sync::Arc;

use super::deletion::Authorization;
use super::{
    Alias, History, InstanceId, KeyId, KeyName, KeyRef, KeyRingId, KeyState, Malformed, Moment,
    ObjectId, RotationPeriod, Timestamp, VersionId, WrappedKey,
};

/// A root key (KEK), and what happened to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Key {
    /// For ever.
    pub id: KeyId,
    /// Its tenant, for ever.
    pub instance: InstanceId,
    /// The group that it is in.
    pub ring: KeyRingId,
    /// What people say of it.
    pub details: KeyDetails,
    /// Whether its material was imported.
    pub imported: bool,
    /// What its state follows from.
    pub history: History,
    /// Oldest first, at least one; the last one is primary. Shared, since a
    /// change of state copies the key and not its versions.
    pub versions: Arc<[Version]>,
    /// Principal that made it.
    pub created_by: Box<str>,
    /// When it was last changed; unset until then.
    pub updated: Option<Timestamp>,
    /// When it was last rotated; unset until then.
    pub rotated: Option<Moment>,
    /// When services were last told of it.
    pub told: Option<Moment>,
    /// After how long it is rotated by itself; never, if unset.
    pub rotation: Option<RotationPeriod>,
    /// Whether two principals must want its deletion. Never taken back.
    pub dual_auth: bool,
    /// The first of those two, once one has spoken. It may have lapsed.
    pub authorization: Option<Authorization>,
    /// Counts its changes, from 1: what an etag stands for.
    pub generation: u64,
}

/// What people say of a key, with the limits of each field.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyDetails {
    /// 2 to 90 characters.
    pub display_name: String,
    /// At most 240 characters.
    pub description: String,
    /// At most 5, each unique in the instance.
    pub aliases: Vec<Alias>,
    /// At most 30 of at most 30 characters.
    pub tags: Vec<String>,
}

/// One generation of a key's material.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version {
    /// For ever; a key's first version has the key's UUID.
    pub id: VersionId,
    /// CKA_ID of its object in the HSM: of the token, or of a session if it is wrapped.
    pub object: ObjectId,
    /// A known plaintext sealed under it when it was made: IV (12 bytes) and
    /// ciphertext with tag. It opens if the object is still the same key.
    pub check_value: Arc<[u8]>,
    /// Its material, if that is not an object of the token.
    pub wrapped: Option<Arc<WrappedKey>>,
    /// When it was made.
    pub created: Timestamp,
}

impl Key {
    /// The state at `now`.
    pub fn state(&self, now: Moment) -> KeyState {
        self.history.state(now.time)
    }

    /// The version that wraps.
    pub fn primary(&self) -> &Version {
        self.versions.last().expect("a key has at least one version")
    }

    /// The version of that id, if it is one of this key's.
    pub fn version(&self, id: VersionId) -> Option<&Version> {
        // From the newest: most of what is unwrapped was wrapped lately.
        self.versions.iter().rev().find(|version| version.id == id)
    }

    /// A copy after a change at `now`, to be altered by the caller.
    pub fn changed(&self, now: Moment) -> Self {
        Self { updated: Some(now.time), generation: self.generation + 1, ..self.clone() }
    }

    /// A copy after a change at `now` that services are told of.
    pub fn told_change(&self, now: Moment) -> Self {
        Self { told: Some(now), ..self.changed(now) }
    }

    /// What `etag` in a request must be.
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.generation)
    }

    /// `instances/{instance}/keys/{uuid}`.
    pub fn name(&self) -> String {
        format!("instances/{}/keys/{}", self.instance, self.id)
    }

    /// Whether `name` names it, by its UUID or by one of its aliases.
    pub fn is_called(&self, name: &KeyName) -> bool {
        self.instance == name.instance
            && match &name.key {
                KeyRef::Id(id) => *id == self.id,
                KeyRef::Alias(alias) => self.details.aliases.contains(alias),
            }
    }

    /// `instances/{instance}/keys/{uuid}/versions/{uuid}`.
    pub fn version_name(&self, version: VersionId) -> String {
        format!("instances/{}/keys/{}/versions/{version}", self.instance, self.id)
    }
}

impl KeyDetails {
    /// Checks every field against its limit.
    ///
    /// # Errors
    /// [`Malformed`], naming the first field that is past its limit.
    pub fn checked(self) -> Result<Self, Malformed> {
        let length = self.display_name.chars().count();
        if !(2..=90).contains(&length) {
            return Err(Malformed::new("key.display_name", "must be 2 to 90 characters"));
        }
        if self.description.chars().count() > 240 {
            return Err(Malformed::new("key.description", "must be at most 240 characters"));
        }
        let controls = |text: &str| text.chars().any(char::is_control);
        if controls(&self.display_name) {
            return Err(Malformed::new("key.display_name", "must hold no control characters"));
        }
        if self.aliases.len() > Alias::MOST {
            return Err(Malformed::new("key.aliases", "must be at most 5"));
        }
        if self.aliases.iter().enumerate().any(|(i, alias)| self.aliases[..i].contains(alias)) {
            return Err(Malformed::new("key.aliases", "must not repeat"));
        }
        if self.tags.len() > 30 {
            return Err(Malformed::new("key.tags", "must be at most 30"));
        }
        let bad_tag = |tag: &String| {
            tag.chars().count() > 30
                || tag.contains(['<', '>', ',', ':', '&', '|'])
                || controls(tag)
        };
        if self.tags.iter().any(bad_tag) {
            return Err(Malformed::new(
                "key.tags",
                "must be up to 30 characters, without < > , : & |",
            ));
        }
        Ok(self)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::domain::time::tests::at;

    /// A key with one version, made at `now`.
    pub(crate) fn key_at(now: Moment) -> Key {
        let id = KeyId::from_bytes([7; 16]);
        let version = Version {
            id: id.into(),
            object: ObjectId::from_bytes([9; 16]),
            check_value: Arc::default(),
            wrapped: None,
            created: now.time,
        };
        Key {
            id,
            instance: "default".parse().unwrap(),
            ring: KeyRingId::default_ring(),
            details: KeyDetails { display_name: "volumes".into(), ..KeyDetails::default() },
            imported: false,
            history: History::begun(now.time, None),
            versions: Arc::from([version]),
            created_by: "spiffe://td/a".into(),
            updated: None,
            rotated: None,
            told: None,
            rotation: None,
            dual_auth: false,
            authorization: None,
            generation: 1,
        }
    }

    #[test]
    fn the_newest_version_is_primary_and_older_ones_are_found() {
        let mut key = key_at(at(1));
        let first = key.primary().clone();
        let second = Version { id: VersionId::from_bytes([8; 16]), ..first.clone() };
        key.versions = Arc::from([first.clone(), second.clone()]);
        assert_eq!(key.primary().id, second.id);
        assert_eq!(key.version(first.id), Some(&first));
        assert_eq!(key.version(VersionId::from_bytes([1; 16])), None);
    }

    #[test]
    fn details_past_their_limits_name_the_field() {
        let good = KeyDetails { display_name: "ab".into(), ..KeyDetails::default() };
        assert!(good.clone().checked().is_ok());
        let alias = |text: &str| text.parse::<Alias>().unwrap();
        let many: Vec<_> = (0..6).map(|i| alias(&format!("alias-{i}"))).collect();
        let cases = [
            ("key.display_name", KeyDetails { display_name: "a".into(), ..good.clone() }),
            ("key.display_name", KeyDetails { display_name: "é".repeat(91), ..good.clone() }),
            ("key.display_name", KeyDetails { display_name: "a\nb".into(), ..good.clone() }),
            ("key.description", KeyDetails { description: "x".repeat(241), ..good.clone() }),
            ("key.aliases", KeyDetails { aliases: many, ..good.clone() }),
            ("key.aliases", KeyDetails { aliases: vec![alias("aa"), alias("aa")], ..good.clone() }),
            ("key.tags", KeyDetails { tags: vec![String::new(); 31], ..good.clone() }),
            ("key.tags", KeyDetails { tags: vec!["a:b".into()], ..good.clone() }),
            ("key.tags", KeyDetails { tags: vec!["x".repeat(31)], ..good.clone() }),
        ];
        for (field, details) in cases {
            assert_eq!(details.checked().unwrap_err().field, field);
        }
    }
}

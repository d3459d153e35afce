//! Registrations: which resource is protected by which key. A registration that
//! prevents deletion forbids it, by force too (`deletion.rs`).
//!
//! Fields and rules: `facts/key-protect.md` section 6. A resource is named by its
//! CRN of 10 segments.

use std::fmt;
use std::str::FromStr;

use super::{InstanceId, KeyId, Malformed, RegistrationId, Timestamp, VersionId};

/// A resource, and the key that protects it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Registration {
    /// For ever.
    pub id: RegistrationId,
    /// Tenant of the key.
    pub instance: InstanceId,
    /// The key.
    pub key: KeyId,
    /// The resource.
    pub resource: Crn,
    /// What kind of resource it is.
    pub kind: ResourceKind,
    /// The virtual server that it is attached to, if any.
    pub attached_to: Option<Crn>,
    /// For people; at most 240 characters.
    pub description: String,
    /// Whether the key must not be deleted.
    pub prevents_deletion: bool,
    /// The key version that wraps the resource's DEK.
    pub version: VersionId,
    /// The resource that it was made from, if any.
    pub source: Option<Crn>,
    /// The service that registered it, and alone may change it.
    pub service: Box<str>,
    /// When it was registered.
    pub created: Timestamp,
    /// Principal that registered it.
    pub created_by: Box<str>,
    /// When it was last changed, and by which principal.
    pub updated: Option<(Timestamp, Box<str>)>,
    /// Counts its changes, from 1: what an etag stands for.
    pub generation: u64,
}

/// What kind of resource a key protects.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum ResourceKind {
    /// A custom image.
    CustomImage,
    /// A boot volume.
    BootVolume,
    /// A data volume.
    DataVolume,
    /// A snapshot.
    Snapshot,
    /// A file share.
    FileShare,
}

impl ResourceKind {
    /// Every kind, in the order of the seed's tables.
    pub const ALL: [Self; 5] =
        [Self::CustomImage, Self::BootVolume, Self::DataVolume, Self::Snapshot, Self::FileShare];

    /// For people, the store and the audit log.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CustomImage => "custom-image",
            Self::BootVolume => "boot-volume",
            Self::DataVolume => "data-volume",
            Self::Snapshot => "snapshot",
            Self::FileShare => "file-share",
        }
    }

    /// The kind of that name, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The name of a resource: `crn:` and nine more segments, each of which may be
/// empty; at most 512 bytes, no control characters and no `*`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Crn(Box<str>);

impl Crn {
    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Crn {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let form = text.starts_with("crn:") && text.split(':').count() == CRN_SEGMENTS;
        let letters = text.chars().all(|c| !c.is_control() && !c.is_whitespace() && c != '*');
        if form && letters && text.len() <= LONGEST_CRN {
            return Ok(Self(text.into()));
        }
        Err(Malformed::new("resource", "must be a CRN of 10 segments and at most 512 bytes"))
    }
}

impl fmt::Display for Crn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which resources are wanted: a whole CRN, or all that begin so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CrnPattern {
    /// That one.
    Exactly(Crn),
    /// All that begin with this text.
    Prefix(String),
}

impl CrnPattern {
    /// Parses a CRN in which `*` stands for all of a trailing segment or ends the
    /// last one. `bound` segments at the front must have none.
    ///
    /// # Errors
    /// [`Malformed`], of the field `resource`.
    pub fn parse(text: &str, bound: usize) -> Result<Self, Malformed> {
        let Some(star) = text.find('*') else { return Ok(Self::Exactly(text.parse()?)) };
        let problem = Malformed::new(
            "resource",
            "must be a CRN of 10 segments; * stands for trailing segments, or ends the last one",
        );
        let segments: Vec<_> = text.split(':').collect();
        let first = segments.iter().position(|segment| segment.contains('*')).unwrap_or(0);
        let whole = segments[first] == "*" && segments[first..].iter().all(|s| *s == "*");
        let last = first + 1 == CRN_SEGMENTS && star + 1 == text.len();
        let form = segments.len() == CRN_SEGMENTS && segments[0] == "crn";
        let fits = text.len() <= LONGEST_CRN && !text.chars().any(char::is_control);
        if !form || !fits || first < bound.max(1) || !(whole || last) {
            return Err(problem);
        }
        Ok(Self::Prefix(text[..star].to_owned()))
    }
}

impl Registration {
    /// `instances/{instance}/keys/{uuid}/registrations/{uuid}`.
    pub fn name(&self) -> String {
        let Self { instance, key, id, .. } = self;
        format!("instances/{instance}/keys/{key}/registrations/{id}")
    }

    /// What `etag` in a request must be.
    pub fn etag(&self) -> String {
        format!("\"{}\"", self.generation)
    }
}

/// Segments of a CRN.
const CRN_SEGMENTS: usize = 10;
/// In bytes.
const LONGEST_CRN: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = "crn:v1:bluemix:public:is:us-south-1:a/123::volume:r006-1";

    #[test]
    fn a_crn_has_ten_segments() {
        assert_eq!(VOLUME.parse::<Crn>().unwrap().as_str(), VOLUME);
        let bad = ["", "crn:v1", &VOLUME[4..], &format!("{VOLUME}:x"), &VOLUME.replace("1", "*")];
        for text in bad {
            assert!(text.parse::<Crn>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_star_stands_for_trailing_segments_or_ends_the_last() {
        let parse = |text: &str| CrnPattern::parse(text, 0);
        let prefix = |text: &str| Ok(CrnPattern::Prefix(text.into()));
        assert_eq!(parse(VOLUME), Ok(CrnPattern::Exactly(VOLUME.parse().unwrap())));
        let begin = "crn:v1:bluemix:public:is:us-south-1:a/123::";
        assert_eq!(parse(&format!("{begin}*:*")), prefix(begin));
        assert_eq!(parse(&format!("{begin}volume:r0*")), prefix(&format!("{begin}volume:r0")));
        for text in ["*", "crn:*", &format!("{begin}*:x"), &format!("{begin}v*:*"), "crn:v1:*:*"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(CrnPattern::parse(&format!("{begin}*:*"), 8).is_ok());
        assert!(CrnPattern::parse("crn:v1:bluemix:public:is:us-south-1:a/1:*:*:*", 8).is_err());
    }

    #[test]
    fn every_kind_has_a_name_and_is_found_by_it() {
        for kind in ResourceKind::ALL {
            assert_eq!(ResourceKind::named(kind.name()), Some(kind));
        }
        assert_eq!(ResourceKind::named("tape"), None);
    }
}

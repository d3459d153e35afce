//! How registrations are shown: in tables by `KEY/UUID`, which the commands take.

use clap::ValueEnum;
use comfy_table::Table;
use serde::Serialize;

use crate::{
    api::pb::{self, registration::Kind},
    cli::output::{NOTHING, fields, human_time, last_segment, or_nothing, rfc3339, rows},
};

/// A registration, as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct RegistrationView {
    name: String,
    resource: String,
    /// `None` for a kind that this client does not know.
    kind: Option<KindName>,
    attached_to: String,
    description: String,
    prevent_key_deletion: bool,
    key_version: String,
    source: String,
    service: String,
    create_time: Option<String>,
    created_by: String,
    update_time: Option<String>,
    updated_by: String,
    etag: String,
}

impl From<pb::Registration> for RegistrationView {
    fn from(registration: pb::Registration) -> Self {
        let pb::Registration {
            name,
            resource,
            kind,
            attached_to,
            description,
            prevent_key_deletion,
            key_version,
            source,
            service,
            create_time,
            created_by,
            update_time,
            updated_by,
            etag,
        } = registration;
        Self {
            name,
            resource,
            kind: KindName::of(kind),
            attached_to,
            description,
            prevent_key_deletion,
            key_version,
            source,
            service,
            create_time: create_time.as_ref().and_then(rfc3339),
            created_by,
            update_time: update_time.as_ref().and_then(rfc3339),
            updated_by,
            etag,
        }
    }
}

impl RegistrationView {
    pub(super) fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            vec![
                view.short_name(),
                view.resource.clone(),
                view.kind_words().to_owned(),
                or_nothing(&view.service),
                view.deletion().to_owned(),
                human_time(view.create_time.as_ref()),
            ]
        };
        let header = ["REGISTRATION", "RESOURCE", "KIND", "SERVICE", "KEY DELETION", "CREATED"];
        rows(&header, views.iter().map(row))
    }

    pub(super) fn table(&self) -> Table {
        let always = [
            ("registration", self.short_name()),
            ("full name", self.name.clone()),
            ("resource", self.resource.clone()),
            ("kind", self.kind_words().to_owned()),
            ("made from", or_nothing(&self.source)),
            ("attached to", or_nothing(&self.attached_to)),
            ("description", or_nothing(&self.description)),
            ("key version", or_nothing(last_segment(&self.key_version))),
            ("deletion of the key", self.deletion().to_owned()),
            ("service", or_nothing(&self.service)),
            ("created by", or_nothing(&self.created_by)),
            ("updated by", or_nothing(&self.updated_by)),
            ("etag", or_nothing(&self.etag)),
        ];
        let times = [("created", &self.create_time), ("updated", &self.update_time)];
        let times = times.into_iter().map(|(name, time)| (name, human_time(time.as_ref())));
        fields(always.into_iter().chain(times.filter(|(_, time)| time != NOTHING)))
    }

    /// `KEY/UUID`, out of `instances/{instance}/keys/{key}/registrations/{uuid}`.
    fn short_name(&self) -> String {
        match self.name.rsplit_once("/registrations/") {
            Some((key, id)) => format!("{}/{id}", last_segment(key)),
            None => self.name.clone(),
        }
    }

    fn kind_words(&self) -> &'static str {
        self.kind.map_or("unknown", KindName::words)
    }

    fn deletion(&self) -> &'static str {
        if self.prevent_key_deletion { "prevented" } else { "allowed" }
    }
}

/// What kind of resource is registered.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(in crate::cli) enum KindName {
    /// A custom image
    CustomImage,
    /// A boot volume
    BootVolume,
    /// A data volume
    DataVolume,
    /// A snapshot
    Snapshot,
    /// A file share
    FileShare,
}

impl KindName {
    pub(in crate::cli) fn number(self) -> i32 {
        let kind = match self {
            Self::CustomImage => Kind::CustomImage,
            Self::BootVolume => Kind::BootVolume,
            Self::DataVolume => Kind::DataVolume,
            Self::Snapshot => Kind::Snapshot,
            Self::FileShare => Kind::FileShare,
        };
        kind.into()
    }

    pub(in crate::cli) fn of(number: i32) -> Option<Self> {
        match Kind::try_from(number).ok()? {
            Kind::Unspecified => None,
            Kind::CustomImage => Some(Self::CustomImage),
            Kind::BootVolume => Some(Self::BootVolume),
            Kind::DataVolume => Some(Self::DataVolume),
            Kind::Snapshot => Some(Self::Snapshot),
            Kind::FileShare => Some(Self::FileShare),
        }
    }

    pub(in crate::cli) fn words(self) -> &'static str {
        match self {
            Self::CustomImage => "custom image",
            Self::BootVolume => "boot volume",
            Self::DataVolume => "data volume",
            Self::Snapshot => "snapshot",
            Self::FileShare => "file share",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_is_called_by_its_key_and_its_uuid() {
        let view = RegistrationView::from(pb::Registration {
            name: "instances/default/keys/0b8f/registrations/7d1c".to_owned(),
            kind: Kind::FileShare.into(),
            prevent_key_deletion: true,
            ..pb::Registration::default()
        });
        assert_eq!(view.short_name(), "0b8f/7d1c");
        let table = RegistrationView::list(std::slice::from_ref(&view)).to_string();
        assert!(table.contains("file share") && table.contains("prevented"), "{table}");
        assert_eq!(serde_json::to_value(&view).unwrap()["kind"], "file_share");
    }

    #[test]
    fn every_kind_that_can_be_typed_is_shown_again() {
        for kind in KindName::value_variants() {
            assert_eq!(KindName::of(kind.number()), Some(*kind));
        }
        assert_eq!((KindName::of(0), KindName::of(99)), (None, None));
    }
}

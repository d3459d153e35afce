//! `registration create` and `registration update`: what a service says of a
//! resource. What it leaves out stays as it is, or is at its default.

use clap::ArgGroup;
use prost_types::FieldMask;

use super::view::KindName;
use crate::{api::pb, client::Client};

#[derive(Debug, clap::Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(in crate::cli) struct Create {
    /// The root key: a UUID, an alias or a full name
    key: String,
    /// CRN of the resource; cannot be changed later
    #[arg(long, value_name = "CRN")]
    resource: String,
    /// What the resource is; cannot be changed later
    #[arg(long, value_enum)]
    kind: KindName,
    /// CRN of the virtual server that it is attached to
    #[arg(long, value_name = "CRN", default_value_t)]
    attached_to: String,
    /// At most 240 characters
    #[arg(long, value_name = "TEXT", default_value_t)]
    description: String,
    /// The root key cannot be deleted while this is set, not even with --force
    #[arg(long)]
    prevent_key_deletion: bool,
    /// The version that wraps the resource's DEK: a UUID or a full name. Without
    /// it: the newest
    #[arg(long, value_name = "VERSION")]
    key_version: Option<String>,
    /// CRN of the resource that it was made from; cannot be changed later
    #[arg(long, value_name = "CRN", default_value_t)]
    source: String,
}

impl Create {
    pub(super) fn request(self, client: &Client) -> pb::CreateRegistrationRequest {
        let parent = client.key_name(&self.key);
        let registration = Some(self.registration(&parent));
        pb::CreateRegistrationRequest { parent, registration }
    }

    fn registration(self, parent: &str) -> pb::Registration {
        let Self {
            key: _,
            resource,
            kind,
            attached_to,
            description,
            prevent_key_deletion,
            key_version,
            source,
        } = self;
        pb::Registration {
            resource,
            kind: kind.number(),
            attached_to,
            description,
            prevent_key_deletion,
            key_version: key_version.map(|it| version_name(parent, &it)).unwrap_or_default(),
            source,
            ..pb::Registration::default()
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = UPDATE_EXAMPLES,
    group = ArgGroup::new("change").required(true).multiple(true).args([
        "attached_to",
        "clear_attached_to",
        "description",
        "clear_description",
        "prevent_key_deletion",
        "allow_key_deletion",
        "key_version",
        "newest_key_version",
    ]),
)]
pub(in crate::cli) struct Update {
    /// KEY/UUID, as `registration list` shows it, or a full name
    name: String,
    /// CRN of the virtual server that it is attached to now
    #[arg(long, value_name = "CRN", conflicts_with = "clear_attached_to")]
    attached_to: Option<String>,
    /// It is attached to nothing now
    #[arg(long)]
    clear_attached_to: bool,
    /// The new description
    #[arg(long, value_name = "TEXT", conflicts_with = "clear_description")]
    description: Option<String>,
    /// Take the description away
    #[arg(long)]
    clear_description: bool,
    /// The root key cannot be deleted from now on, not even with --force
    #[arg(long, conflicts_with = "allow_key_deletion")]
    prevent_key_deletion: bool,
    /// The root key can be deleted as far as this registration goes
    #[arg(long)]
    allow_key_deletion: bool,
    /// The version that wraps the resource's DEK now: a UUID or a full name
    #[arg(long, value_name = "VERSION", conflicts_with = "newest_key_version")]
    key_version: Option<String>,
    /// The newest version wraps the resource's DEK now
    #[arg(long)]
    newest_key_version: bool,
    /// Refuse if the registration is not as it was when it had this etag
    #[arg(long, default_value_t)]
    etag: String,
}

impl Update {
    pub(super) fn request(self, client: &Client) -> pb::UpdateRegistrationRequest {
        let name = client.registration_name(&self.name);
        self.named(name)
    }

    fn named(self, name: String) -> pb::UpdateRegistrationRequest {
        let Self {
            name: _,
            attached_to,
            clear_attached_to,
            description,
            clear_description,
            prevent_key_deletion,
            allow_key_deletion,
            key_version,
            newest_key_version,
            etag,
        } = self;
        let changes = [
            ("attached_to", clear_attached_to || attached_to.is_some()),
            ("description", clear_description || description.is_some()),
            ("prevent_key_deletion", prevent_key_deletion || allow_key_deletion),
            ("key_version", newest_key_version || key_version.is_some()),
        ];
        let paths = changes.into_iter().filter(|(_, changes)| *changes);
        let update_mask = FieldMask { paths: paths.map(|(path, _)| path.to_owned()).collect() };
        let key = name.split_once("/registrations/").map_or(name.as_str(), |(key, _)| key);
        let key_version = key_version.map(|it| version_name(key, &it)).unwrap_or_default();
        pb::UpdateRegistrationRequest {
            registration: Some(pb::Registration {
                name,
                attached_to: attached_to.unwrap_or_default(),
                description: description.unwrap_or_default(),
                prevent_key_deletion,
                key_version,
                etag,
                ..pb::Registration::default()
            }),
            update_mask: Some(update_mask),
        }
    }
}

/// The name of a version of `key` that is given as a UUID or a full name.
fn version_name(key: &str, version: &str) -> String {
    if version.contains('/') { version.to_owned() } else { format!("{key}/versions/{version}") }
}

const CREATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl --identity block-storage registration create block --kind data-volume \\
      --resource crn:v1:bluemix:public:is:eu-de:a/42::volume:vol-1
  rootkeyctl --identity file-storage registration create shares --kind file-share \\
      --resource crn:v1:bluemix:public:is:eu-de:a/42::share:share-1 --prevent-key-deletion";

const UPDATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl --identity block-storage registration update \\
      block/7d1c2b9e-0f57-4a7e-8f0c-3b9a5d1e6f20 --newest-key-version
  rootkeyctl --identity block-storage registration update \\
      block/7d1c2b9e-0f57-4a7e-8f0c-3b9a5d1e6f20 --clear-attached-to --allow-key-deletion";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const KEY: &str = "instances/default/keys/0b8f";

    #[derive(Debug, Parser)]
    struct UpdateLine {
        #[command(flatten)]
        update: Update,
    }

    #[derive(Debug, Parser)]
    struct CreateLine {
        #[command(flatten)]
        create: Create,
    }

    fn update(args: &[&str]) -> Option<(pb::Registration, Vec<String>)> {
        let line = UpdateLine::try_parse_from(["update", "0b8f/7d1c"].iter().chain(args)).ok()?;
        let request = line.update.named(format!("{KEY}/registrations/7d1c"));
        Some((request.registration?, request.update_mask?.paths))
    }

    #[test]
    fn an_update_names_what_it_changes_and_nothing_else() {
        let (changed, paths) = update(&["--attached-to=crn:v1", "--key-version=9c"]).unwrap();
        assert_eq!(paths, ["attached_to", "key_version"]);
        assert_eq!(changed.attached_to, "crn:v1");
        assert_eq!(changed.key_version, format!("{KEY}/versions/9c"));
        let (changed, paths) =
            update(&["--clear-description", "--allow-key-deletion", "--newest-key-version"])
                .unwrap();
        assert_eq!(paths, ["description", "prevent_key_deletion", "key_version"]);
        assert!(!changed.prevent_key_deletion && changed.key_version.is_empty());
    }

    #[test]
    fn an_update_of_nothing_or_of_opposites_is_a_usage_error() {
        let opposites: [&[&str]; 5] = [
            &[],
            &["--etag=7"],
            &["--attached-to=crn:v1", "--clear-attached-to"],
            &["--prevent-key-deletion", "--allow-key-deletion"],
            &["--key-version=9c", "--newest-key-version"],
        ];
        for args in opposites {
            assert!(update(args).is_none(), "{args:?}");
        }
    }

    #[test]
    fn a_registration_is_sent_as_it_is_typed() {
        let args =
            ["create", "block", "--resource=crn:v1", "--kind=boot-volume", "--source=crn:v2"];
        let create = CreateLine::try_parse_from(args).unwrap().create;
        let registration = create.registration(KEY);
        assert_eq!(registration.kind(), pb::registration::Kind::BootVolume);
        assert_eq!(
            (registration.resource.as_str(), registration.source.as_str()),
            ("crn:v1", "crn:v2")
        );
        assert_eq!(registration.key_version, "");
        assert!(CreateLine::try_parse_from(["create", "block", "--resource=crn:v1"]).is_err());
    }
}

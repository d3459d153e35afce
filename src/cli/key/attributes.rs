//! What a person says of a root key: `key create` and `key update`, and the
//! attributes that `key import` shares with `key create`.

use clap::ArgGroup;
use jiff::Timestamp;
use prost_types::FieldMask;

use crate::{
    api::pb,
    cli::rotation_period::{RotationPeriod, rotation_period},
    client::Client,
};

#[derive(Debug, clap::Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(in crate::cli) struct Create {
    #[command(flatten)]
    attributes: Attributes,
    /// Rotate it by itself each N days: a multiple of 30, up to 360
    #[arg(long, value_name = "N", value_parser = rotation_period)]
    rotation_days: Option<RotationPeriod>,
    #[command(flatten)]
    once: Once,
}

impl Create {
    pub(super) fn request(self, client: &Client) -> pb::CreateKeyRequest {
        let Self { attributes, rotation_days, once } = self;
        let rotation_period = rotation_days.map(RotationPeriod::duration);
        pb::CreateKeyRequest {
            parent: client.parent(),
            key: Some(pb::Key { rotation_period, ..attributes.key() }),
            request_id: once.id(),
        }
    }
}

/// Of every key that is made.
#[derive(Debug, clap::Args)]
pub(super) struct Attributes {
    /// For people; 2 to 90 characters
    #[arg(long)]
    name: String,
    /// For people; cannot be changed later
    #[arg(long, value_name = "TEXT", default_value_t)]
    description: String,
    /// Another name, unique in the instance; repeat for up to 5
    #[arg(long, value_name = "ALIAS")]
    alias: Vec<String>,
    /// Repeat for up to 30
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// The key ring that it is in. Without it: default
    #[arg(long, value_name = "RING", default_value_t, hide_default_value = true)]
    ring: String,
    /// From when the root key only unwraps; cannot be changed later
    #[arg(long, value_name = "RFC3339")]
    expire: Option<Timestamp>,
    /// Deletion needs two principals; cannot be taken back
    #[arg(long)]
    dual_auth_delete: bool,
}

impl Attributes {
    pub(super) fn key(self) -> pb::Key {
        let Self { name, description, alias, tag, ring, expire, dual_auth_delete } = self;
        pb::Key {
            display_name: name,
            description,
            aliases: alias,
            tags: tag,
            key_ring: ring,
            expire_time: expire.map(timestamp),
            dual_auth_delete,
            ..pb::Key::default()
        }
    }
}

/// What makes a call that is repeated happen once.
#[derive(Debug, clap::Args)]
pub(super) struct Once {
    /// A UUID; the same call with the same UUID happens once
    #[arg(long, value_name = "UUID")]
    request_id: Option<uuid::Uuid>,
}

impl Once {
    pub(super) fn id(self) -> String {
        self.request_id.map(|id| id.to_string()).unwrap_or_default()
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = UPDATE_EXAMPLES,
    group = ArgGroup::new("change").required(true).multiple(true).args([
        "name",
        "alias",
        "tag",
        "ring",
        "rotation_days",
        "clear_aliases",
        "clear_tags",
        "clear_rotation",
        "dual_auth_delete",
    ]),
)]
pub(in crate::cli) struct Update {
    /// A UUID, an alias or a full name
    key: String,
    /// The new name
    #[arg(long)]
    name: Option<String>,
    /// An alias it shall have, in place of all it has; repeat for up to 5
    #[arg(long, value_name = "ALIAS", conflicts_with = "clear_aliases")]
    alias: Vec<String>,
    /// A tag it shall have, in place of all it has; repeat for up to 30
    #[arg(long, value_name = "TAG", conflicts_with = "clear_tags")]
    tag: Vec<String>,
    /// The key ring that it moves to
    #[arg(long, value_name = "RING")]
    ring: Option<String>,
    /// Rotate it by itself each N days: a multiple of 30, up to 360
    #[arg(
        long,
        value_name = "N",
        value_parser = rotation_period,
        conflicts_with = "clear_rotation",
    )]
    rotation_days: Option<RotationPeriod>,
    /// Take every alias away
    #[arg(long)]
    clear_aliases: bool,
    /// Take every tag away
    #[arg(long)]
    clear_tags: bool,
    /// Rotate it by hand only
    #[arg(long)]
    clear_rotation: bool,
    /// Deletion needs two principals from now on; cannot be taken back
    #[arg(long)]
    dual_auth_delete: bool,
    /// Refuse if the root key is not as it was when it had this etag
    #[arg(long, default_value_t)]
    etag: String,
}

impl Update {
    pub(super) fn request(self, client: &Client) -> pb::UpdateKeyRequest {
        let name = client.key_name(&self.key);
        let (changed, update_mask) = self.changes();
        pb::UpdateKeyRequest {
            key: Some(pb::Key { name, ..changed }),
            update_mask: Some(update_mask),
        }
    }

    /// The new values, and which fields they are of.
    fn changes(self) -> (pb::Key, FieldMask) {
        let Self {
            key: _,
            name,
            alias,
            tag,
            ring,
            rotation_days,
            clear_aliases,
            clear_tags,
            clear_rotation,
            dual_auth_delete,
            etag,
        } = self;
        let changes = [
            ("display_name", name.is_some()),
            ("aliases", clear_aliases || !alias.is_empty()),
            ("tags", clear_tags || !tag.is_empty()),
            ("key_ring", ring.is_some()),
            ("rotation_period", clear_rotation || rotation_days.is_some()),
            ("dual_auth_delete", dual_auth_delete),
        ];
        let paths = changes.into_iter().filter(|(_, changes)| *changes);
        let update_mask = FieldMask { paths: paths.map(|(path, _)| path.to_owned()).collect() };
        let changed = pb::Key {
            display_name: name.unwrap_or_default(),
            aliases: alias,
            tags: tag,
            key_ring: ring.unwrap_or_default(),
            rotation_period: rotation_days.map(RotationPeriod::duration),
            dual_auth_delete,
            etag,
            ..pb::Key::default()
        };
        (changed, update_mask)
    }
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let mut time =
        prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() };
    time.normalize();
    time
}

const CREATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl key create --name 'Block storage' --alias block --tag team:storage
  rootkeyctl key create --name Payments --ring payments --rotation-days 90 --dual-auth-delete
  rootkeyctl key create --name Archive --expire 2031-01-01T00:00:00Z
  rootkeyctl key create --name Images --request-id \"$(uuidgen)\"";

const UPDATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl key update block --name 'Block storage, region a'
  rootkeyctl key update block --alias block --alias volumes
  rootkeyctl key update block --ring payments --rotation-days 90
  rootkeyctl key update block --clear-tags --clear-rotation";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

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

    fn changes(args: &[&str]) -> (pb::Key, Vec<String>) {
        let line = UpdateLine::try_parse_from(["update", "k"].iter().chain(args)).unwrap();
        let (key, mask) = line.update.changes();
        (key, mask.paths)
    }

    #[test]
    fn times_before_the_epoch_keep_nanoseconds_positive() {
        let time = timestamp("1969-12-31T23:59:58.5Z".parse().unwrap());
        assert_eq!(time, prost_types::Timestamp { seconds: -2, nanos: 500_000_000 });
    }

    #[test]
    fn an_update_names_what_it_changes_and_nothing_else() {
        let (key, paths) = changes(&["--ring=payments", "--rotation-days=90"]);
        assert_eq!(paths, ["key_ring", "rotation_period"]);
        assert_eq!(key.key_ring, "payments");
        assert_eq!(key.rotation_period.map(|it| it.seconds), Some(7_776_000));
        let (key, paths) = changes(&["--clear-rotation", "--dual-auth-delete"]);
        assert_eq!(paths, ["rotation_period", "dual_auth_delete"]);
        assert_eq!((key.rotation_period, key.dual_auth_delete), (None, true));
    }

    #[test]
    fn a_rotation_cannot_be_both_set_and_cleared() {
        let args = ["update", "k", "--rotation-days=30", "--clear-rotation"];
        assert!(UpdateLine::try_parse_from(args).is_err());
    }

    #[test]
    fn what_is_said_at_creation_is_sent() {
        let args = ["create", "--name=Payments", "--ring=payments", "--dual-auth-delete"];
        let key = CreateLine::try_parse_from(args).unwrap().create.attributes.key();
        assert_eq!((key.display_name.as_str(), key.key_ring.as_str()), ("Payments", "payments"));
        assert!(key.dual_auth_delete);
    }
}

//! `key …`: the life cycle of root keys, and how a root key is shown.
//!
//! It decides nothing about states; the daemon does.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::{ArgGroup, Subcommand, ValueEnum};
use comfy_table::Table;
use jiff::Timestamp;
use prost_types::FieldMask;
use serde::Serialize;

use super::{
    failure::Failure,
    output::{NOTHING, Output, fields, human_time, note, or_nothing, rfc3339, rows},
};
use crate::{api::pb, client::Client};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Generate a root key in the HSM
    Create(Create),
    /// Show one root key
    #[command(
        after_help = "Examples:\n  rootkeyctl key get block\n  rootkeyctl --output json key get block"
    )]
    Get(Named),
    /// List the root keys of the instance
    List(List),
    /// List the versions of one root key, newest first
    #[command(after_help = "Examples:\n  rootkeyctl key versions block")]
    Versions(Named),
    /// Make a new version, which wraps from now on
    #[command(
        after_help = "Examples:\n  rootkeyctl key rotate block\n  rootkeyctl key rotate block --etag 7"
    )]
    Rotate(Target),
    /// Change name, aliases or tags
    Update(Update),
    /// Suspend a root key: nothing is wrapped or unwrapped until it is enabled
    #[command(after_help = "Examples:\n  rootkeyctl key disable block")]
    Disable(Target),
    /// Make a disabled root key active again
    #[command(after_help = "Examples:\n  rootkeyctl key enable block")]
    Enable(Target),
    /// Destroy a root key; it can be restored for 30 days
    Delete(Delete),
    /// Undo a deletion
    #[command(
        after_help = "Examples:\n  rootkeyctl key restore 0b8f1e6c-2f5a-4c0e-9d43-6a3b1f0e7c11"
    )]
    Restore(Target),
}

impl KeyCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let mut keys = client.keys();
        let key = match self {
            Self::List(list) => return list.run(client, output).await,
            Self::Versions(named) => return versions(named, client, output).await,
            Self::Create(create) => keys.create_key(create.request(client)).await?,
            Self::Get(Named { key }) => {
                keys.get_key(pb::GetKeyRequest { name: client.key_name(&key) }).await?
            }
            Self::Rotate(Target { key, etag }) => {
                let request = pb::RotateKeyRequest {
                    name: client.key_name(&key),
                    material: None,
                    etag,
                    request_id: String::new(),
                };
                keys.rotate_key(request).await?
            }
            Self::Update(update) => keys.update_key(update.request(client)).await?,
            Self::Disable(Target { key, etag }) => {
                keys.disable_key(pb::DisableKeyRequest { name: client.key_name(&key), etag })
                    .await?
            }
            Self::Enable(Target { key, etag }) => {
                keys.enable_key(pb::EnableKeyRequest { name: client.key_name(&key), etag }).await?
            }
            Self::Delete(delete) => {
                let request = delete.request(client);
                confirm(&request.name, delete.yes)?;
                keys.delete_key(request).await?
            }
            Self::Restore(Target { key, etag }) => {
                keys.restore_key(pb::RestoreKeyRequest { name: client.key_name(&key), etag })
                    .await?
            }
        };
        output.show(&KeyView::from(key.into_inner()), KeyView::table)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// A UUID, an alias or a full name
    key: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// A UUID, an alias or a full name
    key: String,
    /// Refuse if the root key is not as it was when it had this etag
    #[arg(long, default_value_t)]
    etag: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(super) struct Create {
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
    /// From when the root key only unwraps; cannot be changed later
    #[arg(long, value_name = "RFC3339")]
    expire: Option<Timestamp>,
    /// A UUID; the same call with the same UUID creates one root key
    #[arg(long, value_name = "UUID")]
    request_id: Option<uuid::Uuid>,
}

impl Create {
    fn request(self, client: &Client) -> pb::CreateKeyRequest {
        let Self { name, description, alias, tag, expire, request_id } = self;
        pb::CreateKeyRequest {
            parent: client.parent(),
            key: Some(pb::Key {
                display_name: name,
                description,
                aliases: alias,
                tags: tag,
                expire_time: expire.map(timestamp),
                ..pb::Key::default()
            }),
            request_id: request_id.map(|id| id.to_string()).unwrap_or_default(),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(super) struct List {
    /// Only in this state; repeat for more. Without it: all but destroyed
    #[arg(long, value_enum, value_name = "STATE")]
    state: Vec<StateName>,
    /// Part of a name or alias, or a UUID
    #[arg(long, value_name = "TEXT", default_value_t)]
    search: String,
    /// Every page, not only the first 200 root keys
    #[arg(long)]
    all: bool,
}

impl List {
    async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { state, search, all } = self;
        let mut request = pb::ListKeysRequest {
            parent: client.parent(),
            page_size: 0,
            page_token: String::new(),
            states: state.into_iter().map(|state| state.number()).collect(),
            key_ring: String::new(),
            search,
        };
        let mut views = Vec::new();
        loop {
            let pb::ListKeysResponse { keys, next_page_token } =
                client.keys().list_keys(request.clone()).await?.into_inner();
            views.extend(keys.into_iter().map(KeyView::from));
            request.page_token = next_page_token;
            if request.page_token.is_empty() || !all {
                break;
            }
        }
        output.show(views.as_slice(), KeyView::list)?;
        if !request.page_token.is_empty() {
            note("there are more root keys: give --all");
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum StateName {
    /// Wraps and unwraps
    Active,
    /// Disabled; does nothing until enabled
    Suspended,
    /// Expired; unwraps, never wraps
    Deactivated,
    /// Deleted; can be restored for a while
    Destroyed,
}

impl StateName {
    fn number(self) -> i32 {
        let state = match self {
            Self::Active => pb::key::State::Active,
            Self::Suspended => pb::key::State::Suspended,
            Self::Deactivated => pb::key::State::Deactivated,
            Self::Destroyed => pb::key::State::Destroyed,
        };
        state.into()
    }

    fn of(number: i32) -> Option<Self> {
        match pb::key::State::try_from(number).ok()? {
            pb::key::State::Unspecified => None,
            pb::key::State::Active => Some(Self::Active),
            pb::key::State::Suspended => Some(Self::Suspended),
            pb::key::State::Deactivated => Some(Self::Deactivated),
            pb::key::State::Destroyed => Some(Self::Destroyed),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended (disabled)",
            Self::Deactivated => "deactivated (expired)",
            Self::Destroyed => "destroyed (deleted)",
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = UPDATE_EXAMPLES,
    group = ArgGroup::new("change")
        .required(true)
        .multiple(true)
        .args(["name", "alias", "tag", "clear_aliases", "clear_tags"]),
)]
pub(super) struct Update {
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
    /// Take every alias away
    #[arg(long)]
    clear_aliases: bool,
    /// Take every tag away
    #[arg(long)]
    clear_tags: bool,
    /// Refuse if the root key is not as it was when it had this etag
    #[arg(long, default_value_t)]
    etag: String,
}

impl Update {
    fn request(self, client: &Client) -> pb::UpdateKeyRequest {
        let Self { key, name, alias, tag, clear_aliases, clear_tags, etag } = self;
        let changes = [
            ("display_name", name.is_some()),
            ("aliases", clear_aliases || !alias.is_empty()),
            ("tags", clear_tags || !tag.is_empty()),
        ];
        let paths = changes.into_iter().filter(|(_, changes)| *changes);
        let update_mask = FieldMask { paths: paths.map(|(path, _)| path.to_owned()).collect() };
        pb::UpdateKeyRequest {
            key: Some(pb::Key {
                name: client.key_name(&key),
                display_name: name.unwrap_or_default(),
                aliases: alias,
                tags: tag,
                etag,
                ..pb::Key::default()
            }),
            update_mask: Some(update_mask),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(super) struct Delete {
    /// A UUID, an alias or a full name
    key: String,
    /// Delete although resources are registered
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Refuse if the root key is not as it was when it had this etag
    #[arg(long, default_value_t)]
    etag: String,
}

impl Delete {
    fn request(&self, client: &Client) -> pb::DeleteKeyRequest {
        let Self { key, force, yes: _, etag } = self;
        pb::DeleteKeyRequest { name: client.key_name(key), etag: etag.clone(), force: *force }
    }
}

/// Asks on a terminal; where there is none, nobody can answer.
fn confirm(name: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::Unconfirmed);
    }
    note(&format!("Everything that {name} has wrapped becomes unreadable. Type yes to delete it:"));
    drop(io::stderr().flush());
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer).map_err(Failure::Stdin)?;
    if answer.trim() == "yes" { Ok(()) } else { Err(Failure::Unconfirmed) }
}

async fn versions(named: Named, client: &Client, output: Output) -> Result<(), Failure> {
    let mut request = pb::ListKeyVersionsRequest {
        parent: client.key_name(&named.key),
        page_size: 0,
        page_token: String::new(),
    };
    let mut views = Vec::new();
    loop {
        let pb::ListKeyVersionsResponse { key_versions, next_page_token } =
            client.keys().list_key_versions(request.clone()).await?.into_inner();
        views.extend(key_versions.into_iter().map(VersionView::from));
        request.page_token = next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    output.show(views.as_slice(), VersionView::list)
}

/// One version of a root key, as it is shown.
#[derive(Debug, Serialize)]
struct VersionView {
    name: String,
    primary: bool,
    create_time: Option<String>,
}

impl From<pb::KeyVersion> for VersionView {
    fn from(version: pb::KeyVersion) -> Self {
        let pb::KeyVersion { name, create_time, primary } = version;
        Self { name, primary, create_time: create_time.as_ref().and_then(rfc3339) }
    }
}

impl VersionView {
    fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            let role = if view.primary { "primary (wraps)" } else { "retired (unwraps)" };
            vec![
                last_segment(&view.name).to_owned(),
                role.to_owned(),
                human_time(view.create_time.as_ref()),
            ]
        };
        rows(&["VERSION", "ROLE", "CREATED"], views.iter().map(row))
    }
}

/// A root key, as it is shown.
#[derive(Debug, Serialize)]
struct KeyView {
    name: String,
    id: String,
    crn: String,
    display_name: String,
    description: String,
    aliases: Vec<String>,
    key_ring: String,
    tags: Vec<String>,
    /// `None` for a state that this client does not know.
    state: Option<StateName>,
    imported: bool,
    primary_version: String,
    create_time: Option<String>,
    created_by: String,
    update_time: Option<String>,
    rotate_time: Option<String>,
    expire_time: Option<String>,
    delete_time: Option<String>,
    restore_expire_time: Option<String>,
    purge_allow_time: Option<String>,
    purge_time: Option<String>,
    registration_count: u64,
    rotation_period_seconds: Option<i64>,
    dual_auth_delete: bool,
    deletion_auth_expire_time: Option<String>,
    etag: String,
}

impl From<pb::Key> for KeyView {
    fn from(key: pb::Key) -> Self {
        let pb::Key {
            name,
            crn,
            display_name,
            description,
            aliases,
            key_ring,
            tags,
            state,
            imported,
            primary_version,
            create_time,
            created_by,
            update_time,
            rotate_time,
            expire_time,
            delete_time,
            restore_expire_time,
            purge_allow_time,
            purge_time,
            registration_count,
            rotation_period,
            dual_auth_delete,
            deletion_auth_expire_time,
            etag,
        } = key;
        let time = |time: Option<prost_types::Timestamp>| time.as_ref().and_then(rfc3339);
        Self {
            id: last_segment(&name).to_owned(),
            name,
            crn,
            display_name,
            description,
            aliases,
            key_ring,
            tags,
            state: StateName::of(state),
            imported,
            primary_version,
            create_time: time(create_time),
            created_by,
            update_time: time(update_time),
            rotate_time: time(rotate_time),
            expire_time: time(expire_time),
            delete_time: time(delete_time),
            restore_expire_time: time(restore_expire_time),
            purge_allow_time: time(purge_allow_time),
            purge_time: time(purge_time),
            registration_count,
            rotation_period_seconds: rotation_period.map(|period| period.seconds),
            dual_auth_delete,
            deletion_auth_expire_time: time(deletion_auth_expire_time),
            etag,
        }
    }
}

impl KeyView {
    fn state_words(&self) -> &'static str {
        self.state.map_or("unknown", StateName::words)
    }

    fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            vec![
                view.id.clone(),
                view.display_name.clone(),
                or_nothing(&view.aliases.join(", ")),
                view.state_words().to_owned(),
                human_time(view.create_time.as_ref()),
            ]
        };
        rows(&["ID", "NAME", "ALIASES", "STATE", "CREATED"], views.iter().map(row))
    }

    /// Every field that says something; times that are not set are left out.
    fn table(&self) -> Table {
        let origin = if self.imported { "imported" } else { "generated in the HSM" };
        let rotation = match self.rotation_period_seconds {
            Some(seconds) => format!("every {} days", seconds / SECONDS_IN_DAY),
            None => "by hand".to_owned(),
        };
        let deletion = if self.dual_auth_delete { "by two principals" } else { "by one principal" };
        let always = [
            ("id", self.id.clone()),
            ("state", self.state_words().to_owned()),
            ("name", self.display_name.clone()),
            ("description", or_nothing(&self.description)),
            ("aliases", or_nothing(&self.aliases.join(", "))),
            ("tags", or_nothing(&self.tags.join(", "))),
            ("key ring", or_nothing(&self.key_ring)),
            ("full name", self.name.clone()),
            ("crn", or_nothing(&self.crn)),
            ("origin", origin.to_owned()),
            ("primary version", or_nothing(last_segment(&self.primary_version))),
            ("registrations", self.registration_count.to_string()),
            ("rotation", rotation),
            ("deletion", deletion.to_owned()),
            ("created by", or_nothing(&self.created_by)),
            ("etag", or_nothing(&self.etag)),
        ];
        let times = [
            ("created", &self.create_time),
            ("updated", &self.update_time),
            ("rotated", &self.rotate_time),
            ("expires", &self.expire_time),
            ("deleted", &self.delete_time),
            ("restorable until", &self.restore_expire_time),
            ("purge allowed from", &self.purge_allow_time),
            ("purged by itself", &self.purge_time),
            ("authorization for deletion until", &self.deletion_auth_expire_time),
        ];
        let times = times.into_iter().map(|(name, time)| (name, human_time(time.as_ref())));
        fields(always.into_iter().chain(times.filter(|(_, time)| time != NOTHING)))
    }
}

/// The UUID at the end of a name.
fn last_segment(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, last)| last)
}

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let mut time =
        prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() };
    time.normalize();
    time
}

const SECONDS_IN_DAY: i64 = 86_400;

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl key create --name 'Block storage' --alias block
  rootkeyctl key list --all
  rootkeyctl key disable block";

const CREATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl key create --name 'Block storage' --alias block --tag team:storage
  rootkeyctl key create --name Archive --expire 2031-01-01T00:00:00Z
  rootkeyctl key create --name Images --request-id \"$(uuidgen)\"";

const LIST_EXAMPLES: &str = "\
Examples:
  rootkeyctl key list
  rootkeyctl key list --state suspended --state destroyed
  rootkeyctl --output json key list --all --search storage";

const UPDATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl key update block --name 'Block storage, region a'
  rootkeyctl key update block --alias block --alias volumes
  rootkeyctl key update block --clear-tags";

const DELETE_EXAMPLES: &str = "\
Examples:
  rootkeyctl key delete block
  rootkeyctl key delete 0b8f1e6c-2f5a-4c0e-9d43-6a3b1f0e7c11 --force --yes";

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> pb::Key {
        pb::Key {
            name: "instances/default/keys/0b8f".to_owned(),
            display_name: "Block".to_owned(),
            state: pb::key::State::Suspended.into(),
            create_time: Some(prost_types::Timestamp { seconds: 1_767_323_045, nanos: 0 }),
            ..pb::Key::default()
        }
    }

    #[test]
    fn states_are_words_in_tables() {
        for (state, words) in [
            (1, "active"),
            (2, "suspended (disabled)"),
            (3, "deactivated (expired)"),
            (5, "destroyed (deleted)"),
            (0, "unknown"),
            (4, "unknown"),
        ] {
            assert_eq!(KeyView::from(pb::Key { state, ..key() }).state_words(), words);
        }
    }

    #[test]
    fn json_names_the_state_and_the_times() {
        let json = serde_json::to_value(KeyView::from(key())).unwrap();
        assert_eq!(json["id"], "0b8f");
        assert_eq!(json["state"], "suspended");
        assert_eq!(json["create_time"], "2026-01-02T03:04:05Z");
        assert_eq!(json["expire_time"], serde_json::Value::Null);
        assert_eq!(json["aliases"], serde_json::json!([]));
    }

    #[test]
    fn a_table_leaves_out_times_that_are_not_set() {
        let table = KeyView::from(key()).table().to_string();
        assert!(table.contains("2026-01-02T03:04:05Z"), "{table}");
        assert!(!table.contains("expires"), "{table}");
    }

    #[test]
    fn times_before_the_epoch_keep_nanoseconds_positive() {
        let time = timestamp("1969-12-31T23:59:58.5Z".parse().unwrap());
        assert_eq!(time, prost_types::Timestamp { seconds: -2, nanos: 500_000_000 });
    }

    #[test]
    fn a_deletion_without_yes_and_without_a_terminal_is_refused() {
        if !io::stdin().is_terminal() {
            assert_eq!(confirm("k", false).unwrap_err().reason(), "NOT_CONFIRMED");
        }
        assert!(confirm("k", true).is_ok());
    }
}

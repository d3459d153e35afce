//! `key …`: the life cycle of root keys.
//!
//! It decides nothing about states; the daemon does.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::{ArgGroup, Subcommand};
use jiff::Timestamp;
use prost_types::FieldMask;

use super::{
    failure::Failure,
    key_view::{KeyView, StateName, VersionView},
    output::{Output, note},
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

fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let mut time =
        prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() };
    time.normalize();
    time
}

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

//! `key …`: the life cycle of root keys.
//!
//! It decides nothing about states; the daemon does.

mod attributes;
mod deletion;
mod import;
mod list;
mod view;

use clap::Subcommand;

use self::{
    attributes::{Create, Update},
    deletion::{Delete, Purge},
    import::{Import, Rotate},
    list::{List, versions},
    view::KeyView,
};
use super::{failure::Failure, output::Output};
use crate::{api::pb, client::Client};

#[derive(Debug, Subcommand)]
pub(super) enum KeyCommand {
    /// Generate a root key in the HSM
    Create(Create),
    /// Import a root key of your own (BYOK), sealed here to an import token
    Import(Box<Import>),
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
    Rotate(Rotate),
    /// Change name, aliases, tags, ring, rotation or how it is deleted
    Update(Update),
    /// Suspend a root key: nothing is wrapped or unwrapped until it is enabled
    #[command(after_help = "Examples:\n  rootkeyctl key disable block")]
    Disable(Target),
    /// Make a disabled root key active again
    #[command(after_help = "Examples:\n  rootkeyctl key enable block")]
    Enable(Target),
    /// Give the first of the two authorizations that a deletion by two principals needs
    #[command(after_help = "Examples:\n  rootkeyctl key set-for-deletion block")]
    SetForDeletion(Named),
    /// Take that authorization back
    #[command(after_help = "Examples:\n  rootkeyctl key unset-for-deletion block")]
    UnsetForDeletion(Named),
    /// Destroy a root key; it can be restored for 30 days
    Delete(Delete),
    /// Undo a deletion
    #[command(
        after_help = "Examples:\n  rootkeyctl key restore 0b8f1e6c-2f5a-4c0e-9d43-6a3b1f0e7c11"
    )]
    Restore(Target),
    /// Destroy the material of a deleted root key in the HSM, for good
    Purge(Purge),
}

impl KeyCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let mut keys = client.keys();
        let key = match self {
            Self::List(list) => return list.run(client, output).await,
            Self::Versions(named) => return versions(named, client, output).await,
            Self::Purge(purge) => return purge.run(client, output).await,
            Self::Create(create) => keys.create_key(create.request(client)).await?,
            Self::Import(import) => keys.import_key(import.request(client).await?).await?,
            Self::Get(Named { key }) => {
                keys.get_key(pb::GetKeyRequest { name: client.key_name(&key) }).await?
            }
            Self::Rotate(rotate) => keys.rotate_key(rotate.request(client).await?).await?,
            Self::Update(update) => keys.update_key(update.request(client)).await?,
            Self::Disable(Target { key, etag }) => {
                keys.disable_key(pb::DisableKeyRequest {
                    name: client.key_name(&key),
                    etag,
                    impact_token: String::new(),
                })
                .await?
            }
            Self::Enable(Target { key, etag }) => {
                keys.enable_key(pb::EnableKeyRequest { name: client.key_name(&key), etag }).await?
            }
            Self::SetForDeletion(Named { key }) => {
                let name = client.key_name(&key);
                keys.set_key_for_deletion(pb::SetKeyForDeletionRequest { name }).await?
            }
            Self::UnsetForDeletion(Named { key }) => {
                let name = client.key_name(&key);
                keys.unset_key_for_deletion(pb::UnsetKeyForDeletionRequest { name }).await?
            }
            Self::Delete(delete) => keys.delete_key(delete.request(client).await?).await?,
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

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl key create --name 'Block storage' --alias block
  rootkeyctl key import --name Archive --file archive.key
  rootkeyctl key list --all
  rootkeyctl key disable block";

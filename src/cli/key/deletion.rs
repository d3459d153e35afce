//! `key delete` and `key purge`: both ask first. A deletion can be undone for 30
//! days, so it asks for yes; a purge cannot, so it asks for the key's name. A deletion
//! is of the key and the registrations that were looked at: else it is IMPACT_STALE.

use super::view::PurgeView;
use crate::{
    api::pb,
    cli::{
        confirm::{Question, can_ask},
        failure::Failure,
        impact,
        output::{Output, note},
    },
    client::Client,
};

#[derive(Debug, clap::Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(in crate::cli) struct Delete {
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
    /// What to send, once it is confirmed.
    pub(super) async fn request(self, client: &Client) -> Result<pb::DeleteKeyRequest, Failure> {
        let Self { key, force, yes, etag } = self;
        let name = client.key_name(&key);
        if !yes {
            can_ask(DELETED)?;
        }
        let impact = impact::of_deletion(client, &name).await?;
        if !yes {
            impact::sentences(&impact).iter().for_each(|sentence| note(sentence));
        }
        let loss = format!("Everything that {name} has wrapped becomes unreadable.");
        Question { done: DELETED, loss: &loss, answer: "yes" }.ask(yes)?;
        Ok(pb::DeleteKeyRequest { name, etag, force, impact_token: impact.impact_token })
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = PURGE_EXAMPLES)]
pub(in crate::cli) struct Purge {
    /// A UUID or a full name
    key: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Purge {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { key, yes } = self;
        let name = client.key_name(&key);
        if !yes {
            confirm_purge(&name)?;
        }
        let request = pb::PurgeKeyRequest { name: name.clone() };
        let response = client.keys().purge_key(request).await?.into_inner();
        output.show(&PurgeView::new(name, response), PurgeView::table)
    }
}

/// The key is not looked up: who may purge may not read.
fn confirm_purge(name: &str) -> Result<(), Failure> {
    can_ask(PURGED)?;
    let loss = format!(
        "This is final: the material of {name} is destroyed in the HSM, and nothing that it has \
         wrapped can ever be unwrapped."
    );
    let last = name.rsplit('/').next().unwrap_or(name);
    Question { done: PURGED, loss: &loss, answer: last }.ask(false)
}

const DELETED: &str = "deleted";
const PURGED: &str = "purged";

const DELETE_EXAMPLES: &str = "\
Examples:
  rootkeyctl key delete block
  rootkeyctl key delete 0b8f1e6c-2f5a-4c0e-9d43-6a3b1f0e7c11 --force --yes";

const PURGE_EXAMPLES: &str = "\
Examples:
  rootkeyctl key list --state destroyed
  rootkeyctl key purge 0b8f1e6c-2f5a-4c0e-9d43-6a3b1f0e7c11";

//! `registration …`: which resource is protected by which root key. Services write
//! them, with their own certificate (`--identity block-storage`); people read them.
//!
//! It decides nothing about CRNs; the daemon does.

mod change;
mod view;

use clap::Subcommand;

pub(super) use self::view::KindName;

use self::{
    change::{Create, Update},
    view::RegistrationView,
};
use super::{failure::Failure, output::Output, paging::Paging};
use crate::{api::pb, client::Client};

#[derive(Debug, Subcommand)]
pub(super) enum RegistrationCommand {
    /// List the registrations of a root key, or of the instance
    List(List),
    /// Show one registration
    #[command(after_help = GET_EXAMPLES)]
    Get(Named),
    /// Register a resource against a root key, in place of its registration
    Create(Create),
    /// Change what can be changed
    Update(Update),
    /// Take a registration back
    Delete(Delete),
}

impl RegistrationCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let mut registrations = client.registrations();
        let registration = match self {
            Self::List(list) => return list.run(client, output).await,
            Self::Get(Named { name }) => {
                let name = client.registration_name(&name);
                registrations.get_registration(pb::GetRegistrationRequest { name }).await?
            }
            Self::Create(create) => {
                registrations.create_registration(create.request(client)).await?
            }
            Self::Update(update) => {
                registrations.update_registration(update.request(client)).await?
            }
            Self::Delete(Delete { name, etag }) => {
                let name = client.registration_name(&name);
                let request = pb::DeleteRegistrationRequest { name: name.clone(), etag };
                let pb::DeleteRegistrationResponse {} =
                    registrations.delete_registration(request).await?.into_inner();
                return output.deleted(&name);
            }
        };
        output.show(&RegistrationView::from(registration.into_inner()), RegistrationView::table)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// KEY/UUID, as `registration list` shows it, or a full name
    name: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = DELETE_EXAMPLES)]
pub(super) struct Delete {
    /// KEY/UUID, as `registration list` shows it, or a full name
    name: String,
    /// Refuse if the registration is not as it was when it had this etag
    #[arg(long, default_value_t)]
    etag: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(super) struct List {
    /// A UUID, an alias or a full name. Without it: of every root key
    key: Option<String>,
    /// Only resources of this CRN; * stands for all of a trailing segment
    #[arg(long, value_name = "PATTERN", default_value_t)]
    resource: String,
    /// Only those that prevent the deletion of their root key
    #[arg(long)]
    prevents_deletion: bool,
    #[command(flatten)]
    paging: Paging,
}

impl List {
    async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { key, resource, prevents_deletion, paging } = self;
        let request = pb::ListRegistrationsRequest {
            parent: client.key_name(key.as_deref().unwrap_or(EVERY_KEY)),
            page_size: 0,
            page_token: String::new(),
            resource,
            prevent_key_deletion: prevents_deletion,
        };
        let page = async |page_token| {
            let request = pb::ListRegistrationsRequest { page_token, ..request.clone() };
            let pb::ListRegistrationsResponse { registrations, next_page_token } =
                client.registrations().list_registrations(request).await?.into_inner();
            Ok((registrations, next_page_token))
        };
        paging.show(output, "registrations", page, RegistrationView::list).await
    }
}

/// In place of a key: all of the instance.
const EVERY_KEY: &str = "-";

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl registration list block
  rootkeyctl --identity block-storage registration create block --kind data-volume \\
      --resource crn:v1:bluemix:public:is:eu-de:a/42::volume:vol-1
  rootkeyctl registration list --prevents-deletion --all";

const LIST_EXAMPLES: &str = "\
Examples:
  rootkeyctl registration list block
  rootkeyctl registration list --resource 'crn:v1:bluemix:public:is:eu-de:a/42::volume:*'
  rootkeyctl --output json registration list --prevents-deletion --all";

const GET_EXAMPLES: &str = "\
Examples:
  rootkeyctl registration get block/7d1c2b9e-0f57-4a7e-8f0c-3b9a5d1e6f20";

const DELETE_EXAMPLES: &str = "\
Examples:
  rootkeyctl --identity block-storage registration delete \\
      block/7d1c2b9e-0f57-4a7e-8f0c-3b9a5d1e6f20";

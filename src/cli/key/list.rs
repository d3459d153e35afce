//! `key list` and `key versions`.

use super::{
    Named,
    view::{KeyView, StateName, VersionView},
};
use crate::{
    api::pb,
    cli::{failure::Failure, output::Output, paging::Paging},
    client::Client,
};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct List {
    /// Only in this state; repeat for more. Without it: all but destroyed
    #[arg(long, value_enum, value_name = "STATE")]
    state: Vec<StateName>,
    /// Only of this key ring
    #[arg(long, value_name = "RING", default_value_t, hide_default_value = true)]
    ring: String,
    /// Part of a name or alias, or a UUID
    #[arg(long, value_name = "TEXT", default_value_t)]
    search: String,
    #[command(flatten)]
    paging: Paging,
}

impl List {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { state, ring, search, paging } = self;
        let request = pb::ListKeysRequest {
            parent: client.parent(),
            page_size: 0,
            page_token: String::new(),
            states: state.into_iter().map(|state| state.number()).collect(),
            key_ring: ring,
            search,
        };
        let page = async |page_token| {
            let request = pb::ListKeysRequest { page_token, ..request.clone() };
            let pb::ListKeysResponse { keys, next_page_token } =
                client.keys().list_keys(request).await?.into_inner();
            Ok((keys, next_page_token))
        };
        paging.show(output, "root keys", page, KeyView::list).await
    }
}

/// All of them, newest first.
pub(super) async fn versions(named: Named, client: &Client, output: Output) -> Result<(), Failure> {
    let parent = client.key_name(&named.key);
    let page = async |page_token| {
        let parent = parent.clone();
        let request = pb::ListKeyVersionsRequest { parent, page_size: 0, page_token };
        let pb::ListKeyVersionsResponse { key_versions, next_page_token } =
            client.keys().list_key_versions(request).await?.into_inner();
        Ok((key_versions, next_page_token))
    };
    Paging::ALL.show(output, "versions", page, VersionView::list).await
}

const EXAMPLES: &str = "\
Examples:
  rootkeyctl key list
  rootkeyctl key list --state suspended --state destroyed
  rootkeyctl key list --ring payments
  rootkeyctl --output json key list --all --search storage";

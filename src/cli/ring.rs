//! `ring …`: groups of root keys. Which keys are in one: `key list --ring`.

use clap::Subcommand;
use comfy_table::Table;
use serde::Serialize;

use super::{
    failure::Failure,
    output::{Output, fields, human_time, last_segment, or_nothing, rfc3339, rows},
    paging::Paging,
};
use crate::{api::pb, client::Client};

#[derive(Debug, Subcommand)]
pub(super) enum RingCommand {
    /// Make a key ring
    Create(Create),
    /// List the key rings of the instance
    List(List),
    /// Delete a key ring that holds no root key
    Delete(Delete),
}

impl RingCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        match self {
            Self::Create(Create { ring }) => {
                let request =
                    pb::CreateKeyRingRequest { parent: client.parent(), key_ring_id: ring };
                let ring = client.rings().create_key_ring(request).await?.into_inner();
                output.show(&RingView::from(ring), RingView::table)
            }
            Self::List(List { paging }) => list(paging, client, output).await,
            Self::Delete(Delete { ring, force }) => {
                let name = client.ring_name(&ring);
                let request = pb::DeleteKeyRingRequest { name: name.clone(), force };
                let pb::DeleteKeyRingResponse { moved_key_count } =
                    client.rings().delete_key_ring(request).await?.into_inner();
                output.show(&DeletedView { name, moved_key_count }, DeletedView::table)
            }
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rootkeyctl ring create payments")]
pub(super) struct Create {
    /// Its name: 2 to 100 letters, digits, - and _
    ring: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rootkeyctl ring list\n  rootkeyctl --output json ring list")]
pub(super) struct List {
    #[command(flatten)]
    paging: Paging,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl ring delete payments\n  rootkeyctl ring delete payments --force"
)]
pub(super) struct Delete {
    /// Its name
    ring: String,
    /// It may hold deleted root keys, which move to the ring default
    #[arg(long)]
    force: bool,
}

async fn list(paging: Paging, client: &Client, output: Output) -> Result<(), Failure> {
    let page = async |page_token| {
        let request = pb::ListKeyRingsRequest { parent: client.parent(), page_size: 0, page_token };
        let pb::ListKeyRingsResponse { key_rings, next_page_token } =
            client.rings().list_key_rings(request).await?.into_inner();
        Ok((key_rings, next_page_token))
    };
    paging.show(output, "key rings", page, RingView::list).await
}

/// A key ring, as it is shown.
#[derive(Debug, Serialize)]
struct RingView {
    name: String,
    id: String,
    create_time: Option<String>,
    created_by: String,
    key_count: u64,
}

impl From<pb::KeyRing> for RingView {
    fn from(ring: pb::KeyRing) -> Self {
        let pb::KeyRing { name, create_time, created_by, key_count } = ring;
        Self {
            id: last_segment(&name).to_owned(),
            name,
            create_time: create_time.as_ref().and_then(rfc3339),
            created_by,
            key_count,
        }
    }
}

impl RingView {
    fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            vec![
                view.id.clone(),
                view.key_count.to_string(),
                human_time(view.create_time.as_ref()),
                or_nothing(&view.created_by),
            ]
        };
        rows(&["RING", "KEYS", "CREATED", "CREATED BY"], views.iter().map(row))
    }

    fn table(&self) -> Table {
        fields([
            ("ring", self.id.clone()),
            ("full name", self.name.clone()),
            ("keys", self.key_count.to_string()),
            ("created", human_time(self.create_time.as_ref())),
            ("created by", or_nothing(&self.created_by)),
        ])
    }
}

/// What a deletion leaves to be shown.
#[derive(Debug, Serialize)]
struct DeletedView {
    name: String,
    moved_key_count: u64,
}

impl DeletedView {
    fn table(&self) -> Table {
        let moved = self.moved_key_count.to_string();
        fields([("deleted", self.name.clone()), ("keys moved to default", moved)])
    }
}

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl ring create payments
  rootkeyctl key create --name Payments --ring payments
  rootkeyctl ring list";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_default_has_no_time_of_creation() {
        let name = "instances/default/keyRings/default".to_owned();
        let view = RingView::from(pb::KeyRing { name, key_count: 3, ..pb::KeyRing::default() });
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!((&json["id"], &json["create_time"]), (&"default".into(), &().into()));
        assert!(RingView::list(&[view]).to_string().contains('-'));
    }
}

//! `instance …`: the tenants of the daemon, for its operators. What is in the one
//! that is configured, the other commands show.

use clap::Subcommand;
use comfy_table::Table;
use serde::Serialize;

use super::{
    confirm::Question,
    failure::Failure,
    output::{Output, fields, human_time, last_segment, or_nothing, rfc3339, rows},
    paging::Paging,
};
use crate::{
    api::pb,
    client::{Client, instance_name},
};

#[derive(Debug, Subcommand)]
pub(super) enum InstanceCommand {
    /// Make an instance, and give the role Manager on it
    Create(Create),
    /// Show one instance
    Get(Get),
    /// List the instances of the daemon
    List(List),
    /// Delete an instance that has no root key which is not deleted
    Delete(Delete),
}

impl InstanceCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let mut instances = client.instances();
        let instance = match self {
            Self::Create(Create { id, name, manager }) => {
                let request = pb::CreateInstanceRequest {
                    instance_id: id,
                    display_name: name,
                    managers: manager,
                };
                instances.create_instance(request).await?
            }
            Self::Get(Get { id }) => {
                let name = id.map_or_else(|| client.parent(), |id| instance_name(&id));
                instances.get_instance(pb::GetInstanceRequest { name }).await?
            }
            Self::List(List { paging }) => return list(paging, client, output).await,
            Self::Delete(Delete { id, yes }) => {
                let name = instance_name(&id);
                let loss = format!(
                    "Nobody can restore the deleted root keys of {name} then, and its rings, \
                     policies and bindings are gone."
                );
                Question { done: "deleted", loss: &loss, answer: "yes" }.ask(yes)?;
                let request = pb::DeleteInstanceRequest { name: name.clone() };
                let pb::DeleteInstanceResponse {} =
                    instances.delete_instance(request).await?.into_inner();
                return output.deleted(&name);
            }
        };
        output.show(&InstanceView::from(instance.into_inner()), InstanceView::table)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = CREATE_EXAMPLES)]
pub(super) struct Create {
    /// 1 to 63 of a-z, 0-9 and -, a letter first
    id: String,
    /// For people; at most 90 characters
    #[arg(long, default_value_t)]
    name: String,
    /// A principal that gets the role Manager; repeat for up to 20. Without it: you
    #[arg(long, value_name = "SPIFFE_ID")]
    manager: Vec<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rootkeyctl instance get\n  rootkeyctl instance get team-a")]
pub(super) struct Get {
    /// Its ID. Without it: the instance that is configured
    id: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rootkeyctl instance list\n  rootkeyctl instance list --all")]
pub(super) struct List {
    #[command(flatten)]
    paging: Paging,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl instance delete team-a\n  rootkeyctl instance delete team-a --yes"
)]
pub(super) struct Delete {
    /// Its ID
    id: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

async fn list(paging: Paging, client: &Client, output: Output) -> Result<(), Failure> {
    let page = async |page_token| {
        let request = pb::ListInstancesRequest { page_size: 0, page_token };
        let pb::ListInstancesResponse { instances, next_page_token } =
            client.instances().list_instances(request).await?.into_inner();
        Ok((instances, next_page_token))
    };
    paging.show(output, "instances", page, InstanceView::list).await
}

/// An instance, as it is shown.
#[derive(Debug, Serialize)]
struct InstanceView {
    name: String,
    id: String,
    display_name: String,
    create_time: Option<String>,
    created_by: String,
    key_count: u64,
    live_key_count: u64,
}

impl From<pb::Instance> for InstanceView {
    fn from(instance: pb::Instance) -> Self {
        let pb::Instance { name, display_name, create_time, created_by, key_count, live_key_count } =
            instance;
        Self {
            id: last_segment(&name).to_owned(),
            name,
            display_name,
            create_time: create_time.as_ref().and_then(rfc3339),
            created_by,
            key_count,
            live_key_count,
        }
    }
}

impl InstanceView {
    fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            vec![
                view.id.clone(),
                or_nothing(&view.display_name),
                view.key_words(),
                human_time(view.create_time.as_ref()),
                view.origin(),
            ]
        };
        rows(&["ID", "NAME", "KEYS", "CREATED", "CREATED BY"], views.iter().map(row))
    }

    fn table(&self) -> Table {
        fields([
            ("id", self.id.clone()),
            ("name", or_nothing(&self.display_name)),
            ("full name", self.name.clone()),
            ("keys", self.key_words()),
            ("created", human_time(self.create_time.as_ref())),
            ("created by", self.origin()),
        ])
    }

    fn key_words(&self) -> String {
        let destroyed = self.key_count.saturating_sub(self.live_key_count);
        match destroyed {
            0 => self.key_count.to_string(),
            _ => format!("{} ({destroyed} of them destroyed)", self.key_count),
        }
    }

    fn origin(&self) -> String {
        match self.created_by.as_str() {
            "" => "the configuration".to_owned(),
            principal => principal.to_owned(),
        }
    }
}

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl instance create team-a --name 'Team A'
  rootkeyctl --instance team-a key create --name Volumes
  rootkeyctl instance list";

const CREATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl instance create team-a --name 'Team A'
  rootkeyctl instance create team-b --manager spiffe://example.org/user/lee \\
      --manager spiffe://example.org/user/kim";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_are_destroyed_are_told_from_the_others() {
        let view = |key_count, live_key_count| {
            InstanceView::from(pb::Instance {
                name: "instances/team-a".to_owned(),
                key_count,
                live_key_count,
                ..pb::Instance::default()
            })
        };
        assert_eq!(view(3, 3).key_words(), "3");
        assert_eq!(view(3, 1).key_words(), "3 (2 of them destroyed)");
        assert_eq!(
            (view(0, 0).id.as_str(), view(0, 0).origin().as_str()),
            ("team-a", "the configuration")
        );
    }
}

//! `resource …`: what the state of a root key means for the resources that it
//! protects. It decides nothing; the daemon does.

use clap::{Subcommand, ValueEnum};
use comfy_table::Table;
use serde::Serialize;

use super::{
    failure::Failure,
    output::{NOTHING, Output, fields, last_segment, or_nothing, rows},
    paging::Paging,
    registration::KindName,
};
use crate::{
    api::pb::{self, KeyCondition, ResourceAction},
    client::Client,
};

#[derive(Debug, Subcommand)]
pub(super) enum ResourceCommand {
    /// Show what a resource is now, or a virtual server with registered volumes
    #[command(after_help = STATUS_EXAMPLES)]
    Status(Status),
    /// List what the resources of a root key, or of the instance, are now
    List(List),
    /// Ask whether something can be done with a resource now
    Check(Check),
}

impl ResourceCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        match self {
            Self::Status(Status { resource }) => {
                let request = pb::GetResourceStatusRequest { parent: client.parent(), resource };
                let status = client.resources().get_resource_status(request).await?.into_inner();
                output.show(&StatusView::from(status), StatusView::table)
            }
            Self::List(list) => list.run(client, output).await,
            Self::Check(check) => check.run(client, output).await,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Status {
    /// CRN of the resource
    #[arg(value_name = "CRN")]
    resource: String,
}

#[derive(Debug, clap::Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(super) struct List {
    /// A UUID, an alias or a full name. Without it: of every root key
    key: Option<String>,
    /// Only resources of this CRN; * stands for all of a trailing segment
    #[arg(long, value_name = "PATTERN", default_value_t)]
    resource: String,
    #[command(flatten)]
    paging: Paging,
}

impl List {
    async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { key, resource, paging } = self;
        let request = pb::ListResourceStatusesRequest {
            parent: client.key_name(key.as_deref().unwrap_or(EVERY_KEY)),
            page_size: 0,
            page_token: String::new(),
            resource,
        };
        let page = async |page_token| {
            let request = pb::ListResourceStatusesRequest { page_token, ..request.clone() };
            let pb::ListResourceStatusesResponse { statuses, next_page_token } =
                client.resources().list_resource_statuses(request).await?.into_inner();
            Ok((statuses, next_page_token))
        };
        paging.show(output, "resources", page, StatusView::list).await
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub(super) struct Check {
    /// What would be done
    #[arg(value_enum)]
    action: ActionName,
    /// CRN of the resource; none for provision
    #[arg(value_name = "CRN", required_unless_present = "key")]
    resource: Option<String>,
    /// For provision: the root key that would protect the new resource
    #[arg(long, requires = "kind", conflicts_with = "resource")]
    key: Option<String>,
    /// For provision: what the new resource would be
    #[arg(long, value_enum, requires = "key")]
    kind: Option<KindName>,
}

impl Check {
    async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { action, resource, key, kind } = self;
        let request = pb::CheckResourceActionRequest {
            parent: client.parent(),
            action: action.number(),
            resource: resource.unwrap_or_default(),
            key: key.map(|key| client.key_name(&key)).unwrap_or_default(),
            kind: kind.map_or(0, KindName::number),
        };
        let answer = client.resources().check_resource_action(request).await?.into_inner();
        output.show(&CheckView::from(answer), CheckView::table)
    }
}

/// What a resource is, as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct StatusView {
    resource: String,
    registration: String,
    /// `None` for a virtual server, or a kind that this client does not know.
    kind: Option<KindName>,
    attached_to: String,
    key: String,
    /// `None` for a condition that this client does not know.
    condition: Option<ConditionName>,
    status: String,
    status_reason: String,
    tooltip: String,
    consequence: String,
}

impl From<pb::ResourceStatus> for StatusView {
    fn from(status: pb::ResourceStatus) -> Self {
        let pb::ResourceStatus {
            resource,
            registration,
            kind,
            attached_to,
            key,
            condition,
            status,
            status_reason,
            tooltip,
            consequence,
        } = status;
        Self {
            resource,
            registration,
            kind: KindName::of(kind),
            attached_to,
            key,
            condition: ConditionName::of(condition),
            status,
            status_reason,
            tooltip,
            consequence,
        }
    }
}

impl StatusView {
    pub(super) fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            vec![
                view.resource.clone(),
                view.kind_words().to_owned(),
                last_segment(&view.key).to_owned(),
                view.condition_words().to_owned(),
                view.status.clone(),
                or_nothing(&view.status_reason),
            ]
        };
        let header = ["RESOURCE", "KIND", "KEY", "KEY IS", "STATUS", "REASON"];
        rows(&header, views.iter().map(row))
    }

    fn table(&self) -> Table {
        fields(self.lines())
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("resource", or_nothing(&self.resource)),
            ("kind", self.kind_words().to_owned()),
            ("attached to", or_nothing(&self.attached_to)),
            ("key", or_nothing(&self.key)),
            ("key is", self.condition_words().to_owned()),
            ("status", self.status.clone()),
            ("reason", or_nothing(&self.status_reason)),
            ("tooltip", or_nothing(&self.tooltip)),
            ("consequence", self.consequence.clone()),
        ]
    }

    fn kind_words(&self) -> &'static str {
        self.kind.map_or("virtual server", KindName::words)
    }

    fn condition_words(&self) -> &'static str {
        self.condition.map_or("unknown", ConditionName::words)
    }
}

/// Whether something can be done, as it is shown.
#[derive(Debug, Serialize)]
struct CheckView {
    allowed: bool,
    reason: String,
    message: String,
    status: Option<StatusView>,
}

impl From<pb::CheckResourceActionResponse> for CheckView {
    fn from(answer: pb::CheckResourceActionResponse) -> Self {
        let pb::CheckResourceActionResponse { allowed, reason, message, status } = answer;
        Self { allowed, reason, message, status: status.map(StatusView::from) }
    }
}

impl CheckView {
    fn table(&self) -> Table {
        let allowed = if self.allowed { "yes" } else { "no" };
        let mut lines = vec![
            ("allowed", allowed.to_owned()),
            ("refused with", or_nothing(&self.reason)),
            ("since", or_nothing(&self.message)),
        ];
        lines.extend(self.status.iter().flat_map(StatusView::lines));
        fields(lines.into_iter().filter(|(_, value)| value != NOTHING))
    }
}

/// What can be done with a resource.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum ActionName {
    /// Make a resource; with --key and --kind
    Provision,
    /// Attach a volume to a virtual server
    Attach,
    /// Detach it
    Detach,
    /// Start a virtual server, or that of a volume
    StartInstance,
    /// Stop it
    StopInstance,
    /// Restore a volume or share from a snapshot
    Restore,
    /// Mount a file share
    Mount,
    /// Read and write data
    ReadWrite,
    /// Make a boot volume from an image
    BootFromImage,
    /// Delete the resource
    Delete,
}

impl ActionName {
    fn number(self) -> i32 {
        let action = match self {
            Self::Provision => ResourceAction::Provision,
            Self::Attach => ResourceAction::Attach,
            Self::Detach => ResourceAction::Detach,
            Self::StartInstance => ResourceAction::StartInstance,
            Self::StopInstance => ResourceAction::StopInstance,
            Self::Restore => ResourceAction::Restore,
            Self::Mount => ResourceAction::Mount,
            Self::ReadWrite => ResourceAction::ReadWrite,
            Self::BootFromImage => ResourceAction::BootFromImage,
            Self::Delete => ResourceAction::Delete,
        };
        action.into()
    }
}

/// What a key is to the service that has a resource.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum ConditionName {
    Active,
    Suspended,
    Deactivated,
    Destroyed,
    Restored,
    AuthorizationRemoved,
}

impl ConditionName {
    fn of(number: i32) -> Option<Self> {
        match KeyCondition::try_from(number).ok()? {
            KeyCondition::Unspecified => None,
            KeyCondition::Active => Some(Self::Active),
            KeyCondition::Suspended => Some(Self::Suspended),
            KeyCondition::Deactivated => Some(Self::Deactivated),
            KeyCondition::Destroyed => Some(Self::Destroyed),
            KeyCondition::Restored => Some(Self::Restored),
            KeyCondition::AuthorizationRemoved => Some(Self::AuthorizationRemoved),
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Deactivated => "deactivated",
            Self::Destroyed => "destroyed",
            Self::Restored => "restored",
            Self::AuthorizationRemoved => "not for its service any more",
        }
    }
}

/// In place of a key: all of the instance.
const EVERY_KEY: &str = "-";

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl resource status crn:v1:bluemix:public:is:eu-de:a/42::volume:vol-1
  rootkeyctl resource list block
  rootkeyctl resource check attach crn:v1:bluemix:public:is:eu-de:a/42::volume:vol-1";

const STATUS_EXAMPLES: &str = "\
Examples:
  rootkeyctl resource status crn:v1:bluemix:public:is:eu-de:a/42::volume:vol-1
  rootkeyctl resource status crn:v1:bluemix:public:is:eu-de:a/42::instance:web-1";

const LIST_EXAMPLES: &str = "\
Examples:
  rootkeyctl resource list block
  rootkeyctl resource list --resource 'crn:v1:bluemix:public:is:eu-de:a/42::volume:*' --all";

const CHECK_EXAMPLES: &str = "\
Examples:
  rootkeyctl resource check attach crn:v1:bluemix:public:is:eu-de:a/42::volume:vol-1
  rootkeyctl resource check start-instance crn:v1:bluemix:public:is:eu-de:a/42::instance:web-1
  rootkeyctl resource check provision --key block --kind data-volume";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_says_how_and_what_the_resource_is() {
        let view = CheckView::from(pb::CheckResourceActionResponse {
            allowed: false,
            reason: "KEY_SUSPENDED".to_owned(),
            message: "the key is suspended".to_owned(),
            status: Some(pb::ResourceStatus {
                condition: KeyCondition::Suspended.into(),
                status: "unusable".to_owned(),
                ..Default::default()
            }),
        });
        let table = view.table().to_string();
        for word in ["no", "KEY_SUSPENDED", "unusable", "suspended"] {
            assert!(table.contains(word), "{table}");
        }
        assert_eq!(serde_json::to_value(&view).unwrap()["status"]["condition"], "suspended");
    }

    #[test]
    fn every_condition_of_the_contract_has_its_words() {
        for number in 1..=6 {
            assert!(ConditionName::of(number).is_some());
        }
        assert_eq!((ConditionName::of(0), ConditionName::of(7)), (None, None));
    }
}

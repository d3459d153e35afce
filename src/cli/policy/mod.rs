//! `policy …`: what holds in the instance, and what its metrics policy counts.
//!
//! It decides nothing about what a policy does; the daemon does. How policies
//! are typed: `set`. How they are shown: `view`.

mod metrics;
mod set;
mod view;

use clap::Subcommand;

use self::{metrics::metrics, set::SetCommand, view::PoliciesView};
use super::{failure::Failure, output::Output};
use crate::{api::pb, client::Client};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Show the policies of the instance
    #[command(
        after_help = "Examples:\n  rootkeyctl policy get\n  rootkeyctl --output json policy get"
    )]
    Get,
    /// Replace one policy, whole
    #[command(subcommand, after_help = set::EXAMPLES)]
    Set(SetCommand),
    /// Show how many calls there were and how they ended, since the daemon started
    #[command(
        after_help = "Examples:\n  rootkeyctl policy set metrics on\n  rootkeyctl policy metrics"
    )]
    Metrics,
}

impl PolicyCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let mut policies = client.policies();
        let parent = client.parent();
        let shown = match self {
            Self::Metrics => return metrics(client, output).await,
            Self::Get => {
                policies.get_instance_policies(pb::GetInstancePoliciesRequest { parent }).await?
            }
            Self::Set(command) => {
                let (policy, etag) = command.policy();
                let request = pb::SetInstancePolicyRequest { parent, policy: Some(policy), etag };
                policies.set_instance_policy(request).await?
            }
        };
        output.show(&PoliciesView::from(shown.into_inner()), PoliciesView::table)
    }
}

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl policy get
  rootkeyctl policy set dual-auth-delete --enabled true
  rootkeyctl policy metrics";

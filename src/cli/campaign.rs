//! `campaign …`: after a rotation, services rewrap what older versions wrap, little by
//! little.

use clap::Subcommand;
use comfy_table::Table;
use serde::Serialize;

use super::{
    failure::Failure,
    output::{Output, fields, human_time, last_segment, rfc3339},
};
use crate::{api::pb, client::Client};

#[derive(Debug, Subcommand)]
pub(super) enum CampaignCommand {
    /// Have services rewrap under the newest version of a root key
    Create(Create),
    /// Show how far it has come
    #[command(after_help = "Examples:\n  rootkeyctl campaign get block")]
    Get(Named),
    /// Hold it
    #[command(after_help = "Examples:\n  rootkeyctl campaign pause block")]
    Pause(Named),
    /// Go on with it
    #[command(after_help = "Examples:\n  rootkeyctl campaign resume block")]
    Resume(Named),
}

impl CampaignCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let mut events = client.events();
        let campaign = match self {
            Self::Create(Create { key, rate }) => {
                let request = pb::CreateRewrapCampaignRequest {
                    parent: client.key_name(&key),
                    rate_per_minute: rate,
                };
                events.create_rewrap_campaign(request).await?
            }
            Self::Get(named) => {
                let request = pb::GetRewrapCampaignRequest { name: named.campaign(client) };
                events.get_rewrap_campaign(request).await?
            }
            Self::Pause(named) => {
                let request = pb::PauseRewrapCampaignRequest { name: named.campaign(client) };
                events.pause_rewrap_campaign(request).await?
            }
            Self::Resume(named) => {
                let request = pb::ResumeRewrapCampaignRequest { name: named.campaign(client) };
                events.resume_rewrap_campaign(request).await?
            }
        };
        output.show(&CampaignView::from(campaign.into_inner()), CampaignView::table)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rootkeyctl campaign create block --rate 1200")]
pub(super) struct Create {
    /// A UUID, an alias or a full name
    key: String,
    /// Resources that are handed to their services in a minute, at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = 600,
        value_parser = clap::value_parser!(u32).range(1..=60_000),
    )]
    rate: u32,
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// A UUID, an alias or a full name
    key: String,
}

impl Named {
    fn campaign(&self, client: &Client) -> String {
        format!("{}/rewrapCampaign", client.key_name(&self.key))
    }
}

/// A campaign, as it is shown.
#[derive(Debug, Serialize)]
struct CampaignView {
    name: String,
    state: &'static str,
    target_version: String,
    rate_per_minute: u32,
    total: u64,
    rewrapped: u64,
    requested: u64,
    create_time: Option<String>,
    created_by: String,
}

impl From<pb::RewrapCampaign> for CampaignView {
    fn from(campaign: pb::RewrapCampaign) -> Self {
        use pb::rewrap_campaign::State;
        let state = match campaign.state() {
            State::Unspecified => "unknown",
            State::Running => "running",
            State::Paused => "paused",
            State::Done => "done",
        };
        let pb::RewrapCampaign {
            name,
            state: _,
            target_version,
            rate_per_minute,
            total,
            rewrapped,
            requested,
            create_time,
            created_by,
        } = campaign;
        let create_time = create_time.as_ref().and_then(rfc3339);
        Self {
            name,
            state,
            target_version,
            rate_per_minute,
            total,
            rewrapped,
            requested,
            create_time,
            created_by,
        }
    }
}

impl CampaignView {
    fn table(&self) -> Table {
        fields([
            ("campaign", self.name.clone()),
            ("state", self.state.to_owned()),
            ("to version", last_segment(&self.target_version).to_owned()),
            ("rewrapped", format!("{} of {}", self.rewrapped, self.total)),
            ("asked for", self.requested.to_string()),
            ("rate", format!("{} a minute", self.rate_per_minute)),
            ("created", human_time(self.create_time.as_ref())),
            ("created by", self.created_by.clone()),
        ])
    }
}

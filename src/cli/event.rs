//! `event …`: what services are told of keys. `watch` prints a line of JSON for each
//! event, whatever the format, since it has no end.

use std::io::Write;

use clap::Subcommand;
use comfy_table::Table;
use serde::Serialize;

use super::{
    failure::Failure,
    output::{Output, fields, rfc3339},
};
use crate::{api::pb, client::Client};

#[derive(Debug, Subcommand)]
pub(super) enum EventCommand {
    /// Print the events of the service that calls, as JSON lines, until it is stopped
    Watch(Watch),
    /// Say that the service has done what an event asks
    Acknowledge(Acknowledge),
    /// Tell the services of a root key once more what it is
    #[command(after_help = "Examples:\n  rootkeyctl event sync block")]
    Sync(Sync),
}

impl EventCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        match self {
            Self::Watch(watch) => watch.run(client).await,
            Self::Acknowledge(Acknowledge { key, id, failure }) => {
                let key = client.key_name(&key);
                let request = pb::AcknowledgeKeyEventRequest { key, event_id: id, failure };
                let answer = client.events().acknowledge_key_event(request).await?.into_inner();
                let pb::AcknowledgeKeyEventResponse { all_acknowledged } = answer;
                output.show(&AcknowledgedView { id, all_acknowledged }, AcknowledgedView::table)
            }
            Self::Sync(Sync { key }) => {
                let key = client.key_name(&key);
                let request = pb::SyncKeyRequest { name: key.clone() };
                let answer = client.events().sync_key(request).await?.into_inner();
                let pb::SyncKeyResponse { services } = answer;
                output.show(&SyncedView { key, services }, SyncedView::table)
            }
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl --identity block-storage event watch\n  rootkeyctl --identity block-storage event watch --resume 17 --count 1"
)]
pub(super) struct Watch {
    /// Go on after the event with this resume token
    #[arg(long, value_name = "TOKEN", default_value_t)]
    resume: String,
    /// Stop after so many events
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

impl Watch {
    async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self { resume, count } = self;
        let request = pb::WatchKeyEventsRequest { parent: client.parent(), resume_token: resume };
        let mut events = client.event_stream().watch_key_events(request).await?.into_inner();
        let mut left = count;
        while left != Some(0) {
            let Some(event) = events.message().await? else { break };
            let line = serde_json::to_string(&EventView::from(event)).map_err(Failure::Json)?;
            writeln!(std::io::stdout(), "{line}").map_err(Failure::Stdout)?;
            left = left.map(|left| left - 1);
        }
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rootkeyctl --identity block-storage event acknowledge block 17"
)]
pub(super) struct Acknowledge {
    /// A UUID, an alias or a full name
    key: String,
    /// The event's id
    id: u64,
    /// Why it could not be done
    #[arg(long, value_name = "TEXT", default_value_t)]
    failure: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct Sync {
    /// A UUID, an alias or a full name
    key: String,
}

/// An event, as it is shown.
#[derive(Debug, Serialize)]
struct EventView {
    id: u64,
    key: String,
    r#type: &'static str,
    time: Option<String>,
    key_state: String,
    primary_version: String,
    previous_version: String,
    registration: String,
    resource: String,
    acknowledge_time: Option<String>,
    resume_token: String,
}

impl From<pb::KeyEvent> for EventView {
    fn from(event: pb::KeyEvent) -> Self {
        let kind = event.r#type().as_str_name().trim_start_matches("TYPE_");
        let pb::KeyEvent {
            id,
            key,
            r#type: _,
            time,
            key_state,
            primary_version,
            previous_version,
            registration,
            resource,
            acknowledge_time,
            resume_token,
        } = event;
        Self {
            id,
            key,
            r#type: kind,
            time: time.as_ref().and_then(rfc3339),
            key_state,
            primary_version,
            previous_version,
            registration,
            resource,
            acknowledge_time: acknowledge_time.as_ref().and_then(rfc3339),
            resume_token,
        }
    }
}

#[derive(Debug, Serialize)]
struct AcknowledgedView {
    id: u64,
    all_acknowledged: bool,
}

impl AcknowledgedView {
    fn table(&self) -> Table {
        let all = if self.all_acknowledged { "yes" } else { "not yet" };
        fields([("event", self.id.to_string()), ("by all services", all.to_owned())])
    }
}

#[derive(Debug, Serialize)]
struct SyncedView {
    key: String,
    services: u32,
}

impl SyncedView {
    fn table(&self) -> Table {
        fields([("key", self.key.clone()), ("services told", self.services.to_string())])
    }
}

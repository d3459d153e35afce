//! `audit list` and `audit watch`: records of the audit log. `watch` prints a line of
//! JSON for each, whatever the format, since it has no end. The proof: `proof.rs`.

use std::{collections::BTreeMap, io::Write};

use clap::Subcommand;
use comfy_table::Table;
use serde::Serialize;

use super::{
    encoding::base64_text,
    failure::Failure,
    output::{Output, human_time, or_nothing, rfc3339, rows},
    proof::{Export, Key, ShowCheckpoint, Verify},
};
use crate::{api::pb, client::Client};

#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// List the records of the instance, newest first
    List(List),
    /// Print the records of the instance as they are written, as JSON lines, until it is stopped
    Watch(Watch),
    /// Print the newest signed checkpoint of the log
    Checkpoint(ShowCheckpoint),
    /// Print the public key of the checkpoints as PEM
    Key(Key),
    /// Write the log of all instances to a file, with its checkpoints; for operators
    Export(Export),
    /// Verify an exported log, without the daemon
    Verify(Verify),
}

impl AuditCommand {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        match self {
            Self::List(list) => list.run(client, output).await,
            Self::Watch(watch) => watch.run(client).await,
            Self::Checkpoint(checkpoint) => checkpoint.run(client).await,
            Self::Key(key) => key.run(client).await,
            Self::Export(export) => export.run(client).await,
            Self::Verify(verify) => verify.run(output),
        }
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct List {
    /// Only records of this root key: a UUID, an alias or a full name
    #[arg(long)]
    key: Option<String>,
    /// How many records at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
}

impl List {
    async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let key = match &self.key {
            Some(key) => full_name(client, key).await?,
            None => String::new(),
        };
        let mut request = pb::ListAuditEventsRequest {
            parent: client.parent(),
            page_size: i32::try_from(self.limit.clamp(1, MAX_PAGE)).unwrap_or(0),
            page_token: String::new(),
            key,
        };
        let mut views = Vec::new();
        while views.len() < limit {
            let pb::ListAuditEventsResponse { audit_events, next_page_token } =
                client.audit().list_audit_events(request.clone()).await?.into_inner();
            views.extend(audit_events.into_iter().map(EventView::from));
            request.page_token = next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        views.truncate(limit);
        output.show(views.as_slice(), EventView::list)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  rootkeyctl audit watch
  rootkeyctl audit watch --resume 0 --key block --count 1")]
pub(super) struct Watch {
    /// Only records of this root key: a UUID, an alias or a full name
    #[arg(long)]
    key: Option<String>,
    /// Go on after the record with this resume token; 0 for all there are
    #[arg(long, value_name = "TOKEN", default_value_t)]
    resume: String,
    /// Stop after so many records
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

impl Watch {
    async fn run(self, client: &Client) -> Result<(), Failure> {
        let Self { key, resume, count } = self;
        let key = match &key {
            Some(key) => full_name(client, key).await?,
            None => String::new(),
        };
        let parent = client.parent();
        let request = pb::WatchAuditEventsRequest { parent, key, resume_token: resume };
        let mut records = client.audit_stream().watch_audit_events(request).await?.into_inner();
        let mut left = count;
        while left != Some(0) {
            let Some(told) = records.message().await? else { break };
            let pb::WatchAuditEventsResponse { audit_event, resume_token } = told;
            let event = audit_event.ok_or(Failure::Answer("has no record"))?;
            let view = WatchedView { event: event.into(), resume_token };
            let line = serde_json::to_string(&view).map_err(Failure::Json)?;
            writeln!(std::io::stdout(), "{line}").map_err(Failure::Stdout)?;
            left = left.map(|left| left - 1);
        }
        Ok(())
    }
}

#[derive(Debug, Serialize)]
struct WatchedView {
    #[serde(flatten)]
    event: EventView,
    resume_token: String,
}

/// The audit log knows keys by UUID alone, so an alias is looked up first. A
/// UUID is taken as it is: records outlive their key.
async fn full_name(client: &Client, key: &str) -> Result<String, Failure> {
    let name = client.key_name(key);
    let last = name.rsplit('/').next().unwrap_or(key);
    if uuid::Uuid::try_parse(last).is_ok() {
        return Ok(name);
    }
    Ok(client.keys().get_key(pb::GetKeyRequest { name }).await?.into_inner().name)
}

/// A record, as it is shown.
#[derive(Debug, Serialize)]
struct EventView {
    sequence: u64,
    time: Option<String>,
    action: String,
    principal: String,
    source_address: String,
    subject: String,
    key_version: String,
    resource: String,
    /// `None` for an outcome that this client does not know.
    outcome: Option<&'static str>,
    reason: String,
    request_id: String,
    previous_hash: String,
    hash: String,
    details: BTreeMap<String, String>,
    /// `None` for a severity that this client does not know.
    severity: Option<&'static str>,
    reason_code: i32,
}

impl From<pb::AuditEvent> for EventView {
    fn from(event: pb::AuditEvent) -> Self {
        let pb::AuditEvent {
            sequence,
            time,
            action,
            principal,
            source_address,
            subject,
            key_version,
            resource,
            outcome,
            reason,
            request_id,
            previous_hash,
            hash,
            details,
            severity,
            reason_code,
        } = event;
        Self {
            sequence,
            time: time.as_ref().and_then(rfc3339),
            action,
            principal,
            source_address,
            subject,
            key_version,
            resource,
            outcome: outcome_word(outcome),
            reason,
            request_id,
            previous_hash: base64_text(&previous_hash).to_string(),
            hash: base64_text(&hash).to_string(),
            details: details.into_iter().collect(),
            severity: severity_word(severity),
            reason_code,
        }
    }
}

impl EventView {
    fn list(views: &[Self]) -> Table {
        let row = |view: &Self| {
            let outcome = match view.reason.as_str() {
                "" => view.outcome.unwrap_or("unknown").to_owned(),
                reason => format!("{} ({reason})", view.outcome.unwrap_or("unknown")),
            };
            vec![
                view.sequence.to_string(),
                human_time(view.time.as_ref()),
                or_nothing(&view.principal),
                view.action.clone(),
                or_nothing(&view.subject),
                outcome,
            ]
        };
        rows(&["NO.", "TIME", "PRINCIPAL", "ACTION", "SUBJECT", "OUTCOME"], views.iter().map(row))
    }
}

fn outcome_word(number: i32) -> Option<&'static str> {
    use pb::audit_event::Outcome;
    match Outcome::try_from(number).ok()? {
        Outcome::Unspecified => None,
        Outcome::Success => Some("success"),
        Outcome::Refused => Some("refused"),
    }
}

fn severity_word(number: i32) -> Option<&'static str> {
    use pb::audit_event::Severity;
    match Severity::try_from(number).ok()? {
        Severity::Unspecified => None,
        Severity::Normal => Some("normal"),
        Severity::Warning => Some("warning"),
        Severity::Critical => Some("critical"),
    }
}

/// Of ListAuditEvents.
const MAX_PAGE: u32 = 5000;

pub(super) const EXAMPLES: &str = "\
Examples:
  rootkeyctl audit list
  rootkeyctl audit list --key block --limit 20
  rootkeyctl --output json audit list --limit 10000
  rootkeyctl audit watch
  rootkeyctl audit export --out audit.rkexport";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_call_shows_its_reason() {
        let event = pb::AuditEvent {
            sequence: 7,
            outcome: pb::audit_event::Outcome::Refused.into(),
            reason: "KEY_SUSPENDED".to_owned(),
            hash: vec![0; 3],
            ..pb::AuditEvent::default()
        };
        let view = EventView::from(event);
        let json = serde_json::to_value(&view).unwrap();
        assert_eq!((&json["outcome"], &json["hash"]), (&"refused".into(), &"AAAA".into()));
        let table = EventView::list(&[view]).to_string();
        assert!(table.contains("refused (KEY_SUSPENDED)"), "{table}");
    }
}

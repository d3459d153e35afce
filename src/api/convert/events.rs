//! Messages of EventService.

use super::super::pb;
use super::super::pb::key_event::Type;
use super::super::pb::rewrap_campaign::State;
use super::pb_timestamp;
use crate::domain::campaign::{Campaign, CampaignState};
use crate::domain::key_event::{ACKNOWLEDGE_WITHIN, KeyEvent, KeyEventKind, NewKeyEvent};
use crate::domain::{KeyName, Malformed, VersionId};
use crate::service::{CampaignReport, EventAnswer};

/// What a service says of an event.
pub(in crate::api) fn event_answer(
    key: KeyName,
    request: pb::AcknowledgeKeyEventRequest,
) -> EventAnswer {
    let pb::AcknowledgeKeyEventRequest { key: _, event_id, failure } = request;
    EventAnswer { key, event: event_id, failure }
}

/// `instances/{instance}/keys/{key}/rewrapCampaign` in the field `name`.
///
/// # Errors
/// [`Malformed`], of the field `name`.
pub(in crate::api) fn campaign_key(name: &str) -> Result<KeyName, Malformed> {
    let problem = Malformed::new("name", "must be instances/{instance}/keys/{key}/rewrapCampaign");
    let key = name.strip_suffix("/rewrapCampaign").ok_or(problem)?;
    key.parse().map_err(|_form: Malformed| problem)
}

/// An event as its service is told of it.
pub(in crate::api) fn key_event(event: KeyEvent) -> pb::KeyEvent {
    let KeyEvent { id, event, acknowledged: _ } = event;
    let NewKeyEvent { instance, key, kind, at, state, version, previous, rewrap } = event;
    let key = format!("instances/{instance}/keys/{key}");
    let version_name = |version: VersionId| format!("{key}/versions/{version}");
    let kind = match kind {
        KeyEventKind::Disable => Type::Disable,
        KeyEventKind::Enable => Type::Enable,
        KeyEventKind::Delete => Type::Delete,
        KeyEventKind::Restore => Type::Restore,
        KeyEventKind::Rotate => Type::Rotate,
        KeyEventKind::Expire => Type::Expire,
        KeyEventKind::Sync => Type::Sync,
        KeyEventKind::Rewrap => Type::Rewrap,
    };
    let registration = rewrap.as_ref().map(|it| format!("{key}/registrations/{}", it.registration));
    pb::KeyEvent {
        id,
        r#type: kind.into(),
        time: Some(pb_timestamp(at.time)),
        key_state: state.name().into(),
        primary_version: version_name(version),
        previous_version: previous.map(version_name).unwrap_or_default(),
        registration: registration.unwrap_or_default(),
        resource: rewrap.map(|it| it.resource.to_string()).unwrap_or_default(),
        acknowledge_time: Some(pb_timestamp(at.time + ACKNOWLEDGE_WITHIN)),
        resume_token: id.to_string(),
        key,
    }
}

/// A campaign, and how far it has come.
pub(in crate::api) fn campaign(report: CampaignReport) -> pb::RewrapCampaign {
    let CampaignReport { key, campaign, total, rewrapped } = report;
    let Campaign { key: _, target, rate, state, place: _, requested, created, created_by } =
        campaign;
    let state = match state {
        CampaignState::Running => State::Running,
        CampaignState::Paused => State::Paused,
        CampaignState::Done => State::Done,
    };
    pb::RewrapCampaign {
        name: format!("{}/rewrapCampaign", key.name()),
        state: state.into(),
        target_version: key.version_name(target),
        rate_per_minute: rate,
        total,
        rewrapped,
        requested,
        create_time: Some(pb_timestamp(created)),
        created_by: created_by.into(),
    }
}

//! Messages of AuditService and AdminService.

use super::super::pb;
use super::{count, page_size_of, pb_timestamp};
use crate::audit::Record;
use crate::domain::{Event, InstanceId, KeyName, Malformed, ObjectId, Outcome, Severity};
use crate::error::http_code;
use crate::service::{AuditQuery, Disagreement, HsmReport, RecordsWanted, ServerReport, TornFiles};

/// Which audit records to list.
///
/// # Errors
/// FIELD_INVALID, also for a key of another instance.
pub(in crate::api) fn audit_query(
    instance: InstanceId,
    request: pb::ListAuditEventsRequest,
) -> Result<AuditQuery, Malformed> {
    let pb::ListAuditEventsRequest { parent: _, page_size, page_token, key } = request;
    let key = key_of(&instance, &key)?;
    let page_size = page_size_of(page_size)?;
    Ok(AuditQuery { instance, page_size, page_token, key })
}

/// Which records to follow.
///
/// # Errors
/// [`Malformed`], naming the field.
pub(in crate::api) fn records_wanted(
    instance: InstanceId,
    request: pb::WatchAuditEventsRequest,
) -> Result<RecordsWanted, Malformed> {
    let pb::WatchAuditEventsRequest { parent: _, key, resume_token } = request;
    let key = key_of(&instance, &key)?;
    Ok(RecordsWanted { instance, key, resume_token })
}

/// A key to filter by; empty for none.
fn key_of(instance: &InstanceId, name: &str) -> Result<Option<KeyName>, Malformed> {
    if name.is_empty() {
        return Ok(None);
    }
    let key = name.parse::<KeyName>().map_err(|malformed| malformed.of("key"))?;
    if key.instance != *instance {
        return Err(Malformed::new("key", "must be of the parent's instance"));
    }
    Ok(Some(key))
}

/// One record of the audit log.
pub(in crate::api) fn audit_event(record: Record) -> pb::AuditEvent {
    use pb::audit_event::Outcome as PbOutcome;
    let Record { sequence, event, previous_hash, hash } = record;
    let Event {
        id: _,
        time,
        action,
        principal,
        source_address,
        instance: _,
        subject,
        key_version,
        resource,
        outcome,
        request_id,
        details,
    } = event;
    let code = http_code(&outcome, &details);
    let severity = match Severity::of(&action, code) {
        Severity::Normal => pb::audit_event::Severity::Normal,
        Severity::Warning => pb::audit_event::Severity::Warning,
        Severity::Critical => pb::audit_event::Severity::Critical,
    };
    let (outcome, reason) = match outcome {
        Outcome::Success => (PbOutcome::Success, String::new()),
        Outcome::Refused(reason) => (PbOutcome::Refused, reason.into_owned()),
    };
    pb::AuditEvent {
        sequence,
        time: Some(pb_timestamp(time)),
        action: action.into_owned(),
        principal,
        source_address,
        subject,
        key_version,
        resource,
        outcome: outcome.into(),
        reason,
        request_id,
        previous_hash: previous_hash.to_vec(),
        hash: hash.to_vec(),
        details: details.into_iter().collect(),
        severity: severity.into(),
        reason_code: code.into(),
    }
}

/// Which daemon answers.
pub(in crate::api) fn server_info(report: ServerReport) -> pb::ServerInfo {
    let ServerReport { boot_id, started, profile, keys, audit_events } = report;
    pb::ServerInfo {
        version: env!("CARGO_PKG_VERSION").into(),
        boot_id,
        start_time: Some(pb_timestamp(started)),
        profile: profile.name().into(),
        key_count: count(keys),
        audit_event_count: audit_events,
    }
}

/// What the HSM is and can do.
pub(in crate::api) fn hsm_status(report: HsmReport) -> pb::HsmStatus {
    let HsmReport {
        problem,
        module,
        token_label,
        workers,
        token,
        objects,
        disagreement,
        torn,
        wrapping_problem,
        round_trip,
    } = report;
    let torn = match torn {
        TornFiles::Found(files) => Some(files),
        TornFiles::NotInFiles | TornFiles::Unreadable => None,
    };
    let findings = findings(&disagreement, torn.as_deref().unwrap_or_default());
    let Disagreement { orphans, missing, wrong, doubled, resurrected, unfinished, wrapped } =
        disagreement;
    let mechanisms = token.iter().flat_map(|token| &token.mechanisms);
    let mechanisms = mechanisms.map(|(name, used_for)| pb::hsm_status::Mechanism {
        name: name.clone(),
        used_for: used_for.clone().unwrap_or_default(),
    });
    pb::HsmStatus {
        ready: problem.is_none(),
        problem: problem.unwrap_or_default(),
        module,
        mechanisms: mechanisms.collect(),
        slot: token.as_ref().map_or(0, |token| token.slot),
        library: token.as_ref().map(|token| token.library.clone()).unwrap_or_default(),
        token_serial: token.map(|token| token.serial).unwrap_or_default(),
        token_label,
        workers: u32::try_from(workers).unwrap_or(u32::MAX),
        objects: count(objects),
        orphans: count(orphans.len()),
        missing: count(missing.len()),
        round_trip: round_trip.is_some(),
        round_trip_micros: round_trip
            .map_or(0, |took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        findings,
        wrong: count(wrong.len()),
        doubled: count(doubled.len()),
        resurrected: count(resurrected.len()),
        unfinished: count(unfinished.len()),
        torn: torn.map(|torn| count(torn.len())),
        wrapped: count(wrapped),
        wrapping_problem: wrapping_problem.unwrap_or_default(),
    }
}

fn findings(disagreement: &Disagreement, torn: &[String]) -> Vec<pb::hsm_status::Finding> {
    use pb::hsm_status::finding::Kind;
    let Disagreement { orphans, missing, wrong, doubled, resurrected, unfinished, wrapped: _ } =
        disagreement;
    let nameless = |ids: &[ObjectId]| ids.iter().map(|id| (*id, String::new())).collect::<Vec<_>>();
    let (orphans, doubled) = (nameless(orphans), nameless(doubled));
    let objects = [
        (Kind::Orphan, &orphans),
        (Kind::Missing, missing),
        (Kind::Wrong, wrong),
        (Kind::Doubled, &doubled),
        (Kind::Resurrected, resurrected),
        (Kind::Unfinished, unfinished),
    ];
    let objects = objects.into_iter().flat_map(|(kind, found)| {
        let found = found.iter().take(MOST_FINDINGS);
        found.map(move |(object, subject)| (kind, object.to_string(), subject))
    });
    let files = torn.iter().take(MOST_FINDINGS).map(|file| (Kind::Torn, String::new(), file));
    let finding = |(kind, object, subject): (Kind, String, &String)| pb::hsm_status::Finding {
        kind: kind.into(),
        object,
        subject: subject.clone(),
    };
    objects.chain(files).map(finding).collect()
}

/// Of one kind, in an answer.
const MOST_FINDINGS: usize = 100;

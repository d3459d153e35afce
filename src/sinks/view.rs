//! What a record looks like in a sink: JSON, and in it the record as it is, or a
//! CloudEvent 1.0 around that. OCSF is in `ocsf.rs`. Control characters are escaped, all
//! of Unicode's, so that nothing a caller sent can begin a line.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{Line, View, ocsf};
use crate::audit::Record;
use crate::domain::{Event, Outcome, Severity, Timestamp};
use crate::error;

/// The record in that view.
pub(super) fn line(record: &Record, view: View, origin: &str) -> Line {
    let text = text(record, view, origin);
    let text = if text.len() > LONGEST {
        let Record { sequence, ref event, previous_hash, hash } = *record;
        super::view::text(
            &Record { sequence, event: shortened(event), previous_hash, hash },
            view,
            origin,
        )
    } else {
        text
    };
    Line { sequence: record.sequence, text, event: record.event.clone() }
}

/// HTTP code, and how grave that is.
pub(super) fn severity(event: &Event) -> (u16, Severity) {
    let code = error::http_code(&event.outcome, &event.details);
    (code, Severity::of(&event.action, code))
}

/// RFC 3339, UTC, with microseconds.
pub(super) fn time(time: Timestamp) -> String {
    let time = jiff::Timestamp::from_microsecond(time.as_micros()).unwrap_or_default();
    format!("{time:.6}")
}

fn text(record: &Record, view: View, origin: &str) -> String {
    let value = match view {
        View::Json => json(record),
        View::CloudEvents => cloud_event(record, origin),
        View::Ocsf => ocsf::api_activity(record),
    };
    escaped(&value.to_string())
}

fn json(Record { sequence, event, previous_hash, hash }: &Record) -> Value {
    let (reason_code, severity) = severity(event);
    let severity = match severity {
        Severity::Normal => "normal",
        Severity::Warning => "warning",
        Severity::Critical => "critical",
    };
    let (outcome, reason) = match &event.outcome {
        Outcome::Success => ("success", ""),
        Outcome::Refused(reason) => ("refused", &**reason),
    };
    json!({
        "sequence": sequence,
        "id": Uuid::from_bytes(event.id).to_string(),
        "time": time(event.time),
        "action": event.action,
        "severity": severity,
        "outcome": outcome,
        "reason": reason,
        "reason_code": reason_code,
        "principal": event.principal,
        "source_address": event.source_address,
        "instance": event.instance,
        "subject": event.subject,
        "key_version": event.key_version,
        "resource": event.resource,
        "request_id": event.request_id,
        "details": details(event),
        "previous_hash": hex::encode(previous_hash),
        "hash": hex::encode(hash),
    })
}

fn cloud_event(record: &Record, origin: &str) -> Value {
    let event = &record.event;
    let mut value = json!({
        "specversion": "1.0",
        "id": Uuid::from_bytes(event.id).to_string(),
        "source": origin,
        "type": format!("rootkeyd.audit.{}", event.action),
        "time": time(event.time),
        "datacontenttype": "application/json",
        "sequence": format!("{:020}", record.sequence),
        "data": json(record),
    });
    // It must not be empty.
    if !event.subject.is_empty() {
        value["subject"] = event.subject.clone().into();
    }
    value
}

pub(super) fn details(event: &Event) -> Map<String, Value> {
    let pairs = event.details.iter();
    pairs.map(|(name, value)| (name.clone(), value.clone().into())).collect()
}

/// JSON in which no control character or separator of lines stands for itself. They can
/// only be inside of strings.
fn escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// A record that would not fit into a datagram; the log has all of it.
fn shortened(event: &Event) -> Event {
    let short = |text: &str| text.chars().take(KEPT_OF_A_LONG_TEXT).collect::<String>();
    Event {
        action: short(&event.action).into(),
        principal: short(&event.principal),
        source_address: short(&event.source_address),
        instance: short(&event.instance),
        subject: short(&event.subject),
        key_version: short(&event.key_version),
        resource: short(&event.resource),
        request_id: short(&event.request_id),
        details: vec![("shortened".into(), "true".into())],
        ..event.clone()
    }
}

/// In bytes: what a Unix datagram holds with the default buffers, and headers.
const LONGEST: usize = 100 * 1024;
/// In characters.
const KEPT_OF_A_LONG_TEXT: usize = 300;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(in crate::sinks) fn event() -> Event {
        Event {
            id: *b"0123456789abcdef",
            time: Timestamp::from_seconds(1_750_000_000),
            action: "kms.secrets.unwrap".into(),
            principal: "spiffe://td/vm".into(),
            source_address: "10.0.0.7:4711".into(),
            instance: "default".into(),
            subject: "instances/default/keys/a".into(),
            key_version: String::new(),
            resource: String::new(),
            outcome: Outcome::Refused("KEY_SUSPENDED".into()),
            request_id: "r".into(),
            details: vec![("state".into(), "SUSPENDED".into())],
        }
    }

    fn record(event: Event) -> Record {
        Record { sequence: 7, event, previous_hash: [0; 32], hash: [1; 32] }
    }

    const VIEWS: [View; 3] = [View::Json, View::CloudEvents, View::Ocsf];

    #[test]
    fn no_control_character_stands_for_itself_in_any_view_and_all_come_back() {
        let evil = "a\n\r\0\u{1b}\u{7f}\u{85}\u{9b}\u{2028}\u{2029}\"\\b";
        let event = Event {
            subject: evil.into(),
            principal: evil.into(),
            request_id: evil.into(),
            details: vec![(evil.into(), evil.into())],
            ..event()
        };
        for view in VIEWS {
            let text = line(&record(event.clone()), view, "o").text;
            assert!(!text.chars().any(|c| c.is_control() || "\u{2028}\u{2029}".contains(c)));
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(value.to_string().contains("u001b"), "{text}");
        }
        let text = line(&record(event), View::Json, "o").text;
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["subject"], &value["details"][evil]), (&evil.into(), &evil.into()));
    }

    #[test]
    fn a_record_that_is_too_long_for_a_datagram_is_shortened_and_says_so() {
        let long = "\u{7f}".repeat(60_000);
        let event = Event { details: vec![("a".into(), long.clone())], subject: long, ..event() };
        for view in VIEWS {
            let line = line(&record(event.clone()), view, "o");
            assert!(line.text.len() < LONGEST && line.text.contains("shortened"));
            serde_json::from_str::<Value>(&line.text).unwrap();
        }
    }

    #[test]
    fn a_record_looks_like_this() {
        let text = line(&record(event()), View::Json, "o").text;
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["time"], "2025-06-15T15:06:40.000000Z");
        assert_eq!((&value["severity"], &value["reason_code"]), (&"warning".into(), &409.into()));
        assert_eq!(value["id"], "30313233-3435-3637-3839-616263646566");
        assert_eq!(value["details"]["state"], "SUSPENDED");
    }
}

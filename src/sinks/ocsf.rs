//! A record as an event of the Open Cybersecurity Schema Framework: API Activity
//! (class 6003) of version 1.3.0. What it has no field for is in `unmapped`.

use std::net::SocketAddr;

use serde_json::{Value, json};
use uuid::Uuid;

use super::view::{details, severity};
use crate::audit::Record;
use crate::domain::event::DAEMON;
use crate::domain::{Event, Outcome, Severity};

/// The record as API Activity.
pub(super) fn api_activity(Record { sequence, event, hash, .. }: &Record) -> Value {
    let (activity, activity_name) = activity(&event.action);
    let (code, severity) = severity(event);
    let (severity_id, severity) = match severity {
        Severity::Normal => (1, "Informational"),
        Severity::Warning => (3, "Medium"),
        Severity::Critical => (5, "Critical"),
    };
    let (status_id, status, reason) = match &event.outcome {
        Outcome::Success => (1, "Success", ""),
        Outcome::Refused(reason) => (2, "Failure", &**reason),
    };
    json!({
        "category_uid": CATEGORY,
        "category_name": "Application Activity",
        "class_uid": CLASS,
        "class_name": "API Activity",
        "activity_id": activity,
        "activity_name": activity_name,
        "type_uid": CLASS * 100 + activity,
        "time": event.time.as_micros().div_euclid(1000),
        "severity_id": severity_id,
        "severity": severity,
        "status_id": status_id,
        "status": status,
        "status_code": code.to_string(),
        "status_detail": reason,
        "metadata": {
            "version": "1.3.0",
            "uid": Uuid::from_bytes(event.id).to_string(),
            "sequence": sequence,
            "product": {
                "name": "rootkeyd",
                "vendor_name": "rootkeyd",
                "version": env!("CARGO_PKG_VERSION"),
            },
        },
        "actor": actor(event),
        "api": {
            "operation": event.action,
            "service": { "name": "rootkeyd" },
            "request": { "uid": event.request_id },
            "response": { "code": code, "error": reason },
        },
        "src_endpoint": source(event),
        "resources": [{ "name": event.subject, "type": "key", "namespace": event.instance }],
        "unmapped": {
            "key_version": event.key_version,
            "resource": event.resource,
            "details": details(event),
            "hash": hex::encode(hash),
        },
    })
}

fn activity(action: &str) -> (u32, &str) {
    let verb = action.rsplit('.').next().unwrap_or(action);
    let row = ACTIVITIES.iter().find(|(_, _, verbs)| verbs.contains(&verb));
    row.map_or((OTHER, action), |(id, name, _)| (*id, *name))
}

fn actor(event: &Event) -> Value {
    if event.principal == DAEMON {
        return json!({ "app_name": "rootkeyd" });
    }
    let uid = if event.principal.is_empty() { "unknown" } else { &event.principal };
    json!({ "user": { "uid": uid, "name": uid } })
}

fn source(event: &Event) -> Value {
    match event.source_address.parse::<SocketAddr>() {
        Ok(address) => json!({ "ip": address.ip().to_string(), "port": address.port() }),
        // A Unix socket, or the daemon itself.
        Err(_) if event.source_address.is_empty() => json!({ "svc_name": "rootkeyd" }),
        Err(_) => json!({ "name": event.source_address }),
    }
}

const CATEGORY: u32 = 6;
const CLASS: u32 = 6003;
/// Is named by the action itself.
const OTHER: u32 = 99;
/// Last word of an action → activity.
const ACTIVITIES: [(u32, &str, &[&str]); 4] = [
    (1, "Create", &["create"]),
    (2, "Read", &["read", "list", "head", "watch", "export"]),
    (
        3,
        "Update",
        &[
            "write",
            "patch",
            "update",
            "merge",
            "rotate",
            "disable",
            "enable",
            "restore",
            "setkeyfordeletion",
            "unsetkeyfordeletion",
        ],
    ),
    (4, "Delete", &["delete", "purge"]),
];

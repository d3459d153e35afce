//! `Error` → `tonic::Status`, with the details that a client branches on.
//!
//! Every status carries ErrorInfo; what else it carries follows from its code.
//! The cause goes to the log with the request id, never to the client.

use std::collections::HashMap;
use std::error::Error as _;

use tonic::{Code as GrpcCode, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::pb;
use crate::error::{Code, Error, Reason, Wire};

/// The status of a call that ends with `error`.
pub fn status(error: &Error, request_id: &str) -> Status {
    log(error, request_id);
    let Wire { name, code, .. } = error.reason.wire();
    let mut details = ErrorDetails::new();
    details.set_error_info(name, pb::ERROR_DOMAIN, metadata(error));
    details.set_request_info(request_id, "");
    let subject = error.subject.clone().unwrap_or_default();
    match code {
        Code::InvalidArgument => {
            if let Some(field) = error.field {
                details.add_bad_request_violation(field, &error.message);
            }
        }
        Code::FailedPrecondition => {
            details.add_precondition_failure_violation(name, subject, &error.message);
        }
        Code::NotFound | Code::AlreadyExists => {
            details.set_resource_info("rootkeyd.v1.Key", subject, "", &error.message);
        }
        Code::ResourceExhausted => {
            details.add_quota_failure_violation(subject, &error.message);
        }
        Code::DeadlineExceeded
        | Code::PermissionDenied
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => {}
    }
    if let Some(delay) = error.retry_after {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(GrpcCode::from(code as i32), &error.message, details)
}

/// The same for one item of a batch, which has no status of its own.
pub fn refusal(error: &Error, request_id: &str) -> pb::UnwrapDekRefusal {
    log(error, request_id);
    let Wire { name, code, .. } = error.reason.wire();
    pb::UnwrapDekRefusal {
        code: code as i32,
        reason: name.into(),
        message: error.message.clone(),
        metadata: metadata(error),
    }
}

fn metadata(error: &Error) -> HashMap<String, String> {
    let Wire { status_reason, key_protect_code, .. } = error.reason.wire();
    let code = Some(key_protect_code).filter(|code| !code.is_empty());
    let fields = [
        ("status_reason", status_reason.map(str::to_owned)),
        ("key_protect_code", code.map(str::to_owned)),
        ("subject", error.subject.clone()),
        ("field", error.field.map(str::to_owned)),
    ];
    let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    given.collect()
}

/// A cause is our trouble, not the caller's: it is logged where the error ends.
fn log(error: &Error, request_id: &str) {
    let Some(cause) = error.source() else { return };
    let reason = error.reason.wire().name;
    if matches!(error.reason, Reason::Internal | Reason::HsmKeyMissing) {
        tracing::error!(request_id, reason, cause, "a call failed");
    } else {
        tracing::debug!(request_id, reason, cause, "a call was refused");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::{Denied, Malformed};

    #[test]
    fn every_reason_becomes_a_status_with_its_code_and_error_info() {
        for reason in Reason::ALL {
            let status = status(&Error::new(*reason, "message").about("subject"), "id");
            assert_eq!(status.code() as i32, reason.wire().code as i32);
            assert_eq!(status.message(), "message");
            let info = status.get_details_error_info().unwrap();
            assert_eq!(
                (info.reason.as_str(), info.domain.as_str()),
                (reason.wire().name, "rootkeyd.v1")
            );
            assert_eq!(
                info.metadata.get("status_reason").map(String::as_str),
                reason.wire().status_reason
            );
            assert_eq!(info.metadata["subject"], "subject");
            assert_eq!(status.get_details_request_info().unwrap().request_id, "id");
        }
    }

    #[test]
    fn a_wrong_field_is_named_and_a_wait_is_told() {
        let wrong = status(&Malformed::new("dek", "must be shorter").into(), "id");
        let violations = wrong.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "dek");
        let wait = Duration::from_secs(17);
        let early = status(&Denied::TooEarly { what: "it rests", wait }.into(), "id");
        assert_eq!(early.get_details_retry_info().unwrap().retry_delay, Some(wait));
        assert!(early.get_details_precondition_failure().is_some());
    }

    #[test]
    fn the_cause_does_not_reach_the_client() {
        let error = Error::new(Reason::Internal, "no").caused_by(std::io::Error::other("secret"));
        let text = format!("{:?}", status(&error, "id"));
        assert!(!text.contains("secret"), "{text}");
    }
}

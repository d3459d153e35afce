//! `Refusal`: what a gRPC status, or a refused item of a batch, says in our words.
//!
//! It decides nothing about what to do then.

use std::{collections::BTreeMap, error::Error, fmt, time::Duration};

use thiserror::Error as ThisError;
use tonic::{Code, Status, TimeoutExpired};
use tonic_types::StatusExt;

use crate::api::pb;

/// A call that the daemon, or the way to it, refused.
#[derive(Clone, Debug, Eq, PartialEq, ThisError)]
#[error("{message}")]
pub struct Refusal {
    /// The reason in ErrorInfo, such as `KEY_SUSPENDED`. Without ErrorInfo, the
    /// gRPC code, such as `UNAVAILABLE`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Such as `encryption_key_disabled`.
    pub status_reason: Option<String>,
    /// Everything in ErrorInfo's metadata.
    pub metadata: BTreeMap<String, String>,
    /// How long to wait before the same call again.
    pub retry_after: Option<Duration>,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let mut message = match Error::source(&status) {
            Some(source) if status.details().is_empty() => {
                format!("{}: {}", status.message(), Chain(source))
            }
            Some(_) | None => status.message().to_owned(),
        };
        for violation in
            status.get_details_bad_request().into_iter().flat_map(|it| it.field_violations)
        {
            if !message.contains(&violation.description) {
                message += &format!("; {}: {}", violation.field, violation.description);
            }
        }
        let (reason, metadata) = match status.get_details_error_info() {
            Some(info) => (info.reason, info.metadata.into_iter().collect()),
            None => (code_name(own_code(&status)).to_owned(), BTreeMap::new()),
        };
        let status_reason = metadata.get(STATUS_REASON).cloned();
        Self { reason, message, status_reason, metadata, retry_after }
    }
}

impl From<pb::UnwrapDekRefusal> for Refusal {
    fn from(refusal: pb::UnwrapDekRefusal) -> Self {
        let pb::UnwrapDekRefusal { code, reason, message, metadata } = refusal;
        let reason =
            if reason.is_empty() { code_name(Code::from_i32(code)).to_owned() } else { reason };
        let metadata: BTreeMap<_, _> = metadata.into_iter().collect();
        let status_reason = metadata.get(STATUS_REASON).cloned();
        Self { reason, message, status_reason, metadata, retry_after: None }
    }
}

/// An error and what caused it, in one line: `a: b: c`. What an error's own
/// message already ends with is not said twice.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(error) = next {
            let text = error.to_string();
            if !said.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            said = text;
            next = error.source();
        }
        Ok(())
    }
}

/// tonic says CANCELLED when the time that we set is over.
fn own_code(status: &Status) -> Code {
    let mut next = Error::source(status);
    while let Some(error) = next {
        if error.is::<TimeoutExpired>() {
            return Code::DeadlineExceeded;
        }
        next = error.source();
    }
    status.code()
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

const STATUS_REASON: &str = "status_reason";

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_refusal_takes_reason_metadata_and_delay_from_the_details() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info(
                "KEY_SUSPENDED",
                pb::ERROR_DOMAIN,
                HashMap::from([("status_reason".to_owned(), "encryption_key_disabled".to_owned())]),
            )
            .set_retry_info(Some(Duration::from_secs(30)));
        let status =
            Status::with_error_details(Code::FailedPrecondition, "the key is suspended", details);
        let refusal = Refusal::from(status);
        assert_eq!(refusal.reason, "KEY_SUSPENDED");
        assert_eq!(refusal.message, "the key is suspended");
        assert_eq!(refusal.status_reason.as_deref(), Some("encryption_key_disabled"));
        assert_eq!(refusal.metadata.len(), 1);
        assert_eq!(refusal.retry_after, Some(Duration::from_secs(30)));
    }

    #[test]
    fn a_refusal_names_the_fields_that_the_message_does_not() {
        let mut details = ErrorDetails::new();
        details
            .set_error_info("FIELD_INVALID", pb::ERROR_DOMAIN, HashMap::new())
            .add_bad_request_violation("dek", "is empty");
        let status = Status::with_error_details(Code::InvalidArgument, "invalid field", details);
        assert_eq!(Refusal::from(status).message, "invalid field; dek: is empty");
    }

    #[test]
    fn a_status_without_error_info_is_named_by_its_code() {
        let refusal = Refusal::from(Status::unavailable("connection refused"));
        assert_eq!(refusal.reason, "UNAVAILABLE");
        assert_eq!(refusal.message, "connection refused");
        assert_eq!(refusal.status_reason, None);
    }

    #[test]
    fn our_own_time_limit_is_a_deadline() {
        let status = Status::from_error(Box::new(TimeoutExpired(())));
        assert_eq!(Refusal::from(status).reason, "DEADLINE_EXCEEDED");
    }

    #[test]
    fn a_refused_item_of_a_batch_keeps_its_status_reason() {
        let refusal = Refusal::from(pb::UnwrapDekRefusal {
            code: 9,
            reason: "KEY_DESTROYED".to_owned(),
            message: "the key is destroyed".to_owned(),
            metadata: HashMap::from([(
                "status_reason".to_owned(),
                "encryption_key_deleted".to_owned(),
            )]),
        });
        assert_eq!(refusal.status_reason.as_deref(), Some("encryption_key_deleted"));
    }
}

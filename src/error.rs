//! `Error`: why a call was refused or failed, and the one table that says what
//! each reason is on the wire. `docs/errors.md` is printed from the table.
//!
//! `source` is for the log; a client sees the reason, the message and the metadata.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::audit::AuditError;
use crate::domain::resource_action::Hindrance;
use crate::domain::{Denied, Malformed, Outcome, Refusal, Refused};
use crate::envelope::Unverified;
use crate::hsm::HsmError;
use crate::store::StoreError;

/// Why a call was refused or failed.
#[derive(Debug)]
pub struct Error {
    /// What a client branches on.
    pub reason: Reason,
    /// For people; what it names is in the other fields too.
    pub message: String,
    /// Name of the field that is wrong, with [`Reason::FieldInvalid`].
    pub field: Option<&'static str>,
    /// Name of the resource concerned.
    pub subject: Option<String>,
    /// When to try again, where that helps.
    pub retry_after: Option<Duration>,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $code:ident, $retry:ident, $status_reason:expr, $key_protect:literal, $remedy:literal;)*) => {
        /// Why; the `reason` in ErrorInfo.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What the reason is on the wire.
            pub const fn wire(self) -> Wire {
                match self {
                    $(Self::$variant => Wire {
                        name: $name,
                        code: Code::$code,
                        retry: Retry::$retry,
                        status_reason: $status_reason,
                        key_protect_code: $key_protect,
                        remedy: $remedy,
                    },)*
                }
            }
        }
    };
}

reasons! {
    /// The caller is nobody we know.
    Unauthenticated = "UNAUTHENTICATED", Unauthenticated, No, None, "UNAUTHORIZED_ERR",
        "Present a client certificate of the daemon's CA with one SPIFFE ID.";
    /// The caller may not, or the thing might not exist.
    PermissionDenied = "PERMISSION_DENIED", PermissionDenied, No, None, "UNAUTHORIZED_ERR",
        "Ask a Manager of the instance for a binding.";
    /// A field has not the form it must have.
    FieldInvalid = "FIELD_INVALID", InvalidArgument, No, None, "INVALID_FIELD_ERR",
        "Correct the field that the message and the BadRequest detail name.";
    /// A wrapped DEK that does not verify: form, tag, AAD or other key alike.
    CiphertextUnverified = "CIPHERTEXT_UNVERIFIED", InvalidArgument, No, None, "UNPROCESSABLE_CIPHERTEXT_ERR",
        "Check that wrapped DEK, key and AAD belong together; which one does not is not told.";
    /// There is no such key.
    KeyNotFound = "KEY_NOT_FOUND", NotFound, No, None, "KEY_NOT_FOUND_ERR",
        "Check the key's name; an alias is of one instance.";
    /// An alias is another key's.
    AliasTaken = "ALIAS_TAKEN", AlreadyExists, No, None, "",
        "Choose another alias, or take it off the other key first.";
    /// The key is disabled.
    KeySuspended = "KEY_SUSPENDED", FailedPrecondition, No, Some("encryption_key_disabled"), "KEY_ACTION_INVALID_STATE_ERR",
        "Enable the key.";
    /// The key is past its expiration date.
    KeyDeactivated = "KEY_DEACTIVATED", FailedPrecondition, No, None, "KEY_ACTION_INVALID_STATE_ERR",
        "Rewrap under another key; an expired key unwraps but does not wrap.";
    /// The key is deleted.
    KeyDestroyed = "KEY_DESTROYED", FailedPrecondition, No, Some("encryption_key_deleted"), "KEY_DELETED_ERR",
        "Restore the key, if it can be restored.";
    /// Only a suspended key can be enabled.
    KeyNotSuspended = "KEY_NOT_SUSPENDED", FailedPrecondition, No, None, "KEY_ACTION_INVALID_STATE_ERR",
        "Nothing is to be done: the key is not disabled.";
    /// Only a deleted key can be restored or purged.
    KeyNotDestroyed = "KEY_NOT_DESTROYED", FailedPrecondition, No, None, "KEY_ACTION_INVALID_STATE_ERR",
        "Nothing is to be done: the key is not deleted.";
    /// The key expired, so it cannot come back.
    KeyExpired = "KEY_EXPIRED", FailedPrecondition, No, None, "KEY_EXPIRED_ERR",
        "Create another key; an expiration date cannot be moved.";
    /// Only imported keys can be restored.
    KeyNotImported = "KEY_NOT_IMPORTED", FailedPrecondition, No, None, "KEY_IMPT_REQ_ERR",
        "None under profile vpc; profile key-protect restores generated keys too.";
    /// The key must rest first.
    TooEarly = "TOO_EARLY", FailedPrecondition, Later, None, "REQ_TOO_EARLY_ERR",
        "Try again after the delay in RetryInfo.";
    /// The time to restore the key is over.
    RestoreWindowClosed = "RESTORE_WINDOW_CLOSED", FailedPrecondition, No, None, "KEY_RESTORE_EXPIRED",
        "None: a key can be restored for 30 days.";
    /// The key was rotated within the hour.
    RotationTooSoon = "ROTATION_TOO_SOON", FailedPrecondition, Later, None, "KEY_ROTATION_NOT_PERMITTED",
        "Try again after the delay in RetryInfo: one rotation an hour.";
    /// The primary version has wrapped as much as it may.
    WrapBudgetSpent = "WRAP_BUDGET_SPENT", FailedPrecondition, No, None, "",
        "Rotate the key; what it wrapped still unwraps.";
    /// The second authorization for deletion is missing, lapsed, or the same principal's.
    AuthorizationsNotMet = "AUTHORIZATIONS_NOT_MET", FailedPrecondition, No, None, "AUTHORIZATIONS_NOT_MET",
        "Let another principal call SetKeyForDeletion first, at most 7 days before.";
    /// The key has no dual authorization policy.
    NotDualAuth = "NOT_DUAL_AUTH", FailedPrecondition, No, None, "NOT_DUAL_AUTH_ERR",
        "Nothing is to be done: one principal can delete the key.";
    /// A registration prevents the deletion.
    DeletionPrevented = "DELETION_PREVENTED", FailedPrecondition, No, None, "PREV_KEY_DEL_ERR",
        "Let the service end the retention of the resource; force does not help.";
    /// Resources are registered against the key.
    KeyRegistered = "KEY_REGISTERED", FailedPrecondition, No, None, "PROTECTED_RESOURCE_ERR",
        "Delete the resources first, or delete the key with force.";
    /// A resource is registered against a key that is not active.
    KeyNotActive = "KEY_NOT_ACTIVE", FailedPrecondition, No, None, "KEY_INVALID_STATE_ERR",
        "Register against an active key.";
    /// A registration cannot go back to an older key version.
    KeyVersionInvalid = "KEY_VERSION_INVALID", InvalidArgument, No, None, "KEY_VERSION_INVALID",
        "Name a version of the key that is not older than the recorded one.";
    /// Only a service writes registrations.
    ServiceOnly = "SERVICE_ONLY", PermissionDenied, No, None, "SERVICE_ONLY_ERR",
        "Call as the service that has the resource.";
    /// The registration is another service's.
    ResourceOwner = "RESOURCE_OWNER", PermissionDenied, No, None, "RESOURCE_OWNER_ERR",
        "Call as the service that registered the resource.";
    /// There is no such registration.
    RegistrationNotFound = "REGISTRATION_NOT_FOUND", NotFound, No, None, "",
        "Check the registration's name, or list those of the key.";
    /// No registered resource, and no virtual server that one is attached to, has that CRN.
    ResourceNotFound = "RESOURCE_NOT_FOUND", NotFound, No, None, "",
        "Check the CRN; a resource must be registered, a virtual server have a volume that is.";
    /// There is no such key ring.
    KeyRingNotFound = "KEY_RING_NOT_FOUND", NotFound, No, None, "",
        "Create the key ring first; a ring is of one instance.";
    /// There is such a key ring already.
    KeyRingExists = "KEY_RING_EXISTS", AlreadyExists, No, None, "",
        "Choose another name.";
    /// The key ring holds keys.
    KeyRingNotEmpty = "KEY_RING_NOT_EMPTY", FailedPrecondition, No, None, "",
        "Move its keys to another ring; if all are deleted, force moves them to `default`.";
    /// There are as many as there can be.
    LimitReached = "LIMIT_REACHED", FailedPrecondition, No, None, "",
        "Delete one first; the message names the limit.";
    /// There is no such instance.
    InstanceNotFound = "INSTANCE_NOT_FOUND", NotFound, No, None, "",
        "Check the instance's name.";
    /// There is such an instance, or was one.
    InstanceExists = "INSTANCE_EXISTS", AlreadyExists, No, None, "",
        "Choose another name; that of a deleted instance is never used again.";
    /// The instance has keys that are not deleted.
    InstanceNotEmpty = "INSTANCE_NOT_EMPTY", FailedPrecondition, No, None, "",
        "Delete its keys first.";
    /// The instance's policy forbids making keys so.
    CreateImportForbidden = "CREATE_IMPORT_FORBIDDEN", FailedPrecondition, No, None, "KEY_CREATE_IMPORT_ACCESS_ERR",
        "Change the instance's policy key_create_import_access.";
    /// The import token is missing, expired or used up.
    ImportTokenExpired = "IMPORT_TOKEN_EXPIRED", FailedPrecondition, No, None, "IMPORT_TOKEN_EXPIRED_ERR",
        "Create another import token and seal the material to it.";
    /// The sealed material cannot be unwrapped.
    MaterialUnsealed = "MATERIAL_UNSEALED", InvalidArgument, No, None, "INVALID_FIELD_ERR",
        "Seal 16, 24 or 32 bytes to the instance's newest import token, by an algorithm that it names.";
    /// The encrypted nonce opens to another one.
    NonceIncorrect = "NONCE_INCORRECT", InvalidArgument, No, None, "INCORRECT_NONCE_ERR",
        "Encrypt the nonce of the instance's newest import token.";
    /// The encrypted nonce does not verify under the key that was imported.
    NonceUnverified = "NONCE_UNVERIFIED", InvalidArgument, No, None, "INCORRECT_NONCE_IV_ERR",
        "Encrypt the nonce with the key itself, by AES-GCM with an IV of 12 bytes and no AAD.";
    /// The HSM cannot unwrap by that algorithm.
    AlgorithmUnsupported = "ALGORITHM_UNSUPPORTED", InvalidArgument, No, None, "INVALID_FIELD_ERR",
        "Use an algorithm that the import token names.";
    /// An imported key is rotated by new material of its owner's alone.
    MaterialRequired = "MATERIAL_REQUIRED", InvalidArgument, No, None, "KEY_PAYLOAD_REQ_ERR",
        "Send the new material, sealed to the instance's import token.";
    /// A generated key takes no material.
    MaterialRefused = "MATERIAL_REFUSED", InvalidArgument, No, None, "INVALID_QUERY_PARAM_ERR",
        "Rotate a generated key without material.";
    /// There is no such binding or authorization of a service.
    BindingNotFound = "BINDING_NOT_FOUND", NotFound, No, None, "",
        "List them: it may have been removed already.";
    /// The same role is given there already.
    BindingExists = "BINDING_EXISTS", AlreadyExists, No, None, "",
        "Nothing is to be done.";
    /// An instance keeps one principal who is its Manager.
    LastManager = "LAST_MANAGER", FailedPrecondition, No, None, "",
        "Make another principal Manager of the whole instance first.";
    /// There is no such event for the service.
    EventNotFound = "EVENT_NOT_FOUND", NotFound, No, None, "",
        "Acknowledge an event that WatchKeyEvents sent, with its key.";
    /// The key has a rewrap campaign that goes on.
    CampaignExists = "CAMPAIGN_EXISTS", AlreadyExists, No, None, "",
        "Wait until it is done, or pause it; a rotation makes room for another one.";
    /// The key has no rewrap campaign.
    CampaignNotFound = "CAMPAIGN_NOT_FOUND", NotFound, No, None, "",
        "Create one first.";
    /// The etag is of another generation.
    EtagMismatch = "ETAG_MISMATCH", Aborted, No, None, "",
        "Read the key again and decide anew.";
    /// The key or its registrations changed since PreviewKeyImpact.
    ImpactStale = "IMPACT_STALE", Aborted, No, None, "",
        "Look at the impact again and decide anew.";
    /// The request id was used for another request.
    RequestIdReused = "REQUEST_ID_REUSED", InvalidArgument, No, None, "",
        "Use a new UUID for a new request.";
    /// The call or a value in it comes with a later version.
    Unimplemented = "UNIMPLEMENTED", Unimplemented, No, None, "",
        "Wait for the version that has it; the message names what is missing.";
    /// The principal asks more often than it may; nothing was done.
    RateLimited = "RATE_LIMITED", ResourceExhausted, Later, None, "",
        "Ask less often: try again after the delay in RetryInfo.";
    /// A queue is full; nothing was done.
    Overloaded = "OVERLOADED", Unavailable, Yes, None, "",
        "Try again after the delay in RetryInfo, with back-off.";
    /// The HSM cannot be used now.
    HsmUnavailable = "HSM_UNAVAILABLE", Unavailable, Yes, None, "",
        "Try again; `rootkeyctl doctor` says what is wrong with the HSM.";
    /// The store cannot be written now.
    StoreUnavailable = "STORE_UNAVAILABLE", Unavailable, Yes, None, "",
        "Free space in the state directory; nothing was changed. In recovery mode, as the message \
         says, the operator has to accept the store: docs/operations.md.";
    /// The audit log cannot be written now; nothing leaves without its record.
    AuditUnavailable = "AUDIT_UNAVAILABLE", Unavailable, Yes, None, "",
        "Free space in the state directory; nothing is answered without a record.";
    /// The time that the caller gave, or the daemon's own limit, is over.
    DeadlineExceeded = "DEADLINE_EXCEEDED", DeadlineExceeded, Yes, None, "",
        "Try again; after a write, read first whether it was done.";
    /// The HSM does not show the object of this key.
    HsmKeyMissing = "HSM_KEY_MISSING", DataLoss, No, None, "INCOMPLETE_METADATA_ERR",
        "Call the operator: restore the token from its backup. Nothing was deleted.";
    /// A fault of ours.
    Internal = "INTERNAL", Internal, No, None, "",
        "Report it with the request id.";
}

/// What a reason is on the wire.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// `reason` in ErrorInfo.
    pub name: &'static str,
    /// The gRPC status.
    pub code: Code,
    /// Whether to try again.
    pub retry: Retry,
    /// `status_reason` in the metadata: the seed's reason code.
    pub status_reason: Option<&'static str>,
    /// `key_protect_code` in the metadata; empty if Key Protect has none.
    pub key_protect_code: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

/// gRPC status codes that we use, with their numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are gRPC's own")]
pub enum Code {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Reason {
    /// The reason of that name in ErrorInfo, if there is one.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.wire().name == name)
    }

    /// HTTP code of the outcome in the audit log, as Key Protect records it: 401 for
    /// every refusal of authorization (`facts/key-protect.md` section 10).
    pub const fn http(self) -> u16 {
        match self.wire().code {
            Code::Unauthenticated | Code::PermissionDenied => 401,
            Code::InvalidArgument => 400,
            Code::NotFound => 404,
            Code::AlreadyExists | Code::FailedPrecondition => 409,
            Code::Aborted => 412,
            Code::ResourceExhausted => 429,
            Code::Internal | Code::DataLoss => 500,
            Code::Unimplemented => 501,
            Code::Unavailable => 503,
            Code::DeadlineExceeded => 504,
        }
    }
}

/// HTTP code of an outcome. A record can name its own, such as 408.
pub fn http_code(outcome: &Outcome, details: &[(String, String)]) -> u16 {
    let own = details.iter().find(|(name, _)| name == "reason_code");
    if let Some(code) = own.and_then(|(_, code)| code.parse().ok()) {
        return code;
    }
    match outcome {
        Outcome::Success => 200,
        Outcome::Refused(name) => Reason::named(name).map_or(500, Reason::http),
    }
}

/// Whether the same call can succeed later.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// Not before something else changes.
    No,
    /// After the time that the error names.
    Later,
    /// Soon.
    Yes,
}

impl Error {
    /// Of that reason, with a message for people.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let retry_after = (reason.wire().retry == Retry::Yes).then_some(RETRY_SOON);
        Self {
            reason,
            message: message.into(),
            field: None,
            subject: None,
            retry_after,
            source: None,
        }
    }

    /// Names the resource concerned.
    #[must_use]
    pub fn about(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Names the field that is wrong.
    #[must_use]
    pub fn of_field(mut self, field: &'static str) -> Self {
        self.field = Some(field);
        self
    }

    /// Keeps the cause, for the log.
    #[must_use]
    pub fn caused_by(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// The same error once more, for another item of a batch. The cause stays with
    /// the first, which logs it.
    #[must_use]
    pub fn again(&self) -> Self {
        let Self { reason, message, field, subject, retry_after, source: _ } = self;
        let (message, subject) = (message.clone(), subject.clone());
        Self {
            reason: *reason,
            message,
            field: *field,
            subject,
            retry_after: *retry_after,
            source: None,
        }
    }

    /// The refusal of a caller whom we do not know.
    pub fn unauthenticated() -> Self {
        Self::new(Reason::Unauthenticated, "the caller is nobody we know")
    }

    /// The principal asks too often; it may ask again after `wait`.
    pub fn rate_limited(message: String, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..Self::new(Reason::RateLimited, message) }
    }

    /// The deadline passed.
    pub fn deadline() -> Self {
        Self::new(Reason::DeadlineExceeded, "the deadline passed before the answer")
    }

    /// The refusal of a caller who may not; it does not tell whether the thing exists.
    pub fn denied() -> Self {
        Self::new(Reason::PermissionDenied, "permission denied (or it might not exist)")
    }

    /// The one refusal of a wrapped DEK that does not verify.
    pub fn unverified() -> Self {
        Self::new(Reason::CiphertextUnverified, "the wrapped DEK could not be verified")
    }

    /// Of a call or value that a later version brings.
    pub fn unimplemented(what: &str) -> Self {
        Self::new(Reason::Unimplemented, format!("{what} is not implemented yet"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.wire().name, self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

impl From<Malformed> for Error {
    fn from(malformed: Malformed) -> Self {
        let error = Self::new(Reason::FieldInvalid, malformed.to_string());
        Self { field: Some(malformed.field), ..error }
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        let reason = match refused.refusal {
            Refusal::Suspended => Reason::KeySuspended,
            Refusal::Deactivated => Reason::KeyDeactivated,
            Refusal::Destroyed => Reason::KeyDestroyed,
            Refusal::NotSuspended => Reason::KeyNotSuspended,
            Refusal::NotDestroyed => Reason::KeyNotDestroyed,
        };
        Self::new(reason, refused.to_string())
    }
}

impl From<Hindrance> for Error {
    fn from(hindrance: Hindrance) -> Self {
        let (reason, message) = match hindrance {
            Hindrance::Suspended => (Reason::KeySuspended, "the key is suspended"),
            Hindrance::Deactivated => {
                (Reason::KeyDeactivated, "the key is deactivated; it protects nothing new")
            }
            Hindrance::Destroyed => (Reason::KeyDestroyed, "the key is destroyed"),
            Hindrance::NotAuthorized => {
                (Reason::PermissionDenied, "the service may not use the key any more")
            }
        };
        Self::new(reason, message)
    }
}

impl From<Denied> for Error {
    fn from(denied: Denied) -> Self {
        let (reason, wait) = match denied {
            Denied::State(refused) => return refused.into(),
            Denied::TooEarly { wait, .. } => (Reason::TooEarly, Some(wait)),
            Denied::RotatedLately { wait } => (Reason::RotationTooSoon, Some(wait)),
            Denied::WindowClosed => (Reason::RestoreWindowClosed, None),
            Denied::Expired => (Reason::KeyExpired, None),
            Denied::NotImported => (Reason::KeyNotImported, None),
            Denied::NotDualAuth => (Reason::NotDualAuth, None),
            Denied::NotAuthorized | Denied::SamePrincipal => (Reason::AuthorizationsNotMet, None),
            Denied::Prevented { .. } => (Reason::DeletionPrevented, None),
            Denied::Registered { .. } => (Reason::KeyRegistered, None),
        };
        Self { retry_after: wait, ..Self::new(reason, denied.to_string()) }
    }
}

impl From<Unverified> for Error {
    fn from(_: Unverified) -> Self {
        Self::unverified()
    }
}

impl From<HsmError> for Error {
    fn from(error: HsmError) -> Self {
        let (reason, message) = match error {
            HsmError::Unverified => return Self::unverified(),
            HsmError::Overloaded => (Reason::Overloaded, "the HSM's queue is full"),
            HsmError::Deadline => (Reason::DeadlineExceeded, "the HSM did not answer in time"),
            HsmError::Unavailable => (Reason::HsmUnavailable, "the HSM cannot be used now"),
            HsmError::Missing => {
                (Reason::HsmKeyMissing, "the HSM does not show the object of this key version")
            }
            HsmError::Material => {
                (Reason::MaterialUnsealed, "the sealed key material cannot be unwrapped")
            }
            HsmError::NonceUnverified => {
                (Reason::NonceUnverified, "the nonce is not encrypted with the imported key")
            }
            HsmError::Nonce => (Reason::NonceIncorrect, "the nonce is not the import token's"),
            HsmError::Refused(_) => (Reason::Internal, "the HSM refused the operation"),
            HsmError::NoWrapping(fault) => {
                let message = format!(
                    "hsm.residency is \"wrapped\", and the HSM cannot wrap root keys: {fault}; \
                     no key is made until the setting is \"token\" or the HSM another"
                );
                return Self::new(Reason::HsmUnavailable, message).caused_by(error);
            }
            HsmError::Damaged => {
                (Reason::HsmKeyMissing, "the wrapped key in the store is not what it was")
            }
        };
        Self::new(reason, message).caused_by(error)
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let (reason, message) = match &error {
            StoreError::Conflict => (Reason::EtagMismatch, "the key changed meanwhile"),
            StoreError::Unavailable { .. } => {
                (Reason::StoreUnavailable, "the store cannot be written now")
            }
            StoreError::Overloaded => (Reason::Overloaded, "the store's queue is full"),
            StoreError::Corrupt { .. } => (Reason::Internal, "the store holds what it must not"),
        };
        Self::new(reason, message).caused_by(error)
    }
}

impl From<AuditError> for Error {
    fn from(error: AuditError) -> Self {
        let (reason, message) = match &error {
            AuditError::Overloaded => (Reason::Overloaded, "the audit log's queue is full"),
            AuditError::Unavailable { .. } => {
                (Reason::AuditUnavailable, "the audit log cannot be written now")
            }
            AuditError::Corrupt { .. } => {
                (Reason::Internal, "the audit log holds what it must not")
            }
        };
        Self::new(reason, message).caused_by(error)
    }
}

/// The reasons as Markdown, for `docs/errors.md`.
pub fn table_as_markdown() -> String {
    let mut text = String::from(
        "| reason | gRPC | retry | `status_reason` | `key_protect_code` | what to do |\n|---|---|---|---|---|---|\n",
    );
    for reason in Reason::ALL {
        let Wire { name, code, retry, status_reason, key_protect_code, remedy } = reason.wire();
        let status_reason = status_reason.unwrap_or("");
        let retry = match retry {
            Retry::No => "no",
            Retry::Later => "after RetryInfo",
            Retry::Yes => "yes",
        };
        text.push_str(&format!(
            "| {name} | {code:?} | {retry} | {status_reason} | {key_protect_code} | {remedy} |\n"
        ));
    }
    text
}

/// What RetryInfo says where we cannot know.
const RETRY_SOON: Duration = Duration::from_millis(200);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_upper_snake_and_at_most_63_characters() {
        for reason in Reason::ALL {
            let name = reason.wire().name;
            assert!(name.len() <= 63 && name.bytes().all(|c| c.is_ascii_uppercase() || c == b'_'));
        }
    }

    #[test]
    fn a_retryable_error_says_when() {
        for reason in Reason::ALL {
            let error = Error::new(*reason, "");
            assert_eq!(error.retry_after.is_some(), reason.wire().retry == Retry::Yes, "{error}");
        }
    }

    #[test]
    fn the_source_is_not_in_what_a_client_sees() {
        let error =
            Error::new(Reason::Internal, "no").caused_by(std::io::Error::other("/secret/path"));
        assert!(!error.to_string().contains("secret"));
        assert!(error.source().is_some());
    }
}

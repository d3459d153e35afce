//! Messages of CryptoService. One of the three places that may look into a `Secret`.

use super::super::{pb, status};
use super::new_registration;
use crate::domain::Malformed;
use crate::error::Error;
use crate::secret::Secret;
use crate::service::{DekAction, DekAnswer, DekRequest, NewRegistration};

/// What is to be registered along with a wrap, if anything. Its form is a matter for
/// later: the permission is asked first.
pub(in crate::api) type Register = Option<Result<NewRegistration, Malformed>>;

// Requests of CryptoService.

/// A DEK to wrap, and what to register. The field's own buffer becomes the `Secret`;
/// no copy is left.
pub(in crate::api) fn wrap_request(request: pb::WrapDekRequest) -> (DekRequest, Register) {
    let pb::WrapDekRequest { key, dek, aad, resource, register } = request;
    let request = DekRequest { key, aad, resource, action: DekAction::Wrap(Secret::new(dek)) };
    (request, to_register(register))
}

/// A DEK to unwrap.
pub(in crate::api) fn unwrap_request(request: pb::UnwrapDekRequest) -> DekRequest {
    let pb::UnwrapDekRequest { key, wrapped_dek, aad, resource } = request;
    DekRequest { key, aad, resource, action: DekAction::Unwrap(wrapped_dek) }
}

/// A DEK to rewrap.
pub(in crate::api) fn rewrap_request(request: pb::RewrapDekRequest) -> DekRequest {
    let pb::RewrapDekRequest { key, wrapped_dek, aad, resource } = request;
    DekRequest { key, aad, resource, action: DekAction::Rewrap(wrapped_dek) }
}

/// A DEK to generate, what to register, and whether only the wrapped one is wanted.
pub(in crate::api) fn generate_request(
    request: pb::GenerateDekRequest,
) -> ((DekRequest, Register), bool) {
    let pb::GenerateDekRequest { key, size_bytes, aad, resource, wrapped_only, register } = request;
    let size = if size_bytes == 0 { DEFAULT_DEK_BYTES } else { size_bytes };
    let action = DekAction::Generate(usize::try_from(size).unwrap_or(usize::MAX));
    ((DekRequest { key, aad, resource, action }, to_register(register)), wrapped_only)
}

fn to_register(register: Option<pb::Registration>) -> Register {
    register.map(|registration| new_registration(Some(registration)))
}

// Answers of CryptoService.

/// What was wrapped.
pub(in crate::api) fn wrapped(answer: DekAnswer) -> pb::WrapDekResponse {
    let DekAnswer { key, dek: _, version, wrapped } = answer;
    let (_, bytes) = wrapped.unwrap_or((version, Vec::new()));
    pb::WrapDekResponse { wrapped_dek: bytes.into(), key_version: key.version_name(version) }
}

/// What was unwrapped, and rewrapped if an older version had wrapped it.
pub(in crate::api) fn unwrapped(answer: DekAnswer) -> pb::UnwrapDekResponse {
    let DekAnswer { key, dek, version, wrapped } = answer;
    let (rewrapped_dek, rewrapped_key_version) = match wrapped {
        Some((to, bytes)) => (bytes.into(), key.version_name(to)),
        None => Default::default(),
    };
    pb::UnwrapDekResponse {
        dek: dek.into_bytes(),
        key_version: key.version_name(version),
        rewrapped_dek,
        rewrapped_key_version,
    }
}

/// What was rewrapped.
pub(in crate::api) fn rewrapped(answer: DekAnswer) -> pb::RewrapDekResponse {
    let DekAnswer { key, dek: _, version, wrapped } = answer;
    let (to, bytes) = wrapped.unwrap_or((version, Vec::new()));
    pb::RewrapDekResponse {
        wrapped_dek: bytes.into(),
        key_version: key.version_name(to),
        previous_key_version: key.version_name(version),
    }
}

/// What was generated.
pub(in crate::api) fn generated(answer: DekAnswer, wrapped_only: bool) -> pb::GenerateDekResponse {
    let DekAnswer { key, dek, version, wrapped } = answer;
    let (_, bytes) = wrapped.unwrap_or((version, Vec::new()));
    pb::GenerateDekResponse {
        dek: if wrapped_only { Default::default() } else { dek.into_bytes() },
        wrapped_dek: bytes.into(),
        key_version: key.version_name(version),
    }
}

/// What became of one of many.
pub(in crate::api) fn unwrap_result(
    result: Result<DekAnswer, Error>,
    request_id: &str,
) -> pb::UnwrapDekResult {
    use pb::unwrap_dek_result::Outcome;
    let outcome = match result {
        Ok(answer) => Outcome::Response(unwrapped(answer)),
        Err(error) => Outcome::Refusal(status::refusal(&error, request_id)),
    };
    pb::UnwrapDekResult { outcome: Some(outcome) }
}

/// What GenerateDek makes if it is not told a size.
const DEFAULT_DEK_BYTES: u32 = 32;

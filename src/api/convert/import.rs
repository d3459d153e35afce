//! Messages of ImportService.

use std::time::Duration;

use super::super::pb;
use super::{duration, pb_timestamp};
use crate::domain::import_token::{lifetime, retrievals};
use crate::domain::{ImportAlgorithm, ImportToken, InstanceId, Malformed};
use crate::service::TokenAndAlgorithms;

/// `instances/{instance}/importToken` in the field `name`.
///
/// # Errors
/// [`Malformed`], of the field `name`.
pub(in crate::api) fn import_token_instance(name: &str) -> Result<InstanceId, Malformed> {
    let problem = Malformed::new("name", "must be instances/{instance}/importToken");
    let parent = name.strip_suffix("/importToken").ok_or(problem)?;
    InstanceId::from_parent(parent).map_err(|_form| problem)
}

/// Lifetime and retrievals of a token to make.
///
/// # Errors
/// [`Malformed`].
pub(in crate::api) fn new_import_token(
    request: pb::CreateImportTokenRequest,
) -> Result<(Duration, u16), Malformed> {
    let pb::CreateImportTokenRequest { parent: _, lifetime: asked, max_allowed_retrievals } =
        request;
    let asked = asked.map(|span| duration(&span, "lifetime")).transpose()?;
    Ok((lifetime(asked)?, retrievals(max_allowed_retrievals)?))
}

/// A token; with what is sealed to, if `whole`.
pub(in crate::api) fn import_token(
    (token, algorithms): TokenAndAlgorithms,
    whole: bool,
) -> pb::ImportToken {
    let expires = token.expires();
    let ImportToken {
        instance,
        object: _,
        public_key,
        nonce,
        created,
        lifetime: _,
        retrievals,
        remaining,
    } = token;
    let pem = || pem::encode(&pem::Pem::new("PUBLIC KEY", &*public_key));
    pb::ImportToken {
        name: format!("instances/{instance}/importToken"),
        create_time: Some(pb_timestamp(created.time)),
        expire_time: Some(pb_timestamp(expires)),
        max_allowed_retrievals: retrievals.into(),
        remaining_retrievals: remaining.into(),
        public_key: if whole { pem() } else { String::new() },
        nonce: if whole { nonce.to_vec() } else { Vec::new() },
        algorithms: algorithms.into_iter().map(ImportAlgorithm::name).map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_token_is_its_instances() {
        let parse = import_token_instance;
        assert_eq!(parse("instances/default/importToken").unwrap().as_str(), "default");
        for name in ["", "instances/default", "instances/A/importToken", "importToken"] {
            assert_eq!(parse(name).unwrap_err().field, "name");
        }
    }
}

//! A bearer token (JWT, RFC 7519) → the principal that it names. Every claim that is
//! looked at must be there; algorithms are few, and each key has one. Nothing here
//! says where a token may come from, and no error holds any of it (docs/adr/0014).

use std::collections::HashMap;
use std::fmt;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use thiserror::Error;

use crate::domain::{PrincipalId, Timestamp};

/// Whose tokens count, and who they name.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// `iss`.
    pub issuer: String,
    /// Who must be in `aud`.
    pub audience: String,
    /// A token is of spiffe://{trust domain}/user/{sub}.
    pub trust_domain: String,
}

/// The issuer's public keys, by their `kid`.
pub struct Keys(HashMap<String, (Algorithm, DecodingKey)>);

/// Who a token is of, and until when.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Bearer {
    /// The principal.
    pub principal: PrincipalId,
    /// `exp`.
    pub not_after: Timestamp,
}

/// Why a file of keys cannot be used.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum KeysRefused {
    /// It is no JWKS.
    #[error("it is not a JSON Web Key Set")]
    Malformed,
    /// It has a key that is no public one.
    #[error("it holds a symmetric key, which is a secret")]
    Symmetric,
    /// Which key is meant must be clear.
    #[error("two of its keys have the same kid")]
    Twice,
    /// No key of it would ever be used.
    #[error("it has no key with a kid for ES256, EdDSA or RS256")]
    None,
}

/// Why a token does not count.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum TokenRefused {
    /// No JWT, or of an algorithm that there is not.
    #[error("the token cannot be read")]
    Unreadable,
    /// ES256, EdDSA, RS256 alone, and the one of its key.
    #[error("the token's algorithm is not allowed")]
    Algorithm,
    /// No key of that name is known.
    #[error("the token's kid is not known")]
    Kid,
    /// Signature, issuer or audience, or a claim is not there.
    #[error("the token does not verify")]
    Unverified,
    /// `exp` has passed.
    #[error("the token is expired")]
    Expired,
    /// `nbf` is to come.
    #[error("the token is not valid yet")]
    Early,
    /// `sub` is not one part of a SPIFFE ID's path.
    #[error("the token's sub cannot name a principal")]
    Subject,
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
    nbf: u64,
    sub: String,
}

impl Keys {
    /// Reads a JWKS (RFC 7517). Keys for other things than signatures of ours are
    /// passed over.
    ///
    /// # Errors
    /// [`KeysRefused`].
    pub fn parse(json: &[u8]) -> Result<Self, KeysRefused> {
        let set: JwkSet = serde_json::from_slice(json).map_err(|_json| KeysRefused::Malformed)?;
        let mut keys = HashMap::new();
        for jwk in &set.keys {
            if matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_)) {
                return Err(KeysRefused::Symmetric);
            }
            let Some((kid, algorithm)) = usable(jwk) else { continue };
            let key = DecodingKey::from_jwk(jwk).map_err(|_broken| KeysRefused::Malformed)?;
            if keys.insert(kid, (algorithm, key)).is_some() {
                return Err(KeysRefused::Twice);
            }
        }
        if keys.is_empty() { Err(KeysRefused::None) } else { Ok(Self(keys)) }
    }
}

impl Issuer {
    /// Who `token` is of at `now`. There is no leeway.
    ///
    /// # Errors
    /// [`TokenRefused`].
    pub fn verify(&self, keys: &Keys, token: &str, now: Timestamp) -> Result<Bearer, TokenRefused> {
        let header = decode_header(token).map_err(|_broken| TokenRefused::Unreadable)?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(TokenRefused::Algorithm);
        }
        let key = header.kid.and_then(|kid| keys.0.get(&kid));
        let (algorithm, key) = key.ok_or(TokenRefused::Kid)?;
        if *algorithm != header.alg {
            return Err(TokenRefused::Algorithm);
        }
        let claims = decode::<Claims>(token, key, &self.validation(*algorithm));
        let Claims { exp, nbf, sub } = claims.map_err(|_why| TokenRefused::Unverified)?.claims;
        let not_after = seconds(exp);
        if now >= not_after {
            return Err(TokenRefused::Expired);
        }
        if now < seconds(nbf) {
            return Err(TokenRefused::Early);
        }
        Ok(Bearer { principal: self.principal(&sub)?, not_after })
    }

    /// The principal of a `sub`: one part of a path, so that none stands for another.
    ///
    /// # Errors
    /// [`TokenRefused::Subject`].
    pub fn principal(&self, sub: &str) -> Result<PrincipalId, TokenRefused> {
        if sub.contains('/') || sub.len() > LONGEST_SUBJECT {
            return Err(TokenRefused::Subject);
        }
        let id = format!("spiffe://{}/user/{sub}", self.trust_domain);
        id.parse().map_err(|_malformed| TokenRefused::Subject)
    }

    /// Times are not the library's matter: it would read the machine's clock.
    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.set_audience(&[&self.audience]);
        validation.set_issuer(&[&self.issuer]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        validation
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Name and algorithm of a key that may sign tokens; none if it is for something else.
fn usable(jwk: &Jwk) -> Option<(String, Algorithm)> {
    // The library's enums grow; what is not here is not ours.
    let algorithm = if let AlgorithmParameters::RSA(_) = &jwk.algorithm {
        Algorithm::RS256
    } else if let AlgorithmParameters::EllipticCurve(key) = &jwk.algorithm
        && key.curve == EllipticCurve::P256
    {
        Algorithm::ES256
    } else if let AlgorithmParameters::OctetKeyPair(key) = &jwk.algorithm
        && key.curve == EllipticCurve::Ed25519
    {
        Algorithm::EdDSA
    } else {
        return None;
    };
    let common = &jwk.common;
    let signs = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature));
    let same = common.key_algorithm.is_none_or(|it| it.to_string() == format!("{algorithm:?}"));
    common.key_id.clone().filter(|_| signs && same).map(|kid| (kid, algorithm))
}

fn seconds(numeric_date: u64) -> Timestamp {
    // Beyond every year that there is.
    let most = i64::MAX / 1_000_000;
    Timestamp::from_seconds(i64::try_from(numeric_date).unwrap_or(most).min(most))
}

const ALGORITHMS: [Algorithm; 3] = [Algorithm::ES256, Algorithm::EdDSA, Algorithm::RS256];
const LONGEST_SUBJECT: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_is_one_part_of_a_path() {
        let issuer = Issuer { issuer: "i".into(), audience: "a".into(), trust_domain: "td".into() };
        assert_eq!(issuer.principal("ann.b-1").unwrap().to_string(), "spiffe://td/user/ann.b-1");
        for sub in ["", ".", "..", "a/b", "../admin", "a b", "a%2fb", "ä", "a@b", "a\n"] {
            assert_eq!(issuer.principal(sub), Err(TokenRefused::Subject), "{sub}");
        }
        assert!(issuer.principal(&"a".repeat(129)).is_err());
    }

    #[test]
    fn a_set_of_keys_is_public_and_clear() {
        let ec = |kid: &str| {
            let xy = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
            format!(r#"{{"kty":"EC","crv":"P-256","kid":"{kid}","x":"{xy}","y":"{xy}"}}"#)
        };
        let set =
            |keys: &[String]| Keys::parse(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes());
        let oct = r#"{"kty":"oct","kid":"a","k":"c2VjcmV0"}"#.to_owned();
        assert!(set(&[ec("a"), ec("b")]).is_ok());
        assert_eq!(set(&[ec("a"), ec("a")]).unwrap_err(), KeysRefused::Twice);
        assert_eq!(set(&[ec("a"), oct]).unwrap_err(), KeysRefused::Symmetric);
        assert_eq!(set(&[]).unwrap_err(), KeysRefused::None);
        let other = ec("a").replace("\"kid\"", "\"use\":\"enc\",\"kid\"");
        assert_eq!(set(&[other]).unwrap_err(), KeysRefused::None);
        let other = ec("a").replace("\"kid\"", "\"alg\":\"HS256\",\"kid\"");
        assert_eq!(set(&[other]).unwrap_err(), KeysRefused::None);
        assert_eq!(Keys::parse(b"{").unwrap_err(), KeysRefused::Malformed);
    }
}

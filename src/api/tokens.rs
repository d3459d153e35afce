//! Bearer tokens on calls: a gateway that acts for people sends whom it acts for. A
//! token counts only on a connection whose certificate is a gateway's; any other, and
//! one that does not verify, makes the call UNAUTHENTICATED and never falls back to
//! the certificate. The issuer's keys are a file, read anew when it changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{Extensions, HeaderMap, header};

use super::TlsError;
use super::connection::Peer;
use crate::auth::bearer::{Issuer, Keys};
use crate::domain::{PrincipalId, Timestamp};
use crate::service::Standing;

/// Whose tokens count, and from whom.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The issuer's public keys: a JWKS.
    pub jwks: PathBuf,
    /// What its tokens must say.
    pub issuer: Issuer,
    /// Who may send them.
    pub gateways: Vec<PrincipalId>,
}

/// [`Tokens`], with the keys as they are now.
pub(super) struct Verified {
    tokens: Tokens,
    keys: ArcSwap<Keys>,
}

/// What a token made of the caller: who it is, or `None` if it does not count, and
/// then `standing` says why.
#[derive(Clone)]
pub(super) struct Acting {
    pub(super) principal: Option<PrincipalId>,
    pub(super) standing: Arc<dyn Standing>,
}

impl Verified {
    pub(super) fn read(tokens: &Tokens) -> Result<Self, TlsError> {
        let keys = ArcSwap::from_pointee(keys(&tokens.jwks)?);
        Ok(Self { tokens: tokens.clone(), keys })
    }

    pub(super) fn file(&self) -> &PathBuf {
        &self.tokens.jwks
    }

    pub(super) fn reload(&self) {
        match keys(&self.tokens.jwks) {
            Ok(keys) => {
                tracing::info!(?keys, "the keys of tokens were reloaded");
                self.keys.store(Arc::new(keys));
            }
            Err(error) => {
                tracing::error!(%error, "the new keys of tokens cannot be used; the old ones go on");
            }
        }
    }

    /// Whom the peer acts for by the token.
    fn acting(&self, token: &str, peer: &Peer, now: Timestamp) -> Result<Acting, String> {
        let certificate = peer.standing.as_ref().zip(peer.principal.as_ref());
        let gateway = certificate.filter(|(_, it)| self.tokens.gateways.contains(it));
        let (gateway, _) = gateway.ok_or_else(no_gateway)?;
        let bearer = self.tokens.issuer.verify(&self.keys.load(), token, now);
        let bearer = bearer.map_err(|refused| refused.to_string())?;
        let standing = Both { gateway: Arc::clone(gateway), not_after: bearer.not_after };
        Ok(Acting { principal: Some(bearer.principal), standing: Arc::new(standing) })
    }
}

/// What the token of a request makes of its caller; `None` if it has none. It is
/// taken out of the headers, where nothing after this has a use for it.
pub(super) fn take(
    headers: &mut HeaderMap,
    extensions: &Extensions,
    verified: Option<&Verified>,
    now: impl FnOnce() -> Timestamp,
) -> Option<Acting> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, more) = (values.next()?.clone(), values.next().is_some());
    headers.remove(header::AUTHORIZATION);
    let token = value.to_str().ok().and_then(|text| text.split_once(' '));
    let token = token.filter(|(scheme, _)| !more && scheme.eq_ignore_ascii_case("bearer"));
    let acting = match (token, verified, extensions.get::<Arc<Peer>>()) {
        (None, _, _) => Err("authorization must be one bearer token".to_owned()),
        (Some((_, token)), Some(verified), Some(peer)) => verified.acting(token, peer, now()),
        (Some(_), None, _) | (Some(_), _, None) => Err(no_gateway()),
    };
    let refused = |why| Acting { principal: None, standing: Arc::new(Refused(why)) };
    Some(acting.unwrap_or_else(refused))
}

fn no_gateway() -> String {
    "a token may not come over this connection: its certificate is no gateway's".into()
}

fn keys(path: &Path) -> Result<Keys, TlsError> {
    let unread = |source| TlsError::Unread { path: path.into(), source };
    let json = fs::read(path).map_err(unread)?;
    Keys::parse(&json).map_err(|source| TlsError::Keys { path: path.into(), source })
}

/// A token, which has its end, over a certificate, which must stand.
#[derive(Debug)]
struct Both {
    gateway: Arc<dyn Standing>,
    not_after: Timestamp,
}

impl Standing for Both {
    fn check(&self, now: Timestamp) -> Result<(), String> {
        if now >= self.not_after {
            return Err("the token is expired".into());
        }
        self.gateway.check(now)
    }
}

/// A token that does not count.
#[derive(Debug)]
struct Refused(String);

impl Standing for Refused {
    fn check(&self, _now: Timestamp) -> Result<(), String> {
        Err(self.0.clone())
    }
}

//! How the token unwraps key material: found out by trying.
//!
//! A token that lists CKM_RSA_PKCS_OAEP may do it with one hash only, and says so
//! by an error that can mean anything (`facts/hsm-and-grpc.md`, B). So a key is
//! sealed to a small pair and unwrapped, in session objects that go with their
//! session. The pair takes a while; nobody waits for it.

use cryptoki::error::Result;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::mechanism::{self, MAKE_IMPORT_PAIR, RAW_RSA};
use super::pair::Decrypts;
use super::rv::{Verdict, verdict_of};
use super::token::Token;
use super::worker::prove;
use crate::domain::ImportAlgorithm;

/// Where the padding is taken off.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// In the token: the key never leaves it.
    Token,
    /// In `oaep.rs`, after raw RSA in the token.
    Software,
}

/// What the token can unwrap, the best algorithm first.
#[derive(Debug)]
pub(super) struct Ways(Vec<(ImportAlgorithm, Way)>);

impl Ways {
    /// Of a token that cannot unwrap.
    pub(super) const fn none() -> Self {
        Self(Vec::new())
    }

    /// How to unwrap what was sealed by `algorithm`.
    pub(super) fn of(&self, algorithm: ImportAlgorithm) -> Option<Way> {
        self.0.iter().find(|(known, _)| *known == algorithm).map(|(_, way)| *way)
    }

    /// What an import pair must be able to do for them.
    pub(super) fn need(&self) -> Decrypts {
        let software = self.0.iter().any(|(_, way)| *way == Way::Software);
        if software { Decrypts::Raw } else { Decrypts::No }
    }

    /// The algorithms that can be unwrapped, in order.
    pub(super) fn algorithms(&self) -> impl Iterator<Item = ImportAlgorithm> {
        self.0.iter().map(|(algorithm, _)| *algorithm)
    }
}

/// Tries every algorithm.
///
/// # Errors
/// If the token cannot even make a pair to try with, or is in trouble.
pub(super) fn probe(token: &Token) -> Result<Ways> {
    // The session owns the pair, which goes with it.
    let session = token.session()?;
    let pair = session.generate_key_pair(&MAKE_IMPORT_PAIR, &public(), &private())?;
    let mut ways = Vec::new();
    for algorithm in ImportAlgorithm::ALL {
        // Another session for each, since an error can leave an operation active.
        if works(unwraps(token, &token.session()?, pair, algorithm))? {
            ways.push((algorithm, Way::Token));
        } else if is_completed_here(algorithm)
            && token.decrypts == Decrypts::Raw
            && works(decrypts_raw(&token.session()?, pair))?
        {
            ways.push((algorithm, Way::Software));
        }
    }
    Ok(Ways(ways))
}

/// Whether `oaep.rs` does it.
const fn is_completed_here(algorithm: ImportAlgorithm) -> bool {
    match algorithm {
        ImportAlgorithm::OaepSha256 => true,
        // Whoever can do no more than SHA-1 has a token for it.
        ImportAlgorithm::OaepSha1 => false,
    }
}

/// A refusal of this algorithm is an answer; a token in trouble is none.
fn works(tried: Result<bool>) -> Result<bool> {
    tried.or_else(|error| match verdict_of(&error) {
        Verdict::Unverified | Verdict::Ambiguous | Verdict::Refused => Ok(false),
        Verdict::Session | Verdict::Login | Verdict::Object | Verdict::Module => Err(error),
    })
}

fn unwraps(
    token: &Token,
    session: &Session,
    (public, private): (ObjectHandle, ObjectHandle),
    algorithm: ImportAlgorithm,
) -> Result<bool> {
    let mechanism = mechanism::unwrap(algorithm);
    let mut key = [0; 32];
    session.generate_random_slice(&mut key)?;
    let wrapped = session.encrypt(&mechanism, public, &key)?;
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    let unwrapped = session.unwrap_key(&mechanism, private, &wrapped, &template)?;
    Ok(prove(&token.functions, session, unwrapped).is_ok())
}

fn decrypts_raw(
    session: &Session,
    (public, private): (ObjectHandle, ObjectHandle),
) -> Result<bool> {
    let mut block = vec![0; usize::try_from(BITS / 8)?];
    // The first byte stays 0, so that it is less than the modulus.
    session.generate_random_slice(&mut block[1..])?;
    let encrypted = session.encrypt(&RAW_RSA, public, &block)?;
    Ok(session.decrypt(&RAW_RSA, private, &encrypted)? == block)
}

fn public() -> [Attribute; 4] {
    [
        Attribute::Token(false),
        Attribute::ModulusBits(BITS.into()),
        Attribute::PublicExponent(vec![1, 0, 1]),
        Attribute::Encrypt(true),
    ]
}

fn private() -> [Attribute; 4] {
    [
        Attribute::Token(false),
        Attribute::Sensitive(true),
        Attribute::Unwrap(true),
        Attribute::Decrypt(true),
    ]
}

/// Enough for a try, and made in a moment.
const BITS: u64 = 2048;

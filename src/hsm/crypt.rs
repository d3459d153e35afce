//! What is asked of the HSM about one DEK, and what it answers.

use std::sync::Arc;

use minicbor::{Decode, Encode};

use super::{HsmError, mechanism, wire};
use crate::domain::{ObjectId, Version, WrappedKey};
use crate::secret::Secret;

/// An operation on a DEK, under one root key object.
#[derive(Debug, Decode, Encode)]
pub enum Crypt {
    /// Seals a DEK.
    #[n(0)]
    Seal {
        /// The root key.
        #[n(0)]
        key: RootKey,
        /// What is authenticated with it.
        #[cbor(n(1), with = "minicbor::bytes")]
        aad: Vec<u8>,
        /// 1 to 7500 bytes.
        #[cbor(n(2), with = "wire::secret")]
        dek: Secret,
    },
    /// Makes a random DEK and seals it.
    #[n(1)]
    Generate {
        /// The root key.
        #[n(0)]
        key: RootKey,
        /// What is authenticated with it.
        #[cbor(n(1), with = "minicbor::bytes")]
        aad: Vec<u8>,
        /// Length of the DEK, in bytes.
        #[n(2)]
        length: usize,
    },
    /// Opens a sealed DEK, and seals it again if asked.
    #[n(2)]
    Open {
        /// The root key.
        #[n(0)]
        key: RootKey,
        /// What was authenticated with it.
        #[cbor(n(1), with = "minicbor::bytes")]
        aad: Vec<u8>,
        /// IV, ciphertext and tag.
        #[n(2)]
        sealed: Sealed,
        /// Root key and AAD to seal it under again.
        #[cbor(n(3), with = "wire::reseal")]
        reseal: Option<(RootKey, Vec<u8>)>,
    },
}

/// A root key, as a job names it.
#[derive(Clone, Debug, Decode, Encode)]
pub struct RootKey {
    /// CKA_ID of its object.
    #[cbor(n(0), with = "wire::id")]
    pub object: ObjectId,
    /// By which object it is used.
    #[n(1)]
    pub means: Means,
}

/// By which object a root key is used.
#[derive(Clone, Debug, Decode, Encode)]
pub enum Means {
    /// The token's, or a session copy of it.
    #[n(0)]
    Token,
    /// The token's and no copy: it is what is to be proven.
    #[n(1)]
    TokenItself,
    /// A session object that is unwrapped from this.
    #[n(2)]
    Unwrapped(#[cbor(n(0), with = "wire::wrapped")] Wrapped),
}

/// What a worker needs to unwrap a root key.
#[derive(Clone, Debug)]
pub struct Wrapped {
    /// The blob.
    pub key: Arc<WrappedKey>,
    /// What it must open, once it is unwrapped: IV, ciphertext and tag.
    pub check_value: Arc<[u8]>,
}

impl RootKey {
    /// An object of the token, and no copy of it.
    pub(super) const fn itself(object: ObjectId) -> Self {
        Self { object, means: Means::TokenItself }
    }
}

impl From<ObjectId> for RootKey {
    /// An object of the token.
    fn from(object: ObjectId) -> Self {
        Self { object, means: Means::Token }
    }
}

impl From<&Version> for RootKey {
    fn from(version: &Version) -> Self {
        let means = version.wrapped.as_ref().map_or(Means::Token, |key| {
            let (key, check_value) = (Arc::clone(key), Arc::clone(&version.check_value));
            Means::Unwrapped(Wrapped { key, check_value })
        });
        Self { object: version.object, means }
    }
}

/// IV, and ciphertext with tag.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub struct Sealed {
    /// 96 bits, random.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub iv: [u8; mechanism::IV_BYTES],
    /// Ciphertext and tag of 16 bytes.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// What became of one [`Crypt`].
#[derive(Debug, Decode, Encode)]
pub struct Crypted {
    /// The DEK: opened, generated, or given back.
    #[cbor(n(0), with = "wire::secret")]
    pub dek: Secret,
    /// The DEK sealed; `None` if it was only opened. An error if it was opened
    /// and could not be sealed again.
    #[n(1)]
    pub sealed: Option<Result<Sealed, HsmError>>,
}

//! The bytes of a wrapped DEK: encode, and a strict decode without fallbacks.
//!
//! Format 1, 65 bytes more than the DEK (`docs/ciphertext-format.md`):
//! `"rkw"` · format 1 · algorithm 1 · key UUID (16) · version UUID (16) ·
//! IV (12) · ciphertext · tag (16). `vectors.json` holds golden ones of every
//! release, which are opened for ever.

use thiserror::Error;

use crate::domain::{Aad, KeyId, VersionId};

/// Length of a DEK: 1 to 7500 bytes (`facts/key-protect.md` section 3).
pub const DEK_BYTES: std::ops::RangeInclusive<usize> = 1..=7500;
/// Length of the IV, in bytes: 96 bits, random, chosen beside the HSM call.
pub const IV_BYTES: usize = 12;
/// Length of the GCM tag, in bytes.
pub const TAG_BYTES: usize = 16;
/// How much longer a wrapped DEK is than the DEK, in bytes.
pub const OVERHEAD_BYTES: usize = HEADER_BYTES + IV_BYTES + TAG_BYTES;

/// Not a wrapped DEK, or not one that verifies. Says no more, so that it is no oracle.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("the wrapped DEK could not be verified")]
pub struct Unverified;

/// The parts of a wrapped DEK.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Wrapped<'a> {
    /// Key that it says wrapped it.
    pub key: KeyId,
    /// Version that it says wrapped it.
    pub version: VersionId,
    /// The IV of GCM.
    pub iv: [u8; IV_BYTES],
    /// Ciphertext and tag: 17 to 7516 bytes.
    pub sealed: &'a [u8],
}

impl<'a> Wrapped<'a> {
    /// Takes a wrapped DEK apart.
    ///
    /// # Errors
    /// [`Unverified`] if it is not of format 1 and algorithm 1, or too short or long.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Unverified> {
        let (start, rest) = bytes.split_first_chunk::<5>().ok_or(Unverified)?;
        let (key, rest) = rest.split_first_chunk::<16>().ok_or(Unverified)?;
        let (version, rest) = rest.split_first_chunk::<16>().ok_or(Unverified)?;
        let (iv, sealed) = rest.split_first_chunk::<IV_BYTES>().ok_or(Unverified)?;
        let dek = sealed.len().checked_sub(TAG_BYTES).ok_or(Unverified)?;
        if *start != START || !DEK_BYTES.contains(&dek) {
            return Err(Unverified);
        }
        let (key, version) = (KeyId::from_bytes(*key), VersionId::from_bytes(*version));
        Ok(Self { key, version, iv: *iv, sealed })
    }

    /// Puts a wrapped DEK together.
    pub fn encode(&self) -> Vec<u8> {
        let header = header(self.key, self.version);
        [&header[..], &self.iv, self.sealed].concat()
    }
}

/// What GCM authenticates with a DEK: the header and the caller's AAD. The IV is
/// not in it; GCM authenticates that by itself.
pub fn authenticated(key: KeyId, version: VersionId, aad: &Aad) -> Vec<u8> {
    aad.authenticated_with(&header(key, version))
}

fn header(key: KeyId, version: VersionId) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..5].copy_from_slice(&START);
    header[5..21].copy_from_slice(key.as_bytes());
    header[21..].copy_from_slice(version.as_bytes());
    header
}

/// `"rkw"`, format 1, algorithm 1: AES-256-GCM in the HSM, 96-bit IV, 128-bit tag.
const START: [u8; 5] = *b"rkw\x01\x01";
const HEADER_BYTES: usize = START.len() + 16 + 16;

#[cfg(test)]
mod tests {
    use aes_gcm::aead::{Aead, Payload};
    use aes_gcm::{Aes256Gcm, KeyInit};
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    /// A golden ciphertext: made outside the HSM with a key that is written here,
    /// so that anybody can check the format.
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Vector {
        name: String,
        root_key: String,
        key: String,
        version: String,
        iv: String,
        aad: Vec<String>,
        dek: String,
        wrapped: String,
    }

    fn vectors() -> Vec<Vector> {
        serde_json::from_str(include_str!("vectors.json")).unwrap()
    }

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn golden_vectors_are_what_the_format_says() {
        assert!(vectors().len() >= 4);
        for vector in vectors() {
            let key = KeyId::from_bytes(bytes(&vector.key));
            let version = VersionId::from_bytes(bytes(&vector.version));
            let items = vector.aad.iter().map(|item| hex::decode(item).unwrap()).collect();
            let aad = authenticated(key, version, &Aad::new(items).unwrap());
            let dek = hex::decode(&vector.dek).unwrap();
            let root_key = Aes256Gcm::new(&bytes::<32>(&vector.root_key).into());
            let iv = bytes::<IV_BYTES>(&vector.iv);
            let sealed = root_key.encrypt(&iv.into(), Payload { msg: &dek, aad: &aad }).unwrap();
            let wrapped = Wrapped { key, version, iv, sealed: &sealed }.encode();
            assert_eq!(hex::encode(&wrapped), vector.wrapped, "{}", vector.name);

            let parts = Wrapped::decode(&wrapped).unwrap();
            let opened = root_key
                .decrypt(&parts.iv.into(), Payload { msg: parts.sealed, aad: &aad })
                .unwrap();
            assert_eq!(opened, dek, "{}", vector.name);
        }
    }

    #[test]
    fn every_flipped_bit_of_a_golden_vector_is_refused() {
        for vector in vectors() {
            let root_key = Aes256Gcm::new(&bytes::<32>(&vector.root_key).into());
            let items: Vec<_> = vector.aad.iter().map(|item| hex::decode(item).unwrap()).collect();
            let aad = Aad::new(items).unwrap();
            let wrapped = hex::decode(&vector.wrapped).unwrap();
            for bit in 0..wrapped.len() * 8 {
                let mut flipped = wrapped.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                let Ok(parts) = Wrapped::decode(&flipped) else { continue };
                let aad = authenticated(parts.key, parts.version, &aad);
                let opened =
                    root_key.decrypt(&parts.iv.into(), Payload { msg: parts.sealed, aad: &aad });
                assert!(opened.is_err(), "{} bit {bit}", vector.name);
            }
        }
    }

    #[test]
    fn too_short_and_too_long_are_refused() {
        let sealed = vec![0; 7501 + TAG_BYTES];
        let wrapped = |length: usize| {
            let id = KeyId::from_bytes([1; 16]);
            let parts =
                Wrapped { key: id, version: id.into(), iv: [2; 12], sealed: &sealed[..length] };
            parts.encode()
        };
        assert!(Wrapped::decode(&wrapped(TAG_BYTES)).is_err());
        assert!(Wrapped::decode(&wrapped(TAG_BYTES + 1)).is_ok());
        assert!(Wrapped::decode(&wrapped(TAG_BYTES + 7500)).is_ok());
        assert!(Wrapped::decode(&wrapped(TAG_BYTES + 7501)).is_err());
        for length in 0..OVERHEAD_BYTES {
            assert!(Wrapped::decode(&wrapped(TAG_BYTES + 1)[..length]).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_was_encoded_decodes_to_the_same(
            key: [u8; 16], version: [u8; 16], iv: [u8; 12],
            sealed in proptest::collection::vec(any::<u8>(), 17..=7516),
        ) {
            let (key, version) = (KeyId::from_bytes(key), VersionId::from_bytes(version));
            let parts = Wrapped { key, version, iv, sealed: &sealed };
            let encoded = parts.encode();
            prop_assert_eq!(Wrapped::decode(&encoded), Ok(parts));
        }

        #[test]
        fn decoding_anything_does_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Wrapped::decode(&bytes);
        }
    }
}

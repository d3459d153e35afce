//! What a caller sends to import a key: the material, sealed to the public part
//! of an import pair, and the proof that it is the key that the caller meant.
//!
//! It decides the form alone; the HSM tells whether the material unwraps. Names
//! and lengths: `facts/key-protect.md` section 7.

use std::fmt;
use std::str::FromStr;

use super::Malformed;

/// How the key material is sealed: RSA-OAEP, with the hash also in MGF1 and with
/// an empty label (RFC 8017, section 7.1).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ImportAlgorithm {
    /// With SHA-256.
    OaepSha256,
    /// With SHA-1: sound in OAEP, and all that some tokens can do.
    OaepSha1,
}

impl ImportAlgorithm {
    /// Every algorithm, the best one first.
    pub const ALL: [Self; 2] = [Self::OaepSha256, Self::OaepSha1];

    /// As it is called in a request.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OaepSha256 => "RSAES_OAEP_SHA_256",
            Self::OaepSha1 => "RSAES_OAEP_SHA_1",
        }
    }
}

impl FromStr for ImportAlgorithm {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == text).ok_or(Malformed::new(
            "material.algorithm",
            "must be RSAES_OAEP_SHA_256 or RSAES_OAEP_SHA_1",
        ))
    }
}

impl fmt::Display for ImportAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Key material as it travels: only the HSM that holds the import pair opens it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SealedMaterial {
    /// The key, sealed to the import pair: [`SealedMaterial::ENCRYPTED_KEY_BYTES`].
    pub encrypted_key: Vec<u8>,
    /// How it is sealed.
    pub algorithm: ImportAlgorithm,
    /// The import token's nonce, sealed with the key itself by AES-GCM without
    /// AAD: ciphertext and tag, [`SealedMaterial::ENCRYPTED_NONCE_BYTES`].
    pub encrypted_nonce: Vec<u8>,
    /// The IV of that.
    pub nonce_iv: [u8; Self::NONCE_IV_BYTES],
}

impl SealedMaterial {
    /// As long as the modulus of an import pair, RSA-4096.
    pub const ENCRYPTED_KEY_BYTES: usize = 512;
    /// A nonce of 12 bytes, and a tag of 16.
    pub const ENCRYPTED_NONCE_BYTES: usize = 28;
    /// The IV that AES-GCM is made for.
    pub const NONCE_IV_BYTES: usize = 12;

    /// Of the fields of a request.
    ///
    /// # Errors
    /// [`Malformed`], of the first field `material.*` that has not its length, or
    /// that names no algorithm.
    pub fn new(
        encrypted_key: Vec<u8>,
        algorithm: &str,
        encrypted_nonce: Vec<u8>,
        nonce_iv: &[u8],
    ) -> Result<Self, Malformed> {
        if encrypted_key.len() != Self::ENCRYPTED_KEY_BYTES {
            return Err(Malformed::new("material.encrypted_key", "must be 512 bytes"));
        }
        let algorithm = algorithm.parse()?;
        if encrypted_nonce.len() != Self::ENCRYPTED_NONCE_BYTES {
            return Err(Malformed::new("material.encrypted_nonce", "must be 28 bytes"));
        }
        let nonce_iv = nonce_iv
            .try_into()
            .map_err(|_length| Malformed::new("material.nonce_iv", "must be 12 bytes"))?;
        Ok(Self { encrypted_key, algorithm, encrypted_nonce, nonce_iv })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_algorithm_is_read_by_the_name_that_it_prints_and_by_no_other() {
        for algorithm in ImportAlgorithm::ALL {
            assert_eq!(algorithm.to_string().parse(), Ok(algorithm));
        }
        for text in ["", "rsaes_oaep_sha_1", "RSAES_OAEP_SHA_512", "RSAES_OAEP_SHA_1 "] {
            let refused = text.parse::<ImportAlgorithm>().unwrap_err();
            assert_eq!(refused.field, "material.algorithm");
        }
    }

    #[test]
    fn material_with_a_field_of_another_length_is_refused_by_the_name_of_the_field() {
        let of = |key, nonce, iv| {
            let (key, nonce, iv) = (vec![0; key], vec![0; nonce], vec![0; iv]);
            let material = SealedMaterial::new(key, "RSAES_OAEP_SHA_1", nonce, &iv);
            material.map(|_material| ()).map_err(|malformed| malformed.field)
        };
        assert_eq!(of(512, 28, 12), Ok(()));
        assert_eq!(of(511, 28, 12), Err("material.encrypted_key"));
        assert_eq!(of(0, 0, 0), Err("material.encrypted_key"));
        assert_eq!(of(512, 29, 12), Err("material.encrypted_nonce"));
        assert_eq!(of(512, 28, 16), Err("material.nonce_iv"));
        let unknown = SealedMaterial::new(vec![0; 512], "RSA1_5", vec![0; 28], &[0; 12]);
        assert_eq!(unknown.unwrap_err().field, "material.algorithm");
    }
}

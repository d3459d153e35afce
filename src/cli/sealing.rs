//! Seals the material of a root key to an import token: RSA-OAEP with the token's
//! public key, and as proof of the key the token's nonce under the key itself.
//!
//! The material is in the clear here and in the HSM alone. OAEP: RFC 8017 section
//! 7.1, with the same hash in MGF1 and no label. AES-GCM: NIST SP 800-38D. What is
//! sent: `proto/rootkeyd/v1/keys.proto`.

use std::{fmt, path::PathBuf};

use aes_gcm::{
    Aes128Gcm, Aes256Gcm, AesGcm, KeyInit,
    aead::{Aead, consts::U12},
    aes::Aes192,
};
use aws_lc_rs::{
    error::{KeyRejected, Unspecified},
    rsa::{
        OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepAlgorithm, OaepPublicEncryptingKey,
        PublicEncryptingKey,
    },
};
use clap::ValueEnum;
use rustls_pki_types::{
    SubjectPublicKeyInfoDer,
    pem::{self, PemObject},
};
use thiserror::Error;

use super::failure::Failure;
use crate::{api::pb, secret::Secret};

/// What material is encrypted with.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Algorithm {
    /// RSA-OAEP with SHA-256
    #[value(name = "RSAES_OAEP_SHA_256")]
    OaepSha256,
    /// RSA-OAEP with SHA-1, for HSMs that can do no other
    #[value(name = "RSAES_OAEP_SHA_1")]
    OaepSha1,
}

impl Algorithm {
    /// What is wanted if it is among those `offered`; else the first that is known.
    pub(super) fn choose(offered: &[String], wanted: Option<Self>) -> Result<Self, SealingError> {
        let mut known = offered.iter().filter_map(|name| Self::from_str(name, false).ok());
        match wanted {
            Some(wanted) if known.any(|it| it == wanted) => Ok(wanted),
            Some(wanted) => Err(SealingError::NotOffered { wanted }),
            None => known.next().ok_or(SealingError::NoneKnown),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::OaepSha256 => "RSAES_OAEP_SHA_256",
            Self::OaepSha1 => "RSAES_OAEP_SHA_1",
        }
    }

    fn oaep(self) -> &'static OaepAlgorithm {
        match self {
            Self::OaepSha256 => &OAEP_SHA256_MGF1SHA256,
            Self::OaepSha1 => &OAEP_SHA1_MGF1SHA1,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An AES key that is to be imported.
#[derive(Debug)]
pub(super) struct Material {
    key: Secret,
    size: AesSize,
}

impl Material {
    /// Of the bytes that `file` holds; 16, 24 or 32 are a key.
    pub(super) fn new(key: Secret, file: impl Into<PathBuf>) -> Result<Self, SealingError> {
        let size = match key.len() {
            16 => AesSize::Aes128,
            24 => AesSize::Aes192,
            32 => AesSize::Aes256,
            length => return Err(SealingError::NotAesKey { file: file.into(), length }),
        };
        Ok(Self { key, size })
    }

    /// Whether every byte is one of text, as no key is that was drawn at random.
    pub(super) fn looks_like_text(&self) -> bool {
        self.key.expose().iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    }

    /// Seals it, so that only the HSM that has the token's private key can open it.
    pub(super) fn seal(
        &self,
        token: &pb::ImportToken,
        algorithm: Algorithm,
    ) -> Result<pb::SealedKeyMaterial, Failure> {
        if token.nonce.len() != NONCE_BYTES {
            return Err(Failure::Answer("has an import token without a nonce of 12 bytes"));
        }
        let encrypted_key = self.encrypted_to(&token.public_key, algorithm)?;
        let mut iv = [0; IV_BYTES];
        getrandom::fill(&mut iv)?;
        Ok(pb::SealedKeyMaterial {
            encrypted_key,
            algorithm: algorithm.name().to_owned(),
            encrypted_nonce: self.encrypts(iv, &token.nonce),
            nonce_iv: iv.to_vec(),
        })
    }

    fn encrypted_to(&self, pem: &str, algorithm: Algorithm) -> Result<Vec<u8>, SealingError> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes())
            .map_err(SealingError::NotPem)?;
        let public = PublicEncryptingKey::from_der(&der).map_err(SealingError::NotRsa)?;
        let public = OaepPublicEncryptingKey::new(public).map_err(SealingError::Oaep)?;
        let mut sealed = vec![0; public.ciphertext_size()];
        let length = public
            .encrypt(algorithm.oaep(), self.key.expose(), &mut sealed, None)
            .map_err(SealingError::Oaep)?
            .len();
        sealed.truncate(length);
        Ok(sealed)
    }

    /// AES-GCM under the key itself, without AAD; ciphertext and tag.
    fn encrypts(&self, iv: [u8; IV_BYTES], nonce: &[u8]) -> Vec<u8> {
        fn gcm<C: KeyInit + Aead<NonceSize = U12>>(
            key: &[u8],
            iv: [u8; IV_BYTES],
            nonce: &[u8],
        ) -> Vec<u8> {
            let cipher = C::new_from_slice(key).expect("the size was told from the length");
            cipher.encrypt(&iv.into(), nonce).expect("12 bytes are not too long")
        }
        let key = self.key.expose();
        match self.size {
            AesSize::Aes128 => gcm::<Aes128Gcm>(key, iv, nonce),
            AesSize::Aes192 => gcm::<AesGcm<Aes192, U12>>(key, iv, nonce),
            AesSize::Aes256 => gcm::<Aes256Gcm>(key, iv, nonce),
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum AesSize {
    Aes128,
    Aes192,
    Aes256,
}

/// Material cannot be sealed.
#[derive(Debug, Error)]
pub enum SealingError {
    /// Not as long as an AES key.
    #[error(
        "{}: {length} bytes are no AES key, which has 16, 24 or 32; \
         give --format if it is written in hexadecimal or base64",
        file.display()
    )]
    NotAesKey {
        /// What was read.
        file: PathBuf,
        /// In bytes, after decoding.
        length: usize,
    },
    /// The HSM cannot do what was asked for.
    #[error("the import token does not offer {wanted}")]
    NotOffered {
        /// What was asked for.
        wanted: Algorithm,
    },
    /// The HSM can do nothing that we can.
    #[error("the import token offers no algorithm that this rootkeyctl knows")]
    NoneKnown,
    /// The token's public key is not PEM.
    #[error("the public key of the import token is not in PEM: {0}")]
    NotPem(#[source] pem::Error),
    /// The token's public key is not an RSA key of 2048 to 8192 bits.
    #[error("the public key of the import token is not of RSA: {0}")]
    NotRsa(#[source] KeyRejected),
    /// The library refused, and does not say why.
    #[error("cannot encrypt to the import token: {0}")]
    Oaep(#[source] Unspecified),
}

impl SealingError {
    /// In upper snake case, for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotAesKey { .. } => "FIELD_INVALID",
            Self::NotOffered { .. } | Self::NoneKnown => "ALGORITHM_UNSUPPORTED",
            Self::NotPem(_) | Self::NotRsa(_) | Self::Oaep(_) => "INTERNAL",
        }
    }
}

const NONCE_BYTES: usize = 12;
const IV_BYTES: usize = 12;

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        aead::{AES_128_GCM, AES_192_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
        encoding::{AsDer, PublicKeyX509Der},
        rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey},
    };
    use base64::{Engine, engine::general_purpose::STANDARD};

    use super::*;

    const NONCE: &[u8; 12] = b"twelve bytes";

    /// A token as the HSM makes it, but smaller, and what opens what is sealed to it.
    fn token() -> (pb::ImportToken, PrivateDecryptingKey) {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
        let public_key = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            STANDARD.encode(&*der)
        );
        (pb::ImportToken { public_key, nonce: NONCE.to_vec(), ..Default::default() }, private)
    }

    fn material(length: u8) -> Material {
        Material::new(Secret::new((200..200 + length).collect()), "k").unwrap()
    }

    #[test]
    fn sealed_material_opens_to_the_same_key_and_its_proof_to_the_nonce() {
        let (token, private) = token();
        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        for (length, gcm) in [(16, &AES_128_GCM), (24, &AES_192_GCM), (32, &AES_256_GCM)] {
            for algorithm in [Algorithm::OaepSha256, Algorithm::OaepSha1] {
                let material = material(length);
                let sealed = material.seal(&token, algorithm).unwrap();
                assert_eq!(sealed.algorithm, algorithm.to_string());
                let mut opened = vec![0; private.min_output_size()];
                let opened = private
                    .decrypt(algorithm.oaep(), &sealed.encrypted_key, &mut opened, None)
                    .unwrap();
                assert_eq!(opened, material.key.expose());
                let key = LessSafeKey::new(UnboundKey::new(gcm, opened).unwrap());
                let iv = Nonce::try_assume_unique_for_key(&sealed.nonce_iv).unwrap();
                let mut proof = sealed.encrypted_nonce;
                assert_eq!(proof.len(), 28);
                assert_eq!(key.open_in_place(iv, Aad::empty(), &mut proof).unwrap(), NONCE);
            }
        }
    }

    #[test]
    fn what_is_sealed_with_one_hash_does_not_open_with_the_other() {
        let (token, private) = token();
        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        let sealed = material(32).seal(&token, Algorithm::OaepSha1).unwrap();
        let mut opened = vec![0; private.min_output_size()];
        let other = Algorithm::OaepSha256.oaep();
        assert!(private.decrypt(other, &sealed.encrypted_key, &mut opened, None).is_err());
    }

    #[test]
    fn no_two_seals_have_the_same_iv() {
        let (token, _) = token();
        let iv = || material(32).seal(&token, Algorithm::OaepSha256).unwrap().nonce_iv;
        assert_ne!(iv(), iv());
    }

    #[test]
    fn other_sizes_are_refused_with_the_name_of_the_file() {
        for length in [0, 1, 15, 17, 31, 33, 64] {
            let failure = Failure::from(
                Material::new(Secret::zeroed(length), "/keys/archive.key").unwrap_err(),
            );
            let expected = format!("FIELD_INVALID: /keys/archive.key: {length} bytes are no AES");
            assert!(failure.line().starts_with(&expected), "{failure}");
        }
    }

    #[test]
    fn the_best_algorithm_that_is_offered_and_known_is_chosen() {
        let offered = |names: &[&str]| names.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
        let both = offered(&["KYBER", "RSAES_OAEP_SHA_256", "RSAES_OAEP_SHA_1"]);
        let sha1 = offered(&["RSAES_OAEP_SHA_1"]);
        let choose = |names: &[String], wanted| Algorithm::choose(names, wanted).ok();
        assert_eq!(choose(&both, None), Some(Algorithm::OaepSha256));
        assert_eq!(choose(&both, Some(Algorithm::OaepSha1)), Some(Algorithm::OaepSha1));
        assert_eq!(choose(&sha1, None), Some(Algorithm::OaepSha1));
        assert_eq!(choose(&sha1, Some(Algorithm::OaepSha256)), None);
        assert_eq!(choose(&[], None), None);
    }

    #[test]
    fn a_public_key_that_is_none_is_refused() {
        let (token, _) = token();
        for public_key in ["", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"] {
            let token = pb::ImportToken { public_key: public_key.to_owned(), ..token.clone() };
            let failure = material(32).seal(&token, Algorithm::OaepSha256).unwrap_err();
            assert_eq!(failure.reason(), "INTERNAL", "{failure}");
        }
    }

    #[test]
    fn a_token_without_its_nonce_is_refused() {
        let (token, _) = token();
        let token = pb::ImportToken { nonce: Vec::new(), ..token };
        assert!(material(32).seal(&token, Algorithm::OaepSha256).is_err());
    }

    #[test]
    fn text_is_told_from_a_key() {
        let text = Secret::new(b"00112233445566778899aabbccddeeff".to_vec());
        assert!(Material::new(text, "k").unwrap().looks_like_text());
        assert!(!material(32).looks_like_text());
    }
}

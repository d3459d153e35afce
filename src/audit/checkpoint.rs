//! Checkpoints: what the log was at one time, as a signed note (C2SP signed-note and
//! tlog-checkpoint), signature type 0x02: ECDSA P-256 over SHA-256, in DER.
//!
//! Text and verification; pure. Who signs is not decided here. `docs/audit-format.md`.

use std::fmt;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use thiserror::Error;

/// What a checkpoint says of the log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Checkpoint {
    /// Whose log it is: no spaces, no `+`.
    pub origin: String,
    /// How many records there were.
    pub size: u64,
    /// Root of the Merkle tree over the hashes of the records.
    pub root: [u8; 32],
    /// Hash of the last record; zeros if there was none.
    pub head: [u8; 32],
    /// Which run of the daemon signed it.
    pub boot_id: String,
    /// When, in microseconds since the Unix epoch.
    pub time_micros: i64,
}

/// The public key that checkpoints are verified with.
#[derive(Clone, Debug)]
pub struct CheckpointKey {
    /// DER of the SubjectPublicKeyInfo.
    spki: Vec<u8>,
}

/// A note that cannot be believed.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum BadCheckpoint {
    /// It has not the form.
    #[error("it is no checkpoint of rootkeyd")]
    Malformed,
    /// No signature on it is by the key.
    #[error("it is not signed by the key")]
    Unsigned,
    /// The signature of the key does not verify.
    #[error("its signature does not verify")]
    BadSignature,
}

impl Checkpoint {
    /// The note, with this signature (DER) of its text.
    pub fn signed(&self, key: &CheckpointKey, signature: &[u8]) -> String {
        let line = STANDARD.encode([&key.id(), signature].concat());
        format!("{self}\n\u{2014} {} {line}\n", self.origin)
    }

    /// What a note says, if the key signed it.
    ///
    /// # Errors
    /// [`BadCheckpoint`].
    pub fn verified(note: &str, key: &CheckpointKey) -> Result<Self, BadCheckpoint> {
        let (text, signatures) = note.rsplit_once("\n\n").ok_or(BadCheckpoint::Malformed)?;
        let text = format!("{text}\n");
        let checkpoint = Self::parse(&text).ok_or(BadCheckpoint::Malformed)?;
        for line in signatures.lines() {
            let line = line.strip_prefix("\u{2014} ").ok_or(BadCheckpoint::Malformed)?;
            let (name, bytes) = line.split_once(' ').ok_or(BadCheckpoint::Malformed)?;
            let bytes = STANDARD.decode(bytes).map_err(|_other| BadCheckpoint::Malformed)?;
            let (id, signature) = bytes.split_at_checked(4).ok_or(BadCheckpoint::Malformed)?;
            if name == checkpoint.origin && id == key.id() {
                let verifier = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.spki);
                let verified = verifier.verify(text.as_bytes(), signature);
                return verified.map(|()| checkpoint).map_err(|_wrong| BadCheckpoint::BadSignature);
            }
        }
        Err(BadCheckpoint::Unsigned)
    }

    /// What is signed: SHA-256 of the text.
    pub fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.to_string()).into()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let checkpoint = Self {
            origin: lines.next()?.to_owned(),
            size: lines.next()?.parse().ok()?,
            root: hash_in(lines.next()?)?,
            head: hash_in(lines.next()?.strip_prefix("head ")?)?,
            boot_id: lines.next()?.strip_prefix("boot ")?.to_owned(),
            time_micros: lines.next()?.strip_prefix("time_micros ")?.parse().ok()?,
        };
        // Strict by construction: only what we would write.
        (checkpoint.to_string() == text).then_some(checkpoint)
    }
}

/// The text that is signed.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, size, root, head, boot_id, time_micros } = self;
        let (root, head) = (STANDARD.encode(root), STANDARD.encode(head));
        write!(
            f,
            "{origin}\n{size}\n{root}\nhead {head}\nboot {boot_id}\ntime_micros {time_micros}\n"
        )
    }
}

impl CheckpointKey {
    /// From the DER of a SubjectPublicKeyInfo.
    pub fn from_spki(spki: Vec<u8>) -> Self {
        Self { spki }
    }

    fn id(&self) -> [u8; 4] {
        let hash: [u8; 32] = Sha256::digest(&self.spki).into();
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

fn hash_in(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
pub(super) mod tests {
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

    use super::*;

    /// Signs as the HSM would.
    pub(in crate::audit) struct Signer(EcdsaKeyPair);

    impl Signer {
        pub(in crate::audit) fn new() -> Self {
            Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap())
        }

        pub(in crate::audit) fn key(&self) -> CheckpointKey {
            let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().unwrap();
            CheckpointKey::from_spki(der.as_ref().to_vec())
        }

        pub(in crate::audit) fn sign(&self, checkpoint: &Checkpoint) -> String {
            let text = checkpoint.to_string();
            let signature = self.0.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
            checkpoint.signed(&self.key(), signature.as_ref())
        }
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            origin: "rootkeyd/test".into(),
            size: 7,
            root: [1; 32],
            head: [2; 32],
            boot_id: "b".into(),
            time_micros: 5,
        }
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_was_signed() {
        let signer = Signer::new();
        let note = signer.sign(&checkpoint());
        assert_eq!(Checkpoint::verified(&note, &signer.key()), Ok(checkpoint()));
    }

    #[test]
    fn another_key_and_every_changed_byte_of_the_text_are_refused() {
        let signer = Signer::new();
        let note = signer.sign(&checkpoint());
        let other = Signer::new().key();
        assert_eq!(Checkpoint::verified(&note, &other), Err(BadCheckpoint::Unsigned));
        let text = checkpoint().to_string().len();
        for at in 0..text {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            let Ok(changed) = String::from_utf8(bytes) else { continue };
            assert!(Checkpoint::verified(&changed, &signer.key()).is_err(), "byte {at}");
        }
    }
}

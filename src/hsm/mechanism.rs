//! Which mechanism of the token does what, with its parameters: the only file
//! that names a CKM.
//!
//! AES-GCM in one part is the one authenticated mechanism that SoftHSM, NSS and
//! kryoptic all have (`facts/hsm-and-grpc.md`, B).

use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki_sys::{CK_MECHANISM_TYPE, CK_ULONG, CKM_AES_GCM};

use crate::domain::ImportAlgorithm;

/// Seals and opens DEKs.
pub(super) const CKM_SEAL: CK_MECHANISM_TYPE = CKM_AES_GCM;
/// Length of the IV, in bytes. Always 12: SoftHSM miscomputes with very long ones.
pub(super) const IV_BYTES: usize = 12;
/// The same in bits.
pub(super) const IV_BITS: CK_ULONG = 96;
/// Length of the tag, in bytes.
pub(super) const TAG_BYTES: usize = 16;
/// The same in bits.
pub(super) const TAG_BITS: CK_ULONG = 128;

/// Makes a root key.
pub(super) const MAKE_ROOT_KEY: Mechanism<'static> = Mechanism::AesKeyGen;
/// What a root key may be used for.
pub(super) const SEAL: MechanismType = MechanismType::AES_GCM;

/// Makes a master key.
pub(super) const MAKE_MASTER: Mechanism<'static> = Mechanism::AesKeyGen;
/// Wraps and unwraps root keys that are kept in the store: RFC 3394, which carries its own
/// proof of integrity, and no AAD. Of the others that tokens have, CKM_AES_KEY_WRAP_PAD
/// means three things in three modules and CKM_AES_CBC_PAD takes what was tampered with.
/// An AES key needs no padding, so CKM_AES_KEY_WRAP_KWP would give nothing more.
pub(super) const WRAP_KEY: Mechanism<'static> = Mechanism::AesKeyWrap;
/// What a master key may be used for.
pub(super) const WRAP_KEY_TYPE: MechanismType = MechanismType::AES_KEY_WRAP;
/// How much longer a wrapped key is than the key, in bytes.
pub(super) const WRAP_KEY_BYTES: usize = 8;

/// Makes an import pair.
pub(super) const MAKE_IMPORT_PAIR: Mechanism<'static> = Mechanism::RsaPkcsKeyPairGen;
/// What an import pair may be used for.
pub(super) const UNWRAP: MechanismType = MechanismType::RSA_PKCS_OAEP;
/// RSA without padding, for the half of an unwrap that `oaep.rs` completes.
pub(super) const RAW_RSA: Mechanism<'static> = Mechanism::RsaX509;
/// What an import pair may be used for besides, if that half is wanted.
pub(super) const RAW_RSA_TYPE: MechanismType = MechanismType::RSA_X_509;

/// Unwraps key material. A token that lists the mechanism may still refuse the
/// parameters: SoftHSM takes SHA-1 alone. So it is tried (`unwrapping.rs`).
pub(super) fn unwrap(algorithm: ImportAlgorithm) -> Mechanism<'static> {
    let (hash, mgf) = match algorithm {
        ImportAlgorithm::OaepSha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
        ImportAlgorithm::OaepSha1 => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
    };
    Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mgf, PkcsOaepSource::empty()))
}

/// Makes the signer.
pub(super) const MAKE_SIGNER: Mechanism<'static> = Mechanism::EccKeyPairGen;
/// Signs a hash that was made here: SoftHSM has ECDSA over a hash and not over a text.
pub(super) const SIGN: Mechanism<'static> = Mechanism::Ecdsa;
/// What the signer may be used for.
pub(super) const SIGN_TYPE: MechanismType = MechanismType::ECDSA;

/// The mechanisms that the daemon needs, with what for.
pub(super) const NEEDED: [(MechanismType, &str); 2] = [
    (MechanismType::AES_GCM, "wrap and unwrap DEKs"),
    (MechanismType::AES_KEY_GEN, "make root keys"),
];

/// The mechanisms that the daemon uses if the token has them, with what for.
pub(super) const USED: [(MechanismType, &str); 5] = [
    (MechanismType::AES_KEY_WRAP, "wrap root keys that are kept in the store"),
    (MechanismType::RSA_PKCS_OAEP, "unwrap imported root keys"),
    (MechanismType::RSA_PKCS_KEY_PAIR_GEN, "make import pairs"),
    (MechanismType::ECC_KEY_PAIR_GEN, "make the signer of checkpoints"),
    (MechanismType::ECDSA, "sign checkpoints of the audit log"),
];

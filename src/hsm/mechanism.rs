//! Which mechanism of the token does what, with its parameters: the only file
//! that names a CKM.
//!
//! AES-GCM in one part is the one authenticated mechanism that SoftHSM, NSS and
//! kryoptic all have (`facts/hsm-and-grpc.md`, B).

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki_sys::{CK_MECHANISM_TYPE, CK_ULONG, CKM_AES_GCM};

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

/// The mechanisms that the daemon needs, with what for.
pub(super) const NEEDED: [(MechanismType, &str); 2] = [
    (MechanismType::AES_GCM, "wrap and unwrap DEKs"),
    (MechanismType::AES_KEY_GEN, "make root keys"),
];

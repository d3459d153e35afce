//! Where the material of a root key is: in the HSM as an object of its own, or wrapped
//! under a key of the HSM and kept in the store.
//!
//! Wrapped material exists in plaintext nowhere but in the HSM, which unwraps it into a
//! session object when the key is used. `docs/adr/0023`.

use std::fmt;

use super::{Malformed, ObjectId, Timestamp};

/// What is done with key material that is made from now on.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Residency {
    /// It stays in the token, as an object.
    #[default]
    Token,
    /// It is kept in the store, wrapped.
    Wrapped,
}

/// The material of one version as the store keeps it.
#[derive(Clone, Eq, PartialEq)]
pub struct WrappedKey {
    /// CKA_ID of the master key that it is wrapped under.
    pub master: ObjectId,
    blob: Box<[u8]>,
}

/// A key of the HSM under which root keys are wrapped. It never leaves the HSM.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MasterKey {
    /// Its CKA_ID.
    pub object: ObjectId,
    /// When it was made.
    pub created: Timestamp,
}

impl WrappedKey {
    /// Of a blob as the HSM gave it, by RFC 3394: 8 bytes longer than an AES key.
    ///
    /// # Errors
    /// [`Malformed`], if it is of no such length.
    pub fn new(master: ObjectId, blob: Vec<u8>) -> Result<Self, Malformed> {
        if BLOB_BYTES.contains(&blob.len()) {
            return Ok(Self { master, blob: blob.into() });
        }
        Err(Malformed::new("wrapped", "has a wrapped key of an impossible length"))
    }

    /// As the HSM gave it.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }
}

impl fmt::Debug for WrappedKey {
    /// Without the blob, so that none is in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappedKey").field("master", &self.master).finish_non_exhaustive()
    }
}

/// Lengths of AES keys wrapped by RFC 3394, in bytes.
const BLOB_BYTES: [usize; 3] = [24, 32, 40];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_as_long_as_a_wrapped_aes_key() {
        let of = |length| WrappedKey::new(ObjectId::from_bytes([1; 16]), vec![0; length]).is_ok();
        let good: Vec<_> = (0..64).filter(|length| of(*length)).collect();
        assert_eq!(good, BLOB_BYTES);
    }
}

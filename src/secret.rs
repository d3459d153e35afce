//! `Secret`: bytes that are wiped when dropped and that nothing can print,
//! copy, compare or serialize. A DEK, a PIN and a token are `Secret`s.
//!
//! `expose` is the only door. It is called in `hsm/`, `api/convert.rs` and `cli/`.

use std::fmt;

use bytes::Bytes;
use zeroize::{Zeroize, Zeroizing};

/// Bytes that are wiped when dropped.
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes the bytes over; no copy stays behind.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// `length` zero bytes, to be filled through [`Secret::expose_mut`].
    pub fn zeroed(length: usize) -> Self {
        Self::new(vec![0; length])
    }

    /// The bytes themselves.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes themselves, to be written.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// In bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is not one byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Shortens to `length` bytes and wipes the rest.
    pub fn truncate(&mut self, length: usize) {
        if length < self.0.len() {
            self.0[length..].zeroize();
            self.0.truncate(length);
        }
    }

    /// For an answer: `Bytes` that are wiped when the last handle to them goes.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_its_length_alone() {
        assert_eq!(format!("{:?}", Secret::new(b"hunter2".to_vec())), "Secret(7 bytes)");
    }

    #[test]
    fn truncate_shortens_and_never_grows() {
        let mut secret = Secret::new(vec![1, 2, 3]);
        secret.truncate(5);
        assert_eq!(secret.expose(), [1, 2, 3]);
        secret.truncate(1);
        assert_eq!(secret.expose(), [1]);
    }
}

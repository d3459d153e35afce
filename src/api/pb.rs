//! The messages and services of `rootkeyd.v1`, compiled from `proto/` by
//! `build.rs`, and the `Debug` of those that hold a DEK.

#![expect(missing_docs, reason = "generated; the comments in proto/ are the documentation")]
#![expect(clippy::allow_attributes_without_reason, reason = "generated")]

use std::fmt;

tonic::include_proto!("rootkeyd.v1");

/// The serialized `FileDescriptorSet` of every file in `proto/`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rootkeyd.v1.bin"));

/// The daemon's domain in `ErrorInfo`, and the package of the contract.
pub const ERROR_DOMAIN: &str = "rootkeyd.v1";

impl fmt::Debug for WrapDekRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret_debug(f, "WrapDekRequest", &self.key, self.dek.len())
    }
}

impl fmt::Debug for UnwrapDekResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret_debug(f, "UnwrapDekResponse", &self.key_version, self.dek.len())
    }
}

impl fmt::Debug for GenerateDekResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        secret_debug(f, "GenerateDekResponse", &self.key_version, self.dek.len())
    }
}

fn secret_debug(f: &mut fmt::Formatter<'_>, name: &str, key: &str, dek: usize) -> fmt::Result {
    write!(f, "{name} {{ key: {key:?}, dek: {dek} bytes, .. }}")
}

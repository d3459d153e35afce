//! HSM.

use thiserror::Error;

/// The HSM could not do what was asked.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum HsmError {
    /// The ciphertext does not verify under that root key and AAD.
    #[error("the ciphertext does not verify")]
    Unverified,
    /// The queue is full; nothing was done.
    #[error("the queue of the HSM is full")]
    Overloaded,
    /// The deadline passed before an answer.
    #[error("the HSM did not answer in time")]
    Deadline,
    /// The token is not there, or does not work.
    #[error("the HSM cannot be used now")]
    Unavailable,
    /// The token works, and does not show the object.
    #[error("the HSM does not show the object")]
    Missing,
    /// The module refused, with this CK_RV.
    #[error("the HSM refused with {0:#x}")]
    Refused(u64),
}

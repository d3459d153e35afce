//! The rules of the house: what a key is, what its state allows, who may do what.
//!
//! Pure: no I/O, no clock, no async, no protobuf, no SQL, no PKCS#11, no logging.
//! The time is an argument (`now`). `tests/architecture.rs` checks what this
//! folder imports.

pub mod aad;
pub mod access;
pub mod deletion;
pub mod event;
pub mod id;
pub mod import;
pub mod key;
pub mod lifecycle;
pub mod time;

pub use aad::Aad;
pub use access::{Binding, Bindings, Permission, Role};
pub use event::{Event, Outcome};
pub use id::{
    Alias, InstanceId, KeyId, KeyName, KeyRef, Malformed, ObjectId, PrincipalId, VersionId,
};
pub use import::{ImportAlgorithm, SealedMaterial};
pub use key::{Key, KeyDetails, Version};
pub use lifecycle::{History, KeyAction, KeyState, Profile, Refusal, Refused};
pub use time::Timestamp;

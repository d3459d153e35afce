//! The rules of the house: what a key is, what its state allows, who may do what.
//!
//! Pure: no I/O, no clock, no async, no protobuf, no SQL, no PKCS#11, no logging.
//! The time is an argument (`now`). `tests/architecture.rs` checks what this
//! folder imports.

pub mod aad;
pub mod access;
pub mod binding;
pub mod campaign;
pub mod deletion;
pub mod event;
pub mod id;
pub mod import;
pub mod import_token;
pub mod instance;
pub mod key;
pub mod key_event;
pub mod lifecycle;
pub mod policy;
pub mod registration;
pub mod residency;
pub mod resource_action;
pub mod resource_status;
pub mod rotation;
pub mod severity;
pub mod time;

pub use aad::Aad;
pub use access::{Bindings, Permission, Place, Role};
pub use binding::{Area, Binding, BindingSubject, Gift, Scope};
pub use campaign::{Campaign, CampaignState};
pub use deletion::{Denied, Force, Registered};
pub use event::{Event, LogPosition, Outcome};
pub use id::{
    Alias, BindingCollection, BindingId, BindingName, InstanceId, KeyId, KeyName, KeyRef,
    KeyRingId, KeyRingName, Malformed, ObjectId, PrincipalId, RegistrationId, RegistrationName,
    ServiceName, VersionId,
};
pub use import::{ImportAlgorithm, SealedMaterial};
pub use import_token::{ImportToken, TokenEnded};
pub use instance::{Instance, KeyRing};
pub use key::{Key, KeyDetails, Version};
pub use key_event::{KeyEvent, KeyEventKind, NewKeyEvent};
pub use lifecycle::{History, KeyAction, KeyState, Profile, Refusal, Refused};
pub use policy::{Ipv4Net, Policies, PolicyChange};
pub use registration::{Crn, CrnPattern, Registration, ResourceKind};
pub use residency::{MasterKey, Residency, WrappedKey};
pub use resource_action::ResourceAction;
pub use resource_status::Condition;
pub use rotation::RotationPeriod;
pub use severity::Severity;
pub use time::{Moment, RunTime, Timestamp};

//! What happened: the vocabulary of the audit log. An event says who asked for
//! what of which key and what became of it; never a DEK, a wrapped DEK or AAD.
//!
//! Action names: `facts/key-protect.md` section 10.

use std::borrow::Cow;

use super::Timestamp;

/// One call, or one thing the daemon did by itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Event {
    /// Random; the same in the store's outbox and in the audit log.
    pub id: [u8; 16],
    /// When.
    pub time: Timestamp,
    /// In Key Protect's words, such as `kms.secrets.unwrap`.
    pub action: Cow<'static, str>,
    /// SPIFFE ID of who asked; `daemon` for what it does by itself.
    pub principal: String,
    /// Address of the caller's socket; empty for the daemon's own.
    pub source_address: String,
    /// Tenant that it concerns; empty if none or not known.
    pub instance: String,
    /// The name that the call gave or made.
    pub subject: String,
    /// Key version that was used; empty if none.
    pub key_version: String,
    /// CRN of the resource, as the caller gave it; empty if none.
    pub resource: String,
    /// What became of it.
    pub outcome: Outcome,
    /// The caller's id of the request, or one made for it.
    pub request_id: String,
    /// More about what changed: names and values.
    pub details: Vec<(String, String)>,
}

/// What became of a call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It did what was asked.
    Success,
    /// It was refused, for this reason (as in ErrorInfo).
    Refused(Cow<'static, str>),
}

/// A place in the audit log: behind so many records, the last of which has this hash.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LogPosition {
    /// How many records are before it.
    pub records: u64,
    /// Of the last of them; zeros if there is none.
    pub hash: [u8; 32],
}

/// The principal of what the daemon does by itself.
pub const DAEMON: &str = "daemon";

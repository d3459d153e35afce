//! Bounds of the listener and of what is asked through it: `[limits]` of the
//! configuration, and what `[listen]` has of old.

use std::time::Duration;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// Connections at a time of one principal; more are refused.
    pub principal_connections: usize,
    /// Calls at a time on one connection.
    pub streams: u32,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How old a connection grows before it is ended.
    pub connection_age: Duration,
    /// How long a caller waits who does not say.
    pub request: Duration,
    /// How long a caller waits at most.
    pub longest_request: Duration,
    /// Bytes of the headers of a request.
    pub header_bytes: u32,
    /// Bytes of a message with DEKs.
    pub dek_message_bytes: usize,
    /// Bytes of any other message.
    pub message_bytes: usize,
    /// DEKs a second of one principal; 0 is no limit.
    pub data_per_second: u32,
    /// Other calls a second of one principal; 0 is no limit.
    pub control_per_second: u32,
    /// Calls a second of one principal that take access away; 0 is no limit.
    pub tightening_per_second: u32,
    /// Calls about DEKs that may be under way.
    pub calls: usize,
    /// Other calls that may be under way.
    pub control_calls: usize,
    /// Calls of each kind that may wait for room; 0 if none does.
    pub waiting: usize,
}

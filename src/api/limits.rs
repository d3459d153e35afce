//! Bounds of the listener and of what is asked through it: `[limits]` of the
//! configuration, and what `[listen]` has of old.

use std::time::Duration;

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more wait to be accepted.
    pub connections: usize,
    /// Calls at a time on one connection.
    pub streams: u32,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How old a connection grows before it is ended.
    pub connection_age: Duration,
}

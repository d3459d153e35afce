//! The edges: decode, call one use case, encode. And the listener: TLS, limits,
//! health and reflection.

mod connection;
mod convert;
mod cores;
pub mod decoding;
mod dispatch;
mod grpc;
pub mod guard;
mod handshakes;
mod limits;
mod local;
pub mod methods;
pub mod pb;
mod refusals;
mod server;
pub mod status;
mod timely;
mod tls;
mod tokens;
mod trust;

pub use cores::Cores;
pub use limits::Limits;
pub use local::{Local, LocalPrincipal, Who};
pub use server::{Listeners, Serving, serve};
pub use tls::{Identity, TlsError};
pub use tokens::Tokens;

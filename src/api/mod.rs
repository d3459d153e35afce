//! The edges: decode, call one use case, encode. And the listener: TLS, limits,
//! health and reflection.

mod convert;
mod grpc;
pub mod guard;
mod handshakes;
mod limits;
pub mod methods;
pub mod pb;
mod refusals;
mod server;
pub mod status;
mod tls;
mod trust;

pub use limits::Limits;
pub use server::{Serving, serve};
pub use tls::{Identity, TlsError};

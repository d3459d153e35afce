//! The edges: decode, call one use case, encode. And the listener: TLS, limits,
//! health and reflection.

mod convert;
mod grpc;
pub mod methods;
pub mod pb;
mod refusals;
mod server;
pub mod status;
mod tls;

pub use server::{Limits, Serving, serve};
pub use tls::{Identity, TlsError};

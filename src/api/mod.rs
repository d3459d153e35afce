//! The edges: gRPC.

pub mod pb;

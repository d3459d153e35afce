//! Who asks.

pub mod mtls;

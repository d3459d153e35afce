//! Who asks.

pub mod bearer;
pub mod mtls;

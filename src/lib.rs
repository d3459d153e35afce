//! rootkeyd.

pub mod api;
pub mod secret;

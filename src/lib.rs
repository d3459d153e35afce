//! rootkeyd wraps and unwraps data-encryption keys (DEKs) with root keys that
//! never leave a PKCS#11 HSM.
//!
//! The path of a request, top to bottom: `api` decodes it, `service` decides
//! (by the rules of `domain`) and acts through `hsm`, `store` and `audit`.
//! `app` is the one place that knows every module. ARCHITECTURE.md has the map,
//! and `tests/architecture.rs` holds the code to it.

// Before what uses its macro.
#[macro_use]
pub mod failpoint;

pub mod api;
pub mod app;
pub mod audit;
pub mod auth;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod dev;
pub mod domain;
pub mod envelope;
pub mod error;
mod gather;
pub mod hsm;
pub mod memory;
pub mod secret;
pub mod service;
pub mod sinks;
pub mod store;
pub mod telemetry;

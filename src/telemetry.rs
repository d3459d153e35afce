//! Logging: one line an event, on standard error, by `tracing`.
//!
//! What is logged are ids, names, reasons and counts; never a DEK, a wrapped DEK,
//! AAD or a PIN. `tests/canary.rs` looks for them at level TRACE.

use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Begins to log.
///
/// # Errors
/// A sentence, if the filter is none.
pub fn init(log: &Log) -> Result<(), String> {
    let filter = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_unset| log.filter.clone());
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| format!("log.filter: {filter:?} is not a filter ({error})"))?;
    // cryptoki cries out at every mechanism of a token that it has no name for.
    let filter =
        filter.add_directive(NAMELESS_MECHANISMS.parse().map_err(|_bad| "our own filter")?);
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let begun = match log.format {
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
    begun.map_err(|error| format!("logging cannot begin: {error}"))
}

const NAMELESS_MECHANISMS: &str = "cryptoki::mechanism=off";
const FILTER_VARIABLE: &str = "ROOTKEYD_LOG";

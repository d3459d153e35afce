//! Why the service did not do what was asked; one line of it is printed.

use std::{
    io,
    path::{Path, PathBuf},
};

use rootkeyd::client::{ClientError, Refusal};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The root key, or the daemon, said no.
    #[error("{}", line(.0))]
    Refused(#[from] Refusal),
    #[error("CONFIG: {0}")]
    Client(#[from] ClientError),
    #[error("FILE: {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("METADATA: {}: {source}", path.display())]
    Metadata { path: PathBuf, source: serde_json::Error },
    #[error("TOOL: {tool}: {said}")]
    Tool { tool: &'static str, said: String },
    #[error("NOT_FOUND: there is no {name}")]
    NotThere { name: String },
    #[error("NAME: {name:?} is not 1 to 40 letters, digits, - or _")]
    Name { name: String },
    #[error("TAKEN: there is a {name} already")]
    Taken { name: String },
    #[error("KIND: {name} is not something that can be {action}")]
    Kind { name: String, action: &'static str },
    #[error("IN_USE: {name} is attached, mounted, or of a server that runs")]
    InUse { name: String },
    #[error("OFFLINE: {name} is not attached or mounted, so its data cannot be reached")]
    Offline { name: String },
    #[error("NOT_UP: {name} did not come up; its console ends with: {said}")]
    NotUp { name: String, said: String },
    #[error("DATA: {name} does not hold what was to be there")]
    OtherData { name: String },
    #[error("EVENT: not done for {}", .failed.join("; "))]
    Partly { failed: Vec<String> },
}

/// `REASON (status_reason): message`.
fn line(refusal: &Refusal) -> String {
    match refusal.why().status_reason() {
        Some(status_reason) => format!("{} ({status_reason}): {refusal}", refusal.reason),
        None => format!("{}: {refusal}", refusal.reason),
    }
}

pub(crate) fn file(path: &Path) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::File { path: path.into(), source }
}

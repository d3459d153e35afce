//! What the HSM is and how it is driven.

use std::path::PathBuf;
use std::time::Duration;

use super::SessionObjects;

/// What the HSM is and how it is driven.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The PKCS#11 module, a shared library.
    pub module: PathBuf,
    /// Label of the token that holds the root keys.
    pub token_label: String,
    /// File with the user PIN, and nothing else but a line end.
    pub pin_file: PathBuf,
    /// Sessions that do work, one thread each.
    pub workers: usize,
    /// Jobs that may wait.
    pub queue: usize,
    /// How long one job may take before its worker is given up and replaced.
    pub stuck_after: Duration,
    /// Directory whose file system is synchronized after an object was made or
    /// destroyed: for SoftHSM, which does not do so itself.
    pub sync_directory: Option<PathBuf>,
    /// Whether to take key material sealed with SHA-256 even if the token cannot
    /// unwrap it: raw RSA in the token and the rest here, so that the key is in
    /// our memory for a moment.
    pub software_unwrap: bool,
    /// How session objects stand in for root keys.
    pub session_objects: SessionObjects,
    /// Where the module runs.
    pub isolation: Isolation,
}

/// Where the module runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Isolation {
    /// In this process; a worker is a thread.
    Threads,
    /// In processes of its own: if the module crashes, the daemon goes on.
    Processes(Processes),
}

/// How worker processes are run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Processes {
    /// What starts one.
    pub command: WorkerCommand,
    /// Locked by the one that changes objects, in the state directory: no other daemon
    /// changes any before it is done.
    pub writer_lock: PathBuf,
    /// Whether the module may speak to the network.
    pub network: bool,
}

/// A program that calls [`super::serve_worker`] with the socket that is its standard input.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkerCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

//! What the programs ask of the kernel, at their start, so that no secret in their memory
//! comes to a disk or to another process: no core dump, no tracing, no swap.
//!
//! The fourth, that what is freed is wiped, is the allocator of both programs
//! (`src/bin/`). What stays nevertheless is in `docs/threat-model.md`.

use std::io;

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, capabilities};
use serde::Deserialize;
use thiserror::Error;

/// Whether memory is kept from swap.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum MemoryLock {
    /// All of it is, or the daemon does not start.
    #[default]
    Required,
    /// Not by the daemon.
    Off,
}

/// Memory cannot be locked.
#[derive(Debug, Error)]
#[error(
    "memory.lock: memory cannot be kept from swap: {source}; the limit is {limit}: run with \
     RLIMIT_MEMLOCK unlimited (LimitMEMLOCK=infinity, ulimit -l unlimited) or CAP_IPC_LOCK, or \
     say memory.lock = \"off\" where there is no swap"
)]
pub struct NotLocked {
    limit: String,
    source: io::Error,
}

/// No core dump, and no tracing or reading by other processes of the same user. Being
/// not dumpable also keeps a dump from programs that core_pattern pipes it to, which a
/// limit of 0 does not.
///
/// # Errors
/// What the system said.
pub fn keep_to_ourselves() -> io::Result<()> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none)?;
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Keeps all memory from swap, now and later: each page from its first use on, so no more
/// is resident than is used. Takes all or nothing: with a limit, memory of any kind would
/// fail to be had once it is reached.
///
/// # Errors
/// [`NotLocked`], with what to do.
pub fn lock() -> Result<(), NotLocked> {
    let limit = getrlimit(Resource::Memlock).current;
    let refused = |source: Errno| NotLocked {
        limit: limit.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes")),
        source: source.into(),
    };
    let may = capabilities(None).map_err(refused)?.effective.contains(CapabilitySet::IPC_LOCK);
    if limit.is_some() && !may {
        return Err(refused(Errno::PERM));
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        .map_err(refused)
}

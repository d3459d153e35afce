//! The runtimes that serve connections: each is one thread with a runtime of its own, and a
//! connection stays on one from its handshake to its end. So a call moves between no
//! threads but to the HSM and back, which costs half of what a shared runtime does
//! (docs/performance.md).
//!
//! A runtime lives until [`Cores`] is dropped, although its server ended before: changes that
//! its calls began go on in it.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// The threads with a runtime each.
pub struct Cores {
    cores: Vec<Core>,
    /// Dropped, it ends them.
    end: watch::Sender<()>,
    threads: Vec<JoinHandle<()>>,
}

/// One of them. A clone is the same one.
#[derive(Clone)]
pub(super) struct Core {
    pub(super) runtime: Handle,
    /// One clone for each connection that it serves, and one of its own.
    seats: Arc<()>,
}

/// A connection's place at a core: the core is the busier for it.
pub(super) struct Seat(#[expect(dead_code, reason = "it is counted")] Arc<()>);

impl Cores {
    /// Starts so many, at least one.
    ///
    /// # Errors
    /// If a thread or a runtime cannot be made.
    pub fn start(number: usize) -> io::Result<Self> {
        let (end, ended) = watch::channel(());
        let mut all = Self { cores: Vec::new(), end, threads: Vec::new() };
        for number in 0..number.max(1) {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            all.cores.push(Core { runtime: runtime.handle().clone(), seats: Arc::default() });
            let mut ended = ended.clone();
            let thread = std::thread::Builder::new().name(format!("serve-{number}"));
            let thread = thread.spawn(move || {
                // Err, which is the end: the sender is gone.
                runtime.block_on(async { while ended.changed().await.is_ok() {} });
            })?;
            all.threads.push(thread);
        }
        Ok(all)
    }

    pub(super) fn all(&self) -> &[Core] {
        &self.cores
    }

    /// Ends them, and what goes on in them. Blocks.
    pub fn stop(self) {
        let Self { cores: _, end, threads } = self;
        drop(end);
        for thread in threads {
            // Err: it panicked, which the panic hook has logged.
            let _ = thread.join();
        }
    }
}

impl Core {
    /// How many connections it has.
    pub(super) fn connections(&self) -> usize {
        Arc::strong_count(&self.seats)
    }

    pub(super) fn seat(&self) -> Seat {
        Seat(Arc::clone(&self.seats))
    }
}

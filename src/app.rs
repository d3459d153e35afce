//! The composition root: the only place that knows every module, and that reads
//! the clock. Starts everything in order, and stops it in the reverse.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::net::TcpListener;

use crate::api::{self, Cores, Listeners, Serving, TlsError};
use crate::audit::{Audit, AuditError};
use crate::clock::{ClockSource, RawTime, Trust};
use crate::config::Config;
use crate::domain::Timestamp;
use crate::hsm::{Health, Hsm};
use crate::service::{Service, SignerProblem};
use crate::sinks::Sinks;
use crate::store::{Sqlite, Store, StoreError};

/// A daemon that serves.
pub struct App {
    address: SocketAddr,
    serving: Serving,
    cores: Cores,
    service: Arc<Service>,
    hsm: Hsm,
    store: Arc<dyn Store>,
    audit: Audit,
    sinks: Sinks,
    _lock: Lock,
}

/// What to do with a store and an audit log that are not of the same time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RestoredStore {
    /// Nothing is unwrapped until an operator accepts them.
    Await,
    /// An operator accepts them.
    Accept,
}

/// The state directory is ours, until this is dropped.
pub struct Lock {
    _file: File,
}

/// Why the daemon cannot start, in a sentence.
#[derive(Debug, Error)]
pub enum AppError {
    /// Another daemon has the state directory.
    #[error("the state directory {} is in use by the rootkeyd with pid {pid}; stop that one, or use another directory", directory.display())]
    InUse {
        /// The state directory.
        directory: PathBuf,
        /// The other daemon, as it wrote itself down.
        pid: String,
    },
    /// A directory or file cannot be made or opened.
    #[error("{}: {source}", path.display())]
    Io {
        /// Directory or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The threads that serve cannot be made.
    #[error("a thread cannot be made: {0}")]
    Threads(io::Error),
    /// The audit log cannot be opened.
    #[error("the audit log cannot be opened: {0}")]
    Audit(#[from] AuditError),
    /// The store cannot be opened.
    #[error("the store cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// What is in store and audit log cannot be used.
    #[error("the state cannot be loaded: {0}")]
    State(#[from] crate::error::Error),
    /// Checkpoints of the audit log have a signer, which is not there.
    #[error("{0}")]
    Signer(#[from] SignerProblem),
    /// The TLS files cannot be used.
    #[error("{0}")]
    Tls(#[from] TlsError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the state directory, which is made if there is none.
    ///
    /// # Errors
    /// [`AppError::InUse`], naming the daemon that has it.
    pub fn take(directory: &Path) -> Result<Self, AppError> {
        let io = |source| AppError::Io { path: directory.into(), source };
        fs::create_dir_all(directory).map_err(io)?;
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Whatever can be read helps.
                let _ = file.read_to_string(&mut pid);
                let pid = pid.trim().to_owned();
                return Err(AppError::InUse { directory: directory.into(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let pid = std::process::id();
        let noted = file.set_len(0).and_then(|()| file.rewind());
        // On a full disk there is no place for it. It is for people; the lock is what counts.
        if let Err(error) = noted.and_then(|()| writeln!(file, "{pid}")) {
            let directory = directory.display();
            eprintln!("rootkeyd: the pid cannot be noted in {directory}: {error}");
        }
        Ok(Self { _file: file })
    }
}

impl App {
    /// Starts everything; the daemon serves when this returns. An HSM that is not
    /// there is no reason not to start: calls that need it are refused until it is.
    ///
    /// # Errors
    /// [`AppError`].
    pub async fn start(
        config: Config,
        lock: Lock,
        clock: (ClockSource, Trust),
        restored: RestoredStore,
    ) -> Result<Self, AppError> {
        let audit = Audit::open(config.audit)?;
        let positions = config.sinks.directory.clone();
        let sinks = Sinks::start(&audit, config.sinks)
            .map_err(|source| AppError::Io { path: positions, source })?;
        let file = config.state_dir.join("store.sqlite");
        let store: Arc<dyn Store> = Arc::new(Sqlite::open(&file, config.store_queue)?);
        let threads = |source| AppError::Io { path: config.hsm.module.clone(), source };
        let hsm = Hsm::start(config.hsm.clone()).map_err(threads)?;
        let service = Service::load(
            (hsm.clone(), Arc::clone(&store), audit.clone()),
            config.access,
            config.service,
            clock,
        )?;
        match restored {
            RestoredStore::Accept => service.accept_restored_store().await?,
            RestoredStore::Await => service.tell_recovery().await,
        }
        tokio::spawn(record_refused(Arc::clone(&service)));
        // An old store does nothing by itself: it would purge, rotate and undo by what it knows.
        if !service.is_recovering() {
            tokio::spawn(Arc::clone(&service).reconcile_with_hsm());
            tokio::spawn(tidy(Arc::clone(&service)));
            tokio::spawn(Arc::clone(&service).keep_schedule());
        }

        let mut health = hsm.watch();
        let known = health.wait_for(|health| !matches!(health, Health::Starting));
        // An HSM that takes its time may be ready later.
        let _ = tokio::time::timeout(HSM_PATIENCE, known).await;

        if let Err(problem) = prepare_signer(&service, &hsm).await {
            // SoftHSM crashes at exit otherwise.
            drop(tokio::task::spawn_blocking(move || hsm.stop()).await);
            return Err(problem.into());
        }
        // Nor is a log signed that may be another than the one before.
        if !service.is_recovering() {
            tokio::spawn(Arc::clone(&service).keep_checkpoints());
        }

        let (listener, address) = listen(config.listen).await?;
        let control = match config.control {
            None => None,
            Some(address) => {
                let (listener, address) = listen(address).await?;
                tracing::info!(%address, "listening for control");
                Some(listener)
            }
        };
        let local = match config.local {
            None => None,
            Some(local) => {
                let io = |source| AppError::Io { path: local.path.clone(), source };
                Some((local.bind().await.map_err(io)?, local))
            }
        };
        let cores = Cores::start(config.threads).map_err(AppError::Threads)?;
        let serving = api::serve(
            Arc::clone(&service),
            (Listeners { tls: listener, control, local }, &cores),
            &config.identity,
            hsm.watch(),
            config.limits,
        )?;
        tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
        Ok(Self { address, serving, cores, service, hsm, store, audit, sinks, _lock: lock })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops in order: no new calls, those that were begun are answered, changes
    /// are finished, HSM, store and audit log are closed.
    pub async fn stop(self) {
        let Self { serving, cores, service, hsm, store, audit, sinks, .. } = self;
        serving.drain(DRAIN_PATIENCE).await;
        if tokio::time::timeout(DRAIN_PATIENCE, service.finish()).await.is_err() {
            tracing::warn!("a change was not done in time; it is undone at the next start");
        }
        if !service.is_recovering() {
            service.make_last_checkpoint().await;
        }
        let closed = tokio::task::spawn_blocking(move || {
            cores.stop();
            hsm.stop();
            store.close();
            audit.close();
            sinks.stop(SINKS_PATIENCE);
        });
        if tokio::time::timeout(DRAIN_PATIENCE, closed).await.is_err() {
            // A call into the module hangs. What is acknowledged is durable.
            tracing::error!("HSM, store or audit log did not close in time");
        }
        tracing::info!("stopped");
    }
}

/// The machine's clocks: the date, and the time since its boot, sleep included.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn system_clocks() -> ClockSource {
    let read = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time = Timestamp::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let seconds = u64::try_from(boot.tv_sec).unwrap_or(0);
        let micros = u64::try_from(boot.tv_nsec / 1_000).unwrap_or(0);
        RawTime { time, steady: seconds * 1_000_000 + micros }
    };
    // Not known: then no two runs count as of one boot.
    let boot = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
    ClockSource { boot, read: Arc::new(read) }
}

/// Without the HSM checkpoints begin later. If it is there and the signer is not, the
/// daemon does not start.
async fn prepare_signer(service: &Service, hsm: &Hsm) -> Result<(), SignerProblem> {
    if !hsm.is_up() {
        return Ok(());
    }
    match service.prepare_signer().await {
        Err(problem) if problem.is_grave() => Err(problem),
        Err(problem) => {
            tracing::warn!(%problem, "checkpoints of the audit log cannot be signed now");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), AppError> {
    let failed = |source| AppError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

/// What is tried again from time to time: events for the audit log that wait in
/// the outbox, and objects in the HSM that are to be undone.
async fn tidy(service: Arc<Service>) {
    let mut tick = tokio::time::interval(TIDY_EVERY);
    loop {
        tick.tick().await;
        service.refill_reserve();
        service.publish_rest().await;
        service.undo_intents().await;
    }
}

/// What was refused because there was too much of it.
async fn record_refused(service: Arc<Service>) {
    let mut tick = tokio::time::interval(RECORD_EVERY);
    loop {
        tick.tick().await;
        service.record_refused().await;
    }
}

/// Where Linux says which boot it is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// How long the start waits for the HSM.
const HSM_PATIENCE: Duration = Duration::from_secs(3);
/// How long the stop waits, for calls, changes and threads each.
const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
const RECORD_EVERY: Duration = Duration::from_secs(1);
/// How long the sinks may take to catch up.
const SINKS_PATIENCE: Duration = Duration::from_secs(3);
const TIDY_EVERY: Duration = Duration::from_secs(5);

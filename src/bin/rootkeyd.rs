//! The daemon: arguments → configuration → logging → app → serve → drain.

use std::alloc::System;
use std::io::Write;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use rootkeyd::app::{App, Lock, RestoredStore, system_clocks};
use rootkeyd::clock::{ClockSource, Trust};
use rootkeyd::config::{Config, Log, LogFormat};
use rootkeyd::memory::MemoryLock;
use rootkeyd::{dev, hsm, memory, telemetry};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use zeroizing_alloc::ZeroAlloc;

/// Wipes what is freed: DEKs pass through buffers that are not ours, of HTTP/2 and TLS.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

/// Wraps and unwraps data-encryption keys with root keys in a PKCS#11 HSM.
#[derive(Parser)]
#[command(version, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
struct Arguments {
    /// Serve by this configuration (see rootkeyd.example.toml).
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Take the machine's clock as right although it is behind what the daemon has
    /// seen. Recorded in the audit log.
    #[arg(long)]
    accept_clock: bool,
    /// Go on with a store that is older than the audit log, or an audit log that is older
    /// than the store. Recorded in the audit log. See docs/operations.md first.
    #[arg(long)]
    accept_restored_store: bool,
    #[command(subcommand)]
    mode: Option<Mode>,
}

#[derive(Subcommand)]
enum Mode {
    /// Serve for development: on first use make token, CA and configuration.
    Dev(Dev),
    /// Drive the HSM for the daemon at the other end of standard input.
    #[command(hide = true)]
    HsmWorker(HsmWorker),
}

#[derive(Args)]
struct HsmWorker {
    #[arg(long)]
    log_filter: String,
    #[arg(long)]
    log_json: bool,
    #[arg(long)]
    lock_memory: bool,
}

#[derive(Args)]
struct Dev {
    /// Where everything is kept.
    #[arg(long)]
    dir: PathBuf,
    /// Where to serve; port 0 for any free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8443")]
    listen: SocketAddr,
    /// Take the time from this file: `system`, an offset such as `+31s`, or an
    /// RFC 3339 time at which the clock stands.
    #[arg(long, value_name = "FILE")]
    test_clock: Option<PathBuf>,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("rootkeyd: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    // What we write is for us alone, and no memory of ours is ever in a file.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    memory::keep_to_ourselves()?;
    let trust = if arguments.accept_clock { Trust::Machine } else { Trust::Seen };
    let restored = match arguments.accept_restored_store {
        true => RestoredStore::Accept,
        false => RestoredStore::Await,
    };
    match (arguments.config, arguments.mode) {
        (Some(file), _) => {
            let config = Config::read(&file)?;
            let lock = Lock::take(&config.state_dir)?;
            serve((config, lock), (system_clocks(), trust), restored, None)
        }
        (None, Some(Mode::Dev(dev))) => serve_dev(dev),
        (None, Some(Mode::HsmWorker(worker))) => serve_hsm(worker),
        (None, None) => Err("give --config FILE, or dev --dir DIR".into()),
    }
}

/// A worker process. It has no threads but the module's.
fn serve_hsm(worker: HsmWorker) -> Result<(), Failure> {
    let HsmWorker { log_filter, log_json, lock_memory } = worker;
    if lock_memory {
        memory::lock()?;
    }
    let format = if log_json { LogFormat::Json } else { LogFormat::Text };
    telemetry::init(&Log { format, filter: log_filter })?;
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    Ok(hsm::serve_worker(socket.into())?)
}

fn serve_dev(Dev { dir, listen, test_clock }: Dev) -> Result<(), Failure> {
    dev::with_softhsm(&dir)?;
    let dir = dir.canonicalize()?;
    // Before anything is made: two at once must not make two tokens.
    let lock = Lock::take(&dir.join("state"))?;
    let config = dev::prepare(&dir, listen)?;
    let clock = match test_clock {
        Some(file) => dev::file_clocks(&file, &system_clocks())?,
        None => system_clocks(),
    };
    serve((config, lock), (clock, Trust::Seen), RestoredStore::Await, Some(dir))
}

fn serve(
    (config, lock): (Config, Lock),
    clock: (ClockSource, Trust),
    restored: RestoredStore,
    dev_directory: Option<PathBuf>,
) -> Result<(), Failure> {
    match config.memory {
        MemoryLock::Required => memory::lock()?,
        MemoryLock::Off => {}
    }
    telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let app = App::start(config, lock, clock, restored).await?;
        if let Some(directory) = dev_directory {
            dev::write_client_config(&directory, app.address())?;
        }
        writeln!(std::io::stdout(), "listening on {}", app.address())?;
        sd_notify::notify(&[NotifyState::Ready])?;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        sd_notify::notify(&[NotifyState::Stopping])?;
        app.stop().await;
        Ok(())
    });
    // A thread that hangs in the module must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

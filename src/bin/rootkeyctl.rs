//! The command-line client: arguments in, exit code out. The rest is `rootkeyd::cli`.

use std::{
    alloc::System,
    io::{self, Write},
    process::{ExitCode, exit},
};

use clap::Parser;
use rootkeyd::cli::{self, Args};
use rootkeyd::memory;
use tokio::{
    runtime::Handle,
    select,
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
};
use zeroizing_alloc::ZeroAlloc;

/// Wipes what is freed: DEKs pass through buffers that are not ours, of HTTP/2 and TLS.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

/// The command has a thread of its own, so that it may block on files and pipes
/// while this one hears signals and the worker keeps the connection alive.
#[tokio::main(worker_threads = 1)]
async fn main() -> ExitCode {
    let args = Args::parse();
    // DEKs and tokens are in our memory, as they are in the daemon's.
    if let Err(error) = memory::keep_to_ourselves() {
        drop(writeln!(io::stderr(), "rootkeyctl: a core dump cannot be prevented: {error}"));
        return ExitCode::FAILURE;
    }
    let runtime = Handle::current();
    let command = spawn_blocking(move || runtime.block_on(Box::pin(cli::run(args))));
    let result = select! {
        result = command => result,
        signal = interrupted() => {
            let _none_begins = cli::stop_new_files();
            exit(128 + signal);
        }
    };
    match result {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            drop(writeln!(io::stderr(), "{}", failure.line()));
            ExitCode::FAILURE
        }
        Err(_panicked) => ExitCode::FAILURE,
    }
}

/// The number of the signal that asks to end.
async fn interrupted() -> i32 {
    let listen = |kind| signal(kind).expect("the runtime handles signals");
    let mut interrupt = listen(SignalKind::interrupt());
    let mut terminate = listen(SignalKind::terminate());
    let mut hang_up = listen(SignalKind::hangup());
    select! {
        _ = interrupt.recv() => SignalKind::interrupt().as_raw_value(),
        _ = terminate.recv() => SignalKind::terminate().as_raw_value(),
        _ = hang_up.recv() => SignalKind::hangup().as_raw_value(),
    }
}

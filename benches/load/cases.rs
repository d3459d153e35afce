//! The cases, as a table, and the processes that they need. What a case is set beside
//! comes right before it, so that both see the same machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::callers::{Call, Target};
use crate::commit::Commits;
use crate::daemon::{Daemon, SESSIONS};
use crate::figures::Taken;
use crate::peer::Peer;

/// One row of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Case {
    pub name: &'static str,
    /// Callers at a time.
    pub concurrency: usize,
    pub what: What,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum What {
    /// A kind of loop on the token.
    Hsm(&'static str),
    /// The same on the simulated network HSM, with so many microseconds a call.
    NetworkHsm(u64),
    /// One write and fdatasync.
    Commit,
    /// The echo as tonic does it.
    Echo(Call),
    /// The echo with a runtime for each core.
    PerCore(Call),
    /// The daemon.
    Daemon(Call),
    /// The daemon before the simulated network HSM.
    Network(u64, Call),
}

use What::{Commit, Echo, Hsm, Network, NetworkHsm, PerCore};

const fn case(name: &'static str, concurrency: usize, what: What) -> Case {
    Case { name, concurrency, what }
}

const UNWRAP: Call = Call::Unwrap;
const STREAM: Call = Call::Stream(256);
const DAEMON_UNWRAP: What = What::Daemon(UNWRAP);
const DAEMON_WRAP: What = What::Daemon(Call::Wrap);

/// All of them. The concurrency of batches and streams is that of calls.
#[rustfmt::skip]
const CASES: [Case; 36] = [
    case("hsm_decrypt",              1, Hsm("decrypt")),
    case("hsm_decrypt_session_copy", 1, Hsm("decrypt_copy")),
    case("hsm_encrypt",              1, Hsm("encrypt")),
    case("durable_commit",           1, Commit),
    case("echo",                     1, Echo(UNWRAP)),
    case("unwrap",                   1, DAEMON_UNWRAP),
    case("wrap",                     1, DAEMON_WRAP),
    case("echo",                    16, Echo(UNWRAP)),
    case("unwrap",                  16, DAEMON_UNWRAP),
    case("wrap",                    16, DAEMON_WRAP),
    case("echo",                    64, Echo(UNWRAP)),
    case("unwrap",                  64, DAEMON_UNWRAP),
    case("wrap",                    64, DAEMON_WRAP),
    case("echo",                   256, Echo(UNWRAP)),
    case("unwrap",                 256, DAEMON_UNWRAP),
    case("wrap",                   256, DAEMON_WRAP),
    case("echo_per_core",            1, PerCore(UNWRAP)),
    case("echo_per_core",           16, PerCore(UNWRAP)),
    case("echo_per_core",           64, PerCore(UNWRAP)),
    case("echo_per_core",          256, PerCore(UNWRAP)),
    case("echo_batch_64",            8, Echo(Call::Batch(64))),
    case("batch_64",                 8, What::Daemon(Call::Batch(64))),
    case("echo_batch_1000",          2, Echo(Call::Batch(1000))),
    case("batch_1000",               2, What::Daemon(Call::Batch(1000))),
    case("echo_stream",              4, Echo(STREAM)),
    case("stream",                   4, What::Daemon(STREAM)),
    case("network_1ms_hsm",         16, NetworkHsm(1_000)),
    case("network_1ms_unwrap",      64, Network(1_000, UNWRAP)),
    case("network_1ms_unwrap",     256, Network(1_000, UNWRAP)),
    case("network_1ms_batch_64",    16, Network(1_000, Call::Batch(64))),
    case("network_1ms_stream",       4, Network(1_000, STREAM)),
    case("network_3ms_hsm",         16, NetworkHsm(3_000)),
    case("network_3ms_unwrap",      64, Network(3_000, UNWRAP)),
    case("network_3ms_unwrap",     256, Network(3_000, UNWRAP)),
    case("network_3ms_batch_64",    16, Network(3_000, Call::Batch(64))),
    case("network_3ms_stream",       4, Network(3_000, STREAM)),
];

/// Those whose name contains `pattern`, and what they are set beside.
pub fn chosen(pattern: &str) -> Vec<Case> {
    let named: Vec<_> = CASES.into_iter().filter(|it| it.name.contains(pattern)).collect();
    let mut beside: BTreeSet<_> = named.iter().flat_map(|case| case.beside()).collect();
    if beside.contains(&("hsm_decrypt", 1)) {
        beside.insert(("hsm_decrypt_session_copy", 1));
    }
    let wanted =
        |case: &Case| named.contains(case) || beside.contains(&(case.name, case.concurrency));
    CASES.into_iter().filter(wanted).collect()
}

impl Case {
    pub fn title(&self) -> String {
        format!("{} {}", self.name, self.concurrency)
    }

    /// Name and concurrency of the cases whose CPU together is the least that this one can
    /// take: gRPC and HSM.
    pub fn beside(&self) -> Vec<(&'static str, usize)> {
        let What::Daemon(call) = self.what else { return Vec::new() };
        let echo = match call {
            Call::Unwrap | Call::Wrap => "echo",
            Call::Batch(64) => "echo_batch_64",
            Call::Batch(_) => "echo_batch_1000",
            Call::Stream(_) => "echo_stream",
        };
        let hsm = if call == Call::Wrap { "hsm_encrypt" } else { "hsm_decrypt" };
        let commit =
            (call == Call::Unwrap && self.concurrency == 1).then_some(("durable_commit", 1));
        [(echo, self.concurrency), (hsm, 1)].into_iter().chain(commit).collect()
    }

    /// Microseconds of a call to the simulated network HSM.
    pub fn latency(&self) -> Option<u64> {
        match self.what {
            Network(micros, _) | NetworkHsm(micros) => Some(micros),
            Hsm(_) | Commit | Echo(_) | PerCore(_) | What::Daemon(_) => None,
        }
    }
}

/// The processes, of which each lives as long as the run.
pub struct Machinery {
    runtime: Runtime,
    daemon: Daemon,
    token: Peer,
    echo: (Peer, Target),
    per_core: (Peer, Target),
    commits: Commits,
    /// Bytes that an unwrap adds to the audit log.
    record: usize,
    network: Option<(Daemon, Peer)>,
    _directory: TempDir,
}

impl Machinery {
    /// What they keep is in `work`, for a disk: the system's temporary files may be in
    /// memory, where nothing needs to be made durable.
    pub fn new(cases: &[Case], work: &Path) -> Self {
        let runtime = Runtime::new().unwrap();
        let work = work.canonicalize().unwrap();
        let directory = tempfile::tempdir_in(work).unwrap();
        let at = |name: &str| -> PathBuf { directory.path().join(name) };
        let daemon = Daemon::start(&runtime, &at("daemon"));
        let network = cases.iter().any(|case| case.latency().is_some()).then(|| {
            let daemon = Daemon::start_network(&runtime, &at("network"));
            let token = daemon.token_loop();
            (daemon, token)
        });
        let before = daemon.audit_bytes();
        let first = daemon.target.turn(&runtime, UNWRAP, 1, Duration::from_millis(200));
        let record = usize::try_from((daemon.audit_bytes() - before) / first.calls).unwrap();
        Self {
            token: daemon.token_loop(),
            echo: daemon.echo(&runtime, &[]),
            per_core: daemon.echo(&runtime, &["--per-core"]),
            commits: Commits::in_directory(&daemon.directory),
            record,
            network,
            daemon,
            runtime,
            _directory: directory,
        }
    }

    /// One turn of a case.
    pub fn run(&mut self, case: &Case, time: Duration) -> Taken {
        let (runtime, callers, seconds) = (&self.runtime, case.concurrency, time.as_secs_f64());
        let network = |micros| {
            let network = self.network.as_ref().unwrap();
            network.0.set_latency(micros);
            network
        };
        match case.what {
            Hsm(kind) => Taken::parse(&self.token.ask(&format!("{kind} 1 {seconds}"))),
            Commit => self.commits.turn(self.record, time),
            Echo(call) => self.echo.1.turn(runtime, call, callers, time),
            PerCore(call) => self.per_core.1.turn(runtime, call, callers, time),
            What::Daemon(call) => self.daemon.target.turn(runtime, call, callers, time),
            Network(micros, call) => network(micros).0.target.turn(runtime, call, callers, time),
            NetworkHsm(micros) => {
                self.network.as_ref().unwrap().0.set_latency(micros);
                let token = &mut self.network.as_mut().unwrap().1;
                Taken::parse(&token.ask(&format!("decrypt {SESSIONS} {seconds}")))
            }
        }
    }
}

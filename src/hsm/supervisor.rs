//! The supervisor: brings the module up, watches over its workers, takes it down
//! and brings it up again, for as long as the daemon lives.
//!
//! Down means: stop the workers, refuse what waits, close the sessions, finalize
//! the module. In another order SoftHSM crashes (`facts/hsm-and-grpc.md`, C).

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use cryptoki::context::Pkcs11;
use cryptoki::session::Session;
use tokio::sync::watch;

use super::job::{Job, Work};
use super::object::Kind;
use super::token::{self, Problem, Token};
use super::worker::{Activity, Never, Worker};
use super::{Health, HsmError, Settings, object};
use crate::domain::ObjectId;

/// What the supervisor is told.
pub(super) enum Control {
    /// End.
    Stop,
    /// A worker of that generation found that the token cannot be used.
    Lost { generation: u64 },
}

/// Owns module and workers.
pub(super) struct Supervisor {
    settings: Settings,
    ask: Sender<Job>,
    jobs: Receiver<Job>,
    control: Sender<Control>,
    orders: Receiver<Control>,
    tell: watch::Sender<Health>,
    token: Arc<ArcSwapOption<Token>>,
}

/// The module while it is up.
struct Up {
    generation: u64,
    module: Pkcs11,
    token: Arc<Token>,
    /// Holds the login.
    session: Session,
    workers: Vec<Hand>,
    /// Dropped, it stops the workers.
    stop: Sender<Never>,
    stopped: Receiver<Never>,
}

/// A worker's thread, and what it is at.
struct Hand {
    thread: JoinHandle<()>,
    activity: Arc<Activity>,
}

/// Whether to go on.
#[derive(Clone, Copy, PartialEq)]
enum Next {
    Again,
    End,
}

impl Supervisor {
    pub(super) fn new(
        settings: Settings,
        (ask, jobs): (Sender<Job>, Receiver<Job>),
        (control, orders): (Sender<Control>, Receiver<Control>),
        tell: watch::Sender<Health>,
        token: Arc<ArcSwapOption<Token>>,
    ) -> Self {
        Self { settings, ask, jobs, control, orders, tell, token }
    }

    /// Until it is told to stop.
    pub(super) fn run(self) {
        let mut generation = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            generation += 1;
            let next = match self.bring_up(generation) {
                Ok(mut up) => {
                    pause = FIRST_PAUSE;
                    let next = self.watch(&mut up);
                    self.take_down(up, next);
                    next
                }
                Err(problem) => {
                    self.say_down(problem.to_string());
                    let next = self.wait_out(&problem, pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    next
                }
            };
            self.refuse_all();
            if next == Next::End {
                return;
            }
        }
    }

    fn bring_up(&self, generation: u64) -> Result<Up, Problem> {
        let module = token::load(&self.settings.module)?;
        let up = Token::open(&module, &self.settings)
            .and_then(|(token, session)| self.start(generation, module.clone(), token, session));
        let up = up.inspect_err(|_problem| finalize(module))?;
        self.token.store(Some(Arc::clone(&up.token)));
        tracing::info!(
            generation,
            objects = up.token.shown(Kind::RootKey).len(),
            "the HSM is ready"
        );
        self.tell.send_replace(Health::Ready { generation });
        self.try_unwrapping(&up);
        Ok(up)
    }

    fn start(
        &self,
        generation: u64,
        module: Pkcs11,
        token: Token,
        session: Session,
    ) -> Result<Up, Problem> {
        if token.handle(Kind::RootKey, CANARY).is_none() {
            object::generate(&session, CANARY)?;
            token.note(Kind::RootKey, CANARY, object::find_one(&session, Kind::RootKey, CANARY)?);
        }
        let token = Arc::new(token);
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let workers = Vec::new();
        let mut up = Up { generation, module, token, session, workers, stop, stopped };
        for _ in 0..self.settings.workers {
            self.add_worker(&mut up)?;
        }
        Ok(up)
    }

    fn add_worker(&self, up: &mut Up) -> Result<(), Problem> {
        let activity = Arc::new(Activity::default());
        let sync_directory = self.settings.sync_directory.clone();
        let worker = Worker::new(Arc::clone(&up.token), sync_directory, Arc::clone(&activity))?;
        let (jobs, stopped, control) =
            (self.jobs.clone(), up.stopped.clone(), self.control.clone());
        let generation = up.generation;
        let thread = std::thread::Builder::new().name(format!("hsm-{}", up.workers.len()));
        let thread = thread.spawn(move || {
            if let Err(lost) = worker.run(&jobs, &stopped) {
                tracing::error!(%lost, "an HSM worker lost the token");
                // Err: the supervisor has as many such messages as it needs.
                drop(control.try_send(Control::Lost { generation }));
            }
        });
        let thread = thread.map_err(Problem::Thread)?;
        up.workers.push(Hand { thread, activity });
        Ok(())
    }

    /// Until the token is lost or the end is ordered.
    fn watch(&self, up: &mut Up) -> Next {
        loop {
            match self.orders.recv_timeout(PROBE_EVERY) {
                Ok(Control::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    return Next::End;
                }
                Ok(Control::Lost { generation }) if generation == up.generation => {
                    return Next::Again;
                }
                Ok(Control::Lost { .. }) => {}
                Err(RecvTimeoutError::Timeout) => {
                    self.replace_stuck(up);
                    if !self.answers(up) {
                        tracing::error!("the HSM does not answer the probe");
                        return Next::Again;
                    }
                    self.try_unwrapping(up);
                }
            }
        }
    }

    /// Gives workers up that hang in the module, since a C call cannot be
    /// cancelled, and puts others in their places: so many and no more, as each
    /// holds a session.
    fn replace_stuck(&self, up: &mut Up) {
        let limit = self.settings.stuck_after;
        let stuck = up.workers.iter().filter(|hand| hand.activity.is_stuck(limit));
        let newly = stuck.filter(|hand| hand.activity.fence()).count();
        for _ in 0..newly {
            tracing::error!(?limit, "an HSM worker hangs in the module; it is given up");
            if up.workers.len() >= MOST_REPLACED * self.settings.workers {
                tracing::error!("too many HSM workers hang; no more are replaced");
            } else if let Err(problem) = self.add_worker(up) {
                tracing::error!(%problem, "an HSM worker cannot be replaced");
            }
        }
    }

    /// Has a worker try what key material the token unwraps, unless that is known.
    /// A full queue is no matter: the next time will do.
    fn try_unwrapping(&self, up: &Up) {
        if up.token.ways.get().is_none() {
            let deadline = Instant::now() + PROBE_PATIENCE;
            drop(self.ask.try_send(Job { work: Work::TryUnwrapping, deadline }));
        }
    }

    /// Whether a worker does what it is asked. While jobs wait they show it.
    fn answers(&self, up: &Up) -> bool {
        if !self.jobs.is_empty() {
            return true;
        }
        let (reply, answer) = crossbeam_channel::bounded(1);
        let deadline = Instant::now() + PROBE_PATIENCE;
        match self.ask.try_send(Job { work: Work::Probe(reply), deadline }) {
            Ok(()) => answer.recv_timeout(PROBE_PATIENCE).unwrap_or_else(|_no_answer| {
                // All may be making import pairs; `replace_stuck` looks after those.
                up.workers.iter().any(|hand| hand.activity.is_slow())
            }),
            // Full: jobs wait after all.
            Err(_full) => true,
        }
    }

    fn take_down(&self, up: Up, next: Next) {
        // First, so that no new job is taken and callers fail at once.
        self.token.store(None);
        match next {
            Next::Again => self.say_down(LOST.into()),
            Next::End => drop(self.tell.send_replace(Health::Down { problem: ENDED.into() })),
        }
        let Up { module, session, workers, stop, .. } = up;
        drop(stop);
        let until = Instant::now() + JOIN_PATIENCE;
        while Instant::now() < until && workers.iter().any(|hand| !hand.thread.is_finished()) {
            std::thread::sleep(JOIN_PAUSE);
        }
        let (done, stuck): (Vec<_>, Vec<_>) =
            workers.into_iter().partition(|hand| hand.thread.is_finished());
        for Hand { thread, .. } in done {
            // Err: it panicked, which the panic hook has logged.
            let _ = thread.join();
        }
        drop(session);
        if stuck.is_empty() {
            finalize(module);
        } else {
            // To finalize under a thread that is in the module would crash.
            tracing::error!(workers = stuck.len(), "workers hang; the module is not finalized");
        }
    }

    fn say_down(&self, problem: String) {
        let known = matches!(&*self.tell.borrow(), Health::Down { problem: p } if *p == problem);
        if !known {
            tracing::error!(problem, "the HSM is down");
            self.tell.send_replace(Health::Down { problem });
        }
    }

    /// Waits until it makes sense to try again.
    fn wait_out(&self, problem: &Problem, pause: Duration) -> Next {
        let tried = stamp(&self.settings.pin_file);
        loop {
            match self.orders.recv_timeout(pause) {
                Ok(Control::Stop) | Err(RecvTimeoutError::Disconnected) => return Next::End,
                Ok(Control::Lost { .. }) => {}
                Err(RecvTimeoutError::Timeout) => {
                    // The same wrong PIN once more could lock the token.
                    let refused = matches!(problem, Problem::PinRefused { .. });
                    if !refused || stamp(&self.settings.pin_file) != tried {
                        return Next::Again;
                    }
                }
            }
        }
    }

    fn refuse_all(&self) {
        for job in self.jobs.try_iter() {
            job.refuse(HsmError::Unavailable);
        }
    }
}

fn finalize(module: Pkcs11) {
    if let Err(error) = module.finalize() {
        tracing::warn!(%error, "the module cannot be finalized");
    }
}

/// When a file was changed, and its length in bytes.
pub(super) type Stamp = (SystemTime, u64);

/// Changes when the file does.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// A root key that wraps nothing: it is there to be tried.
pub(super) const CANARY: ObjectId = ObjectId::from_bytes(*b"rootkeyd-canary\0");
/// How often a quiet token is tried.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long to wait before the module is brought up again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a quiet token may take to answer.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);
/// How long workers may take to end, and how often that is looked at.
const JOIN_PATIENCE: Duration = Duration::from_secs(5);
const JOIN_PAUSE: Duration = Duration::from_millis(1);
/// Workers that hang and their replacements, to one that was configured.
const MOST_REPLACED: usize = 4;
const ENDED: &str = "the daemon stops";
const LOST: &str = "the token is lost; connect it again, and the daemon recovers by itself";

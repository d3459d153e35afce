//! The supervisor: brings the module up, watches over its workers, takes it down
//! and brings it up again, for as long as the daemon lives.
//!
//! Down means: stop the workers, refuse what waits, close the sessions, finalize
//! the module. In another order SoftHSM crashes (`facts/hsm-and-grpc.md`, C).
//! Its circuit breaker: `circuit.rs`.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use cryptoki::context::Pkcs11;
use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use tokio::sync::watch;

use super::activity::Activity;
use super::circuit::Pulse;
use super::copying::decide;
use super::job::{Job, Work};
use super::login::Login;
use super::object::Kind;
use super::root_key::patiently;
use super::token::{self, Problem, Token};
use super::worker::{Never, Worker, prove};
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
    pub(super) settings: Settings,
    pub(super) ask: Sender<Job>,
    pub(super) jobs: Receiver<Job>,
    control: Sender<Control>,
    orders: Receiver<Control>,
    pub(super) tell: watch::Sender<Health>,
    pub(super) token: Arc<ArcSwapOption<Token>>,
    login: Arc<Login>,
    /// Threads of earlier starts that hang in the module to this day.
    hung: Vec<JoinHandle<()>>,
}

/// The module while it is up.
pub(super) struct Up {
    pub(super) generation: u64,
    module: Pkcs11,
    pub(super) token: Arc<Token>,
    /// Holds the login.
    session: Session,
    pub(super) workers: Vec<Hand>,
    /// Dropped, it stops the workers.
    stop: Sender<Never>,
    stopped: Receiver<Never>,
    pub(super) pulse: Pulse,
}

/// A worker's thread, and what it is at.
pub(super) struct Hand {
    pub(super) thread: JoinHandle<()>,
    pub(super) activity: Arc<Activity>,
}

/// Whether to go on.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Next {
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
        let login = Arc::new(Login::new(settings.pin_file.clone()));
        Self { settings, ask, jobs, control, orders, tell, token, login, hung: Vec::new() }
    }

    /// Until it is told to stop.
    pub(super) fn run(mut self) {
        let mut generation = 0;
        let mut pause = FIRST_PAUSE;
        loop {
            generation += 1;
            let next = match self.bring_up(generation) {
                Ok(mut up) => {
                    let since = Instant::now();
                    let next = self.watch(&mut up);
                    self.take_down(up, next);
                    pause = FIRST_PAUSE;
                    match next {
                        // The first time in a while: at once.
                        Next::Again if since.elapsed() >= STEADY => next,
                        Next::Again => self.wait_out(None, pause),
                        Next::End => next,
                    }
                }
                Err(problem) => {
                    self.say_down(problem.to_string());
                    let next = self.wait_out(Some(&problem), pause);
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

    fn bring_up(&mut self, generation: u64) -> Result<Up, Problem> {
        self.hung.retain(|thread| !thread.is_finished());
        if self.hung.len() >= MOST_REPLACED * self.settings.workers {
            return Err(Problem::Hung(self.hung.len()));
        }
        let module = token::load(&self.settings.module)?;
        let up = Token::open(&module, &self.settings, &self.login)
            .and_then(|(token, session)| self.start(generation, module.clone(), token, session));
        let up = up.inspect_err(|_problem| self.finalize(module))?;
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
        try_canary(&token, &session)?;
        decide(&token, self.settings.session_objects.copies);
        let token = Arc::new(token);
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let workers = Vec::new();
        let pulse = Pulse::new();
        let mut up = Up { generation, module, token, session, workers, stop, stopped, pulse };
        for _ in 0..self.settings.workers {
            self.add_worker(&mut up)?;
        }
        Ok(up)
    }

    /// The worker opens its session in its own thread: a module can hang in that, and
    /// the supervisor must not.
    fn add_worker(&self, up: &mut Up) -> Result<(), Problem> {
        let activity = Arc::new(Activity::default());
        let (token, seen) = (Arc::clone(&up.token), Arc::clone(&activity));
        let sync_directory = self.settings.sync_directory.clone();
        let (jobs, stopped, control) =
            (self.jobs.clone(), up.stopped.clone(), self.control.clone());
        let generation = up.generation;
        let thread = std::thread::Builder::new().name(format!("hsm-{}", up.workers.len()));
        let thread = thread.spawn(move || {
            let worker = Worker::new(token, sync_directory, seen);
            if let Err(lost) = worker.and_then(|worker| worker.run(&jobs, &stopped)) {
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
        let mut looked = Instant::now();
        loop {
            match self.orders.recv_timeout(LOOK_EVERY) {
                Ok(Control::Stop) | Err(RecvTimeoutError::Disconnected) => {
                    return Next::End;
                }
                Ok(Control::Lost { generation }) if generation == up.generation => {
                    return Next::Again;
                }
                Ok(Control::Lost { .. }) | Err(RecvTimeoutError::Timeout) => {}
            }
            // A machine that was asleep, or that has no time for us, hangs itself.
            if looked.elapsed() < SELF_STALLED {
                self.open_if_stalled(up);
                self.replace_stuck(up);
            }
            looked = Instant::now();
            if let Some(next) = self.feel_pulse(up) {
                return next;
            }
        }
    }

    /// Gives workers up that hang in the module, since a C call cannot be
    /// cancelled, and puts others in their places: so many and no more, as each
    /// holds a session.
    fn replace_stuck(&self, up: &mut Up) {
        let limit = self.settings.stuck_after;
        // Those that came back have closed their sessions.
        up.workers.retain(|hand| !(hand.activity.is_fenced() && hand.thread.is_finished()));
        for hand in &up.workers {
            if !hand.is_gone() && hand.activity.is_stuck(limit) {
                hand.activity.fence();
                tracing::error!(?limit, "an HSM worker hangs in the module; it is given up");
                if up.workers.len() >= MOST_REPLACED * self.settings.workers {
                    tracing::error!("too many HSM workers hang; no more are replaced");
                }
            }
        }
        let most = MOST_REPLACED * self.settings.workers;
        while up.workers.iter().filter(|hand| !hand.activity.is_fenced()).count()
            < self.settings.workers
            && up.workers.len() < most
        {
            if let Err(problem) = self.add_worker(up) {
                tracing::error!(%problem, "an HSM worker cannot be replaced");
                return;
            }
        }
    }

    /// Has a worker try what key material the token unwraps, unless that is known.
    /// A full queue is no matter: the next time will do.
    pub(super) fn try_unwrapping(&self, up: &Up) {
        if up.token.ways.get().is_none() {
            let deadline = Instant::now() + PROBE_PATIENCE;
            drop(self.ask.try_send(Job { work: Work::TryUnwrapping, deadline }));
        }
    }

    fn take_down(&mut self, up: Up, next: Next) {
        // First, so that no new job is taken and callers fail at once.
        self.token.store(None);
        let patience = match next {
            Next::Again => {
                self.say_down(LOST.into());
                JOIN_PATIENCE
            }
            Next::End => {
                self.tell.send_replace(Health::Down { problem: ENDED.into() });
                LAST_JOIN_PATIENCE
            }
        };
        let Up { module, session, token, workers, stop, .. } = up;
        drop(stop);
        self.refuse_all();
        let until = Instant::now() + patience;
        // For those that were given up it is of no use to wait.
        let is_awaited = |hand: &Hand| !hand.thread.is_finished() && !hand.activity.is_fenced();
        while Instant::now() < until && workers.iter().any(is_awaited) {
            std::thread::sleep(JOIN_PAUSE);
        }
        for Hand { thread, activity } in workers {
            if thread.is_finished() {
                // Err: it panicked, which the panic hook has logged.
                let _ = thread.join();
            } else {
                activity.fence();
                self.hung.push(thread);
            }
        }
        // Others may hold the token yet; its session must not outlive the module.
        token.session_keys.close(JOIN_PAUSE);
        drop(session);
        self.finalize(module);
    }

    /// Unless a thread is in the module, of this start or an earlier one: to finalize
    /// under it would crash.
    fn finalize(&self, module: Pkcs11) {
        let hung = self.hung.iter().filter(|thread| !thread.is_finished()).count();
        if hung > 0 {
            tracing::error!(hung, "workers hang; the module is not finalized");
        } else if let Err(error) = module.finalize() {
            tracing::warn!(%error, "the module cannot be finalized");
        }
    }

    pub(super) fn say_down(&self, problem: String) {
        let known = matches!(&*self.tell.borrow(), Health::Down { problem: p } if *p == problem);
        if !known {
            tracing::error!(problem, "the HSM is down");
            self.tell.send_replace(Health::Down { problem });
        }
    }

    /// Waits until it makes sense to try again.
    fn wait_out(&self, problem: Option<&Problem>, pause: Duration) -> Next {
        // The same wrong PIN once more could lock the token.
        let refused = matches!(problem, Some(Problem::PinRefused { .. }));
        let mut until = Instant::now() + pause;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.orders.recv_timeout(left) {
                Ok(Control::Stop) | Err(RecvTimeoutError::Disconnected) => return Next::End,
                Ok(Control::Lost { .. }) => {}
                Err(RecvTimeoutError::Timeout) if refused && !self.login.may_try() => {
                    until = Instant::now() + pause;
                }
                Err(RecvTimeoutError::Timeout) => return Next::Again,
            }
        }
    }

    pub(super) fn refuse_all(&self) {
        for job in self.jobs.try_iter() {
            job.refuse(HsmError::Unavailable);
        }
    }
}

impl Hand {
    /// Given up, or at its end.
    pub(super) fn is_gone(&self) -> bool {
        self.activity.is_fenced() || self.thread.is_finished()
    }
}

/// What does not work is not called ready, or callers would meet it first.
pub(super) fn try_canary(token: &Token, session: &Session) -> Result<(), Problem> {
    let canary = match token.handle(Kind::RootKey, CANARY) {
        Some(canary) => canary,
        None => make_canary(session)?,
    };
    token.note(Kind::RootKey, CANARY, canary);
    prove(&token.functions, session, canary).map_err(Problem::Useless)
}

/// For a token that is new.
fn make_canary(session: &Session) -> Result<ObjectHandle, Problem> {
    // It may be there and have shown no attributes just now.
    let find = || patiently(|| object::find_one(session, Kind::RootKey, CANARY));
    if let Some(canary) = find()? {
        return Ok(canary);
    }
    object::generate(session, CANARY)?;
    find()?.ok_or(Problem::Useless(RvError::ObjectHandleInvalid))
}

/// A root key that wraps nothing: it is there to be tried.
pub(super) const CANARY: ObjectId = ObjectId::from_bytes(*b"rootkeyd-canary\0");
/// How often the workers are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// If the supervisor itself was away so long, nobody can be blamed for hanging.
const SELF_STALLED: Duration = Duration::from_secs(1);
/// A token that was up so long is brought up again at once.
const STEADY: Duration = Duration::from_secs(2);
/// How long to wait before the module is brought up again, at first and at most: so
/// that 2 s after the end of a fault it is up.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a probe may wait for a worker.
pub(super) const PROBE_PATIENCE: Duration = Duration::from_secs(60);
/// How long workers may take to end, and how often that is looked at: while the token
/// is away, and at the end, when a module that is not finalized may crash.
const JOIN_PATIENCE: Duration = Duration::from_secs(1);
const LAST_JOIN_PATIENCE: Duration = Duration::from_secs(5);
const JOIN_PAUSE: Duration = Duration::from_millis(1);
/// Workers that hang and their replacements, to one that was configured.
const MOST_REPLACED: usize = 4;
const ENDED: &str = "the daemon stops";
const LOST: &str = "the token is lost; connect it again, and the daemon recovers by itself";

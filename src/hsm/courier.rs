//! A courier: a thread of the daemon that takes jobs off a queue and has one worker
//! process do them. It starts the process, and another one whenever it has ended.
//!
//! What the process was at when it died is answered `Unavailable`: the caller may ask
//! again. The keeper kills a reader that hangs; a writer is never killed, since a key
//! that is being written could be destroyed (`facts/reliability.md`, E6).

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, select_biased};
use parking_lot::Mutex;
use rustix::net::RecvFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::activity::Activity;
use super::job::{Import, Job, Reply, Work};
use super::login::{self, Stamp};
use super::notice::Notice;
use super::object::Kind;
use super::shelf::Shelf;
use super::wire::{self, Answer, Ask, Begin, Begun, Said, Shown, Trouble};
use super::worker::Never;
use super::wrapping::NewlyWrapped;
use super::{Crypted, HsmError, Sealed, WorkerCommand};
use crate::domain::{ObjectId, SealedMaterial};

/// What a worker process is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    /// Uses objects, and changes none.
    Reader,
    /// Makes and destroys them.
    Writer,
}

/// What a courier tells the keeper.
pub(super) enum Event {
    /// Its process has the token.
    Up(Role, Box<Shown>),
    /// Its process, which had it, has ended.
    Down(Role),
    /// Its process could not begin.
    Trouble(Trouble),
}

/// Carries jobs to one worker process.
pub(super) struct Courier {
    pub(super) role: Role,
    pub(super) command: WorkerCommand,
    pub(super) begin: Begin,
    pub(super) jobs: Receiver<Job>,
    pub(super) stopped: Receiver<Never>,
    pub(super) tell: Sender<Event>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) watch: Arc<Watch>,
    pub(super) gate: Arc<Gate>,
    pub(super) notice: Arc<Notice>,
    /// How often an idle process is told to look after its session keys.
    pub(super) tidy_every: Duration,
}

/// What a courier is at, for the keeper to see.
#[derive(Default)]
pub(super) struct Watch {
    pub(super) activity: Activity,
    /// The process, from when it has logged in until it is waited for.
    process: Mutex<Option<Pid>>,
    /// That it hangs, with what it is at now.
    pub(super) reported: AtomicBool,
}

/// Of all couriers, one logs in at a time, and none with a PIN that was refused: the
/// same wrong PIN a few times over locks the token. Holds the PIN file as it then was.
pub(super) type Gate = Mutex<Option<Stamp>>;

impl Watch {
    /// Kills the process, if there is one.
    pub(super) fn kill(&self) {
        if let Some(pid) = *self.process.lock() {
            // Err: it has ended by itself, and is not waited for yet.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A worker process that has the token.
struct Process {
    child: Child,
    stream: UnixStream,
}

/// Why a courier has no process any more.
enum End {
    /// It was told to stop.
    Stop,
    /// The process ended, or does not speak as it should.
    Gone,
}

impl Courier {
    /// Until it is told to stop.
    pub(super) fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            // Err: the keeper is gone, and stops us.
            match self.log_in() {
                Ok((process, shown)) => {
                    pause = FIRST_PAUSE;
                    let _ = self.tell.send(Event::Up(self.role, Box::new(shown)));
                    let end = self.serve(process);
                    let _ = self.tell.send(Event::Down(self.role));
                    if matches!(end, End::Stop) {
                        return;
                    }
                }
                Err(trouble) => {
                    let _ = self.tell.send(Event::Trouble(trouble));
                    if self.is_stopped_within(pause) {
                        return;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    fn log_in(&self) -> Result<(Process, Shown), Trouble> {
        let mut refused = self.gate.lock();
        let now = login::stamp(Path::new(&self.begin.pin_file));
        if *refused == Some(now) {
            let problem = "the token refused the PIN; it is tried again when its file changes";
            return Err(Trouble { problem: problem.into(), pin_refused: true });
        }
        let started = self.start();
        *refused = started.as_ref().err().filter(|it| it.pin_refused).map(|_refused| now);
        started
    }

    fn start(&self) -> Result<(Process, Shown), Trouble> {
        let failed = |error: io::Error| Trouble {
            problem: format!("a worker process of the HSM does not begin ({error})"),
            pin_refused: false,
        };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        let mut command = Command::new(&self.command.program);
        command.args(&self.command.arguments).stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
        let child = command.spawn().map_err(failed)?;
        // It holds the other end, so that the end of the process would not show.
        drop(command);
        let mut process = Process { child, stream: ours };
        let begun = wire::write(&mut process.stream, &self.begin)
            .and_then(|()| self.wait_until_begun(&mut process));
        match begun {
            Ok(Ok(shown)) => {
                *self.watch.process.lock() = Some(Pid::from_child(&process.child));
                Ok((process, shown))
            }
            Ok(Err(trouble)) => {
                self.wait_for(process, Ending::Soon);
                Err(trouble)
            }
            Err(error) => {
                self.wait_for(process, Ending::Soon);
                Err(failed(error))
            }
        }
    }

    /// A module may hang as it begins. It is not killed: a login that is cut short can
    /// destroy a token of SoftHSM. So it is waited for, and that is said.
    fn wait_until_begun(&self, process: &mut Process) -> io::Result<Begun> {
        process.stream.set_read_timeout(Some(BEGIN_PATIENCE))?;
        let mut first = [0];
        while let Err(error) = rustix::net::recv(&process.stream, &mut first[..], RecvFlags::PEEK) {
            if error != rustix::io::Errno::AGAIN {
                return Err(error.into());
            }
            let problem = "a worker process of the HSM hangs as it logs in; it is waited for";
            let trouble = Trouble { problem: problem.into(), pin_refused: false };
            if self.tell.send(Event::Trouble(trouble)).is_err()
                || self.is_stopped_within(Duration::ZERO)
            {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        process.stream.set_read_timeout(None)?;
        wire::read(&mut process.stream)
    }

    /// Until the process is gone or the end is ordered.
    fn serve(&self, mut process: Process) -> End {
        // What was retired until now it has never had.
        let _ = self.notice.take();
        loop {
            let tidy = || {
                let deadline = Instant::now() + TIDY_PATIENCE;
                Some(Job { work: Work::Tidy(self.notice.take()), deadline })
            };
            let job = select_biased! {
                recv(self.stopped) -> _closed => None,
                recv(self.notice.given()) -> _given => tidy(),
                recv(self.jobs) -> job => job.ok(),
                default(self.tidy_every) => tidy(),
            };
            let Some(job) = job else {
                self.wait_for(process, Ending::Soon);
                return End::Stop;
            };
            if job.deadline <= Instant::now() {
                job.refuse(HsmError::Deadline);
                continue;
            }
            if let Err(error) = self.carry(&mut process, job) {
                tracing::error!(role = ?self.role, %error, "a worker process of the HSM is gone");
                self.wait_for(
                    process,
                    if self.role == Role::Writer { Ending::Soon } else { Ending::Now },
                );
                return End::Gone;
            }
        }
    }

    fn carry(&self, process: &mut Process, job: Job) -> io::Result<()> {
        self.watch.reported.store(false, Ordering::Relaxed);
        self.watch.activity.begin(Some(&job.work));
        let (began, deks) = (Instant::now(), job.work.deks());
        let (ask, waiting) = split(job.work, &self.shelf);
        let asked = wire::write(&mut process.stream, &ask);
        // Its DEKs are wiped before the wait.
        drop(ask);
        let answer = asked.and_then(|()| wire::read::<Answer>(&mut process.stream));
        self.watch.activity.end();
        match answer {
            Ok(Answer { said, lost }) => {
                self.shelf.pace.note(began.elapsed(), deks);
                self.deliver(waiting, said)?;
                lost.map_or(Ok(()), |lost| Err(io::Error::other(lost)))
            }
            Err(error) => {
                waiting.refuse();
                Err(error)
            }
        }
    }

    /// # Errors
    /// If that is no answer to what was asked.
    fn deliver(&self, waiting: Waiting, said: Said) -> io::Result<()> {
        // A caller who no longer waits is no matter.
        match (waiting, said) {
            (Waiting::Crypted(reply), Said::Crypted(result)) => reply.send(result),
            (Waiting::Sealed(reply, object), Said::Sealed(result)) => {
                if result.is_ok() {
                    self.shelf.note(Kind::RootKey, object, true);
                }
                reply.send(result);
            }
            (Waiting::Bytes(reply, made), Said::Bytes(result)) => {
                if let (Ok(_), Some((kind, object))) = (&result, made) {
                    self.shelf.note(kind, object, true);
                }
                reply.send(result);
            }
            (Waiting::Destroyed(reply, object), Said::Done(result)) => {
                for kind in Kind::ALL {
                    self.shelf.note(kind, object, false);
                }
                reply.send(result);
            }
            (Waiting::Done(reply, made), Said::Done(result)) => {
                if let (Ok(()), Some((kind, object))) = (&result, made) {
                    self.shelf.note(kind, object, true);
                }
                reply.send(result);
            }
            (Waiting::Wrapped(reply), Said::Wrapped(result)) => reply.send(result),
            (Waiting::Took(reply), Said::Took(result)) => {
                reply.send(result.map(Duration::from_nanos));
            }
            // Err: the keeper waits no longer.
            (Waiting::Works(reply), Said::Works(works)) => drop(reply.try_send(works)),
            (Waiting::Unwraps, Said::Unwraps(ways)) => self.shelf.unwraps(ways),
            (Waiting::Tidied, Said::Tidied) => {}
            (waiting, _other) => {
                waiting.refuse();
                return Err(io::Error::other("it answered another question"));
            }
        }
        Ok(())
    }

    fn wait_for(&self, process: Process, ending: Ending) {
        let Process { mut child, stream } = process;
        drop(stream);
        let until = Instant::now() + END_PATIENCE;
        while ending == Ending::Soon && Instant::now() < until {
            match child.try_wait() {
                Ok(None) => std::thread::sleep(END_PAUSE),
                Ok(Some(_)) | Err(_) => break,
            }
        }
        let ended = matches!(child.try_wait(), Ok(Some(_)));
        // One without a number is still logging in.
        let may_be_killed = self.role == Role::Reader && self.watch.process.lock().is_some();
        if !ended && !may_be_killed {
            // A writer's lock keeps the next one from beginning before it is done.
            tracing::error!(role = ?self.role, "a worker process hangs; it is left to end by itself");
            *self.watch.process.lock() = None;
            return;
        }
        self.watch.kill();
        *self.watch.process.lock() = None;
        // Err: it is gone already.
        let _ = child.wait();
    }

    fn is_stopped_within(&self, pause: Duration) -> bool {
        match self.stopped.recv_timeout(pause) {
            Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) => false,
            Ok(never) => match never {},
        }
    }
}

/// How a process is brought to its end.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    /// It ends by itself, as its socket is closed.
    Soon,
    /// It is killed.
    Now,
}

/// Where the answer goes, and what it makes known.
enum Waiting {
    Crypted(Reply<Vec<Result<Crypted, HsmError>>>),
    /// Of a root key that is made.
    Sealed(Reply<Sealed>, ObjectId),
    /// With the object that is made, if one is.
    Bytes(Reply<Vec<u8>>, Option<(Kind, ObjectId)>),
    Destroyed(Reply<()>, ObjectId),
    /// With the object that is made, if one is.
    Done(Reply<()>, Option<(Kind, ObjectId)>),
    Wrapped(Reply<NewlyWrapped>),
    Took(Reply<Duration>),
    Works(Sender<bool>),
    Unwraps,
    Tidied,
}

impl Waiting {
    /// Nobody knows what became of it.
    fn refuse(self) {
        const ERROR: HsmError = HsmError::Unavailable;
        match self {
            Self::Crypted(reply) => reply.send(Err(ERROR)),
            Self::Sealed(reply, _) => reply.send(Err(ERROR)),
            Self::Bytes(reply, _) => reply.send(Err(ERROR)),
            Self::Destroyed(reply, _) | Self::Done(reply, _) => reply.send(Err(ERROR)),
            Self::Wrapped(reply) => reply.send(Err(ERROR)),
            Self::Took(reply) => reply.send(Err(ERROR)),
            Self::Works(reply) => drop(reply),
            Self::Unwraps | Self::Tidied => {}
        }
    }
}

/// A job as it goes to the process, and what stays here of it.
fn split(work: Work, shelf: &Shelf) -> (Ask, Waiting) {
    match work {
        Work::Crypt(items, reply) => (Ask::Crypt(items, shelf.withheld()), Waiting::Crypted(reply)),
        Work::Generate(object, reply) => (Ask::Generate(object), Waiting::Sealed(reply, object)),
        Work::MakeMaster(object, reply) => {
            (Ask::MakeMaster(object), Waiting::Done(reply, Some((Kind::MasterKey, object))))
        }
        Work::TryWrapping(master, reply) => {
            (Ask::TryWrapping(master.into_iter().collect()), Waiting::Done(reply, None))
        }
        Work::GenerateWrapped { object, master, reply } => {
            (Ask::GenerateWrapped { object, master }, Waiting::Wrapped(reply))
        }
        Work::GenerateImportPair(object, reply) => {
            let made = Some((Kind::ImportPair, object));
            (Ask::GenerateImportPair(object), Waiting::Bytes(reply, made))
        }
        Work::Import(Import { object, pair, material, nonce }, reply) => {
            let SealedMaterial { encrypted_key, algorithm, encrypted_nonce, nonce_iv } = material;
            let algorithm = algorithm.name().to_owned();
            let ask = Ask::Import {
                object,
                pair,
                encrypted_key,
                algorithm,
                encrypted_nonce,
                nonce_iv,
                nonce,
            };
            (ask, Waiting::Sealed(reply, object))
        }
        Work::MakeSigner(object, reply) => {
            (Ask::MakeSigner(object), Waiting::Bytes(reply, Some((Kind::Signer, object))))
        }
        Work::SignerKey(object, reply) => (Ask::SignerKey(object), Waiting::Bytes(reply, None)),
        Work::Sign(object, hash, reply) => (Ask::Sign(object, hash), Waiting::Bytes(reply, None)),
        Work::Destroy(object, reply) => (Ask::Destroy(object), Waiting::Destroyed(reply, object)),
        Work::RoundTrip(reply) => (Ask::RoundTrip, Waiting::Took(reply)),
        Work::Probe(reply) => (Ask::Probe, Waiting::Works(reply)),
        Work::TryUnwrapping => (Ask::TryUnwrapping, Waiting::Unwraps),
        Work::Tidy(retired) => (Ask::Tidy(retired), Waiting::Tidied),
    }
}

/// How long a process may take to load the module and log in before that is said.
const BEGIN_PATIENCE: Duration = Duration::from_secs(20);
/// How long one may take to end, and how often that is looked at.
const END_PATIENCE: Duration = Duration::from_secs(5);
const END_PAUSE: Duration = Duration::from_millis(1);
/// How long a process may take to look after its session keys.
const TIDY_PATIENCE: Duration = Duration::from_secs(10);
/// How long to wait before another one is begun, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

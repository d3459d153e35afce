//! A worker: a thread that owns a session and runs jobs in it.
//!
//! After any error it closes the session and opens another one, because an error
//! can leave an operation active. Then `rv.rs` says what the error means and
//! `ladder.rs` what to try next. Where the trouble is the token's and not the job's,
//! the worker answers `Unavailable`, says so to the supervisor and ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select_biased};
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::Session;
use parking_lot::Mutex;

use super::ffi::Functions;
use super::job::{Job, Recall, Reply, Work};
use super::ladder::{Ladder, Step};
use super::login::LoggedIn;
use super::mechanism::{IV_BYTES, MAKE_ROOT_KEY};
use super::object::{self, CHECK_AAD, CHECK_TEXT, Kind};
use super::root_key::patiently;
use super::rv::{Verdict, verdict, verdict_of};
use super::supervisor::CANARY;
use super::token::Token;
use super::{Crypt, Crypted, HsmError, Sealed};
use crate::domain::ObjectId;
use crate::secret::Secret;

/// Runs jobs in a session of its own.
pub(super) struct Worker {
    pub(super) token: Arc<Token>,
    pub(super) session: Session,
    pub(super) sync_directory: Option<PathBuf>,
    activity: Arc<Activity>,
}

/// What a worker is at, for the supervisor to see.
#[derive(Default)]
pub(super) struct Activity {
    task: Mutex<Option<Task>>,
    /// It was given up: if it ever comes back from its job, it ends.
    fenced: AtomicBool,
}

/// A job, or a part of it.
struct Task {
    began: Instant,
    /// How much longer than others it may take.
    allowance: Duration,
    /// Whom to refuse if the worker is given up.
    caller: Option<Arc<dyn Recall>>,
}

impl Activity {
    /// Whether it has been at one thing for longer than `limit`.
    pub(super) fn is_stuck(&self, limit: Duration) -> bool {
        let task = self.task.lock();
        task.as_ref().is_some_and(|task| task.began.elapsed() > limit + task.allowance)
    }

    /// Gives the worker up, and refuses in its place.
    pub(super) fn fence(&self) {
        self.fenced.store(true, Ordering::SeqCst);
        let caller = self.task.lock().as_mut().and_then(|task| task.caller.take());
        if let Some(caller) = caller {
            caller.refuse(HsmError::Unavailable);
        }
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }

    fn begin(&self, work: Option<&Work>) {
        let (allowance, caller) =
            work.map_or((Duration::ZERO, None), |work| (work.allowance(), work.recall()));
        *self.task.lock() = Some(Task { began: Instant::now(), allowance, caller });
    }

    /// It got on with it.
    fn step(&self) {
        if let Some(task) = &mut *self.task.lock() {
            task.began = Instant::now();
        }
    }

    fn end(&self) {
        *self.task.lock() = None;
    }
}

/// Why a worker ended: the token cannot be used.
#[derive(Debug)]
pub(super) struct Lost(String);

/// Why a piece of work was not done.
pub(super) enum Failure {
    /// That is the answer.
    Answer(HsmError),
    /// The token cannot be used, for anything.
    Lost(Lost),
}

/// Never sent: the channel says "stop" by being closed.
pub(super) enum Never {}

impl Worker {
    /// With a new session of `token`.
    pub(super) fn new(
        token: Arc<Token>,
        sync_directory: Option<PathBuf>,
        activity: Arc<Activity>,
    ) -> Result<Self, Lost> {
        // A module can hang in this too.
        activity.begin(None);
        let session = token.session();
        activity.end();
        let session = session.map_err(|error| Lost(error.to_string()))?;
        Ok(Self { token, session, sync_directory, activity })
    }

    /// Runs jobs until `stop` is closed, or the token is lost.
    pub(super) fn run(mut self, jobs: &Receiver<Job>, stop: &Receiver<Never>) -> Result<(), Lost> {
        loop {
            let job = select_biased! {
                recv(stop) -> _closed => return Ok(()),
                recv(jobs) -> job => job,
            };
            // Err: nobody can send any more.
            let Ok(job) = job else { return Ok(()) };
            if job.deadline <= Instant::now() {
                job.refuse(HsmError::Deadline);
                continue;
            }
            self.activity.begin(Some(&job.work));
            let worked = self.work(job.work);
            self.activity.end();
            worked?;
            if self.activity.is_fenced() {
                return Ok(());
            }
        }
    }

    fn work(&mut self, work: Work) -> Result<(), Lost> {
        match work {
            Work::Crypt(items, reply) => {
                let (results, lost) = self.crypt_all(items);
                reply.send(Ok(results));
                lost.map_or(Ok(()), Err)
            }
            Work::Generate(object, reply) => answer(reply, self.generate(object)),
            Work::GenerateImportPair(object, reply) => {
                answer(reply, self.generate_import_pair(object))
            }
            Work::Import(import, reply) => answer(reply, self.import(&import)),
            Work::MakeSigner(object, reply) => answer(reply, self.make_signer(object)),
            Work::SignerKey(object, reply) => answer(reply, self.signer_key(object)),
            Work::Sign(object, hash, reply) => answer(reply, self.sign(object, hash)),
            Work::Destroy(object, reply) => answer(reply, self.destroy(object)),
            Work::RoundTrip(reply) => {
                let began = Instant::now();
                answer(reply, self.round_trip().map(|()| began.elapsed()))
            }
            Work::Probe(reply) => {
                let proven = self.with(Kind::RootKey, CANARY, HsmError::Unavailable, prove);
                // Err: the supervisor waits no longer.
                let _ = reply.try_send(proven.is_ok());
                match proven {
                    Err(Failure::Lost(lost)) => Err(lost),
                    Ok(()) | Err(Failure::Answer(_)) => Ok(()),
                }
            }
            Work::TryUnwrapping => self.try_unwrapping(),
        }
    }

    fn crypt_all(&mut self, items: Vec<Crypt>) -> (Vec<Result<Crypted, HsmError>>, Option<Lost>) {
        let mut lost = None;
        let results = items.into_iter().map(|item| {
            if lost.is_some() {
                return Err(HsmError::Unavailable);
            }
            self.activity.step();
            self.crypt(item).map_err(|failure| match failure {
                Failure::Answer(error) => error,
                Failure::Lost(why) => {
                    lost = Some(why);
                    HsmError::Unavailable
                }
            })
        });
        (results.collect(), lost)
    }

    fn crypt(&mut self, item: Crypt) -> Result<Crypted, Failure> {
        match item {
            Crypt::Seal { object, aad, dek } => {
                let sealed = self.seal(object, &aad, dek.expose())?;
                Ok(Crypted { dek, sealed: Some(Ok(sealed)) })
            }
            Crypt::Generate { object, aad, length } => {
                let mut dek = Secret::zeroed(length);
                self.with(Kind::RootKey, object, HsmError::Unavailable, |_, session, _key| {
                    let made = session.generate_random_slice(dek.expose_mut());
                    made.map_err(|error| {
                        if let Error::Pkcs11(rv, _) = error { rv } else { RvError::FunctionFailed }
                    })
                })?;
                let sealed = self.seal(object, &aad, dek.expose())?;
                Ok(Crypted { dek, sealed: Some(Ok(sealed)) })
            }
            Crypt::Open { object, aad, sealed, reseal } => {
                let dek = self.open(object, &aad, &sealed)?;
                let sealed = match reseal {
                    None => None,
                    Some((object, aad)) => match self.seal(object, &aad, dek.expose()) {
                        Ok(sealed) => Some(Ok(sealed)),
                        Err(Failure::Answer(error)) => Some(Err(error)),
                        Err(lost @ Failure::Lost(_)) => return Err(lost),
                    },
                };
                Ok(Crypted { dek, sealed })
            }
        }
    }

    pub(super) fn seal(
        &mut self,
        object: ObjectId,
        aad: &[u8],
        dek: &[u8],
    ) -> Result<Sealed, Failure> {
        let mut iv = [0; IV_BYTES];
        if getrandom::fill(&mut iv).is_err() {
            return Err(Failure::Answer(HsmError::Unavailable));
        }
        let bytes =
            self.with(Kind::RootKey, object, HsmError::Unavailable, |functions, session, key| {
                functions.seal(session, key, &iv, aad, dek)
            })?;
        Ok(Sealed { iv, bytes })
    }

    pub(super) fn open(
        &mut self,
        object: ObjectId,
        aad: &[u8],
        sealed: &Sealed,
    ) -> Result<Secret, Failure> {
        self.with(Kind::RootKey, object, HsmError::Unverified, |functions, session, key| {
            functions.open(session, key, &sealed.iv, aad, &sealed.bytes)
        })
    }

    /// Runs `operation` with the handle of `object`, and after an error what the ladder
    /// says: so it may run several times. `unverified` is the answer if the input does
    /// not verify.
    pub(super) fn with<T>(
        &mut self,
        kind: Kind,
        object: ObjectId,
        unverified: HsmError,
        mut operation: impl FnMut(&Functions, &Session, ObjectHandle) -> Result<T, RvError>,
    ) -> Result<T, Failure> {
        let mut ladder = Ladder::default();
        loop {
            if self.activity.is_fenced() {
                // It came back after it was given up: hands off the token.
                return Err(Failure::Answer(HsmError::Unavailable));
            }
            let key = self.key(kind, object)?;
            let rv = match operation(&self.token.functions, &self.session, key) {
                Ok(done) => {
                    if ladder.is_begun() {
                        tracing::warn!(%object, ?ladder, "the HSM did it at another try");
                    }
                    return Ok(done);
                }
                Err(rv) => rv,
            };
            self.reopen()?;
            if let Some(failure) = self.of_import(kind, rv, unverified) {
                return Err(failure);
            }
            match ladder.next(verdict(rv)) {
                Step::Again => {}
                Step::LogIn => self.log_in()?,
                Step::Find => {
                    self.find(kind, object)?;
                }
                Step::ProveAndAgain => self.prove_key(kind, (key, object))?,
                Step::ProveAndBelieve => {
                    self.prove_key(kind, (key, object))?;
                    return Err(Failure::Answer(unverified));
                }
                Step::Blame => return Err(self.blame(&rv)),
                Step::Lose => return Err(lost(&rv)),
            }
        }
    }

    /// What an error comes to if the operation makes an object, and so is not
    /// repeated for every reason; `None` if it is.
    fn of_import(&mut self, kind: Kind, rv: RvError, unverified: HsmError) -> Option<Failure> {
        match (kind, verdict(rv)) {
            (Kind::ImportPair, Verdict::Unverified) => Some(Failure::Answer(unverified)),
            (Kind::ImportPair, Verdict::Refused) => Some(Failure::Answer(HsmError::Refused(rv))),
            // It seals nothing, so that it cannot be tried itself.
            (Kind::ImportPair, Verdict::Ambiguous) => Some(match self.prove_canary() {
                Ok(()) => Failure::Answer(unverified),
                Err(rv) => lost(&rv),
            }),
            (
                Kind::ImportPair,
                Verdict::Session | Verdict::Login | Verdict::Object | Verdict::Module,
            )
            | (Kind::RootKey | Kind::Signer, _) => None,
        }
    }

    /// The handle of an object, which is looked for if it is not known.
    pub(super) fn key(&mut self, kind: Kind, object: ObjectId) -> Result<ObjectHandle, Failure> {
        match self.token.handle(kind, object) {
            Some(handle) => Ok(handle),
            None => self.find(kind, object),
        }
    }

    /// Looks for an object.
    fn find(&mut self, kind: Kind, object: ObjectId) -> Result<ObjectHandle, Failure> {
        if self.token.is_absent(kind, object) {
            return Err(Failure::Answer(HsmError::Missing));
        }
        self.log_in()?;
        let login = self.token.login();
        let found = patiently(|| object::find_one(&self.session, kind, object));
        match found {
            Ok(Some(handle)) => {
                self.token.note_found(kind, object, (handle, login));
                Ok(handle)
            }
            Ok(None) => Err(self.absent(kind, object)),
            Err(error) => {
                self.reopen()?;
                Err(self.blame(&error))
            }
        }
    }

    /// What it comes to that a search did not show an object: it is missing only if
    /// the token is in good order.
    pub(super) fn absent(&mut self, kind: Kind, object: ObjectId) -> Failure {
        if let Err(failure) = self.in_good_order() {
            return failure;
        }
        self.token.note_absent(kind, object);
        Failure::Answer(HsmError::Missing)
    }

    /// Whether the token knows our login, shows the canary, and does its work.
    pub(super) fn in_good_order(&mut self) -> Result<(), Failure> {
        self.log_in()?;
        let login = self.token.login();
        let canary = patiently(|| object::find_one(&self.session, Kind::RootKey, CANARY));
        let canary = canary.map_err(|error| lost(&error))?;
        let canary = canary.ok_or_else(|| lost(&"the token does not show the canary any more"))?;
        self.token.note_found(Kind::RootKey, CANARY, (canary, login));
        self.prove_canary().map_err(|rv| lost(&rv))
    }

    /// Makes sure that the session is logged in.
    fn log_in(&mut self) -> Result<(), Failure> {
        match self.token.log_in(&self.session) {
            Ok(LoggedIn::Already | LoggedIn::Anew) => Ok(()),
            Ok(LoggedIn::Later) => Err(Failure::Answer(HsmError::Unavailable)),
            Err(problem) => Err(lost(&problem)),
        }
    }

    /// Makes sure that the handle leads to that key, and that the token works.
    fn prove_key(
        &mut self,
        kind: Kind,
        (key, object): (ObjectHandle, ObjectId),
    ) -> Result<(), Failure> {
        match kind {
            Kind::RootKey => {}
            Kind::ImportPair | Kind::Signer => {
                return self.prove_canary().map_err(|rv| lost(&rv));
            }
        }
        match object::is_at(&self.session, kind, (key, object)) {
            Ok(true) => {}
            Ok(false) => return Err(lost(&"a handle leads to another object than before")),
            Err(error) => {
                self.reopen()?;
                return Err(self.blame(&error));
            }
        }
        if let Err(rv) = prove(&self.token.functions, &self.session, key) {
            self.reopen()?;
            return Err(self.blame(&rv));
        }
        Ok(())
    }

    /// Whose trouble an error was that cannot be got over: the job's alone if the
    /// canary works.
    fn blame(&mut self, why: &dyn std::fmt::Display) -> Failure {
        match self.prove_canary() {
            Ok(()) => {
                tracing::error!(%why, "the HSM fails for one key, and works for another");
                Failure::Answer(HsmError::Unavailable)
            }
            Err(_as_well) => lost(why),
        }
    }

    fn round_trip(&mut self) -> Result<(), Failure> {
        let template = [
            Attribute::Token(false),
            Attribute::ValueLen(32.into()),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
        ];
        let made = self.session.generate_key(&MAKE_ROOT_KEY, &template);
        let key = made.map_err(|error| self.failed(&error))?;
        let proven = prove(&self.token.functions, &self.session, key);
        if let Err(rv) = proven {
            self.reopen()?;
            return Err(Failure::Answer(HsmError::Refused(rv)));
        }
        self.session.destroy_object(key).map_err(|error| self.failed(&error))
    }

    /// Whether token and session work. After an error the session is of no use.
    pub(super) fn prove_canary(&self) -> Result<(), RvError> {
        let canary = match self.token.handle(Kind::RootKey, CANARY) {
            Some(canary) => canary,
            None => self.find_canary().map_err(|error| match error {
                Error::Pkcs11(rv, _) => rv,
                _ => RvError::FunctionFailed,
            })?,
        };
        prove(&self.token.functions, &self.session, canary)
    }

    /// After another login its handle is not known yet.
    fn find_canary(&self) -> Result<ObjectHandle, Error> {
        let login = self.token.login();
        let found = object::find_one(&self.session, Kind::RootKey, CANARY)?;
        let Some(canary) = found else { return Err(Error::InvalidValue) };
        self.token.note_found(Kind::RootKey, CANARY, (canary, login));
        Ok(canary)
    }

    /// What an error of a call other than seal and open comes to.
    pub(super) fn failed(&mut self, error: &Error) -> Failure {
        tracing::warn!(%error, "the module refused");
        if let Err(lost) = self.reopen() {
            return lost;
        }
        match (verdict_of(error), error) {
            (Verdict::Module, _) => lost(error),
            // The caller may try again; then it should be there.
            (Verdict::Login, _) => match self.log_in() {
                Ok(()) => Failure::Answer(HsmError::Unavailable),
                Err(failure) => failure,
            },
            (Verdict::Refused, Error::Pkcs11(rv, _)) => Failure::Answer(HsmError::Refused(*rv)),
            (
                Verdict::Refused
                | Verdict::Unverified
                | Verdict::Ambiguous
                | Verdict::Session
                | Verdict::Object,
                _,
            ) => Failure::Answer(HsmError::Unavailable),
        }
    }

    fn reopen(&mut self) -> Result<(), Failure> {
        // The old one is closed as it is dropped.
        self.session = self.token.session().map_err(|error| lost(&error))?;
        Ok(())
    }
}

/// Seals and opens with `key`: whether token, session and key work.
pub(super) fn prove(
    functions: &Functions,
    session: &Session,
    key: ObjectHandle,
) -> Result<(), RvError> {
    let mut iv = [0; IV_BYTES];
    getrandom::fill(&mut iv).map_err(|_no_random| RvError::RandomNoRng)?;
    let sealed = functions.seal(session, key, &iv, CHECK_AAD, CHECK_TEXT)?;
    let opened = functions.open(session, key, &iv, CHECK_AAD, &sealed)?;
    if opened.expose() == CHECK_TEXT { Ok(()) } else { Err(RvError::FunctionFailed) }
}

fn answer<T>(reply: Reply<T>, result: Result<T, Failure>) -> Result<(), Lost> {
    let (result, lost) = match result {
        Ok(done) => (Ok(done), Ok(())),
        Err(Failure::Answer(error)) => (Err(error), Ok(())),
        Err(Failure::Lost(lost)) => (Err(HsmError::Unavailable), Err(lost)),
    };
    reply.send(result);
    lost
}

pub(super) fn lost(why: &dyn std::fmt::Display) -> Failure {
    Failure::Lost(Lost(why.to_string()))
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

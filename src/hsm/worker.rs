//! A worker: a thread that owns a session and runs jobs in it.
//!
//! After any error it closes the session and opens another one, because an error
//! can leave an operation active. Where the table in `rv.rs` says that the
//! trouble is the token's and not the job's, it answers `Unavailable`, says so to
//! the supervisor and ends.

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
use super::job::{Job, Reply, Work};
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
    /// When its job began, and how much longer than others that may take.
    began: Mutex<Option<(Instant, Duration)>>,
    /// It was given up: if it ever comes back from its job, it ends.
    fenced: AtomicBool,
}

impl Activity {
    /// A job begins, which may take that much longer than others.
    pub(super) fn begin(&self, allowance: Duration) {
        *self.began.lock() = Some((Instant::now(), allowance));
    }

    /// It is done.
    pub(super) fn end(&self) {
        *self.began.lock() = None;
    }

    /// Whether its job has taken longer than `limit`.
    pub(super) fn is_stuck(&self, limit: Duration) -> bool {
        self.began.lock().is_some_and(|(began, allowance)| began.elapsed() > limit + allowance)
    }

    /// Whether its job takes long by its nature.
    pub(super) fn is_slow(&self) -> bool {
        self.began.lock().is_some_and(|(_, allowance)| !allowance.is_zero())
    }

    /// Gives the worker up; whether it was not given up already.
    pub(super) fn fence(&self) -> bool {
        !self.fenced.swap(true, Ordering::Relaxed)
    }

    fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::Relaxed)
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
    ) -> Result<Self, Error> {
        let session = token.session()?;
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
            self.activity.begin(job.work.allowance());
            let worked = self.work(job.work);
            self.activity.end();
            worked?;
            if self.activity.is_fenced() {
                return Ok(());
            }
        }
    }

    pub(super) fn work(&mut self, work: Work) -> Result<(), Lost> {
        match work {
            Work::Crypt(items, reply) => {
                let (results, lost) = self.crypt_all(items);
                drop(reply.send(Ok(results)));
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
                let proven = self.prove_canary();
                // Err: the supervisor waits no longer.
                let _ = reply.try_send(proven.is_ok());
                Ok(())
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
                if let Err(error) = self.session.generate_random_slice(dek.expose_mut()) {
                    return Err(self.failed(&error));
                }
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

    /// Runs `operation` with the handle of `object`, and does what the table says
    /// about an error. `unverified` is the answer if the input does not verify, also
    /// if the error can mean two things and the token is found to work.
    pub(super) fn with<T>(
        &mut self,
        kind: Kind,
        object: ObjectId,
        unverified: HsmError,
        operation: impl Fn(&Functions, &Session, ObjectHandle) -> Result<T, RvError>,
    ) -> Result<T, Failure> {
        let key = self.locate(kind, object)?;
        let rv = match operation(&self.token.functions, &self.session, key) {
            Ok(done) => return Ok(done),
            Err(rv) => rv,
        };
        self.reopen()?;
        let again = match verdict(rv) {
            Verdict::Unverified => return Err(Failure::Answer(unverified)),
            Verdict::Refused => return Err(Failure::Answer(HsmError::Refused(rv))),
            Verdict::Module => return Err(lost(&rv)),
            Verdict::Ambiguous => {
                let proven = match kind {
                    Kind::RootKey => prove(&self.token.functions, &self.session, key),
                    // It seals nothing, so that it cannot be tried itself.
                    Kind::ImportPair | Kind::Signer => self.prove_canary(),
                };
                proven.map_err(|rv| lost(&rv))?;
                return Err(Failure::Answer(unverified));
            }
            Verdict::Session => key,
            Verdict::Object => {
                let found = patiently(|| object::find_one(&self.session, kind, object));
                // Not there: the module comes up anew, and its index decides.
                let found = found.map_err(|e| lost(&e))?.ok_or_else(|| lost(&rv))?;
                self.token.note(kind, object, Some(found));
                found
            }
        };
        operation(&self.token.functions, &self.session, again).map_err(|rv| lost(&rv))
    }

    /// The handle of an object. One that the index lacks is looked for: the worker of
    /// another process may have made it.
    pub(super) fn locate(&mut self, kind: Kind, object: ObjectId) -> Result<ObjectHandle, Failure> {
        if let Some(handle) = self.token.handle(kind, object) {
            return Ok(handle);
        }
        let found = object::find_one(&self.session, kind, object);
        let found = found.map_err(|error| self.failed(&error))?;
        let handle = found.ok_or(Failure::Answer(HsmError::Missing))?;
        self.token.note(kind, object, Some(handle));
        Ok(handle)
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

    /// Whether token and session work.
    pub(super) fn prove_canary(&self) -> Result<(), RvError> {
        let canary = self.token.handle(Kind::RootKey, CANARY);
        prove(&self.token.functions, &self.session, canary.ok_or(RvError::ObjectHandleInvalid)?)
    }

    /// What an error of a call other than seal and open comes to.
    pub(super) fn failed(&mut self, error: &Error) -> Failure {
        tracing::warn!(%error, "the module refused");
        if let Err(lost) = self.reopen() {
            return lost;
        }
        match (verdict_of(error), error) {
            (Verdict::Module, _) => lost(error),
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
    // A caller who no longer waits is no matter.
    drop(reply.send(result));
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

//! A worker: a thread that owns a session and runs jobs in it.
//!
//! After any error it closes the session and opens another one, because an error
//! can leave an operation active. Then `rv.rs` says what the error means,
//! `ladder.rs` what to try next, and `recovery.rs` tries it. Where the trouble is the token's and not the job's,
//! the worker answers `Unavailable`, says so to the supervisor and ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, select_biased};
use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::Session;

use super::activity::Activity;
use super::ffi::Functions;
use super::job::{Job, Reply, Retired, Work};
use super::mechanism::{IV_BYTES, MAKE_ROOT_KEY};
use super::object::{CHECK_AAD, CHECK_TEXT, Kind};
use super::supervisor::CANARY;
use super::token::Token;
use super::{Crypt, Crypted, HsmError, Means, RootKey, Sealed};
use crate::secret::Secret;

/// Runs jobs in a session of its own.
pub(super) struct Worker {
    pub(super) token: Arc<Token>,
    pub(super) session: Session,
    pub(super) sync_directory: Option<PathBuf>,
    pub(super) activity: Arc<Activity>,
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

    /// Does a job, and after that what nobody waits for.
    pub(super) fn work(&mut self, work: Work) -> Result<(), Lost> {
        self.answer(work)?;
        self.tidy()
    }

    fn answer(&mut self, work: Work) -> Result<(), Lost> {
        match work {
            Work::Crypt(items, reply) => {
                let (began, many) = (Instant::now(), items.len());
                let (results, lost) = self.crypt_all(items);
                self.token.pace.note(began.elapsed(), many);
                reply.send(Ok(results));
                lost.map_or(Ok(()), Err)
            }
            Work::Generate(object, reply) => answer(reply, self.generate(object)),
            Work::MakeMaster(object, reply) => answer(reply, self.make_master(object)),
            Work::TryWrapping(master, reply) => answer(reply, self.try_wrapping(master)),
            Work::GenerateWrapped { object, master, reply } => {
                answer(reply, self.generate_wrapped(object, master))
            }
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
            Work::Tidy(retired) => {
                match retired {
                    Retired::These(objects) => {
                        self.token.session_keys.retire(&objects);
                    }
                    Retired::All => self.token.session_keys.retire_all(),
                }
                Ok(())
            }
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
            Crypt::Seal { key, aad, dek } => {
                let sealed = self.seal(&key, &aad, dek.expose())?;
                Ok(Crypted { dek, sealed: Some(Ok(sealed)) })
            }
            Crypt::Generate { key, aad, length } => {
                let mut dek = Secret::zeroed(length);
                let any = match key.means {
                    Means::Token | Means::TokenItself => key.object,
                    Means::Unwrapped(_) => CANARY,
                };
                self.with(Kind::RootKey, any, HsmError::Unavailable, |_, session, _key| {
                    let made = session.generate_random_slice(dek.expose_mut());
                    made.map_err(|error| {
                        if let Error::Pkcs11(rv, _) = error { rv } else { RvError::FunctionFailed }
                    })
                })?;
                let sealed = self.seal(&key, &aad, dek.expose())?;
                Ok(Crypted { dek, sealed: Some(Ok(sealed)) })
            }
            Crypt::Open { key, aad, sealed, reseal } => {
                let dek = self.open(&key, &aad, &sealed)?;
                let sealed = match reseal {
                    None => None,
                    Some((key, aad)) => match self.seal(&key, &aad, dek.expose()) {
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
        key: &RootKey,
        aad: &[u8],
        dek: &[u8],
    ) -> Result<Sealed, Failure> {
        let mut iv = [0; IV_BYTES];
        if getrandom::fill(&mut iv).is_err() {
            return Err(Failure::Answer(HsmError::Unavailable));
        }
        let bytes = self.by(key, HsmError::Unavailable, |functions, session, key| {
            functions.seal(session, key, &iv, aad, dek)
        })?;
        Ok(Sealed { iv, bytes })
    }

    pub(super) fn open(
        &mut self,
        key: &RootKey,
        aad: &[u8],
        sealed: &Sealed,
    ) -> Result<Secret, Failure> {
        self.by(key, HsmError::Unverified, |functions, session, key| {
            functions.open(session, key, &sealed.iv, aad, &sealed.bytes)
        })
    }

    /// Runs `operation` with the handle by which that root key is used.
    fn by<T>(
        &mut self,
        key: &RootKey,
        unverified: HsmError,
        operation: impl FnMut(&Functions, &Session, ObjectHandle) -> Result<T, RvError>,
    ) -> Result<T, Failure> {
        match &key.means {
            Means::Token => self.with_session_key(key.object, unverified, operation),
            Means::TokenItself => self.with(Kind::RootKey, key.object, unverified, operation),
            Means::Unwrapped(wrapped) => {
                self.with_wrapped((key.object, wrapped), unverified, operation)
            }
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

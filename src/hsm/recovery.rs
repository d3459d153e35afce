//! A worker's way over an error: what the ladder says is done here.

use cryptoki::error::{Error, RvError};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;

use super::copying::is_loss;
use super::ffi::Functions;
use super::ladder::{Ladder, Step};
use super::login::LoggedIn;
use super::object::{self, Kind};
use super::root_key::patiently;
use super::rv::{Verdict, verdict, verdict_of};
use super::supervisor::CANARY;
use super::worker::{Failure, Worker, lost, prove};
use super::{HsmError, wrapping};
use crate::domain::ObjectId;

/// How a worker comes to the handle of a key, and what it can do where that leads nowhere.
pub(super) trait Way {
    /// What leads to the handle, and is kept while it is used.
    type Held;

    /// Whose it is, for the log.
    fn object(&self) -> ObjectId;

    /// Looks for it, or makes it if there is none.
    fn hold(&self, worker: &mut Worker) -> Result<Self::Held, Failure>;

    fn handle(held: &Self::Held) -> ObjectHandle;

    /// What an error comes to at once; `None`, if the ladder is to say what is tried.
    fn at_once(&self, worker: &mut Worker, rv: RvError, unverified: HsmError) -> Option<Failure>;

    /// The handle led to no object: has the next one be another one, if there is one.
    fn find_again(&self, worker: &mut Worker, held: &Self::Held) -> Result<(), Failure>;

    /// Makes sure that the handle leads to that key, and that the token works.
    fn prove(&self, worker: &mut Worker, held: &Self::Held) -> Result<(), Failure>;

    /// Nothing helped: what is kept of the key is not used for the next job.
    fn give_up(&self, worker: &mut Worker, held: &Self::Held);
}

/// To an object of the token.
struct InToken {
    kind: Kind,
    object: ObjectId,
}

impl Way for InToken {
    type Held = ObjectHandle;

    fn object(&self) -> ObjectId {
        self.object
    }

    fn hold(&self, worker: &mut Worker) -> Result<ObjectHandle, Failure> {
        worker.key(self.kind, self.object)
    }

    fn handle(held: &ObjectHandle) -> ObjectHandle {
        *held
    }

    fn at_once(&self, worker: &mut Worker, rv: RvError, unverified: HsmError) -> Option<Failure> {
        worker.of_import(self.kind, rv, unverified)
    }

    fn find_again(&self, worker: &mut Worker, _held: &ObjectHandle) -> Result<(), Failure> {
        worker.find(self.kind, self.object).map(drop)
    }

    fn prove(&self, worker: &mut Worker, held: &ObjectHandle) -> Result<(), Failure> {
        worker.prove_key(self.kind, (*held, self.object))
    }

    fn give_up(&self, _worker: &mut Worker, _held: &ObjectHandle) {}
}

impl Worker {
    /// Runs `operation` with the handle of `object`, and after an error what the ladder
    /// says: so it may run several times. `unverified` is the answer if the input does
    /// not verify.
    pub(super) fn with<T>(
        &mut self,
        kind: Kind,
        object: ObjectId,
        unverified: HsmError,
        operation: impl FnMut(&Functions, &Session, ObjectHandle) -> Result<T, RvError>,
    ) -> Result<T, Failure> {
        self.with_way(&InToken { kind, object }, unverified, operation)
    }

    /// As [`Worker::with`], with the handle that `way` leads to.
    pub(super) fn with_way<W: Way, T>(
        &mut self,
        way: &W,
        unverified: HsmError,
        mut operation: impl FnMut(&Functions, &Session, ObjectHandle) -> Result<T, RvError>,
    ) -> Result<T, Failure> {
        let mut ladder = Ladder::default();
        loop {
            if self.activity.is_fenced() {
                // It came back after it was given up: hands off the token.
                return Err(Failure::Answer(HsmError::Unavailable));
            }
            let held = way.hold(self)?;
            let rv = match operation(&self.token.functions, &self.session, W::handle(&held)) {
                Ok(done) => {
                    if ladder.is_begun() {
                        let object = way.object();
                        tracing::warn!(%object, ?ladder, "the HSM did it at another try");
                    }
                    return Ok(done);
                }
                Err(rv) => rv,
            };
            if is_loss(rv) {
                self.token.session_keys.lose();
            }
            self.reopen()?;
            if let Some(failure) = way.at_once(self, rv, unverified) {
                return Err(failure);
            }
            match ladder.next(verdict(rv)) {
                Step::Again => {}
                Step::LogIn => self.log_in()?,
                Step::Find => way.find_again(self, &held)?,
                Step::ProveAndAgain => way.prove(self, &held)?,
                Step::ProveAndBelieve => {
                    way.prove(self, &held)?;
                    return Err(Failure::Answer(unverified));
                }
                Step::Blame => {
                    way.give_up(self, &held);
                    return Err(self.blame(&rv));
                }
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
            | (Kind::RootKey | Kind::Signer | Kind::MasterKey, _) => None,
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
    pub(super) fn log_in(&mut self) -> Result<(), Failure> {
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
            Kind::RootKey | Kind::MasterKey => {}
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
        let proven = if kind == Kind::MasterKey {
            wrapping::prove(&self.token.functions, &self.session, key)
        } else {
            prove(&self.token.functions, &self.session, key)
        };
        if let Err(rv) = proven {
            self.reopen()?;
            return Err(self.blame(&rv));
        }
        Ok(())
    }

    /// Whose trouble an error was that cannot be got over: the job's alone if the
    /// canary works.
    pub(super) fn blame(&mut self, why: &dyn std::fmt::Display) -> Failure {
        match self.prove_canary() {
            Ok(()) => {
                tracing::error!(%why, "the HSM fails for one key, and works for another");
                Failure::Answer(HsmError::Unavailable)
            }
            Err(_as_well) => lost(why),
        }
    }

    /// Whether token and session work. After an error the session is of no use.
    pub(super) fn prove_canary(&self) -> Result<(), RvError> {
        let canary = match self.token.handle(Kind::RootKey, CANARY) {
            Some(canary) => canary,
            None => self.find_canary().map_err(|error| {
                if let Error::Pkcs11(rv, _) = error { rv } else { RvError::FunctionFailed }
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

    pub(super) fn reopen(&mut self) -> Result<(), Failure> {
        // The old one is closed as it is dropped.
        self.session = self.token.session().map_err(|error| lost(&error))?;
        Ok(())
    }
}

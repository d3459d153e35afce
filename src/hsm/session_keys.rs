//! Session keys: session objects that stand in for root keys, in a bounded cache.
//!
//! A session object lives as long as the session that made it, and every session of the
//! application can use it. So one session, the owner, makes them all, and a worker that
//! closes its own after an error loses nothing. Whoever uses a session key holds it
//! (`Arc`); one that was evicted or retired is destroyed when nobody does any more, by a
//! worker, since a module can hang in that. What they are made of is their makers'
//! business (`copying.rs`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cryptoki::error::{Error, RvError};
use cryptoki::object::{AttributeType, ObjectHandle};
use cryptoki::session::Session;
use minicbor::{Decode, Encode};
use parking_lot::Mutex;
use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, UnitWeighter};

use super::object;
use super::token::Token;
use crate::domain::ObjectId;

/// How session objects are used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SessionObjects {
    /// Whether root keys that are token objects are used by copies.
    pub copies: SessionCopies,
    /// How many there may be at once, besides those that are in use just then.
    pub most: usize,
    /// How long a copy is used before the token object is used once in its place, to
    /// see that it is still there; and how long one that is not used is kept.
    pub renew_after: Duration,
}

/// Whether root keys that are token objects are used by copies of them that are session
/// objects.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq)]
pub enum SessionCopies {
    /// If the token is faster that way, which is tried when it comes up.
    #[n(0)]
    Auto,
    /// If the token makes such copies.
    #[n(1)]
    On,
    /// They are not.
    #[n(2)]
    Off,
}

/// The session keys of a token.
pub(super) struct SessionKeys {
    settings: SessionObjects,
    /// By the root key that each stands for.
    keys: Cache<ObjectId, Arc<SessionKey>>,
    /// Root keys that were wanted once. Of those that are wanted once only none is made.
    wanted: Cache<ObjectId, ()>,
    owner: Mutex<Option<Owner>>,
    /// How often all of them were lost.
    losses: AtomicU64,
    /// How often any were taken away.
    taken: AtomicU64,
    remains: Arc<Remains>,
    began: Instant,
    swept: Mutex<Instant>,
    /// Until when none is made, since that failed.
    paused: Mutex<Option<Instant>>,
}

/// The session that makes them.
struct Owner {
    session: Session,
    /// How many losses there were before it was opened.
    losses: u64,
}

/// A session object that stands in for a root key.
pub(super) struct SessionKey {
    pub(super) handle: ObjectHandle,
    /// The token object that it was made of, if it was made of one.
    pub(super) source: Option<ObjectHandle>,
    object: ObjectId,
    losses: u64,
    /// When it was last known to be good, in milliseconds of the cache's life.
    seen: AtomicU64,
    remains: Arc<Remains>,
}

/// What is to be destroyed. As long as the list of keys at most, which has a bound.
#[derive(Default)]
struct Remains(Mutex<Vec<Remain>>);

struct Remain {
    handle: ObjectHandle,
    object: ObjectId,
    losses: u64,
}

/// A moment, to tell whether any were taken away since.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Mark(u64);

/// Why a session key was not made.
#[derive(Debug)]
pub(super) enum NotMade {
    /// Others are being made, or were taken away meanwhile.
    Busy,
    /// The token made another object than was asked for; where it differs.
    Unlike(Vec<AttributeType>),
    /// The module refused.
    Refused(Error),
}

impl SessionKeys {
    pub(super) fn new(settings: SessionObjects) -> Self {
        Self {
            settings,
            keys: cache(settings.most),
            wanted: cache(settings.most),
            owner: Mutex::default(),
            losses: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            remains: Arc::default(),
            began: Instant::now(),
            swept: Mutex::new(Instant::now()),
            paused: Mutex::default(),
        }
    }

    /// The session key that stands for `object`, if there is one.
    pub(super) fn find(&self, object: ObjectId) -> Option<Arc<SessionKey>> {
        let key = self.keys.get(&object)?;
        (key.losses == self.losses.load(Ordering::SeqCst)).then_some(key)
    }

    /// To be taken before it is looked whether a key may be made.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.taken.load(Ordering::SeqCst))
    }

    /// Whether it is time to make one: it was wanted before, and a moment ago none failed.
    pub(super) fn is_due(&self, object: ObjectId) -> bool {
        if self.wanted.remove(&object).is_none() {
            self.wanted.insert(object, ());
            return false;
        }
        self.paused.lock().is_none_or(|until| until <= Instant::now())
    }

    /// Makes none for a while.
    pub(super) fn pause(&self) {
        *self.paused.lock() = Some(Instant::now() + self.settings.renew_after);
    }

    /// Has `make` make a session key for `object` out of `source`, and looks whether it
    /// is as such keys are. Nobody waits longer than `patience` for others to be made. It
    /// is not kept if any were taken away since `mark`, and is good for one use.
    ///
    /// # Errors
    /// [`NotMade`].
    pub(super) fn make(
        &self,
        token: &Token,
        (object, mark): (ObjectId, Mark),
        (source, patience): (Option<ObjectHandle>, Duration),
        make: impl FnOnce(&Session) -> Result<ObjectHandle, Error>,
    ) -> Result<Arc<SessionKey>, NotMade> {
        let mut owner = self.owner.try_lock_for(patience).ok_or(NotMade::Busy)?;
        if let Some(made) = self.find(object) {
            return Ok(made);
        }
        let losses = self.losses.load(Ordering::SeqCst);
        let known = owner.take().filter(|owner| owner.losses == losses);
        let session = match known {
            Some(known) => &owner.insert(known).session,
            None => &owner.insert(Owner { session: token.session()?, losses }).session,
        };
        // Or a long job of many keys would have more of them than there may be.
        self.bury(session)?;
        let handle = make(session)?;
        let remains = Arc::clone(&self.remains);
        let seen = AtomicU64::new(self.millis());
        // From here on it is destroyed, whatever happens.
        let key = Arc::new(SessionKey { handle, source, object, losses, seen, remains });
        let differs = object::differences(session, handle, &object::session_template(object))?;
        if !differs.is_empty() {
            return Err(NotMade::Unlike(differs));
        }
        self.keys.insert(object, Arc::clone(&key));
        if self.mark() != mark {
            self.remove(object, &key);
        }
        Ok(key)
    }

    /// Whether a key may be used without another look at what it was made of.
    pub(super) fn is_fresh(&self, key: &SessionKey) -> bool {
        self.unseen(key) < self.settings.renew_after
    }

    /// Notes that a key is good.
    pub(super) fn renew(&self, key: &SessionKey) {
        key.seen.store(self.millis(), Ordering::Relaxed);
    }

    /// Takes that one key away.
    pub(super) fn remove(&self, object: ObjectId, key: &Arc<SessionKey>) {
        drop(self.keys.remove_if(&object, |known| Arc::ptr_eq(known, key)));
    }

    /// Takes the keys of these root keys away, and any that are being made. They are
    /// destroyed by the next [`SessionKeys::tidy`] after their last use.
    /// Whether there were any.
    pub(super) fn retire(&self, objects: &[ObjectId]) -> bool {
        self.taken.fetch_add(1, Ordering::SeqCst);
        let mut any = false;
        for object in objects {
            any |= self.keys.remove(object).is_some();
            let _ = self.wanted.remove(object);
        }
        any
    }

    /// The same of all.
    pub(super) fn retire_all(&self) {
        self.taken.fetch_add(1, Ordering::SeqCst);
        self.keys.clear();
    }

    /// Takes all away, and closes the session that owns them: their handles may lead to
    /// other objects from now on.
    pub(super) fn lose(&self) {
        self.losses.fetch_add(1, Ordering::SeqCst);
        self.taken.fetch_add(1, Ordering::SeqCst);
        self.keys.clear();
        // Where it is busy, its user finds it useless when it is wanted next.
        if let Some(mut owner) = self.owner.try_lock() {
            drop(owner.take());
        }
    }

    /// The same for good, before the module is finalized.
    pub(super) fn close(&self, patience: Duration) {
        self.lose();
        if let Some(mut owner) = self.owner.try_lock_for(patience) {
            drop(owner.take());
        }
    }

    /// Destroys in `session` what is of no use any more. What cannot be destroyed goes
    /// with its owner's session, and so do all others.
    ///
    /// # Errors
    /// If the module refused: then `session` may be of no use.
    pub(super) fn tidy(&self, session: &Session) -> Result<(), Error> {
        self.sweep();
        self.bury(session)
    }

    fn bury(&self, session: &Session) -> Result<(), Error> {
        while let Some(remain) = self.remains.take() {
            if remain.losses != self.losses.load(Ordering::SeqCst) {
                continue;
            }
            if let Err(error) = remain.destroy(session) {
                self.lose();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes those away that were not used for long.
    fn sweep(&self) {
        let Some(mut swept) = self.swept.try_lock() else { return };
        if swept.elapsed() < self.settings.renew_after {
            return;
        }
        *swept = Instant::now();
        // One that is used is renewed after its time, and not at once.
        let longest = 2 * self.settings.renew_after;
        self.keys.retain(|_, key| self.unseen(key) < longest);
        self.wanted.clear();
        // One that was busy when all was lost, and that nobody has wanted since.
        if let Some(mut owner) = self.owner.try_lock() {
            let losses = self.losses.load(Ordering::SeqCst);
            drop(owner.take_if(|owner| owner.losses != losses));
        }
    }

    fn unseen(&self, key: &SessionKey) -> Duration {
        Duration::from_millis(self.millis().saturating_sub(key.seen.load(Ordering::Relaxed)))
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for SessionKey {
    fn drop(&mut self) {
        let (handle, object, losses) = (self.handle, self.object, self.losses);
        self.remains.0.lock().push(Remain { handle, object, losses });
    }
}

impl Remains {
    fn take(&self) -> Option<Remain> {
        self.0.lock().pop()
    }
}

impl Remain {
    /// Looks first what the handle leads to: a token object must never go this way.
    fn destroy(self, session: &Session) -> Result<(), Error> {
        let gone = |error: &Error| matches!(error, Error::Pkcs11(RvError::ObjectHandleInvalid, _));
        match object::is_session_key(session, self.handle, self.object) {
            Ok(true) => session.destroy_object(self.handle),
            Ok(false) => {
                tracing::error!(object = %self.object, "a handle leads to another object");
                Ok(())
            }
            Err(error) if gone(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl From<Error> for NotMade {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl std::fmt::Display for NotMade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Busy => f.write_str("others are being made"),
            Self::Unlike(differs) => {
                let differs: BTreeSet<_> = differs.iter().map(ToString::to_string).collect();
                write!(f, "the token makes them otherwise than asked: {differs:?}")
            }
            Self::Refused(error) => error.fmt(f),
        }
    }
}

/// In one part, so that the bound is exact; there are few threads.
fn cache<T: Clone>(most: usize) -> Cache<ObjectId, T> {
    let weight = u64::try_from(most).unwrap_or(u64::MAX);
    let mut options = OptionsBuilder::new();
    options.shards(1).estimated_items_capacity(most).weight_capacity(weight);
    let options = options.build().expect("both capacities are set");
    Cache::with_options(
        options,
        UnitWeighter,
        DefaultHashBuilder::default(),
        DefaultLifecycle::default(),
    )
}

//! The jobs that the queue holds: plain data, and where the answer goes.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use tokio::sync::oneshot;

use super::{Crypt, Crypted, HsmError, Sealed};
use crate::domain::ObjectId;

/// One entry of the queue.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) deadline: Instant,
}

/// What a worker is asked to do, and where the answer goes.
pub(super) enum Work {
    /// All of these, in order; each succeeds or fails alone.
    Crypt(Vec<Crypt>, Reply<Vec<Result<Crypted, HsmError>>>),
    /// Make a root key, prove that it is one, answer with its check value.
    Generate(ObjectId, Reply<Sealed>),
    /// Destroy a root key, and prove that it is gone.
    Destroy(ObjectId, Reply<()>),
    /// Make a key in the session, seal, open and compare; how long it took.
    RoundTrip(Reply<Duration>),
    /// Seal and open with the canary; whether that worked.
    Probe(Sender<bool>),
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, HsmError>>;

impl Job {
    /// Answers that it was not done. A caller who no longer waits is no matter.
    pub(super) fn refuse(self, error: HsmError) {
        match self.work {
            Work::Crypt(_, reply) => drop(reply.send(Err(error))),
            Work::Generate(_, reply) => drop(reply.send(Err(error))),
            Work::Destroy(_, reply) => drop(reply.send(Err(error))),
            Work::RoundTrip(reply) => drop(reply.send(Err(error))),
            // The supervisor takes no answer for what it is.
            Work::Probe(reply) => drop(reply),
        }
    }
}

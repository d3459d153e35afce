//! The jobs that the queue holds: plain data, and where the answer goes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use minicbor::{Decode, Encode};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::wrapping::NewlyWrapped;
use super::{Crypt, Crypted, HsmError, Sealed, wire};
use crate::domain::{ObjectId, SealedMaterial};

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
    /// Make a master key.
    MakeMaster(ObjectId, Reply<()>),
    /// Try whether the token wraps root keys safely, with that master key if there is one.
    TryWrapping(Option<ObjectId>, Reply<()>),
    /// Make a root key and wrap it, prove that it is one, answer with both.
    GenerateWrapped {
        /// CKA_ID of its session objects.
        object: ObjectId,
        /// CKA_ID of the master key.
        master: ObjectId,
        reply: Reply<NewlyWrapped>,
    },
    /// Make an import pair, answer with the SubjectPublicKeyInfo.
    GenerateImportPair(ObjectId, Reply<Vec<u8>>),
    /// Unwrap key material into a root key, prove that it is the one meant,
    /// answer with its check value.
    Import(Import, Reply<Sealed>),
    /// Make the signer unless it is there, answer with the SubjectPublicKeyInfo.
    MakeSigner(ObjectId, Reply<Vec<u8>>),
    /// Answer with the SubjectPublicKeyInfo of the signer.
    SignerKey(ObjectId, Reply<Vec<u8>>),
    /// Sign a SHA-256 with the signer; the signature is in DER.
    Sign(ObjectId, [u8; 32], Reply<Vec<u8>>),
    /// Destroy a root key or an import pair, and prove that it is gone.
    Destroy(ObjectId, Reply<()>),
    /// Make a key in the session, seal, open and compare; how long it took.
    RoundTrip(Reply<Duration>),
    /// Seal and open with the canary; whether that worked.
    Probe(Sender<bool>),
    /// Find out what key material the token unwraps, and note it.
    TryUnwrapping,
    /// Retire these session keys, and do what is done after every job: destroy those
    /// that were retired.
    Tidy(Retired),
}

/// Session keys that are not to be used any more.
#[derive(Clone, Debug, Decode, Encode, Eq, PartialEq)]
pub(super) enum Retired {
    /// Of these root keys.
    #[n(0)]
    These(#[cbor(n(0), with = "wire::ids")] Vec<ObjectId>),
    /// Of any.
    #[n(1)]
    All,
}

impl Retired {
    /// Of none: those that were retired are destroyed.
    pub(super) const fn none() -> Self {
        Self::These(Vec::new())
    }
}

/// Key material, and what to make of it.
pub(super) struct Import {
    /// CKA_ID of the root key to be.
    pub(super) object: ObjectId,
    /// The import pair that the material is sealed to.
    pub(super) pair: ObjectId,
    pub(super) material: SealedMaterial,
    /// What the sealed nonce must open to.
    pub(super) nonce: [u8; 12],
}

impl Work {
    /// Whether it makes or destroys objects of the token.
    pub(super) const fn changes_objects(&self) -> bool {
        match self {
            Self::Generate(..)
            | Self::MakeMaster(..)
            | Self::TryWrapping(..)
            | Self::GenerateWrapped { .. }
            | Self::GenerateImportPair(..)
            | Self::Import(..)
            | Self::MakeSigner(..)
            | Self::Destroy(..)
            | Self::TryUnwrapping => true,
            Self::Crypt(..)
            | Self::SignerKey(..)
            | Self::Sign(..)
            | Self::RoundTrip(_)
            | Self::Probe(_)
            | Self::Tidy(_) => false,
        }
    }

    /// How many DEKs it is about.
    pub(super) fn deks(&self) -> usize {
        if let Self::Crypt(items, _) = self { items.len() } else { 0 }
    }

    /// How much longer than other work it may take before its worker is taken
    /// for stuck.
    pub(super) const fn allowance(&self) -> Duration {
        match self {
            Self::GenerateImportPair(..) | Self::TryUnwrapping => PAIR_ALLOWANCE,
            Self::Generate(..)
            | Self::MakeMaster(..)
            | Self::TryWrapping(..)
            | Self::GenerateWrapped { .. }
            | Self::Import(..)
            | Self::MakeSigner(..)
            | Self::Destroy(..) => OBJECT_ALLOWANCE,
            Self::Crypt(..)
            | Self::SignerKey(..)
            | Self::Sign(..)
            | Self::RoundTrip(_)
            | Self::Probe(_)
            | Self::Tidy(_) => Duration::ZERO,
        }
    }

    /// By which its caller can be answered while a worker is at it.
    pub(super) fn recall(&self) -> Option<Arc<dyn Recall>> {
        Some(match self {
            Self::Crypt(_, Reply(reply)) => Arc::clone(reply) as _,
            Self::Generate(_, Reply(reply)) | Self::Import(_, Reply(reply)) => {
                Arc::clone(reply) as _
            }
            Self::GenerateImportPair(_, Reply(reply))
            | Self::MakeSigner(_, Reply(reply))
            | Self::SignerKey(_, Reply(reply))
            | Self::Sign(_, _, Reply(reply)) => Arc::clone(reply) as _,
            Self::Destroy(_, Reply(reply))
            | Self::MakeMaster(_, Reply(reply))
            | Self::TryWrapping(_, Reply(reply)) => Arc::clone(reply) as _,
            Self::GenerateWrapped { reply: Reply(reply), .. } => Arc::clone(reply) as _,
            Self::RoundTrip(Reply(reply)) => Arc::clone(reply) as _,
            // Nobody waits for these.
            Self::Probe(_) | Self::TryUnwrapping | Self::Tidy(_) => return None,
        })
    }
}

/// Where the answer goes. It can be given once: the supervisor may refuse in place of
/// a worker that hangs, and if that comes back it has nobody to answer.
pub(super) struct Reply<T>(Arc<Slot<T>>);

type Slot<T> = Mutex<Option<oneshot::Sender<Result<T, HsmError>>>>;

/// Takes a job's answer away from its worker.
pub(super) trait Recall: Send + Sync {
    /// Refuses, unless it was answered.
    fn refuse(&self, error: HsmError);
}

impl<T: Send> Recall for Slot<T> {
    fn refuse(&self, error: HsmError) {
        if let Some(reply) = self.lock().take() {
            // A caller who no longer waits is no matter.
            drop(reply.send(Err(error)));
        }
    }
}

impl<T> Reply<T> {
    pub(super) fn new() -> (Self, oneshot::Receiver<Result<T, HsmError>>) {
        let (reply, answer) = oneshot::channel();
        (Self(Arc::new(Mutex::new(Some(reply)))), answer)
    }

    /// Answers, unless that was done.
    pub(super) fn send(self, result: Result<T, HsmError>) {
        if let Some(reply) = self.0.lock().take() {
            // A caller who no longer waits is no matter.
            drop(reply.send(result));
        }
    }
}

impl Job {
    /// Answers that it was not done.
    pub(super) fn refuse(self, error: HsmError) {
        match self.work {
            Work::Crypt(_, reply) => reply.send(Err(error)),
            Work::Generate(_, reply) | Work::Import(_, reply) => reply.send(Err(error)),
            Work::GenerateImportPair(_, reply)
            | Work::MakeSigner(_, reply)
            | Work::SignerKey(_, reply)
            | Work::Sign(_, _, reply) => reply.send(Err(error)),
            Work::Destroy(_, reply) | Work::MakeMaster(_, reply) | Work::TryWrapping(_, reply) => {
                reply.send(Err(error));
            }
            Work::GenerateWrapped { reply, .. } => reply.send(Err(error)),
            Work::RoundTrip(reply) => reply.send(Err(error)),
            // The supervisor takes no answer for what it is.
            Work::Probe(reply) => drop(reply),
            // The supervisor asks again; and it is done after every job.
            Work::TryUnwrapping | Work::Tidy(_) => {}
        }
    }
}

/// The search for the primes of RSA-4096 takes a second or two, and on a busy
/// machine, with bad luck, much longer.
const PAIR_ALLOWANCE: Duration = Duration::from_secs(60);
/// An HSM with many objects takes its time to make or destroy one.
const OBJECT_ALLOWANCE: Duration = Duration::from_secs(10);

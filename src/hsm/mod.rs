//! The HSM, driven through PKCS#11: an async handle on worker threads that own a
//! session each and are fed by one bounded queue of plain-data jobs.
//!
//! A C call cannot be cancelled, so a caller waits until its deadline and no
//! longer; a job whose deadline has passed is not begun. While the token is away
//! every job fails at once, and the supervisor brings the module back by itself.
//! Root keys are handles here and never bytes.

mod activity;
mod circuit;
mod confine;
mod copying;
mod courier;
mod crypt;
mod ffi;
mod import;
mod job;
mod keeper;
mod ladder;
mod loading;
mod login;
mod mechanism;
mod notice;
mod oaep;
mod object;
mod pace;
mod pair;
mod recovery;
mod root_key;
mod rv;
mod session_keys;
mod settings;
mod shelf;
mod signer;
mod supervisor;
#[cfg(test)]
mod tests;
mod together;
mod token;
mod torn;
mod unwrapping;
mod view;
mod wire;
mod worker;
mod worker_process;
mod wrapping;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use crossbeam_channel::{Sender, TrySendError};
use cryptoki::error::RvError;
use minicbor::{Decode, Encode};
use parking_lot::Mutex;
use thiserror::Error;
use tokio::sync::{oneshot, watch};

pub use crypt::{Crypt, Crypted, Means, RootKey, Sealed, Wrapped};
pub use session_keys::{SessionCopies, SessionObjects};
pub use settings::{Isolation, Processes, Settings, WorkerCommand};
pub use token::{TokenInfo, make_token};
pub use torn::torn_files;
pub use worker_process::serve_worker;
pub use wrapping::WrapFault;

use crate::domain::{ImportAlgorithm, ObjectId, SealedMaterial, WrappedKey};
use crate::gather::Gather;
use job::{Import, Job, Reply, Retired, Work};
use object::Kind;
use shelf::Shelf;
use supervisor::Control;
use together::{Answer, Part};
use view::View;
use wrapping::NewlyWrapped;

/// The HSM could not do what was asked.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, Error, PartialEq)]
pub enum HsmError {
    /// The ciphertext does not verify under that root key and AAD.
    #[error("the ciphertext does not verify")]
    #[n(0)]
    Unverified,
    /// The queue is full; nothing was done.
    #[error("the queue of the HSM is full")]
    #[n(1)]
    Overloaded,
    /// The deadline passed before an answer.
    #[error("the HSM did not answer in time")]
    #[n(2)]
    Deadline,
    /// The token is not there, or does not work.
    #[error("the HSM cannot be used now")]
    #[n(3)]
    Unavailable,
    /// The token works, and does not show the object.
    #[error("the HSM does not show the object")]
    #[n(4)]
    Missing,
    /// The key material does not unwrap, or into no AES key; which of the two, and
    /// why, is not told.
    #[error("the sealed key material cannot be unwrapped")]
    #[n(5)]
    Material,
    /// The nonce was not sealed with the imported key.
    #[error("the sealed nonce does not verify under the imported key")]
    #[n(6)]
    NonceUnverified,
    /// The nonce was sealed with the imported key, and is another one.
    #[error("the sealed nonce is not the nonce of the import")]
    #[n(7)]
    Nonce,
    /// The module refused, with this CK_RV.
    #[error("the HSM refused: {0:?}")]
    #[n(8)]
    Refused(#[cbor(n(0), with = "wire::refusal")] RvError),
    /// The token does not wrap root keys safely.
    #[error("the HSM cannot wrap root keys: {0}")]
    #[n(9)]
    NoWrapping(#[n(0)] WrapFault),
    /// A wrapped root key does not unwrap, or into another key than it was.
    #[error("the wrapped root key is not what it was")]
    #[n(10)]
    Damaged,
}

/// Whether root keys can be used.
#[derive(Clone, Debug)]
pub enum Health {
    /// Not known yet.
    Starting,
    /// They can. `generation` counts how often the module came up.
    Ready {
        /// From 1.
        generation: u64,
    },
    /// They cannot.
    Down {
        /// What is wrong and what to do, in a sentence.
        problem: String,
    },
}

/// The HSM. A clone is another handle on the same one.
#[derive(Clone)]
pub struct Hsm(Arc<Inner>);

struct Inner {
    /// Jobs that use objects.
    jobs: Sender<Job>,
    /// Jobs that make or destroy them; with threads the same queue.
    writes: Sender<Job>,
    control: Sender<Control>,
    health: watch::Receiver<Health>,
    view: View,
    /// Calls about one DEK that go to the HSM together.
    gather: Gather<Part, Answer>,
    settings: Settings,
    supervisor: Mutex<Option<JoinHandle<()>>>,
}

impl Hsm {
    /// Starts the threads. Returns at once: [`Hsm::watch`] tells when it is ready.
    ///
    /// # Errors
    /// If a thread cannot be made.
    pub fn start(settings: Settings) -> std::io::Result<Self> {
        let (jobs, waiting) = crossbeam_channel::bounded(settings.queue);
        let (control, orders) = crossbeam_channel::bounded(CONTROLS);
        let (tell, health) = watch::channel(Health::Starting);
        let named = std::thread::Builder::new().name("hsm".into());
        let (thread, writes, view) = match &settings.isolation {
            Isolation::Threads => {
                let token = Arc::new(ArcSwapOption::empty());
                let supervisor = supervisor::Supervisor::new(
                    settings.clone(),
                    (jobs.clone(), waiting),
                    (control.clone(), orders),
                    tell,
                    Arc::clone(&token),
                );
                let thread = named.spawn(move || supervisor.run())?;
                (thread, jobs.clone(), View::Threads(token))
            }
            Isolation::Processes(processes) => {
                let shelf = Arc::new(Shelf::default());
                let (writes, writing) = crossbeam_channel::bounded(settings.queue);
                let keeper = keeper::Keeper::new(
                    (settings.clone(), processes.clone()),
                    keeper::Queues {
                        jobs: (jobs.clone(), waiting),
                        writes: (writes.clone(), writing),
                    },
                    orders,
                    tell,
                    Arc::clone(&shelf),
                );
                let thread = named.spawn(move || keeper.run())?;
                (thread, writes, View::Processes(shelf))
            }
        };
        let supervisor = Mutex::new(Some(thread));
        Ok(Self(Arc::new(Inner {
            jobs,
            writes,
            control,
            health,
            view,
            gather: Gather::default(),
            settings,
            supervisor,
        })))
    }

    /// Follows the health.
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.0.health.clone()
    }

    /// The health now.
    pub fn health(&self) -> Health {
        self.0.health.borrow().clone()
    }

    /// How the HSM is driven.
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// What module and token say of themselves; `None` while the token is away.
    pub fn info(&self) -> Option<TokenInfo> {
        self.0.view.info()
    }

    /// Whether the token is there. It may be lost the next moment.
    pub fn is_up(&self) -> bool {
        self.0.view.is_up()
    }

    /// The root key objects that the token shows; `None` while it is away.
    pub fn objects(&self) -> Option<Vec<ObjectId>> {
        self.0.view.shown(Kind::RootKey)
    }

    /// CKA_IDs that two objects had when the token came up, of which none is used;
    /// `None` while it is away.
    pub fn doubled(&self) -> Option<Vec<ObjectId>> {
        self.0.view.doubled()
    }

    /// Root keys that were not as they were asked for when the token came up, of which
    /// none is used; `None` while it is away.
    pub fn unlike(&self) -> Option<BTreeSet<ObjectId>> {
        self.0.view.unlike()
    }

    /// Has a root key not be used until the token comes up anew: it is not the key that
    /// it was.
    pub fn withhold(&self, object: ObjectId) {
        self.0.view.withhold(object);
    }

    /// Has the session objects that stand in for these root keys destroyed, as soon as
    /// nobody uses them: these keys are not to be used any more. That is no permission's
    /// end: a job that waits may still use the root key itself. Does not wait; where the
    /// queue is full they go after the next job.
    pub fn retire(&self, objects: &[ObjectId]) {
        if self.0.view.retire(objects) {
            let (work, deadline) = (Work::Tidy(Retired::none()), Instant::now() + RETIRING);
            // Err: full, so that a worker will look after them anyway, or gone.
            drop(self.0.jobs.try_send(Job { work, deadline }));
        }
    }

    /// Does all of `items` as one job; each succeeds or fails alone, and the
    /// answer is as long as `items`. With a fast HSM a single one goes together with others
    /// that come at the same time.
    ///
    /// # Errors
    /// [`HsmError`], if none of it was answered.
    pub async fn crypt(
        &self,
        items: Vec<Crypt>,
        deadline: Instant,
    ) -> Result<Vec<Result<Crypted, HsmError>>, HsmError> {
        match <[Crypt; 1]>::try_from(items) {
            Ok([item]) => self.crypt_one(item, deadline).await.map(|done| vec![done]),
            Err(items) => self.run(deadline, |reply| Work::Crypt(items, reply)).await,
        }
    }

    /// Makes a root key (AES-256) with `object` as its CKA_ID; returns its check
    /// value. It is durable, reads back as it was asked for, and works.
    ///
    /// # Errors
    /// [`HsmError`]; there may then be an object all the same, or be one later.
    pub async fn generate(&self, object: ObjectId, deadline: Instant) -> Result<Sealed, HsmError> {
        self.run(deadline, |reply| Work::Generate(object, reply)).await
    }

    /// Destroys the objects with this CKA_ID, of whatever class, if any, and makes
    /// sure that a new session shows none. Only `service/reconcile.rs` calls this, for an object
    /// whose intent is durably in the stage Destroying.
    ///
    /// # Errors
    /// [`HsmError`]; the object may then still be there.
    pub async fn destroy(&self, object: ObjectId, deadline: Instant) -> Result<(), HsmError> {
        self.retire(&[object]);
        self.run(deadline, |reply| Work::Destroy(object, reply)).await
    }

    /// Makes an import pair (RSA-4096) with `object` as its CKA_ID; returns the DER
    /// SubjectPublicKeyInfo of its public part. Takes seconds. It is durable and
    /// reads back as it was asked for.
    ///
    /// # Errors
    /// [`HsmError`]; there may then be a pair all the same, or be one later.
    pub async fn generate_import_pair(
        &self,
        object: ObjectId,
        deadline: Instant,
    ) -> Result<Vec<u8>, HsmError> {
        self.run(deadline, |reply| Work::GenerateImportPair(object, reply)).await
    }

    /// Tries whether the token wraps root keys safely: with that master key or, if there is
    /// none yet, with a key that is there for a moment.
    ///
    /// # Errors
    /// [`HsmError::NoWrapping`], if it does not; [`HsmError::Missing`], if it does not show
    /// the master key; or as it cannot be used now.
    pub async fn try_wrapping(
        &self,
        master: Option<ObjectId>,
        deadline: Instant,
    ) -> Result<(), HsmError> {
        self.run(deadline, |reply| Work::TryWrapping(master, reply)).await
    }

    /// Makes a master key (AES-256) with `object` as its CKA_ID, which wraps root keys and
    /// does nothing else. It is durable and reads back as it was asked for.
    ///
    /// # Errors
    /// [`HsmError`]; there may then be a key all the same, or be one later.
    pub async fn make_master(&self, object: ObjectId, deadline: Instant) -> Result<(), HsmError> {
        self.run(deadline, |reply| Work::MakeMaster(object, reply)).await
    }

    /// Makes a root key (AES-256) and wraps it under that master key; returns it with its
    /// check value. No object of it stays in the HSM. `object` is for its session objects.
    ///
    /// # Errors
    /// [`HsmError`]; [`HsmError::Missing`], if the token does not show the master key.
    pub async fn generate_wrapped(
        &self,
        (object, master): (ObjectId, ObjectId),
        deadline: Instant,
    ) -> Result<(WrappedKey, Sealed), HsmError> {
        let made = self.run(deadline, |reply| Work::GenerateWrapped { object, master, reply });
        let NewlyWrapped { blob, check_value } = made.await?;
        let wrapped = WrappedKey::new(master, blob);
        Ok((wrapped.map_err(|_length| HsmError::Unavailable)?, check_value))
    }

    /// The master keys that the token shows; `None` while it is away.
    pub fn master_keys(&self) -> Option<Vec<ObjectId>> {
        self.0.view.shown(Kind::MasterKey)
    }

    /// Unwraps `material` with the import pair `pair` into a root key with `object`
    /// as its CKA_ID, and makes sure that the key was used to seal `nonce`; returns
    /// the check value. As of [`Hsm::generate`], it is durable and works.
    ///
    /// # Errors
    /// [`HsmError`]; there may then be an object all the same, or be one later.
    /// Among them [`HsmError::Missing`], if the token does not show the pair, and
    /// [`HsmError::Refused`], if the algorithm is none of [`Hsm::import_algorithms`].
    pub async fn import(
        &self,
        object: ObjectId,
        pair: ObjectId,
        material: SealedMaterial,
        nonce: [u8; 12],
        deadline: Instant,
    ) -> Result<Sealed, HsmError> {
        let import = Import { object, pair, material, nonce };
        self.run(deadline, |reply| Work::Import(import, reply)).await
    }

    /// What key material can be imported, the best algorithm first. It was tried
    /// with the token that is there now; empty while it is away or not tried yet.
    pub fn import_algorithms(&self) -> Vec<ImportAlgorithm> {
        self.0.view.import_algorithms()
    }

    /// The import pairs that the token shows; `None` while it is away.
    pub fn import_pairs(&self) -> Option<Vec<ObjectId>> {
        self.0.view.shown(Kind::ImportPair)
    }

    /// Makes the signer (EC on P-256) with `object` as its CKA_ID, if the token does not
    /// show it yet; returns the DER SubjectPublicKeyInfo of its public part. It is
    /// durable and reads back as it was asked for.
    ///
    /// # Errors
    /// [`HsmError`]; there may then be a pair all the same, or be one later.
    pub async fn make_signer(
        &self,
        object: ObjectId,
        deadline: Instant,
    ) -> Result<Vec<u8>, HsmError> {
        self.run(deadline, |reply| Work::MakeSigner(object, reply)).await
    }

    /// The DER SubjectPublicKeyInfo of the public part of the signer.
    ///
    /// # Errors
    /// [`HsmError`]; among them [`HsmError::Missing`], if the token does not show it.
    pub async fn signer_key(
        &self,
        object: ObjectId,
        deadline: Instant,
    ) -> Result<Vec<u8>, HsmError> {
        self.run(deadline, |reply| Work::SignerKey(object, reply)).await
    }

    /// Signs a SHA-256 with the signer: ECDSA, in DER.
    ///
    /// # Errors
    /// As [`Hsm::signer_key`].
    pub async fn sign(
        &self,
        object: ObjectId,
        hash: [u8; 32],
        deadline: Instant,
    ) -> Result<Vec<u8>, HsmError> {
        self.run(deadline, |reply| Work::Sign(object, hash, reply)).await
    }

    /// The signers that the token shows; `None` while it is away.
    pub fn signers(&self) -> Option<Vec<ObjectId>> {
        self.0.view.shown(Kind::Signer)
    }

    /// Opens a version's check value: whether the object is the key that it was.
    /// As [`Crypt`] items for [`Hsm::crypt`], to be sent in chunks.
    pub fn check(object: ObjectId, check_value: &[u8]) -> Option<Crypt> {
        let key = RootKey::itself(object);
        let (iv, bytes) = check_value.split_first_chunk()?;
        let sealed = Sealed { iv: *iv, bytes: bytes.to_vec() };
        Some(Crypt::Open { key, aad: object::CHECK_AAD.to_vec(), sealed, reseal: None })
    }

    /// What opens with no key: in the place of a check value that cannot be one.
    pub fn check_nothing(object: ObjectId) -> Crypt {
        let sealed = Sealed { iv: [0; mechanism::IV_BYTES], bytes: vec![0; 16] };
        let (key, aad) = (RootKey::itself(object), object::CHECK_AAD.to_vec());
        Crypt::Open { key, aad, sealed, reseal: None }
    }

    /// Makes a key in a session, seals, opens and compares; how long it took.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn round_trip(&self, deadline: Instant) -> Result<Duration, HsmError> {
        self.run(deadline, Work::RoundTrip).await
    }

    /// Ends the threads: what waits is refused, what runs is finished, sessions
    /// are closed and the module is finalized. Blocks until then; SoftHSM
    /// crashes at exit otherwise.
    pub fn stop(&self) {
        let thread = self.0.supervisor.lock().take();
        if let Some(thread) = thread {
            // Err: the supervisor is gone already.
            let _ = self.0.control.send(Control::Stop);
            let _ = thread.join();
        }
    }

    async fn run<T>(
        &self,
        deadline: Instant,
        work: impl FnOnce(Reply<T>) -> Work,
    ) -> Result<T, HsmError> {
        wait(deadline, self.send(deadline, work)?).await
    }

    /// Puts a job into its queue.
    fn send<T>(
        &self,
        deadline: Instant,
        work: impl FnOnce(Reply<T>) -> Work,
    ) -> Result<Answered<T>, HsmError> {
        if !self.is_up() {
            return Err(HsmError::Unavailable);
        }
        let (reply, answer) = Reply::new();
        let job = Job { work: work(reply), deadline };
        let queue = if job.work.changes_objects() { &self.0.writes } else { &self.0.jobs };
        queue.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => HsmError::Overloaded,
            TrySendError::Disconnected(_) => HsmError::Unavailable,
        })?;
        Ok(answer)
    }
}

type Answered<T> = oneshot::Receiver<Result<T, HsmError>>;

async fn wait<T>(deadline: Instant, answer: Answered<T>) -> Result<T, HsmError> {
    match tokio::time::timeout_at(deadline.into(), answer).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_dropped)) => Err(HsmError::Unavailable),
        Err(_elapsed) => Err(HsmError::Deadline),
    }
}

/// How long it may take until a worker is free to destroy what was retired; if it takes
/// longer it is done after some other job.
const RETIRING: Duration = Duration::from_secs(10);
/// Orders to the supervisor that may wait: more than there can be workers.
const CONTROLS: usize = 256;

//! Checkpoints of the audit log: which HSM object signs them, and when one is made.
//!
//! The CKA_ID of the signer is durable before the object is made, so that a crash in
//! between leaves nothing unexplained. If checkpoints have a signer and the token
//! does not show it, no other one is made by itself. `docs/adr/0013`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use thiserror::Error as ThisError;
use uuid::Uuid;

use super::{Answer, Call, Service, within};
use crate::audit::{AuditError, PublicKey, Signed};
use crate::domain::ObjectId;
use crate::error::{Error, Reason};
use crate::hsm::HsmError;

/// How checkpoints are made.
#[derive(Clone, Debug)]
pub struct Proving {
    /// Whose log it is, in every checkpoint.
    pub origin: String,
    /// One is due when so many records are not covered.
    pub records: u64,
    /// One is due when any record is not covered for so long.
    pub every: Duration,
}

/// Why checkpoints cannot be signed.
#[derive(Debug, ThisError)]
pub enum SignerProblem {
    /// Checkpoints have a signer, and the token does not show it.
    #[error(
        "the token does not show the key that signs the checkpoints of the audit log \
         ({0}); restore the token from its backup. To give up the proof so far instead, move \
         signer, signer.pem and checkpoints out of the directory of the audit log, and the \
         witness file from its place, and keep them"
    )]
    Missing(ObjectId),
    /// The signer is another key than it was.
    #[error("checkpoints of the audit log: {0}")]
    Other(#[source] AuditError),
    /// The HSM cannot sign now, or not at all.
    #[error(transparent)]
    Now(#[from] Error),
}

impl SignerProblem {
    /// Whether a daemon that has just started should not go on.
    pub fn is_grave(&self) -> bool {
        match self {
            Self::Missing(_) | Self::Other(_) => true,
            Self::Now(_) => false,
        }
    }
}

impl From<SignerProblem> for Error {
    fn from(problem: SignerProblem) -> Self {
        match problem {
            SignerProblem::Now(error) => error,
            SignerProblem::Missing(_) | SignerProblem::Other(_) => {
                let message = "the HSM does not show the key that signs checkpoints";
                Self::new(Reason::HsmKeyMissing, message).caused_by(problem)
            }
        }
    }
}

impl From<HsmError> for SignerProblem {
    fn from(error: HsmError) -> Self {
        Self::Now(error.into())
    }
}

impl Service {
    /// Finds the signer in the HSM, or makes it if there never was a checkpoint.
    ///
    /// # Errors
    /// [`SignerProblem`].
    pub async fn prepare_signer(&self) -> Result<(), SignerProblem> {
        let mut found = self.signing.lock().await;
        self.find_signer_once(&mut found).await
    }

    async fn find_signer_once(&self, found: &mut bool) -> Result<(), SignerProblem> {
        if !*found {
            self.find_signer().await?;
            *found = true;
        }
        Ok(())
    }

    async fn find_signer(&self) -> Result<(), SignerProblem> {
        let Some(object) = self.audit.signer() else { return self.make_signer(None).await };
        match self.hsm.signer_key(object, self.soon()).await {
            Ok(key) => self.adopt_key(key).await,
            Err(HsmError::Missing) if self.audit.covered().is_none() => {
                self.make_signer(Some(object)).await
            }
            Err(HsmError::Missing) => Err(SignerProblem::Missing(object)),
            Err(
                error @ (HsmError::Unverified
                | HsmError::Overloaded
                | HsmError::Deadline
                | HsmError::Unavailable
                | HsmError::Material
                | HsmError::NonceUnverified
                | HsmError::Nonce
                | HsmError::Refused(_)
                | HsmError::NoWrapping(_)
                | HsmError::Damaged),
            ) => Err(error.into()),
        }
    }

    /// Makes the signer, as the object that was written down if there is one.
    async fn make_signer(&self, known: Option<ObjectId>) -> Result<(), SignerProblem> {
        let object = match known {
            Some(object) => object,
            None => self.begin_signer().await?,
        };
        match self.hsm.make_signer(object, self.soon()).await {
            Ok(key) => {
                failpoint!("signer.made");
                tracing::info!(%object, "the signer of audit checkpoints was made");
                self.adopt_key(key).await
            }
            Err(HsmError::Missing) => {
                // Made twice, or in part, around a crash: the next try is another object.
                self.begin_signer().await?;
                Err(HsmError::Unavailable.into())
            }
            Err(
                error @ (HsmError::Unverified
                | HsmError::Overloaded
                | HsmError::Deadline
                | HsmError::Unavailable
                | HsmError::Material
                | HsmError::NonceUnverified
                | HsmError::Nonce
                | HsmError::Refused(_)
                | HsmError::NoWrapping(_)
                | HsmError::Damaged),
            ) => Err(error.into()),
        }
    }

    async fn begin_signer(&self) -> Result<ObjectId, SignerProblem> {
        let (audit, object) = (self.audit.clone(), ObjectId::from(Uuid::new_v4()));
        aside(move || audit.begin_signer(object)).await?.map_err(SignerProblem::Other)?;
        failpoint!("signer.named");
        Ok(object)
    }

    async fn adopt_key(&self, key: Vec<u8>) -> Result<(), SignerProblem> {
        let audit = self.audit.clone();
        aside(move || audit.adopt_key(key)).await?.map_err(SignerProblem::Other)
    }

    fn soon(&self) -> Instant {
        Instant::now() + self.settings.object_deadline
    }

    /// A checkpoint that covers every record that is durable now: the newest, or a new one.
    pub(super) async fn checkpoint(&self, deadline: Instant) -> Result<Signed, Error> {
        let mut found = within(deadline, self.signing.lock()).await?;
        self.find_signer_once(&mut found).await?;
        let snapshot = self.audit.snapshot();
        if let Some(newest) = self.audit.newest_checkpoint()
            && newest.checkpoint.size == snapshot.size()
        {
            return Ok(newest);
        }
        let (Some(object), Some(PublicKey { key, .. })) =
            (self.audit.signer(), self.audit.public_key())
        else {
            return Err(Error::new(Reason::Internal, "there is no signer"));
        };
        let origin = self.settings.proving.origin.clone();
        let time = self.now().time.as_micros();
        let checkpoint = snapshot.checkpoint(origin, self.boot_id.to_string(), time);
        let signed = self.hsm.sign(object, checkpoint.hash(), deadline).await;
        let signature = signed.map_err(|error| match error {
            HsmError::Missing => Error::from(SignerProblem::Missing(object)),
            HsmError::Unverified
            | HsmError::Overloaded
            | HsmError::Deadline
            | HsmError::Unavailable
            | HsmError::Material
            | HsmError::NonceUnverified
            | HsmError::Nonce
            | HsmError::Refused(_)
            | HsmError::NoWrapping(_)
            | HsmError::Damaged => error.into(),
        })?;
        let (audit, note) = (self.audit.clone(), checkpoint.signed(&key, &signature));
        within(deadline, aside(move || audit.add_checkpoint(snapshot, &note))).await???;
        let newest = self.audit.newest_checkpoint();
        newest.ok_or_else(|| Error::new(Reason::Internal, "the checkpoint was not kept"))
    }

    /// Makes checkpoints when they are due; goes on for as long as the daemon does. Without
    /// the HSM none is made, and the log goes on.
    pub async fn keep_checkpoints(self: Arc<Self>) {
        let (mut made, mut failing) = (Instant::now(), false);
        let mut tick = tokio::time::interval(LOOK_EVERY);
        loop {
            tick.tick().await;
            if !self.is_due(made) {
                continue;
            }
            match self.checkpoint(self.soon()).await {
                Ok(_) => (made, failing) = (Instant::now(), false),
                Err(error) => {
                    let grave = error.reason == Reason::HsmKeyMissing;
                    if grave && !failing {
                        tracing::error!(?error, "the log goes on without checkpoints");
                    } else if !failing {
                        tracing::warn!(?error, "no checkpoint can be made; it is tried again");
                    }
                    failing = true;
                    tokio::time::sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    fn is_due(&self, made: Instant) -> bool {
        let Proving { records, every, .. } = &self.settings.proving;
        let new = self.audit.length().saturating_sub(self.audit.covered().unwrap_or(0));
        new >= *records || (new > 0 && made.elapsed() >= *every)
    }

    /// A checkpoint of everything, before the HSM is closed.
    pub async fn make_last_checkpoint(&self) {
        if self.audit.length() == 0 {
            return;
        }
        let deadline = Instant::now() + LAST_PATIENCE;
        if let Err(error) = self.checkpoint(deadline).await {
            tracing::warn!(%error, "no last checkpoint; the newest records are not covered");
        }
    }

    /// The newest checkpoint, or one of now; with the public key.
    ///
    /// # Errors
    /// HSM_UNAVAILABLE, if there is none yet or a new one is wanted; of the audit log.
    pub async fn newest_checkpoint(
        &self,
        call: &Call,
        fresh: bool,
    ) -> Result<Answer<(Signed, PublicKey)>, Error> {
        let newest = self.audit.newest_checkpoint().filter(|_| !fresh);
        let signed = match newest {
            Some(newest) => newest,
            None => self.checkpoint(call.caller.deadline).await?,
        };
        let key = self.audit.public_key();
        let key = key.ok_or_else(|| Error::new(Reason::Internal, "there is no signer"))?;
        Ok(Answer::about((signed, key), ""))
    }
}

/// Does what blocks where that holds nobody up.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        Error::new(Reason::Internal, "the audit log could not be read").caused_by(error)
    })
}

/// How often it is looked at whether a checkpoint is due.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the last checkpoint may hold up the stop.
const LAST_PATIENCE: Duration = Duration::from_secs(5);

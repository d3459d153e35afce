//! The master key: which object of the HSM root keys are wrapped under that are kept in
//! the store, and when one is made.
//!
//! It is made like any object, under an intent, when the first key needs it. Once a key
//! is wrapped under it no other one is made in its place: if the token does not show it,
//! these keys cannot be used until it does. Nothing here destroys one. `docs/adr/0023`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use uuid::Uuid;

use super::{Service, daemon_event, within};
use crate::domain::{KeyId, MasterKey, ObjectId, Residency};
use crate::error::{Error, Reason};
use crate::hsm::HsmError;
use crate::store::{Change, Intent, IntentStage};

/// Every master key that the store names.
pub(super) struct Masters {
    /// Oldest first.
    known: Mutex<Vec<MasterKey>>,
    /// Held while one is looked for or made; the one that was found to wrap since the HSM
    /// came up.
    ready: tokio::sync::Mutex<Option<ObjectId>>,
    /// Why root keys cannot be wrapped, as it was found last.
    trouble: Mutex<Option<String>>,
}

impl Masters {
    pub(super) fn new(known: Vec<MasterKey>) -> Self {
        Self {
            known: Mutex::new(known),
            ready: tokio::sync::Mutex::default(),
            trouble: Mutex::default(),
        }
    }

    /// The one that wraps, if there is any.
    fn newest(&self) -> Option<ObjectId> {
        self.known.lock().last().map(|master| master.object)
    }

    /// Their CKA_IDs.
    pub(super) fn objects(&self) -> Vec<ObjectId> {
        self.known.lock().iter().map(|master| master.object).collect()
    }

    /// Why no root key can be made, if it was found so.
    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    fn note(&self, tried: Result<(), HsmError>) {
        let trouble = match tried {
            Err(error @ HsmError::NoWrapping(_)) => Some(Error::from(error).message),
            Ok(()) | Err(_) => None,
        };
        *self.trouble.lock() = trouble;
    }
}

impl Service {
    /// Whether the token can wrap root keys, if that is what the setting asks for: found
    /// out when the HSM comes up, so that log and doctor tell before a key is wanted.
    pub(super) async fn try_wrapping(&self) {
        if self.settings.residency == Residency::Token {
            return;
        }
        let mut ready = self.masters.ready.lock().await;
        *ready = None;
        let newest = self.masters.newest();
        match self.tried_wrapping(newest).await {
            Ok(()) => {
                *ready = newest;
                tracing::info!("the token wraps root keys safely");
            }
            Err(error) => {
                let error = newest.map_or_else(|| error.into(), |it| unusable(it, error));
                tracing::error!(%error, "no root key can be made: it could not be wrapped");
            }
        }
    }

    /// The master key that wraps; made now, if there never was one that is of use.
    ///
    /// # Errors
    /// HSM_UNAVAILABLE, if the token does not wrap safely; HSM_KEY_MISSING, if the store
    /// has keys that are wrapped under one that the token does not show; of HSM and store.
    pub(super) async fn master(self: &Arc<Self>) -> Result<ObjectId, Error> {
        let deadline = Instant::now() + self.settings.object_deadline;
        let mut ready = within(deadline, self.masters.ready.lock()).await?;
        if let Some(master) = *ready {
            return Ok(master);
        }
        let master = match self.masters.newest() {
            None => self.make_master().await?,
            Some(known) => match self.tried_wrapping(Some(known)).await {
                Ok(()) => known,
                // Nothing was ever wrapped under it, as after a token was made anew.
                Err(HsmError::Missing) if !self.wrapped_under().contains_key(&known) => {
                    self.make_master().await?
                }
                Err(error) => return Err(self.not_wrapped(known, error)),
            },
        };
        *ready = Some(master);
        Ok(master)
    }

    /// What it comes to that nothing could be wrapped under a master key. It is looked for
    /// again before the next one.
    pub(super) fn not_wrapped(&self, master: ObjectId, error: HsmError) -> Error {
        if let Ok(mut ready) = self.masters.ready.try_lock() {
            *ready = None;
        }
        unusable(master, error)
    }

    /// How many key versions are wrapped under each master key.
    pub(super) fn wrapped_under(&self) -> BTreeMap<ObjectId, usize> {
        let mut under = BTreeMap::new();
        for key in self.registry.all() {
            for wrapped in key.versions.iter().filter_map(|version| version.wrapped.as_ref()) {
                *under.entry(wrapped.master).or_insert(0) += 1;
            }
        }
        under
    }

    async fn tried_wrapping(&self, master: Option<ObjectId>) -> Result<(), HsmError> {
        let deadline = Instant::now() + self.settings.object_deadline;
        let tried = self.hsm.try_wrapping(master, deadline).await;
        self.masters.note(tried);
        tried
    }

    async fn make_master(self: &Arc<Self>) -> Result<ObjectId, Error> {
        // Without one first: what a token cannot use is not made in it.
        self.tried_wrapping(None).await?;
        let object = ObjectId::from(Uuid::new_v4());
        let created = self.now().time;
        let intent = Intent {
            object,
            // It is no key's: the column has its own id.
            key: KeyId::from_bytes(*object.as_bytes()),
            stage: IntentStage::Creating,
            begun: created,
            purpose: "create the master key".into(),
        };
        self.begin_intent(intent).await?;
        let deadline = Instant::now() + self.settings.object_deadline;
        let made = self.hsm.make_master(object, deadline).await;
        made.map_err(|error| self.not_made(object, error))?;
        failpoint!("master.made");
        if let Err(error) = self.tried_wrapping(Some(object)).await {
            return Err(self.not_made(object, error));
        }
        let mut event = daemon_event("rootkeyd.master-key.create", self.now(), "");
        event.details = vec![("object".into(), object.to_string())];
        let master = MasterKey { object, created };
        let change = Change {
            master_key: Some(master),
            end: vec![object],
            events: vec![event.clone()],
            ..Change::default()
        };
        if let Err(error) = self.store.commit(change).await {
            self.abandon(object);
            return Err(error.into());
        }
        failpoint!("master.committed");
        self.intents.end(object);
        self.masters.known.lock().push(master);
        tracing::info!(%object, "a master key was made; see that the HSM's backup has it");
        self.publish(vec![event]).await;
        Ok(object)
    }
}

fn unusable(master: ObjectId, error: HsmError) -> Error {
    if error != HsmError::Missing {
        return error.into();
    }
    let message = format!(
        "the HSM does not show the master key {master}, under which root keys are wrapped; \
         restore the token from its backup"
    );
    Error::new(Reason::HsmKeyMissing, message).caused_by(error)
}

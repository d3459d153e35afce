//! HSM and store, kept in agreement: objects are made under an intent, and an
//! intent that was not finished is undone, at once or after a crash.
//!
//! An object that no intent names is never destroyed: the store may be an old backup
//! (`facts/reliability.md` 3). This is the only file that destroys objects. What HSM and
//! store disagree about besides is found in `agreement.rs`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use uuid::Uuid;

use super::{Service, daemon_event};
use crate::domain::import_token::NONCE_BYTES;
use crate::domain::{
    Event, Key, KeyId, ObjectId, Residency, SealedMaterial, Timestamp, Version, VersionId,
    WrappedKey,
};
use crate::error::{Error, Reason};
use crate::hsm::{HsmError, Sealed};
use crate::store::{Change, Intent, IntentStage};

/// Every intent that is not finished.
pub(super) struct Intents(Mutex<HashMap<ObjectId, Open>>);

struct Open {
    intent: Intent,
    /// Whether a change is at work on it, which must not be disturbed.
    busy: bool,
}

/// Where the material of a new root key comes from.
#[derive(Clone, Debug)]
pub(super) enum Material {
    /// The HSM generates it.
    Generate,
    /// The HSM unwraps it.
    Import {
        /// The pair that it is sealed to.
        pair: ObjectId,
        /// What must come out of its encrypted nonce.
        nonce: [u8; NONCE_BYTES],
        /// What the importer sent.
        sealed: SealedMaterial,
    },
}

/// A root key that the HSM made and no key names yet.
pub(super) struct Made {
    object: ObjectId,
    check_value: Sealed,
    /// Unset if it is an object of the token, whose intent is open.
    wrapped: Option<Arc<WrappedKey>>,
}

impl Made {
    /// As a version of a key.
    pub(super) fn version(&self, id: VersionId, created: Timestamp) -> Version {
        let Self { object, check_value: Sealed { iv, bytes }, wrapped } = self;
        let check_value = [&iv[..], bytes].concat().into();
        Version { id, object: *object, check_value, created, wrapped: wrapped.clone() }
    }

    /// The intent that ends when a key names it.
    pub(super) fn intent(&self) -> Option<ObjectId> {
        self.wrapped.is_none().then_some(self.object)
    }
}

impl Intents {
    /// Those that a crash left. The purge of a key goes on as such (`purge.rs`), and
    /// its intents are not to be undone one by one.
    pub(super) fn new(left: Vec<Intent>, keys: &[Key]) -> Self {
        let purging = keys.iter().filter(|key| key.history.purging.is_some());
        let purging = purging.flat_map(|key| key.versions.iter());
        let purging: HashSet<_> = purging.map(|version| version.object).collect();
        let left = left.into_iter().map(|intent| {
            let busy = purging.contains(&intent.object);
            (intent.object, Open { intent, busy })
        });
        Self(Mutex::new(left.collect()))
    }

    /// The change that it was for is committed.
    pub(super) fn end(&self, object: ObjectId) {
        self.0.lock().remove(&object);
    }

    /// Somebody is at work on it.
    pub(super) fn begin(&self, intent: Intent) {
        self.0.lock().insert(intent.object, Open { intent, busy: true });
    }

    /// Takes one that nobody is at work on.
    fn take_idle(&self) -> Option<Intent> {
        let mut open = self.0.lock();
        let idle = open.values_mut().find(|open| !open.busy)?;
        idle.busy = true;
        Some(idle.intent.clone())
    }

    /// Gives up those whose object may be there; which they were.
    pub(super) fn forget_made(&self) -> Vec<ObjectId> {
        let mut open = self.0.lock();
        let made = open.extract_if(|_, open| open.intent.stage == IntentStage::Creating);
        made.map(|(object, _)| object).collect()
    }

    fn put_back(&self, object: ObjectId) {
        if let Some(open) = self.0.lock().get_mut(&object) {
            open.busy = false;
        }
    }

    fn note_destroying(&self, object: ObjectId) {
        if let Some(open) = self.0.lock().get_mut(&object) {
            open.intent.stage = IntentStage::Destroying;
        }
    }

    /// One that nobody is at work on, and that is durable.
    pub(super) fn leave(&self, intent: Intent) {
        self.0.lock().insert(intent.object, Open { intent, busy: false });
    }

    /// Those that nobody is at work on, with what they were for.
    pub(super) fn unfinished(&self) -> Vec<(ObjectId, String)> {
        let open = self.0.lock();
        let idle = open.values().filter(|open| !open.busy);
        idle.map(|open| (open.intent.object, open.intent.purpose.clone())).collect()
    }

    pub(super) fn objects(&self) -> Vec<ObjectId> {
        self.0.lock().keys().copied().collect()
    }
}

impl Service {
    /// Makes a root key object under an intent: the intent is durable before the
    /// HSM is asked. The caller ends the intent with the commit that names the
    /// object, or abandons it. Of one that is wrapped nothing is left in the HSM, so
    /// there is no intent.
    pub(super) async fn make_object(
        self: &Arc<Self>,
        key: KeyId,
        purpose: String,
        material: Material,
    ) -> Result<Made, Error> {
        if self.is_wrapped(&material) {
            return self.make_wrapped().await;
        }
        for _ in 1..OBJECT_TRIES {
            match self.make_one_object(key, purpose.clone(), material.clone()).await {
                // The token made it badly: it is undone, and another one is made.
                Err(error) if matches!(error.reason, Reason::Internal | Reason::HsmKeyMissing) => {
                    tracing::warn!(purpose, %error, "a root key was made badly; trying again");
                }
                made => return made,
            }
        }
        self.make_one_object(key, purpose, material).await
    }

    async fn make_one_object(
        self: &Arc<Self>,
        key: KeyId,
        purpose: String,
        material: Material,
    ) -> Result<Made, Error> {
        let object = ObjectId::from(Uuid::new_v4());
        let (stage, begun) = (IntentStage::Creating, self.now().time);
        self.begin_intent(Intent { object, key, stage, begun, purpose }).await?;
        // Not the caller's deadline: the HSM should be done before it is undone.
        let deadline = Instant::now() + self.settings.object_deadline;
        let made = match material {
            Material::Generate => self.hsm.generate(object, deadline).await,
            Material::Import { pair, nonce, sealed } => {
                self.hsm.import(object, pair, sealed, nonce, deadline).await
            }
        };
        match made {
            Ok(check_value) => {
                failpoint!("object.made");
                Ok(Made { object, check_value, wrapped: None })
            }
            Err(error) => Err(self.not_made(object, error)),
        }
    }

    /// Whether material of that origin is kept wrapped.
    fn is_wrapped(&self, material: &Material) -> bool {
        match (self.settings.residency, material) {
            (Residency::Wrapped, Material::Generate) => true,
            (Residency::Token, _) | (Residency::Wrapped, Material::Import { .. }) => false,
        }
    }

    async fn make_wrapped(self: &Arc<Self>) -> Result<Made, Error> {
        let (object, master) = (ObjectId::from(Uuid::new_v4()), self.master().await?);
        let deadline = Instant::now() + self.settings.object_deadline;
        let made = self.hsm.generate_wrapped((object, master), deadline).await;
        let (wrapped, check_value) = made.map_err(|error| self.not_wrapped(master, error))?;
        failpoint!("object.wrapped");
        Ok(Made { object, check_value, wrapped: Some(Arc::new(wrapped)) })
    }

    /// Makes an intent durable, and notes that somebody is at work on it.
    pub(super) async fn begin_intent(&self, intent: Intent) -> Result<(), Error> {
        let object = intent.object;
        self.intents.begin(intent.clone());
        let begun = self.store.commit(Change { begin: vec![intent], ..Change::default() }).await;
        if begun.is_err() {
            self.intents.end(object);
        }
        begun?;
        failpoint!("intent.committed");
        Ok(())
    }

    /// What is to be done about an object that the HSM did not make well.
    pub(super) fn not_made(self: &Arc<Self>, object: ObjectId, error: HsmError) -> Error {
        if matches!(error, HsmError::Deadline | HsmError::Unavailable) {
            // It may be at work on it even now: undone later, not at once.
            self.intents.put_back(object);
        } else {
            self.abandon(object);
        }
        error.into()
    }

    /// Destroys an object whose intent is durably in the stage Destroying.
    pub(super) async fn wipe(&self, object: ObjectId) -> Result<(), Error> {
        let deadline = Instant::now() + self.settings.object_deadline;
        Ok(self.hsm.destroy(object, deadline).await?)
    }

    /// A key names what was made.
    pub(super) fn named(&self, made: &Made) {
        if let Some(object) = made.intent() {
            self.intents.end(object);
        }
    }

    /// No key names what was made.
    pub(super) fn abandon_made(self: &Arc<Self>, made: &Made) {
        if let Some(object) = made.intent() {
            self.abandon(object);
        }
    }

    /// Gives an object up that no key names: it is destroyed, now or later.
    pub(super) fn abandon(self: &Arc<Self>, object: ObjectId) {
        self.intents.put_back(object);
        let service = Arc::clone(self);
        self.changes.spawn(async move { service.undo_intents().await });
    }

    /// Undoes every intent that nobody is at work on. What fails is left for the
    /// next time.
    pub async fn undo_intents(&self) {
        // Without the HSM it can only fail.
        while self.hsm.is_up()
            && let Some(intent) = self.intents.take_idle()
        {
            let object = intent.object;
            match self.undo(&intent).await {
                Ok(()) => self.intents.end(object),
                Err(error) => {
                    tracing::warn!(%object, purpose = intent.purpose, %error, "not undone yet");
                    self.intents.put_back(object);
                    return;
                }
            }
        }
    }

    async fn undo(&self, intent: &Intent) -> Result<(), Error> {
        let object = intent.object;
        if intent.stage == IntentStage::Creating {
            let change = Change { destroying: vec![object], ..Change::default() };
            self.store.commit(change).await?;
            self.intents.note_destroying(object);
            failpoint!("undo.marked");
        }
        self.wipe(object).await?;
        failpoint!("undo.wiped");
        let event = self.undo_event(intent);
        let change = Change { end: vec![object], events: vec![event.clone()], ..Change::default() };
        self.store.commit(change).await?;
        failpoint!("undo.committed");
        tracing::info!(%object, purpose = intent.purpose, "an unfinished change was undone");
        self.publish(vec![event]).await;
        Ok(())
    }

    fn undo_event(&self, intent: &Intent) -> Event {
        let instance = intent.purpose.rsplit(' ').next().unwrap_or("");
        let mut event = daemon_event("rootkeyd.intent.undo", self.now(), instance);
        event.subject.clone_from(&intent.purpose);
        event.details = vec![("object".into(), intent.object.to_string())];
        event
    }
}

/// How often a root key is made, if the token makes it badly.
const OBJECT_TRIES: usize = 4;

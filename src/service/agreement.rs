//! Whether HSM and store agree: what does not is found when the HSM comes up and once an
//! hour, told in the log, and shown by `rootkeyctl doctor`.
//!
//! To look changes nothing in the HSM. What cannot be trusted is not used: an object that
//! is there twice, and one that is not the key that it was. One thing is done about what
//! is found: an object of a purged key that is there again is given an intent, in the
//! stage Destroying, and goes (`reconcile.rs`). An object that nothing names stays: the
//! store may be an old backup (`facts/reliability.md` 3).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::proof::aside;
use super::{Service, daemon_event};
use crate::domain::{Key, KeyId, ObjectId, Version};
use crate::hsm::{self, Crypt, Health, Hsm, HsmError};
use crate::store::{Change, Intent, IntentStage, Purged};

/// Where HSM and store do not agree.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Disagreement {
    /// Objects that nothing in the store names. Never destroyed.
    pub orphans: Vec<ObjectId>,
    /// Key versions whose object the token does not show. Of those that are kept wrapped it is
    /// their master key, which is here once, with how many they are.
    pub missing: Vec<(ObjectId, String)>,
    /// Key versions whose object does not open what it sealed, or is not as root keys are
    /// made. Not used.
    pub wrong: Vec<(ObjectId, String)>,
    /// CKA_IDs that two objects have. Neither is used.
    pub doubled: Vec<ObjectId>,
    /// Objects of purged keys that the token showed again since the daemon started, with
    /// the name of the key. Destroyed again.
    pub resurrected: Vec<(ObjectId, String)>,
    /// Changes that a crash or the HSM cut short and that are not undone yet.
    pub unfinished: Vec<(ObjectId, String)>,
    /// How many key versions are kept wrapped.
    pub wrapped: usize,
}

/// What was found out about objects that the token shows.
#[derive(Default)]
pub(super) struct Findings {
    /// Those that did not open their check value when it was tried last.
    wrong: Mutex<BTreeSet<ObjectId>>,
    /// Objects of purged keys, with the names of the keys.
    purged: Mutex<HashMap<ObjectId, Purged>>,
    resurrected: Mutex<BTreeMap<ObjectId, String>>,
}

impl Findings {
    pub(super) fn new(purged: HashMap<ObjectId, Purged>) -> Self {
        Self { purged: Mutex::new(purged), ..Self::default() }
    }

    /// The wrapped form of a version was found not to be what it was.
    pub(super) fn note_damaged(&self, object: ObjectId) {
        self.wrong.lock().insert(object);
    }

    /// A key was purged: its objects are not to come again.
    pub(super) fn note_purged(&self, key: &Key) {
        let mut purged = self.purged.lock();
        for version in key.versions.iter() {
            purged.insert(version.object, Purged { key: key.id, name: key.name() });
        }
    }
}

impl Service {
    /// Whenever the HSM comes up, and once an hour: undoes what was not finished, and
    /// compares. Until the HSM handle is gone.
    pub async fn reconcile_with_hsm(self: Arc<Self>) {
        let mut health = self.hsm.watch();
        loop {
            let ready = matches!(&*health.borrow_and_update(), Health::Ready { .. });
            if ready {
                self.destroy_again().await;
                self.undo_intents().await;
                self.try_wrapping().await;
                self.compare().await;
            }
            match tokio::time::timeout(COMPARE_EVERY, health.changed()).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(_gone)) => return,
            }
        }
    }

    /// Where HSM and store do not agree now; `None` while the token is away.
    pub(super) fn disagreement(&self) -> Option<Disagreement> {
        let shown: HashSet<ObjectId> = self.hsm.objects()?.into_iter().collect();
        let keys = self.registry.all();
        let versions = || keys.iter().flat_map(|key| of_key(key));
        let named: HashSet<ObjectId> = versions().map(|(_, version)| version.object).collect();
        let unfinished = self.intents.unfinished();
        let begun: HashSet<ObjectId> = self.intents.objects().into_iter().collect();
        let tokens = self.tenants.with_token().into_iter().filter_map(|it| it.import_token());
        let pairs: HashSet<ObjectId> = tokens.map(|token| token.object).collect();
        let signer = self.audit.signer();
        let is_stray = |id: &ObjectId| !named.contains(id) && !begun.contains(id);
        let shown_pairs = self.hsm.import_pairs().unwrap_or_default();
        let signers = self.hsm.signers().unwrap_or_default();
        let shown_masters = self.hsm.master_keys().unwrap_or_default();
        let masters = self.masters.objects();
        let under = self.wrapped_under();
        let mut orphans: Vec<_> = shown.iter().copied().filter(is_stray).collect();
        orphans.extend(shown_pairs.iter().filter(|id| !pairs.contains(id) && is_stray(id)));
        orphans.extend(signers.iter().filter(|id| Some(**id) != signer));
        orphans.extend(shown_masters.iter().filter(|id| !masters.contains(id) && is_stray(id)));
        orphans.sort_unstable();
        let mut wrong = self.findings.wrong.lock().clone();
        wrong.extend(self.hsm.unlike().unwrap_or_default());
        let of = |which: &dyn Fn(&ObjectId) -> bool| -> Vec<_> {
            let which = versions().filter(|(_, version)| which(&version.object));
            which.map(|(key, version)| (version.object, key.version_name(version.id))).collect()
        };
        let is_missing =
            |id: &ObjectId| !shown.contains(id) && !begun.contains(id) && !wrong.contains(id);
        let missing = versions()
            .filter(|(_, version)| version.wrapped.is_none() && is_missing(&version.object))
            .map(|(key, version)| (version.object, key.version_name(version.id)));
        let mut missing: Vec<_> = missing.collect();
        let no_master = under.iter().filter(|(master, _)| !shown_masters.contains(master));
        missing.extend(
            no_master.map(|(master, n)| (*master, format!("the master key of {n} key versions"))),
        );
        let resurrected = self.findings.resurrected.lock().clone();
        Some(Disagreement {
            orphans,
            missing,
            wrapped: under.values().sum(),
            wrong: of(&|id| wrong.contains(id)),
            doubled: self.hsm.doubled().unwrap_or_default(),
            resurrected: resurrected.into_iter().collect(),
            unfinished,
        })
    }

    /// Objects of purged keys that the token shows again: a backup of the HSM was restored,
    /// or their files could not be removed. What was purged must stay so: the tombstone is
    /// durable, and no CKA_ID is used twice.
    async fn destroy_again(&self) {
        let shown = self.hsm.objects().unwrap_or_default();
        let begun: HashSet<_> = self.intents.objects().into_iter().collect();
        let again: Vec<_> = {
            let purged = self.findings.purged.lock();
            let again = shown.into_iter().filter(|object| !begun.contains(object));
            again.filter_map(|object| Some((object, purged.get(&object)?.clone()))).collect()
        };
        for (object, Purged { key, name }) in again {
            tracing::error!(%object, key = name, "the object of a purged key is there again");
            self.findings.resurrected.lock().insert(object, name.clone());
            let (stage, begun) = (IntentStage::Destroying, self.now().time);
            let purpose = format!("purge again {name}");
            let intent = Intent { object, key, stage, begun, purpose };
            let mut event = daemon_event("rootkeyd.object.resurrect", self.now(), &name);
            event.details = vec![("object".into(), object.to_string())];
            let change = Change {
                begin: vec![intent.clone()],
                events: vec![event.clone()],
                ..Change::default()
            };
            match self.store.commit(change).await {
                Ok(()) => self.intents.leave(intent),
                Err(error) => tracing::warn!(%object, %error, "it is destroyed another time"),
            }
            self.publish(vec![event]).await;
        }
    }

    /// Reports where HSM and store do not agree, and opens every check value.
    async fn compare(&self) {
        self.check_all().await;
        let Some(found) = self.disagreement() else { return };
        let Disagreement { orphans, missing, wrong, doubled, .. } = found;
        if !orphans.is_empty() {
            let orphans = orphans.len();
            tracing::warn!(orphans, "objects in the token belong to no key; they are left alone");
        }
        if !missing.is_empty() {
            let missing = missing.len();
            tracing::error!(missing, "key versions have no object in the token; HSM_KEY_MISSING");
        }
        for (object, version) in wrong {
            tracing::error!(%object, version, "not the key that it was; it is not used");
        }
        for object in doubled {
            tracing::error!(%object, "two objects have one CKA_ID; neither is used");
        }
        if let Some(Ok(torn)) = self.torn_files().await
            && !torn.is_empty()
        {
            let torn = torn.len();
            tracing::warn!(torn, "object files of the token are empty; they are left alone");
        }
    }

    /// Opens the check value of every version in the token. What does not open is not used
    /// any more. Those that are kept wrapped are looked at whenever they are unwrapped.
    async fn check_all(&self) {
        let mut suspects = Vec::new();
        for key in self.registry.all() {
            let in_token = of_key(&key).filter(|(_, version)| version.wrapped.is_none());
            suspects.extend(in_token.map(|(key, version)| (key.id, version.clone())));
        }
        // Twice: nobody's key is withheld for something that passed.
        for _ in 0..2 {
            let Some(unverified) = self.unverified(suspects).await else { return };
            suspects = unverified;
        }
        let mut wrong = self.findings.wrong.lock();
        // The token has come up anew, and shows what it was made to withhold before.
        let shown = self.hsm.objects().unwrap_or_default();
        wrong.retain(|object| !shown.contains(object));
        // One that the token does not show is missing, which is another thing.
        let suspects = suspects.into_iter().map(|(_, version)| version.object);
        for object in suspects.filter(|object| shown.contains(object)) {
            self.hsm.withhold(object);
            wrong.insert(object);
        }
    }

    /// Those of `versions` whose check value does not open; `None` if the HSM did not
    /// answer.
    async fn unverified(&self, versions: Vec<(KeyId, Version)>) -> Option<Vec<(KeyId, Version)>> {
        let mut unverified = Vec::new();
        for chunk in versions.chunks(CHECK_CHUNK) {
            let checks = chunk.iter().map(|(_, version)| check(version));
            let deadline = Instant::now() + self.settings.object_deadline;
            let results = self.hsm.crypt(checks.collect(), deadline).await.ok()?;
            let results = chunk.iter().zip(results);
            let wrong = results.filter(|(_, result)| result.as_ref().is_err_and(is_of_object));
            unverified.extend(wrong.map(|(it, _)| it.clone()));
        }
        Some(unverified)
    }

    /// Empty object files of the token; `None` if its directory is not known, as that of a
    /// real HSM is not.
    pub(super) async fn torn_files(&self) -> Option<std::io::Result<Vec<String>>> {
        let directory = self.hsm.settings().sync_directory.clone()?;
        aside(move || hsm::torn_files(&directory)).await.ok()
    }
}

fn of_key(key: &Key) -> impl Iterator<Item = (&Key, &Version)> {
    key.versions.iter().map(move |version| (key, version))
}

/// Whether the object is to blame, and not the moment.
fn is_of_object(error: &HsmError) -> bool {
    match error {
        HsmError::Unverified | HsmError::Missing | HsmError::Refused(_) | HsmError::Damaged => true,
        HsmError::Overloaded
        | HsmError::Deadline
        | HsmError::Unavailable
        | HsmError::Material
        | HsmError::NonceUnverified
        | HsmError::Nonce
        | HsmError::NoWrapping(_) => false,
    }
}

/// A check value that cannot be one does not open either.
fn check(version: &Version) -> Crypt {
    let known = Hsm::check(version.object, &version.check_value);
    known.unwrap_or_else(|| Hsm::check_nothing(version.object))
}

/// What nobody asks for is compared once an hour.
const COMPARE_EVERY: Duration = Duration::from_secs(60 * 60);
/// Check values in one job: a job should be short, since other callers wait.
const CHECK_CHUNK: usize = 64;

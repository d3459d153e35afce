//! Root keys that are kept wrapped, in use: each is unwrapped into a session key when it
//! is wanted, stays while it is used, and goes when others are wanted more
//! (`session_keys.rs`).
//!
//! What was unwrapped is a root key only once it has opened its check value: the
//! mechanism vouches for the blob, and not for whose it is. One that does not is used for
//! nothing. After an error in use the ladder says what is tried, as with a token object.

use std::sync::Arc;
use std::time::Duration;

use cryptoki::error::RvError;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;

use super::ffi::Functions;
use super::object::Kind;
use super::recovery::Way;
use super::session_keys::{NotMade, SessionKey};
use super::worker::{Failure, Worker};
use super::wrapping::{self, opens, rv};
use super::{HsmError, Sealed, Wrapped};
use crate::domain::ObjectId;

/// To a root key that is kept wrapped, by its session key.
struct Unwrapped<'a> {
    object: ObjectId,
    wrapped: &'a Wrapped,
}

impl Way for Unwrapped<'_> {
    type Held = Arc<SessionKey>;

    fn object(&self) -> ObjectId {
        self.object
    }

    fn hold(&self, worker: &mut Worker) -> Result<Arc<SessionKey>, Failure> {
        worker.loaded(self.object, self.wrapped)
    }

    fn handle(held: &Arc<SessionKey>) -> ObjectHandle {
        held.handle
    }

    fn at_once(&self, _worker: &mut Worker, _rv: RvError, _: HsmError) -> Option<Failure> {
        None
    }

    /// It is not looked for, but unwrapped again.
    fn find_again(&self, worker: &mut Worker, held: &Arc<SessionKey>) -> Result<(), Failure> {
        self.give_up(worker, held);
        Ok(())
    }

    fn prove(&self, worker: &mut Worker, held: &Arc<SessionKey>) -> Result<(), Failure> {
        worker.prove_loaded((self.object, held), self.wrapped)
    }

    fn give_up(&self, worker: &mut Worker, held: &Arc<SessionKey>) {
        worker.token.session_keys.remove(self.object, held);
    }
}

impl Worker {
    /// As [`Worker::with`] for a root key that is kept wrapped.
    pub(super) fn with_wrapped<T>(
        &mut self,
        (object, wrapped): (ObjectId, &Wrapped),
        unverified: HsmError,
        operation: impl FnMut(&Functions, &Session, ObjectHandle) -> Result<T, RvError>,
    ) -> Result<T, Failure> {
        self.with_way(&Unwrapped { object, wrapped }, unverified, operation)
    }

    /// Its session key, which is made if there is none.
    fn loaded(&mut self, object: ObjectId, wrapped: &Wrapped) -> Result<Arc<SessionKey>, Failure> {
        let keys = &self.token.session_keys;
        if let Some(key) = keys.find(object) {
            if !keys.is_fresh(&key) {
                keys.renew(&key);
            }
            return Ok(key);
        }
        // Not a token object's: of a blob that was found to be damaged a moment ago.
        if self.token.is_absent(Kind::RootKey, object) {
            return Err(Failure::Answer(HsmError::Damaged));
        }
        self.load(object, wrapped).inspect_err(|failure| {
            if matches!(failure, Failure::Answer(HsmError::Damaged)) {
                tracing::error!(
                    %object,
                    master = %wrapped.key.master,
                    "a wrapped root key is not what it was, and is not used; restore the store"
                );
                self.token.note_absent(Kind::RootKey, object);
            }
        })
    }

    fn load(&mut self, object: ObjectId, wrapped: &Wrapped) -> Result<Arc<SessionKey>, Failure> {
        let check_value = wrapped.check_value().ok_or(Failure::Answer(HsmError::Damaged))?;
        let token = Arc::clone(&self.token);
        let master = wrapped.key.master;
        self.with(Kind::MasterKey, master, HsmError::Damaged, |functions, session, master| {
            let mark = token.session_keys.mark();
            let made = token.session_keys.make(&token, (object, mark), (None, PATIENCE), |owner| {
                let blob = wrapped.key.blob();
                let key = wrapping::unwrap_unread(owner, master, object, blob)?;
                // In the worker's session, since an error leaves it of no use.
                let opened = opens(functions, session, key, &check_value);
                if matches!(opened, Ok(true)) {
                    return Ok(key);
                }
                owner.destroy_object(key)?;
                let rv = opened.err().unwrap_or(RvError::EncryptedDataInvalid);
                Err(wrapping::failed(rv))
            });
            made.map_err(|why| match why {
                NotMade::Refused(error) => rv(&error),
                NotMade::Busy => RvError::SessionCount,
                NotMade::Unlike(differs) => {
                    tracing::error!(%object, ?differs, "unwrapped another key than was asked for");
                    RvError::TemplateInconsistent
                }
            })
        })
    }

    /// Makes sure that the session key is the root key, and that the token works.
    fn prove_loaded(
        &mut self,
        (object, key): (ObjectId, &Arc<SessionKey>),
        wrapped: &Wrapped,
    ) -> Result<(), Failure> {
        let check_value = wrapped.check_value().ok_or(Failure::Answer(HsmError::Damaged))?;
        let proven = opens(&self.token.functions, &self.session, key.handle, &check_value);
        if matches!(proven, Ok(true)) {
            return Ok(());
        }
        self.token.session_keys.remove(object, key);
        self.reopen()?;
        let rv = proven.err().unwrap_or(RvError::FunctionFailed);
        Err(self.blame(&rv))
    }
}

impl Wrapped {
    /// As it was sealed; `None` if it is too short to be one.
    fn check_value(&self) -> Option<Sealed> {
        let (iv, bytes) = self.check_value.split_first_chunk()?;
        Some(Sealed { iv: *iv, bytes: bytes.to_vec() })
    }
}

/// How long a worker waits while others unwrap keys.
const PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use cryptoki::object::Attribute;
    use uuid::Uuid;

    use super::super::tests::{one, open, run_with_token, seal, soon, token};
    use super::super::{Crypt, Hsm, Means, RootKey, Settings};
    use super::*;
    use crate::domain::WrappedKey;
    use crate::secret::Secret;

    fn with_settings(
        name: &str,
        change: impl FnOnce(&mut Settings),
        test: impl AsyncFnOnce(Hsm, ObjectId),
    ) {
        let path = format!("hsm::loading::tests::{name}");
        run_with_token(&path, change, async |hsm| {
            let master = new_id();
            hsm.make_master(master, soon()).await.unwrap();
            test(hsm, master).await;
        });
    }

    fn with_master(name: &str, test: impl AsyncFnOnce(Hsm, ObjectId)) {
        with_settings(name, |_as_they_are| (), test);
    }

    fn new_id() -> ObjectId {
        ObjectId::from(Uuid::new_v4())
    }

    async fn new_key(hsm: &Hsm, master: ObjectId) -> RootKey {
        let object = new_id();
        let (wrapped, Sealed { iv, bytes }) =
            hsm.generate_wrapped((object, master), soon()).await.unwrap();
        let check_value = [&iv[..], &bytes].concat().into();
        unwrapped(object, wrapped, check_value)
    }

    fn unwrapped(object: ObjectId, key: WrappedKey, check_value: Arc<[u8]>) -> RootKey {
        let means = Means::Unwrapped(Wrapped { key: Arc::new(key), check_value });
        RootKey { object, means }
    }

    fn blob_of(key: &RootKey) -> Wrapped {
        let Means::Unwrapped(wrapped) = &key.means else { panic!("{key:?}") };
        wrapped.clone()
    }

    /// The same with its blob changed.
    fn tampered(key: &RootKey, change: impl FnOnce(&mut Vec<u8>)) -> RootKey {
        let Wrapped { key: wrapped, check_value } = blob_of(key);
        let mut blob = wrapped.blob().to_vec();
        change(&mut blob);
        let wrapped = WrappedKey::new(wrapped.master, blob).unwrap();
        // Of an object of its own, or the good one would be in the cache.
        unwrapped(new_id(), wrapped, check_value)
    }

    fn seal_by(key: &RootKey) -> Crypt {
        let dek = Secret::new(b"dek".to_vec());
        Crypt::Seal { key: key.clone(), aad: b"aad".to_vec(), dek }
    }

    fn open_by(key: &RootKey, sealed: &Sealed) -> Crypt {
        let (key, aad) = (key.clone(), b"aad".to_vec());
        Crypt::Open { key, aad, sealed: sealed.clone(), reseal: None }
    }

    async fn sealed_by(hsm: &Hsm, key: &RootKey) -> Sealed {
        one(hsm, seal_by(key)).await.unwrap().sealed.unwrap().unwrap()
    }

    fn session_objects(hsm: &Hsm) -> usize {
        let session = token(hsm).session().unwrap();
        session.find_objects(&[Attribute::Token(false)]).unwrap().len()
    }

    #[test]
    fn a_wrapped_key_seals_and_opens_beside_one_of_the_token() {
        with_master(
            "a_wrapped_key_seals_and_opens_beside_one_of_the_token",
            async |hsm, master| {
                let (key, kept) = (new_key(&hsm, master).await, new_id());
                hsm.generate(kept, soon()).await.unwrap();
                let sealed = sealed_by(&hsm, &key).await;
                let of_kept = one(&hsm, seal(kept, b"dek")).await.unwrap().sealed.unwrap().unwrap();
                for _ in 0..3 {
                    let items = vec![open_by(&key, &sealed), open(kept, &of_kept)];
                    let done = hsm.crypt(items, soon()).await.unwrap();
                    assert!(done.iter().all(|it| it.as_ref().unwrap().dek.expose() == b"dek"));
                }
                // Neither opens the other's, which is no trouble of the token.
                let crossed = vec![open_by(&key, &of_kept), open(kept, &sealed)];
                let done = hsm.crypt(crossed, soon()).await.unwrap();
                let refused =
                    |it: &Result<_, HsmError>| it.as_ref().err() == Some(&HsmError::Unverified);
                assert!(done.iter().all(refused), "{done:?}");
                assert_eq!(hsm.objects().unwrap(), [kept]);
            },
        );
    }

    #[test]
    fn a_blob_that_is_damaged_or_of_another_key_is_used_for_nothing() {
        let name = "a_blob_that_is_damaged_or_of_another_key_is_used_for_nothing";
        with_master(name, async |hsm, master| {
            let (key, other) = (new_key(&hsm, master).await, new_key(&hsm, master).await);
            let sealed = sealed_by(&hsm, &key).await;
            let others = blob_of(&other).key.blob().to_vec();
            let damaged = [
                tampered(&key, |blob| blob[0] ^= 1),
                tampered(&key, |blob| blob[39] ^= 1),
                tampered(&key, |blob| blob.truncate(32)),
                tampered(&key, |blob| *blob = others),
            ];
            for _ in 0..2 {
                for damaged in &damaged {
                    for item in [seal_by(damaged), open_by(damaged, &sealed)] {
                        assert_eq!(one(&hsm, item).await.unwrap_err(), HsmError::Damaged);
                    }
                }
            }
            let unknown = WrappedKey::new(new_id(), vec![0; 40]).unwrap();
            let check_value = blob_of(&key).check_value;
            let homeless = unwrapped(new_id(), unknown, check_value);
            assert_eq!(one(&hsm, seal_by(&homeless)).await.unwrap_err(), HsmError::Missing);
            assert_eq!(one(&hsm, open_by(&key, &sealed)).await.unwrap().dek.expose(), b"dek");
        });
    }

    #[test]
    fn more_keys_than_session_objects_all_work_and_never_are_more() {
        let name = "more_keys_than_session_objects_all_work_and_never_are_more";
        let few = |settings: &mut Settings| {
            settings.session_objects.most = 3;
            settings.queue = 64;
        };
        with_settings(name, few, async |hsm, master| {
            let mut keys = Vec::new();
            for _ in 0..8 {
                let key = new_key(&hsm, master).await;
                let sealed = sealed_by(&hsm, &key).await;
                keys.push((key, sealed));
            }
            let jobs = (0..48).map(|n| {
                let wanted = keys.iter().cycle().skip(n).step_by(1 + n % 7).take(16);
                hsm.crypt(wanted.map(|(key, sealed)| open_by(key, sealed)).collect(), soon())
            });
            for done in futures_util::future::join_all(jobs).await {
                let done = done.unwrap();
                assert!(done.iter().all(|it| it.as_ref().unwrap().dek.expose() == b"dek"));
            }
            hsm.round_trip(soon()).await.unwrap();
            // Those that are kept, and those that the two workers are at.
            assert!(session_objects(&hsm) <= 3 + 2, "{}", session_objects(&hsm));
        });
    }

    #[test]
    fn a_retired_key_is_gone_from_the_session_and_is_unwrapped_again_when_wanted() {
        let name = "a_retired_key_is_gone_from_the_session_and_is_unwrapped_again_when_wanted";
        with_master(name, async |hsm, master| {
            let key = new_key(&hsm, master).await;
            let sealed = sealed_by(&hsm, &key).await;
            assert_eq!(session_objects(&hsm), 1);
            hsm.retire(&[key.object]);
            while session_objects(&hsm) > 0 {
                hsm.round_trip(soon()).await.unwrap();
            }
            assert_eq!(one(&hsm, open_by(&key, &sealed)).await.unwrap().dek.expose(), b"dek");
            // Its object goes by itself, as when the token forgets a session.
            let handle = token(&hsm).session_keys.find(key.object).unwrap().handle;
            token(&hsm).session().unwrap().destroy_object(handle).unwrap();
            assert_eq!(one(&hsm, open_by(&key, &sealed)).await.unwrap().dek.expose(), b"dek");
            token(&hsm).session_keys.lose();
            assert_eq!(one(&hsm, open_by(&key, &sealed)).await.unwrap().dek.expose(), b"dek");
        });
    }
}

//! Copies of root keys as session objects, which some tokens use faster: SoftHSM reads
//! two files for each use of a token object.
//!
//! A copy is made in the token by C_CopyObject, and can do no more than what it is a copy
//! of. It does not notice if the token object goes, or is another one: so from time to
//! time the token object is used in its place, and after any error too, with all that is
//! tried then (`recovery.rs`). Whether a key may be used is not decided here.

use std::fmt;
use std::time::{Duration, Instant};

use cryptoki::error::{Error, RvError};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;

use super::HsmError;
use super::ffi::Functions;
use super::object::{self, Kind};
use super::rv::{Verdict, verdict};
use super::session_keys::{Mark, NotMade, SessionCopies};
use super::supervisor::CANARY;
use super::token::Token;
use super::worker::{Failure, Worker, prove};
use crate::domain::ObjectId;

/// Whether copies are used, and why.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Copying {
    /// They are.
    On {
        /// How long a seal and an open took with a token object, and with its copy.
        took: [Duration; 2],
    },
    /// They are not, for this reason.
    Off(String),
}

/// Finds out whether copies are to be used, with the canary, and has it so.
pub(super) fn decide(token: &Token, copies: SessionCopies) {
    let copying = match copies {
        SessionCopies::Off => Copying::Off("switched off".into()),
        SessionCopies::Auto | SessionCopies::On => match compare(token) {
            Ok(took) if copies == SessionCopies::On || is_worth_it(took) => Copying::On { took },
            Ok(took) => Copying::Off(format!("not faster: {took:?}")),
            Err(why) => Copying::Off(why.to_string()),
        },
    };
    tracing::info!(%copying, "session copies of root keys");
    // Err: it was decided before, which does not happen twice to a token.
    let _ = token.copying.set(copying);
}

/// Half of the times with the token object, and with a copy, are shorter.
fn compare(token: &Token) -> Result<[Duration; 2], NotMade> {
    // An error can leave an operation active in it.
    let session = token.session()?;
    let keys = &token.session_keys;
    let canary = token.handle(Kind::RootKey, CANARY);
    let canary = canary.ok_or(NotMade::Busy)?;
    let copy =
        keys.make(token, (CANARY, keys.mark()), (Some(canary), Duration::ZERO), |owner| {
            object::copy(owner, canary, CANARY)
        })?;
    let mut took = [Vec::new(), Vec::new()];
    let until = Instant::now() + LONGEST_COMPARISON;
    while took[1].len() < FEWEST_ROUNDS || (took[1].len() < ROUNDS && Instant::now() < until) {
        for (took, key) in took.iter_mut().zip([canary, copy.handle]) {
            let began = Instant::now();
            let proven = prove(&token.functions, &session, key);
            proven.map_err(|rv| Error::Pkcs11(rv, cryptoki::context::Function::Decrypt))?;
            took.push(began.elapsed());
        }
    }
    keys.remove(CANARY, &copy);
    drop(copy);
    keys.tidy(&session)?;
    Ok(took.map(|mut took| {
        took.sort_unstable();
        took[took.len() / 2]
    }))
}

fn is_worth_it([token, copy]: [Duration; 2]) -> bool {
    copy < token.mul_f64(WORTH_IT)
}

impl Worker {
    /// As [`Worker::with`] for a root key, and by its session key where there is one.
    pub(super) fn with_session_key<T>(
        &mut self,
        object: ObjectId,
        unverified: HsmError,
        mut operation: impl FnMut(&Functions, &Session, ObjectHandle) -> Result<T, RvError>,
    ) -> Result<T, Failure> {
        let keys = &self.token.session_keys;
        if !self.token.copies_root_keys() {
            return self.with(Kind::RootKey, object, unverified, operation);
        }
        let mark = keys.mark();
        let known = keys.find(object);
        let mut refused = None;
        if let Some(key) = known.as_ref().filter(|key| keys.is_fresh(key))
            && !self.activity.is_fenced()
        {
            match operation(&self.token.functions, &self.session, key.handle) {
                Ok(done) => return Ok(done),
                Err(rv) => refused = Some(rv),
            }
        }
        if let Some(rv) = refused {
            if is_loss(rv) {
                self.token.session_keys.lose();
            }
            self.reopen()?;
        }
        let done = self.with(Kind::RootKey, object, unverified, operation);
        let keys = &self.token.session_keys;
        let source = self.token.handle(Kind::RootKey, object);
        let unverified = matches!(done, Err(Failure::Answer(HsmError::Unverified)));
        match (known, refused) {
            (None, _) if done.is_ok() => self.copy(object, mark),
            (None, _) => {}
            // It was too old, and the token object is still there.
            (Some(key), None) if done.is_ok() && key.source == source => keys.renew(&key),
            // The token object says the same, and is in order.
            (Some(_), Some(rv)) if unverified && is_about_input(rv) => {}
            (Some(key), _) => keys.remove(object, &key),
        }
        done
    }

    /// Makes a copy for the next time, if it is time for one.
    fn copy(&self, object: ObjectId, mark: Mark) {
        let (token, keys) = (&self.token, &self.token.session_keys);
        if !keys.is_due(object) {
            return;
        }
        let Some(source) = token.handle(Kind::RootKey, object) else { return };
        let made = keys.make(token, (object, mark), (Some(source), Duration::ZERO), |owner| {
            object::copy(owner, source, object)
        });
        match made {
            Ok(_) | Err(NotMade::Busy) => {}
            Err(why @ (NotMade::Unlike(_) | NotMade::Refused(_))) => {
                tracing::warn!(%object, %why, "no session copy of a root key; none for a while");
                keys.pause();
                if let NotMade::Refused(Error::Pkcs11(rv, _)) = why
                    && is_loss(rv)
                {
                    keys.lose();
                }
            }
        }
    }

    /// Destroys session objects that are of no use any more.
    pub(super) fn tidy(&mut self) -> Result<(), super::worker::Lost> {
        let tidied = self.token.session_keys.tidy(&self.session);
        let Err(error) = tidied else { return Ok(()) };
        tracing::warn!(%error, "session objects could not be destroyed one by one");
        match self.reopen() {
            Ok(()) | Err(Failure::Answer(_)) => Ok(()),
            Err(Failure::Lost(lost)) => Err(lost),
        }
    }
}

/// Whether other sessions than the worker's own may be gone as well.
pub(super) const fn is_loss(rv: RvError) -> bool {
    matches!(rv, RvError::SessionHandleInvalid | RvError::SessionClosed | RvError::UserNotLoggedIn)
}

/// Whether it may be the ciphertext's fault.
fn is_about_input(rv: RvError) -> bool {
    match verdict(rv) {
        Verdict::Unverified | Verdict::Ambiguous => true,
        Verdict::Session
        | Verdict::Login
        | Verdict::Object
        | Verdict::Module
        | Verdict::Refused => false,
    }
}

impl fmt::Display for Copying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On { took: [token, copy] } => {
                write!(f, "on: {copy:?} for a round trip, and {token:?} with a token object")
            }
            Self::Off(why) => write!(f, "off: {why}"),
        }
    }
}

/// How many round trips are compared: the most, the fewest, and for how long at most.
const ROUNDS: usize = 36;
const FEWEST_ROUNDS: usize = 5;
const LONGEST_COMPARISON: Duration = Duration::from_millis(500);
/// A copy is used if it takes less than this part of the time.
const WORTH_IT: f64 = 0.8;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cryptoki::object::{Attribute, AttributeType, ObjectClass};
    use uuid::Uuid;

    use super::super::session_keys::SessionKey;
    use super::super::tests::{one, open, run_with_token, seal, soon, token};
    use super::super::{Hsm, Sealed, Settings};
    use super::*;

    fn with_token(name: &str, test: impl AsyncFnOnce(Hsm)) {
        with_settings(name, |_as_they_are| (), test);
    }

    fn with_settings(name: &str, change: impl FnOnce(&mut Settings), test: impl AsyncFnOnce(Hsm)) {
        run_with_token(&format!("hsm::copying::tests::{name}"), change, test);
    }

    /// A root key, and a DEK sealed by it. That was its first use.
    async fn sealed(hsm: &Hsm) -> (ObjectId, Sealed) {
        let object = ObjectId::from(Uuid::new_v4());
        hsm.generate(object, soon()).await.unwrap();
        let sealed = one(hsm, seal(object, b"dek")).await.unwrap().sealed.unwrap().unwrap();
        (object, sealed)
    }

    async fn opens(hsm: &Hsm, (object, sealed): &(ObjectId, Sealed)) {
        assert_eq!(one(hsm, open(*object, sealed)).await.unwrap().dek.expose(), b"dek");
    }

    /// The same with a copy, which its second use made.
    async fn copied(hsm: &Hsm) -> (ObjectId, Sealed) {
        let key = sealed(hsm).await;
        opens(hsm, &key).await;
        assert_eq!(session_objects(hsm, Some(key.0)).len(), 1);
        key
    }

    fn copy_of(hsm: &Hsm, object: ObjectId) -> Option<Arc<SessionKey>> {
        token(hsm).session_keys.find(object)
    }

    /// As any session of the application sees them: of one root key, or all.
    fn session_objects(hsm: &Hsm, object: Option<ObjectId>) -> Vec<ObjectHandle> {
        let mut template = vec![Attribute::Token(false), Attribute::Class(ObjectClass::SECRET_KEY)];
        template.extend(object.map(object::id));
        token(hsm).session().unwrap().find_objects(&template).unwrap()
    }

    /// Other jobs are done until it is so.
    async fn until(hsm: &Hsm, what: &str, is_so: impl Fn() -> bool) {
        while !is_so() {
            assert!(Instant::now() < soon(), "{what}");
            hsm.round_trip(soon()).await.unwrap();
        }
    }

    #[test]
    fn a_root_key_is_used_by_a_copy_that_can_do_no_more_than_the_key() {
        let name = "a_root_key_is_used_by_a_copy_that_can_do_no_more_than_the_key";
        with_token(name, async |hsm| {
            let key = sealed(&hsm).await;
            assert!(session_objects(&hsm, None).is_empty(), "what is used once is not copied");
            opens(&hsm, &key).await;
            let copies = session_objects(&hsm, Some(key.0));
            assert_eq!(copies, [copy_of(&hsm, key.0).unwrap().handle]);
            opens(&hsm, &key).await;
            assert_eq!(session_objects(&hsm, None), copies);

            let session = token(&hsm).session().unwrap();
            let asked = object::session_template(key.0);
            assert!(object::is_as_asked(&session, copies[0], &asked).unwrap());
            assert!(asked.contains(&Attribute::Sensitive(true)));
            assert!(asked.contains(&Attribute::Extractable(false)));
            assert!(session.get_attributes(copies[0], &[AttributeType::Value]).unwrap().is_empty());
            for attribute in [Attribute::Extractable(true), Attribute::Sensitive(false)] {
                assert!(session.copy_object(copies[0], &[attribute]).is_err());
            }
            // Nobody takes it for a root key.
            assert_eq!(hsm.objects().unwrap(), [key.0]);
            let found = object::find_one(&session, Kind::RootKey, key.0).unwrap();
            assert_eq!(found, token(&hsm).handle(Kind::RootKey, key.0));
        });
    }

    #[test]
    fn a_copy_is_destroyed_when_its_key_is_retired_withheld_or_destroyed() {
        let name = "a_copy_is_destroyed_when_its_key_is_retired_withheld_or_destroyed";
        with_token(name, async |hsm| {
            let (kept, retired) = (copied(&hsm).await, copied(&hsm).await);
            hsm.retire(&[retired.0]);
            let gone = |key: ObjectId| session_objects(&hsm, Some(key)).is_empty();
            until(&hsm, "the retired one goes", || gone(retired.0)).await;
            // That is no end of a permission.
            opens(&hsm, &retired).await;

            let (withheld, destroyed) = (copied(&hsm).await, copied(&hsm).await);
            hsm.withhold(withheld.0);
            hsm.destroy(destroyed.0, soon()).await.unwrap();
            until(&hsm, "the others go", || gone(withheld.0) && gone(destroyed.0)).await;
            for key in [&withheld, &destroyed] {
                let refused = one(&hsm, open(key.0, &key.1)).await.unwrap_err();
                assert_eq!(refused, HsmError::Missing);
            }
            assert_eq!(session_objects(&hsm, Some(kept.0)).len(), 1);
            opens(&hsm, &kept).await;
        });
    }

    #[test]
    fn a_copy_that_is_in_use_is_destroyed_after_that() {
        with_token("a_copy_that_is_in_use_is_destroyed_after_that", async |hsm| {
            let key = copied(&hsm).await;
            let used = copy_of(&hsm, key.0).unwrap();
            hsm.retire(&[key.0]);
            for _ in 0..5 {
                hsm.round_trip(soon()).await.unwrap();
            }
            let token = token(&hsm);
            let session = token.session().unwrap();
            prove(&token.functions, &session, used.handle).unwrap();
            drop(used);
            until(&hsm, "it goes", || session_objects(&hsm, None).is_empty()).await;
        });
    }

    #[test]
    fn there_are_no_more_copies_than_allowed_and_every_key_works() {
        let name = "there_are_no_more_copies_than_allowed_and_every_key_works";
        let few = |settings: &mut Settings| settings.session_objects.most = 3;
        with_settings(name, few, async |hsm| {
            let mut keys = Vec::new();
            for _ in 0..8 {
                keys.push(sealed(&hsm).await);
            }
            for _ in 0..4 {
                for key in &keys {
                    // Twice in a job, so that there is one to copy.
                    let items = vec![open(key.0, &key.1), open(key.0, &key.1)];
                    let done = hsm.crypt(items, soon()).await.unwrap();
                    assert!(done.iter().all(Result::is_ok));
                }
            }
            let few = || (1..=3).contains(&session_objects(&hsm, None).len());
            until(&hsm, "no more than three stay", few).await;
        });
    }

    #[test]
    fn a_token_object_that_somebody_removes_is_missed_when_its_copy_is_old() {
        let name = "a_token_object_that_somebody_removes_is_missed_when_its_copy_is_old";
        let soon_old = |settings: &mut Settings| settings.session_objects.renew_after = AGE;
        with_settings(name, soon_old, async |hsm| {
            let (key, used) = (copied(&hsm).await, copied(&hsm).await);
            let (copy, began) = (copy_of(&hsm, used.0).unwrap().handle, Instant::now());
            // By another program, as it were.
            let handle = token(&hsm).handle(Kind::RootKey, key.0).unwrap();
            token(&hsm).session().unwrap().destroy_object(handle).unwrap();
            let refused = loop {
                assert!(Instant::now() < soon());
                opens(&hsm, &used).await;
                if let Err(refused) = one(&hsm, open(key.0, &key.1)).await {
                    break refused;
                }
            };
            assert_eq!(refused, HsmError::Missing);
            // One whose object is there is not made anew for that.
            while began.elapsed() < 3 * AGE {
                opens(&hsm, &used).await;
            }
            assert_eq!(copy_of(&hsm, used.0).unwrap().handle, copy);
        });
    }

    #[test]
    fn a_copy_that_fails_is_given_up_for_the_root_key() {
        with_token("a_copy_that_fails_is_given_up_for_the_root_key", async |hsm| {
            let key = copied(&hsm).await;
            let copy = copy_of(&hsm, key.0).unwrap().handle;
            token(&hsm).session().unwrap().destroy_object(copy).unwrap();
            opens(&hsm, &key).await;
            assert!(copy_of(&hsm, key.0).is_none());
            // As at first.
            opens(&hsm, &key).await;
            opens(&hsm, &key).await;
            assert_ne!(copy_of(&hsm, key.0).unwrap().handle, copy);
        });
    }

    #[test]
    fn a_ciphertext_that_does_not_verify_costs_no_copy() {
        with_token("a_ciphertext_that_does_not_verify_costs_no_copy", async |hsm| {
            let key = copied(&hsm).await;
            let copy = copy_of(&hsm, key.0).unwrap().handle;
            let mut tampered = key.1.clone();
            tampered.bytes[3] ^= 1;
            let refused = one(&hsm, open(key.0, &tampered)).await.unwrap_err();
            assert_eq!(refused, HsmError::Unverified);
            assert_eq!(copy_of(&hsm, key.0).unwrap().handle, copy);
        });
    }

    #[test]
    fn with_the_login_all_copies_are_lost_and_made_anew() {
        with_token("with_the_login_all_copies_are_lost_and_made_anew", async |hsm| {
            let (key, other) = (copied(&hsm).await, copied(&hsm).await);
            token(&hsm).session().unwrap().logout().unwrap();
            opens(&hsm, &key).await;
            assert!(copy_of(&hsm, other.0).is_none());
            opens(&hsm, &key).await;
            opens(&hsm, &key).await;
            assert!(copy_of(&hsm, key.0).is_some());
            opens(&hsm, &other).await;
        });
    }

    #[test]
    fn a_copy_that_was_begun_before_its_key_was_retired_does_not_stay() {
        let name = "a_copy_that_was_begun_before_its_key_was_retired_does_not_stay";
        with_token(name, async |hsm| {
            let key = sealed(&hsm).await;
            let token = token(&hsm);
            let keys = &token.session_keys;
            let source = token.handle(Kind::RootKey, key.0).unwrap();
            let mark = keys.mark();
            let made = keys.make(&token, (key.0, mark), (Some(source), Duration::ZERO), |owner| {
                let copy = object::copy(owner, source, key.0);
                hsm.retire(&[key.0]);
                copy
            });
            // It is good for the use that it was made for.
            drop(made.unwrap());
            assert!(keys.find(key.0).is_none());
            until(&hsm, "it goes", || session_objects(&hsm, None).is_empty()).await;
        });
    }

    #[test]
    fn copies_that_are_not_used_go_after_a_while() {
        let name = "copies_that_are_not_used_go_after_a_while";
        let soon_old = |settings: &mut Settings| settings.session_objects.renew_after = AGE;
        with_settings(name, soon_old, async |hsm| {
            let key = copied(&hsm).await;
            until(&hsm, "it goes", || session_objects(&hsm, None).is_empty()).await;
            opens(&hsm, &key).await;
        });
    }

    #[test]
    fn copies_are_on_where_they_take_less_than_four_fifths_of_the_time() {
        let times = |token, copy| [token, copy].map(Duration::from_micros);
        assert!(is_worth_it(times(100, 79)));
        assert!(!is_worth_it(times(100, 80)));
        assert!(!is_worth_it(times(100, 120)));
    }

    /// How long a copy is used in these tests.
    const AGE: Duration = Duration::from_millis(300);
}

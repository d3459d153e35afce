//! Root keys that are kept outside the token, wrapped under a master key: the templates,
//! make, wrap, unwrap, and whether the token does it safely.
//!
//! A token that lists the mechanism may still give out keys that must stay, or take a
//! blob that was tampered with (`facts/hsm-and-grpc.md`, B). So all that is tried, in
//! session objects, before a key is trusted to it. What it is that is wrapped the
//! mechanism does not say: whoever unwraps opens a check value.

use cryptoki::context::Function;
use cryptoki::error::{Error, Result, RvError};
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use minicbor::{Decode, Encode};
use thiserror::Error as ThisError;

use super::ffi::Functions;
use super::mechanism::{
    IV_BYTES, MAKE_MASTER, MAKE_ROOT_KEY, WRAP_KEY, WRAP_KEY_BYTES, WRAP_KEY_TYPE,
};
use super::object::{self, CHECK_AAD, CHECK_TEXT, Kind, TOKEN, TRIES};
use super::rv::{Verdict, verdict_of};
use super::token::Token;
use super::worker::{self, Failure, Worker};
use super::{HsmError, Sealed};
use crate::domain::ObjectId;

/// Why root keys cannot be kept wrapped by the token.
#[derive(Clone, Copy, Debug, Decode, Encode, Eq, PartialEq, ThisError)]
pub enum WrapFault {
    /// It lacks the mechanism, or does not do it with a key like ours.
    #[error("it does not wrap and unwrap by CKM_AES_KEY_WRAP")]
    #[n(0)]
    Refused,
    /// What it wrapped is not as long as RFC 3394 says.
    #[error("CKM_AES_KEY_WRAP gives something of another length than it should")]
    #[n(1)]
    Length,
    /// What it unwrapped is another key.
    #[error("CKM_AES_KEY_WRAP unwraps into another key than was wrapped")]
    #[n(2)]
    OtherKey,
    /// What it unwrapped could leave it, or do what a root key must not.
    #[error("CKM_AES_KEY_WRAP unwraps into a key that is not protected as was asked for")]
    #[n(3)]
    Unprotected,
    /// It took a blob that was changed.
    #[error("CKM_AES_KEY_WRAP takes a wrapped key that was tampered with")]
    #[n(4)]
    TakesTampered,
    /// It wrapped a key with CKA_EXTRACTABLE false.
    #[error("it gives out keys that must not leave it (CKA_EXTRACTABLE is not enforced)")]
    #[n(5)]
    GivesAway,
}

/// A root key that was made and wrapped.
#[derive(Clone, Debug, Decode, Encode)]
pub(super) struct NewlyWrapped {
    #[cbor(n(0), with = "minicbor::bytes")]
    pub(super) blob: Vec<u8>,
    #[n(1)]
    pub(super) check_value: Sealed,
}

impl Worker {
    /// Makes a master key. It is durable and reads back as it was asked for.
    pub(super) fn make_master(&mut self, object: ObjectId) -> std::result::Result<(), Failure> {
        let mut template = master_template(object, TOKEN);
        let made = object::shortening(&mut template, TRIES, |template| {
            self.session.generate_key(&MAKE_MASTER, template)
        });
        made.map_err(|error| self.failed(&error))?;
        failpoint!("hsm.master_generated");
        let asked = master_template(object, TOKEN);
        let (_session, handle) = self.read_back(Kind::MasterKey, object, &asked)?;
        self.synchronize()?;
        self.token.note(Kind::MasterKey, object, handle);
        Ok(())
    }

    /// Tries whether the token wraps root keys safely, with that master key or, if there
    /// is none yet, with one that goes with its session.
    pub(super) fn try_wrapping(
        &mut self,
        master: Option<ObjectId>,
    ) -> std::result::Result<(), Failure> {
        let mut found = None;
        for _ in 0..PROBES {
            let key = master.map(|master| self.key(Kind::MasterKey, master)).transpose()?;
            match probe(&self.token, key) {
                Ok(None) => {
                    // Err: another worker has tried it too.
                    let _ = self.token.wraps.set(());
                    return Ok(());
                }
                // SoftHSM errs now and then, when objects are made at once.
                Ok(Some(fault)) => found = Some(fault),
                Err(error) => return Err(self.failed(&error)),
            }
        }
        let fault = found.unwrap_or(WrapFault::Refused);
        tracing::error!(%fault, "the token does not wrap root keys safely");
        Err(Failure::Answer(HsmError::NoWrapping(fault)))
    }

    /// Makes a root key in a session object that can be wrapped and nothing else, wraps
    /// it and destroys that object, which so is there for three calls; then unwraps it
    /// as a root key is, and proves that it works.
    pub(super) fn generate_wrapped(
        &mut self,
        object: ObjectId,
        master: ObjectId,
    ) -> std::result::Result<NewlyWrapped, Failure> {
        if self.token.wraps.get().is_none() {
            self.try_wrapping(Some(master))?;
        }
        let blob = self.with(
            Kind::MasterKey,
            master,
            HsmError::Unavailable,
            |_functions, session, master| new_blob(session, master).map_err(|error| rv(&error)),
        )?;
        failpoint!("hsm.wrapped");
        self.adopt_blob(object, master, blob)
    }

    /// The check value of a root key that was just wrapped, as it comes back.
    pub(super) fn adopt_blob(
        &mut self,
        object: ObjectId,
        master: ObjectId,
        blob: Vec<u8>,
    ) -> std::result::Result<NewlyWrapped, Failure> {
        let check_value = self.with(
            Kind::MasterKey,
            master,
            HsmError::Unavailable,
            |functions, session, master| {
                let key = unwrap(session, master, object, &blob).map_err(|error| rv(&error))?;
                let check_value = seal_check(functions, session, key)?;
                if !opens(functions, session, key, &check_value)? {
                    return Err(RvError::FunctionFailed);
                }
                session.destroy_object(key).map_err(|error| rv(&error))?;
                Ok(check_value)
            },
        )?;
        Ok(NewlyWrapped { blob, check_value })
    }
}

/// Unwraps a root key into an object of `session`, and makes sure that it is protected as
/// a root key is. That it is the right one its check value tells.
pub(super) fn unwrap(
    session: &Session,
    master: ObjectHandle,
    object: ObjectId,
    blob: &[u8],
) -> Result<ObjectHandle> {
    let asked = object::session_template(object);
    let key = unwrap_unread(session, master, object, blob)?;
    let differs = object::differences(session, key, &asked)?;
    if differs.is_empty() {
        return Ok(key);
    }
    tracing::error!(%object, ?differs, "the token unwrapped another key than was asked for");
    session.destroy_object(key)?;
    Err(failed(RvError::TemplateInconsistent))
}

/// The same, and whoever asks makes sure of that.
pub(super) fn unwrap_unread(
    session: &Session,
    master: ObjectHandle,
    object: ObjectId,
    blob: &[u8],
) -> Result<ObjectHandle> {
    object::shortening(&mut object::session_template(object), UNWRAP_TRIES, |template| {
        session.unwrap_key(&WRAP_KEY, master, blob, template)
    })
}

/// Whether `key` is the one that sealed that check value.
pub(super) fn opens(
    functions: &Functions,
    session: &Session,
    key: ObjectHandle,
    check_value: &Sealed,
) -> std::result::Result<bool, RvError> {
    let opened = functions.open(session, key, &check_value.iv, CHECK_AAD, &check_value.bytes)?;
    Ok(opened.expose() == CHECK_TEXT)
}

/// Wraps and unwraps a new key and uses it: whether token, session and master key work.
pub(super) fn prove(
    functions: &Functions,
    session: &Session,
    master: ObjectHandle,
) -> std::result::Result<(), RvError> {
    let blob = new_blob(session, master).map_err(|error| rv(&error))?;
    let key = unwrap_unread(session, master, PROBED, &blob).map_err(|error| rv(&error))?;
    worker::prove(functions, session, key)?;
    session.destroy_object(key).map_err(|error| rv(&error))
}

/// What a master key is asked to be; `place` is where.
pub(super) fn master_template(object: ObjectId, place: Attribute) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        place,
        Attribute::KeyType(KeyType::AES),
        object::id(object),
        Attribute::Label(Kind::MasterKey.label(object)),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Wrap(true),
        Attribute::Unwrap(true),
        Attribute::Encrypt(false),
        Attribute::Decrypt(false),
        Attribute::Derive(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::AllowedMechanisms(vec![WRAP_KEY_TYPE]),
        Attribute::ValueLen(32.into()),
    ]
}

/// A new AES-256 key, wrapped. On an error the session must be closed: it may own the key.
fn new_blob(session: &Session, master: ObjectHandle) -> Result<Vec<u8>> {
    let key = object::shortening(&mut passing_template(Seals::No, true), TRIES, |template| {
        session.generate_key(&MAKE_ROOT_KEY, template)
    })?;
    let blob = session.wrap_key(&WRAP_KEY, master, key)?;
    session.destroy_object(key)?;
    if blob.len() == KEY_BYTES + WRAP_KEY_BYTES { Ok(blob) } else { Err(Error::InvalidValue) }
}

/// Whether a key that is there for a moment may seal and open.
#[derive(Clone, Copy, PartialEq)]
enum Seals {
    /// As one that is only to be wrapped.
    No,
    /// As one to try with.
    Yes,
}

/// What a key is asked to be that is there for a moment, in a session.
fn passing_template(seals: Seals, extractable: bool) -> Vec<Attribute> {
    let seals = seals == Seals::Yes;
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::Token(false),
        Attribute::KeyType(KeyType::AES),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(extractable),
        Attribute::Encrypt(seals),
        Attribute::Decrypt(seals),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::ValueLen(32.into()),
    ]
}

/// What is wrong with how the token wraps, if anything is.
///
/// # Errors
/// If the token is in trouble.
fn probe(token: &Token, master: Option<ObjectHandle>) -> Result<Option<WrapFault>> {
    // It owns all that is made here.
    let session = token.session()?;
    match try_all(&token.functions, &session, master) {
        Ok(fault) => Ok(fault),
        Err(error) => match verdict_of(&error) {
            Verdict::Unverified | Verdict::Ambiguous | Verdict::Refused => {
                tracing::warn!(%error, "the token refused to wrap or unwrap a key of ours");
                Ok(Some(WrapFault::Refused))
            }
            Verdict::Session | Verdict::Login | Verdict::Object | Verdict::Module => Err(error),
        },
    }
}

fn try_all(
    functions: &Functions,
    session: &Session,
    master: Option<ObjectHandle>,
) -> Result<Option<WrapFault>> {
    let generate = |extractable| {
        session.generate_key(&MAKE_ROOT_KEY, &passing_template(Seals::Yes, extractable))
    };
    let master = match master {
        Some(master) => master,
        None => object::shortening(
            &mut master_template(PROBED, Attribute::Token(false)),
            TRIES,
            |template| session.generate_key(&MAKE_MASTER, template),
        )?,
    };
    let key = generate(true)?;
    let blob = session.wrap_key(&WRAP_KEY, master, key)?;
    if blob.len() != KEY_BYTES + WRAP_KEY_BYTES {
        return Ok(Some(WrapFault::Length));
    }
    let unwrapped = match unwrap(session, master, PROBED, &blob) {
        Err(Error::Pkcs11(RvError::TemplateInconsistent, _)) => {
            return Ok(Some(WrapFault::Unprotected));
        }
        unwrapped => unwrapped?,
    };
    let sealed = seal_check(functions, session, key).map_err(failed)?;
    if !matches!(opens(functions, session, unwrapped, &sealed), Ok(true)) {
        return Ok(Some(WrapFault::OtherKey));
    }
    for tampered in tampered(&blob) {
        if is_done(unwrap(session, master, PROBED, &tampered))? {
            return Ok(Some(WrapFault::TakesTampered));
        }
    }
    for key in [unwrapped, generate(false)?] {
        if is_done(session.wrap_key(&WRAP_KEY, master, key))? {
            return Ok(Some(WrapFault::GivesAway));
        }
    }
    Ok(None)
}

/// What an unwrap must refuse: each eighth of the blob changed, and other lengths.
fn tampered(blob: &[u8]) -> Vec<Vec<u8>> {
    let regions = (0..blob.len()).step_by(WRAP_KEY_BYTES);
    let changed = regions.map(|place| {
        let mut changed = blob.to_vec();
        changed[place] ^= 1;
        changed
    });
    let shorter = blob[..blob.len() - WRAP_KEY_BYTES].to_vec();
    let cut = blob[..blob.len() - 1].to_vec();
    let longer = [blob, &[0; WRAP_KEY_BYTES]].concat();
    changed.chain([shorter, cut, longer]).collect()
}

/// Whether the token did what it must refuse; that it is in trouble is no refusal.
fn is_done<T>(tried: Result<T>) -> Result<bool> {
    match tried {
        Ok(_done) => Ok(true),
        Err(error) => match verdict_of(&error) {
            Verdict::Unverified | Verdict::Ambiguous | Verdict::Refused | Verdict::Object => {
                Ok(false)
            }
            Verdict::Session | Verdict::Login | Verdict::Module => Err(error),
        },
    }
}

fn seal_check(
    functions: &Functions,
    session: &Session,
    key: ObjectHandle,
) -> std::result::Result<Sealed, RvError> {
    let mut iv = [0; IV_BYTES];
    getrandom::fill(&mut iv).map_err(|_no_random| RvError::RandomNoRng)?;
    let bytes = functions.seal(session, key, &iv, CHECK_AAD, CHECK_TEXT)?;
    Ok(Sealed { iv, bytes })
}

/// The CK_RV of an error; cryptoki's own are none, and mean that the call failed.
pub(super) fn rv(error: &Error) -> RvError {
    if let Error::Pkcs11(rv, _) = error { *rv } else { RvError::FunctionFailed }
}

/// That an unwrap failed so.
pub(super) const fn failed(rv: RvError) -> Error {
    Error::Pkcs11(rv, Function::UnwrapKey)
}

/// Length of a root key that is generated, in bytes.
const KEY_BYTES: usize = 32;
/// How often the token is tried before it is said that it is not safe.
const PROBES: usize = 3;
/// How often to try to unwrap with the whole template: SoftHSM says GENERAL_ERROR of a bad
/// blob too.
const UNWRAP_TRIES: usize = 1;
/// The CKA_ID of what is tried with.
const PROBED: ObjectId = ObjectId::from_bytes(*b"rootkeyd-wrapped");

#[cfg(test)]
mod tests {
    use cryptoki::object::AttributeType;
    use uuid::Uuid;

    use super::*;
    use crate::hsm::Hsm;
    use crate::hsm::tests::{run_with_token, soon, token};

    fn with_token(name: &str, test: impl AsyncFnOnce(Hsm)) {
        run_with_token(&format!("hsm::wrapping::tests::{name}"), |_as_they_are| (), test);
    }

    fn new_id() -> ObjectId {
        ObjectId::from(Uuid::new_v4())
    }

    #[test]
    fn softhsm_wraps_safely_with_a_passing_master_key_and_with_a_kept_one() {
        let name = "softhsm_wraps_safely_with_a_passing_master_key_and_with_a_kept_one";
        with_token(name, async |hsm| {
            assert_eq!(hsm.try_wrapping(None, soon()).await, Ok(()));
            let master = new_id();
            assert_eq!(hsm.try_wrapping(Some(master), soon()).await, Err(HsmError::Missing));
            hsm.make_master(master, soon()).await.unwrap();
            assert_eq!(hsm.try_wrapping(Some(master), soon()).await, Ok(()));
            assert_eq!(hsm.master_keys().unwrap(), [master]);
            assert_eq!(hsm.objects().unwrap(), []);
            let session = token(&hsm).session().unwrap();
            let left = session.find_objects(&[Attribute::Token(false)]).unwrap();
            assert!(left.is_empty(), "what was tried with is left: {left:?}");
        });
    }

    #[test]
    fn a_master_key_wraps_and_does_nothing_else_and_never_leaves_the_token() {
        let name = "a_master_key_wraps_and_does_nothing_else_and_never_leaves_the_token";
        with_token(name, async |hsm| {
            let master = new_id();
            hsm.make_master(master, soon()).await.unwrap();
            let token = token(&hsm);
            let session = token.session().unwrap();
            let handle = token.handle(Kind::MasterKey, master).unwrap();
            assert!(session.get_attributes(handle, &[AttributeType::Value]).unwrap().is_empty());
            assert!(token.functions.seal(&session, handle, &[1; 12], b"", b"dek").is_err());
            let other = new_id();
            hsm.make_master(other, soon()).await.unwrap();
            let other = token.handle(Kind::MasterKey, other).unwrap();
            for (wrapper, wrapped) in [(handle, other), (handle, handle)] {
                assert!(session.wrap_key(&WRAP_KEY, wrapper, wrapped).is_err());
            }
        });
    }

    #[test]
    fn a_wrapped_root_key_is_the_key_of_its_check_value_and_leaves_no_object() {
        let name = "a_wrapped_root_key_is_the_key_of_its_check_value_and_leaves_no_object";
        with_token(name, async |hsm| {
            let (object, master) = (new_id(), new_id());
            hsm.make_master(master, soon()).await.unwrap();
            let made = hsm.generate_wrapped((object, master), soon()).await.unwrap();
            let other = hsm.generate_wrapped((new_id(), master), soon()).await.unwrap();
            let token = token(&hsm);
            let session = token.session().unwrap();
            let left = session.find_objects(&[Attribute::Token(false)]).unwrap();
            assert!(left.is_empty(), "{left:?}");
            assert_eq!(hsm.objects().unwrap(), []);

            let handle = token.handle(Kind::MasterKey, master).unwrap();
            let (wrapped, check_value) = made;
            let key = unwrap(&session, handle, object, wrapped.blob()).unwrap();
            assert!(opens(&token.functions, &session, key, &check_value).unwrap());
            assert!(session.get_attributes(key, &[AttributeType::Value]).unwrap().is_empty());
            assert!(session.wrap_key(&WRAP_KEY, handle, key).is_err());
            let fresh = token.session().unwrap();
            assert!(opens(&token.functions, &fresh, key, &other.1).is_err());
            for tampered in tampered(wrapped.blob()) {
                assert!(unwrap(&fresh, handle, object, &tampered).is_err());
            }
        });
    }

    #[test]
    fn a_blob_that_is_tried_tampered_is_tampered_in_each_eighth_and_in_its_length() {
        let blob: Vec<u8> = (0..40).collect();
        let tampered = tampered(&blob);
        assert_eq!(tampered.len(), 8);
        assert!(tampered.iter().all(|it| *it != blob));
        let lengths: Vec<_> = tampered.iter().map(Vec::len).collect();
        assert_eq!(lengths, [40, 40, 40, 40, 40, 32, 39, 48]);
    }
}

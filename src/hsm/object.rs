//! Root key objects in the token: template, find, make, destroy.
//!
//! An object is found by its CKA_ID, once, when the token comes up; a request
//! never searches. Template: `facts/hsm-and-grpc.md`, recommendation 7. WRAP
//! beside DECRYPT would let a caller extract keys, so a root key has neither
//! WRAP nor UNWRAP.

use std::collections::HashMap;
use std::time::Duration;

use cryptoki::error::{Error, Result, RvError};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::mechanism::{MAKE_ROOT_KEY, SEAL};
use crate::domain::ObjectId;

/// What [`super::Hsm::check`] authenticates; no wrapped DEK has such AAD, whose
/// first bytes are `rkw`.
pub(super) const CHECK_AAD: &[u8] = b"check value of a root key";
/// The plaintext of a check value.
pub(super) const CHECK_TEXT: &[u8] = b"rootkeyd root key";

/// Every root key object that the token shows. Of two objects with one CKA_ID
/// neither is used.
pub(super) fn index(session: &Session) -> Result<HashMap<ObjectId, ObjectHandle>> {
    let mut index = HashMap::new();
    let mut doubled = Vec::new();
    for handle in session.find_objects(&[CLASS, TOKEN])? {
        let Some(id) = ours(session, handle)? else { continue };
        if index.insert(id, handle).is_some() {
            tracing::error!(object = %id, "two objects in the token have one CKA_ID; not used");
            doubled.push(id);
        }
    }
    for id in doubled {
        index.remove(&id);
    }
    Ok(index)
}

/// The objects with that CKA_ID.
pub(super) fn find(session: &Session, object: ObjectId) -> Result<Vec<ObjectHandle>> {
    session.find_objects(&[CLASS, TOKEN, Attribute::Id(object.as_bytes().to_vec())])
}

/// The one object with that CKA_ID, if there is just one.
pub(super) fn find_one(session: &Session, object: ObjectId) -> Result<Option<ObjectHandle>> {
    let found = find(session, object)?;
    Ok(if let [handle] = found[..] { Some(handle) } else { None })
}

/// Makes a root key. A module that does not know CKA_ALLOWED_MECHANISMS says so
/// in several ways, of which one, GENERAL_ERROR, SoftHSM also says when two keys
/// are made at once: so the whole template is tried again before it is shortened.
pub(super) fn generate(session: &Session, object: ObjectId) -> Result<()> {
    let mut template = template(object);
    for _ in 0..TRIES {
        match session.generate_key(&MAKE_ROOT_KEY, &template) {
            Err(Error::Pkcs11(RvError::GeneralError, _)) => std::thread::sleep(TRY_PAUSE),
            Err(Error::Pkcs11(
                RvError::AttributeTypeInvalid | RvError::TemplateInconsistent,
                _,
            )) => break,
            made => return made.map(|_handle| ()),
        }
    }
    template.retain(|attribute| !matches!(attribute, Attribute::AllowedMechanisms(_)));
    session.generate_key(&MAKE_ROOT_KEY, &template).map(|_handle| ())
}

/// Whether the object reads back as [`generate`] asked for it.
pub(super) fn is_as_asked(
    session: &Session,
    handle: ObjectHandle,
    object: ObjectId,
) -> Result<bool> {
    Ok(differences(session, handle, object)?.is_empty())
}

/// Types of the attributes that read back otherwise than [`generate`] asked for.
pub(super) fn differences(
    session: &Session,
    handle: ObjectHandle,
    object: ObjectId,
) -> Result<Vec<AttributeType>> {
    let asked = template(object);
    let types: Vec<_> = asked.iter().map(Attribute::attribute_type).collect();
    let read = session.get_attributes(handle, &types)?;
    // Left out where the module does not know it; then nothing is read back.
    let may_lack = |attribute: &Attribute| {
        attribute.attribute_type() == AttributeType::AllowedMechanisms
            && !read.iter().any(|a| a.attribute_type() == AttributeType::AllowedMechanisms)
    };
    let differs = asked.iter().filter(|asked| !read.contains(asked) && !may_lack(asked));
    Ok(differs.map(Attribute::attribute_type).collect())
}

/// Destroys every object with that CKA_ID.
pub(super) fn destroy(session: &Session, object: ObjectId) -> Result<()> {
    for handle in find(session, object)? {
        session.destroy_object(handle)?;
    }
    Ok(())
}

/// The CKA_ID, if the object is one of our root keys.
fn ours(session: &Session, handle: ObjectHandle) -> Result<Option<ObjectId>> {
    let read = session.get_attributes(handle, &[AttributeType::Label, AttributeType::Id])?;
    let [Attribute::Label(label), Attribute::Id(id)] = &read[..] else { return Ok(None) };
    let id: Option<[u8; 16]> = id.as_slice().try_into().ok();
    Ok(id.map(ObjectId::from_bytes).filter(|id| *label == label_of(*id)))
}

fn template(object: ObjectId) -> Vec<Attribute> {
    vec![
        CLASS,
        TOKEN,
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Id(object.as_bytes().to_vec()),
        Attribute::Label(label_of(object)),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
        Attribute::Extractable(false),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Sign(false),
        Attribute::Verify(false),
        Attribute::AllowedMechanisms(vec![SEAL]),
    ]
}

fn label_of(object: ObjectId) -> Vec<u8> {
    format!("rootkeyd {object}").into_bytes()
}

/// How often to try the whole template, and how long to wait in between.
const TRIES: usize = 10;
const TRY_PAUSE: Duration = Duration::from_millis(10);
const CLASS: Attribute = Attribute::Class(ObjectClass::SECRET_KEY);
const TOKEN: Attribute = Attribute::Token(true);

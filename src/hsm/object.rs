//! Objects in the token: the kinds there are, the template of a root key, find,
//! make, destroy.
//!
//! An object is found by its CKA_ID, once, when the token comes up; a request
//! never searches. Template: `facts/hsm-and-grpc.md`, recommendation 7. WRAP
//! beside DECRYPT would let a caller extract keys, so a root key has neither
//! WRAP nor UNWRAP. Import pairs: `pair.rs`; the
//! signer: `signer.rs`; master keys: `wrapping.rs`.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use cryptoki::error::{Error, Result, RvError};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::mechanism::{MAKE_ROOT_KEY, SEAL};
use super::root_key::patiently;
use super::supervisor::CANARY;
use super::wrapping::master_template;
use crate::domain::ObjectId;

/// What [`super::Hsm::check`] authenticates; no wrapped DEK has such AAD, whose
/// first bytes are `rkw`.
pub(super) const CHECK_AAD: &[u8] = b"check value of a root key";
/// The plaintext of a check value.
pub(super) const CHECK_TEXT: &[u8] = b"rootkeyd root key";

/// What a handle of ours leads to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Kind {
    /// A root key.
    RootKey,
    /// The private part of an import pair.
    ImportPair,
    /// The private part of the signer.
    Signer,
    /// A key that wraps root keys, and nothing else.
    MasterKey,
}

/// Where a root key comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Origin {
    /// The token made it: AES-256.
    Generated,
    /// A caller sent it: AES of any length, which the token finds out.
    Imported,
}

impl Kind {
    /// Every kind there is.
    pub(super) const ALL: [Self; 4] =
        [Self::RootKey, Self::ImportPair, Self::Signer, Self::MasterKey];

    fn class(self) -> Attribute {
        Attribute::Class(match self {
            Self::RootKey | Self::MasterKey => ObjectClass::SECRET_KEY,
            Self::ImportPair | Self::Signer => ObjectClass::PRIVATE_KEY,
        })
    }

    /// The CKA_LABEL, by which our objects are told from others.
    pub(super) fn label(self, object: ObjectId) -> Vec<u8> {
        match self {
            Self::RootKey => format!("rootkeyd {object}"),
            Self::ImportPair => format!("rootkeyd import {object}"),
            Self::Signer => format!("rootkeyd signer {object}"),
            Self::MasterKey => format!("rootkeyd master {object}"),
        }
        .into_bytes()
    }
}

/// Objects of some kinds, as the token shows them when it comes up.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Those that are used.
    pub(super) handles: HashMap<(Kind, ObjectId), ObjectHandle>,
    /// CKA_IDs that two or more have: of those none is used.
    pub(super) doubled: BTreeSet<ObjectId>,
    /// Root keys and master keys that are not as they were asked for, as one that is torn:
    /// not used.
    pub(super) unlike: BTreeSet<ObjectId>,
}

/// Every object of those kinds, which are of one class, that the token shows.
pub(super) fn index(session: &Session, kinds: &[Kind]) -> Result<Index> {
    let mut index = Index::default();
    let Some(first) = kinds.first() else { return Ok(index) };
    for handle in session.find_objects(&[first.class(), TOKEN])? {
        let Some((kind, id)) = ours(session, kinds, handle)? else { continue };
        if !is_as_made(session, kind, (handle, id))? {
            tracing::error!(object = %id, ?kind, "not as keys are made; not used");
            index.unlike.insert(id);
        }
        // Of canaries any will do.
        if index.handles.insert((kind, id), handle).is_some() && id != CANARY {
            tracing::error!(object = %id, "two objects in the token have one CKA_ID; not used");
            index.doubled.insert(id);
        }
    }
    index.handles.retain(|(_, id), _| !index.doubled.contains(id) && !index.unlike.contains(id));
    Ok(index)
}

/// Whether it is as keys are made, a root key of whatever origin. Of pairs it is not asked.
fn is_as_made(
    session: &Session,
    kind: Kind,
    (handle, object): (ObjectHandle, ObjectId),
) -> Result<bool> {
    let asked = match kind {
        Kind::RootKey => template(object, Origin::Imported),
        Kind::MasterKey => master_template(object, TOKEN),
        Kind::ImportPair | Kind::Signer => return Ok(true),
    };
    let as_asked = || Ok(is_as_asked(session, handle, &asked)?.then_some(()));
    Ok(patiently(as_asked)?.is_some())
}

/// The one object of that kind with that CKA_ID, if there is just one. Of canaries
/// any will do.
pub(super) fn find_one(
    session: &Session,
    kind: Kind,
    object: ObjectId,
) -> Result<Option<ObjectHandle>> {
    let found = session.find_objects(&[kind.class(), TOKEN, id(object)])?;
    Ok(match found[..] {
        [handle, ..] if object == CANARY => Some(handle),
        // Of one class there are several kinds.
        [handle] => is_at(session, kind, (handle, object))?.then_some(handle),
        _ => None,
    })
}

/// Whether the handle leads to that object.
pub(super) fn is_at(
    session: &Session,
    kind: Kind,
    (handle, object): (ObjectHandle, ObjectId),
) -> Result<bool> {
    Ok(ours(session, &[kind], handle)? == Some((kind, object)))
}

/// The objects of whatever class with that CKA_ID.
pub(super) fn find_all(session: &Session, object: ObjectId) -> Result<Vec<ObjectHandle>> {
    session.find_objects(&[TOKEN, id(object)])
}

/// Makes a root key.
pub(super) fn generate(session: &Session, object: ObjectId) -> Result<()> {
    let mut template = template(object, Origin::Generated);
    shortening(&mut template, TRIES, |template| {
        session.generate_key(&MAKE_ROOT_KEY, template).map(|_handle| ())
    })
}

/// Makes something with `template`. A module that does not know
/// CKA_ALLOWED_MECHANISMS says so in several ways, of which one, GENERAL_ERROR,
/// SoftHSM also says when two keys are made at once: so the whole template is
/// tried again before it is shortened.
pub(super) fn shortening<T>(
    template: &mut Vec<Attribute>,
    tries: usize,
    make: impl Fn(&[Attribute]) -> Result<T>,
) -> Result<T> {
    for _ in 0..tries {
        match make(template) {
            Err(Error::Pkcs11(RvError::GeneralError, _)) => std::thread::sleep(TRY_PAUSE),
            Err(Error::Pkcs11(
                RvError::AttributeTypeInvalid | RvError::TemplateInconsistent,
                _,
            )) => break,
            made => return made,
        }
    }
    template.retain(|attribute| !matches!(attribute, Attribute::AllowedMechanisms(_)));
    make(template)
}

/// Whether the object reads back as it was `asked` for.
pub(super) fn is_as_asked(
    session: &Session,
    handle: ObjectHandle,
    asked: &[Attribute],
) -> Result<bool> {
    Ok(differences(session, handle, asked)?.is_empty())
}

/// Types of the attributes that read back otherwise than they were `asked` for.
pub(super) fn differences(
    session: &Session,
    handle: ObjectHandle,
    asked: &[Attribute],
) -> Result<Vec<AttributeType>> {
    let types: Vec<_> = asked.iter().map(Attribute::attribute_type).collect();
    let read = session.get_attributes(handle, &types)?;
    // Left out where the module does not know it; then nothing is read back.
    let may_lack = |attribute: &Attribute| {
        attribute.attribute_type() == AttributeType::AllowedMechanisms
            && !read.iter().any(|a| a.attribute_type() == AttributeType::AllowedMechanisms)
    };
    let is_read = |asked: &Attribute| read.iter().any(|read| is_same(read, asked));
    let differs = asked.iter().filter(|asked| !is_read(asked) && !may_lack(asked));
    Ok(differs.map(Attribute::attribute_type).collect())
}

/// CKA_ALLOWED_MECHANISMS is a set: SoftHSM gives it back in an order of its own.
fn is_same(one: &Attribute, other: &Attribute) -> bool {
    if let (Attribute::AllowedMechanisms(one), Attribute::AllowedMechanisms(other)) = (one, other) {
        return one.len() == other.len() && one.iter().all(|mechanism| other.contains(mechanism));
    }
    one == other
}

/// Destroys every object with that CKA_ID, of whatever class.
pub(super) fn destroy(session: &Session, object: ObjectId) -> Result<()> {
    for handle in find_all(session, object)? {
        session.destroy_object(handle)?;
    }
    Ok(())
}

/// Kind and CKA_ID, if the object is one of ours of one of those kinds. An object may be shown without its
/// attributes for a moment (`patiently`), so one that has none is looked at again.
fn ours(
    session: &Session,
    kinds: &[Kind],
    handle: ObjectHandle,
) -> Result<Option<(Kind, ObjectId)>> {
    let read = || session.get_attributes(handle, &[AttributeType::Label, AttributeType::Id]);
    let mut attributes = read()?;
    for _ in 0..LOOKS {
        if attributes.len() == 2 {
            break;
        }
        std::thread::sleep(LOOK_PAUSE);
        attributes = read()?;
    }
    let [Attribute::Label(label), Attribute::Id(id)] = &attributes[..] else { return Ok(None) };
    let id: Option<[u8; 16]> = id.as_slice().try_into().ok();
    let Some(id) = id.map(ObjectId::from_bytes) else { return Ok(None) };
    Ok(kinds.iter().find(|kind| *label == kind.label(id)).map(|kind| (*kind, id)))
}

/// What a root key is asked to be.
pub(super) fn template(object: ObjectId, origin: Origin) -> Vec<Attribute> {
    let mut template = vec![
        Kind::RootKey.class(),
        TOKEN,
        Attribute::KeyType(KeyType::AES),
        id(object),
        Attribute::Label(Kind::RootKey.label(object)),
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
    ];
    match origin {
        Origin::Generated => template.push(Attribute::ValueLen(32.into())),
        Origin::Imported => {}
    }
    template
}

/// Makes a session key that is a copy of the root key at `source`.
pub(super) fn copy(
    session: &Session,
    source: ObjectHandle,
    object: ObjectId,
) -> Result<ObjectHandle> {
    session.copy_object(source, &[NOT_TOKEN, session_label(object)])
}

/// What a session key is asked to be: as a root key, but for where it is, and its label.
pub(super) fn session_template(object: ObjectId) -> Vec<Attribute> {
    let mut template = template(object, Origin::Imported);
    template.retain(|it| !matches!(it, Attribute::Token(_) | Attribute::Label(_)));
    template.extend([NOT_TOKEN, session_label(object)]);
    template
}

/// Whether the handle leads to a session key of that root key.
pub(super) fn is_session_key(
    session: &Session,
    handle: ObjectHandle,
    object: ObjectId,
) -> Result<bool> {
    is_as_asked(session, handle, &[NOT_TOKEN, session_label(object), id(object)])
}

/// Not a root key's, so that nobody takes the one for the other.
fn session_label(object: ObjectId) -> Attribute {
    Attribute::Label(format!("rootkeyd session {object}").into_bytes())
}

/// The CKA_ID.
pub(super) fn id(object: ObjectId) -> Attribute {
    Attribute::Id(object.as_bytes().to_vec())
}

/// An object of the token, and not of the session.
pub(super) const TOKEN: Attribute = Attribute::Token(true);
/// An object of the session that goes with it.
const NOT_TOKEN: Attribute = Attribute::Token(false);
/// How often to try the whole template, and how long to wait in between.
pub(super) const TRIES: usize = 10;
const TRY_PAUSE: Duration = Duration::from_millis(10);
/// How often to look again at an object that shows no attributes, and how long to wait.
const LOOKS: usize = 3;
const LOOK_PAUSE: Duration = Duration::from_millis(2);

//! The module, its slot and its token: load, find by label, log in, index the
//! root keys. And `make_token`, which makes a SoftHSM token for development.
//!
//! A wrong PIN is tried once: HSMs lock after a few.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use parking_lot::RwLock;
use thiserror::Error;

use super::ffi::Functions;
use super::object::Kind;
use super::pair::Decrypts;
use super::supervisor::CANARY;
use super::unwrapping::Ways;
use super::{Settings, mechanism, object};
use crate::domain::ObjectId;
use crate::secret::Secret;

/// Why the token cannot be used; a sentence that says what to do.
#[derive(Debug, Error)]
pub(super) enum Problem {
    #[error(
        "the PKCS#11 module {module} cannot be loaded ({source}); install it or correct hsm.module"
    )]
    Module { module: String, source: Error },
    #[error("the PKCS#11 module {module} lacks C_Encrypt or C_Decrypt; use another module")]
    Functions { module: String },
    #[error("no slot has a token with the label {label:?}; connect it, or correct hsm.token_label")]
    NoToken { label: String },
    #[error("{count} tokens have the label {label:?}; give each another label")]
    ManyTokens { label: String, count: usize },
    #[error("the PIN cannot be read from {path} ({source})")]
    Pin { path: String, source: io::Error },
    #[error("the token refused the PIN ({source}); it is tried again when {path} changes")]
    PinRefused { path: String, source: Error },
    #[error("the token cannot do {mechanism} ({used_for}); use another token")]
    Mechanism { mechanism: String, used_for: &'static str },
    #[error("a thread for a session cannot be made ({0})")]
    Thread(io::Error),
    #[error("the module failed: {0}")]
    Failed(#[from] Error),
}

/// What module and token say of themselves.
#[derive(Clone, Debug)]
pub struct TokenInfo {
    /// What the module is, with its version.
    pub library: String,
    /// The slot's number.
    pub slot: u64,
    /// The token's serial number.
    pub serial: String,
    /// Names of its mechanisms, and what the daemon uses each for, if it does.
    pub mechanisms: Vec<(String, Option<&'static str>)>,
}

/// A token that is logged in to, with the handles of its objects. Lives until
/// the module is finalized.
pub(super) struct Token {
    pub(super) info: TokenInfo,
    pub(super) functions: Functions,
    /// How it unwraps key material; empty until that has been tried.
    pub(super) ways: OnceLock<Ways>,
    /// What import pairs may do at most.
    pub(super) decrypts: Decrypts,
    module: Pkcs11,
    slot: Slot,
    root_keys: Handles,
    import_pairs: Handles,
    signers: Handles,
    /// CKA_IDs that two objects had when the token came up.
    doubled: BTreeSet<ObjectId>,
    /// Root keys that were not as they were asked for then.
    unlike: BTreeSet<ObjectId>,
    /// Those, and root keys that are not what they were: there is no handle of them.
    withheld: RwLock<BTreeSet<ObjectId>>,
}

type Handles = RwLock<HashMap<ObjectId, ObjectHandle>>;

impl Token {
    /// Initializes the module, logs in and indexes the root keys. The session
    /// returned holds the login and must be closed last.
    pub(super) fn open(module: &Pkcs11, settings: &Settings) -> Result<(Self, Session), Problem> {
        initialize(module)?;
        let slot = slot_of(module, &settings.token_label)?;
        let mechanisms = module.get_mechanism_list(slot)?;
        for (needed, used_for) in mechanism::NEEDED {
            if !mechanisms.contains(&needed) {
                return Err(Problem::Mechanism { mechanism: needed.to_string(), used_for });
            }
        }
        let session = module.open_rw_session(slot)?;
        log_in(&session, &settings.pin_file)?;
        let (mut doubled, mut unlike) = (BTreeSet::new(), BTreeSet::new());
        let mut index = |kind| {
            let mut index = object::index(&session, kind)?;
            doubled.append(&mut index.doubled);
            unlike.append(&mut index.unlike);
            Ok::<_, Error>(RwLock::new(index.handles))
        };
        let (root_keys, import_pairs) = (index(Kind::RootKey)?, index(Kind::ImportPair)?);
        let signers = index(Kind::Signer)?;
        let name = || settings.module.display().to_string();
        let functions = Functions::load(&settings.module)
            .ok_or_else(|| Problem::Functions { module: name() })?;
        let info = describe(module, slot, &mechanisms)?;
        let token = Self {
            info,
            functions,
            ways: OnceLock::new(),
            decrypts: if settings.software_unwrap { Decrypts::Raw } else { Decrypts::No },
            module: module.clone(),
            slot,
            root_keys,
            import_pairs,
            signers,
            doubled,
            withheld: RwLock::new(unlike.clone()),
            unlike,
        };
        Ok((token, session))
    }

    /// Another session; it is logged in, since the login is the application's.
    pub(super) fn session(&self) -> Result<Session, Error> {
        self.module.open_rw_session(self.slot)
    }

    /// The handle of an object, if the token shows it.
    pub(super) fn handle(&self, kind: Kind, object: ObjectId) -> Option<ObjectHandle> {
        self.handles(kind).read().get(&object).copied()
    }

    /// The root keys that the token shows, without the canary.
    pub(super) fn objects(&self) -> Vec<ObjectId> {
        self.root_keys.read().keys().copied().filter(|id| *id != CANARY).collect()
    }

    /// The import pairs that the token shows.
    pub(super) fn pairs(&self) -> Vec<ObjectId> {
        self.import_pairs.read().keys().copied().collect()
    }

    /// The signers that the token shows.
    pub(super) fn signers(&self) -> Vec<ObjectId> {
        self.signers.read().keys().copied().collect()
    }

    /// CKA_IDs that two objects had when the token came up.
    pub(super) const fn doubled(&self) -> &BTreeSet<ObjectId> {
        &self.doubled
    }

    /// Root keys that were not as they were asked for when the token came up.
    pub(super) const fn unlike(&self) -> &BTreeSet<ObjectId> {
        &self.unlike
    }

    /// Has a root key not be used until the token comes up anew.
    pub(super) fn withhold(&self, object: ObjectId) {
        self.withheld.write().insert(object);
        self.note(Kind::RootKey, object, None);
    }

    /// Notes where an object is now, or that it is nowhere.
    pub(super) fn note(&self, kind: Kind, object: ObjectId, handle: Option<ObjectHandle>) {
        let handle = handle.filter(|_| !self.withheld.read().contains(&object));
        let mut handles = self.handles(kind).write();
        match handle {
            Some(handle) => handles.insert(object, handle),
            None => handles.remove(&object),
        };
    }

    fn handles(&self, kind: Kind) -> &Handles {
        match kind {
            Kind::RootKey => &self.root_keys,
            Kind::ImportPair => &self.import_pairs,
            Kind::Signer => &self.signers,
        }
    }
}

/// Loads the module.
pub(super) fn load(path: &Path) -> Result<Pkcs11, Problem> {
    Pkcs11::new(path)
        .map_err(|source| Problem::Module { module: path.display().to_string(), source })
}

/// Makes a token with that label, if there is none, in the module's first free
/// slot. For development: what SoftHSM keeps in files, an HSM's operator makes
/// in a ceremony.
///
/// # Errors
/// A sentence, if module or token refuse.
pub fn make_token(path: &Path, label: &str, pin: &Secret) -> Result<(), String> {
    let make = || -> Result<(), Problem> {
        let module = load(path)?;
        initialize(&module)?;
        let made = match slot_of(&module, label) {
            Ok(_slot) => Ok(()),
            Err(Problem::NoToken { .. }) => make_in_free_slot(&module, label, pin),
            Err(problem) => Err(problem),
        };
        module.finalize()?;
        made
    };
    make().map_err(|problem| problem.to_string())
}

fn make_in_free_slot(module: &Pkcs11, label: &str, pin: &Secret) -> Result<(), Problem> {
    let pin = auth_pin(pin)?;
    for slot in module.get_slots_with_token()? {
        if module.get_token_info(slot)?.token_initialized() {
            continue;
        }
        module.init_token(slot, &pin, label)?;
        // SoftHSM gives the new token another slot.
        let session = module.open_rw_session(slot_of(module, label)?)?;
        session.login(UserType::So, Some(&pin))?;
        session.init_pin(&pin)?;
        return Ok(session.close()?);
    }
    Err(Problem::NoToken { label: label.into() })
}

fn initialize(module: &Pkcs11) -> Result<(), Problem> {
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn slot_of(module: &Pkcs11, label: &str) -> Result<Slot, Problem> {
    let mut found = Vec::new();
    for slot in module.get_slots_with_token()? {
        let token = module.get_token_info(slot)?;
        if token.token_initialized() && token.label() == label {
            found.push(slot);
        }
    }
    match found[..] {
        [slot] => Ok(slot),
        [] => Err(Problem::NoToken { label: label.into() }),
        [..] => Err(Problem::ManyTokens { label: label.into(), count: found.len() }),
    }
}

fn log_in(session: &Session, pin_file: &Path) -> Result<(), Problem> {
    let path = || pin_file.display().to_string();
    let pin = read_pin(pin_file).map_err(|source| Problem::Pin { path: path(), source })?;
    match session.login(UserType::User, Some(&auth_pin(&pin)?)) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(
            source @ Error::Pkcs11(
                RvError::PinIncorrect
                | RvError::PinInvalid
                | RvError::PinLenRange
                | RvError::PinLocked
                | RvError::PinExpired,
                _,
            ),
        ) => Err(Problem::PinRefused { path: path(), source }),
        Err(error) => Err(error.into()),
    }
}

fn read_pin(path: &Path) -> io::Result<Secret> {
    let mut pin = Secret::new(fs::read(path)?);
    if pin.expose().ends_with(b"\n") {
        pin.truncate(pin.len() - 1);
    }
    if pin.is_empty() || pin.expose().contains(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not one line"));
    }
    Ok(pin)
}

fn auth_pin(pin: &Secret) -> Result<AuthPin, Problem> {
    let text = std::str::from_utf8(pin.expose()).map_err(Error::Utf8)?;
    // The boxed copy is wiped by AuthPin; `pin` by Secret.
    Ok(AuthPin::new(text.into()))
}

fn describe(
    module: &Pkcs11,
    slot: Slot,
    mechanisms: &[MechanismType],
) -> Result<TokenInfo, Problem> {
    let library = module.get_library_info()?;
    let used_for = |mechanism: &MechanismType| {
        let mut rows = mechanism::NEEDED.iter().chain(&mechanism::USED);
        let row = rows.find(|(needed, _)| needed == mechanism);
        row.map(|(_, used_for)| *used_for)
    };
    let mechanisms =
        mechanisms.iter().map(|mechanism| (mechanism.to_string(), used_for(mechanism)));
    Ok(TokenInfo {
        library: format!(
            "{} {} ({})",
            library.library_description(),
            library.library_version(),
            library.manufacturer_id()
        ),
        slot: slot.id(),
        serial: module.get_token_info(slot)?.serial_number().into(),
        mechanisms: mechanisms.collect(),
    })
}

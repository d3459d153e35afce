//! The module, its slot and its token: load, find by label, log in, index the
//! root keys. And `make_token`, which makes a SoftHSM token for development.
//!
//! A handle is good for one login: the token may give the same number to another
//! object after the next. So handles carry the login's number, and one of an earlier
//! login counts as none; the object is then looked for again (`worker.rs`). With the
//! module a new `Token` begins, so nothing of before a restart is used after it.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use parking_lot::RwLock;
use thiserror::Error;

use super::copying::Copying;
use super::ffi::Functions;
use super::login::{LoggedIn, Login, auth_pin, is_logged_in};
use super::object::Kind;
use super::pace::Pace;
use super::pair::Decrypts;
use super::session_keys::SessionKeys;
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
    #[error("the token refused the PIN ({rv}); it is tried again when {path} changes")]
    PinRefused { path: String, rv: RvError },
    #[error("the token is there and does not encrypt and decrypt ({0})")]
    Useless(RvError),
    #[error("{0} calls hang in the module; if they do not come back, restart the daemon")]
    Hung(usize),
    #[error("the token cannot do {mechanism} ({used_for}); use another token")]
    Mechanism { mechanism: String, used_for: &'static str },
    #[error("the login is gone; another worker process logs in")]
    LoginLost,
    #[error("the token gives no session ({0})")]
    NoSession(String),
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
    pub mechanisms: Vec<(String, Option<String>)>,
}

impl TokenInfo {
    /// With what is said of copies beside the mechanism that uses them.
    pub(super) fn and_copying(mut self, copying: &str) -> Self {
        let seal = mechanism::SEAL.to_string();
        let used_for = self.mechanisms.iter_mut().filter(|(name, _)| *name == seal);
        for used_for in used_for.filter_map(|(_, used_for)| used_for.as_mut()) {
            used_for.push_str("; session copies of root keys: ");
            used_for.push_str(copying);
        }
        self
    }
}

/// A token that is logged in to, with the handles of its objects. Lives until
/// the module is finalized.
pub(super) struct Token {
    pub(super) info: TokenInfo,
    pub(super) functions: Functions,
    /// How it unwraps key material; empty until that has been tried.
    pub(super) ways: OnceLock<Ways>,
    /// Set once it was seen to wrap root keys safely.
    pub(super) wraps: OnceLock<()>,
    /// What import pairs may do at most.
    pub(super) decrypts: Decrypts,
    pub(super) session_keys: SessionKeys,
    /// Whether root keys are copied; empty until that has been tried.
    pub(super) copying: OnceLock<Copying>,
    pub(super) pace: Pace,
    module: Pkcs11,
    slot: Slot,
    login: Arc<Login>,
    /// How often a login was lost and made again since the module was started.
    logins: AtomicU64,
    root_keys: Handles,
    import_pairs: Handles,
    signers: Handles,
    master_keys: Handles,
    /// What was looked for and is not there, and when.
    absent: RwLock<HashMap<(Kind, ObjectId), Instant>>,
    /// CKA_IDs that two objects had when the token came up.
    doubled: BTreeSet<ObjectId>,
    /// Root keys that were not as they were asked for then.
    unlike: BTreeSet<ObjectId>,
    /// Those, and root keys that are not what they were: there is no handle of them.
    withheld: RwLock<BTreeSet<ObjectId>>,
}

type Handles = RwLock<HashMap<ObjectId, Handle>>;

/// Where an object is, and in which login.
#[derive(Clone, Copy)]
struct Handle {
    handle: ObjectHandle,
    login: u64,
}

impl Token {
    /// Initializes the module, logs in and indexes the root keys. The session
    /// returned holds the login and must be closed last.
    pub(super) fn open(
        module: &Pkcs11,
        settings: &Settings,
        login: &Arc<Login>,
    ) -> Result<(Self, Session), Problem> {
        initialize(module)?;
        let slot = slot_of(module, &settings.token_label)?;
        let mechanisms = module.get_mechanism_list(slot)?;
        for (needed, used_for) in mechanism::NEEDED {
            if !mechanisms.contains(&needed) {
                return Err(Problem::Mechanism { mechanism: needed.to_string(), used_for });
            }
        }
        let session = module.open_rw_session(slot)?;
        login.log_in(&session)?;
        let (mut doubled, mut unlike) = (BTreeSet::new(), BTreeSet::new());
        let mut handles = HashMap::<Kind, HashMap<ObjectId, Handle>>::new();
        for kinds in [[Kind::RootKey, Kind::MasterKey], [Kind::ImportPair, Kind::Signer]] {
            let mut index = object::index(&session, &kinds)?;
            doubled.append(&mut index.doubled);
            unlike.append(&mut index.unlike);
            for ((kind, id), handle) in index.handles {
                handles.entry(kind).or_default().insert(id, Handle { handle, login: 0 });
            }
        }
        let mut indexed = |kind| RwLock::new(handles.remove(&kind).unwrap_or_default());
        let (root_keys, import_pairs) = (indexed(Kind::RootKey), indexed(Kind::ImportPair));
        let (signers, master_keys) = (indexed(Kind::Signer), indexed(Kind::MasterKey));
        let name = || settings.module.display().to_string();
        let functions = Functions::load(&settings.module)
            .ok_or_else(|| Problem::Functions { module: name() })?;
        let info = describe(module, slot, &mechanisms)?;
        let token = Self {
            info,
            functions,
            ways: OnceLock::new(),
            wraps: OnceLock::new(),
            decrypts: if settings.software_unwrap { Decrypts::Raw } else { Decrypts::No },
            session_keys: SessionKeys::new(settings.session_objects),
            copying: OnceLock::new(),
            pace: Pace::default(),
            module: module.clone(),
            slot,
            login: Arc::clone(login),
            logins: AtomicU64::new(0),
            root_keys,
            import_pairs,
            signers,
            master_keys,
            absent: RwLock::default(),
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

    /// Whether the session is logged in; if it is not, it is logged in.
    ///
    /// # Errors
    /// [`Problem`].
    pub(super) fn log_in(&self, session: &Session) -> Result<LoggedIn, Problem> {
        if is_logged_in(session)? {
            return Ok(LoggedIn::Already);
        }
        let logged_in = self.login.log_in_again(session)?;
        if logged_in == LoggedIn::Anew {
            self.session_keys.lose();
            self.logins.fetch_add(1, Ordering::SeqCst);
        }
        Ok(logged_in)
    }

    /// The login that handles found from now on belong to.
    pub(super) fn login(&self) -> u64 {
        self.logins.load(Ordering::SeqCst)
    }

    /// The handle of an object, if it is known in this login.
    pub(super) fn handle(&self, kind: Kind, object: ObjectId) -> Option<ObjectHandle> {
        let known = self.handles(kind).read().get(&object).copied();
        known.filter(|known| known.login == self.login()).map(|known| known.handle)
    }

    /// What is to be said of module and token now.
    pub(super) fn info(&self) -> TokenInfo {
        self.info.clone().and_copying(&self.said_of_copying())
    }

    /// Whether root keys are used by copies, in words.
    pub(super) fn said_of_copying(&self) -> String {
        self.copying.get().map(ToString::to_string).unwrap_or_default()
    }

    /// Whether root keys are used by copies.
    pub(super) fn copies_root_keys(&self) -> bool {
        matches!(self.copying.get(), Some(Copying::On { .. }))
    }

    /// The objects of that kind that the token shows, without the canary.
    pub(super) fn shown(&self, kind: Kind) -> Vec<ObjectId> {
        self.handles(kind).read().keys().copied().filter(|id| *id != CANARY).collect()
    }

    /// Notes where an object is that was made or found now.
    pub(super) fn note(&self, kind: Kind, object: ObjectId, handle: ObjectHandle) {
        self.note_found(kind, object, (handle, self.login()));
    }

    /// Notes where an object was found, in the login that was before the search.
    pub(super) fn note_found(
        &self,
        kind: Kind,
        object: ObjectId,
        (handle, login): (ObjectHandle, u64),
    ) {
        self.absent.write().remove(&(kind, object));
        self.handles(kind).write().insert(object, Handle { handle, login });
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
        self.handles(Kind::RootKey).write().remove(&object);
        self.session_keys.retire(&[object]);
    }

    /// Notes that an object is being destroyed.
    pub(super) fn forget(&self, object: ObjectId) {
        for kind in Kind::ALL {
            self.handles(kind).write().remove(&object);
        }
        self.session_keys.retire(&[object]);
    }

    /// Notes that a token in good order does not show an object: so that each call
    /// that needs it does not search all objects.
    pub(super) fn note_absent(&self, kind: Kind, object: ObjectId) {
        self.handles(kind).write().remove(&object);
        if kind == Kind::RootKey {
            self.session_keys.retire(&[object]);
        }
        let mut absent = self.absent.write();
        absent.retain(|_, since| since.elapsed() < ABSENT);
        absent.insert((kind, object), Instant::now());
    }

    /// Whether that was noted a moment ago, or the object is not to be used.
    pub(super) fn is_absent(&self, kind: Kind, object: ObjectId) -> bool {
        let since = self.absent.read().get(&(kind, object)).copied();
        since.is_some_and(|since| since.elapsed() < ABSENT)
            || self.withheld.read().contains(&object)
    }

    fn handles(&self, kind: Kind) -> &Handles {
        match kind {
            Kind::RootKey => &self.root_keys,
            Kind::ImportPair => &self.import_pairs,
            Kind::Signer => &self.signers,
            Kind::MasterKey => &self.master_keys,
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
/// in a ceremony. A token that is there is looked for during `patience`: SoftHSM does
/// not show one whose file another process writes anew, which it does at each login.
///
/// # Errors
/// A sentence, if module or token refuse.
pub fn make_token(
    path: &Path,
    label: &str,
    pin: &Secret,
    patience: Duration,
) -> Result<(), String> {
    let make = || -> Result<(), Problem> {
        let module = load(path)?;
        let until = Instant::now() + patience;
        loop {
            initialize(&module)?;
            let made = match slot_of(&module, label) {
                Ok(_slot) => Ok(()),
                Err(Problem::NoToken { .. }) if Instant::now() >= until => {
                    make_in_free_slot(&module, label, pin)
                }
                Err(problem) => Err(problem),
            };
            module.clone().finalize()?;
            // The module looks for tokens as it is initialized, and not later.
            let Err(Problem::NoToken { .. }) = made else { return made };
            std::thread::sleep(TOKEN_PAUSE);
        }
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

fn describe(
    module: &Pkcs11,
    slot: Slot,
    mechanisms: &[MechanismType],
) -> Result<TokenInfo, Problem> {
    let library = module.get_library_info()?;
    let used_for = |mechanism: &MechanismType| {
        let mut rows = mechanism::NEEDED.iter().chain(&mechanism::USED);
        let row = rows.find(|(needed, _)| needed == mechanism);
        row.map(|(_, used_for)| (*used_for).to_owned())
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

/// How long to wait before a token is looked for again.
const TOKEN_PAUSE: Duration = Duration::from_millis(20);
/// How long an object is not looked for again that was not there.
const ABSENT: Duration = Duration::from_secs(5);

//! Logging in: the PIN, and that one the token refused is not tried again.
//!
//! HSMs lock after a few wrong PINs. So whoever wants to log in, a start of the module
//! or a worker that lost its login, comes by here, one at a time; a PIN that was
//! refused is tried again only when its file changed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cryptoki::error::{Error, RvError};
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::types::AuthPin;
use parking_lot::Mutex;

use super::token::Problem;
use crate::secret::Secret;

/// How to log in. One for as long as the daemon lives.
pub(super) struct Login {
    pin_file: PathBuf,
    /// Whether a login that was lost is made again.
    again: bool,
    /// What the file was when its PIN was refused, and what the token said.
    refused: Mutex<Option<(Stamp, RvError)>>,
}

/// What became of a login that was asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LoggedIn {
    /// It was missing and is there now: handles from before are worth nothing.
    Anew,
    /// It was there.
    Already,
    /// Another thread is at it, and it takes long.
    Later,
}

/// Changes when the file does; `None` if there is none.
pub(super) type Stamp = Option<(SystemTime, u64, u64)>;

impl Login {
    pub(super) const fn new(pin_file: PathBuf) -> Self {
        Self { pin_file, again: true, refused: Mutex::new(None) }
    }

    /// Of a worker process, which logs in once and no more: that a PIN was refused is
    /// known to the daemon, and not to the other processes.
    pub(super) const fn once(pin_file: PathBuf) -> Self {
        Self { pin_file, again: false, refused: Mutex::new(None) }
    }

    /// Logs in, unless this PIN was refused before.
    ///
    /// # Errors
    /// [`Problem`].
    pub(super) fn log_in(&self, session: &Session) -> Result<(), Problem> {
        log_in(session, &self.pin_file, &mut self.refused.lock())
    }

    /// Logs in if that is needed, for a worker, who does not wait long for another.
    ///
    /// # Errors
    /// [`Problem`].
    pub(super) fn log_in_again(&self, session: &Session) -> Result<LoggedIn, Problem> {
        let Some(mut refused) = self.refused.try_lock_for(PATIENCE) else {
            return Ok(LoggedIn::Later);
        };
        if is_logged_in(session)? {
            return Ok(LoggedIn::Already);
        }
        if !self.again {
            return Err(Problem::LoginLost);
        }
        log_in(session, &self.pin_file, &mut refused)?;
        tracing::warn!("the login was gone; logged in to the token again");
        Ok(LoggedIn::Anew)
    }

    /// Whether the PIN is one that was not refused yet.
    pub(super) fn may_try(&self) -> bool {
        let refused = self.refused.lock();
        refused.as_ref().is_none_or(|(file, _)| *file != stamp(&self.pin_file))
    }
}

/// Whether the session is logged in, as the token says.
///
/// # Errors
/// If it does not say.
pub(super) fn is_logged_in(session: &Session) -> Result<bool, Error> {
    match session.get_session_info()?.session_state() {
        SessionState::RoUser | SessionState::RwUser => Ok(true),
        SessionState::RoPublic | SessionState::RwPublic | SessionState::RwSecurityOfficer => {
            Ok(false)
        }
    }
}

fn log_in(
    session: &Session,
    pin_file: &Path,
    refused: &mut Option<(Stamp, RvError)>,
) -> Result<(), Problem> {
    let path = || pin_file.display().to_string();
    // Before the PIN is read: a change in between makes one more try, not one less.
    let file = stamp(pin_file);
    if let Some((_, rv)) = refused.as_ref().filter(|(known, _)| *known == file) {
        return Err(Problem::PinRefused { path: path(), rv: *rv });
    }
    let pin = read_pin(pin_file).map_err(|source| Problem::Pin { path: path(), source })?;
    if stamp(pin_file) != file {
        // It may be the old PIN or the new one.
        let source = io::Error::new(io::ErrorKind::Interrupted, "it changes just now");
        return Err(Problem::Pin { path: path(), source });
    }
    match session.login(UserType::User, Some(&auth_pin(&pin)?)) {
        Ok(()) | Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
        Err(Error::Pkcs11(rv, _)) if REFUSALS.contains(&rv) => {
            *refused = Some((file, rv));
            Err(Problem::PinRefused { path: path(), rv })
        }
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

/// The PIN as cryptoki wants it.
///
/// # Errors
/// If it is no UTF-8.
pub(super) fn auth_pin(pin: &Secret) -> Result<AuthPin, Problem> {
    let text = std::str::from_utf8(pin.expose()).map_err(Error::Utf8)?;
    // The boxed copy is wiped by AuthPin; `pin` by Secret.
    Ok(AuthPin::new(text.into()))
}

/// What the file is now.
pub(super) fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// What a token says of a PIN with which it is of no use to try again.
const REFUSALS: [RvError; 6] = [
    RvError::PinIncorrect,
    RvError::PinInvalid,
    RvError::PinLenRange,
    RvError::PinLocked,
    RvError::PinExpired,
    RvError::UserPinNotInitialized,
];
/// How long a worker waits while another logs in.
const PATIENCE: Duration = Duration::from_secs(2);

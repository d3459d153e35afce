//! A worker's part in making and destroying root keys.
//!
//! Nothing is believed that was not read back in another session.

use std::time::Duration;

use cryptoki::error::{Error, RvError};
use cryptoki::object::{Attribute, ObjectHandle};
use cryptoki::session::Session;

use super::object::{self, CHECK_AAD, CHECK_TEXT, Kind, Origin};
use super::worker::{Failure, Worker};
use super::{HsmError, RootKey, Sealed};
use crate::domain::ObjectId;

impl Worker {
    pub(super) fn generate(&mut self, object: ObjectId) -> Result<Sealed, Failure> {
        object::generate(&self.session, object).map_err(|error| self.failed(&error))?;
        failpoint!("hsm.generated");
        let asked = object::template(object, Origin::Generated);
        let (_session, handle) = self.read_back(Kind::RootKey, object, &asked)?;
        self.synchronize()?;
        self.token.note(Kind::RootKey, object, handle);
        self.check_value(object)
    }

    /// Looks in another session for the object that was just made: it must be the
    /// only one, and as it was `asked` for.
    pub(super) fn read_back(
        &mut self,
        kind: Kind,
        object: ObjectId,
        asked: &[Attribute],
    ) -> Result<(Session, ObjectHandle), Failure> {
        let fresh = self.token.session().map_err(|error| self.failed(&error))?;
        // The handle too: SoftHSM gives another one if it read the object anew.
        let mut last = None;
        let as_asked = patiently(|| {
            last = object::find_one(&fresh, kind, object)?;
            let Some(handle) = last else { return Ok(None) };
            Ok(object::is_as_asked(&fresh, handle, asked)?.then_some(handle))
        });
        if let Some(handle) = as_asked.map_err(|error| self.failed(&error))? {
            failpoint!("hsm.read_back");
            return Ok((fresh, handle));
        }
        let Some(handle) = last else { return Err(self.absent(kind, object)) };
        let differs = object::differences(&fresh, handle, asked);
        tracing::error!(%object, ?differs, "the token made another key than was asked for");
        Err(Failure::Answer(HsmError::Refused(RvError::TemplateInconsistent)))
    }

    /// The check value of a new root key, which thereby is seen to work.
    pub(super) fn check_value(&mut self, object: ObjectId) -> Result<Sealed, Failure> {
        let key = RootKey::itself(object);
        let check_value = self.seal(&key, CHECK_AAD, CHECK_TEXT)?;
        let opened = self.open(&key, CHECK_AAD, &check_value)?;
        if opened.expose() == CHECK_TEXT {
            return Ok(check_value);
        }
        tracing::error!(%object, "the new key does not open what it sealed");
        Err(Failure::Answer(HsmError::Refused(RvError::FunctionFailed)))
    }

    pub(super) fn destroy(&mut self, object: ObjectId) -> Result<(), Failure> {
        self.token.forget(object);
        object::destroy(&self.session, object).map_err(|error| self.failed(&error))?;
        failpoint!("hsm.destroyed");
        self.synchronize()?;
        let fresh = self.token.session().map_err(|error| self.failed(&error))?;
        let left = object::find_all(&fresh, object).map_err(|error| self.failed(&error))?;
        if left.is_empty() {
            // Nor would a token show any that has lost our login.
            return self.in_good_order();
        }
        tracing::error!(%object, "the token still shows the object that it destroyed");
        Err(Failure::Answer(HsmError::Unavailable))
    }

    pub(super) fn synchronize(&self) -> Result<(), Failure> {
        let Some(directory) = &self.sync_directory else { return Ok(()) };
        let synchronized =
            std::fs::File::open(directory).and_then(|directory| Ok(rustix::fs::syncfs(directory)?));
        synchronized.map_err(|error| {
            tracing::error!(%error, "the token's directory cannot be synchronized");
            Failure::Answer(HsmError::Unavailable)
        })?;
        failpoint!("hsm.synchronized");
        Ok(())
    }
}

/// Looks a few times. SoftHSM reads its objects anew when others are made or
/// destroyed, and meanwhile shows one without its attributes, or not at all.
pub(super) fn patiently<T>(
    mut look: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<Option<T>, Error> {
    for _ in 1..LOOKS {
        if let Ok(Some(found)) = look() {
            return Ok(Some(found));
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    look()
}

/// How often to look for what should be there, and how long to wait in between.
const LOOKS: usize = 10;
const LOOK_PAUSE: Duration = Duration::from_millis(5);

//! A worker's part in making and destroying root keys.
//!
//! Nothing is believed that was not read back in another session.

use std::time::Duration;

use cryptoki::error::{Error, RvError};

use super::object::{self, CHECK_AAD, CHECK_TEXT};
use super::worker::{Failure, Worker};
use super::{HsmError, Sealed};
use crate::domain::ObjectId;

impl Worker {
    pub(super) fn generate(&mut self, object: ObjectId) -> Result<Sealed, Failure> {
        object::generate(&self.session, object).map_err(|error| self.failed(&error))?;
        let fresh = self.token.session().map_err(|error| self.failed(&error))?;
        let found = patiently(|| object::find_one(&fresh, object));
        let found = found.map_err(|error| self.failed(&error))?;
        let handle = found.ok_or(Failure::Answer(HsmError::Missing))?;
        let as_asked = patiently(|| Ok(object::is_as_asked(&fresh, handle, object)?.then_some(())));
        if as_asked.map_err(|error| self.failed(&error))?.is_none() {
            let differs = object::differences(&fresh, handle, object);
            tracing::error!(%object, ?differs, "the token made another key than was asked for");
            return Err(Failure::Answer(HsmError::Refused(RvError::TemplateInconsistent)));
        }
        self.synchronize()?;
        self.token.note(object, Some(handle));
        let check_value = self.seal(object, CHECK_AAD, CHECK_TEXT)?;
        let opened = self.open(object, CHECK_AAD, &check_value)?;
        if opened.expose() == CHECK_TEXT {
            return Ok(check_value);
        }
        tracing::error!(%object, "the new key does not open what it sealed");
        Err(Failure::Answer(HsmError::Refused(RvError::FunctionFailed)))
    }

    pub(super) fn destroy(&mut self, object: ObjectId) -> Result<(), Failure> {
        self.token.note(object, None);
        object::destroy(&self.session, object).map_err(|error| self.failed(&error))?;
        self.synchronize()?;
        let fresh = self.token.session().map_err(|error| self.failed(&error))?;
        let left = object::find(&fresh, object).map_err(|error| self.failed(&error))?;
        if left.is_empty() {
            return Ok(());
        }
        tracing::error!(%object, "the token still shows the object that it destroyed");
        Err(Failure::Answer(HsmError::Unavailable))
    }

    fn synchronize(&self) -> Result<(), Failure> {
        let Some(directory) = &self.sync_directory else { return Ok(()) };
        let synchronized =
            std::fs::File::open(directory).and_then(|directory| Ok(rustix::fs::syncfs(directory)?));
        synchronized.map_err(|error| {
            tracing::error!(%error, "the token's directory cannot be synchronized");
            Failure::Answer(HsmError::Unavailable)
        })
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

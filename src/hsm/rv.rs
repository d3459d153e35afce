//! What to do when the module answers with an error: one table of CK_RVs.
//!
//! Measured on SoftHSM, kryoptic and NSS (`facts/hsm-and-grpc.md`, B). Whatever
//! the verdict, the session is closed and another one opened, because an error
//! can leave an operation active in it.

use cryptoki::error::{Error, RvError};
use cryptoki_sys::CKR_AEAD_DECRYPT_FAILED;

/// What a CK_RV means for the job, and what to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// The ciphertext, or the wrapped key, does not verify.
    Unverified,
    /// The ciphertext does not verify, or the module is in trouble: SoftHSM says
    /// the same of both. Round trips tell them apart (`ladder.rs`): with the same key,
    /// or with the canary if the key only unwraps.
    Ambiguous,
    /// The session is of no use; another one may be.
    Session,
    /// The login is gone; the session is logged in anew.
    Login,
    /// The handle leads nowhere; the object must be looked for again.
    Object,
    /// The token is gone or the module does not work: start it anew.
    Module,
    /// The module refuses just this.
    Refused,
}

/// The verdict on an error of the module.
pub(super) fn verdict(rv: RvError) -> Verdict {
    let row = TABLE.iter().find(|(error, _)| *error == rv);
    row.map_or(Verdict::Refused, |(_, verdict)| *verdict)
}

/// The verdict on an error of cryptoki, of the module or its own.
pub(super) fn verdict_of(error: &Error) -> Verdict {
    match error {
        Error::Pkcs11(rv, _) => verdict(*rv),
        Error::LibraryLoading(_) | Error::MissingSymbol(_) | Error::NullFunctionPointer => {
            Verdict::Module
        }
        Error::NotSupported
        | Error::TryFromInt(_)
        | Error::TryFromSlice(_)
        | Error::ParseInt(_)
        | Error::Utf8(_)
        | Error::NulError(_)
        | Error::InvalidValue
        | Error::PinNotSet => Verdict::Refused,
    }
}

/// What is not here is [`Verdict::Refused`].
const TABLE: [(RvError, Verdict); 37] = [
    (RvError::EncryptedDataInvalid, Verdict::Unverified),
    (RvError::EncryptedDataLenRange, Verdict::Unverified),
    (RvError::UnknownErrorCode(CKR_AEAD_DECRYPT_FAILED), Verdict::Unverified),
    (RvError::SignatureInvalid, Verdict::Unverified),
    (RvError::WrappedKeyInvalid, Verdict::Unverified),
    (RvError::WrappedKeyLenRange, Verdict::Unverified),
    (RvError::GeneralError, Verdict::Ambiguous),
    (RvError::FunctionFailed, Verdict::Ambiguous),
    (RvError::OperationActive, Verdict::Session),
    (RvError::OperationNotInitialized, Verdict::Session),
    (RvError::SessionClosed, Verdict::Session),
    (RvError::SessionHandleInvalid, Verdict::Session),
    (RvError::SessionCount, Verdict::Session),
    (RvError::BufferTooSmall, Verdict::Session),
    (RvError::FunctionCanceled, Verdict::Session),
    (RvError::Cancel, Verdict::Session),
    (RvError::KeyHandleInvalid, Verdict::Object),
    (RvError::ObjectHandleInvalid, Verdict::Object),
    // SoftHSM says so of an object that another thread reads anew.
    (RvError::KeyFunctionNotPermitted, Verdict::Object),
    (RvError::KeyTypeInconsistent, Verdict::Object),
    (RvError::UnwrappingKeyHandleInvalid, Verdict::Object),
    (RvError::UnwrappingKeyTypeInconsistent, Verdict::Object),
    (RvError::UserNotLoggedIn, Verdict::Login),
    // The handle of the session leads to another kind of session now.
    (RvError::SessionReadOnly, Verdict::Session),
    (RvError::RandomNoRng, Verdict::Module),
    (RvError::CantLock, Verdict::Module),
    (RvError::PinExpired, Verdict::Module),
    (RvError::SlotIdInvalid, Verdict::Module),
    (RvError::TokenNotPresent, Verdict::Module),
    (RvError::TokenNotRecognized, Verdict::Module),
    (RvError::DeviceError, Verdict::Module),
    (RvError::DeviceMemory, Verdict::Module),
    (RvError::DeviceRemoved, Verdict::Module),
    (RvError::HostMemory, Verdict::Module),
    (RvError::CryptokiNotInitialized, Verdict::Module),
    (RvError::MutexBad, Verdict::Module),
    (RvError::MutexNotLocked, Verdict::Module),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_error_stands_in_the_table_twice() {
        for (i, (error, _)) in TABLE.iter().enumerate() {
            assert!(TABLE[i + 1..].iter().all(|(other, _)| other != error), "{error:?}");
        }
    }

    #[test]
    fn only_errors_about_the_ciphertext_say_that_it_does_not_verify() {
        let unverified: Vec<_> =
            TABLE.iter().filter(|(_, verdict)| *verdict == Verdict::Unverified).collect();
        assert_eq!(unverified.len(), 6);
        assert_eq!(verdict(RvError::GeneralError), Verdict::Ambiguous);
        assert_eq!(verdict(RvError::DeviceRemoved), Verdict::Module);
        assert_eq!(verdict(RvError::MechanismInvalid), Verdict::Refused);
    }
}

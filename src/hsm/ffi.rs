//! Encrypt and decrypt by `cryptoki-sys` into buffers of our own: the only
//! unsafe code of the package.
//!
//! cryptoki 0.12 asks for the length first, which NSS answers wrongly for GCM,
//! and returns plaintext in a plain `Vec` (`facts/hsm-and-grpc.md`, A and D).
//! Here it is one Init and one call, and the plaintext lands in a `Secret`.

#![expect(unsafe_code, reason = "calls into the PKCS#11 module")]

use std::path::Path;
use std::ptr;

use cryptoki::error::{Rv, RvError};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use cryptoki_sys::{
    CK_FUNCTION_LIST, CK_GCM_PARAMS, CK_MECHANISM, CK_RV, CK_SESSION_HANDLE, CK_ULONG,
};

use super::mechanism::{CKM_SEAL, IV_BITS, IV_BYTES, TAG_BITS, TAG_BYTES};
use crate::secret::Secret;

/// The module's own encrypt and decrypt.
pub(super) struct Functions {
    encrypt_init: Init,
    encrypt: Process,
    decrypt_init: Init,
    decrypt: Process,
    // Keeps the code that the pointers lead to.
    _library: cryptoki_sys::Pkcs11,
}

type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_ULONG) -> CK_RV;
type Process =
    unsafe extern "C" fn(CK_SESSION_HANDLE, *mut u8, CK_ULONG, *mut u8, *mut CK_ULONG) -> CK_RV;

impl Functions {
    /// Of the module at `path`; loading it a second time only counts references.
    /// `None` if it is no PKCS#11 module or lacks one of the functions.
    pub(super) fn load(path: &Path) -> Option<Self> {
        // SAFETY: loading runs the module's initializers. The operator names the
        // module, and `cryptoki` has loaded the same file just before.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.ok()?;
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: the function was found in the module, and `list` is writable.
        let rv = unsafe { (library.C_GetFunctionList.as_ref().ok()?)(&raw mut list) };
        if rv != cryptoki_sys::CKR_OK || list.is_null() {
            return None;
        }
        // SAFETY: CKR_OK, so `list` points to the module's function list, which
        // lives as long as the module; it is copied, since it may be unaligned.
        let list = unsafe { list.read_unaligned() };
        Some(Self {
            encrypt_init: list.C_EncryptInit?,
            encrypt: list.C_Encrypt?,
            decrypt_init: list.C_DecryptInit?,
            decrypt: list.C_Decrypt?,
            _library: library,
        })
    }

    /// AES-GCM in the token: the ciphertext, with its tag of 16 bytes.
    ///
    /// # Errors
    /// The module's CK_RV; an operation may then be left active in the session.
    pub(super) fn seal(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &[u8; IV_BYTES],
        aad: &[u8],
        plain: &[u8],
    ) -> Result<Vec<u8>, RvError> {
        let mut sealed = vec![0; plain.len() + TAG_BYTES];
        let length =
            run((self.encrypt_init, self.encrypt), session, key, (iv, aad), plain, &mut sealed)?;
        // A length that GCM cannot have is an answer not to be trusted.
        if length == sealed.len() { Ok(sealed) } else { Err(RvError::FunctionFailed) }
    }

    /// Verifies and decrypts what `seal` made.
    ///
    /// # Errors
    /// As for `seal`; which ones mean "does not verify" is in `rv.rs`.
    pub(super) fn open(
        &self,
        session: &Session,
        key: ObjectHandle,
        iv: &[u8; IV_BYTES],
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Secret, RvError> {
        // As long as the ciphertext: SoftHSM refuses a buffer of the plaintext's length.
        let mut plain = Secret::zeroed(sealed.len());
        let length = run(
            (self.decrypt_init, self.decrypt),
            session,
            key,
            (iv, aad),
            sealed,
            plain.expose_mut(),
        )?;
        if length + TAG_BYTES != sealed.len() {
            return Err(RvError::FunctionFailed);
        }
        plain.truncate(length);
        Ok(plain)
    }
}

/// Init and the one call; returns how many bytes were written to `output`.
fn run(
    (init, process): (Init, Process),
    session: &Session,
    key: ObjectHandle,
    (iv, aad): (&[u8; IV_BYTES], &[u8]),
    input: &[u8],
    output: &mut [u8],
) -> Result<usize, RvError> {
    // The structures of PKCS#11 hold *mut pointers. The module may write to the
    // IV, so it gets a copy; AAD and input are read only (PKCS#11 2.40, 5.2).
    let mut iv = *iv;
    let mut parameters = CK_GCM_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: IV_BYTES as CK_ULONG,
        ulIvBits: IV_BITS,
        pAAD: aad.as_ptr().cast_mut(),
        ulAADLen: aad.len() as CK_ULONG,
        ulTagBits: TAG_BITS,
    };
    let mut mechanism = CK_MECHANISM {
        mechanism: CKM_SEAL,
        pParameter: (&raw mut parameters).cast(),
        ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
    };
    // SAFETY: the session is open (we hold it); mechanism, parameters, IV and AAD
    // are alive until after `process`, since a module may keep the pointers.
    checked(unsafe { init(session.handle(), &raw mut mechanism, key.handle()) })?;
    let mut length = output.len() as CK_ULONG;
    // SAFETY: `input` is readable and `output` writable for the lengths given.
    checked(unsafe {
        process(
            session.handle(),
            input.as_ptr().cast_mut(),
            input.len() as CK_ULONG,
            output.as_mut_ptr(),
            &raw mut length,
        )
    })?;
    usize::try_from(length).map_err(|_too_long| RvError::FunctionFailed)
}

fn checked(rv: CK_RV) -> Result<(), RvError> {
    match Rv::from(rv) {
        Rv::Ok => Ok(()),
        Rv::Error(error) => Err(error),
    }
}

//! A PKCS#11 module that hands everything to another one and fails on command: by any
//! CK_RV, by hanging, by being slow, by dropping sessions, by losing the token, by
//! ending the process. For tests and benchmarks; any process can load it.
//!
//! `CHAOS_PKCS11_MODULE` is the other module. `CHAOS_PKCS11_CONTROL` is the control file
//! (`layout.rs`), which may be shared by processes; without it `CHAOS_PKCS11_LATENCY_US`
//! still makes a call that slow, like a network HSM: every call of a session, or with
//! `CHAOS_PKCS11_LATENCY_OF=C_Encrypt,C_Decrypt` those alone. A real one takes a round
//! trip for C_Decrypt and none for C_DecryptInit, which its library keeps to itself.

#![allow(unsafe_code, reason = "it is a C library that calls another one")]
#![allow(non_snake_case, reason = "the functions have the names of PKCS#11")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "each is one call to a C function")]

#[allow(unreachable_pub, dead_code, reason = "the test uses the other part")]
mod layout;

use std::ffi::{c_int, c_long, c_void};
use std::fs::File;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock, RwLock};
use std::time::{Duration, Instant};

use cryptoki_sys::{
    CK_ATTRIBUTE, CK_BBOOL, CK_BYTE, CK_FLAGS, CK_FUNCTION_LIST, CK_INFO, CK_MECHANISM,
    CK_MECHANISM_INFO, CK_MECHANISM_TYPE, CK_NOTIFY, CK_OBJECT_HANDLE, CK_RV, CK_SESSION_HANDLE,
    CK_SESSION_INFO, CK_SLOT_ID, CK_TOKEN_INFO, CK_ULONG, CK_USER_TYPE, CKR_DEVICE_REMOVED,
    CKR_FUNCTION_NOT_SUPPORTED, CKR_GENERAL_ERROR, CKR_OK, CKR_TOKEN_NOT_PRESENT,
};
use layout::{
    ALWAYS, ARGUMENT, COUNTS, CRASH, DROP_SESSIONS, FUNCTIONS, HANG, HANGING, KIND, LATENCY,
    LATENCY_OF, LOSE_TOKEN, MASK, MET, NUMBER, RV, SLEEP, TIMES, WORDS,
};

/// The other module, and our list of its functions.
struct Real {
    theirs: CK_FUNCTION_LIST,
    ours: CK_FUNCTION_LIST,
    // Keeps the code that the pointers lead to.
    _library: cryptoki_sys::Pkcs11,
}

// SAFETY: it is written once, before it is shared; the pointers lead to code.
unsafe impl Send for Real {}
// SAFETY: as above.
unsafe impl Sync for Real {}

static REAL: OnceLock<Real> = OnceLock::new();
/// Held for writing while all sessions are closed: the real module does not bear that
/// a session goes while another thread is in it.
static SESSIONS: RwLock<()> = RwLock::new(());
/// The number of the command by which sessions were closed last.
static CLOSED: AtomicU64 = AtomicU64::new(0);
static CONTROL: LazyLock<&[AtomicU64; WORDS]> = LazyLock::new(control);

unsafe extern "C" {
    fn mmap(
        address: *mut c_void,
        length: usize,
        protection: c_int,
        flags: c_int,
        file: c_int,
        offset: c_long,
    ) -> *mut c_void;
}

/// The control file, or as much memory that commands nothing.
fn control() -> &'static [AtomicU64; WORDS] {
    let alone = || {
        let words: &'static [AtomicU64; WORDS] =
            Box::leak(Box::new([const { AtomicU64::new(0) }; WORDS]));
        let latency = std::env::var("CHAOS_PKCS11_LATENCY_US").ok().and_then(|us| us.parse().ok());
        words[LATENCY].store(latency.unwrap_or(0), Ordering::SeqCst);
        let names = std::env::var("CHAOS_PKCS11_LATENCY_OF").unwrap_or_default();
        let slow =
            FUNCTIONS.iter().enumerate().filter(|(_, it)| names.split(',').any(|n| n == **it));
        words[LATENCY_OF].store(slow.map(|(index, _)| 1 << index).sum(), Ordering::SeqCst);
        words
    };
    let Some(path) = std::env::var_os("CHAOS_PKCS11_CONTROL") else { return alone() };
    let file = File::options().read(true).write(true).open(&path);
    let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let length = WORDS * size_of::<AtomicU64>();
    let long = file.metadata().is_ok_and(|metadata| metadata.len() >= length as u64);
    assert!(long, "{} is no control file", path.display());
    const PROT_READ_WRITE: c_int = 3;
    const MAP_SHARED: c_int = 1;
    // SAFETY: a new mapping of a file that is long enough, as was just seen.
    let mapped =
        unsafe { mmap(ptr::null_mut(), length, PROT_READ_WRITE, MAP_SHARED, file.as_raw_fd(), 0) };
    assert!(mapped as isize != -1, "the control file cannot be mapped");
    // SAFETY: it is never unmapped, aligned to a page, and only used as atomics.
    unsafe { &*mapped.cast() }
}

/// What comes of a call before it is handed on; `Some` if it is not.
fn meet(function: usize, of_session: bool) -> Option<CK_RV> {
    let word = |word: usize| CONTROL[word].load(Ordering::SeqCst);
    CONTROL[COUNTS + function].fetch_add(1, Ordering::SeqCst);
    let (kind, number) = (word(KIND), word(NUMBER));
    if word(MASK) & (1 << function) == 0 {
        return None;
    }
    match kind {
        RV | HANG | SLEEP | CRASH if !take_one() => None,
        RV => Some(word(ARGUMENT)),
        HANG => {
            CONTROL[HANGING].fetch_add(1, Ordering::SeqCst);
            while word(NUMBER) == number {
                std::thread::sleep(Duration::from_millis(2));
            }
            CONTROL[HANGING].fetch_sub(1, Ordering::SeqCst);
            None
        }
        SLEEP => {
            std::thread::sleep(Duration::from_millis(word(ARGUMENT)));
            None
        }
        DROP_SESSIONS | LOSE_TOKEN => {
            close_all(number);
            if kind == DROP_SESSIONS {
                return None;
            }
            CONTROL[MET].fetch_add(1, Ordering::SeqCst);
            if of_session { Some(CKR_DEVICE_REMOVED) } else { without_token(function) }
        }
        CRASH => std::process::abort(),
        _calm => None,
    }
}

/// Until when this call lasts at least, on a network HSM; what the module behind takes is a
/// part of it.
fn ends(function: usize, of_session: bool) -> Option<Instant> {
    let latency = CONTROL[LATENCY].load(Ordering::SeqCst);
    if latency == 0 {
        return None;
    }
    let slow = match CONTROL[LATENCY_OF].load(Ordering::SeqCst) {
        0 => of_session,
        functions => functions & (1 << function) != 0,
    };
    slow.then(|| Instant::now() + Duration::from_micros(latency))
}

fn wait_until(end: Instant) {
    // Linux wakes a thread 50 us late otherwise: a twentieth of a millisecond.
    thread_local! {
        static PUNCTUAL: bool =
            rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).is_ok();
    }
    assert!(PUNCTUAL.with(|it| *it), "there is a slack for each thread");
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
}

/// Whether this call is one of those that the command is for.
fn take_one() -> bool {
    let one = |left: u64| match left {
        0 => None,
        ALWAYS => Some(ALWAYS),
        left => Some(left - 1),
    };
    let taken = CONTROL[TIMES].fetch_update(Ordering::SeqCst, Ordering::SeqCst, one).is_ok();
    CONTROL[MET].fetch_add(u64::from(taken), Ordering::SeqCst);
    taken
}

/// Closes all sessions, once a command.
fn close_all(number: u64) {
    let _alone = SESSIONS.write().unwrap_or_else(std::sync::PoisonError::into_inner);
    if CLOSED.swap(number, Ordering::SeqCst) == number {
        return;
    }
    CONTROL[MET].fetch_add(1, Ordering::SeqCst);
    let Some(theirs) = REAL.get().map(|real| &real.theirs) else { return };
    let (Some(list), Some(close)) = (theirs.C_GetSlotList, theirs.C_CloseAllSessions) else {
        return;
    };
    let mut slots = [0; 64];
    let mut count = slots.len() as CK_ULONG;
    // SAFETY: `slots` is as long as `count` says. Before C_Initialize it is an error.
    if unsafe { list(1, slots.as_mut_ptr(), &raw mut count) } == CKR_OK {
        for slot in &slots[..usize::try_from(count).unwrap_or(0)] {
            // SAFETY: no thread is in the module: all hold the lock for reading.
            let _closed = unsafe { close(*slot) };
        }
    }
}

/// What a module says while its token is away, of functions that need no session.
fn without_token(function: usize) -> Option<CK_RV> {
    match FUNCTIONS[function] {
        "C_Initialize" | "C_Finalize" | "C_GetInfo" => None,
        _ => Some(CKR_TOKEN_NOT_PRESENT),
    }
}

/// A wrapper for each function, in the order of `FUNCTIONS`, and the list of them.
macro_rules! wrap {
    ($($index:literal $name:ident $of_session:literal ($($arg:ident: $type:ty),*);)*) => {
        $(
            unsafe extern "C" fn $name($($arg: $type),*) -> CK_RV {
                if let Some(rv) = meet($index, $of_session) {
                    return rv;
                }
                let end = ends($index, $of_session);
                let open = SESSIONS.read().unwrap_or_else(std::sync::PoisonError::into_inner);
                let rv = match REAL.get().and_then(|real| real.theirs.$name) {
                    // SAFETY: the caller's arguments, as the caller gave them.
                    Some(theirs) => unsafe { theirs($($arg),*) },
                    None => CKR_FUNCTION_NOT_SUPPORTED,
                };
                drop(open);
                end.into_iter().for_each(wait_until);
                rv
            }
        )*

        fn wrapped(theirs: &CK_FUNCTION_LIST) -> CK_FUNCTION_LIST {
            let mut ours = *theirs;
            $(
                assert_eq!(FUNCTIONS[$index], stringify!($name));
                ours.$name = Some($name);
            )*
            ours.C_GetFunctionList = Some(C_GetFunctionList);
            ours
        }
    };
}

wrap! {
    0 C_Initialize false (args: *mut c_void);
    1 C_Finalize false (reserved: *mut c_void);
    2 C_GetInfo false (info: *mut CK_INFO);
    3 C_GetSlotList false (present: CK_BBOOL, slots: *mut CK_SLOT_ID, count: *mut CK_ULONG);
    4 C_GetTokenInfo false (slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO);
    5 C_GetMechanismList false (slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG);
    6 C_OpenSession true (slot: CK_SLOT_ID, flags: CK_FLAGS, application: *mut c_void, notify: CK_NOTIFY, session: *mut CK_SESSION_HANDLE);
    7 C_CloseSession true (session: CK_SESSION_HANDLE);
    8 C_GetSessionInfo true (session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO);
    9 C_Login true (session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: *mut CK_BYTE, length: CK_ULONG);
    10 C_CreateObject true (session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG, object: *mut CK_OBJECT_HANDLE);
    11 C_CopyObject true (session: CK_SESSION_HANDLE, from: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG, object: *mut CK_OBJECT_HANDLE);
    12 C_DestroyObject true (session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE);
    13 C_GetAttributeValue true (session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG);
    14 C_SetAttributeValue true (session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG);
    15 C_FindObjectsInit true (session: CK_SESSION_HANDLE, template: *mut CK_ATTRIBUTE, count: CK_ULONG);
    16 C_FindObjects true (session: CK_SESSION_HANDLE, objects: *mut CK_OBJECT_HANDLE, most: CK_ULONG, count: *mut CK_ULONG);
    17 C_FindObjectsFinal true (session: CK_SESSION_HANDLE);
    18 C_EncryptInit true (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
    19 C_Encrypt true (session: CK_SESSION_HANDLE, input: *mut CK_BYTE, length: CK_ULONG, output: *mut CK_BYTE, written: *mut CK_ULONG);
    20 C_DecryptInit true (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
    21 C_Decrypt true (session: CK_SESSION_HANDLE, input: *mut CK_BYTE, length: CK_ULONG, output: *mut CK_BYTE, written: *mut CK_ULONG);
    22 C_SignInit true (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, key: CK_OBJECT_HANDLE);
    23 C_Sign true (session: CK_SESSION_HANDLE, input: *mut CK_BYTE, length: CK_ULONG, output: *mut CK_BYTE, written: *mut CK_ULONG);
    24 C_GenerateKey true (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, template: *mut CK_ATTRIBUTE, count: CK_ULONG, object: *mut CK_OBJECT_HANDLE);
    25 C_GenerateKeyPair true (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, public: *mut CK_ATTRIBUTE, public_count: CK_ULONG, private: *mut CK_ATTRIBUTE, private_count: CK_ULONG, public_object: *mut CK_OBJECT_HANDLE, private_object: *mut CK_OBJECT_HANDLE);
    26 C_WrapKey true (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, with: CK_OBJECT_HANDLE, key: CK_OBJECT_HANDLE, output: *mut CK_BYTE, written: *mut CK_ULONG);
    27 C_UnwrapKey true (session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM, with: CK_OBJECT_HANDLE, input: *mut CK_BYTE, length: CK_ULONG, template: *mut CK_ATTRIBUTE, count: CK_ULONG, object: *mut CK_OBJECT_HANDLE);
    28 C_GenerateRandom true (session: CK_SESSION_HANDLE, output: *mut CK_BYTE, length: CK_ULONG);
    29 C_InitToken false (slot: CK_SLOT_ID, pin: *mut CK_BYTE, length: CK_ULONG, label: *mut CK_BYTE);
    30 C_InitPIN true (session: CK_SESSION_HANDLE, pin: *mut CK_BYTE, length: CK_ULONG);
    31 C_Logout true (session: CK_SESSION_HANDLE);
    32 C_GetMechanismInfo false (slot: CK_SLOT_ID, kind: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO);
    33 C_CloseAllSessions true (slot: CK_SLOT_ID);
}

/// The one symbol of a PKCS#11 module that must be there.
///
/// # Safety
/// `list` must be writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let Some(real) = real() else { return CKR_GENERAL_ERROR };
    // SAFETY: the caller's pointer; what it gets is not written to, though C cannot say so.
    unsafe { list.write((&raw const real.ours).cast_mut()) };
    CKR_OK
}

fn real() -> Option<&'static Real> {
    if let Some(real) = REAL.get() {
        return Some(real);
    }
    let path = std::env::var_os("CHAOS_PKCS11_MODULE")?;
    // SAFETY: whoever names the module wants its code to run.
    let library = unsafe { cryptoki_sys::Pkcs11::new(&path) }.ok()?;
    let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
    // SAFETY: the function was found in the module, and `list` is writable.
    let rv = unsafe { (library.C_GetFunctionList.as_ref().ok()?)(&raw mut list) };
    if rv != CKR_OK || list.is_null() {
        return None;
    }
    // SAFETY: CKR_OK, so it points to a list.
    let theirs = unsafe { list.read_unaligned() };
    let ours = wrapped(&theirs);
    // Before the first call, so that a mistake shows at once.
    LazyLock::force(&CONTROL);
    Some(REAL.get_or_init(|| Real { theirs, ours, _library: library }))
}

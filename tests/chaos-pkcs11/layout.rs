//! The control file of the chaos module: words of 8 bytes, in the machine's order, that
//! the module maps and a test writes and reads. What the words are, and the names that
//! both sides use.

/// The functions of PKCS#11 that are wrapped, in the order of their bits and counters.
pub const FUNCTIONS: [&str; 34] = [
    "C_Initialize",
    "C_Finalize",
    "C_GetInfo",
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_OpenSession",
    "C_CloseSession",
    "C_GetSessionInfo",
    "C_Login",
    "C_CreateObject",
    "C_CopyObject",
    "C_DestroyObject",
    "C_GetAttributeValue",
    "C_SetAttributeValue",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_EncryptInit",
    "C_Encrypt",
    "C_DecryptInit",
    "C_Decrypt",
    "C_SignInit",
    "C_Sign",
    "C_GenerateKey",
    "C_GenerateKeyPair",
    "C_WrapKey",
    "C_UnwrapKey",
    "C_GenerateRandom",
    "C_InitToken",
    "C_InitPIN",
    "C_Logout",
    "C_GetMechanismInfo",
    "C_CloseAllSessions",
];

/// What to do; the command is written before it, and read after it.
pub const KIND: usize = 0;
/// A CK_RV, or milliseconds.
pub const ARGUMENT: usize = 1;
/// For how many calls; [`ALWAYS`] until another command comes.
pub const TIMES: usize = 2;
/// Of which functions: their bits.
pub const MASK: usize = 3;
/// Another number with each command.
pub const NUMBER: usize = 4;
/// How many calls hang now.
pub const HANGING: usize = 5;
/// How many calls met the command.
pub const MET: usize = 6;
/// Microseconds that a call takes at least: a network HSM.
pub const LATENCY: usize = 7;
/// Which calls take that long: the bits of their functions; 0 for each call of a session.
pub const LATENCY_OF: usize = 8;
/// The first counter of calls.
pub const COUNTS: usize = 9;
/// Length of the file, in words.
pub const WORDS: usize = COUNTS + FUNCTIONS.len();

pub const ALWAYS: u64 = u64::MAX;

/// Hands everything on.
pub const CALM: u64 = 0;
/// Answers with the argument in place of the module.
pub const RV: u64 = 1;
/// Does not come back before another command comes.
pub const HANG: u64 = 2;
/// Comes back after so many milliseconds.
pub const SLEEP: u64 = 3;
/// Closes all sessions, and with them the login; then hands everything on.
pub const DROP_SESSIONS: u64 = 4;
/// Closes all sessions, and shows no token.
pub const LOSE_TOKEN: u64 = 5;
/// Ends the process.
pub const CRASH: u64 = 6;

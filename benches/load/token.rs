//! What the HSM costs: bare loops of C_DecryptInit and C_Decrypt in one session, as the
//! daemon's workers do it, on the daemon's token and with buffers of the same lengths. In
//! a process of its own, since SoftHSM reads its token from the environment.

#![expect(unsafe_code, reason = "calls into the PKCS#11 module")]

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::ptr;
use std::time::{Duration, Instant};

use clap::Args;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;
use cryptoki_sys::{
    CK_FUNCTION_LIST, CK_GCM_PARAMS, CK_MECHANISM, CK_RV, CK_SESSION_HANDLE, CK_ULONG, CKM_AES_GCM,
    CKR_OK,
};
use rustix::time::{ClockId, clock_gettime};

use crate::figures::{Latencies, Taken};

#[derive(Args)]
pub struct Loop {
    module: PathBuf,
    /// With the PIN.
    pin: PathBuf,
    /// CKA_ID of the root key, in hex.
    object: String,
    /// Length of a DEK, in bytes.
    dek: usize,
    /// Length of what is authenticated with it, in bytes.
    aad: usize,
}

/// What a loop calls, and with which key.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Decrypt,
    /// With a copy of the key by C_CopyObject, a session object.
    DecryptCopy,
    Encrypt,
}

impl Loop {
    /// Reads lines `KIND THREADS SECONDS`; answers each with what was taken.
    pub fn run(self) {
        let token = Token::open(&self);
        println!("ready");
        for line in std::io::stdin().lock().lines() {
            let line = line.unwrap();
            let [kind, threads, seconds] = line.split(' ').collect::<Vec<_>>()[..] else {
                panic!("{line:?} is no command");
            };
            let kind = match kind {
                "decrypt" => Kind::Decrypt,
                "decrypt_copy" => Kind::DecryptCopy,
                "encrypt" => Kind::Encrypt,
                other => panic!("{other:?} is no kind of loop"),
            };
            let time = Duration::from_secs_f64(seconds.parse().unwrap());
            let taken = token.turn(&self, (kind, threads.parse().unwrap()), time);
            println!("{}", serde_json::to_string(&taken).unwrap());
            std::io::stdout().flush().unwrap();
        }
    }
}

struct Token {
    module: Pkcs11,
    slot: cryptoki::slot::Slot,
    functions: Functions,
    /// Keeps the login.
    _session: Session,
}

impl Token {
    fn open(of: &Loop) -> Self {
        let module = Pkcs11::new(&of.module).unwrap();
        module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).unwrap();
        let slot = module.get_slots_with_initialized_token().unwrap()[0];
        let session = module.open_rw_session(slot).unwrap();
        let pin = std::fs::read_to_string(&of.pin).unwrap();
        session.login(UserType::User, Some(&AuthPin::new(pin.trim().into()))).unwrap();
        Self { slot, functions: Functions::load(&of.module), _session: session, module }
    }

    fn turn(&self, of: &Loop, (kind, threads): (Kind, usize), time: Duration) -> Taken {
        let Self { module, slot, functions, _session } = self;
        let sessions: Vec<_> =
            (0..threads).map(|_| module.open_rw_session(*slot).unwrap()).collect();
        let began = Instant::now();
        let used = std::thread::scope(|scope| {
            let turns = sessions
                .into_iter()
                .map(|session| scope.spawn(move || functions.turn(of, kind, &session, time)));
            let turns: Vec<_> = turns.collect();
            turns.into_iter().map(|turn| turn.join().unwrap()).collect::<Vec<_>>()
        });
        let seconds = began.elapsed().as_secs_f64();
        let mut all = Latencies::default();
        used.iter().for_each(|(latencies, _)| all.add(latencies));
        let cpu: u64 = used.iter().map(|(_, cpu)| cpu).sum();
        Taken::closed(&all, seconds, cpu)
    }
}

/// Nanoseconds that this thread has run.
fn thread_cpu() -> u64 {
    let ran = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(ran.tv_sec * 1_000_000_000 + ran.tv_nsec).unwrap()
}

/// As `hsm/ffi.rs` has it: one Init and one call, into a buffer of our own.
struct Functions {
    list: CK_FUNCTION_LIST,
    _library: cryptoki_sys::Pkcs11,
}

type Init = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut CK_MECHANISM, CK_ULONG) -> CK_RV;
type Process =
    unsafe extern "C" fn(CK_SESSION_HANDLE, *mut u8, CK_ULONG, *mut u8, *mut CK_ULONG) -> CK_RV;

// SAFETY: what the pointers lead to is code.
unsafe impl Sync for Functions {}

impl Functions {
    fn load(path: &Path) -> Self {
        // SAFETY: `cryptoki` has loaded the same module.
        let library = unsafe { cryptoki_sys::Pkcs11::new(path) }.unwrap();
        let mut list: *mut CK_FUNCTION_LIST = ptr::null_mut();
        // SAFETY: `list` is writable.
        let rv = unsafe { (library.C_GetFunctionList.as_ref().unwrap())(&raw mut list) };
        assert_eq!(rv, CKR_OK);
        // SAFETY: the module gave it; it may be unaligned.
        let list = unsafe { list.read_unaligned() };
        Self { list, _library: library }
    }

    /// Latencies, and CPU time in nanoseconds.
    fn turn(&self, of: &Loop, kind: Kind, session: &Session, time: Duration) -> (Latencies, u64) {
        let id = hex::decode(&of.object).unwrap();
        let template = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Id(id)];
        let found = session.find_objects(&template).unwrap();
        let [mut key] = found[..] else { panic!("there is no such object") };
        if matches!(kind, Kind::DecryptCopy) {
            key = session.copy_object(key, &[Attribute::Token(false)]).unwrap();
        }
        let (dek, aad) = (vec![1; of.dek], vec![2; of.aad]);
        let sealed = self.seal(session, key, &aad, &dek);
        let call = || match kind {
            Kind::Encrypt => assert_eq!(self.seal(session, key, &aad, &dek), sealed),
            Kind::Decrypt | Kind::DecryptCopy => {
                assert_eq!(self.open(session, key, &aad, &sealed), dek);
            }
        };
        let mut latencies = Latencies::default();
        let (end, before) = (Instant::now() + time, thread_cpu());
        let mut last = Instant::now();
        while last < end {
            call();
            let now = Instant::now();
            latencies.record(now - last);
            last = now;
        }
        (latencies, thread_cpu() - before)
    }

    fn seal(&self, session: &Session, key: ObjectHandle, aad: &[u8], plain: &[u8]) -> Vec<u8> {
        let functions = (self.list.C_EncryptInit.unwrap(), self.list.C_Encrypt.unwrap());
        run(functions, session, key, aad, plain, plain.len() + TAG)
    }

    fn open(&self, session: &Session, key: ObjectHandle, aad: &[u8], sealed: &[u8]) -> Vec<u8> {
        let functions = (self.list.C_DecryptInit.unwrap(), self.list.C_Decrypt.unwrap());
        run(functions, session, key, aad, sealed, sealed.len())
    }
}

fn run(
    (init, process): (Init, Process),
    session: &Session,
    key: ObjectHandle,
    aad: &[u8],
    input: &[u8],
    most: usize,
) -> Vec<u8> {
    let mut iv = [3_u8; 12];
    let mut parameters = CK_GCM_PARAMS {
        pIv: iv.as_mut_ptr(),
        ulIvLen: 12,
        ulIvBits: 96,
        pAAD: aad.as_ptr().cast_mut(),
        ulAADLen: aad.len() as CK_ULONG,
        ulTagBits: 8 * TAG as CK_ULONG,
    };
    let mut mechanism = CK_MECHANISM {
        mechanism: CKM_AES_GCM,
        pParameter: (&raw mut parameters).cast(),
        ulParameterLen: size_of::<CK_GCM_PARAMS>() as CK_ULONG,
    };
    let mut output = vec![0; most];
    let mut length = output.len() as CK_ULONG;
    // SAFETY: the session is open; all that is pointed to lives until after `process`.
    assert_eq!(unsafe { init(session.handle(), &raw mut mechanism, key.handle()) }, CKR_OK);
    // SAFETY: `input` is readable and `output` writable for the lengths given.
    let rv = unsafe {
        process(
            session.handle(),
            input.as_ptr().cast_mut(),
            input.len() as CK_ULONG,
            output.as_mut_ptr(),
            &raw mut length,
        )
    };
    assert_eq!(rv, CKR_OK);
    output.truncate(usize::try_from(length).unwrap());
    output
}

/// Length of a tag, in bytes.
const TAG: usize = 16;

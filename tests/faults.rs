//! The HSM fails, in every way that we could think of, while callers go on: each gets
//! the right bytes or that the HSM is away, and never that a key is missing, that it is
//! not allowed, or that a good ciphertext does not verify. What is wrong with the HSM
//! must not look like something that a caller would act on.
//!
//! The module in front of SoftHSM that fails on command: `tests/chaos-pkcs11/`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![expect(clippy::print_stdout, reason = "how much was tried says what the result is worth")]

#[path = "common/chaos.rs"]
mod chaos;
mod common;
#[path = "chaos-pkcs11/layout.rs"]
#[allow(dead_code, unreachable_pub, reason = "the module uses the other part")]
mod layout;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chaos::{Seen, report, rounds};
use common::{Client, Daemon, Refusal};
use layout::{ALWAYS, CALM, CRASH, DROP_SESSIONS, FUNCTIONS, HANG, LOSE_TOKEN, RV, SLEEP};
use rootkeyd::api::pb;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// The test's side of the control file.
struct Control {
    file: File,
    path: PathBuf,
    number: AtomicU64,
}

impl Control {
    fn new(path: PathBuf) -> Self {
        fs::write(&path, vec![0; layout::WORDS * 8]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        Self { file, path, number: AtomicU64::new(0) }
    }

    fn word(&self, word: usize) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, word as u64 * 8).unwrap();
        u64::from_ne_bytes(bytes)
    }

    fn set(&self, word: usize, value: u64) {
        self.file.write_all_at(&value.to_ne_bytes(), word as u64 * 8).unwrap();
    }

    /// What the next `times` calls of these functions meet.
    fn command(&self, functions: &[&str], (kind, argument): (u64, u64), times: u64) {
        self.set(layout::KIND, CALM);
        let bit = |name: &&str| 1_u64 << FUNCTIONS.iter().position(|it| it == name).unwrap();
        self.set(layout::MASK, functions.iter().map(bit).sum());
        self.set(layout::ARGUMENT, argument);
        self.set(layout::TIMES, times);
        self.set(layout::MET, 0);
        self.set(layout::NUMBER, self.number.fetch_add(1, Ordering::Relaxed) + 1);
        self.set(layout::KIND, kind);
    }

    /// Ends whatever was commanded; calls that hang come back.
    fn calm(&self) {
        self.command(&[], (CALM, 0), 0);
    }

    /// How many calls met the command.
    fn met(&self) -> u64 {
        self.word(layout::MET)
    }

    /// How often a function was called.
    fn calls(&self, name: &str) -> u64 {
        self.word(layout::COUNTS + FUNCTIONS.iter().position(|it| *it == name).unwrap())
    }
}

/// A daemon whose module fails on command.
fn start(settings: &str) -> (Daemon, Control) {
    let mut daemon = Daemon::start();
    daemon.terminate();
    let config = daemon.dir.join("rootkeyd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let module = text.lines().find_map(|line| line.strip_prefix("module = ")).unwrap();
    let ours = format!("module = {:?}\n{settings}", chaos_module().display().to_string());
    fs::write(daemon.dir.join("real-module"), module.trim_matches('"')).unwrap();
    fs::write(&config, text.replace(&format!("module = {module}"), &ours)).unwrap();
    let control = Control::new(daemon.dir.join("control"));
    start_again(&mut daemon, &control);
    (daemon, control)
}

fn start_again(daemon: &mut Daemon, control: &Control) {
    let mut command = daemon.by_config();
    let module = fs::read_to_string(daemon.dir.join("real-module")).unwrap();
    command.env("CHAOS_PKCS11_MODULE", module).env("CHAOS_PKCS11_CONTROL", &control.path);
    daemon.start_by(command);
}

/// Cargo builds it along with the tests.
fn chaos_module() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let built = test.parent().and_then(Path::parent).unwrap();
    let module = built.join("examples/libchaos_pkcs11.so");
    assert!(module.exists(), "cargo build --example chaos_pkcs11");
    module
}

const DEK: &[u8] = b"a dek of some length, of 40 bytes it is.";

/// A key with a ciphertext that is good and one that is not.
#[derive(Clone)]
struct Wrapped {
    key: String,
    good: Vec<u8>,
    bad: Vec<u8>,
}

impl Wrapped {
    async fn new(client: &mut Client, display_name: &str) -> Self {
        let key = client.create(display_name).await.name;
        let good = client.wrap(&key, DEK, &[b"aad"]).await.unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        Self { key, good, bad }
    }

    async fn unwraps(&self, client: &mut Client) -> bool {
        let unwrapped = client.unwrap(&self.key, &self.good, &[b"aad"]).await;
        unwrapped.is_ok_and(|unwrapped| unwrapped.dek == DEK)
    }
}

/// What the callers saw.
#[derive(Default)]
struct Book {
    answered: AtomicU64,
    refused: AtomicU64,
    /// Answers that say what is not so.
    wrong: Mutex<Vec<String>>,
    end: AtomicBool,
}

impl Book {
    /// The HSM may be away, and it may take too long; nothing else is true.
    fn refused(&self, what: &str, refusal: &Refusal) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        let away = (refusal.code, refusal.reason.as_str())
            == (Code::Unavailable, "HSM_UNAVAILABLE")
            && refusal.retry_after.is_some_and(|wait| !wait.is_zero());
        let late = refusal.reason == "DEADLINE_EXCEEDED";
        if !away && !late {
            self.wrong.lock().unwrap().push(format!("{what}: {refusal:?}"));
        }
    }

    fn is(&self, what: &str, right: bool) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        if !right {
            self.wrong.lock().unwrap().push(format!("{what}: wrong bytes"));
        }
    }
}

/// Callers who go on, whatever happens.
struct Callers {
    book: Arc<Book>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Callers {
    async fn begin(daemon: &Daemon, wrapped: &[Wrapped]) -> Self {
        let book = Arc::new(Book::default());
        let mut tasks = Vec::new();
        for number in 0..CALLERS {
            let (book, wrapped) = (Arc::clone(&book), wrapped[number % wrapped.len()].clone());
            let client = daemon.client("admin").await;
            tasks.push(tokio::spawn(call_on(client, book, wrapped)));
        }
        Self { book, tasks }
    }

    async fn end(self) -> Arc<Book> {
        self.book.end.store(true, Ordering::Relaxed);
        for task in self.tasks {
            tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap();
        }
        self.book
    }
}

/// Unwraps, wraps and unwraps that, and unwraps what is not good.
async fn call_on(mut client: Client, book: Arc<Book>, wrapped: Wrapped) {
    let mut made = wrapped.good.clone();
    while !book.end.load(Ordering::Relaxed) {
        for sealed in [&wrapped.good, &made] {
            match client.unwrap(&wrapped.key, sealed, &[b"aad"]).await {
                Ok(unwrapped) => book.is("unwrap", unwrapped.dek == DEK),
                Err(refusal) => book.refused("unwrap", &refusal),
            }
        }
        match client.wrap(&wrapped.key, DEK, &[b"aad"]).await {
            Ok(sealed) => made = sealed,
            Err(refusal) => book.refused("wrap", &refusal),
        }
        match client.unwrap(&wrapped.key, &wrapped.bad, &[b"aad"]).await {
            Ok(_unwrapped) => book.is("unwrap of what is not good", false),
            Err(refusal) if refusal.reason == "CIPHERTEXT_UNVERIFIED" => {
                book.is("unwrap of what is not good", true);
            }
            Err(refusal) => book.refused("unwrap of what is not good", &refusal),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

const CALLERS: usize = 6;
/// Keys that are disabled while the HSM is away.
const VICTIMS: usize = 4;

/// How long a fault lasts.
#[derive(Clone, Copy, Debug)]
enum Lasts {
    /// For so many calls.
    Calls(u64),
    /// For every call, for so long.
    Millis(u64),
}

/// What is tried, and with what it is tried the next time.
struct Kind {
    name: String,
    command: (u64, u64),
    ways: Vec<(&'static [&'static str], Lasts)>,
}

const CRYPT: &[&str] = &["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"];
/// What a worker calls when it gets over an error.
const LADDER: &[&str] = &[
    "C_Decrypt",
    "C_UnwrapKey",
    "C_OpenSession",
    "C_FindObjectsInit",
    "C_GetAttributeValue",
    "C_GetSessionInfo",
];
const DECRYPT: &[&str] = &["C_Decrypt"];
/// All but C_Login: what a token says of the PIN is another matter.
const EVERYTHING: &[&str] = &[
    "C_GetSlotList",
    "C_GetTokenInfo",
    "C_GetMechanismList",
    "C_OpenSession",
    "C_CloseSession",
    "C_GetSessionInfo",
    "C_GetAttributeValue",
    "C_FindObjectsInit",
    "C_FindObjects",
    "C_FindObjectsFinal",
    "C_EncryptInit",
    "C_Encrypt",
    "C_DecryptInit",
    "C_Decrypt",
    "C_SignInit",
    "C_Sign",
    "C_GenerateKeyPair",
    "C_UnwrapKey",
    "C_GenerateRandom",
];

/// The ways in which a CK_RV comes.
const WAYS: [(&[&str], Lasts); 8] = [
    (CRYPT, Lasts::Calls(1)),
    (LADDER, Lasts::Calls(5)),
    (EVERYTHING, Lasts::Millis(30)),
    (DECRYPT, Lasts::Calls(2)),
    (CRYPT, Lasts::Millis(30)),
    (DECRYPT, Lasts::Calls(3)),
    (LADDER, Lasts::Millis(30)),
    (EVERYTHING, Lasts::Calls(9)),
];

macro_rules! ckr {
    ($($name:ident),* $(,)?) => { [$((stringify!($name), cryptoki_sys::$name)),*] };
}

/// The table of `hsm/rv.rs`, and some that are not in it.
const CKR: [(&str, u64); 45] = ckr![
    CKR_ENCRYPTED_DATA_INVALID,
    CKR_ENCRYPTED_DATA_LEN_RANGE,
    CKR_AEAD_DECRYPT_FAILED,
    CKR_SIGNATURE_INVALID,
    CKR_WRAPPED_KEY_INVALID,
    CKR_WRAPPED_KEY_LEN_RANGE,
    CKR_GENERAL_ERROR,
    CKR_FUNCTION_FAILED,
    CKR_OPERATION_ACTIVE,
    CKR_OPERATION_NOT_INITIALIZED,
    CKR_SESSION_CLOSED,
    CKR_SESSION_HANDLE_INVALID,
    CKR_SESSION_COUNT,
    CKR_SESSION_READ_ONLY,
    CKR_BUFFER_TOO_SMALL,
    CKR_FUNCTION_CANCELED,
    CKR_CANCEL,
    CKR_KEY_HANDLE_INVALID,
    CKR_OBJECT_HANDLE_INVALID,
    CKR_KEY_FUNCTION_NOT_PERMITTED,
    CKR_KEY_TYPE_INCONSISTENT,
    CKR_UNWRAPPING_KEY_HANDLE_INVALID,
    CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT,
    CKR_USER_NOT_LOGGED_IN,
    CKR_RANDOM_NO_RNG,
    CKR_CANT_LOCK,
    CKR_PIN_EXPIRED,
    CKR_SLOT_ID_INVALID,
    CKR_TOKEN_NOT_PRESENT,
    CKR_TOKEN_NOT_RECOGNIZED,
    CKR_DEVICE_ERROR,
    CKR_DEVICE_MEMORY,
    CKR_DEVICE_REMOVED,
    CKR_HOST_MEMORY,
    CKR_CRYPTOKI_NOT_INITIALIZED,
    CKR_MUTEX_BAD,
    CKR_MUTEX_NOT_LOCKED,
    // Not in the table.
    CKR_ARGUMENTS_BAD,
    CKR_FUNCTION_NOT_SUPPORTED,
    CKR_MECHANISM_INVALID,
    CKR_ATTRIBUTE_TYPE_INVALID,
    CKR_ATTRIBUTE_SENSITIVE,
    CKR_DATA_LEN_RANGE,
    CKR_PIN_INCORRECT,
    CKR_VENDOR_DEFINED,
];

fn kinds() -> Vec<Kind> {
    let mut kinds: Vec<Kind> = CKR
        .iter()
        .enumerate()
        .map(|(i, (name, rv))| {
            let mut ways = WAYS.to_vec();
            // So that the first way is another one for each.
            ways.rotate_left(i % WAYS.len());
            Kind { name: (*name).into(), command: (RV, *rv), ways }
        })
        .collect();
    let others: [(&str, (u64, u64), &[_]); 6] = [
        ("a call hangs", (HANG, 0), &[(DECRYPT, Lasts::Calls(1))]),
        ("all calls hang", (HANG, 0), &[(EVERYTHING, Lasts::Millis(1500))]),
        ("all calls are slow", (SLEEP, 30), &[(CRYPT, Lasts::Millis(400))]),
        ("some calls are very slow", (SLEEP, 1500), &[(CRYPT, Lasts::Calls(3))]),
        ("sessions are dropped", (DROP_SESSIONS, 0), &[(CRYPT, Lasts::Millis(30))]),
        ("the token is lost", (LOSE_TOKEN, 0), &[(EVERYTHING, Lasts::Millis(200))]),
    ];
    kinds.extend(others.into_iter().map(|(name, command, ways)| Kind {
        name: name.into(),
        command,
        ways: ways.to_vec(),
    }));
    kinds
}

#[test]
fn every_ckr_of_the_table_is_tried() {
    let code = fs::read_to_string("src/hsm/rv.rs").unwrap();
    let table = code.split("const TABLE").nth(1).unwrap().split("];").next().unwrap();
    let names = table.split("(RvError::").skip(1).map(|rest| rest.split(',').next().unwrap());
    let mut count = 0;
    for name in names.filter(|name| !name.starts_with("UnknownErrorCode")) {
        let mut ckr = String::from("CKR");
        for letter in name.chars() {
            if letter.is_uppercase() {
                ckr.push('_');
            }
            ckr.push(letter.to_ascii_uppercase());
        }
        assert!(CKR.iter().any(|(known, _)| *known == ckr), "{ckr}");
        count += 1;
    }
    assert!(count > 30, "{count}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_every_fault_an_answer_is_right_or_says_that_the_hsm_is_away() {
    under_every_fault("HSM", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_every_fault_the_same_holds_of_keys_that_are_kept_wrapped() {
    // One session object and three keys: they are unwrapped again and again.
    let settings = "\nresidency = \"wrapped\"\nsession_objects = 1";
    under_every_fault("HSM, wrapped keys", settings).await;
}

async fn under_every_fault(title: &str, settings: &str) {
    let (daemon, control) = start(&format!("workers = 4\nstuck_seconds = 1{settings}"));
    let mut client = daemon.client("admin").await;
    let mut wrapped = Vec::new();
    for number in 0..3 {
        wrapped.push(Wrapped::new(&mut client, &format!("volumes {number}")).await);
    }
    let mut victims = Vec::new();
    for number in 0..VICTIMS {
        victims.push(client.create(&format!("to be disabled {number}")).await.name);
    }
    let logins = control.calls("C_Login");
    let callers = Callers::begin(&daemon, &wrapped).await;
    let book = &callers.book;
    println!(
        "fault\trounds\tcalls that met it\tright\trefused\tlongest until the next success\tin all"
    );
    let mut errors = Seen::default();
    for Kind { name, command, ways } in kinds() {
        let count = rounds(if command.0 == RV { 1 } else { 2 }, 100);
        let refused = book.refused.load(Ordering::Relaxed);
        let answered = book.answered.load(Ordering::Relaxed);
        let (began, mut met, mut longest) = (Instant::now(), 0, Duration::ZERO);
        for round in 0..count {
            let (functions, lasts) = ways[usize::try_from(round).unwrap() % ways.len()];
            begin(&daemon, &control, (functions, command, lasts)).await;
            if command.0 == LOSE_TOKEN || lasts_long(lasts) {
                // Readiness says so, and what needs no HSM goes on.
                daemon.until("still ready", async || !is_ready(&client).await).await;
                if let Some(victim) = victims.pop() {
                    client.disable(&victim).await.unwrap();
                }
            }
            met += control.met();
            control.calm();
            let over = Instant::now();
            let (mut probe, first) = (client.clone(), &wrapped[0]);
            daemon.until("no success", async || first.unwraps(&mut probe).await).await;
            longest = longest.max(over.elapsed());
        }
        let refused = book.refused.load(Ordering::Relaxed) - refused;
        let answered = book.answered.load(Ordering::Relaxed) - answered;
        let took = began.elapsed();
        println!("{name}\t{count}\t{met}\t{answered}\t{refused}\t{longest:?}\t{took:?}");
        let wrong = book.wrong.lock().unwrap();
        let row = Seen { faults: count, checked: answered + refused, ..Seen::default() };
        let row = Seen { wrong: wrong.len() as u64, ..row };
        if command.0 == RV {
            let Seen { faults, checked, wrong, .. } = row;
            errors.faults += faults;
            errors.checked += checked;
            errors.wrong = wrong;
        } else {
            report(&format!("{title}: {name}"), row);
        }
        assert!(wrong.is_empty(), "{name}: {} of them: {:#?}", wrong.len(), &wrong[..1]);
    }
    report(&format!("{title}: {} CK_RVs", CKR.len()), errors);
    daemon.until("not ready", async || is_ready(&client).await).await;
    let book = callers.end().await;
    for wrapped in &wrapped {
        assert!(wrapped.unwraps(&mut client).await);
    }
    let status = client.hsm_status().await;
    assert_eq!((status.missing, status.orphans), (0, 0), "{status:?}");
    assert_eq!(control.calls("C_SetAttributeValue"), 0);
    assert!(book.answered.load(Ordering::Relaxed) > 0 && book.refused.load(Ordering::Relaxed) > 0);
    assert!(victims.is_empty());
    println!("{} logins, all with the right PIN", control.calls("C_Login") - logins);
}

/// Commands a fault, and waits until it was met, and is over or has lasted.
async fn begin(
    daemon: &Daemon,
    control: &Control,
    (functions, command, lasts): (&[&str], (u64, u64), Lasts),
) {
    match lasts {
        Lasts::Calls(times) => {
            control.command(functions, command, times);
            let began = Instant::now();
            // Of calls that are refused before they come so far, not all may be made.
            let met = async || {
                control.word(layout::TIMES) == 0
                    || (control.met() > 0 && began.elapsed() > Duration::from_millis(200))
            };
            daemon.until("not met", met).await;
        }
        Lasts::Millis(millis) => {
            control.command(functions, command, ALWAYS);
            daemon.until("not met", async || control.met() > 0).await;
            tokio::time::sleep(Duration::from_millis(millis)).await;
        }
    }
}

/// Long enough that the daemon must give the HSM up.
fn lasts_long(lasts: Lasts) -> bool {
    matches!(lasts, Lasts::Millis(1000..))
}

async fn is_ready(client: &Client) -> bool {
    let request = HealthCheckRequest { service: String::new() };
    let response = HealthClient::new(client.channel.clone()).check(request).await.unwrap();
    response.into_inner().status() == ServingStatus::Serving
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_whoever_wants_to_log_in() {
    try_wrong_pins("workers = 2", 1).await;
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_by_however_many_worker_processes() {
    try_wrong_pins("workers = 3\nisolation = \"process\"", 3).await;
}

/// `logins` are needed once the PIN is right again.
async fn try_wrong_pins(settings: &str, logins: u64) {
    let (daemon, control) = start(settings);
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    let right = fs::read(daemon.dir.join("pin")).unwrap();
    let mut tried = control.calls("C_Login");
    for wrong in ["wrong-one", "another wrong"] {
        write_pin(&daemon.dir, wrong.as_bytes());
        // The first time it is a worker that lost its login, then the start of the module.
        control.command(CRYPT, (DROP_SESSIONS, 0), ALWAYS);
        let mut probe = client.clone();
        let refused = async || {
            assert!(!wrapped.unwraps(&mut probe).await || control.met() == 0);
            control.calls("C_Login") > tried
                && probe.hsm_status().await.problem.contains("refused the PIN")
        };
        daemon.until("the login is not tried", refused).await;
        tried += 1;
        // As long as the longest pause between two starts, and as many calls.
        for _ in 0..30 {
            assert!(!wrapped.unwraps(&mut client).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(control.calls("C_Login"), tried, "{wrong}: not tried just once");
        control.calm();
    }
    write_pin(&daemon.dir, &right);
    let mut probe = client.clone();
    daemon.until("the right PIN is not tried", async || wrapped.unwraps(&mut probe).await).await;
    let all = async || control.calls("C_Login") == tried + logins;
    daemon.until("not all have logged in", all).await;
    assert!(!daemon.logged().contains("wrong-one"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_crashes_in_a_worker_process_costs_its_calls_alone() {
    let (mut daemon, control) = start("workers = 2\nisolation = \"process\"");
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    let callers = Callers::begin(&daemon, std::slice::from_ref(&wrapped)).await;
    let crashes = chaos::rounds(10, 100);
    for _ in 0..crashes {
        control.command(DECRYPT, (CRASH, 0), 1);
        let mut probe = client.clone();
        daemon.until("no module crashed", async || control.met() > 0).await;
        control.calm();
        let back = async || wrapped.unwraps(&mut probe).await;
        daemon.until("it does not come back", back).await;
    }
    let book = callers.end().await;
    assert_eq!(*book.wrong.lock().unwrap(), [""; 0]);
    let checked = book.answered.load(Ordering::Relaxed);
    chaos::report(
        "module crashes in a worker process",
        Seen { faults: crashes, checked, ..Seen::default() },
    );
    assert!(checked > crashes && daemon.is_running());
    assert!(book.refused.load(Ordering::Relaxed) > 0, "no call met a crash");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_crashes_as_a_worker_process_begins_is_begun_again() {
    let (daemon, control) = start("workers = 1\nisolation = \"process\"");
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    // The first by a call, the others by the canary.
    control.command(DECRYPT, (CRASH, 0), 3);
    daemon
        .until("it does not come back", async || {
            wrapped.unwraps(&mut client).await && control.met() == 3
        })
        .await;
}

/// Whole or not at all: a PIN that is half written would be a wrong one.
fn write_pin(dir: &Path, pin: &[u8]) {
    fs::write(dir.join("pin.new"), pin).unwrap();
    fs::rename(dir.join("pin.new"), dir.join("pin")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_that_hangs_holds_no_other_up() {
    let (daemon, control) = start("workers = 4\nstuck_seconds = 60");
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    let before = latencies(&daemon, &wrapped).await;
    control.command(DECRYPT, (HANG, 0), 1);
    let hanging = tokio::spawn({
        let (mut client, wrapped) = (client.clone(), wrapped.clone());
        async move { wrapped.unwraps(&mut client).await }
    });
    daemon.until("no call hangs", async || control.word(layout::HANGING) == 1).await;
    let meanwhile = latencies(&daemon, &wrapped).await;
    assert_eq!(control.word(layout::HANGING), 1);
    control.calm();
    // It was in time after all, and is right.
    assert!(hanging.await.unwrap());
    let p99 = |latencies: &[Duration]| latencies[latencies.len() * 99 / 100];
    let ratio = p99(&meanwhile).as_secs_f64() / p99(&before).as_secs_f64();
    println!(
        "p99 of an unwrap: {:?}; while one of 4 sessions hangs: {:?}; {ratio:.2} times",
        p99(&before),
        p99(&meanwhile)
    );
}

/// How long unwraps take, the shortest first; every one must succeed.
async fn latencies(daemon: &Daemon, wrapped: &Wrapped) -> Vec<Duration> {
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let (mut client, wrapped) = (daemon.client("admin").await, wrapped.clone());
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            for _ in 0..rounds(150, 3000) {
                let began = Instant::now();
                assert!(wrapped.unwraps(&mut client).await);
                latencies.push(began.elapsed());
            }
            latencies
        }));
    }
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_given_up_and_comes_back_late_answers_nobody() {
    let (daemon, control) = start("workers = 2\nstuck_seconds = 1");
    let mut client = daemon.client("admin").await;
    let wrapped = Wrapped::new(&mut client, "volumes").await;
    for round in 1..=2 {
        let refused = loop {
            control.command(DECRYPT, (HANG, 0), 1);
            match client.unwrap(&wrapped.key, &wrapped.good, &[b"aad"]).await {
                Err(refused) => break refused,
                // It was a probe that met it.
                Ok(_unwrapped) => control.calm(),
            }
        };
        assert_eq!((refused.code, refused.reason.as_str()), (Code::Unavailable, "HSM_UNAVAILABLE"));
        assert_eq!(control.word(layout::HANGING), 1, "round {round}");
        assert!(wrapped.unwraps(&mut client).await, "not replaced");
        let decrypted = control.calls("C_Decrypt");
        control.calm();
        daemon.until("it hangs", async || control.word(layout::HANGING) == 0).await;
        assert!(wrapped.unwraps(&mut client).await);
        // Ours and probes; the one that came back does nothing more.
        assert!(control.calls("C_Decrypt") > decrypted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_ends_the_daemon_loses_nothing_that_was_acknowledged() {
    let (mut daemon, control) = start("workers = 2");
    let mut acknowledged: Vec<Wrapped> = Vec::new();
    let count = rounds(2, 100);
    for round in 0..count {
        let mut client = daemon.client("admin").await;
        let known = Wrapped::new(&mut client, &format!("of round {round}")).await;
        let (sender, mut made) = tokio::sync::mpsc::unbounded_channel();
        let maker = tokio::spawn({
            let mut client = daemon.client("admin").await;
            async move {
                let new = || pb::Key { display_name: "made".into(), ..pb::Key::default() };
                loop {
                    let request = pb::CreateKeyRequest {
                        parent: "instances/default".into(),
                        key: Some(new()),
                        ..pb::CreateKeyRequest::default()
                    };
                    let Ok(key) = client.keys.create_key(request).await else { return };
                    let key = key.into_inner().name;
                    let request = pb::WrapDekRequest {
                        key: key.clone(),
                        dek: DEK.to_vec(),
                        aad: vec![b"aad".to_vec()],
                        ..pb::WrapDekRequest::default()
                    };
                    let Ok(good) = client.crypto.wrap_dek(request).await else { return };
                    let good = good.into_inner().wrapped_dek.to_vec();
                    if sender.send(Wrapped { key, good, bad: Vec::new() }).is_err() {
                        return;
                    }
                }
            }
        });
        let first = made.recv().await.unwrap();
        let functions: &[&str] = [&["C_Decrypt"], &["C_GenerateKey"], &["C_Encrypt"]]
            [usize::try_from(round).unwrap() % 3];
        control.command(functions, (CRASH, 0), 1);
        maker.await.unwrap();
        acknowledged.extend([known, first]);
        while let Some(wrapped) = made.recv().await {
            acknowledged.push(wrapped);
        }
        daemon.until("it did not end", async || true).await;
        while daemon.is_running() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        control.calm();
        start_again(&mut daemon, &control);
    }
    let mut client = daemon.client("admin").await;
    for wrapped in &acknowledged {
        assert!(wrapped.unwraps(&mut client).await, "{} is lost", wrapped.key);
    }
    let checked = acknowledged.len() as u64;
    report("HSM: the module ends the daemon", Seen { faults: count, checked, ..Seen::default() });
    let status = client.hsm_status().await;
    assert_eq!(status.missing, 0, "{status:?}");
}

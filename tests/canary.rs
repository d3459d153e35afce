//! No DEK and no PIN is in any file, log or output: the daemon does all that it
//! can do, at log level TRACE, and then every byte that it left is searched.
//!
//! Searched for are fragments of 12 bytes (8 in a list of numbers), so that a part
//! of a secret is found too, as raw bytes and in the forms in which programs print
//! them. Root keys and TLS keys are not searched for: the first never leave the
//! HSM (`src/hsm/tests.rs`), the second are files of their own.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use common::{Client, Daemon, items, refusal, unwrap_request};
use prost_types::FieldMask;
use rootkeyd::api::pb;
use rootkeyd::api::pb::unwrap_dek_result::Outcome;
use tonic::{Code, Status};

/// What must be nowhere.
struct Secret {
    name: String,
    bytes: Vec<u8>,
    /// The one file that may hold it.
    home: Option<PathBuf>,
}

impl Secret {
    fn new(name: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), bytes: bytes.into(), home: None }
    }
}

/// Something that was found where it must not be.
#[derive(Debug, Eq, PartialEq)]
struct Hit {
    place: String,
    offset: usize,
    secret: String,
    form: &'static str,
}

/// A text that gives a secret away.
struct Needle {
    text: Vec<u8>,
    secret: usize,
    form: &'static str,
}

/// Searches for all the needles of all the secrets at once.
struct Search<'a> {
    secrets: &'a [Secret],
    needles: Vec<Needle>,
    /// Needles by their first bytes; for most places the first two say enough.
    by_start: HashMap<[u8; START], Vec<usize>>,
    pairs: Vec<bool>,
}

impl<'a> Search<'a> {
    fn new(secrets: &'a [Secret]) -> Self {
        let (mut needles, mut seen) = (Vec::new(), HashSet::new());
        for (secret, Secret { name, bytes, .. }) in secrets.iter().enumerate() {
            assert!(bytes.len() >= FRAGMENT, "{name} is too short to be searched for");
            for (form, text) in forms(bytes) {
                if seen.insert(text.clone()) {
                    needles.push(Needle { text, secret, form });
                }
            }
        }
        let mut by_start = HashMap::<_, Vec<usize>>::new();
        let mut pairs = vec![false; 1 << 16];
        for (number, Needle { text, .. }) in needles.iter().enumerate() {
            by_start.entry(*text.first_chunk().unwrap()).or_default().push(number);
            pairs[pair(text)] = true;
        }
        Self { secrets, needles, by_start, pairs }
    }

    /// What is in `bytes`, once for each secret and form.
    fn bytes(&self, place: &str, bytes: &[u8]) -> Vec<Hit> {
        let (mut hits, mut seen) = (Vec::new(), HashSet::new());
        for (offset, window) in bytes.windows(START).enumerate() {
            if !self.pairs[pair(window)] {
                continue;
            }
            for number in self.by_start.get(window).into_iter().flatten() {
                let Needle { text, secret, form } = &self.needles[*number];
                let Secret { name, home, .. } = &self.secrets[*secret];
                let at_home = home.as_ref().is_some_and(|home| home == Path::new(place));
                if bytes[offset..].starts_with(text) && !at_home && seen.insert((secret, form)) {
                    hits.push(Hit { place: place.into(), offset, secret: name.clone(), form });
                }
            }
        }
        hits
    }

    /// What is in the files below `directory`, and how many bytes were searched.
    fn files(&self, directory: &Path) -> (Vec<Hit>, usize) {
        let (mut hits, mut searched) = (Vec::new(), 0);
        let mut left = vec![directory.to_owned()];
        while let Some(path) = left.pop() {
            if path.is_dir() {
                left.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
                continue;
            }
            // A file that is gone meanwhile, such as SQLite's own, holds nothing.
            let Ok(bytes) = fs::read(&path) else { continue };
            searched += bytes.len();
            hits.extend(self.bytes(&path.display().to_string(), &bytes));
        }
        (hits, searched)
    }
}

fn pair(text: &[u8]) -> usize {
    usize::from(text[0]) << 8 | usize::from(text[1])
}

/// Every fragment of a secret in every form, with the form's name.
fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let mut found = Vec::new();
    for fragment in secret.windows(FRAGMENT) {
        found.push(("raw", fragment.to_vec()));
        found.push(("hex", hex::encode(fragment).into()));
        found.push(("upper-case hex", hex::encode_upper(fragment).into()));
        // Inside of a longer text a fragment begins at one of three places of a
        // group of 4 letters; here always at the first, and whole groups follow.
        found.push(("base64", STANDARD_NO_PAD.encode(fragment).into()));
        found.push(("url-safe base64", URL_SAFE_NO_PAD.encode(fragment).into()));
        found.push(("escaped", fragment.escape_ascii().to_string().into()));
        let bytes = format!("{:?}", Bytes::copy_from_slice(fragment));
        found.push(("Bytes", bytes[2..bytes.len() - 1].into()));
    }
    for fragment in secret.windows(LISTED) {
        let list = |print: &dyn Fn(u8) -> String, between: &str| {
            let numbers: Vec<_> = fragment.iter().map(|byte| print(*byte)).collect();
            numbers.join(between).into_bytes()
        };
        found.push(("list", list(&|byte| byte.to_string(), ", ")));
        found.push(("dense list", list(&|byte| byte.to_string(), ",")));
        found.push(("list of hex", list(&|byte| format!("{byte:02x}"), ", ")));
        found.push(("list of short hex", list(&|byte| format!("{byte:x}"), ", ")));
        found.push(("list of 0x", list(&|byte| format!("{byte:#04x}"), ", ")));
        found.push(("spaced hex", list(&|byte| format!("{byte:02x}"), " ")));
        found.push(("colons", list(&|byte| format!("{byte:02x}"), ":")));
    }
    found
}

/// Bytes of a fragment; a multiple of 3, which base64 makes whole groups of.
const FRAGMENT: usize = 12;
/// Bytes of a wrapped DEK before the IV (`docs/ciphertext-format.md`).
const IDS: usize = 37;
/// Bytes of a fragment in a list of numbers.
const LISTED: usize = 8;
/// Bytes of a needle that it is found by: every needle is as long.
const START: usize = 8;

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_search_finds_what_is_planted() {
    let secret = random::<48>();
    let secrets = [Secret::new("dek", secret)];
    let search = Search::new(&secrets);
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let numbers = |part: &[u8]| format!("{part:?}").into_bytes();
    let upper: Vec<u8> = hex::encode_upper(secret).into();
    let mut planted: Vec<(&str, Vec<u8>)> = vec![
        ("raw", secret.to_vec()),
        ("raw", secret[17..29].to_vec()),
        ("hex", hex::encode(secret).into()),
        ("hex", hex::encode(&secret[3..15]).into()),
        ("upper-case hex", upper),
        ("list", numbers(&secret)),
        ("list", numbers(&secret[40..])),
        ("dense list", serde_json::to_vec(&secret[..]).unwrap()),
        ("list of hex", format!("{secret:02x?}").into()),
        ("list of short hex", format!("{secret:x?}").into()),
        ("list of 0x", format!("{secret:#04x?}").replace(",\n    ", ", ").into()),
        ("escaped", secret.escape_ascii().to_string().into()),
        ("Bytes", format!("{:?}", Bytes::copy_from_slice(&secret)).into()),
    ];
    // In base64 at each of the three alignments.
    for before in 0..3 {
        let text = [&b"xy"[..before], &secret, b"z"].concat();
        planted.push(("base64", STANDARD_NO_PAD.encode(&text).into()));
        planted.push(("url-safe base64", URL_SAFE_NO_PAD.encode(&text).into()));
    }
    let hidden = directory.path().join("some/where");
    fs::create_dir_all(&hidden).unwrap();
    for (number, (form, text)) in planted.iter().enumerate() {
        let around = [&b"2024-01-01 TRACE h2: "[..], text, b" and so on\n"].concat();
        for path in [hidden.join(format!("file {number}")), log.clone()] {
            let mut file = fs::File::options().create(true).append(true).open(&path).unwrap();
            file.write_all(b"DEBUG rootkeyd: nothing here\n").unwrap();
            file.write_all(&around).unwrap();
            let (hits, _) = search.files(directory.path());
            let place = path.display().to_string();
            // By whatever name: some forms print some bytes alike.
            let found = hits.iter().any(|hit| hit.place == place);
            assert!(found, "{form} was not found in {place}: {hits:?}");
            fs::remove_file(path).unwrap();
        }
        assert!(!search.bytes("standard output", &around).is_empty());
    }
    let offset = search.bytes("x", &[&[0; 100][..], &secret].concat())[0].offset;
    assert_eq!(offset, 100);
}

#[test]
fn the_search_finds_nothing_where_nothing_is() {
    let secrets = [Secret::new("dek", random::<48>()), Secret::new("pin", *b"0123456789ab")];
    let search = Search::new(&secrets);
    let directory = tempfile::tempdir().unwrap();
    let dek = &secrets[0].bytes;
    let harmless = [&random::<4096>()[..], &dek[..11], b"0123456789a", &dek[20..31]].concat();
    fs::write(directory.path().join("file"), &harmless).unwrap();
    assert_eq!(search.files(directory.path()), (Vec::new(), harmless.len()));
}

#[tokio::test]
async fn no_dek_and_no_pin_is_in_any_file_log_or_output() {
    let mut daemon = Daemon::start_with_env(&[("ROOTKEYD_LOG", "trace")]);
    let resource = format!("crn:v1:{}", hex::encode(random::<16>()));
    let used = Used { dek: random(), aad: random(), resource };
    let pin_file = daemon.dir.join("pin");
    let pin = fs::read(&pin_file).unwrap();
    let home = Some(pin_file);
    let mut secrets = vec![
        Secret::new("the DEK", used.dek),
        Secret::new("the AAD", used.aad),
        Secret { name: "the PIN".into(), bytes: pin, home },
    ];

    let mut admin = daemon.client("admin").await;
    let kept = use_deks(&mut admin, &used, &mut secrets).await;
    be_refused(&mut admin, &used, &kept).await;
    live(&daemon, &mut admin, &used).await;
    lose_the_hsm(&daemon, &mut admin, &used, &kept).await;
    let mut printed = output_of_rootkeyctl(&daemon, &used.dek);

    let search = Search::new(&secrets);
    let (mut hits, _) = search.files(&daemon.dir);
    daemon.stop().await;
    let (after, searched) = search.files(&daemon.dir);
    hits.extend(after);
    printed.push(("standard output of rootkeyd".into(), daemon.printed()));
    for (place, bytes) in &printed {
        hits.extend(search.bytes(place, bytes));
    }
    assert_searched_what_there_is(&daemon, &used);
    eprintln!("{} secrets, {} needles, {searched} bytes", secrets.len(), search.needles.len());
    for Hit { place, offset, secret, form } in &hits {
        eprintln!("{secret} is in {place} at {offset} as {form}: {}", around(place, *offset));
    }
    assert!(hits.is_empty(), "{} hits", hits.len());
}

/// A search of a log that is not at TRACE, or not in the files that are written,
/// would prove nothing: what may be there is.
fn assert_searched_what_there_is(daemon: &Daemon, used: &Used) {
    let logged = daemon.logged();
    for line in ["TRACE h2::", "DEBUG rustls::", "INFO rootkeyd::"] {
        assert!(logged.contains(line), "nothing in the log of {line}");
    }
    let harmless = [Secret::new("the resource", used.resource.as_bytes())];
    let (hits, _) = Search::new(&harmless).files(&daemon.dir);
    assert!(hits.iter().any(|hit| hit.place.contains("/audit/")), "{hits:?}");
}

/// The beginning of the line that a hit is in: it names who logged it.
fn around(place: &str, offset: usize) -> String {
    let bytes = fs::read(place).unwrap_or_default();
    let before = &bytes[..offset.min(bytes.len())];
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let line = &before[start..];
    line[..line.len().min(160)].escape_ascii().to_string()
}

/// What the calls carry. The resource may be known: it is for the audit log.
struct Used {
    dek: [u8; 48],
    aad: [u8; 24],
    resource: String,
}

impl Used {
    fn wrap(&self, key: &str) -> pb::WrapDekRequest {
        let (key, dek, aad) = (key.into(), self.dek.to_vec(), items(&[&self.aad]));
        pb::WrapDekRequest { register: None, key, dek, aad, resource: self.resource.clone() }
    }

    /// A DEK of so many bytes, any part of which is a part of the DEK.
    fn long_dek(&self, length: usize) -> Vec<u8> {
        self.dek.iter().copied().cycle().take(length).collect()
    }
}

/// Every method of CryptoService, with what succeeds; the key's name and the
/// wrapped DEK. What was generated is a secret too.
async fn use_deks(
    client: &mut Client,
    used: &Used,
    secrets: &mut Vec<Secret>,
) -> (String, Vec<u8>) {
    let key = client.create("volumes").await.name;
    let wrapped = client.crypto.wrap_dek(used.wrap(&key)).await.unwrap().into_inner();
    let wrapped = wrapped.wrapped_dek.to_vec();
    // IV, ciphertext and tag; what is before them are ids.
    secrets.push(Secret::new("the wrapped DEK", &wrapped[IDS..]));
    for size_bytes in [16, 0, 512] {
        for wrapped_only in [false, true] {
            let request = pb::GenerateDekRequest {
                register: None,
                key: key.clone(),
                size_bytes,
                aad: items(&[&used.aad]),
                resource: String::new(),
                wrapped_only,
            };
            let made = client.crypto.generate_dek(request).await.unwrap().into_inner();
            let unwrapped = client.unwrap(&key, &made.wrapped_dek, &[&used.aad]).await.unwrap();
            let name = format!("a generated DEK of {} bytes", unwrapped.dek.len());
            secrets.push(Secret::new(name, unwrapped.dek));
        }
    }
    let of_long = client.wrap(&key, &used.long_dek(7500), &[]).await.unwrap();
    client.rotate(&key).await.unwrap();
    for (wrapped, aad) in [(&wrapped, &[&used.aad[..]][..]), (&of_long, &[])] {
        let unwrapped = client.unwrap(&key, wrapped, aad).await.unwrap();
        assert!(!unwrapped.rewrapped_dek.is_empty());
        let request = pb::RewrapDekRequest {
            key: key.clone(),
            wrapped_dek: wrapped.clone(),
            aad: items(aad),
            resource: String::new(),
        };
        client.crypto.rewrap_dek(request).await.unwrap();
    }
    let one = unwrap_request(&key, &wrapped, &[&used.aad]);
    let spoilt = unwrap_request(&key, &wrapped, &[b"wrong"]);
    let requests: Vec<_> = (0..200).flat_map(|_| [one.clone(), spoilt.clone()]).collect();
    let batch = pb::BatchUnwrapDeksRequest { requests: requests.clone() };
    let batch = client.crypto.batch_unwrap_deks(batch).await.unwrap().into_inner();
    assert!(
        matches!(&batch.results[0].outcome, Some(Outcome::Response(r)) if r.dek == used.dek[..])
    );
    let stream = requests.into_iter().map(Some).zip(0..);
    let stream = stream.map(|(request, id)| pb::StreamUnwrapDeksRequest { id, request });
    let stream = client.crypto.stream_unwrap_deks(tokio_stream::iter(stream.collect::<Vec<_>>()));
    let mut answers = stream.await.unwrap().into_inner();
    let mut count = 0;
    while answers.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 400);
    (key, wrapped)
}

/// Calls with the DEK that are refused, each for another reason.
async fn be_refused(admin: &mut Client, used: &Used, (key, wrapped): &(String, Vec<u8>)) {
    let suspended = admin.create("suspended").await.name;
    let of_suspended = admin.wrap(&suspended, &used.dek, &[]).await.unwrap();
    admin.disable(&suspended).await.unwrap();
    let unwrap = admin.unwrap(&suspended, &of_suspended, &[]).await;
    assert_eq!(unwrap.unwrap_err().reason, "KEY_SUSPENDED");
    let unwrap = admin.unwrap(key, wrapped, &[b"another aad"]).await;
    assert_eq!(unwrap.unwrap_err().reason, "CIPHERTEXT_UNVERIFIED");
    let unwrap = admin.unwrap(key, &of_suspended, &[]).await;
    assert_eq!(unwrap.unwrap_err().reason, "CIPHERTEXT_UNVERIFIED");

    let missing = "instances/default/keys/00000000-0000-4000-8000-000000000000";
    let of = |key: &str| used.wrap(key);
    let too_long = pb::WrapDekRequest { dek: used.long_dek(7501), ..of(key) };
    let long_aad = pb::WrapDekRequest { aad: vec![vec![0; 256]], ..of(key) };
    let bad_resource = pb::WrapDekRequest { resource: "\n".repeat(5000), ..of(key) };
    let cases = [
        (too_long, "FIELD_INVALID"),
        (long_aad, "FIELD_INVALID"),
        (bad_resource, "FIELD_INVALID"),
        (of("nonsense"), "FIELD_INVALID"),
        (of(&suspended), "KEY_SUSPENDED"),
        (of(missing), "KEY_NOT_FOUND"),
        (of("instances/elsewhere/keys/volumes"), "PERMISSION_DENIED"),
    ];
    for (request, reason) in cases {
        let refused = admin.crypto.wrap_dek(request).await.unwrap_err();
        assert_eq!(refusal(refused).reason, reason);
    }
    let mut late = tonic::Request::new(of(key));
    late.set_timeout(std::time::Duration::from_micros(1));
    let late: Result<_, Status> = admin.crypto.wrap_dek(late).await;
    assert!(late.is_err(), "answered within a microsecond");
    // More than a message may hold.
    let enormous = pb::WrapDekRequest { dek: used.long_dek(17 << 20), ..of(key) };
    let refused = admin.crypto.wrap_dek(enormous).await.unwrap_err();
    assert_ne!(refused.code(), Code::Ok);
}

/// The life of a key: every method of the other services.
async fn live(daemon: &Daemon, admin: &mut Client, used: &Used) {
    let key = admin.create("to be deleted").await;
    let name = key.name.clone();
    let wrapped = admin.wrap(&name, &used.dek, &[]).await.unwrap();
    let parent = "instances/default".to_owned();
    let list = pb::ListKeysRequest { parent: parent.clone(), ..Default::default() };
    admin.keys.list_keys(list).await.unwrap();
    let versions = pb::ListKeyVersionsRequest { parent: name.clone(), ..Default::default() };
    admin.keys.list_key_versions(versions).await.unwrap();
    let update = pb::UpdateKeyRequest {
        key: Some(pb::Key { display_name: "renamed".into(), ..key }),
        update_mask: Some(FieldMask { paths: vec!["display_name".into()] }),
    };
    admin.keys.update_key(update).await.unwrap();
    admin.get(&name).await.unwrap();
    admin.rotate(&name).await.unwrap();
    admin.disable(&name).await.unwrap();
    daemon.set_clock("+31s");
    admin.enable(&name).await.unwrap();
    // Some of these are not there yet, or refused; all of them are called.
    let import = pb::ImportKeyRequest { parent: parent.clone(), ..Default::default() };
    let _ = admin.keys.import_key(import).await;
    let _ =
        admin.keys.set_key_for_deletion(pb::SetKeyForDeletionRequest { name: name.clone() }).await;
    let unset = pb::UnsetKeyForDeletionRequest { name: name.clone() };
    let _ = admin.keys.unset_key_for_deletion(unset).await;
    admin.delete(&name).await.unwrap();
    let unwrap = admin.unwrap(&name, &wrapped, &[]).await;
    assert_eq!(unwrap.unwrap_err().reason, "KEY_DESTROYED");
    let _ = admin.restore(&name).await;
    let _ = admin.keys.purge_key(pb::PurgeKeyRequest { name }).await;
    assert!(admin.audit_events().await.len() > 50);
    admin.admin.get_server_info(pb::GetServerInfoRequest {}).await.unwrap();
    admin.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await.unwrap();
}

/// The HSM goes and comes back, so that the PIN is given again; and a wrong PIN,
/// part of the right one, is tried.
async fn lose_the_hsm(
    daemon: &Daemon,
    admin: &mut Client,
    used: &Used,
    (key, wrapped): &(String, Vec<u8>),
) {
    let (tokens, pulled) = (daemon.dir.join("tokens"), daemon.dir.join("pulled"));
    let (pin, put_by) = (daemon.dir.join("pin"), daemon.dir.join("pin.put-by"));
    fs::rename(&tokens, &pulled).unwrap();
    fs::create_dir(&tokens).unwrap();
    let mut probe = admin.clone();
    let lost = async || probe.wrap(key, &used.dek, &[]).await.is_err();
    daemon.until("the loss is not noticed", lost).await;
    // The right PIN behind another byte: no part of it may be in a message.
    let right = fs::read(&pin).unwrap();
    fs::rename(&pin, &put_by).unwrap();
    fs::write(&pin, [b"x", &right[..]].concat()).unwrap();
    fs::remove_dir(&tokens).unwrap();
    fs::rename(&pulled, &tokens).unwrap();
    let mut probe = admin.clone();
    let refused = async || {
        let status = probe.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await.unwrap();
        status.into_inner().problem.contains("PIN")
    };
    daemon.until("the wrong PIN is not tried", refused).await;
    fs::rename(&put_by, &pin).unwrap();
    let mut probe = admin.clone();
    let back = async || probe.unwrap(key, wrapped, &[&used.aad]).await.is_ok();
    daemon.until("the HSM does not come back", back).await;
}

/// What `rootkeyctl` prints where it is not asked for a DEK, on both outputs.
/// Commands that handle a DEK are added here.
fn output_of_rootkeyctl(daemon: &Daemon, dek: &[u8]) -> Vec<(String, Vec<u8>)> {
    // Not in the daemon's directory: that a DEK is where one asked it to be is fine.
    let aside = tempfile::tempdir().unwrap();
    let file = |name: &str| aside.path().join(name).display().to_string();
    fs::write(file("dek"), dek).unwrap();
    fs::write(file("text"), [dek, b"and more"].concat()).unwrap();
    let wrap = |input: &str, out: &str| {
        let words = ["wrap", "cli", "--in", &file(input), "--out", &file(out)];
        words.map(str::to_owned).to_vec()
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let commands: Vec<(Vec<String>, bool)> = vec![
        (words("key create --name cli --alias cli"), true),
        (wrap("dek", "wrapped"), true),
        ([words("--output json"), wrap("dek", "wrapped again")].concat(), true),
        (words(&format!("unwrap cli --in {} --out {}", file("wrapped"), file("dek2"))), true),
        (words(&format!("rewrap cli --in {} --out {}", file("wrapped"), file("re"))), true),
        (words(&format!("generate cli --wrapped {} --wrapped-only", file("made"))), true),
        // Not a wrapped DEK but a DEK; not a format; not a key; a DEK for an argument.
        (words(&format!("unwrap cli --in {} --out {}", file("dek"), file("none"))), false),
        (
            words(&format!(
                "wrap cli --in {} --dek-format hex --out {}",
                file("dek"),
                file("none")
            )),
            false,
        ),
        (
            words(&format!(
                "wrap cli --in {} --dek-format base64 --out {}",
                file("dek"),
                file("none")
            )),
            false,
        ),
        (words(&format!("wrap nobody --in {} --out {}", file("dek"), file("none"))), false),
        (words(&format!("decrypt {} --out {}", file("text"), file("none"))), false),
        (words(&format!("batch-unwrap --in {} --out {}", file("dek"), file("none"))), false),
        (words(&format!("encrypt --key cli {} --out {}", file("text"), file("text.rk"))), true),
        (words(&format!("decrypt {} --out {}", file("text.rk"), file("text2"))), true),
        (words("audit list"), true),
        (words("key list"), true),
        (words("doctor"), true),
    ];
    let mut printed = Vec::new();
    for (arguments, succeeds) in commands {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let Output { status, stdout, stderr } =
            daemon.cli(&arguments).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert_eq!(status.success(), succeeds, "{arguments:?}: {said}");
        printed.push((format!("output of {arguments:?}"), stdout));
        printed.push((format!("error of {arguments:?}"), stderr));
    }
    assert_eq!(fs::read(file("dek2")).unwrap(), dek);
    printed
}

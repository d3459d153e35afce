//! No DEK and no PIN is in any file, log or output, in any usual form; and the
//! search that says so finds what is planted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use common::{Client, Daemon, refusal, unwrap_request};
use rootkeyd::api::pb;

/// A secret, and every form in which it could have got somewhere.
struct Canary {
    name: &'static str,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Canary {
    fn new(name: &'static str, secret: &[u8]) -> Self {
        let mut forms = Vec::new();
        // A part betrays as much as the whole, and survives more.
        for part in secret.windows(FRAGMENT) {
            forms.push(("raw", part.to_vec()));
        }
        let hex = hex::encode(secret);
        for part in hex.as_bytes().windows(2 * FRAGMENT).step_by(2) {
            forms.push(("hex", part.to_vec()));
            forms.push(("HEX", part.to_ascii_uppercase()));
        }
        // Where base64 begins is not known: three ways to cut, without the ends,
        // which depend on what is beside them.
        for skip in 0..3 {
            let inner = &secret[skip..];
            let inner = &inner[..inner.len() / 3 * 3];
            forms.push(("base64", STANDARD_NO_PAD.encode(inner).into_bytes()));
            forms.push(("base64url", URL_SAFE_NO_PAD.encode(inner).into_bytes()));
        }
        for part in secret.windows(8) {
            let numbers: Vec<_> = part.iter().map(u8::to_string).collect();
            forms.push(("decimal", numbers.join(", ").into_bytes()));
            forms.push(("decimal", numbers.join(",").into_bytes()));
        }
        let escaped: Vec<u8> =
            secret.iter().flat_map(|byte| std::ascii::escape_default(*byte)).collect();
        forms.push(("escaped", escaped));
        Self { name, forms }
    }
}

/// Every place where a canary is, in words.
fn search(canaries: &[Canary], places: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut found = Vec::new();
    for (place, bytes) in places {
        for Canary { name, forms } in canaries {
            for (form, wanted) in forms {
                if let Some(offset) = memchr::memmem::find(bytes, wanted) {
                    found.push(format!("{name} as {form} in {place} at {offset}"));
                    break;
                }
            }
        }
    }
    found
}

/// Every file below `folder` but those, with its bytes.
fn files(folder: &Path, but: &[PathBuf]) -> Vec<(String, Vec<u8>)> {
    let mut places = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if but.contains(&path) {
            continue;
        }
        if path.is_dir() {
            places.extend(files(&path, but));
        } else {
            places.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    places
}

/// Random bytes, of which no part is likely to be anywhere by chance.
fn secret(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

/// Every method, and every way in which it can be refused with a DEK at hand.
/// Returns the DEKs that the daemon made.
async fn use_everything(daemon: &Daemon, client: &mut Client, dek: &[u8]) -> Vec<Vec<u8>> {
    let key = client.create("volumes").await.name;
    let wrapped = client.wrap(&key, dek, &[b"aad"]).await.unwrap();
    assert_eq!(client.unwrap(&key, &wrapped, &[b"aad"]).await.unwrap().dek, dek);
    assert!(client.unwrap(&key, &wrapped, &[b"other"]).await.is_err());
    let too_long = [dek, &vec![0; 7500]].concat();
    assert!(client.wrap(&key, &too_long, &[]).await.is_err());
    assert!(client.wrap("nonsense", dek, &[]).await.is_err());
    assert!(client.wrap("instances/elsewhere/keys/none", dek, &[]).await.is_err());
    assert!(client.wrap(&key, dek, &[&[0; 256]]).await.is_err());
    client.rotate(&key).await.unwrap();
    assert!(!client.unwrap(&key, &wrapped, &[b"aad"]).await.unwrap().rewrapped_dek.is_empty());
    let rewrap = pb::RewrapDekRequest {
        key: key.clone(),
        wrapped_dek: wrapped.clone(),
        aad: vec![b"aad".to_vec()],
        resource: String::new(),
    };
    client.crypto.rewrap_dek(rewrap).await.unwrap();
    let requests = vec![unwrap_request(&key, &wrapped, &[b"aad"]); 3];
    let batch = pb::BatchUnwrapDeksRequest { requests: requests.clone() };
    client.crypto.batch_unwrap_deks(batch).await.unwrap();
    let stream = requests
        .into_iter()
        .zip(0..)
        .map(|(request, id)| pb::StreamUnwrapDeksRequest { id, request: Some(request) });
    let stream = tokio_stream::iter(stream.collect::<Vec<_>>());
    let mut answers = client.crypto.stream_unwrap_deks(stream).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
    let generate = pb::GenerateDekRequest { key: key.clone(), ..Default::default() };
    let generated = client.crypto.generate_dek(generate).await.unwrap().into_inner().dek;

    client.disable(&key).await.unwrap();
    assert!(client.wrap(&key, dek, &[]).await.is_err());
    assert!(client.unwrap(&key, &wrapped, &[b"aad"]).await.is_err());
    daemon.set_clock("+31s");
    client.enable(&key).await.unwrap();
    let import = pb::ImportKeyRequest { parent: "instances/default".into(), ..Default::default() };
    assert_eq!(refusal(client.keys.import_key(import).await.unwrap_err()).reason, "UNIMPLEMENTED");
    client.get(&key).await.unwrap();
    let list = pb::ListKeysRequest { parent: "instances/default".into(), ..Default::default() };
    client.keys.list_keys(list).await.unwrap();
    client.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await.unwrap();
    client.audit_events().await;
    client.delete(&key).await.unwrap();
    assert!(client.restore(&key).await.is_err());
    vec![generated.to_vec()]
}

/// What `rootkeyctl` prints of everything but a DEK that it is told to print.
fn outputs_of_the_cli(daemon: &Daemon, dek: &[u8]) -> Vec<(String, Vec<u8>)> {
    let outside = tempfile::tempdir().unwrap();
    let path = |name: &str| outside.path().join(name).display().to_string();
    fs::write(path("dek"), dek).unwrap();
    let commands: [&[&str]; 9] = [
        &["key", "create", "--name", "Files", "--alias", "files"],
        &["wrap", "files", "--in", &path("dek"), "--out", &path("wrapped")],
        &["unwrap", "files", "--in", &path("wrapped"), "--out", &path("unwrapped")],
        // The DEK where a wrapped one should be, and in the wrong encoding.
        &["unwrap", "files", "--in", &path("dek"), "--out", &path("no")],
        &["wrap", "files", "--in", &path("dek"), "--out", &path("no"), "--dek-format", "hex"],
        &["encrypt", &path("dek"), "--key", "files"],
        &["decrypt", &path("dek.rk"), "--out", &path("decrypted")],
        &["audit", "list"],
        &["doctor"],
    ];
    let mut outputs = Vec::new();
    for arguments in commands {
        let output = daemon.cli(arguments).output().unwrap();
        outputs.push((format!("stdout of {arguments:?}"), output.stdout));
        outputs.push((format!("stderr of {arguments:?}"), output.stderr));
    }
    assert_eq!(fs::read(path("unwrapped")).unwrap(), dek);
    assert_eq!(fs::read(path("decrypted")).unwrap(), dek);
    outputs.push(("the encrypted file".into(), fs::read(path("dek.rk")).unwrap()));
    outputs
}

#[tokio::test]
async fn no_dek_and_no_pin_is_in_any_file_log_or_output() {
    let temporary = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::start_logging(&temporary.path().join("dev"), "trace");
    let mut client = daemon.client("admin").await;
    let dek = secret(48);
    let generated = use_everything(&daemon, &mut client, &dek).await;
    let pin_file = daemon.dir.join("pin");
    let pin = fs::read(&pin_file).unwrap();
    let mut canaries = vec![Canary::new("the DEK", &dek), Canary::new("the PIN", &pin)];
    canaries.extend(generated.iter().map(|dek| Canary::new("the generated DEK", dek)));

    let mut places = outputs_of_the_cli(&daemon, &dek);
    places.extend(files(&daemon.dir, std::slice::from_ref(&pin_file)));
    assert_eq!(search(&canaries, &places), Vec::<String>::new(), "while it runs");
    drop(client);
    daemon.stop().await;
    let places = files(&daemon.dir, &[pin_file]);
    assert_eq!(search(&canaries, &places), Vec::<String>::new(), "after it has stopped");
    let log = daemon.logged();
    assert!(log.contains("TRACE") && places.len() > 20, "it looked at too little");
}

#[test]
fn the_search_finds_what_is_planted() {
    let dek = secret(48);
    let canaries = [Canary::new("the DEK", &dek)];
    let around = |text: Vec<u8>| [b"before ".as_slice(), &text, b" after"].concat();
    let planted = [
        ("raw", dek.clone()),
        ("a part", dek[20..20 + FRAGMENT].to_vec()),
        ("hex", hex::encode(&dek).into_bytes()),
        ("HEX", hex::encode_upper(&dek).into_bytes()),
        ("Rust's Debug", format!("{dek:?}").into_bytes()),
        ("JSON", serde_json::to_vec(&dek).unwrap()),
        ("base64", STANDARD_NO_PAD.encode(&dek).into_bytes()),
        ("base64 of more", STANDARD_NO_PAD.encode([b"x", &dek[..], b"yz"].concat()).into_bytes()),
        ("base64 of other", URL_SAFE_NO_PAD.encode([b"xy", &dek[..]].concat()).into_bytes()),
        ("bytes' Debug", format!("{:?}", bytes::Bytes::from(dek.clone())).into_bytes()),
    ];
    let temporary = tempfile::tempdir().unwrap();
    for (form, bytes) in planted {
        let file = temporary.path().join("planted");
        fs::write(&file, around(bytes)).unwrap();
        let found = search(&canaries, &files(temporary.path(), &[]));
        assert_eq!(found.len(), 1, "{form} was not found");
    }
    fs::write(temporary.path().join("planted"), secret(5000)).unwrap();
    assert!(search(&canaries, &files(temporary.path(), &[])).is_empty());
}

#[tokio::test]
async fn a_dek_that_is_in_the_daemons_log_would_be_found() {
    let temporary = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_logging(&temporary.path().join("dev"), "trace");
    let canaries = [Canary::new("the key's name", b"a name that is logged, as names may be")];
    // An alias is not secret, and is in the store: the search goes where a DEK would be.
    let mut client = daemon.client("admin").await;
    client.create("a name that is logged, as names may be").await;
    let found = search(&canaries, &files(&daemon.dir, &[]));
    assert!(found.iter().any(|place| place.contains("store.sqlite")), "{found:?}");
    // Where nothing may be written by others: /proc shows no argument either.
    let arguments = fs::read(format!("/proc/{}/cmdline", daemon.pid())).unwrap();
    let pin = fs::read(daemon.dir.join("pin")).unwrap();
    assert!(search(&[Canary::new("the PIN", &pin)], &[("arguments".into(), arguments)]).is_empty());
    let environment = Command::new("cat").arg(format!("/proc/{}/environ", daemon.pid())).output();
    let environment = environment.unwrap().stdout;
    assert!(
        search(&[Canary::new("the PIN", &pin)], &[("environment".into(), environment)]).is_empty()
    );
}

/// Bytes that are a betrayal if they are found together.
const FRAGMENT: usize = 12;

//! The proof that the audit log was not changed: checkpoints by the HSM, exports that
//! verify without the daemon, and what the daemon does when its log was cut.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Client, Daemon, refusal};
use rootkeyd::api::pb;

/// Checkpoints by themselves only every so many records.
const EVERY: &str = "[audit]\ncheckpoint_records = 20\ncheckpoint_seconds = 3600\n";
/// Only at a clean stop, or if one is asked for.
const SELDOM: &str = "[audit]\ncheckpoint_records = 1000000\ncheckpoint_seconds = 3600\n";

fn with(table: &str) -> Daemon {
    Daemon::start_edited(|config| configured(&config, table))
}

/// Before the bindings, which are tables of the same level.
fn configured(config: &str, table: &str) -> String {
    config.replacen("[hsm]", &format!("{table}\n[hsm]"), 1)
}

/// A daemon that was killed before it could make any checkpoint.
fn with_none_yet() -> Daemon {
    let mut daemon = Daemon::start();
    daemon.kill();
    assert!(!audit(&daemon).join("checkpoints").exists());
    let path = daemon.dir.join("rootkeyd.toml");
    fs::write(&path, configured(&fs::read_to_string(&path).unwrap(), SELDOM)).unwrap();
    daemon
}

fn audit(daemon: &Daemon) -> PathBuf {
    daemon.dir.join("state/audit")
}

/// Some records; the name of the key.
async fn work(client: &mut Client, count: usize) -> String {
    let key = client.create("volumes").await.name;
    for _ in 0..count {
        client.wrap(&key, b"dek", &[]).await.unwrap();
    }
    key
}

async fn checkpoint(client: &mut Client, fresh: bool) -> pb::Checkpoint {
    client.audit.get_checkpoint(pb::GetCheckpointRequest { fresh }).await.unwrap().into_inner()
}

async fn exported(client: &mut Client, first_sequence: u64) -> Vec<u8> {
    let request = pb::ExportAuditLogRequest { first_sequence };
    let mut parts = client.audit.export_audit_log(request).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await.unwrap() {
        bytes.extend_from_slice(&part.chunk);
    }
    bytes
}

/// `rootkeyctl audit verify` with nothing of the daemon: its stdout, or its stderr.
fn verify(dir: &Path, export: &[u8], key: &str, later: &[&str]) -> Result<String, String> {
    let path = |name: &str| dir.join(name);
    fs::write(path("export"), export).unwrap();
    fs::write(path("key.pem"), key).unwrap();
    let mut command = Command::new(common::CLI);
    command.args(["--output", "json", "audit", "verify"]).arg(path("export"));
    command.arg("--key").arg(path("key.pem")).env_remove("ROOTKEYCTL_CONFIG");
    for (number, note) in later.iter().enumerate() {
        let file = path(&format!("later-{number}"));
        fs::write(&file, note).unwrap();
        command.arg("--checkpoint").arg(file);
    }
    let ended = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    match ended.status.code() {
        Some(0) => Ok(text(ended.stdout)),
        Some(1) => Err(text(ended.stderr)),
        other => panic!("{other:?} {}", text(ended.stderr)),
    }
}

/// Start and end of each item of an export of the whole log; whether it is a record.
fn items(export: &[u8]) -> Vec<(usize, usize, bool)> {
    let (mut at, mut items) = (48, Vec::new());
    while at < export.len() {
        let number = |bytes: &[u8]| bytes.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
        let record = export[at] == b'r';
        let size = if record {
            1 + 4 + number(&export[at + 1..at + 5]) + 36
        } else {
            3 + number(&export[at + 1..at + 3])
        };
        items.push((at, at + size, record));
        at += size;
    }
    items
}

/// What the daemon says when it does not start.
fn refuses_to_start(daemon: &Daemon) -> String {
    let mut command = daemon.dev();
    let ended = command.stdin(Stdio::null()).output().unwrap();
    assert!(!ended.status.success(), "it started");
    String::from_utf8(ended.stderr).unwrap()
}

#[tokio::test]
async fn an_export_verifies_offline_from_its_beginning_and_from_any_record() {
    let daemon = with(EVERY);
    let mut client = daemon.client("admin").await;
    work(&mut client, 90).await;
    let key = checkpoint(&mut client, true).await.public_key;
    let whole = exported(&mut client, 0).await;
    let said = verify(&daemon.dir, &whole, &key, &[]).unwrap();
    assert!(said.contains("\"first\": 1,"), "{said}");
    assert!(items(&whole).iter().filter(|item| !item.2).count() > 2);
    // The key that the daemon has on disk is the same.
    assert_eq!(fs::read_to_string(audit(&daemon).join("signer.pem")).unwrap(), key);
    for first in [2, 21, 50, 91] {
        let part = exported(&mut client, first).await;
        let said = verify(&daemon.dir, &part, &key, &[]).unwrap();
        assert!(said.contains(&format!("\"first\": {first},")), "{said}");
    }
    let request = pb::ExportAuditLogRequest { first_sequence: 1_000_000 };
    let refused = refusal(client.audit.export_audit_log(request).await.unwrap_err());
    assert_eq!(refused.metadata["field"], "first_sequence");
}

#[tokio::test]
async fn an_edit_deletion_insertion_reordering_and_a_cut_tail_are_found() {
    let daemon = with(EVERY);
    let mut client = daemon.client("admin").await;
    work(&mut client, 60).await;
    let export = exported(&mut client, 0).await;
    let newest = checkpoint(&mut client, true).await;
    let (key, dir) = (newest.public_key.as_str(), &daemon.dir);
    let items = items(&export);
    let item = |n: usize| &export[items[n].0..items[n].1];
    let head = &export[..48];
    let join = |parts: &[&[u8]]| [head, &parts.concat()].concat();
    let (before, after) = (&export[48..items[10].0], &export[items[12].1..]);
    let mut edited = export.clone();
    edited[items[10].0 + 40] ^= 1;
    let cases = [
        ("edit", edited),
        ("deletion", join(&[before, item(10), after])),
        ("insertion", join(&[before, item(10), item(5), item(11), item(12), after])),
        ("reordering", join(&[before, item(11), item(10), item(12), after])),
    ];
    assert!(verify(dir, &export, key, &[]).is_ok());
    for (what, changed) in cases {
        let said = verify(dir, &changed, key, &[]).unwrap_err();
        assert!(said.starts_with("AUDIT_UNVERIFIED: "), "{what}: {said}");
    }
    // A cut at a checkpoint is a valid, shorter log, unless one knows better.
    let middle = items.iter().position(|item| !item.2).unwrap();
    let cut = &export[..items[middle].1];
    assert!(verify(dir, cut, key, &[]).is_ok());
    let said = verify(dir, cut, key, &[&newest.note]).unwrap_err();
    assert!(said.contains("the tail is cut"), "{said}");
    // The daemon's own file of checkpoints is as good.
    let all = fs::read_to_string(audit(&daemon).join("checkpoints")).unwrap();
    assert!(verify(dir, cut, key, &[&all]).unwrap_err().contains("the tail is cut"));
    // And another key's signatures are none.
    let other = with(SELDOM);
    let mut stranger = other.client("admin").await;
    let other_key = checkpoint(&mut stranger, true).await.public_key;
    assert!(verify(dir, &export, &other_key, &[]).unwrap_err().contains("not signed"));
}

#[tokio::test]
async fn a_clean_stop_covers_every_record_and_a_cut_of_the_last_segment_refuses_to_start() {
    let mut daemon = with(SELDOM);
    let mut client = daemon.client("admin").await;
    work(&mut client, 10).await;
    daemon.stop().await;
    let segment = audit(&daemon).join("00000000000000000001.log");
    let whole = fs::read(&segment).unwrap();
    let records = rootkeyd::audit::verify(&audit(&daemon)).unwrap().records;
    let checkpoints = fs::read_to_string(audit(&daemon).join("checkpoints")).unwrap();
    let newest = checkpoints.lines().rev().nth(8).unwrap();
    assert_eq!(newest, records.to_string());

    // Exactly one record less: a valid log, by itself.
    let last = u32::from_be_bytes(*whole.last_chunk().unwrap()) as usize + 40;
    fs::write(&segment, &whole[..whole.len() - last]).unwrap();
    assert!(rootkeyd::audit::verify(&audit(&daemon)).is_ok());
    let said = refuses_to_start(&daemon);
    assert!(said.contains("the tail of the log is missing"), "{said}");
    assert!(said.contains(&format!("{records} records are signed")), "{said}");
    assert!(said.contains(&format!("the log has {}", records - 1)), "{said}");

    fs::write(&segment, &whole).unwrap();
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    let key = checkpoint(&mut client, true).await.public_key;
    let export = exported(&mut client, 0).await;
    verify(&daemon.dir, &export, &key, &[&checkpoints]).unwrap();
}

#[tokio::test]
async fn a_witness_that_knows_more_than_the_log_refuses_to_start() {
    let elsewhere = tempfile::tempdir().unwrap();
    let witness = elsewhere.path().join("witness");
    let mut daemon = with(&format!("{SELDOM}witness = {:?}\n", witness.display().to_string()));
    let mut client = daemon.client("admin").await;
    work(&mut client, 3).await;
    daemon.stop().await;
    // The daemon's whole state is put back to what it was.
    let old = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &Path| {
        for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    copy(&audit(&daemon), old.path());
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    work(&mut client, 3).await;
    daemon.stop().await;
    let newest = rootkeyd::audit::verify(&audit(&daemon)).unwrap().records;
    copy(old.path(), &audit(&daemon));
    let said = refuses_to_start(&daemon);
    assert!(said.contains("the tail of the log is missing"), "{said}");
    assert!(said.contains(&format!("{newest} records are signed")), "{said}");
    assert!(said.contains("witness"), "{said}");
}

#[tokio::test]
async fn a_crash_between_the_name_of_the_signer_and_the_signer_is_harmless() {
    let mut daemon = with_none_yet();
    // As it is after a crash in between: a name, and no such object.
    fs::remove_file(audit(&daemon).join("signer.pem")).unwrap();
    let id = "0b8a9f52-43a1-4a5c-9c0c-1e1f2f3a4b5c\n";
    fs::write(audit(&daemon).join("signer"), id).unwrap();
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    work(&mut client, 1).await;
    let made = checkpoint(&mut client, true).await;
    assert!(made.size > 0);
    assert_eq!(fs::read_to_string(audit(&daemon).join("signer")).unwrap(), id);
    daemon.stop().await;
    // From now on that is the signer: without it nothing starts.
    let other = "0b8a9f52-43a1-4a5c-9c0c-000000000000\n";
    fs::write(audit(&daemon).join("signer"), other).unwrap();
    let said = refuses_to_start(&daemon);
    assert!(said.contains("does not show the key that signs"), "{said}");
    assert!(said.contains("restore the token"), "{said}");
    fs::remove_file(audit(&daemon).join("signer")).unwrap();
    let said = refuses_to_start(&daemon);
    assert!(said.contains("the file that names their signer is missing"), "{said}");
    fs::write(audit(&daemon).join("signer"), id).unwrap();
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    assert_eq!(checkpoint(&mut client, true).await.public_key, made.public_key);
}

#[tokio::test]
async fn the_signer_is_no_orphan_and_one_that_nobody_knows_is() {
    let mut daemon = with_none_yet();
    daemon.start_again();
    let status = |mut client: Client| async move {
        let status = client.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await.unwrap();
        status.into_inner().orphans
    };
    assert_eq!(status(daemon.client("admin").await).await, 0);
    daemon.kill();
    let id = "0b8a9f52-43a1-4a5c-9c0c-1e1f2f3a4b5c\n";
    fs::write(audit(&daemon).join("signer"), id).unwrap();
    daemon.start_again();
    assert_eq!(status(daemon.client("admin").await).await, 1);
}

/// Sequence numbers and resume token of the next `count` records.
async fn watched(client: &mut Client, from: &str, key: &str, count: usize) -> (Vec<u64>, String) {
    let request = pb::WatchAuditEventsRequest {
        parent: "instances/default".into(),
        key: key.into(),
        resume_token: from.into(),
    };
    let mut records = client.audit.watch_audit_events(request).await.unwrap().into_inner();
    let (mut seen, mut token) = (Vec::new(), from.to_owned());
    while seen.len() < count {
        let told = records.message().await.unwrap().unwrap();
        seen.push(told.audit_event.unwrap().sequence);
        token = told.resume_token;
    }
    (seen, token)
}

#[tokio::test]
async fn a_watch_goes_on_where_it_ended_without_gap_or_duplicate_over_a_restart_too() {
    let mut daemon = with(EVERY);
    let mut client = daemon.client("admin").await;
    let key = work(&mut client, 30).await;
    let (mut seen, mut token) = watched(&mut client, "0", "", 7).await;
    for count in [1, 12, 4] {
        let (more, next) = watched(&mut client, &token, "", count).await;
        (seen, token) = ([seen, more].concat(), next);
    }
    daemon.stop().await;
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    client.wrap(&key, b"dek", &[]).await.unwrap();
    let last = client.audit_events().await[0].sequence;
    let left = usize::try_from(last).unwrap() - seen.len();
    let (more, token) = watched(&mut client, &token, "", left).await;
    seen.extend(more);
    // Each record of the log is of this instance but those of the daemon and of checkpoints.
    let all = client.audit_events().await;
    let expected: Vec<_> = all.iter().rev().map(|event| event.sequence).collect();
    assert_eq!(seen, expected[..seen.len()]);

    // It waits for what comes, and tells of one key alone if asked.
    let waiting = tokio::spawn({
        let (mut client, token, key) = (client.clone(), token.clone(), key.clone());
        async move { watched(&mut client, &token, &key, 1).await.0 }
    });
    client.create("other").await;
    client.wrap(&key, b"dek", &[]).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap().unwrap();
    let events = client.audit_events().await;
    let event = events.iter().find(|event| event.sequence == told[0]).unwrap();
    assert_eq!((event.subject.as_str(), event.action.as_str()), (key.as_str(), "kms.secrets.wrap"));

    for (resume_token, field) in [("x", "resume_token"), ("999999", "resume_token")] {
        let parent = "instances/default".into();
        let request = pb::WatchAuditEventsRequest {
            parent,
            resume_token: resume_token.into(),
            key: "".into(),
        };
        let refused = refusal(client.audit.watch_audit_events(request).await.unwrap_err());
        assert_eq!(refused.metadata["field"], field);
    }
}

#[tokio::test]
async fn a_watch_that_waits_does_not_hold_up_the_stop_and_ends_well() {
    let mut daemon = with(SELDOM);
    let mut client = daemon.client("admin").await;
    let request =
        pb::WatchAuditEventsRequest { parent: "instances/default".into(), ..Default::default() };
    let mut records = client.audit.watch_audit_events(request).await.unwrap().into_inner();
    // The record of its own opening.
    let first = records.message().await.unwrap().unwrap().audit_event.unwrap();
    assert_eq!(first.action, "rootkeyd.audit.watch");
    daemon.stop().await;
    assert!(records.message().await.unwrap().is_none());
    assert!(!daemon.logged().contains("not done in time"), "{}", daemon.logged());
}

#[tokio::test]
async fn export_is_for_operators_and_the_rest_for_managers() {
    let daemon = with(SELDOM);
    let mut admin = daemon.client("admin").await;
    work(&mut admin, 1).await;
    // The officer is a Manager, and no operator.
    let mut officer = daemon.client("officer").await;
    let mut reader = daemon.client("block-storage").await;
    let export = pb::ExportAuditLogRequest::default();
    let refused = officer.audit.export_audit_log(export).await.unwrap_err();
    assert_eq!(refusal(refused).reason, "PERMISSION_DENIED");
    assert!(checkpoint(&mut officer, false).await.size > 0);
    let refused = reader.audit.get_checkpoint(pb::GetCheckpointRequest::default()).await;
    assert_eq!(refusal(refused.unwrap_err()).reason, "PERMISSION_DENIED");
    let request =
        pb::WatchAuditEventsRequest { parent: "instances/default".into(), ..Default::default() };
    let refused = reader.audit.watch_audit_events(request).await.unwrap_err();
    assert_eq!(refusal(refused).reason, "PERMISSION_DENIED");
    let export = exported(&mut admin, 0).await;
    let key = checkpoint(&mut admin, false).await.public_key;
    verify(&daemon.dir, &export, &key, &[]).unwrap();
    let text = String::from_utf8_lossy(&export);
    assert!(text.contains("rootkeyd.audit.export") && text.contains("PERMISSION_DENIED"));
}

#[tokio::test]
async fn the_journal_is_told_of_each_checkpoint_with_the_note() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("journal");
    let journal = UnixDatagram::bind(&path).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let daemon = with(&format!("{SELDOM}journal = {:?}\n", path.display().to_string()));
    let mut client = daemon.client("admin").await;
    work(&mut client, 2).await;
    let made = checkpoint(&mut client, true).await;
    let mut bytes = [0; 8192];
    let text = loop {
        let length = journal.recv(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
        if text.contains(&format!("ROOTKEYD_AUDIT_SIZE={}\n", made.size)) {
            break text;
        }
    };
    assert!(text.contains("SYSLOG_IDENTIFIER=rootkeyd\n"), "{text}");
    assert!(text.contains(&made.note), "{text}");
}

#[tokio::test]
async fn the_command_line_exports_verifies_watches_and_prints_checkpoint_and_key() {
    let daemon = with(SELDOM);
    let mut client = daemon.client("admin").await;
    let key = work(&mut client, 4).await;
    let out = daemon.dir.join("out.rkexport").display().to_string();
    let run = |arguments: &[&str]| {
        let ended = daemon.cli(arguments).output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap()
    };
    run(&["audit", "export", "--out", &out]);
    let note = run(&["audit", "checkpoint", "--fresh"]);
    assert!(note.starts_with("rootkeyd.v1/crn:v1:rootkeyd:"), "{note}");
    let pem = run(&["audit", "key"]);
    let export = fs::read(&out).unwrap();
    verify(&daemon.dir, &export, &pem, &[]).unwrap();
    assert!(verify(&daemon.dir, &export, &pem, &[&note]).unwrap_err().contains("tail is cut"));
    let line = run(&["audit", "watch", "--resume", "0", "--key", &key, "--count", "1"]);
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["action"], "kms.secrets.create");
    assert_eq!(line["resume_token"], line["sequence"].to_string());
}

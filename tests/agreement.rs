//! Where HSM and store do not agree: each thing that can be wrong is found at the start,
//! told by `rootkeyctl doctor`, and is the matter of its own key alone. SoftHSM keeps its
//! objects in files, so a test can do to them what a crash or a backup does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common::{Client, Daemon, said};
use rootkeyd::api::pb;
use rootkeyd::api::pb::hsm_status::finding::Kind;
use rusqlite::Connection;

/// Object files of the token.
fn files(daemon: &Daemon) -> BTreeSet<PathBuf> {
    let tokens = fs::read_dir(daemon.dir.join("tokens")).unwrap();
    let files = tokens.flat_map(|token| fs::read_dir(token.unwrap().path()).unwrap());
    let files = files.map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|it| it == "object")).collect()
}

/// A key with a DEK that it wrapped, and the file of its object.
struct Known {
    name: String,
    wrapped: Vec<u8>,
    file: PathBuf,
}

async fn make(daemon: &Daemon, admin: &mut Client, display_name: &str) -> Known {
    let before = files(daemon);
    let name = admin.create(display_name).await.name;
    let wrapped = admin.wrap(&name, b"dek", &[]).await.unwrap();
    let after = files(daemon);
    let mut new = after.difference(&before);
    Known { name, wrapped, file: new.next().unwrap().clone() }
}

fn found(status: &pb::HsmStatus, kind: Kind) -> Vec<String> {
    let findings = status.findings.iter().filter(|finding| finding.kind() == kind);
    let subjects: BTreeSet<_> = findings.map(|finding| finding.subject.clone()).collect();
    subjects.into_iter().collect()
}

fn sorted(keys: [&Known; 2]) -> Vec<String> {
    let versions: BTreeSet<_> = keys.into_iter().map(version_of).collect();
    versions.into_iter().collect()
}

/// What `rootkeyctl doctor` says, and whether it is content.
fn doctor(daemon: &Daemon) -> (String, bool) {
    let output = daemon.cli(&["doctor"]).output().unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status.success())
}

#[tokio::test]
async fn objects_that_are_torn_doubled_or_other_keys_are_found_and_refused_one_by_one() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let mut keys = Vec::new();
    for display_name in ["empty", "half", "doubled", "another", "whole"] {
        keys.push(make(&daemon, &mut admin, display_name).await);
    }
    let [empty, half, doubled, another, whole] = &keys[..] else { unreachable!() };
    assert!(doctor(&daemon).1);
    daemon.stop().await;
    fs::write(&empty.file, b"").unwrap();
    let bytes = fs::read(&half.file).unwrap();
    fs::write(&half.file, &bytes[..bytes.len() / 2]).unwrap();
    let copy = doubled.file.with_file_name("00000000-0000-4000-8000-000000000000.object");
    fs::copy(&doubled.file, copy).unwrap();
    // What this key's object is to open is what another one sealed.
    let store = Connection::open(daemon.dir.join("state/store.sqlite")).unwrap();
    let id = |key: &Known| key.name.rsplit('/').next().unwrap().parse::<uuid::Uuid>().unwrap();
    let sql = "UPDATE key_versions SET check_value =
                   (SELECT check_value FROM key_versions WHERE key = ?2) WHERE key = ?1";
    let (to, from) = (id(another), id(whole));
    assert_eq!(store.execute(sql, [to.as_bytes(), from.as_bytes()]).unwrap(), 1);
    drop(store);

    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    let checked = async || admin.clone().hsm_status().await.wrong == 2;
    daemon.until("every check value was tried", checked).await;
    let status = admin.hsm_status().await;
    let counts = (status.missing, status.wrong, status.doubled, status.torn, status.orphans);
    assert_eq!(counts, (2, 2, 1, Some(1), 0), "{status:?}");
    let missing = found(&status, Kind::Missing);
    assert_eq!(missing, sorted([empty, doubled]));
    let wrong = found(&status, Kind::Wrong);
    assert_eq!(wrong, sorted([half, another]));
    assert_eq!(found(&status, Kind::Doubled).len(), 1);
    let torn = found(&status, Kind::Torn);
    assert!(empty.file.ends_with(&torn[0]), "{torn:?}");
    for key in [empty, half, doubled, another] {
        let unwrapped = admin.unwrap(&key.name, &key.wrapped, &[]).await;
        assert_eq!(said(unwrapped), "HSM_KEY_MISSING", "{}", key.name);
        assert_eq!(said(admin.wrap(&key.name, b"dek", &[]).await), "HSM_KEY_MISSING");
        // Nothing that is known of it is lost.
        assert_eq!(admin.get(&key.name).await.unwrap().name, key.name);
    }
    assert_eq!(admin.unwrap(&whole.name, &whole.wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
    let (said, content) = doctor(&daemon);
    assert!(!content);
    for subject in missing.iter().chain(&wrong).chain(&torn) {
        assert!(said.contains(&subject[..20]), "{subject} in\n{said}");
    }
    // Nothing was destroyed.
    assert_eq!(files(&daemon).len(), 1 + 2 + 6 + tokens(&daemon));
}

/// The one version of a key has the key's own id.
fn version_of(key: &Known) -> String {
    let id = key.name.rsplit('/').next().unwrap();
    format!("{}/versions/{id}", key.name)
}

/// SoftHSM has a file for the token itself.
fn tokens(daemon: &Daemon) -> usize {
    files(daemon).iter().filter(|file| file.ends_with("token.object")).count()
}

#[tokio::test]
async fn the_object_of_a_purged_key_that_is_there_again_is_told_and_destroyed_again() {
    let mut daemon = Daemon::start();
    let mut admin = daemon.client("admin").await;
    let kept = make(&daemon, &mut admin, "kept").await;
    let purged = make(&daemon, &mut admin, "purged").await;
    let object = fs::read(&purged.file).unwrap();
    admin.delete(&purged.name).await.unwrap();
    daemon.set_clock("+5h");
    daemon.client("key-purge").await.purge(&purged.name).await.unwrap();
    assert!(!purged.file.exists());
    for restarted in [false, true] {
        daemon.stop().await;
        if !restarted {
            // As by a backup of the token; or SoftHSM could not remove its file.
            fs::write(&purged.file, &object).unwrap();
        }
        daemon.start_again();
        admin = daemon.client("admin").await;
        let again = u64::from(!restarted);
        let destroyed = async || {
            let status = admin.clone().hsm_status().await;
            let settled = status.ready && status.unfinished == 0;
            settled && (status.resurrected, status.objects, status.orphans) == (again, 1, 0)
        };
        daemon.until("it is destroyed again", destroyed).await;
        assert!(!purged.file.exists());
        assert_eq!(doctor(&daemon).1, restarted);
        let used = admin.unwrap(&purged.name, &purged.wrapped, &[]).await;
        assert_eq!(said(used), "KEY_NOT_FOUND");
    }
    assert!(daemon.logged().contains("the object of a purged key is there again"));
    let events = admin.audit_events().await;
    let told = |event: &&pb::AuditEvent| event.action == "rootkeyd.object.resurrect";
    let told: Vec<_> = events.iter().filter(told).map(|event| event.subject.clone()).collect();
    assert_eq!(told, [purged.name]);
    assert_eq!(admin.unwrap(&kept.name, &kept.wrapped, &[]).await.unwrap().dek, &b"dek"[..]);
}

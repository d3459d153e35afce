//! Sinks: every record, in order and at least once, in the formats of other programs,
//! through rotations and crashes; and a sink that is stuck holds up nothing.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Client, Daemon, unwrap_request};
use rootkeyd::api::pb;
use serde_json::Value;

/// A daemon with these sinks: kind, file in its directory, and more lines.
fn daemon_with(sinks: &[(&str, &str, &str)]) -> Daemon {
    Daemon::start_edited(|config| config + &tables(sinks))
}

fn tables(sinks: &[(&str, &str, &str)]) -> String {
    let table = |(n, (kind, path, more)): (usize, &(&str, &str, &str))| {
        format!(
            "\n[[audit.sinks]]\nname = \"s{n}\"\nkind = \"{kind}\"\npath = \"{path}\"\n{more}\n"
        )
    };
    sinks.iter().enumerate().map(table).collect()
}

/// The JSON objects in a file, one a line.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn sequences(lines: &[Value]) -> Vec<u64> {
    lines.iter().map(|line| line["sequence"].as_u64().unwrap()).collect()
}

/// The numbers of all records of a daemon that was stopped.
fn all_records(daemon: &Daemon) -> Vec<u64> {
    let verified = rootkeyd::audit::verify(&daemon.dir.join("state/audit")).unwrap();
    (1..=verified.records).collect()
}

/// Calls that leave some records.
async fn calls(client: &mut Client, key: &str, n: usize) {
    for _ in 0..n {
        client.get(key).await.unwrap();
    }
}

/// Many records with few calls.
async fn many_records(client: &mut Client, key: &str) {
    let wrapped = client.wrap(key, b"dek", &[]).await.unwrap();
    let requests = vec![unwrap_request(key, &wrapped, &[]); 1000];
    client.crypto.batch_unwrap_deks(pb::BatchUnwrapDeksRequest { requests }).await.unwrap();
}

/// Files in the daemon's directory whose names begin so, in order.
fn named(daemon: &Daemon, start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(&daemon.dir).unwrap().map(|entry| entry.unwrap().path());
    let fits = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(start);
    let mut found: Vec<_> = entries.filter(fits).collect();
    found.sort();
    found
}

#[tokio::test]
async fn every_record_is_in_the_files_in_order_when_others_rotate_them() {
    let mut daemon = daemon_with(&[("file", "a.jsonl", "")]);
    let (path, moved) = (daemon.dir.join("a.jsonl"), daemon.dir.join("a.jsonl.1"));
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    let evil = "instances/default/keys/a\n{\"sequence\":1}\r\u{2028}b";
    client.get(evil).await.unwrap_err();
    calls(&mut client, &key, 20).await;
    daemon.until("the file is written", async || lines(&path).len() > 20).await;
    fs::rename(&path, &moved).unwrap();
    calls(&mut client, &key, 20).await;
    daemon.until("there is a new file", async || !lines(&path).is_empty()).await;
    calls(&mut client, &key, 20).await;
    // What a clean stop leaves behind nobody would see.
    daemon.stop().await;
    let (before, after) = (lines(&moved), lines(&path));
    assert!(!before.is_empty() && !after.is_empty());
    let all = [before, after].concat();
    assert_eq!(sequences(&all), all_records(&daemon));
    assert!(all.iter().any(|line| line["subject"] == evil));
}

#[tokio::test]
async fn a_file_is_renamed_before_it_gets_too_long_and_no_record_is_lost() {
    let mut daemon = daemon_with(&[("file", "a.jsonl", "rotate_mib = 1")]);
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    for _ in 0..5 {
        many_records(&mut client, &key).await;
    }
    let path = daemon.dir.join("a.jsonl");
    let caught_up = async || named(&daemon, "a.jsonl").len() > 2;
    daemon.until("it is rotated", caught_up).await;
    daemon.stop().await;
    let mut files = named(&daemon, "a.jsonl.");
    files.push(path);
    for file in &files {
        assert!(fs::metadata(file).unwrap().len() <= 1 << 20, "{}", file.display());
    }
    let all: Vec<_> = files.iter().flat_map(|file| lines(file)).collect();
    assert_eq!(sequences(&all), all_records(&daemon));
}

#[tokio::test]
async fn a_killed_daemon_loses_no_record_and_repeats_some_at_the_seam_alone() {
    let mut daemon = daemon_with(&[("file", "a.jsonl", "")]);
    let path = daemon.dir.join("a.jsonl");
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    for _ in 0..3 {
        many_records(&mut client, &key).await;
        let seen = lines_now(&path);
        daemon.until("some are written", async || lines_now(&path) > seen).await;
        daemon.kill();
        daemon.start_again();
        client = daemon.client("admin").await;
    }
    daemon.stop().await;
    let all = sequences(&lines(&path));
    let seams = all.windows(2).filter(|pair| pair[1] != pair[0] + 1);
    let seams: Vec<_> = seams.map(|pair| (pair[0], pair[1])).collect();
    assert!(seams.len() <= 3, "{seams:?}");
    assert!(seams.iter().all(|(before, after)| after <= before), "{seams:?}");
    let distinct: std::collections::BTreeSet<_> = all.into_iter().collect();
    assert_eq!(distinct.into_iter().collect::<Vec<_>>(), all_records(&daemon));
}

/// The last line may be half written now.
fn lines_now(path: &Path) -> usize {
    fs::read_to_string(path).unwrap_or_default().matches('\n').count()
}

#[tokio::test]
async fn syslog_and_the_journal_receive_every_record() {
    let listeners = tempfile::tempdir().unwrap();
    let (syslog, journal) = (listeners.path().join("log"), listeners.path().join("journal"));
    let sockets = [&syslog, &journal].map(|path| UnixDatagram::bind(path).unwrap());
    let mut daemon = daemon_with(&[
        ("syslog", syslog.to_str().unwrap(), ""),
        ("journald", journal.to_str().unwrap(), "view = \"ocsf\""),
    ]);
    let mut client = daemon.client("admin").await;
    for _ in 0..2 {
        client.get("instances/default/keys/no\nkey").await.unwrap_err();
    }
    let [syslog, journal] = sockets.map(|socket| {
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // Seven of what was taken over from the configuration, and the two calls.
        (1..=9).map(|_| datagram(&socket)).collect::<Vec<_>>()
    });
    daemon.stop().await;
    for (n, message) in syslog.iter().enumerate() {
        let parts: Vec<_> = message.splitn(8, ' ').collect();
        let [version, _, host, "rootkeyd", _, "audit", "-", json] = parts.as_slice() else {
            panic!("{message}")
        };
        assert!(["<110>1", "<108>1", "<106>1"].contains(version), "{message}");
        assert_eq!((*host, message.contains('\n')), ("-", false));
        let json: Value = serde_json::from_str(json).unwrap();
        assert_eq!(json["sequence"], n as u64 + 1);
    }
    for (n, entry) in journal.iter().enumerate() {
        assert!(entry.contains(&format!("\nROOTKEYD_AUDIT_SEQUENCE={}\n", n + 1)), "{entry}");
        assert!(entry.contains("\nSYSLOG_IDENTIFIER=rootkeyd-audit\n"), "{entry}");
        let json = entry.strip_prefix("MESSAGE=").unwrap().lines().next().unwrap();
        assert_eq!(serde_json::from_str::<Value>(json).unwrap()["class_uid"], 6003);
    }
    // A value with a line end in it is given by its length.
    let subject = "ROOTKEYD_AUDIT_SUBJECT\n\u{1d}\0\0\0\0\0\0\0instances/default/keys/no\nkey\n";
    assert!(journal.iter().any(|entry| entry.contains(subject)), "{journal:?}");
}

fn datagram(socket: &UnixDatagram) -> String {
    let mut bytes = vec![0; 1 << 20];
    let length = socket.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

#[tokio::test]
async fn every_view_has_the_attributes_that_its_standard_requires() {
    let mut daemon = daemon_with(&[
        ("file", "json", ""),
        ("file", "cloudevents", "view = \"cloudevents\""),
        ("file", "ocsf", "view = \"ocsf\""),
    ]);
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    client.disable(&key).await.unwrap();
    client.get("instances/default/keys/none").await.unwrap_err();
    daemon.stop().await;
    let [json, cloud, ocsf] =
        ["json", "cloudevents", "ocsf"].map(|name| lines(&daemon.dir.join(name)));
    assert_eq!((json.len(), cloud.len()), (ocsf.len(), ocsf.len()));
    assert!(json.len() >= 3);
    for ((json, cloud), ocsf) in json.iter().zip(&cloud).zip(&ocsf) {
        assert_eq!(cloud["specversion"], "1.0");
        for attribute in ["id", "source", "type", "time", "datacontenttype"] {
            assert!(cloud[attribute].as_str().is_some_and(|text| !text.is_empty()), "{cloud}");
        }
        assert_eq!((&cloud["data"], &cloud["id"]), (json, &json["id"]));

        assert_eq!((&ocsf["category_uid"], &ocsf["class_uid"]), (&6.into(), &6003.into()));
        let (class, activity) = (&ocsf["class_uid"], &ocsf["activity_id"]);
        let sum = class.as_u64().unwrap() * 100 + activity.as_u64().unwrap();
        assert_eq!(ocsf["type_uid"], sum);
        for number in ["time", "severity_id", "status_id"] {
            assert!(ocsf[number].is_u64(), "{ocsf}");
        }
        for pointer in [
            "/metadata/version",
            "/metadata/product/name",
            "/metadata/product/vendor_name",
            "/api/operation",
        ] {
            assert!(ocsf.pointer(pointer).is_some_and(Value::is_string), "{pointer} {ocsf}");
        }
        for object in ["actor", "src_endpoint"] {
            assert!(ocsf[object].as_object().is_some_and(|it| !it.is_empty()), "{ocsf}");
        }
        assert_eq!(ocsf["api"]["operation"], json["action"]);
    }
    let of = |action: &str| {
        let at = json.iter().position(|line| line["action"] == action).unwrap();
        let ocsf = &ocsf[at];
        ["activity_id", "severity_id", "status_id"].map(|name| ocsf[name].as_u64().unwrap())
    };
    assert_eq!(of("kms.secrets.create"), [1, 1, 1]);
    assert_eq!(of("kms.secrets.disable"), [3, 3, 1]);
    assert_eq!(of("kms.secrets-metadata.read"), [2, 1, 2]);
}

#[tokio::test]
async fn a_socket_that_nobody_reads_holds_up_no_call_and_gets_all_when_it_is_read() {
    let listener = tempfile::tempdir().unwrap();
    let path = listener.path().join("log");
    let socket = UnixDatagram::bind(&path).unwrap();
    let daemon = daemon_with(&[("syslog", path.to_str().unwrap(), "")]);
    let mut client = daemon.client("admin").await;
    let key = client.create("volumes").await.name;
    many_records(&mut client, &key).await;
    let stuck = async || daemon.logged().contains("the audit sink takes no records");
    daemon.until("the sink is stuck", stuck).await;
    calls(&mut client, &key, 20).await;
    many_records(&mut client, &key).await;
    client.disable(&key).await.unwrap();
    let last = client.audit_events().await[0].sequence;

    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    for expected in 1..=last {
        let message = datagram(&socket);
        let json: Value = serde_json::from_str(&message[message.find('{').unwrap()..]).unwrap();
        assert_eq!(json["sequence"], expected);
    }
    let again = async || daemon.logged().contains("the audit sink takes records again");
    daemon.until("the sink says that it is well", again).await;
}

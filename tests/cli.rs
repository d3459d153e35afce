//! `rootkeyctl`, as people and scripts use it: against a daemon, by its arguments,
//! its output and its exit code.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::Daemon;
use serde_json::Value;

/// What a command printed; fails if it failed.
fn said(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a command said that failed with exit code 1.
fn refused(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{command:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn json(daemon: &Daemon, arguments: &[&str]) -> Value {
    let arguments = [&["--output", "json"], arguments].concat();
    serde_json::from_str(&said(daemon.cli(&arguments))).unwrap()
}

fn with_input(mut command: Command, input: &[u8]) -> Output {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Aside: who writes much and reads nothing meanwhile waits for ever. That the
    // command does not read it all is for the command to answer for.
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

#[test]
fn the_life_of_a_key_by_its_commands() {
    let daemon = Daemon::start();
    let create = ["key", "create", "--name", "Volumes", "--alias", "volumes", "--tag", "dev"];
    let key = json(&daemon, &create);
    assert_eq!(key["state"], "active");
    let name = key["name"].as_str().unwrap().to_owned();
    let id = name.rsplit('/').next().unwrap();
    for reference in [id, "volumes", &name] {
        assert_eq!(json(&daemon, &["key", "get", reference])["name"], name.as_str());
    }
    assert!(said(daemon.cli(&["key", "list"])).contains("active"));
    let rotated = json(&daemon, &["key", "rotate", "volumes"]);
    assert_ne!(rotated["primary_version"], key["primary_version"]);
    let versions = json(&daemon, &["key", "versions", "volumes"]);
    assert_eq!(versions.as_array().unwrap().len(), 2);
    let updated = json(&daemon, &["key", "update", "volumes", "--name", "Disks", "--clear-tags"]);
    assert_eq!(
        (&updated["display_name"], updated["tags"].as_array().unwrap().len()),
        (&"Disks".into(), 0)
    );

    assert_eq!(json(&daemon, &["key", "disable", "volumes"])["state"], "suspended");
    assert!(said(daemon.cli(&["key", "get", "volumes"])).contains("suspended (disabled)"));
    let early = refused(daemon.cli(&["key", "enable", "volumes"]));
    assert!(early.starts_with("TOO_EARLY: "), "{early}");
    daemon.set_clock("+31s");
    assert_eq!(json(&daemon, &["key", "enable", "volumes"])["state"], "active");

    // Asked, and nobody there to answer.
    let mut unasked = daemon.cli(&["key", "delete", "volumes"]);
    unasked.stdin(Stdio::null());
    let unasked = refused(unasked);
    assert!(unasked.contains("--yes"), "{unasked}");
    assert_eq!(json(&daemon, &["key", "delete", "volumes", "--yes"])["state"], "destroyed");
    assert_eq!(json(&daemon, &["key", "list"]).as_array().unwrap().len(), 0);
    assert_eq!(
        json(&daemon, &["key", "list", "--state", "destroyed"]).as_array().unwrap().len(),
        1
    );
    daemon.set_clock("+62s");
    let kept = refused(daemon.cli(&["key", "restore", "volumes"]));
    assert!(kept.starts_with("KEY_NOT_IMPORTED: "), "{kept}");
    let gone = refused(daemon.cli(&["wrap", "volumes", "--in", "/dev/null", "--out", "-"]));
    assert!(!gone.is_empty());
}

#[test]
fn deks_are_wrapped_and_unwrapped_in_every_encoding() {
    let daemon = Daemon::start();
    json(&daemon, &["key", "create", "--name", "Volumes", "--alias", "volumes"]);
    let path = |name: &str| daemon.dir.join(name).display().to_string();
    let dek: Vec<u8> = (0..=255).collect();
    fs::write(path("dek"), &dek).unwrap();
    fs::write(path("dek.hex"), hex::encode(&dek) + "\n").unwrap();
    fs::write(path("dek.base64"), STANDARD.encode(&dek)).unwrap();
    for (file, format) in [("dek", "raw"), ("dek.hex", "hex"), ("dek.base64", "base64")] {
        let (from, wrapped, to) = (path(file), path("wrapped"), path("unwrapped"));
        said(daemon.cli(&[
            "--identity",
            "block-storage",
            "wrap",
            "volumes",
            "--in",
            &from,
            "--out",
            &wrapped,
            "--dek-format",
            format,
            "--wrapped-format",
            "base64",
            "--aad",
            "one",
            "--aad",
            "two",
            "--resource",
            "crn:v1:volume",
        ]));
        said(daemon.cli(&[
            "--identity",
            "block-storage",
            "unwrap",
            "volumes",
            "--in",
            &wrapped,
            "--out",
            &to,
            "--wrapped-format",
            "base64",
            "--aad",
            "one",
            "--aad",
            "two",
        ]));
        assert_eq!(fs::read(&to).unwrap(), dek, "{format}");
        let wrong = refused(daemon.cli(&[
            "unwrap",
            "volumes",
            "--in",
            &wrapped,
            "--out",
            "-",
            "--wrapped-format",
            "base64",
            "--aad",
            "two",
            "--aad",
            "one",
        ]));
        assert!(wrong.starts_with("CIPHERTEXT_UNVERIFIED: "), "{wrong}");
        fs::remove_file(&to).unwrap();
        fs::remove_file(&wrapped).unwrap();
    }
    // What is not quite hex is refused, and not guessed at.
    fs::write(path("bad"), "0a0").unwrap();
    let bad = ["wrap", "volumes", "--in", &path("bad"), "--out", "-", "--dek-format", "hex"];
    refused(daemon.cli(&bad));

    said(daemon.cli(&[
        "generate",
        "volumes",
        "--size",
        "64",
        "--wrapped",
        &path("g"),
        "--out",
        &path("d"),
    ]));
    assert_eq!(fs::read(path("d")).unwrap().len(), 64);
    json(&daemon, &["key", "rotate", "volumes"]);
    said(daemon.cli(&["rewrap", "volumes", "--in", &path("g"), "--out", &path("g2")]));
    let unwrap = ["unwrap", "volumes", "--in", &path("g2"), "--out", "-", "--dek-format", "hex"];
    assert_eq!(said(daemon.cli(&unwrap)).trim(), hex::encode(fs::read(path("d")).unwrap()));
    let unwrap =
        ["unwrap", "volumes", "--in", &path("g"), "--out", &path("d2"), "--rewrapped", &path("g3")];
    said(daemon.cli(&unwrap));
    assert_eq!(fs::read(path("g3")).unwrap().len(), 64 + 65);
    assert_eq!(fs::read(path("d2")).unwrap(), fs::read(path("d")).unwrap());
}

#[test]
fn a_refusal_says_reason_message_and_status_reason_and_exits_with_1() {
    let daemon = Daemon::start();
    json(&daemon, &["key", "create", "--name", "Volumes", "--alias", "volumes"]);
    json(&daemon, &["key", "disable", "volumes"]);
    let output = with_input(daemon.cli(&["wrap", "volumes", "--in", "-", "--out", "-"]), b"dek");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap().trim(),
        "KEY_SUSPENDED: cannot wrap with a key that is suspended \
         (status_reason=encryption_key_disabled)"
    );
    let denied = refused(daemon.cli(&["--identity", "image", "key", "disable", "volumes"]));
    assert_eq!(denied.trim(), "PERMISSION_DENIED: permission denied (or it might not exist)");
    assert_eq!(daemon.cli(&["key", "no-such-command"]).output().unwrap().status.code(), Some(2));
    let nowhere = refused(daemon.cli(&["--endpoint", "https://127.0.0.1:1", "key", "list"]));
    assert!(nowhere.contains("127.0.0.1:1"), "{nowhere}");
}

#[test]
fn many_deks_are_unwrapped_line_by_line_and_the_bad_ones_are_told() {
    let daemon = Daemon::start();
    json(&daemon, &["key", "create", "--name", "Volumes", "--alias", "volumes"]);
    let mut lines = String::new();
    let mut deks = Vec::new();
    for number in 0..6 {
        let dek = format!("dek {number}");
        let wrap = ["wrap", "volumes", "--in", "-", "--out", "-", "--aad", "a"];
        let wrapped = with_input(daemon.cli(&wrap), dek.as_bytes()).stdout;
        let aad = if number == 4 { "b" } else { "a" };
        let wrapped = STANDARD.encode(wrapped);
        // More than one call's worth.
        for _ in 0..300 {
            lines.push_str(&format!(
                "{{\"key\":\"volumes\",\"wrapped_dek\":\"{wrapped}\",\"aad\":[\"{aad}\"]}}\n"
            ));
            deks.push((number != 4).then(|| STANDARD.encode(&dek)));
        }
    }
    let output = with_input(daemon.cli(&["batch-unwrap"]), lines.as_bytes());
    assert_eq!(output.status.code(), Some(1));
    let answers = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> =
        answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), deks.len());
    for (answer, dek) in answers.iter().zip(deks) {
        match dek {
            Some(dek) => assert_eq!(answer["dek"], dek.as_str()),
            None => assert_eq!(answer["reason"], "CIPHERTEXT_UNVERIFIED"),
        }
    }
    let bad = with_input(daemon.cli(&["batch-unwrap"]), b"{\"key\":\"volumes\",\"unknown\":1}\n");
    assert_eq!(bad.status.code(), Some(1));
}

#[test]
fn a_file_is_encrypted_and_decrypted_and_every_tampering_is_refused() {
    let daemon = Daemon::start();
    json(&daemon, &["key", "create", "--name", "Files", "--alias", "files"]);
    let path = |name: &str| daemon.dir.join(name).display().to_string();
    let (plain, sealed, opened) = (path("plain"), path("plain.rk"), path("opened"));
    let chunk = 1 << 20;
    for size in [0, 1, chunk - 1, chunk, chunk + 1, 3 * chunk + 17] {
        let content: Vec<u8> = (0..size).map(|i: u32| i.to_le_bytes()[(i % 3) as usize]).collect();
        fs::write(&plain, &content).unwrap();
        said(daemon.cli(&["encrypt", &plain, "--key", "files", "--overwrite"]));
        said(daemon.cli(&["decrypt", &sealed, "--out", &opened, "--overwrite"]));
        assert!(fs::read(&opened).unwrap() == content, "{size} bytes");
    }
    // It exists already, and nobody said to replace it.
    assert!(refused(daemon.cli(&["decrypt", &sealed, "--out", &opened])).contains("opened"));

    let whole = fs::read(&sealed).unwrap();
    let header = whole.len() - (3 * chunk as usize + 17) - 4 * 16;
    let piece = chunk as usize + 16;
    let mut tampered: Vec<(String, Vec<u8>)> = Vec::new();
    for place in [0, 6, 8, header / 2, header - 1, header, header + piece, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        tampered.push((format!("byte {place}"), bytes));
    }
    for length in [0, 5, header - 1, header, header + piece, header + 3 * piece, whole.len() - 1] {
        tampered.push((format!("cut to {length}"), whole[..length].to_vec()));
    }
    let mut swapped = whole.clone();
    swapped[header..header + 2 * piece].rotate_left(piece);
    tampered.push(("chunks swapped".into(), swapped));
    tampered.push(("a byte more".into(), [&whole[..], b"\0"].concat()));
    fs::remove_file(&opened).unwrap();
    for (what, bytes) in tampered {
        fs::write(&sealed, bytes).unwrap();
        let mut decrypt = daemon.cli(&["decrypt", &sealed, "--out", &opened]);
        assert_eq!(decrypt.output().unwrap().status.code(), Some(1), "{what}");
        assert!(!Path::new(&opened).exists(), "{what} left an output");
    }
    fs::write(&sealed, whole).unwrap();
    said(daemon.cli(&["decrypt", &sealed, "--out", &opened]));
    let left: Vec<_> =
        fs::read_dir(&daemon.dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let known = |name: &str| !name.contains("opened") || name == "opened";
    assert!(left.iter().all(|name| known(name.to_str().unwrap())), "{left:?}");
}

#[test]
fn a_large_file_takes_no_more_memory_than_a_small_one() {
    let daemon = Daemon::start();
    json(&daemon, &["key", "create", "--name", "Files", "--alias", "files"]);
    let path = |name: &str| daemon.dir.join(name);
    let mut peaks = Vec::new();
    for (name, mebibytes) in [("small", 4), ("large", 256)] {
        // Sparse: it is the memory that is measured.
        fs::File::create(path(name)).unwrap().set_len(mebibytes << 20).unwrap();
        let (plain, sealed) = (path(name).display().to_string(), format!("{name}.rk"));
        let sealed = path(&sealed).display().to_string();
        let encrypt = peak_kib(daemon.cli(&["encrypt", &plain, "--key", "files"]));
        let back = path("back").display().to_string();
        let decrypt = peak_kib(daemon.cli(&["decrypt", &sealed, "--out", &back, "--overwrite"]));
        assert_eq!(fs::metadata(path("back")).unwrap().len(), mebibytes << 20);
        peaks.push([encrypt, decrypt]);
    }
    for (small, large) in peaks[0].iter().zip(peaks[1]) {
        // 252 MiB more of file: no more than what the allocator may differ by.
        assert!(large < small + 4096, "{peaks:?} KiB");
    }
}

/// The most memory that a command had, in KiB, as far as looking often shows it.
fn peak_kib(mut command: Command) -> u64 {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(now.unwrap_or(0));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{command:?}");
            return peak;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_doctor_finds_a_healthy_daemon_and_tells_what_is_wrong_with_another() {
    let mut daemon = Daemon::start();
    let healthy = said(daemon.cli(&["doctor"]));
    for part in ["softhsm", "rootkeyd", "CKM_AES_GCM"] {
        assert!(healthy.to_lowercase().contains(&part.to_lowercase()), "{part}\n{healthy}");
    }
    assert!(json(&daemon, &["doctor"]).is_object() || json(&daemon, &["doctor"]).is_array());
    let service = daemon.cli(&["--identity", "image", "doctor"]).output().unwrap();
    assert_eq!(service.status.code(), Some(1));
    daemon.terminate();
    let stopped = daemon.cli(&["doctor"]).output().unwrap();
    assert_eq!(stopped.status.code(), Some(1));
}

#[test]
fn the_audit_log_is_listed_newest_first() {
    let daemon = Daemon::start();
    json(&daemon, &["key", "create", "--name", "One", "--alias", "one"]);
    json(&daemon, &["key", "create", "--name", "Two", "--alias", "two"]);
    json(&daemon, &["key", "disable", "one"]);
    let all = json(&daemon, &["audit", "list"]);
    let actions: Vec<_> =
        all.as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["kms.secrets.disable", "kms.secrets.create", "kms.secrets.create"]);
    let of_two = json(&daemon, &["audit", "list", "--key", "two"]);
    assert!(of_two.as_array().unwrap().len() <= 2);
    assert_eq!(json(&daemon, &["audit", "list", "--limit", "1"]).as_array().unwrap().len(), 1);
}

#[test]
fn every_command_has_a_help_with_examples() {
    let daemon = Daemon::start();
    let commands = [
        "key create",
        "key get",
        "key list",
        "key versions",
        "key rotate",
        "key update",
        "key disable",
        "key enable",
        "key delete",
        "key restore",
        "resource status",
        "resource list",
        "resource check",
        "impact",
        "wrap",
        "unwrap",
        "rewrap",
        "generate",
        "batch-unwrap",
        "encrypt",
        "decrypt",
        "audit list",
        "doctor",
    ];
    for command in commands {
        let arguments: Vec<_> = command.split(' ').chain(["--help"]).collect();
        let help = said(daemon.cli(&arguments));
        assert!(
            help.contains("Examples:") && help.contains(&format!("rootkeyctl {command}")),
            "{help}"
        );
    }
}

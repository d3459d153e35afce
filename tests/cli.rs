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
    assert_eq!(actions[..3], ["kms.secrets.disable", "kms.secrets.create", "kms.secrets.create"]);
    // Before them, what was taken over from the configuration.
    assert!(actions[3..].iter().all(|action| action.starts_with("rootkeyd.")), "{actions:?}");
    let of_two = json(&daemon, &["audit", "list", "--key", "two"]);
    assert!(of_two.as_array().unwrap().len() <= 2);
    assert_eq!(json(&daemon, &["audit", "list", "--limit", "1"]).as_array().unwrap().len(), 1);
}

/// Waits until the daemon knows what its HSM unwraps: seconds after its start.
fn until_it_imports(daemon: &Daemon) {
    let begun = std::time::Instant::now();
    json(daemon, &["import-token", "create", "--retrievals", "500"]);
    while !daemon.cli(&["import-token", "get"]).output().unwrap().status.success() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", daemon.logged());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_key_of_ones_own_is_imported_and_rotated_from_files() {
    let daemon = Daemon::start();
    until_it_imports(&daemon);
    let path = |name: &str| daemon.dir.join(name).display().to_string();
    fs::write(path("raw"), common::random::<32>()).unwrap();
    fs::write(path("hex"), hex::encode(common::random::<24>()) + "\n").unwrap();
    fs::write(path("odd"), common::random::<31>()).unwrap();
    let (raw, hex, odd) = (path("raw"), path("hex"), path("odd"));
    let import = ["key", "import", "--name", "Archive", "--alias", "archive", "--file", &raw];
    let key = json(&daemon, &import);
    assert_eq!((&key["imported"], &key["state"]), (&true.into(), &"active".into()));
    let odd = refused(daemon.cli(&["key", "import", "--name", "Odd", "--file", &odd]));
    assert!(odd.contains("FIELD_INVALID: ") && odd.contains("31 bytes are no AES key"), "{odd}");
    said(with_dek(&daemon, &["wrap", "archive", "--in", "-", "--out", &path("wrapped")]));

    let without = refused(daemon.cli(&["key", "rotate", "archive"]));
    assert!(without.starts_with("MATERIAL_REQUIRED: "), "{without}");
    let rotate = ["key", "rotate", "archive", "--file", &hex, "--format", "hex"];
    let rotated = json(&daemon, &rotate);
    assert_ne!(rotated["primary_version"], key["primary_version"]);
    let table = said(daemon.cli(&["key", "get", "archive"]));
    assert!(table.contains("imported"), "{table}");
    let unwrap = ["unwrap", "archive", "--in", &path("wrapped"), "--out", "-"];
    assert_eq!(said(daemon.cli(&unwrap)), "dek");
    let sha_256 =
        [&import[..5], &["other"], &import[6..], &["--algorithm", "RSAES_OAEP_SHA_256"]].concat();
    let unoffered = refused(daemon.cli(&sha_256));
    assert!(unoffered.contains("ALGORITHM_UNSUPPORTED: "), "{unoffered}");
}

/// A command that reads `dek` from standard input.
fn with_dek(daemon: &Daemon, arguments: &[&str]) -> Command {
    let path = daemon.dir.join("dek");
    fs::write(&path, b"dek").unwrap();
    let mut command = daemon.cli(arguments);
    command.stdin(fs::File::open(path).unwrap());
    command
}

#[test]
fn an_import_token_is_made_and_retrieved() {
    let daemon = Daemon::start();
    let create = ["import-token", "create", "--lifetime", "3600", "--retrievals", "500"];
    let made = json(&daemon, &create);
    assert_eq!((&made["remaining_retrievals"], &made["public_key"]), (&500.into(), &"".into()));
    let file = daemon.dir.join("token.pem").display().to_string();
    let begun = std::time::Instant::now();
    while !daemon
        .cli(&["import-token", "get", "--public-key", &file])
        .output()
        .unwrap()
        .status
        .success()
    {
        assert!(begun.elapsed() < Duration::from_secs(60), "{}", daemon.logged());
        std::thread::sleep(Duration::from_millis(200));
        drop(fs::remove_file(&file));
    }
    let pem = fs::read_to_string(&file).unwrap();
    assert!(pem.starts_with("-----BEGIN PUBLIC KEY-----"), "{pem}");
    let retrieved = json(&daemon, &["import-token", "get"]);
    assert_eq!(
        (&retrieved["public_key"], &retrieved["remaining_retrievals"]),
        (&pem.into(), &498.into())
    );
    assert_eq!(STANDARD.decode(retrieved["nonce"].as_str().unwrap()).unwrap().len(), 12);
    assert_eq!(retrieved["algorithms"], serde_json::json!(["RSAES_OAEP_SHA_1"]));
    let table = said(daemon.cli(&["import-token", "get"]));
    assert!(table.contains("497 of 500") && table.contains("RSAES_OAEP_SHA_1"), "{table}");
    let reader = refused(daemon.cli(&["--identity", "image", "import-token", "get"]));
    assert!(reader.starts_with("PERMISSION_DENIED: "), "{reader}");
    assert_eq!(
        daemon
            .cli(&["import-token", "create", "--lifetime", "299"])
            .output()
            .unwrap()
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn a_key_is_deleted_by_two_people_and_purged_by_a_third() {
    let daemon = Daemon::start();
    let policies = json(&daemon, &["policy", "set", "dual-auth-delete", "--enabled", "true"]);
    assert_eq!(policies["dual_auth_delete"]["enabled"], true);
    let create = ["key", "create", "--name", "Volumes", "--alias", "volumes"];
    let key = json(&daemon, &create);
    assert_eq!(key["dual_auth_delete"], true);
    let alone = refused(daemon.cli(&["key", "delete", "volumes", "--yes"]));
    assert!(alone.starts_with("AUTHORIZATIONS_NOT_MET: "), "{alone}");
    let set = json(&daemon, &["key", "set-for-deletion", "volumes"]);
    assert!(set["deletion_auth_expire_time"].is_string(), "{set}");
    let same = refused(daemon.cli(&["key", "delete", "volumes", "--yes"]));
    assert!(same.starts_with("AUTHORIZATIONS_NOT_MET: "), "{same}");
    let unset = json(&daemon, &["key", "unset-for-deletion", "volumes"]);
    assert!(unset["deletion_auth_expire_time"].is_null(), "{unset}");
    let officer = |arguments: &[&str]| {
        let arguments = [&["--identity", "officer", "--output", "json"], arguments].concat();
        daemon.cli(&arguments)
    };
    let unset = refused(officer(&["key", "delete", "volumes", "--yes"]));
    assert!(unset.starts_with("AUTHORIZATIONS_NOT_MET: "), "{unset}");
    said(daemon.cli(&["--identity", "writer", "key", "set-for-deletion", "volumes"]));
    let deleted: Value =
        serde_json::from_str(&said(officer(&["key", "delete", "volumes", "--yes"]))).unwrap();
    assert_eq!(deleted["state"], "destroyed");

    let purge = |identity: &str| {
        daemon.cli(&[
            "--identity",
            identity,
            "--output",
            "json",
            "key",
            "purge",
            "volumes",
            "--yes",
        ])
    };
    let early = refused(purge("key-purge"));
    assert!(early.starts_with("TOO_EARLY: "), "{early}");
    daemon.set_clock("+4h 1m");
    let denied = refused(purge("admin"));
    assert!(denied.starts_with("PERMISSION_DENIED: "), "{denied}");
    let purged: Value = serde_json::from_str(&said(purge("key-purge"))).unwrap();
    assert!(purged["purge_time"].is_string(), "{purged}");
    let gone = refused(daemon.cli(&["key", "get", key["name"].as_str().unwrap()]));
    assert!(gone.starts_with("KEY_NOT_FOUND: "), "{gone}");
}

#[test]
fn rings_are_made_listed_filled_and_deleted() {
    let daemon = Daemon::start();
    let ring = json(&daemon, &["ring", "create", "payments"]);
    assert_eq!((&ring["id"], &ring["key_count"]), (&"payments".into(), &0.into()));
    json(&daemon, &["key", "create", "--name", "Payments", "--alias", "pay", "--ring", "payments"]);
    json(&daemon, &["key", "create", "--name", "Other", "--alias", "other"]);
    let listed = json(&daemon, &["key", "list", "--ring", "payments"]);
    assert_eq!(
        (listed.as_array().unwrap().len(), &listed[0]["display_name"]),
        (1, &"Payments".into())
    );
    let rings = json(&daemon, &["ring", "list"]);
    let counts: Vec<_> =
        rings.as_array().unwrap().iter().map(|it| (&it["id"], &it["key_count"])).collect();
    assert_eq!(counts, [(&"default".into(), &1.into()), (&"payments".into(), &1.into())]);
    let table = said(daemon.cli(&["ring", "list"]));
    assert!(table.contains("RING") && table.contains("payments"), "{table}");
    let kept = refused(daemon.cli(&["ring", "delete", "payments"]));
    assert!(kept.starts_with("KEY_RING_NOT_EMPTY: "), "{kept}");
    let moved = json(&daemon, &["key", "update", "pay", "--ring", "default"]);
    assert_eq!(moved["key_ring"], "default");
    assert_eq!(json(&daemon, &["ring", "delete", "payments"])["moved_key_count"], 0);
    assert_eq!(json(&daemon, &["ring", "list"]).as_array().unwrap().len(), 1);
}

#[test]
fn policies_are_shown_and_set_one_at_a_time() {
    let daemon = Daemon::start();
    let at_first = said(daemon.cli(&["policy", "get"]));
    assert!(at_first.contains("dual-auth-delete") && at_first.contains("off"), "{at_first}");
    let set = |arguments: &[&str]| json(&daemon, &[&["policy", "set"], arguments].concat());
    assert_eq!(
        set(&["rotation", "--days", "90"])["rotation"]["rotation_period_seconds"],
        90 * 86_400
    );
    let access = set(&["create-import-access", "--create-root-key", "false"]);
    assert_eq!(access["key_create_import_access"]["create_root_key"], false);
    let forbidden = refused(daemon.cli(&["key", "create", "--name", "Volumes"]));
    assert!(forbidden.starts_with("CREATE_IMPORT_FORBIDDEN: "), "{forbidden}");
    assert_eq!(
        set(&["create-import-access", "--off"])["key_create_import_access"]["enabled"],
        false
    );
    let networks = set(&["allowed-ip", "--cidr", "192.0.2.0/24", "--cidr", "127.0.0.0/8"]);
    assert_eq!(
        networks["allowed_ip"]["allowed_ip"],
        serde_json::json!(["192.0.2.0/24", "127.0.0.0/8"])
    );
    let etag = networks["etag"].as_str().unwrap();
    assert_eq!(set(&["allowed-network", "private-only"])["allowed_network"]["enabled"], true);
    let stale = refused(daemon.cli(&["policy", "set", "allowed-ip", "--off", "--etag", etag]));
    assert!(stale.starts_with("ETAG_MISMATCH: "), "{stale}");
    assert_eq!(set(&["allowed-ip", "--off"])["allowed_ip"]["enabled"], false);
    assert_eq!(set(&["metrics", "on"])["metrics"]["enabled"], true);
    json(&daemon, &["key", "create", "--name", "Volumes"]);
    let rows = json(&daemon, &["policy", "metrics"]);
    let created = |row: &Value| row["action"] == "kms.secrets.create" && row["count"] == 1;
    assert!(rows.as_array().unwrap().iter().any(created), "{rows}");
    let table = said(daemon.cli(&["policy", "metrics"]));
    assert!(table.contains("kms.secrets.create") && table.contains("success"), "{table}");
    let whole = said(daemon.cli(&["policy", "get"]));
    assert!(whole.contains("every 90 days"), "{whole}");
}

#[test]
fn instances_are_made_used_and_deleted() {
    let daemon = Daemon::start();
    let create = ["instance", "create", "team-a", "--name", "Team A"];
    let made = json(&daemon, &create);
    assert_eq!((&made["id"], &made["display_name"]), (&"team-a".into(), &"Team A".into()));
    let key = json(
        &daemon,
        &["--instance", "team-a", "key", "create", "--name", "Volumes", "--alias", "volumes"],
    );
    assert!(key["name"].as_str().unwrap().starts_with("instances/team-a/keys/"), "{key}");
    assert_eq!(json(&daemon, &["key", "list"]).as_array().unwrap().len(), 0);
    let listed = json(&daemon, &["instance", "list"]);
    let ids: Vec<_> = listed.as_array().unwrap().iter().map(|it| &it["id"]).collect();
    assert_eq!(ids, ["default", "team-a"]);
    assert_eq!(json(&daemon, &["instance", "get", "team-a"])["live_key_count"], 1);
    let kept = refused(daemon.cli(&["instance", "delete", "team-a", "--yes"]));
    assert!(kept.starts_with("INSTANCE_NOT_EMPTY: "), "{kept}");
    json(&daemon, &["--instance", "team-a", "key", "delete", "volumes", "--yes"]);
    let table = said(daemon.cli(&["instance", "list"]));
    assert!(table.contains("Team A") && table.contains("1 (1 of them destroyed)"), "{table}");
    assert_eq!(
        json(&daemon, &["instance", "delete", "team-a", "--yes"])["name"],
        "instances/team-a"
    );
    let gone = refused(daemon.cli(&["instance", "get", "team-a"]));
    assert!(gone.starts_with("PERMISSION_DENIED: "), "{gone}");
    let taken = refused(daemon.cli(&create));
    assert!(taken.starts_with("INSTANCE_EXISTS: "), "{taken}");
    let nobody = refused(daemon.cli(&["--identity", "officer", "instance", "list"]));
    assert!(nobody.starts_with("PERMISSION_DENIED: "), "{nobody}");
}

#[test]
fn a_service_registers_its_volume_by_the_keys_alias_and_takes_it_back() {
    const VOLUME: &str = "crn:v1:bluemix:public:is:us-south-1:a/123::volume:r006-1";
    let daemon = Daemon::start();
    let key = json(&daemon, &["key", "create", "--name", "Volumes", "--alias", "volumes"]);
    let version = key["primary_version"].as_str().unwrap().rsplit('/').next().unwrap();
    json(&daemon, &["key", "rotate", "volumes"]);
    let service = |arguments: &[&str]| {
        let service = ["--identity", "block-storage", "--output", "json", "registration"];
        daemon.cli(&[&service, arguments].concat())
    };
    let create = [
        "create",
        "volumes",
        "--resource",
        VOLUME,
        "--kind",
        "data-volume",
        "--key-version",
        version,
    ];
    let made: Value = serde_json::from_str(&said(service(&create))).unwrap();
    assert_eq!((&made["kind"], &made["service"]), (&"data_volume".into(), &"block-storage".into()));
    assert_eq!(made["key_version"], key["primary_version"]);
    let person = refused(daemon.cli(&[&["registration"], &create[..]].concat()));
    assert!(person.starts_with("SERVICE_ONLY: "), "{person}");
    let id = made["name"].as_str().unwrap().rsplit('/').next().unwrap();
    let name = format!("volumes/{id}");
    let update = ["update", &name, "--prevent-key-deletion", "--description", "kept"];
    let updated: Value = serde_json::from_str(&said(service(&update))).unwrap();
    assert_eq!(
        (&updated["prevent_key_deletion"], &updated["description"]),
        (&true.into(), &"kept".into())
    );
    let got = json(&daemon, &["registration", "get", &name]);
    assert_eq!(got, updated);
    assert_eq!(json(&daemon, &["key", "get", "volumes"])["registration_count"], 1);
    let kept = refused(daemon.cli(&["key", "delete", "volumes", "--yes", "--force"]));
    assert!(kept.starts_with("DELETION_PREVENTED: "), "{kept}");
    let pattern = VOLUME.replace("r006-1", "*");
    for list in [vec!["volumes"], vec![], vec!["--prevents-deletion"], vec!["--resource", &pattern]]
    {
        let list = [&["registration", "list"], &list[..]].concat();
        assert_eq!(json(&daemon, &list), serde_json::json!([updated]), "{list:?}");
        let table = said(daemon.cli(&list));
        assert!(table.contains(VOLUME) && table.contains("prevented"), "{table}");
    }
    let deleted: Value = serde_json::from_str(&said(service(&["delete", &name]))).unwrap();
    assert!(deleted["name"].as_str().unwrap().ends_with(id), "{deleted}");
    assert_eq!(json(&daemon, &["registration", "list"]), serde_json::json!([]));
    assert_eq!(json(&daemon, &["key", "delete", "volumes", "--yes"])["state"], "destroyed");
}

#[test]
fn roles_are_given_explained_and_taken_back() {
    let daemon = Daemon::start();
    said(daemon.cli(&["ring", "create", "boot"]));
    let key = ["key", "create", "--name", "Boot", "--alias", "boot", "--ring", "boot"];
    let key = json(&daemon, &key);
    let principal = "spiffe://rootkeyd.dev/auditor";
    let bound = json(&daemon, &["access", "bind", principal, "ReaderPlus", "--ring", "boot"]);
    assert_eq!((&bound["role"], &bound["subject"]), (&"ReaderPlus".into(), &principal.into()));
    assert_eq!(bound["scope"], "instances/default/keyRings/boot");
    let of_key = json(&daemon, &["access", "authorize", "image", "--key", "boot"]);
    assert_eq!(of_key["scope"], key["name"]);
    let twice = refused(daemon.cli(&["access", "authorize", "image", "--key", "boot"]));
    assert!(twice.starts_with("BINDING_EXISTS: "), "{twice}");
    let table = said(daemon.cli(&["access", "bindings"]));
    assert!(table.contains(principal) && table.contains("KeyPurge"), "{table}");
    let table = said(daemon.cli(&["access", "authorizations"]));
    assert!(table.contains("block-storage") && table.contains("keys/"), "{table}");

    let explain =
        |method: &str| said(daemon.cli(&["access", "explain", principal, method, "boot"]));
    let (may, may_not) = (explain("CryptoService/UnwrapDek"), explain("KeyService/DisableKey"));
    assert!(may.contains("allowed") && may.contains("ReaderPlus on"), "{may}");
    assert!(may_not.contains("refused") && may_not.contains("needs Manager"), "{may_not}");
    said(daemon.cli(&["key", "disable", "boot"]));
    let disabled = explain("CryptoService/UnwrapDek");
    assert!(disabled.contains("refused") && disabled.contains("state"), "{disabled}");

    let id = bound["id"].as_str().unwrap();
    said(daemon.cli(&["access", "unbind", id]));
    let gone = refused(daemon.cli(&["access", "unbind", id]));
    assert!(gone.starts_with("BINDING_NOT_FOUND: "), "{gone}");
    said(daemon.cli(&["access", "deauthorize", of_key["name"].as_str().unwrap()]));
    let last = json(&daemon, &["access", "bindings"]);
    let managers = last.as_array().unwrap().iter().filter(|it| it["role"] == "Manager");
    let ids: Vec<_> = managers.map(|it| it["id"].as_str().unwrap().to_owned()).collect();
    said(daemon.cli(&["access", "unbind", &ids[1]]));
    let kept = refused(daemon.cli(&["access", "unbind", &ids[0]]));
    assert!(kept.starts_with("LAST_MANAGER: "), "{kept}");
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
        "key import",
        "key set-for-deletion",
        "key unset-for-deletion",
        "key purge",
        "import-token create",
        "import-token get",
        "ring create",
        "ring list",
        "ring delete",
        "policy get",
        "policy set",
        "policy metrics",
        "instance create",
        "instance get",
        "instance list",
        "instance delete",
        "registration create",
        "registration get",
        "registration list",
        "registration update",
        "registration delete",
        "event watch",
        "event acknowledge",
        "event sync",
        "campaign create",
        "campaign get",
        "campaign pause",
        "campaign resume",
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
        "access bind",
        "access bindings",
        "access unbind",
        "access authorize",
        "access authorizations",
        "access deauthorize",
        "access explain",
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

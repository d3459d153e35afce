//! Who may use whom: ARCHITECTURE.md's rules, read off the `use` lines and paths
//! of the code. The code without its unit tests, which may use more.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Module → modules of ours that it may use.
#[rustfmt::skip]
const MAY_USE: [(&str, &[&str]); 22] = [
    ("failpoint", &[]),
    ("domain",    &[]),
    ("secret",    &[]),
    ("memory",    &[]),
    ("gather",    &[]),
    ("envelope",  &["domain", "secret", "error"]),
    ("error",     &["domain", "envelope", "hsm", "store", "audit"]),
    ("hsm",       &["domain", "secret", "error", "gather"]),
    ("store",     &["domain", "secret", "error"]),
    ("audit",     &["domain", "secret", "error", "gather"]),
    ("auth",      &["domain", "secret", "error"]),
    ("sinks",     &["domain", "audit", "error"]),
    ("clock",     &["domain", "store"]),
    ("service",   &["domain", "envelope", "hsm", "store", "audit", "auth", "clock", "secret", "error"]),
    ("api",       &["service", "domain", "hsm", "audit", "auth", "secret", "error"]),
    ("config",    &["api", "service", "domain", "hsm", "audit", "auth", "sinks", "memory"]),
    ("telemetry", &["config"]),
    ("dev",       &["config", "clock", "domain", "hsm", "secret"]),
    ("app",       &["api", "service", "domain", "hsm", "store", "audit", "auth", "config", "clock", "error", "sinks"]),
    ("client",    &["api", "secret"]),
    // `audit verify` is offline: it is the verifier and the format, and never the log itself.
    // `backup` and `restore` are for the store's own machine, with or without a daemon.
    ("cli",       &["client", "api", "secret", "audit", "store"]),
    ("bin",       &["app", "config", "dev", "telemetry", "cli", "client", "clock", "memory", "hsm"]),
];

/// Crate → modules that may name it.
#[rustfmt::skip]
const CRATES: [(&str, &[&str]); 22] = [
    ("tonic",        &["api", "client", "cli"]),
    ("tonic_types",  &["api", "client", "cli"]),
    ("tonic_health", &["api"]),
    ("prost",        &["api", "client", "cli"]),
    ("prost_types",  &["api", "client", "cli"]),
    ("cryptoki",     &["hsm"]),
    ("cryptoki_sys", &["hsm"]),
    ("rusqlite",     &["store"]),
    ("minicbor",     &["audit", "hsm"]),
    ("seccompiler",  &["hsm"]),
    ("rustls",       &["api", "client"]),
    ("tokio_rustls", &["api"]),
    ("x509_parser",  &["auth", "cli"]),
    ("jsonwebtoken", &["auth"]),
    ("rcgen",        &["dev"]),
    ("aes_gcm",      &["cli"]),
    ("aws_lc_rs",    &["api", "audit", "cli"]),
    ("governor",     &["api"]),
    ("subtle",       &["hsm"]),
    ("pem",          &["api", "audit", "cli"]),
    ("clap",         &["bin", "cli"]),
    ("tracing_subscriber", &["telemetry"]),
];

/// What the pure domain may name besides itself.
const PURE: [&str; 5] = ["std", "thiserror", "uuid", "super", "self"];

struct Source {
    path: PathBuf,
    module: String,
    /// Without comments and unit tests.
    code: String,
}

#[test]
fn modules_use_what_is_below_them_and_nothing_else() {
    let sources = sources();
    let modules: BTreeSet<_> = sources.iter().map(|source| source.module.as_str()).collect();
    let known: BTreeSet<_> = MAY_USE.iter().map(|(module, _)| *module).chain(["lib"]).collect();
    assert!(modules.is_subset(&known), "a module without a row: {modules:?}");
    for Source { path, module, code } in &sources {
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| name == module) else { continue };
        for prefix in ["crate::", "rootkeyd::"] {
            for used in names_after(code, prefix) {
                let fine = used == *module || allowed.contains(&used.as_str());
                let ours = known.contains(used.as_str());
                assert!(fine || !ours, "{} uses {used}", path.display());
            }
        }
    }
}

#[test]
fn a_crate_is_named_only_where_it_belongs() {
    for Source { path, module, code } in sources() {
        for (name, allowed) in CRATES {
            let named = code.contains(&format!("{name}::"));
            assert!(
                !named || allowed.contains(&module.as_str()),
                "{} names {name}",
                path.display()
            );
        }
    }
}

#[test]
fn the_domain_is_pure() {
    for Source { path, code, .. } in sources().iter().filter(|source| source.module == "domain") {
        for line in code.lines().filter_map(|line| line.strip_prefix("use ")) {
            let first = line.split("::").next().unwrap();
            let pure = PURE.contains(&first) || line.starts_with("crate::domain");
            assert!(pure, "{} uses {line}", path.display());
        }
        for word in ["async ", "SystemTime", "Instant::", "tracing::", "std::fs", "std::env"] {
            assert!(!code.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn rules_that_have_one_home_are_in_it() {
    let homes = [
        // `rootkeyctl backup` says when it was taken.
        ("SystemTime::now", "app.rs backup.rs"),
        ("unsafe {", "ffi.rs"),
        ("CKM_", "mechanism.rs"),
        ("hsm.destroy(", "reconcile.rs"),
        ("destroy_object(object)", "nowhere"),
        ("update_attributes", "nowhere"),
        ("SetAttributeValue", "nowhere"),
        // Never on the path of an unwrap; the CLI has no other.
        ("spawn_blocking", "listing.rs proof.rs app.rs rootkeyctl.rs"),
    ];
    for Source { path, code, .. } in sources() {
        let file = path.file_name().unwrap().to_str().unwrap();
        for (word, home) in homes {
            let mechanism_in_ffi = word == "CKM_" && file == "ffi.rs";
            let here = home.split(' ').any(|home| home == file) || mechanism_in_ffi;
            assert!(here || !code.contains(word), "{} has {word}", path.display());
        }
    }
}

#[test]
fn a_secret_is_looked_into_only_behind_the_doors_that_have_a_reason() {
    let doors = ["secret.rs", "convert.rs"];
    let folders = ["hsm", "cli", "client"];
    for Source { path, module, code } in sources() {
        let file = path.file_name().unwrap().to_str().unwrap();
        let door = doors.contains(&file) || folders.contains(&module.as_str());
        assert!(door || !code.contains(".expose"), "{} exposes a secret", path.display());
    }
}

#[test]
fn every_file_says_what_it_is_and_none_has_a_name_without_a_subject() {
    for path in files(Path::new("src")).into_iter().chain(files(Path::new("tests"))) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} has no header", path.display());
        let file = path.file_name().unwrap().to_str().unwrap();
        let kind = ["utils.rs", "util.rs", "helpers.rs", "types.rs", "misc.rs", "common.rs"];
        assert!(!kind.contains(&file), "{} is named by kind", path.display());
    }
}

fn sources() -> Vec<Source> {
    let sources = files(Path::new("src")).into_iter().map(|path| {
        let inside = path.strip_prefix("src").unwrap();
        let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.trim_end_matches(".rs").to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code = code.split("#[cfg(test)]\npub(crate) mod tests").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let code = lines.map(without_strings).collect::<Vec<_>>().join("\n");
        Source { path, module, code }
    });
    // Compiled for tests alone.
    let tests = ["store/conformance.rs", "hsm/tests.rs"];
    sources.filter(|source| !tests.iter().any(|test| source.path.ends_with(test))).collect()
}

/// A line without what is in its quotation marks.
fn without_strings(line: &str) -> String {
    line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// `crate::a::b` and `crate::{a::b, c}` → a, c.
fn names_after(code: &str, prefix: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (place, _) in code.match_indices(prefix) {
        let before = code[..place].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[place + prefix.len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let group = group.split(';').next().unwrap();
            let mut depth = 0;
            for part in group.split_inclusive([',', '{', '}']) {
                if depth == 0 {
                    names.insert(identifier(part.trim()));
                }
                depth += i32::from(part.ends_with('{')) - i32::from(part.ends_with('}'));
            }
        } else {
            names.insert(identifier(rest));
        }
    }
    names.remove("");
    names
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

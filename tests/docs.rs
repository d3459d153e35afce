//! What the documents say of the code is what the code says of itself.
//! `UPDATE_DOCS=1 cargo test --test docs` writes them anew.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

use std::fs;
use std::process::Command;

use rootkeyd::domain::{lifecycle, resource_action, resource_status};
use rootkeyd::error;

/// Compares what stands between the marks of a document with `text`.
fn compare(path: &str, text: &str) {
    const BEGIN: &str = "<!-- printed from the code: begin -->\n";
    const END: &str = "<!-- printed from the code: end -->";
    let document = fs::read_to_string(path).unwrap();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (stands, after) = rest.split_once(END).unwrap();
    if stands.trim() == text.trim() {
        return;
    }
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, format!("{before}{BEGIN}{text}{END}{after}")).unwrap();
        return;
    }
    panic!("{path} is not what the code says; UPDATE_DOCS=1 cargo test --test docs");
}

#[test]
fn errors_md_is_the_table_in_the_code() {
    compare("docs/errors.md", &error::table_as_markdown());
}

#[test]
fn key_states_md_is_the_table_in_the_code() {
    compare("docs/key-states.md", &lifecycle::table_as_markdown());
}

#[test]
fn resource_statuses_md_is_the_table_in_the_code() {
    let tables = [resource_status::table_as_markdown(), resource_action::table_as_markdown()];
    compare("docs/resource-statuses.md", &tables.concat());
}

#[test]
fn the_contract_is_as_it_was_agreed() {
    // What others rely on is beside the repository where this project is built,
    // and only there.
    for name in ["crypto", "keys"] {
        let ours = fs::read_to_string(format!("proto/rootkeyd/v1/{name}.proto")).unwrap();
        let agreed = format!("../shared/contract/rootkeyd/v1/{name}.proto");
        // Fields may be added, and nothing be taken away or altered.
        if let Ok(agreed) = fs::read_to_string(agreed) {
            let mut ours = ours.lines();
            for line in agreed.lines() {
                assert!(ours.any(|it| it == line), "{name}.proto lacks {line:?} of the contract");
            }
        }
        assert!(ours.contains("package rootkeyd.v1;"));
    }
}

#[test]
fn the_readme_names_every_command_of_the_cli() {
    let help = Command::new(env!("CARGO_BIN_EXE_rootkeyctl")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let commands: Vec<_> = commands
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty() && *name != "help")
        .collect();
    assert!(commands.len() > 5, "{help}");
    let readme = fs::read_to_string("README.md").unwrap();
    for command in commands {
        assert!(readme.contains(&format!("`{command}")), "README.md does not name {command}");
    }
}

//! What people run is what the tests run: the demonstration with real LUKS
//! volumes, and the independent client in Python.

mod common;

use std::path::Path;
use std::process::Command;

use common::{CLI, DAEMON, Daemon};

#[test]
fn the_demonstration_with_real_volumes_passes_every_check() {
    let output = Command::new("examples/volume-demo.sh")
        .env("ROOTKEYD", DAEMON)
        .env("ROOTKEYCTL", CLI)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{error}");
    let passed = said.lines().last().unwrap();
    assert!(passed.starts_with("demo: all ") && passed.ends_with(" checks passed"), "{passed}");
}

#[test]
fn an_independent_client_in_python_agrees() {
    let python = Path::new(".venv/bin/python");
    assert!(python.exists(), "there is no .venv; `make test` makes it (softhsm/setup.sh --python)");
    let daemon = Daemon::start();
    let output = Command::new(python)
        .arg("tests/python/client.py")
        .arg("--dir")
        .arg(&daemon.dir)
        .arg("--test-clock")
        .arg(&daemon.clock)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{error}");
    assert!(said.contains(" checks passed"), "{said}");
}

//! Session copies of root keys (`hsm.session_copies`), from outside: a root key whose
//! object another program removed works by its copies, which shows that they are used,
//! and where they end.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use common::{Client, Daemon, said};

const THREADS: &str = "";
const PROCESSES: &str = "isolation = \"process\"\nworkers = 2\n";
const FOR_LONG: &str = "session_copies = \"on\"\nsession_copy_seconds = 3600\n";

fn start(settings: &[&str]) -> Daemon {
    let table = format!("[hsm]\n{}", settings.concat());
    Daemon::start_edited(|config| config.replacen("[hsm]\n", &table, 1))
}

/// Object files of the token.
fn files(daemon: &Daemon) -> BTreeSet<PathBuf> {
    let tokens = fs::read_dir(daemon.dir.join("tokens")).unwrap();
    let files = tokens.flat_map(|token| fs::read_dir(token.unwrap().path()).unwrap());
    let files = files.map(|file| file.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|it| it == "object")).collect()
}

/// A key that every worker has a copy of, and a DEK that it wrapped; the file of its
/// object is gone.
struct Undermined {
    name: String,
    wrapped: Vec<u8>,
    file: PathBuf,
    object: Vec<u8>,
}

impl Undermined {
    async fn new(daemon: &Daemon, admin: &mut Client) -> Self {
        let before = files(daemon);
        let name = admin.create("undermined").await.name;
        let wrapped = admin.wrap(&name, b"dek", &[]).await.unwrap();
        let file = files(daemon).difference(&before).next().unwrap().clone();
        // So many that each worker has had some, twice and more.
        for _ in 0..5 {
            let calls = (0..40).map(|_| {
                let (mut admin, name, wrapped) = (admin.clone(), name.clone(), wrapped.clone());
                async move { admin.unwrap(&name, &wrapped, &[]).await.unwrap() }
            });
            futures_util::future::join_all(calls).await;
        }
        let object = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        Self { name, wrapped, file, object }
    }

    /// What 40 unwraps at once come to.
    async fn unwraps(&self, admin: &Client) -> BTreeSet<String> {
        let calls = (0..40).map(|_| {
            let (mut admin, name, wrapped) =
                (admin.clone(), self.name.clone(), self.wrapped.clone());
            async move { said(admin.unwrap(&name, &wrapped, &[]).await) }
        });
        futures_util::future::join_all(calls).await.into_iter().collect()
    }
}

fn all(what: &str) -> BTreeSet<String> {
    BTreeSet::from([what.to_owned()])
}

/// Copies do the work, and none is left anywhere of a key that was disabled.
async fn a_disabled_key_loses_its_copies(isolation: &str) {
    let mut daemon = start(&[isolation, FOR_LONG]);
    let mut admin = daemon.client("admin").await;
    let key = Undermined::new(&daemon, &mut admin).await;
    assert_eq!(key.unwraps(&admin).await, all("ok"));
    admin.disable(&key.name).await.unwrap();
    assert_eq!(key.unwraps(&admin).await, all("KEY_SUSPENDED"));
    daemon.set_clock("+1m");
    admin.enable(&key.name).await.unwrap();
    assert_eq!(key.unwraps(&admin).await, all("HSM_KEY_MISSING"));
    // Nothing is lost by that.
    daemon.stop().await;
    fs::write(&key.file, &key.object).unwrap();
    daemon.start_again();
    let admin = daemon.client("admin").await;
    daemon.until("it is back", async || key.unwraps(&admin).await == all("ok")).await;
}

#[tokio::test]
async fn a_disabled_key_loses_its_copies_in_threads() {
    a_disabled_key_loses_its_copies(THREADS).await;
}

#[tokio::test]
async fn a_disabled_key_loses_its_copies_in_every_worker_process() {
    a_disabled_key_loses_its_copies(PROCESSES).await;
}

/// What another program removed is missed when the copies are old.
async fn a_removed_object_is_missed(isolation: &str) {
    let daemon = start(&[isolation, "session_copies = \"on\"\nsession_copy_seconds = 1\n"]);
    let mut admin = daemon.client("admin").await;
    let key = Undermined::new(&daemon, &mut admin).await;
    let missing = all("HSM_KEY_MISSING");
    daemon.until("it is missed", async || key.unwraps(&admin).await == missing).await;
}

#[tokio::test]
async fn an_object_that_another_program_removed_is_missed_in_threads() {
    a_removed_object_is_missed(THREADS).await;
}

#[tokio::test]
async fn an_object_that_another_program_removed_is_missed_in_worker_processes() {
    a_removed_object_is_missed(PROCESSES).await;
}

#[tokio::test]
async fn whether_copies_are_used_is_told_and_off_is_off() {
    let daemon = start(&["session_copies = \"off\"\n"]);
    let mut admin = daemon.client("admin").await;
    let key = Undermined::new(&daemon, &mut admin).await;
    assert_eq!(key.unwraps(&admin).await, all("HSM_KEY_MISSING"));
    let told = |daemon: &Daemon| {
        let output = daemon.cli(&["doctor", "--output", "json"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let off = "wrap and unwrap DEKs; session copies of root keys: off: switched off";
    assert!(told(&daemon).contains(off), "{}", told(&daemon));
    let daemon = start(&[PROCESSES, FOR_LONG]);
    daemon
        .until("a reader has told it", async || {
            told(&daemon).contains("wrap and unwrap DEKs; session copies of root keys: on: ")
        })
        .await;
}

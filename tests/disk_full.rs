//! A full disk: nothing leaves without its record, what takes away is still done, what
//! gives is not, and all is well again when there is space.
//!
//! Runs in a mount namespace of its own, with the state on a small tmpfs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use common::{Client, Daemon, Refusal};

#[test]
fn on_a_full_disk_a_key_can_be_disabled_and_nothing_else_happens() {
    let name = "on_a_full_disk_a_key_can_be_disabled_and_nothing_else_happens";
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(fill_and_empty());
    }
    // Where we are not root we are in there.
    let root = rustix::process::geteuid().is_root();
    let status = Command::new("unshare")
        .arg(if root { "-m" } else { "-rm" })
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}

async fn fill_and_empty() {
    let mut daemon = Daemon::start();
    daemon.stop().await;
    let (state, filler) = (daemon.dir.join("state"), daemon.dir.join("state/filler"));
    on_small_disk(&state);
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    let keys = [client.create("volumes").await.name, client.create("others").await.name];
    let [key, other] = &keys;
    let wrapped = client.wrap(key, b"the dek", &[]).await.unwrap();
    let whole = fs::metadata(state.join("reserve")).unwrap().len();
    assert_eq!(whole, 8 << 20);

    let third = client.create("disabled after a restart").await.name;
    let image = client.authorization_of("image").await;

    fill(&filler);
    until_nothing_is_recorded(&mut client).await;
    let reason = |refusal: Refusal| refusal.reason;
    let unwrapped = client.unwrap(key, &wrapped, &[]).await.map(drop).map_err(reason);
    assert_eq!(unwrapped, Err("AUDIT_UNAVAILABLE".into()));
    let rewrapped = client.wrap(key, b"dek", &[]).await.map(drop).map_err(reason);
    assert_eq!(rewrapped, Err("AUDIT_UNAVAILABLE".into()));

    client.disable(key).await.unwrap();
    client.delete(other).await.unwrap();
    client.deauthorize(&image).await.unwrap();
    let left = fs::metadata(state.join("reserve")).unwrap().len();
    assert!(left < whole, "the reserve was not needed");
    // It starts on a full disk too, and what was taken away is still away.
    daemon.kill();
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    let unwrapped = client.unwrap(key, &wrapped, &[]).await.map(drop).map_err(reason);
    assert!(["AUDIT_UNAVAILABLE", "KEY_SUSPENDED"].contains(&&*unwrapped.unwrap_err()));
    client.disable(&third).await.unwrap();
    daemon.set_clock("+1h");
    for _ in 0..3 {
        let enabled = client.enable(key).await.map(drop).map_err(reason);
        assert_eq!(enabled, Err("AUDIT_UNAVAILABLE".into()));
        let unwrapped = client.unwrap(key, &wrapped, &[]).await.map(drop).map_err(reason);
        assert!(["AUDIT_UNAVAILABLE", "KEY_SUSPENDED"].contains(&&*unwrapped.unwrap_err()));
    }
    let restored = client.restore(other).await.map(drop).map_err(reason);
    assert_eq!(restored, Err("AUDIT_UNAVAILABLE".into()));
    let authorized = client.authorize("image", "instances/default").await;
    assert_eq!(authorized.map(drop).map_err(reason), Err("AUDIT_UNAVAILABLE".into()));

    fs::remove_file(&filler).unwrap();
    let is_whole = async || fs::metadata(state.join("reserve")).unwrap().len() == whole;
    daemon.until("the reserve is whole again", is_whole).await;
    let works = async || client.clone().enable(key).await.is_ok();
    daemon.until("the key can be enabled", works).await;
    assert_eq!(&client.unwrap(key, &wrapped, &[]).await.unwrap().dek[..], b"the dek");
    let copied = async || changes(&mut client.clone()).await.len() == 4;
    daemon.until("the changes are in the log", copied).await;
    let mut expected = vec![
        ("kms.secrets.disable".to_owned(), key.clone()),
        ("kms.secrets.delete".to_owned(), other.clone()),
        ("kms.secrets.disable".to_owned(), third),
        ("kms.secrets.enable".to_owned(), key.clone()),
    ];
    let mut found = changes(&mut client).await;
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
    daemon.stop().await;
    rootkeyd::audit::verify(&state.join("audit")).unwrap();
    daemon.start_again();
    let mut client = daemon.client("admin").await;
    let mut found = changes(&mut client).await;
    found.sort();
    assert_eq!(found, expected, "after a restart");
    daemon.stop().await;
}

/// What was done to states of keys, by the log.
async fn changes(client: &mut Client) -> Vec<(String, String)> {
    let actions = ["kms.secrets.disable", "kms.secrets.delete", "kms.secrets.enable"];
    let events = client.audit_events().await.into_iter();
    let done = events.filter(|it| actions.contains(&&*it.action) && it.reason.is_empty());
    done.map(|it| (it.action, it.subject)).collect()
}

/// Puts what is in `state` on a tmpfs of its own.
fn on_small_disk(state: &Path) {
    let aside = state.with_file_name("state.before");
    fs::rename(state, &aside).unwrap();
    fs::create_dir(state).unwrap();
    run("mount", &["-t", "tmpfs", "-o", "size=24m", "tmpfs", state.to_str().unwrap()]);
    run("cp", &["-a", &format!("{}/.", aside.display()), state.to_str().unwrap()]);
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}: {status}");
}

/// Writes until not a byte more can be.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![0_u8; size];
        while file.write_all(&block).is_ok() {}
    }
}

/// The last page of the log has place for some records.
async fn until_nothing_is_recorded(client: &mut Client) {
    let mut refused = 0;
    while refused < 3 {
        match client.get("instances/default/keys/x").await.unwrap_err().reason.as_str() {
            "AUDIT_UNAVAILABLE" => refused += 1,
            _ => refused = 0,
        }
    }
}

const INSIDE: &str = "DISK_FULL_TEST_INSIDE";

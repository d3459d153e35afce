//! Worker processes (`hsm.isolation = "process"`): the same service, and a module that
//! crashes or hangs costs the calls that it was at and nothing else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]

#[path = "common/chaos.rs"]
mod chaos;
mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chaos::Seen;
use common::{Client, Daemon, Refusal, import_request, outcome, random, said, seal};
use rootkeyd::api::pb;
use rustix::process::{Pid, Signal, kill_process};

/// Two readers, and hangs that are noticed soon.
fn start() -> Daemon {
    Daemon::start_edited(|config| {
        let table = "[hsm]\nisolation = \"process\"\nworkers = 2\nstuck_seconds = 1\n";
        let config = config.lines().filter(|line| !line.starts_with("workers"));
        config.collect::<Vec<_>>().join("\n").replacen("[hsm]\n", table, 1) + "\n"
    })
}

/// The worker processes: the writer, which began first, and the readers.
fn workers(daemon: &Daemon) -> (i32, Vec<i32>) {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let children = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")));
    let children: String = children.map(|list| list.unwrap_or_default() + " ").collect();
    let mut pids: Vec<i32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    pids.sort_unstable();
    let lock = daemon.dir.join("state/hsm-writer.lock").canonicalize().unwrap();
    let holds_lock = |pid: &i32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|file| file == lock)
    };
    let (writers, readers): (Vec<i32>, Vec<i32>) = pids.into_iter().partition(holds_lock);
    assert_eq!(writers.len(), 1, "one process changes objects");
    (writers[0], readers)
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// A key, a DEK, and the DEK wrapped by the key.
async fn wrapped_dek(admin: &mut Client) -> (String, [u8; 48], Vec<u8>) {
    let key = admin.create("one").await.name;
    let dek = random();
    let wrapped = admin.wrap(&key, &dek, &[]).await.unwrap();
    (key, dek, wrapped)
}

/// Whether the refusal says that the same call may succeed later, and no more.
fn is_passing(refusal: &Refusal) -> bool {
    ["HSM_UNAVAILABLE", "DEADLINE_EXCEEDED", "OVERLOADED"].contains(&refusal.reason.as_str())
}

#[tokio::test]
async fn keys_live_their_whole_life_in_worker_processes() {
    let mut daemon = start();
    let mut admin = daemon.client("admin").await;
    let key = admin.create("one").await.name;
    let dek: [u8; 48] = random();
    let wrapped = admin.wrap(&key, &dek, &[b"volume"]).await.unwrap();
    assert_eq!(admin.unwrap(&key, &wrapped, &[b"volume"]).await.unwrap().dek, dek.to_vec());
    let refused = admin.unwrap(&key, &wrapped, &[b"other"]).await.unwrap_err();
    assert_eq!(refused.reason, "CIPHERTEXT_UNVERIFIED");

    admin.rotate(&key).await.unwrap();
    let again = admin.unwrap(&key, &wrapped, &[b"volume"]).await.unwrap();
    assert_eq!(again.dek, dek.to_vec());
    assert!(!again.rewrapped_dek.is_empty(), "an older version had wrapped it");

    let token = admin.import_token(1).await;
    let request = import_request("imported", seal(&token, &random::<32>()));
    let imported = admin.keys.import_key(request).await.unwrap().into_inner().name;
    let wrapped = admin.wrap(&imported, &dek, &[]).await.unwrap();

    daemon.terminate();
    daemon.start_again();
    let mut admin = daemon.client("admin").await;
    assert_eq!(admin.unwrap(&imported, &wrapped, &[]).await.unwrap().dek, dek.to_vec());
    admin.delete(&imported).await.unwrap();
    daemon.set_clock("+5h");
    let purge = pb::PurgeKeyRequest { name: imported.clone() };
    daemon.client("key-purge").await.keys.purge_key(purge).await.unwrap();
    let status = admin.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await.unwrap();
    let status = status.into_inner();
    assert_eq!((status.objects, status.orphans, status.missing), (2, 0, 0));
}

#[tokio::test]
async fn the_module_is_in_confined_processes_and_not_in_the_daemon() {
    let mut daemon = start();
    daemon.terminate();
    // `rootkeyd dev` makes the token, so it has had the module.
    daemon.start_by(daemon.by_config());
    let loads = |pid| fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().contains("softhsm");
    let (mut writer, mut readers) = workers(&daemon);
    daemon
        .until("both readers have the module", async || {
            (writer, readers) = workers(&daemon);
            readers.len() == 2 && readers.iter().all(|pid| loads(*pid))
        })
        .await;
    assert!(!loads(i32::try_from(daemon.pid()).unwrap()));
    for pid in readers.iter().chain([&writer]) {
        assert!(loads(*pid));
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let has = |line: &str| status.lines().any(|it| it.split_whitespace().eq(line.split(' ')));
        assert!(has("Seccomp: 2") && has("NoNewPrivs: 1"), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_process_that_dies_costs_the_calls_it_was_at_and_never_the_daemon() {
    let mut daemon = start();
    let mut admin = daemon.client("admin").await;
    let (key, dek, wrapped) = wrapped_dek(&mut admin).await;
    let enough = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (key, wrapped, enough) = (key.clone(), wrapped.clone(), Arc::clone(&enough));
            tokio::spawn(unwrap_until(admin.clone(), key, wrapped, dek, enough))
        })
        .collect();
    let kills = chaos::rounds(20, 1_000);
    for _ in 0..kills {
        let (_, readers) = workers(&daemon);
        if let Some(reader) = readers.first() {
            signal(*reader, Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    enough.store(true, Ordering::Relaxed);
    let (mut right, mut passing) = (0, 0);
    for caller in callers {
        let (r, p) = caller.await.unwrap();
        (right, passing) = (right + r, passing + p);
    }
    chaos::report(
        "worker processes killed",
        Seen { faults: kills, checked: right, ..Seen::default() },
    );
    assert!(right > 100 && passing > 0, "{right} {passing}");
    assert!(daemon.is_running());
    daemon.until("both readers are back", async || workers(&daemon).1.len() == 2).await;
    assert_eq!(admin.unwrap(&key, &wrapped, &[]).await.unwrap().dek, dek.to_vec());
}

/// How many answers were right, and how many calls may be repeated. No other answer
/// is accepted.
async fn unwrap_until(
    mut client: Client,
    key: String,
    wrapped: Vec<u8>,
    dek: [u8; 48],
    enough: Arc<AtomicBool>,
) -> (u64, u64) {
    let (mut right, mut passing) = (0, 0);
    while !enough.load(Ordering::Relaxed) {
        match client.unwrap(&key, &wrapped, &[]).await {
            Ok(answer) => {
                assert!(answer.dek == dek.to_vec(), "a wrong plaintext");
                right += 1;
            }
            Err(refusal) => {
                assert!(is_passing(&refusal), "{refusal:?}");
                passing += 1;
            }
        }
    }
    (right, passing)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_hangs_is_killed_and_replaced_while_the_other_goes_on() {
    let daemon = start();
    let mut admin = daemon.client("admin").await;
    let (key, dek, wrapped) = wrapped_dek(&mut admin).await;
    let (_, readers) = workers(&daemon);
    signal(readers[0], Signal::STOP);
    // One of the first two is the one that hangs; both readers are never lost.
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let (mut client, key, wrapped) = (admin.clone(), key.clone(), wrapped.clone());
            tokio::spawn(async move { client.unwrap(&key, &wrapped, &[]).await })
        })
        .collect();
    let mut right = 0;
    for call in calls {
        match call.await.unwrap() {
            Ok(answer) => {
                assert!(answer.dek == dek.to_vec(), "a wrong plaintext");
                right += 1;
            }
            Err(refusal) => assert!(is_passing(&refusal), "{refusal:?}"),
        }
    }
    assert!(right >= 39, "{right} of 40");
    daemon
        .until("the one that hung is replaced", async || {
            let (_, now) = workers(&daemon);
            now.len() == 2 && !now.contains(&readers[0])
        })
        .await;
    assert!(daemon.logged().contains("a worker process hangs in the module; it is killed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_hangs_is_waited_for_and_unwraps_go_on() {
    let daemon = start();
    let mut admin = daemon.client("admin").await;
    let (key, dek, wrapped) = wrapped_dek(&mut admin).await;
    let (writer, _) = workers(&daemon);
    signal(writer, Signal::STOP);
    let mut other = admin.clone();
    let making = tokio::spawn(async move {
        let mut request = tonic::Request::new(pb::CreateKeyRequest {
            parent: "instances/default".into(),
            key: Some(pb::Key { display_name: "two".into(), ..Default::default() }),
            request_id: String::new(),
        });
        request.set_timeout(Duration::from_secs(60));
        said(outcome(other.keys.create_key(request).await))
    });
    daemon
        .until("it is found to hang", async || {
            daemon.logged().contains("the writing worker process hangs; it is waited for")
        })
        .await;
    assert_eq!(admin.unwrap(&key, &wrapped, &[]).await.unwrap().dek, dek.to_vec());
    assert_eq!(workers(&daemon).0, writer, "it is never killed");
    signal(writer, Signal::CONT);
    assert_eq!(making.await.unwrap(), "ok");
}

#[tokio::test]
async fn a_new_daemon_changes_nothing_before_the_writer_of_a_dead_one_is_done() {
    let mut daemon = start();
    let admin = daemon.client("admin").await;
    let (writer, readers) = workers(&daemon);
    signal(writer, Signal::STOP);
    let making = {
        let mut admin = admin.clone();
        tokio::spawn(async move {
            admin
                .keys
                .create_key(pb::CreateKeyRequest {
                    parent: "instances/default".into(),
                    key: Some(pb::Key { display_name: "two".into(), ..Default::default() }),
                    request_id: String::new(),
                })
                .await
                .is_ok()
        })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    daemon.kill();
    assert!(!making.await.unwrap());
    daemon.start_again();
    // What nobody waits for may stay as a zombie, without memory.
    let gone = |pid: &i32| fs::read(format!("/proc/{pid}/maps")).is_ok_and(|it| it.is_empty());
    let gone = |pid: &i32| !fs::exists(format!("/proc/{pid}")).unwrap() || gone(pid);
    daemon.until("readers end with their daemon", async || readers.iter().all(gone)).await;
    let mut admin = daemon.client("admin").await;
    let refused =
        admin.create_key(pb::Key { display_name: "three".into(), ..Default::default() }).await;
    assert_eq!(said(refused), "HSM_UNAVAILABLE");
    assert!(daemon.logged().contains("the worker process of an earlier daemon still changes"));

    // It makes the object that nobody waits for, and ends; then that is undone.
    signal(writer, Signal::CONT);
    daemon
        .until("HSM and store agree", async || {
            let status = admin.admin.get_hsm_status(pb::GetHsmStatusRequest {}).await;
            let status = status.unwrap().into_inner();
            status.ready && (status.objects, status.orphans, status.missing) == (0, 0, 0)
        })
        .await;
    daemon.until("the old writer has ended", async || gone(&writer)).await;
    admin.create("four").await;
}

//! kill -9 at every step of every change that HSM and store have a part in: the daemon
//! is told at which failpoint to die, and dies there. After the restart what was
//! acknowledged is there, what was not is whole or gone, a request that is repeated
//! makes one thing, and every object in the token is explained.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rootkeyd::api::pb;
use rootkeyd::api::pb::key::State;
use rootkeyd::failpoint::{ORDERS, POINTS};
use tempfile::TempDir;

use super::chaos::{self, Seen};
use super::common::{self, Client, Daemon, Refusal, outcome, refusal, said};

/// What is cut short.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Op {
    Create,
    Import,
    Rotate,
    Delete,
    Restore,
    Purge,
    /// An import token is made in the place of another.
    Token,
    /// What a crash left is undone after the restart.
    Undo,
}

/// In which runs a row is tried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum When {
    /// In every one.
    Always,
    /// In `make chaos`: another row dies at the same point.
    Chaos,
}

use Op::{Create, Delete, Import, Purge, Restore, Rotate, Token, Undo};
use When::{Always, Chaos};

/// Which change passes which point, at which pass it dies, and when that is tried.
#[rustfmt::skip]
const ROWS: [(Op, &str, u32, When); 68] = [
    (Token,   "intent.committed",     1, Chaos),
    (Token,   "hsm.pair_generated",   1, Always),
    (Token,   "hsm.read_back",        1, Chaos),
    (Token,   "hsm.synchronized",     1, Chaos),
    (Token,   "pair.made",            1, Always),
    (Token,   "token.committed",      1, Always),
    (Token,   "record.copied",        1, Chaos),
    (Token,   "change.done",          1, Chaos),
    (Import,  "intent.committed",     1, Chaos),
    (Import,  "hsm.unwrapped",        1, Always),
    (Import,  "hsm.read_back",        1, Chaos),
    (Import,  "hsm.synchronized",     1, Chaos),
    (Import,  "object.made",          1, Chaos),
    (Import,  "create.committed",     1, Chaos),
    (Import,  "create.published",     1, Chaos),
    (Import,  "record.copied",        1, Chaos),
    (Import,  "change.done",          1, Chaos),
    (Create,  "store.applied",        1, Always),
    (Create,  "intent.committed",     1, Always),
    (Create,  "hsm.generated",        1, Always),
    (Create,  "hsm.read_back",        1, Always),
    (Create,  "hsm.synchronized",     1, Always),
    (Create,  "object.made",          1, Always),
    (Create,  "store.applied",        2, Always),
    (Create,  "store.committed",      2, Always),
    (Create,  "create.committed",     1, Always),
    (Create,  "create.published",     1, Always),
    (Create,  "record.copied",        1, Always),
    (Create,  "change.done",          1, Always),
    (Rotate,  "intent.committed",     1, Chaos),
    (Rotate,  "hsm.generated",        1, Always),
    (Rotate,  "hsm.read_back",        1, Chaos),
    (Rotate,  "hsm.synchronized",     1, Chaos),
    (Rotate,  "object.made",          1, Always),
    (Rotate,  "store.applied",        2, Always),
    (Rotate,  "key.committed",        1, Always),
    (Rotate,  "key.published",        1, Chaos),
    (Rotate,  "record.copied",        1, Chaos),
    (Rotate,  "change.done",          1, Chaos),
    (Delete,  "key.tightened",        1, Always),
    (Delete,  "store.applied",        1, Chaos),
    (Delete,  "store.committed",      1, Chaos),
    (Delete,  "key.committed",        1, Always),
    (Delete,  "key.published",        1, Chaos),
    (Delete,  "record.copied",        1, Chaos),
    (Delete,  "change.done",          1, Chaos),
    (Restore, "store.applied",        1, Chaos),
    (Restore, "key.committed",        1, Always),
    (Restore, "key.published",        1, Always),
    (Restore, "record.copied",        1, Chaos),
    (Restore, "change.done",          1, Chaos),
    (Purge,   "key.tightened",        1, Chaos),
    (Purge,   "store.applied",        1, Chaos),
    (Purge,   "key.committed",        1, Always),
    (Purge,   "purge.begun",          1, Always),
    (Purge,   "hsm.destroyed",        1, Always),
    (Purge,   "hsm.synchronized",     2, Chaos),
    (Purge,   "purge.wiped",          1, Always),
    (Purge,   "purge.wiped",          2, Always),
    (Purge,   "store.applied",        2, Always),
    (Purge,   "purge.committed",      1, Always),
    (Purge,   "purge.removed",        1, Always),
    (Purge,   "record.copied",        1, Chaos),
    (Undo,    "undo.marked",          1, Always),
    (Undo,    "hsm.destroyed",        1, Always),
    (Undo,    "hsm.synchronized",     1, Chaos),
    (Undo,    "undo.wiped",           1, Always),
    (Undo,    "undo.committed",       1, Always),
];

/// The signer is made once, at the first start of all.
const SIGNER: [(&str, When); 5] = [
    ("signer.named", Always),
    ("hsm.signer_generated", Always),
    ("hsm.read_back", Chaos),
    ("hsm.synchronized", Chaos),
    ("signer.made", Always),
];

/// The master key is made with the first key that is kept wrapped.
const WRAPPED: [(&str, When); 8] = [
    ("intent.committed", Chaos),
    ("hsm.master_generated", Always),
    ("hsm.read_back", Chaos),
    ("hsm.synchronized", Chaos),
    ("master.made", Always),
    ("master.committed", Always),
    ("hsm.wrapped", Always),
    ("object.wrapped", Always),
];

#[test]
fn every_point_has_a_row_and_is_in_the_code_once() {
    let once = SIGNER.iter().chain(&WRAPPED);
    let tried = ROWS.iter().map(|(_, point, ..)| *point);
    let tried: BTreeSet<_> = tried.chain(once.clone().map(|(point, _)| *point)).collect();
    let always = ROWS.iter().filter(|(.., when)| *when == Always).map(|(_, point, ..)| *point);
    let once = once.filter(|(_, when)| *when == Always).map(|(point, _)| *point);
    let always: BTreeSet<_> = always.chain(once).collect();
    let known = BTreeSet::from(POINTS);
    assert_eq!(tried, known);
    assert_eq!(always, known, "in every run");
    let mut in_code: BTreeMap<String, u32> = BTreeMap::new();
    points_in(Path::new("src"), &mut in_code);
    let once = known.iter().map(|point| ((*point).to_owned(), 1)).collect();
    assert_eq!(in_code, once);
}

fn points_in(folder: &Path, found: &mut BTreeMap<String, u32>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            points_in(&path, found);
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for (_, rest) in code.filter_map(|line| line.split_once("failpoint!(\"")) {
            let point = rest.split('"').next().unwrap();
            *found.entry(point.to_owned()).or_default() += 1;
        }
    }
}

/// A key that was acknowledged, and what must be true of it.
struct Kept {
    name: String,
    versions: usize,
    state: State,
    wrapped: Vec<u8>,
}

const DEK: &[u8] = b"a DEK that was acknowledged";

/// A daemon, and what was acknowledged by it.
struct Scene {
    daemon: Daemon,
    orders: PathBuf,
    _directory: TempDir,
    admin: Client,
    kept: Vec<Kept>,
    /// Sealed to the token that there is.
    material: Option<pb::SealedKeyMaterial>,
    has_token: bool,
    /// By the daemon's clock.
    seconds: u64,
    requests: u32,
    seen: Seen,
}

impl Scene {
    async fn begin() -> Self {
        // Every key can be restored, generated ones too.
        let mut daemon = Daemon::start_edited(|config| {
            config.replace("profile = \"vpc\"", "profile = \"key-protect\"")
        });
        let directory = tempfile::tempdir().unwrap();
        let orders = directory.path().join("orders");
        daemon.terminate();
        daemon.start_by(with_orders(daemon.dev(), &orders));
        let admin = daemon.client("admin").await;
        Self {
            daemon,
            orders,
            _directory: directory,
            admin,
            kept: Vec::new(),
            material: None,
            has_token: false,
            seconds: 0,
            requests: 0,
            seen: Seen::default(),
        }
    }

    fn pass(&mut self, seconds: u64) {
        self.seconds += seconds;
        self.daemon.set_clock(&format!("+{}s", self.seconds));
    }

    fn request_id(&mut self) -> String {
        self.requests += 1;
        format!("{:08x}-95c9-4a0e-8a3e-1f2d3c4b5a69", self.requests)
    }

    /// A key that has wrapped a DEK.
    async fn key(&mut self) -> Kept {
        let name = self.admin.create("kept").await.name;
        let wrapped = self.admin.wrap(&name, DEK, &[]).await.unwrap();
        Kept { name, versions: 1, state: State::Active, wrapped }
    }

    fn order(&self, point: &str, pass: u32) {
        let new = self.orders.with_extension("new");
        fs::write(&new, format!("{point} {pass}")).unwrap();
        fs::rename(&new, &self.orders).unwrap();
    }

    /// After it died: starts it again, and nothing is to be cut short.
    async fn start_again(&mut self, row: &str) {
        let began = Instant::now();
        while self.daemon.is_running() {
            assert!(began.elapsed() < PATIENCE, "{row} is never passed");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        fs::remove_file(&self.orders).unwrap();
        self.daemon.start_by(with_orders(self.daemon.dev(), &self.orders));
        self.admin = self.daemon.client("admin").await;
        self.seen.faults += 1;
    }

    /// Cuts one change short, and looks at what is left.
    async fn cut(&mut self, op: Op, point: &str, pass: u32) {
        let row = format!("{op:?} at {point} {pass}");
        match op {
            Create => self.cut_making(&row, (point, pass), None).await,
            Import => {
                let material = self.material().await;
                self.cut_making(&row, (point, pass), Some(material)).await;
            }
            Rotate => self.cut_rotation(&row, (point, pass)).await,
            Delete => self.cut_deletion(&row, (point, pass)).await,
            Restore => self.cut_restoring(&row, (point, pass)).await,
            Purge => self.cut_purge(&row, (point, pass)).await,
            Token => self.cut_token(&row, (point, pass)).await,
            Undo => self.cut_undoing(&row, (point, pass)).await,
        }
        // Those from before were looked at before; all are, in the end.
        self.look(&row, self.kept.len().saturating_sub(3)).await;
    }

    async fn material(&mut self) -> pb::SealedKeyMaterial {
        if self.material.is_none() {
            let token = self.admin.import_token(100).await;
            self.material = Some(common::seal(&token, &[7; 32]));
            self.has_token = true;
        }
        self.material.clone().unwrap()
    }

    async fn cut_making(
        &mut self,
        row: &str,
        (point, pass): (&str, u32),
        material: Option<pb::SealedKeyMaterial>,
    ) {
        let request_id = self.request_id();
        let made = format!("made by {request_id}");
        let make = async |client: &mut Client| match material.clone() {
            None => {
                let key = pb::Key { display_name: made.clone(), ..Default::default() };
                let (parent, request_id) = ("instances/default".into(), request_id.clone());
                let request = pb::CreateKeyRequest { parent, key: Some(key), request_id };
                client.keys.create_key(request).await
            }
            Some(material) => {
                let request = common::import_request(&made, material);
                let request = pb::ImportKeyRequest { request_id: request_id.clone(), ..request };
                client.keys.import_key(request).await
            }
        };
        // What the HSM unwraps is known some time after a start.
        if material.is_some() {
            let daemon = &self.daemon;
            let admin = self.admin.clone();
            let known =
                async || outcome(admin.clone().import.get_import_token(TOKEN()).await).is_ok();
            daemon.until("it is known what the HSM unwraps", known).await;
        }
        self.order(point, pass);
        cut_short(row, make(&mut self.admin.clone()).await);
        self.start_again(row).await;
        let admin = self.admin.clone();
        let name = answered(async || make(&mut admin.clone()).await).await.name;
        let again = answered(async || make(&mut admin.clone()).await).await.name;
        assert_eq!(name, again, "{row}: the same request made two keys");
        let parent = "instances/default".into();
        let list = pb::ListKeysRequest { parent, page_size: 5000, ..Default::default() };
        let keys = outcome(self.admin.keys.list_keys(list).await).unwrap().keys;
        let made = keys.iter().filter(|key| key.display_name == made).count();
        assert_eq!(made, 1, "{row}");
        let wrapped = self.admin.wrap(&name, DEK, &[]).await.unwrap();
        self.recorded_once(row, &name, "kms.secrets.create").await;
        self.kept.push(Kept { name, versions: 1, state: State::Active, wrapped });
    }

    async fn cut_rotation(&mut self, row: &str, (point, pass): (&str, u32)) {
        let kept = self.key().await;
        let request_id = self.request_id();
        let request = pb::RotateKeyRequest {
            name: kept.name.clone(),
            request_id: request_id.clone(),
            ..Default::default()
        };
        self.order(point, pass);
        cut_short(row, self.admin.keys.rotate_key(request.clone()).await);
        self.start_again(row).await;
        // Whole or not at all.
        let versions = self.versions(&kept.name).await;
        assert!((1..=2).contains(&versions), "{row}: {versions} versions");
        let opened = self.admin.unwrap(&kept.name, &kept.wrapped, &[]).await.unwrap();
        assert_eq!(opened.dek, DEK, "{row}");
        let admin = self.admin.clone();
        answered(async || admin.clone().keys.rotate_key(request.clone()).await).await;
        self.recorded_once(row, &kept.name, "kms.secrets.rotate").await;
        self.kept.push(Kept { versions: 2, ..kept });
    }

    async fn cut_deletion(&mut self, row: &str, (point, pass): (&str, u32)) {
        let kept = self.key().await;
        self.order(point, pass);
        let request = pb::DeleteKeyRequest { name: kept.name.clone(), ..Default::default() };
        cut_short(row, self.admin.keys.delete_key(request).await);
        self.start_again(row).await;
        let state = self.admin.get(&kept.name).await.unwrap().state();
        match state {
            State::Active => drop(self.admin.delete(&kept.name).await.unwrap()),
            State::Destroyed => {}
            State::Unspecified | State::Suspended | State::Deactivated => {
                panic!("{row}: {state:?}")
            }
        }
        self.recorded_once(row, &kept.name, "kms.secrets.delete").await;
        self.kept.push(Kept { state: State::Destroyed, ..kept });
    }

    async fn cut_restoring(&mut self, row: &str, (point, pass): (&str, u32)) {
        let kept = self.key().await;
        self.admin.delete(&kept.name).await.unwrap();
        self.pass(31);
        self.order(point, pass);
        let request = pb::RestoreKeyRequest { name: kept.name.clone(), ..Default::default() };
        cut_short(row, self.admin.keys.restore_key(request).await);
        self.start_again(row).await;
        if self.admin.get(&kept.name).await.unwrap().state() == State::Destroyed {
            self.admin.restore(&kept.name).await.unwrap();
        }
        self.recorded_once(row, &kept.name, "kms.secrets.restore").await;
        self.kept.push(kept);
    }

    async fn cut_purge(&mut self, row: &str, (point, pass): (&str, u32)) {
        let kept = self.key().await;
        self.admin.rotate(&kept.name).await.unwrap();
        self.admin.delete(&kept.name).await.unwrap();
        self.pass(4 * 3600 + 1);
        let mut purger = self.daemon.client("key-purge").await;
        let request = pb::PurgeKeyRequest { name: kept.name.clone() };
        self.order(point, pass);
        cut_short(row, purger.keys.purge_key(request).await);
        self.start_again(row).await;
        match self.admin.get(&kept.name).await {
            Ok(whole) => {
                assert_eq!(whole.state(), State::Destroyed, "{row}");
                let mut purger = self.daemon.client("key-purge").await;
                purger.purge(&kept.name).await.unwrap();
            }
            Err(gone) => assert_eq!(gone.reason, "KEY_NOT_FOUND", "{row}"),
        }
        let used = self.admin.unwrap(&kept.name, &kept.wrapped, &[]).await;
        assert_eq!(said(used), "KEY_NOT_FOUND", "{row}");
        let admin = &self.admin;
        let recorded = async || records(admin, &kept.name, "kms.secrets.purge").await == 1;
        self.daemon.until("the purge is finished", recorded).await;
    }

    async fn cut_token(&mut self, row: &str, (point, pass): (&str, u32)) {
        // In the place of one that is there.
        if !self.has_token {
            self.material().await;
        }
        self.order(point, pass);
        let request = common::token_request();
        let request = pb::CreateImportTokenRequest { max_allowed_retrievals: 100, ..request };
        let mut request = tonic::Request::new(request);
        request.set_timeout(PATIENCE);
        cut_short(row, self.admin.import.create_import_token(request).await);
        self.start_again(row).await;
        // The old one or the new one; either is of use.
        self.admin.retrieve_token().await.unwrap();
        self.material = None;
    }

    async fn cut_undoing(&mut self, row: &str, (point, pass): (&str, u32)) {
        self.order("object.made", 1);
        let key = pb::Key { display_name: "never made".into(), ..Default::default() };
        let (parent, request_id) = ("instances/default".into(), String::new());
        let request = pb::CreateKeyRequest { parent, key: Some(key), request_id };
        cut_short(row, self.admin.keys.create_key(request).await);
        let began = Instant::now();
        while self.daemon.is_running() {
            assert!(began.elapsed() < PATIENCE, "{row}");
        }
        self.order(point, pass);
        dies(with_orders(self.daemon.dev(), &self.orders), row);
        self.start_again(row).await;
    }

    async fn versions(&mut self, name: &str) -> usize {
        let request = pb::ListKeyVersionsRequest { parent: name.into(), ..Default::default() };
        outcome(self.admin.keys.list_key_versions(request).await).unwrap().key_versions.len()
    }

    async fn recorded_once(&self, row: &str, key: &str, action: &str) {
        assert_eq!(records(&self.admin, key, action).await, 1, "{row}: records of {action}");
    }

    /// Everything that was acknowledged is as it was, and every object is explained.
    async fn look(&mut self, row: &str, first: usize) {
        let admin = &self.admin;
        let agree = async || {
            let status = admin.clone().hsm_status().await;
            let count = (status.missing, status.wrong, status.doubled, status.resurrected);
            assert_eq!(count, (0, 0, 0, 0), "{row}");
            status.ready && (status.orphans, status.unfinished) == (0, 0)
        };
        self.daemon.until("HSM and store agree", agree).await;
        for number in first..self.kept.len() {
            let Kept { name, versions, state, wrapped } = &self.kept[number];
            let (name, versions, state, wrapped) =
                (name.clone(), *versions, *state, wrapped.clone());
            assert_eq!(self.admin.get(&name).await.unwrap().state(), state, "{row}: {name}");
            assert_eq!(self.versions(&name).await, versions, "{row}: {name}");
            let opened = self.admin.unwrap(&name, &wrapped, &[]).await;
            match state {
                State::Destroyed => assert_eq!(said(opened), "KEY_DESTROYED", "{row}: {name}"),
                State::Unspecified | State::Active | State::Suspended | State::Deactivated => {
                    assert_eq!(opened.unwrap().dek, DEK, "{row}: {name}");
                }
            }
            self.seen.checked += 1;
        }
        // Not by the daemon's word alone: the token is files.
        let live: usize = self.kept.iter().map(|kept| kept.versions).sum();
        let has_pair = self.has_token && self.seconds < TOKEN_SECONDS;
        let expected = CANARY + SIGNER_PARTS + 2 * usize::from(has_pair) + live;
        let tokens = self.daemon.dir.join("tokens");
        let explained = async || object_files(&tokens) == expected;
        self.daemon.until(&format!("{row}: {expected} object files"), explained).await;
    }
}

const CANARY: usize = 1;
const SIGNER_PARTS: usize = 2;
/// How long a token is good by default; then its pair goes by itself.
const TOKEN_SECONDS: u64 = 600;

/// The import token of instance `default`.
const TOKEN: fn() -> pb::GetImportTokenRequest =
    || pb::GetImportTokenRequest { name: "instances/default/importToken".into() };

fn with_orders(mut command: Command, orders: &Path) -> Command {
    command.env(ORDERS, orders);
    command
}

/// The daemon is gone, and has not answered.
fn cut_short<T: std::fmt::Debug>(row: &str, result: Result<T, tonic::Status>) {
    let status = result.map(|answer| panic!("{row} was answered: {answer:?}")).unwrap_err();
    super::gone(&status);
}

/// The answer, asked for again while a refusal says that this may help.
async fn answered(
    mut call: impl AsyncFnMut() -> Result<tonic::Response<pb::Key>, tonic::Status>,
) -> pb::Key {
    loop {
        match call().await {
            Ok(made) => return made.into_inner(),
            Err(status) => {
                let Refusal { reason, retry_after, .. } = refusal(status);
                assert!(retry_after.is_some(), "{reason}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

async fn records(admin: &Client, key: &str, action: &str) -> usize {
    let events = admin.clone().audit_events().await;
    let done = |event: &&pb::AuditEvent| {
        // A request that was repeated has a record too, which tells of no change.
        let changed = event.details.contains_key("generation") || action == "kms.secrets.purge";
        event.subject == key && event.action == action && event.reason.is_empty() && changed
    };
    events.iter().filter(done).count()
}

/// Starts a daemon that dies by itself.
fn dies(mut command: Command, row: &str) {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() >= PATIENCE {
            child.kill().unwrap();
            panic!("{row} is never passed");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Objects that SoftHSM has in files, without those that are torn.
fn object_files(tokens: &Path) -> usize {
    let tokens = fs::read_dir(tokens).unwrap().map(|token| token.unwrap().path());
    let files =
        tokens.filter(|token| token.is_dir()).flat_map(|token| fs::read_dir(token).unwrap());
    let is_object = |file: &fs::DirEntry| {
        let name = file.file_name().into_string().unwrap();
        name.ends_with(".object") && name != "token.object"
    };
    files
        .map(Result::unwrap)
        .filter(|file| is_object(file) && file.metadata().unwrap().len() > 0)
        .count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_at_every_step_loses_nothing_and_leaves_nothing_unexplained() {
    let (rounds, full) = (chaos::rounds(1, 25), chaos::rounds(0, 1) == 1);
    let mut seen = Seen::default();
    let mut reached = HashSet::new();
    for _ in 0..rounds {
        let mut scene = Scene::begin().await;
        for (op, point, pass, when) in ROWS {
            if when == Always || full {
                scene.cut(op, point, pass).await;
                reached.insert((point, pass));
            }
        }
        scene.look("in the end", 0).await;
        seen.faults += scene.seen.faults;
        seen.checked += scene.seen.checked;
    }
    println!("{} points and passes, {} kills", reached.len(), seen.faults);
    chaos::report("kill -9 at every step", seen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_while_the_signer_is_made_leaves_one_signer() {
    let (rounds, full) = (chaos::rounds(1, 25), chaos::rounds(0, 1) == 1);
    let mut seen = Seen::default();
    for _ in 0..rounds {
        for (point, when) in SIGNER {
            if when == Chaos && !full {
                continue;
            }
            let directory = tempfile::tempdir().unwrap();
            let (dir, orders) = (directory.path().join("dev"), directory.path().join("orders"));
            fs::write(&orders, point).unwrap();
            let mut command = Command::new(common::DAEMON);
            command.args(["dev", "--listen", "127.0.0.1:0", "--dir"]).arg(&dir);
            dies(with_orders(command, &orders), point);
            let mut daemon = Daemon::start_in(&dir);
            let mut admin = daemon.client("admin").await;
            let settled = async || {
                let status = admin.hsm_status().await;
                status.ready && status.orphans == 0
            };
            daemon.until("the signer is made", settled).await;
            // It signs the last checkpoint.
            daemon.stop().await;
            let files = object_files(&dir.join("tokens"));
            assert_eq!(files, CANARY + SIGNER_PARTS, "{point}");
            assert!(dir.join("state/audit/signer.pem").exists(), "{point}");
            seen.faults += 1;
            seen.checked += 1;
        }
    }
    chaos::report("kill -9 while the signer is made", seen);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_while_the_first_wrapped_key_is_made_leaves_one_master_key_and_no_other_object() {
    let (rounds, full) = (chaos::rounds(1, 25), chaos::rounds(0, 1) == 1);
    let mut seen = Seen::default();
    for _ in 0..rounds {
        for (point, when) in WRAPPED {
            if when == Chaos && !full {
                continue;
            }
            let mut daemon = Daemon::start_edited(|config| {
                config.replacen("[hsm]\n", "[hsm]\nresidency = \"wrapped\"\n", 1)
            });
            daemon.terminate();
            let directory = tempfile::tempdir().unwrap();
            let orders = directory.path().join("orders");
            daemon.start_by(with_orders(daemon.dev(), &orders));
            let mut admin = daemon.client("admin").await;
            fs::write(&orders, point).unwrap();
            let create = || pb::CreateKeyRequest {
                parent: "instances/default".into(),
                key: Some(pb::Key { display_name: "volumes".into(), ..Default::default() }),
                request_id: "00000001-95c9-4a0e-8a3e-1f2d3c4b5a69".into(),
            };
            cut_short(point, admin.keys.create_key(create()).await);
            daemon.ended();
            daemon.start_by(daemon.dev());
            let mut admin = daemon.client("admin").await;
            let name = answered(async || admin.clone().keys.create_key(create()).await).await.name;
            let wrapped = admin.wrap(&name, DEK, &[]).await.unwrap();
            assert_eq!(admin.unwrap(&name, &wrapped, &[]).await.unwrap().dek, DEK, "{point}");
            let tokens = daemon.dir.join("tokens");
            let settled = async || {
                let status = admin.clone().hsm_status().await;
                let counts = (status.orphans, status.unfinished, status.missing, status.wrapped);
                counts == (0, 0, 0, 1) && object_files(&tokens) == CANARY + SIGNER_PARTS + 1
            };
            daemon.until(&format!("{point}: nothing is left"), settled).await;
            seen.faults += 1;
            seen.checked += 1;
        }
    }
    chaos::report("kill -9 while the first wrapped key is made", seen);
}

/// How long a point may take to be passed: an RSA pair is made before some.
const PATIENCE: Duration = Duration::from_secs(60);

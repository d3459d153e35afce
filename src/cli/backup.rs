//! `backup` and `restore`: copies of the store, by the operator of the daemon's machine.
//! They need the state directory and no daemon; a backup may be taken while it runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use comfy_table::Table;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    confirm::Question,
    failure::Failure,
    new_file::{Existing, NewFile},
    output::{Output, fields, note, or_nothing},
};
use crate::{
    audit::{self, checkpoint::Checkpoint},
    store::backup::{self, About},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  rootkeyctl backup --state-dir /var/lib/rootkeyd --to /backup/rootkeyd-monday.sqlite")]
pub(super) struct Backup {
    /// The daemon's state directory
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// The backup; there must be no such file
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// The audit log, if it is not in the state directory
    #[arg(long, value_name = "DIR")]
    audit_dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  systemctl stop rootkeyd
  rootkeyctl restore /backup/rootkeyd-monday.sqlite --state-dir /var/lib/rootkeyd")]
pub(super) struct Restore {
    /// What `rootkeyctl backup` wrote
    file: PathBuf,
    /// The daemon's state directory
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// The audit log, if it is not in the state directory
    #[arg(long, value_name = "DIR")]
    audit_dir: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Backup {
    /// Needs no daemon.
    #[expect(clippy::disallowed_methods, reason = "a backup says when it was taken")]
    pub(super) fn run(&self, output: Output) -> Result<(), Failure> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let log = audit_in(&self.state_dir, self.audit_dir.as_deref());
        let newest = audit::newest_checkpoint(&log).map_err(failed(&log))?;
        let (checkpoint, public_key) = newest.unwrap_or_default();
        let time = i64::try_from(time).unwrap_or(i64::MAX);
        let about = About { time, checkpoint, public_key };
        let file = NewFile::begin(&self.to, Existing::Keep)?;
        let store = backup::store_in(&self.state_dir);
        let taken = backup::take(&store, file.path(), &about).map_err(failed(&store))?;
        file.commit()?;
        let signature = "as the audit log has it";
        output.show(&BackupView::of(&self.to, &taken, signature, None), BackupView::table)
    }
}

impl Restore {
    /// Needs the state directory for itself.
    pub(super) fn run(&self, output: Output) -> Result<(), Failure> {
        let found = backup::look(&self.file).map_err(failed(&self.file))?;
        let log = audit_in(&self.state_dir, self.audit_dir.as_deref());
        let signature = self.check_signature(&found.about, &log)?;
        let view = BackupView::of(&self.file, &found, signature, None);
        let store = backup::store_in(&self.state_dir);
        if store.exists() {
            let loss = format!(
                "What was changed since {} is undone: keys that were disabled or deleted since \
                 are enabled again, access that was taken away is there again.",
                view.time
            );
            let answer = store.display().to_string();
            Question { done: "restored", loss: &loss, answer: &answer }.ask(self.yes)?;
        }
        let before = backup::put_back(&self.file, &self.state_dir).map_err(failed(&store))?;
        note("The daemon unwraps nothing until it is started with --accept-restored-store.");
        let view = BackupView { kept: before.map(|path| path.display().to_string()), ..view };
        output.show(&view, BackupView::table)
    }

    /// Holds the checkpoint to the key that this machine knows, else to the one beside it.
    fn check_signature(&self, about: &About, log: &Path) -> Result<&'static str, Failure> {
        if about.checkpoint.is_empty() {
            return Ok("none: there was no checkpoint yet");
        }
        let unproven = |why: String| Failure::Unproven { path: self.file.clone(), why };
        let known = audit::public_key(log).map_err(failed(log))?;
        let (key, said) = match known {
            Some(key) => (key, "by the key of this audit log"),
            None => {
                let key = audit::public_key_in(&about.public_key);
                let key = key.ok_or_else(|| unproven("its public key is none".into()))?;
                (key, "by the key in the backup; compare it with one that you trust")
            }
        };
        Checkpoint::verified(&about.checkpoint, &key).map_err(|bad| unproven(bad.to_string()))?;
        Ok(said)
    }
}

fn audit_in(state: &Path, elsewhere: Option<&Path>) -> PathBuf {
    elsewhere.map_or_else(|| state.join("audit"), Path::to_owned)
}

/// `map_err` with the path of what it is about.
fn failed<E: std::error::Error>(path: &Path) -> impl FnOnce(E) -> Failure {
    |error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        Failure::State { path: path.to_owned(), why: format!("{error}{cause}") }
    }
}

/// A backup, as it is shown.
#[derive(Debug, Serialize)]
struct BackupView {
    file: String,
    /// RFC 3339.
    time: String,
    bytes: u64,
    keys: u64,
    /// How far the audit log had come.
    audit_records: u64,
    /// Whether the checkpoint in it is signed.
    checkpoint: &'static str,
    /// Where the store is kept that was there.
    kept: Option<String>,
}

impl BackupView {
    fn of(file: &Path, found: &backup::Backup, signed: &'static str, kept: Option<String>) -> Self {
        let time = Timestamp::from_second(found.about.time);
        Self {
            file: file.display().to_string(),
            time: time.map(|time| time.to_string()).unwrap_or_default(),
            bytes: fs::metadata(file).map_or(0, |found| found.len()),
            keys: found.keys,
            audit_records: found.position.map_or(0, |position| position.records),
            checkpoint: signed,
            kept,
        }
    }

    fn table(&self) -> Table {
        let Self { file, time, bytes, keys, audit_records, checkpoint, kept } = self;
        fields([
            ("BACKUP", file.clone()),
            ("TAKEN", time.clone()),
            ("BYTES", bytes.to_string()),
            ("ROOT KEYS", keys.to_string()),
            ("AUDIT RECORDS", audit_records.to_string()),
            ("CHECKPOINT", (*checkpoint).to_owned()),
            ("STORE BEFORE", or_nothing(kept.as_deref().unwrap_or_default())),
        ])
    }
}

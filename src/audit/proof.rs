//! The proof that goes with a log: which key signs, the checkpoints made so far, and
//! their copies elsewhere. At start the log is held to the newest of them.
//!
//! Who signs and when is decided in `service/proof.rs`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::AuditError;
use super::chain::Head;
use super::checkpoint::{Checkpoint, CheckpointKey};
use super::forward::Readable;
use super::journal;
use super::merkle::Tree;
use super::notebook::{Entries, Notebook, Signed, corrupt};
use super::segment::unavailable;
use super::witness::Witness;
use crate::domain::ObjectId;

/// Where copies of the checkpoints go.
#[derive(Clone, Debug, Default)]
pub struct Anchors {
    /// A file on another disk or host.
    pub witness: Option<PathBuf>,
    /// The socket of the systemd journal.
    pub journal: Option<PathBuf>,
}

/// What a checkpoint can be made of: the log as it was at one time.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub(super) tree: Tree,
    pub(super) head: Head,
}

impl Snapshot {
    /// How many records there were.
    pub fn size(&self) -> u64 {
        self.head.records
    }

    /// What is to be signed.
    pub fn checkpoint(&self, origin: String, boot_id: String, time_micros: i64) -> Checkpoint {
        let (size, root, head) = (self.head.records, self.tree.root(), self.head.hash);
        Checkpoint { origin, size, root, head, boot_id, time_micros }
    }
}

/// The key that checkpoints are verified with.
#[derive(Clone, Debug)]
pub struct PublicKey {
    /// For the verifier.
    pub key: CheckpointKey,
    /// The same, as PEM.
    pub pem: String,
}

/// Files of the proof, in the directory of the log.
pub(super) struct Proof {
    directory: PathBuf,
    /// CKA_ID of the signer, once one was begun.
    pub(super) signer: Option<ObjectId>,
    /// Once the signer was made.
    pub(super) key: Option<PublicKey>,
    pub(super) newest: Option<Signed>,
    notebook: Option<Notebook>,
    anchors: Anchors,
    pub(super) witness: Option<Witness>,
}

impl Proof {
    /// Reads what there is, and holds the log, which ends at `head`, to it. With the tree of
    /// the whole log.
    pub(super) fn open(
        log: Readable<'_>,
        head: Head,
        anchors: Anchors,
    ) -> Result<(Self, Tree), AuditError> {
        let directory = log.directory.to_owned();
        let signer = read_signer(&directory)?;
        let key = read_key(&directory)?;
        let (mut notebook, mut newest) = (None, None);
        let path = directory.join(CHECKPOINTS);
        if path.exists() {
            let (opened, found) = Notebook::open(&path)?;
            newest = found.map(|found| trusted(&path, found, key.as_ref())).transpose()?;
            notebook = Some(opened);
        }
        if newest.is_some() && signer.is_none() {
            return Err(corrupt(&directory.join(SIGNER), NO_SIGNER));
        }
        let mut proof = Self { directory, signer, key, newest, notebook, anchors, witness: None };
        let tree = proof.hold(log, head, &path)?;
        Ok((proof, tree))
    }

    /// Whether checkpoints of this log are known.
    pub(super) fn has_checkpoints(&self) -> bool {
        self.newest.is_some()
    }

    /// Writes durably which object the signer will be.
    pub(super) fn begin_signer(&mut self, object: ObjectId) -> Result<(), AuditError> {
        if self.has_checkpoints() {
            return Err(corrupt(&self.directory.join(SIGNER), "checkpoints have a signer already"));
        }
        let text = format!("{object}\n");
        write(&self.directory, SIGNER, &text).map_err(unavailable("write down the signer"))?;
        self.signer = Some(object);
        Ok(())
    }

    /// Notes the key of the signer, which must be the one that it was.
    pub(super) fn adopt_key(&mut self, spki: Vec<u8>) -> Result<(), AuditError> {
        let key = PublicKey::from_spki(spki);
        match &self.key {
            Some(known) if known.pem == key.pem => return Ok(()),
            Some(_) if self.has_checkpoints() => {
                let what = "the signer in the HSM has another public key";
                return Err(corrupt(&self.directory.join(KEY), what));
            }
            Some(_) | None => {}
        }
        write(&self.directory, KEY, &key.pem).map_err(unavailable("write down the public key"))?;
        self.key = Some(key);
        Ok(())
    }

    /// Appends a checkpoint durably, and sends it to where copies go.
    pub(super) fn add(&mut self, snapshot: Snapshot, note: &str) -> Result<(), AuditError> {
        let path = self.directory.join(CHECKPOINTS);
        let key = self.key.as_ref().ok_or_else(|| corrupt(&path, NO_KEY))?;
        let signed = Signed::verified(note, snapshot.tree, &key.key)
            .map_err(|_bad| corrupt(&path, "the HSM signed with another key"))?;
        if self
            .newest
            .as_ref()
            .is_some_and(|newest| newest.checkpoint.size > signed.checkpoint.size)
        {
            return Ok(());
        }
        let notebook = match &mut self.notebook {
            Some(notebook) => notebook,
            none => none.insert(Notebook::open(&path)?.0),
        };
        notebook.append(&signed).map_err(unavailable("append a checkpoint"))?;
        self.send(&signed);
        self.newest = Some(signed);
        Ok(())
    }

    fn send(&mut self, signed: &Signed) {
        let checkpoint = &signed.checkpoint;
        tracing::info!(
            size = checkpoint.size,
            root = hex::encode(checkpoint.root),
            head = hex::encode(checkpoint.head),
            "audit checkpoint"
        );
        if let Some(witness) = &self.witness {
            witness.tell(signed);
        }
        if let Some(socket) = &self.anchors.journal
            && let Err(error) = journal::tell(socket, signed)
        {
            tracing::warn!(%error, "the journal was not told of a checkpoint");
        }
    }

    /// The tree of the whole log, if it holds what the newest checkpoints say.
    fn hold(&mut self, log: Readable<'_>, head: Head, path: &Path) -> Result<Tree, AuditError> {
        let start = log.after(0)?.ok_or_else(|| corrupt(path, SHORT))?;
        let (mut place, mut tree) = (start, Tree::default());
        if let Some(newest) = &self.newest {
            (place, tree) = (held(log, head, path, &newest.checkpoint)?, newest.tree.clone());
        }
        if let Some(path) = self.anchors.witness.clone() {
            let opened = self.hold_to_witness(log, head, &path)?;
            self.witness = Some(Witness::start(path, opened)?);
        }
        log.walk(&mut place, |item| {
            tree.push(&item.head.hash);
            ControlFlow::Continue(())
        })?;
        Ok(tree)
    }

    /// The witness file, if it can be read and the log holds what it says.
    fn hold_to_witness(
        &self,
        log: Readable<'_>,
        head: Head,
        path: &Path,
    ) -> Result<Option<Notebook>, AuditError> {
        let (witness, newest) = match Notebook::open(path) {
            Ok(opened) => opened,
            Err(error @ AuditError::Corrupt { .. }) => return Err(error),
            // Another disk or host that is away must not keep the keys from working.
            Err(error @ (AuditError::Unavailable { .. } | AuditError::Overloaded)) => {
                tracing::error!(path = %path.display(), %error, "the witness cannot be read");
                return Ok(None);
            }
        };
        match newest {
            Some(newest) => {
                let newest = trusted(path, newest, self.key.as_ref())?;
                held(log, head, path, &newest.checkpoint)?;
            }
            None if self.newest.is_some() => {
                tracing::warn!(path = %path.display(), "the witness knows of no checkpoint yet");
            }
            None => {}
        }
        Ok(Some(witness))
    }
}

impl PublicKey {
    fn from_spki(spki: Vec<u8>) -> Self {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let pem = pem::encode_config(&pem::Pem::new(PEM_TAG, spki.clone()), config);
        Self { key: CheckpointKey::from_spki(spki), pem }
    }
}

/// The newest checkpoint of a log that a daemon may be writing to, as it was signed, and
/// the key that signed it, as PEM; `None` if there is none. Needs no lock and changes nothing.
///
/// # Errors
/// [`AuditError::Corrupt`], if it is not signed by that key; [`AuditError::Unavailable`].
pub fn newest_checkpoint(directory: &Path) -> Result<Option<(String, String)>, AuditError> {
    let path = directory.join(CHECKPOINTS);
    let failed = unavailable("read the checkpoints");
    let Some(mut entries) = Entries::open(&path).map_err(&failed)? else { return Ok(None) };
    let mut newest = None;
    while let Some((_, note, tree)) = entries.next().map_err(&failed)? {
        newest = Some((note, tree));
    }
    let Some(newest) = newest else { return Ok(None) };
    let key = read_key(directory)?;
    let signed = trusted(&path, newest, key.as_ref())?;
    Ok(key.map(|key| (signed.note, key.pem)))
}

/// The key that checkpoints of a log are verified with, if it is known.
///
/// # Errors
/// [`AuditError`].
pub fn public_key(directory: &Path) -> Result<Option<CheckpointKey>, AuditError> {
    Ok(read_key(directory)?.map(|known| known.key))
}

/// The same of its PEM; `None` if it is none.
pub fn public_key_in(pem: &str) -> Option<CheckpointKey> {
    let parsed = pem::parse(pem).ok().filter(|pem| pem.tag() == PEM_TAG)?;
    Some(CheckpointKey::from_spki(parsed.into_contents()))
}

/// Where the log has what the checkpoint says.
fn held(
    log: Readable<'_>,
    head: Head,
    path: &Path,
    checkpoint: &Checkpoint,
) -> Result<super::forward::Place, AuditError> {
    let Checkpoint { size, head: hash, .. } = checkpoint;
    let cut = || {
        let place = format!(
            "{}, where {size} records are signed, while the log has {}",
            path.display(),
            head.records
        );
        AuditError::Corrupt { place, what: "the tail of the log is missing" }
    };
    let place = log.after(*size)?.ok_or_else(cut)?;
    if place.head.hash != *hash {
        let place = format!("{}, where {size} records are signed", path.display());
        return Err(AuditError::Corrupt { place, what: "the log has other records" });
    }
    Ok(place)
}

fn trusted(
    path: &Path,
    (note, tree): (String, Tree),
    key: Option<&PublicKey>,
) -> Result<Signed, AuditError> {
    let key = key.ok_or_else(|| corrupt(path, NO_KEY))?;
    Signed::verified(&note, tree, &key.key).map_err(|what| corrupt(path, what))
}

fn read_signer(directory: &Path) -> Result<Option<ObjectId>, AuditError> {
    let Some(text) = read(&directory.join(SIGNER))? else { return Ok(None) };
    let id = text.strip_suffix('\n').and_then(|id| uuid::Uuid::parse_str(id).ok());
    let id = id.ok_or_else(|| corrupt(&directory.join(SIGNER), "it is no CKA_ID"))?;
    Ok(Some(ObjectId::from(id)))
}

fn read_key(directory: &Path) -> Result<Option<PublicKey>, AuditError> {
    let path = directory.join(KEY);
    let Some(text) = read(&path)? else { return Ok(None) };
    let parsed = pem::parse(&text).ok().filter(|pem| pem.tag() == PEM_TAG);
    let parsed = parsed.ok_or_else(|| corrupt(&path, "it is no public key in PEM"))?;
    Ok(Some(PublicKey::from_spki(parsed.into_contents())))
}

fn read(path: &Path) -> Result<Option<String>, AuditError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unavailable("read a file of the proof")(error)),
    }
}

/// Writes a file, whole or not at all, durably.
fn write(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.tmp"));
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, directory.join(name))?;
    File::open(directory)?.sync_all()
}

/// Holds the CKA_ID of the signer.
pub(super) const SIGNER: &str = "signer";
/// Holds its public key.
const KEY: &str = "signer.pem";
/// Every checkpoint.
pub(super) const CHECKPOINTS: &str = "checkpoints";
const PEM_TAG: &str = "PUBLIC KEY";
const NO_SIGNER: &str = "there are checkpoints, and the file that names their signer is missing";
const NO_KEY: &str = "there are checkpoints, and no signer.pem to verify them with";
const SHORT: &str = "there is no segment";

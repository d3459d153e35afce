//! `audit verify`, `export`, `checkpoint` and `key`: the proof that the audit log was
//! not changed. `verify` needs no daemon, and is the same code that the daemon has.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use comfy_table::Table;
use serde::Serialize;

use super::{
    failure::Failure,
    new_file::{Existing, NewFile},
    output::{Output, fields},
};
use crate::{
    api::pb,
    audit::{
        checkpoint::{Checkpoint, CheckpointKey},
        export::Verifier,
    },
    client::Client,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  rootkeyctl audit verify audit.rkexport --key signer.pem
  rootkeyctl audit verify audit.rkexport --key signer.pem --checkpoint later.txt")]
pub(super) struct Verify {
    /// What `audit export` wrote
    file: PathBuf,
    /// The public key, from a source that you trust
    #[arg(long, value_name = "PEM_FILE")]
    key: PathBuf,
    /// A checkpoint from elsewhere, or a file of many; what it covers must be in the export
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
}

impl Verify {
    /// Needs no daemon.
    pub(super) fn run(&self, output: Output) -> Result<(), Failure> {
        let key = read_key(&self.key)?;
        let mut anchors = Vec::new();
        for path in &self.checkpoint {
            let text = fs::read_to_string(path).map_err(Failure::file(path))?;
            let before = anchors.len();
            for note in notes_in(&text) {
                let bad = |why| unproven(path, &why);
                anchors.push(Checkpoint::verified(&note, &key).map_err(bad)?);
            }
            if anchors.len() == before {
                return Err(unproven(path, &"there is no checkpoint in it"));
            }
        }
        let view = verify(&self.file, key, anchors)?;
        output.show(&view, VerifiedView::table)
    }
}

/// Verifies a file of any length; of it a part is in memory.
fn verify(
    path: &Path,
    key: CheckpointKey,
    anchors: Vec<Checkpoint>,
) -> Result<VerifiedView, Failure> {
    let mut source = Source::open(path)?;
    source.fill()?;
    let begun = Verifier::begin(source.rest(), key, anchors);
    let (mut verifier, size) = begun.map_err(|fault| unproven(path, &fault))?;
    let first = verifier.records() + 1;
    source.at += size;
    loop {
        source.fill()?;
        if source.rest().is_empty() {
            break;
        }
        source.at += verifier.step(source.rest()).map_err(|fault| unproven(path, &fault))?;
    }
    let verified = verifier.finish().map_err(|fault| unproven(path, &fault))?;
    let head = hex::encode(verified.head);
    Ok(VerifiedView { first, last: verified.records, head })
}

/// A file that is read bit by bit.
struct Source<'a> {
    path: &'a Path,
    file: File,
    bytes: Vec<u8>,
    at: usize,
    ended: bool,
}

impl<'a> Source<'a> {
    fn open(path: &'a Path) -> Result<Self, Failure> {
        let file = File::open(path).map_err(Failure::file(path))?;
        Ok(Self { path, file, bytes: Vec::new(), at: 0, ended: false })
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    /// Makes sure that a whole item is there, if the file has one.
    fn fill(&mut self) -> Result<(), Failure> {
        if self.ended || self.rest().len() >= ITEM_BYTES {
            return Ok(());
        }
        self.bytes.drain(..self.at);
        self.at = 0;
        let mut part = self.file.by_ref().take(READ_BYTES);
        let read = part.read_to_end(&mut self.bytes).map_err(Failure::file(self.path))?;
        self.ended = read == 0;
        if !self.ended { self.fill() } else { Ok(()) }
    }
}

#[derive(Debug, Serialize)]
struct VerifiedView {
    first: u64,
    last: u64,
    head: String,
}

impl VerifiedView {
    fn table(&self) -> Table {
        fields([
            ("verified", format!("records {} to {}", self.first, self.last)),
            ("head", self.head.clone()),
        ])
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  rootkeyctl audit export --out audit.rkexport
  rootkeyctl audit export --first 100000 --out rest.rkexport")]
pub(super) struct Export {
    /// Where to write it; - for standard output
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Number of the first record; the hashes before it are in the export
    #[arg(long, value_name = "N", default_value_t = 1)]
    first: u64,
    /// Replace the file if it exists
    #[arg(long)]
    overwrite: bool,
}

impl Export {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        let request = pb::ExportAuditLogRequest { first_sequence: self.first };
        let mut parts = client.audit_stream().export_audit_log(request).await?.into_inner();
        if self.out == Path::new("-") {
            let mut out = io::stdout().lock();
            while let Some(part) = parts.message().await? {
                io::Write::write_all(&mut out, &part.chunk).map_err(Failure::Stdout)?;
            }
            return io::Write::flush(&mut out).map_err(Failure::Stdout);
        }
        let existing = if self.overwrite { Existing::Replace } else { Existing::Keep };
        let mut file = NewFile::begin(&self.out, existing)?;
        while let Some(part) = parts.message().await? {
            io::Write::write_all(&mut file, &part.chunk).map_err(Failure::file(&self.out))?;
        }
        file.commit()
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  rootkeyctl audit checkpoint > later.txt
  rootkeyctl audit checkpoint --fresh")]
pub(super) struct ShowCheckpoint {
    /// Make a new one, if records were added
    #[arg(long)]
    fresh: bool,
}

impl ShowCheckpoint {
    /// The note as it was signed, whatever the format: it is for programs already.
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        let note = checkpoint(client, self.fresh).await?.note;
        print(&note)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  rootkeyctl audit key > signer.pem")]
pub(super) struct Key;

impl Key {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        print(&checkpoint(client, false).await?.public_key)
    }
}

async fn checkpoint(client: &Client, fresh: bool) -> Result<pb::Checkpoint, Failure> {
    Ok(client.audit().get_checkpoint(pb::GetCheckpointRequest { fresh }).await?.into_inner())
}

fn print(text: &str) -> Result<(), Failure> {
    io::Write::write_all(&mut io::stdout(), text.as_bytes()).map_err(Failure::Stdout)
}

fn read_key(path: &Path) -> Result<CheckpointKey, Failure> {
    let text = fs::read(path).map_err(Failure::file(path))?;
    let parsed = pem::parse(text).ok().filter(|pem| pem.tag() == "PUBLIC KEY");
    let parsed = parsed.ok_or_else(|| unproven(path, &"it is no public key in PEM"))?;
    Ok(CheckpointKey::from_spki(parsed.into_contents()))
}

/// The notes in a text: one, or the daemon's file or witness of many.
fn notes_in(text: &str) -> Vec<String> {
    let lines: Vec<_> = text.lines().collect();
    let is_signature = |(at, line): (usize, &&str)| line.starts_with("\u{2014} ").then_some(at);
    let ends = lines.iter().enumerate().filter_map(is_signature);
    let note = |end: usize| {
        let start = end.checked_sub(NOTE_LINES - 1)?;
        Some(format!("{}\n", lines[start..=end].join("\n")))
    };
    ends.filter_map(note).collect()
}

fn unproven(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::Unproven { path: path.to_owned(), why: why.to_string() }
}

/// The text of a note (6), an empty line, its signature.
const NOTE_LINES: usize = 8;
/// More than a record, a checkpoint or a header has.
const ITEM_BYTES: usize = 256 * 1024;
const READ_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_note_of_a_file_is_found() {
        let note = "o\n1\nr\nhead h\nboot b\ntime_micros 1\n\n\u{2014} o sig\n";
        assert_eq!(notes_in(note), [note]);
        let many = format!("{note}edge e\n\n{note}edge e\n\n");
        assert_eq!(notes_in(&many), [note, note]);
        assert!(notes_in("nothing\n").is_empty());
    }
}

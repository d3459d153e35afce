//! A file of checkpoints that is appended to: each note, with the edge of its tree,
//! so that the tree can go on without reading the log again. `docs/audit-format.md`.
//!
//! An entry that a crash tore off is cut away. Only the newest is read at start.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::AuditError;
use super::checkpoint::{Checkpoint, CheckpointKey};
use super::merkle::Tree;

/// A checkpoint, as it was signed.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The signed note.
    pub note: String,
    /// What it says.
    pub checkpoint: Checkpoint,
    pub(super) tree: Tree,
}

/// The file, and where its last whole entry ends.
pub(super) struct Notebook {
    path: PathBuf,
    file: File,
    end: u64,
}

impl Signed {
    /// Of a note and its tree, if the key signed it and both belong together.
    pub(super) fn verified(
        note: &str,
        tree: Tree,
        key: &CheckpointKey,
    ) -> Result<Self, &'static str> {
        let checkpoint = Checkpoint::verified(note, key)
            .map_err(|_bad| "its newest checkpoint is not signed by the key in signer.pem")?;
        if (tree.size(), tree.root()) != (checkpoint.size, checkpoint.root) {
            return Err("the edge of its newest checkpoint is not the one that was signed");
        }
        Ok(Self { note: note.to_owned(), checkpoint, tree })
    }

    fn entry(&self) -> String {
        format!("{}edge {}\n\n", self.note, STANDARD.encode(self.tree.edge().concat()))
    }
}

impl Notebook {
    /// Opens the file; it is made if it is not there. With its newest entry, unverified:
    /// the note and the edge.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<(String, Tree)>), AuditError> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = file.open(path).map_err(super::segment::unavailable(OPEN))?;
        let (end, newest) = last_entry(&file)
            .map_err(super::segment::unavailable(OPEN))?
            .ok_or_else(|| corrupt(path, "it does not end with a checkpoint"))?;
        if file.metadata().is_ok_and(|it| it.len() > end) {
            file.set_len(end).map_err(super::segment::unavailable(OPEN))?;
        }
        Ok((Self { path: path.to_owned(), file, end }, newest))
    }

    /// Appends durably.
    pub(super) fn append(&mut self, signed: &Signed) -> io::Result<()> {
        let entry = signed.entry();
        self.file.set_len(self.end)?;
        self.file.write_all_at(entry.as_bytes(), self.end)?;
        self.file.sync_all()?;
        self.end += entry.len() as u64;
        if let Some(folder) = self.path.parent().filter(|_| self.end == entry.len() as u64) {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }
}

/// The entries of a file from its beginning, the note and the edge of each; unverified.
pub(super) struct Entries(io::Lines<BufReader<File>>);

impl Entries {
    /// Of a file; none if it is not there.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self(BufReader::new(file).lines()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next one. A torn one at the end counts as none.
    pub(super) fn next(&mut self) -> io::Result<Option<(u64, String, Tree)>> {
        let mut lines = Vec::with_capacity(ENTRY_LINES);
        for line in self.0.by_ref().take(ENTRY_LINES) {
            lines.push(line?);
        }
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let Some((note, tree)) = parse(&lines) else { return Ok(None) };
        Ok(Some((tree.size(), note, tree)))
    }
}

/// Where the last whole entry of the file ends, and what it is; `None` if what is at the end
/// is no entry and too long to be a torn one.
#[expect(clippy::type_complexity, reason = "end and entry, either of which may not be")]
fn last_entry(file: &File) -> io::Result<Option<(u64, Option<(String, Tree)>)>> {
    let length = file.metadata()?.len();
    let start = length.saturating_sub(TAIL_BYTES);
    let mut bytes = vec![0; usize::try_from(length - start).unwrap_or(0)];
    file.read_exact_at(&mut bytes, start)?;
    // As bytes: a torn line may end within a character.
    let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let ends = |at: &usize| lines[*at] == b"\n" && lines[at - 1].starts_with(b"edge ");
    let Some(last) = (1..lines.len()).rev().find(ends) else {
        return Ok((start == 0 && lines.len() < ENTRY_LINES).then_some((0, None)));
    };
    let torn: usize = lines[last + 1..].iter().map(|line| line.len()).sum();
    let whole = (last + 1).checked_sub(ENTRY_LINES).and_then(|first| {
        let text = lines[first..=last].iter().map(|line| std::str::from_utf8(line).ok());
        let text: Vec<_> = text.map(|line| line?.strip_suffix('\n')).collect::<Option<_>>()?;
        parse(&text)
    });
    let few = lines.len() - last <= ENTRY_LINES;
    Ok(whole.filter(|_| few).map(|entry| (length - torn as u64, Some(entry))))
}

fn parse(lines: &[&str]) -> Option<(String, Tree)> {
    let [note @ .., edge, ""] = lines else { return None };
    if lines.len() != ENTRY_LINES {
        return None;
    }
    let size = note.get(1)?.parse().ok()?;
    let edge = STANDARD.decode(edge.strip_prefix("edge ")?).ok()?;
    let (nodes, rest) = edge.as_chunks::<32>();
    let tree = rest.is_empty().then(|| Tree::resume(size, nodes.to_vec()))??;
    Some((format!("{}\n", note.join("\n")), tree))
}

pub(super) fn corrupt(path: &Path, what: &'static str) -> AuditError {
    AuditError::Corrupt { place: path.display().to_string(), what }
}

const OPEN: &str = "open a file of checkpoints";
/// The text of a note (6), an empty line, its signature, the edge, an empty line.
const ENTRY_LINES: usize = 10;
/// More than two entries can be long.
const TAIL_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::checkpoint::tests::Signer;
    use super::*;

    fn signed(signer: &Signer, size: u8) -> Signed {
        let mut tree = Tree::default();
        (0..size).for_each(|leaf| tree.push(&[leaf]));
        let checkpoint = Checkpoint {
            origin: "rootkeyd/test".into(),
            size: size.into(),
            root: tree.root(),
            head: [size; 32],
            boot_id: "b".into(),
            time_micros: 5,
        };
        Signed::verified(&signer.sign(&checkpoint), tree, &signer.key()).unwrap()
    }

    #[test]
    fn entries_come_back_and_a_torn_one_is_overwritten() {
        let signer = Signer::new();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoints");
        let (mut notebook, newest) = Notebook::open(&path).unwrap();
        assert!(newest.is_none());
        // Of each its own length: signatures differ in theirs.
        let all = [0, 1, 7].map(|size| signed(&signer, size));
        for signed in &all {
            notebook.append(signed).unwrap();
        }
        let (whole, first) = (fs::read(&path).unwrap(), all[0].entry().len());
        let (_, newest) = Notebook::open(&path).unwrap();
        assert_eq!(newest.unwrap().1, all[2].tree);
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut notebook, newest) = Notebook::open(&path).unwrap();
            assert_eq!(newest.is_none(), cut < first, "cut at {cut}");
            notebook.append(&signed(&signer, 3)).unwrap();
            let (_, newest) = Notebook::open(&path).unwrap();
            assert_eq!(newest.unwrap().1.size(), 3, "cut at {cut}");
            let mut entries = Entries::open(&path).unwrap().unwrap();
            let mut last = 0;
            while let Some((size, note, _)) = entries.next().unwrap() {
                assert!(Checkpoint::verified(&note, &signer.key()).is_ok());
                last = size;
            }
            assert_eq!(last, 3);
        }
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoints");
        for text in ["nonsense\n".repeat(20), format!("{}edge \n\n", "nonsense\n".repeat(8))] {
            fs::write(&path, text).unwrap();
            assert!(Notebook::open(&path).is_err());
        }
    }
}

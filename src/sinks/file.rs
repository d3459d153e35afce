//! A file of JSON lines. It may be renamed by others (logrotate without copytruncate):
//! before each batch it is looked whether the name is still that of the file. Rotation by
//! size is a rename too; no file is ever deleted here.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Line, Output};

/// The file at a path.
pub(super) struct Lines {
    path: PathBuf,
    rotate_bytes: Option<u64>,
    file: Option<File>,
}

impl Lines {
    pub(super) fn new(path: PathBuf, rotate_bytes: Option<u64>) -> Self {
        Self { path, rotate_bytes, file: None }
    }

    fn write(&mut self, lines: &[Line]) -> io::Result<()> {
        let Some(first) = lines.first() else { return Ok(()) };
        let mut bytes = Vec::new();
        for line in lines {
            bytes.extend_from_slice(line.text.as_bytes());
            bytes.push(b'\n');
        }
        let mut file = self.current()?;
        let mut length = file.metadata()?.len();
        let full = |most| length > 0 && length + bytes.len() as u64 > most;
        if self.rotate_bytes.is_some_and(full) {
            rename_aside(&self.path, first.sequence - 1)?;
            file = self.current()?;
            length = file.metadata()?.len();
        }
        if let Err(error) = file.write_all(&bytes) {
            // No half line stays; if it does, the next opening cuts it off.
            let _ = file.set_len(length);
            self.file = None;
            return Err(error);
        }
        file.sync_data()?;
        if file.metadata()?.nlink() == 0 {
            return Err(io::Error::other("the file was deleted while it was written to"));
        }
        Ok(())
    }

    /// The file that has the name now.
    fn current(&mut self) -> io::Result<File> {
        if let Some(file) = &self.file
            && fs::metadata(&self.path)
                .is_ok_and(|named| file.metadata().is_ok_and(|ours| same(&named, &ours)))
        {
            return file.try_clone();
        }
        self.file = None;
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o640).open(&self.path)?;
        cut_half_line(&file)?;
        let folder = self.path.parent().unwrap_or_else(|| Path::new("/"));
        File::open(folder)?.sync_all()?;
        self.file = Some(file.try_clone()?);
        Ok(file)
    }
}

impl Output for Lines {
    fn take(&mut self, lines: &[Line]) -> (usize, io::Result<()>) {
        match self.write(lines) {
            Ok(()) => (lines.len(), Ok(())),
            Err(error) => (0, Err(error)),
        }
    }
}

fn same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// What a crash left of a line goes: it was not taken, and comes again.
fn cut_half_line(file: &File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(&mut block, start)?;
        if let Some(newline) = block.iter().rposition(|byte| *byte == b'\n') {
            end = start + newline as u64 + 1;
            break;
        }
        end = start;
    }
    if end < length { file.set_len(end) } else { Ok(()) }
}

/// To a name of its own, by the number of the last record in it.
fn rename_aside(path: &Path, last: u64) -> io::Result<()> {
    let named = |suffix: String| {
        let mut name = OsString::from(path);
        name.push(suffix);
        PathBuf::from(name)
    };
    let mut aside = named(format!(".{last:020}"));
    let mut attempt = 0;
    while aside.try_exists()? {
        attempt += 1;
        aside = named(format!(".{last:020}.{attempt}"));
    }
    fs::rename(path, aside)
}

const BLOCK: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::super::{View, view};
    use super::*;
    use crate::audit::Record;

    fn line(sequence: u64) -> Line {
        let event = crate::sinks::view::tests::event();
        let record = Record { sequence, event, previous_hash: [0; 32], hash: [0; 32] };
        view::line(&record, View::Json, "o")
    }

    #[test]
    fn a_half_line_of_a_crash_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl");
        for (before, kept) in [("", ""), ("{", ""), ("{}\n", "{}\n"), ("{}\n{\"a", "{}\n")] {
            fs::write(&path, before).unwrap();
            assert_eq!(Lines::new(path.clone(), None).take(&[line(1)]).0, 1);
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(text.strip_prefix(kept), Some(&*(line(1).text + "\n")), "{before:?}");
        }
    }

    #[test]
    fn a_rotated_file_never_takes_the_place_of_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.jsonl");
        let mut lines = Lines::new(path.clone(), Some(1));
        for _ in 0..3 {
            assert_eq!(lines.take(&[line(8)]).0, 1);
        }
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        let seven = "a.jsonl.00000000000000000007".to_owned();
        assert_eq!(names, ["a.jsonl".into(), seven.clone(), seven + ".1"]);
    }
}

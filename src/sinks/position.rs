//! How far a sink is, durable: the number of the last record that it took, in a file
//! beside the log. Written after the sink has the records, so a crash in between
//! has them written twice and none left out.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The position of one sink.
pub(super) struct Position {
    path: PathBuf,
    /// Number of the last record that was taken; 0 before the first.
    pub(super) taken: u64,
    /// What of that is in the file.
    noted: u64,
}

impl Position {
    /// Of the sink `name`; of a new one, and of one that is ahead of a log that was made
    /// anew, it is before the first record.
    pub(super) fn open(directory: &Path, name: &str, length: u64) -> io::Result<Self> {
        let path = directory.join(format!("sink-{name}.position"));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => "0".into(),
            Err(error) => return Err(error),
        };
        let taken = match text.trim().parse() {
            Ok(taken) if taken <= length => taken,
            Ok(_) | Err(_) => {
                tracing::warn!(path = %path.display(), "the sink's position is not in the log; it begins anew");
                0
            }
        };
        Ok(Self { path, taken, noted: taken })
    }

    /// Writes it down, if that is not done.
    pub(super) fn note(&mut self) -> io::Result<()> {
        if self.noted == self.taken {
            return Ok(());
        }
        let new = self.path.with_extension("new");
        let mut file = File::create(&new)?;
        writeln!(file, "{}", self.taken)?;
        file.sync_all()?;
        // If the new name is lost in a crash, the old file is there: records come twice.
        fs::rename(&new, &self.path)?;
        self.noted = self.taken;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_comes_back_and_one_that_is_none_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let open = |length| Position::open(directory.path(), "a", length).unwrap().taken;
        assert_eq!(open(9), 0);
        let mut position = Position::open(directory.path(), "a", 9).unwrap();
        position.taken = 7;
        position.note().unwrap();
        assert_eq!((open(9), open(7), open(6)), (7, 7, 0));
        fs::write(directory.path().join("sink-a.position"), "x").unwrap();
        assert_eq!(open(9), 0);
    }
}

//! A file that is either whole or not there: written beside its destination with
//! mode 0600, synced, then renamed. Dropped before that, it leaves nothing.
//!
//! A signal must leave nothing either, so the unfinished ones are kept in a list
//! that `stop_new_files` empties before the process ends.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use parking_lot::{Mutex, MutexGuard};
use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};

use super::failure::Failure;

/// What becomes of a destination that exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Existing {
    /// It stays, and the new file is refused.
    Keep,
    /// The new file takes its place.
    Replace,
}

/// A file that does not have its name yet.
#[derive(Debug)]
pub(super) struct NewFile {
    file: File,
    temporary: PathBuf,
    destination: PathBuf,
    existing: Existing,
}

impl NewFile {
    /// Begins a file that `commit` will put at `destination`.
    pub(super) fn begin(destination: &Path, existing: Existing) -> Result<Self, Failure> {
        if existing == Existing::Keep && destination.symlink_metadata().is_ok() {
            return Err(Failure::Exists { path: destination.to_owned() });
        }
        let mut random = [0; 8];
        getrandom::fill(&mut random)?;
        let name = format!(".rootkeyctl-{}.tmp", hex::encode(random));
        let temporary = folder(destination).join(name);
        let mut unfinished = UNFINISHED.lock();
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(Failure::file(destination))?;
        unfinished.push(temporary.clone());
        Ok(Self { file, temporary, destination: destination.to_owned(), existing })
    }

    /// Where it is until it has its name, for who writes it by its path.
    pub(super) fn path(&self) -> &Path {
        &self.temporary
    }

    /// Puts the file, all of it on disk, at its destination.
    pub(super) fn commit(self) -> Result<(), Failure> {
        self.place().map_err(|source| {
            let path = self.destination.clone();
            if source.kind() == io::ErrorKind::AlreadyExists {
                Failure::Exists { path }
            } else {
                Failure::File { path, source }
            }
        })
    }

    fn place(&self) -> io::Result<()> {
        self.file.sync_all()?;
        match self.existing {
            Existing::Replace => fs::rename(&self.temporary, &self.destination)?,
            Existing::Keep => self.rename_to_nothing()?,
        }
        File::open(folder(&self.destination))?.sync_all()
    }

    /// Not every file system can rename without replacing; then a hard link does
    /// it, and the drop removes the other name.
    fn rename_to_nothing(&self) -> io::Result<()> {
        match renameat_with(CWD, &self.temporary, CWD, &self.destination, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(&self.temporary, &self.destination),
            result => Ok(result?),
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        let mut unfinished = UNFINISHED.lock();
        unfinished.retain(|path| *path != self.temporary);
        drop(fs::remove_file(&self.temporary));
    }
}

/// Removes every unfinished file. None can be begun for as long as the answer
/// is held: hold it until the process ends.
pub fn stop_new_files() -> MutexGuard<'static, Vec<PathBuf>> {
    let unfinished = UNFINISHED.lock();
    for path in unfinished.iter() {
        drop(fs::remove_file(path));
    }
    unfinished
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) | None => Path::new("."),
    }
}

/// Global because a signal is: it comes to the process, whatever it does.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_committed_file_is_whole_and_only_its_owner_can_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dek");
        let mut file = NewFile::begin(&path, Existing::Keep).unwrap();
        file.write_all(b"abc").unwrap();
        assert!(!path.exists());
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(names(folder.path()), ["dek"]);
    }

    #[test]
    fn a_file_that_is_dropped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = NewFile::begin(&folder.path().join("dek"), Existing::Keep).unwrap();
        file.write_all(b"abc").unwrap();
        drop(file);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_destination_that_exists_is_kept_unless_it_is_to_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dek");
        fs::write(&path, "old").unwrap();
        let failure = NewFile::begin(&path, Existing::Keep).unwrap_err();
        assert_eq!(failure.reason(), "FILE_EXISTS");
        let mut file = NewFile::begin(&path, Existing::Replace).unwrap();
        file.write_all(b"new").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }

    #[test]
    fn a_destination_that_appears_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dek");
        let mut file = NewFile::begin(&path, Existing::Keep).unwrap();
        file.write_all(b"new").unwrap();
        fs::write(&path, "theirs").unwrap();
        assert_eq!(file.commit().unwrap_err().reason(), "FILE_EXISTS");
        assert_eq!(fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(folder.path()), ["dek"]);
    }
}

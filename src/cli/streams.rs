//! `--in FILE|-` and `--out FILE|-`, for DEKs and wrapped DEKs.
//!
//! Both go around the buffers of `std::io::stdin` and `stdout`, which nothing
//! wipes. Without a flag a pipe is used, and a terminal never is: a DEK is shown
//! on one only if `--out -` asks for it.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use super::{
    failure::Failure,
    new_file::{Existing, NewFile},
};
use crate::secret::Secret;

/// Where to read from.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    path: Option<PathBuf>,
}

impl Source {
    /// `-` is standard input; so is nothing, if that is no terminal.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let stdin = io::stdin();
        match path {
            Some(path) if path != Path::new(DASH) => {
                let file = File::open(path).map_err(Failure::file(path))?;
                Ok(Self { file, path: Some(path.to_owned()) })
            }
            None if stdin.is_terminal() => Err(Failure::Terminal { flag: "--in" }),
            Some(_) | None => {
                let descriptor = stdin.as_fd().try_clone_to_owned().map_err(Failure::Stdin)?;
                Ok(Self { file: descriptor.into(), path: None })
            }
        }
    }

    /// All of it; refused beyond `limit` bytes.
    pub(super) fn read_all(self, what: &'static str, limit: usize) -> Result<Secret, Failure> {
        let mut bytes = Secret::zeroed(limit + 1);
        let length = fill(&mut &self.file, bytes.expose_mut()).map_err(|e| self.failure(e))?;
        if length > limit {
            return Err(Failure::TooLong { what, limit });
        }
        bytes.truncate(length);
        Ok(bytes)
    }

    /// In bytes; `None` for a pipe.
    pub(super) fn len(&self) -> Option<u64> {
        let metadata = self.file.metadata().ok()?;
        metadata.is_file().then_some(metadata.len())
    }

    /// The failure that an error of the file is.
    pub(super) fn failure(&self, source: io::Error) -> Failure {
        match &self.path {
            Some(path) => Failure::File { path: path.clone(), source },
            None => Failure::Stdin(source),
        }
    }

    /// To be read piece by piece.
    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

/// Reads until `buffer` is full or nothing is left; says how much it read.
pub(super) fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Where to write to.
#[derive(Debug)]
pub(super) enum Sink {
    /// Standard output, as it comes.
    Stdout(File),
    /// A device or a pipe that has a name, as it comes.
    Device(File, PathBuf),
    /// A regular file, which is there when it is whole.
    New(NewFile, PathBuf),
}

impl Sink {
    /// `-` is standard output; so is nothing, if that is no terminal.
    pub(super) fn open(path: Option<&Path>, flag: &'static str) -> Result<Self, Failure> {
        let stdout = io::stdout();
        match path {
            Some(path) if path != Path::new(DASH) => Self::named(path),
            None if stdout.is_terminal() => Err(Failure::Terminal { flag }),
            Some(_) | None => {
                let descriptor = stdout.as_fd().try_clone_to_owned().map_err(Failure::Stdout)?;
                Ok(Self::Stdout(descriptor.into()))
            }
        }
    }

    fn named(path: &Path) -> Result<Self, Failure> {
        let is_device = path.metadata().is_ok_and(|it| !it.is_file() && !it.is_dir());
        if is_device {
            let file = OpenOptions::new().write(true).open(path).map_err(Failure::file(path))?;
            return Ok(Self::Device(file, path.to_owned()));
        }
        Ok(Self::New(NewFile::begin(path, Existing::Replace)?, path.to_owned()))
    }

    pub(super) fn is_stdout(&self) -> bool {
        matches!(self, Self::Stdout(_))
    }

    /// Writes all of `bytes`, without a buffer.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout(file) => file.write_all(bytes).map_err(Failure::Stdout),
            Self::Device(file, path) => file.write_all(bytes).map_err(Failure::file(&*path)),
            Self::New(file, path) => file.write_all(bytes).map_err(Failure::file(&*path)),
        }
    }

    /// Nothing more will come.
    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Self::Stdout(_) | Self::Device(_, _) => Ok(()),
            Self::New(file, _) => file.commit(),
        }
    }
}

const DASH: &str = "-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_beyond_its_limit_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dek");
        std::fs::write(&path, [7; 10]).unwrap();
        let read = |limit| Source::open(Some(&path)).unwrap().read_all("the DEK", limit);
        assert_eq!(read(10).unwrap().expose(), [7; 10]);
        assert_eq!(read(9).unwrap_err().to_string(), "the DEK is longer than 9 bytes");
    }

    #[test]
    fn a_device_is_written_and_not_replaced() {
        let mut sink = Sink::open(Some(Path::new("/dev/null")), "--out").unwrap();
        assert!(matches!(sink, Sink::Device(_, _)));
        sink.write(b"abc").unwrap();
        sink.finish().unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }
}

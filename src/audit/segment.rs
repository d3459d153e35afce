//! The files of the audit log: names, creation, the durable append at the end
//! of the newest, and reading in both directions. What lies in them: `chain.rs`.
//!
//! A failed fsync is never tried again, since the page cache is then no longer
//! what the disk has (LSFMM 2018, "PostgreSQL's fsync() surprise"): the process
//! aborts, and the next start reads the disk.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::AuditError;
use super::chain::{FRAME_BYTES, Frame, HASH_BYTES, HEADER_BYTES, Head, LENGTH_BYTES, Record};

/// Where the first frame of a segment begins, in bytes.
pub(super) const HEADER: u64 = HEADER_BYTES as u64;

/// The directory of the segments, locked for one writer.
pub(super) struct Directory {
    pub(super) path: PathBuf,
    handle: File,
}

impl Directory {
    /// Makes it if it is not there, and locks it for as long as the value lives.
    pub(super) fn open(path: &Path) -> Result<Self, AuditError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(unavailable("make the directory"))?;
        let handle = File::open(path).map_err(unavailable("open the directory"))?;
        handle.try_lock().map_err(|error| {
            unavailable("lock the directory, another daemon may have it")(error.into())
        })?;
        Ok(Self { path: path.to_owned(), handle })
    }

    /// Makes names in it durable. Aborts if it cannot.
    fn sync(&self) {
        self.handle.sync_all().unwrap_or_else(|error| abort("fsync of the directory", &error));
    }

    /// Moves `bytes` aside, into a new file.
    pub(super) fn keep_torn(&self, segment: u64, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut attempt = 0;
        let file = loop {
            let name = match attempt {
                0 => format!("torn-{offset}-{segment}.bin"),
                n => format!("torn-{offset}-{segment}.{n}.bin"),
            };
            match options().create_new(true).open(self.path.join(name)) {
                Ok(file) => break file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                Err(error) => return Err(error),
            }
        };
        file.write_all_at(bytes, 0)?;
        file.sync_all().unwrap_or_else(|error| abort("fsync of a torn tail", &error));
        self.sync();
        Ok(())
    }
}

/// First sequence numbers of all segments in the directory, in order.
pub(super) fn list(directory: &Path) -> Result<Vec<u64>, AuditError> {
    let unreadable = "list the directory";
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory).map_err(unavailable(unreadable))? {
        let name = entry.map_err(unavailable(unreadable))?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".log"));
        let digits = digits.filter(|text| text.len() == 20);
        segments.extend(digits.and_then(|text| text.parse::<u64>().ok()));
    }
    segments.sort_unstable();
    Ok(segments)
}

/// The end of the newest segment, where records are appended.
pub(super) struct Tail {
    file: File,
    /// Length of the file: header and whole frames, all of it durable.
    pub(super) end: u64,
}

impl Tail {
    /// Begins the segment behind `head`, or begins it anew if it holds no record yet.
    pub(super) fn create(directory: &Directory, head: &Head) -> io::Result<Self> {
        let path = directory.path.join(name(head.records + 1));
        let file = options().create(true).truncate(false).open(path)?;
        if file.metadata()?.len() > HEADER {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        file.set_len(0)?;
        file.write_all_at(&head.header(), 0)?;
        file.sync_all().unwrap_or_else(|error| abort("fsync of a new segment", &error));
        directory.sync();
        Ok(Self { file, end: HEADER })
    }

    /// Goes on at `end` of a segment. What is behind is cut off.
    pub(super) fn resume(directory: &Directory, segment: u64, end: u64) -> io::Result<Self> {
        let file = options().open(directory.path.join(name(segment)))?;
        if file.metadata()?.len() != end {
            file.set_len(end)?;
        }
        // Frames of a batch that was never answered may be whole and not yet durable.
        file.sync_all().unwrap_or_else(|error| abort("fsync of the newest segment", &error));
        Ok(Self { file, end })
    }

    /// Appends durably, or leaves the file as it was. Aborts if it can do neither.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all_at(bytes, self.end) {
            self.file.set_len(self.end).unwrap_or_else(|error| abort("truncation", &error));
            self.sync();
            return Err(error);
        }
        self.sync();
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn sync(&self) {
        self.file.sync_data().unwrap_or_else(|error| abort("fdatasync", &error));
    }
}

/// A segment to be read.
pub(super) struct Segment {
    pub(super) first: u64,
    /// Where its last whole frame ends, or where the file does.
    pub(super) end: u64,
    file: File,
    /// A part of the file, which begins at `block_start`.
    block: Vec<u8>,
    block_start: u64,
}

impl Segment {
    /// Opens it, to be read up to `end` or as long as the file is.
    pub(super) fn open(directory: &Path, first: u64, end: Option<u64>) -> Result<Self, AuditError> {
        let file = File::open(directory.join(name(first))).map_err(unavailable(OPEN))?;
        let length = file.metadata().map_err(unavailable(OPEN))?.len();
        let end = end.unwrap_or(length);
        Ok(Self { first, end, file, block: Vec::new(), block_start: 0 })
    }

    /// Whether it begins with the header that follows `head`.
    pub(super) fn follows(&mut self, head: &Head) -> Result<(), AuditError> {
        if head.records.checked_add(1) != Some(self.first) {
            return Err(self.corrupt(0, "the segment before this one is missing or incomplete"));
        }
        let size = HEADER.min(self.end);
        if self.read(0..size, 0..size)? != head.header() {
            return Err(self.corrupt(0, "the header does not continue the chain"));
        }
        Ok(())
    }

    /// Where the chain stands and where the file is after the frame at `offset`.
    pub(super) fn forward(&mut self, offset: u64, head: &Head) -> Result<(u64, Head), AuditError> {
        let block = offset..self.end.min(offset + BLOCK_BYTES);
        let wanted = offset..self.end.min(offset + FRAME_BYTES as u64);
        let frame = Frame::first_of(self.read(wanted, block)?);
        let next = frame.and_then(|frame| Ok((offset + frame.size() as u64, head.follow(&frame)?)));
        next.map_err(|what| self.corrupt(offset, what))
    }

    /// Where the chain stands before its first record, by its own header.
    pub(super) fn start(&mut self) -> Result<Head, AuditError> {
        let size = HEADER.min(self.end);
        let hash = self.read(0..size, 0..size)?.last_chunk().copied();
        let records = self.first.saturating_sub(1);
        let head = Head { records, hash: hash.unwrap_or(Head::START.hash) };
        self.follows(&head)?;
        Ok(head)
    }

    /// A part of the file, which `forward` has just been at.
    pub(super) fn bytes(&mut self, range: Range<u64>) -> Result<&[u8], AuditError> {
        self.read(range.clone(), range)
    }

    /// The record whose frame ends at `offset`, and where that begins. No byte
    /// of the record is believed before its hash has been verified.
    pub(super) fn backward(&mut self, offset: u64) -> Result<(u64, Record), AuditError> {
        let block = offset.saturating_sub(BLOCK_BYTES)..offset;
        let wanted = offset.saturating_sub((FRAME_BYTES + BEFORE_BYTES) as u64)..offset;
        let bytes = self.read(wanted, block)?;
        let found = Frame::last_of(bytes).and_then(|frame| {
            let (before, start) =
                (&bytes[..bytes.len() - frame.size()], offset - frame.size() as u64);
            // Before a frame there is the hash and the length of another, or the header.
            let hash = match start.cmp(&HEADER) {
                std::cmp::Ordering::Less => None,
                std::cmp::Ordering::Equal => before.last_chunk(),
                std::cmp::Ordering::Greater => {
                    before.len().checked_sub(LENGTH_BYTES).and_then(|n| before[..n].last_chunk())
                }
            };
            let hash = hash.ok_or("the record does not begin behind the header")?;
            Ok((start, frame.record(*hash)?))
        });
        found.map_err(|what| self.corrupt(offset, what))
    }

    /// All from `offset` to the end.
    pub(super) fn rest(&mut self, offset: u64) -> Result<&[u8], AuditError> {
        self.read(offset..self.end, offset..self.end)
    }

    /// The bytes `wanted`; if they are not at hand, the `block` around them is read.
    fn read(&mut self, wanted: Range<u64>, block: Range<u64>) -> Result<&[u8], AuditError> {
        let block_end = self.block_start + self.block.len() as u64;
        if wanted.start < self.block_start || wanted.end > block_end {
            self.block.resize(bytes_in(&block), 0);
            self.block_start = block.start;
            let read = self.file.read_exact_at(&mut self.block, block.start);
            read.inspect_err(|_| self.block.clear()).map_err(unavailable("read a segment"))?;
        }
        let start = bytes_in(&(self.block_start..wanted.start));
        Ok(&self.block[start..start + bytes_in(&wanted)])
    }

    pub(super) fn corrupt(&self, offset: u64, what: &'static str) -> AuditError {
        AuditError::Corrupt { place: format!("{} offset {offset}", name(self.first)), what }
    }
}

/// An error of the system while `what` was tried.
pub(super) fn unavailable(what: &'static str) -> impl Fn(io::Error) -> AuditError {
    move |source| AuditError::Unavailable { what, source }
}

fn name(first: u64) -> String {
    format!("{first:020}.log")
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

fn bytes_in(range: &Range<u64>) -> usize {
    usize::try_from(range.end.saturating_sub(range.start)).expect("a part of a file fits in memory")
}

fn abort<T>(what: &'static str, error: &io::Error) -> T {
    tracing::error!(what, %error, "the audit log can no longer be trusted, aborting");
    std::process::abort()
}

const OPEN: &str = "open a segment";
/// Read at once: the next some hundred records.
const BLOCK_BYTES: u64 = 256 * 1024;
/// Hash and length of the frame before.
const BEFORE_BYTES: usize = HASH_BYTES + LENGTH_BYTES;
const _: () = assert!(BLOCK_BYTES > (FRAME_BYTES + BEFORE_BYTES + HEADER_BYTES) as u64);

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    /// Runs the test again in a process of its own, which must die by SIGABRT.
    fn aborts(test: &str, dies: impl FnOnce()) {
        if std::env::var_os("AUDIT_TEST_DIES").is_some() {
            return dies();
        }
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", &format!("audit::segment::tests::{test}")])
            .env("AUDIT_TEST_DIES", "1")
            .output()
            .unwrap()
            .status;
        assert_eq!(status.signal(), Some(6), "{status}");
    }

    fn device(path: &str) -> Tail {
        Tail { file: File::options().write(true).open(path).unwrap(), end: 0 }
    }

    #[test]
    fn a_failed_fdatasync_aborts() {
        // /dev/null takes every write and refuses fdatasync.
        aborts("a_failed_fdatasync_aborts", || drop(device("/dev/null").append(b"x")));
    }

    #[test]
    fn a_full_disk_that_cannot_be_truncated_aborts() {
        // /dev/full answers ENOSPC to every write and cannot be truncated.
        let test = "a_full_disk_that_cannot_be_truncated_aborts";
        aborts(test, || drop(device("/dev/full").append(b"x")));
    }

    #[test]
    fn a_directory_has_one_writer() {
        let directory = tempfile::tempdir().unwrap();
        let first = Directory::open(directory.path()).unwrap();
        assert!(matches!(
            Directory::open(directory.path()),
            Err(AuditError::Unavailable { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock
        ));
        drop(first);
        assert!(Directory::open(directory.path()).is_ok());
    }

    #[test]
    fn a_segment_with_records_is_not_begun_anew() {
        let path = tempfile::tempdir().unwrap();
        let directory = Directory::open(path.path()).unwrap();
        Tail::create(&directory, &Head::START).unwrap();
        Tail::create(&directory, &Head::START).unwrap().append(b"x").unwrap();
        assert!(Tail::create(&directory, &Head::START).is_err());
    }
}

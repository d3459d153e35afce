//! A file that takes up space, so that a change that takes something away can be
//! committed when the disk is full. It is given up in slices for such a change, and
//! taken back as soon as there is space; nothing else may use it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::FallocateFlags;

/// The space, and the file that holds it.
pub(super) struct Reserve {
    /// `None` if it could not be made; the store works without it.
    file: Option<File>,
}

impl Reserve {
    /// Makes the file, or takes the one that is there, and fills it up.
    pub(super) fn open(path: &Path) -> Self {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = file.inspect_err(|error| {
            tracing::warn!(%error, path = %path.display(), "there is no reserve for a full disk");
        });
        let reserve = Self { file: file.ok() };
        reserve.refill();
        reserve
    }

    /// Gives up one slice; whether there was one.
    pub(super) fn release(&self) -> bool {
        let Some(file) = &self.file else { return false };
        let released = file.metadata().and_then(|found| {
            let length = found.len();
            file.set_len(length.saturating_sub(SLICE_BYTES)).map(|()| length > 0)
        });
        match released {
            Ok(released) => released,
            Err(error) => {
                tracing::error!(%error, "the reserve cannot be used");
                false
            }
        }
    }

    /// Takes as much as there is, until it is whole.
    pub(super) fn refill(&self) {
        let Some(file) = &self.file else { return };
        let Ok(mut length) = file.metadata().map(|found| found.len()) else { return };
        let mut step = SLICE_BYTES;
        while length < RESERVE_BYTES && step >= LEAST_BYTES {
            let take = step.min(RESERVE_BYTES - length);
            match rustix::fs::fallocate(file, FallocateFlags::empty(), length, take) {
                Ok(()) => length += take,
                Err(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => step /= 2,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    let error = io::Error::from(error);
                    tracing::warn!(%error, "the reserve for a full disk cannot be made");
                    return;
                }
            }
        }
    }
}

const RESERVE_BYTES: u64 = 8 << 20;
const SLICE_BYTES: u64 = 1 << 20;
const LEAST_BYTES: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_given_up_in_slices_and_made_whole_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("reserve");
        let length = || std::fs::metadata(&path).unwrap().len();
        let reserve = Reserve::open(&path);
        assert_eq!(length(), RESERVE_BYTES);
        for left in (0..8).rev() {
            assert!(reserve.release());
            assert_eq!(length(), left * SLICE_BYTES);
        }
        assert!(!reserve.release());
        reserve.refill();
        assert_eq!(length(), RESERVE_BYTES);
    }
}

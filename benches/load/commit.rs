//! What durability costs: one write and fdatasync, as the audit log does it for a record,
//! on the daemon's file system.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::figures::{Latencies, Taken};

/// A file that grows by durable writes.
pub struct Commits {
    path: PathBuf,
    file: File,
    end: u64,
}

impl Commits {
    pub fn in_directory(directory: &Path) -> Self {
        let path = directory.join("commits");
        let file = File::create(&path).unwrap();
        Self { path, file, end: 0 }
    }

    /// Commits of so many bytes, one after the other.
    pub fn turn(&mut self, bytes: usize, time: Duration) -> Taken {
        let record = vec![9; bytes];
        let mut latencies = Latencies::default();
        let began = Instant::now();
        while began.elapsed() < time {
            let before = Instant::now();
            self.file.write_all_at(&record, self.end).unwrap();
            self.file.sync_data().unwrap();
            self.end += bytes as u64;
            latencies.record(before.elapsed());
        }
        Taken::closed(&latencies, began.elapsed().as_secs_f64(), 0)
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

//! The disk of `tests/chaos-disk/` in the hands of a test: which call is to fail, and
//! the power cut, after which what was not synced is not there.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A state directory on a disk that fails and forgets.
pub struct Disk {
    root: PathBuf,
    side: PathBuf,
}

/// What was there before a write or truncation.
struct Entry {
    offset: u64,
    size: u64,
    /// How much was written; 0 for a truncation.
    length: u64,
    old: Vec<u8>,
}

impl Disk {
    /// Of the state directory below `dir`.
    pub fn of(dir: &Path) -> Self {
        let dir = dir.canonicalize().unwrap();
        let side = dir.join("chaos");
        fs::create_dir_all(side.join("undo")).unwrap();
        Self { root: dir.join("state"), side }
    }

    /// The command, with the state on this disk.
    pub fn under(&self, mut command: Command) -> Command {
        command.env("LD_PRELOAD", layer());
        command.env("CHAOS_DISK_ROOT", &self.root).env("CHAOS_DISK_SIDE", &self.side);
        command
    }

    /// From now on: `{enospc|eio|lie} {write|truncate|sync} {end of the path} {nth} [on]`. Calls
    /// are counted from here.
    pub fn order(&self, command: &str) {
        let _ = fs::remove_file(self.side.join("fired"));
        // Another text each time, or the count would go on.
        let text = format!("{command}{}", " ".repeat(usize::from(self.orders_evenly())));
        let new = self.side.join("command.new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.side.join("command")).unwrap();
    }

    fn orders_evenly(&self) -> bool {
        !fs::read_to_string(self.side.join("command")).unwrap_or_default().ends_with(' ')
    }

    /// Nothing fails any more.
    pub fn calm(&self) {
        self.order("");
    }

    /// How many calls failed since the last order.
    pub fn fired(&self) -> u64 {
        fs::metadata(self.side.join("fired")).map_or(0, |found| found.len())
    }

    /// After a kill: the power was cut. Of what was not synced nothing is left, or, by the
    /// dice, of each file the first writes and a part of the next.
    pub fn cut(&self, mut roll: impl FnMut(u64) -> u64) -> u64 {
        let mut cut = 0;
        for found in fs::read_dir(self.side.join("undo")).unwrap() {
            let undo = found.unwrap().path();
            let name = undo.file_name().unwrap().to_str().unwrap().replace('%', "/");
            let entries = entries(&fs::read(&undo).unwrap());
            if let Ok(file) = OpenOptions::new().write(true).open(self.root.join(name)) {
                let kept = roll(2) * roll(entries.len() as u64 + 1);
                for (number, entry) in entries.iter().enumerate().skip(bytes(kept)).rev() {
                    let part = if number == bytes(kept) { roll(entry.length + 1) } else { 0 };
                    entry.undo(&file, part);
                    cut += 1;
                }
            }
            fs::remove_file(undo).unwrap();
        }
        cut
    }
}

impl Entry {
    /// All but the first `part` bytes of what was written.
    fn undo(&self, file: &File, part: u64) {
        let Self { offset, size, length: _, old } = self;
        if let Some(rest) = old.get(bytes(part)..) {
            file.write_all_at(rest, offset + part).unwrap();
        }
        let end = if part == 0 { *size } else { (*size).max(offset + part) };
        file.set_len(end).unwrap();
    }
}

fn entries(mut rest: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    // One that is torn was kept before a write that did not come to be.
    while let Some((head, behind)) = rest.split_at_checked(32) {
        let number = |at: usize| u64::from_le_bytes(head[at * 8..][..8].try_into().unwrap());
        let Some((old, next)) = behind.split_at_checked(bytes(number(3))) else { break };
        let (offset, size, length) = (number(0), number(1), number(2));
        entries.push(Entry { offset, size, length, old: old.to_vec() });
        rest = next;
    }
    entries
}

fn bytes(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

/// Where cargo puts it: `examples/` beside the folder of the tests.
fn layer() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let layer = test.parent().unwrap().with_file_name("examples").join("libchaos_disk.so");
    assert!(layer.exists(), "build it first: cargo build --example chaos_disk");
    layer
}

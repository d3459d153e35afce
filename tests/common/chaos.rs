//! How much chaos a test makes, and what it saw: a little in `make test`, and in
//! `make chaos` (CHAOS=full) as much as the specification asks for. Each test leaves
//! a row in the directory that CHAOS_REPORT names; `make chaos` prints them all.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "a part of the tests that use it"
)]

use std::fs;
use std::path::PathBuf;

/// What one test tried and found. `lost`, `stale` and `wrong` must be 0; the test
/// asserts so itself, this is for the table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Faults that were made: kills, errors, cuts, revocations.
    pub faults: u64,
    /// Acknowledged operations that were looked at afterwards.
    pub checked: u64,
    /// Of these: those whose effect was not there.
    pub lost: u64,
    /// Answers that a revocation, already acknowledged, forbade.
    pub stale: u64,
    /// Other answers that were not the right ones.
    pub wrong: u64,
}

/// `short` in `make test`, `full` in `make chaos`, or with CHAOS=5% that part of it.
pub fn rounds(short: u64, full: u64) -> u64 {
    let Ok(wanted) = std::env::var("CHAOS") else { return short };
    let percent = match wanted.strip_suffix('%').map(str::parse::<u64>) {
        Some(Ok(percent)) => percent,
        None if wanted == "full" => 100,
        Some(Err(_)) | None => panic!("CHAOS is {wanted:?}; it can be full, 5%, or not there"),
    };
    (full * percent / 100).max(short)
}

/// Prints the row, and leaves it for the table of `make chaos`.
pub fn report(what: &str, seen: Seen) {
    let Seen { faults, checked, lost, stale, wrong } = seen;
    let row = format!("{what}\t{faults}\t{checked}\t{lost}\t{stale}\t{wrong}\n");
    print!("{row}");
    let Some(directory) = std::env::var_os("CHAOS_REPORT").map(PathBuf::from) else { return };
    let file: String =
        what.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    fs::write(directory.join(file).with_extension("row"), row).unwrap();
}

/// Small, and the same in every run: which change comes when should not matter, but a
/// failure should come again.
pub struct Dice(pub u64);

impl Dice {
    /// 0 to `sides` - 1.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

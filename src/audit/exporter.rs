//! Writes an export, part by part: the header, the records as they lie in the files,
//! and each checkpoint behind the record that it is of. Read again by `export.rs`.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;

use super::AuditError;
use super::export::{CHECKPOINT, MAGIC, RECORD};
use super::forward::{Place, Readable};
use super::merkle::Tree;
use super::notebook::Entries;
use super::segment::unavailable;

/// An export that is being written.
pub struct Exporter {
    place: Place,
    /// Number of the last record of the export.
    end: u64,
    entries: Option<Entries>,
    /// The checkpoint that comes next: size and note.
    next: Option<(u64, String)>,
    /// What was not handed out yet.
    ready: Vec<u8>,
}

impl Exporter {
    /// Of the records behind the first `skipped`, up to the one numbered `end`.
    pub(super) fn begin(
        log: Readable<'_>,
        checkpoints: &Path,
        skipped: u64,
        end: u64,
    ) -> Result<Self, AuditError> {
        let mut entries = Entries::open(checkpoints).map_err(unavailable(READ))?;
        // The newest tree that is no later than the beginning.
        let (mut tree, mut next) = (Tree::default(), None);
        while let Some((size, note, later)) = following(&mut entries).map_err(unavailable(READ))? {
            if size > skipped {
                next = Some((size, note));
                break;
            }
            tree = later;
        }
        let nowhere = || super::notebook::corrupt(checkpoints, "the log is shorter than it says");
        let mut place = log.after(tree.size())?.ok_or_else(nowhere)?;
        if tree.size() < skipped {
            log.walk(&mut place, |item| {
                tree.push(&item.head.hash);
                if tree.size() == skipped {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        }
        let mut ready = [&MAGIC[..], &skipped.to_be_bytes(), &place.head.hash].concat();
        tree.edge().iter().for_each(|node| ready.extend_from_slice(node));
        Ok(Self { place, end, entries, next, ready })
    }

    /// The next part, of about that many bytes; empty at the end.
    pub(super) fn more(&mut self, log: Readable<'_>, bytes: usize) -> Result<Vec<u8>, AuditError> {
        let Self { place, end, entries, next, ready } = self;
        let mut failed = None;
        if place.records() < *end {
            log.walk(place, |item| {
                ready.push(RECORD);
                ready.extend_from_slice(item.frame);
                let number = item.head.records;
                while let Some((_, note)) = next.take_if(|(size, _)| *size == number) {
                    push_note(ready, &note);
                    match following(entries) {
                        Ok(found) => *next = found.map(|(size, note, _)| (size, note)),
                        Err(error) => failed = Some(error),
                    }
                }
                let more = number < *end && ready.len() < bytes && failed.is_none();
                if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
        }
        match failed {
            None => Ok(std::mem::take(&mut self.ready)),
            Some(error) => Err(unavailable(READ)(error)),
        }
    }
}

fn following(entries: &mut Option<Entries>) -> io::Result<Option<(u64, String, Tree)>> {
    entries.as_mut().map_or(Ok(None), Entries::next)
}

fn push_note(bytes: &mut Vec<u8>, note: &str) {
    // A note has some hundred bytes.
    let Ok(length) = u16::try_from(note.len()) else { return };
    bytes.push(CHECKPOINT);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(note.as_bytes());
}

const READ: &str = "read the checkpoints";

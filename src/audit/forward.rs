//! Reading the audit log forwards, from any record on, record by record as they lie
//! in the files. Each is held to the chain.

use std::ops::ControlFlow;
use std::path::Path;

use super::AuditError;
use super::chain::{Frame, Head, Record};
use super::segment::{HEADER, Segment};

/// A place between two records, and where the chain stands there. It stays good for
/// as long as the daemon runs.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// First sequence number of the segment.
    segment: u64,
    offset: u64,
    pub(super) head: Head,
}

impl Place {
    /// How many records are before it.
    pub fn records(&self) -> u64 {
        self.head.records
    }
}

/// A record as it lies in a file.
pub(super) struct Item<'a> {
    /// The whole frame.
    pub(super) frame: &'a [u8],
    before: Head,
    /// Where the chain stands behind it.
    pub(super) head: Head,
}

impl Item<'_> {
    pub(super) fn record(&self) -> Result<Record, &'static str> {
        Frame::first_of(self.frame)?.record(self.before.hash)
    }
}

/// What of the log may be read.
#[derive(Clone, Copy)]
pub(super) struct Readable<'a> {
    pub(super) directory: &'a Path,
    /// First sequence numbers, in order.
    pub(super) segments: &'a [u64],
    /// Where the newest segment is read to.
    pub(super) end: u64,
}

impl Readable<'_> {
    /// The place behind the record of that number; `None` if the log is shorter. Reads one
    /// segment, up to there.
    pub(super) fn after(&self, records: u64) -> Result<Option<Place>, AuditError> {
        let later = self.segments.partition_point(|first| first.saturating_sub(1) <= records);
        let Some(index) = later.checked_sub(1) else { return Ok(None) };
        let head = self.segment(index)?.start()?;
        let mut place = Place { segment: self.segments[index], offset: HEADER, head };
        if place.records() != records {
            self.walk(&mut place, |item| {
                if item.head.records == records {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok((place.records() == records).then_some(place))
    }

    /// Visits what is behind `place`, which moves on, until `visit` breaks or nothing is left.
    pub(super) fn walk(
        &self,
        place: &mut Place,
        mut visit: impl FnMut(Item<'_>) -> ControlFlow<()>,
    ) -> Result<(), AuditError> {
        let mut index = self.segments.partition_point(|first| *first < place.segment);
        loop {
            let mut segment = self.segment(index)?;
            if place.offset == HEADER {
                segment.follows(&place.head)?;
            }
            while place.offset < segment.end {
                let before = place.head;
                let (next, head) = segment.forward(place.offset, &before)?;
                let frame = segment.bytes(place.offset..next)?;
                (place.offset, place.head) = (next, head);
                if visit(Item { frame, before, head }).is_break() {
                    return Ok(());
                }
            }
            index += 1;
            let Some(&segment) = self.segments.get(index) else { return Ok(()) };
            (place.segment, place.offset) = (segment, HEADER);
        }
    }

    fn segment(&self, index: usize) -> Result<Segment, AuditError> {
        let newest = index + 1 == self.segments.len();
        Segment::open(self.directory, self.segments[index], newest.then_some(self.end))
    }
}

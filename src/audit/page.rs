//! Reading the audit log from its newest record backwards, in pages. The work
//! for one page is bounded, however rare the records are that are asked for.

use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use super::AuditError;
use super::chain::Record;
use super::segment::{HEADER, Segment};
use crate::domain::{Event, InstanceId, Malformed};

/// Which records are asked for.
#[derive(Clone, Debug)]
pub struct Query {
    /// Those of this tenant.
    pub instance: InstanceId,
    /// Those with this subject, or with one below it (`{key}/versions/…`); all if `None`.
    pub key: Option<String>,
    /// At most so many; no page is longer than the records that were looked at for it.
    pub limit: usize,
}

impl Query {
    /// Whether it asks for this event.
    pub fn asks_for(&self, event: &Event) -> bool {
        let below = |key: &String| {
            let rest = event.subject.strip_prefix(key.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        event.instance == self.instance.as_str() && self.key.as_ref().is_none_or(below)
    }
}

/// Some records, the newest first.
#[derive(Clone, Debug)]
pub struct Page {
    /// May be empty although there are more.
    pub records: Vec<Record>,
    /// Where to go on; `None` if there is nothing older.
    pub next: Option<Cursor>,
}

/// A place between two records. It stays good, over restarts too.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cursor {
    segment: u64,
    offset: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.segment, self.offset)
    }
}

impl FromStr for Cursor {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let problem = Malformed::new("page_token", "must be one that a page came with");
        let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        let (segment, offset) = text
            .split_at_checked(16)
            .filter(|_| text.len() == 32 && text.bytes().all(digit))
            .ok_or(problem)?;
        let number = |digits| u64::from_str_radix(digits, 16).ok();
        let (segment, offset) = number(segment).zip(number(offset)).ok_or(problem)?;
        Ok(Self { segment, offset })
    }
}

/// Reads one page of the `segments`, of which the newest ends at `end`.
pub(super) fn read(mut walk: Walk<'_>, query: &Query) -> Result<Page, AuditError> {
    let mut records = Vec::new();
    while records.len() < query.limit && walk.is_within(PAGE_LOOKS_AT) {
        let Some(record) = walk.back()? else { break };
        if query.asks_for(&record.event) {
            records.push(record);
        }
    }
    Ok(Page { records, next: walk.cursor() })
}

/// How far to look back.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// A walk from a place in the log to its beginning.
pub(super) struct Walk<'a> {
    directory: &'a Path,
    /// First sequence numbers of the segments that come after the one being read.
    earlier: &'a [u64],
    segment: Segment,
    offset: u64,
    walked: Bound,
    /// What the next record must have as its hash.
    hash: Option<[u8; 32]>,
}

impl<'a> Walk<'a> {
    /// From `from`, or from the newest record, which ends at `end` of the last of `segments`.
    pub(super) fn new(
        directory: &'a Path,
        segments: &'a [u64],
        end: u64,
        from: Option<Cursor>,
    ) -> Result<Self, AuditError> {
        let count = match from {
            None => segments.len(),
            Some(from) => segments.binary_search(&from.segment).ok().ok_or_else(bad_cursor)? + 1,
        };
        let (&first, earlier) = segments[..count].split_last().ok_or_else(bad_cursor)?;
        let end = (count == segments.len()).then_some(end);
        let segment = Segment::open(directory, first, end)?;
        let offset = from.map_or(segment.end, |from| from.offset);
        if !(HEADER..=segment.end).contains(&offset) {
            return Err(bad_cursor());
        }
        let walked = Bound { records: 0, bytes: 0 };
        let mut walk = Self { directory, earlier, segment, offset, walked, hash: None };
        walk.check(from)?;
        Ok(walk)
    }

    /// A cursor that is not between two records is the caller's mistake and no corruption.
    fn check(&mut self, from: Option<Cursor>) -> Result<(), AuditError> {
        if from.is_none() || self.offset == HEADER {
            return Ok(());
        }
        match self.segment.backward(self.offset) {
            Ok(_) => Ok(()),
            Err(AuditError::Corrupt { .. }) => Err(bad_cursor()),
            Err(error @ (AuditError::Unavailable { .. } | AuditError::Overloaded)) => Err(error),
        }
    }

    /// The next older record, if there is one.
    pub(super) fn back(&mut self) -> Result<Option<Record>, AuditError> {
        while self.offset == HEADER {
            let Some((&first, earlier)) = self.earlier.split_last() else { return Ok(None) };
            self.segment = Segment::open(self.directory, first, None)?;
            (self.offset, self.earlier) = (self.segment.end, earlier);
        }
        let (start, record) = self.segment.backward(self.offset)?;
        if self.hash.is_some_and(|hash| hash != record.hash) {
            return Err(self
                .segment
                .corrupt(start, "the next segment does not follow this record"));
        }
        self.hash = Some(record.previous_hash);
        self.walked.records += 1;
        self.walked.bytes += self.offset - start;
        self.offset = start;
        Ok(Some(record))
    }

    /// Whether it has not yet come as far as the bound.
    pub(super) fn is_within(&self, bound: Bound) -> bool {
        self.walked.records < bound.records && self.walked.bytes < bound.bytes
    }

    fn cursor(&self) -> Option<Cursor> {
        let more = self.offset > HEADER || !self.earlier.is_empty();
        more.then_some(Cursor { segment: self.segment.first, offset: self.offset })
    }
}

fn bad_cursor() -> AuditError {
    let source = io::ErrorKind::InvalidInput.into();
    AuditError::Unavailable { what: "go on at the cursor", source }
}

const PAGE_LOOKS_AT: Bound = Bound { records: 20_000, bytes: 32 << 20 };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_comes_back_as_it_was() {
        let cursor = Cursor { segment: 1, offset: u64::MAX };
        assert_eq!(cursor.to_string(), "0000000000000001ffffffffffffffff");
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }

    #[test]
    fn other_forms_of_a_cursor_are_refused() {
        for text in [
            "",
            "1",
            "0000000000000001fffffffffffffff",
            "0000000000000001fffffffffffffffff",
            "0000000000000001FFFFFFFFFFFFFFFF",
            "+000000000000001+000000000000001",
            "000000000000000100000000000000 1",
            "00000000000000ß0000000000000001",
        ] {
            assert!(text.parse::<Cursor>().is_err(), "{text:?}");
        }
    }
}

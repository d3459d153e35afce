//! Holds the files to the chain: all of them to verify, at start the newest in
//! full and of the others the header and the last record. A tail that a crash
//! tore off is put aside; anything else that does not verify is an error.

use std::path::Path;

use super::chain::{Frame, Head};
use super::segment::{Directory, HEADER, Segment, Tail, list, unavailable};
use super::{AuditError, Verified};

/// The log as it was found at start.
pub(super) struct Found {
    /// First sequence numbers, in order.
    pub(super) segments: Vec<u64>,
    pub(super) tail: Tail,
    pub(super) head: Head,
}

/// Checks what is in the directory and gets its end ready for appends.
/// `torn_bytes` is the most that one unfinished batch can have left.
pub(super) fn open(directory: &Directory, torn_bytes: u64) -> Result<Found, AuditError> {
    let mut segments = list(&directory.path)?;
    let mut head = Head::START;
    let Some((&newest, earlier)) = segments.split_last() else {
        let tail = Tail::create(directory, &head).map_err(unavailable(CREATE))?;
        segments.push(head.records + 1);
        return Ok(Found { segments, tail, head });
    };
    for &first in earlier {
        let mut segment = Segment::open(&directory.path, first, None)?;
        segment.follows(&head)?;
        let (_, last) = segment.backward(segment.end)?;
        head = Head { records: last.sequence, hash: last.hash };
    }
    let mut segment = Segment::open(&directory.path, newest, None)?;
    if segment.end <= HEADER && head.records.checked_add(1) == Some(newest) {
        // No record is in it; its header may not have been finished.
        let tail = Tail::create(directory, &head).map_err(unavailable(CREATE))?;
        return Ok(Found { segments, tail, head });
    }
    segment.follows(&head)?;
    let mut offset = HEADER;
    while offset < segment.end {
        match segment.forward(offset, &head) {
            Ok(next) => (offset, head) = next,
            Err(error @ AuditError::Corrupt { .. }) => {
                put_aside(directory, &mut segment, offset, torn_bytes, error)?;
                break;
            }
            Err(error @ (AuditError::Unavailable { .. } | AuditError::Overloaded)) => {
                return Err(error);
            }
        }
    }
    let tail =
        Tail::resume(directory, newest, offset).map_err(unavailable("truncate a segment"))?;
    Ok(Found { segments, tail, head })
}

/// Copies what is behind `offset` to a file of its own, if it can be what a crash
/// left of one batch; else gives back what was found there, `error`.
fn put_aside(
    directory: &Directory,
    segment: &mut Segment,
    offset: u64,
    torn_bytes: u64,
    error: AuditError,
) -> Result<(), AuditError> {
    if segment.end - offset > torn_bytes {
        return Err(error);
    }
    let bytes = segment.rest(offset)?;
    // A write that was cut short ends in the middle of a frame. A frame that is
    // whole, here or later, was written to its end and has been changed since.
    let whole = |at| Frame::first_of(&bytes[at..]).is_ok_and(|frame| frame.holds_a_record());
    if (0..bytes.len()).any(whole) {
        return Err(error);
    }
    let size = bytes.len();
    tracing::warn!(segment = segment.first, offset, size, %error, "unfinished batch put aside");
    directory
        .keep_torn(segment.first, offset, segment.rest(offset)?)
        .map_err(unavailable("put a torn tail aside"))
}

/// Walks the whole chain. `end` is where the newest of `segments` is read to; the file's, if `None`.
pub(super) fn verify(
    directory: &Path,
    segments: &[u64],
    end: Option<u64>,
) -> Result<Verified, AuditError> {
    let mut head = Head::START;
    for (index, &first) in segments.iter().enumerate() {
        let newest = index + 1 == segments.len();
        let mut segment = Segment::open(directory, first, end.filter(|_| newest))?;
        segment.follows(&head)?;
        if segment.end == HEADER && !newest {
            return Err(segment.corrupt(HEADER, "a segment without records has one behind it"));
        }
        let mut offset = HEADER;
        while offset < segment.end {
            (offset, head) = segment.forward(offset, &head)?;
        }
    }
    Ok(Verified { records: head.records, head: head.hash })
}

const CREATE: &str = "begin a segment";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::super::tests::{event, events, open};
    use super::super::{Audit, Settings, verify};
    use super::*;

    /// First sequence number and bytes of each segment.
    type Files = Vec<(u64, Vec<u8>)>;

    fn block<T>(future: impl Future<Output = Result<T, AuditError>>) -> Result<T, AuditError> {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn segment(directory: &TempDir, first: u64) -> PathBuf {
        directory.path().join(format!("{first:020}.log"))
    }

    /// A directory with these files alone.
    fn with(files: &[(u64, &[u8])]) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (first, bytes) in files {
            fs::write(segment(&directory, *first), bytes).unwrap();
        }
        directory
    }

    /// A log of one segment, which was written in batches of so many events; where each batch ends.
    fn written(batches: &[u16]) -> (Vec<u8>, Vec<usize>) {
        let directory = tempfile::tempdir().unwrap();
        let audit = Audit::open(Settings::new(directory.path())).unwrap();
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for count in batches {
            block(audit.append(events(1..=*count))).unwrap();
            bytes = fs::read(segment(&directory, 1)).unwrap();
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    /// The files of a log of three segments, three records in each.
    fn three_segments() -> Files {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        for _ in 0..3 {
            block(audit.append(events(1..=3))).unwrap();
        }
        [1, 4, 7].map(|first| (first, fs::read(segment(&directory, first)).unwrap())).into()
    }

    fn directory_of(files: &[(u64, Vec<u8>)]) -> TempDir {
        with(&files.iter().map(|(first, bytes)| (*first, bytes.as_slice())).collect::<Vec<_>>())
    }

    fn is_corrupt<T>(result: Result<T, AuditError>) -> bool {
        matches!(result, Err(AuditError::Corrupt { .. }))
    }

    fn torn_files(directory: &TempDir) -> Vec<Vec<u8>> {
        let paths = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.extension().unwrap() == "bin")
            .map(|p| fs::read(p).unwrap())
            .collect()
    }

    #[test]
    fn a_tail_torn_at_any_byte_of_the_last_batch_is_put_aside() {
        let (bytes, ends) = written(&[3, 3]);
        for cut in ends[0]..bytes.len() {
            for zeros in if cut % 8 == 0 { 0..2 } else { 0..1 } {
                let left = [&bytes[..cut], &vec![0; 37 * zeros]].concat();
                let directory = with(&[(1, &left)]);
                let audit = open(&directory).unwrap();
                assert!((3..6).contains(&audit.length()), "cut at {cut}");
                let kept = fs::read(segment(&directory, 1)).unwrap();
                assert!(left.starts_with(&kept) && kept.len() >= ends[0]);
                let torn = torn_files(&directory);
                match kept.len() == left.len() {
                    true => assert!(torn.is_empty()),
                    false => assert_eq!(torn, [&left[kept.len()..]]),
                }
                let next = audit.length() + 1;
                assert_eq!(block(audit.append(vec![event(9)])).unwrap(), next);
                assert_eq!(audit.verify().unwrap().records, next);
            }
        }
    }

    #[test]
    fn a_tail_torn_twice_at_the_same_place_is_kept_twice() {
        let (bytes, _) = written(&[1]);
        let directory = with(&[(1, &bytes)]);
        for tail in [b"one", b"two"] {
            fs::write(segment(&directory, 1), [&bytes[..], tail].concat()).unwrap();
            assert_eq!(open(&directory).unwrap().length(), 1);
        }
        let mut torn = torn_files(&directory);
        torn.sort();
        assert_eq!(torn, [b"one", b"two"]);
    }

    #[test]
    fn more_than_one_batch_behind_the_last_record_is_not_a_torn_tail() {
        let (bytes, _) = written(&[1]);
        for (more, refused) in [(4 << 20, false), ((4 << 20) + 1, true)] {
            let directory = with(&[(1, &[&bytes[..], &vec![0; more]].concat())]);
            assert_eq!(is_corrupt(open(&directory)), refused);
        }
    }

    #[test]
    fn a_damaged_record_with_others_behind_is_not_a_torn_tail() {
        let (bytes, ends) = written(&[1, 1, 1]);
        for at in 48..ends[1] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let directory = with(&[(1, &damaged)]);
            assert!(is_corrupt(open(&directory)), "byte {at}");
            assert_eq!(fs::read(segment(&directory, 1)).unwrap(), damaged);
        }
    }

    #[test]
    fn a_whole_last_record_whose_hash_is_wrong_is_not_a_torn_tail() {
        let (mut bytes, _) = written(&[2]);
        let in_hash = bytes.len() - 20;
        bytes[in_hash] ^= 1;
        assert!(is_corrupt(open(&with(&[(1, &bytes)]))));
    }

    #[test]
    fn a_crash_before_the_header_was_written_is_repaired() {
        for cut in 0..=48 {
            let mut files = three_segments();
            files[2].1.truncate(cut);
            let directory = directory_of(&files);
            let audit = open(&directory).unwrap();
            assert_eq!(audit.length(), 6);
            assert_eq!(block(audit.append(vec![event(1)])).unwrap(), 7);
            assert_eq!(audit.verify().unwrap().records, 7);

            let directory = with(&[(1, &files[0].1[..cut])]);
            assert_eq!(open(&directory).unwrap().length(), 0);
        }
    }

    #[test]
    fn a_daemon_that_was_killed_leaves_a_log_that_opens() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        for number in 0..20 {
            block(audit.append(vec![event(number)])).unwrap();
            // What the disk has at this moment, the daemon still running.
            let copy = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(directory.path()).unwrap().map(Result::unwrap) {
                fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
            }
            let reopened = open(&copy).unwrap();
            assert_eq!(reopened.length(), u64::from(number) + 1);
            assert_eq!(reopened.verify().unwrap(), audit.verify().unwrap());
        }
    }

    #[test]
    fn verify_notices_a_flipped_bit_in_every_byte() {
        let files = three_segments();
        let directory = directory_of(&files);
        assert_eq!(verify(directory.path()).unwrap().records, 9);
        for (first, bytes) in &files {
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << (at % 8);
                fs::write(segment(&directory, *first), flipped).unwrap();
                assert!(is_corrupt(verify(directory.path())), "segment {first} byte {at}");
            }
            fs::write(segment(&directory, *first), bytes).unwrap();
        }
        assert_eq!(verify(directory.path()).unwrap().records, 9);
    }

    #[test]
    fn verify_notices_a_swapped_deleted_repeated_or_inserted_record() {
        let (bytes, ends) = written(&[1, 1, 1, 1]);
        let (other, _) = written(&[4]);
        let record = |from: &[u8], n: usize| from[ends[n - 1]..ends[n]].to_vec();
        let [a, b, c] = [1, 2, 3].map(|n| record(&bytes, n));
        let foreign = record(&other, 1);
        let start = bytes[..ends[0]].to_vec();
        assert!(verify(with(&[(1, &bytes)]).path()).is_ok());
        for parts in [
            vec![&start, &b, &a, &c],
            vec![&start, &a, &c],
            vec![&start, &b, &c],
            vec![&start, &a, &a, &b, &c],
            vec![&start, &a, &foreign, &b, &c],
            vec![&start, &a, &b, &c, &a],
        ] {
            let changed: Vec<u8> = parts.into_iter().flatten().copied().collect();
            assert!(is_corrupt(verify(with(&[(1, &changed)]).path())));
        }
    }

    #[test]
    fn a_missing_swapped_or_shortened_segment_is_noticed() {
        let whole = three_segments();
        let changes: [fn(&mut Files); 6] = [
            |files| drop(files.remove(0)),
            |files| drop(files.remove(1)),
            |files| files[2].0 = 8,
            |files| {
                let second = files[1].1.clone();
                files[1].1 = std::mem::replace(&mut files[2].1, second);
            },
            |files| files[1].1.truncate(48),
            // Exactly one record less.
            |files| {
                let size = (files[1].1.len() - 48) / 3;
                let length = files[1].1.len();
                files[1].1.truncate(length - size);
            },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut files = whole.clone();
            change(&mut files);
            let directory = directory_of(&files);
            assert!(is_corrupt(verify(directory.path())), "change {number}");
            assert!(is_corrupt(open(&directory)), "change {number}");
        }
    }

    #[test]
    fn a_cut_at_the_end_of_a_record_is_not_noticed_without_an_anchor() {
        let (bytes, ends) = written(&[1, 1]);
        let verified = verify(with(&[(1, &bytes[..ends[0]])]).path()).unwrap();
        assert_eq!(verified.records, 1);
    }

    #[test]
    fn a_live_log_notices_that_its_end_was_exchanged() {
        let directory = tempfile::tempdir().unwrap();
        let audit = open(&directory).unwrap();
        block(audit.append(events(1..=2))).unwrap();
        let (other, _) = written(&[1]);
        fs::write(segment(&directory, 1), &other).unwrap();
        assert!(verify(directory.path()).is_ok());
        assert!(audit.verify().is_err());
    }

    #[test]
    fn no_log_at_all_does_not_verify() {
        assert!(is_corrupt(verify(tempfile::tempdir().unwrap().path())));
    }
}

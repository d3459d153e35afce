//! An exported part of the audit log, and its verification without the daemon: with
//! the public key of the checkpoints and nothing else. Pure.
//!
//! An edit, deletion, insertion or reordering breaks the chain, or, if the chain was
//! made anew, does not come to the signed root. A cut tail is found against a later
//! checkpoint alone. Bytes: `docs/audit-format.md`, "Export".

use std::sync::Arc;

use thiserror::Error;

use super::Verified;
use super::chain::{Frame, Head};
use super::checkpoint::{BadCheckpoint, Checkpoint, CheckpointKey};
use super::merkle::Tree;

/// Why an export is not the log that was signed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum Fault {
    /// It does not begin as an export does.
    #[error("it is no export of an audit log")]
    NotAnExport,
    /// What follows a record is no record that follows it.
    #[error("after record {after}: {what}")]
    Broken {
        /// The last record that is right.
        after: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// A checkpoint in it cannot be believed.
    #[error("after record {after}, a checkpoint: {why}")]
    Checkpoint {
        /// The last record before it.
        after: u64,
        /// What is wrong.
        why: BadCheckpoint,
    },
    /// The records are others than those that were signed.
    #[error("the records up to {size} are not those that were signed")]
    Rewritten {
        /// Size of the log in the checkpoint.
        size: u64,
    },
    /// A later checkpoint says that there were more records.
    #[error("the tail is cut: there were {signed} records, and {found} are here")]
    CutTail {
        /// Size of the log in the checkpoint.
        signed: u64,
        /// Number of the last record here.
        found: u64,
    },
    /// The newest records are not covered by a checkpoint, so they prove nothing.
    #[error("no checkpoint covers the records after {covered}")]
    Uncovered {
        /// Number of the last record that one covers.
        covered: u64,
    },
}

/// Verifies an export, one item after the other. A clone goes on by itself.
#[derive(Clone, Debug)]
pub struct Verifier {
    key: CheckpointKey,
    head: Head,
    tree: Tree,
    /// The size that the last checkpoint here had.
    covered: u64,
    /// Checkpoints from elsewhere, in the order of their sizes.
    anchors: Arc<[Checkpoint]>,
    /// How many of them were passed.
    passed: usize,
}

impl Verifier {
    /// Begins with the header that `bytes` begin with; how long that is. `anchors` are
    /// verified checkpoints of this log from elsewhere.
    ///
    /// # Errors
    /// [`Fault::NotAnExport`]; [`Fault::Rewritten`] by a checkpoint of just where it begins.
    pub fn begin(
        bytes: &[u8],
        key: CheckpointKey,
        mut anchors: Vec<Checkpoint>,
    ) -> Result<(Self, usize), Fault> {
        let (head, tree, size) = header_of(bytes).ok_or(Fault::NotAnExport)?;
        anchors.sort_by_key(|anchor| anchor.size);
        // What is before the export is known by the hashes of its header alone.
        let passed = anchors.partition_point(|anchor| anchor.size < head.records);
        let anchors = anchors.into();
        let mut verifier = Self { key, head, tree, covered: 0, anchors, passed };
        // Those of just where it begins, so that later ones are come to.
        verifier.pass_anchors()?;
        Ok((verifier, size))
    }

    /// The number of the last record so far.
    pub fn records(&self) -> u64 {
        self.head.records
    }

    /// Verifies the item that `bytes` begin with; how long that is.
    ///
    /// # Errors
    /// [`Fault`], at the first one.
    pub fn step(&mut self, bytes: &[u8]) -> Result<usize, Fault> {
        let broken = |what| Fault::Broken { after: self.head.records, what };
        let (kind, rest) = bytes.split_first().ok_or_else(|| broken("it is cut short"))?;
        match *kind {
            RECORD => {
                let frame = Frame::first_of(rest).map_err(broken)?;
                self.head = self.head.follow(&frame).map_err(broken)?;
                self.tree.push(&self.head.hash);
                self.pass_anchors()?;
                Ok(1 + frame.size())
            }
            CHECKPOINT => {
                let cut = || broken("a checkpoint is cut short");
                let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(cut)?;
                let length = usize::from(u16::from_be_bytes(*length));
                let note = rest.get(..length).ok_or_else(cut)?;
                let bad = |why| Fault::Checkpoint { after: self.head.records, why };
                let note =
                    std::str::from_utf8(note).map_err(|_other| bad(BadCheckpoint::Malformed))?;
                let checkpoint = Checkpoint::verified(note, &self.key).map_err(bad)?;
                self.compare(&checkpoint)?;
                self.covered = checkpoint.size;
                Ok(1 + 2 + length)
            }
            _ => Err(broken("what follows is neither a record nor a checkpoint")),
        }
    }

    /// What was verified, if nothing is missing at the end.
    ///
    /// # Errors
    /// [`Fault::CutTail`] by a later checkpoint, [`Fault::Uncovered`].
    pub fn finish(&self) -> Result<Verified, Fault> {
        let found = self.head.records;
        if let Some(anchor) = self.anchors[self.passed..].last() {
            return Err(Fault::CutTail { signed: anchor.size, found });
        }
        let anchored = self.anchors.last().map_or(0, |anchor| anchor.size);
        let covered = self.covered.max(anchored);
        if covered < found {
            return Err(Fault::Uncovered { covered });
        }
        Ok(Verified { records: found, head: self.head.hash })
    }

    fn pass_anchors(&mut self) -> Result<(), Fault> {
        while let Some(anchor) = self.anchors.get(self.passed)
            && anchor.size == self.head.records
        {
            self.compare(anchor)?;
            self.passed += 1;
        }
        Ok(())
    }

    fn compare(&self, checkpoint: &Checkpoint) -> Result<(), Fault> {
        let Checkpoint { size, root, head, .. } = checkpoint;
        let same =
            *size == self.head.records && *head == self.head.hash && *root == self.tree.root();
        if same { Ok(()) } else { Err(Fault::Rewritten { size: *size }) }
    }
}

/// Verifies a whole export.
///
/// # Errors
/// [`Fault`], at the first one.
pub fn verify(
    bytes: &[u8],
    key: CheckpointKey,
    anchors: Vec<Checkpoint>,
) -> Result<Verified, Fault> {
    let (mut verifier, mut at) = Verifier::begin(bytes, key, anchors)?;
    while at < bytes.len() {
        at += verifier.step(&bytes[at..])?;
    }
    verifier.finish()
}

/// Magic, number of records before, hash of the last of them, edge of their tree.
fn header_of(bytes: &[u8]) -> Option<(Head, Tree, usize)> {
    let rest = bytes.strip_prefix(&MAGIC)?;
    let (records, rest) = rest.split_first_chunk::<8>()?;
    let (hash, mut rest) = rest.split_first_chunk::<32>()?;
    let records = u64::from_be_bytes(*records);
    let mut edge = Vec::new();
    for _ in 0..records.count_ones() {
        let (node, after) = rest.split_first_chunk::<32>()?;
        edge.push(*node);
        rest = after;
    }
    let head = Head { records, hash: *hash };
    if records == 0 && head != Head::START {
        return None;
    }
    Some((head, Tree::resume(records, edge)?, bytes.len() - rest.len()))
}

/// What an export begins with; the last byte is the version of the format.
pub(super) const MAGIC: [u8; 8] = *b"rkexprt\x01";
/// What a record begins with.
pub(super) const RECORD: u8 = b'r';
/// What a checkpoint begins with: the length of the note follows, in two bytes.
pub(super) const CHECKPOINT: u8 = b'c';

#[cfg(test)]
mod tests {
    use super::super::checkpoint::tests::Signer;
    use super::super::tests::event;
    use super::*;
    use crate::domain::Event;

    const RECORDS: usize = 100_000;
    const CHECKPOINT_EVERY: usize = 100;
    const TAMPERINGS: usize = 10_000;

    /// An export, and where each of its items is.
    struct Exported {
        bytes: Vec<u8>,
        /// Start of each item; of the records with which number.
        items: Vec<(usize, Option<usize>)>,
        newest: Checkpoint,
    }

    impl Exported {
        fn item(&self, index: usize) -> &[u8] {
            let end = self.items.get(index + 1).map_or(self.bytes.len(), |(start, _)| *start);
            &self.bytes[self.items[index].0..end]
        }
    }

    fn nth(number: usize) -> Event {
        event(u16::try_from(number % 60_000).unwrap())
    }

    fn header(head: Head, tree: &Tree) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &head.records.to_be_bytes(), &head.hash].concat();
        tree.edge().iter().for_each(|node| bytes.extend_from_slice(node));
        bytes
    }

    fn at(head: Head, tree: &Tree) -> Checkpoint {
        Checkpoint {
            origin: "rootkeyd/test".into(),
            size: head.records,
            root: tree.root(),
            head: head.hash,
            boot_id: "boot".into(),
            time_micros: 0,
        }
    }

    fn exported(signer: &Signer, records: usize) -> Exported {
        let (mut head, mut tree) = (Head::START, Tree::default());
        let (mut bytes, mut items) = (header(head, &tree), Vec::new());
        for number in 1..=records {
            items.push((bytes.len(), Some(number)));
            bytes.push(RECORD);
            head.push(&nth(number), &mut bytes).unwrap();
            tree.push(&head.hash);
            if number % CHECKPOINT_EVERY == 0 {
                items.push((bytes.len(), None));
                let note = signer.sign(&at(head, &tree));
                bytes.push(CHECKPOINT);
                bytes.extend_from_slice(&u16::try_from(note.len()).unwrap().to_be_bytes());
                bytes.extend_from_slice(note.as_bytes());
            }
        }
        Exported { bytes, items, newest: at(head, &tree) }
    }

    /// Numbers that look random and are the same in every run.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap() % bound
        }
    }

    /// `events` as records behind `head`, the chain made anew, checkpoints where they were.
    fn rehashed<'a>(
        log: &Exported,
        head: &mut Head,
        items: impl Iterator<Item = (usize, Option<&'a Event>)>,
        bytes: &mut Vec<u8>,
    ) {
        for (index, event) in items {
            match (event, log.items.get(index).and_then(|item| item.1)) {
                (Some(event), _) => {
                    bytes.push(RECORD);
                    head.push(event, bytes).unwrap();
                }
                (None, Some(number)) => {
                    bytes.push(RECORD);
                    head.push(&nth(number), bytes).unwrap();
                }
                (None, None) => bytes.extend_from_slice(log.item(index)),
            }
        }
    }

    /// What stands in the place of the items `from..to`, after tampering with item `index`.
    fn tampered(
        log: &Exported,
        (from, index, to): (usize, usize, usize),
        before: Head,
        random: &mut Random,
    ) -> (&'static str, Vec<u8>) {
        let copy = |range: std::ops::Range<usize>| -> Vec<u8> {
            range.flat_map(|index| log.item(index).to_vec()).collect()
        };
        let lead = copy(from..index);
        let item = log.item(index).to_vec();
        let rest = copy(index + 1..to);
        let forged = Event { principal: "spiffe://td/mallory".into(), ..event(7) };
        // The chain stands at `before` where the window begins, so it is followed to the item.
        let mut head = before;
        for index in from..index {
            if log.items[index].1.is_some() {
                head = head.follow(&Frame::first_of(&log.item(index)[1..]).unwrap()).unwrap();
            }
        }
        let mut made = Vec::new();
        let (name, changed) = match random.below(9) {
            0 => {
                let mut item = item;
                let at = random.below(item.len());
                item[at] ^= 1 << random.below(8);
                ("a bit", [lead, item, rest].concat())
            }
            1 => ("deletion", [lead, rest].concat()),
            2 => {
                let mut other = head;
                made.push(RECORD);
                other.push(&forged, &mut made).unwrap();
                ("insertion", [lead, made, item, rest].concat())
            }
            3 => {
                let next = index + 1 + usize::from(log.items[index + 1].1.is_none());
                let between = copy(index + 1..next);
                let swapped = [log.item(next).to_vec(), between, item].concat();
                ("swap", [lead, swapped, copy(next + 1..to)].concat())
            }
            4 => ("repetition", [lead, item.clone(), item, rest].concat()),
            5 => {
                let items = (index..to).map(|at| (at, (at == index).then_some(&forged)));
                rehashed(log, &mut head, items, &mut made);
                ("forgery, chain made anew", [lead, made].concat())
            }
            6 => {
                rehashed(log, &mut head, (index + 1..to).map(|at| (at, None)), &mut made);
                ("deletion, chain made anew", [lead, made].concat())
            }
            7 => {
                rehashed(log, &mut head, [(index, Some(&forged))].into_iter(), &mut made);
                rehashed(log, &mut head, (index..to).map(|at| (at, None)), &mut made);
                ("insertion, chain made anew", [lead, made].concat())
            }
            _ => ("cut tail", lead),
        };
        (name, changed)
    }

    #[test]
    fn ten_thousand_random_tamperings_of_a_hundred_thousand_records_are_all_found() {
        let signer = Signer::new();
        let log = exported(&signer, RECORDS);
        let anchors = vec![log.newest.clone()];
        let (mut verifier, mut place) =
            Verifier::begin(&log.bytes, signer.key(), anchors.clone()).unwrap();
        // The real verifier, as it stands before every 50th item.
        let mut snapshots = Vec::new();
        for index in 0..log.items.len() {
            if index % 50 == 0 {
                snapshots.push(verifier.clone());
            }
            assert_eq!(place, log.items[index].0);
            place += verifier.step(&log.bytes[place..]).unwrap();
        }
        assert_eq!(verifier.finish().unwrap().records, RECORDS as u64);

        let mut random = Random(42);
        let mut found = std::collections::BTreeMap::new();
        // The window behind an item reaches over the next two checkpoints.
        let window = 2 * CHECKPOINT_EVERY + 10;
        for number in 0..TAMPERINGS {
            let index = loop {
                let index = random.below(log.items.len() - window);
                if log.items[index].1.is_some() {
                    break index;
                }
            };
            let from = index / 50 * 50;
            let mut verifier = snapshots[index / 50].clone();
            let (name, bytes) =
                tampered(&log, (from, index, index + window), verifier.head, &mut random);
            let mut at = 0;
            let mut verified = Ok(());
            while at < bytes.len() && verified.is_ok() {
                verified = verifier.step(&bytes[at..]).map(|size| at += size);
            }
            let verified = verified.and_then(|()| verifier.finish().map(drop));
            assert!(verified.is_err(), "{number}: {name} at item {index} was not found");
            // Not because the window ends, but because of what was done.
            let cut = matches!(verified, Err(Fault::CutTail { .. }));
            assert_eq!(cut, name == "cut tail", "{number}: {name} at item {index}: {verified:?}");
            *found.entry(name).or_insert(0) += 1;
        }
        assert_eq!(found.len(), 9, "{found:?}");
        assert_eq!(found.values().sum::<usize>(), TAMPERINGS);
    }

    #[test]
    fn a_cut_tail_is_found_with_a_later_checkpoint_and_not_without() {
        let signer = Signer::new();
        let log = exported(&signer, 300);
        let cut = &log.bytes[..log.items[202].0];
        assert_eq!(verify(cut, signer.key(), Vec::new()).unwrap().records, 200);
        let later = verify(cut, signer.key(), vec![log.newest.clone()]);
        assert_eq!(later, Err(Fault::CutTail { signed: 300, found: 200 }));
    }

    #[test]
    fn records_that_no_checkpoint_covers_prove_nothing() {
        let signer = Signer::new();
        let log = exported(&signer, 150);
        assert_eq!(
            verify(&log.bytes, signer.key(), Vec::new()),
            Err(Fault::Uncovered { covered: 100 })
        );
        assert!(verify(&log.bytes, signer.key(), vec![log.newest.clone()]).is_ok());
    }

    #[test]
    fn a_checkpoint_of_where_the_export_begins_does_not_hide_later_ones() {
        let signer = Signer::new();
        let log = exported(&signer, 300);
        let empty = at(Head::START, &Tree::default());
        let anchors = vec![empty.clone(), log.newest.clone()];
        assert_eq!(verify(&log.bytes, signer.key(), anchors.clone()).unwrap().records, 300);
        let cut = &log.bytes[..log.items[202].0];
        let found = verify(cut, signer.key(), anchors);
        assert_eq!(found, Err(Fault::CutTail { signed: 300, found: 200 }));
        let other = Checkpoint { root: [7; 32], ..empty };
        let found = verify(&log.bytes, signer.key(), vec![other]);
        assert_eq!(found, Err(Fault::Rewritten { size: 0 }));
    }

    #[test]
    fn an_export_can_begin_at_any_record() {
        let signer = Signer::new();
        let log = exported(&signer, 300);
        let (mut verifier, mut at) = Verifier::begin(&log.bytes, signer.key(), Vec::new()).unwrap();
        for _ in 0..150 {
            at += verifier.step(&log.bytes[at..]).unwrap();
        }
        let head = header(verifier.head, &verifier.tree);
        let part = [&head[..], &log.bytes[at..]].concat();
        assert_eq!(verify(&part, signer.key(), Vec::new()).unwrap().records, 300);
        // The hashes of the header are held to the signed root too.
        for byte in 16..head.len() {
            let mut changed = part.clone();
            changed[byte] ^= 1;
            assert!(verify(&changed, signer.key(), Vec::new()).is_err(), "byte {byte}");
        }
    }
}

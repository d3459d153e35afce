//! The bytes of the audit log: headers, records, frames, and the hashes that
//! chain them. Pure; `segment.rs` has the files.
//!
//! Every byte is described in `docs/audit-format.md`; a golden one is below.

use std::borrow::Cow;
use std::convert::Infallible;

use minicbor::data::Type;
use minicbor::{Decoder, Encoder};
use sha2::{Digest, Sha256};

use crate::domain::{Event, Outcome, Timestamp};

/// SHA-256 of the previous hash and a payload.
pub(super) type Hash = [u8; HASH_BYTES];

/// Length of a hash, in bytes.
pub(super) const HASH_BYTES: usize = 32;
/// Length of a segment's header, in bytes.
pub(super) const HEADER_BYTES: usize = 48;
/// Most bytes of one frame.
pub(super) const FRAME_BYTES: usize = PAYLOAD_BYTES + OVERHEAD_BYTES;
/// Length of what says how long a payload is, in bytes.
pub(super) const LENGTH_BYTES: usize = 4;

/// A record of the audit log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    /// Its number; the first record of a log has 1.
    pub sequence: u64,
    /// What happened.
    pub event: Event,
    /// The hash of the record before it; zeros before the first.
    pub previous_hash: [u8; 32],
    /// SHA-256 of `previous_hash` and of this record's bytes.
    pub hash: [u8; 32],
}

/// Where the chain stands: how many records, and the hash of the last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Head {
    pub(super) records: u64,
    pub(super) hash: Hash,
}

/// An event has more bytes than a record may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct TooLong;

impl Head {
    /// Before the first record.
    pub(super) const START: Self = Self { records: 0, hash: [0; HASH_BYTES] };

    /// The header of a segment that begins here.
    pub(super) fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&MAGIC);
        header[8..16].copy_from_slice(&(self.records + 1).to_be_bytes());
        header[16..].copy_from_slice(&self.hash);
        header
    }

    /// Appends the frame of `event` to `bytes` and moves on; does nothing if it is too long.
    pub(super) fn push(&mut self, event: &Event, bytes: &mut Vec<u8>) -> Result<(), TooLong> {
        let start = bytes.len();
        bytes.extend_from_slice(&[0; LENGTH_BYTES]);
        encode(self.records + 1, event, bytes);
        let payload = &bytes[start + LENGTH_BYTES..];
        let length = match u32::try_from(payload.len()) {
            Ok(length) if payload.len() <= PAYLOAD_BYTES => length.to_be_bytes(),
            Ok(_) | Err(_) => {
                bytes.truncate(start);
                return Err(TooLong);
            }
        };
        let hash = hash(&self.hash, payload);
        bytes[start..start + LENGTH_BYTES].copy_from_slice(&length);
        bytes.extend_from_slice(&hash);
        bytes.extend_from_slice(&length);
        *self = Self { records: self.records + 1, hash };
        Ok(())
    }

    /// Where the chain stands after `frame`; says what is wrong if that is not the next one.
    pub(super) fn follow(&self, frame: &Frame<'_>) -> Result<Self, &'static str> {
        let record = frame.record(self.hash)?;
        if self.records.checked_add(1) != Some(record.sequence) {
            return Err("the record has another sequence number");
        }
        Ok(Self { records: record.sequence, hash: record.hash })
    }
}

/// One record as it lies in a file, its lengths in order; the hash is not yet verified.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame<'a> {
    payload: &'a [u8],
    hash: Hash,
}

impl<'a> Frame<'a> {
    /// The frame that `bytes` begin with.
    pub(super) fn first_of(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let (length, rest) = bytes.split_first_chunk().ok_or(CUT)?;
        let size = payload_bytes(*length)?;
        let (payload, rest) = rest.split_at_checked(size).ok_or(CUT)?;
        let (hash, rest) = rest.split_first_chunk().ok_or(CUT)?;
        let (again, _) = rest.split_first_chunk::<LENGTH_BYTES>().ok_or(CUT)?;
        if again != length {
            return Err("the two lengths of the record differ");
        }
        Ok(Self { payload, hash: *hash })
    }

    /// The frame that `bytes` end with.
    pub(super) fn last_of(bytes: &'a [u8]) -> Result<Self, &'static str> {
        let (_, length) = bytes.split_last_chunk().ok_or(CUT)?;
        let size = payload_bytes(*length)? + OVERHEAD_BYTES;
        let start = bytes.len().checked_sub(size).ok_or(CUT)?;
        Self::first_of(&bytes[start..])
    }

    /// All its bytes.
    pub(super) fn size(&self) -> usize {
        self.payload.len() + OVERHEAD_BYTES
    }

    /// The record in it, if its hash follows from `previous_hash`.
    pub(super) fn record(&self, previous_hash: Hash) -> Result<Record, &'static str> {
        if hash(&previous_hash, self.payload) != self.hash {
            return Err("the hash of the record does not verify");
        }
        let (sequence, event) = decode(self.payload)
            .map_err(|NotARecord| "the bytes of the record are not what a daemon writes")?;
        Ok(Record { sequence, event, previous_hash, hash: self.hash })
    }

    /// Whether a record is in it, be its hash right or wrong.
    pub(super) fn holds_a_record(&self) -> bool {
        decode(self.payload).is_ok()
    }
}

fn payload_bytes(length: [u8; LENGTH_BYTES]) -> Result<usize, &'static str> {
    match usize::try_from(u32::from_be_bytes(length)) {
        Ok(size @ 1..=PAYLOAD_BYTES) => Ok(size),
        Ok(_) | Err(_) => Err("the length of the record is out of bounds"),
    }
}

fn hash(previous: &Hash, payload: &[u8]) -> Hash {
    Sha256::new().chain_update(previous).chain_update(payload).finalize().into()
}

/// The one encoding of a record: a CBOR array, all lengths definite and shortest.
fn encode(sequence: u64, event: &Event, bytes: &mut Vec<u8>) {
    try_encode(sequence, event, &mut Encoder::new(bytes)).expect("a Vec takes all that is written");
}

fn try_encode(
    sequence: u64,
    event: &Event,
    e: &mut Encoder<&mut Vec<u8>>,
) -> Result<(), minicbor::encode::Error<Infallible>> {
    let Event {
        id,
        time,
        action,
        principal,
        source_address,
        instance,
        subject,
        key_version,
        resource,
        outcome,
        request_id,
        details,
    } = event;
    e.array(FIELDS)?.u64(sequence)?.bytes(id)?.i64(time.as_micros())?;
    for field in [action, principal.as_str(), source_address, instance] {
        e.str(&printable(field))?;
    }
    for field in [subject, key_version, resource] {
        e.str(&printable(field))?;
    }
    match outcome {
        Outcome::Success => e.null()?,
        Outcome::Refused(reason) => e.str(&printable(reason))?,
    };
    e.str(&printable(request_id))?.array(details.len() as u64)?;
    for (name, value) in details {
        e.array(2)?.str(&printable(name))?.str(&printable(value))?;
    }
    Ok(())
}

/// NUL becomes U+2400. A length begins with two zero bytes, so a caller's text
/// without them cannot hold what looks like a frame.
fn printable(text: &str) -> Cow<'_, str> {
    match text.as_bytes().contains(&0) {
        false => Cow::Borrowed(text),
        true => Cow::Owned(text.replace('\0', "\u{2400}")),
    }
}

/// Not the encoding of a record.
struct NotARecord;

impl From<minicbor::decode::Error> for NotARecord {
    fn from(_: minicbor::decode::Error) -> Self {
        Self
    }
}

fn decode(payload: &[u8]) -> Result<(u64, Event), NotARecord> {
    let mut d = Decoder::new(payload);
    if d.array()? != Some(FIELDS) {
        return Err(NotARecord);
    }
    let sequence = d.u64()?;
    let event = Event {
        id: *d.bytes()?.first_chunk().ok_or(NotARecord)?,
        time: Timestamp::from_micros(d.i64()?),
        action: Cow::Owned(text(&mut d)?),
        principal: text(&mut d)?,
        source_address: text(&mut d)?,
        instance: text(&mut d)?,
        subject: text(&mut d)?,
        key_version: text(&mut d)?,
        resource: text(&mut d)?,
        outcome: outcome(&mut d)?,
        request_id: text(&mut d)?,
        details: details(&mut d)?,
    };
    // Strict by construction: what has another form than ours does not come out the same.
    let mut again = Vec::with_capacity(payload.len());
    encode(sequence, &event, &mut again);
    if again == payload { Ok((sequence, event)) } else { Err(NotARecord) }
}

fn text(d: &mut Decoder<'_>) -> Result<String, NotARecord> {
    Ok(d.str()?.to_owned())
}

fn outcome(d: &mut Decoder<'_>) -> Result<Outcome, NotARecord> {
    if d.datatype()? == Type::Null {
        d.null()?;
        return Ok(Outcome::Success);
    }
    Ok(Outcome::Refused(Cow::Owned(text(d)?)))
}

fn details(d: &mut Decoder<'_>) -> Result<Vec<(String, String)>, NotARecord> {
    let count = d.array()?.ok_or(NotARecord)?;
    let mut details = Vec::new();
    for _ in 0..count {
        if d.array()? != Some(2) {
            return Err(NotARecord);
        }
        details.push((text(d)?, text(d)?));
    }
    Ok(details)
}

/// What a segment begins with; the last byte is the version of the format.
const MAGIC: [u8; 8] = *b"rkaudit\x01";
/// The sequence number and the fields of an event.
const FIELDS: u64 = 13;
/// Most bytes of one payload.
const PAYLOAD_BYTES: usize = 64 * 1024;
const OVERHEAD_BYTES: usize = LENGTH_BYTES + HASH_BYTES + LENGTH_BYTES;
const CUT: &str = "the record is cut short";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unwrap_event() -> Event {
        Event {
            id: *b"0123456789abcdef",
            time: Timestamp::from_seconds(1_750_000_000),
            action: "kms.secrets.unwrap".into(),
            principal: "spiffe://rootkeyd.dev/vm".into(),
            source_address: "10.0.0.7:4711".into(),
            instance: "default".into(),
            subject: "instances/default/keys/volumes".into(),
            key_version: String::new(),
            resource: "crn:v1:vol-1".into(),
            outcome: Outcome::Refused("KEY_SUSPENDED".into()),
            request_id: "r-1".into(),
            details: vec![("state".into(), "SUSPENDED".into())],
        }
    }

    fn framed(event: &Event) -> Vec<u8> {
        let mut bytes = Vec::new();
        Head::START.clone().push(event, &mut bytes).unwrap();
        bytes
    }

    const GOLDEN_HEADER: &str = "726b617564697401000000000000000100000000000000000000000000000000\
                                 00000000000000000000000000000000";
    const GOLDEN_FRAME: &str = "000000b18d0150303132333435363738396162636465661b0006379da05b6000\
                                726b6d732e736563726574732e756e7772617078187370696666653a2f2f726f\
                                6f746b6579642e6465762f766d6d31302e302e302e373a343731316764656661\
                                756c74781e696e7374616e6365732f64656661756c742f6b6579732f766f6c75\
                                6d6573606c63726e3a76313a766f6c2d316d4b45595f53555350454e44454463\
                                722d3181826573746174656953555350454e4445440585c5c8b1137828b0df8b\
                                1a31c0cc0d2021d5e76658f8c59092a3d86dabc135000000b1";

    #[test]
    fn a_record_has_the_bytes_that_the_document_shows() {
        assert_eq!(hex::encode(Head::START.header()), GOLDEN_HEADER);
        assert_eq!(hex::encode(framed(&unwrap_event())), GOLDEN_FRAME);
        let document = include_str!("../../docs/audit-format.md");
        let document: String = document.split_whitespace().collect();
        assert!(document.contains(GOLDEN_HEADER) && document.contains(GOLDEN_FRAME));
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let frame = framed(&unwrap_event());
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let follows = Frame::first_of(&flipped).and_then(|frame| Head::START.follow(&frame));
            assert!(follows.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn another_form_of_the_same_record_is_refused() {
        let mut payload = Vec::new();
        encode(1, &unwrap_event(), &mut payload);
        assert!(decode(&payload).is_ok());
        // The sequence number 1 in two bytes instead of one.
        let long = [&payload[..1], &[0x18, 0x01], &payload[2..]].concat();
        // One field less, one more, a byte behind, and an array without its length.
        let less = [&[0x8c], &payload[1..]].concat();
        let more = [&[0x8e], &payload[1..], &[0xf6]].concat();
        let behind = [&payload[..], &[0]].concat();
        let indefinite = [&[0x9f], &payload[1..], &[0xff]].concat();
        for other in [long, less, more, behind, indefinite] {
            assert!(decode(&other).is_err(), "{}", hex::encode(&other));
        }
    }

    #[test]
    fn no_text_holds_what_a_length_begins_with() {
        let event = Event { request_id: "a\0\0b".into(), ..unwrap_event() };
        let bytes = framed(&event);
        let record = Frame::first_of(&bytes).unwrap().record(Head::START.hash).unwrap();
        assert_eq!(record.event.request_id, "a\u{2400}\u{2400}b");
    }

    #[test]
    fn a_record_has_at_most_64_kib() {
        let (mut head, mut bytes) = (Head::START, vec![7]);
        let event = Event { subject: "x".repeat(PAYLOAD_BYTES), ..unwrap_event() };
        assert_eq!(head.push(&event, &mut bytes), Err(TooLong));
        assert_eq!((head, bytes.as_slice()), (Head::START, &[7][..]));

        let mut payload = Vec::new();
        encode(1, &Event { subject: "x".repeat(60_000), ..unwrap_event() }, &mut payload);
        let longest = "x".repeat(60_000 + PAYLOAD_BYTES - payload.len());
        let event = |subject| Event { subject, ..unwrap_event() };
        assert_eq!(head.clone().push(&event(format!("{longest}x")), &mut bytes), Err(TooLong));
        assert_eq!(head.push(&event(longest), &mut bytes), Ok(()));
        assert_eq!(Frame::first_of(&bytes[1..]).unwrap().size(), FRAME_BYTES);
    }

    prop_compose! {
        fn any_event()(
            id: [u8; 16],
            micros: i64,
            texts: [String; 8],
            refused in proptest::option::of(any::<String>()),
            details: Vec<(String, String)>,
        ) -> Event {
            let [action, principal, source_address, instance, subject, key_version, resource,
                request_id] = texts.map(|text| text.replace('\0', ""));
            let (time, action) = (Timestamp::from_micros(micros), action.into());
            let clean = |text: String| text.replace('\0', "");
            let outcome = refused
                .map_or(Outcome::Success, |reason| Outcome::Refused(clean(reason).into()));
            let details = details.into_iter().map(|(n, v)| (clean(n), clean(v))).collect();
            Event { id, time, action, principal, source_address, instance, subject, key_version,
                resource, outcome, request_id, details }
        }
    }

    proptest! {
        #[test]
        fn what_was_framed_comes_back_the_same(
            event in any_event(), records in 0..u64::MAX, previous_hash: [u8; 32],
        ) {
            let before = Head { records, hash: previous_hash };
            let (mut after, mut bytes) = (before, Vec::new());
            after.push(&event, &mut bytes).unwrap();
            let frame = Frame::first_of(&bytes).unwrap();
            prop_assert_eq!(frame.size(), bytes.len());
            prop_assert_eq!(before.follow(&frame), Ok(after));
            let record = Frame::last_of(&bytes).unwrap().record(previous_hash).unwrap();
            let expected =
                Record { sequence: records + 1, event, previous_hash, hash: after.hash };
            prop_assert_eq!(record, expected);
        }

        #[test]
        fn reading_anything_does_not_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let _ = decode(&bytes);
            let _ = Frame::first_of(&bytes).and_then(|frame| frame.record([0; 32]));
            let _ = Frame::last_of(&bytes).and_then(|frame| frame.record([0; 32]));
        }
    }
}

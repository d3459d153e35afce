//! What each fuzz target does with its input: what comes from outside, read by the
//! code of rootkeyd that reads it first. No input may make it panic, hang or take more
//! memory than its length allows, and what is accepted must come out as it went in.
//!
//! The fuzzers (`bin/`) and the replay of what they found (`tests/fuzz_corpus.rs`) both
//! call this.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use rootkeyd::api::decoding::DECODERS;
use rootkeyd::audit::checkpoint::{Checkpoint, CheckpointKey};
use rootkeyd::audit::{self, export};
use rootkeyd::config::Config;
use rootkeyd::domain::{
    Aad, Alias, BindingCollection, BindingSubject, Crn, CrnPattern, InstanceId, Ipv4Net, KeyName,
    KeyRingId, KeyRingName, PrincipalId, RegistrationName, Scope, ServiceName,
};
use rootkeyd::envelope::{OVERHEAD_BYTES, Wrapped, authenticated};
use sha2::{Digest, Sha256};

/// A wrapped DEK: bytes that a caller has kept for years.
pub(crate) fn envelope(input: &[u8]) {
    let Ok(wrapped) = Wrapped::decode(input) else { return };
    assert_eq!(wrapped.encode(), input, "a wrapped DEK has one form");
    assert!(input.len() > OVERHEAD_BYTES);
    if let Ok(aad) = Aad::new(input.chunks(40).map(<[u8]>::to_vec).collect()) {
        authenticated(wrapped.key, wrapped.version, &aad);
    }
}

/// Names of resources, from URLs, requests, configuration and certificates.
pub(crate) fn names(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    the_same::<InstanceId>(text);
    the_same::<Alias>(text);
    the_same::<KeyRingId>(text);
    the_same::<KeyRingName>(text);
    the_same::<KeyName>(text);
    the_same::<RegistrationName>(text);
    the_same::<PrincipalId>(text);
    the_same::<ServiceName>(text);
    the_same::<BindingSubject>(text);
    the_same::<Scope>(text);
    the_same::<Crn>(text);
    let _network = text.parse::<Ipv4Net>();
    for collection in [BindingCollection::Bindings, BindingCollection::ServiceAuthorizations] {
        if let Ok(name) = collection.parse(text) {
            assert_eq!(name.to_string(), text);
        }
    }
    for bound in [0, 8] {
        drop(CrnPattern::parse(text, bound));
    }
}

/// A request of the contract: the first byte says which, the rest are its bytes.
pub(crate) fn requests(input: &[u8]) {
    let Some((which, bytes)) = input.split_first() else { return };
    let (_, decode) = DECODERS[usize::from(*which) % DECODERS.len()];
    drop(decode(bytes));
}

/// What a verifier of the audit log is given; the first byte says what.
pub(crate) fn audit(input: &[u8]) {
    let Some((what, bytes)) = input.split_first() else { return };
    let key = || CheckpointKey::from_spki(SPKI.to_vec());
    match what % 5 {
        0 => drop(export::verify(bytes, key(), Vec::new())),
        // Past the hashes, which no fuzzer guesses, to the bytes of the records.
        1 => drop(export::verify(&chained(b"rkexprt\x01", 0, b"r", bytes), key(), Vec::new())),
        2 => {
            if let Ok(note) = str::from_utf8(bytes) {
                drop(Checkpoint::verified(note, &key()));
            }
        }
        3 => verify_segment(bytes),
        _ => verify_segment(&chained(b"rkaudit\x01", 1, b"", bytes)),
    }
}

/// The configuration file.
pub(crate) fn config(input: &[u8]) {
    if let Ok(text) = str::from_utf8(input) {
        drop(Config::parse(text, Path::new("/etc/rootkeyd/rootkeyd.toml")));
    }
}

/// What is a name is printed as it was read.
fn the_same<N: FromStr + Display>(text: &str) {
    if let Ok(name) = text.parse::<N>() {
        assert_eq!(name.to_string(), text);
    }
}

/// `records`, each with a length of two bytes before it, as they follow each other in a
/// file that begins with `magic`: framed, and with hashes that are right.
fn chained(magic: &[u8; 8], first: u64, before: &[u8], mut records: &[u8]) -> Vec<u8> {
    let mut hash = [0; 32];
    let mut file = [&magic[..], &first.to_be_bytes(), &hash].concat();
    while let Some((length, rest)) = records.split_first_chunk::<2>() {
        let (payload, rest) = rest.split_at(rest.len().min(u16::from_be_bytes(*length).into()));
        let length = u32::try_from(payload.len()).expect("it is shorter than 64 KiB").to_be_bytes();
        hash = Sha256::new().chain_update(hash).chain_update(payload).finalize().into();
        file.extend([before, &length, payload, &hash, &length].concat());
        records = rest;
    }
    file
}

fn verify_segment(bytes: &[u8]) {
    // A directory for each process: fuzzers and tests run side by side.
    let name = format!("rootkeyd-fuzz-{}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    fs::create_dir_all(&directory).expect("a temporary directory can be made");
    let segment = directory.join(format!("{:020}.log", 1));
    fs::write(segment, bytes).expect("a file can be written");
    drop(audit::verify(&directory));
    fs::remove_dir_all(directory).expect("the directory is ours");
}

/// A public key (P-256); nobody has kept the other half.
#[rustfmt::skip]
const SPKI: [u8; 91] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04, 0x29, 0x64, 0x90, 0x4a, 0x12,
    0x75, 0x17, 0xd9, 0x3d, 0x2d, 0x78, 0xe3, 0xc2, 0x80, 0xa9, 0x00, 0x84, 0x68, 0x6d, 0x25, 0x11,
    0x45, 0xa3, 0x16, 0xbd, 0x6e, 0xd3, 0x8c, 0x46, 0x97, 0x0d, 0x66, 0x38, 0x0f, 0x8d, 0xa8, 0x9b,
    0xda, 0xcb, 0x1f, 0x33, 0x0b, 0x3d, 0xf6, 0x36, 0x51, 0x04, 0xfe, 0x29, 0x63, 0xaf, 0x60, 0x3c,
    0x6e, 0x43, 0x3e, 0x91, 0x05, 0xb4, 0x75, 0xc4, 0x6e, 0xaf, 0xea,
];

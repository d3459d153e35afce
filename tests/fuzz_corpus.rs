//! What the fuzzers have found, again: each input in `fuzz/corpus` is read once by the code
//! that its target fuzzes, and so is each with a byte changed or its end cut off.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rootkeyd::api::decoding::{DECODERS, Form};

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 5] = [
    ("envelope", targets::envelope),
    ("names", targets::names),
    ("requests", targets::requests),
    ("audit", targets::audit),
    ("config", targets::config),
];

#[test]
fn no_input_of_the_corpus_is_more_than_refused() {
    for (target, read) in TARGETS {
        let inputs = fs::read_dir(Path::new("fuzz/corpus").join(target)).unwrap();
        let mut count = 0;
        for input in inputs {
            let path = input.unwrap().path();
            let input = fs::read(&path).unwrap();
            // Named if it panics: that is all a person needs to go on.
            eprintln!("{}", path.display());
            read(&input);
            for change in 0..CHANGES {
                let mut changed = input.clone();
                let place = (change * 7919 + 13) % input.len().max(1);
                match changed.get_mut(place) {
                    Some(byte) if change % 2 == 0 => *byte ^= 1 << (change / 2 % 8),
                    Some(_) | None => changed.truncate(place),
                }
                read(&changed);
            }
            count += 1;
        }
        assert!(count >= FEWEST, "{target} has only {count} inputs");
    }
}

/// From there a fuzzer comes to every field; from a request that is refused it may not.
#[test]
fn a_right_request_of_every_kind_is_in_the_corpus() {
    let mut wrong = Vec::new();
    for (number, (request, decode)) in DECODERS.iter().enumerate() {
        let path = Path::new("fuzz/corpus/requests").join(request);
        let input = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (which, bytes) = input.split_first().unwrap();
        assert_eq!(usize::from(*which), number, "{request} is another request now");
        match decode(bytes) {
            Form::Right => {}
            form @ (Form::NotTheMessage | Form::Refused(_)) => wrong.push((request, form)),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_target_is_fuzzed_and_replayed() {
    let replayed: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    for folder in ["fuzz/bin", "fuzz/corpus"] {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let names: BTreeSet<_> =
            names.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(names, replayed, "{folder}");
    }
}

/// Inputs of a target without which its replay would show nothing.
const FEWEST: usize = 4;
/// Changed inputs for each of the corpus.
const CHANGES: usize = 32;

//! What the fuzzers have found, again: each input in `fuzz/corpus` is read once by the code
//! that its target fuzzes, and so is each with a byte changed or its end cut off.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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

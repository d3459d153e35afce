//! Objects of SoftHSM that a crash has torn: files without a byte.
//!
//! SoftHSM writes an object by making its file empty and then writing it, so a crash in
//! between leaves one that no search shows (`facts/reliability.md`, E7). Only the
//! directory shows it. Where there is no directory of the token that we are told of,
//! there is nothing to look at.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Names of object files below `directory` that are empty, each relative to it. Looks
/// twice, since one that is being made now is empty for a moment. Blocks.
///
/// # Errors
/// If the directory cannot be read.
pub fn torn_files(directory: &Path) -> io::Result<Vec<String>> {
    let first = empty_files(directory)?;
    if first.is_empty() {
        return Ok(Vec::new());
    }
    std::thread::sleep(LOOK_PAUSE);
    let second = empty_files(directory)?;
    Ok(first.intersection(&second).cloned().collect())
}

/// Tokens are directories in it, and hold a file for each object.
fn empty_files(directory: &Path) -> io::Result<BTreeSet<String>> {
    let mut empty = BTreeSet::new();
    for token in fs::read_dir(directory)? {
        let token = token?;
        if !token.file_type()?.is_dir() {
            continue;
        }
        for file in fs::read_dir(token.path())? {
            let file = file?;
            // Gone meanwhile is not torn.
            let is_empty = file.metadata().is_ok_and(|metadata| metadata.len() == 0);
            let name = file.file_name();
            if is_empty && Path::new(&name).extension().is_some_and(|it| it == "object") {
                let token = token.file_name();
                empty.insert(format!("{}/{}", token.display(), name.display()));
            }
        }
    }
    Ok(empty)
}

/// SoftHSM needs much less to write an object.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_object_files_are_torn_and_nothing_else_is() {
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("1234");
        fs::create_dir(&token).unwrap();
        for (name, bytes) in
            [("a.object", &b""[..]), ("b.object", b"whole"), ("a.lock", b""), ("generation", b"")]
        {
            fs::write(token.join(name), bytes).unwrap();
        }
        fs::write(directory.path().join("c.object"), b"").unwrap();
        assert_eq!(torn_files(directory.path()).unwrap(), ["1234/a.object"]);
        assert!(torn_files(&token.join("none")).is_err());
    }
}

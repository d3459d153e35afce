//! `encrypt` and `decrypt`: a file under a DEK of its own, which the daemon makes
//! and unwraps. The file's contents never go to the daemon.
//!
//! What is written gets its name only when it is whole and verified.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
};

use comfy_table::Table;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    crypto::take_secret,
    failure::Failure,
    file_format::{CHUNK_SIZE, FileError, Header, open, seal},
    new_file::{Existing, NewFile},
    output::{Output, fields},
};
use crate::{api::pb, client::Client};

#[derive(Debug, clap::Args)]
#[command(after_help = ENCRYPT_EXAMPLES)]
pub(super) struct Encrypt {
    /// The file to encrypt
    file: PathBuf,
    /// The root key: a UUID, an alias or a full name
    #[arg(long)]
    key: String,
    /// The encrypted file; FILE.rk if not given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the encrypted file if it exists
    #[arg(long)]
    overwrite: bool,
}

impl Encrypt {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { file: path, key, out, overwrite } = self;
        let out = out.unwrap_or_else(|| with_extension(&path));
        let (mut from, bytes) = open_regular(&path)?;
        let mut to = NewFile::begin(&out, existing(overwrite))?;

        let request = pb::GenerateDekRequest {
            register: None,
            key: client.key_name(&key),
            size_bytes: 32,
            aad: vec![AAD.to_vec()],
            resource: String::new(),
            wrapped_only: false,
        };
        let name = request.key.clone();
        let pb::GenerateDekResponse { dek, wrapped_dek, key_version } =
            client.crypto().generate_dek(request).await?.into_inner();
        let dek = take_secret(dek);
        let key = key_version.split_once("/versions/").map_or(name, |(key, _)| key.to_owned());
        let mut nonce_prefix = [0; 7];
        getrandom::fill(&mut nonce_prefix)?;
        let header =
            Header { key, wrapped_dek: wrapped_dek.into(), chunk_size: CHUNK_SIZE, nonce_prefix };
        if !header.is_valid() {
            return Err(Failure::Answer("does not fit into the header of a file"));
        }

        let bar = progress_bar(bytes);
        let mut step = |bytes| bar.inc(u64::try_from(bytes).unwrap_or(0));
        seal(&header, &dek, &mut from, &mut to, &mut step)
            .map_err(|error| failure(error, &path, &out))?;
        to.commit()?;
        bar.finish_and_clear();
        Done { file: out.display().to_string(), key: header.key, key_version }.show(output)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = DECRYPT_EXAMPLES)]
pub(super) struct Decrypt {
    /// The file to decrypt
    file: PathBuf,
    /// The decrypted file; FILE without .rk if not given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace the decrypted file if it exists
    #[arg(long)]
    overwrite: bool,
}

impl Decrypt {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let Self { file: path, out, overwrite } = self;
        let out = match out {
            Some(out) => out,
            None if path.extension() == Some(EXTENSION.as_ref()) => path.with_extension(""),
            None => return Err(Failure::NoDestination { path }),
        };
        let (mut from, bytes) = open_regular(&path)?;
        let mut to = NewFile::begin(&out, existing(overwrite))?;

        let header = Header::read(&mut from).map_err(|error| failure(error, &path, &out))?;
        let request = pb::UnwrapDekRequest {
            key: header.key.clone(),
            wrapped_dek: header.wrapped_dek.clone(),
            aad: vec![AAD.to_vec()],
            resource: String::new(),
        };
        let answer = client.crypto().unwrap_dek(request).await?.into_inner();
        let pb::UnwrapDekResponse { dek, key_version, rewrapped_dek: _, rewrapped_key_version: _ } =
            answer;
        let dek = take_secret(dek);

        let bar = progress_bar(bytes);
        let mut step = |bytes| bar.inc(u64::try_from(bytes).unwrap_or(0));
        open(&header, &dek, &mut from, &mut to, &mut step)
            .map_err(|error| failure(error, &path, &out))?;
        to.flush().map_err(Failure::file(&out))?;
        to.commit()?;
        bar.finish_and_clear();
        Done { file: out.display().to_string(), key: header.key, key_version }.show(output)
    }
}

/// What was made.
#[derive(Debug, Serialize)]
struct Done {
    file: String,
    key: String,
    key_version: String,
}

impl Done {
    fn show(&self, output: Output) -> Result<(), Failure> {
        output.show(self, Self::table)
    }

    fn table(&self) -> Table {
        let Self { file, key, key_version } = self;
        fields([("file", file.clone()), ("key", key.clone()), ("key version", key_version.clone())])
    }
}

fn open_regular(path: &Path) -> Result<(File, u64), Failure> {
    let file = File::open(path).map_err(Failure::file(path))?;
    let bytes = file.metadata().map_err(Failure::file(path))?.len();
    Ok((file, bytes))
}

fn existing(overwrite: bool) -> Existing {
    if overwrite { Existing::Replace } else { Existing::Keep }
}

fn with_extension(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(EXTENSION);
    name.into()
}

fn failure(error: FileError, from: &Path, to: &Path) -> Failure {
    match error {
        FileError::Read(source) => Failure::File { path: from.to_owned(), source },
        FileError::Write(source) => Failure::File { path: to.to_owned(), source },
        FileError::Unverified => Failure::Unverified { path: from.to_owned() },
        FileError::TooLong => Failure::FileTooLong { path: from.to_owned() },
        FileError::DekSize => Failure::Answer("holds a DEK that does not have 32 bytes"),
    }
}

/// On stderr, and only if that is a terminal.
fn progress_bar(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {bytes} of {total_bytes}, {eta} left")
        .expect("the template is constant");
    ProgressBar::new(bytes).with_style(style)
}

/// What the DEK of a file is bound to, so that it unwraps as nothing else.
const AAD: &[u8] = b"rootkeyctl-file-v1";
const EXTENSION: &str = "rk";

const ENCRYPT_EXAMPLES: &str = "\
Examples:
  rootkeyctl encrypt backup.tar --key block
  rootkeyctl encrypt backup.tar --key block --out /mnt/backup.rk --overwrite

The file is encrypted here, in chunks, under a DEK of its own; only the DEK's
wrapping needs the daemon. docs/file-format.md describes every byte.";

const DECRYPT_EXAMPLES: &str = "\
Examples:
  rootkeyctl decrypt backup.tar.rk
  rootkeyctl decrypt /mnt/backup.rk --out backup.tar

A file that was changed or cut is refused as CIPHERTEXT_UNVERIFIED, and nothing
is written.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encrypted_file_is_named_after_the_whole_name() {
        assert_eq!(with_extension(Path::new("a/b.tar.gz")), Path::new("a/b.tar.gz.rk"));
        assert_eq!(with_extension(Path::new("a/b")), Path::new("a/b.rk"));
        assert_eq!(Path::new("a/b.tar.rk").with_extension(""), Path::new("a/b.tar"));
    }

    #[test]
    fn a_changed_file_is_refused_with_the_reason_of_a_changed_dek() {
        let failure = failure(FileError::Unverified, Path::new("a.rk"), Path::new("a"));
        assert_eq!(failure.reason(), "CIPHERTEXT_UNVERIFIED");
    }
}

//! `wrap`, `unwrap`, `rewrap` and `generate`: one DEK between files or pipes and
//! the daemon. A DEK is never an argument, since arguments can be seen by others.
//!
//! Every destination is opened before the call, so that a DEK is not made or
//! unwrapped to be lost.

use std::path::PathBuf;

use bytes::Bytes;
use serde::Serialize;
use zeroize::Zeroize;

use super::{
    encoding::Encoding,
    failure::Failure,
    output::{Output, note},
    streams::{Sink, Source},
};
use crate::{api::pb, client::Client, secret::Secret};

/// What binds a DEK and names what it encrypts.
#[derive(Debug, clap::Args)]
struct Binding {
    /// Additional authenticated data; repeat for more items, order matters
    #[arg(long, value_name = "ITEM")]
    aad: Vec<String>,
    /// CRN of the resource that the DEK encrypts, for the audit log
    #[arg(long, value_name = "CRN", default_value_t)]
    resource: String,
}

impl Binding {
    fn of_request(&self) -> (Vec<Vec<u8>>, String) {
        (self.aad.iter().map(|item| item.clone().into_bytes()).collect(), self.resource.clone())
    }
}

/// Where the bytes come from and go to.
#[derive(Debug, clap::Args)]
struct Files {
    /// Where to read; - or a pipe is standard input
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where to write; - or a pipe is standard output
    #[arg(long = "out", value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Files {
    fn open(&self) -> Result<(Source, Sink), Failure> {
        let source = Source::open(self.input.as_deref())?;
        Ok((source, Sink::open(self.out.as_deref(), "--out")?))
    }
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct DekFormat {
    /// How the DEK is written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Encoding::Raw)]
    dek_format: Encoding,
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct WrappedFormat {
    /// How the wrapped DEK is written
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Encoding::Raw)]
    wrapped_format: Encoding,
}

#[derive(Debug, clap::Args)]
#[command(after_help = WRAP_EXAMPLES)]
pub(super) struct Wrap {
    /// The root key: a UUID, an alias or a full name
    key: String,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    dek: DekFormat,
    #[command(flatten)]
    wrapped: WrappedFormat,
    #[command(flatten)]
    binding: Binding,
}

impl Wrap {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let (source, mut out) = self.files.open()?;
        let dek = self.dek.dek_format.decode(source.read_all("the DEK", MAX_INPUT)?)?;
        let (aad, resource) = self.binding.of_request();
        let request = pb::WrapDekRequest {
            register: None,
            key: client.key_name(&self.key),
            dek: dek.expose().to_vec(),
            aad,
            resource,
        };
        drop(dek);
        let pb::WrapDekResponse { wrapped_dek, key_version } =
            client.crypto().wrap_dek(request).await?.into_inner();
        out.write(&self.wrapped.wrapped_format.encode(&wrapped_dek))?;
        let on_stdout = out.is_stdout();
        out.finish()?;
        let sentence = format!("wrapped by {key_version}");
        output.report(&Report::of(key_version), on_stdout, &sentence)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = UNWRAP_EXAMPLES)]
pub(super) struct Unwrap {
    /// The root key: a UUID, an alias or a full name
    key: String,
    #[command(flatten)]
    files: Files,
    /// Where to write the DEK wrapped again, if its key was rotated
    #[arg(long, value_name = "FILE")]
    rewrapped: Option<PathBuf>,
    #[command(flatten)]
    dek: DekFormat,
    #[command(flatten)]
    wrapped: WrappedFormat,
    #[command(flatten)]
    binding: Binding,
}

impl Unwrap {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let (source, mut out) = self.files.open()?;
        let wrapped_dek = read_wrapped(source, self.wrapped)?;
        let (aad, resource) = self.binding.of_request();
        let request =
            pb::UnwrapDekRequest { key: client.key_name(&self.key), wrapped_dek, aad, resource };
        let answer = client.crypto().unwrap_dek(request).await?.into_inner();
        let pb::UnwrapDekResponse { dek, key_version, rewrapped_dek, rewrapped_key_version } =
            answer;
        let dek = take_secret(dek);
        out.write(&self.dek.dek_format.encode(dek.expose()))?;
        let on_stdout = out.is_stdout();
        out.finish()?;
        let mut report = Report::of(key_version);
        if !rewrapped_dek.is_empty() {
            report.rewrapped_key_version = Some(rewrapped_key_version.clone());
            self.write_rewrapped(&rewrapped_dek, &rewrapped_key_version)?;
        }
        let sentence = format!("unwrapped; it was wrapped by {}", report.key_version);
        output.report(&report, on_stdout, &sentence)
    }

    fn write_rewrapped(&self, rewrapped_dek: &[u8], version: &str) -> Result<(), Failure> {
        let Some(path) = self.rewrapped.as_deref() else {
            note("the key was rotated; use --rewrapped FILE to get the DEK wrapped again");
            return Ok(());
        };
        let mut sink = Sink::open(Some(path), "--rewrapped")?;
        sink.write(&self.wrapped.wrapped_format.encode(rewrapped_dek))?;
        sink.finish()?;
        note(&format!("rewrapped by {version}; store {} in place of it", path.display()));
        Ok(())
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = REWRAP_EXAMPLES)]
pub(super) struct Rewrap {
    /// The root key: a UUID, an alias or a full name
    key: String,
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    wrapped: WrappedFormat,
    #[command(flatten)]
    binding: Binding,
}

impl Rewrap {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let (source, mut out) = self.files.open()?;
        let wrapped_dek = read_wrapped(source, self.wrapped)?;
        let (aad, resource) = self.binding.of_request();
        let request =
            pb::RewrapDekRequest { key: client.key_name(&self.key), wrapped_dek, aad, resource };
        let pb::RewrapDekResponse { wrapped_dek, key_version, previous_key_version } =
            client.crypto().rewrap_dek(request).await?.into_inner();
        out.write(&self.wrapped.wrapped_format.encode(&wrapped_dek))?;
        let on_stdout = out.is_stdout();
        out.finish()?;
        let sentence = format!("wrapped by {key_version}; it was by {previous_key_version}");
        let mut report = Report::of(key_version);
        report.previous_key_version = Some(previous_key_version);
        output.report(&report, on_stdout, &sentence)
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = GENERATE_EXAMPLES)]
pub(super) struct Generate {
    /// The root key: a UUID, an alias or a full name
    key: String,
    /// Bytes of the DEK
    #[arg(
        long,
        value_name = "N",
        default_value_t = 32,
        value_parser = clap::value_parser!(u32).range(16..=512),
    )]
    size: u32,
    /// Where to write the wrapped DEK
    #[arg(long, value_name = "FILE")]
    wrapped: PathBuf,
    /// Where to write the DEK; - or a pipe is standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Do not return the DEK
    #[arg(long, conflicts_with = "out")]
    wrapped_only: bool,
    #[command(flatten)]
    dek: DekFormat,
    #[command(flatten)]
    wrapped_format: WrappedFormat,
    #[command(flatten)]
    binding: Binding,
}

impl Generate {
    pub(super) async fn run(self, client: &Client, output: Output) -> Result<(), Failure> {
        let mut wrapped = Sink::open(Some(&self.wrapped), "--wrapped")?;
        let out = match self.wrapped_only {
            true => None,
            false => Some(Sink::open(self.out.as_deref(), "--out")?),
        };
        if wrapped.is_stdout() && out.as_ref().is_some_and(Sink::is_stdout) {
            return Err(Failure::OneStdout);
        }
        let on_stdout = wrapped.is_stdout() || out.as_ref().is_some_and(Sink::is_stdout);
        let (aad, resource) = self.binding.of_request();
        let request = pb::GenerateDekRequest {
            register: None,
            key: client.key_name(&self.key),
            size_bytes: self.size,
            aad,
            resource,
            wrapped_only: self.wrapped_only,
        };
        let pb::GenerateDekResponse { dek, wrapped_dek, key_version } =
            client.crypto().generate_dek(request).await?.into_inner();
        let dek = take_secret(dek);
        wrapped.write(&self.wrapped_format.wrapped_format.encode(&wrapped_dek))?;
        wrapped.finish()?;
        if let Some(mut out) = out {
            out.write(&self.dek.dek_format.encode(dek.expose()))?;
            out.finish()?;
        }
        let sentence = format!("wrapped by {key_version}");
        output.report(&Report::of(key_version), on_stdout, &sentence)
    }
}

/// What happened, for programs.
#[derive(Debug, Serialize)]
struct Report {
    key_version: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_key_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rewrapped_key_version: Option<String>,
}

impl Report {
    fn of(key_version: String) -> Self {
        Self { key_version, previous_key_version: None, rewrapped_key_version: None }
    }
}

/// Takes a DEK out of an answer, and wipes it there if nobody else holds it.
pub(super) fn take_secret(bytes: Bytes) -> Secret {
    let secret = Secret::new(bytes.to_vec());
    if let Ok(mut bytes) = bytes.try_into_mut() {
        bytes.as_mut().zeroize();
    }
    secret
}

fn read_wrapped(source: Source, format: WrappedFormat) -> Result<Vec<u8>, Failure> {
    let text = source.read_all("the wrapped DEK", MAX_INPUT)?;
    Ok(format.wrapped_format.decode(text)?.expose().to_vec())
}

/// In bytes: twice what the longest wrapped DEK takes in hexadecimal.
const MAX_INPUT: usize = 64 << 10;

const WRAP_EXAMPLES: &str = "\
Examples:
  rootkeyctl wrap block --in dek.bin --out dek.wrapped
  openssl rand -hex 32 | rootkeyctl wrap block --dek-format hex --wrapped-format base64
  rootkeyctl wrap block --in dek.bin --out dek.wrapped --aad volume-7 --aad region-a";

const UNWRAP_EXAMPLES: &str = "\
Examples:
  rootkeyctl unwrap block --in dek.wrapped --out dek.bin
  rootkeyctl unwrap block --in dek.wrapped --out - --dek-format hex
  rootkeyctl unwrap block --in dek.wrapped --out dek.bin --rewrapped dek.wrapped";

const REWRAP_EXAMPLES: &str = "\
Examples:
  rootkeyctl rewrap block --in dek.wrapped --out dek.wrapped
  rootkeyctl rewrap block --in old.b64 --out new.b64 --wrapped-format base64";

const GENERATE_EXAMPLES: &str = "\
Examples:
  rootkeyctl generate block --wrapped dek.wrapped --wrapped-only
  rootkeyctl generate block --size 64 --wrapped dek.wrapped --out dek.bin
  rootkeyctl generate block --wrapped dek.wrapped --dek-format hex | cryptsetup …";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dek_is_taken_whole_from_an_answer() {
        assert_eq!(take_secret(Bytes::from(vec![1, 2, 3])).expose(), [1, 2, 3]);
        assert!(take_secret(Bytes::new()).is_empty());
    }

    #[test]
    fn items_of_aad_keep_their_order() {
        let binding =
            Binding { aad: vec!["b".to_owned(), "a".to_owned()], resource: String::new() };
        assert_eq!(binding.of_request().0, [b"b", b"a"]);
    }
}

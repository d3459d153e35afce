//! `batch-unwrap`: DEKs from JSON lines to JSON lines, as many as there are, in
//! the memory of one batch. Line N of the output answers line N of the input.
//!
//! A line that is not what it must be ends the command, since a program that
//! writes one wrong line has probably written more.

use std::{
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
};

use indicatif::{ProgressBar, ProgressStyle};
use prost::Message;
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use zeroize::{Zeroize, Zeroizing};

use super::{
    crypto::take_secret,
    encoding::{base64_bytes, base64_text},
    failure::Failure,
    streams::{Sink, Source},
};
use crate::{
    api::pb,
    client::{Client, Refusal},
};

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BatchUnwrap {
    /// Where to read lines; - or a pipe is standard input
    #[arg(long = "in", value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where to write lines; - or a pipe is standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl BatchUnwrap {
    pub(super) async fn run(self, client: &Client) -> Result<(), Failure> {
        let source = Source::open(self.input.as_deref())?;
        let mut out = Sink::open(self.out.as_deref(), "--out")?;
        let bar = progress_bar(source.len());
        let mut lines = Lines::new(source.file());
        let mut line = Zeroizing::new(Vec::with_capacity(LINE_BYTES));
        let (mut total, mut refused) = (0, 0);
        loop {
            let read = lines.next_batch(client);
            let requests = read.map_err(|error| match error {
                BatchError::Read(error) => source.failure(error),
                BatchError::Failure(failure) => failure,
            })?;
            if requests.is_empty() {
                break;
            }
            let expected = requests.len();
            let request = pb::BatchUnwrapDeksRequest { requests };
            let answer = client.crypto().batch_unwrap_deks(request).await?.into_inner();
            let pb::BatchUnwrapDeksResponse { results } = answer;
            if results.len() != expected {
                return Err(Failure::Answer("does not have one result for each request"));
            }
            for result in results {
                total += 1;
                refused += u64::from(write_result(result, &mut line)?);
                out.write(&line)?;
            }
            bar.set_position(lines.bytes);
            bar.set_message(total.to_string());
        }
        out.finish()?;
        bar.finish_and_clear();
        if refused > 0 { Err(Failure::SomeRefused { refused, total }) } else { Ok(()) }
    }
}

/// A line of the input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InputLine {
    key: String,
    #[serde(deserialize_with = "strict_base64")]
    wrapped_dek: Vec<u8>,
    #[serde(default)]
    aad: Vec<String>,
    #[serde(default)]
    resource: String,
}

impl InputLine {
    fn request(self, client: &Client) -> pb::UnwrapDekRequest {
        let Self { key, wrapped_dek, aad, resource } = self;
        let aad = aad.into_iter().map(String::into_bytes).collect();
        pb::UnwrapDekRequest { key: client.key_name(&key), wrapped_dek, aad, resource }
    }
}

fn strict_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    base64_bytes(&text).map_err(D::Error::custom)
}

/// A line of the output.
#[derive(Serialize)]
#[serde(untagged)]
enum OutputLine<'a> {
    Unwrapped {
        dek: &'a str,
        key_version: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        rewrapped_dek: Option<&'a str>,
    },
    Refused {
        reason: &'a str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        status_reason: Option<&'a str>,
    },
}

impl OutputLine<'_> {
    /// Into `line`, in place of what was there, which is wiped.
    fn write(&self, line: &mut Zeroizing<Vec<u8>>) -> Result<(), Failure> {
        line.zeroize();
        serde_json::to_writer(&mut **line, self).map_err(Failure::Json)?;
        line.push(b'\n');
        Ok(())
    }
}

/// Writes one result into `line`; says whether it is a refusal.
fn write_result(
    result: pb::UnwrapDekResult,
    line: &mut Zeroizing<Vec<u8>>,
) -> Result<bool, Failure> {
    use pb::unwrap_dek_result::Outcome;
    match result.outcome {
        None => Err(Failure::Answer("has a result without an outcome")),
        Some(Outcome::Response(response)) => {
            let pb::UnwrapDekResponse { dek, key_version, rewrapped_dek, rewrapped_key_version: _ } =
                response;
            let dek = base64_text(take_secret(dek).expose());
            let rewrapped = (!rewrapped_dek.is_empty()).then(|| base64_text(&rewrapped_dek));
            let needed = dek.len() + rewrapped.as_ref().map_or(0, |it| it.len());
            line.zeroize();
            line.reserve(needed + key_version.len() * 6 + LINE_NAMES);
            let line_of = OutputLine::Unwrapped {
                dek: &dek,
                key_version: &key_version,
                rewrapped_dek: rewrapped.as_ref().map(|it| it.as_str()),
            };
            line_of.write(line)?;
            Ok(false)
        }
        Some(Outcome::Refusal(refusal)) => {
            let Refusal { reason, message, status_reason, metadata: _, retry_after: _ } =
                refusal.into();
            let status_reason = status_reason.as_deref();
            OutputLine::Refused { reason: &reason, message: &message, status_reason }
                .write(line)?;
            Ok(true)
        }
    }
}

/// The input, cut into batches.
struct Lines<R> {
    reader: BufReader<R>,
    line: Vec<u8>,
    /// A request that did not fit into the batch before.
    left: Option<pb::UnwrapDekRequest>,
    number: u64,
    /// Read so far.
    bytes: u64,
}

impl<R: Read> Lines<R> {
    fn new(from: R) -> Self {
        Self { reader: BufReader::new(from), line: Vec::new(), left: None, number: 0, bytes: 0 }
    }

    /// At most 1000 requests of 3 MiB together; none at the end.
    fn next_batch(&mut self, client: &Client) -> Result<Vec<pb::UnwrapDekRequest>, BatchError> {
        let mut requests = Vec::new();
        let mut bytes = 0;
        while requests.len() < MAX_REQUESTS {
            let request = match self.left.take() {
                Some(request) => request,
                None => match self.next_line()? {
                    Some(line) => line.request(client),
                    None => break,
                },
            };
            bytes += request.encoded_len();
            if bytes > MAX_BATCH_BYTES && !requests.is_empty() {
                self.left = Some(request);
                break;
            }
            requests.push(request);
        }
        Ok(requests)
    }

    fn next_line(&mut self) -> Result<Option<InputLine>, BatchError> {
        self.line.clear();
        let limit = u64::try_from(MAX_LINE + 1).expect("1 MiB is within u64");
        let read = (&mut self.reader).take(limit).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        if read > MAX_LINE {
            return Err(Failure::TooLong { what: "a line", limit: MAX_LINE }.into());
        }
        self.number += 1;
        self.bytes += u64::try_from(read).expect("1 MiB is within u64");
        let number = self.number;
        let line = serde_json::from_slice(&self.line)
            .map_err(|source| Failure::Line { number, source })?;
        Ok(Some(line))
    }
}

/// Why there is no next batch; only the source knows its own name.
#[derive(Debug)]
enum BatchError {
    Read(io::Error),
    Failure(Failure),
}

impl From<io::Error> for BatchError {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

impl From<Failure> for BatchError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// On stderr, and only if that is a terminal.
fn progress_bar(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{bar:30} {msg} DEKs, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {msg} DEKs in {elapsed}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("both templates are constant"))
}

/// The limit of BatchUnwrapDeks.
const MAX_REQUESTS: usize = 1000;
/// Below the 4 MiB that a gRPC server takes unless it is told otherwise.
const MAX_BATCH_BYTES: usize = 3 << 20;
/// 255 items of AAD of 255 bytes, each byte as six in JSON, and the rest.
const MAX_LINE: usize = 1 << 20;
/// What a line of a usual DEK takes; it grows if it must.
const LINE_BYTES: usize = 4 << 10;
/// More than the names and quotes of an output line take.
const LINE_NAMES: usize = 128;

const EXAMPLES: &str = r#"Examples:
  rootkeyctl batch-unwrap --in wrapped.jsonl --out deks.jsonl
  cat wrapped.jsonl | rootkeyctl batch-unwrap | consumer

Input, one a line; aad and resource may be left out:
  {"key": "block", "wrapped_dek": "BASE64", "aad": ["volume-7"], "resource": "crn:…"}
Output, one for each, in the same order:
  {"dek": "BASE64", "key_version": "instances/…"}             (and rewrapped_dek)
  {"reason": "KEY_SUSPENDED", "message": "…", "status_reason": "encryption_key_disabled"}"#;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;

    use super::*;

    fn lines(text: &str) -> Result<Vec<InputLine>, BatchError> {
        let mut lines = Lines::new(text.as_bytes());
        std::iter::from_fn(|| lines.next_line().transpose()).collect()
    }

    fn refused(text: &str) -> String {
        match lines(text).unwrap_err() {
            BatchError::Failure(failure) => failure.line(),
            BatchError::Read(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_line_needs_a_key_and_a_wrapped_dek_alone() {
        let text = "{\"key\":\"k\",\"wrapped_dek\":\"AQI=\"}\n{\"key\":\"l\",\"wrapped_dek\":\
                    \"AA==\",\"aad\":[\"b\",\"a\"],\"resource\":\"crn\"}";
        let lines = lines(text).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!((&*lines[0].key, &*lines[0].wrapped_dek), ("k", [1, 2].as_slice()));
        assert!(lines[0].aad.is_empty() && lines[0].resource.is_empty());
        assert_eq!(lines[1].aad, ["b", "a"]);
    }

    #[test]
    fn a_line_that_is_not_exactly_right_is_refused_with_its_number() {
        let good = r#"{"key":"k","wrapped_dek":"AQI="}"#;
        for bad in [
            "",
            "[]",
            "null",
            r#"{"key":"k"}"#,
            r#"{"wrapped_dek":"AQI="}"#,
            r#"{"key":"k","wrapped_dek":"AQI"}"#,
            r#"{"key":"k","wrapped_dek":"AQI=\n"}"#,
            r#"{"key":"k","wrapped_dek":"AQI=","wrapped":"AQI="}"#,
            r#"{"key":"k","key":"l","wrapped_dek":"AQI="}"#,
            r#"{"key":"k","wrapped_dek":"AQI=","aad":"a"}"#,
            r#"{"key":"k","wrapped_dek":"AQI=","aad":[1]}"#,
            r#"{"key":"k","wrapped_dek":"AQI=","aad":null}"#,
            r#"{"key":"k","wrapped_dek":"AQI="} {}"#,
        ] {
            let line = refused(&format!("{good}\n{bad}\n{good}\n"));
            assert!(line.starts_with("FIELD_INVALID: line 2: "), "{bad}: {line}");
        }
    }

    #[test]
    fn a_line_without_end_is_refused_before_it_fills_the_memory() {
        assert!(refused(&" ".repeat(MAX_LINE + 1)).contains("a line is longer than"));
    }

    #[test]
    fn an_unwrapped_dek_is_a_line_of_base64() {
        let mut line = Zeroizing::new(b"the one before".to_vec());
        let mut response = pb::UnwrapDekResponse {
            dek: Bytes::from_static(b"abc"),
            key_version: "v1".to_owned(),
            rewrapped_dek: Bytes::new(),
            rewrapped_key_version: String::new(),
        };
        let result = |response| pb::UnwrapDekResult {
            outcome: Some(pb::unwrap_dek_result::Outcome::Response(response)),
        };
        assert!(!write_result(result(response.clone()), &mut line).unwrap());
        assert_eq!(*line, b"{\"dek\":\"YWJj\",\"key_version\":\"v1\"}\n");
        response.rewrapped_dek = Bytes::from_static(b"abc");
        assert!(!write_result(result(response), &mut line).unwrap());
        assert!(line.ends_with(b",\"rewrapped_dek\":\"YWJj\"}\n"));
    }

    #[test]
    fn a_refusal_is_a_line_with_its_reasons() {
        let mut line = Zeroizing::new(Vec::new());
        let refusal = pb::UnwrapDekRefusal {
            code: 9,
            reason: "KEY_SUSPENDED".to_owned(),
            message: "suspended".to_owned(),
            metadata: HashMap::from([("status_reason".to_owned(), "why".to_owned())]),
        };
        let outcome = Some(pb::unwrap_dek_result::Outcome::Refusal(refusal));
        assert!(write_result(pb::UnwrapDekResult { outcome }, &mut line).unwrap());
        assert_eq!(
            String::from_utf8_lossy(&line),
            "{\"reason\":\"KEY_SUSPENDED\",\"message\":\"suspended\",\"status_reason\":\"why\"}\n"
        );
    }
}

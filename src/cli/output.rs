//! Where results are printed: tables for people, JSON for programs. Nothing else
//! in the library writes to standard output but `streams`, which carries DEKs.
//!
//! JSON has stable snake_case names, times in RFC 3339 and bytes in base64.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use jiff::Timestamp;
use serde::Serialize;

use super::failure::Failure;

/// How results are printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// The one writer of results.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output(Format);

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self(format)
    }

    /// Prints `value`, in the table that `table` makes of it or as JSON.
    pub(super) fn show<T: Serialize + ?Sized>(
        self,
        value: &T,
        table: impl FnOnce(&T) -> Table,
    ) -> Result<(), Failure> {
        self.write(&mut io::stdout().lock(), value, table)
    }

    /// Prints that what has this name is deleted.
    pub(super) fn deleted(self, name: &str) -> Result<(), Failure> {
        let value = BTreeMap::from([("name", name)]);
        self.show(&value, |_| fields([("deleted", name.to_owned())]))
    }

    /// Prints what happened to a DEK: on stdout as JSON for programs, unless the
    /// DEK itself is there; else on stderr.
    pub(super) fn report<T: Serialize>(
        self,
        value: &T,
        data_on_stdout: bool,
        sentence: &str,
    ) -> Result<(), Failure> {
        match (self.0, data_on_stdout) {
            (Format::Json, false) => self.show(value, |_| Table::new()),
            (Format::Json, true) | (Format::Table, _) => {
                note(sentence);
                Ok(())
            }
        }
    }

    fn write<T: Serialize + ?Sized>(
        self,
        to: &mut impl Write,
        value: &T,
        table: impl FnOnce(&T) -> Table,
    ) -> Result<(), Failure> {
        let text = match self.0 {
            Format::Table => table(value).to_string(),
            Format::Json => serde_json::to_string_pretty(value).map_err(Failure::Json)?,
        };
        writeln!(to, "{text}").and_then(|()| to.flush()).map_err(Failure::Stdout)
    }
}

/// One line for people on stderr. Whether it arrives decides nothing.
pub(super) fn note(sentence: &str) {
    drop(writeln!(io::stderr().lock(), "{}", printable(sentence)));
}

/// A table with a header, as wide as the terminal.
pub(super) fn rows<R: IntoIterator<Item = Vec<String>>>(header: &[&str], rows: R) -> Table {
    let mut table = fields([]);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| cell_text(cell)));
    }
    table
}

/// A table of one thing: a field and its value in each line.
pub(super) fn fields<'a, F: IntoIterator<Item = (&'a str, String)>>(fields: F) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    for (name, value) in fields {
        table.add_row([name.to_owned(), cell_text(&value)]);
    }
    table
}

/// `text` without characters that could steer a terminal or break a line.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Printable, but our own line breaks inside a cell remain.
fn cell_text(text: &str) -> String {
    text.lines().map(printable).collect::<Vec<_>>().join("\n")
}

/// RFC 3339, UTC, to the nanosecond if there are any. `None` outside the years
/// that RFC 3339 can say.
pub(super) fn rfc3339(time: &prost_types::Timestamp) -> Option<String> {
    let prost_types::Timestamp { seconds, nanos } = *time;
    Timestamp::new(seconds, nanos).ok().map(|time| time.to_string())
}

/// RFC 3339, UTC, to the second; for people.
pub(super) fn human_time(time: Option<&String>) -> String {
    let parsed = time.and_then(|time| time.parse::<Timestamp>().ok());
    match parsed.and_then(|time| Timestamp::from_second(time.as_second()).ok()) {
        Some(time) => time.to_string(),
        None => NOTHING.to_owned(),
    }
}

/// The last part of a name, such as the UUID of a key.
pub(super) fn last_segment(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, last)| last)
}

/// What stands in a table where there is nothing.
pub(super) const NOTHING: &str = "-";

/// `text`, or what stands for nothing.
pub(super) fn or_nothing(text: &str) -> String {
    if text.is_empty() { NOTHING.to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: Format, value: &[&str]) -> String {
        let mut out = Vec::new();
        let table = |value: &[&str]| rows(&["NAME"], value.iter().map(|it| vec![(*it).to_owned()]));
        Output(format).write(&mut out, value, table).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_list_is_a_json_array_even_if_empty() {
        assert_eq!(printed(Format::Json, &[]), "[]\n");
        assert_eq!(printed(Format::Json, &["a"]), "[\n  \"a\"\n]\n");
    }

    #[test]
    fn a_table_has_a_header_and_no_control_characters() {
        let text = printed(Format::Table, &["a\u{1b}[2Jb"]);
        assert!(text.contains("NAME") && text.contains("a [2Jb"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn times_are_rfc_3339() {
        let time = prost_types::Timestamp { seconds: 1_767_323_045, nanos: 500_000_000 };
        let text = rfc3339(&time).unwrap();
        assert_eq!(text, "2026-01-02T03:04:05.5Z");
        assert_eq!(human_time(Some(&text)), "2026-01-02T03:04:05Z");
        assert_eq!(human_time(None), "-");
    }

    #[test]
    fn a_time_that_cannot_be_said_is_no_time() {
        assert_eq!(rfc3339(&prost_types::Timestamp { seconds: i64::MAX, nanos: 0 }), None);
    }
}

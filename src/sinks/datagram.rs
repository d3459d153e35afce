//! Sinks that are Unix datagram sockets: syslog (RFC 5424) and the journal's native
//! protocol. A socket that nobody reads is full after some datagrams; then sending
//! waits for a moment and fails, which holds up this sink's thread and nothing else.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::time::Duration;

use super::{Line, Output, view};
use crate::audit::journal;
use crate::domain::{Outcome, Severity};

/// A syslog daemon's socket.
pub(super) struct Syslog(Socket);

/// The journal's socket.
pub(super) struct Journald(Socket);

struct Socket {
    path: PathBuf,
    open: Option<UnixDatagram>,
}

impl Syslog {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(Socket { path, open: None })
    }
}

impl Journald {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(Socket { path, open: None })
    }
}

impl Output for Syslog {
    fn take(&mut self, lines: &[Line]) -> (usize, io::Result<()>) {
        self.0.send_all(lines, syslog)
    }
}

impl Output for Journald {
    fn take(&mut self, lines: &[Line]) -> (usize, io::Result<()>) {
        self.0.send_all(lines, entry)
    }
}

impl Socket {
    fn send_all(
        &mut self,
        lines: &[Line],
        format: impl Fn(&Line) -> Vec<u8>,
    ) -> (usize, io::Result<()>) {
        for (sent, line) in lines.iter().enumerate() {
            if let Err(error) = self.send(&format(line)) {
                // Made anew: its reader may have been.
                self.open = None;
                return (sent, Err(error));
            }
        }
        (lines.len(), Ok(()))
    }

    fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        let socket = match &mut self.open {
            Some(socket) => socket,
            none @ None => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(&self.path)?;
                socket.set_write_timeout(Some(SEND_PATIENCE))?;
                none.insert(socket)
            }
        };
        socket.send(datagram).map(drop)
    }
}

/// One message: facility 13 (log audit), no structured data, and the view as text. The
/// receiver knows the host.
fn syslog(line: &Line) -> Vec<u8> {
    let priority = LOG_AUDIT * 8 + level(line);
    let time = view::time(line.event.time);
    let process = std::process::id();
    format!("<{priority}>1 {time} - rootkeyd {process} audit - {}", line.text).into_bytes()
}

fn entry(line: &Line) -> Vec<u8> {
    let mut bytes = Vec::new();
    let outcome = match &line.event.outcome {
        Outcome::Success => "",
        Outcome::Refused(reason) => reason,
    };
    let fields = [
        ("MESSAGE", line.text.as_str()),
        ("PRIORITY", &level(line).to_string()),
        ("SYSLOG_IDENTIFIER", "rootkeyd-audit"),
        ("ROOTKEYD_AUDIT_SEQUENCE", &line.sequence.to_string()),
        ("ROOTKEYD_AUDIT_ACTION", &line.event.action),
        ("ROOTKEYD_AUDIT_PRINCIPAL", &line.event.principal),
        ("ROOTKEYD_AUDIT_SUBJECT", &line.event.subject),
        ("ROOTKEYD_AUDIT_REASON", outcome),
    ];
    fields.iter().for_each(|(name, value)| journal::field(&mut bytes, name, value));
    bytes
}

/// As syslog numbers them.
fn level(line: &Line) -> u8 {
    match view::severity(&line.event).1 {
        Severity::Normal => 6,
        Severity::Warning => 4,
        Severity::Critical => 2,
    }
}

const LOG_AUDIT: u8 = 13;
const SEND_PATIENCE: Duration = Duration::from_millis(500);

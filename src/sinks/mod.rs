//! Sinks: copies of the audit log for other programs, in their formats. Each has
//! a thread that follows the durable log and a durable position, and takes every record
//! at least once, in order. Never on the path of an answer, and no part of the proof.
//!
//! What a sink may be and look like: `docs/audit-format.md`.

mod datagram;
mod file;
mod follow;
mod ocsf;
mod position;
mod view;

use std::io;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use crate::audit::Audit;
use crate::domain::Event;

use datagram::{Journald, Syslog};
use file::Lines;
use follow::Follower;
use position::Position;

/// One sink.
#[derive(Clone, Debug)]
pub struct Sink {
    /// Of its position file; no two have the same.
    pub name: String,
    /// Where it writes.
    pub target: Target,
    /// What a record looks like there.
    pub view: View,
}

/// Where a sink writes.
#[derive(Clone, Debug)]
pub enum Target {
    /// JSON lines.
    File {
        /// The file; made if it is not there.
        path: PathBuf,
        /// It is renamed before it gets longer; never, if `None`.
        rotate_bytes: Option<u64>,
    },
    /// RFC 5424 over a Unix datagram socket.
    Syslog {
        /// The socket.
        path: PathBuf,
    },
    /// The native protocol of the systemd journal.
    Journald {
        /// The socket.
        path: PathBuf,
    },
}

/// What a record looks like.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum View {
    /// One JSON object, all that the record has.
    #[default]
    Json,
    /// CloudEvents 1.0, structured JSON.
    CloudEvents,
    /// OCSF API Activity.
    Ocsf,
}

/// All sinks.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where the position files are.
    pub directory: PathBuf,
    /// Whose log it is; the source of a CloudEvent.
    pub origin: String,
    /// In no order.
    pub sinks: Vec<Sink>,
}

/// The threads of the sinks.
pub struct Sinks {
    /// Dropped to stop them.
    stop: Sender<()>,
    /// One for each, which says nothing and is gone when the thread is.
    running: Vec<(String, Receiver<()>)>,
}

/// A record that is to be written: its number, and how it looks.
#[derive(Clone, Debug)]
struct Line {
    sequence: u64,
    /// JSON without a line end or another control character in it.
    text: String,
    event: Event,
}

/// What takes lines. Of the lines given it says how many it has durably, or how many went
/// before it failed.
trait Output: Send {
    fn take(&mut self, lines: &[Line]) -> (usize, io::Result<()>);
}

impl Sinks {
    /// Starts a thread for each; a new sink begins at the first record.
    ///
    /// # Errors
    /// If a thread cannot be made or a position cannot be read.
    pub fn start(audit: &Audit, settings: Settings) -> io::Result<Self> {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let mut running = Vec::new();
        for sink in settings.sinks {
            let position = Position::open(&settings.directory, &sink.name, audit.length())?;
            let output = output(sink.target);
            let look = (sink.view, settings.origin.clone());
            let (audit, stopped, name) = (audit.clone(), stopped.clone(), sink.name.clone());
            let mut follower = Follower::new(audit, sink.name, output, look, position);
            let (alive, ended) = crossbeam_channel::bounded::<()>(0);
            thread::Builder::new().name(format!("sink-{name}")).spawn(move || {
                follower.run(&stopped);
                drop(alive);
            })?;
            running.push((name, ended));
        }
        Ok(Self { stop, running })
    }

    /// Lets them catch up, but not for longer than `patience`. Blocks. What a sink has not
    /// taken then it takes after the next start.
    pub fn stop(self, patience: Duration) {
        let Self { stop, running } = self;
        drop(stop);
        let deadline = Instant::now() + patience;
        for (name, ended) in running {
            if let Err(crossbeam_channel::RecvTimeoutError::Timeout) = ended.recv_deadline(deadline)
            {
                tracing::warn!(
                    sink = name,
                    "the sink did not catch up; it goes on after the next start"
                );
            }
        }
    }
}

fn output(target: Target) -> Box<dyn Output> {
    match target {
        Target::File { path, rotate_bytes } => Box::new(Lines::new(path, rotate_bytes)),
        Target::Syslog { path } => Box::new(Syslog::new(path)),
        Target::Journald { path } => Box::new(Journald::new(path)),
    }
}

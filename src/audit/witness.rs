//! The witness: a copy of the checkpoints on another disk or host. It has a thread of
//! its own, since a file system that is away can hang, which must hold up nothing else.

use std::path::PathBuf;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TrySendError};

use super::AuditError;
use super::notebook::{Notebook, Signed};
use super::segment::unavailable;

/// Where checkpoints are handed to the thread.
pub(super) struct Witness {
    sender: Sender<Signed>,
    thread: JoinHandle<()>,
}

impl Witness {
    /// Of the file at `path`, which was opened already if it could be.
    pub(super) fn start(path: PathBuf, opened: Option<Notebook>) -> Result<Self, AuditError> {
        let (sender, receiver) = crossbeam_channel::bounded(WAITING);
        let thread = thread::Builder::new()
            .name("witness".into())
            .spawn(move || run(path, opened, &receiver))
            .map_err(unavailable("start the thread of the witness"))?;
        Ok(Self { sender, thread })
    }

    /// Hands a checkpoint over; never waits. One that is lost is covered by the next.
    pub(super) fn tell(&self, signed: &Signed) {
        match self.sender.try_send(signed.clone()) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                tracing::error!("the witness hangs; a checkpoint is not told to it");
            }
        }
    }

    /// Waits until what was handed over is written.
    pub(super) fn close(self) {
        drop(self.sender);
        if self.thread.join().is_err() {
            tracing::error!("the thread of the witness panicked");
        }
    }
}

fn run(path: PathBuf, mut opened: Option<Notebook>, receiver: &Receiver<Signed>) {
    while let Ok(signed) = receiver.recv() {
        // Opened anew after a failure: it may have been mounted anew.
        let appended = match opened.take() {
            Some(notebook) => append(notebook, &signed),
            None => Notebook::open(&path).and_then(|(notebook, _)| append(notebook, &signed)),
        };
        match appended {
            Ok(notebook) => opened = Some(notebook),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the witness was not told");
            }
        }
    }
}

fn append(mut notebook: Notebook, signed: &Signed) -> Result<Notebook, AuditError> {
    notebook.append(signed).map_err(unavailable("append to the witness"))?;
    Ok(notebook)
}

/// Checkpoints that may wait.
const WAITING: usize = 64;

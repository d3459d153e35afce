//! What a worker is at: so that the supervisor sees one that hangs, gives it up, and
//! answers its caller in its place.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::HsmError;
use super::job::{Recall, Work};

/// What a worker is at, for the supervisor to see.
#[derive(Default)]
pub(super) struct Activity {
    task: Mutex<Option<Task>>,
    /// It was given up: if it ever comes back from its job, it ends.
    fenced: AtomicBool,
}

/// A job, or a part of it.
struct Task {
    began: Instant,
    /// How much longer than others it may take.
    allowance: Duration,
    /// Whom to refuse if the worker is given up.
    caller: Option<Arc<dyn Recall>>,
}

impl Activity {
    /// Whether it has been at one thing for longer than `limit`.
    pub(super) fn is_stuck(&self, limit: Duration) -> bool {
        let task = self.task.lock();
        task.as_ref().is_some_and(|task| task.began.elapsed() > limit + task.allowance)
    }

    /// Whether it is at something that takes long by its nature.
    pub(super) fn is_slow(&self) -> bool {
        self.task.lock().as_ref().is_some_and(|task| !task.allowance.is_zero())
    }

    /// Gives the worker up, and refuses in its place.
    pub(super) fn fence(&self) {
        self.fenced.store(true, Ordering::SeqCst);
        let caller = self.task.lock().as_mut().and_then(|task| task.caller.take());
        if let Some(caller) = caller {
            caller.refuse(HsmError::Unavailable);
        }
    }

    /// Whether it was given up.
    pub(super) fn is_fenced(&self) -> bool {
        self.fenced.load(Ordering::SeqCst)
    }

    /// It began with this job, or with opening its session.
    pub(super) fn begin(&self, work: Option<&Work>) {
        let (allowance, caller) =
            work.map_or((Duration::ZERO, None), |work| (work.allowance(), work.recall()));
        *self.task.lock() = Some(Task { began: Instant::now(), allowance, caller });
    }

    /// It got on with it.
    pub(super) fn step(&self) {
        if let Some(task) = &mut *self.task.lock() {
            task.began = Instant::now();
        }
    }

    /// It is at nothing.
    pub(super) fn end(&self) {
        *self.task.lock() = None;
    }
}

//! The supervisor's circuit breaker. The circuit is open, and every call fails at once,
//! while the module is down, which one bring-up after another tries to end
//! (`supervisor.rs`), and while all workers hang, which one probe after another waits
//! to see the end of.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use super::Health;
use super::job::{Job, Work};
use super::supervisor::{Hand, Next, PROBE_PATIENCE, Supervisor, Up};

/// Whether the workers get on.
pub(super) struct Pulse {
    circuit: Circuit,
    /// A probe that is not answered yet.
    asked: Option<Receiver<bool>>,
    /// When the last one was answered.
    last: Instant,
}

/// Whether calls are let through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Circuit {
    /// They are.
    Closed,
    /// They fail at once.
    Open,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self { circuit: Circuit::Closed, asked: None, last: Instant::now() }
    }
}

impl Supervisor {
    /// Opens the circuit if no worker gets on: callers would wait for nothing.
    pub(super) fn open_if_stalled(&self, up: &mut Up) {
        // Before the first of them is replaced by one that does not hang yet.
        let limit = STALLED.min(self.settings.stuck_after / 2);
        // Who makes a pair takes long by nature, and is of no use to callers meanwhile.
        let serves = |hand: &Hand| {
            let activity = &hand.activity;
            !hand.is_gone() && !activity.is_stuck(limit) && !activity.is_slow()
        };
        let hangs = |hand: &Hand| {
            !hand.thread.is_finished()
                && (hand.activity.is_fenced() || hand.activity.is_stuck(limit))
        };
        let stalled = !up.workers.iter().any(serves) && up.workers.iter().any(hangs);
        if up.pulse.circuit == Circuit::Open || !stalled {
            return;
        }
        up.pulse.circuit = Circuit::Open;
        self.token.store(None);
        self.say_down(HANGS.into());
        // The probe among them, which is sent again.
        self.refuse_all();
    }

    /// Tries a quiet token, and one whose circuit is open; while jobs wait they show
    /// that they are done. A probe that is done closes the circuit.
    pub(super) fn feel_pulse(&self, up: &mut Up) -> Option<Next> {
        if let Some(asked) = &up.pulse.asked {
            match asked.try_recv() {
                Ok(true) => self.close(up),
                Ok(false) => {
                    tracing::error!("the HSM does not do what it did before");
                    return Some(Next::Again);
                }
                // Refused or given up, and asked again.
                Err(TryRecvError::Disconnected) => up.pulse.asked = None,
                Err(TryRecvError::Empty) => {}
            }
            return None;
        }
        let open = up.pulse.circuit == Circuit::Open;
        if open || (self.jobs.is_empty() && up.pulse.last.elapsed() >= PROBE_EVERY) {
            let (reply, answer) = crossbeam_channel::bounded(1);
            let deadline = Instant::now() + PROBE_PATIENCE;
            // Full: jobs wait after all.
            if self.ask.try_send(Job { work: Work::Probe(reply), deadline }).is_ok() {
                up.pulse.asked = Some(answer);
            }
        }
        None
    }

    fn close(&self, up: &mut Up) {
        up.pulse.asked = None;
        up.pulse.last = Instant::now();
        if up.pulse.circuit == Circuit::Open {
            up.pulse.circuit = Circuit::Closed;
            self.token.store(Some(Arc::clone(&up.token)));
            tracing::info!(generation = up.generation, "the HSM answers again");
            self.tell.send_replace(Health::Ready { generation: up.generation });
        }
        self.try_unwrapping(up);
    }
}

/// How often a quiet token is tried.
const PROBE_EVERY: Duration = Duration::from_secs(1);
/// How long all workers may be in one call each before callers are refused.
const STALLED: Duration = Duration::from_secs(2);
const HANGS: &str = "all calls into the HSM hang; when they come back the daemon goes on by itself, else restart it";

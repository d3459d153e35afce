//! The keeper: starts a courier for each worker process, says whether the token can be
//! used, and kills readers that hang. It is to processes what `supervisor.rs` is to
//! threads.
//!
//! The writer logs in first, so that a wrong PIN is tried once. After that each courier
//! looks after its own process; the token is there while one reader has it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use tokio::sync::watch;

use super::courier::{Courier, Event, Gate, Role, Watch};
use super::job::{Job, Work};
use super::notice::Notice;
use super::object::Kind;
use super::shelf::Shelf;
use super::supervisor::Control;
use super::wire::{Begin, Trouble};
use super::worker::Never;
use super::{Health, HsmError, Processes, Settings};

/// Owns the couriers.
pub(super) struct Keeper {
    settings: Settings,
    processes: Processes,
    queues: Queues,
    orders: Receiver<Control>,
    health: watch::Sender<Health>,
    shelf: Arc<Shelf>,
}

/// Both ends of the queues of jobs.
pub(super) struct Queues {
    /// For readers.
    pub(super) jobs: (Sender<Job>, Receiver<Job>),
    /// For the writer.
    pub(super) writes: (Sender<Job>, Receiver<Job>),
}

/// The couriers at work.
struct Staff {
    hands: Vec<Hand>,
    /// Dropped, it stops them.
    stop: Sender<Never>,
    stopped: Receiver<Never>,
    tell: Sender<Event>,
    events: Receiver<Event>,
    gate: Arc<Gate>,
    /// Readers that have the token.
    readers: usize,
    generation: u64,
}

struct Hand {
    role: Role,
    thread: JoinHandle<()>,
    watch: Arc<Watch>,
}

impl Keeper {
    pub(super) fn new(
        (settings, processes): (Settings, Processes),
        queues: Queues,
        orders: Receiver<Control>,
        health: watch::Sender<Health>,
        shelf: Arc<Shelf>,
    ) -> Self {
        Self { settings, processes, queues, orders, health, shelf }
    }

    /// Until it is told to stop.
    pub(super) fn run(self) {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let (tell, events) = crossbeam_channel::bounded(EVENTS);
        let gate = Arc::default();
        let hands = Vec::new();
        let mut staff =
            Staff { hands, stop, stopped, tell, events, gate, readers: 0, generation: 0 };
        self.employ(&mut staff, Role::Writer);
        let ticks = crossbeam_channel::tick(LOOK_EVERY);
        let mut probed = Instant::now();
        loop {
            select! {
                recv(self.orders) -> order => match order {
                    Ok(Control::Stop) | Err(_) => break,
                    // Of a worker thread; there is none.
                    Ok(Control::Lost { .. }) => {}
                },
                recv(staff.events) -> event => match event {
                    Ok(event) => self.hear(&mut staff, event),
                    Err(_no_sender) => break,
                },
                recv(ticks) -> _now => {
                    self.kill_stuck(&staff);
                    if probed.elapsed() >= PROBE_EVERY {
                        probed = Instant::now();
                        self.probe();
                    }
                }
            }
            if staff.readers == 0 {
                self.refuse_all();
            }
        }
        self.dismiss(staff);
    }

    fn employ(&self, staff: &mut Staff, role: Role) {
        let (jobs, lock) = match role {
            Role::Reader => (&self.queues.jobs.1, None),
            Role::Writer => (&self.queues.writes.1, Some(self.processes.writer_lock.as_path())),
        };
        let (watch, notice) = (Arc::new(Watch::default()), Arc::new(Notice::new()));
        match role {
            Role::Reader => self.shelf.notify(Arc::clone(&notice)),
            // It has no copies.
            Role::Writer => {}
        }
        let courier = Courier {
            role,
            command: self.processes.command.clone(),
            begin: Begin::of(&self.settings, lock, self.processes.network),
            jobs: jobs.clone(),
            stopped: staff.stopped.clone(),
            tell: staff.tell.clone(),
            shelf: Arc::clone(&self.shelf),
            watch: Arc::clone(&watch),
            gate: Arc::clone(&staff.gate),
            notice,
            tidy_every: self.settings.session_objects.renew_after,
        };
        let name = format!("hsm-{}", staff.hands.len());
        match std::thread::Builder::new().name(name).spawn(move || courier.run()) {
            Ok(thread) => staff.hands.push(Hand { role, thread, watch }),
            Err(error) => tracing::error!(%error, "a thread for a worker process cannot be made"),
        }
    }

    fn hear(&self, staff: &mut Staff, event: Event) {
        match event {
            Event::Up(Role::Writer, shown) => {
                // What it lists counts: while a reader lists, the writer may be at work.
                self.shelf.list(*shown);
                if staff.hands.len() == 1 {
                    for _ in 0..self.settings.workers {
                        self.employ(staff, Role::Reader);
                    }
                }
            }
            Event::Up(Role::Reader, shown) => {
                self.shelf.note_copying(shown.copying);
                staff.readers += 1;
                if staff.readers == 1 {
                    staff.generation += 1;
                    let generation = staff.generation;
                    self.shelf.put_up();
                    let objects = self.shelf.objects(Kind::RootKey).map_or(0, |it| it.len());
                    tracing::info!(generation, objects, "the HSM is ready");
                    self.health.send_replace(Health::Ready { generation });
                    self.try_unwrapping();
                }
            }
            Event::Down(Role::Writer) => {}
            Event::Down(Role::Reader) => {
                staff.readers -= 1;
                if staff.readers == 0 {
                    self.say_down(LOST.into());
                }
            }
            Event::Trouble(Trouble { problem, .. }) => {
                if staff.readers == 0 {
                    self.say_down(problem);
                } else {
                    tracing::warn!(problem, "a worker process of the HSM does not begin");
                }
            }
        }
    }

    /// Kills readers that hang, and reports a writer that does.
    fn kill_stuck(&self, staff: &Staff) {
        let limit = self.settings.stuck_after;
        for hand in staff.hands.iter().filter(|hand| hand.watch.activity.is_stuck(limit)) {
            match hand.role {
                Role::Reader => {
                    tracing::error!(?limit, "a worker process hangs in the module; it is killed");
                    hand.watch.activity.fence();
                    hand.watch.kill();
                }
                Role::Writer => {
                    if !hand.watch.reported.swap(true, Ordering::Relaxed) {
                        tracing::error!(
                            ?limit,
                            "the writing worker process hangs; it is waited for"
                        );
                    }
                }
            }
        }
    }

    /// Tries a quiet token. A process that finds that it cannot be used ends.
    fn probe(&self) {
        if self.shelf.is_up() && self.queues.jobs.1.is_empty() {
            let (reply, _nobody_waits) = crossbeam_channel::bounded(1);
            let deadline = Instant::now() + PROBE_EVERY;
            // Err: full, so jobs wait after all.
            drop(self.queues.jobs.0.try_send(Job { work: Work::Probe(reply), deadline }));
        }
        self.try_unwrapping();
    }

    /// Has the writer try what key material the token unwraps, unless that is known.
    fn try_unwrapping(&self) {
        if self.shelf.is_up()
            && self.shelf.algorithms().is_none()
            && self.queues.writes.1.is_empty()
        {
            let deadline = Instant::now() + PROBE_EVERY;
            drop(self.queues.writes.0.try_send(Job { work: Work::TryUnwrapping, deadline }));
        }
    }

    fn say_down(&self, problem: String) {
        self.shelf.take_down();
        let known = matches!(&*self.health.borrow(), Health::Down { problem: p } if *p == problem);
        if !known {
            tracing::error!(problem, "the HSM is down");
            self.health.send_replace(Health::Down { problem });
        }
    }

    fn refuse_all(&self) {
        for job in self.queues.jobs.1.try_iter().chain(self.queues.writes.1.try_iter()) {
            job.refuse(HsmError::Unavailable);
        }
    }

    fn dismiss(&self, staff: Staff) {
        // First, so that callers fail at once.
        self.shelf.take_down();
        drop(self.health.send_replace(Health::Down { problem: ENDED.into() }));
        let Staff { hands, stop, events, .. } = staff;
        drop(stop);
        let until = Instant::now() + JOIN_PATIENCE;
        while Instant::now() < until && hands.iter().any(|hand| !hand.thread.is_finished()) {
            // A courier must not wait for room.
            for _event in events.try_iter() {}
            std::thread::sleep(JOIN_PAUSE);
        }
        for Hand { role, thread, watch } in hands {
            if thread.is_finished() {
                // Err: it panicked, which the panic hook has logged.
                let _ = thread.join();
            } else if role == Role::Reader {
                watch.kill();
            }
        }
        self.refuse_all();
    }
}

/// Events that may wait: more than there can be processes, a few times over.
const EVENTS: usize = 1024;
/// How often readers that hang are looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often a quiet token is tried.
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// How long couriers may take to end, and how often that is looked at.
const JOIN_PATIENCE: Duration = Duration::from_secs(8);
const JOIN_PAUSE: Duration = Duration::from_millis(1);
const ENDED: &str = "the daemon stops";
const LOST: &str = "the token is lost; connect it again, and the daemon recovers by itself";

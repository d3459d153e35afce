//! The protocol of revocation in one process (`facts/reliability.md` 2.2, "embedded"),
//! with every interleaving of two unwraps, changes of both directions, commits that fail
//! or of which nobody knows, and crashes. The protocol as the code has it keeps every
//! rule; each protocol with one thing wrong breaks the rule that forbids it, which is how
//! it is known that the model looks.

use std::collections::BTreeSet;

use stateright::{Checker, Model, Property};

/// A protocol.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Protocol {
    /// As in `service/keys.rs`, `put`, and `service/crypto.rs`, `deks`.
    Ours,
    /// What takes away is seen by everybody after its commit.
    TightensAfterCommit,
    /// What takes away is acknowledged, and seen by everybody after that.
    TightensAfterAnswer,
    /// What gives is seen by everybody before its commit.
    LoosensBeforeCommit,
    /// An unwrap is not looked at again when its record is durable.
    NoSecondLook,
    /// The decision is made when the stream opens, and holds for what comes on it.
    CachedDecision,
    /// The answer leaves before its record is durable.
    AnswersBeforeRecord,
    /// A commit that failed for certain is acknowledged.
    FailureIsSuccess,
    /// A commit of which nobody knows is acknowledged, as after a second fsync, which
    /// says that all is well.
    UnknownIsSuccess,
    /// A commit of which nobody knows is taken for one that failed.
    UnknownIsFailure,
    /// Memory is left as it is after a commit that failed.
    NoRollback,
    /// Memory allows after a commit that failed, whatever it did before.
    RollsBackToAllowed,
}

/// What each wrong protocol breaks first, among others.
#[rustfmt::skip]
const WRONG: [(Protocol, &str); 11] = [
    (Protocol::TightensAfterCommit, NO_MORE_THAN_THE_DISK),
    (Protocol::TightensAfterAnswer, NOT_STALE),
    (Protocol::LoosensBeforeCommit, NO_MORE_THAN_THE_DISK),
    (Protocol::NoSecondLook,        NOT_LATE),
    (Protocol::CachedDecision,      NOT_STALE),
    (Protocol::AnswersBeforeRecord, RECORDED),
    (Protocol::FailureIsSuccess,    NOT_STALE),
    (Protocol::UnknownIsSuccess,    NOT_STALE),
    (Protocol::UnknownIsFailure,    AS_THE_DISK),
    (Protocol::NoRollback,          AS_THE_DISK),
    (Protocol::RollsBackToAllowed,  NOT_STALE),
];

const NOT_STALE: &str = "no plaintext to an unwrap that began after a revocation was acknowledged";
const NOT_LATE: &str = "no plaintext whose record is younger than an acknowledged revocation";
const NOT_REFUSED: &str = "no refusal of an unwrap that began after an enabling was acknowledged";
const RECORDED: &str = "no plaintext without its durable record";
const NO_MORE_THAN_THE_DISK: &str = "memory never allows what the disk forbids";
const AS_THE_DISK: &str = "memory is as the disk when no change is under way";

/// One key, and everybody who has to do with it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct State {
    /// Whether the key may be used, by what is durable.
    disk: bool,
    /// The same in memory; `None` while the daemon is down.
    memory: Option<bool>,
    change: Option<Change>,
    unwraps: [Unwrap; 2],
    /// Acknowledged, and nothing that gives was begun since.
    revoked: bool,
    /// Acknowledged, and nothing that takes away was begun since.
    enabled: bool,
    changes_left: u8,
    crashes_left: u8,
}

/// A change under way: from `before` to `after`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Change {
    before: bool,
    after: bool,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Stage {
    Begun,
    /// Everybody sees it.
    Published,
    Committed,
    /// It did not go through, for certain.
    Failed,
    /// It went through, and everybody sees it.
    Done,
    /// Answered, and not yet seen by everybody.
    AnsweredEarly,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Unwrap {
    at: At,
    /// It began after a revocation was acknowledged, and nothing gives it back.
    forbidden: bool,
    /// It began after an enabling was acknowledged, and nothing takes it away.
    entitled: bool,
    /// Its record became durable after a revocation was acknowledged.
    late: bool,
    recorded: bool,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum At {
    NotBegun,
    /// The stream is open, the request not read; with the decision that a wrong protocol
    /// makes then.
    Open(bool),
    /// The request is read.
    Read(bool),
    /// The HSM has decrypted.
    Decrypted,
    /// It was looked at again.
    Looked,
    Answered(Answer),
    /// The daemon died first.
    Lost,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Answer {
    Plaintext,
    Refused,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Action {
    Open(usize),
    Read(usize),
    Decide(usize),
    Record(usize),
    Look(usize),
    Answer(usize),
    Begin { after: bool },
    Publish,
    Commit(Outcome),
    RollBack,
    Acknowledge,
    Crash,
    Start,
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Outcome {
    Done,
    /// Nothing was written, for certain.
    Failed,
    /// Nobody knows; whether it was written.
    Unknown {
        written: bool,
    },
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let unwrap = Unwrap {
            at: At::NotBegun,
            forbidden: false,
            entitled: false,
            late: false,
            recorded: false,
        };
        vec![State {
            disk: true,
            memory: Some(true),
            change: None,
            unwraps: [unwrap; 2],
            revoked: false,
            enabled: true,
            changes_left: 3,
            crashes_left: 2,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.memory.is_none() {
            return actions.push(Action::Start);
        }
        for (number, unwrap) in state.unwraps.iter().enumerate() {
            match unwrap.at {
                At::NotBegun => actions.push(Action::Open(number)),
                At::Open(_) => actions.push(Action::Read(number)),
                At::Read(_) => actions.push(Action::Decide(number)),
                At::Decrypted if *self == Self::AnswersBeforeRecord => {
                    actions.push(Action::Answer(number));
                }
                At::Decrypted if unwrap.recorded => actions.push(Action::Look(number)),
                At::Decrypted => actions.push(Action::Record(number)),
                At::Looked => actions.push(Action::Answer(number)),
                At::Answered(_) | At::Lost => {}
            }
        }
        match &state.change {
            None if state.changes_left > 0 => {
                // A key that is taken away can be taken away again, as a suspended one that
                // is deleted.
                actions.push(Action::Begin { after: false });
                if !state.disk {
                    actions.push(Action::Begin { after: true });
                }
            }
            None => {}
            Some(change) => self.go_on(change, actions),
        }
        if state.crashes_left > 0 {
            actions.push(Action::Crash);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Open(number) => {
                next.unwraps[number].at = At::Open(state.memory?);
            }
            Action::Read(number) => {
                let At::Open(then) = state.unwraps[number].at else { return None };
                let unwrap = &mut next.unwraps[number];
                unwrap.at = At::Read(then);
                (unwrap.forbidden, unwrap.entitled) = (state.revoked, state.enabled);
            }
            Action::Decide(number) => {
                let At::Read(then) = state.unwraps[number].at else { return None };
                let cached = *self == Self::CachedDecision;
                let allowed = if cached { then } else { state.memory? };
                next.unwraps[number].at =
                    if allowed { At::Decrypted } else { At::Answered(Answer::Refused) };
            }
            Action::Record(number) => {
                next.unwraps[number].recorded = true;
                next.unwraps[number].late = state.revoked;
            }
            Action::Look(number) => {
                let blind = matches!(self, Self::NoSecondLook | Self::CachedDecision);
                let allowed = blind || state.memory?;
                next.unwraps[number].at =
                    if allowed { At::Looked } else { At::Answered(Answer::Refused) };
            }
            Action::Answer(number) => next.unwraps[number].at = At::Answered(Answer::Plaintext),
            Action::Begin { after } => {
                let before = state.memory?;
                next.change = Some(Change { before, after, stage: Stage::Begun });
                next.changes_left -= 1;
                // From now on the one or the other is right.
                if after {
                    next.revoked = false;
                } else {
                    next.enabled = false;
                }
                for unwrap in &mut next.unwraps {
                    if after {
                        (unwrap.forbidden, unwrap.late) = (false, false);
                    } else {
                        unwrap.entitled = false;
                    }
                }
            }
            Action::Publish => self.publish(&mut next),
            Action::Commit(outcome) => self.commit(&mut next, outcome),
            Action::RollBack => {
                let before = next.change.take()?.before;
                let allowed = before || *self == Self::RollsBackToAllowed;
                if *self != Self::NoRollback {
                    next.memory = Some(allowed);
                }
            }
            Action::Acknowledge => {
                let change = next.change.as_mut()?;
                let (after, stage) = (change.after, change.stage);
                (next.revoked, next.enabled) = (!after, after);
                if stage == Stage::Committed {
                    change.stage = Stage::AnsweredEarly;
                } else {
                    next.change = None;
                }
            }
            Action::Crash => crash(&mut next),
            Action::Start => next.memory = Some(state.disk),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NOT_STALE, |_, state| {
                !has(state, Answer::Plaintext, |it| it.forbidden)
            }),
            Property::always(NOT_LATE, |_, state| !has(state, Answer::Plaintext, |it| it.late)),
            Property::always(NOT_REFUSED, |_, state| {
                !has(state, Answer::Refused, |it| it.entitled)
            }),
            Property::always(RECORDED, |_, state| {
                !has(state, Answer::Plaintext, |it| !it.recorded)
            }),
            Property::always(NO_MORE_THAN_THE_DISK, |_, state: &State| {
                state.memory != Some(true) || state.disk
            }),
            Property::always(AS_THE_DISK, |_, state: &State| {
                let quiet = state.change.is_none();
                !quiet || state.memory.is_none_or(|memory| memory == state.disk)
            }),
        ]
    }
}

impl Protocol {
    /// What comes next of a change.
    fn go_on(self, change: &Change, actions: &mut Vec<Action>) {
        let late = matches!(self, Self::TightensAfterCommit | Self::TightensAfterAnswer);
        let first = !late && (self == Self::LoosensBeforeCommit || !change.after);
        match change.stage {
            Stage::Begun if first => actions.push(Action::Publish),
            Stage::Begun | Stage::Published => {
                let unknown = [true, false].map(|written| Outcome::Unknown { written });
                let outcomes = [Outcome::Done, Outcome::Failed].into_iter().chain(unknown);
                actions.extend(outcomes.map(Action::Commit));
            }
            Stage::Committed if self == Self::TightensAfterAnswer && !change.after => {
                actions.push(Action::Acknowledge);
            }
            Stage::Committed | Stage::AnsweredEarly => actions.push(Action::Publish),
            Stage::Failed => actions.push(Action::RollBack),
            Stage::Done => actions.push(Action::Acknowledge),
        }
    }

    fn publish(self, next: &mut State) {
        let Some(change) = &mut next.change else { return };
        next.memory = Some(change.after);
        match change.stage {
            Stage::Begun => change.stage = Stage::Published,
            Stage::AnsweredEarly => next.change = None,
            Stage::Published | Stage::Committed | Stage::Failed | Stage::Done => {
                change.stage = Stage::Done;
            }
        }
    }

    fn commit(self, next: &mut State, outcome: Outcome) {
        let Some(change) = &mut next.change else { return };
        let written = matches!(outcome, Outcome::Done | Outcome::Unknown { written: true });
        if written {
            next.disk = change.after;
        }
        let succeeded = match (outcome, self) {
            (Outcome::Done, _)
            | (Outcome::Failed, Self::FailureIsSuccess)
            | (Outcome::Unknown { .. }, Self::UnknownIsSuccess) => true,
            (Outcome::Failed, _) | (Outcome::Unknown { .. }, Self::UnknownIsFailure) => false,
            // The restart reads the disk.
            (Outcome::Unknown { .. }, _) => return crash(next),
        };
        change.stage = if succeeded { Stage::Committed } else { Stage::Failed };
    }
}

fn has(state: &State, answer: Answer, is: fn(&Unwrap) -> bool) -> bool {
    state.unwraps.iter().any(|unwrap| unwrap.at == At::Answered(answer) && is(unwrap))
}

/// What is not on the disk is gone.
fn crash(next: &mut State) {
    next.memory = None;
    next.change = None;
    next.crashes_left = next.crashes_left.saturating_sub(1);
    for unwrap in &mut next.unwraps {
        match unwrap.at {
            At::NotBegun | At::Answered(_) | At::Lost => {}
            At::Open(_) | At::Read(_) | At::Decrypted | At::Looked => unwrap.at = At::Lost,
        }
    }
}

/// Rules that the protocol breaks, and how many states it has if it breaks none.
fn broken(protocol: Protocol) -> (BTreeSet<&'static str>, usize) {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    (checker.discoveries().into_keys().collect(), checker.unique_state_count())
}

#[test]
fn our_protocol_keeps_every_rule_in_every_interleaving() {
    let (broken, states) = broken(Protocol::Ours);
    println!("{states} states");
    assert!(broken.is_empty(), "{broken:?}");
    // Or the model has lost what it is about.
    assert!(states > 10_000, "{states} states");
}

#[test]
fn every_wrong_protocol_is_found_out() {
    for (protocol, rule) in WRONG {
        let (broken, states) = broken(protocol);
        println!("{protocol:?}: {broken:?} in {states} states");
        assert!(broken.contains(rule), "{protocol:?} breaks {broken:?} and not {rule:?}");
    }
}

#[test]
fn our_protocol_reaches_every_end_of_an_unwrap() {
    for (at, recorded) in [
        (At::Answered(Answer::Plaintext), true),
        (At::Answered(Answer::Refused), false),
        // Refused after all: it was looked at again.
        (At::Answered(Answer::Refused), true),
        (At::Lost, true),
    ] {
        let reached = Reaching { at, recorded }.checker().threads(2).spawn_bfs().join();
        assert!(reached.discoveries().contains_key(REACHED), "{at:?} {recorded}");
    }
}

/// Our protocol, and one end of an unwrap that is looked for.
#[derive(Clone, Copy, Debug)]
struct Reaching {
    at: At,
    recorded: bool,
}

const REACHED: &str = "reached";

impl Model for Reaching {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        Protocol::Ours.init_states()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        Protocol::Ours.actions(state, actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        Protocol::Ours.next_state(state, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::sometimes(REACHED, |model, state: &State| {
            state.unwraps.iter().any(|it| it.at == model.at && it.recorded == model.recorded)
        })]
    }
}

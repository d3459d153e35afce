//! Any sequence of requests about a key and of steps of the clocks, backwards too,
//! agrees with a small model, and keeps the rules that matter most.
//!
//! The model is written from `facts/key-protect.md` 1.2, 1.3, 4 and 5 and from the
//! head of `src/clock.rs`. It asks the code nothing: it has a list of what happened
//! and of the true running time, which the test itself advances. Seconds throughout.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail")]
#![expect(clippy::print_stdout, reason = "how much was looked at says what the result is worth")]

#[path = "model/clock_steps.rs"]
mod clock_steps;
#[path = "model/revocation.rs"]
mod revocation;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{TestCaseError, TestRunner};
use rootkeyd::clock::{Clock, ClockSource, RawTime, Trust};
use rootkeyd::domain::{
    Denied, Force, History, Key, KeyAction, KeyDetails, KeyId, KeyRingId, KeyState, Moment,
    ObjectId, PrincipalId, Profile, Refusal, Refused, Registered, RotationPeriod, Timestamp,
    Version, VersionId,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_agrees_with_the_model_and_keeps_the_rules(
        setting in settings(),
        steps in prop::collection::vec(steps(), 1..=60),
    ) {
        play(setting, &steps)?;
    }
}

#[test]
fn the_sequences_reach_every_answer() {
    let mut runner = TestRunner::deterministic();
    let mut reached = BTreeSet::new();
    let sequences = (settings(), prop::collection::vec(steps(), 60));
    for _ in 0..500 {
        let (setting, steps) = sequences.new_tree(&mut runner).unwrap().current();
        reached.extend(play(setting, &steps).unwrap());
    }
    let missing: Vec<_> = ANSWERS.into_iter().filter(|answer| !reached.contains(*answer)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?} of {reached:?}");
}

/// Every answer there is to each request, except by the state.
#[rustfmt::skip]
const ANSWERS: [&str; 30] = [
    "Wrap Done", "Wrap State", "Unwrap Done", "Unwrap State", "Rewrap Done", "Rewrap State",
    "Rotate Done", "Rotate RotatedLately", "RotateByPolicy Done", "RotateByPolicy RotatedLately",
    "RotateByPolicy NotDue", "Disable Done", "Enable Done", "Enable TooEarly", "Enable Expired",
    "SetForDeletion Done", "SetForDeletion NotDualAuth", "UnsetForDeletion Done",
    "Delete Done", "Delete Prevented", "Delete NotAuthorized", "Delete SamePrincipal",
    "Delete Registered", "Restore Done", "Restore NotImported", "Restore TooEarly",
    "Restore WindowClosed", "Restore Expired", "Purge Done", "Purge TooEarly",
];

/// Plays the steps to the code and to the model. What was asked and answered.
fn play(setting: Setting, steps: &[Step]) -> Result<BTreeSet<String>, TestCaseError> {
    let mut model = Model::begun(setting);
    let mut daemon = Daemon::begun(setting);
    let mut answers = BTreeSet::new();
    for step in steps {
        let asked = match *step {
            Step::Ask(ask) => Some(ask),
            Step::Clocks(turn) => {
                let turn = model.measured(turn);
                daemon.turn(turn);
                model.turn(turn);
                None
            }
        };
        let now = daemon.clock.now();
        model.read();
        prop_assert_eq!(now.run.as_micros(), model.ran * 1_000_000, "run time: {:?}", step);
        model.come |=
            !model.ahead && model.expires().is_some_and(|expires| date(expires) <= now.time);
        prop_assert_eq!(now.time, date(model.told), "date: {:?}", step);
        if let Some(ask) = asked {
            let answer = daemon.ask(ask, now);
            if answer == Answer::Done {
                model.check_rules(ask)?;
            }
            prop_assert_eq!(answer, model.answer(ask), "{:?} of {:?}", ask, model);
            if answer == Answer::Done {
                model.note(ask);
            }
            let word = |text: String| text.split([' ', '(', '{']).next().unwrap().to_owned();
            answers.insert(word(format!("{ask:?}")) + " " + &word(format!("{answer:?}")));
        }
        model.check_state(&daemon.key, now)?;
    }
    Ok(answers)
}

/// What a key is from the start, and under whose rules.
#[derive(Clone, Copy, Debug)]
struct Setting {
    imported: bool,
    dual_auth: bool,
    /// After it was made.
    expires: Option<i64>,
    rotation_days: Option<u64>,
    profile: Profile,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask(Ask),
    Clocks(Turn),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ask {
    Wrap,
    Unwrap,
    Rewrap,
    Rotate,
    RotateByPolicy,
    Disable,
    Enable,
    SetForDeletion(Who),
    UnsetForDeletion,
    Delete { by: Who, force: Force, registered: Registered },
    Restore,
    Purge,
    Update,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Who {
    Ada,
    Bob,
    Eve,
}

/// What happens to the clocks.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Pass(u64),
    /// Time passes until so long after the expiration date, if that is to come.
    PassToExpiry(i64),
    /// Somebody sets the date.
    Set(i64),
    /// Somebody sets the date to so long after the expiration date.
    SetToExpiry(i64),
    /// The daemon is down for so long.
    Restart(u64),
    /// The machine is down for so long.
    Reboot(u64),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    Done,
    State(KeyState, Refusal),
    TooEarly {
        wait: u64,
    },
    RotatedLately {
        wait: u64,
    },
    WindowClosed,
    Expired,
    NotImported,
    NotDualAuth,
    NotAuthorized,
    SamePrincipal,
    Prevented {
        count: u64,
    },
    Registered {
        count: u64,
    },
    /// The policy does not want it yet.
    NotDue,
}

/// What is known of the key without asking the code.
#[derive(Debug)]
struct Model {
    setting: Setting,
    /// True running time.
    ran: u64,
    /// What the machine's clock says.
    machine: i64,
    /// The least that the date can be: it goes on with the running time.
    least: i64,
    /// The running time when that was said.
    least_at: u64,
    /// The date that is believed.
    told: i64,
    /// Whether the machine's clock was set ahead.
    ahead: bool,
    /// The running time since when it has been so, without a restart.
    ahead_since: Option<u64>,
    /// Whether the daemon has ever said that the expiration date has come, other
    /// than by a clock set ahead.
    come: bool,
    happened: Vec<Happened>,
}

/// A request that was done, and when by the running time and by the date.
#[derive(Clone, Copy, Debug)]
struct Happened {
    what: Ask,
    ran: u64,
    date: i64,
}

impl Model {
    fn begun(setting: Setting) -> Self {
        let (machine, least, told, happened) = (BEGAN, BEGAN, BEGAN, Vec::new());
        Self {
            setting,
            ran: 0,
            machine,
            least,
            least_at: 0,
            told,
            ahead: false,
            ahead_since: None,
            come: false,
            happened,
        }
    }

    /// What must hold of what was done, said as directly as can be.
    fn check_rules(&self, ask: Ask) -> Result<(), TestCaseError> {
        let deleted = self.last(is_delete_or_restore).filter(|last| is_delete(last.what));
        let gone = self.last(|what| what == Ask::Purge).is_some();
        let since = |last: Option<Happened>| last.map_or(u64::MAX, |last| self.ran - last.ran);
        let uses = matches!(ask, Ask::Wrap | Ask::Unwrap | Ask::Rewrap | Ask::Rotate);
        prop_assert!(!(uses && deleted.is_some()), "{:?} with a deleted key", ask);
        prop_assert!(!gone, "{:?} of a purged key", ask);
        match ask {
            Ask::Wrap => prop_assert!(!self.come, "an expired key wraps"),
            Ask::Enable => prop_assert!(since(self.last(|what| what == Ask::Disable)) >= 30),
            Ask::Restore => prop_assert!((30..=30 * DAY).contains(&since(deleted))),
            Ask::Purge => prop_assert!(since(deleted) >= 4 * HOUR && deleted.is_some()),
            Ask::Rotate | Ask::RotateByPolicy => {
                prop_assert!(since(self.last(is_rotation)) >= HOUR, "twice in an hour");
            }
            Ask::Delete { by, .. } if self.setting.dual_auth => {
                let wanted = self
                    .last(is_about_deletion)
                    .filter(|last| matches!(last.what, Ask::SetForDeletion(first) if first != by));
                prop_assert!(since(wanted) < 7 * DAY, "one alone deletes");
            }
            Ask::Unwrap | Ask::Rewrap | Ask::Disable | Ask::SetForDeletion(_) => {}
            Ask::UnsetForDeletion | Ask::Delete { .. } | Ask::Update => {}
        }
        Ok(())
    }

    /// That the key is as it must be after what happened.
    fn check_state(&self, key: &Key, now: Moment) -> Result<(), TestCaseError> {
        let count = |is: fn(Ask) -> bool| self.happened.iter().filter(|one| is(one.what)).count();
        prop_assert_eq!(key.state(now), self.state());
        prop_assert_eq!(key.versions.len(), 1 + count(is_rotation));
        prop_assert_eq!(key.generation, 1 + u64::try_from(self.happened.len()).unwrap());
        let ran = |moment: Option<Moment>| moment.map(|moment| moment.run.as_micros() / 1_000_000);
        let when = |last: Option<Happened>| last.map(|last| last.ran);
        prop_assert_eq!(ran(key.rotated), when(self.last(is_rotation)), "rotated");
        prop_assert_eq!(ran(key.history.suspended), when(self.disabled()), "suspended");
        prop_assert_eq!(ran(key.history.destroyed), when(self.deleted()), "destroyed");
        let authorization = key.valid_authorization(now).map(|given| given.by.clone());
        prop_assert_eq!(authorization, self.authorization().map(principal));
        let due = key.purge_due().map(|due| due.as_micros() / 1_000_000);
        prop_assert_eq!(due, self.deleted().map(|last| last.ran + 90 * DAY));
        Ok(())
    }

    /// What has to be answered now.
    fn answer(&self, ask: Ask) -> Answer {
        if let Some(refusal) = self.refusal(ask) {
            return Answer::State(self.state(), refusal);
        }
        let early = |since: Option<Happened>, rest: u64| {
            since
                .and_then(|since| (since.ran + rest).checked_sub(self.ran))
                .filter(|&wait| wait > 0)
        };
        let rotated = early(self.last(is_rotation), HOUR);
        let after = |condition: bool, answer: Answer| condition.then_some(answer);
        let too_early = |wait| Answer::TooEarly { wait };
        let dual_auth = self.setting.dual_auth;
        let refusals = match ask {
            Ask::Wrap | Ask::Unwrap | Ask::Rewrap | Ask::Disable | Ask::Update => vec![],
            Ask::Rotate | Ask::RotateByPolicy => {
                let early_for_policy = ask == Ask::RotateByPolicy && !self.policy_is_due();
                let rotated = rotated.map(|wait| Answer::RotatedLately { wait });
                vec![after(early_for_policy, Answer::NotDue), rotated]
            }
            Ask::Enable => {
                let disabled = early(self.disabled(), 30).map(too_early);
                vec![disabled, after(self.expired(), Answer::Expired)]
            }
            Ask::SetForDeletion(_) | Ask::UnsetForDeletion => {
                vec![after(!dual_auth, Answer::NotDualAuth)]
            }
            Ask::Delete { by, force, registered: Registered { total, preventing } } => {
                let given = self.authorization();
                let refused = total > 0 && force == Force::No;
                vec![
                    after(preventing > 0, Answer::Prevented { count: preventing }),
                    after(dual_auth && given.is_none(), Answer::NotAuthorized),
                    after(dual_auth && given == Some(by), Answer::SamePrincipal),
                    after(refused, Answer::Registered { count: total }),
                ]
            }
            Ask::Restore => {
                let generated = self.setting.profile == Profile::Vpc && !self.setting.imported;
                let closed = self.deleted().is_some_and(|last| self.ran - last.ran > 30 * DAY);
                vec![
                    after(generated, Answer::NotImported),
                    after(closed, Answer::WindowClosed),
                    after(self.expired(), Answer::Expired),
                    early(self.deleted(), 30).map(too_early),
                ]
            }
            Ask::Purge => vec![early(self.deleted(), 4 * HOUR).map(too_early)],
        };
        refusals.into_iter().flatten().next().unwrap_or(Answer::Done)
    }

    /// Why the state forbids it, if it does.
    fn refusal(&self, ask: Ask) -> Option<Refusal> {
        let back = matches!(ask, Ask::Restore | Ask::Purge);
        let of_deletion = matches!(ask, Ask::SetForDeletion(_) | Ask::UnsetForDeletion);
        let always = matches!(ask, Ask::Delete { .. } | Ask::Update);
        let seed = self.setting.profile == Profile::Vpc;
        let forbidden = match (self.state(), ask) {
            // The policy does not ask, it looks.
            (_, Ask::RotateByPolicy) => return None,
            (KeyState::Destroyed, _) if back && !self.purged() => return None,
            (KeyState::Destroyed, _) => Refusal::Destroyed,
            _ if back => Refusal::NotDestroyed,
            _ if always => return None,
            (KeyState::Suspended, Ask::Enable) => return None,
            (KeyState::Suspended, _) if of_deletion && self.expired() => return None,
            (KeyState::Suspended, _) => Refusal::Suspended,
            (_, Ask::Enable) => Refusal::NotSuspended,
            (KeyState::Deactivated, Ask::Wrap | Ask::Disable) => Refusal::Deactivated,
            (KeyState::Deactivated, Ask::Rotate) if seed => Refusal::Deactivated,
            (KeyState::Deactivated | KeyState::Active, _) => return None,
        };
        Some(forbidden)
    }

    fn state(&self) -> KeyState {
        if self.deleted().is_some() {
            KeyState::Destroyed
        } else if self.disabled().is_some() {
            KeyState::Suspended
        } else if self.expired() {
            KeyState::Deactivated
        } else {
            KeyState::Active
        }
    }

    fn expired(&self) -> bool {
        self.expires().is_some_and(|expires| expires <= self.told)
    }

    fn expires(&self) -> Option<i64> {
        self.setting.expires.map(|after| BEGAN + after)
    }

    fn purged(&self) -> bool {
        self.last(|what| what == Ask::Purge).is_some()
    }

    /// The disabling, unless the key was enabled or restored.
    fn disabled(&self) -> Option<Happened> {
        let is_about = |what| matches!(what, Ask::Disable | Ask::Enable | Ask::Restore);
        self.last(is_about).filter(|last| last.what == Ask::Disable)
    }

    /// The deletion, unless the key was restored.
    fn deleted(&self) -> Option<Happened> {
        self.last(is_delete_or_restore).filter(|last| is_delete(last.what))
    }

    /// Who wants the deletion, and may still be seconded.
    fn authorization(&self) -> Option<Who> {
        let last = self.last(is_about_deletion).filter(|last| self.ran - last.ran < 7 * DAY);
        last.and_then(
            |last| if let Ask::SetForDeletion(who) = last.what { Some(who) } else { None },
        )
    }

    /// Only active keys rotate by themselves, by the date.
    fn policy_is_due(&self) -> bool {
        let since = self.last(is_rotation).map_or(BEGAN, |last| last.date);
        let days = self.setting.rotation_days.map(|days| i64::try_from(days * DAY).unwrap());
        self.state() == KeyState::Active && days.is_some_and(|days| since + days <= self.told)
    }

    fn last(&self, is: impl Fn(Ask) -> bool) -> Option<Happened> {
        self.happened.iter().rev().find(|one| is(one.what)).copied()
    }

    /// What was done. Using a key is no event in its life.
    fn note(&mut self, what: Ask) {
        if !matches!(what, Ask::Wrap | Ask::Unwrap | Ask::Rewrap) {
            self.happened.push(Happened { what, ran: self.ran, date: self.told });
        }
    }

    /// The same turn, without reference to the key.
    fn measured(&self, turn: Turn) -> Turn {
        let Some(expires) = self.expires() else { return turn };
        match turn {
            Turn::PassToExpiry(after) => {
                let left = u64::try_from(expires + after - self.machine).unwrap_or(0);
                Turn::Pass(left.min(120 * DAY))
            }
            Turn::SetToExpiry(after) => Turn::Set(expires + after - self.machine),
            Turn::Pass(_) | Turn::Set(_) | Turn::Restart(_) | Turn::Reboot(_) => turn,
        }
    }

    fn turn(&mut self, turn: Turn) {
        let signed = |seconds: u64| i64::try_from(seconds).unwrap();
        match turn {
            Turn::Pass(seconds) => {
                self.ran += seconds;
                self.machine += signed(seconds);
            }
            Turn::Restart(seconds) => {
                self.read();
                self.ran += seconds;
                self.machine += signed(seconds);
                // What passed while it was down counts whole.
                self.least += signed(seconds);
                self.least_at = self.ran;
                self.ahead_since = None;
            }
            Turn::Reboot(seconds) => {
                self.read();
                self.machine += signed(seconds);
                // How long it was down nobody knows but the machine's clock.
                self.least = self.least.max(self.machine);
                self.ahead_since = None;
            }
            Turn::Set(by) => self.machine += by,
            Turn::PassToExpiry(_) | Turn::SetToExpiry(_) => {}
        }
    }

    /// The daemon looks at its clocks. A date off by a minute or less is followed,
    /// though never back; one that is further ahead counts as long as it stands, and is
    /// taken as right after a day.
    fn read(&mut self) {
        let expected = self.least + i64::try_from(self.ran - self.least_at).unwrap();
        let off = self.machine - expected;
        let small = (-60..=60).contains(&off);
        self.least = if small { self.machine.max(self.least) } else { expected };
        self.least_at = self.ran;
        self.ahead = off > 60;
        self.ahead_since = self.ahead.then(|| self.ahead_since.unwrap_or(self.ran));
        if self.ahead_since.is_some_and(|since| self.ran - since >= DAY) {
            self.least = self.machine;
        }
        self.told = self.machine.max(self.least);
    }
}

fn is_delete(what: Ask) -> bool {
    matches!(what, Ask::Delete { .. })
}

fn is_delete_or_restore(what: Ask) -> bool {
    is_delete(what) || what == Ask::Restore
}

fn is_about_deletion(what: Ask) -> bool {
    is_delete(what) || matches!(what, Ask::SetForDeletion(_) | Ask::UnsetForDeletion)
}

fn is_rotation(what: Ask) -> bool {
    matches!(what, Ask::Rotate | Ask::RotateByPolicy)
}

/// The code under test, with a machine around it.
struct Daemon {
    machine: Arc<Mutex<RawTime>>,
    boots: u32,
    clock: Clock,
    key: Key,
    profile: Profile,
}

impl Daemon {
    fn begun(setting: Setting) -> Self {
        let machine = Arc::new(Mutex::new(RawTime { time: date(BEGAN), steady: 5_000_000 }));
        let clock = Clock::new(source(&machine, 0), None, Trust::Seen);
        let key = key(setting);
        Self { machine, boots: 0, clock, key, profile: setting.profile }
    }

    fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Pass(seconds) => self.pass(seconds),
            Turn::Set(by) => {
                let mut machine = self.machine.lock().unwrap();
                machine.time = Timestamp::from_micros(machine.time.as_micros() + by * 1_000_000);
            }
            Turn::Restart(seconds) => {
                let noted = self.clock.reading();
                self.pass(seconds);
                self.clock =
                    Clock::new(source(&self.machine, self.boots), Some(&noted), Trust::Seen);
            }
            Turn::Reboot(seconds) => {
                let noted = self.clock.reading();
                self.pass(seconds);
                self.boots += 1;
                self.machine.lock().unwrap().steady = 3_000_000;
                self.clock =
                    Clock::new(source(&self.machine, self.boots), Some(&noted), Trust::Seen);
            }
            Turn::PassToExpiry(_) | Turn::SetToExpiry(_) => {}
        }
    }

    fn pass(&self, seconds: u64) {
        let mut machine = self.machine.lock().unwrap();
        machine.time = machine.time + Duration::from_secs(seconds);
        machine.steady += seconds * 1_000_000;
    }

    /// Asks, and keeps the key as it then is.
    fn ask(&mut self, ask: Ask, now: Moment) -> Answer {
        let (key, profile) = (&self.key, self.profile);
        let used = |action| Ok(key.permit(action, now, profile).map(|()| key.clone())?);
        let rotated = || {
            let mut version = key.primary().clone();
            version.id = VersionId::from_bytes([u8::try_from(key.versions.len()).unwrap(); 16]);
            key.rotated(version, now, profile)
        };
        let done = match ask {
            Ask::Wrap => used(KeyAction::Wrap),
            Ask::Unwrap => used(KeyAction::Unwrap),
            Ask::Rewrap => used(KeyAction::Rewrap),
            Ask::Rotate => rotated(),
            Ask::RotateByPolicy => {
                let due = key.rotation_due().is_some_and(|due| due <= now.time);
                if key.state(now) != KeyState::Active || !due {
                    return Answer::NotDue;
                }
                rotated()
            }
            Ask::Disable => key.disabled(now, profile),
            Ask::Enable => key.enabled(now, profile),
            Ask::SetForDeletion(who) => key.set_for_deletion(&principal(who), now, profile),
            Ask::UnsetForDeletion => key.unset_for_deletion(now, profile),
            Ask::Delete { by, force, registered } => {
                key.deleted((&principal(by), force), registered, now, profile)
            }
            Ask::Restore => key.restored(now, profile),
            Ask::Purge => key.purging(now, profile),
            Ask::Update => used(KeyAction::Update).map(|key| key.changed(now)),
        };
        match done {
            Ok(key) => {
                self.key = key;
                Answer::Done
            }
            Err(denied) => refused(denied),
        }
    }
}

fn refused(denied: Denied) -> Answer {
    match denied {
        Denied::State(Refused { action: _, state, refusal }) => Answer::State(state, refusal),
        Denied::TooEarly { what: _, wait } => Answer::TooEarly { wait: wait.as_secs() },
        Denied::RotatedLately { wait } => Answer::RotatedLately { wait: wait.as_secs() },
        Denied::WindowClosed => Answer::WindowClosed,
        Denied::Expired => Answer::Expired,
        Denied::NotImported => Answer::NotImported,
        Denied::NotDualAuth => Answer::NotDualAuth,
        Denied::NotAuthorized => Answer::NotAuthorized,
        Denied::SamePrincipal => Answer::SamePrincipal,
        Denied::Prevented { count } => Answer::Prevented { count },
        Denied::Registered { count } => Answer::Registered { count },
    }
}

fn source(machine: &Arc<Mutex<RawTime>>, boots: u32) -> ClockSource {
    let machine = Arc::clone(machine);
    ClockSource { boot: format!("boot {boots}"), read: Arc::new(move || *machine.lock().unwrap()) }
}

fn key(setting: Setting) -> Key {
    let Setting { imported, dual_auth, expires, rotation_days, profile: _ } = setting;
    let id = KeyId::from_bytes([7; 16]);
    let object = ObjectId::from_bytes([9; 16]);
    let created = date(BEGAN);
    let version =
        Version { id: id.into(), object, check_value: Arc::default(), created, wrapped: None };
    Key {
        id,
        instance: "default".parse().unwrap(),
        ring: KeyRingId::default_ring(),
        details: KeyDetails { display_name: "volumes".into(), ..KeyDetails::default() },
        imported,
        history: History::begun(created, expires.map(|after| date(BEGAN + after))),
        versions: Arc::from([version]),
        created_by: "spiffe://td/ada".into(),
        updated: None,
        rotated: None,
        told: None,
        rotation: rotation_days.map(|days| RotationPeriod::from_days(days).unwrap()),
        dual_auth,
        authorization: None,
        generation: 1,
    }
}

fn principal(who: Who) -> PrincipalId {
    format!("spiffe://td/{who:?}").parse().unwrap()
}

const fn date(seconds: i64) -> Timestamp {
    Timestamp::from_seconds(seconds)
}

fn settings() -> impl Strategy<Value = Setting> {
    let profile = prop::sample::select(vec![Profile::Vpc, Profile::KeyProtect]);
    let expires = prop::option::of(spans().prop_map(|span| i64::try_from(span).unwrap()));
    let rotation = prop::option::of(prop::sample::select(vec![30, 60]));
    let setting = (any::<bool>(), any::<bool>(), expires, rotation, profile);
    setting.prop_map(|(imported, dual_auth, expires, rotation, profile)| {
        // An imported key cannot have a policy.
        let rotation_days = rotation.filter(|_| !imported);
        Setting { imported, dual_auth, expires, rotation_days, profile }
    })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![3 => asks().prop_map(Step::Ask), 2 => turns().prop_map(Step::Clocks)]
}

fn asks() -> impl Strategy<Value = Ask> {
    let who = || prop::sample::select(vec![Who::Ada, Who::Bob, Who::Eve]);
    let force = prop::sample::select(vec![Force::No, Force::Yes]);
    let registered = prop_oneof![3 => Just((0, 0)), 2 => Just((3, 0)), 1 => Just((3, 1))]
        .prop_map(|(total, preventing)| Registered { total, preventing });
    let delete = (who(), force, registered).prop_map(|(by, force, registered)| Ask::Delete {
        by,
        force,
        registered,
    });
    let plain =
        [Ask::Wrap, Ask::Unwrap, Ask::Rewrap, Ask::UnsetForDeletion, Ask::Purge, Ask::Update];
    let often = [Ask::Rotate, Ask::RotateByPolicy, Ask::Disable, Ask::Enable, Ask::Restore];
    prop_oneof![
        6 => prop::sample::select(plain.to_vec()),
        10 => prop::sample::select(often.to_vec()),
        3 => who().prop_map(Ask::SetForDeletion),
        4 => delete,
    ]
}

fn turns() -> impl Strategy<Value = Turn> {
    let year = 365 * i64::try_from(DAY).unwrap();
    prop_oneof![
        6 => spans().prop_map(Turn::Pass),
        2 => (-61_i64..=61).prop_map(Turn::PassToExpiry),
        2 => (-130_i64..=130).prop_map(Turn::Set),
        2 => (-year..=year).prop_map(Turn::Set),
        2 => (-61_i64..=61).prop_map(Turn::SetToExpiry),
        1 => spans().prop_map(Turn::Restart),
        1 => spans().prop_map(Turn::Reboot),
    ]
}

/// From a second to 120 days, mostly about the borders of windows.
fn spans() -> impl Strategy<Value = u64> {
    let about = |border: u64| border - 1..=border + 1;
    prop_oneof![
        6 => prop_oneof![Just(1), about(30)],
        4 => prop_oneof![59 * 60..=59 * 60_u64, about(HOUR), about(4 * HOUR)],
        3 => prop_oneof![about(7 * DAY), about(30 * DAY), about(90 * DAY)],
        1 => 1..=120 * DAY,
    ]
}

const HOUR: u64 = 60 * 60;
const DAY: u64 = 24 * HOUR;
/// When the key is made, by the machine's clock.
const BEGAN: i64 = 1_800_000_000;

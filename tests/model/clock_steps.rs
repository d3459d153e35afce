//! Steps of the machine's clock from ten years back to 31 days ahead, one and another
//! after it, in a daemon that runs, is started again, or whose machine boots: no key is
//! purged early, and none is rotated twice in an hour (`facts/reliability.md` 7, test 20).

use rootkeyd::domain::{Force, Profile, Registered};

use super::{Answer, Ask, DAY, Daemon, HOUR, Setting, Turn, Who};

const YEAR: i64 = 365 * 86_400;

/// In seconds.
#[rustfmt::skip]
const STEPS: [i64; 13] = [
    -10 * YEAR, -YEAR, -31 * 86_400, -86_400, -3600, -61, -1,
    1, 61, 3600, 86_400, 7 * 86_400, 31 * 86_400,
];

/// When the clock is set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum While {
    Running,
    Stopped,
    Booting,
}

const ALL: [While; 3] = [While::Running, While::Stopped, While::Booting];

fn begun(profile: Profile) -> Daemon {
    let (expires, rotation_days) = (None, None);
    let setting = Setting { imported: false, dual_auth: false, expires, rotation_days, profile };
    let mut daemon = Daemon::begun(setting);
    daemon.turn(Turn::Pass(1));
    daemon
}

fn set(daemon: &mut Daemon, how: While, step: i64) {
    daemon.turn(Turn::Set(step));
    match how {
        While::Running => {}
        While::Stopped => daemon.turn(Turn::Restart(0)),
        While::Booting => daemon.turn(Turn::Reboot(0)),
    }
}

fn ask(daemon: &mut Daemon, ask: Ask) -> Answer {
    let now = daemon.clock.now();
    daemon.ask(ask, now)
}

/// Every two steps, in every way.
fn steps() -> impl Iterator<Item = (While, i64, i64)> {
    ALL.into_iter().flat_map(|how| {
        STEPS.into_iter().flat_map(move |one| STEPS.into_iter().map(move |two| (how, one, two)))
    })
}

#[test]
fn no_key_is_rotated_twice_in_an_hour_whatever_the_clock_says() {
    let mut looked = 0;
    for (how, one, two) in steps() {
        let mut daemon = begun(Profile::Vpc);
        assert_eq!(ask(&mut daemon, Ask::Rotate), Answer::Done);
        for (after, step) in [(1, 0), (HOUR / 3, one), (HOUR / 3, two), (HOUR / 3 - 2, 0)] {
            daemon.turn(Turn::Pass(after));
            if step != 0 {
                set(&mut daemon, how, step);
            }
            let again = ask(&mut daemon, Ask::Rotate);
            let early = matches!(again, Answer::RotatedLately { .. });
            assert!(early, "{again:?} after {one} and {two} while {how:?}");
            looked += 1;
        }
        daemon.turn(Turn::Pass(2));
        let again = ask(&mut daemon, Ask::Rotate);
        assert_eq!(again, Answer::Done, "after {one} and {two} while {how:?}");
    }
    assert_eq!(looked, 4 * ALL.len() * STEPS.len() * STEPS.len());
}

#[test]
fn no_key_is_purged_early_whatever_the_clock_says() {
    for (how, one, two) in steps() {
        let mut daemon = begun(Profile::KeyProtect);
        let registered = Registered { total: 0, preventing: 0 };
        let delete = Ask::Delete { by: Who::Ada, force: Force::No, registered };
        assert_eq!(ask(&mut daemon, delete), Answer::Done);
        let said = format!("after {one} and {two} while {how:?}");
        // By hand, not within four hours.
        for (after, step) in [(1, 0), (HOUR, one), (HOUR, two), (2 * HOUR - 2, 0)] {
            daemon.turn(Turn::Pass(after));
            if step != 0 {
                set(&mut daemon, how, step);
            }
            let early = ask(&mut daemon, Ask::Purge);
            assert!(matches!(early, Answer::TooEarly { .. }), "{early:?} {said}");
            assert!(!is_due(&daemon), "{said}");
        }
        // By itself, not within 90 days.
        let mut passed = 4 * HOUR - 1;
        for (after, step) in [(30 * DAY, two), (30 * DAY, one), (29 * DAY, 0)] {
            daemon.turn(Turn::Pass(after));
            passed += after;
            if step != 0 {
                set(&mut daemon, how, step);
            }
            assert!(!is_due(&daemon), "{said}");
        }
        daemon.turn(Turn::Pass(90 * DAY - passed - 1));
        assert!(!is_due(&daemon), "{said}");
        daemon.turn(Turn::Pass(1));
        assert!(is_due(&daemon), "{said}");
    }
}

/// Whether the scheduler would purge it now.
fn is_due(daemon: &Daemon) -> bool {
    daemon.key.purge_due().is_some_and(|due| due <= daemon.clock.now().run)
}

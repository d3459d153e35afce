//! Points at which a test has the daemon killed, so that it is seen what a crash
//! leaves just there: `failpoint!("hsm.generated")`.
//!
//! A release build has none of it: the macro expands to nothing there. Where it does
//! something, a file says where to die, so that a daemon that has started can be
//! told, and dies in the change that is sent then and not in another before it.

/// Every point; `tests/crash.rs` says which change passes which.
#[rustfmt::skip]
pub const POINTS: [&str; 34] = [
    // An object is made under an intent; the commit that names it ends the intent.
    "intent.committed", "object.made", "create.committed", "create.published",
    // Another state of a key, in memory and in the store.
    "key.tightened", "key.committed", "key.published",
    // The record of a change goes from the outbox to the audit log; the answer leaves.
    "record.copied", "change.done",
    // A purge.
    "purge.begun", "purge.wiped", "purge.committed", "purge.removed",
    // What was not finished is undone.
    "undo.marked", "undo.wiped", "undo.committed",
    // An import token and its pair.
    "pair.made", "token.committed",
    // The signer of the checkpoints of the audit log.
    "signer.named", "signer.made",
    // A key that is kept wrapped, and the master key for it.
    "master.made", "master.committed", "object.wrapped",
    // In the HSM's worker, between the calls of the module.
    "hsm.generated", "hsm.unwrapped", "hsm.pair_generated", "hsm.signer_generated",
    "hsm.master_generated", "hsm.wrapped",
    "hsm.read_back", "hsm.synchronized", "hsm.destroyed",
    // In the store's thread, around COMMIT.
    "store.applied", "store.committed",
];

/// The environment variable that names the file. The file has the name of a point, and
/// after a space the number of the pass that is the last, if it is not the first.
pub const ORDERS: &str = "ROOTKEYD_DIE_BY";

/// Dies here, if the file says so.
#[cfg(debug_assertions)]
macro_rules! failpoint {
    ($point:literal) => {
        crate::failpoint::pass($point)
    };
}

/// Nothing.
#[cfg(not(debug_assertions))]
macro_rules! failpoint {
    ($point:literal) => {};
}

/// What [`failpoint!`] does where it does something.
#[cfg(debug_assertions)]
pub(crate) fn pass(point: &'static str) {
    use std::path::PathBuf;
    use std::sync::OnceLock;

    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let Some(file) = FILE.get_or_init(|| std::env::var_os(ORDERS).map(PathBuf::from)) else {
        return;
    };
    // No file, no order.
    let Ok(order) = std::fs::read_to_string(file) else { return };
    if is_last(&order, point) {
        // Not `abort`: a crash does not close files, nor does this.
        let ourselves = rustix::process::getpid();
        let killed = rustix::process::kill_process(ourselves, rustix::process::Signal::KILL);
        killed.expect("a process may kill itself");
    }
}

/// Whether this pass of `point` is the one that `order` means. Counted for as long as
/// the order stays the same.
#[cfg(debug_assertions)]
fn is_last(order: &str, point: &str) -> bool {
    static PASSED: parking_lot::Mutex<(String, u32)> = parking_lot::Mutex::new((String::new(), 0));
    let mut words = order.split_whitespace();
    let (name, last) = (words.next(), words.next().unwrap_or("1"));
    if name != Some(point) {
        return false;
    }
    let mut passed = PASSED.lock();
    if passed.0 != order {
        *passed = (order.to_owned(), 0);
    }
    passed.1 += 1;
    last.parse() == Ok(passed.1)
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn an_order_means_one_pass_of_one_point() {
        let passes = ["key.committed", "key.published", "key.committed", "key.committed"];
        let last = passes.map(|point| is_last("key.committed 2", point));
        assert_eq!(last, [false, false, true, false]);
        assert!(is_last("key.published", "key.published"));
    }
}

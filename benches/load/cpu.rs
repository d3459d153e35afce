//! CPU time of another process by the names of its threads, from /proc: to the
//! nanosecond, where getrusage of a child is known when it has ended.

use std::collections::BTreeMap;
use std::fs;

/// Name of threads → nanoseconds that they have run.
pub type ByThread = BTreeMap<String, u64>;

/// What the process has used so far. Threads that have ended are not in it.
pub fn of(pid: u32) -> ByThread {
    let mut used = ByThread::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let task = task.unwrap().path();
        let read = |file| fs::read_to_string(task.join(file));
        // It may end meanwhile.
        let (Ok(name), Ok(stat)) = (read("comm"), read("schedstat")) else { continue };
        let ran: u64 = stat.split(' ').next().unwrap().parse().unwrap();
        *used.entry(group(name.trim()).to_owned()).or_default() += ran;
    }
    used
}

/// What was used between two readings.
pub fn since(before: &ByThread, after: &ByThread) -> ByThread {
    let used = |(name, now): (&String, &u64)| {
        let then = before.get(name).copied().unwrap_or(0);
        (name.clone(), now.saturating_sub(then))
    };
    after.iter().map(used).collect()
}

/// `hsm-3` is one of the workers of the HSM; tokio names its threads itself, and those of
/// the echo with a runtime for each core have the name of this program.
fn group(name: &str) -> &str {
    let number = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
    match name {
        "tokio-runtime-w" | "tokio-rt-worker" => "runtime",
        name if name.starts_with("load-") => "runtime",
        name => name.rsplit_once('-').filter(|(_, last)| number(last)).map_or(name, |it| it.0),
    }
}

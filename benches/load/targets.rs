//! The ratios that have a target, of figures of one run: each turn by turn, and then the
//! median over the turns.

use comfy_table::{Table, presets};
use serde::Serialize;

use crate::callers::Call;
use crate::cases::{Case, What};
use crate::daemon::SESSIONS;
use crate::figures::{Figures, Spread, Taken, short};

#[derive(Serialize)]
pub struct Ratio {
    name: String,
    value: Spread,
    /// `None` if it is for orientation.
    target: Option<Target>,
}

#[derive(Serialize)]
struct Target {
    /// `at most` or `at least` this.
    bound: &'static str,
    value: f64,
    met: bool,
}

/// Those whose cases were measured.
pub fn of(figures: &Figures) -> Vec<Ratio> {
    let cpu = |taken: &Taken| taken.cpu_us;
    let by_turn =
        |of: (&str, usize), beside: &[(&str, usize)], ratio: &dyn Fn(&Taken, &[&Taken]) -> f64| {
            let turns = figures.turns(of).iter().enumerate();
            Spread::of(turns.filter_map(|(number, taken)| {
                let parts = beside.iter().map(|part| figures.turns(*part).get(number));
                Some(ratio(taken, &parts.collect::<Option<Vec<_>>>()?))
            }))
        };
    let mut ratios = Vec::new();
    let mut at_most = |name: &str, value: Option<Spread>, most: Option<f64>| {
        let target = |value: Spread| {
            most.map(|most| Target { bound: "at most", value: most, met: value.median <= most })
        };
        ratios.extend(value.map(|value| Ratio { name: name.into(), value, target: target(value) }));
    };
    for concurrency in [16, 64, 256] {
        let unwrap = Case { name: "unwrap", concurrency, what: What::Daemon(Call::Unwrap) };
        let name = format!("unwrap at {concurrency}: CPU / (echo + HSM)");
        at_most(&name, figures.ratio(&unwrap), Some(1.25));
    }
    // The daemon uses session objects too where they are faster.
    at_most(
        "unwrap at 64: CPU / (echo + HSM with a session object)",
        by_turn(("unwrap", 64), &[("echo", 64), ("hsm_decrypt_session_copy", 1)], &|it, parts| {
            it.cpu_us / parts.iter().map(|part| part.cpu_us).sum::<f64>()
        }),
        None,
    );
    let hsm = [("hsm_decrypt", 1)];
    at_most(
        "batches of 64: CPU / (HSM × 1.15 + 3 µs)",
        by_turn(("batch_64", 8), &hsm, &|it, parts| it.cpu_us / (cpu(parts[0]) * 1.15 + 3.0)),
        Some(1.0),
    );
    at_most(
        "stream: CPU / (HSM × 1.15 + 5 µs)",
        by_turn(("stream", 4), &hsm, &|it, parts| it.cpu_us / (cpu(parts[0]) * 1.15 + 5.0)),
        Some(1.0),
    );
    at_most(
        "unwrap alone: p50 / (echo + HSM + durable commit)",
        by_turn(
            ("unwrap", 1),
            &[("echo", 1), ("hsm_decrypt", 1), ("durable_commit", 1)],
            &|it, parts| it.busy_p50_us / parts.iter().map(|part| part.busy_p50_us).sum::<f64>(),
        ),
        Some(1.15),
    );
    at_most(
        "unwrap at 64: CPU µs of the thread that writes the audit log",
        figures.spread(("unwrap", 64), |it| it.threads.get("audit").copied().unwrap_or(0.0)),
        Some(5.0),
    );
    ratios.extend(network(figures));
    ratios
}

/// What share of 16 sessions that are never idle a daemon before a network HSM reaches.
fn network(figures: &Figures) -> Vec<Ratio> {
    let cases = figures.cases().filter_map(|case| Some((case, case.latency()?)));
    cases
        .map(|(case, micros)| {
            let most = SESSIONS as f64 * 1e6 / micros as f64;
            let of = (case.name, case.concurrency);
            let value = figures.spread(of, |it| it.deks_per_s / most).unwrap();
            let name = format!("{} at {}: share of 16/latency", case.name, case.concurrency);
            // What bare loops reach is for orientation, and so are more callers than 64.
            let asked = matches!(case.what, What::Network(..)) && case.concurrency == 64;
            let target = Target { bound: "at least", value: 0.95, met: value.median >= 0.95 };
            Ratio { name, value, target: asked.then_some(target) }
        })
        .collect()
}

pub fn table(ratios: &[Ratio]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["ratio", "median (min–max)", "target", ""]);
    for Ratio { name, value, target } in ratios {
        let Spread { median, min, max } = value;
        table.add_row([
            name.clone(),
            format!("{median:.2} ({min:.2}–{max:.2})"),
            target.as_ref().map_or(String::new(), |it| format!("{} {}", it.bound, short(it.value))),
            match target.as_ref().map(|target| target.met) {
                None => "",
                Some(true) => "met",
                Some(false) => "not met",
            }
            .to_owned(),
        ]);
    }
    table
}

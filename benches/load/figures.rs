//! What was measured: of each turn, and of each case the medians over its turns.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cases::Case;
use crate::cpu::ByThread;

/// Latencies, from a nanosecond to a minute, to three digits.
pub struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap())
    }
}

impl Latencies {
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap());
    }

    pub fn add(&mut self, other: &Self) {
        self.0.add(&other.0).unwrap();
    }

    pub fn micros(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }
}

/// What one turn took.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Taken {
    pub calls: u64,
    pub deks_per_s: f64,
    /// CPU of the server, for a DEK.
    pub cpu_us: f64,
    /// The same by the names of its threads.
    pub threads: BTreeMap<String, f64>,
    /// While callers call as fast as they are answered.
    pub busy_p50_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

impl Taken {
    /// Of a loop in one process, that took so many nanoseconds of CPU.
    pub fn closed(latencies: &Latencies, seconds: f64, cpu: u64) -> Self {
        let calls = latencies.0.len();
        let mut taken = Self {
            calls,
            deks_per_s: calls as f64 / seconds,
            cpu_us: cpu as f64 / 1e3 / calls as f64,
            threads: BTreeMap::new(),
            busy_p50_us: latencies.micros(0.5),
            p50_us: 0.0,
            p99_us: 0.0,
            p999_us: 0.0,
        };
        taken.set_latencies(latencies);
        taken
    }

    pub fn of_server(deks: u64, seconds: f64, cpu: &ByThread, busy: &Latencies) -> Self {
        let micros = |nanos: u64| nanos as f64 / 1e3 / deks as f64;
        let threads = cpu.iter().map(|(name, nanos)| (name.clone(), micros(*nanos)));
        Self {
            deks_per_s: deks as f64 / seconds,
            cpu_us: micros(cpu.values().sum()),
            threads: threads.collect(),
            ..Self::closed(busy, seconds, 0)
        }
    }

    pub fn set_latencies(&mut self, latencies: &Latencies) {
        self.p50_us = latencies.micros(0.5);
        self.p99_us = latencies.micros(0.99);
        self.p999_us = latencies.micros(0.999);
    }

    pub fn parse(line: &str) -> Self {
        serde_json::from_str(line).unwrap()
    }
}

/// All turns of all cases.
#[derive(Default)]
pub struct Figures(Vec<(Case, Vec<Taken>)>);

/// Median, least and most over the turns.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let odd = values.len() % 2 == 1;
        let median =
            if odd { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Self { median, min, max })
    }
}

impl Figures {
    pub fn add(&mut self, case: &Case, taken: Taken) {
        match self.0.iter_mut().find(|(known, _)| known == case) {
            Some((_, turns)) => turns.push(taken),
            None => self.0.push((*case, vec![taken])),
        }
    }

    pub fn cases(&self) -> impl Iterator<Item = &Case> {
        self.0.iter().map(|(case, _)| case)
    }

    /// The turns of a case, in their order; none if it was not measured.
    pub fn turns(&self, (name, concurrency): (&str, usize)) -> &[Taken] {
        let mut all = self.0.iter();
        let found = all.find(|(case, _)| (case.name, case.concurrency) == (name, concurrency));
        found.map_or(&[], |(_, turns)| turns)
    }

    pub fn spread(&self, of: (&str, usize), what: impl Fn(&Taken) -> f64) -> Option<Spread> {
        Spread::of(self.turns(of).iter().map(what))
    }

    /// CPU of the server beside that of its parts, turn by turn.
    pub fn ratio(&self, case: &Case) -> Option<Spread> {
        let parts: Vec<_> = case.beside().into_iter().map(|part| self.turns(part)).collect();
        let turns = self.turns((case.name, case.concurrency)).iter().enumerate();
        Spread::of(turns.filter_map(|(number, taken)| {
            let parts = parts.iter().map(|part| part.get(number).map(|part| part.cpu_us));
            Some(taken.cpu_us / parts.sum::<Option<f64>>().filter(|sum| *sum > 0.0)?)
        }))
    }

    pub fn rows(&self) -> Vec<Value> {
        self.0.iter().map(|(case, turns)| self.row(case, turns)).collect()
    }

    fn row(&self, case: &Case, turns: &[Taken]) -> Value {
        let median = |what: fn(&Taken) -> f64| {
            Spread::of(turns.iter().map(what)).map_or(0.0, |spread| spread.median)
        };
        let cpu = self.spread((case.name, case.concurrency), |taken| taken.cpu_us).unwrap();
        let names = turns.iter().flat_map(|taken| taken.threads.keys());
        let threads: BTreeMap<_, _> = names
            .map(|name| {
                let of = |taken: &Taken| taken.threads.get(name).copied().unwrap_or(0.0);
                (name, Spread::of(turns.iter().map(of)).map_or(0.0, |spread| spread.median))
            })
            .collect();
        json!({
            "name": case.name,
            "concurrency": case.concurrency,
            "deks_per_s": median(|taken| taken.deks_per_s),
            "p50_us": median(|taken| taken.p50_us),
            "p99_us": median(|taken| taken.p99_us),
            "p999_us": median(|taken| taken.p999_us),
            "busy_p50_us": median(|taken| taken.busy_p50_us),
            "server_cpu_us_per_dek": cpu.median,
            "server_cpu_us_per_dek_min": cpu.min,
            "server_cpu_us_per_dek_max": cpu.max,
            "server_cpu_us_per_dek_by_thread": threads,
            "ratio": self.ratio(case),
        })
    }

    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(COLUMNS);
        for (case, turns) in &self.0 {
            let row = self.row(case, turns);
            let number = |name: &str| short(row[name].as_f64().unwrap());
            let cpu =
                ["", "_min", "_max"].map(|end| number(&format!("server_cpu_us_per_dek{end}")));
            let ratio =
                self.ratio(case).map_or(String::new(), |ratio| format!("{:.2}", ratio.median));
            let threads = row["server_cpu_us_per_dek_by_thread"].as_object().unwrap().iter();
            let threads = threads.map(|(name, micros)| (name, micros.as_f64().unwrap()));
            let threads: Vec<_> = threads
                .filter(|(_, micros)| *micros >= 0.05)
                .map(|(name, micros)| format!("{name} {micros:.1}"))
                .collect();
            table.add_row([
                case.name.to_owned(),
                case.concurrency.to_string(),
                number("deks_per_s"),
                number("p50_us"),
                number("p99_us"),
                number("p999_us"),
                format!("{} ({}–{})", cpu[0], cpu[1], cpu[2]),
                ratio,
                threads.join(", "),
            ]);
        }
        for column in 1..COLUMNS.len() - 1 {
            table.column_mut(column).unwrap().set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// Three digits.
pub fn short(number: f64) -> String {
    match number {
        number if number >= 100.0 => format!("{number:.0}"),
        number if number >= 10.0 => format!("{number:.1}"),
        number => format!("{number:.2}"),
    }
}

const COLUMNS: [&str; 9] = [
    "case",
    "at once",
    "DEKs/s",
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "server CPU µs/DEK (min–max)",
    "ratio",
    "by thread",
];

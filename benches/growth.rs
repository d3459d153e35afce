//! Draws how the daemon grows with the number of keys and registrations, from what
//! `benches/many_keys.py` and `benches/many_registrations.py` measured: `growth.svg`.
//!
//! `make bench` runs it; by hand: `cargo bench --bench growth -- --out docs/growth.svg`.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on should fail")]

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use serde_json::Value;

/// Draws growth.svg.
#[derive(Parser)]
struct Arguments {
    /// Where the figures are: keys.json, wrapped_keys.json, registrations.json.
    #[arg(long, default_value = "target/bench")]
    figures: PathBuf,
    /// Where to draw.
    #[arg(long, default_value = "target/bench/growth.svg")]
    out: PathBuf,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What grows, with the file of its figures and the column of its number.
struct Series {
    title: &'static str,
    file: &'static str,
    number: &'static str,
    colour: RGBColor,
}

const SERIES: [Series; 3] = [
    Series {
        title: "keys in the token",
        file: "keys.json",
        number: "keys",
        colour: RGBColor(0x2f, 0x6f, 0xb5),
    },
    Series {
        title: "keys that are kept wrapped",
        file: "wrapped_keys.json",
        number: "keys",
        colour: RGBColor(0xc4, 0x6a, 0x1b),
    },
    Series {
        title: "registrations on one key",
        file: "registrations.json",
        number: "registrations",
        colour: RGBColor(0x4b, 0x8b, 0x4b),
    },
];

/// A panel: what it shows, and in which column that is, the first that a row has.
const PANELS: [(&str, &[&str]); 4] = [
    ("CPU of an unwrap, µs", &["unwrap_warm_cpu_us", "unwrap_cpu_us"]),
    ("start to serving, s", &["start_s"]),
    ("memory after the start, MiB", &["memory_mib"]),
    ("a page of 200 of the list, ms", &["list_page_of_200_ms"]),
];

type Line = Vec<(f64, f64)>;

fn main() {
    let Arguments { figures, out, bench: _ } = Arguments::parse();
    let rows = SERIES.map(|series| rows(&figures.join(series.file)));
    let area = SVGBackend::new(&out, (1000, 640)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    for (number, (panel, (title, columns))) in
        area.split_evenly((2, 2)).iter().zip(PANELS).enumerate()
    {
        let lines = [0, 1, 2].map(|which| line(&rows[which], SERIES[which].number, columns));
        draw(panel, title, &lines, number == 0);
    }
    area.present().unwrap();
}

fn rows(path: &Path) -> Vec<Value> {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

fn line(rows: &[Value], number: &str, columns: &[&str]) -> Line {
    let value = |row: &Value| columns.iter().find_map(|column| row[*column].as_f64());
    rows.iter().map(|row| (row[number].as_f64().unwrap(), value(row).unwrap())).collect()
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    title: &str,
    lines: &[Line; 3],
    legend: bool,
) {
    let points = || lines.iter().flatten();
    let most = points().map(|point| point.0).fold(1.0, f64::max);
    let low = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let high = points().map(|point| point.1).fold(0.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 15))
        .margin(10)
        .x_label_area_size(25)
        .y_label_area_size(55)
        .build_cartesian_2d(
            powers(5.0, most * 2.0),
            powers(decade(low, f64::floor), decade(high, f64::ceil)),
        )
        .unwrap();
    chart
        .configure_mesh()
        .x_label_formatter(&f64::to_string)
        .y_label_formatter(&f64::to_string)
        .label_style(("sans-serif", 11))
        .light_line_style(WHITE)
        .draw()
        .unwrap();
    for (Series { title, colour, .. }, line) in SERIES.iter().zip(lines) {
        let drawn = chart.draw_series(LineSeries::new(line.iter().copied(), colour)).unwrap();
        if legend {
            drawn
                .label(*title)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 15, y)], colour));
        }
        let marks = line.iter().map(|point| Circle::new(*point, 3, colour.filled()));
        chart.draw_series(marks).unwrap();
    }
    if legend {
        let mut labels = chart.configure_series_labels();
        let labels = labels.position(SeriesLabelPosition::UpperLeft).label_font(("sans-serif", 11));
        labels.background_style(WHITE.mix(0.8)).draw().unwrap();
    }
}

/// The power of ten next to it, on that side.
fn decade(value: f64, side: fn(f64) -> f64) -> f64 {
    10_f64.powf(side(value.log10()))
}

/// A logarithmic axis.
fn powers(
    low: f64,
    high: f64,
) -> impl AsRangedCoord<CoordDescType: ValueFormatter<f64>, Value = f64> {
    (low..high).log_scale()
}

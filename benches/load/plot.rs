//! target/bench/latest.svg: CPU of the server for a DEK, case by case, with the spread
//! over the turns; and beside the daemon's the sum of its parts.

use std::path::Path;

use plotters::prelude::*;

use crate::cases::What;
use crate::figures::Figures;

pub fn draw(figures: &Figures, path: &Path) {
    let cases: Vec<_> = figures.cases().filter(|case| case.what != What::Commit).collect();
    let bars: Vec<_> = cases
        .iter()
        .map(|case| {
            let spread = figures.spread((case.name, case.concurrency), |taken| taken.cpu_us);
            let parts = figures.ratio(case).map(|ratio| spread.unwrap().median / ratio.median);
            (case.title(), case.what, spread.unwrap(), parts)
        })
        .collect();
    let most = bars.iter().map(|(_, _, spread, _)| spread.max).fold(1.0, f64::max) * 1.05;
    let rows = i32::try_from(bars.len()).unwrap();
    let size = (1000, u32::try_from(80 + ROW * bars.len()).unwrap());
    let area = SVGBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE).unwrap();
    // Segments are there for both ends of the range, which must not be one.
    let segments = 0..(rows - 1).max(1);
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "server CPU for a DEK; line: least to most; mark: gRPC echo + HSM",
            ("sans-serif", 16),
        )
        .margin(10)
        .x_label_area_size(35)
        .y_label_area_size(210)
        .build_cartesian_2d(0.0..most, segments.into_segmented())
        .unwrap();
    let title = |place: &SegmentValue<i32>| match place {
        SegmentValue::CenterOf(row) => title_of(&bars, rows - 1 - row),
        SegmentValue::Exact(_) | SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .x_desc("µs")
        .y_labels(bars.len())
        .y_label_formatter(&title)
        .label_style(("sans-serif", 12))
        .draw()
        .unwrap();
    for (number, (_, what, spread, parts)) in bars.iter().enumerate() {
        let row = rows - 1 - i32::try_from(number).unwrap();
        let (low, middle) = (SegmentValue::Exact(row), SegmentValue::CenterOf(row));
        let corners = [(0.0, low), (spread.median, SegmentValue::Exact(row + 1))];
        let mut bar = Rectangle::new(corners, colour(*what).filled());
        bar.set_margin(3, 3, 0, 0);
        let line =
            PathElement::new([(spread.min, middle.clone()), (spread.max, middle.clone())], BLACK);
        chart.draw_series([bar]).unwrap();
        chart.draw_series([line]).unwrap();
        let mark = parts.map(|parts| Circle::new((parts, middle), 4, BLACK.filled()));
        chart.draw_series(mark).unwrap();
    }
    area.present().unwrap();
}

fn title_of<A, B, C>(bars: &[(String, A, B, C)], number: i32) -> String {
    let number = usize::try_from(number).ok();
    number.and_then(|number| bars.get(number)).map_or(String::new(), |bar| bar.0.clone())
}

fn colour(what: What) -> RGBColor {
    match what {
        What::Hsm(_) | What::NetworkHsm(_) => RGBColor(0xb0, 0xb0, 0xb0),
        What::Echo(_) | What::PerCore(_) | What::Commit => RGBColor(0x9e, 0xc1, 0xe8),
        What::Daemon(_) => RGBColor(0x2f, 0x6f, 0xb5),
        What::Network(..) => RGBColor(0x7a, 0x5f, 0xa8),
    }
}

/// Height of a row, in pixels.
const ROW: usize = 22;

//! Latency, throughput and memory of both models, for every form of the report.

use super::text::{SizeRow, bytes};
use crate::verify::Speed;
use std::fmt::Write;

/// Rows for the table of sizes.
pub fn speed_rows(speed: &Speed) -> Vec<SizeRow> {
    let (a, b) = (&speed.before, &speed.after);
    let times = |x: f64| format!("{x:.2}×");
    let ms = |x: f64| format!("{x:.3} ms");
    let mut rows = vec![
        ("latency", ms(a.median_ms), ms(b.median_ms), times(1.0 / speed.ratio)),
        ("latency p99", ms(a.p99_ms), ms(b.p99_ms), times(a.p99_ms / b.p99_ms)),
        (
            "samples/s",
            format!("{:.1}", a.samples_per_s),
            format!("{:.1}", b.samples_per_s),
            String::new(),
        ),
    ];
    if let (Some(x), Some(y)) = (a.peak_bytes, b.peak_bytes) {
        rows.push(("peak memory", bytes(x), bytes(y), times(x as f64 / y.max(1) as f64)));
    }
    rows
}

/// How long the result takes in parts of the original's time, in words.
pub fn ratio(speed: &Speed) -> String {
    let [low, high] = speed.interval;
    let threads = match speed.threads {
        1 => "one thread".to_owned(),
        n => format!("{n} threads"),
    };
    format!(
        "{:.3} of the original's time (95 % interval {low:.3} to {high:.3}; {}, {threads})",
        speed.ratio, speed.engine
    )
}

/// The account of `bench`, as text.
pub fn bench(speed: &Speed, data: &str) -> String {
    let mut out = String::new();
    let (a, b) = (&speed.before, &speed.after);
    let _ = writeln!(
        out,
        "{} and {} runs in turn, {} pairs of fresh sessions; samples of {data}",
        a.runs, b.runs, speed.sessions
    );
    let head = ["", "median", "p90", "p99", "samples/s", "peak memory"];
    let row = |cells: [&str; 6]| {
        let [name, rest @ ..] = cells;
        let rest: Vec<String> = rest.iter().map(|c| format!("{c:>13}")).collect();
        format!("{name:<3}{}", rest.concat())
    };
    let _ = writeln!(out, "{}", row(head));
    for (name, t) in [("A", a), ("B", b)] {
        let ms = |x: f64| format!("{x:.3} ms");
        let peak = t.peak_bytes.map_or("not measured".into(), bytes);
        let rate = format!("{:.1}", t.samples_per_s);
        let cells = [name, &ms(t.median_ms), &ms(t.p90_ms), &ms(t.p99_ms), &rate, &peak];
        let _ = writeln!(out, "{}", row(cells));
    }
    let ratio = ratio(speed).replace("the original's", "A's");
    let _ = writeln!(out, "B takes {ratio}");
    out
}

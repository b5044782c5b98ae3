//! The account as one HTML file that needs nothing else, no script either: for a phone, a browser, and print.

mod charts;
mod layers;
mod page;
mod plots;

use super::Report;
use super::speed::ratio;
use super::text::{SizeRow, all_rows, bytes, count, db, outcome};
use crate::passes::{Note, NoteKind};
use crate::verify::worst_db;
use page::{Cell, Row, STYLE, details, escaped, table};
use std::fmt::Write;

/// Notes of a pass that are told; the JSON has them all.
const NOTES: usize = 1000;

/// Renders a report.
pub fn render(r: &Report) -> String {
    let mut out = String::new();
    let class = if r.exit_code() == 0 { "ok" } else { "bad" };
    let name = r.input.rsplit(['/', '\\']).next().unwrap_or(&r.input);
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>onnxzip: {0}</title><style>{STYLE}</style></head><body>\
         <h1>onnxzip: {0}</h1><p class=\"verdict {class}\">{1}</p>",
        escaped(name),
        escaped(&outcome(r))
    );
    for w in &r.warnings {
        let _ = write!(out, "<p>⚠ {}</p>", escaped(w));
    }
    tiles(&mut out, r);
    sizes(&mut out, r);
    outputs(&mut out, r);
    search(&mut out, r);
    layers::sizes(&mut out, r);
    layers::noise(&mut out, r);
    charts::ladders(&mut out, r);
    charts::ranges(&mut out, r);
    passes(&mut out, r);
    layers::weights(&mut out, r);
    environment(&mut out, r);
    out += "</body></html>\n";
    out
}

fn percent(x: f64) -> String {
    format!("{:.2} %", x * 100.0)
}

/// A part of the budget.
fn used(part: f64) -> String {
    match part.is_finite() {
        true => format!("{:.0} %", part * 100.0),
        false => "–".into(),
    }
}

/// What one wants to know first.
fn tiles(out: &mut String, r: &Report) {
    let mut all: Vec<(String, String)> = Vec::new();
    let times = |a: u64, b: u64| format!("{:.2}×", a as f64 / b.max(1) as f64);
    let (a, b) = (&r.before, &r.after);
    if b.bytes > 0 {
        let sizes = format!("file: {} → {}", bytes(a.bytes), bytes(b.bytes));
        all.push((times(a.bytes, b.bytes), sizes));
    }
    if let (Some(x), Some(y)) = (a.macs, b.macs)
        && y > 0
    {
        all.push((times(x, y), format!("multiply-adds: {} → {}", count(x), count(y))));
    }
    if let Some(s) = &r.speed {
        let latency = format!("latency: {:.3} → {:.3} ms", s.before.median_ms, s.after.median_ms);
        all.push((format!("{:.2}×", 1.0 / s.ratio), latency));
    }
    let outer = || r.gaps.iter().filter(|g| !g.inner);
    if let Some(acc) = outer().find_map(|g| g.accuracy.as_ref()) {
        let points = 100.0 * (acc.after - acc.before);
        let accuracy = format!("accuracy: {} → {}", percent(acc.before), percent(acc.after));
        all.push((format!("{points:+.2} points"), accuracy));
    }
    if let Some(worst) = worst_db(&r.gaps) {
        let outputs = if outer().count() == 1 {
            "SQNR of the output"
        } else {
            "SQNR of the worst output"
        };
        all.push((db(worst), outputs.into()));
    }
    *out += "<div class=\"tiles\">";
    for (big, small) in all {
        let (big, small) = (escaped(&big), escaped(&small));
        let _ = write!(out, "<div class=\"tile\"><b>{big}</b><span>{small}</span></div>");
    }
    *out += "</div>";
}

fn sizes(out: &mut String, r: &Report) {
    *out += "<h2>Before and after</h2>";
    let cells = |(n, x, y, r): SizeRow| -> Row { (false, vec![n.into(), x.into(), y.into(), r.into()]) };
    *out += &table(&["", "before", "after", "ratio"], all_rows(r).into_iter().map(cells));
    let _ = match &r.speed {
        Some(speed) => write!(out, "<p>The result takes {}.</p>", escaped(&ratio(speed))),
        None => write!(
            out,
            "<p class=\"faint\">Latency, throughput and memory were not measured: <code>--bench</code> puts them here, and \
             <code>onnxzip bench {} {}</code> measures them alone.</p>",
            escaped(&r.input),
            escaped(&r.output)
        ),
    };
}

fn outputs(out: &mut String, r: &Report) {
    if r.gaps.is_empty() {
        return;
    }
    let d = &r.data;
    let _ = write!(
        out,
        "<h2>Outputs</h2><p>{} held-back samples of {}, run by {}; budget {}.</p>",
        d.held_back,
        escaped(&d.whence()),
        escaped(&r.engine),
        escaped(&r.budget.to_string())
    );
    let rows = r.gaps.iter().map(|g| -> Row {
        let name = match g.same_choice {
            Some(same) => format!("{} (chosen inside, {} the same)", g.name, percent(same)),
            None if g.inner => format!("{} (inner)", g.name),
            None => g.name.clone(),
        };
        let accuracy = g.accuracy.as_ref();
        let accuracy = accuracy.map(|a| format!("{} → {}", percent(a.before), percent(a.after)));
        let cells = vec![
            Cell::long(&name),
            db(g.sqnr_db).into(),
            format!("{:.5}", g.cosine).into(),
            g.top1.map_or("–".into(), percent).into(),
            accuracy.unwrap_or("–".into()).into(),
            format!("{:.2e}", g.max_abs).into(),
        ];
        (false, cells)
    });
    *out += &table(&["output", "SQNR", "cosine", "same class", "accuracy", "max |Δ|"], rows);
}

fn search(out: &mut String, r: &Report) {
    if r.search.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<h2>Search: budget used against size</h2><p>Measured on {} tuning samples. Smaller files lie to the left, better ones lie low; the red \
         line is the budget, the grey one joins what nothing else beats. Ringed: taken. Hollow: refused.</p>\
         <div class=\"big\">{}</div><p>",
        r.tuning_samples,
        plots::pareto(&r.search)
    );
    for (name, colour) in plots::families(&r.search) {
        let _ = write!(
            out,
            "<span class=\"key\"><span class=\"dot\" style=\"background:{colour}\"></span>{}</span> ",
            escaped(&name)
        );
    }
    *out += "</p>";
    let front = plots::front(&r.search);
    let rows = r.search.iter().enumerate().map(|(i, t)| -> Row {
        let refused = t.refused.as_ref().map(|why| format!("refused: {why}"));
        let what = Cell::list(&t.passes, refused.as_deref());
        let mark = match (t.chosen, front.contains(&i)) {
            (true, _) => " ★",
            (_, true) => " •",
            _ => "",
        };
        let cells = vec![
            format!("{}{mark}", i + 1).into(),
            what,
            bytes(t.bytes).into(),
            t.macs.map_or("–".into(), count).into(),
            used(t.used).into(),
            db(t.sqnr_db).into(),
            format!("{:.1} s", t.seconds).into(),
        ];
        (t.chosen, cells)
    });
    *out += &table(&["", "passes", "bytes", "MACs", "budget used", "SQNR", "took"], rows);
    *out += "<p class=\"faint\">★ taken, • nothing else is smaller and better.</p>";
}

fn passes(out: &mut String, r: &Report) {
    *out += "<h2>What each pass did and refused</h2>";
    for p in &r.passes {
        let of = |kind| p.notes.iter().filter(move |n| n.kind == kind);
        let (did, left) = (of(NoteKind::Did).count(), of(NoteKind::Skip).count());
        let summary = format!(
            "<code>{}</code>: {}, {left} left alone, {:.2} s",
            escaped(&p.pass),
            match (p.changed, did) {
                (false, _) => "nothing to do".to_owned(),
                (true, 1) => "1 change".to_owned(),
                (true, n) => format!("{n} changes"),
            },
            p.seconds
        );
        if p.notes.is_empty() {
            let _ = write!(out, "<p>{summary}</p>");
            continue;
        }
        let mut body = String::from("<ul>");
        p.notes.iter().take(NOTES).for_each(|n| body += &note(n));
        body += "</ul>";
        if p.notes.len() > NOTES {
            let _ = write!(
                body,
                "<p class=\"faint\">{} more are in the JSON report.</p>",
                p.notes.len() - NOTES
            );
        }
        *out += &details(&summary, &body);
    }
}

fn note(n: &Note) -> String {
    let mark = match n.kind {
        NoteKind::Did => "+",
        NoteKind::Skip => "−",
        NoteKind::Warn => "⚠",
    };
    format!("<li>{mark} <b>{}</b> {}</li>", escaped(&n.node), escaped(&n.what))
}

fn environment(out: &mut String, r: &Report) {
    *out += "<h2>Environment and recipe</h2>";
    let d = &r.data;
    let made_up = if d.synthetic { " (made up)" } else { "" };
    let samples = format!(
        "{} for calibration, {} held back{made_up}, of {}",
        d.calibration,
        d.held_back,
        d.whence()
    );
    let rows = [
        ("onnxzip", r.version.to_owned()),
        ("machine", r.host.clone()),
        ("engine", r.engine.clone()),
        ("samples", samples),
        ("budget", r.budget.to_string()),
        ("seed", r.seed.to_string()),
        ("took", format!("{:.1} s", r.seconds)),
        ("input", r.input.clone()),
        ("output", r.output.clone()),
    ];
    *out += &table(
        &["", ""],
        rows.map(|(name, what)| -> Row { (false, vec![name.into(), Cell::long(&what)]) }),
    );
    let _ = write!(
        out,
        "<p>The same bytes again:</p><pre>{}</pre>{}",
        escaped(&r.command()),
        details(
            "as a recipe, <code>onnxzip.toml</code>",
            &format!("<pre>{}</pre>", escaped(&r.recipe()))
        )
    );
}

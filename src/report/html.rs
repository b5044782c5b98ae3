//! The account as one HTML file that needs nothing else: for a phone, a browser, and print.

use super::speed::ratio;
use super::text::{SizeRow, all_rows, bytes, count, db, outcome};
use super::{Report, WeightSize};
use crate::passes::NoteKind;
use plotters::prelude::*;
use std::fmt::Write;

/// Layers and weights shown in a list; the JSON has them all.
const SHOWN: usize = 40;

const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;color:#1b1f24;background:#fff}\
h1{font-size:1.3rem;overflow-wrap:anywhere}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #d8dee4}\
.verdict{padding:.8rem 1rem;border-radius:.5rem;border-left:.4rem solid;white-space:pre-line;overflow-wrap:anywhere}\
.ok{background:#e6f6ec;border-color:#1a7f37}.bad{background:#ffebe9;border-color:#cf222e}\
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}th,td{padding:.25rem .6rem;text-align:right;\
border-bottom:1px solid #eaeef2;white-space:nowrap}th:first-child,td:first-child,td.l{text-align:left}\
td.l{white-space:normal;overflow-wrap:anywhere}tr.on{background:#fff8c5}\
.bar{display:block;height:.5rem;min-width:1px;background:#0969da;border-radius:.2rem}.bar.n{background:#bf3989}\
svg{max-width:100%;height:auto}details{margin:.4rem 0}summary{cursor:pointer}li{overflow-wrap:anywhere}\
@media(max-width:40rem){body{font-size:14px}th,td{padding:.2rem .3rem}}\
@media print{details{display:block}details>*{display:block}.wide{overflow:visible}}";

/// Renders a report.
pub fn render(r: &Report) -> String {
    let mut out = String::new();
    let class = if r.exit_code() == 0 { "ok" } else { "bad" };
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width,initial-scale=1\"><title>onnxzip: {0}</title><style>{STYLE}</style></head><body>\
         <h1>onnxzip: {0}</h1><p class=\"verdict {class}\">{1}</p>",
        escaped(&r.input),
        escaped(&outcome(r))
    );
    sizes(&mut out, r);
    outputs(&mut out, r);
    search(&mut out, r);
    layers(&mut out, r);
    weights(&mut out, "Largest weights before", &r.weights_before);
    weights(&mut out, "Largest weights after", &r.weights_after);
    passes(&mut out, r);
    environment(&mut out, r);
    out += "</body></html>\n";
    out
}

fn table(out: &mut String, head: &[&str], rows: impl IntoIterator<Item = (bool, Vec<String>)>) {
    *out += "<div class=\"wide\"><table><thead><tr>";
    head.iter().for_each(|h| *out += &format!("<th>{h}</th>"));
    *out += "</tr></thead><tbody>";
    for (on, cells) in rows {
        *out += if on { "<tr class=\"on\">" } else { "<tr>" };
        for c in cells {
            // A cell that begins with a tag was made here.
            *out += &if c.starts_with("<td") {
                c
            } else {
                format!("<td>{}</td>", escaped(&c))
            };
        }
        *out += "</tr>";
    }
    *out += "</tbody></table></div>";
}

fn long(text: &str) -> String {
    format!("<td class=\"l\">{}</td>", escaped(text))
}

fn bar(part: f64, class: &str) -> String {
    let width = (part.clamp(0.0, 1.0) * 100.0).max(0.5);
    format!("<td style=\"min-width:6rem\"><span class=\"bar {class}\" style=\"width:{width:.1}%\"></span></td>")
}

fn sizes(out: &mut String, r: &Report) {
    *out += "<h2>Size</h2>";
    let cells = |(n, x, y, r): SizeRow| (false, vec![n.to_owned(), x, y, r]);
    let rows = all_rows(r).into_iter().map(cells);
    table(out, &["", "before", "after", "ratio"], rows);
    if let Some(speed) = &r.speed {
        let _ = write!(out, "<p>The result takes {}.</p>", escaped(&ratio(speed)));
    }
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
    let percent = |x: f64| format!("{:.2} %", x * 100.0);
    let rows = r.gaps.iter().map(|g| {
        let name = if g.inner {
            format!("{} (inner)", g.name)
        } else {
            g.name.clone()
        };
        let accuracy = g
            .accuracy
            .as_ref()
            .map(|a| format!("{} → {}", percent(a.before), percent(a.after)));
        let cells = vec![
            long(&name),
            db(g.sqnr_db),
            format!("{:.5}", g.cosine),
            g.top1.map_or("–".into(), percent),
            accuracy.unwrap_or("–".into()),
            format!("{:.2e}", g.max_abs),
        ];
        (false, cells)
    });
    table(
        out,
        &["output", "SQNR", "cosine", "same class", "accuracy", "max |Δ|"],
        rows,
    );
}

fn search(out: &mut String, r: &Report) {
    if r.search.is_empty() {
        return;
    }
    let _ = write!(
        out,
        "<h2>Search</h2><p>Measured on {} tuning samples; the coloured one was taken. \
         Smaller files lie to the left, better ones lie low; the line is the budget.</p>",
        r.tuning_samples
    );
    *out += &curve(r).unwrap_or_default();
    let rows = r.search.iter().map(|t| {
        let macs = t.macs.map_or("–".into(), count);
        let what = t
            .refused
            .as_ref()
            .map_or(t.passes.clone(), |w| format!("{} – refused: {w}", t.passes));
        let used = format!("{:.0} %", t.used * 100.0);
        (t.chosen, vec![long(&what), bytes(t.bytes), macs, used, db(t.sqnr_db)])
    });
    table(out, &["passes", "bytes", "MACs", "budget used", "SQNR"], rows);
}

/// Part of the budget used against bytes, as SVG.
fn curve(r: &Report) -> Option<String> {
    let most = r.search.iter().map(|t| t.bytes).max()? as f64 / 1e3;
    let limit = 2.0;
    let point = |used: f64| used.clamp(0.0, limit);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (720, 360)).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..most * 1.05, 0.0..limit)
            .ok()?;
        chart
            .configure_mesh()
            .x_desc("kB")
            .y_desc("part of the budget used (cut at 2)")
            .light_line_style(WHITE)
            .draw()
            .ok()?;
        let line = [(0.0, 1.0), (most * 1.05, 1.0)];
        chart.draw_series(LineSeries::new(line, &RED)).ok()?;
        let dots = r.search.iter().map(|t| {
            let style = if t.chosen { GREEN.filled() } else { BLUE.filled() };
            Circle::new(
                (t.bytes as f64 / 1e3, point(t.used)),
                if t.chosen { 7 } else { 4 },
                style,
            )
        });
        chart.draw_series(dots).ok()?;
        area.present().ok()?;
    }
    Some(svg)
}

fn layers(out: &mut String, r: &Report) {
    let Some(first) = r.layers.first() else { return };
    let _ = write!(
        out,
        "<h2>Where noise comes in</h2><p>Noise that each layer adds to what came in, on a few held-back samples; \
         the {} worst of {}.</p>",
        r.layers.len().min(SHOWN),
        r.layers.len()
    );
    let scale = if first.added.is_finite() {
        first.added.max(f64::MIN_POSITIVE)
    } else {
        1.0
    };
    let rows = r.layers.iter().take(SHOWN).map(|l| {
        let cells = vec![long(&l.node), l.op.clone(), db(l.sqnr_db), bar(l.added / scale, "n")];
        (false, cells)
    });
    table(out, &["layer", "operator", "SQNR after it", "noise added"], rows);
}

fn weights(out: &mut String, title: &str, all: &[WeightSize]) {
    let Some(first) = all.first() else { return };
    let _ = write!(out, "<h2>{title}</h2>");
    let scale = first.bytes.max(1) as f64;
    let rows = all.iter().take(SHOWN).map(|w| {
        let dims: Vec<String> = w.dims.iter().map(usize::to_string).collect();
        let size = bar(w.bytes as f64 / scale, "");
        (
            false,
            vec![long(&w.name), w.dtype.clone(), dims.join("×"), bytes(w.bytes), size],
        )
    });
    table(out, &["weight", "type", "dimensions", "bytes", ""], rows);
}

fn passes(out: &mut String, r: &Report) {
    *out += "<h2>Passes</h2>";
    for p in &r.passes {
        let did = p.notes.iter().filter(|n| n.kind == NoteKind::Did).count();
        let left = p.notes.iter().filter(|n| n.kind == NoteKind::Skip).count();
        let _ = write!(
            out,
            "<details><summary><code>{}</code>: {did} changes, {left} left alone, {:.2} s</summary><ul>",
            escaped(&p.pass),
            p.seconds
        );
        for n in &p.notes {
            let mark = match n.kind {
                NoteKind::Did => "+",
                NoteKind::Skip => "−",
                NoteKind::Warn => "!",
            };
            let _ = write!(out, "<li>{mark} <b>{}</b> {}</li>", escaped(&n.node), escaped(&n.what));
        }
        *out += "</ul></details>";
    }
}

fn environment(out: &mut String, r: &Report) {
    *out += "<h2>Again</h2>";
    for w in &r.warnings {
        let _ = write!(out, "<p>⚠ {}</p>", escaped(w));
    }
    let d = &r.data;
    let _ = write!(
        out,
        "<p>onnxzip {}, {}, seed {}; {} calibration and {} held-back samples of {}; {:.1} s. The same bytes again:</p><p><code>{}</code></p><details><summary>as a recipe, \
         <code>onnxzip.toml</code></summary><pre>{}</pre></details>",
        r.version,
        escaped(&r.engine),
        r.seed,
        d.calibration,
        d.held_back,
        escaped(&d.whence()),
        r.seconds,
        escaped(&r.command()),
        escaped(&r.recipe())
    );
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() && c != '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

//! The account as text for a terminal or a log.

use super::speed::{ratio, speed_rows};
use super::{PassRun, Report, Size};
use crate::passes::{Note, NoteKind};
use crate::verify::{OutputGap, Verdict, worst};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Of more nodes than this, of which the same is to be said,
const MANY: usize = 4;
/// so many are named; the JSON report names all.
const NAMED: usize = 3;

/// Renders a report; `verbose` adds what the passes say of every node.
pub fn render(report: &Report, verbose: bool) -> String {
    let mut out = String::new();
    if !report.search.is_empty() {
        searched(&mut out, report);
    }
    for p in &report.passes {
        pass(&mut out, p, verbose);
    }
    table(&mut out, report);
    let d = &report.data;
    if !report.gaps.is_empty() {
        let _ = writeln!(
            out,
            "\n{} held-back samples of {}, run by {}:",
            d.held_back,
            d.whence(),
            report.engine
        );
        gaps(&mut out, &report.gaps);
    }
    for w in &report.warnings {
        let _ = writeln!(out, "warning: {w}");
    }
    let _ = writeln!(out, "{}", outcome(report));
    out
}

/// What was tried, and what was taken.
fn searched(out: &mut String, r: &Report) {
    let n = r.tuning_samples;
    let _ = writeln!(
        out,
        "searched, measured on {n} tuning samples (used: of the budget {}):",
        r.budget
    );
    let _ = writeln!(
        out,
        "  {:>9} {:>9} {:>7} {:>9}  passes",
        "bytes", "MACs", "used", "SQNR"
    );
    for t in &r.search {
        let mark = if t.chosen { '*' } else { ' ' };
        let (size, macs) = (bytes(t.bytes), t.macs.map_or("–".into(), count));
        let (used, sqnr) = (format!("{:.0} %", t.used * 100.0), db(t.sqnr_db));
        let _ = writeln!(out, "{mark} {size:>9} {macs:>9} {used:>7} {sqnr:>9}  {}", t.passes);
        if let Some(made) = &t.made {
            let _ = writeln!(out, "  {:>37}  with all samples: {made}", "");
        }
        if let Some(why) = &t.refused {
            let _ = writeln!(out, "  {:>37}  refused: {why}", "");
        }
    }
    let cached = r.search.iter().filter(|t| t.cached).count();
    if cached > 0 {
        let _ = writeln!(out, "  {cached} of {} were measured by an earlier run", r.search.len());
    }
    out.push('\n');
}

/// A ratio in dB.
pub fn db(x: f64) -> String {
    match x == f64::INFINITY {
        true => "equal".into(),
        false => format!("{x:.1} dB"),
    }
}

fn pass(out: &mut String, p: &PassRun, verbose: bool) {
    let count = |kind| p.notes.iter().filter(|n| n.kind == kind).count();
    let (did, skipped) = (count(NoteKind::Did), count(NoteKind::Skip));
    let what = match (p.changed, did) {
        (false, _) => "nothing to do".to_owned(),
        (true, 1) => "1 change".to_owned(),
        (true, n) => format!("{n} changes"),
    };
    let left = if skipped > 0 {
        format!(", {skipped} left alone")
    } else {
        String::new()
    };
    let _ = writeln!(out, "{:<12} {:>7.2} s   {what}{left}", p.pass, p.seconds);
    let shown = p.notes.iter().filter(|n| n.kind == NoteKind::Warn || verbose);
    notes(out, &shown.collect::<Vec<_>>());
}

/// A line for each note; one for all that say the same of many nodes, where the first of them stands.
fn notes(out: &mut String, notes: &[&Note]) {
    let mut nodes = BTreeMap::<(NoteKind, &str), Vec<&str>>::new();
    for n in notes {
        nodes.entry((n.kind, &n.what)).or_default().push(&n.node);
    }
    for n in notes {
        let mark = match n.kind {
            NoteKind::Did => '+',
            NoteKind::Skip => '-',
            NoteKind::Warn => '!',
        };
        let key = (n.kind, &*n.what);
        let node = match nodes.get(&key) {
            None => continue, // said already
            Some(all) if all.len() > MANY => {
                let line = format!("{} and {} more", all[..NAMED].join(", "), all.len() - NAMED);
                nodes.remove(&key);
                line
            }
            Some(_) => n.node.clone(),
        };
        let colon = if node.is_empty() { "" } else { ": " };
        let _ = writeln!(out, "  {mark} {node}{colon}{}", n.what);
    }
}

/// A row of the table of sizes: what, before, after, ratio.
pub type SizeRow = (&'static str, String, String, String);

fn size_rows(a: &Size, b: &Size) -> Vec<SizeRow> {
    let ratio = |x: u64, y: u64| match y {
        0 => String::new(),
        _ => format!("{:.2}×", x as f64 / y as f64),
    };
    let counted = |name, x: u64, y: u64| (name, count(x), count(y), ratio(x, y));
    let mut rows = vec![
        ("file", bytes(a.bytes), bytes(b.bytes), ratio(a.bytes, b.bytes)),
        ("nodes", a.nodes.to_string(), b.nodes.to_string(), String::new()),
        counted("parameters", a.params, b.params),
    ];
    if let (Some(x), Some(y)) = (a.macs, b.macs) {
        rows.push(counted("MACs", x, y));
    }
    rows
}

fn table(out: &mut String, report: &Report) {
    let head = ("", "before".into(), "after".into(), String::new());
    for (name, x, y, r) in std::iter::once(head).chain(all_rows(report)) {
        let _ = writeln!(out, "{name:<12} {x:>12} {y:>12}   {r}");
    }
    if let Some(speed) = &report.speed {
        let _ = writeln!(out, "the result takes {}", ratio(speed));
    }
}

/// The table of sizes, and of speed where that was measured.
pub fn all_rows(r: &Report) -> Vec<SizeRow> {
    let mut rows = size_rows(&r.before, &r.after);
    rows.extend(r.speed.iter().flat_map(speed_rows));
    rows
}

/// Renders what was measured of outputs.
pub fn gaps(out: &mut String, gaps: &[OutputGap]) {
    let width = gaps
        .iter()
        .map(|g| g.name.chars().count())
        .max()
        .unwrap_or(0)
        .clamp(6, 40);
    let _ = writeln!(
        out,
        "{:<width$} {:>9} {:>9} {:>9} {:>11}",
        "output", "SQNR", "cosine", "top-1", "max |Δ|"
    );
    let chosen = |output: &str| gaps.iter().any(|g| g.chosen && g.name == output);
    for g in gaps {
        let name: String = g.name.chars().take(width).collect();
        let sqnr = db(g.sqnr_db);
        let top1 = g.top1.map_or("–".into(), |t| format!("{:.2} %", t * 100.0));
        let mut notes = String::new();
        match &g.part_of {
            _ if let Some(same) = g.same_choice => {
                let same = 100.0 * same;
                notes += &format!("  (chosen inside, {same:.1} % the same; all else is compared under one choice)");
            }
            Some(output) if chosen(output) => notes += &format!("  ({output} is chosen from it)"),
            Some(output) => notes += &format!("  (a part of {output})"),
            None if g.inner => notes += "  (before the last nonlinearity)",
            None if g.chosen => notes += "  (chosen from the values below, which the budget is about)",
            None => {}
        }
        if let Some(a) = &g.accuracy {
            let (before, after) = (a.before * 100.0, a.after * 100.0);
            notes += &format!("  accuracy {before:.2} → {after:.2} % of {}", a.samples);
        }
        if g.constant {
            notes += "  (the original is constant here)";
        }
        let _ = writeln!(
            out,
            "{name:<width$} {sqnr:>9} {:>9.5} {top1:>9} {:>11.3e}{notes}",
            g.cosine, g.max_abs
        );
    }
}

/// The way out where tract cannot run a model.
pub const ELSEWHERE: &str = "; ONNX Runtime may run it (--engine ort)";

/// The verdict, why, and what was written.
pub fn outcome(r: &Report) -> String {
    let placed = match (r.written, r.may_leave()) {
        (true, true) => format!("wrote {}", r.output),
        (true, false) => format!("wrote {} all the same (--keep)", r.output),
        (false, _) => format!("{} was NOT written", r.output),
    };
    let culprit = r
        .culprit
        .as_ref()
        .map_or(String::new(), |c| format!("\n  first broken {c}"));
    let layers = worst(&r.layers, 5).map_or(String::new(), |w| format!("\n  most noise comes in at {w}"));
    let (seconds, budget) = (r.seconds, &r.budget);
    match &r.verdict {
        Verdict::Same => format!("OK: outputs are equal bit for bit; {placed} in {seconds:.1} s"),
        Verdict::Within => format!("OK: within budget {budget}; {placed} in {seconds:.1} s"),
        Verdict::Outside(why) => format!("FAILED: {why}{culprit}{layers}\n  {placed}"),
        Verdict::Vacuous(why) => format!("NOT VERIFIED: {why}\n  {placed}"),
        Verdict::NotRun(why) if r.unverified => format!("NOT VERIFIED: {why}\n  {placed} in {seconds:.1} s"),
        Verdict::NotRun(why) => {
            let elsewhere = if r.on_ort() { "" } else { ELSEWHERE };
            format!("NOT VERIFIED: {why}\n  {placed}{elsewhere}; --no-verify lets it out unseen")
        }
    }
}

/// Bytes in decimal units.
pub fn bytes(n: u64) -> String {
    match n {
        0..1000 => format!("{n} B"),
        1000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// A count in decimal units.
pub fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_of_many_nodes_is_one_line() {
        let note = |node: &str, what: &str| Note {
            kind: NoteKind::Did,
            node: node.into(),
            what: what.into(),
        };
        let mut all: Vec<Note> = (0..6).map(|i| note(&format!("c{i}"), "folded")).collect();
        all.insert(2, note("conv", "8 bits"));
        all.extend((0..2).map(|i| note(&format!("r{i}"), "removed")));
        let mut out = String::new();
        notes(&mut out, &all.iter().collect::<Vec<_>>());
        let lines = "  + c0, c1, c2 and 3 more: folded\n  + conv: 8 bits\n  + r0: removed\n  + r1: removed\n";
        assert_eq!(out, lines);
    }
}

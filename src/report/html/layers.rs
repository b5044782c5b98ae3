//! What layers cost, where noise comes in, and the weights.

use super::super::text::{bytes, count, db};
use super::super::{Report, WeightSize};
use super::page::{Cell, Row, details, escaped, folded, table};
use std::fmt::Write;

/// Rows that are not folded.
const SHOWN: usize = 24;
/// Weights that are listed; the JSON has them all.
const WEIGHTS: usize = 50;

/// Bytes and multiply-adds, layer by layer, the largest first.
pub fn sizes(out: &mut String, r: &Report) {
    let size = |l: &crate::report::LayerSize| l.bytes_before.max(l.bytes_after);
    let mut all: Vec<&crate::report::LayerSize> = r.layer_sizes.iter().collect();
    all.sort_by_key(|l| std::cmp::Reverse(size(l)));
    let Some(first) = all.first() else { return };
    let most = size(first).max(1) as f64;
    let _ = write!(
        out,
        "<h2>Size by layer</h2><p>All {} layers with weights or multiply-adds, the largest first: \
         <span class=\"key\"><span class=\"dot\" style=\"background:#9ca3af\"></span>before</span> \
         <span class=\"key\"><span class=\"dot\" style=\"background:#3b82f6\"></span>after</span></p>",
        all.len()
    );
    let macs = |m: Option<u64>| m.map_or("?".into(), count);
    let rows = all.iter().map(|l| -> Row {
        let bars = [(l.bytes_before as f64 / most, "was"), (l.bytes_after as f64 / most, "")];
        let after = if l.gone {
            "gone".to_owned()
        } else {
            bytes(l.bytes_after)
        };
        let work = match l.macs_before == l.macs_after {
            true => macs(l.macs_before),
            false => format!("{} → {}", macs(l.macs_before), macs(l.macs_after)),
        };
        let cells = vec![
            Cell::long(&l.node),
            l.op.as_str().into(),
            bytes(l.bytes_before).into(),
            after.into(),
            work.into(),
            l.passes.join(", ").into(),
            Cell::bars(&bars),
        ];
        (false, cells)
    });
    *out += &folded(
        &["layer", "operator", "before", "after", "MACs", "changed by", ""],
        rows.collect(),
        SHOWN,
        "layers",
    );
}

/// The damage of every layer whose value both models have.
pub fn noise(out: &mut String, r: &Report) {
    let Some(first) = r.layers.first() else { return };
    let _ = write!(
        out,
        "<h2>Sensitivity: where noise comes in</h2><p>What each layer adds to the noise that it was given, in parts of its own power, on a few \
         held-back samples; the {} layers whose values both models have, the worst first.</p>",
        r.layers.len()
    );
    let scale = match first.added.is_finite() {
        true => first.added.max(f64::MIN_POSITIVE),
        false => 1.0,
    };
    let rows = r.layers.iter().map(|l| -> Row {
        let added = match l.added > 0.0 {
            true => format!("{:.1e}", l.added),
            false => "–".to_owned(),
        };
        let cells = vec![
            Cell::long(&l.node),
            l.op.as_str().into(),
            db(l.sqnr_db).into(),
            added.into(),
            Cell::bars(&[(l.added / scale, "n")]),
        ];
        (false, cells)
    });
    *out += &folded(
        &["layer", "operator", "SQNR after it", "added", ""],
        rows.collect(),
        SHOWN,
        "layers",
    );
}

/// The weights of both models.
pub fn weights(out: &mut String, r: &Report) {
    if r.weights_before.is_empty() && r.weights_after.is_empty() {
        return;
    }
    *out += "<h2>Weights</h2>";
    for (when, all) in [("Before", &r.weights_before), ("After", &r.weights_after)] {
        let sum = all.iter().map(|w| w.bytes).sum();
        let summary = format!("{when}: {} tensors, {}", all.len(), bytes(sum));
        *out += &details(&summary, &largest(all));
    }
}

fn largest(all: &[WeightSize]) -> String {
    let most = all.first().map_or(1, |w| w.bytes.max(1)) as f64;
    let rows = all.iter().take(WEIGHTS).map(|w| -> Row {
        let dims: Vec<String> = w.dims.iter().map(usize::to_string).collect();
        let cells = vec![
            Cell::long(&w.name),
            w.dtype.as_str().into(),
            dims.join("×").into(),
            bytes(w.bytes).into(),
            Cell::bars(&[(w.bytes as f64 / most, "")]),
        ];
        (false, cells)
    });
    let mut out = table(&["weight", "type", "dimensions", "bytes", ""], rows);
    if all.len() > WEIGHTS {
        let more = format!("{} smaller ones are in the JSON report.", all.len() - WEIGHTS);
        let _ = write!(out, "<p class=\"faint\">{}</p>", escaped(&more));
    }
    out
}

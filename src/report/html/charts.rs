//! What passes chose from: distributions with ranges, errors against ranks and channels.

use super::super::Report;
use super::super::text::db;
use super::page::{escaped, gallery};
use super::plots;
use crate::passes::Chart;
use crate::passes::charts::{Curve, Range};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Figures that are not folded.
const SHOWN: usize = 24;
/// Figures of one kind: so many keep the page below 3 MB.
const MOST: usize = 300;

/// A number with four digits that count.
fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        a if !(1e-3..1e5).contains(&a) => format!("{x:.3e}"),
        a => format!("{x:.*}", (3 - a.log10().floor() as i32).max(0) as usize),
    }
}

/// The distributions of quantized values, those first that lose most.
pub fn ranges(out: &mut String, r: &Report) {
    let charts = r.passes.iter().flat_map(|p| &p.charts);
    let mut all: Vec<&Range> = charts
        .filter_map(|c| if let Chart::Range(r) = c { Some(r) } else { None })
        .collect();
    if all.is_empty() {
        return;
    }
    all.sort_by(|a, b| a.sqnr_db.total_cmp(&b.sqnr_db).then_with(|| a.value.cmp(&b.value)));
    let _ = write!(
        out,
        "<h2>Ranges of activations</h2><p>How the values of {} quantized activations are distributed on the calibration data (logarithm of counts, \
         zeros left out), and between which ends (red) the codes lie. Those that lose most come first.</p>",
        all.len()
    );
    *out += &gallery(all.into_iter().map(range).collect(), SHOWN, MOST, "activations");
}

fn range(r: &Range) -> String {
    let [low, high] = r.hull();
    let share = |x: f64| match x {
        0.0 => "nothing".to_owned(),
        x if x < 1e-4 => "less than 0.01 %".into(),
        x => format!("{:.2} %", 100.0 * x),
    };
    format!(
        "<figure>{}<figcaption><span class=\"ends\"><span>{}</span><span>{}</span></span><b>{}</b>\
         [{}, {}], {}<br>{} clipped, {} zero; {}, scale {}, zero point {}; {}</figcaption></figure>",
        plots::distribution(r),
        short(low),
        short(high),
        escaped(&r.value),
        short(r.range[0]),
        short(r.range[1]),
        escaped(&r.method),
        share(r.clipped),
        share(r.zeros),
        r.codes,
        short(r.scale),
        r.zero_point,
        db(r.sqnr_db)
    )
}

/// What ranks, and channels that go, cost.
pub fn ladders(out: &mut String, r: &Report) {
    let mut by_kind: BTreeMap<&str, Vec<&Curve>> = BTreeMap::new();
    for c in r.passes.iter().flat_map(|p| &p.charts) {
        if let Chart::Curve(c) = c {
            by_kind.entry(c.along).or_default().push(c);
        }
    }
    for (along, mut curves) in by_kind {
        curves.sort_by_key(|c| c.rungs.iter().all(|r| !r.chosen));
        let taken = curves.iter().filter(|c| c.rungs.iter().any(|r| r.chosen)).count();
        let _ = write!(
            out,
            "<h2>Error against {along}</h2><p>Predicted from calibration data, layer by layer: {taken} of {} were changed, which come first. Dots are what could be done, \
             what was done is ringed.</p>",
            curves.len()
        );
        *out += &gallery(curves.into_iter().map(curve).collect(), SHOWN, MOST, "layers");
    }
}

fn curve(c: &Curve) -> String {
    let words = match c.rungs.iter().find(|r| r.chosen) {
        Some(r) => format!("{}: {} {:.1} dB", r.what, c.of, r.error_db),
        None => "left as it is".into(),
    };
    format!(
        "<figure>{}<figcaption><b>{}</b>{}</figcaption></figure>",
        plots::ladder(c),
        escaped(&c.node),
        escaped(&words)
    )
}

//! What the report says of operators: their ranges and weights, what stays in floating point because integers would be slower, and a summary.

use super::place::{self, Placement};
use super::units::Units;
use super::weights::Weight;
use crate::ir::{Model, ValueId};
use crate::math::affine::Affine;
use crate::passes::{Context, NoteKind};
use std::collections::BTreeMap;

/// One line about an operator with a weight.
pub fn describe(input: &Affine, output: Option<&Affine>, weight: &Weight) -> String {
    let range = |a: &Affine| format!("[{:.4}, {:.4}]", a.range().0, a.range().1);
    let out = output.map_or("float".to_owned(), range);
    let codes = if input.kind.signed() { "s8" } else { "u8" };
    let bits = match weight.kind.bits() {
        8 => String::new(),
        bits => format!(" in {bits} bits"),
    };
    format!("{codes} {} → {out}, weight{bits} {:.1} dB", range(input), weight.sqnr)
}

/// Says which operators with weights stay in floating point because integers would not be faster.
pub fn slower(
    model: &Model,
    units: &Units,
    placement: &Placement,
    elements: &BTreeMap<ValueId, u64>,
    cx: &mut Context,
) {
    let all = units
        .all
        .iter()
        .zip(&placement.integer)
        .filter(|(u, i)| u.is_weighted() && !**i);
    for (u, _) in all.filter(|(u, _)| place::can_run(u, elements)) {
        let (float, int) = u.nanoseconds(elements);
        let what = format!(
            "stays in floating point: integers would not be faster, conversions around it included ({:.0} µs in floating point, {:.0} µs \
             in integers); prefer=size stores its weight in 8 bits all the same",
            float / 1e3,
            int / 1e3
        );
        cx.skip(model, u.node, what);
    }
}

/// One line: how many operators of each kind run in integers, and what else is left.
pub fn summary(model: &Model, units: &Units, placement: &Placement, cx: &mut Context) {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    let mut stored: BTreeMap<&str, usize> = BTreeMap::new();
    for (id, n) in model.nodes() {
        let quantized = units.of_node.get(&id).filter(|i| placement.integer[**i]);
        let integer = quantized.is_some_and(|i| !units.all[*i].is_stored());
        let interesting = integer || crate::ops::quant::role(model, id).is_some();
        if quantized.is_some() && !integer {
            *stored.entry(&n.op.name).or_default() += 1;
        }
        if interesting && n.graph() == model.main_id() {
            let c = counts.entry(&n.op.name).or_default();
            c.0 += usize::from(integer);
            c.1 += 1;
        }
    }
    let (ints, floats): (Vec<_>, Vec<_>) = counts.iter().partition(|(_, c)| c.0 > 0);
    let ints: Vec<String> = ints.iter().map(|(op, c)| format!("{} of {} {op}", c.0, c.1)).collect();
    let floats: Vec<String> = floats.iter().map(|(op, c)| format!("{} {op}", c.1)).collect();
    let mut what = match ints.is_empty() {
        true => "in integers: nothing".to_owned(),
        false => format!("in integers: {}", ints.join(", ")),
    };
    if !floats.is_empty() {
        what += &format!("; in floating point: {}", floats.join(", "));
    }
    if !stored.is_empty() {
        let stored: Vec<String> = stored.iter().map(|(op, n)| format!("{n} {op}")).collect();
        what += &format!(", the weights of {} in 8 bits", stored.join(", "));
    }
    cx.note(NoteKind::Did, String::new(), what);
}

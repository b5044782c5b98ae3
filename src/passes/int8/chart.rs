//! For the report: how the quantized values are distributed, and which ranges their codes cover.

use super::place::Placement;
use super::ranges::{Method, Scales};
use super::target::Codes;
use super::units::Units;
use crate::analysis::stats::Stats;
use crate::ir::{Model, ValueId};
use crate::passes::charts::{Chart, Range, bins, decibel, outside};

/// The charts of all quantized values that were measured.
pub fn charts(
    model: &Model,
    units: &Units,
    placement: &Placement,
    scales: &Scales,
    stats: &Stats,
    how: (Method, Codes),
) -> Vec<Chart> {
    let of = |v: &ValueId| {
        let (h, affine) = (stats.histogram(*v)?, scales.of(*v)?);
        let (min, max) = h.minmax()?;
        let (low, high) = affine.range();
        let range = [f64::from(low), f64::from(high)];
        let half = f64::from(affine.scale) / 2.0;
        // What lies within half a step of an end is rounded to it, not cut off.
        let (clipped, power) = outside(&h, [range[0] - half, range[1] + half]);
        let noise = h.expected_error_of(affine);
        let mut chart = Range {
            value: model.value(*v).name.clone(),
            method: scales.words(model, units, placement, stats, how, *v)?,
            range,
            seen: [f64::from(min), f64::from(max)],
            clipped,
            zeros: h.zeros as f64 / h.count().max(1) as f64,
            scale: f64::from(affine.scale),
            zero_point: affine.zero_point,
            codes: if affine.kind.signed() { "s8" } else { "u8" },
            sqnr_db: match noise > 0.0 {
                true => decibel(power / noise),
                false => f64::INFINITY,
            },
            bins: Vec::new(),
        };
        chart.bins = bins(&h, chart.hull());
        Some(Chart::Range(chart))
    };
    placement.quantized.iter().filter_map(of).collect()
}

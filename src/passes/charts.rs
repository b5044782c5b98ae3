//! What a pass gives the report to draw: how values are distributed and which range was chosen, what a choice at a layer costs.
//!
//! Bounded: a distribution is cut into [`BINS`] bins, a curve into [`POINTS`] points.

use crate::math::histogram::Histogram;
use serde::Serialize;

/// Bins of a distribution that is drawn.
pub const BINS: usize = 64;
/// Points of a curve.
pub const POINTS: usize = 32;

/// Something to draw.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Chart {
    /// The range that the codes of a value cover.
    Range(Range),
    /// What a choice at a layer costs.
    Curve(Curve),
}

/// The distribution of a value on the calibration data, and the range that its codes cover.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Range {
    /// The value.
    pub value: String,
    /// How the range was chosen, in words.
    pub method: String,
    /// What the least and the largest code stand for.
    pub range: [f64; 2],
    /// The least and the largest value seen.
    pub seen: [f64; 2],
    /// The share of values that lie outside of the range.
    pub clipped: f64,
    /// The share of values that are exactly zero: they are left out of the bins.
    pub zeros: f64,
    /// Distance between neighbouring codes.
    pub scale: f64,
    /// The code of zero.
    pub zero_point: i32,
    /// The codes: `u8` or `s8`.
    pub codes: &'static str,
    /// Power of the values against that of what rounding and clipping add, dB, as the distribution predicts it; infinite
    /// (in JSON: null) when nothing is lost.
    pub sqnr_db: f64,
    /// Counts in [`BINS`] bins of equal width, from the lesser lower end of `range` and `seen` to the larger upper end. Not in JSON.
    #[serde(skip)]
    pub bins: Vec<f64>,
}

impl Range {
    /// The ends of what the bins cover.
    pub fn hull(&self) -> [f64; 2] {
        [self.range[0].min(self.seen[0]), self.range[1].max(self.seen[1])]
    }
}

/// Predicted error against something that is chosen at a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curve {
    /// The layer.
    pub node: String,
    /// What is chosen: `rank`, or `channels removed`.
    pub along: &'static str,
    /// The error: of what.
    pub of: &'static str,
    /// `[choice, error in dB]`.
    pub points: Vec<[f64; 2]>,
    /// What could be done.
    pub rungs: Vec<Rung>,
}

/// One thing that could be done at a layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rung {
    /// In words.
    pub what: String,
    /// Its place along the curve.
    pub at: f64,
    /// Its predicted error, dB.
    pub error_db: f64,
    /// True for what was done.
    pub chosen: bool,
}

/// A ratio of powers in dB; an error of nothing stands at −300.
pub fn decibel(ratio: f64) -> f64 {
    10.0 * ratio.max(1e-30).log10()
}

/// At most [`POINTS`] of the errors at 1, 2, …, closer together at the small end.
pub fn curve(errors: &[f64]) -> Vec<[f64; 2]> {
    let last = errors.len();
    let mut places: Vec<usize> = match last <= POINTS {
        true => (1..=last).collect(),
        false => (0..POINTS)
            .map(|i| (last as f64).powf(i as f64 / (POINTS - 1) as f64).round() as usize)
            .map(|k| k.clamp(1, last))
            .collect(),
    };
    places.dedup();
    places.into_iter().map(|k| [k as f64, decibel(errors[k - 1])]).collect()
}

/// The nonzero values of a distribution in [`BINS`] bins of equal width between two ends.
pub fn bins(h: &Histogram, [low, high]: [f64; 2]) -> Vec<f64> {
    let mut out = vec![0.0; BINS];
    let width = (high - low) / BINS as f64;
    if !(width > 0.0 && width.is_finite()) {
        return out;
    }
    each(h, |from, to, n| {
        let place = ((from + to) / 2.0 - low) / width;
        out[(place.max(0.0) as usize).min(BINS - 1)] += n;
    });
    out
}

/// The share of all values that lie outside of a range, and the mean of their squares.
pub fn outside(h: &Histogram, [low, high]: [f64; 2]) -> (f64, f64) {
    let (mut out, mut power) = (0.0, 0.0);
    each(h, |from, to, n| {
        let within = match to > from {
            true => (to.min(high) - from.max(low)).max(0.0) / (to - from),
            false => f64::from(low <= from && from <= high),
        };
        out += n * (1.0 - within);
        power += n * (from * from + from * to + to * to) / 3.0;
    });
    let count = h.count().max(1) as f64;
    (out / count, power / count)
}

/// Ends and counts of the bins that are not empty, cut to what was seen; zeros are left out.
fn each(h: &Histogram, mut f: impl FnMut(f64, f64, f64)) {
    let Some((min, max)) = h.range.minmax() else { return };
    let (min, max) = (f64::from(min), f64::from(max));
    let (first, counts) = h.bins();
    for (i, n) in (i64::from(first)..).zip(counts) {
        let n = if i == 0 { n.saturating_sub(h.zeros) } else { n };
        if n > 0 {
            let (from, to) = (i as f64 * h.resolution(), (i + 1) as f64 * h.resolution());
            f(from.max(min).min(to), to.min(max).max(from), n as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_of_a_range_is_counted_and_bins_keep_all_nonzero_values() {
        let values: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
        let mut h = Histogram::new();
        h.add(&values);
        let (clipped, power) = outside(&h, [0.0, 0.75]);
        assert!((clipped - 0.25).abs() < 0.01, "{clipped}");
        assert!((power - 1.0 / 3.0).abs() < 0.01, "{power}");
        h.add(&[1.0; 50]);
        assert_eq!(
            outside(&h, [0.0, 1.0]).0,
            0.0,
            "the largest value stands alone in its bin"
        );
        assert_eq!(bins(&h, [0.0, 1.0]).iter().sum::<f64>(), 1049.0);
        assert_eq!(bins(&Histogram::new(), [0.0, 0.0]), vec![0.0; BINS]);
    }

    #[test]
    fn a_long_curve_is_thinned_and_keeps_its_ends() {
        let errors: Vec<f64> = (1..=500).map(|k| 1.0 / k as f64).collect();
        let points = curve(&errors);
        assert!(points.len() <= POINTS);
        assert_eq!((points[0], points[points.len() - 1][0]), ([1.0, 0.0], 500.0));
        assert!(points.windows(2).all(|w| w[0][0] < w[1][0] && w[0][1] > w[1][1]));
        assert_eq!(curve(&errors[..3]).len(), 3);
        assert!(curve(&[]).is_empty());
    }
}

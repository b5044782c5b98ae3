//! Which range of each value the codes cover.
//!
//! Values joined by operators that keep the scale share one range. A range always holds zero, ends where an absorbed
//! `Relu` or `Clip` does, and is fixed for operators whose output is bounded by nature. What a Concat alone reads takes the
//! Concat's own scale: codes are then copied, and rounded once instead of twice.

use super::place::{Placement, scale_roots};
use super::target::Codes;
use super::units::{Unit, Units};
use crate::analysis::stats::Stats;
use crate::ir::{Model, ValueId};
use crate::math::affine::{Affine, IntKind};
use crate::math::histogram::Histogram;
use crate::math::spread::Spread;
use crate::ops::quant::Role;
use anyhow::{Context as _, Result, bail};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// How a range is chosen from the distribution of a value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// What was measured to be best in general: everything, except where outliers would drown the rest.
    Auto,
    /// Everything that was seen.
    MinMax,
    /// All but one value in ten thousand.
    Percentile,
    /// Least mean squared error.
    Mse,
    /// Least Kullback-Leibler divergence.
    Kl,
}

/// The choices, as the option spells them.
pub const METHODS: &str = "auto|minmax|percentile|mse|kl";

impl FromStr for Method {
    type Err = anyhow::Error;
    fn from_str(s: &str) -> Result<Method> {
        Ok(match s {
            "auto" => Method::Auto,
            "minmax" => Method::MinMax,
            "percentile" => Method::Percentile,
            "mse" => Method::Mse,
            "kl" => Method::Kl,
            _ => bail!("there is no method {s:?}"),
        })
    }
}

/// What a method makes of a distribution.
#[derive(Clone, Copy)]
pub struct Chosen {
    /// The range that codes are to cover.
    pub range: (f32, f32),
    /// The share of the nonzero elements that become the code of zero: they lie within half a step of it. A few
    /// outliers stretch the range of residual streams in transformers so far that nearly all else is lost (Dettmers et
    /// al. 2022, "LLM.int8()"), while the squared error, which the outliers dominate, looks harmless.
    pub lost: f64,
}

impl Chosen {
    fn of(spread: &Spread, range: (f32, f32)) -> Chosen {
        Chosen {
            range,
            lost: lost(spread, range),
        }
    }
}

fn lost(spread: &Spread, (low, high): (f32, f32)) -> f64 {
    let h = spread.usual().map_or(spread.all(), Cow::Owned); // its bins are finer
    let half = f64::from(high - low) / 255.0 / 2.0;
    let (first, counts) = h.bins();
    let nonzero = h.count().saturating_sub(h.zeros);
    let mut near = 0.0;
    for (i, &n) in (i64::from(first)..).zip(&counts) {
        let n = if i == 0 { n.saturating_sub(h.zeros) } else { n };
        let inner = if i < 0 { -(i + 1) } else { i } as f64 * h.resolution();
        near += n as f64 * ((half - inner) / h.resolution()).clamp(0.0, 1.0);
    }
    if nonzero == 0 { 0.0 } else { near / nonzero as f64 }
}

/// What a method makes of all values that were measured, up to where anything depends on them: a long search through each
/// distribution.
pub fn all(method: Method, values: &BTreeSet<ValueId>, stats: &Stats, units: &Units) -> BTreeMap<ValueId, Chosen> {
    let of = |v: &ValueId| {
        let spread = stats.spread(*v)?;
        let made = units.producer.get(v).map(|p| &units.all[*p]);
        if let Some(Role::Fixed(low, high)) = made.map(|u| u.role) {
            return Some((*v, Chosen::of(spread, (low, high))));
        }
        let cut = made.map(|u| spread.clamped(u.limits));
        let spread = cut.as_ref().unwrap_or(spread);
        Some((*v, Chosen::of(spread, method.range(spread)?)))
    };
    let found: Vec<_> = values.par_iter().filter_map(of).collect();
    found.into_iter().collect()
}

impl Method {
    /// The range of a distribution; `None` when nothing was seen.
    fn range(self, spread: &Spread) -> Option<(f32, f32)> {
        let h = spread.all();
        match self {
            Method::MinMax => h.minmax(),
            Method::Percentile => h.percentile_range(99.99),
            Method::Auto => cautious(spread),
            Method::Mse => h.mse_range(IntKind::U8),
            Method::Kl => h.kl_range(IntKind::U8),
        }
    }
}

/// Everything that was seen, unless leaving outliers out makes the squared error so much smaller that the rest would drown.
///
/// Large values carry decisions: their error is not worth the same as that of small ones. Measured with 128 images,
/// squeezenet has 18.6 dB with all of the range and 16.0 dB with the range of least squared error, efficientnet_lite0 19.3 dB and
/// 19.6 dB (weights rounded to nearest).
///
/// The same for whole samples: where few of them reach far beyond all others, what these reach is enough if errors then become so
/// much smaller in the mean over samples, although the few are cut off.
fn cautious(spread: &Spread) -> Option<(f32, f32)> {
    let h = spread.all();
    let all = unless_drowned(&h)?;
    let usual = spread.usual().and_then(|h| unless_drowned(&h));
    let error = |range| spread.relative_error(range, IntKind::U8);
    Some(usual.filter(|u| error(all) > DROWNED * error(*u)).unwrap_or(all))
}

/// 6 dB.
const DROWNED: f64 = 4.0;

fn unless_drowned(h: &Histogram) -> Option<(f32, f32)> {
    let (all, least) = (h.minmax()?, h.mse_range(IntKind::U8)?);
    let error = |range| h.expected_error(range, IntKind::U8);
    Some(if error(all) > DROWNED * error(least) {
        least
    } else {
        all
    })
}

/// The parameters of every quantized value, and the value that first had them.
pub struct Scales {
    /// For each quantized value the one whose parameters it shares.
    pub roots: BTreeMap<ValueId, ValueId>,
    affine: BTreeMap<ValueId, Affine>,
    /// Roots that have the scale of the Concat behind them.
    shared: BTreeSet<ValueId>,
}

impl Scales {
    /// The parameters of a quantized value.
    pub fn of(&self, v: ValueId) -> Option<&Affine> {
        self.affine.get(self.roots.get(&v)?)
    }
}

/// Chooses the parameters of all quantized values.
///
/// # Errors
/// When a value was not measured, or its range is not finite.
pub fn choose(
    model: &Model,
    units: &Units,
    placement: &Placement,
    chosen: &BTreeMap<ValueId, Chosen>,
    codes: Codes,
) -> Result<Scales> {
    let mut scales = Scales {
        roots: scale_roots(units, placement),
        affine: BTreeMap::new(),
        shared: BTreeSet::new(),
    };
    let roots: BTreeSet<ValueId> = scales.roots.values().copied().collect();
    for root in roots {
        let affine = of_root(model, units, placement, chosen, codes, root)?;
        scales.affine.insert(root, affine);
    }
    for i in (0..units.all.len()).rev().filter(|&i| placement.integer[i]) {
        if model.node(units.all[i].node).is("Concat") {
            scales.share(model, units, placement, i);
        }
    }
    Ok(scales)
}

fn of_root(
    model: &Model,
    units: &Units,
    placement: &Placement,
    chosen: &BTreeMap<ValueId, Chosen>,
    codes: Codes,
    root: ValueId,
) -> Result<Affine> {
    let unit = maker(units, placement, root);
    if let Some(Role::Fixed(low, high)) = unit.map(|u| u.role) {
        return codes.cover(low, high);
    }
    let name = &model.value(root).name;
    let known = chosen.get(&root).with_context(|| format!("{name} was not measured"))?;
    cover(codes, unit, known.range)
}

/// The operator in integers that makes a value.
fn maker<'a>(units: &'a Units, placement: &Placement, v: ValueId) -> Option<&'a Unit> {
    let unit = units.producer.get(&v).filter(|p| placement.integer[**p]);
    unit.map(|p| &units.all[*p])
}

/// Codes for a range, as far as its maker lets values reach.
fn cover(codes: Codes, maker: Option<&Unit>, (min, max): (f32, f32)) -> Result<Affine> {
    let (low, high) = maker.map_or((f32::NEG_INFINITY, f32::INFINITY), |u| u.limits);
    codes.cover(min.clamp(low, high), max.clamp(low, high))
}

impl Scales {
    /// Gives what Concat `i` reads the scale of what it gives out, where the Concat is the only reader or the scales are
    /// close, and no absorbed clip is lost.
    fn share(&mut self, model: &Model, units: &Units, placement: &Placement, i: usize) {
        /// A scale so much larger costs other readers 2 dB.
        const CLOSE: f32 = 1.26;
        let unit = &units.all[i];
        let Some(&out) = unit.results.first().and_then(|v| self.of(*v)) else {
            return;
        };
        for (_, v) in &unit.inputs {
            let Some(&root) = self.roots.get(v) else { continue };
            let Some(own) = self.affine.get(&root) else { continue };
            let Some(producer) = units.producer.get(&root).filter(|p| placement.integer[**p]) else {
                continue;
            };
            let p = &units.all[*producer];
            let alone = self.readers(model, units, root).iter().all(|r| *r == i);
            let (low, high) = (p.limits.0 - out.scale, p.limits.1 + out.scale);
            let clips_kept = low <= out.range().0 && out.range().1 <= high;
            let rescales = !matches!(p.role, Role::Same | Role::Fixed(..)) || alone && p.role != Role::Same;
            if clips_kept && rescales && (alone || out.scale <= CLOSE * own.scale) {
                self.affine.insert(root, out);
                self.shared.insert(root);
            }
        }
    }

    /// The units that read any value with this root, as far as they set a scale of their own; a reader that is no unit counts as
    /// `usize::MAX`.
    fn readers(&self, model: &Model, units: &Units, root: ValueId) -> Vec<usize> {
        let mut all = Vec::new();
        for (v, _) in self.roots.iter().filter(|(_, r)| **r == root) {
            let (readers, others) = units.readers(model, *v);
            all.extend(readers.into_iter().filter(|r| units.all[*r].role != Role::Same));
            if others > 0 {
                all.push(usize::MAX);
            }
        }
        all
    }

    /// How the range of a quantized value was chosen, in words.
    pub fn words(
        &self,
        model: &Model,
        units: &Units,
        placement: &Placement,
        stats: &Stats,
        (method, codes): (Method, Codes),
        v: ValueId,
    ) -> Option<String> {
        let (root, affine) = (*self.roots.get(&v)?, *self.of(v)?);
        if root != v {
            return Some(format!("that of {}", model.value(root).name));
        }
        if self.shared.contains(&root) {
            return Some("that of the Concat behind it".into());
        }
        let unit = maker(units, placement, root);
        if let Some(Role::Fixed(..)) = unit.map(|u| u.role) {
            return Some("fixed by the operator".into());
        }
        let all = cover(codes, unit, stats.histogram(root)?.minmax()?).ok();
        let name = match method {
            Method::Auto if all == Some(affine) => "auto: all that was seen",
            Method::Auto => "auto: without outliers",
            Method::MinMax => "all that was seen",
            Method::Percentile => "all but one in ten thousand",
            Method::Mse => "least squared error",
            Method::Kl => "least divergence (KL)",
        };
        Some(name.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples that reach to 1, but for some, which reach to `far`.
    fn spread(samples: usize, far: f32, stands_out: impl Fn(usize) -> bool) -> Spread {
        let mut all = Spread::default();
        for i in 0..samples {
            let size = if stands_out(i) { far } else { 1.0 };
            let values: Vec<f32> = (0..=1000).map(|k| size * (k as f32 / 1000.0)).collect();
            let mut h = Histogram::new();
            h.add(&values);
            all.merge(&Spread::of(h));
        }
        all
    }

    #[test]
    fn auto_leaves_out_samples_that_are_rare_and_far_from_the_rest() {
        let high = |s: &Spread| Method::Auto.range(s).expect("values").1;
        assert_eq!(high(&spread(300, 200.0, |i| i == 7)), 1.0);
        assert_eq!(high(&spread(300, 200.0, |i| i % 20 == 7)), 200.0, "not rare");
        assert_eq!(high(&spread(300, 3.0, |i| i == 7)), 3.0, "not far");
        let all = spread(300, 200.0, |i| i == 7);
        assert_eq!(Method::MinMax.range(&all), Some((0.0, 200.0)));
    }
}

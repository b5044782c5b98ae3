//! What integers do to the outputs of the model on calibration samples, and which operators do most of it.
//!
//! The float model and the quantized one run side by side on a few samples. `r(v)` is the noise power of a value over its
//! signal power. An operator adds `r(output) − max r(input)`, all before the values' own Q/DQ pairs, except where the pair
//! clips as well: the rounding of its inputs and of its weight. When an output of the model errs by more than asked, the inputs of those that add most are not quantized
//! any more, and with them neither are the operators on both sides; then all is written again.

use super::place::Placement;
use super::units::Units;
use crate::analysis::ends;
use crate::data::Samples;
use crate::ir::{Model, NodeId, ValueId};
use crate::math::compare::Gap;
use crate::parallel::in_order;
use crate::passes::{Context, noise};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

/// Samples that are looked at: powers are means over many elements, so a few say enough.
const SAMPLES: usize = 4;
/// Part of the operators whose inputs are given up at first.
const FIRST: f64 = 0.01;
/// How many times as many each further round gives up.
const MORE: f64 = 1.6;

/// The float model, the quantized one, and what stands in the latter for values whose clips are gone.
pub struct Pair<'a> {
    /// As it was.
    pub float: &'a Model,
    /// With Q/DQ pairs.
    pub quantized: &'a Model,
    /// Other names of values in the quantized model.
    pub moved: &'a BTreeMap<ValueId, ValueId>,
}

/// An operator, and what it adds to the noise of what it gives out, relative to the signal.
pub struct Harm {
    /// Its number among the units.
    pub unit: usize,
    /// The operator.
    pub node: NodeId,
    /// Noise power over signal power.
    pub added: f64,
}

/// The samples that are looked at.
pub fn samples(cx: &Context) -> Samples {
    cx.samples.every(cx.samples.len().div_ceil(SAMPLES).max(1), 0)
}

impl Pair<'_> {
    /// The operators in integers that add most noise, worst first: as many as are to be given up in this round.
    ///
    /// # Errors
    /// When a sample fails.
    pub fn worst(&self, units: &Units, placement: &Placement, round: u32, cx: &Context) -> Result<Vec<Harm>> {
        let integer = || units.all.iter().enumerate().filter(|(i, _)| placement.integer[*i]);
        let values: BTreeSet<ValueId> = integer()
            .flat_map(|(_, u)| u.inputs.iter().map(|x| x.1).chain(u.results.iter().copied()))
            .collect();
        let values: Vec<ValueId> = values.into_iter().collect();
        let stands_for = |v: &ValueId| self.moved.get(v).map_or(*v, |v| ends::as_read(self.quantized, *v));
        let there: Vec<ValueId> = values.iter().map(stands_for).collect();
        let noise = self.noise(&values, &there, cx)?;
        let noise: BTreeMap<ValueId, f64> = values
            .into_iter()
            .zip(noise)
            .filter_map(|(v, n)| Some((v, n?)))
            .collect();
        let most = |values: &mut dyn Iterator<Item = ValueId>| {
            values.filter_map(|v| noise.get(&v)).copied().fold(0.0, f64::max)
        };
        let mut all: Vec<Harm> = integer()
            .map(|(unit, u)| {
                let before = most(&mut u.inputs.iter().map(|x| x.1));
                let added = most(&mut u.results.iter().copied()) - before;
                Harm {
                    unit,
                    node: u.node,
                    added,
                }
            })
            .collect();
        all.sort_by(|a, b| b.added.total_cmp(&a.added).then(a.unit.cmp(&b.unit)));
        let share = (FIRST * MORE.powi(round as i32)).min(1.0);
        all.truncate((all.len() as f64 * share).ceil() as usize);
        Ok(all)
    }

    /// Noise over signal of values, `None` where they are no floats; infinite when a number is lost.
    fn noise(&self, float: &[ValueId], quantized: &[ValueId], cx: &Context) -> Result<Vec<Option<f64>>> {
        let samples = samples(cx);
        let first = samples.get(0)?;
        let load = |model, values: &[ValueId]| cx.engine.load(model, values, &first);
        let (one, other) = (load(self.float, float)?, load(self.quantized, quantized)?);
        let mut gaps = vec![Gap::new(); float.len()];
        let run = |i: usize| {
            let sample = samples.get(i)?;
            Ok((one.run(&sample)?, other.run(&sample)?))
        };
        // Two models with many values each: one sample at a time.
        in_order(samples.len(), 1, run, |_, (a, b)| noise::add(&mut gaps, &a, &b))?;
        Ok(gaps.iter().map(Gap::noise).collect())
    }
}

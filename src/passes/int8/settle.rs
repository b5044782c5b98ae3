//! What integers do to the outputs of the model on calibration samples, and which operators are to blame.
//!
//! The float model and the quantized one run on a few samples. Where an output errs by more than asked, the same is tried with equalized
//! channels ([`super::equalize`]), which help some networks much and others not, so that the outputs decide; and then operators are given up: their
//! inputs are not quantized any more, and then all is written again. Which ones, the outputs tell, not the values between: one
//! layer may carry nearly all of the error of a network in which all layers look alike (the stem of a YOLOX-nano took its outputs from
//! 17 dB to 9 dB, while a hundred others cost nothing that could be measured), and large relative errors of a value may not matter.
//! Powers of independent noise add up, so what a stretch of operators (in the order in which they run) does is the error with it less the error
//! without it: stretches that do most harm are halved, as in group testing, until single ones are left or trials run out. Errors also
//! saturate: a decision that either half turns is turned with either of them left out. Then it counts how much each half does alone.

use super::place::Placement;
use super::ranges::Scales;
use super::units::{Unit, Units};
use super::{Int8, Seen, Weights, account, chart, equalize, integer, order, place, ranges};
use crate::data::Samples;
use crate::ir::{Model, ValueId};
use crate::passes::noise::Reference;
use crate::passes::planes::Packer;
use crate::passes::{Context, NoteKind, tables};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// Samples that are looked at: powers are means over many elements, so a few say enough.
const SAMPLES: usize = 4;
/// How often operators are given up because an output errs too much.
const ROUNDS: u32 = 4;
/// How many stretches are left out, one at a time, to see what they do, in each round.
const TRIALS: usize = 24;
/// Operators are given up until this part of the limit is left, as far as the trials tell.
const LEFT: f64 = 0.8;
/// Halves that together take away less than this part of what the whole does are to blame together.
const TOGETHER: f64 = 0.5;

/// What became of a model.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It has Q/DQ pairs now.
    Quantized,
    /// Nothing can be in integers.
    Nothing,
    /// The rival is better: nothing was changed.
    Beaten,
}

/// The same function, quantized in another way.
pub struct Rival<'a> {
    reference: &'a Reference,
    /// How much its outputs err.
    error: f64,
}

/// Elements per sample of the values that can be quantized.
pub type Elements = BTreeMap<ValueId, u64>;

/// A model with Q/DQ pairs.
struct Attempt {
    placement: Placement,
    scales: Scales,
    model: Model,
    /// So many notes were there before it was written.
    written: usize,
}

/// Operators that run one after the other: where they stand among those in integers, and by how much outputs err because of them.
#[derive(Clone, Debug, PartialEq)]
struct Stretch {
    first: usize,
    end: usize,
    /// Noise power over signal power.
    harm: f64,
    /// It does its harm as a whole.
    whole: bool,
}

/// The samples that are looked at.
fn samples(cx: &Context) -> Samples {
    let samples = cx.samples.deciding();
    samples.every(samples.len().div_ceil(SAMPLES).max(1), 0)
}

impl Int8 {
    /// Writes Q/DQ pairs; where an output errs too much, with equalized channels, or again with less in integers. What was said of the
    /// model begins with the note of number `start`.
    ///
    /// # Errors
    /// When a sample fails, or a value cannot be quantized.
    pub(super) fn settle(
        &self,
        model: &mut Model,
        units: &Units,
        mut elements: Elements,
        (seen, weights): (&Seen, &mut Weights),
        (rival, start): (Option<&Rival>, usize),
        cx: &mut Context,
    ) -> Result<Outcome> {
        let kept = cx.notes.len();
        let (few, aside) = (samples(cx), cx.aside());
        // Large weights are rounded one at a time, which does not keep all threads busy.
        let (first, reference) = rayon::join(
            || self.attempt(model, units, &elements, (seen, weights), cx),
            || rival.is_none().then(|| Reference::new(model, &few, &aside)).transpose(),
        );
        let Some(mut attempt) = first? else {
            cx.leave("no operator with a weight can run in integers");
            return Ok(Outcome::Nothing);
        };
        let own = reference?;
        let reference = own
            .as_ref()
            .or(rival.map(|r| r.reference))
            .context("one of both is given")?;
        let mut now = reference.error(&attempt.model, cx)?;
        match rival {
            Some(rival) if now >= rival.error => return Ok(Outcome::Beaten),
            None if now > self.error && self.equal(model, &Rival { reference, error: now }, start, cx)? => {
                return Ok(Outcome::Quantized);
            }
            _ => {}
        }
        let mut given_up: Vec<(usize, f64)> = Vec::new();
        // What is chosen by a few samples does worse on others.
        let limit = reference.careful(self.error);
        let mut allowed = if rival.is_some() { limit } else { self.error };
        for round in 0..ROUNDS {
            if round > 0 {
                (now, allowed) = (reference.error(&attempt.model, cx)?, self.error);
            }
            if now <= allowed {
                break;
            }
            let all: Vec<usize> = (0..units.all.len()).filter(|i| attempt.placement.integer[*i]).collect();
            let mut without = |some: &[usize]| {
                let fewer = less(&elements, units, some);
                let attempt = self.attempt(model, units, &fewer, (seen, weights), cx)?;
                attempt.map_or(Ok(0.0), |a| reference.error(&a.model, cx))
            };
            for stretch in worst(&all, now, limit, &mut without)? {
                let some = &all[stretch.first..stretch.end];
                elements = less(&elements, units, some);
                given_up.extend(some.iter().map(|unit| (*unit, stretch.harm)));
            }
            cx.notes.truncate(kept);
            for (unit, harm) in &given_up {
                let what = format!(
                    "its inputs stay in floating point: integers here, and in what is given up with it, would add {harm:.2e} to the relative error of the outputs"
                );
                cx.skip(model, units.all[*unit].node, what);
            }
            let Some(fewer) = self.attempt(model, units, &elements, (seen, weights), cx)? else {
                cx.leave(format_args!(
                    "wherever integers were tried, the outputs err by more than error={}",
                    self.error
                ));
                return Ok(Outcome::Nothing);
            };
            attempt = fewer;
        }
        self.finish(model, units, attempt, (seen, weights), cx)?;
        Ok(Outcome::Quantized)
    }

    /// Quantizes the model with equalized channels, where that is better.
    fn equal(&self, model: &mut Model, rival: &Rival, start: usize, cx: &mut Context) -> Result<bool> {
        let Some(mut equal) = equalize::equalized(model, &order(model)?, cx)? else {
            return Ok(false);
        };
        let said = cx.notes.split_off(start);
        let outcome = self.measured(&mut equal.model, &equal.ends, Some(rival), cx)?;
        if outcome != Outcome::Quantized {
            cx.notes.truncate(start);
            cx.notes.extend(said);
            return Ok(false);
        }
        let what = format!(
            "{} layers make channels of equal reach for depthwise convolutions",
            equal.layers
        );
        cx.note(NoteKind::Did, String::new(), what);
        *model = equal.model;
        Ok(true)
    }

    /// Puts in integers what may be and gains by it; `None` when there is no weight among it.
    fn attempt(
        &self,
        model: &Model,
        units: &Units,
        elements: &Elements,
        (seen, weights): (&Seen, &mut Weights),
        cx: &mut Context,
    ) -> Result<Option<Attempt>> {
        let placement = place::choose(model, units, elements, (self.prefer, self.target.timed));
        account::slower(model, units, &placement, elements, cx);
        if !integer(units, &placement).any(Unit::is_weighted) {
            return Ok(None);
        }
        let scales = ranges::choose(model, units, &placement, &seen.ranges, self.target.codes)?;
        self.round(model, integer(units, &placement), &scales, seen, weights)?;
        let written = cx.notes.len();
        let mut quantized = model.clone();
        self.write(&mut quantized, units, &placement, &scales, weights, cx)?;
        Ok(Some(Attempt {
            placement,
            scales,
            model: quantized,
            written,
        }))
    }

    /// Takes fewer bits where asked, and tells the ranges.
    fn finish(
        &self,
        model: &mut Model,
        units: &Units,
        mut attempt: Attempt,
        (seen, weights): (&Seen, &mut Weights),
        cx: &mut Context,
    ) -> Result<()> {
        let Attempt {
            placement,
            scales,
            written,
            model: quantized,
        } = &mut attempt;
        if self.mixed > 0.0 {
            cx.notes.truncate(*written);
            let tables = self.narrow(model, (units, placement), scales, seen, weights, cx)?;
            *quantized = model.clone();
            self.write(quantized, units, placement, scales, weights, cx)?;
            tables::narrow::apply(quantized, &tables, &mut Packer::default(), cx)?;
        }
        let how = (self.ranges, self.target.codes);
        cx.charts
            .extend(chart::charts(model, units, placement, scales, seen.stats, how));
        *model = attempt.model;
        Ok(())
    }
}

/// The values that can be quantized when the inputs of some operators are not.
fn less(elements: &Elements, units: &Units, some: &[usize]) -> Elements {
    let mut fewer = elements.clone();
    for (_, v) in some.iter().flat_map(|i| &units.all[*i].inputs) {
        fewer.remove(v);
    }
    fewer
}

/// The stretches to give up, of few operators that do much harm, for an error of `now` to fall to `limit`. `without` tells the error without some.
fn worst(
    all: &[usize],
    now: f64,
    limit: f64,
    without: &mut impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<Stretch>> {
    let mut stretches = told_apart(all, now.min(f64::MAX), limit, without)?;
    let mut fits = |some: &[Stretch]| {
        let some: Vec<usize> = some.iter().flat_map(|s| &all[s.first..s.end]).copied().collect();
        anyhow::Ok(without(&some)? <= limit)
    };
    // As few as will do: what adds up does so only about.
    let (mut few, mut many) = (0, stretches.len());
    while many - few > 1 {
        let middle = few.midpoint(many);
        let enough = fits(&stretches[..middle])?;
        *(if enough { &mut many } else { &mut few }) = middle;
    }
    stretches.truncate(many);
    // And as little of the last as will do.
    while let Some(last) = stretches.pop_if(|s| !s.whole) {
        let mut smaller = false;
        for half in last.halves(last.harm / 2.0, last.harm / 2.0) {
            stretches.push(half);
            smaller = fits(&stretches)?;
            if smaller {
                break;
            }
            stretches.pop();
        }
        if !smaller {
            stretches.push(last);
            break;
        }
    }
    Ok(stretches)
}

/// All operators in stretches, those first of which few do much harm.
fn told_apart(
    all: &[usize],
    now: f64,
    limit: f64,
    without: &mut impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<Stretch>> {
    let mut left = TRIALS;
    let harm = |s: &Stretch, most: f64, without: &mut dyn FnMut(&[usize]) -> Result<f64>| {
        let less = now - without(&all[s.first..s.end])?.min(f64::MAX);
        anyhow::Ok(less.clamp(0.0, most))
    };
    let alone = |s: &Stretch, most: f64, without: &mut dyn FnMut(&[usize]) -> Result<f64>| {
        let others = [&all[..s.first], &all[s.end..]].concat();
        anyhow::Ok(without(&others)?.clamp(0.0, most))
    };
    let mut stretches = vec![Stretch::new(0, all.len(), now)];
    loop {
        stretches.sort_by(|a, b| b.density().total_cmp(&a.density()).then(a.first.cmp(&b.first)));
        let wide = (0..enough(&stretches, now - LEFT * limit)).filter(|k| !stretches[*k].whole);
        let most = wide.max_by(|a, b| stretches[*a].harm.total_cmp(&stretches[*b].harm));
        let (Some(k), true) = (most, left > 0) else {
            return Ok(stretches);
        };
        let whole = stretches[k].harm;
        let [a, b] = stretches[k].halves(0.0, 0.0);
        let mut one = harm(&a, whole, without)?;
        left -= 1;
        // The larger part is measured, never inferred.
        let mut other = match one < whole / 2.0 && left > 0 {
            true => {
                left -= 1;
                harm(&b, whole, without)?
            }
            false => whole - one,
        };
        if one + other < TOGETHER * whole && left > 1 {
            left -= 2;
            (one, other) = (alone(&a, whole, without)?, alone(&b, whole, without)?);
            let sum = (one + other).max(f64::MIN_POSITIVE);
            let part = if sum > whole { whole / sum } else { 1.0 };
            (one, other) = (one * part, other * part);
        }
        if one + other < TOGETHER * whole {
            stretches[k].whole = true;
            continue;
        }
        let halves = stretches[k].halves(one, other);
        stretches.splice(k..=k, halves);
    }
}

/// How many of the stretches, from the first on, take so much of the error away; one at least.
fn enough(stretches: &[Stretch], wanted: f64) -> usize {
    let mut sum = 0.0;
    let reached = stretches.iter().position(|s| {
        sum += s.harm;
        sum >= wanted
    });
    reached.map_or(stretches.len(), |k| k + 1)
}

impl Stretch {
    fn new(first: usize, end: usize, harm: f64) -> Stretch {
        let whole = end - first < 2;
        Stretch {
            first,
            end,
            harm,
            whole,
        }
    }

    fn halves(&self, one: f64, other: f64) -> [Stretch; 2] {
        let middle = self.first.midpoint(self.end);
        [
            Stretch::new(self.first, middle, one),
            Stretch::new(middle, self.end, other),
        ]
    }

    fn density(&self) -> f64 {
        self.harm / (self.end - self.first).max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Finds what is to be given up when operators do this harm; with the number of trials.
    fn found(harm: impl Fn(&[usize]) -> f64, n: usize, limit: f64) -> (Vec<usize>, usize) {
        let all: Vec<usize> = (0..n).collect();
        let mut trials = 0;
        let mut without = |some: &[usize]| {
            trials += 1;
            let rest: Vec<usize> = all.iter().filter(|i| !some.contains(i)).copied().collect();
            Ok(harm(&rest))
        };
        let found = worst(&all, harm(&all), limit, &mut without).expect("trials run");
        let mut units: Vec<usize> = found.iter().flat_map(|s| s.first..s.end).collect();
        units.sort();
        (units, trials)
    }

    #[test]
    fn one_operator_among_many_is_found() {
        let sum = |some: &[usize]| some.iter().map(|&i| if i == 37 { 0.1 } else { 1e-4 }).sum();
        let (units, trials) = found(sum, 150, 0.05);
        assert_eq!(units, [37]);
        assert!(trials <= 20, "{trials} trials");
    }

    #[test]
    fn two_that_do_harm_only_together_are_found_together_or_one_of_them() {
        // The outputs err when either is in integers.
        let either = |some: &[usize]| {
            if some.contains(&6) || some.contains(&9) {
                0.3
            } else {
                0.0
            }
        };
        let (units, _) = found(either, 16, 0.05);
        assert!(units.contains(&6) && units.contains(&9), "{units:?}");
        assert!(units.len() <= 4, "{units:?}");
    }

    #[test]
    fn an_error_that_saturates_does_not_take_all() {
        // Half of them do nearly as much as all.
        let saturated = |some: &[usize]| 0.07 * (1.0 - 0.97f64.powi(some.len() as i32));
        let (units, _) = found(saturated, 100, 0.05);
        assert!(units.len() < 70, "{}", units.len());
    }

    #[test]
    fn what_does_harm_only_together_is_given_up_as_far_as_needed() {
        let both = |some: &[usize]| {
            if some.contains(&6) && some.contains(&9) {
                0.3
            } else {
                0.0
            }
        };
        let (units, _) = found(both, 16, 0.05);
        assert!(units.contains(&6) != units.contains(&9), "{units:?}");
    }

    #[test]
    fn where_all_do_the_same_harm_no_more_go_than_have_to() {
        let sum = |some: &[usize]| 0.001 * some.len() as f64;
        let (units, trials) = found(sum, 100, 0.05);
        assert!((50..=52).contains(&units.len()), "{}", units.len());
        assert!(trials <= TRIALS + 10, "{trials}");
    }

    #[test]
    fn numbers_that_are_lost_are_harm_without_end() {
        let lost = |some: &[usize]| if some.contains(&3) { f64::INFINITY } else { 0.01 };
        assert_eq!(found(lost, 8, 0.05).0, [3]);
    }
}

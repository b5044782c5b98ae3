//! What integers do to the outputs of the model on calibration samples, and which operators are to blame.
//!
//! The float model and the quantized one run on a few samples. Where an output errs by more than asked, the same is tried with equalized
//! channels ([`super::equalize`]), which help some networks much and others not, so that the outputs decide; and then operators are given up: their
//! inputs are not quantized any more, and then all is written again. Which ones, the outputs tell ([`super::blame`]), not the values between: one
//! layer may carry nearly all of the error of a network in which all layers look alike (the stem of a YOLOX-nano took its outputs from
//! 17 dB to 9 dB, while a hundred others cost nothing that could be measured), and large relative errors of a value may not matter.

use super::blame::{Trial, worst};
use super::place::Placement;
use super::ranges::Scales;
use super::units::{Unit, Units};
use super::{Int8, Seen, Weights, account, chart, equalize, integer, order, place, ranges};
use crate::data::Samples;
use crate::ir::{Model, ValueId};
use crate::passes::context::runs;
use crate::passes::noise::Reference;
use crate::passes::planes::Packer;
use crate::passes::{Context, NoteKind, tables};
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;

/// Samples that are looked at first: powers are means over many elements, so a few say enough where outputs err by little.
const SAMPLES: usize = 4;
/// Where they err by more, trials run on so many, if runs over them take no more multiply-adds than this.
const TRIED: (usize, u64) = (16, 15_000_000_000);
/// How often operators are given up because an output errs too much.
const ROUNDS: u32 = 4;

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
    judges: &'a Judges,
    /// How much its outputs err.
    error: f64,
}

/// What outputs are compared with where they err by much. Trials are many, so that few samples have to do: what is chosen by these does worse on
/// others (a line detector at 15 dB on four samples had 8.9 dB on all). So more samples have the last word, and where they tell of a larger error,
/// trials are asked for a smaller one.
pub struct Judges {
    trials: Reference,
    last: Reference,
}

impl Judges {
    /// # Errors
    /// As [`Reference::new`].
    fn new(model: &Model, cx: &Context) -> Result<Judges> {
        Ok(Judges {
            trials: closer(model, cx)?,
            last: Reference::new(model, &cx.samples.deciding(), cx)?,
        })
    }

    /// The error on the samples of trials, and what it may fall to there so that `seen` on the others becomes `limit`.
    ///
    /// # Errors
    /// When a sample fails.
    fn asked(&self, model: &Model, seen: f64, limit: f64, cx: &Context) -> Result<(f64, f64)> {
        let now = self.trials.error(model, cx)?;
        let less = limit * now / seen.max(now);
        Ok((now, less.min(self.trials.careful(limit))))
    }
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

/// So many samples at most.
fn samples(cx: &Context, most: usize) -> Samples {
    let samples = cx.samples.deciding();
    samples.every(samples.len().div_ceil(most).max(1), 0)
}

/// The outputs of the model as it is, for a closer look.
///
/// # Errors
/// As [`Reference::new`].
pub fn closer(model: &Model, cx: &Context) -> Result<Reference> {
    let most = runs(cx.macs(model), TRIED.1, SAMPLES).min(TRIED.0);
    Reference::new(model, &samples(cx, most), cx)
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
        elements: Elements,
        (seen, weights): (&Seen, &mut Weights),
        (rival, start): (Option<&Rival>, usize),
        cx: &mut Context,
    ) -> Result<Outcome> {
        let kept = cx.notes.len();
        let (few, aside) = (samples(cx, SAMPLES), cx.aside());
        // Large weights are rounded one at a time, which does not keep all threads busy.
        let (first, reference) = rayon::join(
            || self.attempt(model, units, &elements, (seen, weights), cx),
            || rival.is_none().then(|| Reference::new(model, &few, &aside)).transpose(),
        );
        let (first, own) = (first?, reference?);
        let Some(attempt) = first else {
            cx.leave("no operator with a weight can run in integers");
            return self.without_integers(model, Some(seen), own.as_ref(), cx);
        };
        let more = match &own {
            Some(first) if first.error(&attempt.model, cx)? > first.careful(self.error) => {
                Some(Judges::new(model, cx)?)
            }
            _ => None,
        };
        let Some(judges) = more.as_ref().or(rival.map(|r| r.judges)) else {
            let first = own.context("where there is no rival, there is this")?;
            self.finish((model, units, &first), attempt, (seen, weights), cx)?;
            return Ok(Outcome::Quantized);
        };
        let error = judges.last.error(&attempt.model, cx)?;
        match rival {
            Some(rival) if error >= rival.error => return Ok(Outcome::Beaten),
            None if error > self.error && self.equal(model, &Rival { judges, error }, start, cx)? => {
                return Ok(Outcome::Quantized);
            }
            _ => {}
        }
        let all = (model as &Model, units, elements);
        let Some(attempt) = self.give_up(all, (attempt, error), (seen, weights), (judges, kept), cx)? else {
            cx.leave(format_args!(
                "wherever integers were tried, the outputs err by more than error={}",
                self.error
            ));
            return self.without_integers(model, Some(seen), Some(&judges.last), cx);
        };
        self.finish((model, units, &judges.last), attempt, (seen, weights), cx)?;
        Ok(Outcome::Quantized)
    }

    /// Gives up operators until the outputs, which err by so much after a first attempt, err by no more than asked; `None` when nothing is
    /// left in integers. What was said of the attempt begins with the note of number `kept`.
    fn give_up(
        &self,
        (model, units, mut elements): (&Model, &Units, Elements),
        (mut attempt, mut error): (Attempt, f64),
        (seen, weights): (&Seen, &mut Weights),
        (judges, kept): (&Judges, usize),
        cx: &mut Context,
    ) -> Result<Option<Attempt>> {
        let mut given_up: Vec<(usize, f64)> = Vec::new();
        let every = elements.clone();
        let gain = |u: &Unit| place::gain(u, &every);
        for round in 0..ROUNDS {
            if round > 0 {
                error = judges.last.error(&attempt.model, cx)?;
            }
            if error <= self.error {
                break;
            }
            let all: Vec<usize> = (0..units.all.len()).filter(|i| attempt.placement.integer[*i]).collect();
            let asked = judges.asked(&attempt.model, error, self.error, cx)?;
            let mut without = |some: &[usize]| {
                let fewer = less(&elements, units, some);
                let attempt = self.attempt(model, units, &fewer, (seen, weights), cx)?;
                let error = |a: &Attempt| judges.trials.error(&a.model, cx);
                let integer = attempt.iter().flat_map(|a| integer(units, &a.placement));
                Ok(Trial {
                    error: attempt.as_ref().map_or(Ok(0.0), error)?,
                    kept: integer.map(gain).sum(),
                })
            };
            let gains: Vec<f64> = all.iter().map(|i| gain(&units.all[*i])).collect();
            let more = worst(&all, &gains, asked, &mut without)?;
            let some: Vec<usize> = more.iter().map(|unit| unit.0).collect();
            elements = less(&elements, units, &some);
            given_up.extend(more);
            cx.notes.truncate(kept);
            for (unit, harm) in &given_up {
                let what = format!(
                    "its inputs stay in floating point: integers here, and in what is given up with it, would add {harm:.2e} to the relative error of the outputs"
                );
                cx.skip(model, units.all[*unit].node, what);
            }
            let Some(fewer) = self.attempt(model, units, &elements, (seen, weights), cx)? else {
                return Ok(None);
            };
            attempt = fewer;
        }
        Ok(Some(attempt))
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

    /// Takes fewer bits where asked, stores what stays in floating point, and tells the ranges.
    fn finish(
        &self,
        (model, units, reference): (&mut Model, &Units, &Reference),
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
        self.store_rest((model, quantized), integer(units, placement), Some(seen), reference, cx)?;
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

//! How much goes from each group, so that the outputs of the model err by a limit at most.
//!
//! A group's ladder tells what its readers lose; what that does to the outputs of the model is measured, each group alone, on
//! samples that had no part in the fit: damages of other rungs are scaled alike, and those of different groups nearly add
//! up. Of all choices whose damages sum up to an allowance, the one that saves most is that of a common exchange rate of
//! savings for damage (Everett 1963). It is tried as a whole, and the allowance moved until the outputs err by the limit.
//!
//! To try a choice, no channel is cut: readers are fitted, with zeros where inputs are gone, and outputs are the same. The
//! recurrence of a recurrent layer reads its hidden units, too, and is given zeros.

use super::Context;
use super::blocks::Whole;
use super::costs::Share;
use super::ladder::Ladder;
use super::refit::{Fitted, Moments, Part};
use super::units::Units;
use crate::analysis::groups::{Dims, Groups};
use crate::ir::{Model, NodeId, Tensor};
use crate::ops::ties::{Dot, constant};
use crate::parallel::in_order;
use crate::passes::exchange;
use crate::passes::noise::Reference;
use anyhow::Result;
use ndarray::{ArrayD, Axis, IxDyn};
use std::collections::{BTreeMap, BTreeSet};

/// Samples on which groups are tried one by one, at most.
pub const ALONE: usize = 8;
/// Rates of savings for errors, as powers of e.
pub const EXPONENTS: [f64; 2] = [-20.0, 40.0];
/// How often a choice is tried.
const ROUNDS: usize = 10;
/// An error from this part of the limit on is near enough,
const NEAR: f64 = 0.85;
/// and so is an allowance, when one so many times as large was too much.
const CLOSE: f64 = 1.15;
/// An output that errs by this part of its power is lost: how far the allowance went too far cannot be told from it.
const LOST: f64 = 0.3;

/// What damage to its readers does to the outputs of the model, for one group.
#[derive(Clone, Copy, Default)]
pub struct Scale {
    /// Error of the outputs for one part of damage.
    pub slope: f64,
    /// Error when the group goes as a whole.
    pub whole: f64,
}

/// How many units go from every group.
pub type Choice = Vec<usize>;

/// A choice, and the error of the worst output, relative to its power.
pub struct Settled {
    /// For every group.
    pub choice: Choice,
    /// As measured.
    pub error: f64,
    /// What each group does to the outputs, in parts of their power, by what was measured with it alone.
    pub alone: Vec<f64>,
}

/// All that is needed to try a choice.
pub struct Bench<'a> {
    /// The model, nothing cut yet.
    pub model: &'a Model,
    /// Its groups.
    pub groups: &'a Groups,
    /// What may go.
    pub units: &'a Units,
    /// For every group.
    pub ladders: &'a [Ladder],
    /// What readers are fitted to.
    pub moments: Option<&'a Moments>,
    /// Outputs on samples that have no part in a fit to half of them.
    pub reference: Option<Reference>,
}

impl Bench<'_> {
    /// The error of the outputs with these readers.
    ///
    /// # Errors
    /// As [`Reference::error`].
    pub fn error(&self, fitted: &[Fitted], cx: &Context) -> Result<Option<f64>> {
        let of = |r: &Reference| r.error(&self.changed(fitted), cx);
        self.reference.as_ref().map(of).transpose()
    }

    /// What every reader has lost under a choice.
    fn losses(&self, choice: &Choice) -> BTreeMap<NodeId, BTreeSet<usize>> {
        let mut losses: BTreeMap<NodeId, BTreeSet<usize>> = BTreeMap::new();
        for (ladder, count) in self.ladders.iter().zip(choice) {
            for unit in &ladder.order[..*count] {
                for (id, channels) in &self.units.units[unit].read {
                    losses.entry(*id).or_default().extend(channels);
                }
            }
        }
        losses
    }

    /// The readers under a choice. `known` holds earlier results for the same losses.
    ///
    /// # Errors
    /// When numbers are not finite.
    pub fn fitted(&self, choice: &Choice, part: Part, known: &mut Known, cx: &Context) -> Result<Vec<Fitted>> {
        let losses: Vec<(NodeId, BTreeSet<usize>)> = self.losses(choice).into_iter().collect();
        let mut all = Vec::new();
        let moments = self.moments.map(|m| (m, part));
        let old = &*known;
        let work = |i: usize| {
            let (id, gone) = &losses[i];
            match (old.get(id), self.units.readers.get(id)) {
                (Some((same, fitted)), _) if same == gone => Ok(Some(fitted.clone())),
                (_, Some(Some(r))) => Fitted::new(self.model, (*id, r), gone, moments),
                _ => Ok(None),
            }
        };
        in_order(losses.len(), cx.threads, work, |_, f| {
            all.extend(f);
            Ok(())
        })?;
        let mut gone: BTreeMap<NodeId, BTreeSet<usize>> = losses.into_iter().collect();
        for f in &all {
            known.insert(f.id, (gone.remove(&f.id).unwrap_or_default(), f.clone()));
        }
        all.extend(self.recurrences(choice));
        Ok(all)
    }

    /// Recurrences without the hidden units that go.
    fn recurrences(&self, choice: &Choice) -> Vec<Fitted> {
        let gone = self.gone(choice);
        let of = |(id, dot): (NodeId, &Dot)| {
            let weight = self.model.node(id).input(dot.weight.0)?;
            let (start, len) = self.groups.axis(weight, dot.weight.1)?;
            let columns: Vec<usize> = (0..len)
                .filter(|k| gone.contains(&self.groups.unit(start + k)))
                .collect();
            let t = constant(self.model, weight).filter(|_| !columns.is_empty())?;
            let mut x = ArrayD::from_shape_vec(IxDyn(t.dims()), t.floats()?.into_owned()).ok()?;
            for k in columns {
                x.index_axis_mut(Axis(dot.weight.1), k).fill(0.0);
            }
            Some(Fitted {
                id,
                weight,
                tensor: Tensor::new(t.dims(), x.into_raw_vec_and_offset().0),
                shift: None,
                lost: None,
            })
        };
        let itself = |d: &&Dot| d.data == d.weight;
        let flows = self.groups.flows.iter();
        let dots = flows.flat_map(|(id, flow)| flow.dots.iter().filter(itself).map(move |d| (*id, d)));
        dots.filter_map(of).collect()
    }

    /// The model with these readers.
    pub fn changed<'f>(&self, fitted: impl IntoIterator<Item = &'f Fitted> + Clone) -> Model {
        let mut model = self.model.clone();
        let mut dims: Dims = self.groups.all_dims().clone();
        for f in fitted.clone() {
            super::cut::set_constant(&mut model, f.weight, f.tensor.clone());
        }
        for f in fitted {
            let reader = self.units.readers.get(&f.id).and_then(Option::as_ref);
            if let Some(shift) = reader.and_then(|r| f.bias(r)) {
                shift.apply(&mut model, &BTreeMap::new(), &mut dims);
            }
        }
        model
    }

    /// The units that go under a choice.
    pub fn gone(&self, choice: &Choice) -> BTreeSet<usize> {
        let of = |(l, n): (&Ladder, &usize)| l.order[..*n].to_vec();
        self.ladders.iter().zip(choice).flat_map(of).collect()
    }

    /// The choice whose outputs err by `limit` at most. `rungs` are the counts that each group may lose.
    ///
    /// # Errors
    /// When a sample fails. [`crate::engine::NotRun`] is in the chain when the engine does not run the model.
    pub fn settle(&self, limit: f64, rungs: &[Vec<usize>], cx: &Context) -> Result<Settled> {
        let Some(reference) = &self.reference else {
            anyhow::bail!("nothing to compare with")
        };
        let limit = reference.careful(limit);
        let scale = self.scales(limit, rungs, reference, cx)?;
        let none = vec![0; self.ladders.len()];
        let alone = |choice: &Choice| -> Vec<f64> {
            choice
                .iter()
                .enumerate()
                .map(|(i, n)| self.charge(&scale, i, *n))
                .collect()
        };
        let mut best = Settled {
            alone: alone(&none),
            choice: none,
            error: 0.0,
        };
        let (mut allowed, mut low, mut high) = (limit, 0.0f64, f64::INFINITY);
        let mut known = Known::new();
        let mut tried: Option<(Choice, f64)> = None;
        cx.progress.start("try channels", ROUNDS);
        for _ in 0..ROUNDS {
            let choice = self.within(&scale, rungs, allowed);
            let error = match &tried {
                Some((same, error)) if *same == choice => *error,
                _ => {
                    let fitted = self.fitted(&choice, Part::Half, &mut known, cx)?;
                    reference.error(&self.changed(&fitted), cx)?
                }
            };
            cx.progress.advance(1);
            let good = error <= limit;
            let everything = choice.iter().zip(rungs).all(|(n, r)| r.last() == Some(n));
            if good {
                low = allowed;
                if self.saved(&choice) > self.saved(&best.choice) {
                    best = Settled {
                        alone: alone(&choice),
                        choice: choice.clone(),
                        error,
                    };
                }
            } else {
                high = allowed;
            }
            tried = Some((choice, error));
            if good && (error >= NEAR * limit || everything) || high < CLOSE * low {
                break;
            }
            allowed = next(allowed, (error, limit), low, high);
        }
        cx.progress.finish();
        Ok(best)
    }

    /// The mean of the parts of the weights and of the multiply-adds that a choice saves.
    pub fn saved(&self, choice: &Choice) -> f64 {
        let saved = self.share(choice);
        (saved.weights + saved.macs) / 2.0
    }

    /// The layers that go under a choice, with the groups that go as a whole.
    pub fn dead(&self, choice: &Choice) -> BTreeSet<NodeId> {
        let of = |(i, n): (usize, &usize)| self.all(i, *n).map(|w| &w.dead);
        choice.iter().enumerate().filter_map(of).flatten().copied().collect()
    }

    /// What goes with a group when it loses so many, all that it has.
    pub fn all(&self, group: usize, count: usize) -> Option<&Whole> {
        let g = &self.units.groups[group];
        g.whole.as_ref().filter(|_| count == g.members.len())
    }

    /// What a choice saves.
    pub fn share(&self, choice: &Choice) -> Share {
        self.units.costs.saved(&self.gone(choice), &self.dead(choice))
    }

    /// What a reader's damage does to the outputs of the model, for every group: tried alone.
    pub fn scales(&self, limit: f64, rungs: &[Vec<usize>], reference: &Reference, cx: &Context) -> Result<Vec<Scale>> {
        let at = |i: usize, n: usize| {
            let damage = n.checked_sub(1).and_then(|k| self.ladders[i].damage.get(k));
            damage.copied().unwrap_or(0.0)
        };
        // A power of 4: what is tried for one limit serves others.
        let near = 4f64.powf(limit.max(f64::MIN_POSITIVE).log(4.0).round());
        // Which count of which group, and whether the group goes as a whole.
        let trials = (0..self.ladders.len()).flat_map(|i| {
            let parts = |n: &usize| *n > 0 && self.all(i, *n).is_none();
            let first = rungs[i].iter().copied().find(|n| parts(n));
            let fits = rungs[i].iter().copied().rfind(|n| parts(n) && at(i, *n) <= near);
            let whole = rungs[i].last().copied().filter(|n| self.all(i, *n).is_some());
            let part = fits.or(first).map(|count| (i, count, false));
            part.into_iter().chain(whole.map(|count| (i, count, true)))
        });
        let trials: Vec<(usize, usize, bool)> = trials.collect();
        cx.progress.start("try groups", trials.len());
        let mut scales = vec![Scale::default(); self.ladders.len()];
        let change = |k: usize| {
            let (i, count, _) = trials[k];
            let mut only: Choice = vec![0; self.ladders.len()];
            only[i] = count;
            let fitted = self.fitted(&only, Part::Half, &mut Known::new(), cx)?;
            anyhow::Ok(self.changed(&fitted))
        };
        let errors = reference.errors_alone(trials.len(), change, cx)?;
        for ((i, count, whole), error) in trials.into_iter().zip(errors) {
            let error = error.max(1e-12);
            match whole {
                true => scales[i].whole = error,
                false => scales[i].slope = error / at(i, count).max(1e-12),
            }
        }
        cx.progress.finish();
        Ok(scales)
    }

    /// What a group does to the outputs when so many units of it go.
    pub fn charge(&self, scale: &[Scale], i: usize, count: usize) -> f64 {
        match count.checked_sub(1).and_then(|k| self.ladders[i].damage.get(k)) {
            Some(_) if self.all(i, count).is_some() => scale[i].whole,
            Some(d) => scale[i].slope * d.max(1e-12),
            None => 0.0,
        }
    }

    /// The choice that saves most among those whose damages sum up to `allowed` at most.
    fn within(&self, scale: &[Scale], rungs: &[Vec<usize>], allowed: f64) -> Choice {
        let mean = |s: Share| (s.weights + s.macs) / 2.0;
        let gain = |i: usize, n: usize| match self.all(i, n) {
            Some(whole) => mean(whole.share),
            None => n as f64 * mean(self.units.groups[i].share),
        };
        // Rates are searched by their exponents: savings are parts of 1, and so are errors.
        exchange::within(EXPONENTS, allowed, vec![0; self.ladders.len()], |rate| {
            let choice = self.at_rate(scale, rungs, gain, rate);
            let damage = (0..choice.len()).map(|i| self.charge(scale, i, choice[i])).sum();
            (choice, damage)
        })
    }

    /// For every group the count that saves most, what it costs taken off at this rate.
    pub fn at_rate(
        &self,
        scale: &[Scale],
        rungs: &[Vec<usize>],
        gain: impl Fn(usize, usize) -> f64,
        rate: f64,
    ) -> Choice {
        let best = |i: usize| {
            let worth = |n: usize| gain(i, n) - rate * self.charge(scale, i, n);
            let counts = rungs[i].iter().copied();
            let best = counts.max_by(|a, b| worth(*a).total_cmp(&worth(*b)).then(b.cmp(a)));
            best.unwrap_or(0)
        };
        (0..self.ladders.len()).map(best).collect()
    }
}

/// Readers that were fitted before, with what they had lost.
pub type Known = BTreeMap<NodeId, (BTreeSet<usize>, Fitted)>;

/// The next allowance, after one of this error. `low` was good, if it is above zero, and `high` was too much, if it is finite.
fn next(allowed: f64, (error, limit): (f64, f64), low: f64, high: f64) -> f64 {
    let guess = match error > LOST && error > 2.0 * limit {
        true => allowed / 50.0,
        false => allowed * (0.93 * limit / error.max(1e-6 * limit)).clamp(0.1, 8.0),
    };
    match (low > 0.0, high.is_finite()) {
        (true, true) => {
            // Many small damages may come to a cliff together: near the ends of a bracket a guess is worth less than its middle.
            let at = (guess / low).ln() / (high / low).ln();
            let inside = (0.1..0.9).contains(&at);
            if inside { guess } else { (low * high).sqrt() }
        }
        (true, false) => guess.max(low * 1.2),
        (false, _) => guess.min(high / 1.2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rounds until an allowance between that of `right` and the part of it that is near enough is tried.
    fn rounds(limit: f64, right: f64, error: impl Fn(f64) -> f64) -> usize {
        let (mut allowed, mut low, mut high) = (limit, 0.0f64, f64::INFINITY);
        for round in 1..=ROUNDS {
            if (0.8 * right..=right).contains(&allowed) {
                return round;
            }
            let e = error(allowed);
            *(if e <= limit { &mut low } else { &mut high }) = allowed;
            allowed = next(allowed, (e, limit), low, high);
        }
        usize::MAX
    }

    #[test]
    fn an_allowance_is_found_when_damages_add_up_and_when_they_come_to_a_cliff() {
        for times in [0.02, 0.3, 1.1, 5.0, 40.0] {
            assert!(rounds(0.01, 0.01 / times, |a| a * times) <= 4, "{times}");
            assert!(
                rounds(0.01, 0.01 / times, |a| a * times * (a / 0.01 * times).sqrt()) <= 6,
                "{times}"
            );
        }
        for cliff in [3e-6, 2e-5, 4e-4] {
            let found = rounds(0.05, cliff, |a| if a <= cliff { a } else { 1.3 });
            assert!(found <= ROUNDS, "{cliff}");
        }
    }
}

//! Which of many changes the outputs of a model bear, measured on samples that the changes were not made from.
//!
//! Every place has a ladder of changes. When the first rung of every ladder leaves the outputs within the limit, that is all. Else
//! places are tried alone; many of them in groups of neighbours, of which the most harmful are parted in two and tried again. The
//! damage tells what a place may be charged with (errors of different places nearly add up; that of a higher rung falls as its
//! predicted error). Of all choices whose damages sum up to a limit, the one that saves most is that of a common exchange rate of
//! savings for damage (Everett 1963); it is tried in turn, and the limit lowered until the outputs agree. Damages that did not add up
//! leave room: then a little more is tried.

use super::Context;
use super::exchange;
use super::noise::Reference;
use crate::data::Samples;
use crate::ir::Model;
use anyhow::Result;
use std::ops::Range;

/// What could be done at one place; the first rung saves most and errs most.
pub trait Ladder: Sync {
    /// How many rungs there are: one at least.
    fn rungs(&self) -> usize;
    /// The predicted error of a rung, relative to the power of what is computed there.
    fn error(&self, rung: usize) -> f64;
    /// What a rung saves, in the same unit for all ladders.
    fn saved(&self, rung: usize) -> f64;
    /// True when predictions rest on samples that had no part in the choice, and say more where these are few.
    fn foreseen(&self) -> bool {
        false
    }
    /// Computes what the rungs of a choice need, all at once.
    ///
    /// # Errors
    /// As [`Ladder::apply`].
    fn prepare(_: &[Self], _: &Choice) -> Result<()>
    where
        Self: Sized,
    {
        Ok(())
    }

    /// Makes the change of a rung, for a trial.
    ///
    /// # Errors
    /// When it does not fit the model.
    fn apply(&self, model: &mut Model, rung: usize) -> Result<()>;
}

/// Samples on which places are tried one by one, at most.
const ALONE: usize = 12;
/// Places are tried in so many groups at first,
const GROUPS: usize = 24;
/// and groups are parted while there are fewer than this.
const PARTED: usize = 36;
/// How often another choice is tried,
const ROUNDS: usize = 8;
/// and how often of these one with more damages, when outputs err by less than this part of the limit.
const BOLDER: usize = 2;
const ROOM: f64 = 0.75;

/// The rung of every ladder; `None`: left alone.
pub type Choice = Vec<Option<usize>>;

/// What was chosen, and the outputs' error: in the worst of them, relative to its power.
pub struct Settled {
    /// For every ladder.
    pub choice: Choice,
    /// With the first rung everywhere.
    pub first: f64,
    /// As chosen.
    pub last: f64,
}

/// The choice of rungs whose outputs err by `limit` at most, by less where few samples say so.
///
/// # Errors
/// When a sample fails. [`crate::engine::NotRun`] is in the chain when the engine does not run the model.
pub fn settle<L: Ladder>(model: &Model, ladders: &[L], limit: f64, samples: &Samples, cx: &Context) -> Result<Settled> {
    let reference = Reference::new(model, samples, cx)?;
    let everything: Choice = vec![Some(0); ladders.len()];
    let first = reference.error(&changed(model, ladders, &everything)?, cx)?;
    let mut settled = Settled {
        choice: everything,
        first,
        last: first,
    };
    // First rungs are chosen without a look at these errors, what follows by them. Where predictions count few samples
    // already, the first ones need not do so twice.
    let careful = reference.careful(limit);
    let foreseen = ladders.iter().all(Ladder::foreseen);
    if first <= if foreseen { limit } else { careful } {
        return Ok(settled);
    }
    let limit = careful;
    let reference = reference.piecemeal(model, ALONE);
    let damage = damages(model, ladders, &reference, cx)?;
    let (mut tried, mut allowed, mut found) = (settled.choice, limit, 0);
    settled.choice = vec![None; ladders.len()];
    settled.last = 0.0;
    for _ in 0..ROUNDS {
        let choice = within(ladders, &damage, allowed);
        if choice == tried {
            if found > 0 {
                break;
            }
            allowed *= 0.6;
            continue;
        }
        let made = reference.error(&changed(model, ladders, &choice)?, cx)?;
        let bounds = match made <= limit {
            true if saved(ladders, &choice) <= saved(ladders, &settled.choice) => break,
            true => {
                (settled.choice, settled.last) = (choice.clone(), made);
                found += 1;
                [1.0, 4.0]
            }
            false => [0.05, 0.85],
        };
        if found > BOLDER || found > 0 && made > ROOM * limit {
            break;
        }
        tried = choice;
        allowed *= (0.9 * limit / made).clamp(bounds[0], bounds[1]);
    }
    Ok(settled)
}

/// What a choice saves in all.
fn saved<L: Ladder>(ladders: &[L], choice: &Choice) -> f64 {
    let each = ladders.iter().zip(choice);
    each.filter_map(|(ladder, rung)| Some(ladder.saved((*rung)?))).sum()
}

/// What the first rung of every ladder does to the outputs.
fn damages<L: Ladder>(model: &Model, ladders: &[L], reference: &Reference, cx: &Context) -> Result<Vec<f64>> {
    let tried = |ranges: Vec<Range<usize>>| -> Result<Vec<(Range<usize>, f64)>> {
        let change = |k: usize| {
            let choice = (0..ladders.len())
                .map(|i| ranges[k].contains(&i).then_some(0))
                .collect();
            changed(model, ladders, &choice)
        };
        let errors = reference.errors_alone(ranges.len(), change, cx)?;
        Ok(ranges.into_iter().zip(errors).collect())
    };
    let first = GROUPS.min(ladders.len());
    let last = PARTED.min(ladders.len());
    cx.progress.start("try layers", first + 2 * (last - first));
    let start = |i: usize| i * ladders.len() / first;
    let mut groups = tried((0..first).map(|i| start(i)..start(i + 1)).collect())?;
    while groups.len() < last {
        let several = (0..groups.len()).filter(|&i| groups[i].0.len() > 1);
        let Some(worst) = several.max_by(|&a, &b| groups[a].1.total_cmp(&groups[b].1)) else {
            break;
        };
        let (group, _) = groups.swap_remove(worst);
        let middle = (group.start + group.end) / 2;
        groups.extend(tried(vec![group.start..middle, middle..group.end])?);
    }
    cx.progress.finish();
    let mut damage = vec![0.0; ladders.len()];
    for (group, sum) in groups {
        // Within a group, as predicted.
        let each = |i: usize| ladders[i].error(0).max(f64::MIN_POSITIVE);
        let all: f64 = group.clone().map(each).sum();
        group.for_each(|i| damage[i] = sum * each(i) / all);
    }
    Ok(damage)
}

/// The choice that saves most, about, among those whose damages sum up to `allowed` at most.
fn within<L: Ladder>(ladders: &[L], damage: &[f64], allowed: f64) -> Choice {
    let charge = |i: usize, rung: usize| {
        let error = |r: usize| ladders[i].error(r);
        damage[i] * (error(rung) / error(0).max(f64::MIN_POSITIVE)).min(1.0)
    };
    let at = |rate: f64| -> ((Choice, f64), f64) {
        let mut sum = 0.0;
        let best = |i: usize| {
            let mut best = (None, 0.0, 0.0);
            for rung in 0..ladders[i].rungs() {
                let gain = ladders[i].saved(rung) - rate * charge(i, rung);
                if gain > best.1 {
                    best = (Some(rung), gain, charge(i, rung));
                }
            }
            sum += best.2;
            best.0
        };
        let choice = (0..ladders.len()).map(best).collect();
        ((choice, sum), sum)
    };
    // Rates are searched by their exponents: from a weight for an error of 1 to one for an error of 1e-18.
    let nothing = (vec![None; ladders.len()], 0.0);
    let (choice, sum) = exchange::within([0.0, 40.0], allowed, nothing, at);
    filled(ladders, charge, choice, allowed - sum)
}

/// A choice with what else `left` pays for: a common rate cannot part what is large from what is left over. What saves most for its
/// damage comes first.
fn filled<L: Ladder>(ladders: &[L], charge: impl Fn(usize, usize) -> f64, mut choice: Choice, mut left: f64) -> Choice {
    loop {
        let now = |i: usize, what: &dyn Fn(usize, usize) -> f64| choice[i].map_or(0.0, |rung| what(i, rung));
        let more = (0..ladders.len()).flat_map(|i| (0..ladders[i].rungs()).map(move |rung| (i, rung)));
        let more = more.filter_map(|(i, rung)| {
            let saved = ladders[i].saved(rung) - now(i, &|i, rung| ladders[i].saved(rung));
            let damage = charge(i, rung) - now(i, &charge);
            (saved > 0.0 && damage <= left).then(|| (i, rung, damage, saved / damage.max(f64::MIN_POSITIVE)))
        });
        let Some((i, rung, damage, _)) = more.max_by(|a, b| a.3.total_cmp(&b.3)) else {
            return choice;
        };
        choice[i] = Some(rung);
        left -= damage.max(0.0);
    }
}

/// The model under a choice, for a trial.
///
/// # Errors
/// As [`Ladder::apply`].
pub fn changed<L: Ladder>(model: &Model, ladders: &[L], choice: &Choice) -> Result<Model> {
    Ladder::prepare(ladders, choice)?;
    let mut changed = model.clone();
    for (ladder, rung) in ladders.iter().zip(choice) {
        if let Some(rung) = rung {
            ladder.apply(&mut changed, *rung)?;
        }
    }
    Ok(changed)
}

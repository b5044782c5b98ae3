//! How much goes from each group, so that a part of the multiply-adds is left: the choice whose outputs err least.
//!
//! Of all choices that leave no more than the part, a common exchange rate of savings for damage gives that of the least sum of
//! damages (Everett 1963), when damages add up. They do so only nearly: an error that an earlier layer has made already hides
//! that of a later one, or is made larger by it. So what a group does is measured anew within the choice, by giving some of its units
//! back, and the choice is made again from that, not far from the last one, as long as its error falls.

use super::Context;
use super::refit::Part;
use super::trial::{Bench, Choice, EXPONENTS, Known, Scale, Settled};
use super::units::Group;
use crate::passes::exchange;
use crate::passes::noise::Reference;
use anyhow::Result;

/// How often a choice is made.
const ROUNDS: usize = 3;
/// Groups are tried alone where their readers lose about this much.
const ALONE_AT: f64 = 0.03;
/// One of so many units of a group is given back, at least one, to see what it does within a choice.
const STEP: usize = 8;
/// How many rungs are given back at most.
const FILLS: usize = 64;
/// A group may lose so many steps more or less than before.
const REACH: usize = 2;

impl Bench<'_> {
    /// The choice that leaves this part of the multiply-adds at most; `None` when no choice does. `rungs` are the counts that each
    /// group may lose.
    ///
    /// # Errors
    /// As [`Bench::settle`].
    pub fn reach(&self, part: f64, rungs: &[Vec<usize>], cx: &Context) -> Result<Option<Settled>> {
        let Some(reference) = &self.reference else {
            anyhow::bail!("nothing to compare with")
        };
        if self.left(&most(rungs)) > part {
            return Ok(None);
        }
        let scale = self.scales(ALONE_AT, rungs, reference, cx)?;
        let none = vec![0; self.ladders.len()];
        let Some(choice) = self.reaching(&scale, rungs, &none, part) else {
            return Ok(None);
        };
        let mut best = self.settled(choice, &scale, reference, cx)?;
        for _ in 1..ROUNDS {
            let within = self.scales_within(&best.choice, rungs, reference, cx)?;
            let near = self.near(&best.choice, rungs);
            let Some(choice) = self.reaching(&within, &near, &best.choice, part) else {
                break;
            };
            let other = self.settled(choice, &scale, reference, cx)?;
            if other.error >= best.error {
                break;
            }
            best = other;
        }
        Ok(Some(best))
    }

    /// The part of the multiply-adds that a choice leaves.
    pub fn left(&self, choice: &Choice) -> f64 {
        1.0 - self.share(choice).macs
    }

    fn settled(&self, choice: Choice, scale: &[Scale], reference: &Reference, cx: &Context) -> Result<Settled> {
        let fitted = self.fitted(&choice, Part::Half, &mut Known::new(), cx)?;
        let error = reference.error(&self.changed(&fitted), cx)?;
        let alone = (0..choice.len()).map(|i| self.charge(scale, i, choice[i])).collect();
        Ok(Settled { choice, error, alone })
    }

    /// The choice of least damage that leaves this part at most; savings are those of one more unit after `last`.
    fn reaching(&self, scale: &[Scale], rungs: &[Vec<usize>], last: &Choice, part: f64) -> Option<Choice> {
        let shares = self.units.costs.shares(&self.gone(last));
        let of = |g: &Group| {
            let all = g.members.iter().filter_map(|u| shares.get(u));
            all.map(|s| s.macs).fold(0.0, f64::max)
        };
        let gains: Vec<f64> = self.units.groups.iter().map(of).collect();
        let gain = |i: usize, n: usize| match self.all(i, n) {
            Some(whole) => whole.share.macs,
            None => n as f64 * gains[i],
        };
        // The other way round: what is left falls as the price of what is left rises.
        let exponents = [-EXPONENTS[1], -EXPONENTS[0]];
        let found = exchange::within(exponents, part, most(rungs), |price| {
            let choice = self.at_rate(scale, rungs, gain, 1.0 / price);
            let left = self.left(&choice);
            (choice, left)
        });
        (self.left(&found) <= part).then(|| self.filled(found, scale, rungs, part))
    }

    /// A rate leaves gaps where groups lose many channels at once: what there is room for is given back, the worst damage first.
    fn filled(&self, mut choice: Choice, scale: &[Scale], rungs: &[Vec<usize>], part: f64) -> Choice {
        for _ in 0..FILLS {
            let back = |i: usize| {
                let less = rungs[i].iter().copied().rfind(|n| *n < choice[i])?;
                let relief = self.charge(scale, i, choice[i]) - self.charge(scale, i, less);
                let mut other = choice.clone();
                other[i] = less;
                (relief > 0.0 && self.left(&other) <= part).then_some((relief, other))
            };
            let best = (0..choice.len()).filter_map(back).max_by(|a, b| a.0.total_cmp(&b.0));
            match best {
                Some((_, other)) => choice = other,
                None => break,
            }
        }
        choice
    }

    /// The counts near those of a choice.
    fn near(&self, choice: &Choice, rungs: &[Vec<usize>]) -> Vec<Vec<usize>> {
        let of = |(i, all): (usize, &Vec<usize>)| {
            let reach = REACH * self.step(i);
            // Branches that go as a whole are not comparable with parts of them.
            let like = |n: usize| self.all(i, n).is_some() == self.all(i, choice[i]).is_some();
            let near = |n: &&usize| n.abs_diff(choice[i]) <= reach && like(**n);
            all.iter().filter(near).copied().collect()
        };
        rungs.iter().enumerate().map(of).collect()
    }

    fn step(&self, group: usize) -> usize {
        (self.units.groups[group].members.len() / STEP).max(1)
    }

    /// What damage does to the outputs, for every group, among all others: measured by giving some units back (or, where none go, by taking some).
    fn scales_within(
        &self,
        choice: &Choice,
        rungs: &[Vec<usize>],
        reference: &Reference,
        cx: &Context,
    ) -> Result<Vec<Scale>> {
        cx.progress.start("try groups", self.ladders.len());
        let mut known = Known::new();
        let mut try_one = |choice: &Choice| -> Result<f64> {
            let fitted = self.fitted(choice, Part::Half, &mut known, cx)?;
            reference.error_alone(&self.changed(&fitted), cx)
        };
        let whole = try_one(choice)?;
        let ones = vec![Scale { slope: 1.0, whole: 1.0 }; self.ladders.len()];
        let mut scales = Vec::new();
        for (i, rungs) in rungs.iter().enumerate() {
            cx.progress.advance(1);
            let (n, step) = (choice[i], self.step(i));
            if self.all(i, n).is_some() {
                scales.push(Scale::default());
                continue;
            }
            let less = rungs.iter().copied().rfind(|m| m + step <= n);
            let more = rungs.iter().copied().find(|m| *m >= n + step);
            let Some(other) = less.or(more) else {
                scales.push(Scale::default());
                continue;
            };
            let mut changed = choice.clone();
            changed[i] = other;
            let error = try_one(&changed)?;
            let damage = self.charge(&ones, i, n) - self.charge(&ones, i, other);
            // Damage that does nothing here is cheap, not free.
            let slope = (whole - error) / damage;
            let slope = if slope.is_finite() {
                slope.max(1e-2 * whole)
            } else {
                whole
            };
            scales.push(Scale { slope, whole: 0.0 });
        }
        cx.progress.finish();
        Ok(scales)
    }
}

fn most(rungs: &[Vec<usize>]) -> Choice {
    rungs.iter().map(|r| r.last().copied().unwrap_or(0)).collect()
}

//! How much goes from each group, so that a part of the multiply-adds is left: the choice whose outputs err least.
//!
//! Of all choices that leave no more than the part, a common exchange rate of savings for damage gives that of the least sum of
//! damages (Everett 1963), when damages add up. They do so only nearly: an error that an earlier layer has made already hides
//! that of a later one, or is made larger by it. So what a group does is measured anew within the choice, as the error that the outputs lose when
//! the group alone is given back, and the choice is made again from that, as long as its error falls.

use super::Context;
use super::refit::Part;
use super::trial::{ALONE, Bench, Choice, EXPONENTS, Known, Settled};
use crate::passes::exchange;
use crate::passes::noise::{Reference, SAMPLES};
use anyhow::Result;
use std::collections::BTreeSet;

/// How often a choice is made.
const ROUNDS: usize = 4;
/// Groups are tried alone where their readers lose about this much.
const ALONE_AT: f64 = 0.03;

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
        let everything: Choice = rungs.iter().map(|r| r.last().copied().unwrap_or(0)).collect();
        if self.left(&everything) > part {
            return Ok(None);
        }
        let mut scale = self.scales(ALONE_AT, rungs, reference, cx)?;
        let mut best: Option<Settled> = None;
        let mut last = vec![0; self.ladders.len()];
        let rounds = std::env::var("P6_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(ROUNDS);
        for round in 0..rounds {
            let choice = self.reaching(&scale, rungs, &last, part, &everything);
            if choice == last {
                break;
            }
            let fitted = self.fitted(&choice, Part::Half, &mut Known::new(), cx)?;
            let error = reference.error(&self.changed(&fitted), SAMPLES, cx)?;
            if std::env::var("P6_LOG").is_ok() {
                eprintln!("round {round}: error {:.2} dB left {:.4} choice {choice:?}", 10.0 * error.log10(), self.left(&choice));
            }
            if best.as_ref().is_none_or(|b| error < b.error) {
                let alone = (0..choice.len()).map(|i| self.charge(&scale, i, choice[i])).collect();
                best = Some(Settled { choice: choice.clone(), error, alone });
            }
            if round + 1 < rounds {
                let within = self.scales_within(&choice, rungs, reference, cx)?;
                // Half way, by powers: what is measured within a choice is right near that choice only.
                let half = |(old, new): (&f64, &f64)| if *old > 0.0 { (old * new).sqrt() } else { *new };
                scale = scale.iter().zip(&within).map(half).collect();
            }
            last = choice;
        }
        Ok(best)
    }

    /// The part of the multiply-adds that a choice leaves.
    pub fn left(&self, choice: &Choice) -> f64 {
        1.0 - self.units.costs.saved(&self.gone(choice)).macs
    }

    /// The choice of least damage that leaves this part at most; savings are those of one more unit after `last`.
    fn reaching(&self, scale: &[f64], rungs: &[Vec<usize>], last: &Choice, part: f64, everything: &Choice) -> Choice {
        let gone: BTreeSet<usize> = self.gone(last);
        let shares = self.units.costs.shares(&gone);
        let of = |g: &super::units::Group| g.members.iter().filter_map(|u| shares.get(u)).map(|s| s.macs).fold(0.0, f64::max);
        let gains: Vec<f64> = self.units.groups.iter().map(of).collect();
        // The other way round: what is left falls as the price of what is left rises.
        let exponents = [-EXPONENTS[1], -EXPONENTS[0]];
        exchange::within(exponents, part, everything.clone(), |price| {
            let choice = self.at_rate(scale, rungs, &gains, 1.0 / price);
            let left = self.left(&choice);
            (choice, left)
        })
    }

    /// What damage does to the outputs, for every group, among all others: measured by giving it back (or, where nothing goes, by taking some).
    fn scales_within(&self, choice: &Choice, rungs: &[Vec<usize>], reference: &Reference, cx: &Context) -> Result<Vec<f64>> {
        cx.progress.start("try groups", self.ladders.len());
        let mut known = Known::new();
        let mut try_one = |choice: &Choice| -> Result<f64> {
            let fitted = self.fitted(choice, Part::Half, &mut known, cx)?;
            reference.error(&self.changed(&fitted), ALONE, cx)
        };
        let whole = try_one(choice)?;
        let mut scales = Vec::new();
        for (i, ladder) in self.ladders.iter().enumerate() {
            cx.progress.advance(1);
            let some = rungs[i].iter().copied().find(|n| 12 * n >= ladder.order.len().max(1) && *n > 0);
            let count = if choice[i] > 0 { Some(choice[i]) } else { some };
            let Some(damage) = count.and_then(|n| ladder.damage.get(n - 1)) else {
                scales.push(0.0);
                continue;
            };
            let mut other = choice.clone();
            other[i] = if choice[i] > 0 { 0 } else { count.unwrap_or(0) };
            let error = try_one(&other)?;
            let done = if choice[i] > 0 { whole - error } else { error - whole };
            scales.push(done.max(1e-3 * whole).max(1e-12) / damage.max(1e-12));
        }
        cx.progress.finish();
        Ok(scales)
    }
}

//! The result of a search, made of all calibration samples.

use super::plan::precisions;
use super::precision::SMALL;
use super::{FIT, Measured, Plan, Search, usable};
use crate::pipeline::{self, Options, OtherSize};
use crate::report::Report;
use crate::verify::Verdict;
use anyhow::Result;
use std::path::Path;

/// How often a more careful result is tried when the held-back samples disagree.
const SECOND_CHANCES: usize = 5;
/// With all samples the result is to be at least so large beside what was measured;
const SAME: f64 = 0.95;
/// the error is lowered so often for it.
const LESSENED: usize = 3;
/// When the held-back samples disagree, the error is lessened to a part within these bounds;
const WEAKER: [f64; 2] = [0.25, 0.8];
/// to this where they do not say how much of the budget was used.
const HALF: f64 = 0.5;
/// Another result is more careful when it uses at most this part of the budget that the refused one did.
const CAREFUL: f64 = 0.6;
/// Another result that was measured is taken before a more careful one is made, when it is at most so many times as large as the refused one.
const NEXT: f64 = 1.1;
/// A result that becomes larger than this beside what was measured, and than another result, gives way to that.
const GROWN: f64 = 1.1;

impl Search<'_> {
    /// The best result, made of all calibration samples, or a more careful one where the held-back samples refuse it: its place, and
    /// its report.
    pub(super) fn verified(&mut self, paths: [&Path; 2], held_back: usize) -> Result<(usize, Report)> {
        let (mut k, mut chance) = (self.best(), 0);
        loop {
            let part = match chance < SECOND_CHANCES {
                true => usable(&self.budget, held_back),
                false => 1.0,
            };
            let Some((mut job, mut report)) = self.made_of_all(k, chance, part, paths)? else {
                k = self.best();
                continue;
            };
            let next = match &report.verdict {
                Verdict::Outside(why) if chance < SECOND_CHANCES => {
                    let used = self.budget.risked(&report.gaps);
                    (self.tried[k].tried.refused, self.tried[k].held) = (Some(why.clone()), used);
                    let weaker = self.lessened(used, part);
                    self.more_careful(k, (chance, weaker), held_back)?
                }
                _ => None,
            };
            if let Some(next) = next {
                (k, chance) = (next, chance + 1);
                continue;
            }
            let again = |job: &Options| pipeline::optimize(paths[0], paths[1], job, self.engine, self.progress);
            let inside = self.budget.used(&report.gaps).is_some_and(|used| used <= 1.0);
            if inside && matches!(report.verdict, Verdict::Outside(_)) {
                // Nothing is more careful: it is the budget alone that counts.
                (job.part, job.bytes) = (1.0, 0..=u64::MAX);
                report = again(&job)?;
            }
            if self.options.keep && !report.written {
                job.keep = true;
                report = again(&job)?;
            }
            return Ok((k, report));
        }
    }

    /// The smallest result that the held-back samples refused because they are few, but which fits by the tuning samples and these together.
    fn agreed(&self, held_back: usize) -> Option<usize> {
        let (n, m) = (self.tune.len(), held_back);
        let most = FIT * usable(&self.budget, n + m);
        let fits = |t: &Measured| {
            let together = t
                .held
                .map(|held| (t.tried.used * n as f64 + held * m as f64) / (n + m) as f64);
            t.held.is_some_and(|held| held <= 1.0) && together.is_some_and(|used| used <= most)
        };
        let all =
            (0..self.tried.len()).filter(|k| fits(&self.tried[*k]) && self.misses(&self.tried[*k].tried).is_none());
        all.min_by_key(|k| self.tried[*k].tried.bytes)
    }

    /// Makes result `k` anew from all calibration samples, and verifies it; `None` when it is larger then than another one, which is
    /// `best` now. More samples promise passes more, and they would go further than what was measured: the error is lowered until the result is about as
    /// large, but not much larger.
    fn made_of_all(
        &mut self,
        k: usize,
        chance: usize,
        part: f64,
        paths: [&Path; 2],
    ) -> Result<Option<(Options, Report)>> {
        let targets = self.options.targets.any();
        let other = if targets || chance > 0 { None } else { self.second(k) };
        let Measured { plan, tried, .. } = &mut self.tried[k];
        let mut job = self.options.clone();
        (job.keep, job.part) = (false, part);
        // Parts of the error: what is tried now, and the last that gave a result too small.
        let (mut now, mut small, mut left) = (1.0, 1.0, LESSENED);
        loop {
            let lessened = plan.weaker(now).filter(|_| now < 1.0);
            tried.made = lessened.as_ref().map(Plan::to_string);
            job.passes = lessened.as_ref().unwrap_or(plan).requests(&self.options.passes)?;
            let measured = tried.bytes as f64;
            let grown = (GROWN * measured) as u64;
            let bound = left > 0 && plan.weaker(1.0).is_some() && !targets;
            let least = if bound { (SAME * measured) as u64 } else { 0 };
            let most = match bound && now < 1.0 {
                true => grown,
                false => other.map_or(u64::MAX, |bytes| bytes.max(grown)),
            };
            job.bytes = least..=most;
            let made = pipeline::optimize(paths[0], paths[1], &job, self.engine, self.progress);
            match made.as_ref().err().and_then(|e| e.downcast_ref::<OtherSize>()) {
                Some(OtherSize(bytes)) if *bytes > most && now == 1.0 => {
                    tried.bytes = *bytes;
                    return Ok(None);
                }
                Some(OtherSize(bytes)) if *bytes > most => {
                    left -= 1;
                    now = if left > 0 { (small * now).sqrt() } else { small };
                }
                Some(OtherSize(bytes)) => {
                    left -= 1;
                    small = now;
                    now *= (*bytes as f64 / measured).powi(2).clamp(0.2, 0.9);
                }
                None => return Ok(Some((job, made?))),
            }
        }
    }

    /// The bytes of the smallest other result that fits.
    fn second(&self, k: usize) -> Option<u64> {
        let others = self.tried.iter().enumerate();
        let others = others.filter(|(i, m)| *i != k && self.fits(&m.tried));
        others.map(|(_, m)| m.tried.bytes).min()
    }

    /// To which part the error is to fall when the held-back samples say that so much of the budget was used, and `part` may be.
    fn lessened(&self, used: Option<f64>, part: f64) -> f64 {
        let share = used.map_or(HALF, |used| self.power(0.95 * part / used));
        share.clamp(WEAKER[0], WEAKER[1])
    }

    /// What may be used of the budget on the tuning samples, if the held-back samples take as much more of it as they did for `k`.
    fn foreseen(&self, k: usize, part: f64) -> Option<f64> {
        let refused = &self.tried[k];
        Some(part / (refused.held? / refused.tried.used).max(1.0))
    }

    /// The smallest result that was measured and uses no more than `most`.
    fn within(&self, most: f64) -> Option<usize> {
        let fits = |i: &usize| {
            let t = &self.tried[*i].tried;
            self.fits(t) && t.used <= most && self.misses(t).is_none()
        };
        (0..self.tried.len())
            .filter(fits)
            .min_by_key(|i| self.tried[*i].tried.bytes)
    }

    /// Result `k`; or what it leaves in float32 stored in 8 bits, too, where that is much, nothing stores it, and it uses no more than `most`.
    fn stored(&mut self, k: usize, most: f64) -> Result<usize> {
        let large = self.tried[k].tried.bytes as f64 > SMALL * self.before.bytes as f64;
        let Some(plan) = self.tried[k].plan.with_rest().filter(|_| large) else {
            return Ok(k);
        };
        let made = self.measure(plan)?;
        let t = &self.tried[made].tried;
        let better = t.refused.is_none() && t.used <= most && t.bytes < self.tried[k].tried.bytes;
        Ok(if better { made } else { k })
    }

    /// Another result than `k`, which the held-back samples refused: the smaller of what was measured and should fit, and of the same passes with
    /// less error, or (after some of these, and where there is nothing to lessen) what uses much less of the budget, or what was refused for its
    /// few samples only.
    fn more_careful(&mut self, k: usize, (chance, weaker): (usize, f64), held_back: usize) -> Result<Option<usize>> {
        let most = self.foreseen(k, usable(&self.budget, held_back));
        let known = most.and_then(|most| self.within(most));
        let bytes = |this: &Self, i: usize| this.tried[i].tried.bytes;
        if known.is_some_and(|i| bytes(self, i) as f64 <= NEXT * bytes(self, k) as f64) {
            return Ok(known);
        }
        let refused = &self.tried[k];
        if let Some(plan) = refused.plan.weaker(weaker).filter(|_| chance + 1 < SECOND_CHANCES) {
            let next = self.measure(plan)?;
            let t = &self.tried[next].tried;
            let next = Some(next).filter(|_| t.refused.is_none() && self.misses(t).is_none());
            let all = [next, known].into_iter().flatten();
            if let Some(next) = all.min_by_key(|i| bytes(self, *i)) {
                return Ok(Some(next));
            }
        }
        if let (Some(known), Some(most)) = (known, most) {
            return self.stored(known, most).map(Some);
        }
        let much = self.tried[k].tried.used;
        let careful = |this: &Self, i: usize| {
            let t = &this.tried[i].tried;
            t.refused.is_none() && t.used <= CAREFUL * much && this.misses(t).is_none()
        };
        let next = self.order().into_iter().find(|&i| careful(self, i));
        let agreed = self.agreed(held_back).filter(|_| chance + 1 == SECOND_CHANCES);
        if let Some(next) = [agreed, next].into_iter().flatten().min_by_key(|i| bytes(self, *i)) {
            let next = self.stored(next, CAREFUL * much)?;
            self.tried[next].tried.refused = None;
            return Ok(Some(next));
        }
        // A precision that was not needed before may be what is left.
        for precision in precisions() {
            let next = self.measure(Plan::new(&[], 0.0, Some(precision)))?;
            if careful(self, next) {
                return self.stored(next, CAREFUL * much).map(Some);
            }
        }
        Ok(None)
    }
}

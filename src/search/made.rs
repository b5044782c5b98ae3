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
/// With all samples the result is to be at least so large beside what was measured: at first, and when the error was lowered for it;
const SAME: [f64; 2] = [0.95, 0.9];
/// it is lowered so often, and once when the time is over.
const LESSENED: usize = 3;
/// However little a result uses on the tuning samples, it may use this part of the budget on the held-back ones.
const ALLOWED: f64 = 0.8;
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
/// So many errors are tried between that of a refused result and that of one that was not;
const BOLDER: usize = 2;
/// where the bolder one has at most this part of the bytes,
const SMALLER: f64 = 0.85;
/// and an error more than so many times as large.
const APART: f64 = 1.5;

impl Search<'_> {
    /// The best result, made of all calibration samples, or a more careful one where the held-back samples refuse it: its place, and
    /// its report.
    pub(super) fn verified(&mut self, paths: [&Path; 2], held_back: usize) -> Result<(usize, Report)> {
        let (mut k, mut chance) = (self.best(), 0);
        loop {
            let part = match chance < SECOND_CHANCES {
                true => self.allowed(k, held_back),
                false => 1.0,
            };
            let targets = self.options.targets.any();
            let other = if targets || chance > 0 { None } else { self.second(k) };
            let Some((mut job, mut report)) = self.made_of_all(k, other, part, paths)? else {
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
                // What is taken in spite of what few samples said of it is not refused for it once more.
                let agreed = self.tried[next].held.is_some();
                (k, chance) = (next, if agreed { SECOND_CHANCES } else { chance + 1 });
                continue;
            }
            let again = |job: &Options| pipeline::optimize(paths[0], paths[1], job, self.engine, self.progress);
            if matches!(report.verdict, Verdict::Outside(_)) && job.part < 1.0 {
                // Nothing is more careful: it is the budget alone that counts, and what breaks it is explained.
                (job.part, job.bytes) = (1.0, 0..=u64::MAX);
                report = again(&job)?;
            }
            if self.options.keep && !report.written {
                job.keep = true;
                report = again(&job)?;
            }
            return match report.verdict {
                Verdict::Within if !targets => self.bolder(k, report, held_back, paths),
                _ => Ok((k, report)),
            };
        }
    }

    /// A smaller result than `k`, which was written: errors change what passes do in steps, and between its own and that of a bolder one, which the
    /// held-back samples refused, may be one that they allow.
    fn bolder(
        &mut self,
        mut k: usize,
        mut report: Report,
        held_back: usize,
        paths: [&Path; 2],
    ) -> Result<(usize, Report)> {
        for _ in 0..BOLDER {
            let Some(plan) = self.between(k).filter(|_| !self.late()) else {
                break;
            };
            let next = self.measure(plan)?;
            let t = &self.tried[next].tried;
            if !self.fits(t) || t.bytes as f64 > SMALLER * report.after.bytes as f64 {
                break;
            }
            let (part, most) = (self.allowed(next, held_back), report.after.bytes);
            let Some((_, made)) = self.made_of_all(next, Some(most), part, paths)? else {
                break;
            };
            match made.verdict {
                Verdict::Within => (k, report) = (next, made),
                Verdict::Outside(why) => self.tried[next].tried.refused = Some(why),
                _ => break,
            }
        }
        Ok((k, report))
    }

    /// The plan half of the way, in powers, from result `k` to a refused one of the same passes that is much smaller.
    fn between(&self, k: usize) -> Option<Plan> {
        let Measured { plan, tried, .. } = &self.tried[k];
        let smaller = |m: &&Measured| m.tried.refused.is_some() && m.tried.bytes as f64 <= SMALLER * tried.bytes as f64;
        let times = self.tried.iter().filter(smaller).filter_map(|m| plan.times(&m.plan));
        let least = times.filter(|times| *times > 1.0).reduce(f64::min)?;
        plan.weaker(least.sqrt()).filter(|_| least > APART)
    }

    /// The part of the budget that result `k` may use on the held-back samples: what so few of them allow, or what is left when the tuning samples are counted
    /// with them.
    fn allowed(&self, k: usize, held_back: usize) -> f64 {
        usable(&self.budget, held_back).max(self.left(k, held_back).min(ALLOWED))
    }

    /// What the tuning samples leave of what they and the held-back ones may use together.
    fn left(&self, k: usize, held_back: usize) -> f64 {
        let n = self.tune.len();
        let together = FIT * usable(&self.budget, n + held_back);
        left_by((n, self.tried[k].tried.used), held_back, together)
    }

    /// The smallest result that the held-back samples refused because they are few, but which fits by the tuning samples and these together.
    fn agreed(&self, held_back: usize) -> Option<usize> {
        let fits = |k: &usize| {
            let held = self.tried[*k].held;
            held.is_some_and(|held| held <= self.left(*k, held_back).min(1.0))
        };
        let met = |k: &usize| self.misses(&self.tried[*k].tried).is_none();
        let all = (0..self.tried.len()).filter(|k| fits(k) && met(k));
        all.min_by_key(|k| self.tried[*k].tried.bytes)
    }

    /// Makes result `k` anew from all calibration samples, and verifies it; `None` when it is larger then than another one of so many bytes. More samples promise passes more, and they would go further than what was measured: the error is lowered until the result is about as
    /// large, but not much larger.
    fn made_of_all(
        &mut self,
        k: usize,
        other: Option<u64>,
        part: f64,
        paths: [&Path; 2],
    ) -> Result<Option<(Options, Report)>> {
        let targets = self.options.targets.any();
        // Parts of the error: what is tried now, and the last that gave a result too small.
        let (mut now, mut small, mut left) = (1.0, 1.0, if self.late() { 1 } else { LESSENED });
        let Measured { plan, tried, .. } = &mut self.tried[k];
        let mut job = self.options.clone();
        (job.keep, job.part) = (false, part);
        loop {
            let lessened = plan.weaker(now).filter(|_| now < 1.0);
            tried.made = lessened.as_ref().map(Plan::to_string);
            job.passes = lessened.as_ref().unwrap_or(plan).requests(&self.options.passes)?;
            let measured = tried.bytes as f64;
            let grown = (GROWN * measured) as u64;
            let bound = left > 0 && plan.weaker(1.0).is_some() && !targets;
            let same = SAME[usize::from(now < 1.0)];
            let least = if bound { (same * measured) as u64 } else { 0 };
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

    /// How many times as much of the budget the held-back samples may be expected to take as the tuning samples, for another result than `k`, which
    /// they refused: half of the way, in powers, since that one was chosen for its luck on the tuning samples. Once at least.
    fn dearer(&self, k: usize) -> Option<f64> {
        let refused = &self.tried[k];
        Some((refused.held? / refused.tried.used).sqrt().max(1.0))
    }

    /// Whether the held-back samples may be expected to allow a result that was measured, if they take so many times as much of the budget as the tuning samples.
    fn foreseen(&self, i: usize, dearer: f64, held_back: usize) -> bool {
        let t = &self.tried[i].tried;
        t.refused.is_none() && t.used * dearer <= self.allowed(i, held_back) && self.misses(t).is_none()
    }

    /// The smallest result that was measured and may be expected to fit.
    fn within(&self, dearer: f64, held_back: usize) -> Option<usize> {
        (0..self.tried.len())
            .filter(|&i| self.fits(&self.tried[i].tried) && self.foreseen(i, dearer, held_back))
            .min_by_key(|i| self.tried[*i].tried.bytes)
    }

    /// Result `k`; or what it leaves in float32 stored in 8 bits, too, where that is much, nothing stores it, and that is `good`.
    fn stored(&mut self, k: usize, good: impl Fn(&Self, usize) -> bool) -> Result<usize> {
        let large = self.tried[k].tried.bytes as f64 > SMALL * self.before.bytes as f64;
        let Some(plan) = self.tried[k].plan.with_rest().filter(|_| large) else {
            return Ok(k);
        };
        let made = self.measure(plan)?;
        let better = self.tried[made].tried.bytes < self.tried[k].tried.bytes && good(self, made);
        Ok(if better { made } else { k })
    }

    /// The passes of `k` with this part of its error, unless that uses more of the budget, and too much.
    fn with_less(&mut self, k: usize, part: f64) -> Result<Option<usize>> {
        let Some(plan) = self.tried[k].plan.weaker(part) else {
            return Ok(None);
        };
        let next = self.measure(plan)?;
        let (t, much) = (&self.tried[next].tried, self.tried[k].tried.used);
        let careful = self.fits(t) || t.refused.is_none() && t.used <= much;
        Ok((careful && self.misses(t).is_none()).then_some(next))
    }

    /// Another result than `k`, which the held-back samples refused: the smaller of what was measured and should fit, and of the same passes with
    /// less error, or (after some of these, and where there is nothing to lessen) what was refused for its few samples only, or what uses
    /// much less of the budget.
    fn more_careful(&mut self, k: usize, (chance, weaker): (usize, f64), held_back: usize) -> Result<Option<usize>> {
        let dearer = self.dearer(k);
        let known = dearer.and_then(|dearer| self.within(dearer, held_back));
        let bytes = |this: &Self, i: usize| this.tried[i].tried.bytes;
        if known.is_some_and(|i| bytes(self, i) as f64 <= NEXT * bytes(self, k) as f64) {
            return Ok(known);
        }
        // When the time is over, what is known comes before what has to be made.
        let (last, late) = (chance + 1 == SECOND_CHANCES, self.late());
        let smaller = |this: &Self, i: usize| known.is_none_or(|known| bytes(this, i) < bytes(this, known));
        if let Some(agreed) = self.agreed(held_back).filter(|i| (last || late) && smaller(self, *i)) {
            self.tried[agreed].tried.refused = None;
            return Ok(Some(agreed));
        }
        if !last
            && !late
            && let Some(next) = self.with_less(k, weaker)?
        {
            let all = [Some(next), known].into_iter().flatten();
            return Ok(all.min_by_key(|i| bytes(self, *i)));
        }
        if let (Some(known), Some(dearer)) = (known, dearer) {
            let good = |this: &Self, i: usize| this.foreseen(i, dearer, held_back);
            return self.stored(known, good).map(Some);
        }
        let much = self.tried[k].tried.used;
        let careful = |this: &Self, i: usize| {
            let t = &this.tried[i].tried;
            t.refused.is_none() && t.used <= CAREFUL * much && this.misses(t).is_none()
        };
        if let Some(next) = self.order().into_iter().find(|&i| careful(self, i)) {
            return self.stored(next, careful).map(Some);
        }
        if !last
            && late
            && let Some(next) = self.with_less(k, weaker)?
        {
            return Ok(Some(next));
        }
        // A precision that was not needed before may be what is left.
        for precision in precisions() {
            let next = self.measure(Plan::new(&[], 0.0, Some(precision)))?;
            if careful(self, next) {
                return self.stored(next, careful).map(Some);
            }
        }
        Ok(None)
    }
}

/// What `m` samples may use, where `n` others have used so much, for all to use `together`.
fn left_by((n, used): (usize, f64), m: usize, together: f64) -> f64 {
    let (n, m) = (n as f64, m.max(1) as f64);
    (together * (n + m) - used * n) / m
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_some_samples_do_not_use_is_left_for_others() {
        assert!((left_by((32, 0.25), 32, 0.6) - 0.95).abs() < 1e-12);
        assert!((left_by((32, 0.75), 16, 0.6) - 0.3).abs() < 1e-12);
        assert!(left_by((32, 0.9), 8, 0.6) < 0.0, "nothing is left");
    }
}

//! How strong the passes of a plan may be.

use super::Search;
use super::plan::Plan;
use crate::verify::Metric;
use anyhow::Result;

/// Good enough, in parts of what may be used: not worth another measurement.
const NEAR: f64 = 0.83;
/// The range of errors that is searched.
const ERRORS: (f64, f64) = (1e-5, 0.5);
/// Where weights in float32 are more than this part of a result, a pass that stores them is added.
const FLOATS: f64 = 0.1;
/// Errors change what passes do in steps: one to this part is felt, most often.
const FELT: f64 = 0.75;
/// Where a search begins when the budget does not say: the errors of all passes together.
const FIRST: f64 = 0.03;
/// Where a result that fits is at most so many times as large as one that does not, no error between theirs is worth a measurement.
const CLOSE: f64 = 1.04;
/// A result that uses this part of what may be used will not shrink much more:
const FAR: f64 = 0.6;
/// when it is so many times as large as another one that fits, it is given up.
const LARGER: f64 = 1.1;
/// What does not fit and has more than this part of the bytes of the smallest that does will not be smaller when it fits.
const HOPELESS: f64 = 0.95;

impl Search<'_> {
    /// Where a search begins: what the passes may err together.
    pub(super) fn first_error(&self, base: f64) -> f64 {
        let db = self
            .budget
            .conditions
            .iter()
            .filter(|c| c.metric == Metric::Sqnr)
            .map(|c| c.limit);
        let least = db.map(|db| 10f64.powf(-db / 10.0)).fold(f64::INFINITY, f64::min);
        let left = (self.fit() - base).max(0.1);
        let e = if least.is_finite() { least * left } else { FIRST };
        e.clamp(ERRORS.0, ERRORS.1)
    }

    /// Looks for the largest error of the passes of a plan that fits (or the least that meets the targets), and gives it.
    pub(super) fn strength(&mut self, part: &Plan, base: f64, start: f64, probes: usize) -> Result<Option<f64>> {
        // Errors, and what has so many bytes there.
        let (mut low, mut high, mut e) = (None::<(f64, u64)>, None::<(f64, u64)>, start);
        let (targets, fit) = (self.options.targets.any(), self.fit());
        let mut best = None::<(f64, u64)>;
        let mut last = None::<(u64, f64)>;
        let mut part = part.clone();
        for probe in 0..probes {
            if probe > 0 && self.late() {
                break;
            }
            let mut k = self.measure(part.with(e))?;
            // What structural passes leave may be too small to gain by integers.
            let left = probe == 0 && part.is_structural() && self.tried[k].floats > FLOATS;
            let rest = part.with_rest().filter(|_| left);
            if let Some(rest) = rest {
                part = rest;
                k = self.measure(part.with(e))?;
            }
            let t = &self.tried[k].tried;
            let (used, bytes) = (t.used, t.bytes);
            let met = self.misses(t).is_none();
            // A larger error that gives the same: the passes have done what they can.
            if last.replace((bytes, used)) == Some((bytes, used)) && best.is_some_and(|b| b.0 < e) {
                break;
            }
            let (good, up) = match targets {
                true => (met, !met),
                false => (used <= fit, used <= fit),
            };
            if !targets && !good && self.hopeless(k) || good && best.is_some_and(|b| exhausted(b, (e, bytes))) {
                break;
            }
            *(if up { &mut low } else { &mut high }) = Some((e, bytes));
            if good {
                best = Some((e, bytes));
            }
            if !targets
                && let (Some((_, fits)), Some((_, more))) = (low, high)
                && fits as f64 <= CLOSE * more as f64
            {
                break;
            }
            let done = self.beaten(k) || self.tried[k].exhausted;
            if good && !targets && done {
                break;
            }
            if !up {
                // With less error a pass that saved next to nothing saves no more.
                part = part.without(|pass| self.tried[k].idle(pass));
            }
            let step = match (targets, up) {
                (true, true) => 3.0,
                (true, false) => 1.0 / 3.0,
                _ if (NEAR * fit..=fit).contains(&used) => break,
                _ => self.step(base, used),
            };
            let guess = (e * step).clamp(ERRORS.0, ERRORS.1);
            e = match (low.map(|l| l.0), high.map(|h| h.0)) {
                (Some(l), Some(h)) if h / l < 1.25 => break,
                (Some(l), Some(h)) if guess < l * 1.1 || guess > h / 1.1 || targets => (l * h).sqrt(),
                // Nothing has fitted yet: what is little too much is worth a step that is felt.
                (None, Some(_)) if e > ERRORS.0 && guess > 0.9 * e => FELT * e,
                _ if (guess / e - 1.0).abs() < 0.1 => break,
                _ => guess,
            };
        }
        Ok(best.map(|b| b.0))
    }

    /// Whether a result that does not fit would be no smaller than another one even before it fits.
    fn hopeless(&self, k: usize) -> bool {
        let all = self.tried.iter().map(|m| &m.tried);
        let least = all.filter(|t| self.fits(t)).map(|t| t.bytes).min();
        least.is_some_and(|least| self.tried[k].tried.bytes as f64 > HOPELESS * least as f64)
    }

    /// Whether a result that fits is larger than another one, with little left to use.
    fn beaten(&self, k: usize) -> bool {
        let t = &self.tried[k].tried;
        let all = self.tried.iter().map(|m| &m.tried);
        let least = all.filter(|t| self.fits(t)).map(|t| t.bytes).min();
        t.used > FAR * self.fit() && least.is_some_and(|least| t.bytes as f64 > LARGER * least as f64)
    }

    /// A use of the budget as a power of noise.
    pub(super) fn power(&self, used: f64) -> f64 {
        if self.budget.about_decisions() {
            used * used
        } else {
            used
        }
    }

    /// By which factor the error may grow, from what the last one used.
    fn step(&self, base: f64, used: f64) -> f64 {
        let base = self.power(base);
        let (left, made) = (self.power(0.95 * self.fit()) - base, self.power(used) - base);
        match made > 0.0 && left > 0.0 {
            true => (left / made).clamp(0.1, 6.0),
            false if used > self.fit() => 0.1,
            false => 6.0,
        }
    }
}

/// Whether a much larger error has saved next to nothing: all that a pass can do is done. Errors and bytes, the smaller error first.
fn exhausted((little, before): (f64, u64), (much, after): (f64, u64)) -> bool {
    much > 3.0 * little && after as f64 > 0.99 * before as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_exhausted_when_a_much_larger_error_saves_nothing() {
        assert!(exhausted((0.01, 1000), (0.06, 1000)));
        assert!(!exhausted((0.01, 1000), (0.06, 900)));
        assert!(!exhausted((0.01, 1000), (0.02, 1001)), "it may just have had no luck");
        assert!(!exhausted((0.06, 900), (0.01, 1000)));
    }
}

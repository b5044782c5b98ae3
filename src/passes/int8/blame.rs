//! Which operators are to blame for the error of the outputs.
//!
//! Powers of independent noise add up, so what a stretch of operators (in the order in which they run) does is the error with it less the error
//! without it: stretches that do most harm are halved, as in group testing, until single ones are left or trials run out. Errors also
//! saturate: a decision that either half turns is turned with either of them left out. Then it counts how much each half does alone. What does
//! much harm for what it gains in integers is given up first.

use anyhow::Result;
use std::ops::Range;

/// How many stretches are left out, one at a time, to see what they do, in each round.
const TRIALS: usize = 24;
/// Operators are given up until this part of the limit is left, as far as the trials tell.
const LEFT: f64 = 0.8;
/// An error above this saturates: what an operator adds to it says less than what it does alone.
const SATURATED: f64 = 0.1;
/// Halves that together take away less than this part of what the whole does are to blame together.
const TOGETHER: f64 = 0.5;

/// Operators that run one after the other: where they stand among those in integers, and by how much outputs err because of them.
#[derive(Clone, Debug, PartialEq)]
struct Stretch {
    first: usize,
    end: usize,
    /// What integers gain there.
    gain: f64,
    /// Noise power over signal power.
    harm: f64,
    /// It does its harm as a whole.
    whole: bool,
}

/// Those of all operators to give up, with the harm that each does together with its neighbours: those that do much for what they gain, and as few as will do
/// for an error of `now` to fall to `limit`. `without` tells the error without some.
///
/// # Errors
/// Those of `without`.
pub fn worst(
    all: &[usize],
    gains: &[f64],
    (now, limit): (f64, f64),
    mut without: impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<(usize, f64)>> {
    let mut stretches = told_apart(all, gains, (now.min(f64::MAX), limit), &mut without)?;
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
        for half in last.halves(gains, [last.harm / 2.0; 2]) {
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
    let each = |s: &Stretch| {
        all[s.first..s.end]
            .iter()
            .map(|unit| (*unit, s.harm))
            .collect::<Vec<_>>()
    };
    Ok(stretches.iter().flat_map(each).collect())
}

/// Trials that are left.
struct Trials<'a, F> {
    all: &'a [usize],
    now: f64,
    left: usize,
    without: F,
}

impl<F: FnMut(&[usize]) -> Result<f64>> Trials<'_, F> {
    /// How much a stretch adds to the error of all.
    fn harm(&mut self, s: &Stretch) -> Result<f64> {
        self.left -= 1;
        Ok(self.now - (self.without)(&self.all[s.first..s.end])?.min(f64::MAX))
    }

    /// How much it errs alone.
    fn alone(&mut self, s: &Stretch) -> Result<f64> {
        self.left -= 1;
        (self.without)(&[&self.all[..s.first], &self.all[s.end..]].concat())
    }

    /// What each half of a stretch adds.
    fn added(&mut self, [a, b]: &[Stretch; 2], whole: f64) -> Result<[f64; 2]> {
        let one = self.harm(a)?.clamp(0.0, whole);
        // The larger part is measured, never inferred.
        let other = match one < whole / 2.0 && self.left > 0 {
            true => self.harm(b)?.clamp(0.0, whole),
            false => whole - one,
        };
        Ok([one, other])
    }

    /// What each half does alone, as a part of what the whole does.
    fn apart(&mut self, [a, b]: &[Stretch; 2], whole: f64) -> Result<[f64; 2]> {
        let each = [self.alone(a)?.clamp(0.0, whole), self.alone(b)?.clamp(0.0, whole)];
        let part = (whole / (each[0] + each[1]).max(f64::MIN_POSITIVE)).min(1.0);
        Ok(each.map(|harm| harm * part))
    }

    /// What each half of a stretch does; `None` when they do it together.
    fn halves(&mut self, halves: &[Stretch; 2], whole: f64) -> Result<Option<[f64; 2]>> {
        let first = self.now > SATURATED;
        for alone in [first, !first] {
            let each = match alone {
                true if self.left < 2 => continue,
                true => self.apart(halves, whole)?,
                false if self.left < 1 => continue,
                false => self.added(halves, whole)?,
            };
            if each[0] + each[1] >= TOGETHER * whole {
                return Ok(Some(each));
            }
        }
        Ok(None)
    }
}

/// All operators in stretches, those first that do much harm for what they gain.
fn told_apart(
    all: &[usize],
    gains: &[f64],
    (now, limit): (f64, f64),
    without: impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<Stretch>> {
    let left = TRIALS;
    let mut trials = Trials {
        all,
        now,
        left,
        without,
    };
    let mut stretches = vec![Stretch::new(gains, 0..all.len(), now)];
    loop {
        stretches.sort_by(|a, b| b.density().total_cmp(&a.density()).then(a.first.cmp(&b.first)));
        let wide = (0..enough(&stretches, now - LEFT * limit)).filter(|k| !stretches[*k].whole);
        let most = wide.max_by(|a, b| stretches[*a].harm.total_cmp(&stretches[*b].harm));
        let (Some(k), true) = (most, trials.left > 0) else {
            return Ok(stretches);
        };
        let whole = stretches[k].harm;
        match trials.halves(&stretches[k].halves(gains, [0.0; 2]), whole)? {
            Some(each) => {
                let halves = stretches[k].halves(gains, each);
                stretches.splice(k..=k, halves);
            }
            None => stretches[k].whole = true,
        }
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
    fn new(gains: &[f64], part: Range<usize>, harm: f64) -> Stretch {
        Stretch {
            first: part.start,
            end: part.end,
            gain: gains[part.clone()].iter().sum(),
            harm,
            whole: part.len() < 2,
        }
    }

    fn halves(&self, gains: &[f64], [one, other]: [f64; 2]) -> [Stretch; 2] {
        let middle = self.first.midpoint(self.end);
        [
            Stretch::new(gains, self.first..middle, one),
            Stretch::new(gains, middle..self.end, other),
        ]
    }

    fn density(&self) -> f64 {
        self.harm / self.gain.max(f64::MIN_POSITIVE)
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
        let found = worst(&all, &vec![1.0; n], (harm(&all), limit), &mut without).expect("trials run");
        let mut units: Vec<usize> = found.iter().map(|unit| unit.0).collect();
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
